//! A private `/dev`: the standard nodes and nothing else of the host's devices.
//!
//! The nodes are bind mounts of the host's, since a user namespace cannot make devices that work. Shared memory and message queues are
//! the host's: processes of one job in several containers of a node meet there. Pseudo-terminals are a new instance of devpts; the
//! terminal that the container was started from is also `/dev/console`, where ttyname(3) finds it.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::mount::MountAttrFlags;

use super::mounts::{self, MountError};

/// Bound from the host. The kernel guarantees these on every system.
const NODES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// Bound from the host where it has them, as directories.
const SHARED: [&str; 3] = ["shm", "mqueue", "hugepages"];

/// Symbolic links that programs expect.
const LINKS: [(&str, &str); 6] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
    ("core", "/proc/kcore"),
];

/// Fills a directory that is mounted at `/dev` of the container already. `own` are directories that are not the host's.
///
/// # Errors
///
/// A node that cannot be mounted, or a directory that cannot be filled.
pub fn populate(dev: BorrowedFd<'_>, own: &[(&str, OwnedFd)]) -> Result<(), MountError> {
    standard(dev)?;
    for (name, mount) in own {
        attach_directory(dev, name, mount)?;
    }
    for name in SHARED {
        if own.iter().any(|(own, _)| *own == name) {
            continue;
        }
        if let Ok(mount) = host(name, true) {
            attach_directory(dev, name, &mount)?;
        }
    }
    // The system log's socket.
    if let Ok(mount) = host("log", false) {
        attach_file(dev, "log", &mount)?;
    }
    let options = [
        ("newinstance", None),
        ("ptmxmode", Some("0666")),
        ("mode", Some("0620")),
    ]
    .map(|(name, value)| (OsStr::new(name), value.map(OsStr::new)));
    let terminals = mounts::filesystem(
        "devpts",
        options,
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC,
    )?;
    attach_directory(dev, "pts", &terminals)?;
    console(dev)
}

/// Puts the standard nodes and links into an empty directory.
///
/// # Errors
///
/// A node that cannot be mounted, or a directory that cannot be filled.
pub fn standard(dev: BorrowedFd<'_>) -> Result<(), MountError> {
    for (name, target) in LINKS {
        rustix::fs::symlinkat(target, dev, name).map_err(|error| target_error(name, error))?;
    }
    for name in NODES {
        let mount = host(name, false).map_err(|source| MountError::Source {
            path: Path::new("/dev").join(name),
            source,
        })?;
        attach_file(dev, name, &mount)?;
    }
    Ok(())
}

/// Makes the terminal that standard input, output or error is `console`, where there is one.
///
/// # Errors
///
/// It cannot be mounted.
pub fn console(dev: BorrowedFd<'_>) -> Result<(), MountError> {
    match terminal() {
        Some(mount) => attach_file(dev, "console", &mount),
        None => Ok(()),
    }
}

fn host(name: &str, recursive: bool) -> io::Result<OwnedFd> {
    Ok(mounts::clone(
        rustix::fs::CWD,
        &Path::new("/dev").join(name),
        recursive,
    )?)
}

/// A copy of the mount of the terminal that standard input, output or error is; None without a terminal.
fn terminal() -> Option<OwnedFd> {
    let name = [
        rustix::stdio::stdin(),
        rustix::stdio::stdout(),
        rustix::stdio::stderr(),
    ]
    .into_iter()
    .find_map(|stream| rustix::termios::ttyname(stream, Vec::new()).ok())?;
    let path = Path::new(OsStr::from_bytes(name.to_bytes()));
    mounts::clone(rustix::fs::CWD, path, false).ok()
}

fn attach_file(dev: BorrowedFd<'_>, name: &str, mount: &OwnedFd) -> Result<(), MountError> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dev, name, flags, Mode::from_raw_mode(0o644))
        .map_err(|error| target_error(name, error))?;
    attach(dev, name, mount)
}

fn attach_directory(dev: BorrowedFd<'_>, name: &str, mount: &OwnedFd) -> Result<(), MountError> {
    rustix::fs::mkdirat(dev, name, Mode::from_raw_mode(0o755))
        .map_err(|error| target_error(name, error))?;
    attach(dev, name, mount)
}

fn attach(dev: BorrowedFd<'_>, name: &str, mount: &OwnedFd) -> Result<(), MountError> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let target = rustix::fs::openat(dev, name, flags, Mode::empty())
        .map_err(|error| target_error(name, error))?;
    mounts::attach(mount, target.as_fd()).map_err(|error| MountError::Attach {
        path: Path::new("/dev").join(name),
        source: error.into(),
    })
}

fn target_error(name: &str, error: rustix::io::Errno) -> MountError {
    MountError::Target {
        path: Path::new("/dev").join(name),
        source: error.into(),
    }
}
