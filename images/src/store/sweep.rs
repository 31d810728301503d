//! What dead processes left behind.
//!
//! Done by whoever is about to write to the store, once: leases whose holders are dead, parts that nobody came back for, temporary
//! files. The living are recognized by their leases and by what their files' names say, those out of sight by time.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::lease::{self, Attempt, Seen, Watch};
use super::{Store, blobs};
use crate::output;

/// How long a part is kept for somebody to go on with it.
const PART_AGE: Duration = Duration::from_secs(7 * 24 * 3600);

impl Store {
    /// Removes what dead processes left. Never an error: what cannot be removed is left for the next time.
    pub(super) fn sweep(&self) {
        for directory in [&self.blobs, &self.images] {
            output::remove_leftovers(directory);
            let Ok(entries) = std::fs::read_dir(directory) else {
                continue;
            };
            for entry in entries.flatten() {
                let name = entry.file_name();
                if is_lease(&name) {
                    self.sweep_lease(&entry.path());
                } else if is_part(&name) && is_old(&entry.path()) {
                    self.sweep_part(&entry.path());
                }
            }
        }
    }

    /// Removes a lease, or a guard of one, whose holder is dead.
    pub(super) fn sweep_lease(&self, path: &Path) {
        let Ok(Some(seen)) = lease::look(path) else {
            return;
        };
        if !lease::is_dead(path, &seen, self.terms()) {
            return;
        }
        let part = path.with_extension("part");
        let on_death = |dead: &Seen| {
            let done = dead.record.as_ref().map_or(0, |record| record.done);
            blobs::cut(&part, done)
        };
        let _ = lease::break_dead(path, &seen, self.terms(), &on_death);
    }

    /// Removes a part that nobody receives.
    fn sweep_part(&self, path: &Path) {
        let lease = path.with_extension("lease");
        let mut watch = Watch::default();
        let held = lease::attempt(
            &lease,
            0,
            self.terms(),
            &mut watch,
            &self.heartbeat,
            &|_| Ok(()),
        );
        if let Ok(Attempt::Held(lease)) = held {
            let _ = std::fs::remove_file(path);
            drop(lease);
        }
    }
}

/// `.NAME.lease`, or `.NAME.lease.GUARD`.
pub(super) fn is_lease(name: &OsStr) -> bool {
    let name = name.as_bytes();
    let is_guard = name.len() > 17 && name[..name.len() - 17].ends_with(b".lease");
    name.starts_with(b".") && (name.ends_with(b".lease") || is_guard)
}

/// `.NAME.part`
pub(super) fn is_part(name: &OsStr) -> bool {
    let name = name.as_bytes();
    name.starts_with(b".") && name.ends_with(b".part")
}

fn is_old(path: &Path) -> bool {
    let modified = std::fs::symlink_metadata(path).and_then(|metadata| metadata.modified());
    modified.is_ok_and(|modified| {
        SystemTime::now()
            .duration_since(modified)
            .is_ok_and(|age| age > PART_AGE)
    })
}
