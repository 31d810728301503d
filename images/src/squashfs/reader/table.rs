//! Lookup tables: arrays of fixed-size records in metadata blocks, found through an array of block offsets.
//!
//! The id, fragment, export and xattr tables have this form. Nothing is loaded ahead: a lookup reads one offset from the file
//! and one metadata block through the cache, so that no count in an image can make the reader allocate.

use super::file::StoredBlock;
use super::metadata::{Cursor, Position};
use super::{ReadError, Reader};
use crate::squashfs::format::{
    DATA_UNCOMPRESSED, FragmentEntry, InodeRef, METADATA_BLOCK, NO_TABLE,
};

impl Reader {
    /// A cursor at record `number` of the table of records of `size` bytes whose array of block offsets begins at `table`.
    pub(super) fn table_record(
        &self,
        table: u64,
        number: u64,
        size: usize,
    ) -> Result<Cursor<'_>, ReadError> {
        let per_block = (METADATA_BLOCK / size) as u64;
        let at = table.saturating_add(number / per_block * 8);
        let block = self.read_u64(at)?;
        if block >= table {
            return Err(ReadError::corrupt(
                "a table points outside its metadata blocks",
                at,
            ));
        }
        self.cursor(Position {
            block,
            offset: (number % per_block) as usize * size,
            end: table,
        })
    }

    /// The user or group id at a position of the id table.
    pub fn id(&self, index: u16) -> Result<u32, ReadError> {
        if index >= self.superblock.id_count.get() {
            return Err(ReadError::corrupt(
                "an inode's owner is not in the id table",
                u64::from(index),
            ));
        }
        self.table_record(self.superblock.id_table.get(), u64::from(index), 4)?
            .u32()
    }

    /// The fragment block with number `index`.
    pub fn fragment(&self, index: u32) -> Result<StoredBlock, ReadError> {
        if index >= self.superblock.fragment_count.get() {
            return Err(ReadError::corrupt(
                "a file's fragment is not in the fragment table",
                u64::from(index),
            ));
        }
        let table = self.superblock.fragment_table.get();
        let entry: FragmentEntry = self
            .table_record(table, u64::from(index), size_of::<FragmentEntry>())?
            .record()?;
        let (offset, raw) = (entry.start.get(), entry.size.get());
        let stored = raw & !DATA_UNCOMPRESSED;
        if stored == 0
            || stored > self.block_size()
            || offset
                .checked_add(u64::from(stored))
                .is_none_or(|end| end > self.bytes_used())
        {
            return Err(ReadError::corrupt(
                "a fragment block has an impossible size or place",
                offset,
            ));
        }
        Ok(StoredBlock {
            offset,
            stored,
            compressed: raw & DATA_UNCOMPRESSED == 0,
            length: self.block_size(),
            fragment: true,
        })
    }

    /// The inode with a number, by the export table; None when the image has no such table.
    pub fn inode_by_number(&self, number: u32) -> Result<Option<InodeRef>, ReadError> {
        let table = self.superblock.export_table.get();
        if table == NO_TABLE {
            return Ok(None);
        }
        if number == 0 || number > self.superblock.inode_count.get() {
            return Err(ReadError::corrupt(
                "there is no inode with this number",
                u64::from(number),
            ));
        }
        let reference = self.table_record(table, u64::from(number - 1), 8)?.u64()?;
        Ok(Some(InodeRef(reference)))
    }
}
