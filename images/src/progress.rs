//! What an import tells its caller while it works.

use crate::digest::Digest;
use crate::store::Holder;

/// Something that happened. Sizes are bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The manifest is known.
    Resolved {
        /// Digest of the image manifest, or of the config where the source has no manifest.
        digest: Digest,
        /// Sum of the sizes of all layer blobs as the source announces them.
        layer_bytes: u64,
        /// Number of layers.
        layers: usize,
    },
    /// A layer blob is taken from the store, nothing is fetched.
    LayerCached {
        /// Position of the layer in the manifest, 0 being the lowest.
        layer: usize,
        /// Digest of the blob.
        digest: Digest,
        /// Size of the blob.
        size: u64,
    },
    /// More bytes have arrived of an archive that must be here as a whole before it can be read.
    ArchiveReceived {
        /// Bytes that arrived since the last event.
        bytes: u64,
    },
    /// More bytes of a layer blob have arrived.
    LayerFetched {
        /// Position of the layer in the manifest, 0 being the lowest.
        layer: usize,
        /// Bytes that arrived since the last event of this layer.
        bytes: u64,
    },
    /// All bytes of a layer blob are here and verified.
    LayerComplete {
        /// Position of the layer in the manifest, 0 being the lowest.
        layer: usize,
    },
    /// More compressed bytes of a layer have been merged into the image.
    LayerMerged {
        /// Position of the layer in the manifest, 0 being the lowest.
        layer: usize,
        /// Compressed bytes merged since the last event of this layer.
        bytes: u64,
    },
    /// Another process makes what is needed, and is waited for. Sent again and again.
    Waiting {
        /// Position of the layer whose blob is waited for; None for the whole image.
        layer: Option<usize>,
        /// Who makes it, and how far it is.
        holder: Holder,
    },
    /// Something that the user should know but that stops nothing.
    Warning(String),
}

/// A receiver of events; called from several threads.
pub trait Progress: Sync {
    /// Takes an event. Must be quick.
    fn event(&self, event: Event);
}

/// Ignores every event.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn event(&self, _: Event) {}
}
