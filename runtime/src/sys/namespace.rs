//! `unshare(2)` for the namespaces of a container.

use rustix::io::Result;
use rustix::thread::UnshareFlags;

/// Moves the calling process into a new user namespace, in which it holds every capability.
///
/// # Errors
///
/// EINVAL in a process with more than one thread, EPERM or ENOSPC where user namespaces are off or used up.
pub fn new_user() -> Result<()> {
    // SAFETY: unshare is unsound with CLONE_FILES only, which is not given.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER) }
}

/// Gives the calling process its own copy of the mount namespace.
///
/// Where the process is in a newer user namespace than the mounts, the copies of shared mounts become slaves of the
/// originals (mount_namespaces(7), "Restrictions on mount namespaces"): nothing mounted here reaches the host.
///
/// # Errors
///
/// EPERM without CAP_SYS_ADMIN, ENOSPC beyond `user.max_mnt_namespaces`.
pub fn new_mount() -> Result<()> {
    // SAFETY: unshare is unsound with CLONE_FILES only, which is not given.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }
}
