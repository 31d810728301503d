//! System calls of mounts and loop devices that have no safe wrapper: `mount_setattr(2)` with a user namespace, `loop(4)`, unshare(2).

use std::ffi::c_int;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _};

/// `struct mount_attr` of `linux/mount.h`, first version.
#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// `MOUNT_ATTR_IDMAP`.
const IDMAP: u64 = 0x0010_0000;

/// Maps the owners of files of a mount, which nobody has seen yet, by the map of a user namespace.
///
/// # Errors
///
/// EINVAL where the file system or the kernel cannot do it, ENOSYS before Linux 5.12.
pub(crate) fn map_owners(mount: impl AsFd, users: impl AsFd) -> io::Result<()> {
    let attributes = MountAttr {
        attr_set: IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::try_from(users.as_fd().as_raw_fd()).map_err(io::Error::other)?,
    };
    // SAFETY: the path ends in NUL, `attributes` outlives the call and has the size that is passed; the kernel only reads both.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<MountAttr>(),
        )
    };
    done(result)
}

/// `struct loop_info64` of `linux/loop.h`.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    sizelimit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` of `linux/loop.h`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// `LOOP_CTL_GET_FREE` of `/dev/loop-control`.
const GET_FREE: libc::Ioctl = 0x4c82;
/// `LOOP_CONFIGURE`, Linux 5.8.
const CONFIGURE: libc::Ioctl = 0x4c0a;
/// `LO_FLAGS_READ_ONLY` and `LO_FLAGS_AUTOCLEAR`: with its last user the device is free again.
const FLAGS: u32 = 1 | 4;

/// The number of a loop device that is free now, made where there was none.
///
/// # Errors
///
/// The kernel's.
pub(crate) fn free_loop_device(control: &File) -> io::Result<c_int> {
    // SAFETY: the request takes no argument.
    let number = unsafe { libc::ioctl(control.as_raw_fd(), GET_FREE) };
    if number >= 0 {
        Ok(number)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Puts a file behind a loop device, to be read only, until nobody uses the device any more.
///
/// # Errors
///
/// EBUSY where the device has got a file meanwhile.
pub(crate) fn set_loop_file(device: &File, image: impl AsFd) -> io::Result<()> {
    // SAFETY: all-zero bytes are a valid configuration: no offset, no limit, the usual block size.
    let mut config: LoopConfig = unsafe { std::mem::zeroed() };
    config.fd = u32::try_from(image.as_fd().as_raw_fd()).map_err(io::Error::other)?;
    config.info.flags = FLAGS;
    // SAFETY: the request reads a configuration, which outlives the call.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), CONFIGURE, &raw const config) };
    done(result.into())
}

/// Moves the calling process, which has one thread, into new namespaces: a copy of the mounts, or users of its own.
///
/// # Errors
///
/// Those of unshare(2).
pub(crate) fn new_namespace(flags: rustix::thread::UnshareFlags) -> io::Result<()> {
    let flags = flags.difference(rustix::thread::UnshareFlags::FILES);
    // SAFETY: unshare is unsound with CLONE_FILES only, which is not given.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags) }?)
}

fn done(result: libc::c_long) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
