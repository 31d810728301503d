//! Finished images.
//!
//! An image is used only if it is what its record says: a record that can be read, a file of the size that it names, a superblock that this
//! file is long enough for. Anything else (a file cut by a power loss, or by a full disk behind a network) counts as missing, and who
//! gets the lease removes it and makes the image again.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::lease::Lease;
use super::{Claim, ImageRecord, Store, StoreError, Watch, image_stem, verify};
use crate::cancel::Cancel;
use crate::digest::Digest;
use crate::output::{Output, OutputError};
use crate::squashfs::reader::Reader;

impl Store {
    /// The path of a finished image made from a manifest with certain options, in a shared store or this one; None when there is none, or none
    /// that is whole.
    ///
    /// # Errors
    ///
    /// [`StoreError::Read`] when it is there but cannot be opened.
    pub fn image(
        &self,
        manifest: &Digest,
        options: &Digest,
    ) -> Result<Option<PathBuf>, StoreError> {
        let stem = image_stem(manifest, options);
        if let Some(path) = self.shared.iter().find_map(|shared| shared.image(&stem)) {
            return Ok(Some(path));
        }
        let path = self.images.join(format!("{stem}.sqsh"));
        let Some(file) = open(&path)? else {
            return Ok(None);
        };
        let Ok(Some(record)) = ImageRecord::read(&self.images.join(format!("{stem}.json"))) else {
            return Ok(None);
        };
        Ok(is_whole(file, &record).then_some(path))
    }

    /// What is recorded about a finished image; None when there is no such image.
    ///
    /// # Errors
    ///
    /// When the record is there but cannot be read.
    pub fn image_record(
        &self,
        manifest: &Digest,
        options: &Digest,
    ) -> Result<Option<ImageRecord>, StoreError> {
        let stem = image_stem(manifest, options);
        ImageRecord::read(&self.images.join(format!("{stem}.json")))
    }

    /// Claims an image made from a manifest; `options` is the digest of all that changes the result.
    ///
    /// # Errors
    ///
    /// [`StoreError::Read`], [`StoreError::Lease`], [`StoreError::Output`].
    pub fn claim_image(
        &self,
        manifest: &Digest,
        options: &Digest,
        watch: &mut Watch,
    ) -> Result<Claim<PathBuf, PendingImage>, StoreError> {
        let stem = image_stem(manifest, options);
        if let Some(path) = self.image(manifest, options)? {
            self.tidy(&self.images, &stem, watch);
            return Ok(Claim::Ready(path));
        }
        let lease = match self.lease(&self.images, &stem, 0, watch, &|_| Ok(()))? {
            Claim::Busy(holder) => return Ok(Claim::Busy(holder)),
            Claim::Mine(lease) => lease,
            Claim::Ready(never) => match never {},
        };
        // Between the look and the lease another may have finished.
        if let Some(path) = self.image(manifest, options)? {
            return Ok(Claim::Ready(path));
        }
        let path = self.images.join(format!("{stem}.sqsh"));
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(StoreError::Write { path, source });
            }
            _ => {}
        }
        let output = Output::create(&path, false)?;
        self.open_to_readers(output.file())
            .map_err(|source| StoreError::Write { path, source })?;
        Ok(Claim::Mine(PendingImage {
            output,
            record: self.images.join(format!("{stem}.json")),
            mode: self.mode,
            lease,
        }))
    }
}

pub(super) fn open(path: &Path) -> Result<Option<File>, StoreError> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => Ok(Some(File::from(file))),
        Err(Errno::NOENT | Errno::STALE) => Ok(None),
        Err(errno) => Err(StoreError::Read {
            path: path.to_owned(),
            source: errno.into(),
        }),
    }
}

/// Whether an image has the size that its record and its superblock say.
pub(super) fn is_whole(file: File, record: &ImageRecord) -> bool {
    file.metadata()
        .is_ok_and(|metadata| metadata.is_file() && metadata.len() == record.size)
        && Reader::open(file, 0).is_ok()
}

/// An image that is being made. Dropping it leaves nothing behind.
#[derive(Debug)]
pub struct PendingImage {
    output: Output,
    record: PathBuf,
    /// Permission bits of the store.
    mode: u32,
    lease: Lease,
}

impl PendingImage {
    /// The file to write the image to.
    #[must_use]
    pub fn output(&self) -> &Output {
        &self.output
    }

    /// Tells those who wait how much is done, and of how much, in bytes. Cheap enough for every event of an import.
    pub fn advance(&self, done: u64, total: u64) {
        self.lease.set_total(total);
        // Who lost the lease may finish all the same: what appears first stays.
        self.lease.advance(done);
    }

    /// Syncs the image and puts it and its record, with the digest of the file, in the store; returns its path.
    ///
    /// When another process put the same image there first, that one stays: both have the same content.
    ///
    /// # Errors
    ///
    /// [`StoreError::Output`], [`StoreError::Write`].
    pub fn commit(self, record: ImageRecord) -> Result<PathBuf, StoreError> {
        let path = self.output.path().to_owned();
        let digest =
            digest_while_syncing(self.output.file()).map_err(|source| StoreError::Read {
                path: path.clone(),
                source,
            })?;
        let record = ImageRecord {
            digest: Some(digest.to_string()),
            ..record
        };
        record.write(&self.record, self.mode)?;
        // Given back at once: a process that dies while the disk works leaves no lease on what is there.
        let lease = self.lease;
        match self.output.commit_then(|| drop(lease)) {
            Ok(_) | Err(OutputError::Exists { .. }) => Ok(path),
            Err(error) => Err(error.into()),
        }
    }
}

/// Hashes a file that was just written, while the disk takes it: so it costs little time.
fn digest_while_syncing(file: &File) -> io::Result<Digest> {
    std::thread::scope(|scope| {
        // Only begins what the commit completes, where the result is looked at.
        let syncing = std::thread::Builder::new()
            .name("sync".to_owned())
            .spawn_scoped(scope, || file.sync_data());
        let never = Cancel::new();
        let digest =
            verify::hash(file, &never).unwrap_or_else(|_| Err(io::ErrorKind::Interrupted.into()));
        drop(syncing);
        digest
    })
}
