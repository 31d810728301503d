//! A mount of an image by the kernel, which only root can make, for a user to use.
//!
//! The file was opened by the user, and the site [trusts](crate::trust) it, since the kernel's squashfs is not made for hostile images. It is put behind a loop
//! device that is free again with its last user, so that nothing is left whoever is killed, and when. The mount is detached: nobody has a path to it.
//!
//! Two things make it the user's, and harmless. The image's files are root's, and are mapped to the user (an id-mapped mount, Linux 5.12), so that a
//! setuid program in it could only become the user. And the flags `ro`, `nosuid` and `nodev` are locked, since the user gets the mount's descriptor, and has
//! every right in a mount namespace of the own: flags get locked when a mount is copied into the mount namespace of another user namespace (mount_namespaces(7)), so
//! the mount goes through one.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
};
use rustix::thread::UnshareFlags;

use crate::ffi::mount;
use crate::ffi::process::{self, Fork};
use crate::helper::User;
use crate::wire;

/// A directory that every node has, and that nothing here needs: the mount passes through it, in mount namespaces that end at once.
const PLACE: &str = "/sys";

/// How often a free loop device is looked for: others look, too.
const ATTEMPTS: usize = 64;

/// The first Linux whose overlayfs can lie on a mount with mapped owners.
const OVERLAY: (u32, u32) = (5, 19);

/// Mounts an image. To be called in a process of its own, which ends then: its namespaces are others after that.
///
/// # Errors
///
/// What cannot be done here, and why.
pub(crate) fn mount(image: &OwnedFd, user: &User) -> Result<OwnedFd, String> {
    let is_root = user.uid == 0 && user.gid == 0;
    if !is_root && linux().is_some_and(|version| version < OVERLAY) {
        return Err("the kernel's overlayfs needs Linux 5.19 for that".into());
    }
    let (device, path) = loop_device(image)?;
    let mounted = squashfs(&path)?;
    drop(device);
    if is_root {
        return Ok(mounted);
    }
    let users = owners(user).map_err(failed("map the owners of the image's files"))?;
    mount::map_owners(&mounted, &users).map_err(failed("map the owners of the image's files"))?;
    lock(&mounted, &users).map_err(failed("lock the flags of the mount"))
}

fn failed(what: &str) -> impl Fn(io::Error) -> String {
    move |error| format!("cannot {what}: {error}")
}

/// Version and patch level of the kernel.
fn linux() -> Option<(u32, u32)> {
    let uname = rustix::system::uname();
    let mut numbers = uname
        .release()
        .to_str()
        .ok()?
        .split(|letter: char| !letter.is_ascii_digit())
        .map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(version)), Some(Ok(level))) => Some((version, level)),
        _ => None,
    }
}

/// Puts the image behind a loop device, which lasts as long as the device is open or mounted.
fn loop_device(image: &OwnedFd) -> Result<(File, PathBuf), String> {
    let open = |path: &str| {
        let mut options = File::options();
        let opened = options.read(true).write(true).open(path);
        opened.map_err(|error| format!("cannot open `{path}`: {error}"))
    };
    let control = open("/dev/loop-control")?;
    for _ in 0..ATTEMPTS {
        let number = mount::free_loop_device(&control).map_err(failed("find a loop device"))?;
        let path = format!("/dev/loop{number}");
        let device = open(&path)?;
        match mount::set_loop_file(&device, image) {
            Ok(()) => return Ok((device, path.into())),
            // Somebody else was quicker.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(error) => return Err(failed("set up a loop device")(error)),
        }
    }
    Err("cannot find a loop device: others take each that is free".into())
}

fn squashfs(device: &std::path::Path) -> Result<OwnedFd, String> {
    let context = rustix::mount::fsopen("squashfs", FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(|error| failed("use the kernel's squashfs")(error.into()))?;
    let flags = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV;
    rustix::mount::fsconfig_set_string(&context, "source", device)
        .and_then(|()| rustix::mount::fsconfig_set_flag(&context, "ro"))
        .and_then(|()| rustix::mount::fsconfig_create(&context))
        .and_then(|()| rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags))
        .map_err(|error| failed("mount it as squashfs")(error.into()))
}

/// A user namespace in which root is the user: how owners are mapped. It lasts as long as the descriptor.
fn owners(user: &User) -> io::Result<OwnedFd> {
    let (ours, theirs) = wire::pair()?;
    let child = match process::fork_silently()? {
        Fork::Child => {
            drop(ours);
            if mount::new_namespace(UnshareFlags::NEWUSER).is_ok()
                && wire::send(&theirs, wire::YES, None).is_ok()
            {
                // Until the other end is closed, also by the death of its process.
                wire::receive(&theirs);
            }
            process::exit_now(0)
        }
        Fork::Parent(pid) => pid,
    };
    drop(theirs);
    let opened = if wire::receive(&ours).is_some() {
        let file = |name: &str| format!("/proc/{child}/{name}");
        write_map(&file("uid_map"), user.uid)
            .and_then(|()| write_map(&file("gid_map"), user.gid))
            .and_then(|()| File::open(file("ns/user")))
    } else {
        Err(io::Error::other("cannot make a user namespace"))
    };
    drop(ours);
    process::wait(child);
    opened.map(OwnedFd::from)
}

fn write_map(path: &str, id: u32) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty())?;
    rustix::io::write(&file, format!("0 {id} 1\n").as_bytes())?;
    Ok(())
}

/// A copy of the mount whose flags only root of the node can change.
fn lock(mounted: &OwnedFd, users: &OwnedFd) -> io::Result<OwnedFd> {
    mount::new_namespace(UnshareFlags::NEWNS)?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(mounted, "", CWD, PLACE, flags)?;
    rustix::thread::move_into_link_name_space(users.as_fd(), None)?;
    mount::new_namespace(UnshareFlags::NEWNS)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    Ok(rustix::mount::open_tree(CWD, OsStr::new(PLACE), flags)?)
}
