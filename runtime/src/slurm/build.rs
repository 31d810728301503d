//! Making the container of a step: a child of the holder makes it, goes into it, tells what the tasks' environment is, and ends.
//!
//! The holder takes the child's namespaces, root and working directory meanwhile, from outside. They last as long as it has them.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::MemfdFlags;

use super::channel;
use super::entrypoint::{self, EntrypointError};
use crate::config::Config;
use crate::container::environment::Environment;
use crate::container::fstab::{self, Entry};
use crate::container::join::{self, Handles, JoinError};
use crate::container::{self, Ready, Spec, StartError, device_hooks, handover, privileges};
use crate::observe;
use crate::{sys, ui};

/// Longest environment that is taken from the child, in bytes.
const MAX_ENVIRONMENT: u64 = 64 << 20;

/// What is made, and how.
pub struct Construction<'a> {
    /// The container.
    pub spec: &'a Spec,
    /// The settings.
    pub config: &'a Config,
    /// The working directory; None for the image's.
    pub directory: Option<&'a Path>,
    /// Whether the output of the entrypoint is shown.
    pub entrypoint_log: bool,
    /// Gets what `--verbose` shows.
    pub tell: &'a dyn Fn(&str),
    /// Gets what everybody should see.
    pub warn: &'a dyn Fn(&str),
}

/// Why there is no container.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The container could not be made.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The working directory cannot be entered.
    #[error("cannot change to the directory `{path}` in the container")]
    Directory {
        /// Path in the container.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A hook of a device failed in the container, and has been told of.
    #[error("a hook of a device failed in the container (status {status})")]
    Hook {
        /// Of the process that ran it.
        status: i32,
    },
    /// The entrypoint failed.
    #[error(transparent)]
    Entrypoint(#[from] EntrypointError),
    /// There is no process to make it.
    #[error("cannot make a process for the container")]
    Process(#[source] io::Error),
    /// The child and the holder cannot talk.
    #[error("cannot talk to the process that makes the container")]
    Talk(#[source] io::Error),
    /// The child's namespaces cannot be taken.
    #[error("cannot take hold of the container")]
    Take(#[source] JoinError),
}

/// Makes the container, and says how its image is mounted. `show` shows the child's failure, in the child; None then.
///
/// # Errors
///
/// What is not the child's failure.
pub fn build(
    construction: &Construction<'_>,
    show: &dyn Fn(BuildError),
) -> Result<Option<(Handles, String)>, BuildError> {
    let (ours, theirs) = handover::pair().map_err(|error| BuildError::Talk(error.into()))?;
    let mut theirs = Some(theirs);
    let mut ours = Some(ours);
    let child = sys::process::spawn_helper(|| {
        drop(ours.take());
        let Some(theirs) = theirs.take() else {
            return 1;
        };
        match make(construction).and_then(|made| tell(&theirs, &made)) {
            Ok(()) => {
                // Until the holder has taken what it needs.
                channel::wait_until_closed(&theirs);
                0
            }
            Err(error) => {
                observe::failed();
                show(error);
                1
            }
        }
    })
    .map_err(BuildError::Process)?;
    // The child tells of the start.
    observe::forget();
    drop(theirs);
    let told = ours.as_ref().and_then(channel::receive);
    let handles = match told {
        Some((_, files)) => {
            let made = files
                .into_iter()
                .next()
                .ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))
                .and_then(read)
                .map_err(BuildError::Talk);
            let handles = join::handles(child.pid()).map_err(BuildError::Take);
            Some(handles.and_then(|handles| {
                let made = made?;
                let handles = Handles {
                    environment: made.environment,
                    numberings: made.numberings,
                    ..handles
                };
                Ok((handles, made.mount))
            }))
        }
        None => None,
    };
    drop(ours);
    child.wait().map_err(BuildError::Process)?;
    handles.transpose()
}

/// What the child tells of the container that it has made.
struct Made {
    /// How the image is mounted.
    mount: String,
    /// What the host's GPUs are called.
    numberings: Vec<String>,
    /// The environment of its programs.
    environment: Environment,
}

/// In the child: makes the container, and goes into it.
fn make(construction: &Construction<'_>) -> Result<Made, BuildError> {
    let ready = container::prepare(
        construction.spec,
        construction.config,
        construction.tell,
        construction.warn,
    )?;
    if !ready.hooks.is_empty() {
        run_hooks(&ready)?;
    }
    let mut environment = ready.plan.environment.clone();
    for (name, value) in &ready.plan.login {
        environment.set_default(name, value);
    }
    if !construction.spec.without_entrypoint {
        entrypoint::run(&ready, &mut environment, construction.entrypoint_log)?;
    }
    if let Some(path) = construction.directory {
        rustix::process::chdir(path).map_err(|error| BuildError::Directory {
            path: path.to_owned(),
            source: error.into(),
        })?;
    }
    Ok(Made {
        mount: ready.mount.to_owned(),
        numberings: ready.numberings.iter().map(ToString::to_string).collect(),
        environment,
    })
}

/// Runs the hooks of devices that come before a program of the container, as such a program: in a process that has given up its privileges.
fn run_hooks(ready: &Ready) -> Result<(), BuildError> {
    let starter = rustix::process::getpid().as_raw_pid();
    let child = sys::process::spawn_helper(|| {
        let is_left = sys::process::close_on_exec_but(&[]).is_ok()
            && privileges::give_up(ready.root_inside, ready.fakes_ownership).is_ok();
        if !is_left {
            return 125;
        }
        match device_hooks::run_inside(&ready.hooks, starter) {
            Ok(()) => 0,
            Err(error) => {
                ui::message(format_args!("error: {}", ui::chain(&error)));
                1
            }
        }
    })
    .map_err(BuildError::Process)?;
    match child.wait().map_err(BuildError::Process)? {
        0 => Ok(()),
        status => Err(BuildError::Hook { status }),
    }
}

/// Strings that end in NUL: how the image is mounted, the numberings, each on a line, and then the environment.
fn tell(socket: &OwnedFd, made: &Made) -> Result<(), BuildError> {
    let write = || {
        let mut file = File::from(rustix::fs::memfd_create(c"cista", MemfdFlags::CLOEXEC)?);
        file.write_all(made.mount.as_bytes())?;
        file.write_all(b"\0")?;
        file.write_all(made.numberings.join("\n").as_bytes())?;
        file.write_all(b"\0")?;
        for string in made.environment.strings() {
            file.write_all(string.as_bytes_with_nul())?;
        }
        file.rewind()?;
        channel::send(socket, channel::YES, &[file.as_fd()])?;
        Ok(())
    };
    write().map_err(BuildError::Talk)
}

fn read(file: OwnedFd) -> io::Result<Made> {
    let mut text = Vec::new();
    File::from(file)
        .take(MAX_ENVIRONMENT)
        .read_to_end(&mut text)?;
    let mut strings = text.split(|&byte| byte == 0);
    let mut text = || String::from_utf8_lossy(strings.next().unwrap_or_default()).into_owned();
    let (mount, numberings) = (text(), text());
    let mut environment = Environment::default();
    for assignment in strings {
        environment.set_any(OsStr::from_bytes(assignment));
    }
    Ok(Made {
        mount,
        numberings: numberings.lines().map(str::to_owned).collect(),
        environment,
    })
}

/// A mount of a file of the node, such as a batch script or a terminal.
#[must_use]
pub fn file_mount(file: &Path, target: &Path, options: &str) -> Option<Entry> {
    let fields = [
        file.as_os_str(),
        target.as_os_str(),
        OsStr::new("none"),
        OsStr::new(options),
    ];
    fstab::parse_fields(fields).ok()
}
