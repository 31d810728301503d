//! READ.
//!
//! An answer is written straight from the decoded blocks in the reader's cache. The kernel keeps every page that it gets, so
//! a data block has no business in our cache once all of it was handed out; a fragment block stays, since other files
//! have their tails in it.

use std::io::IoSlice;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cista_images::squashfs::reader::{CachedBlock, Extent, FileMap, Inode, ReadError, Reader};

/// Files whose maps are kept.
const OPEN_FILES: usize = 64;
/// Content of holes.
static ZEROS: [u8; 16 << 10] = [0; 16 << 10];

/// A file that was read from lately.
pub(super) struct OpenFile {
    pub(super) map: FileMap,
    /// Where the last READ ended.
    pub(super) next: AtomicU64,
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
        let file = Arc::new(OpenFile {
            map: reader.file_map(&inode()?)?,
            next: AtomicU64::new(0),
        });
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
    /// Notes a READ; whether it goes on where the last one ended.
    pub(super) fn note(&self, range: &Range<u64>) -> bool {
        self.next.swap(range.end, Ordering::Relaxed) == range.start
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
