//! Files that appear whole or not at all.
//!
//! An import that fails, is interrupted or is killed must leave neither a partial image nor a temporary file. So a file is first made without
//! a name (`O_TMPFILE`, open(2)): until [`Output::commit`] gives it one with linkat(2), the kernel itself throws it away with its last
//! descriptor, even on `kill -9` and power loss. linkat(2) never replaces a file; where replacing is wanted, the file gets a temporary name
//! first and rename(2) puts it in place, so that the window in which a kill leaves something is two system calls long.
//!
//! File systems without `O_TMPFILE` (NFS, some FUSE file systems, Lustre before 2.11) get the temporary name from the start:
//! `.NAME.part-…`, where the name says which process writes it (`temporary.rs`), so that [`remove_leftovers`] can clean up after the dead
//! without touching the living. No lock of the file system is asked for: some refuse it.
//!
//! Durability: [`Output::commit`] syncs the file before it gets its name and the directory after, so a name that is there after a power
//! loss has its content. [`Output::commit_unsynced`] leaves that to the kernel, for content that is verified whenever it is used.

pub(crate) mod temporary;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

pub use temporary::remove_leftovers;

/// Why a file cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// The path has no file name.
    #[error("`{path}` names no file")]
    NoName {
        /// The path asked for.
        path: PathBuf,
    },
    /// The file is there already and may not be replaced.
    #[error("file `{path}` already exists")]
    Exists {
        /// The path asked for.
        path: PathBuf,
    },
    /// What is there is not a regular file, so it is not replaced even when replacing is allowed.
    #[error("`{path}` exists and is not a regular file")]
    NotRegular {
        /// The path asked for.
        path: PathBuf,
    },
    /// The directory that should hold the file cannot be opened.
    #[error("cannot open directory `{path}`")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The file cannot be created.
    #[error("cannot create a file in `{path}`")]
    Create {
        /// The directory.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The content cannot be written to disk.
    #[error("cannot write `{path}` to disk")]
    Sync {
        /// The path asked for.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The finished file cannot be given its name.
    #[error("cannot put the finished file in place as `{path}`")]
    Place {
        /// The path asked for.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

/// A file that is being made. Dropping it without [`Output::commit`] leaves nothing behind.
#[derive(Debug)]
pub struct Output {
    path: PathBuf,
    directory_path: PathBuf,
    directory: OwnedFd,
    name: OsString,
    overwrite: bool,
    file: File,
    /// The name that the file has while it is not finished; None while it has none.
    temporary: Option<OsString>,
}

impl Output {
    /// Begins a file that will be at `path`, with mode 0666 less the umask.
    ///
    /// # Errors
    ///
    /// Fails at once, before any work is done, when `path` exists and `overwrite` is not set, when it exists and is no regular file, and when
    /// the directory is missing or cannot be written.
    pub fn create(path: &Path, overwrite: bool) -> Result<Self, OutputError> {
        let name = path
            .file_name()
            .ok_or_else(|| OutputError::NoName {
                path: path.to_owned(),
            })?
            .to_owned();
        let directory_path = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        // A directory that may be written but not listed can be opened with O_PATH only.
        let directory = rustix::fs::openat(
            CWD,
            &directory_path,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|source| OutputError::Directory {
            path: directory_path.clone(),
            source: source.into(),
        })?;
        check_target(&directory, &name, path, overwrite)?;
        let (file, temporary) = unfinished_file(&directory, &directory_path, &name)?;
        Ok(Self {
            path: path.to_owned(),
            directory_path,
            directory,
            name,
            overwrite,
            file,
            temporary,
        })
    }

    /// Where the file will be.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The unfinished file, open for reading and writing, positioned wherever its users left it.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Another handle of the unfinished file, for those who want to own one. It shares the position with [`Self::file`].
    ///
    /// # Errors
    ///
    /// Fails when the process has no descriptor left.
    pub fn handle(&self) -> Result<File, OutputError> {
        self.file.try_clone().map_err(|source| OutputError::Create {
            path: self.directory_path.clone(),
            source,
        })
    }

    /// Writes the file to disk and gives it its name; returns the finished file.
    ///
    /// # Errors
    ///
    /// [`OutputError::Exists`] when another file took the name in the meantime; [`OutputError::Sync`] when the disk is full or broken.
    /// Nothing is left behind then.
    pub fn commit(self) -> Result<File, OutputError> {
        self.commit_then(|| ())
    }

    /// As [`Self::commit`], with something to do as soon as the file has its name, before its directory is written to disk.
    pub(crate) fn commit_then(mut self, placed: impl FnOnce()) -> Result<File, OutputError> {
        self.file.sync_all().map_err(|source| OutputError::Sync {
            path: self.path.clone(),
            source,
        })?;
        self.place()?;
        placed();
        self.sync_directory()?;
        self.handle()
    }

    /// Gives the file its name and leaves writing it to disk to the kernel; returns the finished file.
    ///
    /// After a power loss the name may stand for a file that lacks content, so this is for files that are verified when they are used.
    ///
    /// # Errors
    ///
    /// As [`Self::commit`].
    pub fn commit_unsynced(mut self) -> Result<File, OutputError> {
        self.place()?;
        self.handle()
    }

    /// Moves from no name or the temporary name to the final one.
    fn place(&mut self) -> Result<(), OutputError> {
        if !self.overwrite {
            let linked = match &self.temporary {
                None => link_descriptor(&self.file, &self.directory, &self.name),
                Some(temporary) => rustix::fs::linkat(
                    &self.directory,
                    temporary,
                    &self.directory,
                    &self.name,
                    AtFlags::empty(),
                ),
            };
            return match linked {
                Ok(()) => {
                    self.remove_temporary();
                    Ok(())
                }
                Err(_) if self.is_in_place() => {
                    self.remove_temporary();
                    Ok(())
                }
                Err(Errno::EXIST) => Err(OutputError::Exists {
                    path: self.path.clone(),
                }),
                // File systems without hard links: rename without replacing, where the kernel can.
                Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS) if self.temporary.is_some() => {
                    self.rename_without_replacing()
                }
                Err(errno) => Err(self.place_error(errno)),
            };
        }
        if self.temporary.is_none() {
            self.temporary = Some(
                link_temporary(&self.file, &self.directory, &self.name)
                    .map_err(|errno| self.place_error(errno))?,
            );
        }
        if let Some(temporary) = &self.temporary {
            let renamed =
                rustix::fs::renameat(&self.directory, temporary, &self.directory, &self.name);
            match renamed {
                Err(errno) if !self.is_in_place() => return Err(self.place_error(errno)),
                _ => self.temporary = None,
            }
        }
        Ok(())
    }

    fn rename_without_replacing(&mut self) -> Result<(), OutputError> {
        let Some(temporary) = &self.temporary else {
            return Ok(());
        };
        match rustix::fs::renameat_with(
            &self.directory,
            temporary,
            &self.directory,
            &self.name,
            rustix::fs::RenameFlags::NOREPLACE,
        ) {
            Ok(()) => {
                self.temporary = None;
                Ok(())
            }
            Err(Errno::EXIST) => Err(OutputError::Exists {
                path: self.path.clone(),
            }),
            // Nor that flag, as sshfs and other FUSE file systems: what takes the name in the moment between the two is replaced.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                check_target(&self.directory, &self.name, &self.path, false)?;
                rustix::fs::renameat(&self.directory, temporary, &self.directory, &self.name)
                    .map_err(|errno| self.place_error(errno))?;
                self.temporary = None;
                Ok(())
            }
            Err(errno) => Err(self.place_error(errno)),
        }
    }

    /// Whether the name stands for our file. On NFS an operation whose answer was lost is sent again, and then fails because it was done.
    fn is_in_place(&self) -> bool {
        is_same_file(&self.file, &self.directory, &self.name)
    }

    fn place_error(&self, errno: Errno) -> OutputError {
        OutputError::Place {
            path: self.path.clone(),
            source: errno.into(),
        }
    }

    fn sync_directory(&self) -> Result<(), OutputError> {
        let readable = rustix::fs::openat(
            &self.directory,
            ".",
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        );
        let synced = match readable {
            // A directory that may not be listed cannot be synced by us; the file's own sync has to do.
            Err(Errno::ACCESS) => return Ok(()),
            Err(errno) => Err(errno),
            Ok(directory) => rustix::fs::fsync(directory),
        };
        match synced {
            // Some network file systems cannot sync directories, and do it with every change instead.
            Ok(()) | Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(()),
            Err(errno) => Err(OutputError::Sync {
                path: self.path.clone(),
                source: errno.into(),
            }),
        }
    }

    fn remove_temporary(&mut self) {
        if let Some(temporary) = self.temporary.take() {
            let _ = rustix::fs::unlinkat(&self.directory, &temporary, AtFlags::empty());
        }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.remove_temporary();
    }
}

/// Whether a name in a directory stands for an open file.
pub(crate) fn is_same_file(file: &File, directory: impl AsFd, name: &OsStr) -> bool {
    let named = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW);
    match (named, rustix::fs::fstat(file)) {
        (Ok(named), Ok(open)) => (named.st_dev, named.st_ino) == (open.st_dev, open.st_ino),
        _ => false,
    }
}

/// Refuses early what the commit would refuse late.
fn check_target(
    directory: &OwnedFd,
    name: &OsStr,
    path: &Path,
    overwrite: bool,
) -> Result<(), OutputError> {
    match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(OutputError::Create {
            path: path.to_owned(),
            source: errno.into(),
        }),
        // A symbolic link is replaced, as rename(2) does, never followed.
        Ok(stat)
            if !matches!(
                FileType::from_raw_mode(stat.st_mode),
                FileType::RegularFile | FileType::Symlink
            ) =>
        {
            Err(OutputError::NotRegular {
                path: path.to_owned(),
            })
        }
        Ok(_) if !overwrite => Err(OutputError::Exists {
            path: path.to_owned(),
        }),
        Ok(_) => Ok(()),
    }
}

/// A file without a name, or else with a temporary one.
fn unfinished_file(
    directory: &OwnedFd,
    directory_path: &Path,
    name: &OsStr,
) -> Result<(File, Option<OsString>), OutputError> {
    let mode = Mode::from_raw_mode(0o666);
    let unnamed = rustix::fs::openat(
        directory,
        ".",
        OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC,
        mode,
    );
    if let Ok(file) = unnamed {
        return Ok((File::from(file), None));
    }
    // Whatever the reason was (the file system cannot, the kernel cannot, or nobody can write here), this open has the answer.
    let failed = |errno: Errno| OutputError::Create {
        path: directory_path.to_owned(),
        source: errno.into(),
    };
    remove_leftovers(directory_path);
    loop {
        let temporary = temporary::name(name);
        match rustix::fs::openat(
            directory,
            &temporary,
            OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW,
            mode,
        ) {
            Ok(file) => {
                return Ok((File::from(file), Some(temporary)));
            }
            // Left by a dead process with our id; the next number is free soon.
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(failed(errno)),
        }
    }
}

/// Gives a file without a name a temporary one.
fn link_temporary(file: &File, directory: &OwnedFd, name: &OsStr) -> Result<OsString, Errno> {
    loop {
        let temporary = temporary::name(name);
        match link_descriptor(file, directory, &temporary) {
            Ok(()) => return Ok(temporary),
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// linkat(2) of an open file: through /proc, which needs no privilege, else directly, which needs Linux 6.10 or CAP_DAC_READ_SEARCH.
fn link_descriptor(file: &File, directory: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
    let through_proc = format!("/proc/self/fd/{}", file.as_raw_fd());
    match rustix::fs::linkat(
        CWD,
        through_proc.as_str(),
        directory,
        name,
        AtFlags::SYMLINK_FOLLOW,
    ) {
        Err(Errno::NOENT) => rustix::fs::linkat(file, "", directory, name, AtFlags::EMPTY_PATH),
        answer => answer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// An output as on a file system without `O_TMPFILE`.
    fn create_named(path: &Path, overwrite: bool) -> Output {
        let mut output = Output::create(path, overwrite).unwrap();
        let temporary = link_temporary(&output.file, &output.directory, &output.name).unwrap();
        output.temporary = Some(temporary);
        output
    }

    type Create = fn(&Path, bool) -> Output;

    fn kinds() -> [Create; 2] {
        [
            |path, overwrite| Output::create(path, overwrite).unwrap(),
            create_named,
        ]
    }

    #[test]
    fn committed_content_is_at_the_path_alone() {
        for (number, create) in kinds().into_iter().enumerate() {
            for overwrite in [false, true] {
                let directory = tempfile::tempdir().unwrap();
                let path = directory.path().join("image.sqsh");
                let output = create(&path, overwrite);
                output.file().write_all(b"content").unwrap();
                assert!(!path.exists());
                output.commit().unwrap();
                assert_eq!(
                    std::fs::read(&path).unwrap(),
                    b"content",
                    "{number} {overwrite}"
                );
                assert_eq!(names(directory.path()), ["image.sqsh"]);
            }
        }
    }

    #[test]
    fn dropping_leaves_nothing() {
        for create in kinds() {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("image.sqsh");
            let output = create(&path, false);
            output.file().write_all(b"content").unwrap();
            drop(output);
            assert!(names(directory.path()).is_empty());
        }
    }

    #[test]
    fn existing_file_is_refused_at_once_and_at_commit() {
        for create in kinds() {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("image.sqsh");
            let output = create(&path, false);
            std::fs::write(&path, b"other").unwrap();
            assert!(matches!(
                Output::create(&path, false),
                Err(OutputError::Exists { .. })
            ));
            assert!(matches!(output.commit(), Err(OutputError::Exists { .. })));
            assert_eq!(std::fs::read(&path).unwrap(), b"other");
            assert_eq!(names(directory.path()), ["image.sqsh"]);
        }
    }

    #[test]
    fn overwriting_replaces_files_and_links_but_nothing_else() {
        for create in kinds() {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("image.sqsh");
            let target = directory.path().join("target");
            std::fs::write(&target, b"target").unwrap();
            std::os::unix::fs::symlink(&target, &path).unwrap();
            let output = create(&path, true);
            output.file().write_all(b"new").unwrap();
            output.commit().unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), b"new");
            assert_eq!(std::fs::read(&target).unwrap(), b"target");
            assert!(path.symlink_metadata().unwrap().is_file());
        }
        let directory = tempfile::tempdir().unwrap();
        assert!(matches!(
            Output::create(&directory.path().join("."), true),
            Err(OutputError::NotRegular { .. } | OutputError::NoName { .. })
        ));
        assert!(matches!(
            Output::create(Path::new("/dev/null"), true),
            Err(OutputError::NotRegular { .. })
        ));
    }

    #[test]
    fn missing_directory_is_named() {
        let error = Output::create(Path::new("/nonexistent/x.sqsh"), false).unwrap_err();
        assert_eq!(error.to_string(), "cannot open directory `/nonexistent`");
    }
}
