//! The tree that the layers so far have become, and what it hides of those below.

use std::collections::HashMap;

use super::MergeError;
use super::later::Later;
use super::upper::{Body, Content, LeafId, NodeId, Upper};
use crate::tree::{ContentId, Inode, InodeId, Kind, Metadata, Tree};

/// What a directory of a lower layer meets in the layers above it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Above {
    /// Nothing: all that stands in it can be seen.
    Nothing,
    /// Something that hides all of it.
    Hidden,
    /// A directory: both show.
    Directory(InodeId),
}

/// What is known of an inode besides its metadata; meaningful for directories.
#[derive(Clone, Copy, Default)]
struct Flags {
    /// No layer so far has an entry for it.
    implied: bool,
    /// It hides what lower layers have in it.
    sealed: bool,
    /// What lower layers have under its name is something else, so that its metadata says nothing.
    closed: bool,
}

/// Content of a file that is not known yet.
pub(super) const UNKNOWN: ContentId = ContentId(u32::MAX);

/// The merged tree. Names that are hidden without being there lead to [`Merged::HOLE`].
pub(super) struct Merged {
    tree: Tree,
    /// For each inode of the tree.
    flags: Vec<Flags>,
    /// Metadata of directories without an entry.
    implied: Metadata,
}

impl Merged {
    /// What a hidden name leads to.
    pub(super) const HOLE: InodeId = InodeId(1);

    pub(super) fn new(implied: Metadata) -> Self {
        let mut merged = Self {
            tree: Tree::new(implied.clone()),
            flags: vec![Flags {
                implied: true,
                ..Flags::default()
            }],
            implied,
        };
        // The second inode of a tree always fits.
        let hole = merged.add(Inode {
            metadata: merged.implied.clone(),
            kind: Kind::Socket,
        });
        debug_assert_eq!(hole.ok(), Some(Self::HOLE));
        merged
    }

    pub(super) fn add(&mut self, inode: Inode) -> Result<InodeId, MergeError> {
        let id = self.tree.add(inode).ok_or(MergeError::TooManyNames {
            limit: u64::from(u32::MAX),
        })?;
        self.flags.push(Flags::default());
        Ok(id)
    }

    pub(super) fn set(&mut self, id: InodeId, inode: Inode) {
        *self.tree.inode_mut(id) = inode;
    }

    pub(super) fn set_content(&mut self, id: InodeId, content: ContentId) {
        self.tree.inode_mut(id).kind = Kind::File(content);
    }

    fn flags_mut(&mut self, id: InodeId) -> &mut Flags {
        &mut self.flags[id.0 as usize]
    }

    fn is_directory(&self, id: InodeId) -> bool {
        matches!(self.tree.inode(id).kind, Kind::Directory(_))
    }

    /// What a name meets here, in a directory that meets `above`.
    pub(super) fn above(&self, above: Above, name: &[u8]) -> Above {
        let Above::Directory(directory) = above else {
            return above;
        };
        match self.tree.child(directory, name) {
            None if self.flags[directory.0 as usize].sealed => Above::Hidden,
            None => Above::Nothing,
            Some(child) if self.is_directory(child) => Above::Directory(child),
            Some(_) => Above::Hidden,
        }
    }

    /// Takes a layer below all that is here.
    pub(super) fn fold(
        &mut self,
        layer: usize,
        mut upper: Upper,
        later: &mut Later,
    ) -> Result<(), MergeError> {
        // Pairs of a directory here and the layer's directory of the same path.
        let mut left = vec![(Tree::ROOT, Upper::ROOT)];
        while let Some((here, node)) = left.pop() {
            let node = upper.node_mut(node);
            let hides = node.hides;
            let Body::Directory(directory) = std::mem::take(&mut node.body) else {
                continue;
            };
            let flags = *self.flags_mut(here);
            if let Some(metadata) = directory.metadata
                && flags.implied
                && !flags.closed
            {
                self.tree.inode_mut(here).metadata = with_mode(metadata, 0o700);
                self.flags_mut(here).implied = false;
            }
            if !flags.sealed {
                for (name, child) in directory.children {
                    self.fold_name(layer, here, name, child, &mut upper, later, &mut left)?;
                }
            }
            let flags = self.flags_mut(here);
            flags.sealed |= directory.opaque || hides;
            flags.closed |= hides;
        }
        Ok(())
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one step of the loop above, with all of its state"
    )]
    fn fold_name(
        &mut self,
        layer: usize,
        here: InodeId,
        name: Box<[u8]>,
        node: NodeId,
        upper: &mut Upper,
        later: &mut Later,
        left: &mut Vec<(InodeId, NodeId)>,
    ) -> Result<(), MergeError> {
        let body = &upper.node_mut(node).body;
        let there = match self.tree.child(here, &name) {
            Some(child) => {
                if self.is_directory(child) {
                    if matches!(body, Body::Directory(_)) {
                        left.push((child, node));
                    } else {
                        let flags = self.flags_mut(child);
                        flags.sealed = true;
                        flags.closed = true;
                    }
                }
                return Ok(());
            }
            None => match body {
                Body::Absent => Self::HOLE,
                Body::Leaf(leaf) => {
                    let leaf = *leaf;
                    self.leaf(layer, leaf, upper, later)?
                }
                Body::Directory(_) => {
                    let directory = self.add(Inode {
                        metadata: self.implied.clone(),
                        kind: Kind::Directory(std::collections::BTreeMap::new()),
                    })?;
                    self.flags_mut(directory).implied = true;
                    left.push((directory, node));
                    directory
                }
            },
        };
        self.tree.link_owned(here, name, there);
        Ok(())
    }

    /// The inode of something that is no directory and has a visible name.
    pub(super) fn leaf(
        &mut self,
        layer: usize,
        leaf: LeafId,
        upper: &mut Upper,
        later: &mut Later,
    ) -> Result<InodeId, MergeError> {
        let leaf = upper.leaf_mut(leaf);
        if let Some(inode) = leaf.inode {
            return Ok(inode);
        }
        let id = match leaf.content {
            Content::Device => Self::HOLE,
            _ => self.add(Inode {
                metadata: self.implied.clone(),
                kind: Kind::File(UNKNOWN),
            })?,
        };
        leaf.inode = Some(id);
        if id != Self::HOLE {
            self.set(id, later.inode(layer, id, leaf));
        }
        Ok(id)
    }

    /// The tree without its holes. `redirects` leads from inodes that turned out to be others to those.
    pub(super) fn finish(mut self, redirects: &HashMap<InodeId, InodeId>) -> Tree {
        for id in 0..self.tree.len() {
            // Lossless: inodes are numbered by u32.
            let inode = self.tree.inode_mut(InodeId(id as u32));
            if let Kind::Directory(entries) = &mut inode.kind {
                entries.retain(|_, child| {
                    while let Some(other) = redirects.get(child) {
                        *child = *other;
                    }
                    *child != Self::HOLE
                });
            }
        }
        self.tree
    }
}

/// Metadata with permissions added: a file must be readable by its owner, who is whoever runs the image, and
/// a directory must be usable.
pub(super) fn with_mode(mut metadata: Metadata, added: u16) -> Metadata {
    metadata.mode |= added;
    metadata
}
