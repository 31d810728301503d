//! A layer that is an image file.
//!
//! It may be hostile: a directory that is entered twice is an error, so that the walk ends; other inodes are read once however many
//! names they have.

use std::collections::HashSet;

use super::{Attributes, Found, LayerTree, Leaf, LeafKind, PackError, shown};
use crate::squashfs::format::InodeRef;
use crate::squashfs::reader::{Inode, InodeKind, Piece, ReadError, Reader};
use crate::squashfs::writer::{WriteError, Writer};
use crate::tree::{ContentId, Xattrs};

pub(super) struct StoredTree<'a> {
    reader: &'a Reader,
    entered: HashSet<u64>,
    /// The directory that was entered last.
    current: Option<Inode>,
}

impl<'a> StoredTree<'a> {
    pub(super) fn new(reader: &'a Reader) -> Self {
        Self {
            reader,
            entered: HashSet::new(),
            current: None,
        }
    }
}

impl LayerTree for StoredTree<'_> {
    fn enter(&mut self, handle: u64, path: &[u8]) -> Result<Attributes, PackError> {
        if !self.entered.insert(handle) {
            return Err(PackError::DirectoryTwice { path: shown(path) });
        }
        let (inode, xattrs) = self.inode(handle, path)?;
        let attributes = Attributes {
            mode: inode.mode,
            mtime: inode.mtime,
            xattrs,
        };
        self.current = Some(inode);
        Ok(attributes)
    }

    fn list(&mut self, path: &[u8], found: &mut dyn FnMut(&[u8], Found)) -> Result<(), PackError> {
        let Some(directory) = &self.current else {
            return Ok(());
        };
        let mut list = || {
            let mut entries = self.reader.open_directory(directory)?;
            while let Some(target) = entries.advance()? {
                let inode = self.reader.inode(target.inode)?;
                found(entries.name(), classify(&inode));
            }
            Ok(())
        };
        list().map_err(|source| image_error(path, source))
    }

    fn file(
        &mut self,
        leaf: &Leaf,
        path: &[u8],
        writer: &mut Writer,
    ) -> Result<(ContentId, Xattrs), PackError> {
        let (inode, xattrs) = self.inode(leaf.handle, path)?;
        let write_error = |source| PackError::Write {
            path: shown(path),
            source,
        };
        let mut content = writer.begin_file(inode.size()).map_err(write_error)?;
        self.reader
            .read_file_pieces(&inode, |piece| match piece {
                Piece::Data(data) => content.write(data).map_err(Error::Write),
                Piece::Hole(length) => content.write_hole(length.into()).map_err(Error::Write),
            })
            .map_err(|error| match error {
                Error::Read(source) => image_error(path, source),
                Error::Write(source) => write_error(source),
            })?;
        Ok((content.finish().map_err(write_error)?, xattrs))
    }

    fn target(&mut self, leaf: &Leaf, path: &[u8]) -> Result<Vec<u8>, PackError> {
        let (inode, _) = self.inode(leaf.handle, path)?;
        self.reader
            .readlink(&inode)
            .map_err(|source| image_error(path, source))
    }
}

impl StoredTree<'_> {
    fn inode(&self, handle: u64, path: &[u8]) -> Result<(Inode, Xattrs), PackError> {
        let read = || {
            let inode = self.reader.inode(InodeRef(handle))?;
            let xattrs = self.reader.xattrs(&inode)?;
            Ok((inode, xattrs))
        };
        read().map_err(|source| image_error(path, source))
    }
}

/// Either side of a copy.
enum Error {
    Read(ReadError),
    Write(WriteError),
}

impl From<ReadError> for Error {
    fn from(source: ReadError) -> Self {
        Self::Read(source)
    }
}

fn image_error(path: &[u8], source: ReadError) -> PackError {
    PackError::Image {
        path: shown(path),
        source,
    }
}

fn classify(inode: &Inode) -> Found {
    let kind = match &inode.kind {
        InodeKind::Directory(_) => return Found::Directory(inode.reference.0),
        InodeKind::CharacterDevice(0) => return Found::Whiteout,
        InodeKind::CharacterDevice(_) | InodeKind::BlockDevice(_) => return Found::Device,
        InodeKind::File(_) => LeafKind::File,
        InodeKind::Symlink(_) => LeafKind::Symlink,
        InodeKind::Fifo => LeafKind::Fifo,
        InodeKind::Socket => LeafKind::Socket,
    };
    Found::Leaf(Leaf {
        kind,
        mode: inode.mode,
        mtime: inode.mtime,
        identity: Some((0, inode.reference.0)),
        handle: inode.reference.0,
    })
}
