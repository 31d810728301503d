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
use crate::container::{self, Spec, StartError, handover};
use crate::observe;
use crate::sys;

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
        match make(construction).and_then(|(mount, environment)| tell(&theirs, mount, &environment))
        {
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
    let mut mount = String::new();
    let handles = match told {
        Some((_, files)) => {
            let environment = files
                .into_iter()
                .next()
                .ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))
                .and_then(read)
                .map(|(method, environment)| {
                    mount = method;
                    environment
                })
                .map_err(BuildError::Talk);
            let handles = join::handles(child.pid()).map_err(BuildError::Take);
            Some(handles.and_then(|handles| {
                Ok(Handles {
                    environment: environment?,
                    ..handles
                })
            }))
        }
        None => None,
    };
    drop(ours);
    child.wait().map_err(BuildError::Process)?;
    Ok(handles.transpose()?.map(|handles| (handles, mount)))
}

/// In the child: makes the container, goes into it, and gives the environment of its programs.
fn make(construction: &Construction<'_>) -> Result<(&'static str, Environment), BuildError> {
    let ready = container::prepare(
        construction.spec,
        construction.config,
        construction.tell,
        construction.warn,
    )?;
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
    Ok((ready.mount, environment))
}

fn tell(socket: &OwnedFd, mount: &str, environment: &Environment) -> Result<(), BuildError> {
    let write = || {
        let mut file = File::from(rustix::fs::memfd_create(c"cista", MemfdFlags::CLOEXEC)?);
        file.write_all(mount.as_bytes())?;
        file.write_all(b"\0")?;
        for string in environment.strings() {
            file.write_all(string.as_bytes_with_nul())?;
        }
        file.rewind()?;
        channel::send(socket, channel::YES, &[file.as_fd()])?;
        Ok(())
    };
    write().map_err(BuildError::Talk)
}

fn read(file: OwnedFd) -> io::Result<(String, Environment)> {
    let mut text = Vec::new();
    File::from(file)
        .take(MAX_ENVIRONMENT)
        .read_to_end(&mut text)?;
    let mut strings = text.split(|&byte| byte == 0);
    let mount = strings.next().unwrap_or_default();
    let mut environment = Environment::default();
    for assignment in strings {
        environment.set_any(OsStr::from_bytes(assignment));
    }
    Ok((String::from_utf8_lossy(mount).into_owned(), environment))
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
