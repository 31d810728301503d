//! A layer that is a directory of the host.
//!
//! A directory is opened one component after another, each relative to the one before and none followed if it is a link, so
//! nothing outside can be reached. The chain of open directories is kept for the next one, which in a walk is never far away.
//! The directory may change meanwhile: whatever is opened is looked at again before it is read.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, SeekFrom, Statx, StatxAttributes, StatxFlags, fgetxattr,
    flistxattr, openat, readlinkat, seek, statx,
};
use rustix::io::Errno;

use super::{Attributes, Found, LayerTree, Leaf, LeafKind, PackError};
use crate::squashfs::writer::{FileWriter, WriteError, Writer};
use crate::start_files;
use crate::tree::{ContentId, Xattrs};

/// Open directories that are kept, for each layer.
const MAX_OPEN: usize = 64;
/// Most bytes of the names or the value of extended attributes (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
const MAX_XATTR: usize = 64 << 10;

pub(super) struct HostTree<'a> {
    path: &'a Path,
    root: OwnedFd,
    /// Major and minor number of the root's device.
    device: (u32, u32),
    /// Names and directories from below the root down to the one that was entered last. Only the deepest [`MAX_OPEN`] are open.
    chain: Vec<(Box<[u8]>, Option<OwnedFd>)>,
    xattrs: XattrReader,
}

impl<'a> HostTree<'a> {
    pub(super) fn open(path: &'a Path) -> Result<Self, PackError> {
        let error = |error: io::Error| PackError::Open {
            path: path.to_owned(),
            source: error,
        };
        let root: OwnedFd = File::open(path).map_err(error)?.into();
        let status = look(root.as_fd(), b"").map_err(error)?;
        if file_type(&status) != FileType::Directory {
            return Err(error(io::ErrorKind::NotADirectory.into()));
        }
        Ok(Self {
            path,
            root,
            device: (status.stx_dev_major, status.stx_dev_minor),
            chain: Vec::new(),
            xattrs: XattrReader::default(),
        })
    }

    /// The directory that was entered last.
    fn current(&self) -> BorrowedFd<'_> {
        let deepest = self.chain.last().and_then(|(_, open)| open.as_ref());
        deepest.unwrap_or(&self.root).as_fd()
    }

    fn open_path(&mut self, path: &[u8]) -> io::Result<()> {
        let names: Vec<&[u8]> = match path {
            [] => Vec::new(),
            path => path.split(|byte| *byte == b'/').collect(),
        };
        let common = (self.chain.iter().zip(&names))
            .take_while(|((open, _), name)| **open == ***name)
            .count();
        self.chain.truncate(common);
        // Those above the deepest open one need not be open again.
        let open = self.chain.iter().rposition(|(_, open)| open.is_some());
        let first = open.map_or(0, |position| position + 1);
        for (depth, name) in names.iter().enumerate().skip(first) {
            let parent = match depth.checked_sub(1) {
                Some(above) => self.chain[above].1.as_ref().unwrap_or(&self.root),
                None => &self.root,
            };
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let directory = openat(parent, *name, flags, Mode::empty())?;
            match self.chain.get_mut(depth) {
                Some((_, open)) => *open = Some(directory),
                None => self.chain.push(((*name).into(), Some(directory))),
            }
            if let Some(above) = depth.checked_sub(MAX_OPEN) {
                self.chain[above].1 = None;
            }
        }
        Ok(())
    }

    fn shown(&self, path: &[u8]) -> PathBuf {
        match path {
            [] => self.path.to_owned(),
            path => self.path.join(OsStr::from_bytes(path)),
        }
    }

    fn error(
        &self,
        operation: &'static str,
        path: &[u8],
        source: impl Into<io::Error>,
    ) -> PackError {
        PackError::Read {
            operation,
            path: self.shown(path),
            source: source.into(),
        }
    }

    fn classify(&self, status: &Statx) -> Found {
        let is_directory = file_type(status) == FileType::Directory;
        let known = StatxAttributes::MOUNT_ROOT;
        let is_mount = if status.stx_attributes_mask.contains(known) {
            status.stx_attributes.contains(known)
        } else {
            // Before Linux 5.8. Files say nothing: on an overlay they have the device numbers of lower layers.
            is_directory && (status.stx_dev_major, status.stx_dev_minor) != self.device
        };
        let kind = match file_type(status) {
            _ if is_mount => return Found::Mount(is_directory),
            FileType::Directory => return Found::Directory(0),
            FileType::RegularFile => LeafKind::File,
            FileType::Symlink => LeafKind::Symlink,
            FileType::Fifo => LeafKind::Fifo,
            FileType::Socket => LeafKind::Socket,
            FileType::CharacterDevice
                if (status.stx_rdev_major, status.stx_rdev_minor) == (0, 0) =>
            {
                return Found::Whiteout;
            }
            _ => return Found::Device,
        };
        let device = u64::from(status.stx_dev_major) << 32 | u64::from(status.stx_dev_minor);
        Found::Leaf(Leaf {
            kind,
            mode: status.stx_mode & 0o7777,
            mtime: mtime(status),
            identity: (status.stx_nlink > 1).then_some((device, status.stx_ino)),
            handle: status.stx_ino,
        })
    }
}

/// Reads extended attributes, with buffers as large as they can be.
#[derive(Default)]
struct XattrReader {
    names: Vec<u8>,
    value: Vec<u8>,
}

impl XattrReader {
    /// The attributes of an open file or directory. A file system without any has none.
    fn read(&mut self, file: BorrowedFd<'_>) -> rustix::io::Result<Xattrs> {
        self.names.resize(MAX_XATTR, 0);
        let size = match flistxattr(file, self.names.as_mut_slice()) {
            Err(Errno::NOTSUP) => 0,
            size => size?,
        };
        let mut xattrs = Xattrs::new();
        for name in self.names[..size].split(|byte| *byte == 0) {
            if name.is_empty() {
                continue;
            }
            self.value.resize(MAX_XATTR, 0);
            match fgetxattr(file, name, self.value.as_mut_slice()) {
                Ok(size) => {
                    xattrs.insert(name.into(), self.value[..size].into());
                }
                // Removed meanwhile, or not for us to see.
                Err(Errno::NODATA | Errno::NOTSUP | Errno::PERM | Errno::ACCESS) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(xattrs)
    }
}

impl LayerTree for HostTree<'_> {
    fn enter(&mut self, _: u64, path: &[u8]) -> Result<Attributes, PackError> {
        self.open_path(path)
            .map_err(|error| self.error("open", path, error))?;
        let status =
            look(self.current(), b"").map_err(|error| self.error("examine", path, error))?;
        let mut reader = std::mem::take(&mut self.xattrs);
        let xattrs = reader
            .read(self.current())
            .map_err(|error| self.error("read the attributes of", path, error))?;
        self.xattrs = reader;
        Ok(Attributes {
            mode: status.stx_mode & 0o7777,
            mtime: mtime(&status),
            xattrs,
        })
    }

    fn list(&mut self, path: &[u8], found: &mut dyn FnMut(&[u8], Found)) -> Result<(), PackError> {
        let directory = rustix::fs::Dir::read_from(self.current())
            .map_err(|error| self.error("list", path, error))?;
        for entry in directory {
            let entry = entry.map_err(|error| self.error("list", path, error))?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            let status = match look(self.current(), name) {
                Ok(status) => status,
                // Removed meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => {
                    return Err(self.error("examine", &super::join(path, name), error));
                }
            };
            found(name, self.classify(&status));
        }
        Ok(())
    }

    fn file(
        &mut self,
        leaf: &Leaf,
        path: &[u8],
        writer: &mut Writer,
    ) -> Result<(ContentId, Xattrs), PackError> {
        // Should it have become a pipe, opening must not wait.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = openat(self.current(), base(path), flags, Mode::empty())
            .map(File::from)
            .map_err(|error| self.error("open", path, error))?;
        let status = look(file.as_fd(), b"").map_err(|error| self.error("examine", path, error))?;
        if file_type(&status) != FileType::RegularFile || status.stx_ino != leaf.handle {
            return Err(PackError::Changed {
                path: self.shown(path),
            });
        }
        let xattrs = (self.xattrs)
            .read(file.as_fd())
            .map_err(|error| self.error("read the attributes of", path, error))?;
        match copy(&file, &status, path, writer) {
            Ok(content) => Ok((content, xattrs)),
            Err(WriteError::Read(error)) => Err(self.error("read", path, error)),
            Err(WriteError::ContentShort { .. }) => Err(PackError::Changed {
                path: self.shown(path),
            }),
            Err(source) => Err(PackError::Write {
                path: self.shown(path),
                source,
            }),
        }
    }

    fn target(&mut self, _: &Leaf, path: &[u8]) -> Result<Vec<u8>, PackError> {
        readlinkat(self.current(), base(path), Vec::new())
            .map(CString::into_bytes)
            .map_err(|error| self.error("read the link", path, error))
    }
}

/// Copies the content of a file.
fn copy(
    file: &File,
    status: &Statx,
    path: &[u8],
    writer: &mut Writer,
) -> Result<ContentId, WriteError> {
    let size = status.stx_size;
    if size <= start_files::MAX_SIZE && start_files::contain(path) {
        let mut content = Vec::new();
        // What grows meanwhile is cut off.
        file.take(size)
            .read_to_end(&mut content)
            .map_err(WriteError::Read)?;
        return writer.hold_file(content);
    }
    let mut content = writer.begin_file(size)?;
    if status.stx_blocks.saturating_mul(512) < size {
        copy_data(file, size, &mut content)?;
    } else {
        content.read_from_file(file, 0, size)?;
    }
    content.finish()
}

/// Copies the parts of a file that are no holes.
fn copy_data(file: &File, size: u64, content: &mut FileWriter<'_>) -> Result<(), WriteError> {
    let read_error = |error: Errno| WriteError::Read(error.into());
    let mut position = 0;
    while position < size {
        let data = match seek(file, SeekFrom::Data(position)) {
            Ok(data) => data.clamp(position, size),
            // A hole to the end.
            Err(Errno::NXIO) => size,
            // A file system that does not know its holes.
            Err(Errno::INVAL) => position,
            Err(error) => return Err(read_error(error)),
        };
        content.write_hole(data - position)?;
        if data == size {
            break;
        }
        let end = match seek(file, SeekFrom::Hole(data)) {
            Ok(end) if end > data => end.min(size),
            Ok(_) | Err(Errno::INVAL | Errno::NXIO) => size,
            Err(error) => return Err(read_error(error)),
        };
        content.read_from_file(file, data, end - data)?;
        position = end;
    }
    Ok(())
}

/// What `name` in a directory is, or the directory itself if `name` is empty.
fn look(directory: BorrowedFd<'_>, name: &[u8]) -> io::Result<Statx> {
    let mut flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    if name.is_empty() {
        flags |= AtFlags::EMPTY_PATH;
    }
    Ok(statx(directory, name, flags, StatxFlags::BASIC_STATS)?)
}

fn file_type(status: &Statx) -> FileType {
    FileType::from_raw_mode(status.stx_mode.into())
}

/// Seconds as far as squashfs can store them.
fn mtime(status: &Statx) -> u32 {
    let seconds = status.stx_mtime.tv_sec.clamp(0, u32::MAX.into());
    // Clamped to what fits.
    seconds as u32
}

fn base(path: &[u8]) -> &[u8] {
    path.rsplit(|byte| *byte == b'/').next().unwrap_or(path)
}
