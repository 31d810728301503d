//! Making room: what was not used for longest goes first.
//!
//! Images and blobs are one row, ordered by their last use; of what was used at the same time, blobs go before the image that was made of
//! them, which can be started without. What is in use stays, and what was used a moment ago, since whoever has just found an image is
//! about to open it. Parts that nobody works on go before everything.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use super::uses::is_within;
use super::{Contents, Store, StoreError, blobs};
use crate::digest::Digest;

/// What was used so short a time ago may be about to be opened.
const RECENT: Duration = Duration::from_secs(60);

/// What should go.
#[derive(Clone, Copy, Debug, Default)]
pub struct Prune {
    /// So much until the rest has at most this size, in bytes.
    pub size: Option<u64>,
    /// What was not used for so long.
    pub unused_for: Option<Duration>,
    /// Everything that is not in use.
    pub everything: bool,
    /// Nothing: only tell what would.
    pub pretend: bool,
}

/// What went.
#[derive(Clone, Debug, Default)]
pub struct Pruned {
    /// Files that were removed, or would be.
    pub removed: Vec<PathBuf>,
    /// Their bytes.
    pub freed: u64,
    /// Images that would have gone but are in use.
    pub in_use: Vec<PathBuf>,
    /// Bytes that are left in the store.
    pub left: u64,
}

/// A candidate.
struct Candidate {
    path: PathBuf,
    size: u64,
    last_used: SystemTime,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Part,
    Blob,
    Image { manifest: Digest, is_in_use: bool },
}

impl Store {
    /// Removes what the limit of [`super::Settings::limit`] says is too much. Nothing without a limit.
    ///
    /// # Errors
    ///
    /// As [`Self::prune`].
    pub fn evict(&self) -> Result<(), StoreError> {
        if let Some(size) = self.settings.limit {
            self.prune(&Prune {
                size: Some(size),
                ..Prune::default()
            })?;
        }
        Ok(())
    }

    /// Removes what is not needed, and what dead processes left.
    ///
    /// # Errors
    ///
    /// [`StoreError::Read`] when the store cannot be looked at, [`StoreError::Write`] when something cannot be removed.
    pub fn prune(&self, prune: &Prune) -> Result<Pruned, StoreError> {
        if !prune.pretend {
            self.sweep();
        }
        let contents = self.contents()?;
        let mut pruned = Pruned {
            left: contents.size(),
            ..Pruned::default()
        };
        let now = SystemTime::now();
        for candidate in candidates(contents) {
            let is_too_much = prune.size.is_some_and(|size| pruned.left > size);
            let is_old = prune
                .unused_for
                .is_some_and(|limit| !is_within(candidate.last_used, now, limit));
            if !(prune.everything || is_too_much || is_old) {
                continue;
            }
            let is_recent = !prune.everything && is_within(candidate.last_used, now, RECENT);
            if let Kind::Image { is_in_use, .. } = candidate.kind
                && (is_in_use || is_recent)
            {
                pruned.in_use.push(candidate.path);
                continue;
            }
            if !prune.pretend {
                self.remove(&candidate)?;
            }
            pruned.left = pruned.left.saturating_sub(candidate.size);
            pruned.freed = pruned.freed.saturating_add(candidate.size);
            pruned.removed.push(candidate.path);
        }
        if !prune.pretend {
            self.forget_old_uses();
        }
        Ok(pruned)
    }

    fn remove(&self, candidate: &Candidate) -> Result<(), StoreError> {
        blobs::remove(&candidate.path)?;
        if let Kind::Image { manifest, .. } = candidate.kind {
            blobs::remove(&candidate.path.with_extension("json"))?;
            self.forget_uses(&manifest);
        }
        Ok(())
    }
}

/// Everything that may go, in the order in which it should.
fn candidates(contents: Contents) -> Vec<Candidate> {
    let parts = contents
        .unfinished
        .into_iter()
        .filter(|file| file.holder.is_none() && super::sweep::is_part(file.name()))
        .map(|file| Candidate {
            size: file.size,
            last_used: file.modified,
            path: file.path,
            kind: Kind::Part,
        });
    let blobs = contents.blobs.into_iter().map(|blob| Candidate {
        path: blob.path,
        size: blob.size,
        last_used: blob.last_used,
        kind: Kind::Blob,
    });
    let images = contents.images.into_iter().map(|image| Candidate {
        path: image.path,
        size: image.size,
        last_used: image.last_used,
        kind: Kind::Image {
            manifest: image.manifest,
            is_in_use: image.is_in_use,
        },
    });
    let mut all: Vec<Candidate> = parts.chain(blobs).chain(images).collect();
    // A part was never used; of the others, those with the same use stay in the order blob, image.
    all.sort_by_key(|candidate| (candidate.kind != Kind::Part, candidate.last_used));
    all
}
