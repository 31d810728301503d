//! Removes a tree, whatever is in it.
//!
//! A container's directory holds what an image or a program put there: directories without permissions, overlayfs' work directory
//! (mode 000), paths longer than `PATH_MAX`. [`std::fs::remove_dir_all`] fails on the first two and needs a file
//! descriptor for each level. Here a subdirectory that is not empty is moved up beside the others and emptied
//! there, so that the depth of the tree never matters, and permissions are mended on the way.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, Mode, OFlags};
use rustix::io::Errno;

/// Why a tree could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// The path does not end in a name.
    #[error("cannot remove `{path}`: it does not end in a name", path = .0.display())]
    NoName(PathBuf),
    /// The operating system refused.
    #[error("cannot remove `{path}`", path = path.display())]
    Refused {
        /// What was to be removed.
        path: PathBuf,
        /// The refusal.
        #[source]
        source: io::Error,
    },
}

/// Removes the file or directory at `path` with all that is in it, without following symbolic links. A path
/// that does not exist is a success.
///
/// The caller must own the tree; nobody else may change it meanwhile. After an error, part of the tree is still there, perhaps moved
/// within it.
pub fn remove_tree(path: &Path) -> Result<(), RemoveError> {
    let name = path
        .file_name()
        .ok_or_else(|| RemoveError::NoName(path.to_owned()))?;
    let parent = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    remove_from(parent, name.as_bytes()).map_err(|source| RemoveError::Refused {
        path: path.to_owned(),
        source: source.into(),
    })
}

fn remove_from(parent: &Path, name: &[u8]) -> Result<(), Errno> {
    let parent = match rustix::fs::open(
        parent,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    ) {
        Err(Errno::NOENT) => return Ok(()),
        parent => parent?,
    };
    match rustix::fs::unlinkat(&parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        // POSIX says EPERM for a directory, Linux EISDIR; opening it below tells them apart.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error),
    }
    let root = open_directory(parent.as_fd(), name)?;
    // Directories that were moved into the root are called by a prefix that no entry has, and a number.
    let prefix = unused_prefix(&root)?;
    let mut moved: u64 = 0;
    let mut emptied: u64 = 0;
    let moved_name = |number: u64| [prefix.as_slice(), number.to_string().as_bytes()].concat();
    empty(&root, &root, &mut moved, &moved_name)?;
    while emptied < moved {
        let name = moved_name(emptied);
        let directory = open_directory(root.as_fd(), &name)?;
        empty(&directory, &root, &mut moved, &moved_name)?;
        rustix::fs::unlinkat(&root, &*name, AtFlags::REMOVEDIR)?;
        emptied += 1;
    }
    rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR)
}

/// Opens a directory for listing and changing, mending its permissions if they forbid that.
fn open_directory(parent: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = || rustix::fs::openat(parent, name, flags, Mode::empty());
    let directory = match open() {
        Err(Errno::ACCESS) => {
            // Not a symbolic link, which would have been unlinked or would have said ELOOP.
            rustix::fs::chmodat(parent, name, Mode::RWXU, AtFlags::empty())?;
            open()?
        }
        directory => directory?,
    };
    let mode = Mode::from_raw_mode(rustix::fs::fstat(&directory)?.st_mode);
    if !mode.contains(Mode::RWXU) {
        rustix::fs::fchmod(&directory, Mode::RWXU)?;
    }
    Ok(directory)
}

/// Removes what is in `directory`; subdirectories that are not empty are moved to `root`.
fn empty(
    directory: &OwnedFd,
    root: &OwnedFd,
    moved: &mut u64,
    moved_name: &impl Fn(u64) -> Vec<u8>,
) -> Result<(), Errno> {
    // All names first: moving entries into the directory that is being listed could show them again.
    for name in names(directory)? {
        match rustix::fs::unlinkat(directory, &name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => continue,
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(error) => return Err(error),
        }
        match rustix::fs::unlinkat(directory, &name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::ACCESS) => {
                // Moving a directory changes its `..`, for which it must be writable.
                drop(open_directory(directory.as_fd(), name.to_bytes())?);
                rustix::fs::renameat(directory, &name, root, moved_name(*moved))?;
                *moved += 1;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The names in a directory, without `.` and `..`.
fn names(directory: &OwnedFd) -> Result<Vec<CString>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if !matches!(name.to_bytes(), b"." | b"..") {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// A prefix that no name in a directory begins with.
fn unused_prefix(directory: &OwnedFd) -> Result<Vec<u8>, Errno> {
    let names = names(directory)?;
    let mut prefix = b".removed-".to_vec();
    while names
        .iter()
        .any(|name| name.to_bytes().starts_with(&prefix))
    {
        prefix.push(b'-');
    }
    Ok(prefix)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn a_tree_with_everything_awkward_is_removed() {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path().join("root");
        let outside = scratch.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "kept").unwrap();
        fs::create_dir_all(root.join("a/b/c")).unwrap();
        fs::create_dir_all(root.join(".removed-0/x")).unwrap();
        fs::write(root.join("a/b/c/file"), "x").unwrap();
        symlink(&outside, root.join("a/link")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        for directory in ["a/b/c", "a/b", "a"] {
            fs::set_permissions(root.join(directory), Permissions::from_mode(0o000)).unwrap();
        }
        remove_tree(&root).unwrap();
        assert!(!root.exists());
        assert!(outside.join("kept").exists());
    }

    #[test]
    fn paths_longer_than_path_max_are_removed() {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path().join("root");
        fs::create_dir(&root).unwrap();
        let name = OsStr::from_bytes(&[b'n'; 200]);
        let mut directory: OwnedFd = fs::File::open(&root).unwrap().into();
        for _ in 0..100 {
            rustix::fs::mkdirat(&directory, name, Mode::RWXU).unwrap();
            directory = open_directory(directory.as_fd(), name.as_bytes()).unwrap();
        }
        remove_tree(&root).unwrap();
        assert!(!root.exists());
    }

    #[test]
    fn files_links_and_missing_paths_are_fine() {
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("file");
        fs::write(&file, "x").unwrap();
        let link = scratch.path().join("link");
        symlink(&file, &link).unwrap();
        remove_tree(&link).unwrap();
        assert!(file.exists());
        remove_tree(&file).unwrap();
        remove_tree(&file).unwrap();
        remove_tree(&scratch.path().join("missing/file")).unwrap();
        assert!(matches!(
            remove_tree(Path::new("/")),
            Err(RemoveError::NoName(_))
        ));
    }
}
