//! From an image file: inodes, directories, blocks.
//!
//! The image is read with `pread` and never mapped: on shared storage a mapped page that cannot be read kills the process
//! (SIGBUS), a failed `pread` is an error. A [`Reader`] is shared by threads: it holds a file descriptor, caches with
//! their own locks, and nothing else that changes. Opening one reads the superblock and the header of the xattr table, no more.
//!
//! Images are hostile. Every offset, size, count and index is checked where it is used; nothing is allocated by a
//! number from the image unless the number is small by its own limit; a block never decodes to more than its limit;
//! walks end, because each step consumes bytes of a table of finite size. What a reader cannot know is whether directories
//! form a tree: a walker must not enter the same inode twice (see [`crate::unpack`]).
//!
//! - `metadata`, `table`: the pieces in which tables are stored, and how records are found
//! - `inode`, `directory`, `xattr`: names and metadata
//! - `file`, `cache`, `decompress`: content
//!
//! Follows the kernel's `fs/squashfs` where the format leaves a question open.

mod cache;
mod decompress;
mod directory;
mod error;
mod file;
mod inode;
mod metadata;
mod table;
mod xattr;

use std::cell::RefCell;
use std::fs;
use std::io;
use std::io::Seek as _;
use std::os::unix::fs::FileTypeExt as _;

use rustix::buffer::spare_capacity;
use zerocopy::FromBytes as _;

pub use self::cache::CachedBlock;
pub use self::directory::{DirectoryCursor, DirectoryEntry, EntryTarget};
pub use self::error::ReadError;
pub use self::file::{Extent, FileMap, Piece, StoredBlock, part};
pub use self::inode::{Directory, File, Inode, InodeKind, Symlink};
use super::compression::Compressor;
use super::format::{
    InodeRef, MAGIC, MAX_BLOCK_SIZE, METADATA_BLOCK, METADATA_UNCOMPRESSED, MIN_BLOCK_SIZE,
    NO_TABLE, SUPERBLOCK_SIZE, Superblock, flags,
};

/// Bytes of decoded blocks that a reader keeps unless told otherwise.
pub const DEFAULT_CACHE: usize = 16 << 20;

/// An open image.
pub struct Reader {
    file: fs::File,
    /// Offset of the image in the file.
    base: u64,
    superblock: Superblock,
    compressor: Compressor,
    inode_table: u64,
    directory_table: u64,
    /// Where the directory table ends at the latest.
    directory_end: u64,
    xattrs: Option<xattr::XattrTable>,
    metadata: metadata::MetadataCache,
    cache: cache::BlockCache,
}

thread_local! {
    /// Compressed bytes of the block that is being decoded.
    static INPUT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Reader {
    /// Opens the image that begins `offset` bytes into `file`.
    ///
    /// Checks the superblock and that the file is long enough; the rest of the image is checked as it is read.
    pub fn open(file: fs::File, offset: u64) -> Result<Self, ReadError> {
        let length = length(&file)
            .map_err(ReadError::Size)?
            .saturating_sub(offset);
        let mut bytes = Vec::with_capacity(SUPERBLOCK_SIZE);
        read_exact(&file, offset, 0, SUPERBLOCK_SIZE, &mut bytes).map_err(|error| match error {
            ReadError::Io { ref source, .. } if source.kind() == io::ErrorKind::UnexpectedEof => {
                ReadError::NotSquashfs
            }
            ReadError::Io { ref source, .. } if source.kind() == io::ErrorKind::IsADirectory => {
                ReadError::Directory
            }
            error => error,
        })?;
        let superblock = Superblock::read_from_bytes(&bytes).map_err(|_| ReadError::NotSquashfs)?;
        if superblock.magic.get() != MAGIC {
            return Err(ReadError::NotSquashfs);
        }
        let (major, minor) = (
            superblock.version_major.get(),
            superblock.version_minor.get(),
        );
        if (major, minor) != (4, 0) {
            return Err(ReadError::Version { major, minor });
        }
        let number = superblock.compressor.get();
        let compressor = decompress::supported(number).ok_or(ReadError::Compressor(number))?;
        let bytes_used = superblock.bytes_used.get();
        if bytes_used > length {
            return Err(ReadError::Truncated {
                expected: bytes_used,
                actual: length,
            });
        }
        let directory_end = check_tables(&superblock)?;
        let mut reader = Self {
            file,
            base: offset,
            superblock,
            compressor,
            inode_table: superblock.inode_table.get(),
            directory_table: superblock.directory_table.get(),
            directory_end,
            xattrs: None,
            metadata: metadata::MetadataCache::new(),
            cache: cache::BlockCache::new(DEFAULT_CACHE),
        };
        reader.xattrs = reader.read_xattr_table()?;
        Ok(reader)
    }

    /// The same reader with a cache for `bytes` bytes of decoded blocks instead of [`DEFAULT_CACHE`].
    #[must_use]
    pub fn with_cache(mut self, bytes: usize) -> Self {
        self.cache = cache::BlockCache::new(bytes);
        self
    }

    /// The superblock as it stands in the image.
    #[must_use]
    pub const fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// How the image is compressed.
    #[must_use]
    pub const fn compressor(&self) -> Compressor {
        self.compressor
    }

    /// The compressor's options as the image records them, see [`super::writer::Writer::stores_like`]; None without any.
    pub fn compressor_options(&self) -> Result<Option<Vec<u8>>, ReadError> {
        if self.superblock.flags.get() & flags::COMPRESSOR_OPTIONS == 0 {
            return Ok(None);
        }
        let offset = SUPERBLOCK_SIZE as u64;
        let mut header = [0; 2];
        self.check_range(offset, header.len())?;
        fill(&self.file, self.base, offset, &mut header)?;
        let size = u16::from_le_bytes(header);
        if size & METADATA_UNCOMPRESSED == 0 {
            return Err(ReadError::corrupt(
                "compressor options are compressed",
                offset,
            ));
        }
        let size = usize::from(size & !METADATA_UNCOMPRESSED).min(METADATA_BLOCK);
        let mut options = Vec::new();
        self.read_exact(offset + 2, size, &mut options)?;
        Ok(Some(options))
    }

    /// Size of a data block in bytes: a power of two, 4 KiB to 1 MiB.
    #[must_use]
    pub const fn block_size(&self) -> u32 {
        self.superblock.block_size.get()
    }

    /// Size of the image in bytes, without padding at its end.
    #[must_use]
    pub const fn bytes_used(&self) -> u64 {
        self.superblock.bytes_used.get()
    }

    /// Reference of the root directory's inode.
    #[must_use]
    pub const fn root_ref(&self) -> InodeRef {
        InodeRef(self.superblock.root_inode.get())
    }

    /// An error unless `length` bytes from `offset` on are inside the image.
    fn check_range(&self, offset: u64, length: usize) -> Result<(), ReadError> {
        offset
            .checked_add(length as u64)
            .filter(|end| *end <= self.bytes_used())
            .map(drop)
            .ok_or(ReadError::corrupt(
                "something lies outside the image",
                offset,
            ))
    }

    /// Replaces the content of `buffer` by exactly `length` bytes from `offset` on. The caller has bounded `length`.
    fn read_exact(
        &self,
        offset: u64,
        length: usize,
        buffer: &mut Vec<u8>,
    ) -> Result<(), ReadError> {
        self.check_range(offset, length)?;
        read_exact(&self.file, self.base, offset, length, buffer)
    }

    /// The number at `offset`.
    fn read_u64(&self, offset: u64) -> Result<u64, ReadError> {
        let mut bytes = [0; 8];
        self.check_range(offset, bytes.len())?;
        fill(&self.file, self.base, offset, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn decompress(
        &self,
        offset: u64,
        input: &[u8],
        limit: usize,
        output: &mut Vec<u8>,
    ) -> Result<(), ReadError> {
        decompress::decompress(self.compressor, input, limit, output).map_err(|reason| {
            output.clear();
            ReadError::Decompress {
                offset,
                length: input.len(),
                reason,
            }
        })
    }

    /// Reads `length` compressed bytes into this thread's buffer, which only grows, and decompresses them.
    fn read_compressed(
        &self,
        offset: u64,
        length: usize,
        limit: usize,
        output: &mut Vec<u8>,
    ) -> Result<(), ReadError> {
        self.check_range(offset, length)?;
        INPUT.with_borrow_mut(|buffer| {
            if buffer.len() < length {
                buffer.resize(length, 0);
            }
            let input = &mut buffer[..length];
            fill(&self.file, self.base, offset, input)?;
            self.decompress(offset, input, limit, output)
        })
    }
}

/// Checks what the superblock says about itself and the order of the tables, which is the kernel's; returns where the directory table ends.
fn check_tables(superblock: &Superblock) -> Result<u64, ReadError> {
    let corrupt = |what, offset| Err(ReadError::corrupt(what, offset));
    let block_size = superblock.block_size.get();
    if !(MIN_BLOCK_SIZE..=MAX_BLOCK_SIZE).contains(&block_size)
        || !block_size.is_power_of_two()
        || block_size.trailing_zeros() != u32::from(superblock.block_log.get())
    {
        return corrupt("the superblock has an impossible block size", 12);
    }
    let bytes_used = superblock.bytes_used.get();
    let (inodes, directories) = (
        superblock.inode_table.get(),
        superblock.directory_table.get(),
    );
    // References have 48 bits, of which 32 say the block.
    if inodes < SUPERBLOCK_SIZE as u64 || inodes >= directories || directories > bytes_used {
        return corrupt("the inode and directory tables are out of order", inodes);
    }
    if bytes_used > i64::MAX.cast_unsigned() {
        return corrupt("the superblock has an impossible size", 40);
    }
    let mut end = bytes_used;
    let fragments = if superblock.fragment_count.get() == 0 {
        NO_TABLE
    } else {
        superblock.fragment_table.get()
    };
    for (table, required) in [
        (superblock.id_table.get(), true),
        (fragments, superblock.fragment_count.get() > 0),
        (superblock.export_table.get(), false),
        (superblock.xattr_table.get(), false),
    ] {
        if table == NO_TABLE && !required {
            continue;
        }
        if table < directories || table >= bytes_used {
            return corrupt("a table lies outside its place in the image", table);
        }
        end = end.min(table);
    }
    if superblock.id_count.get() == 0 || superblock.inode_count.get() == 0 {
        return corrupt("the superblock has no ids or no inodes", 4);
    }
    Ok(end)
}

fn length(file: &fs::File) -> io::Result<u64> {
    let metadata = file.metadata()?;
    if metadata.file_type().is_block_device() {
        // Nothing here depends on the file's position.
        let mut file = file;
        return file.seek(io::SeekFrom::End(0));
    }
    Ok(metadata.len())
}

/// Replaces the content of `buffer` by `length` bytes; offsets in errors are relative to the image. Reads more when the
/// buffer has room for more, and drops it: that is cheaper than clearing the buffer first, where it is about as large.
fn read_exact(
    file: &fs::File,
    base: u64,
    offset: u64,
    length: usize,
    buffer: &mut Vec<u8>,
) -> Result<(), ReadError> {
    buffer.clear();
    buffer.reserve_exact(length);
    while buffer.len() < length {
        let at = base
            .saturating_add(offset)
            .saturating_add(buffer.len() as u64);
        step(
            rustix::io::pread(file, spare_capacity(buffer), at),
            offset,
            length,
        )?;
    }
    buffer.truncate(length);
    Ok(())
}

/// Fills `buffer`; offsets in errors are relative to the image.
fn fill(file: &fs::File, base: u64, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
    let length = buffer.len();
    let mut filled = 0;
    while filled < length {
        let at = base.saturating_add(offset).saturating_add(filled as u64);
        filled += step(
            rustix::io::pread(file, &mut buffer[filled..], at),
            offset,
            length,
        )?;
    }
    Ok(())
}

/// What one `pread` achieved: bytes, or 0 when it was interrupted.
fn step(result: rustix::io::Result<usize>, offset: u64, length: usize) -> Result<usize, ReadError> {
    let source = match result {
        Ok(0) => io::ErrorKind::UnexpectedEof.into(),
        Ok(read) => return Ok(read),
        Err(rustix::io::Errno::INTR) => return Ok(0),
        Err(error) => error.into(),
    };
    Err(ReadError::Io {
        offset,
        length,
        source,
    })
}
