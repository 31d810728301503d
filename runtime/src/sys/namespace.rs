//! Namespaces of a container: `unshare(2)` for new ones, `ioctl_nsfs(2)` to ask about one.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _};
use std::time::{Duration, Instant};

use rustix::io::{Errno, Result};
use rustix::thread::UnshareFlags;

/// How long the last thread of a process may take to be gone.
const LAST_THREAD: Duration = Duration::from_millis(500);

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
    let flags =
        (UnshareFlags::NEWUSER | UnshareFlags::NEWNS | further).difference(UnshareFlags::FILES);
    let deadline = Instant::now() + LAST_THREAD;
    loop {
        // SAFETY: unshare is unsound with CLONE_FILES only, which is not given.
        match unsafe { rustix::thread::unshare_unsafe(flags) } {
            // Whoever has joined a thread knows that its work is done, not that the kernel has let go of it.
            Err(Errno::INVAL) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_micros(200));
            }
            result => return result,
        }
    }
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
