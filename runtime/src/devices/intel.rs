//! GPUs of Intel: for each its render node and its card node below `/dev/dri`, and the links in `/dev/dri/by-path` by which the compute runtime
//! finds them.
//!
//! They are numbered in the order of their places on the bus, as Level Zero does with `ZE_ENABLE_PCI_ID_DEVICE_ORDER=1`. A number with a part,
//! as in `ZE_AFFINITY_MASK=0.1`, means the GPU: a tile has no device of its own. Libraries are the image's.

use std::path::Path;

use super::grant::Symlink;
use super::host::Host;
use super::listed::{Kind, Listed};
use super::question::{Question, Variables};
use super::{DeviceError, Grant, Vendor};

/// Drivers whose devices are GPUs.
const DRIVERS: [&str; 2] = ["i915", "xe"];

/// Where nodes of graphics devices are, of whatever vendor.
const NODES: &str = "/dev/dri";

/// All graphics devices.
const CLASS: &str = "/sys/class/drm";

/// Links by place on the bus.
const BY_PATH: &str = "/dev/dri/by-path";

/// The variables that choose GPUs.
const VARIABLES: Variables = Variables {
    image: "INTEL_VISIBLE_DEVICES",
    library: &["ZE_AFFINITY_MASK", "GPU_DEVICE_ORDINAL"],
};

/// What they are called.
const KIND: Kind = Kind {
    what: "Intel GPU",
    maker: "Intel",
    name: ("intel.com", "gpu"),
    variables: &VARIABLES,
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

impl Vendor for Intel {
    fn name(&self) -> &'static str {
        "intel"
    }

    fn is_there(&self, host: &Host) -> bool {
        let has_driver = |driver: &str| host.exists(format!("/sys/bus/pci/drivers/{driver}"));
        host.exists(NODES) && DRIVERS.iter().any(|driver| has_driver(driver))
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
        let link = |end: &str, name: &String| Symlink {
            path: Path::new(BY_PATH).join(format!("pci-{}-{end}", gpu.address)),
            target: Path::new("..").join(name),
        };
        let links = [("card", Some(&gpu.card)), ("render", gpu.render.as_ref())];
        let names = gpu.render.iter().chain([&gpu.card]);
        Listed {
            number,
            title: format!("GPU {number} ({}, {})", gpu.driver, gpu.address),
            names: [&gpu.address]
                .into_iter()
                .chain(names.clone())
                .cloned()
                .collect(),
            uuid: None,
            nodes: names.map(|name| Path::new(NODES).join(name)).collect(),
            links: links
                .into_iter()
                .filter_map(|(end, name)| Some(link(end, name?)))
                .collect(),
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
