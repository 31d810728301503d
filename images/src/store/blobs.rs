//! Blobs, and what of them has arrived.
//!
//! A blob is received into `.<hex>.part`, which outlives its writer: whoever takes over, or comes back after an interruption, goes on where the
//! part ends. How much of a part is good stands in its lease while it is written (the parts of a blob may arrive in any order, and the
//! length of the file says nothing), and is all of it once the lease was given back. Nothing of it is believed: the digest of the whole
//! is checked before the blob appears.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use super::lease::{Lease, Seen};
use super::{Claim, Store, StoreError, Watch};
use crate::digest::Digest;
use crate::output::{self, Output};

/// Smallest part that is kept when its writer gives up, in bytes: less is fetched again sooner than it is found.
const WORTH_KEEPING: u64 = 1 << 20;

impl Store {
    /// Where a blob is, or would be.
    pub(crate) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.blobs.join(digest.hex())
    }

    fn part_file(&self, digest: &Digest) -> PathBuf {
        self.blobs.join(format!(".{}.part", digest.hex()))
    }

    /// A blob of this or a shared store; None when it is in none. Its content must be verified by whoever reads it.
    ///
    /// # Errors
    ///
    /// [`StoreError::Read`] when it is there but cannot be opened.
    pub fn blob(&self, digest: &Digest) -> Result<Option<File>, StoreError> {
        if let Some(file) = open(&self.blob_path(digest))? {
            return Ok(Some(file));
        }
        if self.is_distrusted(digest) {
            return Ok(None);
        }
        let shared = self.shared.iter();
        // What cannot be had there is fetched.
        Ok(shared
            .filter_map(|shared| open(&shared.blobs.join(digest.hex())).ok()?)
            .next())
    }

    /// The shared store that [`Self::blob`] takes a blob from; None where it is in the user's own or in none.
    #[must_use]
    pub fn shared_store_of(&self, digest: &Digest) -> Option<&Path> {
        if self.is_distrusted(digest) || self.blob_path(digest).exists() {
            return None;
        }
        let mut shared = self.shared.iter();
        let shared = shared.find(|shared| shared.blobs.join(digest.hex()).exists())?;
        Some(&shared.root)
    }

    fn is_distrusted(&self, digest: &Digest) -> bool {
        let damaged = self.damaged.lock();
        damaged
            .unwrap_or_else(PoisonError::into_inner)
            .contains(digest)
    }

    /// Removes a blob that turned out to be damaged. Those who have it open keep it. It is not taken from a shared store any more, where it
    /// cannot be removed.
    ///
    /// # Errors
    ///
    /// [`StoreError::Write`] when it is there but cannot be removed.
    pub fn discard_blob(&self, digest: &Digest) -> Result<(), StoreError> {
        let damaged = self.damaged.lock();
        damaged
            .unwrap_or_else(PoisonError::into_inner)
            .insert(*digest);
        remove(&self.blob_path(digest))
    }

    /// Begins a blob of `size` bytes for ourselves, whoever else may receive it.
    ///
    /// # Errors
    ///
    /// [`StoreError::Full`] when there is no room for it; [`StoreError::Output`]. Never because the blob exists, since whoever begins it
    /// found it missing or damaged.
    pub fn begin_blob(&self, digest: &Digest, size: u64) -> Result<PendingBlob, StoreError> {
        self.prepare();
        self.check_room(size)?;
        let path = self.blob_path(digest);
        let output = Output::create(&path, true)?;
        self.open_to_readers(output.file())
            .map_err(|source| StoreError::Write {
                path: path.clone(),
                source,
            })?;
        Ok(PendingBlob {
            path,
            place: Place::Private(output),
        })
    }

    /// Claims a blob of `size` bytes. One of another size in the store is damaged, and will be replaced.
    ///
    /// # Errors
    ///
    /// [`StoreError::Full`] when there is no room for it; [`StoreError::Read`], [`StoreError::Write`], [`StoreError::Lease`].
    pub fn claim_blob(
        &self,
        digest: &Digest,
        size: u64,
        watch: &mut Watch,
    ) -> Result<Claim<File, PendingBlob>, StoreError> {
        let stored = || -> Result<_, StoreError> {
            let file = self.blob(digest)?;
            let is_whole = |file: &File| file.metadata().is_ok_and(|found| found.len() == size);
            Ok(file.filter(is_whole))
        };
        if let Some(file) = stored()? {
            self.tidy(&self.blobs, &digest.hex(), watch);
            return Ok(Claim::Ready(file));
        }
        let part = self.part_file(digest);
        let on_death =
            |dead: &Seen| cut(&part, dead.record.as_ref().map_or(0, |record| record.done));
        let lease = match self.lease(&self.blobs, &digest.hex(), size, watch, &on_death)? {
            Claim::Busy(holder) => return Ok(Claim::Busy(holder)),
            Claim::Mine(lease) => lease,
            Claim::Ready(never) => match never {},
        };
        // Between the look and the lease another may have finished.
        if let Some(file) = stored()? {
            return Ok(Claim::Ready(file));
        }
        let failed = |source| StoreError::Write {
            path: part.clone(),
            source,
        };
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let mode = Mode::from_raw_mode(0o666);
        let file = rustix::fs::open(&part, flags, mode).map_err(|errno| failed(errno.into()))?;
        let file = File::from(file);
        self.open_to_readers(&file).map_err(failed)?;
        let mut resumed = file.metadata().map_err(failed)?.len();
        if resumed > size {
            file.set_len(0).map_err(failed)?;
            resumed = 0;
        }
        let part = Part {
            done: AtomicU64::new(resumed),
            path: part,
            file,
            lease,
            resumed,
            is_committed: false,
        };
        self.check_room(size - resumed)?;
        Ok(Claim::Mine(PendingBlob {
            path: self.blob_path(digest),
            place: Place::Shared(part),
        }))
    }

    /// Fails early where the file system has no room for what is to come.
    fn check_room(&self, needed: u64) -> Result<(), StoreError> {
        // Where the file system cannot tell, writing will.
        let Ok(free) = rustix::fs::statvfs(&self.blobs) else {
            return Ok(());
        };
        let available = free.f_bavail.saturating_mul(free.f_frsize);
        if needed > available {
            return Err(StoreError::Full {
                path: self.blobs.clone(),
                needed,
                available,
            });
        }
        Ok(())
    }
}

/// Opens a blob; None when there is none.
fn open(path: &Path) -> Result<Option<File>, StoreError> {
    let unreadable = |source| StoreError::Read {
        path: path.to_owned(),
        source,
    };
    // Links are not followed, and what is no file (a pipe, say) is not waited for.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT | Errno::STALE) => return Ok(None),
        Err(errno) => return Err(unreadable(errno.into())),
    };
    if !file.metadata().map_err(unreadable)?.is_file() {
        return Err(unreadable(io::Error::other("it is not a regular file")));
    }
    Ok(Some(file))
}

pub(super) fn remove(path: &Path) -> Result<(), StoreError> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(StoreError::Write {
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

/// Cuts off what of a part is not known to be good, and removes a part that is not worth keeping.
pub(super) fn cut(part: &Path, done: u64) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = match rustix::fs::open(part, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(errno.into()),
    };
    let length = file.metadata()?.len();
    if done.min(length) < WORTH_KEEPING {
        return match std::fs::remove_file(part) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
    }
    if length > done {
        file.set_len(done)?;
    }
    Ok(())
}

/// A blob that is being received. Dropping it keeps what has arrived for the next who wants it, if it is worth it.
#[derive(Debug)]
pub struct PendingBlob {
    path: PathBuf,
    place: Place,
}

#[derive(Debug)]
enum Place {
    /// A file that nobody else knows.
    Private(Output),
    Shared(Part),
}

/// A part that is ours.
#[derive(Debug)]
struct Part {
    path: PathBuf,
    file: File,
    lease: Lease,
    /// Bytes that a former writer left.
    resumed: u64,
    /// Bytes from the first on that are there.
    done: AtomicU64,
    is_committed: bool,
}

impl PendingBlob {
    /// Where the blob will be.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file to write to.
    #[must_use]
    pub fn file(&self) -> &File {
        match &self.place {
            Place::Private(output) => output.file(),
            Place::Shared(part) => &part.file,
        }
    }

    /// Another handle of the file, which stays readable after the commit.
    ///
    /// # Errors
    ///
    /// Fails when the process has no descriptor left.
    pub fn handle(&self) -> Result<File, StoreError> {
        self.file().try_clone().map_err(|source| StoreError::Read {
            path: self.path.clone(),
            source,
        })
    }

    /// How many bytes of the blob, from the first on, are in the file already. They must be verified with the rest.
    #[must_use]
    pub fn resumed(&self) -> u64 {
        match &self.place {
            Place::Private(_) => 0,
            Place::Shared(part) => part.resumed,
        }
    }

    /// Throws away what is in the file: it turned out to be wrong.
    ///
    /// # Errors
    ///
    /// [`StoreError::Write`].
    pub fn restart(&mut self) -> Result<(), StoreError> {
        self.file().set_len(0).map_err(|source| StoreError::Write {
            path: self.path.clone(),
            source,
        })?;
        if let Place::Shared(part) = &mut self.place {
            part.resumed = 0;
            *part.done.get_mut() = 0;
        }
        Ok(())
    }

    /// Tells those who wait how many bytes, from the first on, are in the file; it is also what they go on from if we die. Cheap enough for
    /// every write.
    ///
    /// # Errors
    ///
    /// [`StoreError::TakenOver`] when this process was taken for dead, and must not write on.
    pub fn advance(&self, bytes: u64) -> Result<(), StoreError> {
        match &self.place {
            Place::Shared(part) if !part.advance(bytes) => Err(StoreError::TakenOver {
                path: self.path.clone(),
            }),
            _ => Ok(()),
        }
    }

    /// Puts the blob in the store. The caller has verified its digest.
    ///
    /// # Errors
    ///
    /// [`StoreError::Output`], [`StoreError::Write`]; [`StoreError::TakenOver`] when this process was taken for dead, and has perhaps written
    /// to what is now another's file.
    pub fn commit(self) -> Result<(), StoreError> {
        match self.place {
            Place::Private(output) => {
                output.commit_unsynced()?;
                Ok(())
            }
            Place::Shared(part) => part.commit(&self.path),
        }
    }
}

impl Part {
    fn advance(&self, bytes: u64) -> bool {
        self.done.store(bytes, Ordering::Relaxed);
        self.lease.advance(bytes)
    }

    fn commit(mut self, path: &Path) -> Result<(), StoreError> {
        if !self.lease.confirm() {
            return Err(StoreError::TakenOver {
                path: path.to_owned(),
            });
        }
        match rustix::fs::rename(&self.path, path) {
            // On NFS the answer may be lost, and the repeated request fail.
            Err(errno) if !output::is_same_file(&self.file, CWD, path.as_os_str()) => {
                Err(StoreError::Write {
                    path: path.to_owned(),
                    source: errno.into(),
                })
            }
            _ => {
                self.is_committed = true;
                Ok(())
            }
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.is_committed && self.lease.confirm() {
            // While the lease is still ours; what stays is found by its size.
            let _ = cut(&self.path, *self.done.get_mut());
        }
    }
}
