//! Metadata blocks: the 8 KiB pieces in which squashfs stores everything but file content.
//!
//! A table is a stream of bytes cut into blocks of 8192 bytes before compression; each is preceded by 16 bits that say its
//! size on disk and whether it is compressed. Tables with entries of a fixed size are found through a list of the offsets of
//! their blocks.

use super::WriteError;
use super::encoder::{self, Encoder};
use crate::squashfs::compression::Compression;
use crate::squashfs::format::{METADATA_BLOCK, METADATA_UNCOMPRESSED};

/// Compresses metadata blocks.
pub(super) struct Packer {
    /// None where they are stored as they are.
    encoder: Option<Encoder>,
    output: Vec<u8>,
}

impl Packer {
    /// A packer that compresses, or one that stores blocks as they are.
    pub(super) fn new(
        compression: Compression,
        block_size: u32,
        is_plain: bool,
    ) -> Result<Self, WriteError> {
        let encoder = || Encoder::new(compression, block_size).map_err(WriteError::Compress);
        Ok(Self {
            encoder: (!is_plain).then(encoder).transpose()?,
            output: vec![0; encoder::output_size(compression, METADATA_BLOCK)],
        })
    }

    fn pack(&mut self, block: &[u8], packed: &mut Vec<u8>) -> Result<(), WriteError> {
        let compressed = match &mut self.encoder {
            Some(encoder) => encoder
                .compress(block, &mut self.output)
                .map_err(WriteError::Compress)?,
            None => None,
        };
        let (flag, stored) = match compressed {
            Some(size) => (0, &self.output[..size]),
            None => (METADATA_UNCOMPRESSED, block),
        };
        // At most 8192.
        let header = stored.len() as u16 | flag;
        packed.extend_from_slice(&header.to_le_bytes());
        packed.extend_from_slice(stored);
        Ok(())
    }
}

/// Where something stands in a [`Stream`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    /// Offset of the metadata block from the start of the table, in bytes.
    pub(super) block: u32,
    /// Offset in the uncompressed block, in bytes.
    pub(super) offset: u16,
}

/// A table that is a stream of records of any size.
#[derive(Default)]
pub(super) struct Stream {
    /// Blocks that nobody took yet.
    packed: Vec<u8>,
    /// Bytes taken before those.
    taken: u64,
    /// The block being filled.
    block: Vec<u8>,
}

impl Stream {
    /// Where the next byte will stand. Fails when that is further than 4 GiB from the table's start.
    pub(super) fn position(&self) -> Result<Position, WriteError> {
        Ok(Position {
            block: u32::try_from(self.size()).map_err(|_| WriteError::TooMuchMetadata)?,
            // A full block is packed at once.
            offset: self.block.len() as u16,
        })
    }

    pub(super) fn write(
        &mut self,
        mut bytes: &[u8],
        packer: &mut Packer,
    ) -> Result<(), WriteError> {
        while !bytes.is_empty() {
            let room = METADATA_BLOCK - self.block.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.block.extend_from_slice(now);
            bytes = later;
            if self.block.len() == METADATA_BLOCK {
                self.flush(packer)?;
            }
        }
        Ok(())
    }

    /// Ends the last block.
    pub(super) fn flush(&mut self, packer: &mut Packer) -> Result<(), WriteError> {
        if !self.block.is_empty() {
            packer.pack(&self.block, &mut self.packed)?;
            self.block.clear();
        }
        Ok(())
    }

    /// Size on disk of the blocks so far, in bytes.
    pub(super) fn size(&self) -> u64 {
        self.taken + self.packed.len() as u64
    }

    /// The blocks since the last time; the stream forgets them.
    pub(super) fn take(&mut self) -> Vec<u8> {
        self.taken += self.packed.len() as u64;
        std::mem::take(&mut self.packed)
    }
}

/// The blocks of a table that begins at `start`, and the list of their offsets. Its entries have a size that divides 8192.
pub(super) fn lookup_blocks(
    entries: &[u8],
    start: u64,
    packer: &mut Packer,
) -> Result<(Vec<u8>, Vec<u8>), WriteError> {
    let mut packed = Vec::new();
    let mut offsets = Vec::new();
    for block in entries.chunks(METADATA_BLOCK) {
        offsets.extend_from_slice(&(start + packed.len() as u64).to_le_bytes());
        packer.pack(block, &mut packed)?;
    }
    Ok((packed, offsets))
}
