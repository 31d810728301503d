//! NVIDIA: GPUs, parts of them (MIG), what connects them (NVSwitch, IMEX), and the driver's libraries and programs.
//!
//! A container gets, of what NVIDIA's container tools give one:
//!
//! | what | when |
//! |---|---|
//! | `/dev/nvidiaN`, and the nodes of `/dev/nvidia-caps` for parts | the GPU, or the part, is chosen |
//! | `/dev/nvidiactl` | always |
//! | `/dev/nvidia-uvm`, `-uvm-tools`; the directory of MPS; `/dev/gdrdrv` | capability `compute` |
//! | `/dev/nvidia-modeset`, `/dev/dri/…` of the chosen GPUs | `graphics` or `display` |
//! | the sockets of the persistence daemon and of the fabric manager | `utility` |
//! | libraries and programs | by capability; see [`libraries`] |
//! | firmware of the driver | where the host has it |
//! | `/dev/nvidia-caps` for configuring and watching MIG | `NVIDIA_MIG_CONFIG_DEVICES`, `NVIDIA_MIG_MONITOR_DEVICES` |
//! | IMEX channels; NVSwitches | `NVIDIA_IMEX_CHANNELS`; `NVIDIA_NVSWITCH=enabled` |
//! | a `/proc/driver/nvidia` with the chosen GPUs alone | always |
//!
//! The facts are those of libnvidia-container and of the NVIDIA container toolkit; none of their code is needed or used.

mod capabilities;
mod choose;
mod files;
mod gpus;
mod libraries;
mod nodes;
mod require;

use std::path::Path;

use capabilities::{Capabilities, Capability};
use choose::{Chooser, Chosen};
use gpus::{Gpu, PROC};

use super::grant::{Grant, Numbering};
use super::host::{Host, Permission};
use super::question::{Choice, Question, Selection, Variables};
use super::{DeviceError, Vendor, job};

/// This vendor.
pub(super) struct Nvidia;

/// Its variables.
const VARIABLES: Variables = Variables {
    image: "NVIDIA_VISIBLE_DEVICES",
    library: &["CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL"],
};

impl Vendor for Nvidia {
    fn name(&self) -> &'static str {
        "nvidia"
    }

    fn is_there(&self, host: &Host) -> bool {
        host.exists(format!("{PROC}/version"))
    }

    fn inventory(&self, host: &Host) -> Result<Vec<String>, DeviceError> {
        let version = gpus::driver_version(host).unwrap_or_else(|| "of an unknown version".into());
        let cuda =
            require::cuda(&version).map_or_else(String::new, |cuda| format!(", CUDA {cuda}"));
        let mut lines = vec![format!("driver {version}{cuda}")];
        for (index, gpu) in gpus::all(host).iter().enumerate() {
            let state = match (host.node(gpu.node()), host.permission(gpu.node())) {
                (None, _) => "has no device file: run `nvidia-modprobe -c 0 -u`",
                (Some(_), Permission::Granted) => "may be used",
                (Some(_), Permission::NotOfThisJob) => "is not of this job",
                (Some(_), Permission::Forbidden) => "is not open to this user",
            };
            let uuid = if gpu.uuid.is_empty() {
                "no UUID yet"
            } else {
                &gpu.uuid
            };
            lines.push(format!(
                "GPU {index}: {}, {uuid}, {}, {} {state}",
                gpu.model,
                gpu.bus,
                gpu.node()
            ));
            for (number, part) in gpu.parts.iter().enumerate() {
                lines.push(format!(
                    "GPU {index}:{number}: MIG, GPU instance {}, compute instance {}",
                    part.gi, part.ci
                ));
            }
        }
        Ok(lines)
    }

    fn grant(
        &self,
        host: &Host,
        question: &Question<'_>,
        grant: &mut Grant,
    ) -> Result<(), DeviceError> {
        let of_job = job::gpus(host, question, self)?;
        let selection = question.selection(&VARIABLES, of_job)?;
        let selection = choose::with_named(question, grant, selection);
        if selection.choice == Choice::Nothing {
            if host.exists(format!("{PROC}/version")) {
                grant.no("NVIDIA GPUs", selection.source.to_string());
            }
            return Ok(());
        }
        let Some(version) = gpus::driver_version(host) else {
            grant.no("NVIDIA GPUs", "the driver is not loaded here");
            return Ok(());
        };
        let gpus = gpus::all(host);
        let chosen = Chooser {
            host,
            gpus: &gpus,
            selection: &selection,
            has_neighbours: super::has_other_gpus(host, self.name()),
        }
        .choose(grant)?;
        let capabilities =
            Capabilities::parse(question.variable(capabilities::VARIABLE).as_deref())?;
        let brands: Vec<_> = chosen.iter().map(|it| gpus[it.index].brands()).collect();
        if let Some(unmet) = require::unmet(question, &version, &brands)? {
            return Err(unmet);
        }
        for device in question
            .request
            .devices
            .iter()
            .filter(|it| it.vendor == "nvidia.com")
        {
            grant.names.push(device.to_string());
        }
        grant.gpus += chosen.len();
        nodes::grant(host, question, &gpus, &chosen, &capabilities, grant);
        libraries::grant(host, &version, &capabilities, grant);
        files::sockets_and_firmware(host, question, &version, &capabilities, grant);
        files::view_of_proc(host, question, &gpus, &chosen, grant);
        if capabilities.has(Capability::Compute) {
            // Other GPUs than those of data centers do not take them.
            let is_possible = chosen
                .iter()
                .all(|it| gpus[it.index].brands().contains(&"tesla"));
            if is_possible {
                grant.edits.cuda_compat = Some(version);
            }
        }
        if question.is_job() {
            number(host, &gpus, &chosen, grant);
        }
        Ok(())
    }

    fn variables(&self) -> Option<&'static Variables> {
        Some(&VARIABLES)
    }
}

/// Notes what the host's numbers are in the container, where they differ.
fn number(host: &Host, gpus: &[Gpu], chosen: &[Chosen], grant: &mut Grant) {
    let numbers: Vec<(usize, usize)> = chosen
        .iter()
        .enumerate()
        .map(|(inside, it)| (it.index, inside))
        .collect();
    if numbers.iter().any(|(host, inside)| host != inside) {
        let is_closed = |gpu: &Gpu| host.permission(gpu.node()) == Permission::NotOfThisJob;
        grant.numberings.push(Numbering {
            variables: VARIABLES.library,
            numbers,
            is_open: !gpus.iter().any(is_closed),
        });
    }
}

/// Whether a node that a description names is a GPU of the job, as far as its name tells.
///
/// # Errors
///
/// Why the job does not have it.
pub(super) fn check_limit(host: &Host, question: &Question<'_>, node: &Path) -> Result<(), String> {
    let minor = node
        .to_str()
        .and_then(|path| path.strip_prefix("/dev/nvidia"))
        .and_then(|number| number.parse::<u32>().ok());
    let Some((minor, (source, choice))) =
        minor.zip(job::gpus(host, question, &Nvidia).ok().flatten())
    else {
        return Ok(());
    };
    let gpus = gpus::all(host);
    let is_of_job = match &choice {
        Choice::Names(names) if gpus.is_empty() => {
            // Without a driver to ask, the numbers of the files.
            names.iter().any(|name| name.parse() == Ok(minor))
        }
        Choice::Names(names) => {
            let selection = Selection {
                choice: choice.clone(),
                source: source.clone(),
                limit: None,
            };
            let chooser = Chooser {
                host,
                gpus: &gpus,
                selection: &selection,
                has_neighbours: false,
            };
            let found = chooser.resolve_all(names, &source);
            // What cannot be told is left to the control group.
            found.is_err()
                || found.is_ok_and(|found| found.iter().any(|it| gpus[it.0].minor == minor))
        }
        Choice::Nothing | Choice::DriverOnly => false,
        Choice::All => true,
    };
    if is_of_job {
        Ok(())
    } else {
        Err(format!(
            "`{}` is not of this job: see {source}",
            node.display()
        ))
    }
}

#[cfg(test)]
mod tests;
