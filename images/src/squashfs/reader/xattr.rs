//! Extended attributes.
//!
//! The xattr table is a lookup table of sets (a reference to the first pair, the number of pairs, their total size), preceded
//! by a 16-byte header that says where the pairs are. A value may be out of line: a reference to where another pair has it.

use super::inode::Inode;
use super::metadata::{Cursor, Position};
use super::{ReadError, Reader};
use crate::squashfs::format::{
    self, InodeRef, NO_TABLE, XATTR_OUT_OF_LINE, XATTR_PREFIXES, XattrEntry, XattrId,
};
use crate::tree::Xattrs;

/// What the names of overlayfs' own attributes begin with (kernel: `fs/overlayfs/overlayfs.h`), without and with `userxattr`.
const OVERLAY_PREFIXES: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];
/// Longest name with its prefix: `XATTR_NAME_MAX` of the kernel.
const MAX_NAME: usize = 255;
/// Longest value: `XATTR_SIZE_MAX` of the kernel.
const MAX_VALUE: u32 = 65_536;
/// Longest list of names of one inode: `XATTR_LIST_MAX` of the kernel, each name with a zero behind it.
const MAX_NAMES: usize = 65_536;
/// Most bytes of values of one inode.
const MAX_VALUES: usize = 1 << 20;

/// Where the pairs begin, and how many sets there are.
#[derive(Clone, Copy, Debug)]
pub(super) struct XattrTable {
    pairs: u64,
    sets: u32,
}

impl Reader {
    /// Whether any inode of the image can have extended attributes.
    #[must_use]
    pub const fn has_xattrs(&self) -> bool {
        self.xattrs.is_some()
    }

    /// The extended attributes of an inode: full names and values. Attributes in namespaces that squashfs does not know
    /// are left out, as the kernel does, and so are those by which overlayfs marks its layers: an image is a lower layer for us,
    /// and it must not tell the overlay above it what to hide, nor where to look instead.
    pub fn xattrs(&self, inode: &Inode) -> Result<Xattrs, ReadError> {
        let mut found = Xattrs::new();
        let (Some(index), Some(table)) = (inode.xattr, self.xattrs) else {
            return Ok(found);
        };
        let corrupt = |what| ReadError::corrupt(what, inode.reference.0);
        if index >= table.sets {
            return Err(corrupt("an inode's attributes are not in the xattr table"));
        }
        // The lookup table's array of blocks stands behind the header.
        let lookup = self.superblock.xattr_table.get() + size_of::<format::XattrTable>() as u64;
        let set: XattrId = self
            .table_record(lookup, u64::from(index), size_of::<XattrId>())?
            .record()?;
        let mut pairs = self.pairs_at(table, InodeRef(set.reference.get()))?;
        let (mut names, mut values) = (0, 0);
        for _ in 0..set.count.get() {
            let entry: XattrEntry = pairs.record()?;
            let kind = entry.kind.get();
            let length = usize::from(entry.name_size.get());
            let prefix = XATTR_PREFIXES
                .get(usize::from(kind & !XATTR_OUT_OF_LINE))
                .copied();
            let mut name = Vec::with_capacity(MAX_NAME);
            name.extend_from_slice(prefix.unwrap_or_default());
            if length == 0 || name.len() + length > MAX_NAME {
                return Err(corrupt("an attribute has an impossible name"));
            }
            pairs.append(length, &mut name)?;
            if name.contains(&0) {
                return Err(corrupt("an attribute's name holds a zero byte"));
            }
            let size = pairs.u32()?;
            let mut value = Vec::new();
            if kind & XATTR_OUT_OF_LINE == 0 {
                Self::value(&mut pairs, size, &mut value)?;
            } else if size == 8 {
                let mut elsewhere = self.pairs_at(table, InodeRef(pairs.u64()?))?;
                let size = elsewhere.u32()?;
                Self::value(&mut elsewhere, size, &mut value)?;
            } else {
                return Err(corrupt("an attribute's value is not where it should be"));
            }
            names += name.len() + 1;
            values += value.len();
            if names > MAX_NAMES || values > MAX_VALUES {
                return Err(corrupt("an inode has too many attributes"));
            }
            let overlay = OVERLAY_PREFIXES
                .iter()
                .any(|prefix| name.starts_with(prefix));
            if prefix.is_some() && !overlay {
                found.insert(name.into(), value.into());
            }
        }
        Ok(found)
    }

    fn pairs_at(&self, table: XattrTable, reference: InodeRef) -> Result<Cursor<'_>, ReadError> {
        self.cursor(Position {
            block: table.pairs.saturating_add(reference.block()),
            offset: usize::from(reference.offset()),
            end: self.superblock.xattr_table.get(),
        })
    }

    fn value(cursor: &mut Cursor<'_>, size: u32, value: &mut Vec<u8>) -> Result<(), ReadError> {
        if size > MAX_VALUE {
            return Err(ReadError::corrupt(
                "an attribute's value is too large",
                cursor.position().block,
            ));
        }
        cursor.append(size as usize, value)
    }

    /// Reads the header of the xattr table.
    pub(super) fn read_xattr_table(&self) -> Result<Option<XattrTable>, ReadError> {
        let offset = self.superblock.xattr_table.get();
        if offset == NO_TABLE {
            return Ok(None);
        }
        let pairs = self.read_u64(offset)?;
        // The upper half of this number is unused.
        let sets = self.read_u64(offset.saturating_add(8))? as u32;
        if sets == 0 {
            return Ok(None);
        }
        if pairs >= offset {
            return Err(ReadError::corrupt(
                "the xattr table's header is impossible",
                offset,
            ));
        }
        Ok(Some(XattrTable { pairs, sets }))
    }
}
