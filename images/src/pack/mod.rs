//! Layers of an overlay become an image: an image file below, directories above, or a directory alone.
//!
//! `cista export` packs the image of a container and its upper directory, `cista import dir:PATH` one directory. Nothing is
//! mounted for it: what the kernel's overlayfs would show is worked out here, by the rules of
//! `Documentation/filesystems/overlayfs.rst`.
//!
//! - A name is taken from the highest layer that has it. Directories of one name are merged, down to the first layer in which the name is
//!   something else, or in which the directory is opaque (`trusted.overlay.opaque` or `user.overlay.opaque` is `y`).
//! - A character device 0:0 is a whiteout: the name does not exist, whatever lower layers say.
//! - Other `overlay` attributes are the kernel's own notes and left out; those that move content elsewhere (`redirect`,
//!   `metacopy`) or replace whiteouts are errors, since ignoring them would make a wrong image.
//!
//! The walk goes from the root down, in byte order of names, files before subdirectories. Each file that survives is read once,
//! in an order that depends on the content alone, so that equal layers give equal images.
//!
//! What is stored: owner 0:0, permissions with `u+r` (directories `u+rwx`), times, holes, hard links within a layer,
//! `user.*` attributes and `security.capability`. Devices are left out, and so is what other mounts cover.
//!
//! Names are resolved one at a time relative to open directories, and links never followed (`host`): a directory in which someone
//! is at work can give a strange image, but nothing from elsewhere.

mod host;
mod stored;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use crate::cancel::{Cancel, Cancelled};
use crate::squashfs::reader::{ReadError, Reader};
use crate::squashfs::writer::{WriteError, Writer};
use crate::tree::{ContentId, Inode, InodeId, Kind, Metadata, Tree, Xattrs};

use self::host::HostTree;
use self::stored::StoredTree;

/// Longest path of a directory in bytes: four times what can be named at once (`PATH_MAX`).
const MAX_PATH: usize = 16 << 10;
/// What the names of overlayfs's attributes begin with, with privileges and without (mount option `userxattr`).
const OVERLAY_PREFIXES: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];
/// File capabilities, see capabilities(7).
const CAPABILITY: &[u8] = b"security.capability";

/// One layer.
#[derive(Clone, Copy)]
pub enum Layer<'a> {
    /// An image file.
    Image(&'a Reader),
    /// A directory of the host: a root file system, or the upper directory of an overlay.
    Directory(&'a Path),
}

/// What was packed.
#[derive(Debug)]
pub struct Packed {
    /// The tree, for [`Writer::finish`].
    pub tree: Tree,
    /// Device nodes that were left out.
    pub devices: u64,
    /// Mounts whose content was left out.
    pub mounts: u64,
}

/// Why layers cannot be packed. Paths are relative to the root unless said otherwise.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// A layer's directory cannot be opened; the path is the host's.
    #[error("cannot open the directory `{path}`", path = path.display())]
    Open {
        /// The layer's directory.
        path: PathBuf,
        /// The refusal.
        #[source]
        source: io::Error,
    },
    /// Something in a directory cannot be read; the path is the host's.
    #[error("cannot {operation} `{path}`", path = path.display())]
    Read {
        /// What was tried.
        operation: &'static str,
        /// On which path.
        path: PathBuf,
        /// The refusal.
        #[source]
        source: io::Error,
    },
    /// A file or directory became something else between two looks; the path is the host's.
    #[error("`{path}` changed while it was read", path = path.display())]
    Changed {
        /// The path.
        path: PathBuf,
    },
    /// Something in an image cannot be read.
    #[error("cannot read `{path}` of the image", path = path.display())]
    Image {
        /// What was read.
        path: PathBuf,
        /// What is wrong with the image.
        #[source]
        source: ReadError,
    },
    /// A directory of an image is its own descendant, or the child of two.
    #[error("the image is corrupt: the directory `{path}` is in more than one place", path = path.display())]
    DirectoryTwice {
        /// The second place.
        path: PathBuf,
    },
    /// A layer was written with a feature of overlayfs that moves content elsewhere.
    #[error("`{path}` needs the overlayfs feature `{feature}`, which is not supported", path = path.display())]
    Overlay {
        /// The file or directory.
        path: PathBuf,
        /// What it is called.
        feature: &'static str,
    },
    /// A path too long to be anything but an attack.
    #[error("directories are nested too deeply: a path has more than {MAX_PATH} bytes")]
    TooDeep,
    /// More than 2^32 - 1 files and directories.
    #[error("too many files")]
    TooManyFiles,
    /// The content of a file cannot be written to the image.
    #[error("cannot add `{path}` to the image", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the writer says.
        #[source]
        source: WriteError,
    },
    /// The caller asked to stop.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// Reads `layers`, the lowest first, and gives the content of their files to `writer`.
///
/// `excluded` are paths below the root that are left out with everything below them.
pub fn pack(
    layers: &[Layer<'_>],
    excluded: &[&Path],
    writer: &mut Writer,
    cancel: &Cancel,
) -> Result<Packed, PackError> {
    let mut packer = Packer {
        layers: Vec::with_capacity(layers.len()),
        excluded: excluded.iter().map(|path| components(path)).collect(),
        writer,
        cancel,
        tree: Tree::new(metadata(0o755, 0, Xattrs::new())),
        known: HashMap::new(),
        devices: 0,
        mounts: 0,
    };
    let mut root = Vec::with_capacity(layers.len());
    for (number, layer) in layers.iter().enumerate() {
        let (layer, handle): (Box<dyn LayerTree + '_>, _) = match layer {
            Layer::Image(reader) => (Box::new(StoredTree::new(reader)), reader.root_ref().0),
            Layer::Directory(path) => (Box::new(HostTree::open(path)?), 0),
        };
        packer.layers.push(layer);
        root.push(Part {
            layer: number,
            handle,
        });
    }
    // From here on, the highest layer comes first.
    root.reverse();
    let mut waiting = vec![Directory {
        id: Tree::ROOT,
        path: Vec::new(),
        parts: root,
    }];
    while let Some(directory) = waiting.pop() {
        let behind = waiting.len();
        packer.directory(directory, &mut waiting)?;
        // The first subdirectory is the next to be taken.
        waiting[behind..].reverse();
    }
    Ok(Packed {
        tree: packer.tree,
        devices: packer.devices,
        mounts: packer.mounts,
    })
}

/// A path in the form that the walk has it.
fn components(path: &Path) -> Vec<u8> {
    let normal: Vec<&[u8]> = path
        .components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.as_bytes()),
            _ => None,
        })
        .collect();
    normal.join(&b'/')
}

fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(directory.len() + 1 + name.len());
    path.extend_from_slice(directory);
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

/// The metadata of an inode in the image.
fn metadata(mode: u16, mtime: u32, xattrs: Xattrs) -> Metadata {
    Metadata {
        mode: mode & 0o7777,
        uid: 0,
        gid: 0,
        mtime,
        xattrs: (!xattrs.is_empty()).then(|| Box::new(xattrs)),
    }
}

/// A layer as the walk sees it. One directory at a time is entered.
trait LayerTree {
    /// Enters a directory of the layer.
    fn enter(&mut self, handle: u64, path: &[u8]) -> Result<Attributes, PackError>;

    /// Calls `found` with the entries of the entered directory, in any order.
    fn list(&mut self, path: &[u8], found: &mut dyn FnMut(&[u8], Found)) -> Result<(), PackError>;

    /// Gives the content of a file in the entered directory to `writer`; returns its extended attributes, too.
    fn file(
        &mut self,
        leaf: &Leaf,
        path: &[u8],
        writer: &mut Writer,
    ) -> Result<(ContentId, Xattrs), PackError>;

    /// The target of a symbolic link in the entered directory.
    fn target(&mut self, leaf: &Leaf, path: &[u8]) -> Result<Vec<u8>, PackError>;
}

/// Metadata that only looking closer at something gives.
struct Attributes {
    mode: u16,
    mtime: u32,
    xattrs: Xattrs,
}

/// What a name stands for in one layer.
enum Found {
    /// A directory, with a handle that the layer knows it by.
    Directory(u64),
    Leaf(Leaf),
    /// Nothing, and whatever lower layers have is hidden.
    Whiteout,
    /// A device node.
    Device,
    /// The root of another mount; `true` for a directory.
    Mount(bool),
}

/// What is no directory.
struct Leaf {
    kind: LeafKind,
    mode: u16,
    mtime: u32,
    /// What other links to it in its layer have in common with it; None when there are none.
    identity: Option<(u64, u64)>,
    /// What the layer knows it by.
    handle: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum LeafKind {
    File,
    Symlink,
    Fifo,
    Socket,
}

/// A directory that is still to be read.
struct Directory {
    id: InodeId,
    /// Components joined by slashes; empty for the root.
    path: Vec<u8>,
    /// Where it exists, highest layer first.
    parts: Vec<Part>,
}

/// A directory in one layer.
#[derive(Clone, Copy)]
struct Part {
    layer: usize,
    handle: u64,
}

/// What a name stands for in all layers.
enum Merged {
    /// A directory in these layers. Lower ones add to it while the second is true.
    Directory(Vec<Part>, bool),
    /// Something in this layer, which hides lower ones.
    Other(usize, Found),
}

impl Merged {
    fn new(layer: usize, found: Found) -> Self {
        match found {
            Found::Directory(handle) => Self::Directory(vec![Part { layer, handle }], true),
            other => Self::Other(layer, other),
        }
    }

    /// Takes note of what the next lower layer has under the same name.
    fn add(&mut self, layer: usize, found: &Found) {
        if let Self::Directory(parts, open @ true) = self {
            match found {
                Found::Directory(handle) => parts.push(Part {
                    layer,
                    handle: *handle,
                }),
                _ => *open = false,
            }
        }
    }
}

struct Packer<'a> {
    layers: Vec<Box<dyn LayerTree + 'a>>,
    excluded: HashSet<Vec<u8>>,
    writer: &'a mut Writer,
    cancel: &'a Cancel,
    tree: Tree,
    /// Inodes by layer and identity.
    known: HashMap<(usize, (u64, u64)), InodeId>,
    devices: u64,
    mounts: u64,
}

impl Packer<'_> {
    fn directory(
        &mut self,
        directory: Directory,
        waiting: &mut Vec<Directory>,
    ) -> Result<(), PackError> {
        let Directory { id, path, parts } = directory;
        if path.len() > MAX_PATH {
            return Err(PackError::TooDeep);
        }
        for (name, merged) in self.merge(id, &path, &parts)? {
            self.cancel.check()?;
            let child_path = join(&path, &name);
            if self.excluded.contains(&child_path) {
                continue;
            }
            let child = match merged {
                Merged::Directory(parts, _) => {
                    let child = self.add_directory()?;
                    waiting.push(Directory {
                        id: child,
                        path: child_path,
                        parts,
                    });
                    child
                }
                Merged::Other(layer, Found::Leaf(leaf)) => self.leaf(layer, &leaf, &child_path)?,
                Merged::Other(_, Found::Mount(is_directory)) => {
                    self.mounts += 1;
                    if !is_directory {
                        continue;
                    }
                    self.add_directory()?
                }
                Merged::Other(_, Found::Device) => {
                    self.devices += 1;
                    continue;
                }
                Merged::Other(_, Found::Whiteout | Found::Directory(_)) => continue,
            };
            self.tree.link(id, &name, child);
        }
        Ok(())
    }

    /// Reads a directory in all its layers, which stay in it. The highest layer says its metadata.
    fn merge(
        &mut self,
        id: InodeId,
        path: &[u8],
        parts: &[Part],
    ) -> Result<BTreeMap<Box<[u8]>, Merged>, PackError> {
        let mut merged: BTreeMap<Box<[u8]>, Merged> = BTreeMap::new();
        for (depth, part) in parts.iter().enumerate() {
            let layer = &mut self.layers[part.layer];
            let mut attributes = layer.enter(part.handle, path)?;
            let opaque = take_overlay(&mut attributes.xattrs, path)?;
            if depth == 0 {
                self.tree.inode_mut(id).metadata =
                    metadata(attributes.mode | 0o700, attributes.mtime, attributes.xattrs);
            }
            let cancel = self.cancel;
            let mut cancelled = Ok(());
            layer.list(path, &mut |name, found| {
                match merged.get_mut(name) {
                    Some(higher) => higher.add(part.layer, &found),
                    None => {
                        merged.insert(name.into(), Merged::new(part.layer, found));
                    }
                }
                cancelled = cancel.check();
            })?;
            cancelled?;
            if opaque {
                break;
            }
        }
        Ok(merged)
    }

    fn leaf(&mut self, layer: usize, leaf: &Leaf, path: &[u8]) -> Result<InodeId, PackError> {
        if let Some(identity) = leaf.identity
            && let Some(known) = self.known.get(&(layer, identity))
        {
            return Ok(*known);
        }
        let tree = &mut self.layers[layer];
        let (kind, mut xattrs) = match leaf.kind {
            LeafKind::File => {
                let (content, xattrs) = tree.file(leaf, path, self.writer)?;
                (Kind::File(content), xattrs)
            }
            LeafKind::Symlink => {
                let target = tree.target(leaf, path)?;
                (Kind::Symlink(target.into()), Xattrs::new())
            }
            LeafKind::Fifo => (Kind::Fifo, Xattrs::new()),
            LeafKind::Socket => (Kind::Socket, Xattrs::new()),
        };
        take_overlay(&mut xattrs, path)?;
        let readable = match leaf.kind {
            LeafKind::File => 0o400,
            _ => 0,
        };
        let id = self
            .tree
            .add(Inode {
                metadata: metadata(leaf.mode | readable, leaf.mtime, xattrs),
                kind,
            })
            .ok_or(PackError::TooManyFiles)?;
        if let Some(identity) = leaf.identity {
            self.known.insert((layer, identity), id);
        }
        Ok(id)
    }

    /// A directory whose metadata is found when it is read.
    fn add_directory(&mut self) -> Result<InodeId, PackError> {
        self.tree
            .add(Inode {
                metadata: metadata(0o755, 0, Xattrs::new()),
                kind: Kind::Directory(BTreeMap::new()),
            })
            .ok_or(PackError::TooManyFiles)
    }
}

/// Removes what is not for the image: attributes of overlayfs, and those that only the host knows the meaning of. Returns whether
/// a directory with these is opaque.
fn take_overlay(xattrs: &mut Xattrs, path: &[u8]) -> Result<bool, PackError> {
    let refuse = |feature| PackError::Overlay {
        path: shown(path),
        feature,
    };
    let mut opaque = false;
    for (name, value) in &*xattrs {
        let Some(note) = OVERLAY_PREFIXES
            .iter()
            .find_map(|prefix| name.strip_prefix(*prefix))
        else {
            continue;
        };
        match note {
            b"opaque" => opaque = **value == *b"y",
            b"redirect" => return Err(refuse("redirect_dir")),
            b"metacopy" => return Err(refuse("metacopy")),
            b"whiteout" => return Err(refuse("whiteouts as attributes")),
            _ => {}
        }
    }
    xattrs.retain(|name, _| {
        let is_overlay = (OVERLAY_PREFIXES.iter()).any(|prefix| name.starts_with(prefix));
        !is_overlay && (name.starts_with(b"user.") || **name == *CAPABILITY)
    });
    Ok(opaque)
}

fn shown(path: &[u8]) -> PathBuf {
    Path::new("/").join(OsStr::from_bytes(path))
}
