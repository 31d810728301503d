//! Gaudi accelerators of Intel (Habana): a compute and a control device for each, and the verbs of its own network ports.
//!
//! Since release 1.15 the driver belongs to the kernel's class of accelerators: `/dev/accel/accel0` and `/dev/accel/accel_controlD0`. Before it was
//! `/dev/hl0` and `/dev/hl_controlD0`. `HABANA_VISIBLE_DEVICES` chooses by these numbers, `HABANA_VISIBLE_MODULES` by the place on
//! the board, which stays the same over reboots. Libraries are the image's.

use std::path::{Path, PathBuf};

use super::host::Host;
use super::listed::{Kind, Listed};
use super::question::{Choice, Question, Variables};
use super::{DeviceError, Grant, Vendor};

/// The drivers' names on the bus.
const DRIVER: &str = "habanalabs";

/// Where accelerators are: their class, the directory of their nodes, and how these are called.
const LAYOUTS: [(&str, &str, &str); 2] = [
    ("/sys/class/accel", "/dev/accel", "accel"),
    ("/sys/class/habanalabs", "/dev", "hl"),
];

/// The variables that choose accelerators.
const VARIABLES: Variables = Variables {
    image: "HABANA_VISIBLE_DEVICES",
    library: &[],
};

/// The variable that chooses by place on the board.
const MODULES: &str = "HABANA_VISIBLE_MODULES";

/// What they are called.
const KIND: Kind = Kind {
    what: "Gaudi accelerator",
    maker: "Gaudi",
    name: ("intel.com", "gaudi"),
    variables: &VARIABLES,
};

/// Gaudi accelerators.
#[derive(Debug)]
pub struct Gaudi;

/// An accelerator.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Accelerator {
    /// Its number, and the directory in `/sys` that tells of it.
    number: u32,
    device: PathBuf,
    /// Where it is on the bus.
    address: String,
    /// Its place on the board.
    module: Option<String>,
    /// Its nodes: compute first, then control.
    nodes: [PathBuf; 2],
}

impl Vendor for Gaudi {
    fn name(&self) -> &'static str {
        "gaudi"
    }

    fn is_there(&self, host: &Host) -> bool {
        host.exists(format!("/sys/bus/pci/drivers/{DRIVER}"))
    }

    fn inventory(&self, host: &Host) -> Result<Vec<String>, DeviceError> {
        Ok(KIND.inventory(&list(host, &accelerators(host))))
    }

    fn grant(
        &self,
        host: &Host,
        question: &Question<'_>,
        grant: &mut Grant,
    ) -> Result<(), DeviceError> {
        let found = accelerators(host);
        let devices = list(host, &found);
        let mut chosen = KIND.choose(self, host, &devices, question, grant)?;
        if let Some(modules) = question.variable(MODULES) {
            let choice = Choice::parse(&modules).map_err(|_| DeviceError::Option {
                option: MODULES.to_owned(),
                value: modules.clone(),
                expected: "expected `all` or numbers separated by commas",
            })?;
            chosen.retain(|it| {
                let module = found.get(it.position).and_then(|it| it.module.as_ref());
                let is_chosen = match &choice {
                    Choice::All => true,
                    Choice::Names(names) => module.is_some_and(|module| names.contains(module)),
                    Choice::Nothing | Choice::DriverOnly => false,
                };
                if !is_chosen {
                    grant.no(&devices[it.position].title, format!("not in `{MODULES}`"));
                }
                is_chosen
            });
        }
        KIND.grant(host, &devices, &chosen, question, grant);
        Ok(())
    }

    fn variables(&self) -> Option<&'static Variables> {
        Some(&VARIABLES)
    }
}

/// The accelerators of a machine, as a list.
fn list(host: &Host, accelerators: &[Accelerator]) -> Vec<Listed> {
    accelerators
        .iter()
        .map(|accelerator| {
            let number = accelerator.number;
            let address = &accelerator.address;
            let mut nodes = accelerator.nodes.to_vec();
            nodes.extend(verbs(host, accelerator));
            Listed {
                number: number as usize,
                title: match &accelerator.module {
                    Some(module) => format!("accelerator {number} (module {module}, {address})"),
                    None => format!("accelerator {number} ({address})"),
                },
                names: vec![address.clone(), format!("accel{number}")],
                uuid: None,
                nodes,
                links: Vec::new(),
            }
        })
        .collect()
}

/// The accelerators of a machine, in the order of their numbers.
fn accelerators(host: &Host) -> Vec<Accelerator> {
    for (class, directory, prefix) in LAYOUTS {
        let found: Vec<Accelerator> = host
            .numbered(class, prefix)
            .into_iter()
            .filter_map(|(number, name)| {
                let device = Path::new(class).join(&name).join("device");
                // Other accelerators are of this class too.
                let driver = super::last_name(&host.canonical(&device.join("driver")).ok()?)?;
                if driver != DRIVER {
                    return None;
                }
                let line = |file: &str| {
                    let text = host.text(device.join(file))?;
                    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
                };
                let of_bus = || super::last_name(&host.canonical(&device).ok()?);
                Some(Accelerator {
                    number,
                    address: line("pci_addr").or_else(of_bus)?,
                    module: line("module_id"),
                    nodes: [
                        Path::new(directory).join(name),
                        Path::new(directory).join(format!("{prefix}_controlD{number}")),
                    ],
                    device,
                })
            })
            .collect();
        if !found.is_empty() {
            return found;
        }
    }
    Vec::new()
}

/// The nodes of an accelerator's own network ports.
fn verbs(host: &Host, accelerator: &Accelerator) -> Vec<PathBuf> {
    host.numbered(accelerator.device.join("infiniband_verbs"), "uverbs")
        .into_iter()
        .map(|(_, name)| Path::new("/dev/infiniband").join(name))
        .collect()
}
