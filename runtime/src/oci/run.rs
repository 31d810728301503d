//! From a bundle to its program, as one linear sequence; the counterpart of `container::start`.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd, RawFd};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::Mode;
use rustix::mount::MountAttrFlags;
use rustix::process::{Resource, Rlimit};
use rustix::thread::UnshareFlags;
use rustix::thread::{Gid, Uid};

use super::bundle::Bundle;
use super::capabilities;
use super::mounts::{self, BundleMountError};
use super::state::{Entry, Record, StateError};
use crate::container::environment::Environment;
use crate::container::identity_map::{self, IdMap, UserNamespaceError};
use crate::container::layers;
use crate::container::mounts::MountError;
use crate::container::privileges::{self, PrivilegeError};
use crate::container::program::{self, ProgramError};
use crate::container::rootfs::Rootfs;
use crate::container::running;
use crate::container::start::{switch_root, tree_mount};
use crate::sys::{self, supervise};

/// The step that failed.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// No namespaces.
    #[error(transparent)]
    UserNamespace(#[from] UserNamespaceError),
    /// The loopback interface cannot be brought up.
    #[error("cannot bring up the loopback interface of the network namespace")]
    Loopback(#[source] io::Error),
    /// There is no process in the new pid namespace.
    #[error("cannot make a process in the new pid namespace")]
    Fork(#[source] io::Error),
    /// The record cannot be written.
    #[error(transparent)]
    State(#[from] StateError),
    /// Something about this process cannot be read or set.
    #[error("cannot {operation}")]
    Process {
        /// What was tried.
        operation: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// The bundle's root cannot be used.
    #[error("cannot use the root file system `{path}`")]
    Root {
        /// The bundle's directory.
        path: PathBuf,
        /// Why.
        source: MountError,
    },
    /// A mount of the bundle failed.
    #[error(transparent)]
    BundleMount(#[from] BundleMountError),
    /// A mount failed.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The root could not be made read-only or switched.
    #[error("cannot switch to the root file system")]
    Switch(#[source] io::Error),
    /// The working directory cannot be entered.
    #[error("cannot change to the directory `{path}` in the container")]
    Directory {
        /// Path in the container.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A limit cannot be set.
    #[error("cannot set the limit {name}")]
    Limit {
        /// Its name.
        name: String,
        /// The system's answer.
        source: io::Error,
    },
    /// Nobody started the container before whoever could have went away.
    #[error("the container was not started")]
    NotStarted,
    /// Privileges could not be given up.
    #[error(transparent)]
    Privileges(#[from] PrivilegeError),
    /// The program could not be executed.
    #[error(transparent)]
    Program(#[from] ProgramError),
}

/// Where a created container waits before its program is executed.
#[derive(Debug)]
pub struct Gate {
    /// What `start` writes to; see [`Entry::gate`].
    pub pipe: OwnedFd,
    /// Who created the container waits at the other end for a byte.
    pub ready: OwnedFd,
}

fn process(operation: &'static str) -> impl Fn(io::Error) -> RunError {
    move |source| RunError::Process { operation, source }
}

/// Becomes the program of a bundle. Returns only an error. `files` are open files that the program gets.
///
/// # Errors
///
/// The step that failed; the process can say so and end.
pub fn run(
    bundle: &Bundle,
    entry: &Entry,
    gate: Option<Gate>,
    files: &[RawFd],
    warn: &dyn Fn(&str),
) -> Result<Infallible, RunError> {
    for field in &bundle.ignored {
        warn(&format!("`{field}` of the bundle is ignored"));
    }
    let pid = std::process::id();
    rustix::process::umask(Mode::empty());
    if let Some(adjustment) = bundle.process.oom_score_adj {
        fs::write("/proc/self/oom_score_adj", adjustment.to_string())
            .map_err(process("set `process.oomScoreAdj`"))?;
    }

    // The namespaces.
    identity_map::enter(bundle.map, bundle.namespaces)?;
    record(bundle, entry, pid)?;
    if bundle.namespaces.contains(UnshareFlags::NEWNET) {
        sys::network::loopback_up().map_err(RunError::Loopback)?;
    }
    set_names(bundle)?;
    if bundle.namespaces.contains(UnshareFlags::NEWPID) {
        supervise::split(true).map_err(RunError::Fork)?;
    }

    // What is wanted of the host, then the root and all that is mounted in it.
    let prepared = mounts::take(bundle)?;
    let root = tree_mount(&bundle.root)
        .and_then(layers::direct)
        .map_err(|source| RunError::Root {
            path: bundle.root.clone(),
            source,
        })?;
    let rootfs = Rootfs::new(root);
    mounts::mount(&rootfs, prepared, bundle.process.terminal.unwrap_or(false))?;
    mounts::protect(&rootfs, bundle)?;
    mounts::make_directory(&rootfs, &bundle.process.cwd);
    if bundle.readonly {
        sys::mount::set_attributes(
            rootfs.root(),
            MountAttrFlags::MOUNT_ATTR_RDONLY,
            MountAttrFlags::empty(),
            false,
        )
        .map_err(RunError::Switch)?;
    }
    switch_root(&rootfs, &|_| ()).map_err(|error| RunError::Switch(error.into()))?;
    drop(rootfs);

    // The state of the program's process.
    for limit in bundle.process.rlimits.iter().flatten() {
        let name = limit.kind.clone();
        let values = Rlimit {
            current: Some(limit.soft),
            maximum: Some(limit.hard),
        };
        resource(&limit.kind)
            .map_or(Err(rustix::io::Errno::INVAL), |resource| {
                rustix::process::setrlimit(resource, values)
            })
            .map_err(|error| RunError::Limit {
                name,
                source: error.into(),
            })?;
    }
    let umask = bundle.process.user.umask.unwrap_or(0o022);
    rustix::process::umask(Mode::from_raw_mode(umask & 0o777));
    if let Some(gate) = gate {
        wait(gate)?;
    }
    sys::sigpipe::restore();
    sys::process::close_on_exec_but(files).map_err(process("close files"))?;
    take_user(bundle)?;
    let directory = &bundle.process.cwd;
    rustix::process::chdir(directory).map_err(|error| RunError::Directory {
        path: directory.clone(),
        source: error.into(),
    })?;
    let limits = capabilities::limits(bundle.process.capabilities.as_ref());
    // The filter first, whose installation is checked against the same rules as in `start`; then what the bundle leaves.
    privileges::give_up(true, bundle.map != IdMap::Identity)?;
    privileges::limit(&limits)?;
    let mut environment = Environment::default();
    for assignment in bundle.environment() {
        environment.set_any(assignment);
    }
    Err(program::execute(&bundle.command(), &environment, &[]).into())
}

/// Writes down who runs.
fn record(bundle: &Bundle, entry: &Entry, pid: u32) -> Result<(), RunError> {
    let mount_namespace =
        fs::read_link("/proc/self/ns/mnt").map_err(process("read `/proc/self/ns/mnt`"))?;
    let (started, _) = running::start_and_state(pid)
        .ok_or_else(|| process("read `/proc/self/stat`")(io::ErrorKind::NotFound.into()))?;
    let created = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    entry.write(&Record {
        pid,
        started,
        mount_namespace,
        bundle: bundle.directory.clone(),
        rootfs: bundle.root.clone(),
        created,
        annotations: bundle.spec.annotations.clone().unwrap_or_default(),
    })?;
    Ok(())
}

fn set_names(bundle: &Bundle) -> Result<(), RunError> {
    if let Some(name) = &bundle.spec.hostname {
        rustix::system::sethostname(name.as_bytes())
            .map_err(|error| process("set the host name")(error.into()))?;
    }
    if let Some(name) = &bundle.spec.domainname {
        rustix::system::setdomainname(name.as_bytes())
            .map_err(|error| process("set the domain name")(error.into()))?;
    }
    Ok(())
}

/// Says that all is ready, and waits for `start`.
fn wait(gate: Gate) -> Result<(), RunError> {
    rustix::io::write(&gate.ready, b"+")
        .map_err(|error| process("tell that the container is created")(error.into()))?;
    drop(gate.ready);
    loop {
        let mut event = [rustix::event::PollFd::new(
            &gate.pipe,
            rustix::event::PollFlags::IN,
        )];
        let mut byte = [0];
        match rustix::event::poll(&mut event, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(process("wait to be started")(error.into())),
        }
        match rustix::io::read(gate.pipe.as_fd(), &mut byte) {
            Ok(1) => return Ok(()),
            Ok(_) => return Err(RunError::NotStarted),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Err(error) => return Err(process("wait to be started")(error.into())),
        }
    }
}

/// Becomes the user of the bundle. In a namespace of one user that is so already.
fn take_user(bundle: &Bundle) -> Result<(), RunError> {
    if bundle.map != IdMap::Identity {
        return Ok(());
    }
    let failed = |error: rustix::io::Errno| process("become the user of the bundle")(error.into());
    let user = &bundle.process.user;
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    let groups: Vec<Gid> = user
        .additional_gids
        .iter()
        .flatten()
        .map(|gid| Gid::from_raw(*gid))
        .collect();
    // What remains is decided by the sets of the bundle, not by the change of the user.
    rustix::thread::set_keep_capabilities(true).map_err(failed)?;
    rustix::thread::set_thread_groups(&groups).map_err(failed)?;
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(failed)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(failed)?;
    // The change took the effective ones away.
    let mut sets = rustix::thread::capabilities(None).map_err(failed)?;
    sets.effective = sets.permitted;
    rustix::thread::set_capabilities(None, sets).map_err(failed)
}

fn resource(kind: &str) -> Option<Resource> {
    Some(match kind {
        "RLIMIT_CPU" => Resource::Cpu,
        "RLIMIT_FSIZE" => Resource::Fsize,
        "RLIMIT_DATA" => Resource::Data,
        "RLIMIT_STACK" => Resource::Stack,
        "RLIMIT_CORE" => Resource::Core,
        "RLIMIT_RSS" => Resource::Rss,
        "RLIMIT_NPROC" => Resource::Nproc,
        "RLIMIT_NOFILE" => Resource::Nofile,
        "RLIMIT_MEMLOCK" => Resource::Memlock,
        "RLIMIT_AS" => Resource::As,
        "RLIMIT_LOCKS" => Resource::Locks,
        "RLIMIT_SIGPENDING" => Resource::Sigpending,
        "RLIMIT_MSGQUEUE" => Resource::Msgqueue,
        "RLIMIT_NICE" => Resource::Nice,
        "RLIMIT_RTPRIO" => Resource::Rtprio,
        "RLIMIT_RTTIME" => Resource::Rttime,
        _ => return None,
    })
}
