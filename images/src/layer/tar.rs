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

use std::io::{self, BufRead};

use super::BLOCK;
use super::path::{EntryPath, PathError, Shown};
use super::pax::{self, Attributes, PaxError};
use super::sparse::{Extent, MAX_EXTENTS, Map, Run, SparseError};
use crate::tree::{Metadata, Xattrs};

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

    /// The stream, wherever it stands.
    pub fn into_inner(self) -> R {
        self.input
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

/// The dialects that differ in the meaning of bytes 257 to 511.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    V7,
    Ustar,
    Star,
    Gnu,
}

/// The fields of a header that every entry has.
struct Header {
    flag: u8,
    format: Format,
    size: u64,
    mode: u16,
    mtime: i64,
}

impl Header {
    fn parse(block: &[u8; BLOCK]) -> Result<Self, &'static str> {
        let expected = number(&block[148..156]).ok_or("its checksum is no number")?;
        let in_field = |at: &usize| (148..156).contains(at);
        let byte = |(at, byte): (usize, &u8)| if in_field(&at) { b' ' } else { *byte };
        let unsigned: i64 = block
            .iter()
            .enumerate()
            .map(|pair| i64::from(byte(pair)))
            .sum();
        let signed: i64 = block
            .iter()
            .enumerate()
            .map(|pair| i64::from(byte(pair).cast_signed()))
            .sum();
        if expected != unsigned && expected != signed {
            return Err("its checksum is wrong");
        }
        let flag = block[156];
        let size = number(&block[124..136])
            .and_then(|size| u64::try_from(size).ok())
            .ok_or("its size is no number")?;
        let format = match &block[257..265] {
            b"ustar  \0" => Format::Gnu,
            magic if magic.starts_with(b"ustar\0") => {
                if &block[508..512] == b"tar\0" {
                    Format::Star
                } else {
                    Format::Ustar
                }
            }
            _ => Format::V7,
        };
        Ok(Self {
            flag,
            format,
            // Content of more than an exbibyte cannot be padded within 64 bits, nor exist.
            size: (size < 1 << 60)
                .then_some(size)
                .ok_or("its size is absurd")?,
            // The low 12 bits are the permissions; what some programs put above them is the type, which `flag` tells.
            mode: (number(&block[100..108]).ok_or("its mode is no number")? & 0o7777) as u16,
            mtime: number(&block[136..148]).ok_or("its time is no number")?,
        })
    }

    /// The name in the header itself.
    fn name(&self, block: &[u8; BLOCK]) -> Vec<u8> {
        let name = until_nul(&block[..100]);
        let prefix = match self.format {
            Format::Ustar => until_nul(&block[345..500]),
            Format::Star => until_nul(&block[345..476]),
            Format::V7 | Format::Gnu => b"",
        };
        if prefix.is_empty() {
            name.to_vec()
        } else {
            [prefix, b"/", name].concat()
        }
    }

    fn metadata(&self, mtime: Option<i64>, xattrs: Vec<(Vec<u8>, Vec<u8>)>) -> Metadata {
        let seconds = mtime.unwrap_or(self.mtime).clamp(0, i64::from(u32::MAX));
        let kept: Xattrs = xattrs
            .into_iter()
            .filter(|(name, value)| is_kept(name) && value.len() <= MAX_XATTR_VALUE)
            .map(|(name, value)| (name.into(), value.into()))
            .collect();
        Metadata {
            mode: self.mode,
            uid: 0,
            gid: 0,
            // Lossless: clamped above.
            mtime: seconds as u32,
            xattrs: (!kept.is_empty()).then(|| Box::new(kept)),
        }
    }
}

/// Longest value of an extended attribute that Linux takes (`XATTR_SIZE_MAX`).
const MAX_XATTR_VALUE: usize = 65536;
/// Longest name of an extended attribute that Linux takes (`XATTR_NAME_MAX`).
const MAX_XATTR_NAME: usize = 255;

/// Whether an extended attribute is kept: those of users, and file capabilities. The rest belongs to the machine that
/// the image was built on (SELinux labels, ACLs, trusted data). `user.overlay.` is what overlayfs itself reads in
/// a user namespace, so an image could hide or redirect files with it; it is dropped.
fn is_kept(name: &[u8]) -> bool {
    let user = name.strip_prefix(b"user.").is_some_and(|rest| {
        !rest.is_empty() && !rest.starts_with(b"overlay.") && !rest.contains(&0)
    });
    (user && name.len() <= MAX_XATTR_NAME) || name == b"security.capability"
}

/// Bytes that fill the last block of content of `size` bytes.
fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

fn until_nul(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|byte| *byte == 0);
    &field[..end.unwrap_or(field.len())]
}

/// A number of a header: octal text between spaces and NULs (nothing is 0), or binary when the first bit is set (GNU's
/// base-256, two's complement).
fn number(field: &[u8]) -> Option<i64> {
    let (first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        // Bit 6 of the first byte is the sign.
        let start = if first & 0x40 != 0 {
            i64::from(*first) - 0x100
        } else {
            i64::from(first & 0x3f)
        };
        return rest.iter().try_fold(start, |number, byte| {
            number.checked_mul(256)?.checked_add(i64::from(*byte))
        });
    }
    let blank = |byte: &u8| *byte == b' ' || *byte == 0;
    let start = field
        .iter()
        .position(|byte| !blank(byte))
        .unwrap_or(field.len());
    let digits = &field[start..];
    let end = digits.iter().position(blank).unwrap_or(digits.len());
    if !digits[end..].iter().all(blank) {
        return None;
    }
    digits[..end].iter().try_fold(0_i64, |number, byte| {
        let digit = (b'0'..=b'7')
            .contains(byte)
            .then(|| i64::from(byte - b'0'))?;
        number.checked_mul(8)?.checked_add(digit)
    })
}

/// Whether a stream that begins with `start` (its first block, or all of it when it is shorter) is a tar stream.
pub(super) fn is_start(start: &[u8]) -> bool {
    start
        .first_chunk::<BLOCK>()
        .is_some_and(|block| *block == [0; BLOCK] || Header::parse(block).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header with a correct checksum.
    fn header(name: &[u8], flag: u8, size: u64, edit: impl FnOnce(&mut [u8; BLOCK])) -> Vec<u8> {
        let mut block = [0; BLOCK];
        block[..name.len()].copy_from_slice(name);
        block[100..108].copy_from_slice(b"0000644\0");
        block[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
        block[136..148].copy_from_slice(b"00000000012\0");
        block[156] = flag;
        block[257..265].copy_from_slice(b"ustar\x0000");
        edit(&mut block);
        block[148..156].copy_from_slice(b"        ");
        let sum: u32 = block.iter().copied().map(u32::from).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block.to_vec()
    }

    fn padded(content: &[u8]) -> Vec<u8> {
        let mut content = content.to_vec();
        content.resize(content.len().next_multiple_of(BLOCK), 0);
        content
    }

    fn extension(flag: u8, content: &[u8]) -> Vec<u8> {
        [
            header(b"ext", flag, content.len() as u64, |_| {}),
            padded(content),
        ]
        .concat()
    }

    fn record(key: &str, value: &str) -> String {
        let body = key.len() + value.len() + 3;
        let length = (body..)
            .find(|length| length.to_string().len() + body == *length)
            .unwrap();
        format!("{length} {key}={value}\n")
    }

    type Listed = (Entry, Option<Vec<u8>>);

    /// All entries, files with their content; read through a buffer of odd size.
    fn list(stream: &[u8]) -> Result<Vec<Listed>, TarError> {
        let mut archive = Archive::new(io::BufReader::with_capacity(7, stream));
        let mut entries = Vec::new();
        while let Some(entry) = archive.next_entry()? {
            let content = match entry.kind {
                Kind::File(size) => {
                    let mut content = Vec::new();
                    while let Some(piece) = archive.next_piece()? {
                        match piece {
                            Piece::Data(data) => content.extend_from_slice(data),
                            Piece::Hole(length) => {
                                content.resize(content.len() + length as usize, 0);
                            }
                        }
                    }
                    assert_eq!(content.len() as u64, size);
                    Some(content)
                }
                _ => {
                    assert!(archive.next_piece()?.is_none());
                    None
                }
            };
            entries.push((entry, content));
        }
        assert!(archive.next_entry()?.is_none());
        Ok(entries)
    }

    fn names(stream: &[u8]) -> Vec<String> {
        let entries = list(stream).unwrap();
        entries
            .iter()
            .map(|(entry, _)| entry.path.to_string())
            .collect()
    }

    #[test]
    fn kinds_and_metadata() {
        let link = |block: &mut [u8; BLOCK]| block[157..163].copy_from_slice(b"./a/b\0");
        let stream = [
            header(b"./", b'5', 0, |block| {
                block[100..108].copy_from_slice(b"0041777\0");
            }),
            header(b"a/b", b'0', 3, |_| {}),
            padded(b"xyz"),
            header(b"s", b'2', 0, link),
            // Links and devices have no content, whatever they say.
            header(b"h", b'1', 999, link),
            header(b"d", b'3', 999, |_| {}),
            header(b"f", b'6', 0, |_| {}),
            header(b"v7dir/", 0, 0, |block| block[257..265].fill(0)),
            header(b"contiguous", b'7', 1, |_| {}),
            padded(b"c"),
            header(b"label", b'V', 0, |_| {}),
            vec![0; 1024],
            b"trailing garbage".to_vec(),
        ]
        .concat();
        let entries = list(&stream).unwrap();
        let kinds: Vec<_> = entries.iter().map(|(entry, _)| &entry.kind).collect();
        let target = EntryPath::parse(b"a/b").unwrap();
        assert_eq!(
            kinds,
            [
                &Kind::Directory,
                &Kind::File(3),
                &Kind::Symlink((*b"./a/b").into()),
                &Kind::HardLink(target),
                &Kind::Device,
                &Kind::Fifo,
                &Kind::Directory,
                &Kind::File(1),
            ]
        );
        assert_eq!(entries[0].0.path.as_bytes(), b"");
        assert_eq!(entries[0].0.metadata.mode, 0o1777);
        assert_eq!(entries[1].0.metadata.mtime, 10);
        assert_eq!(entries[1].1.as_deref(), Some(&b"xyz"[..]));
        assert_eq!(entries[7].0.ordinal, 7);
    }

    #[test]
    fn names_from_every_place() {
        let prefix = |block: &mut [u8; BLOCK]| block[345..349].copy_from_slice(b"some");
        let long = "l/".repeat(150) + "end";
        for (stream, name) in [
            (header(b"x", b'0', 0, prefix), "some/x".to_owned()),
            (
                header(b"x", b'0', 0, |block| {
                    prefix(block);
                    block[257..265].copy_from_slice(b"ustar  \0");
                }),
                "x".to_owned(),
            ),
            (header(&[b'n'; 100], b'0', 0, |_| {}), "n".repeat(100)),
            (
                [
                    extension(b'L', format!("{long}\0").as_bytes()),
                    header(b"short", b'0', 0, |_| {}),
                ]
                .concat(),
                long.clone(),
            ),
            (
                [
                    extension(b'x', record("path", &long).as_bytes()),
                    header(b"short", b'0', 0, prefix),
                ]
                .concat(),
                long.clone(),
            ),
            (
                // The records win, in whatever order they come.
                [
                    extension(b'x', record("path", "pax").as_bytes()),
                    extension(b'L', b"gnu\0"),
                    header(b"short", b'0', 0, |_| {}),
                ]
                .concat(),
                "pax".to_owned(),
            ),
        ] {
            assert_eq!(names(&stream), [name]);
        }
        // What one entry's records say is not said of the next.
        let stream = [
            extension(b'x', record("path", "long").as_bytes()),
            header(b"a", b'0', 0, |_| {}),
            header(b"b", b'0', 0, |_| {}),
        ]
        .concat();
        assert_eq!(names(&stream), ["long", "b"]);
    }

    #[test]
    fn records_override_the_header_and_global_ones_stay() {
        let stream = [
            extension(b'g', record("mtime", "77.9").as_bytes()),
            extension(
                b'x',
                [
                    record("size", "5"),
                    record("SCHILY.xattr.user.k", "v"),
                    record("SCHILY.xattr.trusted.k", "v"),
                    record("SCHILY.xattr.user.overlay.opaque", "y"),
                    record("SCHILY.xattr.security.capability", "cap"),
                    record("SCHILY.xattr.security.selinux", "label"),
                ]
                .concat()
                .as_bytes(),
            ),
            header(b"a", b'0', 0, |_| {}),
            padded(b"12345"),
            extension(b'x', record("mtime", "-3").as_bytes()),
            header(b"b", b'0', 0, |_| {}),
            header(b"c", b'0', 0, |_| {}),
        ]
        .concat();
        let entries = list(&stream).unwrap();
        assert_eq!(entries[0].1.as_deref(), Some(&b"12345"[..]));
        let times: Vec<_> = entries
            .iter()
            .map(|(entry, _)| entry.metadata.mtime)
            .collect();
        assert_eq!(times, [77, 0, 77]);
        let xattrs = entries[0].0.metadata.xattrs.as_ref().unwrap();
        let kept: Vec<_> = xattrs.keys().map(|name| &name[..]).collect();
        assert_eq!(kept, [&b"security.capability"[..], b"user.k"]);
        assert_eq!(entries[1].0.metadata.xattrs, None);
    }

    #[test]
    fn numbers() {
        for (field, value) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"77777777", Some(0o7777_7777)),
            (b"12a\0", None),
            (b"8\0", None),
            (b"-1\0", None),
            (b"1\x002", None),
            (&[0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0], Some(1 << 33)),
            (&[0xff; 12], Some(-1)),
            (&[0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], None),
            (&[0xc0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], None),
        ] {
            assert_eq!(number(field), value, "{}", field.escape_ascii());
        }
    }

    #[test]
    fn sparse_files_of_every_version() {
        // Data at 512..515 and 2000..2002 of 3000 bytes.
        let data = b"abcde";
        let mut expected = vec![0; 3000];
        expected[512..515].copy_from_slice(b"abc");
        expected[2000..2002].copy_from_slice(b"de");
        let zero = [
            record("GNU.sparse.size", "3000"),
            record("GNU.sparse.numblocks", "2"),
            record("GNU.sparse.offset", "512"),
            record("GNU.sparse.numbytes", "3"),
            record("GNU.sparse.offset", "2000"),
            record("GNU.sparse.numbytes", "2"),
        ]
        .concat();
        let one = [
            record("GNU.sparse.size", "3000"),
            record("GNU.sparse.numblocks", "2"),
            record("GNU.sparse.name", "s"),
            record("GNU.sparse.map", "512,3,2000,2"),
        ]
        .concat();
        let newest = [
            record("GNU.sparse.major", "1"),
            record("GNU.sparse.minor", "0"),
            record("GNU.sparse.name", "s"),
            record("GNU.sparse.realsize", "3000"),
        ]
        .concat();
        let pair = |block: &mut [u8], at: usize, offset: u64, length: u64| {
            block[at..at + 12].copy_from_slice(format!("{offset:011o}\0").as_bytes());
            block[at + 12..at + 24].copy_from_slice(format!("{length:011o}\0").as_bytes());
        };
        let old = header(b"s", b'S', 5, |block| {
            block[257..265].copy_from_slice(b"ustar  \0");
            pair(block, 386, 512, 1);
            pair(block, 410, 513, 1);
            pair(block, 434, 514, 1);
            pair(block, 458, 2000, 1);
            block[482] = 1;
            block[483..495].copy_from_slice(format!("{:011o}\0", 3000).as_bytes());
        });
        let mut more = vec![0; BLOCK];
        pair(&mut more, 0, 2001, 1);
        pair(&mut more, 24, 3000, 0);
        for stream in [
            [
                extension(b'x', zero.as_bytes()),
                header(b"s", b'0', 5, |_| {}),
                padded(data),
            ]
            .concat(),
            [
                extension(b'x', one.as_bytes()),
                header(b"GNUSparseFile.1/s", b'0', 5, |_| {}),
                padded(data),
            ]
            .concat(),
            [
                extension(b'x', newest.as_bytes()),
                header(b"GNUSparseFile.1/s", b'0', 517, |_| {}),
                padded(b"2\n512\n3\n2000\n2\n"),
                padded(data),
            ]
            .concat(),
            [old, more, padded(data)].concat(),
        ] {
            let entries = list(&[stream, header(b"after", b'0', 0, |_| {})].concat()).unwrap();
            assert_eq!(entries.len(), 2);
            assert_eq!(entries[0].0.path.as_bytes(), b"s");
            assert_eq!(entries[0].1.as_deref(), Some(&expected[..]));
        }
    }

    #[test]
    fn sparse_files_that_could_be_misread_are_refused() {
        let newest = |major: &str, minor: &str| {
            [
                record("GNU.sparse.major", major),
                record("GNU.sparse.minor", minor),
                record("GNU.sparse.realsize", "3000"),
            ]
            .concat()
        };
        let file = |records: &str, size: u64, content: &[u8]| {
            [
                extension(b'x', records.as_bytes()),
                header(b"s", b'0', size, |_| {}),
                content.to_vec(),
            ]
            .concat()
        };
        let long_map = b"1000000\n".repeat(64);
        for stream in [
            file(&newest("1", "1"), 512, &padded(b"0\n")),
            file(&newest("2", "0"), 512, &padded(b"0\n")),
            file(&record("GNU.sparse.map", "0,1"), 1, &padded(b"x")),
            // Maps that are cut, too long for the entry, or lie about the content's size.
            file(&newest("1", "0"), 512, &padded(b"3\n0\n1\n")),
            file(&newest("1", "0"), 512, &long_map),
            file(&newest("1", "0"), 100, &padded(b"0\n")),
            file(
                &newest("1", "0"),
                513,
                &[padded(b"1\n0\n2\n"), padded(b"x")].concat(),
            ),
            file(&newest("1", "0"), 512, &padded(b"99999999\n")),
            file(&newest("1", "0"), 512, &padded(b"123456789012345678901\n")),
            file(&newest("1", "0"), 512, &padded(b"-1\n")),
            // A sparse file of star, which keeps its map elsewhere.
            header(b"s", b'S', 0, |_| {}),
            // Every file would be sparse.
            extension(b'g', record("GNU.sparse.size", "3000").as_bytes()),
        ] {
            let result = list(&stream);
            assert!(
                matches!(
                    result,
                    Err(TarError::Sparse { .. }
                        | TarError::SparseFormat { .. }
                        | TarError::Pax { .. })
                ),
                "{result:?}"
            );
        }
    }

    #[test]
    fn the_end_of_an_archive() {
        let file = header(b"a", b'0', 0, |_| {});
        let zero = vec![0; BLOCK];
        for (stream, unmarked) in [
            (Vec::new(), true),
            (file.clone(), true),
            ([file.clone(), zero.clone()].concat(), false),
            ([file.clone(), zero.clone(), zero.clone()].concat(), false),
            (
                [file.clone(), zero.clone(), zero.clone(), file.clone()].concat(),
                false,
            ),
        ] {
            let count = usize::from(!stream.is_empty());
            let mut archive = Archive::new(&stream[..]);
            for _ in 0..count {
                assert!(archive.next_entry().unwrap().is_some());
            }
            assert!(archive.next_entry().unwrap().is_none());
            assert_eq!(archive.is_unmarked(), unmarked);
            assert_eq!(archive.is_empty(), stream.is_empty());
        }
        assert!(matches!(
            list(&[file.clone(), zero, file].concat()),
            Err(TarError::Header { .. })
        ));
    }

    #[test]
    fn truncated_streams_are_refused() {
        let stream = [
            extension(b'x', record("path", "name").as_bytes()),
            header(b"a", b'0', 700, |_| {}),
            padded(&[b'x'; 700]),
        ]
        .concat();
        assert_eq!(names(&stream), ["name"]);
        for length in 1..stream.len() {
            assert!(
                matches!(list(&stream[..length]), Err(TarError::Truncated { .. })),
                "{length}"
            );
        }
    }

    #[test]
    fn malformed_headers_are_refused() {
        let mut wrong_sum = header(b"a", b'0', 0, |_| {});
        wrong_sum[0] = b'b';
        for stream in [
            wrong_sum,
            vec![b'x'; BLOCK],
            header(b"a", b'0', 0, |block| block[124..136].fill(b'z')),
            header(b"a", b'0', 0, |block| block[124..136].fill(0xff)),
            header(b"a", b'0', 0, |block| {
                block[124..136]
                    .copy_from_slice(&[0x80, 0, 0, 0, 0x7f, 255, 255, 255, 255, 255, 255, 255]);
            }),
        ] {
            assert!(matches!(list(&stream), Err(TarError::Header { .. })));
        }
        for flag in [b'M', b'N', b'D', b'Q', 0xff] {
            assert!(matches!(
                list(&header(b"a", flag, 0, |_| {})),
                Err(TarError::Type { .. })
            ));
        }
        for stream in [
            header(b"../a", b'0', 0, |_| {}),
            header(b"a/../../b", b'5', 0, |_| {}),
        ] {
            assert!(matches!(list(&stream), Err(TarError::Path { .. })));
        }
        assert!(matches!(
            list(&header(b"a", b'1', 0, |block| block[157..161]
                .copy_from_slice(b"../x"))),
            Err(TarError::LinkPath { .. })
        ));
        assert!(matches!(
            list(&header(b"a", b'2', 0, |_| {})),
            Err(TarError::Symlink { .. })
        ));
        assert!(matches!(
            list(&header(b"a", b'x', 2 << 20, |_| {})),
            Err(TarError::LongExtension { .. })
        ));
        assert!(matches!(
            list(&extension(b'x', b"nonsense")),
            Err(TarError::Pax { .. })
        ));
    }

    #[test]
    fn signed_checksums_are_accepted() {
        let mut block = header(b"\xff\xfe", b'0', 0, |_| {});
        let mut blank = block.clone();
        blank[148..156].copy_from_slice(b"        ");
        let sum: i32 = blank.iter().map(|byte| i32::from(byte.cast_signed())).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        assert_eq!(names(&block), ["\\xff\\xfe"]);
    }

    proptest::proptest! {
        #[test]
        fn damaged_streams_never_panic(
            damage in proptest::collection::vec((0_usize..4096, proptest::num::u8::ANY), 0..8),
            cut in 0_usize..4096,
        ) {
            let mut stream = [
                extension(b'x', [
                    record("GNU.sparse.major", "1"),
                    record("GNU.sparse.minor", "0"),
                    record("GNU.sparse.realsize", "3000"),
                ].concat().as_bytes()),
                header(b"s", b'0', 517, |_| {}),
                padded(b"2\n512\n3\n2000\n2\n"),
                padded(b"abcde"),
                extension(b'L', b"gnu\0"),
                header(b"x", b'0', 3, |_| {}),
                padded(b"abc"),
            ].concat();
            for (at, byte) in damage {
                let at = at % stream.len();
                stream[at] = byte;
                // Keep checksums right, so that the damage reaches what they protect.
                let start = at - at % BLOCK;
                let block = &mut stream[start..start + BLOCK];
                if block[257..262] == *b"ustar" {
                    block[148..156].copy_from_slice(b"        ");
                    let sum: u32 = block.iter().copied().map(u32::from).sum();
                    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
                }
            }
            let cut = cut.min(stream.len());
            let mut archive = Archive::new(io::BufReader::with_capacity(300, &stream[..cut]));
            let mut pieces = 0;
            while let Ok(Some(_)) = archive.next_entry() {
                while let Ok(Some(_)) = archive.next_piece() {
                    pieces += 1;
                    proptest::prop_assert!(pieces < 10_000);
                }
            }
        }
    }
}
