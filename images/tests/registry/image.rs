//! A small image, built byte by byte, so that every digest is known.

use std::collections::BTreeMap;
use std::io::{Read, Write as _};
use std::path::Path;
use std::sync::Mutex;

use cista_images::cancel::Cancel;
use cista_images::digest::Digest;
use cista_images::platform::Platform;
use cista_images::progress::{Event, Progress};
use cista_images::source::{ResolvedImage, Source, SourceError, Task};

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// An image: all its blobs by digest.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) blobs: BTreeMap<Digest, Vec<u8>>,
    pub(crate) manifest: Digest,
    pub(crate) config: Digest,
    /// Lowest first.
    pub(crate) layers: Vec<Digest>,
    pub(crate) diff_ids: Vec<Digest>,
}

/// Bytes that do not compress, different for each seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        })
        .collect()
}

fn layer_tar(number: usize, size: usize) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let content = noise(number as u64 + 1, size);
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    builder
        .append_data(&mut header, format!("file{number}"), content.as_slice())
        .unwrap();
    builder.into_inner().unwrap()
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

impl Image {
    /// An image for an architecture with one layer of each of the given sizes.
    pub(crate) fn new(architecture: &str, sizes: &[usize]) -> Self {
        let mut blobs = BTreeMap::new();
        let mut keep = |content: Vec<u8>| {
            let digest = Digest::of(&content);
            blobs.insert(digest, content);
            digest
        };
        let tars: Vec<_> = sizes
            .iter()
            .enumerate()
            .map(|(number, size)| layer_tar(number, *size))
            .collect();
        let diff_ids: Vec<_> = tars.iter().map(|tar| Digest::of(tar)).collect();
        let packed: Vec<_> = tars.iter().map(|tar| gzip(tar)).collect();
        let descriptors: Vec<_> = packed
            .iter()
            .map(|blob| {
                serde_json::json!({
                    "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                    "digest": Digest::of(blob).to_string(),
                    "size": blob.len(),
                })
            })
            .collect();
        let layers: Vec<_> = packed.into_iter().map(&mut keep).collect();
        let config = serde_json::json!({
            "architecture": architecture,
            "os": "linux",
            "config": {"Cmd": ["sh"], "Entrypoint": null},
            "rootfs": {
                "type": "layers",
                "diff_ids": diff_ids.iter().map(Digest::to_string).collect::<Vec<_>>(),
            },
        });
        let config = serde_json::to_vec(&config).unwrap();
        let config_size = config.len();
        let config = keep(config);
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": config.to_string(),
                "size": config_size,
            },
            "layers": descriptors,
        });
        let manifest = keep(serde_json::to_vec(&manifest).unwrap());
        Self {
            blobs,
            manifest,
            config,
            layers,
            diff_ids,
        }
    }

    /// Three layers of some hundred KiB for amd64.
    pub(crate) fn small() -> Self {
        Self::new("amd64", &[300_000, 10, 700_000])
    }

    pub(crate) fn blob(&self, digest: Digest) -> &[u8] {
        &self.blobs[&digest]
    }

    /// The image as an entry of an index.
    pub(crate) fn entry(&self, platform: Option<&str>, name: Option<&str>) -> serde_json::Value {
        let mut entry = serde_json::json!({
            "mediaType": OCI_MANIFEST,
            "digest": self.manifest.to_string(),
            "size": self.blob(self.manifest).len(),
        });
        if let Some(platform) = platform {
            entry["platform"] = serde_json::json!({"os": "linux", "architecture": platform});
        }
        if let Some(name) = name {
            entry["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": name});
        }
        entry
    }
}

/// The text of an index.
pub(crate) fn index(entries: &[serde_json::Value]) -> Vec<u8> {
    serde_json::to_vec(&serde_json::json!({
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": entries,
    }))
    .unwrap()
}

/// Writes an OCI image layout.
pub(crate) fn write_layout(directory: &Path, images: &[&Image], index: &[u8]) {
    let blobs = directory.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    std::fs::write(
        directory.join("oci-layout"),
        br#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .unwrap();
    std::fs::write(directory.join("index.json"), index).unwrap();
    for image in images {
        for (digest, content) in &image.blobs {
            std::fs::write(blobs.join(digest.hex()), content).unwrap();
        }
    }
}

/// Remembers every event.
#[derive(Debug, Default)]
pub(crate) struct Recorder(pub(crate) Mutex<Vec<Event>>);

impl Progress for Recorder {
    fn event(&self, event: Event) {
        self.0.lock().unwrap().push(event);
    }
}

impl Recorder {
    pub(crate) fn events(&self) -> Vec<Event> {
        self.0.lock().unwrap().clone()
    }

    pub(crate) fn fetched(&self, wanted: usize) -> u64 {
        self.events()
            .iter()
            .map(|event| match event {
                Event::LayerFetched { layer, bytes } if *layer == wanted => *bytes,
                _ => 0,
            })
            .sum()
    }

    pub(crate) fn cached(&self) -> usize {
        self.count(|event| matches!(event, Event::LayerCached { .. }))
    }

    pub(crate) fn complete(&self) -> usize {
        self.count(|event| matches!(event, Event::LayerComplete { .. }))
    }

    fn count(&self, wanted: impl Fn(&Event) -> bool) -> usize {
        self.events().iter().filter(|event| wanted(event)).count()
    }
}

/// Resolves for amd64.
pub(crate) fn resolve(source: &dyn Source) -> Result<ResolvedImage, SourceError> {
    let (recorder, cancel) = (Recorder::default(), Cancel::new());
    let task = Task {
        progress: &recorder,
        cancel: &cancel,
    };
    source.resolve(&Platform::linux("amd64"), task)
}

/// Resolves for amd64 and reads all layers from the top; lowest first in the result.
pub(crate) fn pull(
    source: &dyn Source,
    recorder: &Recorder,
) -> Result<(ResolvedImage, Vec<Vec<u8>>), String> {
    let cancel = Cancel::new();
    let task = Task {
        progress: recorder,
        cancel: &cancel,
    };
    let show = |error: &dyn std::error::Error| {
        let mut text = error.to_string();
        let mut next = error.source();
        while let Some(error) = next {
            text.push_str(": ");
            text.push_str(&error.to_string());
            next = error.source();
        }
        text
    };
    let image = source
        .resolve(&Platform::linux("amd64"), task)
        .map_err(|error| show(&error))?;
    let mut layers = Vec::new();
    for layer in (0..image.layers.len()).rev() {
        let mut content = Vec::new();
        source
            .open_layer(&image, layer, task)
            .map_err(|error| show(&error))?
            .read_to_end(&mut content)
            .map_err(|error| show(&error))?;
        layers.push(content);
    }
    layers.reverse();
    Ok((image, layers))
}

/// Checks that a pull gave exactly the image, blobs as stored.
pub(crate) fn check(image: &Image, resolved: &ResolvedImage, layers: &[Vec<u8>]) {
    assert_eq!(resolved.digest, Some(image.manifest));
    assert_eq!(resolved.config.as_deref(), Some(image.blob(image.config)));
    let diff_ids: Vec<_> = resolved
        .layers
        .iter()
        .map(|layer| layer.diff_id.unwrap())
        .collect();
    assert_eq!(diff_ids, image.diff_ids);
    let digests: Vec<_> = layers.iter().map(|layer| Digest::of(layer)).collect();
    assert_eq!(digests, image.layers);
}
