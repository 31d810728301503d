//! A root file system in memory: names, metadata, and where the content of files went.
//!
//! The merge of layers (or the walk over a directory) builds a tree while file content streams into the
//! squashfs writer; the writer turns the finished tree into inode and directory tables. An arena holds the
//! inodes, so that a hard link is just a second directory entry with the same [`InodeId`].

use std::collections::BTreeMap;

/// Index of an inode in its [`Tree`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InodeId(pub u32);

/// Handle of file content that was given to the squashfs writer. Index of its record there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentId(pub u32);

/// Extended attributes: full name (`user.x`, `security.capability`) to value, in byte order of names.
pub type Xattrs = BTreeMap<Box<[u8]>, Box<[u8]>>;

/// Metadata that every inode has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// Permission bits with setuid, setgid and sticky: the low 12 bits of `st_mode`.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time in seconds since 1970, clamped to what squashfs stores.
    pub mtime: u32,
    /// Extended attributes; None is the common case of no attribute at all.
    pub xattrs: Option<Box<Xattrs>>,
}

/// What an inode is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory; entries in byte order of names, as squashfs wants them.
    Directory(BTreeMap<Box<[u8]>, InodeId>),
    /// A regular file.
    File(ContentId),
    /// A symbolic link and its target.
    Symlink(Box<[u8]>),
    /// A named pipe.
    Fifo,
    /// A Unix domain socket.
    Socket,
}

/// An inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inode {
    /// Owner, mode, time, extended attributes.
    pub metadata: Metadata,
    /// Type and content.
    pub kind: Kind,
}

/// A file system tree; inode 0 is the root directory.
///
/// Inodes that no directory entry leads to may exist; the writer leaves them out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    inodes: Vec<Inode>,
}

impl Tree {
    /// The root directory's id.
    pub const ROOT: InodeId = InodeId(0);

    /// A tree with an empty root directory.
    #[must_use]
    pub fn new(root: Metadata) -> Self {
        Self {
            inodes: vec![Inode {
                metadata: root,
                kind: Kind::Directory(BTreeMap::new()),
            }],
        }
    }

    /// Adds an inode that no entry leads to yet. None when 2^32 - 1 inodes exist.
    pub fn add(&mut self, inode: Inode) -> Option<InodeId> {
        let id = u32::try_from(self.inodes.len())
            .ok()
            .filter(|id| *id < u32::MAX)?;
        self.inodes.push(inode);
        Some(InodeId(id))
    }

    /// Number of inodes ever added, with those that no entry leads to.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inodes.len()
    }

    /// Whether there is no inode; never true, since the root always exists.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.inodes.is_empty()
    }

    /// The inode with an id that this tree gave out.
    #[must_use]
    pub fn inode(&self, id: InodeId) -> &Inode {
        &self.inodes[id.0 as usize]
    }

    /// The inode with an id that this tree gave out, to change.
    pub fn inode_mut(&mut self, id: InodeId) -> &mut Inode {
        &mut self.inodes[id.0 as usize]
    }

    /// When something was last changed, in seconds since 1970.
    #[must_use]
    pub fn newest(&self) -> u32 {
        let times = self.inodes.iter().map(|inode| inode.metadata.mtime);
        times.max().unwrap_or(0)
    }

    /// Gives every inode a modification time, in seconds since 1970.
    pub fn set_times(&mut self, mtime: u32) {
        for inode in &mut self.inodes {
            inode.metadata.mtime = mtime;
        }
    }

    /// The entry of a directory; None when `directory` is no directory or has no such entry.
    #[must_use]
    pub fn child(&self, directory: InodeId, name: &[u8]) -> Option<InodeId> {
        match &self.inode(directory).kind {
            Kind::Directory(entries) => entries.get(name).copied(),
            _ => None,
        }
    }

    /// Sets an entry of a directory and returns the one it replaces. Does nothing where `directory` is no directory.
    pub fn link(&mut self, directory: InodeId, name: &[u8], child: InodeId) -> Option<InodeId> {
        self.link_owned(directory, name.into(), child)
    }

    /// Like [`Self::link`], for a caller who can give the name away.
    pub fn link_owned(
        &mut self,
        directory: InodeId,
        name: Box<[u8]>,
        child: InodeId,
    ) -> Option<InodeId> {
        match &mut self.inode_mut(directory).kind {
            Kind::Directory(entries) => entries.insert(name, child),
            _ => None,
        }
    }

    /// Removes an entry of a directory and returns it.
    pub fn unlink(&mut self, directory: InodeId, name: &[u8]) -> Option<InodeId> {
        match &mut self.inode_mut(directory).kind {
            Kind::Directory(entries) => entries.remove(name),
            _ => None,
        }
    }
}
