//! What every container has mounted: the kernel's file systems, a private `/dev`, memory at `/tmp`, `/var/run` and `/var/lock`, and a few files of the
//! host. These are the mounts of enroot's `10-system.fstab` and `20-config.fstab`.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use rustix::mount::MountAttrFlags;

use super::devices;
use super::fstab::{CreateOption, Entry, Kind};
use super::layers::{self, Scratch};
use super::mounts::{self, MountError, Mounter};
use super::seed::Seed;

/// File systems of the kernel, with what is mounted on them.
const KERNEL: [&str; 2] = ["/proc", "/sys"];

/// Directories that are in memory: name in the scratch, and mount point.
const MEMORY: [(&str, &str); 4] = [
    (layers::DEV, "/dev"),
    (layers::TMP, "/tmp"),
    (layers::RUN, "/var/run"),
    (layers::LOCK, "/var/lock"),
];

/// Files of the host, read-only, where the host has them.
const FILES: [&str; 5] = [
    "/etc/hosts",
    "/etc/hostname",
    "/etc/resolv.conf",
    TIME_ZONE,
    "/etc/machine-id",
];

/// In many images a symbolic link to the file of a time zone, which must not become that of another.
const TIME_ZONE: &str = "/etc/localtime";

/// Mount points that are directories.
pub fn directories() -> impl Iterator<Item = &'static Path> {
    let memory = MEMORY.iter().map(|(_, target)| target);
    KERNEL.iter().chain(memory).map(Path::new)
}

/// Mount points that are files.
pub fn files() -> impl Iterator<Item = &'static Path> {
    FILES.iter().map(Path::new).filter(|path| path.exists())
}

/// What is taken of the host.
#[derive(Debug)]
pub struct Taken {
    kernel: Vec<(Entry, OwnedFd)>,
    files: Vec<(Entry, OwnedFd)>,
}

/// Takes what containers get of the host, as detached copies.
///
/// # Errors
///
/// A host without `/proc` or `/sys`.
pub fn take() -> Result<Taken, MountError> {
    let restricted = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let read_only = restricted | MountAttrFlags::MOUNT_ATTR_RDONLY;
    let mut taken = Taken {
        kernel: Vec::with_capacity(KERNEL.len()),
        files: Vec::with_capacity(FILES.len()),
    };
    for path in KERNEL {
        let flags = if path == "/proc" {
            restricted
        } else {
            read_only
        };
        let entry = entry(path, CreateOption::Directory, true, flags);
        if let Some(source) = mounts::source(&entry)? {
            taken.kernel.push((entry, source));
        }
    }
    for path in FILES {
        let entry = entry(path, CreateOption::File, false, read_only);
        match mounts::source(&entry) {
            Ok(Some(source)) => taken.files.push((entry, source)),
            Ok(None) => {}
            Err(MountError::Source { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(taken)
}

fn entry(path: &str, create: CreateOption, recursive: bool, set: MountAttrFlags) -> Entry {
    Entry {
        source: path.into(),
        target: path.into(),
        kind: Kind::Bind { recursive },
        create,
        set,
        clear: MountAttrFlags::empty(),
        optional: false,
        silent: false,
        pass: -1,
    }
}

/// Mounts all of it. What `seed` has a place for is mounted there; `keeps_changes` where the root is not thrown away.
///
/// # Errors
///
/// A mount that failed; a file of the host that finds no place is told by `warn`.
pub fn mount(
    mounter: &Mounter<'_>,
    scratch: &Scratch,
    taken: Taken,
    seed: Option<&Seed>,
    keeps_changes: bool,
    warn: &dyn Fn(MountError),
) -> Result<(), MountError> {
    let mount = |mut entry: Entry, source: OwnedFd| {
        if let Some(place) = seed.and_then(|seed| seed.place(&entry.target)) {
            entry.target = place.to_owned();
        }
        mounter.mount(&entry, Some(source))
    };
    for (entry, source) in taken.kernel {
        mount(entry, source)?;
    }
    for (name, target) in MEMORY {
        let source = scratch.part(Path::new(name))?;
        if name != layers::DEV {
            let flags = MountAttrFlags::empty();
            mount(entry(target, CreateOption::Directory, false, flags), source)?;
            continue;
        }
        let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let inside = source.try_clone().map_err(|source| MountError::Source {
            path: target.into(),
            source,
        })?;
        mount(entry(target, CreateOption::Directory, false, flags), source)?;
        devices::populate(inside.as_fd())?;
    }
    for (entry, source) in taken.files {
        let is_placed = seed.is_some_and(|seed| seed.place(&entry.target).is_some());
        if !is_placed && mounter.rootfs.is_link(&entry.target) {
            if !keeps_changes {
                // Where the removal fails, the mount says why.
                let _ = mounter.rootfs.remove_link(&entry.target);
            } else if entry.target == Path::new(TIME_ZONE) {
                continue;
            }
        }
        if let Err(error) = mount(entry, source) {
            warn(error);
        }
    }
    Ok(())
}
