//! Blobs and images by digest on disk.
//!
//! ```text
//! STORE/blobs/sha256/<hex>                               a blob as the registry sent it: layer, config, manifest, index
//! STORE/blobs/sha256/.<hex>.part                         as much of a blob as has arrived
//! STORE/images/<manifest hex>-<options hex>.sqsh         a finished image: the manifest it was made from, the options it was made with
//! STORE/images/<manifest hex>-<options hex>.json         its [`ImageRecord`], written before the image appears
//! STORE/*/.<name>.lease                                  who makes it just now (`lease.rs`)
//! STORE/signatures/<hex>.json                            signatures of an image, where a policy asked for them (`signatures.rs`)
//! STORE/uses/<manifest hex>@<host>                       when a machine last used it (`uses.rs`)
//! STORE/refs/<hex>.json                                  what a tag last stood for (`refs.rs`)
//! ```
//!
//! Everything appears whole or not at all ([`crate::output`]), and never changes afterwards, so readers take no lock and never wait.
//! The blobs directory has the form of an OCI image layout's.
//!
//! Of all processes of all machines that want something which is not there, one makes it, which holds its lease; the others get
//! [`Claim::Busy`], wait as long as [`Watch::pause`] says, and claim again. Leases stand beside what they are for: a directory that a
//! client of NFS has just changed is one whose names it looks up anew.
//!
//! Images are synced to disk before they appear, since they are used unread. Blobs are not: a sync of each would stall an import on
//! the disk's write rate, and whoever opens a blob compares its size at once and its digest while reading. A blob that a power loss
//! damaged is found by that, and [`Store::discard_blob`] removes it.
//!
//! A `CACHEDIR.TAG` at the top tells backup programs that all of it can be fetched again (Cache Directory Tagging Specification).

mod blobs;
mod contents;
mod error;
mod evict;
mod heartbeat;
mod images;
mod lease;
mod record;
mod refs;
mod shared;
mod signatures;
mod sweep;
mod uses;
mod verify;

use std::cell::Cell;
use std::collections::HashSet;
use std::fs::{DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;

pub use blobs::PendingBlob;
pub use contents::{Contents, StoredBlob, StoredImage, Unfinished};
pub use error::StoreError;
pub use evict::{Prune, Pruned};
pub use images::PendingImage;
pub use lease::{Holder, Watch};
pub use record::ImageRecord;
pub use refs::RefRecord;
pub use shared::Distrust;
pub use uses::REFRESH;
pub use verify::{Damage, Verified, VerifyError};

use crate::digest::Digest;
use heartbeat::Heartbeat;
use lease::{Attempt, Lease, Seen, Terms};
use shared::Shared;

/// The name of the file by which backup programs know what not to keep.
const TAG: &str = "CACHEDIR.TAG";

/// Its content: the signature that the specification demands, and a word to whoever finds it.
const TAG_TEXT: &str =
    "Signature: 8a477f597d28d172789f06886806bc55\n# Container images that can be fetched again.\n";

/// Permission bits of a directory for its owner alone, and for all to read.
const PRIVATE: u32 = 0o700;
const READABLE: u32 = 0o755;

/// How a store is used.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long the heartbeat of a writer may stay away before its work is taken over. A writer on the same machine that has ended is
    /// known at once.
    pub lease_timeout: Duration,
    /// The size that [`Store::evict`] leaves, in bytes; None for any.
    pub limit: Option<u64>,
    /// Stores of others, which are looked into first (`shared.rs`).
    pub shared: Vec<PathBuf>,
    /// Lets all users read the store, from now on: it is to be a shared store of theirs.
    pub readable: bool,
    /// Which of some images run on this machine.
    pub in_use: fn(&[PathBuf]) -> HashSet<PathBuf>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            lease_timeout: Duration::from_secs(30),
            limit: None,
            shared: Vec::new(),
            readable: false,
            in_use: |_| HashSet::new(),
        }
    }
}

/// A store: a directory of blobs and images. Any number of processes on any number of machines may use one at once.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    blobs: PathBuf,
    images: PathBuf,
    uses: PathBuf,
    refs: PathBuf,
    shared: Vec<Shared>,
    /// Permission bits of its directories: for its owner alone, unless it was made readable.
    mode: u32,
    settings: Settings,
    heartbeat: Arc<Heartbeat>,
    prepared: Once,
    /// Blobs that turned out to be damaged: shared stores, from which they cannot be removed, are not asked for them again.
    damaged: Mutex<HashSet<Digest>>,
}

/// What came of wanting something.
#[derive(Debug)]
pub enum Claim<R, M> {
    /// It is there.
    Ready(R),
    /// It is not, and we are to make it.
    Mine(M),
    /// Somebody else makes it.
    Busy(Holder),
}

impl Store {
    /// Opens a store with the default settings, making its directories, for their owner alone, when they are missing.
    ///
    /// # Errors
    ///
    /// [`StoreError::Directory`] when a directory cannot be made.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        Self::with_settings(root, Settings::default())
    }

    /// Opens a store, as [`Self::open`].
    ///
    /// # Errors
    ///
    /// As [`Self::open`].
    pub fn with_settings(root: &Path, settings: Settings) -> Result<Self, StoreError> {
        let failed = |path: &Path, source| StoreError::Directory {
            path: path.to_owned(),
            source,
        };
        DirBuilder::new()
            .recursive(true)
            .mode(PRIVATE)
            .create(root)
            .map_err(|source| failed(root, source))?;
        let images = root.join("images");
        let store = Self {
            root: root.to_owned(),
            blobs: root.join("blobs").join("sha256"),
            uses: root.join("uses"),
            refs: root.join("refs"),
            shared: settings
                .shared
                .iter()
                .map(|root| Shared::open(root))
                .collect(),
            mode: match images.metadata() {
                _ if settings.readable => READABLE,
                // Made by us, when the store was first opened.
                Ok(metadata) => metadata.mode() & READABLE | PRIVATE,
                Err(_) => PRIVATE,
            },
            images,
            settings,
            heartbeat: Arc::default(),
            prepared: Once::new(),
            damaged: Mutex::default(),
        };
        let blobs = root.join("blobs");
        for directory in [
            root,
            &blobs,
            &store.blobs,
            &store.images,
            &store.uses,
            &store.refs,
        ] {
            store
                .make_directory(directory)
                .map_err(|source| failed(directory, source))?;
        }
        Ok(store)
    }

    fn make_directory(&self, path: &Path) -> io::Result<()> {
        let is_new = match DirBuilder::new().mode(PRIVATE).create(path) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(error),
        };
        // Set apart from the making, since the umask may take what others need.
        if self.settings.readable || is_new && self.mode != PRIVATE {
            std::fs::set_permissions(path, Permissions::from_mode(self.mode))?;
        }
        Ok(())
    }

    /// Gives a new file to those who may read the store, whatever the umask is.
    fn open_to_readers(&self, file: &File) -> io::Result<()> {
        if self.mode == PRIVATE {
            return Ok(());
        }
        file.set_permissions(Permissions::from_mode(self.mode & 0o644))
    }

    /// Whether a path is one of this store, rather than of a shared one.
    #[must_use]
    pub fn holds(&self, path: &Path) -> bool {
        path.starts_with(&self.root)
    }

    fn terms(&self) -> Terms {
        Terms {
            timeout: self.settings.lease_timeout,
        }
    }

    fn lease_file(directory: &Path, name: &str) -> PathBuf {
        directory.join(format!(".{name}.lease"))
    }

    /// Removes the lease on something that is there, which we have waited for: its maker may have died right after it was done.
    fn tidy(&self, directory: &Path, name: &str, watch: &Watch) {
        if watch.has_waited() {
            self.sweep_lease(&Self::lease_file(directory, name));
        }
    }

    /// Tries to become the one that makes `name` in a directory of the store, which is work of `total` bytes.
    fn lease(
        &self,
        directory: &Path,
        name: &str,
        total: u64,
        watch: &mut Watch,
        on_death: &dyn Fn(&Seen) -> io::Result<()>,
    ) -> Result<Claim<std::convert::Infallible, Lease>, StoreError> {
        self.prepare();
        let path = Self::lease_file(directory, name);
        let has_died = Cell::new(false);
        let on_death = |dead: &Seen| {
            has_died.set(true);
            on_death(dead)
        };
        let attempt = lease::attempt(
            &path,
            total,
            self.terms(),
            watch,
            &self.heartbeat,
            &on_death,
        );
        if has_died.get() {
            // It may have left more than this.
            self.sweep();
        }
        match attempt {
            Ok(Attempt::Held(lease)) => Ok(Claim::Mine(lease)),
            Ok(Attempt::Busy(holder)) => Ok(Claim::Busy(holder)),
            Err(source) => Err(StoreError::Lease { path, source }),
        }
    }

    /// Done once, before the first file is written: the tag for backup programs, and what dead processes left is removed.
    fn prepare(&self) {
        self.prepared.call_once(|| {
            let tag = self.root.join(TAG);
            if !tag.exists() {
                // A store without a tag works as well.
                let _ = std::fs::write(&tag, TAG_TEXT);
            }
            self.sweep();
        });
    }
}

/// Claims something until it is there (`Ok`) or ours (`Err`); `pause` is told who makes it, and waits.
///
/// # Errors
///
/// What claiming or waiting fails with.
pub fn wait_for<R, M, E: From<StoreError>>(
    mut claim: impl FnMut(&mut Watch) -> Result<Claim<R, M>, StoreError>,
    mut pause: impl FnMut(Holder, Duration) -> Result<(), E>,
) -> Result<Result<R, M>, E> {
    let mut watch = Watch::default();
    loop {
        match claim(&mut watch)? {
            Claim::Ready(ready) => return Ok(Ok(ready)),
            Claim::Mine(mine) => return Ok(Err(mine)),
            Claim::Busy(holder) => pause(holder, watch.pause())?,
        }
    }
}

/// The name of an image, without its extension. 16 of the 64 digits of the options do: they only tell few options apart.
fn image_stem(manifest: &Digest, options: &Digest) -> String {
    format!("{}-{}", manifest.hex(), &options.hex()[..16])
}

#[cfg(test)]
mod tests;
