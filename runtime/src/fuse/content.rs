//! READ.
//!
//! An answer is written straight from the decoded blocks in the reader's cache. The kernel keeps every page that it gets, so
//! a data block has no business in our cache once all of it was handed out; a fragment block stays, since other files
//! have their tails in it.

use std::io::IoSlice;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cista_images::squashfs::reader::{
    CachedBlock, Extent, FileMap, Inode, ReadError, Reader, StoredBlock,
};

/// Files whose maps are kept.
const OPEN_FILES: usize = 64;
/// Files with more blocks are served without noting what the kernel has of them.
const MAX_NOTED: u64 = 1 << 16;
/// Note of a block that the kernel has.
const HANDED_OUT: u32 = u32::MAX;
/// Content of holes.
static ZEROS: [u8; 16 << 10] = [0; 16 << 10];

/// A file that was read from lately.
pub(super) struct OpenFile {
    pub(super) map: FileMap,
    /// Where the last READ ended.
    next: AtomicU64,
    /// READs one after the other up to the last one.
    streak: AtomicU32,
    /// For each extent how many bytes were handed out; empty for a very large file.
    handed_out: Box<[AtomicU32]>,
}

/// Files that were read from lately, the last one first. There is no OPEN and no RELEASE to go by.
#[derive(Default)]
pub(super) struct OpenFiles(Mutex<Vec<(u64, Arc<OpenFile>)>>);

impl OpenFiles {
    /// The file with a node id, remembered or made from its inode.
    pub(super) fn open(
        &self,
        nodeid: u64,
        reader: &Reader,
        inode: impl FnOnce() -> Result<Inode, ReadError>,
    ) -> Result<Arc<OpenFile>, ReadError> {
        let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = files.iter().position(|(found, _)| *found == nodeid) {
            files[..=at].rotate_right(1);
            return Ok(Arc::clone(&files[0].1));
        }
        drop(files);
        let file = Arc::new(OpenFile::new(reader.file_map(&inode()?)?));
        // A small file is read once.
        if file.map.extent_count() > 1 {
            files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            files.truncate(OPEN_FILES - 1);
            files.insert(0, (nodeid, Arc::clone(&file)));
        }
        Ok(file)
    }
}

impl OpenFile {
    fn new(map: FileMap) -> Self {
        let count = Some(map.extent_count()).filter(|count| (2..=MAX_NOTED).contains(count));
        Self {
            map,
            next: AtomicU64::new(0),
            streak: AtomicU32::new(0),
            handed_out: (0..count.unwrap_or(0)).map(|_| AtomicU32::new(0)).collect(),
        }
    }

    /// Notes a READ; how many READs before it went on where the one before them ended.
    pub(super) fn streak(&self, range: &Range<u64>) -> u32 {
        if self.next.swap(range.end, Ordering::Relaxed) == range.start {
            self.streak
                .fetch_add(1, Ordering::Relaxed)
                .saturating_add(1)
        } else {
            self.streak.store(0, Ordering::Relaxed);
            0
        }
    }

    /// Notes that `bytes` of extent `number` were handed out; whether that makes all of its `length` bytes.
    pub(super) fn hand_out(&self, number: u64, bytes: usize, length: u32) -> bool {
        let bytes = u32::try_from(bytes).unwrap_or(length);
        let Some(noted) = self.handed_out.get(number as usize) else {
            return bytes >= length;
        };
        // What was handed out before and is asked for again, the kernel had to drop: the count begins anew.
        let before = match noted.load(Ordering::Relaxed) {
            HANDED_OUT => 0,
            before => before,
        };
        let after = before.saturating_add(bytes);
        let whole = after >= length;
        noted.store(if whole { HANDED_OUT } else { after }, Ordering::Relaxed);
        whole
    }

    /// Whether the kernel has got all of extent `number`.
    pub(super) fn is_handed_out(&self, number: u64) -> bool {
        self.handed_out
            .get(number as usize)
            .is_some_and(|noted| noted.load(Ordering::Relaxed) == HANDED_OUT)
    }

    /// Those of the `count` extents from `number` on that neither the kernel nor the cache has.
    pub(super) fn wanted(
        &self,
        reader: &Reader,
        number: u64,
        count: u64,
    ) -> impl Iterator<Item = u64> {
        (number..self.map.extent_count().min(number + count)).filter(|number| {
            !self.is_handed_out(*number)
                // An error is for whoever asks for the block.
                && reader.extent(&self.map, *number).ok().as_ref().and_then(block)
                    .is_some_and(|block| !reader.is_cached(&block))
        })
    }
}

/// The block that an extent needs.
pub(super) const fn block(extent: &Extent) -> Option<StoredBlock> {
    match extent {
        Extent::Hole { .. } => None,
        Extent::Block(block) | Extent::Fragment { block, .. } => Some(*block),
    }
}

/// A piece of an answer.
pub(super) enum Piece {
    Zeros(usize),
    Part(CachedBlock, Range<usize>),
}

/// The extents of `map` that a range of the file touches, each with its number.
pub(super) fn extents(
    reader: &Reader,
    map: &FileMap,
    range: &Range<u64>,
) -> Result<Vec<(u64, Extent)>, ReadError> {
    if range.is_empty() {
        return Ok(Vec::new());
    }
    let size = u64::from(map.block_size());
    (range.start / size..=(range.end - 1) / size)
        .map(|number| Ok((number, reader.extent(map, number)?)))
        .collect()
}

/// The part of extent `number` that is in `range`, relative to the extent.
pub(super) fn part(
    map: &FileMap,
    number: u64,
    extent: &Extent,
    range: &Range<u64>,
) -> Range<usize> {
    let start = number * u64::from(map.block_size());
    let end = start + u64::from(extent.length());
    (range.start.max(start) - start) as usize..(range.end.min(end).max(start) - start) as usize
}

/// The content of one extent.
pub(super) fn piece(
    reader: &Reader,
    extent: &Extent,
    part: Range<usize>,
) -> Result<Piece, ReadError> {
    match extent {
        Extent::Hole { .. } => Ok(Piece::Zeros(part.len())),
        Extent::Block(block) => Ok(Piece::Part(reader.cached(block)?, part)),
        Extent::Fragment {
            block,
            offset,
            length,
        } => {
            let content = reader.cached(block)?;
            cista_images::squashfs::reader::part(&content, block, *offset, *length)?;
            let offset = *offset as usize;
            Ok(Piece::Part(content, offset + part.start..offset + part.end))
        }
    }
}

/// The pieces as the kernel takes them, behind `header`.
pub(super) fn slices<'a>(header: &'a [u8], pieces: &'a [Piece]) -> Vec<IoSlice<'a>> {
    let mut slices = Vec::with_capacity(pieces.len() + 1);
    slices.push(IoSlice::new(header));
    for piece in pieces {
        match piece {
            Piece::Part(content, range) => slices.push(IoSlice::new(&content[range.clone()])),
            Piece::Zeros(length) => {
                let mut left = *length;
                while left > 0 {
                    let zeros = &ZEROS[..left.min(ZEROS.len())];
                    slices.push(IoSlice::new(zeros));
                    left -= zeros.len();
                }
            }
        }
    }
    slices
}
