//! The lower layer: an image served by our own FUSE server, or a tree.
//!
//! What is chosen when nothing is asked for (`CISTA_MOUNT=auto`): the server; where there is no `/dev/fuse` or no overlayfs, the image is
//! unpacked into the cache, once, and the tree used from then on. In a step of Slurm whose site wants it, the kernel mounts the image, which only root can
//! have it do.

use std::cell::Cell;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;
use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_getcpu, sched_setaffinity};

use cista_images::cancel::Cancel;
use cista_images::squashfs::reader::{ReadError, Reader};
use cista_images::unpack::{self, UnpackError};

use super::mounts::{self, MountError};
use super::named::{ContainerError, Content, UPPER};
use super::start::{Root, StartError, tree_mount};
use super::unmounted::Unmounted;
use super::{handover, loading, running, temporary};
use crate::config::{Config, MountMethod};
use crate::slurm::helper::{Helper, ImageMount};
use crate::sys::process::Helper as HelperProcess;
use crate::{bundle, fuse, sys};

/// How long the server gives a start the files that it will read unasked, after it has decoded them.
const PATIENCE: Duration = Duration::from_millis(5);

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
    /// The site wants the kernel to mount images, and it does not mount this one.
    #[error("the kernel cannot mount `{path}`, as this site wants it to")]
    Kernel {
        /// The image.
        path: PathBuf,
        /// Why not.
        source: io::Error,
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
    /// Whether the file is a program with the image behind it.
    is_bundle: bool,
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

    /// The image with the changes of its container, to be read before it is mounted; None for a tree.
    pub(super) fn unmounted(&self, root: &Root) -> Result<Option<Unmounted<'_>>, ImageError> {
        let Self::Image(image) = self else {
            return Ok(None);
        };
        match root {
            Root::Image(_) => Ok(Some(Unmounted::image(&image.reader))),
            Root::Container(container) => {
                let upper = container.directory.join(UPPER);
                Unmounted::below(&image.reader, &upper)
                    .map(Some)
                    .map_err(|source| ImageError::Open {
                        path: upper,
                        source,
                    })
            }
        }
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
        let mut fd = file.as_raw_fd();
        let mut is_bundle = false;
        let reader = match Reader::open(file, 0) {
            // A bundle has its image behind a program.
            Err(ReadError::NotSquashfs) => {
                let file = fs::File::open(path).map_err(opened)?;
                fd = file.as_raw_fd();
                is_bundle = true;
                match bundle::find(&file) {
                    Ok(Some(layout)) => Reader::open(file, layout.offset),
                    _ => Err(ReadError::NotSquashfs),
                }
            }
            result => result,
        }
        .map_err(|source| ImageError::Image {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            path: path.to_owned(),
            metadata,
            fd,
            is_bundle,
            reader,
        })
    }

    /// Has the kernel mount the image.
    fn mount_by(&self, helper: &Helper) -> io::Result<OwnedFd> {
        if self.is_bundle {
            return Err(io::Error::other("it is behind a program"));
        }
        let owners = self.reader.superblock().id_count.get();
        if owners != 1 || !self.reader.id(0).is_ok_and(|owner| owner == 0) {
            // All are mapped to the user, as the server does it, and only one can be.
            return Err(io::Error::other("its files do not all belong to root"));
        }
        let file = fs::File::open(&self.path)?;
        let metadata = file.metadata()?;
        if (metadata.dev(), metadata.ino()) != (self.metadata.dev(), self.metadata.ino()) {
            return Err(io::Error::other("another file has taken its place"));
        }
        helper.mount(&file)
    }
}

/// The lower layer, before there are namespaces.
pub(super) enum Lower {
    /// A server that waits for its device.
    Served(Server),
    /// A mount that the kernel has made of an image, and the image.
    Mounted(OwnedFd, PathBuf),
    /// An image that is to be unpacked.
    Unpacked(Box<OpenImage>),
    /// A tree of the host.
    Tree(PathBuf),
}

/// A server of an image, in a process outside the namespaces: there it is out of the reach of the container, and keeps none of its mounts alive.
pub(super) struct Server {
    path: PathBuf,
    /// Where it receives its device.
    socket: OwnedFd,
    /// The process that starts it, until it was waited for.
    starting: Cell<Option<HelperProcess>>,
    /// Owners of the files.
    ids: (u32, u32),
}

/// A lower layer that is mounted, detached.
pub(super) struct LowerMount {
    pub(super) mount: OwnedFd,
    /// Whether a server holds the lock of the container.
    pub(super) is_served: bool,
    /// How it is mounted: `fuse`, `kernel`, or `tree`.
    pub(super) method: &'static str,
}

/// Starts the server of an image, where there is to be one. It keeps `lock` open. `ids` own the files of an image. `program` is what
/// will be executed, where that is known. `helper` can have the kernel mount the image instead; `tell` gets why it does not.
pub(super) fn prepare(
    source: Source,
    config: &Config,
    ids: (u32, u32),
    lock: Option<fs::File>,
    program: Option<PathBuf>,
    helper: Option<&Helper>,
    tell: &dyn Fn(&str),
) -> Result<Lower, ImageError> {
    let helper = helper.filter(|helper| helper.image_mount() != ImageMount::Fuse);
    if let (Source::Image(image), MountMethod::Auto, Some(helper)) = (&source, config.mount, helper)
    {
        let mounted = match lock {
            None => image.mount_by(helper),
            // Only a server lasts as long as the container does.
            Some(_) => Err(io::Error::other("a server is to hold the container's lock")),
        };
        match mounted {
            Ok(mount) => return Ok(Lower::Mounted(mount, image.path.clone())),
            Err(source) if helper.image_mount() == ImageMount::Kernel => {
                let path = image.path.clone();
                return Err(ImageError::Kernel { path, source });
            }
            Err(why) => tell(&format!("the kernel does not mount the image: {why}")),
        }
    }
    match source {
        Source::Tree(path) => Ok(Lower::Tree(path)),
        Source::Image(image) if config.mount == MountMethod::Unpack => Ok(Lower::Unpacked(image)),
        Source::Image(image) => serve(*image, config, ids, lock, program)
            .map(Lower::Served)
            .map_err(ImageError::Server),
    }
}

fn serve(
    image: OpenImage,
    config: &Config,
    ids: (u32, u32),
    lock: Option<fs::File>,
    program: Option<PathBuf>,
) -> io::Result<Server> {
    let (socket, theirs) = handover::pair()?;
    let OpenImage {
        path, fd, reader, ..
    } = image;
    let mut keep = vec![fd, theirs.as_raw_fd()];
    keep.extend(lock.as_ref().map(std::os::fd::AsRawFd::as_raw_fd));
    // Only the server gives its memory back piece by piece. Here it goes at once with the next execve, which also closes the file.
    let reader = ManuallyDrop::new(reader);
    let starter_processor = sched_getcpu();
    let processors = sched_getaffinity(None).ok();
    let starting = sys::process::spawn_detached(c"cista-image", &keep, move || {
        let _held_until_the_end = lock;
        if let Some(processors) = &processors {
            let _ = sched_setaffinity(None, processors);
        }
        let options = fuse::Options {
            uid: ids.0,
            gid: ids.1,
            cache_bytes: config.image_cache,
            threads: config.processors(),
            unmounted: sys::process::end_elsewhere,
        };
        let foresight = program.map(|program| fuse::Foresight {
            files: Box::new(move |reader| loading::files(reader, &program)),
            reader_processor: starter_processor,
            patience: PATIENCE,
        });
        // Nobody is there to be told: the container sees its mount fail.
        let _ = fuse::serve(
            move || handover::receive(&theirs),
            ManuallyDrop::into_inner(reader),
            &options,
            foresight,
        );
    })?;
    if let Some(mut others) = processors
        && starter_processor < CpuSet::MAX_CPU
    {
        // The scheduler likes to put a child behind its parent, where it would wait until we wait for it. It takes the limit back itself.
        others.unset(starter_processor);
        if let Some(child) = i32::try_from(starting.pid()).ok().and_then(Pid::from_raw) {
            // Fails where there is no other processor.
            let _ = sched_setaffinity(Some(child), &others);
        }
    }
    Ok(Server {
        path,
        socket,
        starting: Cell::new(Some(starting)),
        ids,
    })
}

impl Lower {
    /// Mounts the lower layer.
    pub(super) fn mount(
        &self,
        config: &Config,
        tell: &dyn Fn(&str),
        warn: &dyn Fn(&str),
    ) -> Result<LowerMount, StartError> {
        let path = match self {
            Self::Tree(path) => path.clone(),
            Self::Mounted(mount, path) => {
                let mount = mount.try_clone().map_err(|source| MountError::Source {
                    path: path.clone(),
                    source,
                })?;
                tell("the kernel has mounted the image");
                return Ok(LowerMount {
                    mount,
                    is_served: false,
                    method: "kernel",
                });
            }
            Self::Unpacked(image) => {
                tell("using an unpacked copy of the image, as `CISTA_MOUNT` asks for");
                unpack_to_cache(image, config, tell)?
            }
            Self::Served(server) => match open_device() {
                Ok(device) => {
                    tell("mounting the image through FUSE");
                    return Ok(LowerMount {
                        mount: server.mount(device)?,
                        is_served: true,
                        method: "fuse",
                    });
                }
                Err(error) if config.mount == MountMethod::Fuse => {
                    return Err(ImageError::Device(error).into());
                }
                Err(error) => {
                    let note = |text: &str| {
                        warn(&format!(
                            "{text}, since /dev/fuse cannot be opened ({error})"
                        ));
                    };
                    unpack_to_cache(&OpenImage::open(&server.path)?, config, &note)?
                }
            },
        };
        Ok(LowerMount {
            mount: tree_mount(&path)?,
            is_served: false,
            method: "tree",
        })
    }

    /// An unpacked tree of the same content, after making a root file system of it failed with `error`.
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
            Self::Unpacked(image) => unpack_to_cache(image, config, tell)?,
            Self::Served(Server { path, .. }) | Self::Mounted(_, path) => {
                let image = OpenImage::open(path)?;
                let note = |text: &str| warn(&format!("{text}, since mounting it failed: {error}"));
                unpack_to_cache(&image, config, &note)?
            }
        };
        tell("using the tree itself as the root, without an overlay");
        Ok(tree_mount(&path)?)
    }

    /// Waits for the process that starts the server, so that no child is left. Its work is done long since.
    pub(super) fn reap(&self) -> Result<(), ImageError> {
        match self {
            Self::Served(server) => server
                .starting
                .take()
                .map_or(Ok(()), HelperProcess::wait_for_start)
                .map_err(ImageError::Server),
            Self::Mounted(..) | Self::Unpacked(_) | Self::Tree(_) => Ok(()),
        }
    }
}

fn open_device() -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    Ok(rustix::fs::open("/dev/fuse", flags, Mode::empty())?)
}

impl Server {
    /// Mounts what the server serves (see [`fuse::serve`] for the options) and hands it the device, which only it may hold, so that its death is
    /// noticed.
    fn mount(&self, device: OwnedFd) -> Result<OwnedFd, MountError> {
        let fd = device.as_raw_fd().to_string();
        let (uid, gid) = (self.ids.0.to_string(), self.ids.1.to_string());
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
        // A server that is gone already is noticed at the first access.
        let _ = handover::send(&self.socket, device.as_fd());
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
    let unpacked = unpack::unpack(reader, &building, config.max_processors(), &Cancel::new())
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

/// Makes sure that nobody else writes to a named container whose lock no server holds.
pub(super) fn check_unserved(root: &Root) -> Result<(), ContainerError> {
    match root {
        Root::Container(container) if running::is_written_to(root) => Err(ContainerError::Busy {
            name: container.name.to_string_lossy().into_owned(),
        }),
        _ => Ok(()),
    }
}
