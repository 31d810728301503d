//! Squashfs 4.0 on disk: constants and the superblock. All integers are little-endian.
//!
//! Kernel: `fs/squashfs/squashfs_fs.h`.

use zerocopy::little_endian::{I16, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First four bytes of an image: `hsqs`.
pub const MAGIC: u32 = 0x7371_7368;
/// Uncompressed size of every metadata block but the last of a table.
pub const METADATA_BLOCK: usize = 8192;
/// Bit of a metadata block's 16-bit header: the block is stored as it is.
pub const METADATA_UNCOMPRESSED: u16 = 1 << 15;
/// Bit of a data block's or fragment's 32-bit size: the block is stored as it is.
pub const DATA_UNCOMPRESSED: u32 = 1 << 24;
/// Start of a table that the image does not have.
pub const NO_TABLE: u64 = u64::MAX;
/// Fragment index of a file without fragment.
pub const NO_FRAGMENT: u32 = u32::MAX;
/// Xattr index of an inode without extended attributes.
pub const NO_XATTR: u32 = u32::MAX;
/// Smallest block size.
pub const MIN_BLOCK_SIZE: u32 = 4096;
/// Largest block size.
pub const MAX_BLOCK_SIZE: u32 = 1 << 20;
/// Longest name of a directory entry in bytes.
pub const MAX_NAME: usize = 256;
/// Most entries behind one directory header.
pub const MAX_HEADER_ENTRIES: usize = 256;
/// Size of the superblock in bytes; data blocks (or the compressor's options) begin after it.
pub const SUPERBLOCK_SIZE: usize = 96;

/// Most user and group ids together: the superblock counts them in 16 bits.
pub const MAX_IDS: usize = 65535;
/// Number that a directory's listing is smaller than the size in its inode, for `.` and `..`, which are not stored.
pub const DIRECTORY_SIZE_EXTRA: u32 = 3;
/// Bit of an xattr entry's type: the value is a reference to one that stands elsewhere in the xattr table.
pub const XATTR_OUT_OF_LINE: u16 = 1 << 8;

/// Prefixes of extended attributes, in the order of their numbers on disk (0, 1, 2).
pub const XATTR_PREFIXES: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];

/// Superblock flags.
pub mod flags {
    /// Inode table is stored uncompressed.
    pub const UNCOMPRESSED_INODES: u16 = 1 << 0;
    /// Data blocks are stored uncompressed.
    pub const UNCOMPRESSED_DATA: u16 = 1 << 1;
    /// Fragment blocks are stored uncompressed.
    pub const UNCOMPRESSED_FRAGMENTS: u16 = 1 << 3;
    /// The image has no fragments.
    pub const NO_FRAGMENTS: u16 = 1 << 4;
    /// Every file's tail is in a fragment.
    pub const ALWAYS_FRAGMENTS: u16 = 1 << 5;
    /// Identical files are stored once.
    pub const DUPLICATES: u16 = 1 << 6;
    /// The image has an export table (inode number to inode reference).
    pub const EXPORTABLE: u16 = 1 << 7;
    /// Xattrs are stored uncompressed.
    pub const UNCOMPRESSED_XATTRS: u16 = 1 << 8;
    /// The image has no xattrs.
    pub const NO_XATTRS: u16 = 1 << 9;
    /// Compressor options follow the superblock as a metadata block.
    pub const COMPRESSOR_OPTIONS: u16 = 1 << 10;
    /// The id table is stored uncompressed.
    pub const UNCOMPRESSED_IDS: u16 = 1 << 11;
}

/// Inode types. Directory entries and headers use the basic ones.
pub mod inode_type {
    /// Directory.
    pub const DIRECTORY: u16 = 1;
    /// Regular file.
    pub const FILE: u16 = 2;
    /// Symbolic link.
    pub const SYMLINK: u16 = 3;
    /// Block device.
    pub const BLOCK_DEVICE: u16 = 4;
    /// Character device.
    pub const CHARACTER_DEVICE: u16 = 5;
    /// Named pipe.
    pub const FIFO: u16 = 6;
    /// Socket.
    pub const SOCKET: u16 = 7;
    /// Directory with index, xattrs or a large listing.
    pub const EXTENDED_DIRECTORY: u16 = 8;
    /// Regular file with 64-bit size, hard links, sparse blocks or xattrs.
    pub const EXTENDED_FILE: u16 = 9;
    /// Symbolic link with xattrs.
    pub const EXTENDED_SYMLINK: u16 = 10;
    /// Block device with xattrs.
    pub const EXTENDED_BLOCK_DEVICE: u16 = 11;
    /// Character device with xattrs.
    pub const EXTENDED_CHARACTER_DEVICE: u16 = 12;
    /// Named pipe with xattrs.
    pub const EXTENDED_FIFO: u16 = 13;
    /// Socket with xattrs.
    pub const EXTENDED_SOCKET: u16 = 14;
}

/// The superblock, at offset 0.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Superblock {
    /// [`MAGIC`].
    pub magic: U32,
    /// Number of inodes.
    pub inode_count: U32,
    /// Time of creation in seconds since 1970.
    pub mkfs_time: U32,
    /// Size of a data block in bytes, a power of two.
    pub block_size: U32,
    /// Number of fragment blocks.
    pub fragment_count: U32,
    /// Compressor, see [`super::compression::Compressor`].
    pub compressor: U16,
    /// Binary logarithm of the block size.
    pub block_log: U16,
    /// See [`flags`].
    pub flags: U16,
    /// Number of entries in the id table.
    pub id_count: U16,
    /// 4.
    pub version_major: U16,
    /// 0.
    pub version_minor: U16,
    /// Reference of the root directory's inode.
    pub root_inode: U64,
    /// Size of the file system in bytes, without padding at the end.
    pub bytes_used: U64,
    /// Offset of the id table's list of blocks.
    pub id_table: U64,
    /// Offset of the xattr table, or [`NO_TABLE`].
    pub xattr_table: U64,
    /// Offset of the inode table.
    pub inode_table: U64,
    /// Offset of the directory table.
    pub directory_table: U64,
    /// Offset of the fragment table's list of blocks, or [`NO_TABLE`].
    pub fragment_table: U64,
    /// Offset of the export table's list of blocks, or [`NO_TABLE`].
    pub export_table: U64,
}

const _: () = assert!(size_of::<Superblock>() == SUPERBLOCK_SIZE);

/// What every inode begins with.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct InodeHeader {
    /// See [`inode_type`].
    pub inode_type: U16,
    /// Permission bits; the file type is not repeated here.
    pub mode: U16,
    /// Index of the owner in the id table.
    pub uid: U16,
    /// Index of the group in the id table.
    pub gid: U16,
    /// Modification time in seconds since 1970.
    pub mtime: U32,
    /// Inode number, from 1 to the number of inodes.
    pub number: U32,
}

/// A directory, after its [`InodeHeader`].
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DirectoryInode {
    /// Offset of the listing's first metadata block from the start of the directory table.
    pub block: U32,
    /// 2 + the number of subdirectories.
    pub links: U32,
    /// Bytes of the listing + [`DIRECTORY_SIZE_EXTRA`].
    pub size: U16,
    /// Offset of the listing in its first uncompressed metadata block.
    pub offset: U16,
    /// Inode number of the parent directory.
    pub parent: U32,
}

/// A directory with a large listing, an index or extended attributes; `index_count` times a [`DirectoryIndex`] and its name follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ExtendedDirectoryInode {
    /// 2 + the number of subdirectories.
    pub links: U32,
    /// Bytes of the listing + [`DIRECTORY_SIZE_EXTRA`].
    pub size: U32,
    /// Offset of the listing's first metadata block from the start of the directory table.
    pub block: U32,
    /// Inode number of the parent directory.
    pub parent: U32,
    /// Number of index entries.
    pub index_count: U16,
    /// Offset of the listing in its first uncompressed metadata block.
    pub offset: U16,
    /// Index in the xattr id table or [`NO_XATTR`].
    pub xattr: U32,
}

/// A regular file with one link, smaller than 4 GiB; the sizes of its blocks follow, 32 bits each.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct FileInode {
    /// Offset of the first block in the image.
    pub start: U32,
    /// Index in the fragment table or [`NO_FRAGMENT`].
    pub fragment: U32,
    /// Offset of the tail in the uncompressed fragment block.
    pub offset: U32,
    /// Size of the content in bytes.
    pub size: U32,
}

/// Any other regular file; the sizes of its blocks follow, 32 bits each.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ExtendedFileInode {
    /// Offset of the first block in the image.
    pub start: U64,
    /// Size of the content in bytes.
    pub size: U64,
    /// Bytes in blocks that are not stored because they are zero.
    pub sparse: U64,
    /// Number of directory entries.
    pub links: U32,
    /// Index in the fragment table or [`NO_FRAGMENT`].
    pub fragment: U32,
    /// Offset of the tail in the uncompressed fragment block.
    pub offset: U32,
    /// Index in the xattr id table or [`NO_XATTR`].
    pub xattr: U32,
}

/// A symbolic link; its target follows, and behind the target of an extended one its xattr index (32 bits).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SymlinkInode {
    /// Number of directory entries.
    pub links: U32,
    /// Size of the target in bytes.
    pub size: U32,
}

/// A device node; an extended one is followed by its xattr index (32 bits).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DeviceInode {
    /// Number of directory entries.
    pub links: U32,
    /// Device number in the kernel's 32-bit encoding.
    pub device: U32,
}

/// A named pipe or socket; an extended one is followed by its xattr index (32 bits).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IpcInode {
    /// Number of directory entries.
    pub links: U32,
}

/// Stands in front of up to [`MAX_HEADER_ENTRIES`] directory entries whose inodes begin in the same metadata block.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DirectoryHeader {
    /// Number of entries - 1.
    pub count: U32,
    /// Offset of the inodes' metadata block from the start of the inode table.
    pub block: U32,
    /// Inode number that those of the entries are relative to.
    pub number: U32,
}

/// A directory entry; its name follows.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DirectoryEntry {
    /// Offset of the inode in its uncompressed metadata block.
    pub offset: U16,
    /// Inode number - that of the header.
    pub delta: I16,
    /// Basic type, see [`inode_type`].
    pub inode_type: U16,
    /// Length of the name in bytes - 1.
    pub name_size: U16,
}

/// An entry of an extended directory's index, which points at a [`DirectoryHeader`]; the name of that header's first entry follows.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DirectoryIndex {
    /// Offset of the header from the start of the listing.
    pub position: U32,
    /// Offset of the header's metadata block from the start of the directory table.
    pub block: U32,
    /// Length of the name in bytes - 1.
    pub name_size: U32,
}

/// An entry of the fragment table.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct FragmentEntry {
    /// Offset of the fragment block in the image.
    pub start: U64,
    /// Size on disk, with [`DATA_UNCOMPRESSED`].
    pub size: U32,
    /// Zero.
    pub unused: U32,
}

/// Begins an extended attribute: the name without its prefix follows, then an [`XattrValue`].
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct XattrEntry {
    /// Index in [`XATTR_PREFIXES`], with [`XATTR_OUT_OF_LINE`].
    pub kind: U16,
    /// Length of the name without prefix in bytes.
    pub name_size: U16,
}

/// The value of an extended attribute; its bytes follow. Out of line, they are a 64-bit reference to the actual one.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct XattrValue {
    /// Length of the value in bytes.
    pub size: U32,
}

/// An entry of the xattr id table: the attributes of one or more inodes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct XattrId {
    /// Where the first [`XattrEntry`] stands, encoded like an [`InodeRef`], from the start of the xattrs.
    pub reference: U64,
    /// Number of attributes.
    pub count: U32,
    /// Bytes of their full names, a zero behind each, and their values.
    pub size: U32,
}

/// What the superblock's `xattr_table` points at; the offsets of the xattr id table's metadata blocks follow, 64 bits each.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct XattrTable {
    /// Offset of the first metadata block of xattrs in the image.
    pub start: U64,
    /// Number of entries in the xattr id table.
    pub ids: U32,
    /// Zero.
    pub unused: U32,
}

const _: () = assert!(size_of::<InodeHeader>() == 16);
const _: () = assert!(size_of::<DirectoryInode>() == 16);
const _: () = assert!(size_of::<ExtendedDirectoryInode>() == 24);
const _: () = assert!(size_of::<FileInode>() == 16);
const _: () = assert!(size_of::<ExtendedFileInode>() == 40);
const _: () = assert!(size_of::<FragmentEntry>() == 16);
const _: () = assert!(size_of::<XattrId>() == 16);

/// Where an inode's record stands: offset of its metadata block from the start of the inode table, shifted by 16, and offset
/// within the uncompressed block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct InodeRef(pub u64);

impl InodeRef {
    /// The reference to offset `offset` in the metadata block that begins `block` bytes after the table's start.
    #[must_use]
    pub const fn new(block: u64, offset: u16) -> Self {
        Self(block << 16 | offset as u64)
    }

    /// Offset of the metadata block from the start of the inode table, in bytes.
    #[must_use]
    pub const fn block(self) -> u64 {
        self.0 >> 16
    }

    /// Offset in the uncompressed metadata block, in bytes.
    #[must_use]
    pub const fn offset(self) -> u16 {
        (self.0 & 0xffff) as u16
    }
}
