//! What only root can do for the container of an ordinary user, done by a process of the plugin that waits for it.
//!
//! A user alone can map one group into a user namespace. Root can map all that the user is in, so that `id` shows them and files of theirs look as they
//! are. The plugin's helper takes nothing from us but the process that is meant (by its directory in `/proc`) and whether the user is root there; the groups it has
//! from Slurm.
//!
//! And it has the kernel mount an image, where the site wants that, and trusts the file.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use super::channel;

/// Asks to map the user's groups, the own one to itself.
const MAP: u8 = b'u';
/// Asks to map the user's groups, the own one to that of root.
const MAP_ROOT: u8 = b'r';

/// Asks for a mount of an image.
const MOUNT: u8 = b'k';

/// Longest explanation that is read, in bytes.
const MAX_NOTE: u64 = 4096;

/// How the site wants images to be mounted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ImageMount {
    /// As without a helper.
    #[default]
    Fuse,
    /// By the kernel, or not at all.
    Kernel,
    /// By the kernel where it can be.
    Auto,
}

/// The plugin's helper.
#[derive(Clone, Debug)]
pub struct Helper {
    socket: Arc<OwnedFd>,
    image_mount: ImageMount,
}

impl Helper {
    /// The helper behind a socket.
    #[must_use]
    pub fn new(socket: OwnedFd, image_mount: ImageMount) -> Self {
        Self {
            socket: Arc::new(socket),
            image_mount,
        }
    }

    /// How the site wants images to be mounted.
    #[must_use]
    pub fn image_mount(&self) -> ImageMount {
        self.image_mount
    }

    /// Has the kernel mount an image, which this process has opened. The mount is detached and read-only, its files belong to the user.
    ///
    /// # Errors
    ///
    /// Why it is not mounted, in the words of the helper.
    pub fn mount(&self, image: impl AsFd) -> io::Result<OwnedFd> {
        channel::send(&self.socket, MOUNT, &[image.as_fd()])?;
        let (answer, files) = channel::receive(&self.socket).ok_or(io::ErrorKind::BrokenPipe)?;
        match (answer, files.into_iter().next()) {
            (channel::YES, Some(mount)) => Ok(mount),
            (_, Some(note)) => {
                let mut text = Vec::new();
                File::from(note).take(MAX_NOTE).read_to_end(&mut text)?;
                Err(io::Error::other(
                    String::from_utf8_lossy(&text).into_owned(),
                ))
            }
            (_, None) => Err(io::Error::other("the plugin does not say why")),
        }
    }

    /// Has the groups mapped in the user namespace of this process, which has just made it. False where that was not done: then nothing is mapped.
    #[must_use]
    pub fn map_groups(&self, root_inside: bool) -> bool {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Ok(own) = rustix::fs::open("/proc/self", flags, Mode::empty()) else {
            return false;
        };
        let letter = if root_inside { MAP_ROOT } else { MAP };
        channel::send(&self.socket, letter, &[own.as_fd()]).is_ok()
            && channel::receive(&self.socket).is_some_and(|(answer, _)| answer == channel::YES)
    }
}
