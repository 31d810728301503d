//! The user's home directory in a container whose image does not have it, filled from the image's `/etc/skel`, as enroot does.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};

use super::rootfs::{Create, Rootfs};

/// What is copied to new home directories.
pub const SKELETON: &str = "/etc/skel";

/// Bounds on what an image may have us copy.
const MAX_DEPTH: usize = 8;
const MAX_ENTRIES: usize = 1000;
const MAX_FILE: u64 = 1 << 20;

/// Whether a path can be a home directory that is made: absolute, and not the root.
#[must_use]
pub fn is_possible(home: &Path) -> bool {
    home.is_absolute() && home != Path::new("/")
}

/// Makes a home directory where there is none.
///
/// # Errors
///
/// The directory or a file of it cannot be made.
pub fn make(rootfs: &Rootfs, home: &Path) -> io::Result<()> {
    if rootfs.file_type(home).is_some() {
        return Ok(());
    }
    rootfs.create(home, Create::Directory)?;
    let home = rootfs.open(home, OFlags::RDONLY | OFlags::DIRECTORY)?;
    // Others may not look into it: enroot's umask for it is 077.
    rustix::fs::fchmod(&home, Mode::from_raw_mode(0o700))?;
    match rootfs.open(Path::new(SKELETON), OFlags::RDONLY | OFlags::DIRECTORY) {
        Ok(skeleton) => copy(&skeleton, &home, &mut 0, 0),
        Err(_) => Ok(()),
    }
}

/// Copies the entries of a directory: files, directories and symbolic links. Nothing is followed.
fn copy(from: &OwnedFd, to: &OwnedFd, copied: &mut usize, depth: usize) -> io::Result<()> {
    for entry in Dir::read_from(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        *copied += 1;
        if *copied > MAX_ENTRIES || depth > MAX_DEPTH {
            return Ok(());
        }
        let status = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let mode = Mode::from_raw_mode(status.st_mode & 0o777);
        match FileType::from_raw_mode(status.st_mode) {
            FileType::Directory => {
                rustix::fs::mkdirat(to, name, mode | Mode::RWXU)?;
                let open = |at| {
                    let flags =
                        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    rustix::fs::openat(at, name, flags, Mode::empty())
                };
                copy(&open(from)?, &open(to)?, copied, depth + 1)?;
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(from, name, Vec::new())?;
                rustix::fs::symlinkat(&target, to, name)?;
            }
            FileType::RegularFile => {
                let source = rustix::fs::openat(
                    from,
                    name,
                    OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC,
                    Mode::empty(),
                )?;
                let destination = rustix::fs::openat(
                    to,
                    name,
                    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC,
                    mode | Mode::RUSR | Mode::WUSR,
                )?;
                let source = io::Read::take(std::fs::File::from(source), MAX_FILE);
                io::copy(&mut { source }, &mut std::fs::File::from(destination))?;
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    #[test]
    fn a_home_is_made_once_from_the_skeleton() {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path();
        fs::create_dir_all(root.join("etc/skel/.config/x")).unwrap();
        fs::write(root.join("etc/skel/.bashrc"), "alias").unwrap();
        symlink("/etc/passwd", root.join("etc/skel/link")).unwrap();
        let rootfs = Rootfs::new(rustix::fs::open(root, OFlags::PATH, Mode::empty()).unwrap());
        make(&rootfs, Path::new("/home/u")).unwrap();
        let home = root.join("home/u");
        assert_eq!(
            fs::metadata(&home).unwrap().permissions().mode() & 0o777,
            0o700
        );
        assert_eq!(fs::read(home.join(".bashrc")).unwrap(), b"alias");
        assert!(home.join(".config/x").is_dir());
        assert_eq!(
            fs::read_link(home.join("link")).unwrap(),
            Path::new("/etc/passwd")
        );
        fs::remove_file(home.join(".bashrc")).unwrap();
        make(&rootfs, Path::new("/home/u")).unwrap();
        assert!(!home.join(".bashrc").exists());
    }
}
