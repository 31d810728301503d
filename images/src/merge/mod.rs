//! Layers become one tree, top-down, in one pass.
//!
//! Engines apply layers from the lowest up, and write files that a higher layer then replaces or deletes. Here the
//! highest layer comes first: what is above is known when a lower entry is met, so each surviving file is compressed
//! and written exactly once, straight from the decoder's buffers.
//!
//! # What a stack of layers means
//!
//! OCI image specification, "Image Layer Filesystem Changeset". Where it leaves room, this is what Docker (overlay2),
//! containerd and enroot do: every layer is extracted on its own, and overlayfs stacks the results.
//!
//! Within a layer ([`upper`]), entries take effect in order:
//! - A later entry replaces an earlier one of the same name; a directory over a directory only changes its metadata.
//! - Parents that have no entry are made. A parent that the same layer made a symbolic link is followed, within the
//!   root. A parent that is anything else is an error.
//! - `.wh.NAME` hides NAME of the layers below, and `.wh..wh..opq` hides all that they have in its directory. Neither
//!   touches what its own layer has, wherever in the layer it stands. Other names that begin with `.wh..wh.` belong to
//!   AUFS and are ignored.
//! - Devices are dropped; what they would hide stays hidden.
//!
//! Between layers ([`merged`]):
//! - A directory over a directory shows the entries of both; the metadata is that of the highest layer that has an
//!   entry for it, and 0755 where none has.
//! - Anything else hides what is below it, and a directory over anything else hides all that is still lower. So
//!   `lib/x` in an upper layer replaces a symbolic link `lib` of a lower one by a directory: overlayfs does so as well.
//! - A hard link names the inode that its target is in the same layer, or else in the layers below; its own metadata is
//!   ignored. So a link survives the deletion of its target in a higher layer ([`later`]). A link to a lower layer
//!   cannot be a parent of other entries, which is refused.

mod later;
mod merged;
mod upper;

use std::io::BufRead;

use crate::layer::Limits;
use crate::layer::path::PathError;
use crate::layer::tar::{Archive, Entry, Kind, Piece, TarError};
use crate::squashfs::writer::{FileWriter, WriteError, Writer};
use crate::start_files;
use crate::tree::{ContentId, Metadata, Tree};

use self::later::Later;
use self::merged::Merged;
use self::upper::{Content, LeafId, NodeId, Target, Upper};

/// How layers are merged.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Metadata of directories that no layer has an entry for, the root among them.
    pub implied: Metadata,
    /// When an image counts as an attack.
    pub limits: Limits,
    /// Content of hidden files that is kept until the end of its layer, in bytes, for a link to it that may follow. What
    /// does not fit is read again if need be. Part of what determines the image: it decides where content stands.
    pub retain: usize,
    /// Whether what [`start_files::is_loaded_first`] names are stored uncompressed.
    pub plain_loader: bool,
}

impl Settings {
    /// The usual settings. Directories without an entry have mode 0755 and the modification time `mtime`.
    #[must_use]
    pub fn new(mtime: u32) -> Self {
        Self {
            implied: Metadata {
                mode: 0o755,
                uid: 0,
                gid: 0,
                mtime,
                xattrs: None,
            },
            limits: Limits::default(),
            retain: 32 << 20,
            plain_loader: false,
        }
    }
}

/// Where the content of files goes.
pub trait Sink {
    /// A file that is being written.
    type File<'a>: FileSink
    where
        Self: 'a;

    /// Begins a file whose content has exactly `size` bytes.
    fn begin_file(&mut self, size: u64) -> Result<Self::File<'_>, WriteError>;

    /// Takes the whole of a small file that should stand with others of its kind; see [`crate::start_files`].
    fn hold_file(&mut self, content: Vec<u8>) -> Result<ContentId, WriteError> {
        let mut file = self.begin_file(content.len() as u64)?;
        file.write(&content)?;
        file.finish()
    }
}

/// Where the content of one file goes.
pub trait FileSink {
    /// Takes the next bytes.
    fn write(&mut self, piece: &[u8]) -> Result<(), WriteError>;
    /// Takes so many zeros.
    fn write_hole(&mut self, length: u64) -> Result<(), WriteError>;
    /// Stores the blocks of the file as they are, where there are such; see [`crate::start_files::is_loaded_first`].
    fn store_plain(&mut self) {}
    /// Ends the file.
    fn finish(self) -> Result<ContentId, WriteError>;
}

impl Sink for Writer {
    type File<'a> = FileWriter<'a>;

    fn begin_file(&mut self, size: u64) -> Result<FileWriter<'_>, WriteError> {
        Self::begin_file(self, size)
    }

    fn hold_file(&mut self, content: Vec<u8>) -> Result<ContentId, WriteError> {
        Self::hold_file(self, content)
    }
}

impl FileSink for FileWriter<'_> {
    fn write(&mut self, piece: &[u8]) -> Result<(), WriteError> {
        Self::write(self, piece)
    }

    fn write_hole(&mut self, length: u64) -> Result<(), WriteError> {
        Self::write_hole(self, length)
    }

    fn store_plain(&mut self) {
        Self::store_plain(self);
    }

    fn finish(self) -> Result<ContentId, WriteError> {
        Self::finish(self)
    }
}

/// Why layers cannot be merged. Names are escaped for display.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// The layer cannot be read or is malformed.
    #[error("{0}")]
    Tar(#[from] TarError),
    /// The content of a file cannot be written.
    #[error("cannot write `{path}`")]
    Write {
        /// The entry.
        path: String,
        /// What the writer says.
        source: WriteError,
    },
    /// A parent of an entry is neither a directory nor a link to one.
    #[error("entry `{path}` stands below `{parent}`, which is not a directory")]
    Parent {
        /// The entry.
        path: String,
        /// The parent.
        parent: String,
    },
    /// The links among the parents of an entry lead nowhere.
    #[error("entry `{path}` stands below too many symbolic links")]
    Loop {
        /// The entry.
        path: String,
    },
    /// The links among the parents of an entry lead to a path that is too long.
    #[error("entry `{path}` is refused once its symbolic links are followed")]
    Resolved {
        /// The entry.
        path: String,
        /// What is wrong.
        source: PathError,
    },
    /// A whiteout names nothing that could be hidden.
    #[error("whiteout `{path}` names nothing")]
    Whiteout {
        /// The entry.
        path: String,
    },
    /// The target of a hard link is not in the layer nor below it.
    #[error("hard link `{path}` to `{target}`: there is no such file in its layer or below")]
    LinkTarget {
        /// The entry.
        path: String,
        /// The target.
        target: String,
    },
    /// The target of a hard link is a directory.
    #[error("hard link `{path}` to `{target}`: the target is a directory")]
    LinkToDirectory {
        /// The entry.
        path: String,
        /// The target.
        target: String,
    },
    /// More names than [`Limits::names`].
    #[error("the image has more than {limit} names")]
    TooManyNames {
        /// The limit.
        limit: u64,
    },
    /// A layer that was read a second time is not the one that was read first.
    #[error("the layer has changed since it was read first")]
    Changed,
}

/// The merge of a stack of layers.
pub struct Merge {
    merged: Merged,
    later: Later,
    settings: Settings,
    names: u64,
}

impl Merge {
    /// A merge that has seen no layer.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            merged: Merged::new(settings.implied.clone()),
            later: Later::default(),
            settings,
            names: 0,
        }
    }

    /// Merges the next lower layer. `index` is its number, by which [`Self::unfinished`] names it later.
    pub fn add_layer<R: BufRead, S: Sink>(
        &mut self,
        index: usize,
        archive: &mut Archive<R>,
        sink: &mut S,
    ) -> Result<(), MergeError> {
        let mut layer = Layer {
            merge: self,
            upper: Upper::default(),
            sink,
            retained: 0,
        };
        while let Some(entry) = archive.next_entry()? {
            layer.entry(entry, archive)?;
        }
        let Layer {
            mut upper,
            sink,
            merge,
            ..
        } = layer;
        merge.names += upper.len();
        merge
            .later
            .resolve(index, &mut upper, &mut merge.merged, sink)?;
        merge.merged.fold(index, upper, &mut merge.later)?;
        Ok(())
    }

    /// Numbers of the layers that must be read again, for hidden files that visible links name.
    #[must_use]
    pub fn unfinished(&self) -> Vec<usize> {
        self.later.unfinished()
    }

    /// Takes the missing content from a layer that is read again.
    pub fn revisit<R: BufRead, S: Sink>(
        &mut self,
        index: usize,
        archive: &mut Archive<R>,
        sink: &mut S,
    ) -> Result<(), MergeError> {
        let mut wanted = self.later.take_wanted(index);
        while let Some(entry) = archive.next_entry()? {
            if let Some(inode) = wanted.remove(&entry.ordinal) {
                let Kind::File(size) = entry.kind else {
                    return Err(MergeError::Changed);
                };
                let content = copy(&entry.path, size, false, archive, sink)?;
                self.merged.set_content(inode, content);
            }
        }
        if wanted.is_empty() {
            Ok(())
        } else {
            Err(MergeError::Changed)
        }
    }

    /// The merged tree, once no layer is [`Self::unfinished`].
    pub fn finish(self) -> Result<Tree, MergeError> {
        let redirects = self.later.finish()?;
        Ok(self.merged.finish(&redirects))
    }
}

/// The layer that is being merged.
struct Layer<'a, S> {
    merge: &'a mut Merge,
    upper: Upper,
    sink: &'a mut S,
    /// Bytes of hidden content that are kept.
    retained: usize,
}

impl<S: Sink> Layer<'_, S> {
    fn entry<R: BufRead>(
        &mut self,
        entry: Entry,
        archive: &mut Archive<R>,
    ) -> Result<(), MergeError> {
        let Some((_, name)) = entry.path.split_last() else {
            if entry.kind == Kind::Directory {
                self.upper.set_root(entry.metadata);
            }
            return Ok(());
        };
        let meta = |component: &[u8]| component.starts_with(b".wh..wh.");
        if name != b".wh..wh..opq" && entry.path.components().any(meta) {
            return Ok(());
        }
        let parent = self.upper.parent_of(&entry.path, &self.merge.merged)?;
        if name == b".wh..wh..opq" {
            self.upper.set_opaque(parent);
        } else if let Some(hidden) = name.strip_prefix(b".wh.") {
            if matches!(hidden, b"" | b"." | b"..") {
                return Err(MergeError::Whiteout {
                    path: entry.path.to_string(),
                });
            }
            self.upper.hide(parent, hidden);
        } else {
            self.place(parent, name, &entry, archive)?;
        }
        let limit = self.merge.settings.limits.names.min(upper::MAX_LEN);
        if self.merge.names + self.upper.len() > limit {
            return Err(MergeError::TooManyNames { limit });
        }
        Ok(())
    }

    fn place<R: BufRead>(
        &mut self,
        parent: NodeId,
        name: &[u8],
        entry: &Entry,
        archive: &mut Archive<R>,
    ) -> Result<(), MergeError> {
        let content = match &entry.kind {
            Kind::Directory => {
                self.upper
                    .set_directory(parent, name, &entry.metadata, &self.merge.merged);
                return Ok(());
            }
            Kind::HardLink(_) => return self.link(parent, name, entry),
            Kind::File(size) => self.content(parent, name, entry, *size, archive)?,
            Kind::Symlink(target) => Content::Symlink(target.clone()),
            Kind::Fifo => Content::Fifo,
            Kind::Device => Content::Device,
        };
        let leaf = self.upper.add_leaf(entry.metadata.clone(), content);
        self.upper.set_leaf(parent, name, leaf);
        Ok(())
    }

    /// Writes the content of a visible file; keeps or skips that of a hidden one.
    fn content<R: BufRead>(
        &mut self,
        parent: NodeId,
        name: &[u8],
        entry: &Entry,
        size: u64,
        archive: &mut Archive<R>,
    ) -> Result<Content, MergeError> {
        if self.upper.is_visible(parent, name, &self.merge.merged) {
            if size <= start_files::MAX_SIZE && start_files::contain(entry.path.as_bytes()) {
                return hold(&entry.path, archive, self.sink).map(Content::Written);
            }
            let plain = self.merge.settings.plain_loader
                && size <= start_files::MAX_LOADER_SIZE
                && start_files::is_loaded_first(entry.path.as_bytes());
            return copy(&entry.path, size, plain, archive, self.sink).map(Content::Written);
        }
        let skipped = Content::Skipped {
            ordinal: entry.ordinal,
        };
        if size > (self.merge.settings.retain - self.retained) as u64 {
            return Ok(skipped);
        }
        let mut kept = Vec::new();
        while let Some(piece) = archive.next_piece()? {
            match piece {
                Piece::Data(data) => kept.extend_from_slice(data),
                Piece::Hole(_) => return Ok(skipped),
            }
        }
        self.retained += kept.len();
        Ok(Content::Retained(kept))
    }

    fn link(&mut self, parent: NodeId, name: &[u8], entry: &Entry) -> Result<(), MergeError> {
        let Kind::HardLink(target) = &entry.kind else {
            return Ok(());
        };
        let leaf = match self.upper.find(target, &entry.path)? {
            Target::Leaf(leaf) => leaf,
            Target::Directory => {
                return Err(MergeError::LinkToDirectory {
                    path: entry.path.to_string(),
                    target: target.to_string(),
                });
            }
            Target::Absent(resolved) => self.upper.lower_leaf(&resolved, &entry.path),
        };
        if self.upper.is_visible(parent, name, &self.merge.merged) {
            write_retained(&mut self.upper, leaf, &entry.path, self.sink)?;
        }
        self.upper.set_leaf(parent, name, leaf);
        Ok(())
    }
}

/// Writes the content of a hidden file that was kept, since a visible name turned up.
fn write_retained<S: Sink>(
    upper: &mut Upper,
    leaf: LeafId,
    path: &dyn std::fmt::Display,
    sink: &mut S,
) -> Result<(), MergeError> {
    let content = upper.content_mut(leaf);
    if let Content::Retained(kept) = content {
        let id = whole(kept, sink).map_err(|source| MergeError::Write {
            path: path.to_string(),
            source,
        })?;
        *content = Content::Written(id);
    }
    Ok(())
}

pub(crate) fn whole<S: Sink>(content: &[u8], sink: &mut S) -> Result<ContentId, WriteError> {
    let mut file = sink.begin_file(content.len() as u64)?;
    file.write(content)?;
    file.finish()
}

/// Takes the content of the current entry, which is small, for the end of the image.
fn hold<R: BufRead, S: Sink>(
    path: &dyn std::fmt::Display,
    archive: &mut Archive<R>,
    sink: &mut S,
) -> Result<ContentId, MergeError> {
    let mut content = Vec::new();
    while let Some(piece) = archive.next_piece()? {
        match piece {
            Piece::Data(data) => content.extend_from_slice(data),
            // No more than the size of the entry.
            Piece::Hole(length) => content.resize(content.len() + length as usize, 0),
        }
    }
    sink.hold_file(content).map_err(|source| MergeError::Write {
        path: path.to_string(),
        source,
    })
}

/// Copies the content of the current entry.
fn copy<R: BufRead, S: Sink>(
    path: &dyn std::fmt::Display,
    size: u64,
    plain: bool,
    archive: &mut Archive<R>,
    sink: &mut S,
) -> Result<ContentId, MergeError> {
    let failed = |source| MergeError::Write {
        path: path.to_string(),
        source,
    };
    let mut file = sink.begin_file(size).map_err(failed)?;
    if plain {
        file.store_plain();
    }
    while let Some(piece) = archive.next_piece()? {
        match piece {
            Piece::Data(data) => file.write(data),
            Piece::Hole(length) => file.write_hole(length),
        }
        .map_err(failed)?;
    }
    file.finish().map_err(failed)
}
