//! What only root can do for the container of an ordinary user, done by a process of the plugin that waits for it.
//!
//! A user alone can map one group into a user namespace. Root can map all that the user is in, so that `id` shows them and files of theirs look as they
//! are. The plugin's helper takes nothing from us but the process that is meant (by its directory in `/proc`) and whether the user is root there; the groups it has
//! from Slurm.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use super::channel;

/// Asks to map the user's groups, the own one to itself.
const MAP: u8 = b'u';
/// Asks to map the user's groups, the own one to that of root.
const MAP_ROOT: u8 = b'r';

/// The plugin's helper.
#[derive(Clone, Debug)]
pub struct Helper(Arc<OwnedFd>);

impl Helper {
    /// The helper behind a socket.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Self(Arc::new(socket))
    }

    /// Has the groups mapped in the user namespace of this process, which has just made it. False where that was not done: then nothing is mapped.
    #[must_use]
    pub fn map_groups(&self, root_inside: bool) -> bool {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Ok(own) = rustix::fs::open("/proc/self", flags, Mode::empty()) else {
            return false;
        };
        let letter = if root_inside { MAP_ROOT } else { MAP };
        channel::send(&self.0, letter, &[own.as_fd()]).is_ok()
            && channel::receive(&self.0).is_some_and(|(answer, _)| answer == channel::YES)
    }
}
