//! Metadata blocks: the 8 KiB pieces in which every table of an image is stored.
//!
//! A block is a 16-bit header (stored size, and whether it is compressed) and its bytes; the next one follows
//! directly. Records cross block borders freely, so readers use a [`Cursor`]. Decoded blocks are kept in a small
//! set-associative cache with a lock for each set: lookups come from many threads and must not wait for each other.

use std::sync::{Arc, Mutex, PoisonError};

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use super::{ReadError, Reader};
use crate::squashfs::format::{METADATA_BLOCK, METADATA_UNCOMPRESSED};

const SETS: usize = 256;
const WAYS: usize = 4;

/// A decoded metadata block.
#[derive(Debug)]
pub(super) struct MetadataBlock {
    /// At most [`METADATA_BLOCK`] bytes.
    pub(super) data: Box<[u8]>,
    /// Offset in the image of the block that follows.
    pub(super) next: u64,
}

type Set = [Option<(u64, Arc<MetadataBlock>)>; WAYS];

/// Decoded blocks by offset: at most 1024, or 8 MiB.
pub(super) struct MetadataCache(Box<[Mutex<Set>]>);

impl MetadataCache {
    pub(super) fn new() -> Self {
        Self((0..SETS).map(|_| Mutex::default()).collect())
    }

    fn set(&self, offset: u64) -> &Mutex<Set> {
        // Fibonacci hashing: offsets of neighbours differ by a few hundred to a few thousand bytes.
        let hash = offset.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56;
        &self.0[hash as usize % SETS]
    }

    fn get(&self, offset: u64) -> Option<Arc<MetadataBlock>> {
        let mut set = self
            .set(offset)
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let way = set
            .iter()
            .position(|entry| matches!(entry, Some((found, _)) if *found == offset))?;
        set[..=way].rotate_right(1);
        set[0].as_ref().map(|(_, block)| Arc::clone(block))
    }

    fn insert(&self, offset: u64, block: &Arc<MetadataBlock>) {
        let mut set = self
            .set(offset)
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        set.rotate_right(1);
        set[0] = Some((offset, Arc::clone(block)));
    }
}

/// A place in a metadata table: a block, and an offset in its decoded bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    /// Offset of the block in the image.
    pub(super) block: u64,
    /// Offset in the block.
    pub(super) offset: usize,
    /// Offset in the image where the table ends: no block begins or reaches beyond.
    pub(super) end: u64,
}

impl Reader {
    /// The metadata block at `offset`, of a table that ends at `end`.
    pub(super) fn metadata_block(
        &self,
        offset: u64,
        end: u64,
    ) -> Result<Arc<MetadataBlock>, ReadError> {
        if let Some(block) = self.metadata.get(offset) {
            return Ok(block);
        }
        let available = end
            .checked_sub(offset)
            .filter(|available| *available > 2)
            .ok_or(ReadError::corrupt(
                "a metadata block lies outside its table",
                offset,
            ))?;
        // The stored size is not known yet, but never more than this: one read instead of two.
        let length = usize::try_from(available)
            .unwrap_or(usize::MAX)
            .min(2 + METADATA_BLOCK);
        let mut stored = Vec::with_capacity(length);
        self.read_exact(offset, length, &mut stored)?;
        let header = u16::from_le_bytes([stored[0], stored[1]]);
        let size = usize::from(header & !METADATA_UNCOMPRESSED);
        if size == 0 || size > METADATA_BLOCK {
            return Err(ReadError::corrupt(
                "a metadata block has an impossible size",
                offset,
            ));
        }
        let payload = stored.get(2..2 + size).ok_or(ReadError::corrupt(
            "a metadata block reaches beyond its table",
            offset,
        ))?;
        let data = if header & METADATA_UNCOMPRESSED != 0 {
            payload.into()
        } else {
            let mut data = Vec::with_capacity(METADATA_BLOCK);
            self.decompress(offset + 2, payload, METADATA_BLOCK, &mut data)?;
            if data.is_empty() {
                return Err(ReadError::corrupt("a metadata block is empty", offset));
            }
            data.into_boxed_slice()
        };
        let block = Arc::new(MetadataBlock {
            data,
            next: offset + 2 + size as u64,
        });
        self.metadata.insert(offset, &block);
        Ok(block)
    }

    /// A cursor that begins at `position`.
    pub(super) fn cursor(&self, position: Position) -> Result<Cursor<'_>, ReadError> {
        let block = self.metadata_block(position.block, position.end)?;
        if position.offset > block.data.len() {
            return Err(ReadError::corrupt(
                "a reference points behind the end of its metadata block",
                position.block,
            ));
        }
        Ok(Cursor {
            reader: self,
            block,
            position,
        })
    }
}

/// Reads a metadata table from some position on.
pub(super) struct Cursor<'a> {
    reader: &'a Reader,
    block: Arc<MetadataBlock>,
    position: Position,
}

impl Cursor<'_> {
    /// Where the next byte comes from.
    pub(super) const fn position(&self) -> Position {
        self.position
    }

    /// Goes to the next block.
    fn advance(&mut self) -> Result<(), ReadError> {
        let next = self.block.next;
        self.block = self.reader.metadata_block(next, self.position.end)?;
        self.position.block = next;
        self.position.offset = 0;
        Ok(())
    }

    /// The rest of the current block, never empty.
    fn available(&mut self) -> Result<&[u8], ReadError> {
        if self.position.offset == self.block.data.len() {
            self.advance()?;
        }
        Ok(&self.block.data[self.position.offset..])
    }

    /// Fills `buffer`.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<(), ReadError> {
        let mut filled = 0;
        while filled < buffer.len() {
            let available = self.available()?;
            let length = available.len().min(buffer.len() - filled);
            buffer[filled..filled + length].copy_from_slice(&available[..length]);
            filled += length;
            self.position.offset += length;
        }
        Ok(())
    }

    /// The next record, as it stands on disk.
    pub(super) fn record<T: FromBytes + IntoBytes>(&mut self) -> Result<T, ReadError> {
        // Nearly always within one block.
        let available = self.block.data.get(self.position.offset..).unwrap_or(&[]);
        if let Ok((record, _)) = T::read_from_prefix(available) {
            self.position.offset += size_of::<T>();
            return Ok(record);
        }
        let mut record = T::new_zeroed();
        self.read(record.as_mut_bytes())?;
        Ok(record)
    }

    /// The next 32-bit number.
    pub(super) fn u32(&mut self) -> Result<u32, ReadError> {
        self.record::<U32>().map(U32::get)
    }

    /// The next 64-bit number.
    pub(super) fn u64(&mut self) -> Result<u64, ReadError> {
        self.record::<U64>().map(U64::get)
    }

    /// Appends `length` bytes to `buffer`, which grows only as far as bytes are found.
    pub(super) fn append(&mut self, length: usize, buffer: &mut Vec<u8>) -> Result<(), ReadError> {
        let mut left = length;
        while left > 0 {
            let available = self.available()?;
            let piece = available.len().min(left);
            buffer.extend_from_slice(&available[..piece]);
            self.position.offset += piece;
            left -= piece;
        }
        Ok(())
    }

    /// Goes `length` bytes on. Looks at every block between here and there, since only a block says where the next one is.
    pub(super) fn skip(&mut self, length: u64) -> Result<(), ReadError> {
        let mut left = length;
        while left > 0 {
            let available = self.available()?.len() as u64;
            let piece = available.min(left);
            self.position.offset += piece as usize;
            left -= piece;
        }
        Ok(())
    }
}
