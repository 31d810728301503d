//! The GPUs of a machine, from the files of the driver: `/proc/driver/nvidia`, `/dev`, and the bus in `/sys`.
//!
//! NVML would know more (brands, compute capabilities, the UUIDs of parts of GPUs), but wakes GPUs, takes tens of milliseconds, and is code
//! of the driver in our process. What a grant needs stands in files:
//!
//! - `/proc/driver/nvidia/gpus/BUS/information`: UUID, model, and the number of the device file;
//! - `/proc/driver/nvidia/capabilities/gpuN/mig/giG/ciC/access`: the parts of a GPU in MIG mode, with the numbers of theirs;
//! - `/sys/bus/pci/devices/BUS/drm`: the nodes for displays and rendering.
//!
//! A GPU's index is its place in the order of the bus, which is nvidia-smi's order.

use super::super::Host;

/// Where the driver tells of itself.
pub(super) const PROC: &str = "/proc/driver/nvidia";

/// Most GPUs, and parts of one, that are looked at.
const MAX: usize = 1024;

/// The longest file of the driver that is read, in bytes.
const MAX_TEXT: u64 = 64 << 10;

/// A GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Gpu {
    /// Its place on the bus, as the driver writes it: `0000:07:00.0`.
    pub(super) bus: String,
    /// Its UUID; empty while the driver does not know it.
    pub(super) uuid: String,
    /// Its model: `NVIDIA H100 80GB HBM3`.
    pub(super) model: String,
    /// The number of its device file.
    pub(super) minor: u32,
    /// Whether the administrator has taken it out of use.
    pub(super) is_excluded: bool,
    /// Its parts, in nvidia-smi's order.
    pub(super) parts: Vec<Part>,
}

/// A MIG device: a compute instance of a GPU instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Part {
    /// The GPU instance.
    pub(super) gi: u32,
    /// The compute instance in it.
    pub(super) ci: u32,
    /// Number of the device file that gives access to the GPU instance.
    pub(super) gi_minor: u32,
    /// Number of the one for the compute instance.
    pub(super) ci_minor: u32,
}

impl Gpu {
    /// Its device file.
    pub(super) fn node(&self) -> String {
        format!("/dev/nvidia{}", self.minor)
    }

    /// Brands that a condition of an image may mean by `brand`, as NVML calls them. Of data-center GPUs older drivers say `tesla`.
    pub(super) fn brands(&self) -> &'static [&'static str] {
        let model = self.model.strip_prefix("NVIDIA ").unwrap_or(&self.model);
        let table: [(&str, &[&str]); 9] = [
            ("GeForce RTX", &["geforcertx", "geforce"]),
            ("GeForce", &["geforce"]),
            ("TITAN RTX", &["titanrtx", "titan"]),
            ("TITAN", &["titan"]),
            ("Quadro RTX", &["quadrortx", "quadro"]),
            ("Quadro", &["quadro"]),
            ("RTX", &["nvidiartx"]),
            ("NVS", &["nvs"]),
            ("GRID", &["grid"]),
        ];
        table
            .iter()
            .find(|(prefix, _)| model.starts_with(prefix))
            .map_or(&["tesla", "nvidia"], |(_, brands)| brands)
    }
}

/// The version of the driver in the kernel: the first word of its line that looks like one.
pub(super) fn driver_version(host: &Host) -> Option<String> {
    let text = host.text(format!("{PROC}/version"))?;
    let line = text.lines().find(|line| line.contains("NVRM"))?;
    line.split_ascii_whitespace()
        .find(|word| {
            word.contains('.')
                && word
                    .split('.')
                    .all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()))
        })
        .map(str::to_owned)
}

/// All GPUs that the driver has, in the order of their indexes.
pub(super) fn all(host: &Host) -> Vec<Gpu> {
    let mut found: Vec<(Vec<u32>, Gpu)> = host
        .names(format!("{PROC}/gpus"))
        .into_iter()
        .take(MAX)
        .filter_map(|name| {
            let bus = name.into_string().ok()?;
            let text = host
                .read(format!("{PROC}/gpus/{bus}/information"), MAX_TEXT)
                .ok()?;
            let gpu = parse(&bus, &String::from_utf8_lossy(&text))?;
            Some((place(&bus)?, gpu))
        })
        .collect();
    found.sort_by(|(one, _), (other, _)| one.cmp(other));
    let mut gpus: Vec<Gpu> = found.into_iter().map(|(_, gpu)| gpu).collect();
    // Without MIG there is nothing to look for.
    if host.exists(format!("{PROC}/capabilities")) {
        for gpu in &mut gpus {
            gpu.parts = parts(host, gpu.minor);
        }
    }
    gpus
}

/// Domain, bus, device and function as numbers.
fn place(bus: &str) -> Option<Vec<u32>> {
    let numbers = bus
        .split([':', '.'])
        .map(|part| u32::from_str_radix(part, 16).ok());
    numbers
        .collect::<Option<Vec<_>>>()
        .filter(|it| it.len() == 4)
}

fn parse(bus: &str, text: &str) -> Option<Gpu> {
    let field = |wanted: &str| {
        text.lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.trim() == wanted)
            .map(|(_, value)| value.trim())
    };
    Some(Gpu {
        bus: bus.to_owned(),
        uuid: field("GPU UUID")
            .filter(|uuid| !uuid.contains('?'))
            .unwrap_or_default()
            .to_owned(),
        model: field("Model").unwrap_or("GPU").to_owned(),
        minor: field("Device Minor")?.parse().ok()?,
        is_excluded: field("GPU Excluded") == Some("Yes"),
        parts: Vec::new(),
    })
}

fn parts(host: &Host, minor: u32) -> Vec<Part> {
    let mig = format!("{PROC}/capabilities/gpu{minor}/mig");
    let mut found = Vec::new();
    for (gi, name) in host.numbered(&mig, "gi").into_iter().take(MAX) {
        let above = format!("{mig}/{name}");
        let Some(gi_minor) = capability(host, &format!("{above}/access")) else {
            continue;
        };
        for (ci, name) in host.numbered(&above, "ci").into_iter().take(MAX) {
            if let Some(ci_minor) = capability(host, &format!("{above}/{name}/access")) {
                found.push(Part {
                    gi,
                    ci,
                    gi_minor,
                    ci_minor,
                });
            }
        }
    }
    found.sort_unstable();
    found
}

/// The number of the device file of a capability, from its file below `/proc/driver/nvidia/capabilities`.
pub(super) fn capability(host: &Host, path: &str) -> Option<u32> {
    let text = host.read(path, MAX_TEXT).ok()?;
    let text = String::from_utf8_lossy(&text);
    let (_, value) = text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.trim() == "DeviceFileMinor")?;
    value.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn information() {
        let text = "Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 18\nGPU UUID: \t GPU-1-2\nBus Type: \t PCIe\nBus Location: \t 0000:07:00.0\nDevice Minor: \t 5\nGPU Excluded:\t No\n";
        let gpu = parse("0000:07:00.0", text).unwrap();
        assert_eq!(
            (gpu.model.as_str(), gpu.uuid.as_str(), gpu.minor),
            ("NVIDIA H100 80GB HBM3", "GPU-1-2", 5)
        );
        assert_eq!(gpu.node(), "/dev/nvidia5");
        assert!(!gpu.is_excluded);
        let asleep = parse(
            "x",
            "GPU UUID: \t GPU-????????-????\nDevice Minor: 0\nGPU Excluded: Yes",
        )
        .unwrap();
        assert_eq!((asleep.uuid.as_str(), asleep.is_excluded), ("", true));
        for wrong in ["", "Device Minor: x", "Model: y"] {
            assert_eq!(parse("x", wrong), None, "{wrong}");
        }
    }

    #[test]
    fn the_order_of_the_bus() {
        let mut buses = [
            "10000:01:00.0",
            "0000:8a:00.0",
            "0000:07:00.0",
            "0000:07:00.1",
        ];
        buses.sort_by_key(|bus| place(bus));
        assert_eq!(
            buses,
            [
                "0000:07:00.0",
                "0000:07:00.1",
                "0000:8a:00.0",
                "10000:01:00.0"
            ]
        );
        assert_eq!(place("0000:07"), None);
    }
}
