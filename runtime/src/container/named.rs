//! Named containers: what `create` makes and `start`, `list`, `remove` and `export` find.
//!
//! A container is a directory `DATA_PATH/NAME`:
//!
//! - `container.json`: its description, see [`Description`]
//! - `image.sqsh`: the image, a reflink, hard link or copy, so that it stays when the original goes
//! - `upper/` and `work/`: what changed since, the upper layer of an overlayfs, empty at first
//! - `rootfs/`: in place of these three with `--unpack`, the whole tree
//!
//! It appears by one rename(2), so it is there whole or not at all. A directory without a description is a root file system
//! that enroot unpacked: it is used as it is.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::{CWD, FlockOperation, RenameFlags, XattrFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use cista_images::cancel::Cancel;
use cista_images::squashfs::reader::{ReadError, Reader};
use cista_images::unpack::{self, RemoveError, UnpackError};

use super::temporary;

/// Names within a container's directory.
const DESCRIPTION: &str = "container.json";
const IMAGE: &str = "image.sqsh";
/// The upper layer.
pub const UPPER: &str = "upper";
/// overlayfs's own directory, on the same file system as the upper layer.
pub const WORK: &str = "work";
const TREE: &str = "rootfs";
const LOCK: &str = "lock";
/// Locks in the run-time directory.
const LOCKS: &str = "locks";

/// How long the server of a container that has just ended may take to end too, on a busy machine.
const SERVER_ENDS: Duration = Duration::from_millis(500);

/// Longest description that is read, in bytes.
const MAX_DESCRIPTION: u64 = 1 << 20;

/// Version of the layout on disk.
const FORMAT: u32 = 1;

/// What stands in `container.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// Version of the layout.
    format: u32,
    /// The image file that the container was made from, for display.
    pub image: PathBuf,
    /// Whether the image was unpacked.
    unpacked: bool,
    /// When the container was made, in seconds since 1970.
    pub created: u64,
}

/// A container on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Its name.
    pub name: OsString,
    /// Its directory.
    pub directory: PathBuf,
    /// What it consists of.
    pub content: Content,
    /// When it was made, in seconds since 1970; 0 for a tree of enroot.
    pub created: u64,
}

/// What a container consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// An image and what changed since, in [`UPPER`] and [`WORK`].
    Image(PathBuf),
    /// A whole tree.
    Tree(PathBuf),
}

/// What is wrong with a named container.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// The name cannot be the name of a directory.
    #[error("`{name}` is not a name for a container: it {problem}")]
    BadName {
        /// The name.
        name: String,
        /// Why not.
        problem: &'static str,
    },
    /// There is no such container.
    #[error("no container is named `{name}`")]
    NotFound {
        /// The name.
        name: String,
    },
    /// There is one already.
    #[error("a container named `{name}` exists already")]
    Exists {
        /// The name.
        name: String,
    },
    /// The description is not understood.
    #[error("`{path}` is malformed")]
    Description {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A newer program made the container.
    #[error("`{path}` has format {found}, this program knows {FORMAT}")]
    Format {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// The file is not a squashfs image.
    #[error("`{path}` is not a usable image")]
    Image {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ReadError,
    },
    /// The image could not be unpacked.
    #[error("cannot unpack `{path}`")]
    Unpack {
        /// The image.
        path: PathBuf,
        /// Why.
        source: UnpackError,
    },
    /// A tree could not be removed.
    #[error("cannot remove container `{name}`")]
    Remove {
        /// The container.
        name: String,
        /// Why.
        source: RemoveError,
    },
    /// Someone runs the container with write access.
    #[error("container `{name}` is running with write access")]
    Busy {
        /// The container.
        name: String,
    },
    /// The operating system refused something.
    #[error("cannot {operation} `{path}`")]
    System {
        /// What was tried.
        operation: &'static str,
        /// On which path.
        path: PathBuf,
        /// Its answer.
        source: io::Error,
    },
}

fn system(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ContainerError {
    let path = path.to_owned();
    move |source| ContainerError::System {
        operation,
        path,
        source,
    }
}

/// Longest name of a container, in bytes: what is made of it has to be the name of a file.
const MAX_NAME: usize = 200;

/// Checks a name.
///
/// # Errors
///
/// [`ContainerError::BadName`].
pub fn check_name(name: &OsStr) -> Result<(), ContainerError> {
    let bytes = name.as_bytes();
    let problem = if bytes.is_empty() {
        "is empty"
    } else if bytes.starts_with(b".") {
        "begins with `.`"
    } else if bytes.contains(&b'/') {
        "holds `/`"
    } else if bytes.len() > MAX_NAME {
        "is longer than 200 bytes"
    } else if bytes.iter().any(u8::is_ascii_control) {
        "holds a control character"
    } else {
        return Ok(());
    };
    Err(ContainerError::BadName {
        name: name.to_string_lossy().into_owned(),
        problem,
    })
}

/// The name that a container gets from its image's file name: without `.sqsh`.
#[must_use]
pub fn default_name(image: &Path) -> OsString {
    let name = image.file_name().unwrap_or_default();
    match name.as_bytes().strip_suffix(b".sqsh") {
        Some(stem) if !stem.is_empty() => OsStr::from_bytes(stem).to_owned(),
        _ => name.to_owned(),
    }
}

impl Container {
    /// Finds a container by name.
    ///
    /// # Errors
    ///
    /// A bad name, no such container, or one that is not understood.
    pub fn open(data_path: &Path, name: &OsStr) -> Result<Self, ContainerError> {
        check_name(name)?;
        let directory = data_path.join(name);
        let path = directory.join(DESCRIPTION);
        let (content, created) = match fs::File::open(&path) {
            Ok(file) => {
                let mut text = Vec::new();
                file.take(MAX_DESCRIPTION)
                    .read_to_end(&mut text)
                    .map_err(system("read", &path))?;
                let description: Description = serde_json::from_slice(&text).map_err(|source| {
                    ContainerError::Description {
                        path: path.clone(),
                        source,
                    }
                })?;
                if description.format != FORMAT {
                    return Err(ContainerError::Format {
                        path,
                        found: description.format,
                    });
                }
                let content = if description.unpacked {
                    Content::Tree(directory.join(TREE))
                } else {
                    Content::Image(directory.join(IMAGE))
                };
                (content, description.created)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound && directory.is_dir() => {
                (Content::Tree(directory.clone()), 0)
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                return Err(ContainerError::NotFound {
                    name: name.to_string_lossy().into_owned(),
                });
            }
            Err(error) => return Err(system("read", &path)(error)),
        };
        Ok(Self {
            name: name.to_owned(),
            directory,
            content,
            created,
        })
    }

    /// Whether someone adapted how the container is run, by its own `/etc/rc` or `/etc/environment`: then the image's record of it holds no longer.
    #[must_use]
    pub fn is_adapted(&self) -> bool {
        let (root, created) = match &self.content {
            Content::Image(_) => (self.directory.join(UPPER), None),
            Content::Tree(path) => (path.clone(), Some(self.created)),
        };
        ["etc/rc", "etc/environment"].iter().any(|name| {
            // In an upper layer, being there is enough; unpacked files have the times of the image.
            fs::symlink_metadata(root.join(name)).is_ok_and(|status| {
                created.is_none_or(|created| {
                    u64::try_from(status.mtime()).is_ok_and(|modified| modified >= created)
                })
            })
        })
    }

    /// Takes the right to write to the upper layer, which overlayfs gives to one mount at a time. It lasts as long as the file is open in some
    /// process.
    ///
    /// Where the container's file system refuses locks, one in the run-time directory does: that keeps this user's processes on this machine out, and overlayfs
    /// has no upper layer on the file systems that several machines share. None where that has no locks either: then nobody can be kept out.
    ///
    /// The server of a container holds it, and ends a moment after the container's last process; a script's next command may come before
    /// that. So it is asked for a little longer ([`SERVER_ENDS`]).
    ///
    /// # Errors
    ///
    /// [`ContainerError::Busy`] where someone still has it.
    pub fn lock_for_writing(
        &self,
        runtime_path: &Path,
    ) -> Result<Option<fs::File>, ContainerError> {
        let path = self.directory.join(LOCK);
        let file = open_lock(&path).map_err(system("open", &path))?;
        if self.lock(&file)? {
            return Ok(Some(file));
        }
        let Ok(file) = self.elsewhere(runtime_path) else {
            return Ok(None);
        };
        Ok(self.lock(&file)?.then_some(file))
    }

    /// The file in the run-time directory that stands for this container's lock.
    fn elsewhere(&self, runtime_path: &Path) -> io::Result<fs::File> {
        let status = fs::metadata(&self.directory)?;
        let directory = runtime_path.join(LOCKS);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)?;
        open_lock(&directory.join(format!("{:x}-{}", status.dev(), status.ino())))
    }

    /// Locks a file; false where it cannot be locked.
    fn lock(&self, file: &fs::File) -> Result<bool, ContainerError> {
        let begin = Instant::now();
        loop {
            match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(true),
                Err(Errno::WOULDBLOCK) if begin.elapsed() < SERVER_ENDS => {
                    std::thread::sleep(SERVER_ENDS / 100);
                }
                Err(Errno::WOULDBLOCK) => {
                    return Err(ContainerError::Busy {
                        name: self.name.to_string_lossy().into_owned(),
                    });
                }
                Err(_) => return Ok(false),
            }
        }
    }

    /// Removes the container from disk.
    ///
    /// It is renamed first, so that a container of that name is never there in part.
    ///
    /// # Errors
    ///
    /// [`ContainerError::Busy`] while someone writes to it; the path that could not be removed.
    pub fn remove(self, runtime_path: &Path) -> Result<(), ContainerError> {
        let lock = match self.content {
            Content::Image(_) => self.lock_for_writing(runtime_path)?,
            Content::Tree(_) => None,
        };
        let grave = temporary::path(
            self.directory.parent().unwrap_or(Path::new(".")),
            &self.name,
        );
        fs::rename(&self.directory, &grave).map_err(system("rename", &self.directory))?;
        // Under this name nobody looks for it. On NFS and FUSE an open file stays in its directory until it is closed.
        drop(lock);
        remove(&grave, &self.name)
    }
}

fn open_lock(path: &Path) -> io::Result<fs::File> {
    fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)
}

/// How a container is made.
#[derive(Debug)]
pub struct Creation<'a> {
    /// Where containers are.
    pub data_path: &'a Path,
    /// The run-time directory, for [`Container::lock_for_writing`].
    pub runtime_path: &'a Path,
    /// Its name.
    pub name: &'a OsStr,
    /// The image file.
    pub image: &'a Path,
    /// Whether an existing container of that name is replaced.
    pub replace: bool,
    /// Whether the image is unpacked.
    pub unpack: bool,
    /// Threads to unpack with.
    pub threads: usize,
    /// Stops it.
    pub cancel: &'a Cancel,
}

/// Checks that a container may be made, as far as that can be known before.
///
/// # Errors
///
/// A bad name; [`ContainerError::Exists`] where one exists that is not to be replaced.
pub fn check_free(data_path: &Path, name: &OsStr, replace: bool) -> Result<(), ContainerError> {
    check_name(name)?;
    if !replace && data_path.join(name).symlink_metadata().is_ok() {
        return Err(ContainerError::Exists {
            name: name.to_string_lossy().into_owned(),
        });
    }
    Ok(())
}

/// Makes a container.
///
/// # Errors
///
/// The step that failed; nothing is left behind then.
pub fn create(creation: &Creation<'_>) -> Result<(), ContainerError> {
    check_free(creation.data_path, creation.name, creation.replace)?;
    let directory = creation.data_path.join(creation.name);
    let image = fs::canonicalize(creation.image).map_err(system("open", creation.image))?;
    let file = fs::File::open(&image).map_err(system("open", &image))?;
    let copy = file.try_clone().map_err(system("open", &image))?;
    let reader = Reader::open(copy, 0).map_err(|source| ContainerError::Image {
        path: image.clone(),
        source,
    })?;

    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(creation.data_path)
        .map_err(system("create", creation.data_path))?;
    temporary::remove_leftovers(creation.data_path);
    let building = temporary::path(creation.data_path, creation.name);
    let built = build(creation, &image, &file, &reader, &building)
        .and_then(|()| place(creation, &building, &directory));
    if built.is_err() {
        // The error that is told is the one that stopped us.
        let _ = unpack::remove_tree(&building);
    }
    built
}

fn build(
    creation: &Creation<'_>,
    image: &Path,
    file: &fs::File,
    reader: &Reader,
    building: &Path,
) -> Result<(), ContainerError> {
    let make = |path: &Path, mode| {
        fs::DirBuilder::new()
            .mode(mode)
            .create(path)
            .map_err(system("create", path))
    };
    make(building, 0o700)?;
    if creation.unpack {
        unpack::unpack(
            reader,
            &building.join(TREE),
            creation.threads,
            creation.cancel,
        )
        .map_err(|source| ContainerError::Unpack {
            path: image.to_owned(),
            source,
        })?;
    } else {
        keep_image(image, file, &building.join(IMAGE))?;
        let upper = building.join(UPPER);
        make(&upper, 0o755)?;
        make(&building.join(WORK), 0o755)?;
        copy_root(reader, &upper).map_err(|source| match source {
            RootError::Read(source) => ContainerError::Image {
                path: image.to_owned(),
                source,
            },
            RootError::Copy(source) => system("make", &upper)(source),
        })?;
    }
    let description = Description {
        format: FORMAT,
        image: image.to_owned(),
        unpacked: creation.unpack,
        created: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs()),
    };
    let path = building.join(DESCRIPTION);
    let text =
        serde_json::to_vec_pretty(&description).map_err(|source| ContainerError::Description {
            path: path.clone(),
            source,
        })?;
    fs::write(&path, text).map_err(system("write", &path))
}

/// Why the root of an upper layer is not as the image's.
enum RootError {
    Read(ReadError),
    Copy(io::Error),
}

/// Gives the root of an upper layer the mode, the time and the attributes of the image's, which it stands for from now on.
fn copy_root(reader: &Reader, upper: &Path) -> Result<(), RootError> {
    let read = || {
        let root = reader.inode(reader.root_ref())?;
        let xattrs = reader.xattrs(&root)?;
        Ok((root, xattrs))
    };
    let (root, xattrs) = read().map_err(RootError::Read)?;
    let copy = || {
        let directory = fs::File::open(upper)?;
        for (name, value) in &xattrs {
            if name.starts_with(b"user.") && !name.starts_with(b"user.overlay.") {
                // A file system without such attributes keeps none of other files either.
                let flags = XattrFlags::empty();
                let _ = rustix::fs::fsetxattr(&directory, &**name, value, flags);
            }
        }
        // The owner must be able to work in it, as in an unpacked tree.
        let mode = u32::from(root.mode & 0o777) | 0o700;
        directory.set_permissions(fs::Permissions::from_mode(mode))?;
        directory.set_modified(UNIX_EPOCH + Duration::from_secs(root.mtime.into()))
    };
    copy().map_err(RootError::Copy)
}

/// Gives the container its name, in place of another where that was asked for.
fn place(creation: &Creation<'_>, building: &Path, directory: &Path) -> Result<(), ContainerError> {
    match rustix::fs::renameat_with(CWD, building, CWD, directory, RenameFlags::NOREPLACE) {
        Ok(()) => return Ok(()),
        // NFS and others do not know the flag: there, the check at the beginning must do.
        Err(Errno::INVAL) if !directory.exists() => {
            return fs::rename(building, directory).map_err(system("rename", building));
        }
        Err(Errno::EXIST) if !creation.replace => {
            return Err(ContainerError::Exists {
                name: creation.name.to_string_lossy().into_owned(),
            });
        }
        Err(Errno::EXIST | Errno::INVAL) => {}
        Err(error) => return Err(system("rename", building)(error.into())),
    }
    let lock = match Container::open(creation.data_path, creation.name) {
        Ok(container) if matches!(container.content, Content::Image(_)) => {
            container.lock_for_writing(creation.runtime_path)?
        }
        _ => None,
    };
    let mut old_name = creation.name.to_owned();
    old_name.push("-old");
    let old = temporary::path(creation.data_path, &old_name);
    fs::rename(directory, &old).map_err(system("rename", directory))?;
    if let Err(error) = fs::rename(building, directory) {
        // Better the old container than none.
        let _ = fs::rename(&old, directory);
        return Err(system("rename", building)(error));
    }
    drop(lock);
    remove(&old, creation.name)
}

/// Makes the image part of the container: quickest way first, and every way survives the removal of the original.
fn keep_image(image: &Path, file: &fs::File, to: &Path) -> Result<(), ContainerError> {
    let mut copy = fs::File::create_new(to).map_err(system("create", to))?;
    // A reflink is a copy that costs nothing, where the file system can (xfs, btrfs).
    if rustix::fs::ioctl_ficlone(&copy, file).is_ok() {
        return Ok(());
    }
    // A hard link costs nothing either; it needs the same file system, and the right to write to the file (`fs.protected_hardlinks`).
    fs::remove_file(to).map_err(system("remove", to))?;
    if fs::hard_link(image, to).is_ok() {
        return Ok(());
    }
    copy = fs::File::create_new(to).map_err(system("create", to))?;
    let mut from = file;
    io::copy(&mut from, &mut copy).map_err(system("write", to))?;
    copy.flush().map_err(system("write", to))
}

/// The containers of a data directory, in the order of their names.
///
/// # Errors
///
/// A directory that cannot be read. One that does not exist holds no container.
pub fn names(data_path: &Path) -> Result<Vec<OsString>, ContainerError> {
    let entries = match fs::read_dir(data_path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(system("read", data_path)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(system("read", data_path))?;
        let name = entry.file_name();
        if check_name(&name).is_ok() && entry.path().is_dir() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn remove(directory: &Path, name: &OsStr) -> Result<(), ContainerError> {
    unpack::remove_tree(directory).map_err(|source| ContainerError::Remove {
        name: name.to_string_lossy().into_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_containers() {
        for name in ["py", "ml+python+3", "pyxis_1.0", "a b"] {
            check_name(OsStr::new(name)).unwrap();
        }
        for name in ["", ".", "..", ".x", "a/b", "/a", "a\nb"] {
            assert!(check_name(OsStr::new(name)).is_err(), "{name:?}");
        }
        for (image, name) in [
            ("/x/py.sqsh", "py"),
            ("py", "py"),
            ("a.b.sqsh", "a.b"),
            (".sqsh", ".sqsh"),
        ] {
            assert_eq!(default_name(Path::new(image)), name);
        }
    }

    #[test]
    fn a_tree_of_enroot_is_a_container() {
        let scratch = tempfile::tempdir().unwrap();
        fs::create_dir_all(scratch.path().join("old/etc")).unwrap();
        fs::write(scratch.path().join("file"), "").unwrap();
        let container = Container::open(scratch.path(), OsStr::new("old")).unwrap();
        assert_eq!(container.content, Content::Tree(scratch.path().join("old")));
        for name in ["none", "file"] {
            assert!(matches!(
                Container::open(scratch.path(), OsStr::new(name)),
                Err(ContainerError::NotFound { .. })
            ));
        }
        assert_eq!(names(scratch.path()).unwrap(), ["old"]);
        container.remove(scratch.path()).unwrap();
        assert!(names(scratch.path()).unwrap().is_empty());
        assert!(names(&scratch.path().join("none")).unwrap().is_empty());
    }

    #[test]
    fn one_writer_at_a_time() {
        let scratch = tempfile::tempdir().unwrap();
        fs::create_dir(scratch.path().join("c")).unwrap();
        let container = Container::open(scratch.path(), OsStr::new("c")).unwrap();
        let lock = container.lock_for_writing(scratch.path()).unwrap();
        assert!(lock.is_some());
        assert!(matches!(
            container.lock_for_writing(scratch.path()),
            Err(ContainerError::Busy { .. })
        ));
        drop(lock);
        assert!(
            container
                .lock_for_writing(scratch.path())
                .unwrap()
                .is_some()
        );
    }
}
