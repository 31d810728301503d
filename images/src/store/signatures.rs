//! Signatures of images, kept so that an image in the store can be checked without its registry.
//!
//! `STORE/signatures/<hex of the manifest or index>.json`. What is here is verified at each use, so nobody needs to trust it.

use std::fs::{DirBuilder, File};
use std::io::{self, Read as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};

use super::{Store, StoreError};
use crate::digest::Digest;
use crate::output::Output;

/// Largest file that is read, in bytes.
const MAX_SIZE: u64 = 8 << 20;

impl Store {
    fn signatures_path(&self, digest: &Digest) -> PathBuf {
        self.root
            .join("signatures")
            .join(format!("{}.json", digest.hex()))
    }

    /// The signatures of an image, as they were kept; None where there are none, or none that can be read.
    pub(crate) fn signatures(&self, digest: &Digest) -> Option<Vec<u8>> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = rustix::fs::open(self.signatures_path(digest), flags, Mode::empty()).ok()?;
        let mut content = Vec::new();
        File::from(file)
            .take(MAX_SIZE)
            .read_to_end(&mut content)
            .ok()?;
        Some(content)
    }

    /// Keeps the signatures of an image in place of those that were kept before.
    ///
    /// # Errors
    ///
    /// [`StoreError::Directory`], [`StoreError::Write`], [`StoreError::Output`].
    pub(crate) fn keep_signatures(
        &self,
        digest: &Digest,
        content: &[u8],
    ) -> Result<(), StoreError> {
        use io::Write as _;
        let path = self.signatures_path(digest);
        if let Some(directory) = path.parent() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)
                .map_err(|source| StoreError::Directory {
                    path: directory.to_owned(),
                    source,
                })?;
        }
        let output = Output::create(&path, true)?;
        output
            .file()
            .write_all(content)
            .map_err(|source| StoreError::Write { path, source })?;
        output.commit_unsynced()?;
        Ok(())
    }
}
