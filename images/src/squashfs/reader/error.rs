//! What can go wrong when an image is read.

use std::io;

/// An image that cannot be read. Offsets are bytes from the start of the image.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The operating system refused to read.
    #[error("cannot read {length} bytes at offset {offset} of the image")]
    Io {
        /// Where the read began.
        offset: u64,
        /// How much was asked for.
        length: usize,
        /// The refusal.
        #[source]
        source: io::Error,
    },
    /// The operating system does not tell how large the file is.
    #[error("cannot tell the size of the image")]
    Size(#[source] io::Error),
    /// The file does not begin like a squashfs image.
    #[error("not a squashfs image")]
    NotSquashfs,
    /// A directory has been opened.
    #[error("it is a directory")]
    Directory,
    /// A squashfs of another version.
    #[error("squashfs version {major}.{minor} is not supported, only 4.0 is")]
    Version {
        /// Version before the dot.
        major: u16,
        /// Version after the dot.
        minor: u16,
    },
    /// The file ends before the image does.
    #[error(
        "the image is truncated: it should have {expected} bytes, but the file has only {actual}"
    )]
    Truncated {
        /// Size according to the superblock.
        expected: u64,
        /// Size of the file behind the image's start.
        actual: u64,
    },
    /// The image is compressed in a way that we cannot read.
    #[error("compressor number {0} of the image is not supported")]
    Compressor(u16),
    /// Something in the image contradicts the format.
    #[error("the image is corrupt: {what} (at {offset})")]
    Corrupt {
        /// What is wrong.
        what: &'static str,
        /// Where, as an offset or an inode reference, whichever `what` is about.
        offset: u64,
    },
    /// A block does not decompress, or to more or less than it should.
    #[error(
        "the image is corrupt: the {length} bytes at offset {offset} do not decompress: {reason}"
    )]
    Decompress {
        /// Where the block begins.
        offset: u64,
        /// How long it is.
        length: usize,
        /// What the decompressor says.
        reason: String,
    },
    /// A file has more blocks than this reader takes on (2^26, 8 TiB in blocks of 128 KiB).
    #[error("a file of {0} blocks is too large to be read")]
    TooManyBlocks(u64),
    /// The operation needs another type of inode.
    #[error("not a {0}")]
    WrongType(&'static str),
    /// More content than the caller allows.
    #[error("the content has {size} bytes, more than the {limit} allowed")]
    TooLarge {
        /// How much there is.
        size: u64,
        /// How much was allowed.
        limit: u64,
    },
}

impl ReadError {
    pub(super) const fn corrupt(what: &'static str, offset: u64) -> Self {
        Self::Corrupt { what, offset }
    }
}
