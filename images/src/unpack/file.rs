//! What workers do: create files, links and pipes, and give them their attributes.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

use super::{Shared, UnpackError};
use crate::squashfs::reader::{Extent, FileMap, Inode, InodeKind, Piece, ReadError, Reader};

/// Blocks of one part of a large file.
const PART: u64 = 32;

/// Something for a worker to do.
pub(super) enum Job {
    Batch(Batch),
    Part(Part),
}

impl Job {
    pub(super) fn run(self, shared: &Shared<'_>) -> Result<(), UnpackError> {
        match self {
            Self::Batch(batch) => batch.run(shared),
            Self::Part(part) => part.run(shared),
        }
    }
}

/// A failure whose path is not known yet.
pub(super) enum Failure {
    Read(ReadError),
    Write(&'static str, io::Error),
    Unpack(UnpackError),
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        Self::Read(error)
    }
}

impl From<UnpackError> for Failure {
    fn from(error: UnpackError) -> Self {
        Self::Unpack(error)
    }
}

impl Failure {
    pub(super) fn at(self, path: impl FnOnce() -> PathBuf) -> UnpackError {
        match self {
            Self::Read(source) => UnpackError::Read {
                path: path(),
                source,
            },
            Self::Write(operation, source) => UnpackError::Write {
                operation,
                path: path(),
                source,
            },
            Self::Unpack(error) => error,
        }
    }
}

fn write<E: Into<io::Error>>(operation: &'static str) -> impl FnOnce(E) -> Failure {
    move |source| Failure::Write(operation, source.into())
}

/// Small files, symbolic links, pipes and sockets of one directory.
pub(super) struct Batch {
    directory: Arc<OwnedFd>,
    path: Arc<Path>,
    entries: Vec<(Box<[u8]>, Inode)>,
}

impl Batch {
    pub(super) fn new(directory: Arc<OwnedFd>, path: Arc<Path>) -> Self {
        Self {
            directory,
            path,
            entries: Vec::new(),
        }
    }

    pub(super) fn push(&mut self, name: Box<[u8]>, inode: Inode) {
        self.entries.push((name, inode));
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    fn run(self, shared: &Shared<'_>) -> Result<(), UnpackError> {
        for (name, inode) in &self.entries {
            shared.cancel.check()?;
            create(shared, &self.directory, name, inode)
                .map_err(|failure| failure.at(|| self.path.join(OsStr::from_bytes(name))))?;
        }
        Ok(())
    }
}

fn create(
    shared: &Shared<'_>,
    directory: &OwnedFd,
    name: &[u8],
    inode: &Inode,
) -> Result<(), Failure> {
    match inode.kind {
        InodeKind::File(_) => {
            let file = create_file(directory, name)?;
            let (mut end, mut written) = (0, 0);
            shared.reader.read_file_pieces(inode, |piece| {
                match piece {
                    Piece::Hole(length) => end += u64::from(length),
                    Piece::Data(data) => {
                        file.write_all_at(data, end).map_err(write("write"))?;
                        end += data.len() as u64;
                        written = end;
                    }
                }
                shared.cancel.check().map_err(UnpackError::from)?;
                Ok::<_, Failure>(())
            })?;
            if written < end {
                file.set_len(end).map_err(write("set the size of"))?;
            }
            finish_file(shared, inode, &file)
        }
        InodeKind::Symlink(_) => {
            let target = shared.reader.readlink(inode)?;
            rustix::fs::symlinkat(target, directory, name)
                .map_err(write("create the symbolic link"))?;
            // A nicety. Some file systems would set that of the file which the link leads to, and say that there is none.
            let _ =
                rustix::fs::utimensat(directory, name, &times(inode), AtFlags::SYMLINK_NOFOLLOW);
            Ok(())
        }
        InodeKind::Fifo | InodeKind::Socket => {
            let kind = if matches!(inode.kind, InodeKind::Fifo) {
                FileType::Fifo
            } else {
                FileType::Socket
            };
            rustix::fs::mknodat(directory, name, kind, Mode::RUSR | Mode::WUSR, 0)
                .map_err(write("create"))?;
            // Made a moment ago in a directory that only we may enter: it is no link.
            rustix::fs::chmodat(directory, name, mode(inode), AtFlags::empty())
                .map_err(write("set the mode of"))?;
            rustix::fs::utimensat(directory, name, &times(inode), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(write("set the time of"))
        }
        // The walk keeps these from batches.
        InodeKind::Directory(_) | InodeKind::BlockDevice(_) | InodeKind::CharacterDevice(_) => {
            Ok(())
        }
    }
}

/// Copies a file or a symbolic link, each named by its directory and its name in it, with its mode and time.
pub(super) fn copy(from: (BorrowedFd<'_>, &[u8]), to: (BorrowedFd<'_>, &[u8])) -> io::Result<()> {
    let status = rustix::fs::statat(from.0, from.1, AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(status.st_mode) == FileType::Symlink {
        let target = rustix::fs::readlinkat(from.0, from.1, Vec::new())?;
        return Ok(rustix::fs::symlinkat(target, to.0, to.1)?);
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut source = File::from(rustix::fs::openat(from.0, from.1, flags, Mode::empty())?);
    if !source.metadata()?.is_file() {
        return Err(Errno::OPNOTSUPP.into());
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    let mut copy = File::from(rustix::fs::openat(to.0, to.1, flags, mode)?);
    io::copy(&mut source, &mut copy)?;
    rustix::fs::fchmod(&copy, Mode::from_raw_mode(status.st_mode & 0o7777))?;
    copy.set_modified(source.metadata()?.modified()?)
}

fn create_file(directory: &OwnedFd, name: &[u8]) -> Result<File, Failure> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(directory, name, flags, Mode::RUSR | Mode::WUSR)
        .map(File::from)
        .map_err(write("create"))
}

fn finish_file(shared: &Shared<'_>, inode: &Inode, file: &File) -> Result<(), Failure> {
    let refused = set_attributes(shared.reader, inode, file.as_fd())?;
    let counts = &shared.counts;
    counts.refused_xattrs.fetch_add(refused, Ordering::Relaxed);
    counts.files.fetch_add(1, Ordering::Relaxed);
    if let InodeKind::File(content) = &inode.kind {
        let bytes = content.size.saturating_sub(content.sparse);
        counts.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
    Ok(())
}

/// Sets extended attributes, mode and time, in this order: attributes need write permission, and whatever changes the
/// inode changes its time. Returns how many attributes were refused, which is no failure: `security.*` needs
/// privileges, and not every file system has `user.*`.
pub(super) fn set_attributes(
    reader: &Reader,
    inode: &Inode,
    file: BorrowedFd<'_>,
) -> Result<u64, Failure> {
    let mut refused = 0;
    if inode.has_xattrs() {
        for (name, value) in reader.xattrs(inode)? {
            match rustix::fs::fsetxattr(file, &*name, &value, XattrFlags::empty()) {
                Ok(()) => {}
                Err(
                    Errno::PERM
                    | Errno::ACCESS
                    | Errno::NOTSUP
                    | Errno::INVAL
                    | Errno::NOSPC
                    | Errno::TOOBIG
                    | Errno::RANGE,
                ) => refused += 1,
                Err(error) => return Err(write("set an extended attribute of")(error)),
            }
        }
    }
    rustix::fs::fchmod(file, mode(inode)).map_err(write("set the mode of"))?;
    rustix::fs::futimens(file, &times(inode)).map_err(write("set the time of"))?;
    Ok(refused)
}

fn mode(inode: &Inode) -> Mode {
    Mode::from_raw_mode(u32::from(inode.mode))
}

fn times(inode: &Inode) -> Timestamps {
    let time = Timespec {
        tv_sec: i64::from(inode.mtime),
        tv_nsec: 0,
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

/// A file that several workers write at once.
pub(super) struct LargeFile {
    file: File,
    path: PathBuf,
    inode: Inode,
    map: FileMap,
    /// Parts that are not written yet; who writes the last one sets the attributes.
    missing: AtomicUsize,
}

/// Some blocks of a large file.
pub(super) struct Part {
    file: Arc<LargeFile>,
    blocks: Range<u64>,
}

impl LargeFile {
    /// Creates a file and cuts it into parts, if it is large enough for that.
    pub(super) fn begin(
        shared: &Shared<'_>,
        directory: &OwnedFd,
        directory_path: &Path,
        name: &[u8],
        inode: &Inode,
    ) -> Result<Option<impl Iterator<Item = Part> + use<>>, UnpackError> {
        let InodeKind::File(content) = &inode.kind else {
            return Ok(None);
        };
        if content.size < 2 * PART * u64::from(shared.reader.block_size()) {
            return Ok(None);
        }
        let path = directory_path.join(OsStr::from_bytes(name));
        let prepare = || {
            let file = create_file(directory, name)?;
            file.set_len(content.size)
                .map_err(write("set the size of"))?;
            Ok((file, shared.reader.file_map(inode)?))
        };
        let (file, map) = prepare().map_err(|failure: Failure| failure.at(|| path.clone()))?;
        let blocks = map.extent_count();
        let parts = blocks.div_ceil(PART);
        let file = Arc::new(Self {
            file,
            path,
            inode: inode.clone(),
            map,
            missing: AtomicUsize::new(usize::try_from(parts).unwrap_or(usize::MAX)),
        });
        Ok(Some((0..parts).map(move |part| Part {
            file: Arc::clone(&file),
            blocks: part * PART..((part + 1) * PART).min(blocks),
        })))
    }
}

impl Part {
    fn run(self, shared: &Shared<'_>) -> Result<(), UnpackError> {
        self.write(shared)
            .map_err(|failure| failure.at(|| self.file.path.clone()))
    }

    fn write(&self, shared: &Shared<'_>) -> Result<(), Failure> {
        let LargeFile { file, map, .. } = &*self.file;
        let mut buffer = Vec::new();
        for index in self.blocks.clone() {
            shared.cancel.check().map_err(UnpackError::from)?;
            let offset = index * u64::from(map.block_size());
            match shared.reader.extent(map, index)? {
                Extent::Hole { .. } => continue,
                Extent::Block(block) => shared.reader.decode(&block, &mut buffer)?,
                Extent::Fragment { length, .. } => {
                    buffer.resize(length as usize, 0);
                    shared.reader.read_at(map, offset, &mut buffer)?;
                }
            }
            file.write_all_at(&buffer, offset).map_err(write("write"))?;
        }
        // Acquire and release: the attributes are set after every other part's writes.
        if self.file.missing.fetch_sub(1, Ordering::AcqRel) == 1 {
            finish_file(shared, &self.file.inode, file)?;
        }
        Ok(())
    }
}
