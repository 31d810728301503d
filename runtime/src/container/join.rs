//! Another program in a running container, as one linear sequence: `cista exec`.
//!
//! The process that calls [`join`] becomes the program, in the namespaces of a process that is there: with its environment and working
//! directory, and with the privileges that [`start`](super::start()) leaves. Only where the container has a pid namespace of its own is the
//! program a child, which a process then stands for ([`supervise`]).
//!
//! A process number may belong to another process a moment later. So the process is held by a pidfd (pidfd_open(2)) from the beginning,
//! all that is read about it is read before one last look whether it lives, and setns(2) takes the pidfd itself.

use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};
use rustix::process::{DumpableBehavior, Pid, PidfdFlags};
use rustix::thread::ThreadNameSpaceType;

use super::environment::Environment;
use super::privileges::{self, PrivilegeError};
use super::program::{self, ProgramError};
use crate::config::host_variable;
use crate::sys::{self, supervise};

/// Longest environment that is read of a process, in bytes: more than the kernel lets a program begin with.
const MAX_ENVIRONMENT: u64 = 64 << 20;

/// What is to be executed, and where.
#[derive(Clone, Debug)]
pub struct Request {
    /// A process of the container.
    pub pid: u32,
    /// Variables that win over those of the process.
    pub environment: Vec<(OsString, OsString)>,
    /// The command line.
    pub command: Vec<OsString>,
    /// Open files that the program gets besides standard input, output and error.
    pub files: Vec<RawFd>,
}

/// Why a container cannot be joined.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// There is no such process, or none any more.
    #[error("there is no process {pid}")]
    NoProcess {
        /// Its number.
        pid: u32,
    },
    /// The process is somebody else's.
    #[error("process {pid} belongs to the user with id {uid}, not to you")]
    Foreign {
        /// Its number.
        pid: u32,
        /// Its user.
        uid: u32,
    },
    /// The process has the namespaces that we have.
    #[error("process {pid} is not in a container")]
    NotContained {
        /// Its number.
        pid: u32,
    },
    /// The process holds the place of one in a container.
    #[error("process {pid} is a helper of cista, not a process of a container")]
    Helper {
        /// Its number.
        pid: u32,
    },
    /// Something about the process cannot be read.
    #[error("cannot read `{what}` of process {pid}")]
    Read {
        /// Its number.
        pid: u32,
        /// Name of the file in its directory of `/proc`.
        what: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// setns(2) failed.
    #[error("cannot enter the namespaces of process {pid}")]
    Enter {
        /// Its number.
        pid: u32,
        /// The system's answer.
        source: io::Error,
    },
    /// The root or working directory cannot be entered.
    #[error("cannot enter the directories of process {pid}")]
    Directory {
        /// Its number.
        pid: u32,
        /// The system's answer.
        source: io::Error,
    },
    /// The process that becomes the program cannot be made.
    #[error("cannot make a process in the container's pid namespace")]
    Fork(#[source] io::Error),
    /// Privileges could not be given up.
    #[error(transparent)]
    Privileges(#[from] PrivilegeError),
    /// Open files could not be closed.
    #[error("cannot close the files that the program must not get")]
    CloseFiles(#[source] io::Error),
    /// The program could not be executed.
    #[error(transparent)]
    Program(#[from] ProgramError),
}

/// Becomes a program in the container of a process. Returns only an error.
///
/// # Errors
///
/// The step that failed. The process is then no longer what it was: it can say so and end.
pub fn join(request: &Request) -> Result<Infallible, JoinError> {
    let target = Target::open(request.pid)?;
    let flags = target.namespaces()?;
    let mut environment = target.environment()?;
    let root = target.directory("root")?;
    let working_directory = target.directory("cwd")?;
    target.check_alive()?;

    // Nobody inside may look at what we still have of the host.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(|error| {
        JoinError::Enter {
            pid: request.pid,
            source: error.into(),
        }
    })?;

    // One call for all of them: the user namespace first gives the right to enter the others.
    let pid = request.pid;
    rustix::thread::move_into_thread_name_spaces(target.pidfd.as_fd(), flags).map_err(|error| {
        JoinError::Enter {
            pid,
            source: error.into(),
        }
    })?;
    rustix::process::fchdir(&root)
        .and_then(|()| rustix::process::chroot("."))
        .and_then(|()| rustix::process::fchdir(&working_directory))
        .map_err(|error| JoinError::Directory {
            pid,
            source: error.into(),
        })?;
    drop((root, working_directory));
    let is_single = has_single_id();
    drop(target);
    if flags.contains(ThreadNameSpaceType::PROCESS_ID) {
        // Only children are in the other pid namespace.
        supervise::split(false).map_err(JoinError::Fork)?;
    }

    if let Some(terminal) = host_variable(OsStr::new("TERM")) {
        environment.set("TERM", terminal);
    }
    for (name, value) in &request.environment {
        environment.set(name, value);
    }
    sys::sigpipe::restore();
    sys::process::close_on_exec_but(&request.files).map_err(JoinError::CloseFiles)?;
    privileges::give_up(rustix::process::geteuid().is_root(), is_single)?;
    Err(program::execute(&request.command, &environment, &[]).into())
}

/// What a container is to who wants to enter it later: descriptors, and what its program has.
#[derive(Debug)]
pub struct Handles {
    /// Its namespaces, those that give the right to the others first.
    pub namespaces: Vec<OwnedFd>,
    /// Its root.
    pub root: OwnedFd,
    /// The working directory of the process.
    pub directory: OwnedFd,
    /// The environment of the process.
    pub environment: Environment,
    /// Whether the user is root inside.
    pub root_inside: bool,
    /// Whether changes of owners are faked, since there is one user only.
    pub fakes_ownership: bool,
    /// What the host's GPUs are called in it, as [`Numbering`](crate::devices::grant::Numbering) writes it; nothing where that is not known.
    pub numberings: Vec<String>,
}

/// Takes what is needed to enter the container of a process later, even when the process is gone. Namespaces of process ids are left out:
/// only children are in them.
///
/// # Errors
///
/// As [`join`].
pub fn handles(pid: u32) -> Result<Handles, JoinError> {
    let target = Target::open(pid)?;
    let differing = target.namespaces()?;
    let mut namespaces = Vec::new();
    for (name, kind) in KINDS {
        if differing.contains(kind) && kind != ThreadNameSpaceType::PROCESS_ID {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            let opened = rustix::fs::openat(&target.directory, name, flags, Mode::empty());
            namespaces.push(opened.map_err(|error| target.failed(name)(error.into()))?);
        }
    }
    let map = target.read("uid_map")?;
    let map = String::from_utf8_lossy(&map);
    let handles = Handles {
        namespaces,
        root: target.directory("root")?,
        directory: target.directory("cwd")?,
        environment: target.environment()?,
        root_inside: map.split_ascii_whitespace().next() == Some("0"),
        fakes_ownership: is_single_id(&map),
        numberings: Vec::new(),
    };
    target.check_alive()?;
    Ok(handles)
}

/// The name of the mount namespace among the handles, as `/proc/PID/ns/mnt` has it.
#[must_use]
pub fn mount_namespace(handles: &Handles) -> Option<PathBuf> {
    handles.namespaces.iter().find_map(|namespace| {
        let name = fs::read_link(format!("/proc/self/fd/{}", namespace.as_raw_fd())).ok()?;
        name.as_os_str()
            .as_bytes()
            .starts_with(b"mnt:")
            .then_some(name)
    })
}

/// Whether the user namespace of this process has one user only, as an ordinary user's has: then changes of owners are faked, as for
/// the container's own program. Read where the container's `/proc` is; without one, the answer is the usual one.
fn has_single_id() -> bool {
    fs::read_to_string("/proc/self/uid_map").map_or(true, |map| is_single_id(&map))
}

fn is_single_id(map: &str) -> bool {
    let mut fields = map.split_ascii_whitespace();
    fields.nth(2) == Some("1") && fields.next().is_none()
}

/// Files of a process's directory of `/proc`, and the namespaces that they are. The user namespace gives the right to the others.
const KINDS: [(&str, ThreadNameSpaceType); 7] = [
    ("ns/user", ThreadNameSpaceType::USER),
    ("ns/mnt", ThreadNameSpaceType::MOUNT),
    ("ns/pid", ThreadNameSpaceType::PROCESS_ID),
    ("ns/net", ThreadNameSpaceType::NETWORK),
    ("ns/ipc", ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION),
    ("ns/uts", ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME),
    ("ns/cgroup", ThreadNameSpaceType::CONTROL_GROUP),
];

/// The process whose container is joined.
struct Target {
    pid: u32,
    /// Holds the process.
    pidfd: OwnedFd,
    /// Its directory of `/proc`, which stays this process's.
    directory: OwnedFd,
}

impl Target {
    /// Finds a process, which must be the caller's own.
    fn open(pid: u32) -> Result<Self, JoinError> {
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let pidfd = number
            .and_then(|number| rustix::process::pidfd_open(number, PidfdFlags::empty()).ok())
            .ok_or(JoinError::NoProcess { pid })?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(format!("/proc/{pid}"), flags, Mode::empty())
            .map_err(|_| JoinError::NoProcess { pid })?;
        let target = Self {
            pid,
            pidfd,
            directory,
        };
        let status = target.read("status")?;
        let field = |name: &[u8]| {
            let line = status
                .split(|&byte| byte == b'\n')
                .find_map(|line| line.strip_prefix(name))?;
            std::str::from_utf8(line).ok().map(str::trim)
        };
        if field(b"State:").is_none_or(|state| state.starts_with(['Z', 'X'])) {
            return Err(JoinError::NoProcess { pid });
        }
        // Real, effective, saved and file system id; as seen from here, 65534 where there is no number for it.
        let own = rustix::process::geteuid().as_raw();
        for uid in field(b"Uid:").unwrap_or_default().split_whitespace() {
            let uid = uid.parse().unwrap_or(u32::MAX);
            if uid != own {
                return Err(JoinError::Foreign { pid, uid });
            }
        }
        if field(b"Name:").is_some_and(|name| [supervise::PARENT, supervise::INIT].contains(&name))
        {
            return Err(JoinError::Helper { pid });
        }
        Ok(target)
    }

    fn failed(&self, what: &'static str) -> impl FnOnce(io::Error) -> JoinError {
        let pid = self.pid;
        move |source| match source.raw_os_error() {
            Some(libc::ESRCH | libc::ENOENT) => JoinError::NoProcess { pid },
            _ => JoinError::Read { pid, what, source },
        }
    }

    fn read(&self, name: &'static str) -> Result<Vec<u8>, JoinError> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let mut content = Vec::new();
        rustix::fs::openat(&self.directory, name, flags, Mode::empty())
            .map_err(io::Error::from)
            .and_then(|file| {
                fs::File::from(file)
                    .take(MAX_ENVIRONMENT)
                    .read_to_end(&mut content)
            })
            .map_err(self.failed(name))?;
        Ok(content)
    }

    /// Its root or working directory; a magic link, which leads there whatever it is called.
    fn directory(&self, name: &'static str) -> Result<OwnedFd, JoinError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat(&self.directory, name, flags, Mode::empty())
            .map_err(|error| self.failed(name)(error.into()))
    }

    /// The namespaces that it does not share with us. Its user namespace must be one that we have made.
    fn namespaces(&self) -> Result<ThreadNameSpaceType, JoinError> {
        let mut differing = ThreadNameSpaceType::empty();
        for (name, kind) in KINDS {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            let namespace = match rustix::fs::openat(&self.directory, name, flags, Mode::empty()) {
                Ok(namespace) => namespace,
                // A kernel that is built without this kind.
                Err(rustix::io::Errno::NOENT) if self.check_alive().is_ok() => continue,
                Err(error) => return Err(self.failed(name)(error.into())),
            };
            let theirs =
                rustix::fs::fstat(&namespace).map_err(|error| self.failed(name)(error.into()))?;
            let own = fs::metadata(format!("/proc/self/{name}")).map_err(self.failed(name))?;
            if (theirs.st_dev, theirs.st_ino) == (own.dev(), own.ino()) {
                continue;
            }
            if kind == ThreadNameSpaceType::USER {
                let owner = sys::namespace::owner(&namespace).map_err(self.failed(name))?;
                if owner != rustix::process::geteuid().as_raw() {
                    return Err(JoinError::Foreign {
                        pid: self.pid,
                        uid: owner,
                    });
                }
            }
            differing |= kind;
        }
        let container = ThreadNameSpaceType::USER | ThreadNameSpaceType::MOUNT;
        if differing.contains(container) {
            Ok(differing)
        } else {
            Err(JoinError::NotContained { pid: self.pid })
        }
    }

    fn environment(&self) -> Result<Environment, JoinError> {
        let mut environment = Environment::default();
        for assignment in self.read("environ")?.split(|&byte| byte == 0) {
            environment.set_any(OsStr::from_bytes(assignment));
        }
        Ok(environment)
    }

    /// Makes sure that the process is still there: then all that was read under its number was read of it.
    fn check_alive(&self) -> Result<(), JoinError> {
        let mut event = [rustix::event::PollFd::new(
            &self.pidfd,
            rustix::event::PollFlags::IN,
        )];
        let now = rustix::event::Timespec::default();
        match rustix::event::poll(&mut event, Some(&now)) {
            Ok(0) => Ok(()),
            _ => Err(JoinError::NoProcess { pid: self.pid }),
        }
    }
}
