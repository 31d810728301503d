//! The upper layer of an image's root, filled before the overlay is mounted.
//!
//! Every name that is looked up in a mounted image costs two switches to its server and back. So mount points and generated files are put into
//! the upper layer beforehand, at the place where the image's symbolic links lead: a mount point is an opaque directory or an empty file there, and
//! overlayfs does not look below it. What a start finds no place for here, it makes in the mounted root.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, XattrFlags};

use super::unmounted::{Node as Source, OPAQUE, Unmounted};

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
    pub fn mount_directory(&mut self, image: &Unmounted<'_>, path: &Path) -> io::Result<()> {
        let found = image.resolve(path)?;
        let fits = found.node.as_ref().is_none_or(Source::is_directory);
        if fits && self.make_way(image, &found.path)? {
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
    pub fn file(
        &mut self,
        image: &Unmounted<'_>,
        path: &Path,
        content: Vec<u8>,
    ) -> io::Result<bool> {
        let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
            return Ok(false);
        };
        let place = image.resolve(above)?.path.join(name);
        let fits = image.walk(&place)?.is_none_or(|node| {
            matches!(node.file_type(), FileType::RegularFile | FileType::Symlink)
        });
        if !fits || !self.make_way(image, &place)? {
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
    pub fn symlink(
        &mut self,
        image: &Unmounted<'_>,
        path: &Path,
        target: &Path,
    ) -> io::Result<bool> {
        if !self.file(image, path, Vec::new())? {
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
    pub fn home(&mut self, image: &Unmounted<'_>, home: &Path, skeleton: &Path) -> io::Result<()> {
        let found = image.resolve(home)?;
        if found.node.is_some() || !self.make_way(image, &found.path)? {
            return Ok(());
        }
        let home = found.path;
        let node = Node::Directory {
            mode: 0o700,
            opaque: false,
        };
        self.nodes.insert(home.clone(), node);
        match image.resolve(skeleton)?.node {
            Some(skeleton) if skeleton.is_directory() => self.copy(image, &skeleton, &home, 0),
            _ => Ok(()),
        }
    }

    /// Adds the directories above a path without symbolic links. False where something that was added is in the way.
    fn make_way(&mut self, image: &Unmounted<'_>, path: &Path) -> io::Result<bool> {
        if path.as_os_str().is_empty() {
            return Ok(false);
        }
        if self.root_mode.is_none() {
            self.root_mode = Some(image.root()?.mode());
        }
        let above: Vec<&Path> = path.ancestors().skip(1).collect();
        for directory in above.into_iter().rev().skip(1) {
            match self.nodes.get(directory) {
                Some(Node::Directory { .. }) => {}
                Some(_) => return Ok(false),
                None => {
                    let mode = match image.walk(directory)? {
                        Some(node) if node.is_directory() => node.mode(),
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

    fn copy(
        &mut self,
        image: &Unmounted<'_>,
        from: &Source,
        to: &Path,
        depth: usize,
    ) -> io::Result<()> {
        for (name, source) in image.entries(from, MAX_ENTRIES)? {
            if self.nodes.len() > MAX_ENTRIES || depth > MAX_DEPTH {
                return Ok(());
            }
            let path = to.join(name);
            let mode = source.mode() & 0o777;
            let node = match source.file_type() {
                FileType::Directory => Node::Directory {
                    mode: mode | 0o700,
                    opaque: false,
                },
                FileType::RegularFile if source.file_size() <= Some(MAX_FILE) => Node::File {
                    mode: mode | 0o600,
                    content: image.read(&source, MAX_FILE)?,
                },
                FileType::Symlink => Node::Symlink(image.readlink(&source)?),
                _ => continue,
            };
            self.nodes.insert(path.clone(), node);
            if source.is_directory() {
                self.copy(image, &source, &path, depth + 1)?;
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
    let _ = rustix::fs::fsetxattr(directory.as_fd(), OPAQUE, b"y", XattrFlags::empty());
    Ok(())
}
