//! Namespaces of a container: `unshare(2)` for new ones, `ioctl_nsfs(2)` to ask about one.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _};

use rustix::io::Result;
use rustix::thread::UnshareFlags;

/// Moves the calling process into a new user namespace, in which it holds every capability, and gives it its own copy of the mounts there.
/// `further` are namespaces to be made besides, owned by the new user namespace.
///
/// The copies of shared mounts become slaves of the originals, since the new user namespace has less power (mount_namespaces(7), "Restrictions
/// on mount namespaces"): nothing mounted here reaches the host.
///
/// # Errors
///
/// EINVAL in a process with more than one thread, EPERM or ENOSPC where user namespaces are off or used up.
pub fn new_user_and_mount(further: UnshareFlags) -> Result<()> {
    let further = further.difference(UnshareFlags::FILES);
    // SAFETY: unshare is unsound with CLONE_FILES only, which is not given.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNS | further) }
}

/// The user id, as seen from here, of whoever made a user namespace.
///
/// # Errors
///
/// EINVAL where the descriptor is not of a user namespace.
pub fn owner(user_namespace: impl AsFd) -> io::Result<u32> {
    /// `NS_GET_OWNER_UID` of `linux/nsfs.h`: `_IO(0xb7, 4)`.
    const GET_OWNER_UID: libc::c_ulong = 0xb704;
    let mut uid: libc::uid_t = 0;
    // SAFETY: the request writes one uid_t to its argument, which is a valid place for it during the call.
    let result = unsafe {
        libc::ioctl(
            user_namespace.as_fd().as_raw_fd(),
            GET_OWNER_UID as _,
            &raw mut uid,
        )
    };
    if result == 0 {
        Ok(uid)
    } else {
        Err(io::Error::last_os_error())
    }
}
