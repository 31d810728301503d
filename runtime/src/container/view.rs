//! Files of a root file system, mounted or not yet.
//!
//! What an image says about itself is read before the image is mounted where that is possible: the reader answers from memory, where a mounted image
//! costs two switches between processes for each name. Both ways resolve symbolic links within the root.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;

use rustix::fs::{FileType, OFlags};

use super::rootfs::Rootfs;
use super::unmounted::Unmounted;

/// A root file system to look into.
#[derive(Clone, Copy)]
pub enum View<'a> {
    /// An image and a container's changes, before they are mounted.
    Unmounted(&'a Unmounted<'a>),
    /// A mounted root.
    Mounted(&'a Rootfs),
}

impl View<'_> {
    /// Whether a path leads to something, and to what.
    #[must_use]
    pub fn file_type(&self, path: &Path) -> Option<FileType> {
        match self {
            Self::Mounted(rootfs) => rootfs.file_type(path),
            Self::Unmounted(image) => Some(image.resolve(path).ok()?.node?.file_type()),
        }
    }

    /// Whether a path leads to a file that may be executed.
    #[must_use]
    pub fn is_executable(&self, path: &Path) -> bool {
        match self {
            Self::Mounted(rootfs) => rootfs.is_executable(path),
            Self::Unmounted(image) => image.resolve(path).is_ok_and(|found| {
                found
                    .node
                    .is_some_and(|node| node.file_size().is_some() && node.mode() & 0o111 != 0)
            }),
        }
    }

    /// Size of the regular file that a path leads to, in bytes; None where there is none.
    #[must_use]
    pub fn file_size(&self, path: &Path) -> Option<u64> {
        match self {
            Self::Mounted(rootfs) => rootfs.file_size(path),
            Self::Unmounted(image) => image.resolve(path).ok()?.node?.file_size(),
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
            Self::Unmounted(image) => {
                let found = image.resolve(path).ok()?;
                found.node?;
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
            Self::Unmounted(image) => match image.resolve(path)?.node {
                Some(file) if file.file_size().is_some() => image.read(&file, limit).map(Some),
                _ => Ok(None),
            },
        }
    }
}
