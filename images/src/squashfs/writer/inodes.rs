//! The inode and directory tables: what the tree looks like on disk.
//!
//! Two walks. The first numbers the inodes: a directory's children one after another, so that the 16-bit differences of
//! directory entries reach them, and counts links. The second goes from the leaves up, because a directory entry holds
//! where its inode stands: when a directory's turn comes, those below its subdirectories are written; then the
//! inodes of all its children are, side by side, and its listing. What `ls -l` reads is thus next to each other.
//!
//! Both use an explicit stack: trees may be deeper than a thread's stack allows.

use std::collections::{BTreeMap, HashMap};

use zerocopy::IntoBytes;

use super::metadata::{Packer, Position, Stream};
use super::pipeline::Appended;
use super::xattrs::XattrWriter;
use super::{Content, WriteError};
use crate::squashfs::format::{
    DIRECTORY_SIZE_EXTRA, DirectoryEntry, DirectoryHeader, DirectoryIndex, DirectoryInode,
    ExtendedDirectoryInode, ExtendedFileInode, FileInode, InodeHeader, InodeRef, IpcInode,
    MAX_HEADER_ENTRIES, MAX_IDS, MAX_NAME, METADATA_BLOCK, NO_FRAGMENT, NO_XATTR, SymlinkInode,
    inode_type,
};
use crate::tree::{InodeId, Kind, Metadata, Tree};

/// Longest target of a symbolic link: PATH_MAX with its final zero. The kernel refuses longer ones as corrupt.
const MAX_TARGET: usize = 4095;
/// In the export table: not written yet.
const UNWRITTEN: u64 = u64::MAX;

/// What the numbering walk found.
struct Census {
    /// Inode number, by [`InodeId`]; 0 for those that no entry leads to.
    numbers: Vec<u32>,
    /// Directory entries that lead to an inode, by [`InodeId`].
    links: Vec<u32>,
    /// Directories with the inode number of their parents, each behind its parent.
    directories: Vec<(InodeId, u32)>,
    /// How many inodes have numbers.
    count: u32,
}

/// A directory whose listing is written, and its inode not yet.
struct Listing {
    position: Position,
    /// Size of the uncompressed listing in bytes.
    size: u32,
    /// Number of subdirectories + 2.
    links: u32,
    parent: u32,
    index: Vec<u8>,
    index_count: u16,
}

/// Writes the tables of a tree.
pub(super) struct InodeWriter<'a> {
    tree: &'a Tree,
    contents: &'a [Content],
    appended: &'a Appended,
    packer: &'a mut Packer,
    block_size: u32,
    census: Census,
    listings: HashMap<InodeId, Listing>,
    ids: HashMap<u32, u16>,
    tables: Tables,
}

/// The tables, or what is needed to write them.
pub(super) struct Tables {
    pub(super) inodes: Stream,
    pub(super) directories: Stream,
    pub(super) xattrs: XattrWriter,
    /// The id table.
    pub(super) ids: Vec<u8>,
    /// The export table: where each inode stands, by number - 1.
    pub(super) references: Vec<u64>,
    /// Where the root directory's inode stands.
    pub(super) root: InodeRef,
}

impl<'a> InodeWriter<'a> {
    pub(super) fn new(
        tree: &'a Tree,
        contents: &'a [Content],
        appended: &'a Appended,
        packer: &'a mut Packer,
        block_size: u32,
    ) -> Result<Self, WriteError> {
        Ok(Self {
            census: Census::take(tree)?,
            tree,
            contents,
            appended,
            packer,
            block_size,
            listings: HashMap::new(),
            ids: HashMap::new(),
            tables: Tables {
                inodes: Stream::default(),
                directories: Stream::default(),
                xattrs: XattrWriter::default(),
                ids: Vec::new(),
                references: Vec::new(),
                root: InodeRef::new(0, 0),
            },
        })
    }

    /// Builds the tables.
    pub(super) fn write(mut self) -> Result<Tables, WriteError> {
        self.tables.references = vec![UNWRITTEN; self.census.count as usize];
        let directories = std::mem::take(&mut self.census.directories);
        for (directory, parent) in directories.into_iter().rev() {
            // Only directories were collected.
            let Kind::Directory(entries) = &self.tree.inode(directory).kind else {
                continue;
            };
            for child in entries.values() {
                if self.reference(*child).0 == UNWRITTEN {
                    self.write_inode(*child)?;
                }
            }
            let listing = self.write_listing(entries, parent)?;
            self.listings.insert(directory, listing);
        }
        self.write_inode(Tree::ROOT)?;
        self.tables.root = self.reference(Tree::ROOT);
        self.tables.inodes.flush(self.packer)?;
        self.tables.directories.flush(self.packer)?;
        Ok(self.tables)
    }

    fn number(&self, id: InodeId) -> u32 {
        self.census.numbers[id.0 as usize]
    }

    fn reference(&self, id: InodeId) -> InodeRef {
        InodeRef(self.tables.references[self.number(id) as usize - 1])
    }

    fn write_listing(
        &mut self,
        entries: &BTreeMap<Box<[u8]>, InodeId>,
        parent: u32,
    ) -> Result<Listing, WriteError> {
        let position = self.tables.directories.position()?;
        let mut listing = Listing {
            position,
            size: 0,
            links: 2,
            parent,
            index: Vec::new(),
            index_count: 0,
        };
        let mut indexed_block = position.block;
        let mut group = Group::default();
        for (name, child) in entries {
            check_name(name)?;
            let inode_type = basic_type(&self.tree.inode(*child).kind);
            listing.links += u32::from(inode_type == inode_type::DIRECTORY);
            let reference = self.reference(*child);
            let number = self.number(*child);
            if !group.push(name, reference, number, inode_type) {
                self.write_group(&group, &mut listing, &mut indexed_block)?;
                group = Group::default();
                group.push(name, reference, number, inode_type);
            }
        }
        if group.count > 0 {
            self.write_group(&group, &mut listing, &mut indexed_block)?;
        }
        Ok(listing)
    }

    /// Writes a header and its entries, and an index entry if it is the first in its metadata block.
    fn write_group(
        &mut self,
        group: &Group<'_>,
        listing: &mut Listing,
        indexed_block: &mut u32,
    ) -> Result<(), WriteError> {
        let position = self.tables.directories.position()?;
        let name = group.first_name;
        if position.block != *indexed_block && listing.index_count < u16::MAX {
            *indexed_block = position.block;
            let entry = DirectoryIndex {
                position: listing.size.into(),
                block: position.block.into(),
                // Names have at most 256 bytes.
                name_size: (name.len() as u32 - 1).into(),
            };
            listing.index.extend_from_slice(entry.as_bytes());
            listing.index.extend_from_slice(name);
            listing.index_count += 1;
        }
        let header = DirectoryHeader {
            count: (group.count - 1).into(),
            block: group.block.into(),
            number: group.number.into(),
        };
        let directories = &mut self.tables.directories;
        directories.write(header.as_bytes(), self.packer)?;
        directories.write(&group.entries, self.packer)?;
        // A group has at most METADATA_BLOCK bytes.
        let size = (header.as_bytes().len() + group.entries.len()) as u32;
        listing.size = listing
            .size
            .checked_add(size)
            .filter(|size| *size <= u32::MAX - DIRECTORY_SIZE_EXTRA)
            .ok_or(WriteError::TooMuchMetadata)?;
        Ok(())
    }

    fn write_inode(&mut self, id: InodeId) -> Result<(), WriteError> {
        let inode = self.tree.inode(id);
        let position = self.tables.inodes.position()?;
        let number = self.number(id);
        self.tables.references[number as usize - 1] =
            InodeRef::new(position.block.into(), position.offset).0;
        let xattr = self
            .tables
            .xattrs
            .add(inode.metadata.xattrs.as_deref(), self.packer)?;
        let links = self.census.links[id.0 as usize];
        let body = match &inode.kind {
            Kind::Directory(_) => self.directory(id, xattr)?,
            Kind::File(content) => self.file(content.0, links, xattr)?,
            Kind::Symlink(target) => {
                if target.is_empty() || target.len() > MAX_TARGET || target.contains(&0) {
                    return Err(WriteError::SymlinkTarget(target.len()));
                }
                let mut body = Body::new(inode_type::SYMLINK);
                let record = SymlinkInode {
                    links: links.into(),
                    // Just checked.
                    size: (target.len() as u32).into(),
                };
                body.bytes.extend_from_slice(record.as_bytes());
                body.bytes.extend_from_slice(target);
                body.with_xattr(xattr)
            }
            Kind::Fifo | Kind::Socket => {
                let mut body = Body::new(basic_type(&inode.kind));
                let record = IpcInode {
                    links: links.into(),
                };
                body.bytes.extend_from_slice(record.as_bytes());
                body.with_xattr(xattr)
            }
        };
        let header = self.header(&inode.metadata, body.inode_type, number)?;
        let inodes = &mut self.tables.inodes;
        inodes.write(header.as_bytes(), self.packer)?;
        inodes.write(&body.bytes, self.packer)
    }

    fn header(
        &mut self,
        metadata: &Metadata,
        inode_type: u16,
        number: u32,
    ) -> Result<InodeHeader, WriteError> {
        Ok(InodeHeader {
            inode_type: inode_type.into(),
            mode: (metadata.mode & 0o7777).into(),
            uid: self.id(metadata.uid)?.into(),
            gid: self.id(metadata.gid)?.into(),
            mtime: metadata.mtime.into(),
            number: number.into(),
        })
    }

    /// Index of a user or group in the id table.
    fn id(&mut self, id: u32) -> Result<u16, WriteError> {
        if let Some(index) = self.ids.get(&id) {
            return Ok(*index);
        }
        let index = u16::try_from(self.ids.len())
            .ok()
            .filter(|index| usize::from(*index) < MAX_IDS)
            .ok_or(WriteError::TooManyIds)?;
        self.ids.insert(id, index);
        self.tables.ids.extend_from_slice(&id.to_le_bytes());
        Ok(index)
    }

    fn directory(&mut self, id: InodeId, xattr: u32) -> Result<Body, WriteError> {
        // Listings are written before inodes, and inodes once.
        let listing = self
            .listings
            .remove(&id)
            .ok_or(WriteError::DirectoryLinks)?;
        let size = listing.size + DIRECTORY_SIZE_EXTRA;
        let indexed = listing.size as usize > METADATA_BLOCK && listing.index_count > 0;
        match u16::try_from(size) {
            Ok(size) if !indexed && xattr == NO_XATTR => {
                let record = DirectoryInode {
                    block: listing.position.block.into(),
                    links: listing.links.into(),
                    size: size.into(),
                    offset: listing.position.offset.into(),
                    parent: listing.parent.into(),
                };
                Ok(Body::of(inode_type::DIRECTORY, record.as_bytes()))
            }
            _ => {
                let record = ExtendedDirectoryInode {
                    links: listing.links.into(),
                    size: size.into(),
                    block: listing.position.block.into(),
                    parent: listing.parent.into(),
                    index_count: if indexed { listing.index_count } else { 0 }.into(),
                    offset: listing.position.offset.into(),
                    xattr: xattr.into(),
                };
                let mut body = Body::of(inode_type::EXTENDED_DIRECTORY, record.as_bytes());
                if indexed {
                    body.bytes.extend_from_slice(&listing.index);
                }
                Ok(body)
            }
        }
    }

    fn file(&self, content: u32, links: u32, xattr: u32) -> Result<Body, WriteError> {
        let content = self
            .contents
            .get(content as usize)
            .ok_or(WriteError::UnknownContent(content))?;
        let run = content.run.map(|run| &self.appended.runs[run as usize]);
        let words = run.map_or(&[][..], |run| self.appended.words(run));
        let start = run.map_or(0, |run| run.start);
        let sparse = run.map_or(0, |run| run.holes * u64::from(self.block_size));
        let (fragment, offset) = match content.tail {
            Some(tail) => (tail.fragment, tail.offset),
            None => (NO_FRAGMENT, 0),
        };
        let basic = u32::try_from(start)
            .ok()
            .zip(u32::try_from(content.size).ok());
        let mut body = match basic {
            Some((start, size)) if links == 1 && xattr == NO_XATTR && sparse == 0 => {
                let record = FileInode {
                    start: start.into(),
                    fragment: fragment.into(),
                    offset: offset.into(),
                    size: size.into(),
                };
                Body::of(inode_type::FILE, record.as_bytes())
            }
            _ => {
                let record = ExtendedFileInode {
                    start: start.into(),
                    size: content.size.into(),
                    // As other writers do, so that a file that is all hole still claims some room: programs take
                    // a file with `st_blocks` of 0 for one whose content is not there.
                    sparse: sparse.min(content.size.saturating_sub(1)).into(),
                    links: links.into(),
                    fragment: fragment.into(),
                    offset: offset.into(),
                    xattr: xattr.into(),
                };
                Body::of(inode_type::EXTENDED_FILE, record.as_bytes())
            }
        };
        for word in words {
            body.bytes.extend_from_slice(&word.to_le_bytes());
        }
        Ok(body)
    }
}

impl Census {
    fn take(tree: &Tree) -> Result<Self, WriteError> {
        let mut census = Self {
            numbers: vec![0; tree.len()],
            links: vec![0; tree.len()],
            directories: Vec::new(),
            count: 1,
        };
        if !matches!(tree.inode(Tree::ROOT).kind, Kind::Directory(_)) {
            return Err(WriteError::DirectoryLinks);
        }
        census.numbers[0] = 1;
        // Whose parent the root is, no one can ask in a mounted image.
        let mut waiting = vec![(Tree::ROOT, 1)];
        while let Some((directory, parent)) = waiting.pop() {
            census.directories.push((directory, parent));
            let parent = census.numbers[directory.0 as usize];
            let Kind::Directory(entries) = &tree.inode(directory).kind else {
                continue;
            };
            for child in entries.values() {
                let index = child.0 as usize;
                let is_directory = matches!(tree.inode(*child).kind, Kind::Directory(_));
                census.links[index] = census.links[index]
                    .checked_add(1)
                    .ok_or(WriteError::TooMuchMetadata)?;
                if census.numbers[index] == 0 {
                    census.count += 1;
                    census.numbers[index] = census.count;
                    if is_directory {
                        waiting.push((*child, parent));
                    }
                } else if is_directory {
                    return Err(WriteError::DirectoryLinks);
                }
            }
        }
        Ok(census)
    }
}

/// Entries that one header can stand for.
#[derive(Default)]
struct Group<'a> {
    first_name: &'a [u8],
    block: u32,
    number: u32,
    count: u32,
    entries: Vec<u8>,
}

impl<'a> Group<'a> {
    /// Adds an entry if the header can stand for it too.
    fn push(&mut self, name: &'a [u8], inode: InodeRef, number: u32, inode_type: u16) -> bool {
        // Positions in tables have 32 bits.
        let block = inode.block() as u32;
        if self.count == 0 {
            (self.first_name, self.block, self.number) = (name, block, number);
        }
        let delta = i16::try_from(i64::from(number) - i64::from(self.number));
        let size = self.entries.len() + size_of::<DirectoryEntry>() + name.len();
        let Ok(delta) = delta else {
            return false;
        };
        if block != self.block
            || self.count as usize == MAX_HEADER_ENTRIES
            // An index entry can only point at a header, so there has to be one in almost every metadata block.
            || size_of::<DirectoryHeader>() + size > METADATA_BLOCK
        {
            return false;
        }
        let entry = DirectoryEntry {
            offset: inode.offset().into(),
            delta: delta.into(),
            inode_type: inode_type.into(),
            // Names have 1 to 256 bytes.
            name_size: (name.len() as u16 - 1).into(),
        };
        self.entries.extend_from_slice(entry.as_bytes());
        self.entries.extend_from_slice(name);
        self.count += 1;
        true
    }
}

/// An inode without its header.
struct Body {
    inode_type: u16,
    bytes: Vec<u8>,
}

impl Body {
    fn new(inode_type: u16) -> Self {
        Self::of(inode_type, &[])
    }

    fn of(inode_type: u16, bytes: &[u8]) -> Self {
        Self {
            inode_type,
            bytes: bytes.to_vec(),
        }
    }

    /// Makes an inode whose xattr index stands at its end an extended one, if it has any.
    fn with_xattr(mut self, xattr: u32) -> Self {
        if xattr != NO_XATTR {
            self.inode_type += inode_type::EXTENDED_DIRECTORY - inode_type::DIRECTORY;
            self.bytes.extend_from_slice(&xattr.to_le_bytes());
        }
        self
    }
}

fn basic_type(kind: &Kind) -> u16 {
    match kind {
        Kind::Directory(_) => inode_type::DIRECTORY,
        Kind::File(_) => inode_type::FILE,
        Kind::Symlink(_) => inode_type::SYMLINK,
        Kind::Fifo => inode_type::FIFO,
        Kind::Socket => inode_type::SOCKET,
    }
}

fn check_name(name: &[u8]) -> Result<(), WriteError> {
    let well_formed = !name.is_empty()
        && name.len() <= MAX_NAME
        && name != b"."
        && name != b".."
        && !name.iter().any(|byte| matches!(byte, 0 | b'/'));
    if well_formed {
        Ok(())
    } else {
        Err(WriteError::Name(
            String::from_utf8_lossy(&name[..name.len().min(MAX_NAME)]).into_owned(),
        ))
    }
}
