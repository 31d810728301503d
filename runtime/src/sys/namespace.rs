//! `unshare(2)` for the namespaces of a container.

use rustix::io::Result;
use rustix::thread::UnshareFlags;

/// Moves the calling process into a new user namespace, in which it holds every capability, and gives it its own copy of the mounts there.
///
/// The copies of shared mounts become slaves of the originals, since the new user namespace has less power (mount_namespaces(7), "Restrictions
/// on mount namespaces"): nothing mounted here reaches the host.
///
/// # Errors
///
/// EINVAL in a process with more than one thread, EPERM or ENOSPC where user namespaces are off or used up.
pub fn new_user_and_mount() -> Result<()> {
    // SAFETY: unshare is unsound with CLONE_FILES only, which is not given.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNS) }
}
