//! Tar streams: one entry after the other, content as slices of the stream's own buffer.
//!
//! POSIX.1-2017 `pax` (ustar and the extended headers), GNU tar manual "Basic Tar Format", and the V7 format, which has
//! neither magic nor prefix. The `tar` crate is not used: it reads content through a copy, knows no pax sparse files
//! and no global headers, and is lenient where a layer must be refused.
//!
//! Where the formats leave room, this parser does what Go's `archive/tar` does, because Docker, containerd, podman and
//! buildah all write and read layers with it:
//! - Checksums may be sums of signed or unsigned bytes.
//! - Links, directories and devices have no content, whatever their size field says.
//! - A regular file whose name ends in `/` is a directory (V7).
//! - One zero block ends the archive when a second one or the end of the stream follows; what comes after is ignored.
//! - An archive may end without zero blocks, at the border of an entry.
//!
//! Owners are not read at all: every file of an image belongs to 0:0.

mod header;

use std::io::{self, BufRead};

use self::header::{Format, Header, number, padding, until_nul};
use super::BLOCK;
use super::path::{EntryPath, PathError, Shown};
use super::pax::{self, Attributes, PaxError};
use super::sparse::{Extent, MAX_EXTENTS, Map, Run, SparseError};
use crate::tree::Metadata;

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file of so many bytes, holes included.
    File(u64),
    /// A symbolic link and its target.
    Symlink(Box<[u8]>),
    /// Another name of an entry that came before.
    HardLink(EntryPath),
    /// A named pipe.
    Fifo,
    /// A character or block device.
    Device,
}

/// The head of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Number of the entry in the archive, from 0.
    pub ordinal: u64,
    /// Where it goes.
    pub path: EntryPath,
    /// What it is.
    pub kind: Kind,
    /// Mode, time, extended attributes; owner and group are 0.
    pub metadata: Metadata,
}

/// A piece of a file's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Bytes.
    Data(&'a [u8]),
    /// So many zeros.
    Hole(u64),
}

/// Why a tar stream is refused.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The stream cannot be read; decoding errors come through here too.
    #[error("{0}")]
    Read(#[from] io::Error),
    /// There is no stream at all, where one was asked for.
    #[error("there is nothing to read: not even the end of a tar archive")]
    Empty,
    /// The stream ends within an entry.
    #[error("the tar stream ends within an entry, after {offset} bytes")]
    Truncated {
        /// Length of the stream in bytes.
        offset: u64,
    },
    /// A header is not a tar header.
    #[error("no tar header at byte {offset}: {what}")]
    Header {
        /// Where the header stands in the uncompressed stream.
        offset: u64,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The type of an entry is unknown.
    #[error("entry `{path}` has the unknown type `{flag}`")]
    Type {
        /// The entry's name.
        path: String,
        /// The type flag, escaped.
        flag: String,
    },
    /// An extended header, or a long name, is longer than [`pax::MAX_SIZE`].
    #[error("the extended header at byte {offset} has {size} bytes, more than are accepted")]
    LongExtension {
        /// Where the header stands in the uncompressed stream.
        offset: u64,
        /// Its size.
        size: u64,
    },
    /// An extended header is malformed.
    #[error("the extended header at byte {offset} is malformed")]
    Pax {
        /// Where the header stands in the uncompressed stream.
        offset: u64,
        /// What is wrong.
        source: PaxError,
    },
    /// A name is hostile.
    #[error("entry `{path}` is refused")]
    Path {
        /// The name, escaped.
        path: String,
        /// What is wrong.
        source: PathError,
    },
    /// The target of a hard link is hostile.
    #[error("hard link `{path}` to `{target}` is refused")]
    LinkPath {
        /// The entry's name.
        path: String,
        /// The target, escaped.
        target: String,
        /// What is wrong.
        source: PathError,
    },
    /// The target of a symbolic link is none.
    #[error("symbolic link `{path}` has no usable target")]
    Symlink {
        /// The entry's name.
        path: String,
    },
    /// A sparse file's map is refused.
    #[error("sparse file `{path}` is refused")]
    Sparse {
        /// The entry's name.
        path: String,
        /// What is wrong.
        source: SparseError,
    },
    /// A sparse format that is not known.
    #[error("sparse file `{path}` is in an unknown format")]
    SparseFormat {
        /// The entry's name.
        path: String,
    },
}

/// A tar stream, read entry by entry.
pub struct Archive<R> {
    input: R,
    /// Bytes of the stream that were read.
    offset: u64,
    /// Number of the next entry.
    ordinal: u64,
    globals: Attributes,
    content: Content,
    /// Whether the end of the archive was reached.
    ended: bool,
    /// Whether the archive ended without its two zero blocks.
    unmarked: bool,
}

/// What is left of the current entry's content.
#[derive(Default)]
struct Content {
    /// Bytes of the slice that was handed out last, still to be consumed.
    held: usize,
    /// Stored bytes that are left.
    stored: u64,
    /// Bytes of padding after them.
    padding: u64,
    /// The map of a sparse file, the position in the file, and the next extent.
    sparse: Option<(Map, u64, usize)>,
}

impl<R: BufRead> Archive<R> {
    /// An archive whose first header comes next in `input`.
    pub fn new(input: R) -> Self {
        Self {
            input,
            offset: 0,
            ordinal: 0,
            globals: Attributes::default(),
            content: Content::default(),
            ended: false,
            unmarked: false,
        }
    }

    /// Whether the archive ended without the two zero blocks that mark its end. True also for the empty stream.
    #[must_use]
    pub fn is_unmarked(&self) -> bool {
        self.unmarked
    }

    /// Whether nothing at all was read of the stream, which makes it an archive only by courtesy.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.offset == 0
    }

    /// The next entry; what was not read of the current one is skipped. None at the end of the archive.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        if self.ended {
            return Ok(None);
        }
        self.skip_content()?;
        let mut own = Attributes::default();
        let mut long_path = None;
        let mut long_link = None;
        let mut extended = false;
        loop {
            let at = self.offset;
            let Some(block) = self.read_header_block()? else {
                self.ended = true;
                if extended {
                    return Err(TarError::Truncated { offset: at });
                }
                return Ok(None);
            };
            let header =
                Header::parse(&block).map_err(|what| TarError::Header { offset: at, what })?;
            match header.flag {
                b'x' => {
                    let records = self.read_extension(at, header.size)?;
                    own.extend(&records)
                        .map_err(|source| TarError::Pax { offset: at, source })?;
                }
                b'g' => {
                    let records = self.read_extension(at, header.size)?;
                    self.globals
                        .extend(&records)
                        .and_then(|()| {
                            // No format has them here, and every later file would be affected.
                            if self.globals.sparse.is_sparse() {
                                return Err(PaxError::UnknownSparse);
                            }
                            Ok(())
                        })
                        .map_err(|source| TarError::Pax { offset: at, source })?;
                }
                b'L' => long_path = Some(self.read_long_name(at, header.size)?),
                b'K' => long_link = Some(self.read_long_name(at, header.size)?),
                // A volume's label names no file.
                b'V' => continue,
                _ => {
                    let own = own.over(&self.globals);
                    return self
                        .begin_entry(&block, &header, own, long_path, long_link)
                        .map(Some);
                }
            }
            extended |= header.flag != b'g';
        }
    }

    /// The next piece of the current entry's content, at most what the stream has buffered; None at its end, and for
    /// everything but files.
    pub fn next_piece(&mut self) -> Result<Option<Piece<'_>>, TarError> {
        self.consume_held();
        let mut limit = self.content.stored;
        if let Some((map, position, next)) = &mut self.content.sparse {
            match map.run(*position, next) {
                None => return Ok(None),
                Some(Run::Hole(length)) => {
                    *position += length;
                    return Ok(Some(Piece::Hole(length)));
                }
                Some(Run::Data(length)) => limit = limit.min(length),
            }
        }
        if limit == 0 {
            return Ok(None);
        }
        let data = self.input.fill_buf()?;
        if data.is_empty() {
            return Err(TarError::Truncated {
                offset: self.offset,
            });
        }
        let length = usize::try_from(limit).map_or(data.len(), |limit| limit.min(data.len()));
        self.content.held = length;
        self.content.stored -= length as u64;
        if let Some((_, position, _)) = &mut self.content.sparse {
            *position += length as u64;
        }
        Ok(Some(Piece::Data(&data[..length])))
    }

    fn consume_held(&mut self) {
        self.input.consume(self.content.held);
        self.offset += self.content.held as u64;
        self.content.held = 0;
    }

    fn skip_content(&mut self) -> Result<(), TarError> {
        self.consume_held();
        let content = std::mem::take(&mut self.content);
        self.skip(content.stored)?;
        self.skip(content.padding)
    }

    fn skip(&mut self, mut length: u64) -> Result<(), TarError> {
        while length > 0 {
            let available = self.input.fill_buf()?.len();
            if available == 0 {
                return Err(TarError::Truncated {
                    offset: self.offset,
                });
            }
            let step = usize::try_from(length).map_or(available, |length| length.min(available));
            self.input.consume(step);
            self.offset += step as u64;
            length -= step as u64;
        }
        Ok(())
    }

    /// Fills `buffer`; false when the stream ends before its first byte.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<bool, TarError> {
        let mut filled = 0;
        while filled < buffer.len() {
            let data = self.input.fill_buf()?;
            if data.is_empty() {
                if filled == 0 {
                    return Ok(false);
                }
                return Err(TarError::Truncated {
                    offset: self.offset,
                });
            }
            let step = data.len().min(buffer.len() - filled);
            buffer[filled..filled + step].copy_from_slice(&data[..step]);
            self.input.consume(step);
            self.offset += step as u64;
            filled += step;
        }
        Ok(true)
    }

    /// A block that must be there.
    fn read_block(&mut self) -> Result<[u8; BLOCK], TarError> {
        let mut block = [0; BLOCK];
        if self.fill(&mut block)? {
            Ok(block)
        } else {
            Err(TarError::Truncated {
                offset: self.offset,
            })
        }
    }

    /// The next header's block; None at the end of the archive.
    fn read_header_block(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        let mut block = [0; BLOCK];
        if !self.fill(&mut block)? {
            self.unmarked = true;
            return Ok(None);
        }
        if block != [0; BLOCK] {
            return Ok(Some(block));
        }
        if self.fill(&mut block)? && block != [0; BLOCK] {
            return Err(TarError::Header {
                offset: self.offset - BLOCK as u64,
                what: "a single zero block stands before it",
            });
        }
        Ok(None)
    }

    fn read_extension(&mut self, at: u64, size: u64) -> Result<Vec<u8>, TarError> {
        if size > pax::MAX_SIZE {
            return Err(TarError::LongExtension { offset: at, size });
        }
        // Lossless: the limit is far below what usize holds.
        let mut content = vec![0; size as usize];
        if !self.fill(&mut content)? && size > 0 {
            return Err(TarError::Truncated {
                offset: self.offset,
            });
        }
        self.skip(padding(size))?;
        Ok(content)
    }

    fn read_long_name(&mut self, at: u64, size: u64) -> Result<Vec<u8>, TarError> {
        let mut name = self.read_extension(at, size)?;
        name.truncate(until_nul(&name).len());
        Ok(name)
    }

    fn begin_entry(
        &mut self,
        block: &[u8; BLOCK],
        header: &Header,
        attributes: Attributes,
        long_path: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Entry, TarError> {
        let ordinal = self.ordinal;
        self.ordinal += 1;
        let Attributes {
            path,
            link_path,
            size,
            mtime,
            xattrs,
            sparse,
        } = attributes;
        let name = sparse
            .name
            .clone()
            .or(path)
            .or(long_path)
            .unwrap_or_else(|| header.name(block));
        let shown = || Shown(&name).to_string();
        let path = EntryPath::parse(&name).map_err(|source| TarError::Path {
            path: shown(),
            source,
        })?;
        let target = || {
            link_path
                .or(long_link)
                .unwrap_or_else(|| until_nul(&block[157..257]).to_vec())
        };
        let stored = size.unwrap_or(header.size);
        let kind = match header.flag {
            // A directory of V7, which knew no type flag for it.
            0 | b'0' if name.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' if sparse.is_sparse() => {
                return self.begin_sparse(sparse, stored, &shown).map(|size| Entry {
                    ordinal,
                    path,
                    kind: Kind::File(size),
                    metadata: header.metadata(mtime, xattrs),
                });
            }
            b'S' => {
                return self
                    .begin_old_sparse(block, header, stored, &shown)
                    .map(|size| Entry {
                        ordinal,
                        path,
                        kind: Kind::File(size),
                        metadata: header.metadata(mtime, xattrs),
                    });
            }
            0 | b'0' | b'7' => {
                self.content.stored = stored;
                self.content.padding = padding(stored);
                Kind::File(stored)
            }
            b'1' => {
                let target = target();
                Kind::HardLink(
                    EntryPath::parse(&target).map_err(|source| TarError::LinkPath {
                        path: shown(),
                        target: Shown(&target).to_string(),
                        source,
                    })?,
                )
            }
            b'2' => {
                let target = target();
                if target.is_empty() || target.contains(&0) || target.len() > super::path::MAX_PATH
                {
                    return Err(TarError::Symlink { path: shown() });
                }
                Kind::Symlink(target.into())
            }
            b'3' | b'4' => Kind::Device,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            flag => {
                return Err(TarError::Type {
                    path: shown(),
                    flag: char::from(flag).escape_default().to_string(),
                });
            }
        };
        Ok(Entry {
            ordinal,
            path,
            kind,
            metadata: header.metadata(mtime, xattrs),
        })
    }

    /// A sparse file of a pax version; returns its real size.
    fn begin_sparse(
        &mut self,
        sparse: pax::Sparse,
        stored: u64,
        shown: &dyn Fn() -> String,
    ) -> Result<u64, TarError> {
        let unknown = || TarError::SparseFormat { path: shown() };
        let refused = |source| TarError::Sparse {
            path: shown(),
            source,
        };
        let real_size = sparse.real_size.ok_or_else(unknown)?;
        self.content.padding = padding(stored);
        let (extents, data) = match (sparse.major, sparse.minor, sparse.extents) {
            (None | Some(0), None | Some(0 | 1), Some(extents)) => {
                if sparse
                    .count
                    .is_some_and(|count| count != extents.len() as u64)
                {
                    return Err(refused(SparseError::Syntax));
                }
                (extents, stored)
            }
            (Some(1), Some(0), None) => {
                let (extents, map_size) = self.read_map(stored, shown)?;
                (extents, stored - map_size)
            }
            _ => return Err(unknown()),
        };
        let map = Map::new(extents, real_size, data).map_err(refused)?;
        self.content.stored = data;
        self.content.sparse = Some((map, 0, 0));
        Ok(real_size)
    }

    /// The map of version 1.0, which stands in whole blocks in front of the content: the number of extents, then offset
    /// and length of each, decimal numbers that end in newlines. Returns the extents and the map's size in bytes.
    fn read_map(
        &mut self,
        stored: u64,
        shown: &dyn Fn() -> String,
    ) -> Result<(Vec<Extent>, u64), TarError> {
        let refused = |source| TarError::Sparse {
            path: shown(),
            source,
        };
        let mut extents = Vec::new();
        let mut expected = None;
        let mut offset = None;
        let mut digits = Vec::new();
        let mut size = 0;
        loop {
            if stored - size < BLOCK as u64 {
                return Err(refused(SparseError::Syntax));
            }
            let block = self.read_block()?;
            size += BLOCK as u64;
            for byte in block {
                if byte != b'\n' {
                    // 20 digits hold every number of 64 bits.
                    if digits.len() == 20 {
                        return Err(refused(SparseError::Syntax));
                    }
                    digits.push(byte);
                    continue;
                }
                let number = pax::decimal(&digits).ok_or_else(|| refused(SparseError::Syntax))?;
                digits.clear();
                match (expected, offset.take()) {
                    (None, _) if number > MAX_EXTENTS as u64 => {
                        return Err(refused(SparseError::TooMany));
                    }
                    (None, _) => expected = Some(number),
                    (Some(_), None) => offset = Some(number),
                    (Some(_), Some(offset)) => extents.push(Extent {
                        offset,
                        length: number,
                    }),
                }
                if expected == Some(extents.len() as u64) {
                    // The rest of the block is padding.
                    return Ok((extents, size));
                }
            }
        }
    }

    /// A sparse file of the old GNU format: four extents in the header, 21 in each block after it; returns its real size.
    fn begin_old_sparse(
        &mut self,
        block: &[u8; BLOCK],
        header: &Header,
        stored: u64,
        shown: &dyn Fn() -> String,
    ) -> Result<u64, TarError> {
        if header.format != Format::Gnu {
            return Err(TarError::SparseFormat { path: shown() });
        }
        let refused = |source| TarError::Sparse {
            path: shown(),
            source,
        };
        let syntax = || refused(SparseError::Syntax);
        let real_size = number(&block[483..495])
            .and_then(|size| u64::try_from(size).ok())
            .ok_or_else(syntax)?;
        let mut extents = Vec::new();
        let mut area: Vec<u8> = block[386..482].to_vec();
        let mut extended = block[482] != 0;
        loop {
            for pair in area.chunks_exact(24) {
                // The first empty pair ends the list.
                if pair[0] == 0 {
                    break;
                }
                let field = |bytes| number(bytes).and_then(|value| u64::try_from(value).ok());
                if extents.len() == MAX_EXTENTS {
                    return Err(refused(SparseError::TooMany));
                }
                extents.push(Extent {
                    offset: field(&pair[..12]).ok_or_else(syntax)?,
                    length: field(&pair[12..]).ok_or_else(syntax)?,
                });
            }
            if !extended {
                break;
            }
            let block = self.read_block()?;
            area = block[..504].to_vec();
            extended = block[504] != 0;
        }
        let map = Map::new(extents, real_size, stored).map_err(refused)?;
        self.content.stored = stored;
        self.content.padding = padding(stored);
        self.content.sparse = Some((map, 0, 0));
        Ok(real_size)
    }
}

/// Whether a stream that begins with `start` (its first block, or all of it when it is shorter) is a tar stream.
pub(super) fn is_start(start: &[u8]) -> bool {
    start
        .first_chunk::<BLOCK>()
        .is_some_and(|block| *block == [0; BLOCK] || Header::parse(block).is_ok())
}

#[cfg(test)]
mod tests;
