//! The host as devices and drivers are looked for on it.
//!
//! All of it is below one root, which is `/` unless the setting `host_root` names another: a driver that is kept in a tree of its own, or a
//! tree that stands for another machine in a test. Paths are resolved within it, absolute links included. Files are read whole
//! and within bounds: some of them are small files of the kernel that have no size.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, Dir, FileType, Mode, OFlags};

use super::DeviceError;
use crate::container::rootfs::Rootfs;

/// Longest file that is read unless said otherwise, in bytes.
pub const MAX_FILE: u64 = 1 << 20;

/// Most names of a directory that are looked at.
const MAX_NAMES: usize = 65_536;

/// The host.
#[derive(Debug)]
pub struct Host {
    root: Option<PathBuf>,
    /// The root as the kernel names it.
    real_root: Option<PathBuf>,
    tree: Rootfs,
    /// Devices that a control group keeps back, which no file can stand for.
    #[cfg(test)]
    pub(super) kept_back: Vec<PathBuf>,
}

/// A device node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    /// Major and minor number; None for a file that stands for a device in a tree that is not the host's, where only root can make devices.
    pub numbers: Option<(u32, u32)>,
    /// Whether it is a block device.
    pub is_block: bool,
    /// Group that owns it.
    pub gid: u32,
    /// Permissions.
    pub mode: u32,
}

/// Whether this process may open a device for reading and writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    /// It may.
    Granted,
    /// The control group of the job does not have the device.
    NotOfThisJob,
    /// The permissions of the node do not allow it.
    Forbidden,
}

impl Host {
    /// The host below a root; None for all of it. To be opened again in a new mount namespace.
    ///
    /// # Errors
    ///
    /// The root cannot be opened.
    pub fn open(root: Option<&Path>) -> Result<Self, DeviceError> {
        let path = root.unwrap_or(Path::new("/"));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let tree =
            rustix::fs::open(path, flags, Mode::empty()).map_err(|error| DeviceError::Read {
                path: path.to_owned(),
                source: error.into(),
            })?;
        let real_root = root.map(|root| root.canonicalize().unwrap_or_else(|_| root.to_owned()));
        Ok(Self {
            root: root.map(Path::to_owned),
            real_root,
            tree: Rootfs::new(tree),
            #[cfg(test)]
            kept_back: Vec::new(),
        })
    }

    /// Whether this is all of the host, and not a tree.
    #[must_use]
    pub fn is_real(&self) -> bool {
        self.root.is_none()
    }

    /// Whether a path leads to something.
    #[must_use]
    pub fn exists(&self, path: impl AsRef<Path>) -> bool {
        self.source(path.as_ref()).is_ok()
    }

    /// What a path leads to.
    #[must_use]
    pub fn file_type(&self, path: impl AsRef<Path>) -> Option<FileType> {
        self.tree.file_type(path.as_ref())
    }

    /// A path, open for use as the source of a mount (`O_PATH`).
    ///
    /// # Errors
    ///
    /// Those of openat2(2).
    pub fn source(&self, path: &Path) -> io::Result<OwnedFd> {
        self.tree.open(path, OFlags::PATH)
    }

    /// Opens a regular file for reading.
    ///
    /// # Errors
    ///
    /// Those of openat2(2); EINVAL for what is no regular file.
    pub fn open_file(&self, path: &Path) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = File::from(self.tree.open(path, flags)?);
        match file.metadata()?.is_file() {
            true => Ok(file),
            false => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        }
    }

    /// Reads a regular file of at most `limit` bytes.
    ///
    /// # Errors
    ///
    /// Those of openat2(2) and read(2); EFBIG for a longer file.
    pub fn read(&self, path: impl AsRef<Path>, limit: u64) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        self.open_file(path.as_ref())?
            .take(limit + 1)
            .read_to_end(&mut content)?;
        if content.len() as u64 > limit {
            return Err(io::Error::from_raw_os_error(libc::EFBIG));
        }
        Ok(content)
    }

    /// Reads a small text, bytes that are no UTF-8 being replaced; None where there is none.
    #[must_use]
    pub fn text(&self, path: impl AsRef<Path>) -> Option<String> {
        let content = self.read(path, MAX_FILE).ok()?;
        Some(String::from_utf8_lossy(&content).into_owned())
    }

    /// The names in a directory, sorted; none where it cannot be read.
    #[must_use]
    pub fn names(&self, path: impl AsRef<Path>) -> Vec<OsString> {
        self.entries(path).unwrap_or_default()
    }

    /// The same, with the reason why a directory cannot be read.
    ///
    /// # Errors
    ///
    /// Those of openat2(2) and getdents(2).
    pub fn entries(&self, path: impl AsRef<Path>) -> io::Result<Vec<OsString>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let directory = self.tree.open(path.as_ref(), flags)?;
        let mut names = Vec::new();
        for entry in Dir::new(directory)?.take(MAX_NAMES) {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(OsStr::from_bytes(name).to_owned());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// The names in a directory that are a prefix and a number, such as `nvidia0`, with the numbers, in their order.
    #[must_use]
    pub fn numbered(&self, path: impl AsRef<Path>, prefix: &str) -> Vec<(u32, String)> {
        let mut found: Vec<(u32, String)> = self
            .names(path)
            .into_iter()
            .filter_map(|name| {
                let name = name.into_string().ok()?;
                let number = name.strip_prefix(prefix)?;
                let is_number = number.bytes().all(|byte| byte.is_ascii_digit());
                Some((number.parse().ok().filter(|_| is_number)?, name))
            })
            .collect();
        found.sort_unstable();
        found
    }

    /// The path that a path leads to, without symbolic links, as the host has it.
    ///
    /// # Errors
    ///
    /// Those of openat2(2) and readlink(2).
    pub fn canonical(&self, path: &Path) -> io::Result<PathBuf> {
        let file = self.source(path)?;
        let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        let real = std::fs::read_link(link)?;
        match &self.real_root {
            None => Ok(real),
            Some(root) => {
                let below = real.strip_prefix(root).map_err(io::Error::other)?;
                Ok(Path::new("/").join(below))
            }
        }
    }

    /// Where a path is for programs that know nothing of the root.
    #[must_use]
    pub fn outside(&self, path: &Path) -> PathBuf {
        match &self.root {
            None => path.to_owned(),
            Some(root) => root.join(path.strip_prefix("/").unwrap_or(path)),
        }
    }

    /// What a symbolic link says.
    ///
    /// # Errors
    ///
    /// Those of openat2(2) and readlinkat(2).
    pub fn link(&self, path: &Path) -> io::Result<PathBuf> {
        let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        };
        let above = self.tree.open(above, OFlags::PATH | OFlags::DIRECTORY)?;
        let target = rustix::fs::readlinkat(above, name, Vec::new())?;
        Ok(Path::new(OsStr::from_bytes(target.to_bytes())).to_owned())
    }

    /// The device node at a path; None where there is none.
    #[must_use]
    pub fn node(&self, path: impl AsRef<Path>) -> Option<Node> {
        let file = self.source(path.as_ref()).ok()?;
        let status = rustix::fs::fstat(&file).ok()?;
        let node = |numbers, is_block| {
            Some(Node {
                numbers,
                is_block,
                gid: status.st_gid,
                mode: status.st_mode & 0o7777,
            })
        };
        let numbers = Some((
            rustix::fs::major(status.st_rdev),
            rustix::fs::minor(status.st_rdev),
        ));
        match FileType::from_raw_mode(status.st_mode) {
            FileType::CharacterDevice => node(numbers, false),
            FileType::BlockDevice => node(numbers, true),
            FileType::RegularFile if !self.is_real() => node(None, false),
            _ => None,
        }
    }

    /// Whether a device may be opened for reading and writing. access(2) asks the control group of devices as open(2) does, and does not wake the device.
    #[must_use]
    pub fn permission(&self, path: impl AsRef<Path>) -> Permission {
        self.access(path.as_ref(), Access::READ_OK | Access::WRITE_OK)
    }

    /// Whether a device may be opened for reading; [`Permission::Forbidden`] also where there is none.
    #[must_use]
    pub fn may_read(&self, path: impl AsRef<Path>) -> Permission {
        self.access(path.as_ref(), Access::READ_OK)
    }

    fn access(&self, path: &Path, access: Access) -> Permission {
        #[cfg(test)]
        if self.kept_back.iter().any(|kept_back| kept_back == path) {
            return Permission::NotOfThisJob;
        }
        let Ok(file) = self.source(path) else {
            return Permission::Forbidden;
        };
        let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        match rustix::fs::accessat(rustix::fs::CWD, link, access, AtFlags::EACCESS) {
            Ok(()) => Permission::Granted,
            // Permissions of files say EACCES; only the control group says EPERM.
            Err(rustix::io::Errno::PERM) => Permission::NotOfThisJob,
            Err(_) => Permission::Forbidden,
        }
    }
}
