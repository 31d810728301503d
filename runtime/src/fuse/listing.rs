//! READDIR and READDIRPLUS.
//!
//! Offsets: 0 is the beginning, 1 is behind `.`, 2 is behind `..`, and everything else is a reader's cookie, of which the
//! smallest is 21. Nothing is kept between two requests.

use cista_images::squashfs::format::inode_type;
use cista_images::squashfs::reader::{Inode, InodeKind, ReadError, Reader};
use zerocopy::IntoBytes as _;

use super::nodes::Nodes;
use super::protocol::{Dirent, DirentPlus, EntryOut};

/// Offset behind `.`.
const BEHIND_SELF: u64 = 1;
/// Offset behind `..`.
const BEHIND_PARENT: u64 = 2;
/// Room for the longest record.
const MAX_RECORD: usize = size_of::<DirentPlus>() + 256;
/// Most bytes of an answer, whatever the kernel asks for.
const MAX_ANSWER: usize = 1 << 20;

/// An answer under construction.
struct Records {
    bytes: Vec<u8>,
    limit: usize,
}

impl Records {
    /// Appends a record; false when there is no room for it.
    fn push(&mut self, entry: Option<EntryOut>, dirent: Dirent, name: &[u8]) -> bool {
        let prefix = if entry.is_some() {
            size_of::<EntryOut>()
        } else {
            0
        };
        let length = (prefix + size_of::<Dirent>() + name.len()).next_multiple_of(8);
        if self.bytes.len() + length > self.limit {
            return false;
        }
        let end = self.bytes.len() + length;
        if let Some(entry) = entry {
            self.bytes.extend_from_slice(entry.as_bytes());
        }
        self.bytes.extend_from_slice(dirent.as_bytes());
        self.bytes.extend_from_slice(name);
        self.bytes.resize(end, 0);
        true
    }
}

/// The entries of a directory from `offset` on, as many as fit in `size` bytes; with what LOOKUP would say if `plus`.
pub(super) fn list(
    reader: &Reader,
    nodes: &Nodes,
    directory: &Inode,
    offset: u64,
    size: usize,
    plus: bool,
) -> Result<Vec<u8>, ReadError> {
    let limit = size.min(MAX_ANSWER);
    let mut records = Records {
        bytes: Vec::with_capacity(limit),
        limit,
    };
    let InodeKind::Directory(ref own) = directory.kind else {
        return Err(ReadError::WrongType("directory"));
    };
    let directory_kind = u32::from(inode_type::DIRECTORY);
    let dots: [(&[u8], u32, u64); 2] = [
        (b".", directory.number, BEHIND_SELF),
        (b"..", own.parent, BEHIND_PARENT),
    ];
    for (name, number, behind) in dots {
        if offset >= behind {
            continue;
        }
        let dirent = Dirent {
            ino: u64::from(number),
            off: behind,
            namelen: name.len() as u32,
            kind: file_type(directory_kind),
        };
        // The kernel ignores what is said about these two.
        if !records.push(plus.then(EntryOut::default), dirent, name) {
            return Ok(records.bytes);
        }
    }
    let cookie = if offset <= BEHIND_PARENT { 0 } else { offset };
    let mut entries = reader.resume_directory(directory, cookie)?;
    while records.bytes.len() + MAX_RECORD <= records.limit || records.bytes.is_empty() {
        let target = match entries.advance() {
            Ok(Some(target)) => target,
            Ok(None) => break,
            // What was found is worth having; the error comes when the listing goes on from here.
            Err(_) if !records.bytes.is_empty() => break,
            Err(error) => return Err(error),
        };
        let entry = plus.then(|| {
            // An inode that cannot be read is still listed; the error comes when it is looked up.
            reader
                .inode(target.inode)
                .map_or_else(|_| EntryOut::default(), |inode| nodes.entry_out(&inode))
        });
        let dirent = Dirent {
            ino: u64::from(target.number),
            off: entries.cookie(),
            namelen: entries.name().len() as u32,
            kind: file_type(u32::from(target.kind)),
        };
        if !records.push(entry, dirent, entries.name()) {
            break;
        }
    }
    Ok(records.bytes)
}

/// `d_type` of a basic squashfs type.
fn file_type(kind: u32) -> u32 {
    const TYPES: [u32; 8] = [0, 4, 8, 10, 6, 2, 1, 12];
    TYPES.get(kind as usize).copied().unwrap_or_default()
}
