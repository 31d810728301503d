//! Namespaces besides those for users and mounts, which every container has: process ids, network, System V IPC and POSIX message
//! queues, host name (namespaces(7)).
//!
//! They are off unless asked for, as with enroot: processes of one job in several containers are meant to meet. What goes with each:
//!
//! - process ids: a `/proc` of its own. The program is process 2, below an init that only waits for orphans, so it has none of the duties of an
//!   init; the process that was started stands for it outside (`sys::supervise`).
//! - network: a loopback interface that is up, and nothing else; a `/sys` of its own where the kernel allows it.
//! - IPC: a `/dev/shm` and a `/dev/mqueue` of its own.
//! - host name: begins as the host's.
//! - control groups: `/proc/PID/cgroup` begins at the group of the start. For enroot's name alone, since pyxis enters it and takes its absence for
//!   an error; processes that Slurm puts into groups of their own would see themselves outside.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::mount::MountAttrFlags;
use rustix::thread::UnshareFlags;

use super::mounts::{self, MountError};
use super::usual;

/// Which namespaces are a container's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Namespaces {
    /// Process ids.
    pub pid: bool,
    /// Network.
    pub net: bool,
    /// System V IPC and POSIX message queues.
    pub ipc: bool,
    /// Host name.
    pub uts: bool,
    /// Control groups.
    pub cgroup: bool,
}

impl Namespaces {
    /// What unshare(2) is asked for.
    #[must_use]
    pub fn flags(self) -> UnshareFlags {
        [
            (self.pid, UnshareFlags::NEWPID),
            (self.net, UnshareFlags::NEWNET),
            (self.ipc, UnshareFlags::NEWIPC),
            (self.uts, UnshareFlags::NEWUTS),
            (self.cgroup, UnshareFlags::NEWCGROUP),
        ]
        .into_iter()
        .filter(|(wanted, _)| *wanted)
        .fold(UnshareFlags::empty(), |flags, (_, flag)| flags | flag)
    }

    /// Those that are asked for here or there.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            pid: self.pid || other.pid,
            net: self.net || other.net,
            ipc: self.ipc || other.ipc,
            uts: self.uts || other.uts,
            cgroup: self.cgroup || other.cgroup,
        }
    }
}

/// A `/proc` that shows the caller's pid namespace.
///
/// # Errors
///
/// EPERM where parts of the `/proc` that is there are covered, as in the containers of other programs: the kernel does not let a new one uncover them.
pub fn proc(flags: MountAttrFlags) -> Result<OwnedFd, MountError> {
    mounts::filesystem(
        "proc",
        [(OsStr::new("source"), Some(OsStr::new("proc")))],
        flags,
    )
}

/// A `/sys` that shows the caller's network namespace, and the host's control groups to be mounted in it; None where the kernel does not allow it, for
/// the reason that [`proc`] tells: then the host's is good enough.
#[must_use]
pub fn sys(flags: MountAttrFlags) -> Option<(OwnedFd, Option<OwnedFd>)> {
    let source = [(OsStr::new("source"), Some(OsStr::new("sysfs")))];
    let sys = mounts::filesystem("sysfs", source, flags).ok()?;
    // With what is mounted below: version 1 has one mount for each controller.
    let groups = mounts::clone(rustix::fs::CWD, Path::new(usual::CONTROL_GROUPS), true).ok();
    Some((sys, groups))
}

/// A `/dev/shm` and a `/dev/mqueue` for an IPC namespace.
///
/// # Errors
///
/// The kernel's.
pub fn ipc() -> Result<[(&'static str, OwnedFd); 2], MountError> {
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    let memory = [("source", "cista"), ("mode", "1777")]
        .map(|(name, value)| (OsStr::new(name), Some(OsStr::new(value))));
    Ok([
        ("shm", mounts::filesystem("tmpfs", memory, flags)?),
        ("mqueue", mounts::filesystem("mqueue", [], flags)?),
    ])
}
