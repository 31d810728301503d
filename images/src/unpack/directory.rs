//! The directories that were made: found again by their chain of names, finished at the end.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::{Counts, MAX_DEPTH, UnpackError, file};
use crate::cancel::Cancel;
use crate::squashfs::reader::{Inode, Reader};

/// How directories are opened: never through a symbolic link.
const OPEN: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Index of a directory in its [`Tree`]; 0 is the root, and a child's is larger than its parent's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DirectoryId(usize);

/// A name in a directory.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) directory: DirectoryId,
    pub(super) name: Box<[u8]>,
}

/// All directories, and the hard links that wait for their files.
#[derive(Debug)]
pub(super) struct Tree {
    root: OwnedFd,
    made: Vec<Made>,
    links: Vec<(Place, Place)>,
}

#[derive(Debug)]
struct Made {
    /// None for the root.
    place: Option<Place>,
    inode: Inode,
    /// Number of names that lead here from the root.
    depth: usize,
}

impl Tree {
    pub(super) fn new(root: OwnedFd, inode: Inode) -> Self {
        Self {
            root,
            made: vec![Made {
                place: None,
                inode,
                depth: 0,
            }],
            links: Vec::new(),
        }
    }

    pub(super) const ROOT: DirectoryId = DirectoryId(0);

    /// Number of directories with the root.
    pub(super) fn directories(&self) -> usize {
        self.made.len()
    }

    pub(super) fn inode(&self, directory: DirectoryId) -> &Inode {
        &self.made[directory.0].inode
    }

    /// The path of a directory from the root of the image.
    pub(super) fn path(&self, directory: DirectoryId) -> PathBuf {
        std::iter::once(OsStr::from_bytes(b"/"))
            .chain(self.names(directory).into_iter().map(OsStr::from_bytes))
            .collect()
    }

    /// The path of a name in a directory.
    pub(super) fn path_of(&self, place: &Place) -> PathBuf {
        self.path(place.directory)
            .join(OsStr::from_bytes(&place.name))
    }

    /// Makes a directory in one that was made before. Its mode is set in the end: until then only the owner may enter.
    pub(super) fn make(
        &mut self,
        parent: &OwnedFd,
        place: Place,
        inode: Inode,
    ) -> Result<DirectoryId, UnpackError> {
        let depth = self.made[place.directory.0].depth + 1;
        if depth > MAX_DEPTH {
            return Err(UnpackError::TooDeep {
                path: OsStr::from_bytes(&place.name).into(),
            });
        }
        rustix::fs::mkdirat(parent, &*place.name, Mode::RWXU).map_err(|source| {
            UnpackError::Write {
                operation: "create the directory",
                path: self.path_of(&place),
                source: source.into(),
            }
        })?;
        let id = DirectoryId(self.made.len());
        self.made.push(Made {
            place: Some(place),
            inode,
            depth,
        });
        Ok(id)
    }

    /// Notes that `link` is to become another name of the file `target`.
    pub(super) fn link_later(&mut self, target: Place, link: Place) {
        self.links.push((target, link));
    }

    /// Opens a directory by its chain of names, however long the path is.
    pub(super) fn open(&self, directory: DirectoryId) -> Result<OwnedFd, UnpackError> {
        let refused = |source: rustix::io::Errno| UnpackError::Write {
            operation: "open the directory",
            path: self.path(directory),
            source: source.into(),
        };
        let mut open = rustix::io::fcntl_dupfd_cloexec(&self.root, 0).map_err(refused)?;
        for name in self.names(directory) {
            open = rustix::fs::openat(&open, name, OPEN, Mode::empty()).map_err(refused)?;
        }
        Ok(open)
    }

    /// The names that lead from the root to a directory.
    fn names(&self, mut directory: DirectoryId) -> Vec<&[u8]> {
        let mut names = Vec::new();
        while let Some(place) = &self.made[directory.0].place {
            names.push(&*place.name);
            directory = place.directory;
        }
        names.reverse();
        names
    }

    /// What can only be done when all files exist: hard links, then attributes of directories, children before parents.
    pub(super) fn finish(
        &self,
        reader: &Reader,
        counts: &Counts,
        cancel: &Cancel,
    ) -> Result<(), UnpackError> {
        for (target, link) in &self.links {
            cancel.check()?;
            let from = (self.open(target.directory)?, &*target.name);
            let to = (self.open(link.directory)?, &*link.name);
            let linked = match rustix::fs::linkat(&from.0, from.1, &to.0, to.1, AtFlags::empty()) {
                // A file system without hard links has copies.
                Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::MLINK) => {
                    file::copy((from.0.as_fd(), from.1), (to.0.as_fd(), to.1))
                }
                linked => linked.map_err(io::Error::from),
            };
            linked.map_err(|source| UnpackError::Write {
                operation: "create the hard link",
                path: self.path_of(link),
                source,
            })?;
        }
        for (index, made) in self.made.iter().enumerate().rev() {
            cancel.check()?;
            let id = DirectoryId(index);
            let directory = self.open(id)?;
            let refused = file::set_attributes(reader, &made.inode, directory.as_fd())
                .map_err(|failure| failure.at(|| self.path(id)))?;
            counts.refused_xattrs.fetch_add(refused, Ordering::Relaxed);
        }
        Ok(())
    }
}
