//! `mount_setattr(2)`, Linux 5.12: flags of a mount or of a whole tree of mounts, by file descriptor.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};

use rustix::mount::MountAttrFlags;

/// `struct mount_attr` of `linux/mount.h`, first version (32 bytes).
#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Sets and clears flags of the mount that `mount` refers to; with `recursive` of every mount below it as well.
///
/// # Errors
///
/// The kernel's: EPERM where a flag is locked because a more privileged mount namespace set it, ENOSYS before Linux 5.12.
pub fn set_attributes(
    mount: impl AsFd,
    set: MountAttrFlags,
    clear: MountAttrFlags,
    recursive: bool,
) -> io::Result<()> {
    let attributes = MountAttr {
        attr_set: u64::from(set.bits()),
        attr_clr: u64::from(clear.bits()),
        propagation: 0,
        userns_fd: 0,
    };
    change(mount.as_fd(), &attributes, recursive)
}

/// How mounts at two places reach each other (mount_namespaces(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// Not at all.
    Private,
    /// From the master to here.
    Slave,
    /// Both ways.
    Shared,
    /// Not at all, and it cannot be bound elsewhere.
    Unbindable,
}

/// Sets the propagation of the mount that `mount` refers to; with `recursive` of every mount below it as well.
///
/// # Errors
///
/// The kernel's: EINVAL where `mount` is not the root of a mount, ENOSYS before Linux 5.12.
pub fn set_propagation(
    mount: impl AsFd,
    propagation: Propagation,
    recursive: bool,
) -> io::Result<()> {
    let attributes = MountAttr {
        attr_set: 0,
        attr_clr: 0,
        propagation: match propagation {
            Propagation::Private => libc::MS_PRIVATE,
            Propagation::Slave => libc::MS_SLAVE,
            Propagation::Shared => libc::MS_SHARED,
            Propagation::Unbindable => libc::MS_UNBINDABLE,
        },
        userns_fd: 0,
    };
    change(mount.as_fd(), &attributes, recursive)
}

fn change(mount: BorrowedFd<'_>, attributes: &MountAttr, recursive: bool) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a NUL-terminated literal, and `attributes` outlives the call and has the size that is passed;
    // the kernel only reads both.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attributes),
            size_of::<MountAttr>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
