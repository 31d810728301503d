//! Mounts below the root of a container, all of them by file descriptor.
//!
//! A mount is made detached (open_tree(2) with `OPEN_TREE_CLONE`, or fsopen(2)…fsmount(2)), gets its flags while nobody can
//! see it, and is then moved onto a mount point that [`Rootfs`] resolved. So no path of an image is ever resolved by mount(2).

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
};

use super::fstab::{CreateOption, Entry, Kind, PropagationKind};
use super::rootfs::{Create, Rootfs};
use crate::sys;

/// Why something is not mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The source of a bind mount cannot be used.
    #[error("cannot use `{path}` as the source of a mount")]
    Source {
        /// Path on the host, or in the container where it is to come from there.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The mount point is not there or cannot be made.
    #[error("mount point `{path}` in the container cannot be used")]
    Target {
        /// Path in the container.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A new file system cannot be made.
    #[error("cannot make a file system of type `{name}`{}", details(.messages))]
    Filesystem {
        /// The type.
        name: String,
        /// What the kernel says about it.
        messages: Vec<String>,
        /// The system's answer.
        source: io::Error,
    },
    /// Flags of a mount cannot be set.
    #[error("cannot set the flags of the mount at `{path}`")]
    Flags {
        /// Path in the container.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The mount cannot be put onto its mount point.
    #[error("cannot mount at `{path}`")]
    Attach {
        /// Path in the container.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

fn details(messages: &[String]) -> String {
    messages
        .iter()
        .map(|message| format!(", {message}"))
        .collect()
}

/// A new file system, detached. Options are a name and perhaps a value.
///
/// # Errors
///
/// The kernel's, with its explanation where it gives one.
pub fn filesystem<'a>(
    name: &str,
    options: impl IntoIterator<Item = (&'a OsStr, Option<&'a OsStr>)>,
    flags: MountAttrFlags,
) -> Result<OwnedFd, MountError> {
    let failed = |context: Option<&OwnedFd>, error: Errno| MountError::Filesystem {
        name: name.to_owned(),
        messages: context.map_or_else(Vec::new, messages),
        source: error.into(),
    };
    let context = rustix::mount::fsopen(name, FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(|error| failed(None, error))?;
    for (key, value) in options {
        match value {
            Some(value) => rustix::mount::fsconfig_set_string(&context, key, value),
            None => rustix::mount::fsconfig_set_flag(&context, key),
        }
        .map_err(|error| failed(Some(&context), error))?;
    }
    rustix::mount::fsconfig_create(&context)
        .and_then(|()| rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags))
        .map_err(|error| failed(Some(&context), error))
}

/// What the kernel noted in a file system context: lines such as `e tmpfs: Bad value for 'size'`.
fn messages(context: &OwnedFd) -> Vec<String> {
    let mut found = Vec::new();
    let mut buffer = [0; 1024];
    // The kernel keeps eight messages; then read says ENODATA.
    while let Ok(length) = rustix::io::read(context, &mut buffer) {
        let text = String::from_utf8_lossy(&buffer[..length]);
        let text = text.trim_end();
        found.push(
            text.split_once(' ')
                .map_or(text, |(_, rest)| rest)
                .to_owned(),
        );
        if length == 0 || found.len() == 16 {
            break;
        }
    }
    found
}

/// A detached copy of the mount at a path, from that path on; with `recursive` of what is mounted below it too.
///
/// # Errors
///
/// Those of open_tree(2); EINVAL where the kernel forbids a copy that would uncover what a mount hides.
pub fn clone(directory: impl AsFd, path: &Path, recursive: bool) -> rustix::io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    rustix::mount::open_tree(directory.as_fd(), path, flags)
}

/// Moves a detached mount onto a mount point.
///
/// # Errors
///
/// Those of move_mount(2); ENOTDIR where one is a directory and the other is not.
pub fn attach(mount: impl AsFd, target: impl AsFd) -> rustix::io::Result<()> {
    rustix::mount::move_mount(
        mount.as_fd(),
        c"",
        target.as_fd(),
        c"",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH,
    )
}

/// What an entry mounts, taken from the host as a detached copy, or as it is where it is to be moved; None for an entry that mounts nothing of the host. Relative paths start at the
/// working directory.
///
/// # Errors
///
/// The source cannot be used.
pub fn source(entry: &Entry) -> Result<Option<OwnedFd>, MountError> {
    let taken = match entry.kind {
        Kind::Bind { recursive } if !entry.is_inside => {
            clone(rustix::fs::CWD, &entry.source, recursive)
        }
        Kind::Move if !entry.is_inside => {
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            rustix::fs::open(&entry.source, flags, rustix::fs::Mode::empty())
        }
        _ => return Ok(None),
    };
    taken.map(Some).map_err(|error| MountError::Source {
        path: entry.source.clone(),
        source: error.into(),
    })
}

/// Mounts things below the root of a container.
#[derive(Debug)]
pub struct Mounter<'a> {
    /// The container's root.
    pub rootfs: &'a Rootfs,
}

impl Mounter<'_> {
    /// Does what an entry says with what [`source`] took for it.
    ///
    /// # Errors
    ///
    /// The step that failed; whether that matters is the caller's to decide, by [`Entry::optional`].
    pub fn mount(&self, entry: &Entry, source: Option<OwnedFd>) -> Result<(), MountError> {
        match &entry.kind {
            Kind::Bind { recursive } => {
                let mount = match source {
                    Some(mount) => mount,
                    None => self.inside(entry, *recursive)?,
                };
                self.place(mount, entry, *recursive)
            }
            Kind::Move => {
                let mount = match source {
                    Some(mount) => mount,
                    None => self.open_inside(entry)?,
                };
                self.place_with_flags_set(mount, entry)
            }
            Kind::Filesystem { name, options } => {
                let name = name.to_string_lossy();
                let own = options
                    .iter()
                    .map(|(key, value)| (key.as_os_str(), value.as_deref()));
                let source = [(OsStr::new("source"), Some(entry.source.as_os_str()))];
                let mount = filesystem(&name, source.into_iter().chain(own), entry.set)?;
                self.place_with_flags_set(mount, entry)
            }
            Kind::Remount => {
                let target = self.target(entry, None)?;
                self.set_flags(&target, entry, false)?;
                self.set_propagation(&target, entry)
            }
            Kind::Detach => {
                let target = self.target(entry, None)?;
                // The mount on top of a descriptor's place is reached through its magic link only; the link is our own.
                let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&target));
                rustix::mount::unmount(link, UnmountFlags::DETACH).map_err(|error| {
                    MountError::Attach {
                        path: entry.target.clone(),
                        source: error.into(),
                    }
                })
            }
        }
    }

    /// Puts a detached mount where an entry says, with the flags that it says.
    ///
    /// # Errors
    ///
    /// The step that failed.
    pub fn place(&self, mount: OwnedFd, entry: &Entry, recursive: bool) -> Result<(), MountError> {
        if !entry.set.is_empty() || !entry.clear.is_empty() {
            self.set_flags(&mount, entry, recursive)?;
        }
        self.place_with_flags_set(mount, entry)
    }

    fn place_with_flags_set(&self, mount: OwnedFd, entry: &Entry) -> Result<(), MountError> {
        let target = self.target(entry, Some(&mount))?;
        attach(&mount, &target).map_err(|error| MountError::Attach {
            path: entry.target.clone(),
            source: error.into(),
        })?;
        self.set_propagation(&mount, entry)
    }

    /// A detached copy of a part of the container itself, made where it is missing and the target is to be made too: a directory that keeps
    /// being writable when the root is not, for instance.
    fn inside(&self, entry: &Entry, recursive: bool) -> Result<OwnedFd, MountError> {
        if entry.create != CreateOption::No && entry.source == entry.target {
            self.target(entry, None)?;
        }
        let source = self.open_inside(entry)?;
        clone(&source, Path::new(""), recursive).map_err(|error| MountError::Source {
            path: entry.source.clone(),
            source: error.into(),
        })
    }

    fn open_inside(&self, entry: &Entry) -> Result<OwnedFd, MountError> {
        self.rootfs
            .open(&entry.source, OFlags::PATH)
            .map_err(|source| MountError::Source {
                path: entry.source.clone(),
                source,
            })
    }

    fn set_propagation(&self, mount: &OwnedFd, entry: &Entry) -> Result<(), MountError> {
        let Some(propagation) = entry.propagation else {
            return Ok(());
        };
        let kind = match propagation.kind {
            PropagationKind::Private => sys::mount::Propagation::Private,
            PropagationKind::Slave => sys::mount::Propagation::Slave,
            PropagationKind::Shared => sys::mount::Propagation::Shared,
            PropagationKind::Unbindable => sys::mount::Propagation::Unbindable,
        };
        sys::mount::set_propagation(mount, kind, propagation.recursive).map_err(|source| {
            MountError::Flags {
                path: entry.target.clone(),
                source,
            }
        })
    }

    fn set_flags(&self, mount: &OwnedFd, entry: &Entry, recursive: bool) -> Result<(), MountError> {
        let set = |clear| sys::mount::set_attributes(mount, entry.set, clear, recursive);
        match set(entry.clear & !entry.set) {
            // A flag such as read-only or nosuid that the host set is locked for us. `rw` and its like then mean "as far as possible", as
            // with mount(8), which takes the flags of the source over.
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => set(MountAttrFlags::empty()),
            result => result,
        }
        .map_err(|source| MountError::Flags {
            path: entry.target.clone(),
            source,
        })
    }

    fn target(&self, entry: &Entry, mount: Option<&OwnedFd>) -> Result<OwnedFd, MountError> {
        let failed = |source| MountError::Target {
            path: Path::new("/").join(&entry.target),
            source,
        };
        let create = match (entry.create, mount) {
            (CreateOption::No, _) | (CreateOption::Auto, None) => None,
            (CreateOption::Directory, _) => Some(Create::MountDirectory),
            (CreateOption::File, _) => Some(Create::MountFile),
            (CreateOption::Auto, Some(mount)) => {
                let status =
                    rustix::fs::fstat(mount).map_err(|error| failed(io::Error::from(error)))?;
                Some(match FileType::from_raw_mode(status.st_mode) {
                    FileType::Directory => Create::MountDirectory,
                    _ => Create::MountFile,
                })
            }
        };
        match create {
            Some(create) => self.rootfs.create(&entry.target, create),
            None => self.rootfs.open(&entry.target, OFlags::PATH),
        }
        .map_err(failed)
    }
}
