//! Names of unfinished files, and what is left of their writers.
//!
//! `.NAME.part-HOST-BOOT-NAMESPACE-PID-STARTED-N`: the name of the finished file, the process that writes it ([`Owner`]), and a number that tells
//! the files of one process apart. A file whose process has ended is a leftover at once. Of a process that is out of sight (of another
//! machine, of another container, of before a reboot) nothing can be known; its files are leftovers when nothing was written to
//! them for [`ABANDONED`].

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use crate::owner::{Life, Owner};

/// Longest file name that Linux file systems take, in bytes.
const NAME_MAX: usize = 255;

/// What stands between the name of the finished file and its writer.
pub(crate) const PART: &[u8] = b".part-";

/// Digits of the boot that a name has: enough to tell the few machines apart that share a host name.
const BOOT_DIGITS: usize = 8;

/// How long nothing is written to a file before it counts as abandoned by a process that is out of sight.
pub(crate) const ABANDONED: Duration = Duration::from_secs(24 * 3600);

/// A new temporary name for the file that will be called `name`, which is cut where the whole would be too long for a file name.
pub(crate) fn name(name: &OsStr) -> OsString {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let owner = Owner::current();
    let mut writer = PART.to_vec();
    writer.extend(
        format!(
            "{}-{}-{:x}-{}-{:x}-{}",
            owner.host,
            short(&owner.boot),
            owner.namespace,
            owner.pid,
            owner.started,
            NUMBER.fetch_add(1, Ordering::Relaxed)
        )
        .bytes(),
    );
    let room = NAME_MAX.saturating_sub(1 + writer.len());
    let mut temporary = vec![b'.'];
    temporary.extend(name.as_bytes().iter().take(room));
    temporary.extend(writer);
    OsString::from_vec(temporary)
}

fn short(boot: &str) -> &str {
    boot.get(..BOOT_DIGITS).unwrap_or("")
}

/// The process in a temporary name, seen from `here`; None for any other name.
fn writer(name: &[u8], here: &Owner) -> Option<Owner> {
    if name.first() != Some(&b'.') {
        return None;
    }
    let start = name
        .windows(PART.len())
        .rposition(|window| window == PART)?
        + PART.len();
    let mut fields = std::str::from_utf8(&name[start..]).ok()?.split('-');
    let mut next = || fields.next();
    let (host, boot) = (next()?, next()?);
    let namespace = u64::from_str_radix(next()?, 16).ok()?;
    let pid = next()?.parse().ok().filter(|pid| *pid > 0)?;
    let started = u64::from_str_radix(next()?, 16).ok()?;
    let _number: u32 = next()?.parse().ok()?;
    if next().is_some() {
        return None;
    }
    let is_this_boot = !boot.is_empty() && boot == short(&here.boot);
    Some(Owner {
        host: host.to_owned(),
        boot: if is_this_boot { &here.boot } else { boot }.to_owned(),
        namespace,
        pid,
        started,
    })
}

/// Removes unfinished files that processes left in a directory which are gone; returns how many.
///
/// Only needed on file systems without `O_TMPFILE`, where [`super::Output::create`] does it by itself. Never an error: what cannot be listed or
/// removed is left for the next time.
pub fn remove_leftovers(directory: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return 0;
    };
    let here = Owner::current();
    let mut removed = 0;
    for entry in entries.flatten() {
        let Some(owner) = writer(entry.file_name().as_bytes(), &here) else {
            continue;
        };
        let is_left = match owner.life(&here) {
            Life::Alive => false,
            Life::Dead => true,
            Life::Unknown => is_abandoned(&entry.path()),
        };
        if is_left && std::fs::remove_file(entry.path()).is_ok() {
            removed += 1;
        }
    }
    removed
}

/// Whether nothing was written to a file for long.
pub(crate) fn is_abandoned(path: &Path) -> bool {
    let modified = std::fs::symlink_metadata(path).and_then(|metadata| metadata.modified());
    modified.is_ok_and(|modified| {
        SystemTime::now()
            .duration_since(modified)
            .is_ok_and(|age| age > ABANDONED)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn only_leftovers_of_the_dead_are_removed() {
        let directory = tempfile::tempdir().unwrap();
        let here = Owner::current();
        let file = |what: &str, owner: &Owner, number: u32| {
            let name = format!(
                "{what}.part-{}-{}-{:x}-{}-{:x}-{number}",
                owner.host,
                short(&owner.boot),
                owner.namespace,
                owner.pid,
                owner.started
            );
            std::fs::write(directory.path().join(&name), b"").unwrap();
            name
        };
        // A process of our id that began before us has ended.
        let dead = Owner {
            started: here.started - 1,
            ..here.clone()
        };
        let elsewhere = Owner {
            boot: "0123456789".to_owned(),
            ..dead.clone()
        };
        let contained = Owner {
            namespace: 7,
            ..dead.clone()
        };
        let leftover = file(".a", &dead, 0);
        let kept = [
            file(".a", &here, 1),
            file(".a", &elsewhere, 2),
            file(".a", &contained, 3),
            file("a", &dead, 4),
        ];
        let abandoned = file(".b", &elsewhere, 5);
        let long_ago = SystemTime::now() - 2 * ABANDONED;
        File::open(directory.path().join(&abandoned))
            .unwrap()
            .set_modified(long_ago)
            .unwrap();
        assert_eq!(remove_leftovers(directory.path()), 2);
        for name in [&leftover, &abandoned] {
            assert!(!directory.path().join(name).exists(), "{name}");
        }
        for name in &kept {
            assert!(directory.path().join(name).exists(), "{name}");
        }
    }

    #[test]
    fn temporary_names_of_long_names_fit() {
        let long = "x".repeat(NAME_MAX);
        let temporary = name(OsStr::new(&long));
        assert!(temporary.len() <= NAME_MAX);
        let here = Owner::current();
        assert_eq!(writer(temporary.as_bytes(), &here), Some(here));
    }
}
