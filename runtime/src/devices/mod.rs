//! Devices that a container is granted: GPUs, fabrics, and what CDI specifications describe.
//!
//! A container sees the devices that its job has, and what it needs to use them, and no others. It happens in three steps:
//!
//! 1. [`decide`], before the namespaces: every [`Vendor`] that has something on the [`Host`] answers the [`Question`] of what is asked for, and
//!    adds to the [`Grant`]. Nothing is changed by that; each decision is kept with its reason, for `--explain-devices`.
//! 2. [`place`], when the image is known: where libraries go in it, and what its linker cache becomes.
//! 3. [`install`], in the mounted root: the [`Edits`] become mounts, links and variables. Nothing is written to the lower layer, and no program is
//!    run, neither of the host nor of the image.
//!
//! The vocabulary is that of the Container Device Interface (CDI 1.1): what a vendor adds is what a CDI specification could say as
//! `containerEdits`. Where no vendor finds anything on the host, all this costs a dozen system calls, one for
//! each of them, each directory of descriptions, and each family of fabrics that containers get unasked.

pub mod amd;
pub mod cdi;
pub mod described;
pub mod elf;
pub mod gaudi;
pub mod grant;
pub mod host;
pub mod install;
pub mod intel;
mod job;
mod libraries;
pub mod linker_cache;
mod listed;
mod nvidia;
pub mod place;
pub mod question;

use std::io;
use std::path::{Path, PathBuf};

use cdi::registry::CdiError;
pub use grant::{Decision, Edits, Grant};
pub use host::Host;
pub use question::{Question, Request, Selection, Variables};

/// A kind of hardware, or another source of devices: one file each.
pub trait Vendor: Sync {
    /// Its name, as in `nvidia.com/gpu`: `nvidia`.
    fn name(&self) -> &'static str;

    /// Whether there is anything of it here. Every start asks, so this is one system call or two where there is nothing.
    fn is_there(&self, host: &Host) -> bool;

    /// What of its GPUs there is, one line each, for `cista check gpu`; also those that would not be granted.
    ///
    /// # Errors
    ///
    /// What is there cannot be understood.
    fn inventory(&self, host: &Host) -> Result<Vec<String>, DeviceError>;

    /// The variables by which its GPUs are chosen; None for what is no vendor of GPUs or their like.
    fn variables(&self) -> Option<&'static Variables> {
        None
    }

    /// Grants what the question asks for. It is asked only where [`Self::is_there`], or where the question [names](Question::names) it.
    ///
    /// # Errors
    ///
    /// What was asked for by an option cannot be granted; the start must stop then.
    fn grant(
        &self,
        host: &Host,
        question: &Question<'_>,
        grant: &mut Grant,
    ) -> Result<(), DeviceError>;
}

/// Every vendor, in the order in which they are asked.
pub static VENDORS: &[&dyn Vendor] = &[
    &cdi::grant::Cdi,
    &nvidia::Nvidia,
    &amd::Amd,
    &gaudi::Gaudi,
    &intel::Intel,
    &described::Described,
];

/// Why devices cannot be granted.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// An option cannot be understood.
    #[error("`{value}` of `{option}` is not understood: {expected}")]
    Option {
        /// The option or variable.
        option: String,
        /// The part of its value that is meant.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
    /// A device that was asked for is not here.
    #[error("there is no {what} `{name}` here{}", listed(.known))]
    NotFound {
        /// What kind of device: `GPU`, `device`.
        what: &'static str,
        /// What was asked for.
        name: String,
        /// What there is.
        known: Vec<String>,
    },
    /// A device that was asked for is here, and not for this job.
    #[error("cannot use {what} `{name}`: {why}")]
    Denied {
        /// What kind of device.
        what: &'static str,
        /// What was asked for.
        name: String,
        /// Why not.
        why: String,
    },
    /// The image asks for something that the driver does not have.
    #[error("the image asks for {requirement}, and {found}")]
    Requirement {
        /// The unsatisfied condition, and the variable that has it.
        requirement: String,
        /// What there is instead.
        found: String,
    },
    /// A file that describes devices cannot be used.
    #[error("cannot use `{path}`: {message}")]
    Description {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
    /// What describes devices of CDI cannot be used, or does not have them.
    #[error(transparent)]
    Cdi(Box<CdiError>),
    /// A file of the host cannot be read.
    #[error("cannot read `{path}`")]
    Read {
        /// Path on the host.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

impl From<CdiError> for DeviceError {
    fn from(error: CdiError) -> Self {
        Self::Cdi(Box::new(error))
    }
}

/// Whether there are GPUs of another vendor than this one.
fn has_other_gpus(host: &Host, vendor: &str) -> bool {
    let others = VENDORS.iter().filter(|it| it.name() != vendor);
    others
        .filter(|it| it.variables().is_some())
        .any(|it| it.is_there(host))
}

/// Kinds of devices that are known without a description.
fn knows_kind(name: &question::QualifiedName) -> bool {
    matches!(
        (name.vendor.as_str(), name.class.as_str()),
        ("nvidia.com" | "amd.com" | "intel.com", "gpu") | ("intel.com", "gaudi") | ("host", _)
    )
}

/// The last name of a path.
fn last_name(path: &Path) -> Option<String> {
    Some(path.file_name()?.to_str()?.to_owned())
}

fn listed(names: &[String]) -> String {
    if names.is_empty() {
        String::new()
    } else {
        format!("; there are {}", names.join(", "))
    }
}

/// Asks every vendor. None where nothing is granted and nothing is to be explained.
///
/// # Errors
///
/// What was asked for by an option cannot be granted.
pub fn decide(host: &Host, question: &Question<'_>) -> Result<Option<Grant>, DeviceError> {
    let mut grant = Grant::default();
    for vendor in VENDORS {
        if vendor.is_there(host) || question.names(vendor.name()) {
            vendor.grant(host, question, &mut grant)?;
        }
    }
    question.require_answers(&grant)?;
    job::translate(question, &mut grant);
    Ok((!grant.edits.is_empty() || question.request.explain.is_some()).then_some(grant))
}

#[cfg(test)]
mod tests;
