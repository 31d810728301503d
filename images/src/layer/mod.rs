//! A layer blob becomes tar entries: decompress, verify, parse.
//!
//! A layer is a tar stream (POSIX.1-2017 pax interchange format, ustar, GNU tar, V7), mostly compressed. Media types
//! lie in the field, so the compression is recognised by its first bytes. Nothing in a layer is trusted: every number
//! is checked, every buffer bounded, and what is not understood is refused rather than guessed.
//!
//! - [`decompress`]: gzip, zstd, xz and plain streams, with a limit on expansion
//! - [`tar`]: headers, extended headers, content with its holes
//! - [`pax`], [`sparse`], [`path`]: the parts of the format that have rules of their own
//! - [`ahead`]: layers are decoded by threads of their own, ahead of the merge

use std::fmt;

use crate::digest::Digest;

pub mod ahead;
pub mod decompress;
pub mod path;
pub mod pax;
pub mod sparse;
pub mod tar;

/// Size of a tar block in bytes; headers are one block, content is padded to whole blocks.
pub const BLOCK: usize = 512;

/// What a layer may cost before it counts as an attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes that every stream may expand to, however small it is.
    pub expansion_floor: u64,
    /// Bytes that a stream may expand to beyond the floor, for each of its own.
    pub expansion_ratio: u64,
    /// Names that an image may have, over all layers.
    pub names: u64,
}

impl Default for Limits {
    /// Far beyond any image seen: 16 GiB plus a hundred times the blob's size, 16 million names.
    fn default() -> Self {
        Self {
            expansion_floor: 16 << 30,
            expansion_ratio: 100,
            names: 16 << 20,
        }
    }
}

/// Names a layer in messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerName {
    /// Position in the manifest, 0 being the lowest.
    pub index: usize,
    /// Digest of the blob, where the source has one.
    pub digest: Option<Digest>,
}

impl fmt::Display for LayerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "layer {}", self.index + 1)?;
        match self.digest {
            Some(digest) => write!(f, " (`{digest}`)"),
            None => Ok(()),
        }
    }
}
