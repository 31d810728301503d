//! GPUs of AMD: `/dev/kfd`, which all of them share, and for each its render node and its card node below `/dev/dri`.
//!
//! They are numbered as the ROCm runtime does: in the order of the nodes of `/sys/class/kfd/kfd/topology`. A GPU that is
//! partitioned (CPX and other modes of an MI300) is several nodes with one UUID, which then stands for all of its partitions. A container with
//! other GPUs than those of the machine sees them numbered from 0: the runtime passes over GPUs whose render node it cannot open.
//!
//! Libraries are the image's: those of ROCm work with the drivers of some years, so nothing of the host is put in. Which variables
//! choose: `AMD_VISIBLE_DEVICES` as AMD's container toolkit has it, and in a job `ROCR_VISIBLE_DEVICES` and its like.

use std::path::{Path, PathBuf};

use super::host::Host;
use super::listed::{Kind, Listed};
use super::question::{Question, Variables};
use super::{DeviceError, Grant, Vendor};

/// The device of all GPUs together.
const KFD: &str = "/dev/kfd";

/// What the driver says of the machine.
const TOPOLOGY: &str = "/sys/class/kfd/kfd/topology/nodes";

/// The variables that choose GPUs.
const VARIABLES: Variables = Variables {
    image: "AMD_VISIBLE_DEVICES",
    library: &[
        "ROCR_VISIBLE_DEVICES",
        "HIP_VISIBLE_DEVICES",
        "GPU_DEVICE_ORDINAL",
    ],
};

/// What they are called.
const KIND: Kind = Kind {
    what: "AMD GPU",
    maker: "AMD",
    name: ("amd.com", "gpu"),
    variables: &VARIABLES,
};

/// GPUs of AMD.
#[derive(Debug)]
pub struct Amd;

/// A GPU, or a partition of one.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Gpu {
    /// What ROCm calls it by: 16 hexadecimal digits; None for one that has none.
    uuid: Option<String>,
    /// What its instructions are called: `gfx942`.
    architecture: String,
    /// Where it is on the bus: `0000:05:00.0`.
    address: String,
    /// The number of its render node.
    render: u32,
    /// Its nodes, the render node first.
    nodes: Vec<PathBuf>,
}

impl Vendor for Amd {
    fn name(&self) -> &'static str {
        "amd"
    }

    fn is_there(&self, host: &Host) -> bool {
        host.exists(KFD)
    }

    fn inventory(&self, host: &Host) -> Result<Vec<String>, DeviceError> {
        Ok(KIND.inventory(&list(host)))
    }

    fn grant(
        &self,
        host: &Host,
        question: &Question<'_>,
        grant: &mut Grant,
    ) -> Result<(), DeviceError> {
        let devices = list(host);
        let chosen = KIND.choose(self, host, &devices, question, grant)?;
        if let Some(first) = chosen.first() {
            grant.device(KFD, format!("for AMD GPUs, {}", first.why));
        }
        KIND.grant(host, &devices, &chosen, question, grant);
        Ok(())
    }

    fn variables(&self) -> Option<&'static Variables> {
        Some(&VARIABLES)
    }
}

/// The GPUs of a machine, as a list.
fn list(host: &Host) -> Vec<Listed> {
    let gpus = gpus(host).into_iter().enumerate();
    gpus.map(|(number, gpu)| {
        let mut names = vec![gpu.address.clone(), format!("renderD{}", gpu.render)];
        if let Some(uuid) = &gpu.uuid {
            names.extend([uuid.clone(), format!("GPU-{uuid}"), format!("0x{uuid}")]);
        }
        Listed {
            number,
            title: format!("GPU {number} ({}, {})", gpu.architecture, gpu.address),
            names,
            uuid: gpu.uuid.map(|uuid| format!("GPU-{uuid}")),
            nodes: gpu.nodes,
            links: Vec::new(),
        }
    })
    .collect()
}

fn render_node(number: u32) -> PathBuf {
    format!("/dev/dri/renderD{number}").into()
}

/// The GPUs of a machine. Nodes whose properties the control group of the job keeps back are not among them.
fn gpus(host: &Host) -> Vec<Gpu> {
    host.numbered(TOPOLOGY, "")
        .into_iter()
        .filter_map(|(_, name)| {
            let text = host.text(Path::new(TOPOLOGY).join(name).join("properties"))?;
            gpu(host, &Properties(&text))
        })
        .collect()
}

/// Lines of a name and a number.
struct Properties<'a>(&'a str);

impl Properties<'_> {
    fn get(&self, name: &str) -> Option<u64> {
        self.0
            .lines()
            .filter_map(|line| line.split_once(' '))
            .find(|(known, _)| *known == name)
            .and_then(|(_, value)| value.trim().parse().ok())
    }
}

fn gpu(host: &Host, properties: &Properties<'_>) -> Option<Gpu> {
    // Processors are nodes too, without SIMD units.
    properties.get("simd_count").filter(|count| *count > 0)?;
    let render = u32::try_from(properties.get("drm_render_minor")?).ok()?;
    let render = Some(render).filter(|minor| *minor > 0)?;
    let mut nodes = vec![render_node(render)];
    let siblings = format!("/sys/class/drm/renderD{render}/device/drm");
    let cards = host.numbered(siblings, "card");
    nodes.extend(
        cards
            .into_iter()
            .map(|(_, name)| Path::new("/dev/dri").join(name)),
    );
    let domain = properties.get("domain").unwrap_or(0);
    // Bus, device and function, as in the configuration space of PCI.
    let place = properties.get("location_id").unwrap_or(0);
    Some(Gpu {
        uuid: properties
            .get("unique_id")
            .filter(|id| *id > 0)
            .map(|id| format!("{id:016x}")),
        architecture: architecture(properties.get("gfx_target_version").unwrap_or(0)),
        address: format!(
            "{:04x}:{:02x}:{:02x}.{:x}",
            domain & 0xffff,
            place >> 8 & 0xff,
            place >> 3 & 0x1f,
            place & 7
        ),
        render,
        nodes,
    })
}

/// `90402` is `gfx942`: two decimal digits each for minor and stepping, which the name has in hexadecimal.
fn architecture(version: u64) -> String {
    let (major, minor, step) = (version / 10_000, version / 100 % 100, version % 100);
    format!("gfx{major}{minor:x}{step:x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_architectures() {
        for (version, expected) in [
            (90_402, "gfx942"),
            (90_010, "gfx90a"),
            (110_000, "gfx1100"),
            (120_001, "gfx1201"),
        ] {
            assert_eq!(architecture(version), expected);
        }
    }
}
