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
    // EINVAL is the first number that the kernel has no capability for.
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(PrivilegeError::Bounding(error.into())),
        }
    }
    let none = CapabilitySet::empty();
    rustix::thread::set_capabilities(
        None,
        CapabilitySets {
            effective: none,
            permitted: none,
            inheritable: none,
        },
    )
    .map_err(|error| PrivilegeError::Capabilities(error.into()))
}
