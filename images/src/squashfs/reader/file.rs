//! Content of regular files: which bytes of the image hold which bytes of the file, and how to get them.
//!
//! A file is a list of blocks, each as large as the image's block size, stored one after the other from some offset on, and
//! perhaps a tail in a fragment block that it shares with other files. The list gives stored sizes only, so the place
//! of a block is a sum over all blocks before it; a [`FileMap`] keeps these sums, in chunks that are read when they are needed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::inode::{Inode, InodeKind};
use super::metadata::Position;
use super::{ReadError, Reader};
use crate::squashfs::format::DATA_UNCOMPRESSED;

/// Blocks of a chunk. Offsets within a chunk fit in 32 bits: 2048 times at most 1 MiB.
const CHUNK: u64 = 2048;
/// Chunks kept by a map (16 KiB each).
const KEPT_CHUNKS: usize = 64;
/// Most blocks of a file.
const MAX_BLOCKS: u64 = 1 << 26;

/// A block of data as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StoredBlock {
    /// Offset in the image.
    pub offset: u64,
    /// Stored size in bytes.
    pub stored: u32,
    /// Whether it must be decompressed.
    pub compressed: bool,
    /// Size of the plain content in bytes; of a fragment block, the most it can be.
    pub length: u32,
    /// Whether this is a fragment block, whose content may be shorter than `length`.
    pub fragment: bool,
}

/// What is at one block index of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Zeros that are not stored.
    Hole {
        /// Their number.
        length: u32,
    },
    /// A block of its own.
    Block(StoredBlock),
    /// Part of a fragment block.
    Fragment {
        /// The fragment block.
        block: StoredBlock,
        /// Where the part begins in the plain content.
        offset: u32,
        /// Its length.
        length: u32,
    },
}

impl Extent {
    /// How many bytes of the file this is.
    #[must_use]
    pub const fn length(&self) -> u32 {
        match self {
            Self::Hole { length } | Self::Fragment { length, .. } => *length,
            Self::Block(block) => block.length,
        }
    }
}

/// Where a file's content is. Made by [`Reader::file_map`], for use with the same reader.
pub struct FileMap {
    size: u64,
    block_size: u32,
    blocks: u64,
    tail: Option<Extent>,
    chunks: Mutex<Chunks>,
}

struct Chunks {
    /// Place in the list, and offset of the first block's data, for each chunk up to the furthest that was read and one more.
    starts: Vec<(Position, u64)>,
    loaded: HashMap<u64, Arc<Chunk>>,
}

struct Chunk {
    start: u64,
    /// Offset from `start`, and the size as stored with its flag.
    blocks: Box<[(u32, u32)]>,
}

impl FileMap {
    /// Size of the file in bytes.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Number of extents: each but the last has exactly the image's block size.
    #[must_use]
    pub const fn extent_count(&self) -> u64 {
        self.blocks + self.tail.is_some() as u64
    }

    /// Size in bytes of all blocks but the last.
    #[must_use]
    pub const fn block_size(&self) -> u32 {
        self.block_size
    }
}

impl Reader {
    /// Where the content of a regular file is. Costs a look at the fragment table; lists of blocks are read later.
    pub fn file_map(&self, inode: &Inode) -> Result<FileMap, ReadError> {
        let InodeKind::File(file) = &inode.kind else {
            return Err(ReadError::WrongType("regular file"));
        };
        let block_size = self.block_size();
        let whole = file.size / u64::from(block_size);
        let rest = (file.size % u64::from(block_size)) as u32;
        let (blocks, tail) = match file.fragment {
            Some((index, offset)) if rest > 0 => {
                let block = self.fragment(index)?;
                if offset.checked_add(rest).is_none_or(|end| end > block_size) {
                    return Err(ReadError::corrupt(
                        "the tail of a file lies outside its fragment block",
                        inode.reference.0,
                    ));
                }
                let tail = Extent::Fragment {
                    block,
                    offset,
                    length: rest,
                };
                (whole, Some(tail))
            }
            _ => (whole + u64::from(rest > 0), None),
        };
        if blocks > MAX_BLOCKS {
            return Err(ReadError::TooManyBlocks(blocks));
        }
        Ok(FileMap {
            size: file.size,
            block_size,
            blocks,
            tail,
            chunks: Mutex::new(Chunks {
                starts: vec![(file.blocks, file.start)],
                loaded: HashMap::new(),
            }),
        })
    }

    /// What is at block `index`, which counts from 0 and is less than [`FileMap::extent_count`].
    pub fn extent(&self, map: &FileMap, index: u64) -> Result<Extent, ReadError> {
        if index >= map.blocks {
            return match map.tail {
                Some(tail) if index == map.blocks => Ok(tail),
                _ => Err(ReadError::corrupt(
                    "a block behind the end of a file",
                    index,
                )),
            };
        }
        let chunk = self.chunk(map, index / CHUNK)?;
        let (offset, raw) = chunk.blocks[(index % CHUNK) as usize];
        let last = map.tail.is_none() && index + 1 == map.blocks;
        let length = if last {
            (map.size - index * u64::from(map.block_size)) as u32
        } else {
            map.block_size
        };
        let stored = raw & !DATA_UNCOMPRESSED;
        if stored == 0 {
            return Ok(Extent::Hole { length });
        }
        Ok(Extent::Block(StoredBlock {
            offset: chunk.start + u64::from(offset),
            stored,
            compressed: raw & DATA_UNCOMPRESSED == 0,
            length,
            fragment: false,
        }))
    }

    fn chunk(&self, map: &FileMap, number: u64) -> Result<Arc<Chunk>, ReadError> {
        let mut chunks = map.chunks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(chunk) = chunks.loaded.get(&number) {
            return Ok(Arc::clone(chunk));
        }
        // The start of a chunk is known once the one before has been read.
        let mut next = number.min(chunks.starts.len() as u64 - 1);
        loop {
            let (position, start) = chunks.starts[next as usize];
            let (chunk, behind, end) = self.read_chunk(map, next, position, start)?;
            if chunks.starts.len() as u64 == next + 1 {
                chunks.starts.push((behind, end));
            }
            if next == number {
                if chunks.loaded.len() >= KEPT_CHUNKS {
                    chunks.loaded.clear();
                }
                let chunk = Arc::new(chunk);
                chunks.loaded.insert(number, Arc::clone(&chunk));
                return Ok(chunk);
            }
            next += 1;
        }
    }

    fn read_chunk(
        &self,
        map: &FileMap,
        number: u64,
        position: Position,
        start: u64,
    ) -> Result<(Chunk, Position, u64), ReadError> {
        let count = (map.blocks - number * CHUNK).min(CHUNK) as usize;
        let mut cursor = self.cursor(position)?;
        let mut list = Vec::with_capacity(count * 4);
        cursor.append(count * 4, &mut list)?;
        let mut offset = 0;
        let blocks = list
            .chunks_exact(4)
            .map(|raw| {
                let raw = u32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]]);
                let stored = raw & !DATA_UNCOMPRESSED;
                if stored > map.block_size {
                    return Err(ReadError::corrupt(
                        "a stored block is larger than the block size",
                        position.block,
                    ));
                }
                let at = offset;
                offset += stored;
                Ok((at, raw))
            })
            .collect::<Result<Box<[_]>, _>>()?;
        let end = start
            .checked_add(u64::from(offset))
            .filter(|end| *end <= self.bytes_used())
            .ok_or(ReadError::corrupt(
                "the blocks of a file lie outside the image",
                start,
            ))?;
        Ok((Chunk { start, blocks }, cursor.position(), end))
    }

    /// Replaces the content of `output` by the plain content of a block. The buffer never grows beyond the block size, and
    /// is best used again and again.
    pub fn decode(&self, block: &StoredBlock, output: &mut Vec<u8>) -> Result<(), ReadError> {
        output.clear();
        let (stored, limit) = (block.stored as usize, block.length as usize);
        if stored == 0 || block.stored > self.block_size() || block.length > self.block_size() {
            return Err(ReadError::corrupt(
                "a block has an impossible size",
                block.offset,
            ));
        }
        if block.compressed {
            self.read_compressed(block.offset, stored, limit, output)?;
        } else if stored <= limit {
            self.read_exact(block.offset, stored, output)?;
        }
        if output.is_empty() || (output.len() != limit && !block.fragment) {
            output.clear();
            return Err(ReadError::corrupt(
                "a block does not have the size that it should have",
                block.offset,
            ));
        }
        Ok(())
    }

    /// Replaces the content of `output` by a block as it is stored.
    pub fn read_stored(&self, block: &StoredBlock, output: &mut Vec<u8>) -> Result<(), ReadError> {
        output.clear();
        if block.stored > self.block_size() {
            return Err(ReadError::corrupt(
                "a block has an impossible size",
                block.offset,
            ));
        }
        self.read_exact(block.offset, block.stored as usize, output)
    }

    /// Calls `sink` with the pieces of a file from the beginning to the end. Pieces are at most a block long.
    pub fn read_file_pieces<E: From<ReadError>>(
        &self,
        inode: &Inode,
        mut sink: impl FnMut(Piece<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let map = self.file_map(inode)?;
        let mut buffer = Vec::new();
        for index in 0..map.extent_count() {
            match self.extent(&map, index)? {
                Extent::Hole { length } => sink(Piece::Hole(length))?,
                Extent::Block(block) => {
                    self.decode(&block, &mut buffer)?;
                    sink(Piece::Data(&buffer))?;
                }
                Extent::Fragment {
                    block,
                    offset,
                    length,
                } => {
                    let content = self.cached(&block)?;
                    sink(Piece::Data(part(&content, &block, offset, length)?))?;
                }
            }
        }
        Ok(())
    }

    /// The whole content of a file of at most `limit` bytes.
    pub fn read_file(&self, inode: &Inode, limit: u64) -> Result<Vec<u8>, ReadError> {
        let size = inode.size();
        if size > limit {
            return Err(ReadError::TooLarge { size, limit });
        }
        let mut content = Vec::new();
        self.read_file_pieces(inode, |piece| {
            match piece {
                Piece::Hole(length) => content.resize(content.len() + length as usize, 0),
                Piece::Data(data) => content.extend_from_slice(data),
            }
            Ok::<_, ReadError>(())
        })?;
        Ok(content)
    }

    /// Reads from `offset` on into `buffer`; returns how much was read, which is less than asked for only at the end of the file.
    pub fn read_at(
        &self,
        map: &FileMap,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<usize, ReadError> {
        let mut filled = 0;
        while filled < buffer.len() {
            let at = offset.saturating_add(filled as u64);
            if at >= map.size {
                break;
            }
            let index = at / u64::from(map.block_size);
            let skip = (at % u64::from(map.block_size)) as usize;
            let extent = self.extent(map, index)?;
            let length = (extent.length() as usize - skip).min(buffer.len() - filled);
            let target = &mut buffer[filled..filled + length];
            match extent {
                Extent::Hole { .. } => target.fill(0),
                Extent::Block(block) => {
                    target.copy_from_slice(&self.cached(&block)?[skip..skip + length]);
                }
                Extent::Fragment {
                    block,
                    offset,
                    length: whole,
                } => {
                    let content = self.cached(&block)?;
                    let tail = part(&content, &block, offset, whole)?;
                    target.copy_from_slice(&tail[skip..skip + length]);
                }
            }
            filled += length;
        }
        Ok(filled)
    }
}

/// A piece of a file's content, see [`Reader::read_file_pieces`].
#[derive(Clone, Copy, Debug)]
pub enum Piece<'a> {
    /// Bytes.
    Data(&'a [u8]),
    /// So many zeros that are not stored.
    Hole(u32),
}

/// The part of a fragment block's content that an [`Extent::Fragment`] speaks of.
pub fn part<'a>(
    content: &'a [u8],
    block: &StoredBlock,
    offset: u32,
    length: u32,
) -> Result<&'a [u8], ReadError> {
    (offset as usize)
        .checked_add(length as usize)
        .and_then(|end| content.get(offset as usize..end))
        .ok_or(ReadError::corrupt(
            "the tail of a file lies outside its fragment block",
            block.offset,
        ))
}
