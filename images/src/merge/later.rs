//! What a layer alone cannot tell: hard links to lower layers, and content of hidden files that a visible link names.
//!
//! Going top-down, two things are known only later. A link to a file that its layer does not have waits for the first
//! lower layer in which the target can be seen. And a file that is hidden by a higher layer has been skipped when
//! a visible link to it turns up; its layer is read again at the end, for that content alone. (A package upgrade that
//! replaces one of a file's two names makes such a case, so small hidden files are kept until the end of their layer
//! to save most of these second readings.)

use std::collections::{BTreeMap, HashMap};

use super::merged::{Merged, UNKNOWN, with_mode};
use super::upper::{Content, Leaf, Seen, Upper};
use super::{MergeError, Sink, write_retained};
use crate::layer::path::EntryPath;
use crate::tree::{Inode, InodeId, Kind, Metadata};

/// Work that waits for other layers, or for a second reading.
#[derive(Default)]
pub(super) struct Later {
    links: Vec<Link>,
    /// By layer and ordinal of the entry: the inode that wants its content.
    wanted: BTreeMap<usize, BTreeMap<u64, InodeId>>,
    /// From inodes of links to what they turned out to be.
    redirects: HashMap<InodeId, InodeId>,
}

/// A hard link whose target is in a lower layer.
struct Link {
    inode: InodeId,
    target: EntryPath,
    /// The first entry that links to it.
    path: EntryPath,
}

impl Later {
    /// The inode that a leaf becomes under the number `id`; remembers what it still lacks.
    pub(super) fn inode(&mut self, layer: usize, id: InodeId, leaf: &Leaf) -> Inode {
        let (kind, added) = match &leaf.content {
            Content::Written(content) => (Kind::File(*content), 0o400),
            // Written before it gets here, since a visible name led here.
            Content::Retained(_) => (Kind::File(UNKNOWN), 0o400),
            Content::Skipped { ordinal } => {
                self.wanted.entry(layer).or_default().insert(*ordinal, id);
                (Kind::File(UNKNOWN), 0o400)
            }
            Content::Lower(link) => {
                self.links.push(Link {
                    inode: id,
                    target: link.target.clone(),
                    path: link.path.clone(),
                });
                (Kind::File(UNKNOWN), 0)
            }
            Content::Symlink(target) => {
                return Inode {
                    metadata: Metadata {
                        mode: 0o777,
                        ..leaf.metadata.clone()
                    },
                    kind: Kind::Symlink(target.clone()),
                };
            }
            Content::Fifo | Content::Device => (Kind::Fifo, 0o400),
        };
        Inode {
            metadata: with_mode(leaf.metadata.clone(), added),
            kind,
        }
    }

    /// Resolves waiting links whose targets can be seen in a layer, before the layer is folded.
    pub(super) fn resolve<S: Sink>(
        &mut self,
        layer: usize,
        upper: &mut Upper,
        merged: &mut Merged,
        sink: &mut S,
    ) -> Result<(), MergeError> {
        for link in std::mem::take(&mut self.links) {
            let leaf = match upper.see(&link.target) {
                Seen::Below => {
                    self.links.push(link);
                    continue;
                }
                Seen::Hidden => return Err(link.missing()),
                Seen::Directory => {
                    return Err(MergeError::LinkToDirectory {
                        path: link.path.to_string(),
                        target: link.target.to_string(),
                    });
                }
                Seen::Leaf(leaf) => leaf,
            };
            write_retained(upper, leaf, &link.path, sink)?;
            let leaf = upper.leaf_mut(leaf);
            if matches!(leaf.content, Content::Device) {
                leaf.inode = Some(Merged::HOLE);
            }
            match leaf.inode {
                Some(inode) => {
                    self.redirects.insert(link.inode, inode);
                }
                None => {
                    leaf.inode = Some(link.inode);
                    let inode = self.inode(layer, link.inode, leaf);
                    merged.set(link.inode, inode);
                }
            }
        }
        Ok(())
    }

    /// Layers that must be read again, highest first.
    pub(super) fn unfinished(&self) -> Vec<usize> {
        self.wanted.keys().rev().copied().collect()
    }

    pub(super) fn take_wanted(&mut self, layer: usize) -> BTreeMap<u64, InodeId> {
        self.wanted.remove(&layer).unwrap_or_default()
    }

    /// The redirects, when nothing waits any more.
    pub(super) fn finish(self) -> Result<HashMap<InodeId, InodeId>, MergeError> {
        match self.links.first() {
            Some(link) => Err(link.missing()),
            None if self.wanted.is_empty() => Ok(self.redirects),
            None => Err(MergeError::Changed),
        }
    }
}

impl Link {
    fn missing(&self) -> MergeError {
        MergeError::LinkTarget {
            path: self.path.to_string(),
            target: self.target.to_string(),
        }
    }
}
