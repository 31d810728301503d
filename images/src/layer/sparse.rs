//! Sparse files: where the data of a file stands between its holes.
//!
//! GNU tar manual, "Storing Sparse Files": the old GNU format keeps the map in the header and in blocks after it, pax
//! versions 0.0 and 0.1 in extended records, version 1.0 in front of the content. All of them yield the same [`Map`],
//! which is checked as a whole: extents ascend without overlap, stay below the file's size, and are as long together
//! as the stored data.

/// Most extents of a file that are accepted; a map of that size takes 16 MiB.
pub const MAX_EXTENTS: usize = 1 << 20;

/// Data of a sparse file: where it belongs and how much it is, both in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Offset in the file.
    pub offset: u64,
    /// Length.
    pub length: u64,
}

/// Where all data of a sparse file belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Map {
    extents: Vec<Extent>,
    size: u64,
}

/// Why a sparse map is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SparseError {
    /// A number is malformed or out of range.
    #[error("the sparse map is malformed")]
    Syntax,
    /// Extents overlap, descend, or reach beyond the end of the file.
    #[error("the sparse map does not fit the file's size")]
    Order,
    /// The extents' lengths do not add up to the stored size.
    #[error("the sparse map tells of {mapped} bytes of data, the entry stores {stored}")]
    Size {
        /// Bytes that the map tells of.
        mapped: u64,
        /// Bytes that the entry stores.
        stored: u64,
    },
    /// More extents than [`MAX_EXTENTS`].
    #[error("the sparse map has more than {MAX_EXTENTS} extents")]
    TooMany,
}

impl Map {
    /// A checked map of a file of `size` bytes of which `stored` stand in the archive.
    pub fn new(extents: Vec<Extent>, size: u64, stored: u64) -> Result<Self, SparseError> {
        if extents.len() > MAX_EXTENTS {
            return Err(SparseError::TooMany);
        }
        let mut end = 0;
        let mut mapped: u64 = 0;
        for extent in &extents {
            if extent.offset < end {
                return Err(SparseError::Order);
            }
            end = extent
                .offset
                .checked_add(extent.length)
                .filter(|end| *end <= size)
                .ok_or(SparseError::Order)?;
            // Cannot overflow: the extents do not overlap, so their sum is at most `size`.
            mapped += extent.length;
        }
        if mapped != stored {
            return Err(SparseError::Size { mapped, stored });
        }
        Ok(Self { extents, size })
    }

    /// The file's size with its holes, in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether the next bytes at `offset` are a hole or data, and how many of them; None at the end of the file.
    /// `next` is the number of extents that end at or before `offset`, and is moved on.
    pub(crate) fn run(&self, offset: u64, next: &mut usize) -> Option<Run> {
        while let Some(extent) = self.extents.get(*next) {
            if offset < extent.offset {
                return Some(Run::Hole(extent.offset - offset));
            }
            let end = extent.offset + extent.length;
            if offset < end {
                return Some(Run::Data(end - offset));
            }
            *next += 1;
        }
        (offset < self.size).then(|| Run::Hole(self.size - offset))
    }
}

/// A stretch of a sparse file; lengths in bytes, never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Run {
    /// Zeros that the archive does not store.
    Hole(u64),
    /// Bytes that the archive stores.
    Data(u64),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extents(list: &[(u64, u64)]) -> Vec<Extent> {
        list.iter()
            .map(|&(offset, length)| Extent { offset, length })
            .collect()
    }

    #[test]
    fn maps_that_do_not_fit_are_refused() {
        for (list, size, stored, error) in [
            (&[(0, 5), (4, 1)][..], 10, 6, SparseError::Order),
            (&[(5, 1), (0, 1)], 10, 2, SparseError::Order),
            (&[(8, 3)], 10, 3, SparseError::Order),
            (&[(u64::MAX, 1)], u64::MAX, 1, SparseError::Order),
            (&[(11, 0)], 10, 0, SparseError::Order),
            (
                &[(0, 5)],
                10,
                6,
                SparseError::Size {
                    mapped: 5,
                    stored: 6,
                },
            ),
        ] {
            assert_eq!(Map::new(extents(list), size, stored), Err(error));
        }
    }

    #[test]
    fn runs_cover_the_file() {
        for (list, size) in [
            (&[][..], 0),
            (&[], 7),
            (&[(0, 3), (3, 2), (9, 0), (12, 1)], 20),
            (&[(4, 6)], 10),
            (&[(10, 0)], 10),
        ] {
            let stored = list.iter().map(|extent| extent.1).sum();
            let map = Map::new(extents(list), size, stored).unwrap();
            let (mut offset, mut next, mut data) = (0, 0, 0);
            while let Some(run) = map.run(offset, &mut next) {
                let (Run::Hole(length) | Run::Data(length)) = run;
                assert!(length > 0);
                if run == Run::Data(length) {
                    data += length;
                }
                offset += length;
            }
            assert_eq!((offset, data), (size, stored));
        }
    }
}
