//! Paths below the root file system of a container.
//!
//! Images are hostile: `/etc` may be a symbolic link to the host's, or to itself. Everything that is opened or created in a root
//! file system goes through [`Rootfs`], which resolves paths as the container will: openat2(2) with `RESOLVE_IN_ROOT`, where an
//! absolute link and `..` end at the container's root, and no magic link of `/proc` is followed. The kernel holds that even while
//! another process moves directories about.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Symbolic links followed in one resolution before it is called a loop, as the kernel does (`MAXSYMLINKS`).
pub(super) const MAX_LINKS: usize = 40;

/// Resolutions that the kernel asks to be repeated (EAGAIN, when something was renamed meanwhile) before that becomes an error.
const MAX_RETRIES: usize = 32;

/// A root file system: the directory that absolute paths start from.
#[derive(Debug)]
pub struct Rootfs {
    root: OwnedFd,
}

/// What [`Rootfs::create`] makes where nothing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Create {
    /// A directory, mode 0755.
    Directory,
    /// An empty file, mode 0644.
    File,
    /// An empty directory to mount on, mode 0, by which `export` knows it.
    MountDirectory,
    /// An empty file to mount on, mode 0, by which `export` knows it.
    MountFile,
}

impl Create {
    fn is_file(self) -> bool {
        matches!(self, Self::File | Self::MountFile)
    }

    fn mode(self) -> Mode {
        Mode::from_raw_mode(match self {
            Self::Directory => 0o755,
            Self::File => 0o644,
            Self::MountDirectory | Self::MountFile => 0,
        })
    }
}

impl Rootfs {
    /// The file system below a directory.
    #[must_use]
    pub fn new(root: OwnedFd) -> Self {
        Self { root }
    }

    /// The file system below a directory of the host.
    ///
    /// # Errors
    ///
    /// Those of open(2).
    pub fn open_at(directory: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self::new(rustix::fs::open(
            directory,
            flags,
            Mode::empty(),
        )?))
    }

    /// The root directory.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Opens a path, following symbolic links within the root.
    ///
    /// # Errors
    ///
    /// Those of openat2(2); ELOOP for a loop of links or a magic link.
    pub fn open(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        self.open_resolving(path, flags, ResolveFlags::empty())
    }

    fn open_resolving(
        &self,
        path: &Path,
        flags: OFlags,
        resolve: ResolveFlags,
    ) -> io::Result<OwnedFd> {
        // An empty path would be ENOENT: the root itself is ".".
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        for _ in 0..MAX_RETRIES {
            match rustix::fs::openat2(
                &self.root,
                path,
                flags | OFlags::CLOEXEC,
                Mode::empty(),
                resolve | ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
            ) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                result => return Ok(result?),
            }
        }
        Err(Errno::AGAIN.into())
    }

    /// Whether a path leads to something, and to what.
    #[must_use]
    pub fn file_type(&self, path: &Path) -> Option<FileType> {
        let file = self.open(path, OFlags::PATH).ok()?;
        let status = rustix::fs::fstat(&file).ok()?;
        Some(FileType::from_raw_mode(status.st_mode))
    }

    /// Size of the regular file that a path leads to, in bytes; None where there is none.
    #[must_use]
    pub fn file_size(&self, path: &Path) -> Option<u64> {
        let file = self.open(path, OFlags::PATH).ok()?;
        let status = rustix::fs::fstat(&file).ok()?;
        (FileType::from_raw_mode(status.st_mode) == FileType::RegularFile)
            .then(|| u64::try_from(status.st_size).unwrap_or(0))
    }

    /// Whether a path leads to a file that its owner may execute.
    #[must_use]
    pub fn is_executable(&self, path: &Path) -> bool {
        self.open(path, OFlags::PATH)
            .and_then(|file| Ok(rustix::fs::fstat(&file)?))
            .is_ok_and(|status| {
                FileType::from_raw_mode(status.st_mode) == FileType::RegularFile
                    && status.st_mode & 0o111 != 0
            })
    }

    /// Reads a regular file of at most `limit` bytes; None where there is none.
    ///
    /// # Errors
    ///
    /// Those of openat2(2) and read(2); EFBIG for a longer file.
    pub fn read(&self, path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
        // Without NONBLOCK a named pipe in the image would stop us here for ever.
        let file = match self.open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY) {
            Ok(file) => std::fs::File::from(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Ok(None),
            Err(error) => return Err(error),
        };
        let status = rustix::fs::fstat(&file)?;
        if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
            return Ok(None);
        }
        let mut content = Vec::new();
        (&file).take(limit + 1).read_to_end(&mut content)?;
        if content.len() as u64 > limit {
            return Err(io::Error::from_raw_os_error(libc::EFBIG));
        }
        Ok(Some(content))
    }

    /// Opens a path (`O_PATH`), making it and the directories above it where they are missing.
    ///
    /// A symbolic link is followed within the root, also one whose target is missing: then the target is made.
    ///
    /// # Errors
    ///
    /// ELOOP for a loop, ENOTDIR for a path through a file, EROFS and others of mkdirat(2) and openat(2).
    pub fn create(&self, path: &Path, create: Create) -> io::Result<OwnedFd> {
        match self.open(path, OFlags::PATH) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => return result,
        }
        let resolved = self.make(path, create)?;
        self.open_resolving(&resolved, OFlags::PATH, ResolveFlags::NO_SYMLINKS)
    }

    /// Makes what is missing of a path; returns the path without symbolic links, relative to the root.
    fn make(&self, path: &Path, create: Create) -> io::Result<PathBuf> {
        let mut pending: VecDeque<OsString> = components(path);
        let mut resolved = PathBuf::new();
        let mut links = 0;
        while let Some(name) = pending.pop_front() {
            if name == ".." {
                resolved.pop();
                continue;
            }
            let last = pending.is_empty();
            let candidate = resolved.join(&name);
            let found = self.open_resolving(
                &candidate,
                OFlags::PATH | OFlags::NOFOLLOW,
                ResolveFlags::NO_SYMLINKS,
            );
            match found {
                Ok(file) => {
                    let status = rustix::fs::fstat(&file)?;
                    if FileType::from_raw_mode(status.st_mode) == FileType::Symlink {
                        links += 1;
                        if links > MAX_LINKS {
                            return Err(Errno::LOOP.into());
                        }
                        let target = rustix::fs::readlinkat(&file, c"", Vec::new())?;
                        let target = Path::new(OsStr::from_bytes(target.to_bytes()));
                        if target.is_absolute() {
                            resolved = PathBuf::new();
                        }
                        for component in components(target).into_iter().rev() {
                            pending.push_front(component);
                        }
                        continue;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    let parent = self.open_resolving(
                        &resolved,
                        OFlags::PATH | OFlags::DIRECTORY,
                        ResolveFlags::NO_SYMLINKS,
                    )?;
                    let made = if last && create.is_file() {
                        rustix::fs::openat(
                            &parent,
                            &name,
                            OFlags::WRONLY
                                | OFlags::CREATE
                                | OFlags::EXCL
                                | OFlags::NOFOLLOW
                                | OFlags::CLOEXEC,
                            create.mode(),
                        )
                        .map(drop)
                    } else {
                        // What is made on the way there is not mounted on.
                        let mode = if last {
                            create.mode()
                        } else {
                            Create::Directory.mode()
                        };
                        rustix::fs::mkdirat(&parent, &name, mode)
                    };
                    match made {
                        // Another start of the same container was quicker.
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                Err(error) => return Err(error),
            }
            resolved = candidate;
        }
        Ok(resolved)
    }

    /// Whether a path's last component is a symbolic link.
    #[must_use]
    pub fn is_link(&self, path: &Path) -> bool {
        self.last(path).is_ok_and(|(above, name)| {
            rustix::fs::statat(&above, name, AtFlags::SYMLINK_NOFOLLOW)
                .is_ok_and(|status| FileType::from_raw_mode(status.st_mode) == FileType::Symlink)
        })
    }

    /// Removes the symbolic link that a path's last component is.
    ///
    /// # Errors
    ///
    /// Those of openat2(2) and unlinkat(2).
    pub fn remove_link(&self, path: &Path) -> io::Result<()> {
        let (above, name) = self.last(path)?;
        Ok(rustix::fs::unlinkat(&above, name, AtFlags::empty())?)
    }

    /// Makes a symbolic link, in place of a file or link that is there, and the directories above it where they are missing.
    ///
    /// # Errors
    ///
    /// Those of [`Self::create`] and symlinkat(2); EBUSY for a mount point, EISDIR for a directory.
    pub fn symlink(&self, path: &Path, target: &Path) -> io::Result<()> {
        if let Some(above) = path.parent() {
            self.create(above, Create::Directory)?;
        }
        let (above, name) = self.last(path)?;
        match rustix::fs::symlinkat(target, &above, name) {
            Err(Errno::EXIST) => {
                let old = rustix::fs::readlinkat(&above, name, Vec::new());
                if old.is_ok_and(|old| old.to_bytes() == target.as_os_str().as_bytes()) {
                    return Ok(());
                }
                rustix::fs::unlinkat(&above, name, AtFlags::empty())?;
                Ok(rustix::fs::symlinkat(target, &above, name)?)
            }
            result => Ok(result?),
        }
    }

    /// The directory that a path's last component is in, and its name.
    fn last<'a>(&self, path: &'a Path) -> io::Result<(OwnedFd, &'a OsStr)> {
        match (path.parent(), path.file_name()) {
            (Some(above), Some(name)) => {
                let flags = OFlags::PATH | OFlags::DIRECTORY;
                Ok((self.open(above, flags)?, name))
            }
            _ => Err(Errno::INVAL.into()),
        }
    }

    /// Replaces the content of a file, making it where it is missing.
    ///
    /// # Errors
    ///
    /// Those of [`Self::create`], and of opening and writing.
    pub fn write(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        self.create(path, Create::File)?;
        let file = self.open(path, OFlags::WRONLY | OFlags::TRUNC | OFlags::NOCTTY)?;
        std::fs::File::from(file).write_all(content)
    }
}

/// The components of a path, `.` and the root dropped, `..` kept.
pub(super) fn components(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some(OsString::from("..")),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn rootfs(directory: &Path) -> Rootfs {
        Rootfs::new(
            rustix::fs::open(directory, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap(),
        )
    }

    /// What is where after a mount point was made through links of every kind: nothing outside the root.
    #[test]
    fn creates_within_the_root_whatever_the_links_say() {
        // (links to make: name, target), (path to create), (where it must be; None = an error)
        type Case = (
            &'static [(&'static str, &'static str)],
            &'static str,
            Option<&'static str>,
        );
        let cases: [Case; 10] = [
            (&[], "/a/b/c", Some("a/b/c")),
            (&[("etc", "/other")], "/etc/hosts", Some("other/hosts")),
            (&[("etc", "../../..")], "/etc/hosts", Some("hosts")),
            (&[("etc", "/outside/../etc2")], "etc/x", Some("etc2/x")),
            (&[("etc", "etc")], "/etc/hosts", None),
            (&[("a", "b"), ("b", "a")], "/a/x", None),
            (
                &[("run", "/var/run"), ("var", "sub")],
                "/run/x",
                Some("sub/run/x"),
            ),
            (&[("f", "deep/er/g")], "/f", Some("deep/er/g")),
            (
                &[("dev", "/proc/self/root/dev")],
                "/dev/null",
                Some("proc/self/root/dev/null"),
            ),
            (&[], "/../../x/../y/./z", Some("y/z")),
        ];
        for (links, path, expected) in cases {
            for create in [Create::File, Create::Directory] {
                let scratch = tempfile::tempdir().unwrap();
                let root = scratch.path().join("inner/root");
                std::fs::create_dir_all(&root).unwrap();
                for (name, target) in links {
                    symlink(target, root.join(name)).unwrap();
                }
                let result = rootfs(&root).create(Path::new(path), create);
                match expected {
                    Some(place) => {
                        result.unwrap_or_else(|error| panic!("{links:?} {path}: {error}"));
                        let found = std::fs::symlink_metadata(root.join(place))
                            .unwrap_or_else(|error| panic!("{links:?} {path}: {error}"));
                        assert_eq!(
                            found.is_dir(),
                            create == Create::Directory,
                            "{links:?} {path}"
                        );
                    }
                    None => assert_eq!(
                        result.unwrap_err().raw_os_error(),
                        Some(libc::ELOOP),
                        "{links:?} {path}"
                    ),
                }
                let outside: Vec<_> = std::fs::read_dir(scratch.path().join("inner"))
                    .unwrap()
                    .collect();
                assert_eq!(outside.len(), 1, "{links:?} {path} made something outside");
            }
        }
    }

    #[test]
    fn reads_regular_files_only_and_within_a_limit() {
        let scratch = tempfile::tempdir().unwrap();
        let root = rootfs(scratch.path());
        std::fs::write(scratch.path().join("file"), b"12345").unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            scratch.path().join("pipe"),
            FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        assert_eq!(root.read(Path::new("/file"), 5).unwrap().unwrap(), b"12345");
        assert_eq!(
            root.read(Path::new("/file"), 4).unwrap_err().raw_os_error(),
            Some(libc::EFBIG)
        );
        assert!(root.read(Path::new("/pipe"), 4).unwrap().is_none());
        assert!(root.read(Path::new("/file/x"), 4).unwrap().is_none());
        assert!(root.read(Path::new("/none"), 4).unwrap().is_none());
        assert!(root.read(Path::new("/"), 4).unwrap().is_none());
    }

    #[test]
    fn writes_through_a_link_without_target() {
        let scratch = tempfile::tempdir().unwrap();
        symlink("/run/resolv.conf", scratch.path().join("resolv.conf")).unwrap();
        rootfs(scratch.path())
            .write(Path::new("/resolv.conf"), b"x")
            .unwrap();
        assert_eq!(
            std::fs::read(scratch.path().join("run/resolv.conf")).unwrap(),
            b"x"
        );
    }
}
