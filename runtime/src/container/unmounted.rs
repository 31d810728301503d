//! An image, and what a container has changed of it, read without a mount.
//!
//! Through a mount, each name that is looked up costs two switches to the server of the image and back. The reader of the image answers from memory, and
//! a container's changes are a directory of the host. This is overlayfs's view of the two, in as much as a start asks for it
//! (the kernel's Documentation/filesystems/overlayfs.rst): what is in the upper layer wins, directories that are in both are merged, a character
//! device 0/0 hides what is below, and so does an opaque directory.
//!
//! The upper layer was written by programs of the container: no symbolic link of it is followed by the kernel.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use cista_images::squashfs::reader::{Inode, InodeKind, ReadError, Reader};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::rootfs::{MAX_LINKS, components};

/// By which overlayfs marks a directory that hides what is below, where it may not use `trusted.` attributes.
pub(super) const OPAQUE: &str = "user.overlay.opaque";

/// An image with the changes of a container.
pub struct Unmounted<'a> {
    reader: &'a Reader,
    /// The upper layer.
    upper: Option<File>,
}

/// What a path leads to.
#[derive(Clone, Debug)]
pub enum Node {
    /// Of the image.
    Image(Inode),
    /// Of the upper layer.
    Changed(Changed),
}

/// What is in the upper layer.
#[derive(Clone, Debug)]
pub struct Changed {
    /// Relative to the upper layer, without symbolic links.
    path: PathBuf,
    file_type: FileType,
    mode: u16,
    size: u64,
    /// The directory of the image that it is merged with.
    below: Option<Inode>,
}

/// Where a path leads.
#[derive(Debug)]
pub struct Found {
    /// The same path without symbolic links, `.` and `..`, relative to the root. What does not exist of it stands as it was asked for.
    pub path: PathBuf,
    /// What is there; None where it does not exist.
    pub node: Option<Node>,
}

impl Node {
    /// What it is.
    #[must_use]
    pub fn file_type(&self) -> FileType {
        match self {
            Self::Image(inode) => FileType::from_raw_mode(inode.file_type()),
            Self::Changed(changed) => changed.file_type,
        }
    }

    /// Permission bits with setuid, setgid and sticky.
    #[must_use]
    pub fn mode(&self) -> u16 {
        match self {
            Self::Image(inode) => inode.mode,
            Self::Changed(changed) => changed.mode,
        }
    }

    /// Size of a regular file in bytes; None for everything else.
    #[must_use]
    pub fn file_size(&self) -> Option<u64> {
        match self {
            Self::Image(Inode {
                kind: InodeKind::File(file),
                ..
            }) => Some(file.size),
            Self::Changed(changed) if changed.file_type == FileType::RegularFile => {
                Some(changed.size)
            }
            Self::Image(_) | Self::Changed(_) => None,
        }
    }

    /// Whether it is a directory.
    #[must_use]
    pub fn is_directory(&self) -> bool {
        self.file_type() == FileType::Directory
    }
}

impl<'a> Unmounted<'a> {
    /// An image as it is.
    #[must_use]
    pub fn image(reader: &'a Reader) -> Self {
        Self {
            reader,
            upper: None,
        }
    }

    /// An image below an upper layer.
    ///
    /// # Errors
    ///
    /// Those of open(2).
    pub fn below(reader: &'a Reader, upper: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let upper = rustix::fs::open(upper, flags, Mode::empty())?;
        Ok(Self {
            reader,
            upper: Some(upper.into()),
        })
    }

    /// The image.
    #[must_use]
    pub fn reader(&self) -> &'a Reader {
        self.reader
    }

    /// The root directory.
    ///
    /// # Errors
    ///
    /// An image or an upper layer that cannot be read.
    pub fn root(&self) -> io::Result<Node> {
        let root = self.reader.inode(self.reader.root_ref()).map_err(failed)?;
        if self.upper.is_none() {
            return Ok(Node::Image(root));
        }
        match self.changed(Path::new("."))? {
            Some(mut changed) => {
                changed.path = PathBuf::new();
                changed.below = Some(root);
                Ok(Node::Changed(changed))
            }
            None => Ok(Node::Image(root)),
        }
    }

    /// Looks a name up in a directory; None where there is none, or `directory` is none.
    ///
    /// # Errors
    ///
    /// An image or an upper layer that cannot be read.
    pub fn lookup(&self, directory: &Node, name: &OsStr) -> io::Result<Option<Node>> {
        let changed = match directory {
            Node::Image(inode) => return Ok(self.in_image(inode, name)?.map(Node::Image)),
            Node::Changed(changed) => changed,
        };
        let of_image = |below: &Option<Inode>| match below {
            Some(below) => self.in_image(below, name),
            None => Ok(None),
        };
        let Some(mut found) = self.changed(&changed.path.join(name))? else {
            return Ok(of_image(&changed.below)?.map(Node::Image));
        };
        if found.file_type == FileType::CharacterDevice {
            // A whiteout: nodes of other devices cannot be made in an upper layer of ours.
            return Ok(None);
        }
        if found.file_type == FileType::Directory && !self.is_opaque(&found.path)? {
            found.below = of_image(&changed.below)?
                .filter(|inode| matches!(inode.kind, InodeKind::Directory(_)));
        }
        Ok(Some(Node::Changed(found)))
    }

    fn in_image(&self, directory: &Inode, name: &OsStr) -> io::Result<Option<Inode>> {
        if !matches!(directory.kind, InodeKind::Directory(_)) {
            return Ok(None);
        }
        self.reader
            .lookup(directory, name.as_bytes())
            .and_then(|found| {
                found
                    .map(|target| self.reader.inode(target.inode))
                    .transpose()
            })
            .map_err(failed)
    }

    /// What the upper layer has at a path without symbolic links.
    fn changed(&self, path: &Path) -> io::Result<Option<Changed>> {
        let file = match self.open(path, OFlags::PATH) {
            Ok(file) => file,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let status = rustix::fs::fstat(&file)?;
        Ok(Some(Changed {
            path: path.to_owned(),
            file_type: FileType::from_raw_mode(status.st_mode),
            mode: (status.st_mode & 0o7777) as u16,
            size: u64::try_from(status.st_size).unwrap_or(0),
            below: None,
        }))
    }

    fn open(&self, path: &Path, flags: OFlags) -> rustix::io::Result<File> {
        let upper = self.upper.as_ref().ok_or(Errno::NOENT)?;
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        rustix::fs::openat2(upper, path, flags, Mode::empty(), resolve).map(File::from)
    }

    /// Whether a directory of the upper layer hides the image's.
    ///
    /// # Errors
    ///
    /// An attribute that may not be read; one that no overlay of ours has written.
    fn is_opaque(&self, path: &Path) -> io::Result<bool> {
        let directory = self.open(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut value = [0; 8];
        match rustix::fs::fgetxattr(&directory, OPAQUE, &mut value[..]) {
            Ok(1) if value[0] == b'y' => Ok(true),
            Ok(_) => Err(io::ErrorKind::Unsupported.into()),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Follows a path without looking for symbolic links; None where it does not lead to anything.
    ///
    /// # Errors
    ///
    /// An image or an upper layer that cannot be read.
    pub fn walk(&self, path: &Path) -> io::Result<Option<Node>> {
        let mut node = self.root()?;
        for name in path {
            match self.lookup(&node, name)? {
                Some(next) => node = next,
                None => return Ok(None),
            }
        }
        Ok(Some(node))
    }

    /// Follows a path, symbolic links included, within the root.
    ///
    /// # Errors
    ///
    /// ELOOP for too many links, ENOTDIR for a path through a file; an image or an upper layer that cannot be read.
    pub fn resolve(&self, path: &Path) -> io::Result<Found> {
        // The directories from the root down to where we are; None for those that do not exist.
        let mut walked: Vec<(OsString, Option<Node>)> = vec![(OsString::new(), Some(self.root()?))];
        let mut pending: VecDeque<OsString> = components(path);
        let mut links = 0;
        while let Some(name) = pending.pop_front() {
            if name == ".." {
                if walked.len() > 1 {
                    walked.pop();
                }
                continue;
            }
            let next = match walked.last().and_then(|(_, node)| node.as_ref()) {
                Some(here) if here.is_directory() => self.lookup(here, &name)?,
                Some(_) => return Err(io::ErrorKind::NotADirectory.into()),
                None => None,
            };
            let Some(link) = next
                .as_ref()
                .filter(|node| node.file_type() == FileType::Symlink)
            else {
                walked.push((name, next));
                continue;
            };
            links += 1;
            if links > MAX_LINKS {
                return Err(Errno::LOOP.into());
            }
            let target = PathBuf::from(self.readlink(link)?);
            if target.is_absolute() {
                walked.truncate(1);
            }
            for component in components(&target).into_iter().rev() {
                pending.push_front(component);
            }
        }
        let path = walked.iter().skip(1).map(|(name, _)| name).collect();
        let node = walked.pop().and_then(|(_, node)| node);
        Ok(Found { path, node })
    }

    /// Where a symbolic link leads.
    ///
    /// # Errors
    ///
    /// An image or an upper layer that cannot be read.
    pub fn readlink(&self, link: &Node) -> io::Result<OsString> {
        match link {
            Node::Image(inode) => Ok(OsString::from_vec(
                self.reader.readlink(inode).map_err(failed)?,
            )),
            Node::Changed(changed) => {
                let file = self.open(&changed.path, OFlags::PATH)?;
                let target = rustix::fs::readlinkat(&file, c"", Vec::new())?;
                Ok(OsString::from_vec(target.into_bytes()))
            }
        }
    }

    /// Reads a regular file of at most `limit` bytes.
    ///
    /// # Errors
    ///
    /// A longer file; an image or an upper layer that cannot be read.
    pub fn read(&self, file: &Node, limit: u64) -> io::Result<Vec<u8>> {
        match file {
            Node::Image(inode) => self.reader.read_file(inode, limit).map_err(failed),
            Node::Changed(changed) => {
                // Without NONBLOCK, a named pipe that was put there meanwhile would stop us here for ever.
                let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
                let file = self.open(&changed.path, flags)?;
                let mut content = Vec::new();
                io::Read::read_to_end(&mut io::Read::take(file, limit + 1), &mut content)?;
                if content.len() as u64 > limit {
                    return Err(Errno::FBIG.into());
                }
                Ok(content)
            }
        }
    }

    /// The entries of a directory, `most` of them at most.
    ///
    /// # Errors
    ///
    /// An image or an upper layer that cannot be read.
    pub fn entries(&self, directory: &Node, most: usize) -> io::Result<Vec<(OsString, Node)>> {
        let mut names = Vec::new();
        let of_image = match directory {
            Node::Image(inode) => Some(inode),
            Node::Changed(changed) => {
                let directory = self.open(&changed.path, OFlags::RDONLY | OFlags::DIRECTORY)?;
                for entry in rustix::fs::Dir::read_from(&directory)?.take(most) {
                    let name = entry?.file_name().to_bytes().to_vec();
                    if !matches!(name.as_slice(), b"." | b"..") {
                        names.push(OsString::from_vec(name));
                    }
                }
                changed.below.as_ref()
            }
        };
        if let Some(inode) = of_image {
            let mut entries = self.reader.open_directory(inode).map_err(failed)?;
            while names.len() < most && entries.advance().map_err(failed)?.is_some() {
                let name = OsString::from_vec(entries.name().to_vec());
                if !names.contains(&name) {
                    names.push(name);
                }
            }
        }
        let mut nodes = Vec::with_capacity(names.len());
        for name in names {
            if let Some(node) = self.lookup(directory, &name)? {
                nodes.push((name, node));
            }
        }
        Ok(nodes)
    }
}

fn failed(error: ReadError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use cista_images::cancel::Cancel;
    use cista_images::squashfs::writer::{Options, Writer};
    use cista_images::tree::{Inode, Kind, Metadata, Tree};

    use super::*;

    /// An image with `etc/hosts`, `etc/passwd`, `lib` -> `usr/lib`, `usr/lib/a` and `opt/tool/run`, each file with its own name as content.
    fn image() -> Reader {
        let mut writer = Writer::new(
            tempfile::tempfile().unwrap(),
            Options::default(),
            Cancel::new(),
        )
        .unwrap();
        let metadata = |mode| Metadata {
            mode,
            uid: 0,
            gid: 0,
            mtime: 0,
            xattrs: None,
        };
        let mut tree = Tree::new(metadata(0o755));
        let mut files = Vec::new();
        for name in ["hosts", "passwd", "a", "run"] {
            let kind = Kind::File(writer.add_file(name.as_bytes()).unwrap());
            let metadata = metadata(0o644);
            files.push(tree.add(Inode { metadata, kind }).unwrap());
        }
        let mut directory = |above, name: &str| {
            let kind = Kind::Directory(std::collections::BTreeMap::new());
            let metadata = metadata(0o755);
            let id = tree.add(Inode { metadata, kind }).unwrap();
            tree.link(above, name.as_bytes(), id);
            id
        };
        let etc = directory(Tree::ROOT, "etc");
        let usr = directory(Tree::ROOT, "usr");
        let lib = directory(usr, "lib");
        let opt = directory(Tree::ROOT, "opt");
        let tool = directory(opt, "tool");
        for (above, name, id) in [
            (etc, "hosts", files[0]),
            (etc, "passwd", files[1]),
            (lib, "a", files[2]),
            (tool, "run", files[3]),
        ] {
            tree.link(above, name.as_bytes(), id);
        }
        let kind = Kind::Symlink(b"usr/lib".to_vec().into());
        let metadata = metadata(0o777);
        let link = tree.add(Inode { metadata, kind }).unwrap();
        tree.link(Tree::ROOT, b"lib", link);
        Reader::open(writer.finish(&tree).unwrap().file, 0).unwrap()
    }

    /// Where a path leads and what is read there; None where it leads nowhere.
    fn look(image: &Unmounted<'_>, path: &str) -> Option<(String, String)> {
        let found = image.resolve(Path::new(path)).unwrap();
        let node = found.node?;
        let content = match node.file_size() {
            Some(_) => String::from_utf8(image.read(&node, 100).unwrap()).unwrap(),
            None => "directory".to_owned(),
        };
        Some((found.path.display().to_string(), content))
    }

    fn names(image: &Unmounted<'_>, path: &str) -> Vec<String> {
        let directory = image.resolve(Path::new(path)).unwrap().node.unwrap();
        let entries = image.entries(&directory, 100).unwrap();
        let mut names: Vec<String> = entries
            .into_iter()
            .map(|(name, _)| name.into_string().unwrap())
            .collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn an_image_alone() {
        let reader = image();
        let image = Unmounted::image(&reader);
        let found = |path: &str, content: &str| Some((path.to_owned(), content.to_owned()));
        assert_eq!(look(&image, "/lib/a"), found("usr/lib/a", "a"));
        assert_eq!(
            look(&image, "etc/../../etc/hosts"),
            found("etc/hosts", "hosts")
        );
        assert_eq!(look(&image, "/etc/none"), None);
        assert_eq!(names(&image, "/"), ["etc", "lib", "opt", "usr"]);
        let through_a_file = image.resolve(Path::new("/etc/hosts/x")).unwrap_err();
        assert_eq!(through_a_file.kind(), io::ErrorKind::NotADirectory);
    }

    #[test]
    fn changes_are_seen_as_overlayfs_shows_them() {
        let reader = image();
        let upper = tempfile::tempdir().unwrap();
        let at = |path: &str| upper.path().join(path);
        std::fs::create_dir_all(at("etc")).unwrap();
        std::fs::create_dir_all(at("opt/tool")).unwrap();
        std::fs::create_dir(at("usr")).unwrap();
        std::fs::write(at("etc/hosts"), "changed").unwrap();
        std::fs::write(at("etc/new"), "new").unwrap();
        symlink("/etc/passwd", at("link")).unwrap();
        symlink("/proc/self/root/etc/hostname", at("outside")).unwrap();
        symlink("loop", at("loop")).unwrap();
        let whiteout = |path: &str| {
            rustix::fs::mknodat(
                rustix::fs::CWD,
                at(path),
                FileType::CharacterDevice,
                Mode::empty(),
                0,
            )
            .unwrap();
        };
        whiteout("etc/passwd");
        whiteout("usr/lib");
        let opaque = |path: &str, value: &[u8]| {
            let flags = rustix::fs::XattrFlags::empty();
            rustix::fs::setxattr(at(path), OPAQUE, value, flags).unwrap();
        };
        opaque("opt/tool", b"y");
        let image = Unmounted::below(&reader, upper.path()).unwrap();
        let found = |path: &str, content: &str| Some((path.to_owned(), content.to_owned()));
        for (path, expected) in [
            ("/etc/hosts", found("etc/hosts", "changed")),
            ("/etc/new", found("etc/new", "new")),
            ("/etc/passwd", None),
            // Also by way of a link, and through a link of the image to what is hidden.
            ("/link", None),
            ("/lib/a", None),
            ("/opt/tool", found("opt/tool", "directory")),
            ("/opt/tool/run", None),
            // Within the root, where nothing is.
            ("/outside", None),
        ] {
            assert_eq!(look(&image, path), expected, "{path}");
        }
        let problem = image.resolve(Path::new("/loop")).unwrap_err();
        assert_eq!(problem.raw_os_error(), Some(libc::ELOOP));
        assert_eq!(names(&image, "/etc"), ["hosts", "new"]);
        assert_eq!(names(&image, "/opt"), ["tool"]);
        assert!(names(&image, "/opt/tool").is_empty());
        // Marks that we do not know are not guessed at.
        opaque("opt/tool", b"x");
        assert!(image.resolve(Path::new("/opt/tool/run")).is_err());
    }
}
