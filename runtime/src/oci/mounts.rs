//! The mounts of a bundle, and the devices that the specification promises.
//!
//! They are made as those of `start` are: sources are taken from the host before anything hides it, and every mount point is resolved within the
//! container's root. File systems that a user namespace may not make, since the namespace that they show is the host's, are the host's, bound.

use std::ffi::OsStr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, OFlags};
use rustix::mount::MountAttrFlags;
use rustix::thread::UnshareFlags;

use super::bundle::Bundle;
use super::config::Mount;
use crate::container::devices;
use crate::container::fstab::{self, CreateOption, Entry, FstabError, Kind};
use crate::container::identity_map::IdMap;
use crate::container::mounts::{self, MountError, Mounter};
use crate::container::namespaces;
use crate::container::rootfs::{Create, Rootfs};
use crate::sys;

/// Where devices are.
const DEV: &str = "/dev";

/// Why a mount of a bundle is not made.
#[derive(Debug, thiserror::Error)]
pub enum BundleMountError {
    /// Its options are not understood.
    #[error(transparent)]
    Options(#[from] FstabError),
    /// It failed.
    #[error(transparent)]
    Mount(#[from] MountError),
}

/// A mount with what was taken for it.
#[derive(Debug)]
pub struct Prepared {
    entry: Entry,
    source: Option<OwnedFd>,
}

/// Reads the mounts of a bundle and takes their sources, in the namespaces of the container, before anything is mounted.
///
/// # Errors
///
/// A mount that is not understood, or has no source.
pub fn take(bundle: &Bundle) -> Result<Vec<Prepared>, BundleMountError> {
    let asked = bundle.spec.mounts.iter().flatten();
    let mut prepared = Vec::new();
    if !asked
        .clone()
        .any(|mount| mount.destination == Path::new(DEV))
    {
        prepared.push(prepare(bundle, &usual_dev())?);
    }
    for mount in asked {
        prepared.push(prepare(bundle, mount)?);
    }
    // Devices besides the standard ones are those of the host.
    for device in bundle.linux.devices.iter().flatten() {
        let entry = bind(&device.path, &device.path)?;
        let source = mounts::source(&entry)?;
        prepared.push(Prepared { entry, source });
    }
    Ok(prepared)
}

/// The `/dev` of a bundle that does not ask for one.
fn usual_dev() -> Mount {
    Mount {
        destination: DEV.into(),
        kind: Some("tmpfs".into()),
        source: Some("tmpfs".into()),
        options: Some(vec!["nosuid".into(), "mode=755".into()]),
    }
}

fn bind(source: &Path, target: &Path) -> Result<Entry, FstabError> {
    let (none, bind) = (OsStr::new("none"), OsStr::new("bind"));
    fstab::parse_fields([source.as_os_str(), target.as_os_str(), none, bind])
}

fn prepare(bundle: &Bundle, mount: &Mount) -> Result<Prepared, BundleMountError> {
    let kind = mount.kind.as_deref().unwrap_or("none");
    let mut options: Vec<String> = mount
        .options
        .iter()
        .flatten()
        .filter(|option| is_mapped(option, bundle.map))
        .cloned()
        .collect();
    if kind == "bind" && !options.iter().any(|option| option.ends_with("bind")) {
        options.push("bind".into());
    }
    let source = match &mount.source {
        Some(source) => source.clone(),
        None => PathBuf::from(kind),
    };
    let mut entry = fstab::parse_fields([
        source.as_os_str(),
        mount.destination.as_os_str(),
        OsStr::new(kind),
        OsStr::new(&options.join(",")),
    ])?;
    entry.create = CreateOption::No;
    let has = |flag| bundle.namespaces.contains(flag);
    if let Kind::Filesystem { name, .. } = &entry.kind {
        let host = match name.to_str() {
            Some("proc") if !has(UnshareFlags::NEWPID) => Some("/proc"),
            Some("mqueue") if !has(UnshareFlags::NEWIPC) => Some("/dev/mqueue"),
            Some("cgroup" | "cgroup2") => Some("/sys/fs/cgroup"),
            Some("sysfs") => {
                if has(UnshareFlags::NEWNET)
                    && let Some((sys, _)) = namespaces::sys(entry.set)
                {
                    entry.kind = Kind::Bind { recursive: false };
                    return Ok(Prepared {
                        entry,
                        source: Some(sys),
                    });
                }
                // What a user sees of the host there is not to be changed.
                entry.set |= MountAttrFlags::MOUNT_ATTR_RDONLY;
                Some("/sys")
            }
            _ => None,
        };
        if let Some(host) = host {
            entry.source = host.into();
            entry.kind = Kind::Bind { recursive: true };
        }
    } else if matches!(entry.kind, Kind::Bind { .. }) {
        entry.source = bundle.directory.join(&entry.source);
    }
    let source = mounts::source(&entry)?;
    Ok(Prepared { entry, source })
}

/// Whether an option does not name a user or group that the container does not have, as `gid=5` of devpts does.
fn is_mapped(option: &str, map: IdMap) -> bool {
    let IdMap::Single { uid, gid } = map else {
        return true;
    };
    match option.split_once('=') {
        Some(("uid", number)) => number.parse() == Ok(uid),
        Some(("gid", number)) => number.parse() == Ok(gid),
        _ => true,
    }
}

/// Mounts all of it.
///
/// # Errors
///
/// A mount that failed.
pub fn mount(
    rootfs: &Rootfs,
    prepared: Vec<Prepared>,
    terminal: bool,
) -> Result<(), BundleMountError> {
    let mounter = Mounter { rootfs };
    for Prepared { entry, source } in prepared {
        make_point(rootfs, &entry, source.as_ref())?;
        mounter.mount(&entry, source)?;
        let is_new = matches!(entry.kind, Kind::Filesystem { .. });
        if entry.target == Path::new(DEV) && is_new {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            let dev = rootfs
                .open(&entry.target, flags)
                .map_err(|source| MountError::Target {
                    path: DEV.into(),
                    source,
                })?;
            devices::standard(dev.as_fd())?;
            if terminal {
                devices::console(dev.as_fd())?;
            }
        }
    }
    Ok(())
}

/// Makes a mount point where the bundle has none, as an ordinary file or directory: the bundle keeps it, and other runtimes read its mode.
fn make_point(
    rootfs: &Rootfs,
    entry: &Entry,
    source: Option<&OwnedFd>,
) -> Result<(), BundleMountError> {
    let is_file = |source: &OwnedFd| {
        rustix::fs::fstat(source)
            .is_ok_and(|status| FileType::from_raw_mode(status.st_mode) != FileType::Directory)
    };
    let create = if source.is_some_and(is_file) {
        Create::File
    } else {
        Create::Directory
    };
    rootfs
        .create(&entry.target, create)
        .map(drop)
        .map_err(|source| {
            MountError::Target {
                path: entry.target.clone(),
                source,
            }
            .into()
        })
}

/// Hides what `linux.maskedPaths` names, and makes read-only what `linux.readonlyPaths` names. What is not there needs neither.
///
/// # Errors
///
/// A path that could not be hidden.
pub fn protect(rootfs: &Rootfs, bundle: &Bundle) -> Result<(), BundleMountError> {
    for path in bundle.linux.masked_paths.iter().flatten() {
        let path = Path::new(path);
        match rootfs.file_type(path) {
            None => {}
            Some(FileType::Directory) => {
                let options = [("size", "0"), ("mode", "0555")]
                    .map(|(name, value)| (OsStr::new(name), Some(OsStr::new(value))));
                let flags = MountAttrFlags::MOUNT_ATTR_RDONLY;
                cover(rootfs, path, &mounts::filesystem("tmpfs", options, flags)?)?;
            }
            Some(_) => {
                let null = bind(Path::new("/dev/null"), path)?;
                if let Some(null) = mounts::source(&null)? {
                    cover(rootfs, path, &null)?;
                }
            }
        }
    }
    for path in bundle.linux.readonly_paths.iter().flatten() {
        let path = Path::new(path);
        let Ok(target) = rootfs.open(path, OFlags::PATH) else {
            continue;
        };
        let failed = |source| MountError::Flags {
            path: path.to_owned(),
            source,
        };
        let copy =
            mounts::clone(&target, Path::new(""), true).map_err(|error| failed(error.into()))?;
        let set = MountAttrFlags::MOUNT_ATTR_RDONLY;
        sys::mount::set_attributes(&copy, set, MountAttrFlags::empty(), true).map_err(failed)?;
        cover(rootfs, path, &copy)?;
    }
    Ok(())
}

fn cover(rootfs: &Rootfs, path: &Path, mount: &OwnedFd) -> Result<(), MountError> {
    let target = rootfs
        .open(path, OFlags::PATH)
        .map_err(|source| MountError::Target {
            path: path.to_owned(),
            source,
        })?;
    mounts::attach(mount, &target).map_err(|error| MountError::Attach {
        path: path.to_owned(),
        source: error.into(),
    })
}

/// Makes the working directory where the bundle has none; where that fails, entering it says so.
pub fn make_directory(rootfs: &Rootfs, path: &Path) {
    let _ = rootfs.create(path, Create::Directory);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_name_nobody_are_dropped() {
        let map = IdMap::Single { uid: 0, gid: 7 };
        for (option, expected) in [
            ("gid=5", false),
            ("gid=7", true),
            ("uid=0", true),
            ("uid=x", false),
            ("mode=755", true),
            ("nosuid", true),
        ] {
            assert_eq!(is_mapped(option, map), expected, "{option}");
            assert!(is_mapped(option, IdMap::Identity));
        }
    }
}
