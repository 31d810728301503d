//! Stores that others have prepared: they are looked into first, and never written to.
//!
//! An administrator fills a store, and many users start from it. Blobs are verified whenever they are read, so it does not matter who could have
//! written them. An image is used unread: who can change it can run programs as whoever starts it. So images of a shared store are used only
//! if nobody but its owner, root and the user can have put them there: the file, its record, the directories and every directory above must
//! belong to one of these, and must not be writable by a group or by all (a directory above may be, if it is sticky, as `/tmp` is). A
//! store that fails this is a source of blobs alone, and [`Store::distrusted`] says why.
//!
//! Access control lists show in the bits of the group (acl(5)), except those of NFSv4.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::{ImageRecord, Store, images};

const STICKY: u32 = 0o1000;
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// A store of somebody else.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) root: PathBuf,
    pub(super) blobs: PathBuf,
    pub(super) images: PathBuf,
    pub(super) refs: PathBuf,
    /// Who may own what is in it: root, we, its owner.
    owners: [u32; 3],
    distrust: Option<Distrust>,
}

/// Why the images of a shared store are not used.
#[derive(Debug, thiserror::Error)]
pub enum Distrust {
    /// It is not there, or not for us.
    #[error("cannot look at `{path}`")]
    Unreadable {
        /// The directory.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Others could have changed it.
    #[error("`{path}` can be changed by its group or by all")]
    Writable {
        /// The file or directory.
        path: PathBuf,
    },
    /// Somebody else could have changed it.
    #[error("`{path}` belongs to user {owner}, who is neither root nor the owner of the store")]
    Owner {
        /// The file or directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
}

impl Shared {
    pub(super) fn open(root: &Path) -> Self {
        let mut shared = Self {
            root: root.to_owned(),
            blobs: root.join("blobs").join("sha256"),
            images: root.join("images"),
            refs: root.join("refs"),
            owners: [0; 3],
            distrust: None,
        };
        shared.distrust = shared.examine().err();
        shared
    }

    fn examine(&mut self) -> Result<(), Distrust> {
        let unreadable = |path: &Path, source| Distrust::Unreadable {
            path: path.to_owned(),
            source,
        };
        // What links lead through counts, not how it was named.
        let root = self
            .root
            .canonicalize()
            .map_err(|source| unreadable(&self.root, source))?;
        let metadata = root
            .metadata()
            .map_err(|source| unreadable(&root, source))?;
        let we = rustix::process::getuid().as_raw();
        self.owners = [0, we, metadata.uid()];
        for path in [&root, &root.join("images")] {
            let metadata = path
                .symlink_metadata()
                .map_err(|source| unreadable(path, source))?;
            self.check(path, &metadata)?;
        }
        for path in root.ancestors().skip(1) {
            let metadata = path
                .symlink_metadata()
                .map_err(|source| unreadable(path, source))?;
            if metadata.mode() & STICKY == 0 {
                self.check(path, &metadata)?;
            }
        }
        Ok(())
    }

    fn check(&self, path: &Path, metadata: &Metadata) -> Result<(), Distrust> {
        if metadata.mode() & WRITABLE_BY_OTHERS != 0 {
            return Err(Distrust::Writable {
                path: path.to_owned(),
            });
        }
        let owner = metadata.uid();
        if !self.owners.contains(&owner) {
            return Err(Distrust::Owner {
                path: path.to_owned(),
                owner,
            });
        }
        Ok(())
    }

    fn is_trusted(&self, path: &Path, file: &File) -> bool {
        file.metadata()
            .is_ok_and(|metadata| self.check(path, &metadata).is_ok())
    }

    /// A finished image that may be used.
    pub(super) fn image(&self, stem: &str) -> Option<PathBuf> {
        if self.distrust.is_some() {
            return None;
        }
        let path = self.images.join(format!("{stem}.sqsh"));
        let file = images::open(&path).ok()??;
        let record_path = path.with_extension("json");
        let record = images::open(&record_path).ok()??;
        if !self.is_trusted(&path, &file) || !self.is_trusted(&record_path, &record) {
            return None;
        }
        let record = ImageRecord::read(&record_path).ok()??;
        images::is_whole(file, &record).then_some(path)
    }
}

impl Store {
    /// The shared stores whose images are not used, and why.
    pub fn distrusted(&self) -> impl Iterator<Item = (&Path, &Distrust)> {
        self.shared.iter().filter_map(|shared| {
            let distrust = shared.distrust.as_ref()?;
            Some((shared.root.as_path(), distrust))
        })
    }
}
