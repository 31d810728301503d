//! The xattr tables: every set of extended attributes once, every long value once.
//!
//! A set is a run of entries in a metadata stream; the xattr id table says where each begins, and inodes name a set by its index
//! there. A value that occurred before in another set is stored as a reference to that place ("out of line").
//! The kernel knows the prefixes `user.`, `trusted.` and `security.`; other attributes cannot be stored and are left out.

use std::collections::HashMap;

use zerocopy::IntoBytes;

use super::WriteError;
use super::metadata::{Packer, Stream};
use crate::squashfs::format::{
    InodeRef, NO_XATTR, XATTR_OUT_OF_LINE, XATTR_PREFIXES, XattrEntry, XattrId, XattrValue,
};
use crate::tree::Xattrs;

/// Longest name without prefix: a kernel limit of 255 with it (`XATTR_NAME_MAX`).
const MAX_NAME: usize = 255;
/// Longest value (`XATTR_SIZE_MAX`).
const MAX_VALUE: usize = 65536;
/// Size of a reference, which a value out of line is replaced by.
const REFERENCE_SIZE: usize = size_of::<u64>();

/// What all inodes together have.
pub(super) struct XattrTables {
    /// The metadata blocks of entries.
    pub(super) blocks: Vec<u8>,
    /// The entries of the id table.
    pub(super) ids: Vec<u8>,
    /// Their number.
    pub(super) count: u32,
}

/// Collects sets.
#[derive(Default)]
pub(super) struct XattrWriter {
    entries: Stream,
    ids: Vec<u8>,
    count: u32,
    /// Sets by the BLAKE3 of their entries with values in line.
    sets: HashMap<blake3::Hash, u32>,
    /// Long values by their BLAKE3.
    values: HashMap<blake3::Hash, InodeRef>,
}

impl XattrWriter {
    /// The number of a set, which is stored unless it was before; [`NO_XATTR`] when nothing of it can be stored.
    pub(super) fn add(
        &mut self,
        xattrs: Option<&Xattrs>,
        packer: &mut Packer,
    ) -> Result<u32, WriteError> {
        let Some(xattrs) = xattrs else {
            return Ok(NO_XATTR);
        };
        let mut set = Vec::with_capacity(xattrs.len());
        let mut key = blake3::Hasher::new();
        let mut listed_size = 0_usize;
        for (name, value) in xattrs {
            let Some((prefix, suffix)) = split(name) else {
                continue;
            };
            if name.len() > MAX_NAME || value.len() > MAX_VALUE {
                return Err(WriteError::XattrSize {
                    name: String::from_utf8_lossy(name).into_owned(),
                    size: value.len(),
                });
            }
            // Both fit: they were just checked.
            let name_size = (suffix.len() as u16).into();
            let size = XattrValue {
                size: (value.len() as u32).into(),
            };
            let entry = XattrEntry {
                kind: prefix.into(),
                name_size,
            };
            for part in [entry.as_bytes(), suffix, size.as_bytes(), value] {
                key.update(part);
            }
            listed_size += name.len() + 1 + value.len();
            set.push((entry, suffix, size, value));
        }
        if set.is_empty() {
            return Ok(NO_XATTR);
        }
        let key = key.finalize();
        if let Some(number) = self.sets.get(&key) {
            return Ok(*number);
        }

        let position = self.entries.position()?;
        for (mut entry, suffix, size, value) in set.iter().copied() {
            let long = (value.len() > REFERENCE_SIZE).then(|| blake3::hash(value));
            let earlier = long.and_then(|hash| self.values.get(&hash).copied());
            if earlier.is_some() {
                entry.kind = (entry.kind.get() | XATTR_OUT_OF_LINE).into();
            }
            self.entries.write(entry.as_bytes(), packer)?;
            self.entries.write(suffix, packer)?;
            let here = self.entries.position()?;
            match earlier {
                Some(reference) => {
                    let size = XattrValue {
                        size: (REFERENCE_SIZE as u32).into(),
                    };
                    self.entries.write(size.as_bytes(), packer)?;
                    self.entries.write(&reference.0.to_le_bytes(), packer)?;
                }
                None => {
                    if let Some(hash) = long {
                        let reference = InodeRef::new(here.block.into(), here.offset);
                        self.values.insert(hash, reference);
                    }
                    self.entries.write(size.as_bytes(), packer)?;
                    self.entries.write(value, packer)?;
                }
            }
        }
        let too_many = |_| WriteError::TooMuchMetadata;
        let id = XattrId {
            reference: InodeRef::new(position.block.into(), position.offset)
                .0
                .into(),
            count: u32::try_from(set.len()).map_err(too_many)?.into(),
            size: u32::try_from(listed_size).map_err(too_many)?.into(),
        };
        self.ids.extend_from_slice(id.as_bytes());
        let number = self.count;
        self.count += 1;
        self.sets.insert(key, number);
        Ok(number)
    }

    /// The tables; None when no inode has attributes.
    pub(super) fn finish(mut self, packer: &mut Packer) -> Result<Option<XattrTables>, WriteError> {
        if self.count == 0 {
            return Ok(None);
        }
        self.entries.flush(packer)?;
        Ok(Some(XattrTables {
            blocks: self.entries.take(),
            ids: self.ids,
            count: self.count,
        }))
    }
}

/// Number of the prefix, and the name behind it.
fn split(name: &[u8]) -> Option<(u16, &[u8])> {
    (0..).zip(XATTR_PREFIXES).find_map(|(number, prefix)| {
        let suffix = name.strip_prefix(prefix)?;
        (!suffix.is_empty()).then_some((number, suffix))
    })
}
