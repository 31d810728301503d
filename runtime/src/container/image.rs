//! The lower layer: an image served by our own FUSE server, or a tree.
//!
//! What is chosen when nothing is asked for (`CISTA_MOUNT=auto`): the server; where there is no `/dev/fuse` or no overlayfs, the image is
//! unpacked into the cache, once, and the tree used from then on.

use std::cell::Cell;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

use cista_images::cancel::Cancel;
use cista_images::squashfs::reader::{ReadError, Reader};
use cista_images::unpack::{self, UnpackError};

use super::mounts::{self, MountError};
use super::named::Content;
use super::start::{Root, StartError, tree_mount};
use super::{running, temporary};
use crate::config::{Config, MountMethod};
use crate::{fuse, sys};

/// Why an image cannot be the lower layer.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The file cannot be opened.
    #[error("cannot open `{path}`")]
    Open {
        /// The image.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The file is not a usable image.
    #[error("`{path}` is not a usable image")]
    Image {
        /// The image.
        path: PathBuf,
        /// What is wrong with it.
        source: ReadError,
    },
    /// There is no FUSE here.
    #[error("cannot open `/dev/fuse`")]
    Device(#[source] io::Error),
    /// The server could not be started.
    #[error("cannot start the server of the image")]
    Server(#[source] io::Error),
    /// The image could not be unpacked.
    #[error("cannot unpack `{path}`")]
    Unpack {
        /// The image.
        path: PathBuf,
        /// Why.
        source: UnpackError,
    },
    /// The directory of unpacked images cannot be used.
    #[error("cannot use `{path}` of the cache")]
    Cache {
        /// The path.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

/// What a container's lower layer is made from, opened with the rights of the user.
pub(super) enum Source {
    Image(Box<OpenImage>),
    Tree(PathBuf),
}

/// An image file that was opened.
pub(super) struct OpenImage {
    path: PathBuf,
    metadata: fs::Metadata,
    /// The descriptor that the reader owns.
    fd: RawFd,
    reader: Reader,
}

impl Source {
    /// Opens what a specification names.
    pub(super) fn open(root: &Root) -> Result<Self, ImageError> {
        let path = match root {
            Root::Image(path) => path,
            Root::Container(container) => match &container.content {
                Content::Image(path) => path,
                Content::Tree(path) => return Ok(Self::Tree(path.clone())),
            },
        };
        Ok(Self::Image(Box::new(OpenImage::open(path)?)))
    }
}

impl OpenImage {
    fn open(path: &Path) -> Result<Self, ImageError> {
        let opened = |source| ImageError::Open {
            path: path.to_owned(),
            source,
        };
        let file = fs::File::open(path).map_err(opened)?;
        let metadata = file.metadata().map_err(opened)?;
        let fd = file.as_raw_fd();
        let reader = Reader::open(file, 0).map_err(|source| ImageError::Image {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            path: path.to_owned(),
            metadata,
            fd,
            reader,
        })
    }
}

/// The lower layer, as far as it can be without a mount namespace.
pub(super) enum Lower {
    /// A server waits to be given its file system.
    Served(Served),
    /// A tree of the host.
    Tree(PathBuf),
}

/// A server that was started.
pub(super) struct Served {
    path: PathBuf,
    /// `/dev/fuse`, until it is mounted.
    device: Cell<Option<OwnedFd>>,
    /// A byte written here tells the server that it is mounted; an end of file that it never will be.
    mounted: Cell<Option<OwnedFd>>,
    ids: (u32, u32),
}

/// Starts the server of an image, or finds the tree to use instead.
///
/// `ids` own the files of an image. The server keeps `lock` open.
pub(super) fn prepare(
    source: Source,
    config: &Config,
    ids: (u32, u32),
    lock: Option<fs::File>,
    tell: &dyn Fn(&str),
    warn: &dyn Fn(&str),
) -> Result<Lower, StartError> {
    let image = match source {
        Source::Tree(path) => return Ok(Lower::Tree(path)),
        Source::Image(image) => image,
    };
    if config.mount == MountMethod::Unpack {
        tell("using an unpacked copy of the image, as `CISTA_MOUNT` asks for");
        return Ok(Lower::Tree(unpack_to_cache(&image, config, tell)?));
    }
    let device = match open_device() {
        Ok(device) => device,
        Err(error) if config.mount == MountMethod::Fuse => {
            return Err(ImageError::Device(error).into());
        }
        Err(error) => {
            let note = |text: &str| {
                warn(&format!(
                    "{text}, since /dev/fuse cannot be opened ({error})"
                ));
            };
            return Ok(Lower::Tree(unpack_to_cache(&image, config, &note)?));
        }
    };
    let served = serve(*image, device, ids, lock, config).map_err(ImageError::Server)?;
    Ok(Lower::Served(served))
}

fn open_device() -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    Ok(rustix::fs::open("/dev/fuse", flags, Mode::empty())?)
}

fn serve(
    image: OpenImage,
    device: OwnedFd,
    ids: (u32, u32),
    lock: Option<fs::File>,
    config: &Config,
) -> io::Result<Served> {
    let (go, mounted) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let server_device = device.try_clone()?;
    let options = fuse::Options {
        uid: ids.0,
        gid: ids.1,
        cache_bytes: config.image_cache,
        threads: config.max_processors,
    };
    let OpenImage {
        path, fd, reader, ..
    } = image;
    let mut keep = vec![fd, server_device.as_raw_fd(), go.as_raw_fd()];
    keep.extend(lock.as_ref().map(std::os::fd::AsRawFd::as_raw_fd));
    sys::process::spawn_detached(c"cista-image", &keep, move || {
        let _held_until_the_end = lock;
        let mut byte = [0];
        if matches!(rustix::io::read(&go, &mut byte), Ok(1)) {
            drop(go);
            // Nobody is there to be told: the container sees its mount fail.
            let _ = fuse::serve(server_device, reader, &options);
        }
    })?;
    Ok(Served {
        path,
        device: Cell::new(Some(device)),
        mounted: Cell::new(Some(mounted)),
        ids,
    })
}

impl Lower {
    /// Mounts the lower layer, detached.
    pub(super) fn mount(&self, tell: &dyn Fn(&str)) -> Result<OwnedFd, MountError> {
        match self {
            Self::Tree(path) => tree_mount(path),
            Self::Served(served) => {
                tell("mounting the image through FUSE");
                served.mount()
            }
        }
    }

    /// An unpacked tree of the same content, detached, after mounting failed with `error`.
    pub(super) fn unpacked(
        &self,
        config: &Config,
        error: StartError,
        tell: &dyn Fn(&str),
        warn: &dyn Fn(&str),
    ) -> Result<OwnedFd, StartError> {
        let path = match self {
            Self::Tree(path) => path.clone(),
            Self::Served(_) if config.mount == MountMethod::Fuse => return Err(error),
            Self::Served(served) => {
                let image = OpenImage::open(&served.path)?;
                let note = |text: &str| warn(&format!("{text}, since mounting it failed: {error}"));
                unpack_to_cache(&image, config, &note)?
            }
        };
        tell("using the tree itself as the root, without an overlay");
        Ok(tree_mount(&path)?)
    }
}

impl Served {
    /// Mounts what the server serves; see [`fuse::serve`] for the options.
    fn mount(&self) -> Result<OwnedFd, MountError> {
        // Closed at the end: once mounted, only the server may hold the device, so that its death is noticed.
        let device = self.device.take();
        let number = device.as_ref().map_or(-1, std::os::fd::AsRawFd::as_raw_fd);
        let (fd, uid, gid) = (
            number.to_string(),
            self.ids.0.to_string(),
            self.ids.1.to_string(),
        );
        let options = [
            ("source", Some("cista")),
            ("fd", Some(&*fd)),
            ("rootmode", Some("40000")),
            ("user_id", Some(&*uid)),
            ("group_id", Some(&*gid)),
            ("allow_other", None),
            ("default_permissions", None),
            ("ro", None),
        ]
        .map(|(name, value)| (OsStr::new(name), value.map(OsStr::new)));
        let mount = mounts::filesystem(
            "fuse",
            options,
            MountAttrFlags::MOUNT_ATTR_RDONLY
                | MountAttrFlags::MOUNT_ATTR_NOSUID
                | MountAttrFlags::MOUNT_ATTR_NODEV,
        )?;
        if let Some(mounted) = self.mounted.take() {
            // A server that is gone already is noticed at the first access.
            let _ = rustix::io::write(&mounted, b"+");
        }
        Ok(mount)
    }
}

/// The tree of an image in the cache, unpacked when it is not there.
fn unpack_to_cache(
    image: &OpenImage,
    config: &Config,
    note: &dyn Fn(&str),
) -> Result<PathBuf, ImageError> {
    let trees = config.cache_path.join("trees");
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| ImageError::Cache { path, source }
    };
    let OpenImage {
        path,
        metadata,
        reader,
        ..
    } = image;
    // An image file that is replaced or changed is another image.
    let key = format!(
        "{:x}-{:x}-{:x}-{:x}.{:09}",
        metadata.dev(),
        metadata.ino(),
        metadata.size(),
        metadata.mtime(),
        metadata.mtime_nsec()
    );
    let tree = trees.join(&key);
    if tree.exists() {
        return Ok(tree);
    }
    note(&format!("unpacking `{}` into the cache", path.display()));
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&trees)
        .map_err(failed(&trees))?;
    temporary::remove_leftovers(&trees);
    let building = temporary::path(&trees, OsStr::new(&key));
    let unpacked = unpack::unpack(reader, &building, config.max_processors, &Cancel::new())
        .map_err(|source| ImageError::Unpack {
            path: path.clone(),
            source,
        })
        .and_then(|_| {
            match rustix::fs::renameat_with(CWD, &building, CWD, &tree, RenameFlags::NOREPLACE) {
                Ok(()) => Ok(()),
                // Somebody else unpacked the same image meanwhile: theirs is as good.
                Err(Errno::EXIST | Errno::NOTEMPTY) => {
                    let _ = unpack::remove_tree(&building);
                    Ok(())
                }
                Err(Errno::INVAL) => fs::rename(&building, &tree).map_err(failed(&tree)),
                Err(error) => Err(failed(&tree)(error.into())),
            }
        });
    if unpacked.is_err() {
        let _ = unpack::remove_tree(&building);
    }
    unpacked.map(|()| tree)
}

/// Makes sure that nobody else writes to a named container whose lock is held by no server.
pub(super) fn check_unserved(lower: &Lower, root: &Root) -> Result<(), StartError> {
    if let (Lower::Tree(_), Root::Container(container)) = (lower, root)
        && matches!(container.content, Content::Image(_))
        && running::is_written_to(root)
    {
        return Err(super::named::ContainerError::Busy {
            name: container.name.to_string_lossy().into_owned(),
        }
        .into());
    }
    Ok(())
}
