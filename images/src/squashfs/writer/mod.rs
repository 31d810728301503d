//! Content streams in, an image file comes out.
//!
//! [`Writer::begin_file`] takes the content of one file after another, in whatever order the caller meets them, and gives each
//! a [`ContentId`]. [`Writer::finish`] takes the [`Tree`] that refers to them and writes the tables behind the data. Nothing
//! of an image is kept in memory but some 40 bytes a file and 4 bytes a block.
//!
//! - Content is compressed on [`Options::threads`] threads and written by one more, in the order of submission
//!   (`pipeline`). The image depends on the content and the order alone: equal calls give equal bytes.
//! - Files smaller than a block, and short tails of larger ones, share blocks ("fragments"), in order of submission: what
//!   is near in the source is near in the image. Longer tails are blocks of their own, which are read without decoding a shared one.
//! - Blocks of zeros are not stored. [`FileWriter::write_hole`] makes them without touching memory.
//! - Equal content is stored once. Tails are compared by the BLAKE3 of their content before they enter a fragment, the
//!   blocks of larger files by the BLAKE3 of what the compressor made of them.
//!
//! The layout is that of `mksquashfs`: superblock, compressor options, data and fragments, inodes, directories, fragment table,
//! export table, ids, xattrs. The kernel checks that the tables touch (`fs/squashfs/super.c`).

mod encoder;
mod file;
mod inodes;
mod metadata;
mod pipeline;
mod syncer;
mod tables;
mod xattrs;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

pub use self::file::FileWriter;
use self::pipeline::{Gone, Pipeline, Slot, Work};
use super::compression::{Compression, Compressor};
use super::format::{MAX_BLOCK_SIZE, METADATA_UNCOMPRESSED, MIN_BLOCK_SIZE, SUPERBLOCK_SIZE};
use crate::cancel::{Cancel, Cancelled};
use crate::tree::{ContentId, Tree};

/// Tails of files larger than a block go to a fragment when they are at most 1 / this of a block.
const SHORT_TAIL: u64 = 32;
/// Files that were kept back are stored uncompressed when they are at most 1 / this of all content.
const PLAIN_SHARE: u64 = 200;
/// Most blocks of all files together: 2 TiB of content in blocks of 128 KiB, 64 MiB of memory.
const MAX_BLOCKS: u64 = 1 << 24;

/// What the image is to be like.
#[derive(Clone, Debug)]
pub struct Options {
    /// How blocks are compressed.
    pub compression: Compression,
    /// Size of a block in bytes, a power of two from 4 KiB to 1 MiB.
    pub block_size: u32,
    /// Number of threads that compress; at least one. The image does not depend on it.
    pub threads: usize,
    /// Time of creation in seconds since 1970, for the superblock.
    pub mkfs_time: u32,
}

impl Default for Options {
    /// zstd level 1, 128 KiB blocks, as many threads as there are processors, created in 1970.
    fn default() -> Self {
        Self {
            compression: Compression::default(),
            block_size: 128 << 10,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            mkfs_time: 0,
        }
    }
}

/// What was written.
#[derive(Debug)]
pub struct Summary {
    /// The file, complete but not synchronized with the disk.
    pub file: File,
    /// Size of the file system in bytes; the file is longer by padding to a multiple of 4 KiB.
    pub bytes_used: u64,
    /// Number of inodes.
    pub inodes: u32,
    /// Size of all file content given to the writer, in bytes.
    pub content_bytes: u64,
    /// Size of all data blocks and fragments on disk, in bytes.
    pub stored_bytes: u64,
    /// How often the blocks or the tail of a file were found to be stored already.
    pub duplicates: u64,
}

/// Why an image cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The image file cannot be written: disk full, above all.
    #[error("cannot write the image")]
    Write(#[source] io::Error),
    /// The content of a file cannot be read ([`FileWriter::read_from`]).
    #[error("cannot read file content")]
    Read(#[source] io::Error),
    /// A compressor failed.
    #[error("cannot compress a block")]
    Compress(#[source] io::Error),
    /// A thread cannot be started.
    #[error("cannot start a thread")]
    Spawn(#[source] io::Error),
    /// The caller asked to stop.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// The writer was used after an error.
    #[error("the image was given up after an earlier error")]
    Stopped,
    /// The block size is no power of two from 4 KiB to 1 MiB.
    #[error("block size {0} is not a power of two from 4096 to 1048576")]
    BlockSize(u32),
    /// The compression level does not exist.
    #[error("compression `{0}` does not exist")]
    Compression(Compression),
    /// A file had less content than announced.
    #[error("file content ends {missing} bytes before its announced size of {announced}")]
    ContentShort {
        /// Announced size in bytes.
        announced: u64,
        /// How many bytes did not come.
        missing: u64,
    },
    /// A file had more content than announced.
    #[error("file content is longer than its announced size of {announced}")]
    ContentLong {
        /// Announced size in bytes.
        announced: u64,
    },
    /// A block of another image does not fit ([`FileWriter::copy_block`]).
    #[error("a block copied from another image has an impossible size or place")]
    CopiedBlock,
    /// A [`FileWriter`] was dropped before it was finished.
    #[error("a file was begun and not finished")]
    Unfinished,
    /// More content records than 2^32 - 1.
    #[error("too many files")]
    TooManyFiles,
    /// More blocks than memory is meant for.
    #[error("too much file content: more than {MAX_BLOCKS} blocks")]
    TooManyBlocks,
    /// More owners and groups than the format has room for.
    #[error("more than 65535 different owners and groups")]
    TooManyIds,
    /// The inode, directory or xattr table outgrew its 4 GiB.
    #[error("too many files or attributes for a squashfs image")]
    TooMuchMetadata,
    /// The name of a directory entry cannot be stored.
    #[error("name `{0}` is empty, reserved, longer than 256 bytes or contains `/` or a zero")]
    Name(String),
    /// The target of a symbolic link cannot be stored.
    #[error("target of a symbolic link has {0} bytes or contains a zero; 1 to 4095 are possible")]
    SymlinkTarget(usize),
    /// An extended attribute cannot be stored.
    #[error(
        "extended attribute `{name}` has a name longer than 255 bytes or a value ({size} bytes) longer than 65536"
    )]
    XattrSize {
        /// Name with its prefix.
        name: String,
        /// Size of the value in bytes.
        size: usize,
    },
    /// The root is no directory, or an entry leads to a directory that another leads to already.
    #[error("directories do not form a tree")]
    DirectoryLinks,
    /// The tree refers to content that this writer never got.
    #[error("file content {0} does not exist")]
    UnknownContent(u32),
}

/// A tail in a fragment.
#[derive(Clone, Copy, Debug)]
struct Tail {
    /// Index in the fragment table.
    fragment: u32,
    /// Offset in the uncompressed fragment, in bytes.
    offset: u32,
}

/// The content of a file: where it went.
#[derive(Clone, Copy, Debug)]
struct Content {
    /// Size in bytes.
    size: u64,
    /// Number of its run of blocks.
    run: Option<u32>,
    /// What is not in blocks.
    tail: Option<Tail>,
}

/// Writes an image. See the module's introduction.
pub struct Writer {
    options: Options,
    cancel: Cancel,
    /// Offset of the first data block in bytes.
    data_start: u64,
    /// None once something failed.
    pipeline: Option<Pipeline>,
    contents: Vec<Content>,
    content_bytes: u64,
    /// Blocks of all files, stored or not.
    blocks: u64,
    runs: u32,
    tails: HashMap<blake3::Hash, Tail>,
    duplicate_tails: u64,
    /// The fragment being filled, its index being the number of fragments before it.
    fragment: Option<Slot>,
    fragments: u32,
    /// A slot that turned out not to be needed.
    spare: Option<Slot>,
    /// Small files that are kept back, with the numbers of their contents.
    held: Vec<(usize, Vec<u8>)>,
    /// A file was begun.
    open: bool,
}

impl Writer {
    /// A writer to `file`, which is empty and open for writing. Starts the threads.
    pub fn new(file: File, options: Options, cancel: Cancel) -> Result<Self, WriteError> {
        let size = options.block_size;
        if !size.is_power_of_two() || !(MIN_BLOCK_SIZE..=MAX_BLOCK_SIZE).contains(&size) {
            return Err(WriteError::BlockSize(size));
        }
        if !encoder::is_valid(options.compression) {
            return Err(WriteError::Compression(options.compression));
        }
        let mut position = SUPERBLOCK_SIZE as u64;
        if let Some(recorded) = encoder::recorded_options(options.compression) {
            // A metadata block that is never compressed; a few bytes.
            let header = METADATA_UNCOMPRESSED | recorded.len() as u16;
            let block = [&header.to_le_bytes()[..], &recorded].concat();
            file.write_all_at(&block, position)
                .map_err(WriteError::Write)?;
            position += block.len() as u64;
        }
        Ok(Self {
            data_start: position,
            pipeline: Some(Pipeline::start(file, &options, position)?),
            options,
            cancel,
            contents: Vec::new(),
            content_bytes: 0,
            blocks: 0,
            runs: 0,
            tails: HashMap::new(),
            duplicate_tails: 0,
            fragment: None,
            fragments: 0,
            spare: None,
            held: Vec::new(),
            open: false,
        })
    }

    /// Begins the next file, whose content has exactly `size` bytes.
    pub fn begin_file(&mut self, size: u64) -> Result<FileWriter<'_>, WriteError> {
        if self.open {
            return Err(WriteError::Unfinished);
        }
        if self.contents.len() >= u32::MAX as usize {
            return Err(WriteError::TooManyFiles);
        }
        self.cancel.check()?;
        let block_size = u64::from(self.options.block_size);
        let odd = size % block_size;
        let tail = if size == odd || odd <= block_size / SHORT_TAIL {
            odd
        } else {
            0
        };
        let blocks = (size - tail).div_ceil(block_size);
        self.blocks = self
            .blocks
            .checked_add(blocks)
            .filter(|blocks| *blocks <= MAX_BLOCKS)
            .ok_or(WriteError::TooManyBlocks)?;
        self.open = true;
        Ok(FileWriter::new(self, size, tail))
    }

    /// Whether blocks of an image with this compressor, block size in bytes and recorded compressor options are what this writer
    /// would make, so that they need not be decompressed first.
    #[must_use]
    pub fn stores_like(
        &self,
        compressor: Compressor,
        block_size: u32,
        options: Option<&[u8]>,
    ) -> bool {
        let Options {
            compression,
            block_size: own,
            ..
        } = self.options;
        compression != Compression::None
            && encoder::compressor(compression) == compressor
            && own == block_size
            && encoder::recorded_options(compression).as_deref() == options
    }

    /// The whole of a small file at once.
    pub fn add_file(&mut self, content: &[u8]) -> Result<ContentId, WriteError> {
        let mut file = self.begin_file(content.len() as u64)?;
        file.write(content)?;
        file.finish()
    }

    /// The whole of a small file that is kept back: all such files stand together in a last fragment block of their own, so that reading them
    /// takes the decompression of one small block. What does not fit there is added as [`Self::add_file`] does.
    pub fn hold_file(&mut self, content: Vec<u8>) -> Result<ContentId, WriteError> {
        let held: usize = self.held.iter().map(|(_, content)| content.len()).sum();
        if content.is_empty() || held + content.len() > self.options.block_size as usize {
            return self.add_file(&content);
        }
        if self.open {
            return Err(WriteError::Unfinished);
        }
        let number = self.contents.len();
        let id = u32::try_from(number)
            .ok()
            .filter(|id| *id < u32::MAX)
            .ok_or(WriteError::TooManyFiles)?;
        self.cancel.check()?;
        let size = content.len() as u64;
        self.contents.push(Content {
            size,
            run: None,
            tail: None,
        });
        self.content_bytes = self.content_bytes.saturating_add(size);
        self.held.push((number, content));
        Ok(ContentId(id))
    }

    /// Completes the last fragment, and makes one of the files that were kept back.
    fn release(&mut self) -> Result<(), WriteError> {
        if let Some(full) = self.fragment.take() {
            self.submit(|pipeline| pipeline.block(full, Work::Fragment))?;
            self.fragments += 1;
        }
        if self.held.is_empty() {
            return Ok(());
        }
        let mut slot = self.slot()?;
        for (number, content) in std::mem::take(&mut self.held) {
            self.contents[number].tail = Some(Tail {
                fragment: self.fragments,
                // Less than a block.
                offset: slot.input.len() as u32,
            });
            slot.input.extend_from_slice(&content);
        }
        // Nobody waits for a decompressor then, which takes longer than all else that a start reads of the image.
        let is_small = slot.input.len() as u64 <= self.content_bytes / PLAIN_SHARE;
        let work = match is_small {
            true => Work::PlainFragment,
            false => Work::Fragment,
        };
        self.submit(|pipeline| pipeline.block(slot, work))
    }

    /// Changes [`Options::mkfs_time`], which may depend on what was written.
    pub fn set_mkfs_time(&mut self, time: u32) {
        self.options.mkfs_time = time;
    }

    /// Writes the tables for a tree, whose files refer to content given before, and completes the image.
    pub fn finish(mut self, tree: &Tree) -> Result<Summary, WriteError> {
        if self.open {
            return Err(WriteError::Unfinished);
        }
        self.cancel.check()?;
        self.release()?;
        self.spare = None;
        let appended = self.pipeline.take().ok_or(WriteError::Stopped)?.finish()?;
        self.cancel.check()?;
        let layout = tables::write(tree, &self.contents, &appended, &self.options)?;
        appended.syncer.finish()?;
        Ok(Summary {
            file: appended.file,
            bytes_used: layout.bytes_used,
            inodes: layout.inodes,
            content_bytes: self.content_bytes,
            stored_bytes: appended.position - self.data_start,
            duplicates: appended.duplicate_runs + self.duplicate_tails,
        })
    }

    /// Gives the pipeline something to do. If it has ended, finds out why, and stays unusable.
    fn submit<T>(
        &mut self,
        give: impl FnOnce(&Pipeline) -> Result<T, Gone>,
    ) -> Result<T, WriteError> {
        let pipeline = self.pipeline.as_ref().ok_or(WriteError::Stopped)?;
        give(pipeline).map_err(|Gone| match self.pipeline.take().map(Pipeline::finish) {
            Some(Err(error)) => error,
            Some(Ok(_)) | None => WriteError::Stopped,
        })
    }

    fn slot(&mut self) -> Result<Slot, WriteError> {
        match self.spare.take() {
            Some(mut slot) => {
                slot.input.clear();
                Ok(slot)
            }
            None => self.submit(Pipeline::slot),
        }
    }
}

impl Drop for Writer {
    /// Stops the threads and waits for them: nothing touches the file afterwards.
    fn drop(&mut self) {
        if let Some(pipeline) = self.pipeline.take() {
            pipeline.abort();
        }
    }
}
