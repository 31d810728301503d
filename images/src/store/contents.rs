//! What is in a store.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Deserialize;

use super::uses::{self, Uses};
use super::{Holder, ImageRecord, Store, StoreError, lease, sweep};
use crate::digest::Digest;
use crate::output::temporary;
use crate::owner::Owner;
use crate::source::document::MAX_MANIFEST;

/// A finished image.
#[derive(Clone, Debug)]
pub struct StoredImage {
    /// The image.
    pub path: PathBuf,
    /// The manifest it was made from.
    pub manifest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// What is recorded about it; None where the record is missing or damaged: then the image is not used, and made again.
    pub record: Option<ImageRecord>,
    /// When it was last used.
    pub last_used: SystemTime,
    /// Why it must stay: somebody uses it.
    pub is_in_use: bool,
}

/// A blob: a layer, a config, a manifest or an index.
#[derive(Clone, Debug)]
pub struct StoredBlob {
    /// The blob.
    pub path: PathBuf,
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// When it was last used.
    pub last_used: SystemTime,
}

/// Something that is being made, or was.
#[derive(Clone, Debug)]
pub struct Unfinished {
    /// The file.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size: u64,
    /// When it was last written to.
    pub modified: SystemTime,
    /// Who makes it; None when nobody does, but may go on.
    pub holder: Option<Holder>,
}

impl Unfinished {
    pub(super) fn name(&self) -> &OsStr {
        self.path.file_name().unwrap_or_default()
    }
}

/// All that is in a store.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    /// Images, those that were used last first.
    pub images: Vec<StoredImage>,
    /// Blobs, those that were used last first.
    pub blobs: Vec<StoredBlob>,
    /// What is not finished.
    pub unfinished: Vec<Unfinished>,
}

impl Contents {
    /// Bytes of everything together.
    #[must_use]
    pub fn size(&self) -> u64 {
        let images = self.images.iter().map(|image| image.size);
        let blobs = self.blobs.iter().map(|blob| blob.size);
        let unfinished = self.unfinished.iter().map(|file| file.size);
        images
            .chain(blobs)
            .chain(unfinished)
            .fold(0, u64::saturating_add)
    }
}

/// A file as it was found.
struct Found {
    name: String,
    path: PathBuf,
    metadata: fs::Metadata,
}

impl Store {
    /// Looks at everything in the store. What is removed meanwhile is left out.
    ///
    /// # Errors
    ///
    /// [`StoreError::Read`] when a directory cannot be listed.
    pub fn contents(&self) -> Result<Contents, StoreError> {
        let uses = self.uses();
        let mut contents = Contents::default();
        let images = list(&self.images)?;
        let wanted = images
            .iter()
            .map(|found| (found.metadata.dev(), found.metadata.ino()))
            .collect();
        let open = uses::open_files(&wanted);
        let paths: Vec<PathBuf> = images.iter().map(|found| found.path.clone()).collect();
        let running = (self.settings.in_use)(&paths);
        let now = SystemTime::now();
        for found in images {
            match image_name(&found.name) {
                Some(manifest) => {
                    let file = (found.metadata.dev(), found.metadata.ino());
                    contents.images.push(StoredImage {
                        record: ImageRecord::read(&found.path.with_extension("json"))
                            .ok()
                            .flatten(),
                        size: found.metadata.len(),
                        last_used: uses
                            .last(&manifest)
                            .unwrap_or_else(|| modified(&found.metadata)),
                        is_in_use: open.contains(&file)
                            || running.contains(&found.path)
                            || uses.is_used_elsewhere(&manifest, now),
                        manifest,
                        path: found.path,
                    });
                }
                None => contents.unfinished.extend(self.unfinished(found)),
            }
        }
        let used = self.blob_uses(&uses);
        for found in list(&self.blobs)? {
            match format!("sha256:{}", found.name).parse::<Digest>() {
                Ok(digest) => {
                    let arrived = modified(&found.metadata);
                    // Not when it arrived: that is after its manifest began to be used.
                    let last_used = used.get(&digest).copied().unwrap_or(arrived);
                    contents.blobs.push(StoredBlob {
                        size: found.metadata.len(),
                        path: found.path,
                        digest,
                        last_used,
                    });
                }
                Err(_) => contents.unfinished.extend(self.unfinished(found)),
            }
        }
        contents
            .images
            .sort_by_key(|image| std::cmp::Reverse(image.last_used));
        contents
            .blobs
            .sort_by_key(|blob| std::cmp::Reverse(blob.last_used));
        Ok(contents)
    }

    /// A part or a temporary file; None for leases and records.
    fn unfinished(&self, found: Found) -> Option<Unfinished> {
        let name = Path::new(&found.name).as_os_str();
        let is_temporary = name
            .as_bytes()
            .windows(temporary::PART.len())
            .any(|window| window == temporary::PART);
        if !is_temporary && !sweep::is_part(name) {
            return None;
        }
        let lease = found.path.with_extension("lease");
        let seen = lease::look(&lease).ok().flatten();
        let seen = seen.filter(|seen| !lease::is_dead(&lease, seen, self.terms()));
        Some(Unfinished {
            holder: seen.map(|seen| Holder::of(&seen, &Owner::current())),
            size: found.metadata.len(),
            modified: modified(&found.metadata),
            path: found.path,
        })
    }

    /// When blobs were last used: when the manifests were that name them.
    fn blob_uses(&self, uses: &Uses) -> HashMap<Digest, SystemTime> {
        let mut used = HashMap::new();
        for manifest in uses.manifests() {
            let Some(time) = uses.last(manifest) else {
                continue;
            };
            for digest in self.blobs_of(manifest).into_iter().chain([*manifest]) {
                let known = used.entry(digest).or_insert(time);
                *known = time.max(*known);
            }
        }
        used
    }

    /// The blobs that a manifest in the store names; none where it is not there.
    pub(super) fn blobs_of(&self, manifest: &Digest) -> HashSet<Digest> {
        #[derive(Deserialize)]
        struct Named {
            digest: String,
        }
        #[derive(Deserialize)]
        struct Manifest {
            config: Named,
            layers: Vec<Named>,
        }
        let mut text = Vec::new();
        let read = fs::File::open(self.blob_path(manifest))
            .and_then(|file| file.take(MAX_MANIFEST).read_to_end(&mut text));
        let parsed = read
            .ok()
            .and_then(|_| serde_json::from_slice::<Manifest>(&text).ok());
        let Some(parsed) = parsed else {
            return HashSet::new();
        };
        let named = parsed.layers.iter().chain([&parsed.config]);
        named
            .filter_map(|named| named.digest.parse().ok())
            .collect()
    }
}

fn modified(metadata: &fs::Metadata) -> SystemTime {
    metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH)
}

/// The manifest in the name of an image: `<manifest hex>-<options hex>.sqsh`.
pub(super) fn image_name(name: &str) -> Option<Digest> {
    let (manifest, _) = name.strip_suffix(".sqsh")?.split_once('-')?;
    format!("sha256:{manifest}").parse().ok()
}

fn list(directory: &Path) -> Result<Vec<Found>, StoreError> {
    let entries = fs::read_dir(directory).map_err(|source| StoreError::Read {
        path: directory.to_owned(),
        source,
    })?;
    let found = entries.flatten().filter_map(|entry| {
        let metadata = entry.metadata().ok().filter(fs::Metadata::is_file)?;
        Some(Found {
            name: entry.file_name().into_string().ok()?,
            path: entry.path(),
            metadata,
        })
    });
    Ok(found.collect())
}
