//! The walk over the image: directories are made at once, everything else becomes jobs.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crossbeam_channel::Sender;

use super::directory::{DirectoryId, Place, Tree};
use super::file::{Batch, Job, LargeFile};
use super::{Shared, UnpackError};
use crate::cancel::Cancelled;
use crate::squashfs::format::InodeRef;
use crate::squashfs::reader::{InodeKind, ReadError};

/// Most files of a batch: few enough that small directories still spread over the workers.
const BATCH: usize = 64;

/// Walks the whole image. Returns all directories and the links to be made when the jobs are done.
pub(super) fn walk(
    shared: &Shared<'_>,
    root: OwnedFd,
    jobs: Sender<Job>,
) -> Result<Tree, UnpackError> {
    let reader = shared.reader;
    let unreadable = |path: &Path| {
        let path = path.to_owned();
        move |source: ReadError| UnpackError::Read { path, source }
    };
    let root_inode = reader
        .inode(reader.root_ref())
        .map_err(unreadable(Path::new("/")))?;
    let mut walk = Walk {
        shared,
        jobs,
        entered: HashSet::from([root_inode.reference]),
        linked: HashMap::new(),
        tree: Tree::new(root, root_inode),
    };
    let mut waiting = vec![Tree::ROOT];
    while let Some(directory) = waiting.pop() {
        walk.directory(directory, &mut waiting)?;
    }
    Ok(walk.tree)
}

struct Walk<'a> {
    shared: &'a Shared<'a>,
    jobs: Sender<Job>,
    /// Directories seen so far: none may be seen twice, else a loop would never end.
    entered: HashSet<InodeRef>,
    /// Where the first name of each file with several links is.
    linked: HashMap<InodeRef, Place>,
    tree: Tree,
}

impl Walk<'_> {
    fn directory(
        &mut self,
        directory: DirectoryId,
        waiting: &mut Vec<DirectoryId>,
    ) -> Result<(), UnpackError> {
        let reader = self.shared.reader;
        let open = Arc::new(self.tree.open(directory)?);
        let path: Arc<Path> = self.tree.path(directory).into();
        let unreadable = |source| UnpackError::Read {
            path: path.to_path_buf(),
            source,
        };
        let batch = || Batch::new(Arc::clone(&open), Arc::clone(&path));
        let mut files = batch();
        let entries = reader
            .open_directory(self.tree.inode(directory))
            .map_err(unreadable)?;
        for entry in entries {
            let entry = entry.map_err(unreadable)?;
            let place = Place {
                directory,
                name: entry.name,
            };
            let inode = reader
                .inode(entry.target.inode)
                .map_err(|source| UnpackError::Read {
                    path: self.tree.path_of(&place),
                    source,
                })?;
            match &inode.kind {
                InodeKind::Directory(_) => {
                    if !self.entered.insert(inode.reference) {
                        return Err(UnpackError::DirectoryTwice {
                            path: self.tree.path_of(&place),
                        });
                    }
                    waiting.push(self.tree.make(&open, place, inode)?);
                    continue;
                }
                InodeKind::BlockDevice(_) | InodeKind::CharacterDevice(_) => {
                    self.shared.counts.devices.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                _ => {}
            }
            if inode.nlink > 1 {
                match self.linked.entry(inode.reference) {
                    Entry::Occupied(first) => {
                        self.tree.link_later(first.get().clone(), place);
                        continue;
                    }
                    Entry::Vacant(vacant) => {
                        vacant.insert(place.clone());
                    }
                }
            }
            match LargeFile::begin(self.shared, &open, &path, &place.name, &inode)? {
                Some(parts) => {
                    for part in parts {
                        self.send(Job::Part(part))?;
                    }
                }
                None => files.push(place.name, inode),
            }
            if files.len() == BATCH {
                self.send(Job::Batch(std::mem::replace(&mut files, batch())))?;
            }
        }
        self.send(Job::Batch(files))
    }

    /// Hands a job to the workers; an error once one of them failed or the caller asked to stop.
    fn send(&self, job: Job) -> Result<(), UnpackError> {
        self.shared.cancel.check()?;
        if self.shared.failed.load(Ordering::Relaxed) || self.jobs.send(job).is_err() {
            return Err(Cancelled.into());
        }
        Ok(())
    }
}
