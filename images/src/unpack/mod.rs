//! An image becomes a directory.
//!
//! The fallback for kernels and file systems on which an image cannot be mounted, and `cista create --unpack`.
//!
//! One thread walks the directories and creates them; workers create the files, a batch of one directory at a time, large files
//! in ranges so that one of them keeps all processors busy. Hard links are made when all files exist, and the modes and times of directories
//! are set last, deepest first, since creating a file changes its directory's time.
//!
//! Every name is used relative to an open directory and never followed, so nothing in an image leads out of the destination.
//! No privileges are needed: everything belongs to the caller, device nodes are left out.

mod directory;
mod file;
mod remove;

mod walk;

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crossbeam_channel::Receiver;

use crate::cancel::{Cancel, Cancelled};
use crate::squashfs::reader::{ReadError, Reader};

use file::Job;
pub use remove::{RemoveError, remove_tree};

/// Jobs that may wait. Each keeps its directory open, so this bounds the file descriptors.
const QUEUE: usize = 64;
/// Deepest directory. A path of `PATH_MAX` bytes (4096) has no more components, and directories are opened by their chain of
/// names, which without a limit would take time quadratic in the depth.
const MAX_DEPTH: usize = 2048;

/// What was unpacked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Regular files, a file with several links counted once.
    pub files: u64,
    /// Directories, with the root.
    pub directories: u64,
    /// Bytes written to files, without holes.
    pub bytes: u64,
    /// Device nodes that were left out.
    pub devices: u64,
    /// Extended attributes that the file system or the kernel refused.
    pub refused_xattrs: u64,
}

/// Why an image could not be unpacked. Paths are relative to the image's root unless said otherwise.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The image cannot be read.
    #[error("cannot read `{path}` of the image", path = path.display())]
    Read {
        /// The inode that was read.
        path: PathBuf,
        /// What is wrong with the image.
        #[source]
        source: ReadError,
    },
    /// The directory to unpack to cannot be made; the path is the host's.
    #[error("cannot create the directory `{path}`", path = path.display())]
    Destination {
        /// The destination.
        path: PathBuf,
        /// The refusal.
        #[source]
        source: io::Error,
    },
    /// The operating system refused something below the destination.
    #[error("cannot {operation} `{path}`", path = path.display())]
    Write {
        /// What was tried.
        operation: &'static str,
        /// On which path.
        path: PathBuf,
        /// The refusal.
        #[source]
        source: io::Error,
    },
    /// A directory is its own descendant, or is the child of two directories.
    #[error("the image is corrupt: the directory `{path}` is in more than one place", path = path.display())]
    DirectoryTwice {
        /// The second place.
        path: PathBuf,
    },
    /// Directories nest deeper than any path reaches.
    #[error("directories nest deeper than {MAX_DEPTH} levels at `{path}`", path = path.display())]
    TooDeep {
        /// Name of the directory that is too deep.
        path: PathBuf,
    },
    /// The caller asked to stop.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// Unpacks an image with `threads` workers to `destination`, which must not exist.
///
/// After an error the destination holds an incomplete tree; [`remove_tree`] removes it.
pub fn unpack(
    reader: &Reader,
    destination: &Path,
    threads: usize,
    cancel: &Cancel,
) -> Result<Summary, UnpackError> {
    let refused = |source: io::Error| UnpackError::Destination {
        path: destination.to_owned(),
        source,
    };
    fs::create_dir(destination).map_err(refused)?;
    let root: OwnedFd = fs::File::open(destination).map_err(refused)?.into();
    let shared = Shared {
        reader,
        cancel,
        counts: Counts::default(),
        failed: AtomicBool::new(false),
        failure: Mutex::default(),
    };
    let (sender, receiver) = crossbeam_channel::bounded(QUEUE);
    let walked = std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            let receiver = receiver.clone();
            let shared = &shared;
            scope.spawn(move || shared.work(&receiver));
        }
        // The sender is dropped with the walk: workers end when the queue is empty.
        walk::walk(&shared, root, sender)
    });
    // A failed worker also stops the walk, and its own error is the one that tells why.
    if let Some(failure) = shared
        .failure
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)
    {
        return Err(failure);
    }
    let tree = walked?;
    tree.finish(reader, &shared.counts, cancel)?;
    let count = |counter: AtomicU64| counter.into_inner();
    Ok(Summary {
        files: count(shared.counts.files),
        directories: tree.directories() as u64,
        bytes: count(shared.counts.bytes),
        devices: count(shared.counts.devices),
        refused_xattrs: count(shared.counts.refused_xattrs),
    })
}

/// What walker and workers share.
struct Shared<'a> {
    reader: &'a Reader,
    cancel: &'a Cancel,
    counts: Counts,
    failed: AtomicBool,
    failure: Mutex<Option<UnpackError>>,
}

#[derive(Default)]
struct Counts {
    files: AtomicU64,
    bytes: AtomicU64,
    devices: AtomicU64,
    refused_xattrs: AtomicU64,
}

impl Shared<'_> {
    /// Takes jobs until there are none. After a failure the rest is thrown away, so that the walker never waits.
    fn work(&self, jobs: &Receiver<Job>) {
        for job in jobs {
            if self.failed.load(Ordering::Relaxed) {
                continue;
            }
            if let Err(error) = job.run(self) {
                self.failed.store(true, Ordering::Relaxed);
                self.failure
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .get_or_insert(error);
            }
        }
    }
}
