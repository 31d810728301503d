//! Blobs and images by digest on disk.
//!
//! ```text
//! STORE/blobs/sha256/<hex>                               a blob as the registry sent it: layer, config, manifest, index
//! STORE/images/<manifest hex>-<options hex>.sqsh         a finished image: the manifest it was made from, the options it was made with
//! STORE/images/<manifest hex>-<options hex>.json         its [`ImageRecord`], written before the image appears
//! ```
//!
//! Everything appears whole or not at all ([`crate::output`]), and never changes afterwards, so readers take no lock and never wait.
//! The blobs directory has the form of an OCI image layout's.
//!
//! Images are synced to disk before they appear, since they are used unread. Blobs are not: a sync of each would stall an import on
//! the disk's write rate, and whoever opens a blob compares its size at once and its digest while reading. A blob that a power loss
//! damaged is found by that, and [`Store::discard_blob`] removes it.
//!
//! A `CACHEDIR.TAG` at the top tells backup programs that all of it can be fetched again (Cache Directory Tagging Specification).
//!
//! The time of last use is the file's access time, set explicitly whenever something is found, since mounts are `noatime` or `relatime`.

mod record;

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Once;

use rustix::fs::{Mode, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};
use rustix::io::Errno;

pub use record::ImageRecord;

use crate::digest::Digest;
use crate::output::{self, Output, OutputError};

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A directory of the store cannot be made.
    #[error("cannot create directory `{path}` of the store")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Something in the store cannot be read.
    #[error("cannot read `{path}` in the store")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Something cannot be written to the store.
    #[error("cannot write `{path}` in the store")]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// There is less room than something needs.
    #[error("the store in `{path}` needs {needed} bytes more, but {available} are free there")]
    Full {
        /// The store's blobs.
        path: PathBuf,
        /// What is to be written, in bytes.
        needed: u64,
        /// What the file system has left for this user, in bytes.
        available: u64,
    },
    /// Something cannot be added to the store.
    #[error("cannot add to the store")]
    Output(#[from] OutputError),
    /// A record is no JSON of the form that this version writes.
    #[error("`{path}` in the store is malformed")]
    Record {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
}

/// The name of the file by which backup programs know what not to keep.
const TAG: &str = "CACHEDIR.TAG";

/// Its content: the signature that the specification demands, and a word to whoever finds it.
const TAG_TEXT: &str =
    "Signature: 8a477f597d28d172789f06886806bc55\n# Container images that can be fetched again.\n";

impl StoreError {
    /// What the user can do about it; None where nothing is known.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let error = match self {
            Self::Full { .. } => None,
            Self::Directory { source, .. }
            | Self::Read { source, .. }
            | Self::Write { source, .. }
            | Self::Output(
                OutputError::Directory { source, .. }
                | OutputError::Create { source, .. }
                | OutputError::Sync { source, .. }
                | OutputError::Place { source, .. },
            ) => Some(source.kind()),
            Self::Output(_) | Self::Record { .. } => return None,
        };
        let what = match error {
            None | Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
                "free some space"
            }
            Some(io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) => {
                "get the right to write there"
            }
            Some(_) => return None,
        };
        Some(format!(
            "{what}, or name another directory in `CISTA_CACHE_PATH`"
        ))
    }
}

/// A store: a directory of blobs and images. Any number of processes may use one at once.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    blobs: PathBuf,
    images: PathBuf,
    prepared: Once,
}

impl Store {
    /// Opens a store, making its directories (for their owner alone) when they are missing.
    ///
    /// # Errors
    ///
    /// [`StoreError::Directory`] when a directory cannot be made.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let store = Self {
            root: root.to_owned(),
            blobs: root.join("blobs").join("sha256"),
            images: root.join("images"),
            prepared: Once::new(),
        };
        for directory in [&store.blobs, &store.images] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)
                .map_err(|source| StoreError::Directory {
                    path: directory.clone(),
                    source,
                })?;
        }
        Ok(store)
    }

    /// Where a blob is, or would be.
    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.blobs.join(digest.hex())
    }

    /// Where an image is, or would be, without its extension. 16 of the 64 digits of the options do: they only tell few options apart.
    fn image_stem(&self, manifest: &Digest, options: &Digest) -> String {
        format!("{}-{}", manifest.hex(), &options.hex()[..16])
    }

    /// A blob; None when it is not in the store. Its content must be verified by whoever reads it.
    ///
    /// # Errors
    ///
    /// [`StoreError::Read`] when it is there but cannot be opened.
    pub fn blob(&self, digest: &Digest) -> Result<Option<File>, StoreError> {
        let path = self.blob_path(digest);
        let unreadable = |source| StoreError::Read {
            path: path.clone(),
            source,
        };
        // Links are not followed, and what is no file (a pipe, say) is not waited for.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = match rustix::fs::open(&path, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(unreadable(errno.into())),
        };
        if !file.metadata().map_err(unreadable)?.is_file() {
            return Err(unreadable(io::Error::other("it is not a regular file")));
        }
        touch(&file);
        Ok(Some(file))
    }

    /// Removes a blob that turned out to be damaged. Those who have it open keep it.
    ///
    /// # Errors
    ///
    /// [`StoreError::Write`] when it is there but cannot be removed.
    pub fn discard_blob(&self, digest: &Digest) -> Result<(), StoreError> {
        let path = self.blob_path(digest);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::Write { path, source })
            }
            _ => Ok(()),
        }
    }

    /// Begins a blob of `size` bytes.
    ///
    /// # Errors
    ///
    /// [`StoreError::Full`] when there is no room for it; [`StoreError::Output`]. Never because the blob exists, since whoever begins it
    /// found it missing or damaged.
    pub fn begin_blob(&self, digest: &Digest, size: u64) -> Result<PendingBlob, StoreError> {
        self.prepare();
        self.check_room(size)?;
        Ok(PendingBlob {
            output: Output::create(&self.blob_path(digest), true)?,
        })
    }

    /// The path of a finished image made from a manifest with certain options; None when there is none.
    ///
    /// # Errors
    ///
    /// [`StoreError::Read`] when it is there but cannot be opened.
    pub fn image(
        &self,
        manifest: &Digest,
        options: &Digest,
    ) -> Result<Option<PathBuf>, StoreError> {
        let path = self
            .images
            .join(format!("{}.sqsh", self.image_stem(manifest, options)));
        match File::open(&path) {
            Ok(file) => {
                touch(&file);
                Ok(Some(path))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StoreError::Read { path, source }),
        }
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
        let path = self
            .images
            .join(format!("{}.json", self.image_stem(manifest, options)));
        ImageRecord::read(&path)
    }

    /// Begins an image made from a manifest; `options` is the digest of all that changes the result.
    ///
    /// # Errors
    ///
    /// [`StoreError::Output`]; [`OutputError::Exists`] within when another process finished the same image first.
    pub fn begin_image(
        &self,
        manifest: &Digest,
        options: &Digest,
    ) -> Result<PendingImage, StoreError> {
        self.prepare();
        let stem = self.image_stem(manifest, options);
        Ok(PendingImage {
            output: Output::create(&self.images.join(format!("{stem}.sqsh")), false)?,
            record: self.images.join(format!("{stem}.json")),
        })
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

    /// Done once, before the first file is written: the tag for backup programs, and what dead processes left is removed.
    fn prepare(&self) {
        self.prepared.call_once(|| {
            let tag = self.root.join(TAG);
            if !tag.exists() {
                // A store without a tag works as well.
                let _ = std::fs::write(&tag, TAG_TEXT);
            }
            output::remove_leftovers(&self.blobs);
            output::remove_leftovers(&self.images);
        });
    }
}

/// Notes that a file is used now. Not an error when it cannot be: a shared store may be read-only.
fn touch(file: &File) {
    let time = |nanoseconds| Timespec {
        tv_sec: 0,
        tv_nsec: nanoseconds,
    };
    let _ = rustix::fs::futimens(
        file,
        &Timestamps {
            last_access: time(UTIME_NOW),
            last_modification: time(UTIME_OMIT),
        },
    );
}

/// A blob that is being received. Dropping it leaves nothing behind.
#[derive(Debug)]
pub struct PendingBlob {
    output: Output,
}

impl PendingBlob {
    /// Where the blob will be.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.output.path()
    }

    /// The file to write to.
    #[must_use]
    pub fn file(&self) -> &File {
        self.output.file()
    }

    /// Another handle of the file, which stays readable after the commit.
    ///
    /// # Errors
    ///
    /// Fails when the process has no descriptor left.
    pub fn handle(&self) -> Result<File, StoreError> {
        Ok(self.output.handle()?)
    }

    /// Puts the blob in the store. The caller has verified its digest.
    ///
    /// # Errors
    ///
    /// [`StoreError::Output`].
    pub fn commit(self) -> Result<(), StoreError> {
        self.output.commit_unsynced()?;
        Ok(())
    }
}

/// An image that is being made. Dropping it leaves nothing behind.
#[derive(Debug)]
pub struct PendingImage {
    output: Output,
    record: PathBuf,
}

impl PendingImage {
    /// The file to write the image to.
    #[must_use]
    pub fn output(&self) -> &Output {
        &self.output
    }

    /// Syncs the image and puts it and its record in the store; returns its path.
    ///
    /// When another process put the same image there first, that one stays: both have the same content.
    ///
    /// # Errors
    ///
    /// [`StoreError::Output`], [`StoreError::Write`].
    pub fn commit(self, record: &ImageRecord) -> Result<PathBuf, StoreError> {
        record.write(&self.record)?;
        let path = self.output.path().to_owned();
        match self.output.commit() {
            Ok(_) | Err(OutputError::Exists { .. }) => Ok(path),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::os::unix::fs::MetadataExt;

    fn store() -> (tempfile::TempDir, Store) {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("deep/store")).unwrap();
        (directory, store)
    }

    fn record(manifest: &Digest) -> ImageRecord {
        ImageRecord {
            reference: "docker://x/y:1".to_owned(),
            manifest: manifest.to_string(),
            options: "zstd:1".to_owned(),
            created: 7,
            size: 5,
        }
    }

    #[test]
    fn blobs_are_found_once_committed() {
        let (_directory, store) = store();
        let digest = Digest::of(b"blob");
        assert!(store.blob(&digest).unwrap().is_none());
        let pending = store.begin_blob(&digest, 4).unwrap();
        pending.file().write_all(b"blob").unwrap();
        assert!(store.blob(&digest).unwrap().is_none());
        pending.commit().unwrap();
        let mut content = String::new();
        let mut found = store.blob(&digest).unwrap().unwrap();
        found.read_to_string(&mut content).unwrap();
        assert_eq!(content, "blob");
        store.discard_blob(&digest).unwrap();
        store.discard_blob(&digest).unwrap();
        assert!(store.blob(&digest).unwrap().is_none());
    }

    #[test]
    fn the_second_writer_of_a_blob_succeeds() {
        let (_directory, store) = store();
        let digest = Digest::of(b"blob");
        let first = store.begin_blob(&digest, 4).unwrap();
        let second = store.begin_blob(&digest, 4).unwrap();
        first.commit().unwrap();
        second.commit().unwrap();
        store.begin_blob(&digest, 4).unwrap().commit().unwrap();
    }

    #[test]
    fn images_differ_by_manifest_and_options() {
        let (_directory, store) = store();
        let (manifest, options) = (Digest::of(b"m"), Digest::of(b"o"));
        let first = store.begin_image(&manifest, &options).unwrap();
        let second = store.begin_image(&manifest, &options).unwrap();
        first.output().file().write_all(b"image").unwrap();
        let path = first.commit(&record(&manifest)).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"image");
        assert_eq!(second.commit(&record(&manifest)).unwrap(), path);
        assert_eq!(std::fs::read(&path).unwrap(), b"image");
        assert_eq!(store.image(&manifest, &options).unwrap(), Some(path));
        assert_eq!(
            store.image_record(&manifest, &options).unwrap(),
            Some(record(&manifest))
        );
        assert_eq!(store.image(&manifest, &Digest::of(b"p")).unwrap(), None);
        assert_eq!(store.image_record(&options, &options).unwrap(), None);
        assert!(matches!(
            store.begin_image(&manifest, &options),
            Err(StoreError::Output(OutputError::Exists { .. }))
        ));
    }

    #[test]
    fn abandoned_writers_leave_nothing() {
        let (_directory, store) = store();
        let digest = Digest::of(b"x");
        drop(store.begin_blob(&digest, 4).unwrap());
        drop(store.begin_image(&digest, &digest).unwrap());
        for directory in [&store.blobs, &store.images] {
            assert_eq!(std::fs::read_dir(directory).unwrap().count(), 0);
        }
    }

    #[test]
    fn finding_updates_the_time_of_last_use_alone() {
        let (_directory, store) = store();
        let digest = Digest::of(b"x");
        store.begin_blob(&digest, 4).unwrap().commit().unwrap();
        let old = Timespec {
            tv_sec: 1000,
            tv_nsec: 0,
        };
        let file = File::open(store.blob_path(&digest)).unwrap();
        rustix::fs::futimens(
            &file,
            &Timestamps {
                last_access: old,
                last_modification: old,
            },
        )
        .unwrap();
        store.blob(&digest).unwrap().unwrap();
        let metadata = file.metadata().unwrap();
        assert_eq!(metadata.mtime(), 1000);
        assert!(metadata.atime() > 1_000_000_000);
    }

    #[test]
    fn what_is_no_file_is_neither_followed_nor_waited_for() {
        let (directory, store) = store();
        let digest = Digest::of(b"blob");
        let target = directory.path().join("target");
        std::fs::write(&target, b"blob").unwrap();
        std::os::unix::fs::symlink(&target, store.blob_path(&digest)).unwrap();
        assert!(store.blob(&digest).is_err());
        store.discard_blob(&digest).unwrap();
        let (pipe, mode) = (rustix::fs::FileType::Fifo, Mode::RUSR);
        rustix::fs::mknodat(rustix::fs::CWD, store.blob_path(&digest), pipe, mode, 0).unwrap();
        assert!(store.blob(&digest).is_err());
    }

    #[test]
    fn lack_of_room_is_found_before_work_is_done() {
        let (_directory, store) = store();
        let error = store.begin_blob(&Digest::of(b"x"), u64::MAX).unwrap_err();
        assert!(
            matches!(
                error,
                StoreError::Full {
                    needed: u64::MAX,
                    ..
                }
            ),
            "{error}"
        );
        assert!(error.hint().unwrap().contains("CISTA_CACHE_PATH"));
    }

    #[test]
    fn backup_programs_are_told() {
        let (directory, store) = store();
        let tag = directory.path().join("deep/store").join(TAG);
        assert!(!tag.exists());
        drop(store.begin_blob(&Digest::of(b"x"), 1).unwrap());
        let text = std::fs::read_to_string(tag).unwrap();
        assert!(text.starts_with("Signature: 8a477f597d28d172789f06886806bc55\n"));
    }

    #[test]
    fn directories_are_private() {
        let (directory, store) = store();
        let metadata = directory.path().join("deep").metadata().unwrap();
        assert_eq!(metadata.mode() & 0o777, 0o700);
        drop(store);
    }
}
