//! Names of directories that are being built or removed, and what is left of them.
//!
//! A tree takes longer to make than a rename, so it is made under a temporary name that tells which process does it. What a killed
//! process left is removed by the next one that builds something in the same directory.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use cista_images::unpack;

/// How temporary names begin; `list` shows no name with a dot.
const PREFIX: &str = ".tmp-";

/// Seconds after which what a dead process left is removed. A directory may be shared by nodes, and the process be another node's: what is
/// young stays.
const LEFTOVER_AGE: u64 = 3600;

/// The name under which this process builds or removes `name`.
#[must_use]
pub fn path(directory: &Path, name: &OsStr) -> PathBuf {
    let mut temporary = OsString::from(format!("{PREFIX}{}-", std::process::id()));
    temporary.push(name);
    directory.join(temporary)
}

/// Removes what processes left that were killed.
pub fn remove_leftovers(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        if let Some(process) = process(&entry.file_name())
            && is_old(&entry)
            && !Path::new("/proc").join(process.to_string()).exists()
        {
            // What cannot be removed now may be later.
            let _ = unpack::remove_tree(&entry.path());
        }
    }
}

/// What is being built or removed in a directory, or was when its process died: each path, and the name that it is for.
#[must_use]
pub fn unfinished(directory: &Path) -> Vec<(PathBuf, OsString)> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        if let Some((_, name)) = parts(&entry.file_name()) {
            found.push((entry.path(), name.to_owned()));
        }
    }
    found
}

/// The process that a temporary name names.
fn process(name: &OsStr) -> Option<u32> {
    Some(parts(name)?.0)
}

/// The process that a temporary name names, and the name behind it.
fn parts(name: &OsStr) -> Option<(u32, &OsStr)> {
    let rest = name.as_bytes().strip_prefix(PREFIX.as_bytes())?;
    let dash = rest.iter().position(|&byte| byte == b'-')?;
    let process = std::str::from_utf8(&rest[..dash]).ok()?.parse().ok()?;
    Some((process, OsStr::from_bytes(&rest[dash + 1..])))
}

fn is_old(entry: &fs::DirEntry) -> bool {
    entry
        .metadata()
        .and_then(|metadata| metadata.modified())
        .is_ok_and(|modified| {
            modified
                .elapsed()
                .is_ok_and(|age| age.as_secs() > LEFTOVER_AGE)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftovers_of_the_dead_go_and_all_else_stays() {
        let scratch = tempfile::tempdir().unwrap();
        let old = std::time::SystemTime::now() - std::time::Duration::from_secs(2 * LEFTOVER_AGE);
        let make = |name: &str, age: bool| {
            let path = scratch.path().join(name);
            fs::create_dir(&path).unwrap();
            fs::write(path.join("file"), "").unwrap();
            if age {
                fs::File::open(&path).unwrap().set_modified(old).unwrap();
            }
        };
        // No process has this number: the kernel's limit is 2^22.
        make(".tmp-99999999-dead", true);
        make(".tmp-99999998-young", false);
        make(&format!(".tmp-{}-alive", std::process::id()), true);
        make("container", true);
        make(".tmp-x-odd", true);
        let unfinished = unfinished(scratch.path());
        assert_eq!(unfinished.len(), 3);
        assert!(unfinished.iter().any(|(_, name)| name == "young"));
        remove_leftovers(scratch.path());
        let mut left: Vec<_> = fs::read_dir(scratch.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        let alive = format!(".tmp-{}-alive", std::process::id());
        let mut expected = vec![".tmp-99999998-young", &alive, ".tmp-x-odd", "container"];
        expected.sort_unstable();
        assert_eq!(left, expected);
    }
}
