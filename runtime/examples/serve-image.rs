//! Mounts an image and serves it in the foreground, until it is unmounted: for measuring the FUSE server by itself.
//!
//! `serve-image IMAGE DIRECTORY [CACHE_MIB [THREADS]]`, as root or inside a user and mount namespace of one's own.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;

use cista::fuse::{Options, serve};
use cista_images::squashfs::reader::Reader;
use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount,
};

fn mount(directory: &Path) -> Result<OwnedFd, Box<dyn std::error::Error>> {
    let device = OwnedFd::from(File::options().read(true).write(true).open("/dev/fuse")?);
    let context = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", "cista")?;
    fsconfig_set_string(
        &context,
        "fd",
        CString::new(device.as_raw_fd().to_string())?,
    )?;
    fsconfig_set_string(&context, "rootmode", "40000")?;
    fsconfig_set_string(&context, "user_id", rustix::process::getuid().to_string())?;
    fsconfig_set_string(&context, "group_id", rustix::process::getgid().to_string())?;
    fsconfig_set_flag(&context, "allow_other")?;
    fsconfig_set_flag(&context, "default_permissions")?;
    fsconfig_set_flag(&context, "ro")?;
    fsconfig_create(&context)?;
    let mounted = fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_RDONLY,
    )?;
    move_mount(
        &mounted,
        "",
        CWD,
        directory,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?;
    Ok(device)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [image, directory, numbers @ ..] = arguments.as_slice() else {
        return Err("usage: serve-image IMAGE DIRECTORY [CACHE_MIB [THREADS]]".into());
    };
    let number = |at: usize, default: usize| match numbers.get(at) {
        Some(text) => text.parse(),
        None => Ok(default),
    };
    let options = Options {
        uid: rustix::process::getuid().as_raw(),
        gid: rustix::process::getgid().as_raw(),
        cache_bytes: number(0, 256)? << 20,
        unmounted: || {},
        threads: Some(number(1, std::thread::available_parallelism()?.get())?),
    };
    let reader = Reader::open(File::open(image)?, 0)?;
    let device = mount(Path::new(directory))?;
    serve(move || Some(device), reader, &options, None)?;
    Ok(())
}
