//! Manifests, indexes and configs: JSON documents become checked values.
//!
//! OCI image specification 1.1 ("Image Manifest", "Image Index", "Image Configuration") and Docker's "Image Manifest Version 2, Schema 2".
//! The structures are our own rather than the `oci-spec` crate's, since documents in the field break the specification in ways that do
//! not matter here (null for a list, missing media types, labels that are no strings), while confusion between an index and a manifest
//! (CVE-2021-41190) does matter and must be refused. What the config says about running is left to those who run.

use serde::Deserialize;

use super::LayerBlob;
use super::resolve::MediaKind;
use crate::digest::{Digest, DigestError};
use crate::platform::Platform;

/// Largest manifest or index that is read, in bytes (the limit that the distribution specification asks registries to accept).
pub(crate) const MAX_MANIFEST: u64 = 4 << 20;

/// Largest config that is read, in bytes.
pub(crate) const MAX_CONFIG: u64 = 8 << 20;

/// Most layers that an image may have. Engines stop at 127; images of package managers reach some hundred.
pub(crate) const MAX_LAYERS: usize = 1024;

/// How deep indexes may be nested.
pub(crate) const MAX_DEPTH: usize = 4;

/// Why a document is not that of an image which can be imported.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// The text is no JSON, or its fields have the wrong types.
    #[error("it is malformed: {0}")]
    Json(String),
    /// An image in the format before Docker 1.10.
    #[error(
        "it is in Docker's schema 1, which is no longer supported: push the image again with a current tool"
    )]
    Schema1,
    /// It can be read both as an index and as a manifest.
    #[error("it claims to be both an index and a manifest")]
    Confused,
    /// It says it is something else than it is.
    #[error("its media type is `{0}`, which does not fit its content")]
    MediaType(String),
    /// An OCI artifact (a chart, a signature, a model…).
    #[error("it is no container image but an artifact of type `{0}`")]
    Artifact(String),
    /// Neither an index nor a manifest.
    #[error("it is neither an image manifest nor an image index")]
    Unknown,
    /// A descriptor's digest is malformed.
    #[error("it holds a malformed digest")]
    Digest(#[from] DigestError),
    /// A layer that registries do not hold.
    #[error("layer {layer} is a foreign layer (`{media_type}`), which is not in the registry")]
    ForeignLayer {
        /// Position of the layer, 0 being the lowest.
        layer: usize,
        /// Its media type.
        media_type: String,
    },
    /// More layers than anyone needs.
    #[error("it has {0} layers, more than {MAX_LAYERS}")]
    TooManyLayers(usize),
    /// An image without layers.
    #[error("it has no layers")]
    NoLayers,
    /// The config lists another number of layers than the manifest.
    #[error("its config lists {diff_ids} layers, its manifest {layers}")]
    LayerCount {
        /// Layers in the config.
        diff_ids: usize,
        /// Layers in the manifest.
        layers: usize,
    },
    /// Indexes within indexes within indexes.
    #[error("indexes are nested more than {MAX_DEPTH} deep")]
    TooDeep,
}

/// A reference from one document to another, or to a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    pub(crate) platform: Option<Platform>,
    /// `org.opencontainers.image.ref.name`: the tag in an image layout.
    pub(crate) ref_name: Option<String>,
    /// `io.containerd.image.name`: the full name, where containerd or docker wrote the layout.
    pub(crate) full_name: Option<String>,
}

/// An index or manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Document {
    /// The manifests of several platforms.
    Index(Vec<Descriptor>),
    /// One image.
    Manifest(Manifest),
}

/// An image manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    /// Lowest first.
    pub(crate) layers: Vec<Descriptor>,
}

/// What the config says about the image's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConfigFacts {
    /// None where the config does not say.
    pub(crate) platform: Option<Platform>,
    /// Digests of the uncompressed layers, lowest first.
    pub(crate) diff_ids: Vec<Digest>,
}

#[derive(Deserialize)]
struct RawDocument {
    #[serde(rename = "schemaVersion")]
    schema_version: Option<u64>,
    #[serde(rename = "mediaType")]
    media_type: Option<String>,
    #[serde(rename = "artifactType")]
    artifact_type: Option<String>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
    manifests: Option<Vec<RawDescriptor>>,
    #[serde(rename = "fsLayers")]
    fs_layers: Option<serde::de::IgnoredAny>,
    blobs: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct RawDescriptor {
    #[serde(rename = "mediaType", default)]
    media_type: Option<String>,
    digest: String,
    size: u64,
    platform: Option<RawPlatform>,
    annotations: Option<RawAnnotations>,
}

#[derive(Deserialize)]
struct RawAnnotations {
    #[serde(rename = "org.opencontainers.image.ref.name")]
    ref_name: Option<String>,
    #[serde(rename = "io.containerd.image.name")]
    full_name: Option<String>,
}

#[derive(Deserialize)]
struct RawPlatform {
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
}

#[derive(Deserialize)]
struct RawConfig {
    #[serde(flatten)]
    platform: RawPlatform,
    rootfs: Option<RawRootFs>,
}

#[derive(Deserialize)]
struct RawRootFs {
    diff_ids: Option<Vec<String>>,
}

impl RawPlatform {
    fn checked(self) -> Option<Platform> {
        let architecture = self.architecture.filter(|text| !text.is_empty())?;
        let mut platform = Platform::linux(&architecture);
        if let Some(os) = self.os.filter(|text| !text.is_empty()) {
            platform.os = os;
        }
        if let Some(variant) = self.variant {
            platform.variant = variant;
        }
        Some(platform)
    }
}

impl RawDescriptor {
    fn checked(self) -> Result<Descriptor, DocumentError> {
        let (ref_name, full_name) = self
            .annotations
            .map_or((None, None), |raw| (raw.ref_name, raw.full_name));
        Ok(Descriptor {
            media_type: self.media_type.unwrap_or_default(),
            digest: self.digest.parse()?,
            size: self.size,
            platform: self.platform.and_then(RawPlatform::checked),
            ref_name,
            full_name,
        })
    }
}

/// Reads an index or manifest. `announced` is the media type that came with it, from a descriptor or a `Content-Type`; empty if none.
pub(crate) fn parse_document(text: &[u8], announced: &str) -> Result<Document, DocumentError> {
    let raw: RawDocument =
        serde_json::from_slice(text).map_err(|error| DocumentError::Json(error.to_string()))?;
    if raw.schema_version == Some(1) || raw.fs_layers.is_some() {
        return Err(DocumentError::Schema1);
    }
    let stated = raw.media_type.unwrap_or_default();
    let fits = |kind: MediaKind| {
        for media_type in [stated.as_str(), announced] {
            match MediaKind::of(media_type) {
                Some(other) if other != kind => {
                    return Err(DocumentError::MediaType(media_type.to_owned()));
                }
                _ => {}
            }
        }
        Ok(())
    };
    match (raw.manifests, raw.config, raw.layers) {
        (Some(_), Some(_), _) | (Some(_), _, Some(_)) => Err(DocumentError::Confused),
        (Some(manifests), None, None) => {
            fits(MediaKind::Index)?;
            let manifests = manifests.into_iter().filter_map(|raw| {
                // Entries of other algorithms cannot be fetched, but need not be the one that is wanted.
                raw.checked().ok()
            });
            Ok(Document::Index(manifests.collect()))
        }
        (None, Some(config), Some(layers)) => {
            fits(MediaKind::Manifest)?;
            if let Some(artifact_type) = raw.artifact_type.filter(|text| !text.is_empty()) {
                return Err(DocumentError::Artifact(artifact_type));
            }
            let config = config.checked()?;
            if !is_image_config(&config.media_type) {
                return Err(DocumentError::Artifact(config.media_type));
            }
            if layers.len() > MAX_LAYERS {
                return Err(DocumentError::TooManyLayers(layers.len()));
            }
            if layers.is_empty() {
                return Err(DocumentError::NoLayers);
            }
            let layers = layers
                .into_iter()
                .enumerate()
                .map(|(layer, raw)| check_layer(layer, raw.checked()?))
                .collect::<Result<_, _>>()?;
            Ok(Document::Manifest(Manifest { config, layers }))
        }
        _ => match raw.artifact_type.or(raw.blobs.map(|_| stated)) {
            Some(artifact_type) => Err(DocumentError::Artifact(artifact_type)),
            None => Err(DocumentError::Unknown),
        },
    }
}

fn is_image_config(media_type: &str) -> bool {
    matches!(
        media_type,
        "" | "application/vnd.oci.image.config.v1+json"
            | "application/vnd.docker.container.image.v1+json"
            // Pushed so by Docker before 1.10.
            | "application/octet-stream"
    )
}

fn check_layer(layer: usize, descriptor: Descriptor) -> Result<Descriptor, DocumentError> {
    let media_type = descriptor.media_type.as_str();
    if media_type.starts_with("application/vnd.docker.image.rootfs.foreign.")
        || media_type.starts_with("application/vnd.oci.image.layer.nondistributable.")
    {
        return Err(DocumentError::ForeignLayer {
            layer,
            media_type: media_type.to_owned(),
        });
    }
    let is_layer = media_type.is_empty()
        || media_type.starts_with("application/vnd.oci.image.layer.v1.tar")
        || media_type.starts_with("application/vnd.docker.image.rootfs.diff.tar")
        || media_type == "application/vnd.docker.container.image.rootfs.diff+x-gtar";
    if !is_layer || media_type.contains("+encrypted") {
        return Err(DocumentError::Artifact(media_type.to_owned()));
    }
    Ok(descriptor)
}

/// Reads a config.
pub(crate) fn parse_config(text: &[u8]) -> Result<ConfigFacts, DocumentError> {
    let raw: RawConfig =
        serde_json::from_slice(text).map_err(|error| DocumentError::Json(error.to_string()))?;
    let diff_ids = raw
        .rootfs
        .and_then(|rootfs| rootfs.diff_ids)
        .unwrap_or_default();
    if diff_ids.len() > MAX_LAYERS {
        return Err(DocumentError::TooManyLayers(diff_ids.len()));
    }
    Ok(ConfigFacts {
        platform: raw.platform.checked(),
        diff_ids: diff_ids
            .iter()
            .map(|text| text.parse())
            .collect::<Result<_, _>>()?,
    })
}

/// Joins what the manifest and the config say about the layers.
pub(crate) fn join_layers(
    manifest: &Manifest,
    facts: &ConfigFacts,
) -> Result<Vec<LayerBlob>, DocumentError> {
    if manifest.layers.len() != facts.diff_ids.len() {
        return Err(DocumentError::LayerCount {
            diff_ids: facts.diff_ids.len(),
            layers: manifest.layers.len(),
        });
    }
    let layers = manifest.layers.iter().zip(&facts.diff_ids);
    Ok(layers
        .map(|(descriptor, diff_id)| LayerBlob {
            digest: Some(descriptor.digest),
            size: Some(descriptor.size),
            diff_id: Some(*diff_id),
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

    fn descriptor(media_type: &str) -> String {
        format!(r#"{{"mediaType":"{media_type}","digest":"sha256:{HEX}","size":7}}"#)
    }

    fn manifest(config_type: &str, layer_type: &str) -> String {
        let (config, layer) = (descriptor(config_type), descriptor(layer_type));
        format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{layer}]}}"#)
    }

    const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

    #[test]
    fn manifests_of_both_families_are_read() {
        for (config, layer) in [
            (CONFIG, LAYER),
            (CONFIG, "application/vnd.oci.image.layer.v1.tar"),
            (CONFIG, "application/vnd.oci.image.layer.v1.tar+zstd"),
            (
                "application/vnd.docker.container.image.v1+json",
                "application/vnd.docker.image.rootfs.diff.tar.gzip",
            ),
            ("", ""),
        ] {
            let Document::Manifest(manifest) =
                parse_document(manifest(config, layer).as_bytes(), OCI_MANIFEST).unwrap()
            else {
                panic!("{config} {layer}");
            };
            assert_eq!(manifest.layers.len(), 1);
            assert_eq!(manifest.config.size, 7);
        }
    }

    #[test]
    fn indexes_skip_what_cannot_be_fetched() {
        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[
                {{"digest":"sha512:00","size":1}},
                {{"mediaType":"{OCI_MANIFEST}","digest":"sha256:{HEX}","size":3,
                  "platform":{{"os":"linux","architecture":"arm64","variant":"v8"}},
                  "annotations":{{"org.opencontainers.image.ref.name":"1.0","other":"x"}}}},
                {{"digest":"sha256:{HEX}","size":3,"platform":null,"annotations":null}}]}}"#
        );
        let Document::Index(entries) = parse_document(index.as_bytes(), OCI_INDEX).unwrap() else {
            panic!("not an index");
        };
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[0].platform, Some(Platform::linux("arm64/v8")));
        assert_eq!(entries[0].ref_name.as_deref(), Some("1.0"));
        assert_eq!(entries[1].platform, None);
    }

    #[test]
    fn what_is_no_image_is_refused_by_name() {
        let both = format!(
            r#"{{"config":{0},"layers":[{0}],"manifests":[{0}]}}"#,
            descriptor(CONFIG)
        );
        let many = format!(
            r#"{{"config":{},"layers":[{}]}}"#,
            descriptor(CONFIG),
            vec![descriptor(LAYER); MAX_LAYERS + 1].join(",")
        );
        let none = format!(r#"{{"config":{},"layers":[]}}"#, descriptor(CONFIG));
        let lying =
            manifest(CONFIG, LAYER).replacen('{', &format!(r#"{{"mediaType":"{OCI_INDEX}","#), 1);
        let artifact = manifest(CONFIG, LAYER).replacen('{', r#"{"artifactType":"x/y","#, 1);
        let negative = manifest(CONFIG, LAYER).replace("7", "-7");
        let upper = manifest(CONFIG, LAYER).replace(HEX, &HEX.to_uppercase());
        for (text, announced, expected) in [
            (r#"{"schemaVersion":1,"fsLayers":[]}"#, "", "schema 1"),
            ("[]", "", "malformed"),
            ("{}", "", "neither"),
            ("", "", "malformed"),
            (&both, "", "both"),
            (&many, "", "1025 layers"),
            (&none, "", "no layers"),
            (&lying, "", "does not fit"),
            (&manifest(CONFIG, LAYER), OCI_INDEX, "does not fit"),
            (&artifact, "", "artifact of type `x/y`"),
            (&negative, "", "malformed"),
            (&upper, "", "malformed digest"),
            (
                &manifest("application/vnd.cncf.helm.config.v1+json", LAYER),
                "",
                "helm",
            ),
            (
                &manifest(CONFIG, "application/vnd.in-toto+json"),
                "",
                "in-toto",
            ),
            (
                &manifest(
                    CONFIG,
                    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
                ),
                "",
                "foreign layer",
            ),
            (
                r#"{"mediaType":"application/vnd.oci.artifact.manifest.v1+json","blobs":[]}"#,
                "",
                "artifact",
            ),
        ] {
            let error = parse_document(text.as_bytes(), announced).unwrap_err();
            assert!(error.to_string().contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn deep_json_is_an_error() {
        let deep = "[".repeat(1 << 20);
        assert!(parse_document(deep.as_bytes(), "").is_err());
        let deep = format!(r#"{{"x":{deep}"#);
        assert!(parse_config(deep.as_bytes()).is_err());
    }

    #[test]
    fn configs_with_nulls_are_read() {
        let config = format!(
            r#"{{"architecture":"amd64","os":"linux","config":{{"Entrypoint":null,"Labels":null}},
                "history":null,"rootfs":{{"type":"layers","diff_ids":["sha256:{HEX}"]}}}}"#
        );
        let facts = parse_config(config.as_bytes()).unwrap();
        assert_eq!(facts.platform, Some(Platform::linux("amd64")));
        assert_eq!(facts.diff_ids.len(), 1);
        for empty in [
            "{}",
            r#"{"rootfs":null,"architecture":""}"#,
            r#"{"rootfs":{"diff_ids":null}}"#,
        ] {
            let facts = parse_config(empty.as_bytes()).unwrap();
            assert_eq!((facts.platform, facts.diff_ids.len()), (None, 0), "{empty}");
        }
    }

    #[test]
    fn config_and_manifest_must_agree_on_the_number_of_layers() {
        let Document::Manifest(manifest) =
            parse_document(manifest(CONFIG, LAYER).as_bytes(), "").unwrap()
        else {
            panic!("not a manifest");
        };
        let facts = parse_config(b"{}").unwrap();
        assert_eq!(
            join_layers(&manifest, &facts),
            Err(DocumentError::LayerCount {
                diff_ids: 0,
                layers: 1
            })
        );
    }

    proptest! {
        #[test]
        fn nothing_panics(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_document(&text, "");
            let _ = parse_config(&text);
        }
    }
}
