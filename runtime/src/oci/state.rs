//! What is known of a container: a directory with its name below the state root.
//!
//! - `state.json`: a [`Record`], written before the program is executed
//! - `start`: a named pipe, while a created container waits to be started; who writes a byte to it starts the container
//!
//! Whether a container runs is not written down but looked up: its process is there, and was started when the record says.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, Signal};
use serde::{Deserialize, Serialize};

use crate::container::running;

const RECORD: &str = "state.json";
const NEW_RECORD: &str = "state.new";
const START: &str = "start";

/// Longest record that is read, in bytes.
const MAX_RECORD: usize = 1 << 20;

/// Longest name of a container, in bytes.
const MAX_ID: usize = 200;

/// What is written down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its process, or the one that stands for it.
    pub pid: u32,
    /// When that process was started, in clock ticks since the system was.
    pub started: u64,
    /// Its mount namespace, as `/proc/PID/ns/mnt` shows it.
    pub mount_namespace: PathBuf,
    /// The bundle's directory.
    pub bundle: PathBuf,
    /// The bundle's root file system.
    pub rootfs: PathBuf,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// The bundle's annotations.
    pub annotations: HashMap<String, String>,
}

/// Where a container is in its life; the names are the specification's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It is being made.
    Creating,
    /// It waits to be started.
    Created,
    /// Its program runs.
    Running,
    /// Its program has ended.
    Stopped,
}

/// Why a container cannot be handled.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The name cannot be that of a directory.
    #[error(
        "`{id}` is not a name for a container: letters, digits, `_`, `+`, `-` and `.` are, with a letter or digit first"
    )]
    BadName {
        /// The name.
        id: String,
    },
    /// There is no such container.
    #[error("no container `{id}`")]
    NotFound {
        /// Its name.
        id: String,
    },
    /// There is one already.
    #[error("there is a container `{id}` already")]
    Exists {
        /// Its name.
        id: String,
    },
    /// The container is not where it would have to be in its life.
    #[error("container `{id}` is {}", name(*.status))]
    Status {
        /// Its name.
        id: String,
        /// Where it is.
        status: Status,
    },
    /// A record is not understood.
    #[error("`{path}` is malformed")]
    Record {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The operating system refused something.
    #[error("cannot {operation} `{path}`")]
    System {
        /// What was tried.
        operation: &'static str,
        /// On which path.
        path: PathBuf,
        /// Its answer.
        source: io::Error,
    },
    /// The container's process could not be sent a signal.
    #[error("cannot send a signal to container `{id}`")]
    Signal {
        /// Its name.
        id: String,
        /// The system's answer.
        source: io::Error,
    },
    /// The container did not end.
    #[error("container `{id}` was killed and has not ended")]
    Survives {
        /// Its name.
        id: String,
    },
}

/// The name of a status.
#[must_use]
pub fn name(status: Status) -> &'static str {
    match status {
        Status::Creating => "being created",
        Status::Created => "created",
        Status::Running => "running",
        Status::Stopped => "stopped",
    }
}

fn system(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    let path = path.to_owned();
    move |source| StateError::System {
        operation,
        path,
        source,
    }
}

/// A container that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    id: String,
    directory: PathBuf,
}

impl Entry {
    /// Names a container, which need not be there.
    ///
    /// # Errors
    ///
    /// [`StateError::BadName`].
    pub fn new(root: &Path, id: &str) -> Result<Self, StateError> {
        let is_good = id.len() <= MAX_ID
            && id.starts_with(|first: char| first.is_ascii_alphanumeric())
            && id
                .chars()
                .all(|char| char.is_ascii_alphanumeric() || "_+-.".contains(char));
        if !is_good {
            return Err(StateError::BadName { id: id.to_owned() });
        }
        Ok(Self {
            id: id.to_owned(),
            directory: root.join(id),
        })
    }

    /// Makes its directory. One of a container that has ended is replaced with `replace`.
    ///
    /// # Errors
    ///
    /// There is such a container; the directory cannot be made.
    pub fn make(&self, replace: bool) -> Result<(), StateError> {
        if let Some(root) = self.directory.parent() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(root)
                .map_err(system("create", root))?;
        }
        let exists = || StateError::Exists {
            id: self.id.clone(),
        };
        for attempt in 0..2 {
            match fs::DirBuilder::new().mode(0o700).create(&self.directory) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    if attempt > 0 || !replace || self.status()? != Status::Stopped {
                        return Err(exists());
                    }
                    self.remove()?;
                }
                Err(error) => return Err(system("create", &self.directory)(error)),
            }
        }
        Err(exists())
    }

    /// Opens what is needed to remove it when its paths lead somewhere else.
    ///
    /// # Errors
    ///
    /// It cannot be opened.
    pub fn hold(&self) -> Result<Held, StateError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(&self.directory, flags, Mode::empty());
        let root = rustix::fs::open(self.directory.join(".."), flags, Mode::empty());
        let (directory, root) = directory
            .and_then(|directory| Ok((directory, root?)))
            .map_err(|error| system("open", &self.directory)(error.into()))?;
        Ok(Held {
            id: self.id.clone(),
            directory,
            root,
        })
    }

    /// Writes its record, whole or not at all.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn write(&self, record: &Record) -> Result<(), StateError> {
        let path = self.directory.join(RECORD);
        let new = self.directory.join(NEW_RECORD);
        let text = serde_json::to_vec(record).map_err(|source| StateError::Record {
            path: path.clone(),
            source,
        })?;
        fs::write(&new, text).map_err(system("write", &new))?;
        fs::rename(&new, &path).map_err(system("write", &path))
    }

    /// Reads its record; None while it is being created.
    ///
    /// # Errors
    ///
    /// There is no such container; its record is not understood.
    pub fn read(&self) -> Result<Option<Record>, StateError> {
        let path = self.directory.join(RECORD);
        match fs::read(&path) {
            Ok(text) if text.len() > MAX_RECORD => Err(system("read", &path)(
                io::Error::from_raw_os_error(libc::EFBIG),
            )),
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .map_err(|source| StateError::Record { path, source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if self.directory.is_dir() {
                    Ok(None)
                } else {
                    Err(StateError::NotFound {
                        id: self.id.clone(),
                    })
                }
            }
            Err(error) => Err(system("read", &path)(error)),
        }
    }

    /// Where it is in its life.
    ///
    /// # Errors
    ///
    /// As for [`Self::read`].
    pub fn status(&self) -> Result<Status, StateError> {
        let Some(record) = self.read()? else {
            return Ok(Status::Creating);
        };
        Ok(match process(&record) {
            None => Status::Stopped,
            Some(_) if self.directory.join(START).exists() => Status::Created,
            Some(_) => Status::Running,
        })
    }

    /// Makes the pipe that a created container waits at, and opens it for waiting.
    ///
    /// # Errors
    ///
    /// It cannot be made.
    pub fn gate(&self) -> Result<OwnedFd, StateError> {
        let path = self.directory.join(START);
        let mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0)
            .and_then(|()| {
                let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
                rustix::fs::open(&path, flags, Mode::empty())
            })
            .map_err(|error| system("create", &path)(error.into()))
    }

    /// Starts a created container. Returns when its program is executed, or could not be.
    ///
    /// # Errors
    ///
    /// It does not wait to be started.
    pub fn start(&self) -> Result<(), StateError> {
        let status = self.status()?;
        let wrong = || StateError::Status {
            id: self.id.clone(),
            status,
        };
        if status != Status::Created {
            return Err(wrong());
        }
        let path = self.directory.join(START);
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let pipe = rustix::fs::open(&path, flags, Mode::empty()).map_err(|_| wrong())?;
        // Who removes it starts the container: nobody does so twice.
        fs::remove_file(&path).map_err(|_| wrong())?;
        rustix::io::write(&pipe, b"+").map_err(|_| wrong())?;
        // The program does not get the pipe: it breaks when it is executed.
        let mut event = [rustix::event::PollFd::new(
            &pipe,
            rustix::event::PollFlags::ERR,
        )];
        let patience = rustix::event::Timespec {
            tv_sec: 10,
            tv_nsec: 0,
        };
        let _ = rustix::event::poll(&mut event, Some(&patience));
        Ok(())
    }

    /// Sends a signal to its process, or with `all` to every process in it.
    ///
    /// The other processes are those in its mount namespace, whose number is its own as long as its first process lives, and may be another
    /// container's afterwards. So what outlives the first process is left to the job's control group.
    ///
    /// # Errors
    ///
    /// It does not run.
    pub fn kill(&self, signal: Signal, all: bool) -> Result<(), StateError> {
        let record = self.read()?;
        let held = record
            .as_ref()
            .and_then(|record| Some((record, process(record)?)));
        let Some((record, process)) = held else {
            return Err(StateError::Status {
                id: self.id.clone(),
                status: self.status()?,
            });
        };
        if all {
            for pid in running::in_mount_namespace(&record.mount_namespace) {
                let Some(other) = pidfd(pid).filter(|_| pid != record.pid) else {
                    continue;
                };
                // Still the one that was looked at, and the namespace still this container's.
                if running::is_in_mount_namespace(pid, &record.mount_namespace) && lives(&process) {
                    // It may have ended by itself.
                    let _ = rustix::process::pidfd_send_signal(&other, signal);
                }
            }
        }
        rustix::process::pidfd_send_signal(&process, signal).map_err(|error| StateError::Signal {
            id: self.id.clone(),
            source: error.into(),
        })
    }

    /// Forgets a container that has ended; with `force` one that has not is killed before.
    ///
    /// # Errors
    ///
    /// It runs, or does not end; its directory cannot be removed.
    pub fn delete(&self, force: bool) -> Result<(), StateError> {
        let status = self.status()?;
        if status != Status::Stopped {
            if !force {
                return Err(StateError::Status {
                    id: self.id.clone(),
                    status,
                });
            }
            let process = self.read()?.as_ref().and_then(process);
            let _ = self.kill(Signal::KILL, true);
            if let Some(process) = process {
                let mut event = [rustix::event::PollFd::new(
                    &process,
                    rustix::event::PollFlags::IN,
                )];
                let patience = rustix::event::Timespec {
                    tv_sec: 10,
                    tv_nsec: 0,
                };
                if !matches!(rustix::event::poll(&mut event, Some(&patience)), Ok(1)) {
                    return Err(StateError::Survives {
                        id: self.id.clone(),
                    });
                }
            }
        }
        self.remove()
    }

    /// Removes its directory.
    ///
    /// # Errors
    ///
    /// It cannot be removed.
    pub fn remove(&self) -> Result<(), StateError> {
        fs::remove_dir_all(&self.directory).map_err(system("remove", &self.directory))
    }

    /// What the specification calls the state of a container.
    ///
    /// # Errors
    ///
    /// As for [`Self::read`].
    pub fn report(&self) -> Result<Report, StateError> {
        let record = self.read()?;
        let status = self.status()?;
        let lives = matches!(status, Status::Created | Status::Running);
        let record = record.unwrap_or_else(|| Record {
            pid: 0,
            started: 0,
            mount_namespace: PathBuf::new(),
            bundle: PathBuf::new(),
            rootfs: PathBuf::new(),
            created: 0,
            annotations: HashMap::new(),
        });
        Ok(Report {
            oci_version: "1.0.2",
            id: self.id.clone(),
            status,
            pid: if lives { record.pid } else { 0 },
            bundle: record.bundle,
            rootfs: record.rootfs,
            created: record.created,
            annotations: record.annotations,
        })
    }
}

/// A container's directory, by descriptors: a process that has switched to the container's root still reaches it by them alone.
#[derive(Debug)]
pub struct Held {
    id: String,
    directory: OwnedFd,
    root: OwnedFd,
}

impl Held {
    /// Removes it; what cannot be removed stays as a container that has ended.
    pub fn remove(self) {
        for name in [RECORD, NEW_RECORD, START] {
            let _ = rustix::fs::unlinkat(&self.directory, name, AtFlags::empty());
        }
        let _ = rustix::fs::unlinkat(&self.root, self.id.as_str(), AtFlags::REMOVEDIR);
    }
}

/// What `state` prints: the specification's fields, and `rootfs` and `created` (in seconds since 1970) besides.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    oci_version: &'static str,
    id: String,
    status: Status,
    pid: u32,
    bundle: PathBuf,
    rootfs: PathBuf,
    created: u64,
    annotations: HashMap<String, String>,
}

fn pidfd(pid: u32) -> Option<OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
    rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok()
}

/// Whether a process that is held has not ended.
fn lives(pidfd: &OwnedFd) -> bool {
    let mut event = [rustix::event::PollFd::new(
        pidfd,
        rustix::event::PollFlags::IN,
    )];
    let now = rustix::event::Timespec::default();
    matches!(rustix::event::poll(&mut event, Some(&now)), Ok(0))
}

/// The process of a record, held; None where it has ended.
fn process(record: &Record) -> Option<OwnedFd> {
    let held = pidfd(record.pid)?;
    let (started, state) = running::start_and_state(record.pid)?;
    (started == record.started && !matches!(state, 'Z' | 'X')).then_some(held)
}

/// A signal by number or name, with or without `SIG`.
#[must_use]
pub fn signal(text: &str) -> Option<Signal> {
    const NAMES: [(&str, Signal); 31] = [
        ("HUP", Signal::HUP),
        ("INT", Signal::INT),
        ("QUIT", Signal::QUIT),
        ("ILL", Signal::ILL),
        ("TRAP", Signal::TRAP),
        ("ABRT", Signal::ABORT),
        ("BUS", Signal::BUS),
        ("FPE", Signal::FPE),
        ("KILL", Signal::KILL),
        ("USR1", Signal::USR1),
        ("SEGV", Signal::SEGV),
        ("USR2", Signal::USR2),
        ("PIPE", Signal::PIPE),
        ("ALRM", Signal::ALARM),
        ("TERM", Signal::TERM),
        ("STKFLT", Signal::STKFLT),
        ("CHLD", Signal::CHILD),
        ("CONT", Signal::CONT),
        ("STOP", Signal::STOP),
        ("TSTP", Signal::TSTP),
        ("TTIN", Signal::TTIN),
        ("TTOU", Signal::TTOU),
        ("URG", Signal::URG),
        ("XCPU", Signal::XCPU),
        ("XFSZ", Signal::XFSZ),
        ("VTALRM", Signal::VTALARM),
        ("PROF", Signal::PROF),
        ("WINCH", Signal::WINCH),
        ("IO", Signal::IO),
        ("PWR", Signal::POWER),
        ("SYS", Signal::SYS),
    ];
    if let Ok(number) = text.parse::<i32>() {
        return Signal::from_named_raw(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    NAMES
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, signal)| *signal)
}

/// The default place of state, below the run-time directory.
pub const DIRECTORY: &str = "oci";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_by_name_and_number() {
        for (text, expected) in [
            ("TERM", Some(Signal::TERM)),
            ("SIGKILL", Some(Signal::KILL)),
            ("sigusr1", Some(Signal::USR1)),
            ("9", Some(Signal::KILL)),
            ("0", None),
            ("SIGNONE", None),
            ("", None),
        ] {
            assert_eq!(signal(text), expected, "{text}");
        }
    }

    #[test]
    fn names_are_no_paths() {
        let root = Path::new("/run/x");
        for id in ["a", "node1.1000.7.0.3", "a_b+c-d"] {
            assert_eq!(Entry::new(root, id).unwrap().directory, root.join(id));
        }
        for id in ["", ".", "..", "a/b", "-a", ".a", "a b", "\u{e9}"] {
            assert!(Entry::new(root, id).is_err(), "{id}");
        }
    }

    #[test]
    fn a_record_of_a_process_that_is_gone_is_stopped() {
        let scratch = tempfile::tempdir().unwrap();
        let entry = Entry::new(scratch.path(), "c").unwrap();
        assert!(matches!(entry.status(), Err(StateError::NotFound { .. })));
        entry.make(false).unwrap();
        assert_eq!(entry.status().unwrap(), Status::Creating);
        let pid = std::process::id();
        let mut record = Record {
            pid,
            started: running::start_and_state(pid).unwrap().0,
            mount_namespace: PathBuf::new(),
            bundle: "/b".into(),
            rootfs: "/b/rootfs".into(),
            created: 1,
            annotations: HashMap::new(),
        };
        entry.write(&record).unwrap();
        assert_eq!(entry.status().unwrap(), Status::Running);
        assert!(matches!(
            entry.delete(false),
            Err(StateError::Status { .. })
        ));
        assert!(matches!(entry.make(true), Err(StateError::Exists { .. })));
        // Another process has the number now.
        record.started += 1;
        entry.write(&record).unwrap();
        assert_eq!(entry.status().unwrap(), Status::Stopped);
        assert!(matches!(entry.make(false), Err(StateError::Exists { .. })));
        entry.make(true).unwrap();
        entry.remove().unwrap();
    }
}
