//! Where an image comes from: one trait, one file a kind of source.

use std::io::Read;

use crate::cancel::Cancel;
use crate::digest::Digest;
use crate::platform::Platform;
use crate::progress::Progress;

/// A layer blob as the manifest announces it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerBlob {
    /// Digest of the blob as stored; None where the source has none (a plain tar file, old docker-archives).
    pub digest: Option<Digest>,
    /// Size of the blob as stored, in bytes; None where it is not known before it was read (standard input).
    pub size: Option<u64>,
    /// Digest of the uncompressed tar as the config announces it; None without a config.
    pub diff_id: Option<Digest>,
}

/// An image whose manifest and config are known and verified.
#[derive(Clone, Debug)]
pub struct ResolvedImage {
    /// The reference in canonical form, as provenance: `docker://registry/name:tag`.
    pub reference: String,
    /// Digest of the image manifest; of the config for docker-archives; None for plain root file systems.
    pub digest: Option<Digest>,
    /// The image config as its JSON text (OCI image specification, "Image Configuration"); None for plain root file systems.
    pub config: Option<Vec<u8>>,
    /// The layers, lowest first, as in the manifest.
    pub layers: Vec<LayerBlob>,
}

/// What an operation on a source needs from its caller.
#[derive(Clone, Copy)]
pub struct Task<'a> {
    /// Is told what happens.
    pub progress: &'a dyn Progress,
    /// Stops the operation.
    pub cancel: &'a Cancel,
}

/// A place that images come from.
pub trait Source: Send + Sync {
    /// Finds the image for a platform; fetches and verifies its manifest and config.
    fn resolve(&self, platform: &Platform, task: Task<'_>) -> Result<ResolvedImage, SourceError>;

    /// Opens a layer (0 is the lowest) for reading from its first byte.
    ///
    /// The stream is the blob as stored, still compressed. It is verified: a stream whose size or digest is not the announced one ends
    /// in an error of [`std::io::Error`] in place of the end of file. Bytes may be read before the whole blob has arrived. May be called
    /// again for the same layer, except on sources that cannot seek, which say so.
    fn open_layer<'a>(
        &'a self,
        image: &ResolvedImage,
        layer: usize,
        task: Task<'a>,
    ) -> Result<Box<dyn Read + Send + 'a>, SourceError>;
}

/// Why a source cannot give an image.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {}
