//! Directories: listings, lookups by name, walks along a path.
//!
//! A listing is a sequence of headers (number of entries, block of the inodes, base of the inode numbers), each followed by
//! its entries. Entries are sorted by name, and directories longer than a metadata block usually have an index of
//! the headers at block borders. Neither is trusted here: an unsorted listing only makes lookups miss.
//!
//! A [`DirectoryCursor`] can be taken up again from a [cookie](DirectoryCursor::cookie) without any state kept in between.

use super::inode::{Directory, Inode, InodeKind};
use super::metadata::{Cursor, Position};
use super::{ReadError, Reader};
use crate::squashfs::format::{
    self, DirectoryHeader, DirectoryIndex, InodeRef, MAX_HEADER_ENTRIES, MAX_NAME, METADATA_BLOCK,
    inode_type,
};

const HEADER_SIZE: u32 = size_of::<DirectoryHeader>() as u32;
const ENTRY_SIZE: u32 = size_of::<format::DirectoryEntry>() as u32;

/// An entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectoryEntry {
    /// Its name: 1 to 256 bytes, never `.` or `..`, without `/` and zero bytes.
    pub name: Box<[u8]>,
    /// Where it leads.
    pub target: EntryTarget,
}

/// Where a directory entry leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryTarget {
    /// The inode.
    pub inode: InodeRef,
    /// Its number, as the directory says.
    pub number: u32,
    /// Its type as a basic one of [`inode_type`], as the directory says.
    pub kind: u16,
}

/// Steps through a directory, see [`Reader::open_directory`].
pub struct DirectoryCursor<'a> {
    /// None in an empty directory, and once everything was read.
    cursor: Option<Cursor<'a>>,
    /// Bytes of the listing.
    size: u32,
    /// Offset in the listing of what is read next.
    offset: u32,
    /// Offset in the listing of the header before the next entry.
    header: u32,
    /// Entries that follow before the next header.
    remaining: u32,
    /// Block of the entries' inodes, from the start of the inode table.
    inode_block: u32,
    /// What the entries' inode numbers are relative to.
    inode_number: u32,
    name: Vec<u8>,
}

impl<'a> DirectoryCursor<'a> {
    fn new(reader: &'a Reader, directory: &Directory) -> Result<Self, ReadError> {
        Self::at(reader, directory.size, directory.listing, 0)
    }

    fn at(
        reader: &'a Reader,
        size: u32,
        position: Position,
        offset: u32,
    ) -> Result<Self, ReadError> {
        let cursor = if offset < size {
            Some(reader.cursor(position)?)
        } else {
            None
        };
        Ok(Self {
            cursor,
            size,
            offset,
            header: offset,
            remaining: 0,
            inode_block: 0,
            inode_number: 0,
            name: Vec::with_capacity(MAX_NAME),
        })
    }

    /// Moves to the next entry; None at the end. Its name is [`Self::name`] until the next call.
    pub fn advance(&mut self) -> Result<Option<EntryTarget>, ReadError> {
        let Some(cursor) = &mut self.cursor else {
            return Ok(None);
        };
        let block = cursor.position().block;
        let corrupt = |what| ReadError::corrupt(what, block);
        let left = self.size - self.offset;
        if self.remaining == 0 {
            if left < HEADER_SIZE {
                // The kernel ignores such a rest too.
                self.cursor = None;
                return Ok(None);
            }
            let header: DirectoryHeader = cursor.record()?;
            let count = header.count.get();
            if count as usize >= MAX_HEADER_ENTRIES {
                return Err(corrupt("a directory header announces too many entries"));
            }
            self.header = self.offset;
            self.offset += HEADER_SIZE;
            self.remaining = count + 1;
            self.inode_block = header.block.get();
            self.inode_number = header.number.get();
        }
        if self.size - self.offset < ENTRY_SIZE {
            return Err(corrupt("a directory ends within an entry"));
        }
        let entry: format::DirectoryEntry = cursor.record()?;
        let kind = entry.inode_type.get();
        let length = usize::from(entry.name_size.get()) + 1;
        self.offset += ENTRY_SIZE;
        if length > MAX_NAME || length as u32 > self.size - self.offset {
            return Err(corrupt("a directory entry has an impossible name"));
        }
        if !(inode_type::DIRECTORY..=inode_type::SOCKET).contains(&kind) {
            return Err(corrupt("a directory entry has an unknown type"));
        }
        self.name.clear();
        cursor.append(length, &mut self.name)?;
        self.offset += length as u32;
        self.remaining -= 1;
        if matches!(&self.name[..], b"." | b"..") || self.name.iter().any(|c| matches!(c, 0 | b'/'))
        {
            return Err(corrupt("a directory entry has an impossible name"));
        }
        Ok(Some(EntryTarget {
            inode: InodeRef::new(u64::from(self.inode_block), entry.offset.get()),
            number: self
                .inode_number
                .wrapping_add_signed(i32::from(entry.delta.get())),
            kind,
        }))
    }

    /// Name of the entry that [`Self::advance`] returned last.
    #[must_use]
    pub fn name(&self) -> &[u8] {
        &self.name
    }

    /// What [`Reader::resume_directory`] needs to go on behind the last entry. Less than 2^49 and, behind an entry, at least 21.
    #[must_use]
    pub fn cookie(&self) -> u64 {
        let back = if self.remaining == 0 {
            0
        } else {
            self.offset - self.header
        };
        u64::from(back) << 32 | u64::from(self.offset)
    }
}

impl Iterator for DirectoryCursor<'_> {
    type Item = Result<DirectoryEntry, ReadError>;

    /// The next entry. After an error the listing is over: nothing behind it can be trusted.
    fn next(&mut self) -> Option<Self::Item> {
        match self.advance() {
            Ok(None) => None,
            Ok(Some(target)) => Some(Ok(DirectoryEntry {
                name: self.name().into(),
                target,
            })),
            Err(error) => {
                self.cursor = None;
                Some(Err(error))
            }
        }
    }
}

fn directory(inode: &Inode) -> Result<&Directory, ReadError> {
    match &inode.kind {
        InodeKind::Directory(directory) => Ok(directory),
        _ => Err(ReadError::WrongType("directory")),
    }
}

impl Reader {
    /// The entries of a directory in the order in which the image has them, without `.` and `..`.
    pub fn open_directory(&self, inode: &Inode) -> Result<DirectoryCursor<'_>, ReadError> {
        DirectoryCursor::new(self, directory(inode)?)
    }

    /// Goes on with a listing where [`DirectoryCursor::cookie`] was taken; 0 is the beginning. A cookie that was
    /// made up leads to some entry behind it, to the end, or to an error.
    pub fn resume_directory(
        &self,
        inode: &Inode,
        cookie: u64,
    ) -> Result<DirectoryCursor<'_>, ReadError> {
        let directory = directory(inode)?;
        let offset = (cookie & u64::from(u32::MAX)) as u32;
        let header = u32::try_from(cookie >> 32)
            .ok()
            .and_then(|back| offset.checked_sub(back))
            .filter(|_| offset <= directory.size)
            .unwrap_or(directory.size);
        if header >= directory.size {
            return DirectoryCursor::at(self, directory.size, directory.listing, directory.size);
        }
        let mut cursor = self.cursor(directory.listing)?;
        cursor.skip(u64::from(header))?;
        let mut entries = DirectoryCursor::at(self, directory.size, cursor.position(), header)?;
        while entries.offset < offset && entries.advance()?.is_some() {}
        Ok(entries)
    }

    /// The entry called `name`; None if there is none.
    pub fn lookup(&self, inode: &Inode, name: &[u8]) -> Result<Option<EntryTarget>, ReadError> {
        let directory = directory(inode)?;
        if name.is_empty() || name.len() > MAX_NAME || directory.size == 0 {
            return Ok(None);
        }
        let mut entries = self.indexed(directory, name)?;
        while let Some(target) = entries.advance()? {
            match entries.name().cmp(name) {
                std::cmp::Ordering::Less => {}
                std::cmp::Ordering::Equal => return Ok(Some(target)),
                std::cmp::Ordering::Greater => break,
            }
        }
        Ok(None)
    }

    /// The listing from the last header that the index knows to begin not behind `name`.
    fn indexed(
        &self,
        directory: &Directory,
        name: &[u8],
    ) -> Result<DirectoryCursor<'_>, ReadError> {
        let mut best = (0, directory.listing);
        if directory.index_count > 0 {
            let mut cursor = self.cursor(directory.index)?;
            let mut first = Vec::with_capacity(MAX_NAME);
            for _ in 0..directory.index_count {
                let entry: DirectoryIndex = cursor.record()?;
                let (offset, block) = (entry.position.get(), entry.block.get());
                let length = entry.name_size.get() as usize;
                if length >= MAX_NAME {
                    return Err(ReadError::corrupt(
                        "a directory's index has an impossible name",
                        cursor.position().block,
                    ));
                }
                first.clear();
                cursor.append(length + 1, &mut first)?;
                if first.as_slice() > name || offset >= directory.size {
                    break;
                }
                // Every block before the indexed one is full, so the offset within it follows from the listing's own.
                let position = Position {
                    block: self.directory_table.saturating_add(u64::from(block)),
                    offset: (directory.listing.offset + offset as usize) % METADATA_BLOCK,
                    end: self.directory_end,
                };
                best = (offset, position);
            }
        }
        DirectoryCursor::at(self, directory.size, best.1, best.0)
    }

    /// The inode at `path`, relative to the root, without following symbolic links. None when there is no such path or it
    /// leads through something that is no directory. Empty components and `.` are skipped; `..` leads nowhere.
    pub fn walk(&self, path: &[u8]) -> Result<Option<Inode>, ReadError> {
        let mut inode = self.inode(self.root_ref())?;
        for component in path.split(|byte| *byte == b'/') {
            if component.is_empty() || component == b"." {
                continue;
            }
            if !matches!(inode.kind, InodeKind::Directory(_)) {
                return Ok(None);
            }
            match self.lookup(&inode, component)? {
                Some(target) => inode = self.inode(target.inode)?,
                None => return Ok(None),
            }
        }
        Ok(Some(inode))
    }
}
