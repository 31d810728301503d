//! When something was last used, and by which machines.
//!
//! `STORE/uses/<manifest hex>@<host>` is an empty file whose modification time, by the file system's clock, is when that machine last used
//! the manifest: imported it, or started its image. One file a machine, so that two never change the same one, and the reader of a
//! blob or an image changes nothing. The blobs of a manifest were used when it was.
//!
//! What a machine uses just now is seen there: by the containers that run ([`super::Settings::in_use`]), and by the files that the user's
//! processes have open. Of other machines only these files tell: what was used
//! within [`FRESH`] is taken to be in use. A container that runs for longer on another machine does not protect its image: a size limit
//! ([`super::Settings`]) is for stores that one machine uses.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{Mode, OFlags, Timespec, Timestamps, UTIME_NOW};

use super::Store;
use crate::digest::Digest;
use crate::owner;

/// How long after its last use something counts as used by another machine.
pub(super) const FRESH: Duration = Duration::from_secs(3600);

/// How often whoever uses an image for long should say so again, to keep it from other machines: see [`Store::note_use`].
pub const REFRESH: Duration = Duration::from_secs(600);

/// How long the use of something that is not here is remembered.
const FORGOTTEN: Duration = Duration::from_secs(30 * 24 * 3600);

/// A use by one machine.
#[derive(Clone, Debug)]
struct Use {
    time: SystemTime,
    is_here: bool,
}

/// The uses of all manifests.
#[derive(Debug, Default)]
pub(super) struct Uses(HashMap<Digest, Vec<Use>>);

impl Store {
    /// Notes that a manifest, or an image that was made from it, is used now; returns the file that says so, whose modification time is to be
    /// renewed every [`REFRESH`] while the use lasts. None where the store cannot be written to, which stops nobody from using it.
    pub fn note_use(&self, manifest: &Digest) -> Option<PathBuf> {
        let name = format!("{}@{}", manifest.hex(), owner::host_name());
        let path = self.uses.join(name);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::open(&path, flags, Mode::from_raw_mode(0o666)).ok()?;
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_NOW,
        };
        let now = Timestamps {
            last_access: now,
            last_modification: now,
        };
        rustix::fs::futimens(&file, &now).ok()?;
        Some(path)
    }

    /// What is known of the use of manifests.
    pub(super) fn uses(&self) -> Uses {
        let mut uses = Uses::default();
        let here = owner::host_name();
        for entry in fs::read_dir(&self.uses).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let Some((manifest, host)) = parse(&name) else {
                continue;
            };
            if let Ok(time) = entry.metadata().and_then(|metadata| metadata.modified()) {
                uses.0.entry(manifest).or_default().push(Use {
                    time,
                    is_here: host == here,
                });
            }
        }
        uses
    }

    /// Forgets uses of what is not here: it may have been in a shared store, or have gone long ago.
    pub(super) fn forget_old_uses(&self) {
        let now = SystemTime::now();
        let uses = self.uses();
        let old = |manifest: &&Digest| {
            let last = uses.last(manifest);
            !last.is_some_and(|time| is_within(time, now, FORGOTTEN))
        };
        for manifest in uses.manifests().filter(old) {
            if !self.blob_path(manifest).exists() {
                self.forget_uses(manifest);
            }
        }
    }

    /// Forgets the uses of a manifest.
    pub(super) fn forget_uses(&self, manifest: &Digest) {
        for entry in fs::read_dir(&self.uses).into_iter().flatten().flatten() {
            if parse(&entry.file_name()).is_some_and(|(found, _)| found == *manifest) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

fn parse(name: &OsStr) -> Option<(Digest, &str)> {
    let (manifest, host) = name.to_str()?.split_once('@')?;
    Some((format!("sha256:{manifest}").parse().ok()?, host))
}

impl Uses {
    /// The manifests that were ever used.
    pub(super) fn manifests(&self) -> impl Iterator<Item = &Digest> {
        self.0.keys()
    }

    /// When a manifest was last used, on whichever machine.
    pub(super) fn last(&self, manifest: &Digest) -> Option<SystemTime> {
        self.0.get(manifest)?.iter().map(|use_| use_.time).max()
    }

    /// Whether another machine has used a manifest so recently that it may do so still.
    pub(super) fn is_used_elsewhere(&self, manifest: &Digest, now: SystemTime) -> bool {
        let uses = self.0.get(manifest).map_or(&[][..], Vec::as_slice);
        uses.iter()
            .any(|use_| !use_.is_here && is_within(use_.time, now, FRESH))
    }
}

/// Whether a time is not longer ago than this. A time in the future is not.
pub(super) fn is_within(time: SystemTime, now: SystemTime, limit: Duration) -> bool {
    now.duration_since(time).is_ok_and(|age| age < limit) || time > now
}

/// Which of some files processes of this machine have open, by device and inode. Processes of other users are not seen, nor have they files of
/// a private store open.
pub(super) fn open_files(wanted: &HashSet<(u64, u64)>) -> HashSet<(u64, u64)> {
    let mut open = HashSet::new();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let own = rustix::process::getpid().as_raw_nonzero().to_string();
    for process in processes {
        let name = process.file_name();
        if !name.as_bytes().iter().all(u8::is_ascii_digit) || name.as_bytes() == own.as_bytes() {
            continue;
        }
        let descriptors = fs::read_dir(process.path().join("fd"));
        for descriptor in descriptors.into_iter().flatten().flatten() {
            // Pipes and sockets are no files of a store; their links say so without a look at the file.
            if is_path(&descriptor.path())
                && let Ok(metadata) = fs::metadata(descriptor.path())
            {
                let file = (metadata.dev(), metadata.ino());
                if wanted.contains(&file) {
                    open.insert(file);
                }
            }
        }
    }
    open
}

fn is_path(link: &Path) -> bool {
    fs::read_link(link).is_ok_and(|target| target.as_os_str().as_bytes().starts_with(b"/"))
}
