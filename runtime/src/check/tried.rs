//! What is tried out, each in a child process of its own: namespaces, mounts, the seccomp filter.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::mount::MountAttrFlags;
use rustix::thread::UnshareFlags;

use super::Finding;
use crate::container::identity_map::{self, IdMap, UserNamespaceError};
use crate::container::layers::{Changes, Scratch};
use crate::container::mounts::{self, MountError};
use crate::container::namespaces::{self, Namespaces};
use crate::container::{named, seccomp, temporary, userns_help};
use crate::sys::{self, process};

/// Exit status of a child for an error without a number.
const UNKNOWN: i32 = 254;

/// Runs something in a child process; gives the system's answer where it failed.
fn attempt(work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let helper = process::spawn_helper(|| match work() {
        Ok(()) => 0,
        Err(error) => error
            .raw_os_error()
            .filter(|number| (1..UNKNOWN).contains(number))
            .unwrap_or(UNKNOWN),
    })?;
    match helper.wait()? {
        0 => Ok(()),
        UNKNOWN => Err(io::Error::other("it failed without a reason")),
        number => Err(io::Error::from_raw_os_error(number)),
    }
}

/// Enters a user and a mount namespace as a start does.
fn enter(further: UnshareFlags) -> io::Result<()> {
    let map = IdMap::Single {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
    };
    identity_map::enter(map, further).map_err(|error| match error {
        UserNamespaceError::Create(source)
        | UserNamespaceError::Map { source, .. }
        | UserNamespaceError::OwnMap { source, .. }
        | UserNamespaceError::Helper(source) => source,
    })
}

fn cause(error: MountError) -> io::Error {
    match error {
        MountError::Source { source, .. }
        | MountError::Target { source, .. }
        | MountError::Filesystem { source, .. }
        | MountError::Flags { source, .. }
        | MountError::Attach { source, .. } => source,
    }
}

pub(super) fn user_namespace() -> Finding {
    const NAME: &str = "user namespaces";
    match attempt(|| enter(UnshareFlags::empty())) {
        Ok(()) => Finding::ok(NAME, "one can be created"),
        Err(error) => match userns_help::obstacle(&error) {
            Some(obstacle) => Finding::missing(
                NAME,
                format!("none can be created ({error}): {}", obstacle.cause),
                obstacle.command,
            ),
            None => Finding::missing(
                NAME,
                format!("none can be created: {error}"),
                "build the kernel with `CONFIG_USER_NS=y`, and let no seccomp filter or security module forbid `unshare`",
            ),
        },
    }
}

pub(super) fn seccomp() -> Finding {
    const NAME: &str = "seccomp";
    let tried = attempt(|| {
        rustix::thread::set_no_new_privs(true)?;
        sys::seccomp::install(&seccomp::filter(true))
    });
    match tried {
        Ok(()) => Finding::ok(NAME, "filters can be installed"),
        Err(error) => Finding::missing(
            NAME,
            format!("no filter can be installed: {error}"),
            "build the kernel with `CONFIG_SECCOMP_FILTER=y`",
        ),
    }
}

/// The namespaces of `--pid` and its like.
pub(super) fn further_namespaces() -> Vec<Finding> {
    let none = Namespaces::default();
    let all = [
        ("pid namespaces", "pid", Namespaces { pid: true, ..none }),
        (
            "network namespaces",
            "net",
            Namespaces { net: true, ..none },
        ),
        ("IPC namespaces", "ipc", Namespaces { ipc: true, ..none }),
        ("UTS namespaces", "uts", Namespaces { uts: true, ..none }),
    ];
    all.into_iter()
        .map(|(name, option, wanted)| {
            let tried = attempt(|| {
                enter(wanted.flags())?;
                if wanted.net {
                    sys::network::loopback_up()?;
                }
                if wanted.pid {
                    // The first process of the namespace mounts its `/proc`.
                    return attempt(|| {
                        namespaces::proc(MountAttrFlags::empty()).map(drop).map_err(cause)
                    });
                }
                Ok(())
            });
            match tried {
                Ok(()) => Finding::ok(name, format!("`--{option}` works")),
                Err(error) if wanted.pid && error.raw_os_error() == Some(libc::EPERM) => {
                    Finding::degraded(
                        name,
                        "`--pid` does not work: parts of `/proc` are covered here",
                        "run outside of other containers, or those with `docker run --security-opt systempaths=unconfined`",
                    )
                }
                Err(error) => Finding::degraded(
                    name,
                    format!("`--{option}` does not work: {error}"),
                    format!("sysctl -w user.max_{option}_namespaces=65536"),
                ),
            }
        })
        .collect()
}

pub(super) fn fuse() -> Finding {
    const NAME: &str = "FUSE";
    let open = || {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        rustix::fs::open("/dev/fuse", flags, Mode::empty()).map_err(io::Error::from)
    };
    if let Err(error) = open() {
        let fix = match error.kind() {
            io::ErrorKind::NotFound => "modprobe fuse",
            _ => "chmod 0666 /dev/fuse",
        };
        return Finding::degraded(
            NAME,
            format!("/dev/fuse cannot be opened ({error}): images are unpacked before they start"),
            fix,
        );
    }
    let tried = attempt(|| {
        enter(UnshareFlags::empty())?;
        let device = open()?;
        let fd = device.as_raw_fd().to_string();
        let options = [
            ("source", "cista"),
            ("fd", fd.as_str()),
            ("rootmode", "40000"),
            ("user_id", "0"),
            ("group_id", "0"),
        ]
        .map(|(name, value)| (OsStr::new(name), Some(OsStr::new(value))));
        let own = [
            rustix::process::geteuid().as_raw().to_string(),
            rustix::process::getegid().as_raw().to_string(),
        ];
        let options = options.map(|(name, value)| match name.to_str() {
            Some("user_id") => (name, Some(OsStr::new(&own[0]))),
            Some("group_id") => (name, Some(OsStr::new(&own[1]))),
            _ => (name, value),
        });
        mounts::filesystem("fuse", options, MountAttrFlags::MOUNT_ATTR_RDONLY)
            .map(drop)
            .map_err(cause)
    });
    match tried {
        Ok(()) => Finding::ok(NAME, "images can be mounted"),
        Err(error) => Finding::degraded(
            NAME,
            format!(
                "nothing can be mounted in a user namespace ({error}): images are unpacked before they start"
            ),
            "update the kernel to 5.12 or later",
        ),
    }
}

/// An overlay of a memory file system, with what `changes` says above it; something is written to it.
fn try_overlay(changes: Changes<'_>) -> io::Result<()> {
    attempt(|| {
        enter(UnshareFlags::empty())?;
        let scratch = Scratch::mount(Some(1 << 20)).map_err(cause)?;
        let lower = mounts::filesystem("tmpfs", [], MountAttrFlags::empty()).map_err(cause)?;
        let directory = |name| rustix::fs::mkdirat(&lower, name, Mode::from_raw_mode(0o755));
        directory("old")?;
        directory("removed")?;
        let source = OsStr::new("cista:check");
        let root = scratch
            .overlay(&lower, changes, None, source)
            .map_err(cause)?;
        rustix::fs::mkdirat(&root, "old/new", Mode::from_raw_mode(0o755))?;
        // A whiteout, and an opaque directory.
        rustix::fs::unlinkat(&root, "removed", rustix::fs::AtFlags::REMOVEDIR)?;
        rustix::fs::mkdirat(&root, "removed", Mode::from_raw_mode(0o755))?;
        Ok(())
    })
}

pub(super) fn overlay() -> Finding {
    const NAME: &str = "overlayfs";
    match try_overlay(Changes::Memory) {
        Ok(()) => Finding::ok(NAME, "works in user namespaces"),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Finding::degraded(
            NAME,
            "the kernel has none: images are unpacked before they start, and are read-only",
            "modprobe overlay",
        ),
        Err(error) => Finding::degraded(
            NAME,
            format!(
                "does not work in user namespaces ({error}): images are unpacked before they start, and are read-only"
            ),
            "update the kernel to 5.12 or later",
        ),
    }
}

/// Whether named containers can keep their changes where they are.
pub(super) fn container_overlay(data_path: &Path) -> Finding {
    const NAME: &str = "container directory";
    // It may not be there yet: then the file system where it will be.
    let existing = data_path
        .ancestors()
        .find(|path| path.is_dir())
        .unwrap_or(Path::new("/"));
    let fix = format!(
        "set `CISTA_DATA_PATH` to a directory of a local file system (`{}` is not suitable), or use `cista create --unpack`",
        data_path.display()
    );
    let directory: PathBuf = temporary::path(existing, OsStr::new("check"));
    let make = |path: &Path| fs::DirBuilder::new().mode(0o700).create(path);
    let tried = make(&directory)
        .and_then(|()| make(&directory.join(named::UPPER)))
        .and_then(|()| make(&directory.join(named::WORK)))
        .and_then(|()| try_overlay(Changes::Container(&directory)));
    let removed = cista_images::unpack::remove_tree(&directory);
    match tried {
        Ok(()) if removed.is_ok() => {
            Finding::ok(NAME, format!("`{}` can hold changes", data_path.display()))
        }
        Ok(()) => Finding::degraded(
            NAME,
            format!("`{}` could not be removed", directory.display()),
            format!("rm -r {}", directory.display()),
        ),
        Err(error) => Finding::degraded(
            NAME,
            format!(
                "`{}` cannot hold changes of containers: {error}",
                data_path.display()
            ),
            fix,
        ),
    }
}
