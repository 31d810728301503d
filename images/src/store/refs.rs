//! What tags stood for when they were last asked for.
//!
//! A tag's digest is known to its registry alone, so a start asks it with one request. Where there is no network, or the user does not want
//! it asked, the last answer has to do: `STORE/refs/<hex>.json`, named after the digest of the reference. It is a hint, not content: whatever
//! it names is verified by its own digest.

use std::io::{Read as _, Write as _};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Store, StoreError, images};
use crate::digest::Digest;
use crate::output::Output;

/// Longest record that is read, in bytes.
const MAX_RECORD: u64 = 64 << 10;

/// What a tag stood for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefRecord {
    /// The tag with its registry and repository.
    pub reference: String,
    /// Digest of the manifest or index.
    pub digest: String,
    /// Whether that is a manifest; None where the registry did not say.
    pub is_manifest: Option<bool>,
}

impl Store {
    /// What a tag stood for when this or a shared store was last told; None when it never was.
    #[must_use]
    pub fn reference(&self, reference: &str) -> Option<(Digest, Option<bool>)> {
        let own = std::iter::once(&self.refs);
        let all = own.chain(self.shared.iter().map(|shared| &shared.refs));
        all.filter_map(|directory| {
            let mut text = Vec::new();
            let file = images::open(&directory.join(name(reference))).ok()??;
            file.take(MAX_RECORD).read_to_end(&mut text).ok()?;
            let record: RefRecord = serde_json::from_slice(&text).ok()?;
            let digest = record.digest.parse().ok()?;
            (record.reference == reference).then_some((digest, record.is_manifest))
        })
        .next()
    }

    /// Notes what a tag stands for. Writes only what is new.
    ///
    /// # Errors
    ///
    /// [`StoreError::Output`], [`StoreError::Write`].
    pub fn note_reference(
        &self,
        reference: &str,
        digest: &Digest,
        is_manifest: Option<bool>,
    ) -> Result<(), StoreError> {
        if self.reference(reference) == Some((*digest, is_manifest)) {
            return Ok(());
        }
        let path = self.refs.join(name(reference));
        let record = RefRecord {
            reference: reference.to_owned(),
            digest: digest.to_string(),
            is_manifest,
        };
        let mut text = serde_json::to_vec_pretty(&record).map_err(|source| StoreError::Record {
            path: path.clone(),
            source,
        })?;
        text.push(b'\n');
        let output = Output::create(&path, true)?;
        let written = output.file().write_all(&text);
        written
            .and_then(|()| self.open_to_readers(output.file()))
            .map_err(|source| StoreError::Write { path, source })?;
        output.commit_unsynced()?;
        Ok(())
    }
}

fn name(reference: &str) -> PathBuf {
    PathBuf::from(format!("{}.json", Digest::of(reference.as_bytes()).hex()))
}
