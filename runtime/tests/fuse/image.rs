//! Images for these tests, made by our own writer.

use std::collections::BTreeMap;
use std::fs::File;

use cista_images::cancel::Cancel;
use cista_images::squashfs::writer::{Options, Writer};
use cista_images::tree::{Inode, InodeId, Kind, Metadata, Tree, Xattrs};

/// Modification time of everything.
pub(crate) const TIME: u32 = 1_700_000_000;

/// An image under construction.
pub(crate) struct Builder {
    pub(crate) writer: Writer,
    pub(crate) tree: Tree,
}

pub(crate) fn metadata(mode: u16, xattrs: &[(&str, &[u8])]) -> Metadata {
    let pairs = xattrs
        .iter()
        .map(|(name, value)| (name.as_bytes().into(), (*value).into()));
    let xattrs: Xattrs = pairs.collect();
    Metadata {
        mode,
        uid: 0,
        gid: 0,
        mtime: TIME,
        xattrs: (!xattrs.is_empty()).then(|| Box::new(xattrs)),
    }
}

impl Builder {
    pub(crate) fn new(block_size: u32) -> Self {
        let options = Options {
            block_size,
            threads: 2,
            ..Options::default()
        };
        let file = tempfile::tempfile().unwrap();
        Self {
            writer: Writer::new(file, options, Cancel::new()).unwrap(),
            tree: Tree::new(metadata(0o755, &[])),
        }
    }

    pub(crate) fn add(
        &mut self,
        directory: InodeId,
        name: &[u8],
        metadata: Metadata,
        kind: Kind,
    ) -> InodeId {
        let id = self.tree.add(Inode { metadata, kind }).unwrap();
        self.tree.link(directory, name, id);
        id
    }

    pub(crate) fn directory(&mut self, directory: InodeId, name: &[u8]) -> InodeId {
        let kind = Kind::Directory(BTreeMap::new());
        self.add(directory, name, metadata(0o755, &[]), kind)
    }

    pub(crate) fn file(&mut self, directory: InodeId, name: &[u8], content: &[u8]) -> InodeId {
        let content = self.writer.add_file(content).unwrap();
        self.add(directory, name, metadata(0o644, &[]), Kind::File(content))
    }

    pub(crate) fn finish(self) -> File {
        self.writer.finish(&self.tree).unwrap().file
    }
}

/// Bytes that compress somewhat, and differ from block to block and from seed to seed.
pub(crate) fn content(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes()[..4]);
        bytes.extend_from_slice(b"same");
    }
    bytes.truncate(length);
    bytes
}
