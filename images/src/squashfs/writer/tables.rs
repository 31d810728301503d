//! Everything behind the data, and the superblock.

use std::fs::File;
use std::os::unix::fs::FileExt;

use zerocopy::IntoBytes;

use super::inodes::InodeWriter;
use super::metadata::{Packer, lookup_blocks};
use super::pipeline::Appended;
use super::{Content, Options, WriteError, encoder};
use crate::squashfs::compression::Compression;
use crate::squashfs::format::{FragmentEntry, MAGIC, NO_TABLE, Superblock, XattrTable, flags};
use crate::tree::Tree;

/// The file is filled up to a multiple of this, so that it can be a loop device.
const PADDING: u64 = 4096;

/// Bytes of data from which tables may be stored uncompressed.
const MIN_PLAIN: u64 = 32 << 20;
/// What inode, name and references to them take uncompressed, in bytes, as a rule.
const INODE_SIZE: u64 = 96;

/// What the superblock says.
pub(super) struct Layout {
    pub(super) bytes_used: u64,
    pub(super) inodes: u32,
}

/// Where the next table goes.
struct End<'a> {
    file: &'a File,
    position: u64,
}

impl End<'_> {
    /// Appends bytes and returns their offset.
    fn append(&mut self, bytes: &[u8]) -> Result<u64, WriteError> {
        let start = self.position;
        self.file
            .write_all_at(bytes, start)
            .map_err(WriteError::Write)?;
        self.position += bytes.len() as u64;
        Ok(start)
    }

    /// Appends a table whose blocks are found through a list of offsets; returns the offset of the list.
    fn append_lookup(&mut self, entries: &[u8], packer: &mut Packer) -> Result<u64, WriteError> {
        let (blocks, offsets) = lookup_blocks(entries, self.position, packer)?;
        self.append(&blocks)?;
        self.append(&offsets)
    }
}

/// Writes the tables and the superblock.
pub(super) fn write(
    tree: &Tree,
    contents: &[Content],
    appended: &Appended,
    options: &Options,
) -> Result<Layout, WriteError> {
    let mut packer = Packer::new(
        options.compression,
        options.block_size,
        is_plain(tree, appended.position),
    )?;
    let packer = &mut packer;
    let mut tables =
        InodeWriter::new(tree, contents, appended, packer, options.block_size)?.write()?;

    let mut end = End {
        file: &appended.file,
        position: appended.position,
    };
    let inode_table = end.append(&tables.inodes.take())?;
    let directory_table = end.append(&tables.directories.take())?;
    let fragment_table = match appended.fragments.len() {
        0 => NO_TABLE,
        _ => end.append_lookup(&fragment_entries(&appended.fragments), packer)?,
    };
    let references: Vec<u8> = (tables.references.iter())
        .flat_map(|reference| reference.to_le_bytes())
        .collect();
    let export_table = end.append_lookup(&references, packer)?;
    let id_table = end.append_lookup(&tables.ids, packer)?;
    let xattr_table = match tables.xattrs.finish(packer)? {
        None => NO_TABLE,
        Some(xattrs) => {
            let start = end.append(&xattrs.blocks)?;
            let (blocks, offsets) = lookup_blocks(&xattrs.ids, end.position, packer)?;
            end.append(&blocks)?;
            let header = XattrTable {
                start: start.into(),
                ids: xattrs.count.into(),
                unused: 0.into(),
            };
            let position = end.append(header.as_bytes())?;
            end.append(&offsets)?;
            position
        }
    };

    let too_much = |_| WriteError::TooMuchMetadata;
    let inodes = u32::try_from(tables.references.len()).map_err(too_much)?;
    let fragments = u32::try_from(appended.fragments.len()).map_err(too_much)?;
    let ids = u16::try_from(tables.ids.len() / size_of::<u32>()).map_err(too_much)?;
    let superblock = Superblock {
        magic: MAGIC.into(),
        inode_count: inodes.into(),
        mkfs_time: options.mkfs_time.into(),
        block_size: options.block_size.into(),
        fragment_count: fragments.into(),
        compressor: (encoder::compressor(options.compression) as u16).into(),
        // At most 20.
        block_log: (options.block_size.trailing_zeros() as u16).into(),
        flags: superblock_flags(options.compression, fragments > 0, xattr_table != NO_TABLE).into(),
        id_count: ids.into(),
        version_major: 4.into(),
        version_minor: 0.into(),
        root_inode: tables.root.0.into(),
        bytes_used: end.position.into(),
        id_table: id_table.into(),
        xattr_table: xattr_table.into(),
        inode_table: inode_table.into(),
        directory_table: directory_table.into(),
        fragment_table: fragment_table.into(),
        export_table: export_table.into(),
    };
    let padded = end.position.next_multiple_of(PADDING);
    // Shorter, too: a duplicate at the end of the data may have reached further.
    end.file.set_len(padded).map_err(WriteError::Write)?;
    end.file
        .write_all_at(superblock.as_bytes(), 0)
        .map_err(WriteError::Write)?;
    Ok(Layout {
        bytes_used: end.position,
        inodes,
    })
}

/// Whether the tables are stored uncompressed: where that makes the image larger by less than one in a hundred.
///
/// A new mount begins with nothing decoded, and a start looks at a dozen metadata blocks in one place after the other. Decoding one takes eight
/// times as long as reading it.
fn is_plain(tree: &Tree, data: u64) -> bool {
    data >= MIN_PLAIN && (tree.len() as u64).saturating_mul(INODE_SIZE) <= data / 100
}

fn fragment_entries(fragments: &[(u64, u32)]) -> Vec<u8> {
    let mut entries = Vec::with_capacity(size_of_val(fragments));
    for (start, size) in fragments {
        let entry = FragmentEntry {
            start: (*start).into(),
            size: (*size).into(),
            unused: 0.into(),
        };
        entries.extend_from_slice(entry.as_bytes());
    }
    entries
}

fn superblock_flags(compression: Compression, fragments: bool, xattrs: bool) -> u16 {
    let mut set = flags::DUPLICATES | flags::EXPORTABLE;
    if compression == Compression::None {
        set |= flags::UNCOMPRESSED_INODES
            | flags::UNCOMPRESSED_DATA
            | flags::UNCOMPRESSED_FRAGMENTS
            | flags::UNCOMPRESSED_XATTRS
            | flags::UNCOMPRESSED_IDS;
    }
    if encoder::recorded_options(compression).is_some() {
        set |= flags::COMPRESSOR_OPTIONS;
    }
    if !fragments {
        set |= flags::NO_FRAGMENTS;
    }
    if !xattrs {
        set |= flags::NO_XATTRS;
    }
    set
}
