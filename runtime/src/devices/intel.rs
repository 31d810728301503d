//! GPUs of Intel: for each its render node and its card node below `/dev/dri`, and the links in `/dev/dri/by-path` by which the compute runtime
//! finds them.
//!
//! They are numbered in the order of their places on the bus, as Level Zero does with `ZE_ENABLE_PCI_ID_DEVICE_ORDER=1`. A number with a part,
//! as in `ZE_AFFINITY_MASK=0.1`, means the GPU: a tile has no device of its own. Libraries are the image's.

use std::path::{Path, PathBuf};

use super::grant::Symlink;
use super::host::Host;
use super::listed::{List, Listed};
use super::question::{Question, Variables};
use super::{DeviceError, Grant, Vendor};

/// Drivers whose devices are GPUs.
const DRIVERS: [&str; 2] = ["i915", "xe"];

/// All graphics devices.
const CLASS: &str = "/sys/class/drm";

/// Links by place on the bus.
const BY_PATH: &str = "/dev/dri/by-path";

/// The variables that choose GPUs.
const VARIABLES: Variables = Variables {
    image: "INTEL_VISIBLE_DEVICES",
    library: &["ZE_AFFINITY_MASK"],
};

/// GPUs of Intel.
#[derive(Debug)]
pub struct Intel;

/// A GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Gpu {
    /// Where it is on the bus: `0000:05:00.0`.
    address: String,
    /// Its driver.
    driver: String,
    /// Its card node and its render node, by name.
    card: String,
    render: Option<String>,
}

impl Gpu {
    fn nodes(&self) -> impl Iterator<Item = PathBuf> {
        let names = self.render.iter().chain([&self.card]);
        names.map(|name| Path::new("/dev/dri").join(name))
    }
}

impl Vendor for Intel {
    fn name(&self) -> &'static str {
        "intel"
    }

    fn is_there(&self, host: &Host) -> bool {
        DRIVERS
            .iter()
            .any(|driver| host.exists(format!("/sys/bus/pci/drivers/{driver}")))
    }

    fn inventory(&self, host: &Host) -> Result<Vec<String>, DeviceError> {
        let lines = list(&gpus(host))
            .into_iter()
            .map(|listed| format!("Intel {}: {}", listed.title, listed.node.display()));
        Ok(lines.collect())
    }

    fn grant(
        &self,
        host: &Host,
        question: &Question<'_>,
        grant: &mut Grant,
    ) -> Result<(), DeviceError> {
        let gpus = gpus(host);
        let devices = list(&gpus);
        let list = List {
            host,
            what: "Intel GPU",
            kind: ("intel.com", "gpu"),
            variables: &VARIABLES,
            devices: &devices,
            has_neighbours: super::has_other_gpus(host, self.name()),
        };
        for chosen in list.choose(question, grant)? {
            let gpu = &gpus[chosen.position];
            let title = &devices[chosen.position].title;
            for node in gpu.nodes().filter(|node| host.exists(node)) {
                grant.device(&node, format!("{title}, {}", chosen.why));
            }
            for (name, end) in [(Some(&gpu.card), "card"), (gpu.render.as_ref(), "render")] {
                let link = Path::new(BY_PATH).join(format!("pci-{}-{end}", gpu.address));
                if let Some(name) = name.filter(|_| host.exists(&link)) {
                    grant.edits.symlinks.push(Symlink {
                        path: link,
                        target: Path::new("..").join(name),
                    });
                }
            }
        }
        Ok(())
    }
}

fn list(gpus: &[Gpu]) -> Vec<Listed> {
    gpus.iter()
        .enumerate()
        .map(|(number, gpu)| {
            let mut names = vec![gpu.address.clone(), gpu.card.clone()];
            names.extend(gpu.render.clone());
            let node = gpu.render.as_ref().unwrap_or(&gpu.card);
            Listed {
                number,
                title: format!("GPU {number} ({}, {})", gpu.driver, gpu.address),
                names,
                node: Path::new("/dev/dri").join(node),
            }
        })
        .collect()
}

/// The GPUs of a machine, in the order of their places on the bus.
fn gpus(host: &Host) -> Vec<Gpu> {
    let mut found: Vec<Gpu> = host
        .numbered(CLASS, "card")
        .into_iter()
        .filter_map(|(_, card)| {
            let device = Path::new(CLASS).join(&card).join("device");
            let driver = super::last_name(&host.canonical(&device.join("driver")).ok()?)?;
            let address = super::last_name(&host.canonical(&device).ok()?)?;
            let render = host
                .numbered(device.join("drm"), "renderD")
                .into_iter()
                .next();
            DRIVERS.contains(&driver.as_str()).then_some(Gpu {
                address,
                driver,
                card,
                render: render.map(|(_, name)| name),
            })
        })
        .collect();
    found.sort_unstable_by(|one, other| one.address.cmp(&other.address));
    found
}
