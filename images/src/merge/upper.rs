//! One layer's own tree: what its entries make of an empty directory, and what they hide below.
//!
//! Entries take effect in order, so this is a small file system in memory: names, replaced names, links, symbolic links
//! that later entries walk through. What is above does not change while a layer is read, so every directory knows from
//! the start what it meets there, and an entry's visibility is a single look.

use std::collections::BTreeMap;

use super::MergeError;
use super::merged::{Above, Merged};
use crate::layer::path::{EntryPath, MAX_PATH, PathError, Shown};
use crate::tree::{ContentId, InodeId, Metadata};

/// Most symbolic links on the way to one entry; Linux allows 40, Go's path walk in the engines 255.
const MAX_LINKS: usize = 255;

/// Most names and inodes that a layer may have; far enough below 2^32 that one more entry, with all its parents, still
/// fits.
pub(super) const MAX_LEN: u64 = 1 << 31;

/// A name of the layer. Index into [`Upper::nodes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NodeId(u32);

impl NodeId {
    const fn index(self) -> usize {
        self.0 as usize
    }
}

/// An inode of the layer that is no directory. Index into [`Upper::leaves`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LeafId(u32);

impl LeafId {
    const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A name.
#[derive(Default)]
pub(super) struct Node {
    /// Whether a whiteout hides what the layers below have under this name.
    pub(super) hides: bool,
    /// What the layer itself has under this name.
    pub(super) body: Body,
}

/// What a layer has under a name.
#[derive(Default)]
pub(super) enum Body {
    /// Nothing; the name is there because of a whiteout.
    #[default]
    Absent,
    /// A directory; boxed, since most names are no directories.
    Directory(Box<Directory>),
    /// Anything else.
    Leaf(LeafId),
}

impl Body {
    fn directory(metadata: Option<Metadata>, above: Above) -> Self {
        Self::Directory(Box::new(Directory {
            children: BTreeMap::new(),
            metadata,
            opaque: false,
            above,
        }))
    }
}

/// A directory.
pub(super) struct Directory {
    /// Its names.
    pub(super) children: BTreeMap<Box<[u8]>, NodeId>,
    /// Its metadata; None when it is there because something stands below it.
    pub(super) metadata: Option<Metadata>,
    /// Whether it hides what the layers below have in it.
    pub(super) opaque: bool,
    /// What it meets in the layers above.
    above: Above,
}

/// An inode that is no directory; several names may share it.
pub(super) struct Leaf {
    /// Mode, time, extended attributes.
    pub(super) metadata: Metadata,
    /// What it is.
    pub(super) content: Content,
    /// The inode that it became in the merged tree.
    pub(super) inode: Option<InodeId>,
}

/// What an inode is, and where its content went.
pub(super) enum Content {
    /// A file whose content is in the sink.
    Written(ContentId),
    /// A hidden file whose content is kept until the end of the layer.
    Retained(Vec<u8>),
    /// A hidden file whose content was skipped.
    Skipped {
        /// Number of its entry.
        ordinal: u64,
    },
    /// A hard link to something in the layers below.
    Lower(Box<LowerLink>),
    /// A symbolic link.
    Symlink(Box<[u8]>),
    /// A named pipe.
    Fifo,
    /// A device, which is dropped.
    Device,
}

/// A hard link to something in the layers below.
pub(super) struct LowerLink {
    /// What it links to.
    pub(super) target: EntryPath,
    /// The first entry that links to it, for messages.
    pub(super) path: EntryPath,
}

/// What the target of a hard link is.
pub(super) enum Target {
    /// Nothing in this layer; in the layers below it would be at this path.
    Absent(EntryPath),
    /// A directory.
    Directory,
    /// Something that can be linked to.
    Leaf(LeafId),
}

/// What a path is as seen from above, through this layer alone.
pub(super) enum Seen {
    /// Not here, but maybe in a lower layer.
    Below,
    /// Not here, and nothing lower can be seen.
    Hidden,
    /// A directory.
    Directory,
    /// Something that can be linked to.
    Leaf(LeafId),
}

/// The tree of one layer.
pub(super) struct Upper {
    nodes: Vec<Node>,
    leaves: Vec<Leaf>,
    /// Links to the layers below, by target: equal targets are one inode.
    lower: BTreeMap<EntryPath, LeafId>,
    /// The parent that was found last, since entries of a directory mostly come together.
    last_parent: Option<(Vec<u8>, NodeId)>,
}

impl Default for Upper {
    fn default() -> Self {
        Self {
            nodes: vec![Node {
                hides: false,
                body: Body::directory(None, Above::Directory(crate::tree::Tree::ROOT)),
            }],
            leaves: Vec::new(),
            lower: BTreeMap::new(),
            last_parent: None,
        }
    }
}

/// A step of a walk: a name, and its node where it has one.
type Step = (Box<[u8]>, Option<NodeId>);

impl Upper {
    /// The root directory.
    pub(super) const ROOT: NodeId = NodeId(0);

    /// Number of names or of inodes that were ever made, whichever is more.
    pub(super) fn len(&self) -> u64 {
        self.nodes.len().max(self.leaves.len()) as u64
    }

    pub(super) fn node_mut(&mut self, node: NodeId) -> &mut Node {
        &mut self.nodes[node.index()]
    }

    pub(super) fn leaf_mut(&mut self, leaf: LeafId) -> &mut Leaf {
        &mut self.leaves[leaf.index()]
    }

    pub(super) fn content_mut(&mut self, leaf: LeafId) -> &mut Content {
        &mut self.leaves[leaf.index()].content
    }

    pub(super) fn add_leaf(&mut self, metadata: Metadata, content: Content) -> LeafId {
        self.leaves.push(Leaf {
            metadata,
            content,
            inode: None,
        });
        // Lossless: [`MAX_LEN`].
        LeafId((self.leaves.len() - 1) as u32)
    }

    /// The inode of a link to the layers below.
    pub(super) fn lower_leaf(&mut self, target: &EntryPath, path: &EntryPath) -> LeafId {
        if let Some(leaf) = self.lower.get(target) {
            return *leaf;
        }
        let metadata = Metadata {
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: 0,
            xattrs: None,
        };
        let content = Content::Lower(Box::new(LowerLink {
            target: target.clone(),
            path: path.clone(),
        }));
        let leaf = self.add_leaf(metadata, content);
        self.lower.insert(target.clone(), leaf);
        leaf
    }

    pub(super) fn set_root(&mut self, metadata: Metadata) {
        if let Body::Directory(directory) = &mut self.nodes[Self::ROOT.index()].body {
            directory.metadata = Some(metadata);
        }
    }

    pub(super) fn set_opaque(&mut self, directory: NodeId) {
        if let Body::Directory(directory) = &mut self.nodes[directory.index()].body {
            directory.opaque = true;
        }
    }

    pub(super) fn hide(&mut self, parent: NodeId, name: &[u8]) {
        let node = self.name(parent, name);
        self.nodes[node.index()].hides = true;
    }

    pub(super) fn set_leaf(&mut self, parent: NodeId, name: &[u8], leaf: LeafId) {
        let node = self.name(parent, name);
        self.replace(node, Body::Leaf(leaf));
    }

    pub(super) fn set_directory(
        &mut self,
        parent: NodeId,
        name: &[u8],
        metadata: &Metadata,
        merged: &Merged,
    ) {
        let node = self.name(parent, name);
        if let Body::Directory(directory) = &mut self.nodes[node.index()].body {
            directory.metadata = Some(metadata.clone());
        } else {
            let above = self.above(parent, name, merged);
            self.replace(node, Body::directory(Some(metadata.clone()), above));
        }
    }

    /// Whether something that is no directory could be seen under a name of a directory, from above all layers.
    pub(super) fn is_visible(&self, parent: NodeId, name: &[u8], merged: &Merged) -> bool {
        self.above(parent, name, merged) == Above::Nothing
    }

    fn above(&self, parent: NodeId, name: &[u8], merged: &Merged) -> Above {
        match &self.nodes[parent.index()].body {
            Body::Directory(directory) => merged.above(directory.above, name),
            Body::Leaf(_) | Body::Absent => Above::Hidden,
        }
    }

    fn replace(&mut self, node: NodeId, body: Body) {
        if !matches!(self.nodes[node.index()].body, Body::Absent) {
            // The parent that was found last may have been found through this name.
            self.last_parent = None;
        }
        self.nodes[node.index()].body = body;
    }

    /// The node of a name, which is made if need be.
    fn name(&mut self, parent: NodeId, name: &[u8]) -> NodeId {
        // Lossless: [`MAX_LEN`].
        let new = NodeId(self.nodes.len() as u32);
        if let Body::Directory(directory) = &mut self.nodes[parent.index()].body {
            if let Some(node) = directory.children.get(name) {
                return *node;
            }
            directory.children.insert(name.into(), new);
        }
        self.nodes.push(Node::default());
        new
    }

    fn child(&self, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        match &self.nodes[parent.index()].body {
            Body::Directory(directory) => directory.children.get(name).copied(),
            Body::Leaf(_) | Body::Absent => None,
        }
    }

    /// The directory that an entry stands in, made if need be.
    pub(super) fn parent_of(
        &mut self,
        path: &EntryPath,
        merged: &Merged,
    ) -> Result<NodeId, MergeError> {
        let (parent, _) = path.split_last().unwrap_or_default();
        if let Some((last, node)) = &self.last_parent
            && last == parent
        {
            return Ok(*node);
        }
        let mut node = Self::ROOT;
        for (name, found) in self.walk(parent, path)? {
            node = if let Some(found) = found {
                found
            } else {
                let made = self.name(node, &name);
                let above = self.above(node, &name, merged);
                self.replace(made, Body::directory(None, above));
                made
            };
        }
        self.last_parent = Some((parent.to_vec(), node));
        Ok(node)
    }

    /// Walks to a directory, through symbolic links of this layer and never out of the root. Steps without a node do not
    /// exist yet, nor does anything after the first of them.
    fn walk(&self, directory: &[u8], path: &EntryPath) -> Result<Vec<Step>, MergeError> {
        let mut steps: Vec<Step> = Vec::new();
        let mut length = 0;
        let mut links = 0;
        // What is left to walk, the next component last.
        let mut left: Vec<&[u8]> = directory.split(|byte| *byte == b'/').rev().collect();
        while let Some(component) = left.pop() {
            match component {
                b"" | b"." => continue,
                b".." => {
                    if let Some((name, _)) = steps.pop() {
                        length -= name.len() + 1;
                    }
                    continue;
                }
                _ => {}
            }
            let at = match steps.last() {
                None => Some(Self::ROOT),
                Some((_, node)) => *node,
            };
            let child = at.and_then(|at| self.child(at, component));
            let found = match child.map(|child| &self.nodes[child.index()].body) {
                None | Some(Body::Absent) => None,
                Some(Body::Directory(_)) => child,
                Some(Body::Leaf(leaf)) => {
                    let Content::Symlink(target) = &self.leaves[leaf.index()].content else {
                        return Err(MergeError::Parent {
                            path: path.to_string(),
                            parent: Shown(component).to_string(),
                        });
                    };
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(MergeError::Loop {
                            path: path.to_string(),
                        });
                    }
                    if target.starts_with(b"/") {
                        steps.clear();
                        length = 0;
                    }
                    left.extend(target.split(|byte| *byte == b'/').rev());
                    continue;
                }
            };
            length += component.len() + 1;
            let too_long = if component.len() > crate::layer::path::MAX_COMPONENT {
                Some(PathError::LongComponent)
            } else {
                (length > MAX_PATH).then_some(PathError::Long)
            };
            if let Some(source) = too_long {
                return Err(MergeError::Resolved {
                    path: path.to_string(),
                    source,
                });
            }
            steps.push((component.into(), found));
        }
        Ok(steps)
    }

    /// What the target of a hard link is in this layer, so far. `path` is the link's, for messages.
    pub(super) fn find(&self, target: &EntryPath, path: &EntryPath) -> Result<Target, MergeError> {
        let Some((parent, name)) = target.split_last() else {
            return Ok(Target::Directory);
        };
        let steps = self.walk(parent, path)?;
        let parent = match steps.last() {
            None => Some(Self::ROOT),
            Some((_, node)) => *node,
        };
        let node = parent.and_then(|parent| self.child(parent, name));
        match node.map(|node| &self.nodes[node.index()].body) {
            None | Some(Body::Absent) => {
                let names = steps.iter().map(|(name, _)| &name[..]).chain([name]);
                let resolved: Vec<_> = names.collect();
                EntryPath::parse(&resolved.join(&b'/'))
                    .map(Target::Absent)
                    .map_err(|source| MergeError::Resolved {
                        path: path.to_string(),
                        source,
                    })
            }
            Some(Body::Directory(_)) => Ok(Target::Directory),
            Some(Body::Leaf(leaf)) => Ok(Target::Leaf(*leaf)),
        }
    }

    /// What a path is in the finished layer, as a layer above it sees it. Symbolic links are not followed.
    pub(super) fn see(&self, path: &EntryPath) -> Seen {
        let mut node = Self::ROOT;
        let mut sealed = false;
        for component in path.components() {
            let Body::Directory(directory) = &self.nodes[node.index()].body else {
                return Seen::Hidden;
            };
            sealed |= directory.opaque;
            node = match directory.children.get(component) {
                Some(child) => *child,
                None if sealed => return Seen::Hidden,
                None => return Seen::Below,
            };
            sealed |= self.nodes[node.index()].hides;
        }
        match self.nodes[node.index()].body {
            Body::Absent => Seen::Hidden,
            Body::Directory(_) => Seen::Directory,
            Body::Leaf(leaf) => Seen::Leaf(leaf),
        }
    }
}
