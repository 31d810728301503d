//! What the container's program may do: capabilities, no_new_privs, the seccomp filter.
//!
//! As with enroot: a user who is not root inside has no capability, not even in the bounding set; root inside keeps every
//! capability over the user namespace, which reaches nothing outside it. no_new_privs is always set, so a setuid file is never honoured.

use std::io;

use rustix::thread::{CapabilitySet, CapabilitySets};

use super::seccomp;
use crate::sys;

/// Why the privileges could not be given up.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    /// prctl(2) failed.
    #[error("cannot set no_new_privs")]
    NoNewPrivileges(#[source] io::Error),
    /// prctl(2) failed.
    #[error("cannot empty the capability bounding set")]
    Bounding(#[source] io::Error),
    /// capset(2) failed.
    #[error("cannot drop capabilities")]
    Capabilities(#[source] io::Error),
    /// seccomp(2) failed.
    #[error("cannot install the seccomp filter")]
    Seccomp(#[source] io::Error),
}

/// Gives up what the container's program may not have. The last thing before it is executed.
///
/// # Errors
///
/// The step that failed; the program must not be executed then.
pub fn give_up(root_inside: bool, fake_ownership: bool) -> Result<(), PrivilegeError> {
    rustix::thread::set_no_new_privs(true)
        .map_err(|error| PrivilegeError::NoNewPrivileges(error.into()))?;
    sys::seccomp::install(&seccomp::filter(fake_ownership)).map_err(PrivilegeError::Seccomp)?;
    if root_inside {
        return Ok(());
    }
    limit(&Limits::NONE)
}

/// Capabilities of a program, by set; see capabilities(7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// What it and its children can ever have.
    pub bounding: CapabilitySet,
    /// What it may use at once.
    pub effective: CapabilitySet,
    /// What it may take.
    pub permitted: CapabilitySet,
    /// What programs with file capabilities get from it.
    pub inheritable: CapabilitySet,
    /// What every program gets that it executes.
    pub ambient: CapabilitySet,
}

impl Limits {
    /// No capability at all.
    pub const NONE: Self = Self {
        bounding: CapabilitySet::empty(),
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
        ambient: CapabilitySet::empty(),
    };
}

/// Takes every capability away that is not listed.
///
/// # Errors
///
/// The step that failed; the program must not be executed then.
pub fn limit(limits: &Limits) -> Result<(), PrivilegeError> {
    // EINVAL is the first number that the kernel has no capability for.
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if limits.bounding.contains(capability) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(PrivilegeError::Bounding(error.into())),
        }
    }
    let failed = |error: rustix::io::Errno| PrivilegeError::Capabilities(error.into());
    let sets = CapabilitySets {
        effective: limits.effective,
        permitted: limits.permitted,
        inheritable: limits.inheritable,
    };
    rustix::thread::set_capabilities(None, sets).map_err(failed)?;
    for capability in limits.ambient.iter() {
        rustix::thread::configure_capability_in_ambient_set(capability, true).map_err(failed)?;
    }
    Ok(())
}
