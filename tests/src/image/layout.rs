//! Writing and reading OCI layouts: `oci-layout`, `index.json`, `blobs/sha256` (image-spec, "OCI Image Layout Specification").

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::error::{HarnessError, IoContext as _};
use crate::listing::hex;

use super::layer::{Compression, LayerWriter};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// A blob as a manifest names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptor {
    /// Media type.
    #[serde(rename = "mediaType")]
    pub media_type: String,
    /// `sha256:…` of the blob.
    pub digest: String,
    /// Size of the blob in bytes.
    pub size: u64,
    /// Of layers: `sha256:…` of the uncompressed tar. It stands in the config, and is no part of the descriptor's JSON.
    #[serde(skip)]
    pub diff_id: Option<String>,
}

/// What a manifest says, as far as the tests need it.
#[derive(Clone, Debug, Deserialize)]
pub struct Manifest {
    /// The image config.
    pub config: Descriptor,
    /// The layers, lowest first.
    pub layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Config {
    rootfs: RootFileSystem,
}

#[derive(Deserialize)]
struct RootFileSystem {
    diff_ids: Vec<String>,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

/// What the config of an image says about running it.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct RunConfig {
    /// `NAME=VALUE`.
    pub env: Vec<String>,
    /// The program and its first arguments.
    pub entrypoint: Vec<String>,
    /// Default arguments.
    pub cmd: Vec<String>,
    /// Working directory; empty for none.
    pub working_dir: String,
    /// Labels.
    pub labels: std::collections::BTreeMap<String, String>,
}

/// An OCI layout that is being written.
#[derive(Debug)]
pub struct LayoutWriter {
    root: PathBuf,
    layers: Vec<Descriptor>,
}

impl LayoutWriter {
    /// Begins a layout in a directory, which is made.
    pub fn create(root: &Path) -> Result<Self, HarnessError> {
        let blobs = root.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).context("create", &blobs)?;
        let marker = root.join("oci-layout");
        std::fs::write(&marker, r#"{"imageLayoutVersion":"1.0.0"}"#).context("write", &marker)?;
        Ok(Self {
            root: root.to_owned(),
            layers: Vec::new(),
        })
    }

    /// The directory of the blobs.
    #[must_use]
    pub fn blobs(&self) -> PathBuf {
        self.root.join("blobs/sha256")
    }

    /// Adds a layer on top, which `fill` writes.
    pub fn layer(
        &mut self,
        compression: Compression,
        fill: impl FnOnce(&mut LayerWriter) -> Result<(), HarnessError>,
    ) -> Result<(), HarnessError> {
        let mut writer = LayerWriter::create(&self.blobs(), compression)?;
        fill(&mut writer)?;
        let descriptor = writer.finish()?;
        self.push(descriptor);
        Ok(())
    }

    /// Adds a layer on top whose blob is in [`Self::blobs`] already.
    pub fn push(&mut self, layer: Descriptor) {
        self.layers.push(layer);
    }

    /// Adds a layer on top that another layout has, by hard link.
    pub fn borrow(&mut self, from: &Layout, layer: &Descriptor) -> Result<(), HarnessError> {
        let blob = from.blob(&layer.digest);
        let here = self.blobs().join(blob.file_name().unwrap_or_default());
        if !here.exists() {
            std::fs::hard_link(&blob, &here).context("link to", &here)?;
        }
        self.push(layer.clone());
        Ok(())
    }

    /// Writes config, manifest and index, and returns the layout.
    pub fn finish(self, tag: &str, config: &RunConfig) -> Result<Layout, HarnessError> {
        let config = serde_json::json!({
            "created": "2024-01-01T00:00:00Z",
            "architecture": architecture(),
            "os": "linux",
            "config": config,
            "rootfs": {
                "type": "layers",
                "diff_ids": self.layers.iter().map(|layer| &layer.diff_id).collect::<Vec<_>>(),
            },
            "history": self.layers.iter().map(|_| serde_json::json!({
                "created": "2024-01-01T00:00:00Z", "created_by": "the tests of cista",
            })).collect::<Vec<_>>(),
        });
        let config = self.blob(CONFIG, config.to_string().as_bytes())?;
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": self.layers,
        });
        let manifest = self.blob(MANIFEST, manifest.to_string().as_bytes())?;
        self.index(&manifest, tag)?;
        Layout::open(&self.root)
    }

    /// Writes a blob of bytes.
    pub fn blob(&self, media_type: &str, bytes: &[u8]) -> Result<Descriptor, HarnessError> {
        let digest = hex(&Sha256::digest(bytes));
        let path = self.blobs().join(&digest);
        std::fs::write(&path, bytes).context("write", &path)?;
        Ok(Descriptor {
            media_type: media_type.to_owned(),
            digest: format!("sha256:{digest}"),
            size: bytes.len() as u64,
            diff_id: None,
        })
    }

    /// Writes the index with one manifest under a tag.
    pub fn index(&self, manifest: &Descriptor, tag: &str) -> Result<(), HarnessError> {
        let index = serde_json::json!({
            "schemaVersion": 2,
            "manifests": [{
                "mediaType": manifest.media_type, "digest": manifest.digest, "size": manifest.size,
                "platform": { "os": "linux", "architecture": architecture() },
                "annotations": { "org.opencontainers.image.ref.name": tag },
            }],
        });
        let path = self.root.join("index.json");
        std::fs::write(&path, index.to_string()).context("write", &path)
    }
}

/// An OCI layout on disk with one image.
#[derive(Clone, Debug)]
pub struct Layout {
    root: PathBuf,
    /// Digest of the image's manifest, `sha256:…`.
    pub manifest_digest: String,
    /// The image's manifest.
    pub manifest: Manifest,
}

impl Layout {
    /// Opens the layout in a directory.
    pub fn open(root: &Path) -> Result<Self, HarnessError> {
        let index: Index = read_json(&root.join("index.json"))?;
        let [entry] = index.manifests.as_slice() else {
            return Err(HarnessError::Malformed {
                what: root.display().to_string(),
                why: format!("it holds {} images", index.manifests.len()),
            });
        };
        let mut manifest: Manifest = read_json(&blob_path(root, &entry.digest))?;
        let config: Config = read_json(&blob_path(root, &manifest.config.digest))?;
        for (layer, diff_id) in manifest.layers.iter_mut().zip(config.rootfs.diff_ids) {
            layer.diff_id = Some(diff_id);
        }
        Ok(Self {
            root: root.to_owned(),
            manifest_digest: entry.digest.clone(),
            manifest,
        })
    }

    /// Its directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The file of a blob.
    #[must_use]
    pub fn blob(&self, digest: &str) -> PathBuf {
        blob_path(&self.root, digest)
    }

    /// Sum of the sizes of the layer blobs, in bytes.
    #[must_use]
    pub fn layer_bytes(&self) -> u64 {
        self.manifest.layers.iter().map(|layer| layer.size).sum()
    }
}

fn blob_path(root: &Path, digest: &str) -> PathBuf {
    root.join("blobs").join(digest.replacen(':', "/", 1))
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, HarnessError> {
    let text = std::fs::read(path).context("read", path)?;
    serde_json::from_slice(&text).map_err(|source| HarnessError::Json {
        what: path.display().to_string(),
        source,
    })
}

/// This machine's architecture, as OCI names it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
