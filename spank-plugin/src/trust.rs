//! Which image files the kernel may mount: those that only the site's administrators can have written.
//!
//! The kernel's squashfs takes an image for what it says it is; a hostile one is a way into the kernel. So the site says which it trusts: files in
//! directories that plugstack.conf names (`trust=`), unless the job's user can change them, and files that belong to root alone, as do all directories
//! above them.
//!
//! The user has opened the file, with the own permissions, and sends the descriptor. Its path is what the kernel says, and is believed only where, looked for again
//! from the root without following a link, it leads to that very file on that very mount: so no file system of a user's can pretend anything.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Statx, StatxFlags};

use crate::helper::User;

/// Bits of the mode by which others than the owner can write.
const OTHERS_WRITE: u16 = 0o022;

/// Whether the kernel may mount the file.
///
/// # Errors
///
/// A text for the user: why not.
pub(crate) fn check(image: &OwnedFd, user: &User, directories: &[PathBuf]) -> Result<(), String> {
    let unreadable = "it was not opened to be read";
    let flags = rustix::fs::fcntl_getfl(image).map_err(|_| unreadable)?;
    // A descriptor with O_PATH says nothing about permissions.
    if flags.intersects(OFlags::PATH | OFlags::WRONLY) {
        return Err(unreadable.into());
    }
    let status = status(image).ok_or("it cannot be looked at")?;
    if FileType::from_raw_mode(status.stx_mode.into()) != FileType::RegularFile {
        return Err("it is no file".into());
    }
    let path = path(image).ok_or("it has no path")?;
    let is_in_trusted = directories
        .iter()
        .any(|directory| path.starts_with(directory));
    let found = find(&path, !is_in_trusted)?;
    let is_same = (
        found.stx_dev_major,
        found.stx_dev_minor,
        found.stx_ino,
        found.stx_mnt_id,
    ) == (
        status.stx_dev_major,
        status.stx_dev_minor,
        status.stx_ino,
        status.stx_mnt_id,
    );
    if !is_same {
        return Err(format!("there is another file at `{}`", path.display()));
    }
    if is_in_trusted && can_change(&status, user) {
        return Err(format!("you can change `{}`", path.display()));
    }
    Ok(())
}

/// The path of an open file, as the kernel knows it.
fn path(image: &OwnedFd) -> Option<PathBuf> {
    let link = format!("/proc/self/fd/{}", image.as_raw_fd());
    let target = rustix::fs::readlinkat(CWD, link, Vec::new()).ok()?;
    let path = PathBuf::from(std::ffi::OsString::from_vec(target.into_bytes()));
    path.is_absolute().then_some(path)
}

/// What is at a path without links. With `is_roots` each part of it must belong to root alone.
fn find(path: &Path, is_roots: bool) -> Result<Statx, String> {
    let mut so_far = PathBuf::from("/");
    let mut place: Option<OwnedFd> = None;
    let mut last = None;
    for part in path.components() {
        let name = match part {
            Component::RootDir => OsStr::new("/"),
            Component::Normal(name) => name,
            _ => return Err(format!("`{}` is no plain path", path.display())),
        };
        so_far.push(name);
        let unseen = || format!("`{}` cannot be looked at", so_far.display());
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let parent = place.as_ref().map_or(CWD, AsFd::as_fd);
        let opened = rustix::fs::openat(parent, name, flags, Mode::empty());
        let opened = opened.map_err(|_| unseen())?;
        let status = status(&opened).ok_or_else(unseen)?;
        if is_roots && !is_of_root_alone(&status) {
            return Err(format!(
                "`{}` does not belong to root alone, and is in no directory that the site trusts",
                so_far.display()
            ));
        }
        place = Some(opened);
        last = Some(status);
    }
    last.ok_or_else(|| format!("`{}` is no plain path", path.display()))
}

fn status(file: &OwnedFd) -> Option<Statx> {
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
    let status = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, wanted).ok()?;
    // Linux 5.8; before that, mounts cannot be told apart.
    StatxFlags::from_bits_retain(status.stx_mask)
        .contains(wanted)
        .then_some(status)
}

/// Whether nobody but root can write. An access control list that lets somebody shows in the bits of the group.
fn is_of_root_alone(status: &Statx) -> bool {
    status.stx_uid == 0 && status.stx_mode & OTHERS_WRITE == 0
}

/// Whether the job's user can write to the file, or give that right to the own.
fn can_change(status: &Statx, user: &User) -> bool {
    let is_in_group = user.gid == status.stx_gid || user.groups.contains(&status.stx_gid);
    let mode = status.stx_mode;
    user.uid != 0
        && (user.uid == status.stx_uid || mode & 0o002 != 0 || (is_in_group && mode & 0o020 != 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File, Permissions};
    use std::os::unix::fs::PermissionsExt as _;

    fn user(uid: u32) -> User {
        User {
            uid,
            gid: uid,
            groups: vec![uid],
        }
    }

    #[test]
    fn what_root_alone_can_change_is_trusted() {
        let open = |path: &str| OwnedFd::from(File::open(path).unwrap());
        // Some file that every system has, and that is no link.
        let path = fs::canonicalize("/etc/os-release").unwrap();
        let file = open(&path.display().to_string());
        assert_eq!(check(&file, &user(1000), &[]), Ok(()));
        for path in ["/etc", "/dev/null"] {
            let error = check(&open(path), &user(1000), &["/".into()]).unwrap_err();
            assert!(error.contains("no file"), "{path}: {error}");
        }
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let unread = rustix::fs::open(&path, flags, Mode::empty()).unwrap();
        let error = check(&unread, &user(1000), &[]).unwrap_err();
        assert!(error.contains("opened"), "{error}");
    }

    #[test]
    fn a_file_that_the_user_can_change_is_not() {
        let directory = std::env::temp_dir().join(format!("cista-trust-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        let directory = fs::canonicalize(&directory).unwrap();
        let path = directory.join("image");
        fs::write(&path, "").unwrap();
        let set_mode = |mode| fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        let file = OwnedFd::from(File::open(&path).unwrap());
        let owner = rustix::process::geteuid().as_raw();
        let stranger = user(owner + 1000);
        let trust = [directory.clone()];
        set_mode(0o644);
        assert_eq!(check(&file, &stranger, &trust), Ok(()));
        // The directory for temporary files is everybody's.
        assert!(check(&file, &stranger, &[]).is_err());
        if owner != 0 {
            assert!(check(&file, &user(owner), &trust).is_err());
        }
        set_mode(0o646);
        let error = check(&file, &stranger, &trust).unwrap_err();
        assert!(error.contains("you can change"), "{error}");
        set_mode(0o644);
        // Another file in its place, and none.
        fs::remove_file(&path).unwrap();
        fs::write(&path, "").unwrap();
        check(&file, &stranger, &trust).unwrap_err();
        fs::remove_dir_all(&directory).unwrap();
        check(&file, &stranger, &trust).unwrap_err();
    }
}
