//! What the store remembers about an image besides its content.

use std::fs::Permissions;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::StoreError;
use crate::output::Output;

/// Longest record that is read, in bytes.
const MAX_RECORD: u64 = 1 << 20;

/// Facts about a finished image, for people and for listing; nothing that changes how it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// The reference it was first made from, in canonical form.
    pub reference: String,
    /// Digest of the manifest.
    pub manifest: String,
    /// The options it was made with, as text.
    pub options: String,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// Its size in bytes.
    pub size: u64,
    /// Digest of the file; None in records of a version that knew none. Set by [`super::PendingImage::commit`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

impl ImageRecord {
    pub(super) fn read(path: &Path) -> Result<Option<Self>, StoreError> {
        use std::io::Read as _;
        let mut text = Vec::new();
        match std::fs::File::open(path)
            .and_then(|file| file.take(MAX_RECORD).read_to_end(&mut text))
        {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => {
                return Err(StoreError::Read {
                    path: path.to_owned(),
                    source,
                });
            }
        }
        serde_json::from_slice(&text)
            .map(Some)
            .map_err(|source| StoreError::Record {
                path: path.to_owned(),
                source,
            })
    }

    /// `mode` are the permission bits of the store's directories.
    pub(super) fn write(&self, path: &Path, mode: u32) -> Result<(), StoreError> {
        let mut text = serde_json::to_vec_pretty(self).map_err(|source| StoreError::Record {
            path: path.to_owned(),
            source,
        })?;
        text.push(b'\n');
        let output = Output::create(path, true)?;
        let permissions = Permissions::from_mode(mode & 0o644);
        output
            .file()
            .write_all(&text)
            .and_then(|()| output.file().set_permissions(permissions))
            .map_err(|source| StoreError::Write {
                path: path.to_owned(),
                source,
            })?;
        output.commit_unsynced()?;
        Ok(())
    }
}
