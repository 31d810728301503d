//! Inodes: the fourteen record types of squashfs as one struct.

use super::metadata::Position;
use super::{ReadError, Reader};
use crate::squashfs::format::{
    DIRECTORY_SIZE_EXTRA, DeviceInode, DirectoryInode, ExtendedDirectoryInode, ExtendedFileInode,
    FileInode, InodeHeader, InodeRef, IpcInode, NO_FRAGMENT, NO_XATTR, SymlinkInode, inode_type,
};

/// Longest target of a symbolic link in bytes: the kernel's `PATH_MAX` less the terminating zero.
const MAX_SYMLINK: u32 = 4095;

/// An inode as the image stores it.
#[derive(Clone, Debug)]
pub struct Inode {
    /// Where it was read from.
    pub reference: InodeRef,
    /// What `st_ino` should say. A number that the image claims: not the key of anything, which is what `reference` is.
    pub number: u32,
    /// Permission bits with setuid, setgid and sticky: the low 12 bits of `st_mode`.
    pub mode: u16,
    /// Modification time in seconds since 1970.
    pub mtime: u32,
    /// Number of links that the image claims, at least 1.
    pub nlink: u32,
    /// Position of the owner in the id table, see [`Reader::id`].
    pub uid_index: u16,
    /// Position of the group in the id table, see [`Reader::id`].
    pub gid_index: u16,
    /// Position in the xattr table; None without extended attributes.
    pub(super) xattr: Option<u32>,
    /// Type and what belongs to it.
    pub kind: InodeKind,
}

/// What an inode is.
#[derive(Clone, Debug)]
pub enum InodeKind {
    /// A directory.
    Directory(Directory),
    /// A regular file.
    File(File),
    /// A symbolic link.
    Symlink(Symlink),
    /// A block device with the number in the kernel's 32-bit encoding (`new_encode_dev`).
    BlockDevice(u32),
    /// A character device with the number in the kernel's 32-bit encoding (`new_encode_dev`).
    CharacterDevice(u32),
    /// A named pipe.
    Fifo,
    /// A Unix domain socket.
    Socket,
}

/// A directory's own part of its inode.
#[derive(Clone, Debug)]
pub struct Directory {
    /// Bytes of the listing.
    pub(super) size: u32,
    /// Where the listing begins; meaningless when `size` is 0.
    pub(super) listing: Position,
    /// Number of entries of the index.
    pub(super) index_count: u16,
    /// Where the index begins, directly behind the inode.
    pub(super) index: Position,
    /// Inode number of the parent directory.
    pub parent: u32,
}

/// A regular file's own part of its inode.
#[derive(Clone, Debug)]
pub struct File {
    /// Size of the content in bytes.
    pub size: u64,
    /// Bytes of holes, as the image says; for `st_blocks` only.
    pub sparse: u64,
    /// Offset of the first block in the image.
    pub(super) start: u64,
    /// Index of the fragment block that has the tail, and the tail's offset in it.
    pub(super) fragment: Option<(u32, u32)>,
    /// Where the list of block sizes begins, directly behind the inode.
    pub(super) blocks: Position,
}

/// A symbolic link's own part of its inode.
#[derive(Clone, Debug)]
pub struct Symlink {
    /// Length of the target in bytes, 1 to 4095.
    pub length: u32,
    /// Where the target begins.
    pub(super) target: Position,
}

impl Inode {
    /// Whether the image has extended attributes for this inode.
    #[must_use]
    pub const fn has_xattrs(&self) -> bool {
        self.xattr.is_some()
    }

    /// Type bits of `st_mode` (`S_IFMT`).
    #[must_use]
    pub const fn file_type(&self) -> u32 {
        match self.kind {
            InodeKind::Directory(_) => 0o040_000,
            InodeKind::File(_) => 0o100_000,
            InodeKind::Symlink(_) => 0o120_000,
            InodeKind::BlockDevice(_) => 0o060_000,
            InodeKind::CharacterDevice(_) => 0o020_000,
            InodeKind::Fifo => 0o010_000,
            InodeKind::Socket => 0o140_000,
        }
    }

    /// What `st_size` should say: content, length of a link's target, size of a directory's listing, or 0.
    #[must_use]
    pub fn size(&self) -> u64 {
        match &self.kind {
            InodeKind::Directory(directory) => {
                u64::from(directory.size) + u64::from(DIRECTORY_SIZE_EXTRA)
            }
            InodeKind::File(file) => file.size,
            InodeKind::Symlink(link) => u64::from(link.length),
            _ => 0,
        }
    }
}

/// The fragment and the offset in it, if the file has one.
fn tail(fragment: u32, offset: u32) -> Option<(u32, u32)> {
    (fragment != NO_FRAGMENT).then_some((fragment, offset))
}

impl Reader {
    /// The inode at `reference`.
    pub fn inode(&self, reference: InodeRef) -> Result<Inode, ReadError> {
        let corrupt = |what| ReadError::corrupt(what, reference.0);
        let block = self
            .inode_table
            .checked_add(reference.block())
            .filter(|block| *block < self.directory_table)
            .ok_or_else(|| corrupt("an inode reference points outside the inode table"))?;
        let mut cursor = self.cursor(Position {
            block,
            offset: usize::from(reference.offset()),
            end: self.directory_table,
        })?;
        let header: InodeHeader = cursor.record()?;
        let kind_number = header.inode_type.get();
        let extended = kind_number >= inode_type::EXTENDED_DIRECTORY;
        let mut nlink = 1;
        let mut xattr = NO_XATTR;
        let listing = |size: u32, start: u32, offset: u16| {
            let size = size
                .checked_sub(DIRECTORY_SIZE_EXTRA)
                .ok_or_else(|| corrupt("a directory has an impossible size"))?;
            let listing = Position {
                block: self.directory_table.saturating_add(u64::from(start)),
                offset: usize::from(offset),
                end: self.directory_end,
            };
            Ok::<_, ReadError>((size, listing))
        };
        let kind = match kind_number {
            inode_type::DIRECTORY => {
                let record: DirectoryInode = cursor.record()?;
                nlink = record.links.get();
                let size = u32::from(record.size.get());
                let (size, listing) = listing(size, record.block.get(), record.offset.get())?;
                InodeKind::Directory(Directory {
                    size,
                    listing,
                    index_count: 0,
                    index: cursor.position(),
                    parent: record.parent.get(),
                })
            }
            inode_type::EXTENDED_DIRECTORY => {
                let record: ExtendedDirectoryInode = cursor.record()?;
                nlink = record.links.get();
                xattr = record.xattr.get();
                let size = record.size.get();
                let (size, listing) = listing(size, record.block.get(), record.offset.get())?;
                InodeKind::Directory(Directory {
                    size,
                    listing,
                    index_count: record.index_count.get(),
                    index: cursor.position(),
                    parent: record.parent.get(),
                })
            }
            inode_type::FILE => {
                let record: FileInode = cursor.record()?;
                InodeKind::File(File {
                    size: u64::from(record.size.get()),
                    sparse: 0,
                    start: u64::from(record.start.get()),
                    fragment: tail(record.fragment.get(), record.offset.get()),
                    blocks: cursor.position(),
                })
            }
            inode_type::EXTENDED_FILE => {
                let record: ExtendedFileInode = cursor.record()?;
                nlink = record.links.get();
                xattr = record.xattr.get();
                let size = record.size.get();
                if size > i64::MAX.cast_unsigned() {
                    return Err(corrupt("a file has an impossible size"));
                }
                InodeKind::File(File {
                    size,
                    sparse: record.sparse.get().min(size),
                    start: record.start.get(),
                    fragment: tail(record.fragment.get(), record.offset.get()),
                    blocks: cursor.position(),
                })
            }
            inode_type::SYMLINK | inode_type::EXTENDED_SYMLINK => {
                let record: SymlinkInode = cursor.record()?;
                nlink = record.links.get();
                let length = record.size.get();
                if length == 0 || length > MAX_SYMLINK {
                    return Err(corrupt("a symbolic link has an impossible length"));
                }
                let target = cursor.position();
                if extended {
                    cursor.skip(u64::from(length))?;
                    xattr = cursor.u32()?;
                }
                InodeKind::Symlink(Symlink { length, target })
            }
            inode_type::BLOCK_DEVICE
            | inode_type::CHARACTER_DEVICE
            | inode_type::EXTENDED_BLOCK_DEVICE
            | inode_type::EXTENDED_CHARACTER_DEVICE => {
                let record: DeviceInode = cursor.record()?;
                nlink = record.links.get();
                if extended {
                    xattr = cursor.u32()?;
                }
                match kind_number {
                    inode_type::BLOCK_DEVICE | inode_type::EXTENDED_BLOCK_DEVICE => {
                        InodeKind::BlockDevice(record.device.get())
                    }
                    _ => InodeKind::CharacterDevice(record.device.get()),
                }
            }
            inode_type::FIFO
            | inode_type::SOCKET
            | inode_type::EXTENDED_FIFO
            | inode_type::EXTENDED_SOCKET => {
                nlink = cursor.record::<IpcInode>()?.links.get();
                if extended {
                    xattr = cursor.u32()?;
                }
                match kind_number {
                    inode_type::FIFO | inode_type::EXTENDED_FIFO => InodeKind::Fifo,
                    _ => InodeKind::Socket,
                }
            }
            _ => return Err(corrupt("an inode has an unknown type")),
        };
        Ok(Inode {
            reference,
            number: header.number.get(),
            mode: header.mode.get() & 0o7777,
            mtime: header.mtime.get(),
            nlink: nlink.max(1),
            uid_index: header.uid.get(),
            gid_index: header.gid.get(),
            xattr: (xattr != NO_XATTR).then_some(xattr),
            kind,
        })
    }

    /// The target of a symbolic link: 1 to 4095 bytes without zeros.
    pub fn readlink(&self, inode: &Inode) -> Result<Vec<u8>, ReadError> {
        let InodeKind::Symlink(link) = &inode.kind else {
            return Err(ReadError::WrongType("symbolic link"));
        };
        let mut target = Vec::with_capacity(link.length as usize);
        self.cursor(link.target)?
            .append(link.length as usize, &mut target)?;
        if target.contains(&0) {
            return Err(ReadError::corrupt(
                "a symbolic link's target holds a zero byte",
                inode.reference.0,
            ));
        }
        Ok(target)
    }
}
