//! Files of a root file system, mounted or not yet.
//!
//! What an image says about itself is read before the image is mounted where that is possible: the reader answers from memory, where a mounted image
//! costs two switches between processes for each name. Both ways resolve symbolic links within the root.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use cista_images::squashfs::reader::{Inode, InodeKind, ReadError, Reader};
use rustix::fs::{FileType, OFlags};

use super::rootfs::{MAX_LINKS, Rootfs, components};

/// A root file system to look into.
#[derive(Clone, Copy)]
pub enum View<'a> {
    /// An image file, through its reader.
    Image(&'a Reader),
    /// A mounted root.
    Mounted(&'a Rootfs),
}

/// Where a path of an image leads.
pub struct Found {
    /// The same path without symbolic links, `.` and `..`, relative to the root. What does not exist of it stands as it was asked for.
    pub path: PathBuf,
    /// What is there; None where it does not exist.
    pub inode: Option<Inode>,
}

impl View<'_> {
    /// Whether a path leads to something, and to what.
    #[must_use]
    pub fn file_type(&self, path: &Path) -> Option<FileType> {
        match self {
            Self::Mounted(rootfs) => rootfs.file_type(path),
            Self::Image(reader) => resolve(reader, path)
                .ok()?
                .inode
                .map(|inode| FileType::from_raw_mode(inode.file_type())),
        }
    }

    /// Whether a path leads to a file that may be executed.
    #[must_use]
    pub fn is_executable(&self, path: &Path) -> bool {
        match self {
            Self::Mounted(rootfs) => rootfs.is_executable(path),
            Self::Image(reader) => resolve(reader, path).is_ok_and(|found| {
                found.inode.is_some_and(|inode| {
                    matches!(inode.kind, InodeKind::File(_)) && inode.mode & 0o111 != 0
                })
            }),
        }
    }

    /// Size of the regular file that a path leads to, in bytes; None where there is none.
    #[must_use]
    pub fn file_size(&self, path: &Path) -> Option<u64> {
        match self {
            Self::Mounted(rootfs) => rootfs.file_size(path),
            Self::Image(reader) => match resolve(reader, path).ok()?.inode?.kind {
                InodeKind::File(file) => Some(file.size),
                _ => None,
            },
        }
    }

    /// The last component of the path that a path leads to, symbolic links followed; None where there is nothing.
    #[must_use]
    pub fn real_name(&self, path: &Path) -> Option<OsString> {
        match self {
            Self::Mounted(rootfs) => {
                let file = rootfs.open(path, OFlags::PATH).ok()?;
                let link = format!("/proc/self/fd/{}", file.as_raw_fd());
                let real = std::fs::read_link(link).ok()?;
                real.file_name().map(OsStr::to_owned)
            }
            Self::Image(reader) => {
                let found = resolve(reader, path).ok()?;
                found.inode?;
                found.path.file_name().map(OsStr::to_owned)
            }
        }
    }

    /// Reads a regular file of at most `limit` bytes; None where there is none.
    ///
    /// # Errors
    ///
    /// A longer file, a loop of links, an image that cannot be read.
    pub fn read(&self, path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
        match self {
            Self::Mounted(rootfs) => rootfs.read(path, limit),
            Self::Image(reader) => match resolve(reader, path)?.inode {
                Some(inode) if matches!(inode.kind, InodeKind::File(_)) => {
                    reader.read_file(&inode, limit).map(Some).map_err(failed)
                }
                _ => Ok(None),
            },
        }
    }
}

/// Follows a path through an image, symbolic links included, within its root.
///
/// # Errors
///
/// ELOOP for too many links, and an image that cannot be read.
pub fn resolve(reader: &Reader, path: &Path) -> io::Result<Found> {
    // The directories from the root down to where we are; None for those that do not exist.
    let root = reader.inode(reader.root_ref()).map_err(failed)?;
    let mut walked: Vec<(OsString, Option<Inode>)> = vec![(OsString::new(), Some(root))];
    let mut pending: VecDeque<OsString> = components(path);
    let mut links = 0;
    while let Some(name) = pending.pop_front() {
        if name == ".." {
            if walked.len() > 1 {
                walked.pop();
            }
            continue;
        }
        let here = walked.last().and_then(|(_, inode)| inode.as_ref());
        let next = match here {
            Some(directory) if matches!(directory.kind, InodeKind::Directory(_)) => reader
                .lookup(directory, name.as_bytes())
                .and_then(|target| target.map(|target| reader.inode(target.inode)).transpose())
                .map_err(failed)?,
            Some(_) => return Err(io::ErrorKind::NotADirectory.into()),
            None => None,
        };
        match next {
            Some(inode) if matches!(inode.kind, InodeKind::Symlink(_)) => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(rustix::io::Errno::LOOP.into());
                }
                let target = reader.readlink(&inode).map_err(failed)?;
                let target = Path::new(OsStr::from_bytes(&target));
                if target.is_absolute() {
                    walked.truncate(1);
                }
                for component in components(target).into_iter().rev() {
                    pending.push_front(component);
                }
            }
            next => walked.push((name, next)),
        }
    }
    let path = walked.iter().skip(1).map(|(name, _)| name).collect();
    let inode = walked.pop().and_then(|(_, inode)| inode);
    Ok(Found { path, inode })
}

pub(super) fn failed(error: ReadError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
