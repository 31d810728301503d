//! From a descriptor to an image: index, manifest, config, layers.
//!
//! The same walk for registries and image layouts; they differ only in how a document is fetched.

use super::document::{
    self, ConfigFacts, Descriptor, Document, DocumentError, MAX_CONFIG, MAX_DEPTH, MAX_MANIFEST,
    Manifest,
};
use super::{ResolvedImage, SourceError, Task};
use crate::digest::Digest;
use crate::platform::Platform;
use crate::progress::Event;

/// The media types that matter for telling an index from a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MediaKind {
    /// OCI image index, Docker manifest list.
    Index,
    /// OCI image manifest, Docker schema 2 manifest.
    Manifest,
    /// Docker schema 1.
    Schema1,
}

impl MediaKind {
    /// The kind of a media type, parameters (`; charset=…`) ignored; None for others, such as `application/json`, which say nothing.
    pub(crate) fn of(media_type: &str) -> Option<Self> {
        match media_type.split(';').next().unwrap_or_default().trim() {
            "application/vnd.oci.image.index.v1+json"
            | "application/vnd.docker.distribution.manifest.list.v2+json" => Some(Self::Index),
            "application/vnd.oci.image.manifest.v1+json"
            | "application/vnd.docker.distribution.manifest.v2+json" => Some(Self::Manifest),
            "application/vnd.docker.distribution.manifest.v1+json"
            | "application/vnd.docker.distribution.manifest.v1+prettyjws" => Some(Self::Schema1),
            _ => None,
        }
    }
}

/// How documents are fetched by digest.
pub(crate) trait Documents {
    /// An index or manifest of at most `limit` bytes, verified against the descriptor.
    fn document(&self, descriptor: &Descriptor, limit: u64) -> Result<Vec<u8>, SourceError>;

    /// A blob of at most `limit` bytes, verified against the descriptor.
    fn blob(&self, descriptor: &Descriptor, limit: u64) -> Result<Vec<u8>, SourceError>;
}

/// A document and how it was named.
#[derive(Clone, Debug)]
pub(crate) struct Fetched {
    pub(crate) digest: Digest,
    pub(crate) media_type: String,
    pub(crate) text: Vec<u8>,
    /// The platform was chosen by an index, which is then believed over the config.
    pub(crate) chosen: bool,
}

/// Refuses a document that is announced larger than any sensible one, before it is fetched.
pub(crate) fn check_limit(
    what: &str,
    descriptor: &Descriptor,
    limit: u64,
) -> Result<(), SourceError> {
    if descriptor.size > limit {
        return Err(SourceError::TooLarge {
            what: what.to_owned(),
            expected: limit,
        });
    }
    Ok(())
}

/// Checks a whole document against its descriptor.
pub(crate) fn check_content(
    what: &str,
    descriptor: &Descriptor,
    content: &[u8],
) -> Result<(), SourceError> {
    let actual = content.len() as u64;
    if actual < descriptor.size {
        return Err(SourceError::Truncated {
            what: what.to_owned(),
            expected: descriptor.size,
            actual,
        });
    }
    if actual > descriptor.size {
        return Err(SourceError::TooLarge {
            what: what.to_owned(),
            expected: descriptor.size,
        });
    }
    check_digest(what, descriptor.digest, content)
}

/// Checks a whole document against its digest.
pub(crate) fn check_digest(
    what: &str,
    expected: Digest,
    content: &[u8],
) -> Result<(), SourceError> {
    let actual = Digest::of(content);
    if actual == expected {
        return Ok(());
    }
    Err(SourceError::WrongDigest {
        what: what.to_owned(),
        expected,
        actual,
    })
}

/// Walks from an index or manifest to the manifest for a platform.
pub(crate) fn find_manifest(
    documents: &dyn Documents,
    mut fetched: Fetched,
    platform: &Platform,
    reference: &str,
) -> Result<(Fetched, Manifest), SourceError> {
    let unusable = |what: &str, source| SourceError::Document {
        what: format!("{what} of `{reference}`"),
        source,
    };
    for _ in 0..MAX_DEPTH {
        let parsed = document::parse_document(&fetched.text, &fetched.media_type)
            .map_err(|source| unusable("the manifest", source))?;
        let entries = match parsed {
            Document::Manifest(manifest) => return Ok((fetched, manifest)),
            Document::Index(entries) => entries,
        };
        let (entry, chosen) = choose(&entries, platform, reference)?;
        check_limit("the manifest", entry, MAX_MANIFEST)?;
        fetched = Fetched {
            digest: entry.digest,
            media_type: entry.media_type.clone(),
            text: documents.document(entry, MAX_MANIFEST)?,
            chosen: fetched.chosen || chosen,
        };
    }
    Err(unusable("the index", DocumentError::TooDeep))
}

/// The entry of an index for a platform, and whether the index said that it is.
fn choose<'a>(
    entries: &'a [Descriptor],
    platform: &Platform,
    reference: &str,
) -> Result<(&'a Descriptor, bool), SourceError> {
    let (offers, described): (Vec<_>, Vec<_>) = entries
        .iter()
        .filter_map(|entry| Some((entry.platform.clone()?, entry)))
        .unzip();
    if let Some(position) = platform.choose(&offers) {
        return Ok((described[position], true));
    }
    // Entries without a platform are legal; the config will tell.
    let mut silent = entries.iter().filter(|entry| entry.platform.is_none());
    if let (Some(entry), None) = (silent.next(), silent.next()) {
        return Ok((entry, false));
    }
    let mut available: Vec<_> = offers
        .iter()
        // What build tools attach (attestations) is marked so.
        .filter(|offer| offer.architecture != "unknown")
        .map(Platform::to_string)
        .collect();
    available.dedup();
    Err(SourceError::Platform {
        what: format!("`{reference}`"),
        wanted: platform.clone(),
        available: list(&available),
    })
}

/// Names for an error message, not too many.
pub(crate) fn list(names: &[String]) -> String {
    const SHOWN: usize = 20;
    match names {
        [] => "none".to_owned(),
        _ if names.len() > SHOWN => format!(
            "{} and {} more",
            names[..SHOWN].join(", "),
            names.len() - SHOWN
        ),
        _ => names.join(", "),
    }
}

/// Checks that a config is for the platform, unless an index said so already.
pub(crate) fn check_platform(
    facts: &ConfigFacts,
    platform: &Platform,
    reference: &str,
) -> Result<(), SourceError> {
    match &facts.platform {
        Some(offer) if platform.choose(std::slice::from_ref(offer)).is_none() => {
            Err(SourceError::Platform {
                what: format!("`{reference}`"),
                wanted: platform.clone(),
                available: offer.to_string(),
            })
        }
        _ => Ok(()),
    }
}

/// Walks from an index or manifest to the image for a platform.
pub(crate) fn resolve(
    documents: &dyn Documents,
    top: Fetched,
    platform: &Platform,
    reference: String,
) -> Result<ResolvedImage, SourceError> {
    let (fetched, manifest) = find_manifest(documents, top, platform, &reference)?;
    check_limit("the config", &manifest.config, MAX_CONFIG)?;
    let config = documents.blob(&manifest.config, MAX_CONFIG)?;
    let unusable = |source| SourceError::Document {
        what: format!("the config of `{reference}`"),
        source,
    };
    let facts = document::parse_config(&config).map_err(unusable)?;
    if !fetched.chosen {
        check_platform(&facts, platform, &reference)?;
    }
    let layers = document::join_layers(&manifest, &facts).map_err(unusable)?;
    Ok(ResolvedImage {
        reference,
        digest: Some(fetched.digest),
        config: Some(config),
        layers,
    })
}

/// Tells that an image is known.
pub(crate) fn announce(image: &ResolvedImage, task: Task<'_>) {
    if let Some(digest) = image.digest {
        task.progress.event(Event::Resolved {
            digest,
            layer_bytes: image.layer_bytes(),
            layers: image.layers.len(),
        });
    }
}
