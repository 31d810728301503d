//! Files that appear whole or not at all.
//!
//! An import that fails, is interrupted or is killed must leave neither a partial image nor a temporary file. So a file is first made without
//! a name (`O_TMPFILE`, open(2)): until [`Output::commit`] gives it one with linkat(2), the kernel itself throws it away with its last
//! descriptor, even on `kill -9` and power loss. linkat(2) never replaces a file; where replacing is wanted, the file gets a temporary name
//! first and rename(2) puts it in place, so that the window in which a kill leaves something is two system calls long.
//!
//! File systems without `O_TMPFILE` (NFS, some FUSE file systems, Lustre before 2.11) get the temporary name from the start:
//! `.NAME.part-HOST-PID-N`. The name says who writes it, and the writer holds an flock(2) on it, so that [`remove_leftovers`] can clean up
//! after the dead without touching the living: it removes only files of this host whose process is gone and whose lock is free.
//!
//! Durability: [`Output::commit`] syncs the file before it gets its name and the directory after, so a name that is there after a power
//! loss has its content. [`Output::commit_unsynced`] leaves that to the kernel, for content that is verified whenever it is used.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{AtFlags, CWD, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

/// Longest file name that Linux file systems take, in bytes.
const NAME_MAX: usize = 255;

/// What stands between the name of the finished file and the name of its writer.
const PART: &[u8] = b".part-";

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
    pub fn commit(mut self) -> Result<File, OutputError> {
        self.file.sync_all().map_err(|source| OutputError::Sync {
            path: self.path.clone(),
            source,
        })?;
        self.place()?;
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
            rustix::fs::renameat(&self.directory, temporary, &self.directory, &self.name)
                .map_err(|errno| self.place_error(errno))?;
            self.temporary = None;
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
            Err(errno) => Err(self.place_error(errno)),
        }
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
        Ok(_) if !overwrite => Err(OutputError::Exists {
            path: path.to_owned(),
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
        let temporary = temporary_name(name);
        match rustix::fs::openat(
            directory,
            &temporary,
            OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW,
            mode,
        ) {
            Ok(file) => {
                // Where locks are not supported, the process id alone protects the file from `remove_leftovers`.
                let _ = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
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
        let temporary = temporary_name(name);
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

fn host_name() -> Vec<u8> {
    rustix::system::uname()
        .nodename()
        .to_bytes()
        .iter()
        .map(|byte| {
            if *byte == b'/' || *byte == b'-' {
                b'_'
            } else {
                *byte
            }
        })
        .take(64)
        .collect()
}

/// `.NAME.part-HOST-PID-N`, with NAME cut where the whole would be too long for a file name.
fn temporary_name(name: &OsStr) -> OsString {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let mut writer = PART.to_vec();
    writer.extend(host_name());
    writer.extend(
        format!(
            "-{}-{}",
            std::process::id(),
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

/// The process id in a temporary name of this host; None for any other name.
fn writer_of(name: &[u8]) -> Option<i32> {
    if name.first() != Some(&b'.') {
        return None;
    }
    let start = name
        .windows(PART.len())
        .rposition(|window| window == PART)?
        + PART.len();
    let mut fields = name[start..].split(|byte| *byte == b'-');
    let (host, pid, number) = (fields.next()?, fields.next()?, fields.next()?);
    let digits = |field: &[u8]| {
        std::str::from_utf8(field)
            .ok()
            .and_then(|text| text.parse::<i32>().ok())
    };
    if fields.next().is_some() || host != host_name() || digits(number).is_none() {
        return None;
    }
    digits(pid).filter(|pid| *pid > 0)
}

/// Removes unfinished files that dead processes of this host left in a directory; returns how many.
///
/// Only needed on file systems without `O_TMPFILE`, where [`Output::create`] does it by itself. Never an error: what cannot be listed or removed is left for the next time.
pub fn remove_leftovers(directory: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(directory) else {
        return 0;
    };
    let mut removed = 0;
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(pid) = writer_of(name.as_bytes()).and_then(rustix::process::Pid::from_raw) else {
            continue;
        };
        if rustix::process::test_kill_process(pid) != Err(Errno::SRCH) {
            continue;
        }
        // The process may live in another PID namespace of this host: then its lock tells.
        let Ok(file) = rustix::fs::openat(
            CWD,
            entry.path(),
            OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        ) else {
            continue;
        };
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)
            == Err(Errno::WOULDBLOCK)
        {
            continue;
        }
        if std::fs::remove_file(entry.path()).is_ok() {
            removed += 1;
        }
    }
    removed
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

    #[test]
    fn only_leftovers_of_the_dead_are_removed() {
        let directory = tempfile::tempdir().unwrap();
        // A process that has ended, whose id is therefore free until it wraps around.
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let dead = child.id();
        child.wait().unwrap();
        let host = String::from_utf8(host_name()).unwrap();
        let leftover = format!(".a.part-{host}-{dead}-0");
        let foreign = format!(".a.part-other{host}-{dead}-0");
        let locked = format!(".b.part-{host}-{dead}-1");
        let plain = format!("a.part-{host}-{dead}-0");
        for name in [&leftover, &foreign, &locked, &plain] {
            std::fs::write(directory.path().join(name), b"").unwrap();
        }
        let holder = File::open(directory.path().join(&locked)).unwrap();
        rustix::fs::flock(&holder, FlockOperation::LockExclusive).unwrap();
        let alive = create_named(&directory.path().join("c"), false);
        assert_eq!(remove_leftovers(directory.path()), 1);
        let left = names(directory.path());
        assert!(!left.contains(&leftover));
        for name in [&foreign, &locked, &plain] {
            assert!(left.contains(name), "{name}");
        }
        assert_eq!(left.len(), 4);
        drop(alive);
    }

    #[test]
    fn temporary_names_of_long_names_fit() {
        let long = "x".repeat(NAME_MAX);
        let temporary = temporary_name(OsStr::new(&long));
        assert!(temporary.len() <= NAME_MAX);
        assert_eq!(
            writer_of(temporary.as_bytes()),
            i32::try_from(std::process::id()).ok()
        );
    }
}
