//! The upper layer of an image's root, filled before the overlay is mounted.
//!
//! Every name that is looked up in a mounted image costs two switches to its server and back. So mount points and generated files are put into
//! the upper layer beforehand, at the place where the image's symbolic links lead: a mount point is an opaque directory or an empty file there, and
//! overlayfs does not look below it. What a start finds no place for here, it makes in the mounted root.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use cista_images::squashfs::reader::{Inode, InodeKind, Reader};
use rustix::fs::{Mode, OFlags, XattrFlags};

use super::view::{failed, resolve};

/// Bounds on what is copied of an image's `/etc/skel`.
const MAX_DEPTH: usize = 8;
const MAX_ENTRIES: usize = 1000;
const MAX_FILE: u64 = 1 << 20;

/// What is put into an upper layer.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Seed {
    /// By path relative to the root, so that a directory comes before what is in it.
    nodes: BTreeMap<PathBuf, Node>,
    /// Mode of the root directory.
    root_mode: Option<u16>,
    /// Where what was asked for is in fact.
    places: BTreeMap<PathBuf, PathBuf>,
}

/// One of them.
#[derive(Debug, PartialEq, Eq)]
enum Node {
    /// A directory; an opaque one hides the image's.
    Directory { mode: u16, opaque: bool },
    /// A file.
    File { mode: u16, content: Vec<u8> },
    /// A symbolic link.
    Symlink(OsString),
}

impl Seed {
    /// Adds a mount point that is a directory, where the image's links lead. Left out where the image has something else there.
    ///
    /// # Errors
    ///
    /// A loop of links, or an image that cannot be read.
    pub fn mount_directory(&mut self, reader: &Reader, path: &Path) -> io::Result<()> {
        let found = resolve(reader, path)?;
        let fits = found
            .inode
            .is_none_or(|inode| matches!(inode.kind, InodeKind::Directory(_)));
        if fits && self.make_way(reader, &found.path)? {
            let node = Node::Directory {
                mode: 0o755,
                opaque: true,
            };
            self.places.insert(path.to_owned(), found.path.clone());
            self.nodes.insert(found.path, node);
        }
        Ok(())
    }

    /// Adds a file with a content, in place of the image's file or symbolic link: a link may lead to what is not meant, such as the time zone that it
    /// names. Left out where the image has something else there; returns whether it was added.
    ///
    /// # Errors
    ///
    /// A loop of links, or an image that cannot be read.
    pub fn file(&mut self, reader: &Reader, path: &Path, content: Vec<u8>) -> io::Result<bool> {
        let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
            return Ok(false);
        };
        let place = resolve(reader, above)?.path.join(name);
        let inode = reader
            .walk(place.as_os_str().as_encoded_bytes())
            .map_err(failed)?;
        let fits = inode
            .is_none_or(|inode| matches!(inode.kind, InodeKind::File(_) | InodeKind::Symlink(_)));
        if !fits || !self.make_way(reader, &place)? {
            return Ok(false);
        }
        let node = Node::File {
            mode: 0o644,
            content,
        };
        self.places.insert(path.to_owned(), place.clone());
        self.nodes.insert(place, node);
        Ok(true)
    }

    /// Adds a symbolic link, in place of the image's file or link. Left out where the image has something else there; returns whether it was added.
    ///
    /// # Errors
    ///
    /// A loop of links, or an image that cannot be read.
    pub fn symlink(&mut self, reader: &Reader, path: &Path, target: &Path) -> io::Result<bool> {
        if !self.file(reader, path, Vec::new())? {
            return Ok(false);
        }
        if let Some(place) = self.places.get(path) {
            let node = Node::Symlink(target.as_os_str().to_owned());
            self.nodes.insert(place.clone(), node);
        }
        Ok(true)
    }

    /// Where a path is that was added, without symbolic links.
    #[must_use]
    pub fn place(&self, path: &Path) -> Option<&Path> {
        self.places.get(path).map(PathBuf::as_path)
    }

    /// Adds the user's home where the image has none, with what is in the image's `skeleton`.
    ///
    /// # Errors
    ///
    /// A loop of links, or an image that cannot be read.
    pub fn home(&mut self, reader: &Reader, home: &Path, skeleton: &Path) -> io::Result<()> {
        let found = resolve(reader, home)?;
        if found.inode.is_some() || !self.make_way(reader, &found.path)? {
            return Ok(());
        }
        let home = found.path;
        let node = Node::Directory {
            mode: 0o700,
            opaque: false,
        };
        self.nodes.insert(home.clone(), node);
        match resolve(reader, skeleton)?.inode {
            Some(skeleton) if matches!(skeleton.kind, InodeKind::Directory(_)) => {
                self.copy(reader, &skeleton, &home, 0)
            }
            _ => Ok(()),
        }
    }

    /// Adds the directories above a path without symbolic links. False where something that was added is in the way.
    fn make_way(&mut self, reader: &Reader, path: &Path) -> io::Result<bool> {
        if path.as_os_str().is_empty() {
            return Ok(false);
        }
        if self.root_mode.is_none() {
            self.root_mode = Some(reader.inode(reader.root_ref()).map_err(failed)?.mode);
        }
        let above: Vec<&Path> = path.ancestors().skip(1).collect();
        for directory in above.into_iter().rev().skip(1) {
            match self.nodes.get(directory) {
                Some(Node::Directory { .. }) => {}
                Some(_) => return Ok(false),
                None => {
                    let name = directory.as_os_str().as_encoded_bytes();
                    let mode = match reader.walk(name).map_err(failed)? {
                        Some(inode) if matches!(inode.kind, InodeKind::Directory(_)) => inode.mode,
                        Some(_) => return Ok(false),
                        None => 0o755,
                    };
                    let node = Node::Directory {
                        mode,
                        opaque: false,
                    };
                    self.nodes.insert(directory.to_owned(), node);
                }
            }
        }
        Ok(true)
    }

    fn copy(&mut self, reader: &Reader, from: &Inode, to: &Path, depth: usize) -> io::Result<()> {
        let mut entries = reader.open_directory(from).map_err(failed)?;
        while let Some(target) = entries.advance().map_err(failed)? {
            if self.nodes.len() > MAX_ENTRIES || depth > MAX_DEPTH {
                return Ok(());
            }
            let path = to.join(OsString::from_vec(entries.name().to_vec()));
            let inode = reader.inode(target.inode).map_err(failed)?;
            let mode = inode.mode & 0o777;
            let node = match &inode.kind {
                InodeKind::Directory(_) => Node::Directory {
                    mode: mode | 0o700,
                    opaque: false,
                },
                InodeKind::File(file) if file.size <= MAX_FILE => Node::File {
                    mode: mode | 0o600,
                    content: reader.read_file(&inode, MAX_FILE).map_err(failed)?,
                },
                InodeKind::Symlink(_) => {
                    Node::Symlink(OsString::from_vec(reader.readlink(&inode).map_err(failed)?))
                }
                _ => continue,
            };
            let is_directory = matches!(node, Node::Directory { .. });
            self.nodes.insert(path.clone(), node);
            if is_directory {
                self.copy(reader, &inode, &path, depth + 1)?;
            }
        }
        Ok(())
    }

    /// Whether a path without symbolic links is at or below something that was added and is not just on the way to it.
    #[must_use]
    pub fn covers(&self, path: &Path) -> bool {
        path.ancestors().any(|path| {
            self.nodes
                .get(path)
                .is_some_and(|node| !matches!(node, Node::Directory { opaque: false, .. }))
        })
    }

    /// Fills a directory, which must be empty and nobody else's.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub fn plant(&self, upper: BorrowedFd<'_>) -> io::Result<()> {
        if let Some(mode) = self.root_mode {
            rustix::fs::fchmod(upper, Mode::from_raw_mode(u32::from(mode)))?;
        }
        for (path, node) in &self.nodes {
            match node {
                Node::Directory { mode, opaque } => {
                    rustix::fs::mkdirat(upper, path, Mode::from_raw_mode(u32::from(*mode)))?;
                    if *opaque {
                        mark_opaque(upper, path)?;
                    }
                }
                Node::File { mode, content } => {
                    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                    let mode = Mode::from_raw_mode(u32::from(*mode));
                    let file = rustix::fs::openat(upper, path, flags, mode)?;
                    if !content.is_empty() {
                        io::Write::write_all(&mut std::fs::File::from(file), content)?;
                    }
                }
                Node::Symlink(target) => rustix::fs::symlinkat(target, upper, path)?,
            }
        }
        Ok(())
    }
}

/// Tells overlayfs not to look below a directory. Where attributes cannot be set (tmpfs before Linux 6.6), it looks, in vain.
fn mark_opaque(upper: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(upper, path, flags, Mode::empty())?;
    let _ = rustix::fs::fsetxattr(
        directory.as_fd(),
        c"user.overlay.opaque",
        b"y",
        XattrFlags::empty(),
    );
    Ok(())
}
