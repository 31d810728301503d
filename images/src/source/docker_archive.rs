//! `docker-archive:`: what `docker save`, `podman save` and `skopeo copy … docker-archive:` write.
//!
//! Docker image specification 1.2, "Combined Image JSON + Filesystem Changeset Format": `manifest.json` is a list of images, each with the
//! names of its config and of its layers, lowest first. Layers are plain tars without a digest of their own (Docker 25 and later also
//! write an OCI layout beside it, which is not needed). What they must be is in the config: the diff_ids, which the decoder checks; the
//! config itself is checked where its name is its digest.

use std::io::Read;

use serde::Deserialize;

use super::archive::Archive;
use super::document::{self, DocumentError, MAX_CONFIG, MAX_LAYERS, MAX_MANIFEST};
use super::resolve;
use super::verified::Verified;
use super::{LayerBlob, ResolvedImage, Source, SourceError, Task};
use crate::digest::Digest;
use crate::platform::Platform;
use crate::reference::{LocalReference, Reference};

#[derive(Deserialize)]
struct Image {
    #[serde(rename = "Config")]
    config: String,
    #[serde(rename = "RepoTags")]
    tags: Option<Vec<String>>,
    #[serde(rename = "Layers")]
    layers: Option<Vec<String>>,
}

impl Image {
    fn tags(&self) -> impl Iterator<Item = &String> {
        self.tags.iter().flatten()
    }
}

/// An archive and the image wanted from it.
#[derive(Debug)]
pub(super) struct DockerArchive {
    archive: Archive,
    name: Option<String>,
    digest: Option<Digest>,
    reference: String,
}

/// The config, and the member names of the layers.
struct Found {
    digest: Digest,
    config: Vec<u8>,
    layers: Vec<String>,
}

impl DockerArchive {
    pub(super) fn open(local: &LocalReference, reference: &Reference) -> Result<Self, SourceError> {
        Ok(Self {
            archive: Archive::open(&local.path)?,
            name: local.name.clone(),
            digest: local.digest,
            reference: reference.canonical(),
        })
    }

    /// The only image of an archive, which `reference` names.
    pub(super) fn of(archive: Archive, reference: String) -> Self {
        Self {
            archive,
            name: None,
            digest: None,
            reference,
        }
    }

    fn not_an_archive(&self, problem: String) -> SourceError {
        SourceError::NotA {
            path: self.archive.path().to_owned(),
            expected: "docker archive",
            problem,
        }
    }

    fn read(&self, name: &str, limit: u64) -> Result<Vec<u8>, SourceError> {
        self.archive
            .member(name)
            .ok_or_else(|| self.not_an_archive(format!("it lacks `{name}`")))?
            .read_small(self.archive.path(), name, limit)
    }

    /// The image that is wanted, its config verified.
    fn find(&self) -> Result<Found, SourceError> {
        let text = self.read("manifest.json", MAX_MANIFEST)?;
        let images: Vec<Image> = serde_json::from_slice(&text).map_err(|error| {
            self.not_an_archive(format!("its `manifest.json` is malformed: {error}"))
        })?;
        let image = self.choose(&images)?;
        let layers = image.layers.clone().unwrap_or_default();
        let unusable = |source| SourceError::Document {
            what: format!("`manifest.json` of `{}`", self.archive.path().display()),
            source,
        };
        if layers.is_empty() {
            return Err(unusable(DocumentError::NoLayers));
        }
        if layers.len() > MAX_LAYERS {
            return Err(unusable(DocumentError::TooManyLayers(layers.len())));
        }
        let config = self.read(&image.config, MAX_CONFIG)?;
        let digest = Digest::of(&config);
        if let Some(expected) = config_digest(&image.config) {
            let what = format!("the config of `{}`", self.archive.path().display());
            resolve::check_digest(&what, expected, &config)?;
        }
        Ok(Found {
            digest,
            config,
            layers,
        })
    }

    fn choose<'a>(&self, images: &'a [Image]) -> Result<&'a Image, SourceError> {
        let available = |images: &[&Image]| {
            let names: Vec<_> = images
                .iter()
                .map(|image| match image.tags().next() {
                    Some(tag) => format!("`{tag}`"),
                    None => image.config.clone(),
                })
                .collect();
            resolve::list(&names)
        };
        let mut found: Vec<&Image> = images.iter().collect();
        if let Some(digest) = self.digest {
            found.retain(|image| config_digest(&image.config) == Some(digest));
        }
        if let Some(name) = &self.name {
            let exact: Vec<_> = found
                .iter()
                .filter(|image| image.tags().any(|tag| tag == name))
                .copied()
                .collect();
            if exact.is_empty() {
                found.retain(|image| {
                    image
                        .tags()
                        .any(|tag| super::layout::ends_with_name(tag, name))
                });
            } else {
                found = exact;
            }
        }
        match found.as_slice() {
            [image] => Ok(image),
            [] => Err(SourceError::NoSuchImage {
                path: self.archive.path().to_owned(),
                wanted: match (&self.name, &self.digest) {
                    (Some(name), _) => name.clone(),
                    (None, Some(digest)) => digest.to_string(),
                    (None, None) => "*".to_owned(),
                },
                available: available(&images.iter().collect::<Vec<_>>()),
            }),
            several => Err(SourceError::SeveralImages {
                path: self.archive.path().to_owned(),
                available: available(several),
            }),
        }
    }
}

/// The digest in a config's name: `<hex>.json` or `blobs/sha256/<hex>`; None where the name holds none.
fn config_digest(name: &str) -> Option<Digest> {
    let hex = name
        .strip_suffix(".json")
        .or_else(|| name.strip_prefix("blobs/sha256/"))?;
    format!("sha256:{hex}").parse().ok()
}

impl Source for DockerArchive {
    fn resolve(&self, platform: &Platform, task: Task<'_>) -> Result<ResolvedImage, SourceError> {
        task.cancel.check()?;
        let found = self.find()?;
        let unusable = |source| SourceError::Document {
            what: format!("the config of `{}`", self.archive.path().display()),
            source,
        };
        let facts = document::parse_config(&found.config).map_err(unusable)?;
        resolve::check_platform(&facts, platform, &self.reference)?;
        if facts.diff_ids.len() != found.layers.len() {
            return Err(unusable(DocumentError::LayerCount {
                diff_ids: facts.diff_ids.len(),
                layers: found.layers.len(),
            }));
        }
        let mut layers = Vec::with_capacity(found.layers.len());
        for (name, diff_id) in found.layers.iter().zip(&facts.diff_ids) {
            let member = self
                .archive
                .member(name)
                .ok_or_else(|| self.not_an_archive(format!("it lacks `{name}`")))?;
            layers.push(LayerBlob {
                digest: None,
                size: Some(member.remaining()),
                diff_id: Some(*diff_id),
            });
        }
        let image = ResolvedImage {
            reference: self.reference.clone(),
            digest: Some(found.digest),
            config: Some(found.config),
            layers,
        };
        resolve::announce(&image, task);
        Ok(image)
    }

    fn digest(&self, _: &Platform, _: Task<'_>) -> Result<Option<Digest>, SourceError> {
        Ok(Some(self.find()?.digest))
    }

    fn open_layer<'a>(
        &'a self,
        image: &ResolvedImage,
        layer: usize,
        _: Task<'a>,
    ) -> Result<Box<dyn Read + Send + 'a>, SourceError> {
        let blob = image.layer(layer)?;
        let found = self.find()?;
        let name = found
            .layers
            .get(layer)
            .ok_or(SourceError::NoSuchLayer { layer })?;
        let member = self
            .archive
            .member(name)
            .ok_or_else(|| self.not_an_archive(format!("it lacks `{name}`")))?;
        let what = format!("`{name}` of `{}`", self.archive.path().display());
        Ok(Box::new(Verified::new(member, what, None, blob.size)))
    }
}
