//! The root file system of a container: an overlayfs over an immutable lower layer, or a tree as it is.
//!
//! A private tmpfs, the scratch, holds what a start needs to write: mount points of the lower layer and of a container's own
//! directory, the upper layer of a root that does not persist, `/tmp`, `/run` and `/dev`. It is mounted over `/` of the mount namespace, which
//! always exists, and whose paths that hides from nobody: resolution starts below a mount on the root, not on top of it. So the host's paths stay
//! usable until the root is switched, no path of the host appears in mount options, and nothing is ever created on the host.
//!
//! overlayfs takes its layers as paths relative to the scratch, which works on every kernel that has overlayfs in user namespaces (5.11);
//! taking them by descriptor would need 6.13.

use std::ffi::OsStr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::mount::MountAttrFlags;

use super::mounts::{self, MountError};
use super::named;
use super::seed::Seed;

/// Where the scratch is mounted.
pub const PLACE: &str = "/sys";

/// The scratch's directories.
const LOWER: &str = "lower";
const CONTAINER: &str = "container";
const UPPER: &str = "upper";
const WORK: &str = "work";
/// Becomes `/tmp`.
pub const TMP: &str = "tmp";
/// Becomes `/var/run`.
pub const RUN: &str = "run";
/// Becomes `/var/lock`.
pub const LOCK: &str = "lock";
/// Becomes `/dev`.
pub const DEV: &str = "dev";
/// Files that are bound over those of a read-only root.
pub const FILES: &str = "files";

/// The private tmpfs of a container.
#[derive(Debug)]
pub struct Scratch {
    root: OwnedFd,
}

/// Where changes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changes<'a> {
    /// Into memory; they end with the container.
    Memory,
    /// Into memory, above what a named container has changed before; the container's directory.
    MemoryAbove(&'a Path),
    /// Into a named container; its directory.
    Container(&'a Path),
}

impl Scratch {
    /// Makes the scratch, `size` bytes at most (None for the kernel's default, half of the memory), and mounts it over the host's `/sys`.
    ///
    /// # Errors
    ///
    /// The step that failed.
    pub fn mount(size: Option<u64>) -> Result<Self, MountError> {
        let size = size.map(|bytes| bytes.to_string());
        let options = [("source", "cista"), ("mode", "0755")]
            .into_iter()
            .chain(size.as_deref().map(|size| ("size", size)))
            .map(|(name, value)| (OsStr::new(name), Some(OsStr::new(value))));
        let root = mounts::filesystem(
            "tmpfs",
            options,
            MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV,
        )?;
        attach_over_sys(&root)?;
        let scratch = Self { root };
        for (name, mode) in [
            (TMP, 0o1777),
            (RUN, 0o755),
            (LOCK, 0o1777),
            (DEV, 0o755),
            (FILES, 0o755),
        ] {
            scratch.make(name, mode)?;
        }
        Ok(scratch)
    }

    /// The scratch's root directory.
    #[must_use]
    pub fn root(&self) -> &OwnedFd {
        &self.root
    }

    /// A detached copy of the mount of one of the scratch's directories or files.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn part(&self, name: &Path) -> Result<OwnedFd, MountError> {
        mounts::clone(&self.root, name, false).map_err(|error| MountError::Source {
            path: name.to_owned(),
            source: error.into(),
        })
    }

    fn make(&self, name: &str, mode: u32) -> Result<(), MountError> {
        rustix::fs::mkdirat(&self.root, name, Mode::from_raw_mode(mode))
            .map_err(|error| target_error(name, error))
    }

    fn open(&self, name: &str) -> Result<OwnedFd, MountError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat(&self.root, name, flags, Mode::empty())
            .map_err(|error| target_error(name, error))
    }

    /// Mounts something on a new directory of the scratch.
    fn hold(&self, name: &str, mount: &OwnedFd) -> Result<(), MountError> {
        self.make(name, 0o755)?;
        let target = self.open(name)?;
        mounts::attach(mount, target.as_fd()).map_err(|error| MountError::Attach {
            path: name.into(),
            source: error.into(),
        })
    }

    /// Makes an overlayfs above `lower` (a detached mount) and mounts it over the scratch; returns its root.
    ///
    /// `seed` is put into an upper layer in memory before. `source` is what `mount` and `cista list` show as its source. With `user_xattrs` overlayfs marks its directories by `user.`
    /// attributes, as it must in a user namespace, which may not set `trusted.` ones.
    ///
    /// # Errors
    ///
    /// The step that failed; the working directory of the process may have changed.
    pub fn overlay(
        &self,
        lower: &OwnedFd,
        changes: Changes<'_>,
        seed: Option<&Seed>,
        source: &OsStr,
    ) -> Result<OwnedFd, MountError> {
        self.hold(LOWER, lower)?;
        let path = |container: &str| format!("{CONTAINER}/{container}");
        let (lowers, upper, work) = match changes {
            Changes::Memory => (LOWER.to_owned(), UPPER.to_owned(), WORK.to_owned()),
            Changes::MemoryAbove(_) => (
                format!("{}:{LOWER}", path(named::UPPER)),
                UPPER.to_owned(),
                WORK.to_owned(),
            ),
            Changes::Container(_) => (LOWER.to_owned(), path(named::UPPER), path(named::WORK)),
        };
        match changes {
            Changes::Memory => {}
            Changes::MemoryAbove(directory) | Changes::Container(directory) => {
                let mount = mounts::clone(rustix::fs::CWD, directory, false).map_err(|error| {
                    MountError::Source {
                        path: directory.to_owned(),
                        source: error.into(),
                    }
                })?;
                self.hold(CONTAINER, &mount)?;
            }
        }
        if !matches!(changes, Changes::Container(_)) {
            self.make(UPPER, 0o755)?;
            self.make(WORK, 0o755)?;
            if let Some(seed) = seed {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let upper = rustix::fs::openat(&self.root, UPPER, flags, Mode::empty())
                    .map_err(|error| target_error(UPPER, error))?;
                seed.plant(upper.as_fd())
                    .map_err(|source| MountError::Target {
                        path: UPPER.into(),
                        source,
                    })?;
            }
        }
        rustix::process::fchdir(&self.root).map_err(|error| target_error("/", error))?;
        let options = [
            ("source", Some(source)),
            ("lowerdir", Some(OsStr::new(&lowers))),
            ("upperdir", Some(OsStr::new(&upper))),
            ("workdir", Some(OsStr::new(&work))),
            ("userxattr", None),
        ]
        .map(|(name, value)| (OsStr::new(name), value));
        let root = mounts::filesystem("overlay", options, root_flags())?;
        attach_over_sys(&root)?;
        Ok(root)
    }
}

/// Mounts a tree (a detached mount) as it is over the scratch.
///
/// # Errors
///
/// The step that failed.
pub fn direct(tree: OwnedFd) -> Result<OwnedFd, MountError> {
    crate::sys::mount::set_attributes(&tree, root_flags(), MountAttrFlags::empty(), false)
        .map_err(|source| MountError::Flags {
            path: "/".into(),
            source,
        })?;
    attach_over_sys(&tree)?;
    Ok(tree)
}

/// Device nodes and setuid files of an image have no power.
fn root_flags() -> MountAttrFlags {
    MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV
}

fn attach_over_sys(mount: &OwnedFd) -> Result<(), MountError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let place = rustix::fs::open(PLACE, flags, Mode::empty())
        .map_err(|error| target_error(PLACE, error))?;
    mounts::attach(mount, &place).map_err(|error| MountError::Attach {
        path: PLACE.into(),
        source: error.into(),
    })
}

fn target_error(name: &str, error: rustix::io::Errno) -> MountError {
    MountError::Target {
        path: name.into(),
        source: error.into(),
    }
}
