//! Node ids and attributes.
//!
//! A node id is the inode's reference in the image, moved out of the way of 0 (no node) and 1 (the root). So nothing has
//! to be remembered about the nodes that the kernel knows: FORGET is ignored, and memory does not grow with the number of
//! files. Hard links share an inode, hence a node. The kernel only sends ids that it was given; a made-up one would lead to
//! bytes that are checked like any other part of the image.

use cista_images::squashfs::format::{InodeRef, MAX_NAME};
use cista_images::squashfs::reader::{Inode, InodeKind, Reader};

use super::protocol::{Attr, AttrOut, EntryOut, ROOT_ID, StatfsOut};

/// How long the kernel may believe an answer, in seconds: the image never changes. (136 years; the kernel clamps what is too long.)
const FOREVER: u64 = u32::MAX as u64;
/// Added to a reference to make an id.
const FIRST_ID: u64 = ROOT_ID + 1;

/// What belongs to all nodes of a mount.
#[derive(Clone, Copy, Debug)]
pub(super) struct Nodes {
    pub(super) root: InodeRef,
    /// Owner of every inode.
    pub(super) uid: u32,
    /// Group of every inode.
    pub(super) gid: u32,
}

impl Nodes {
    /// The inode that an id stands for.
    pub(super) fn reference(&self, nodeid: u64) -> InodeRef {
        match nodeid.checked_sub(FIRST_ID) {
            Some(reference) => InodeRef(reference),
            None => self.root,
        }
    }

    /// The id of an inode.
    pub(super) fn id(&self, reference: InodeRef) -> u64 {
        if reference == self.root {
            ROOT_ID
        } else {
            reference.0.saturating_add(FIRST_ID)
        }
    }

    fn attributes(&self, inode: &Inode) -> Attr {
        let time = u64::from(inode.mtime);
        let (stored, device) = match inode.kind {
            InodeKind::File(ref file) => (file.size.saturating_sub(file.sparse), 0),
            InodeKind::BlockDevice(device) | InodeKind::CharacterDevice(device) => (0, device),
            _ => (0, 0),
        };
        Attr {
            ino: u64::from(inode.number),
            size: inode.size(),
            blocks: stored.div_ceil(512),
            atime: time,
            mtime: time,
            ctime: time,
            mode: inode.file_type() | u32::from(inode.mode),
            nlink: inode.nlink,
            uid: self.uid,
            gid: self.gid,
            rdev: device,
            blksize: 4096,
            ..Attr::default()
        }
    }

    /// The answer to GETATTR.
    pub(super) fn attr_out(&self, inode: &Inode) -> AttrOut {
        AttrOut {
            attr_valid: FOREVER,
            attr: self.attributes(inode),
            ..AttrOut::default()
        }
    }

    /// The answer to LOOKUP.
    pub(super) fn entry_out(&self, inode: &Inode) -> EntryOut {
        EntryOut {
            nodeid: self.id(inode.reference),
            entry_valid: FOREVER,
            attr_valid: FOREVER,
            attr: self.attributes(inode),
            ..EntryOut::default()
        }
    }
}

/// The answer to LOOKUP of a name that does not exist: there is no need to ask again.
pub(super) fn no_entry() -> EntryOut {
    EntryOut {
        entry_valid: FOREVER,
        ..EntryOut::default()
    }
}

/// The answer to STATFS: a full file system of the image's size.
pub(super) fn statfs(reader: &Reader) -> StatfsOut {
    StatfsOut {
        blocks: reader.bytes_used().div_ceil(u64::from(reader.block_size())),
        files: u64::from(reader.superblock().inode_count.get()),
        bsize: reader.block_size(),
        frsize: reader.block_size(),
        namelen: MAX_NAME as u32,
        ..StatfsOut::default()
    }
}
