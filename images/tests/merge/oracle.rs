//! What a stack of layers means, computed the naive way: from the lowest layer up, every layer extracted on its own into
//! a map of paths, the maps stacked as overlayfs stacks directories. Shares no code with the merge.

use std::collections::{BTreeMap, BTreeSet};

/// A path as its components.
pub(crate) type Path = Vec<&'static str>;

/// An entry of a layer.
#[derive(Clone, Debug)]
pub(crate) enum Entry {
    Directory(Path),
    File(Path, String),
    Symlink(Path, &'static str),
    HardLink(Path, Path),
    Fifo(Path),
    Device(Path),
    Whiteout(Path),
    Opaque(Path),
}

/// What a path is in the end. Files that are one inode have the same group: the first of their paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Directory {
        mtime: Option<u32>,
    },
    File {
        content: String,
        mtime: u32,
        group: Path,
    },
    Symlink {
        target: String,
        mtime: u32,
        group: Path,
    },
    Fifo {
        mtime: u32,
        group: Path,
    },
}

#[derive(Clone, Debug)]
enum Node {
    Directory(Option<u32>),
    Inode(usize),
}

#[derive(Clone, Debug)]
enum Inode {
    File(String, u32),
    Symlink(&'static str, u32),
    Fifo(u32),
    Device,
    Broken,
}

/// The stack is refused.
#[derive(Debug)]
pub(crate) struct Refused;

#[derive(Default)]
struct Layer {
    nodes: BTreeMap<Path, Node>,
    whiteouts: BTreeSet<Path>,
    opaque: BTreeSet<Path>,
    /// The first inode that is its own.
    start: usize,
}

/// Applies layers, lowest first. Modification times are numbered as the test numbers them: by `mtime(layer, entry)`.
pub(crate) fn apply(
    layers: &[Vec<Entry>],
    mtime: impl Fn(usize, usize) -> u32,
) -> Result<BTreeMap<Path, Found>, Refused> {
    let mut inodes = Vec::new();
    let mut below: BTreeMap<Path, Node> = BTreeMap::new();
    for (number, entries) in layers.iter().enumerate() {
        let mut layer = Layer {
            start: inodes.len(),
            ..Layer::default()
        };
        for (position, entry) in entries.iter().enumerate() {
            layer.entry(entry, mtime(number, position), &below, &mut inodes)?;
        }
        below = stack(&below, &layer);
    }
    let mut groups: BTreeMap<usize, Path> = BTreeMap::new();
    let mut found = BTreeMap::new();
    for (path, node) in below {
        let id = match node {
            Node::Directory(mtime) => {
                found.insert(path, Found::Directory { mtime });
                continue;
            }
            Node::Inode(id) => id,
        };
        let group = groups.entry(id).or_insert_with(|| path.clone()).clone();
        let what = match &inodes[id] {
            Inode::File(content, mtime) => Found::File {
                content: content.clone(),
                mtime: *mtime,
                group,
            },
            Inode::Symlink(target, mtime) => Found::Symlink {
                target: (*target).to_owned(),
                mtime: *mtime,
                group,
            },
            Inode::Fifo(mtime) => Found::Fifo {
                mtime: *mtime,
                group,
            },
            Inode::Device => continue,
            Inode::Broken => return Err(Refused),
        };
        found.insert(path, what);
    }
    Ok(found)
}

impl Layer {
    fn entry(
        &mut self,
        entry: &Entry,
        mtime: u32,
        below: &BTreeMap<Path, Node>,
        inodes: &mut Vec<Inode>,
    ) -> Result<(), Refused> {
        let mut inode = |what| {
            inodes.push(what);
            Node::Inode(inodes.len() - 1)
        };
        let (path, node) = match entry {
            Entry::Opaque(path) => {
                let path = self.resolve(path, inodes)?;
                self.make_directories(&path);
                self.opaque.insert(path);
                return Ok(());
            }
            Entry::Whiteout(path) => {
                let (name, parent) = path.split_last().unwrap();
                let mut path = self.resolve(parent, inodes)?;
                self.make_directories(&path);
                path.push(name);
                self.whiteouts.insert(path);
                return Ok(());
            }
            Entry::HardLink(path, target) => {
                let (name, parent) = target.split_last().unwrap();
                // The parents of the link itself are made before the target is looked for.
                let (_, own) = path.split_last().unwrap();
                let own = self.resolve(own, inodes)?;
                self.make_directories(&own);
                let mut target = self.resolve(parent, inodes)?;
                target.push(name);
                let node = match self.nodes.get(&target) {
                    Some(Node::Inode(id)) => Node::Inode(*id),
                    Some(Node::Directory(_)) => return Err(Refused),
                    None => match below.get(&target) {
                        Some(Node::Inode(id)) => Node::Inode(*id),
                        // Refused only where somebody would see it.
                        Some(Node::Directory(_)) | None => {
                            inodes.push(Inode::Broken);
                            Node::Inode(inodes.len() - 1)
                        }
                    },
                };
                (path, node)
            }
            Entry::Directory(path) => (path, Node::Directory(Some(mtime))),
            Entry::File(path, content) => (path, inode(Inode::File(content.clone(), mtime))),
            Entry::Symlink(path, target) => (path, inode(Inode::Symlink(target, mtime))),
            Entry::Fifo(path) => (path, inode(Inode::Fifo(mtime))),
            Entry::Device(path) => (path, inode(Inode::Device)),
        };
        let (name, parent) = path.split_last().unwrap();
        let mut path = self.resolve(parent, inodes)?;
        self.make_directories(&path);
        path.push(name);
        let both_directories = matches!(
            (&node, self.nodes.get(&path)),
            (Node::Directory(_), Some(Node::Directory(_)))
        );
        if !both_directories {
            self.nodes.retain(|old, _| !old.starts_with(&path));
            // What was hidden below a directory of this layer is gone with it.
            self.whiteouts
                .retain(|old| *old == path || !old.starts_with(&path));
            self.opaque.retain(|old| !old.starts_with(&path));
        }
        self.nodes.insert(path, node);
        Ok(())
    }

    fn make_directories(&mut self, path: &[&'static str]) {
        for length in 1..=path.len() {
            self.nodes
                .entry(path[..length].to_vec())
                .or_insert(Node::Directory(None));
        }
    }

    /// Follows symbolic links of this layer.
    fn resolve(&self, path: &[&'static str], inodes: &[Inode]) -> Result<Path, Refused> {
        let mut done: Path = Vec::new();
        let mut left: Vec<&'static str> = path.to_vec();
        let mut steps = 0;
        while !left.is_empty() {
            let next = left.remove(0);
            if next == ".." {
                done.pop();
                continue;
            }
            done.push(next);
            match self.nodes.get(&done) {
                None | Some(Node::Directory(_)) => {}
                Some(Node::Inode(id)) => match &inodes[*id] {
                    // A hard link to a symbolic link of a lower layer is no way to walk.
                    Inode::Symlink(target, _) if *id >= self.start => {
                        steps += 1;
                        if steps > 255 {
                            return Err(Refused);
                        }
                        if target.starts_with('/') {
                            done.clear();
                        } else {
                            done.pop();
                        }
                        let parts = target.split('/').filter(|part| !part.is_empty());
                        left = parts.chain(left).collect();
                    }
                    _ => return Err(Refused),
                },
            }
        }
        Ok(done)
    }
}

/// Stacks a layer over what the layers below it have become.
fn stack(below: &BTreeMap<Path, Node>, layer: &Layer) -> BTreeMap<Path, Node> {
    let hidden = |path: &Path| {
        (1..=path.len()).any(|length| layer.whiteouts.contains(&path[..length]))
            || (0..path.len()).any(|length| {
                let ancestor = path[..length].to_vec();
                layer.opaque.contains(&ancestor)
                    || matches!(layer.nodes.get(&ancestor), Some(Node::Inode(_)))
            })
    };
    let mut result = BTreeMap::new();
    for (path, node) in below {
        if !hidden(path) && !layer.nodes.contains_key(path) {
            result.insert(path.clone(), node.clone());
        }
    }
    for (path, node) in &layer.nodes {
        let node = match (node, below.get(path)) {
            (Node::Directory(None), Some(Node::Directory(metadata))) if !hidden(path) => {
                Node::Directory(*metadata)
            }
            _ => node.clone(),
        };
        result.insert(path.clone(), node);
    }
    result
}
