//! A layer that is an image file.
//!
//! Blocks are copied as they are stored where the new image would store them in the same way.
//!
//! It may be hostile: a directory that is entered twice is an error, so that the walk ends; other inodes are read once however many
//! names they have.

use std::collections::HashSet;

use super::{Attributes, Found, LayerTree, Leaf, LeafKind, PackError, shown};
use crate::squashfs::format::{InodeRef, flags};
use crate::squashfs::reader::{Extent, Inode, InodeKind, ReadError, Reader, part};
use crate::squashfs::writer::{WriteError, Writer};
use crate::start_files;
use crate::tree::{ContentId, Xattrs};

pub(super) struct StoredTree<'a> {
    reader: &'a Reader,
    entered: HashSet<u64>,
    /// The directory that was entered last.
    current: Option<Inode>,
    /// Whether blocks can be copied as they are stored; None until it matters.
    same_format: Option<bool>,
}

impl<'a> StoredTree<'a> {
    pub(super) fn new(reader: &'a Reader) -> Self {
        Self {
            reader,
            entered: HashSet::new(),
            current: None,
            same_format: None,
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
        let content = self
            .copy(&inode, path, writer)
            .map_err(|error| match error {
                Error::Read(source) => image_error(path, source),
                Error::Write(source) => PackError::Write {
                    path: shown(path),
                    source,
                },
            })?;
        Ok((content, xattrs))
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

    /// Copies the content of a file, without decompressing blocks that the writer would compress in the same way.
    fn copy(
        &mut self,
        inode: &Inode,
        path: &[u8],
        writer: &mut Writer,
    ) -> Result<ContentId, Error> {
        let reader = self.reader;
        if inode.size() <= start_files::MAX_SIZE && start_files::contain(path) {
            return Ok(writer.hold_file(reader.read_file(inode, start_files::MAX_SIZE)?)?);
        }
        let same_format = match self.same_format {
            Some(known) => known,
            None => {
                let options = reader.compressor_options()?;
                let (compressor, block_size) = (reader.compressor(), reader.block_size());
                // An image without compression names a compressor, too.
                let compressed = reader.superblock().flags.get() & flags::UNCOMPRESSED_DATA == 0;
                let same =
                    compressed && writer.stores_like(compressor, block_size, options.as_deref());
                *self.same_format.insert(same)
            }
        };
        let map = reader.file_map(inode)?;
        let mut content = writer.begin_file(map.size())?;
        let mut buffer = Vec::new();
        for index in 0..map.extent_count() {
            match reader.extent(&map, index)? {
                Extent::Hole { length } => content.write_hole(length.into())?,
                Extent::Block(block) if same_format && content.takes_block(block.length) => {
                    content.copy_block(block.length, block.compressed, |stored| {
                        Ok::<_, Error>(reader.read_stored(&block, stored)?)
                    })?;
                }
                Extent::Block(block) => {
                    reader.decode(&block, &mut buffer)?;
                    content.write(&buffer)?;
                }
                Extent::Fragment {
                    block,
                    offset,
                    length,
                } => {
                    let fragment = reader.cached(&block)?;
                    content.write(part(&fragment, &block, offset, length)?)?;
                }
            }
        }
        Ok(content.finish()?)
    }
}

/// Either side of a copy.
enum Error {
    Read(ReadError),
    Write(WriteError),
}

impl From<WriteError> for Error {
    fn from(source: WriteError) -> Self {
        Self::Write(source)
    }
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
