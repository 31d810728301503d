//! What root does for the container of an ordinary user, asked for by the user's own process: to map the user's groups, and to have the kernel mount an
//! image that the site trusts.
//!
//! Nothing that was asked is believed: the process that is meant comes as its directory of `/proc`, which must be one, and the user's; the groups are those
//! that Slurm has told. So a user who talks to the helper in place of `cista` gets the own groups mapped in an own namespace, and nothing else. That
//! setgroups(2) stays denied there is what `cista` writes before; a user who does not can drop groups that way, as a program with the right to do so can
//! anyway, where a site uses groups to forbid. An image comes as a file that the user has opened; what is asked of it is in [`trust`], and what the user
//! gets of it in [`kernel`].

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::{Mode, OFlags};

use crate::arguments::{Arguments, Mount};
use crate::ffi::process::{self, Fork};
use crate::{kernel, trust, wire};

/// The user of a job.
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
}

/// Asks to map the user's groups, the own one to itself.
const MAP: u8 = b'u';
/// Asks to map the user's groups, the own one to that of root.
const MAP_ROOT: u8 = b'r';

/// Asks for a mount of an image file by the kernel. The answer is the mount, or why there is none.
const MOUNT: u8 = b'k';

/// `PROC_SUPER_MAGIC`.
const PROC: u64 = 0x9fa0;

/// Longest map that the kernel takes, in bytes (it must be less than a page), and most lines of it.
const MAX_MAP: usize = 4095;
const MAX_LINES: usize = 340;

/// Serves until the other end is closed.
pub(crate) fn serve(socket: &OwnedFd, user: &User, arguments: &Arguments) {
    while let Some((letter, files)) = wire::receive(socket) {
        let answered = match (letter, files.first()) {
            (MOUNT, Some(image)) => answer_with_mount(socket, image, user, arguments),
            (MAP | MAP_ROOT, Some(process)) => {
                answer(socket, map(process, user, letter == MAP_ROOT).is_ok())
            }
            _ => answer(socket, false),
        };
        if answered.is_err() {
            return;
        }
    }
}

fn answer(socket: &OwnedFd, is_done: bool) -> io::Result<()> {
    wire::send(socket, if is_done { wire::YES } else { wire::NO }, None)
}

/// Answers with a mount of the image, from a process of its own, since that ends up in other namespaces.
fn answer_with_mount(
    socket: &OwnedFd,
    image: &OwnedFd,
    user: &User,
    arguments: &Arguments,
) -> io::Result<()> {
    if arguments.mount == Mount::Fuse {
        return answer(socket, false);
    }
    if let Err(why) = trust::check(image, user, &arguments.trust) {
        return refuse(socket, &why);
    }
    match process::fork_silently()? {
        Fork::Child => {
            let sent = match kernel::mount(image, user) {
                Ok(mount) => wire::send(socket, wire::YES, Some(mount.as_fd())),
                Err(why) => refuse(socket, &why),
            };
            process::exit_now(i32::from(sent.is_err()))
        }
        Fork::Parent(pid) if process::wait(pid) => Ok(()),
        Fork::Parent(_) => refuse(socket, "the process that mounts it was killed"),
    }
}

fn refuse(socket: &OwnedFd, why: &str) -> io::Result<()> {
    let note = wire::note(why)?;
    wire::send(socket, wire::NO, Some(note.as_fd()))
}

fn map(process: &OwnedFd, user: &User, root_inside: bool) -> io::Result<()> {
    let denied = || io::Error::from_raw_os_error(libc::EPERM);
    let file_system = rustix::fs::fstatfs(process)?;
    let owner = rustix::fs::fstat(process)?.st_uid;
    if u64::try_from(file_system.f_type).ok() != Some(PROC) || owner != user.uid {
        return Err(denied());
    }
    // The directory itself, and not one below it, such as that of a thread's namespaces.
    let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // It must not be able to write more than the one line that an ordinary user could.
    let setgroups =
        rustix::fs::openat(process, "setgroups", OFlags::RDONLY | flags, Mode::empty())?;
    let mut word = [0; 8];
    let length = rustix::io::read(&setgroups, &mut word)?;
    if !word[..length].starts_with(b"deny") {
        return Err(denied());
    }
    let file = rustix::fs::openat(process, "gid_map", OFlags::WRONLY | flags, Mode::empty())?;
    // One write, which the kernel takes whole or not at all.
    rustix::io::write(&file, group_map(user, root_inside).as_bytes())?;
    Ok(())
}

/// The map: the own group first, so that it is there whatever the kernel's limits leave of the others.
fn group_map(user: &User, root_inside: bool) -> String {
    let inside = if root_inside { 0 } else { user.gid };
    let mut text = format!("{inside} {} 1\n", user.gid);
    let others: BTreeSet<u32> = user.groups.iter().copied().collect();
    let mut lines = 1;
    for group in others {
        if group == user.gid || group == inside || lines == MAX_LINES {
            continue;
        }
        let before = text.len();
        let _ = writeln!(text, "{group} {group} 1");
        if text.len() > MAX_MAP {
            text.truncate(before);
            break;
        }
        lines += 1;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_group_is_mapped_once() {
        let user = User {
            uid: 1000,
            gid: 100,
            groups: vec![100, 27, 0, 27, 2000],
        };
        assert_eq!(
            group_map(&user, false),
            "100 100 1\n0 0 1\n27 27 1\n2000 2000 1\n"
        );
        assert_eq!(group_map(&user, true), "0 100 1\n27 27 1\n2000 2000 1\n");
        let many = User {
            groups: (1_000_000..1_010_000).collect(),
            ..user
        };
        let map = group_map(&many, false);
        assert!(map.len() <= MAX_MAP && map.lines().count() <= MAX_LINES && map.ends_with('\n'));
    }

    #[test]
    fn what_is_no_process_is_refused() {
        let user = User {
            uid: rustix::process::geteuid().as_raw(),
            gid: 0,
            groups: vec![],
        };
        for path in ["/tmp", "/proc/self/task", "/proc/self", "/"] {
            let directory = rustix::fs::open(path, OFlags::PATH, Mode::empty()).unwrap();
            assert!(map(&directory, &user, false).is_err(), "{path}");
        }
    }
}
