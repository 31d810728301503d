//! Hooks that come with devices, run as the OCI runtime specification says ("POSIX-platform Hooks"), as far as they were not done natively.
//!
//! - `prestart`, `createRuntime`, `createContainer` run where the [hooks](super::hooks) of the administrator run, just before them: in the container's namespaces with
//!   every capability there and no other, on the host's files, with the root mounted at a path;
//! - `startContainer` is a program of the container, run in it with the rights of the container's program, just before that;
//! - `poststart` and `poststop` are run by a [`companion`](super::companion).
//!
//! As the specification wants, a hook gets the state of the container on its standard input, and a bundle whose `config.json` says where the root is; and its own
//! variables and no others. A hook that takes longer than its description allows is killed, and one that fails stops the start. In the
//! container there is no bundle: its path is that of the root.

use std::fmt;
use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::Serialize;

use super::environment::Environment;
use super::hooks::HookError;
use crate::credentials::program;
use crate::devices::grant::Hook;

/// The version of the runtime specification that they are run by.
const VERSION: &str = "1.0.2";

/// Name of the configuration in the bundle.
const CONFIG: &str = "config.json";

/// The state of a container, as its hooks get it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct State<'a> {
    oci_version: &'static str,
    id: String,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<i32>,
    bundle: &'a str,
}

/// The configuration of a bundle, as far as there is one.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Config<'a> {
    oci_version: &'static str,
    root: Root<'a>,
    process: Process,
}

#[derive(Serialize)]
struct Root<'a> {
    path: &'a str,
}

#[derive(Serialize)]
struct Process {
    cwd: &'static str,
    env: Vec<String>,
    user: User,
}

#[derive(Serialize)]
struct User {
    uid: u32,
    gid: u32,
}

/// What has become of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    /// It is being made.
    Creating,
    /// It is there, and its program is not executed yet.
    Created,
    /// Its program has been executed.
    Running,
    /// Its program has ended.
    Stopped,
}

impl Moment {
    fn name(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Stopped => "stopped",
        }
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// Runs hooks while the container is made by a process, by whose number it is called. `bundle` is a directory for them, and `root` the container's root.
///
/// # Errors
///
/// A hook that cannot be executed, fails, or takes too long. The start must stop then.
pub(super) fn run(
    hooks: &[Hook],
    starter: i32,
    bundle: &Path,
    root: &Path,
    environment: &Environment,
) -> Result<(), HookError> {
    let mut hooks: Vec<&Hook> = hooks.iter().collect();
    hooks.sort_by_key(|hook| hook.stage);
    if hooks.is_empty() {
        return Ok(());
    }
    write_config(bundle, root, environment)?;
    let pid = rustix::process::getpid().as_raw_pid();
    let state = state(starter, pid, Moment::Creating, bundle)?;
    hooks
        .into_iter()
        .try_for_each(|hook| run_one(hook, bundle, &state))
}

/// Runs hooks in the container, in the process that becomes its program. `starter` as for [`run`].
///
/// # Errors
///
/// As [`run`].
pub(crate) fn run_inside(hooks: &[Hook], starter: i32) -> Result<(), HookError> {
    let root = Path::new("/");
    let pid = rustix::process::getpid().as_raw_pid();
    for hook in hooks {
        run_one(hook, root, &state(starter, pid, Moment::Created, root)?)?;
    }
    Ok(())
}

/// Runs hooks on the host, for the container of a process.
///
/// # Errors
///
/// As [`run`].
pub(super) fn run_beside(
    hooks: &[Hook],
    bundle: &Path,
    root: &Path,
    pid: i32,
    moment: Moment,
) -> Result<(), HookError> {
    for hook in hooks {
        write_config(bundle, root, &Environment::default())?;
        run_one(hook, bundle, &state(pid, pid, moment, bundle)?)?;
    }
    Ok(())
}

fn failed(source: io::Error) -> HookError {
    HookError::File {
        name: CONFIG,
        source,
    }
}

/// The state of a container, for its hooks. A process has another number in a namespace of its own.
fn state(starter: i32, pid: i32, moment: Moment, bundle: &Path) -> Result<Vec<u8>, HookError> {
    let state = State {
        oci_version: VERSION,
        id: format!("cista-{starter}"),
        status: moment.name(),
        // There is none any more.
        pid: Some(pid).filter(|_| moment != Moment::Stopped),
        bundle: &bundle.to_string_lossy(),
    };
    serde_json::to_vec(&state).map_err(|error| failed(error.into()))
}

fn write_config(bundle: &Path, root: &Path, environment: &Environment) -> Result<(), HookError> {
    let variables = environment.strings();
    let variables = variables.iter().map(|it| it.to_string_lossy().into_owned());
    let config = Config {
        oci_version: VERSION,
        root: Root {
            path: &root.to_string_lossy(),
        },
        process: Process {
            cwd: "/",
            env: variables.collect(),
            user: User {
                uid: rustix::process::getuid().as_raw(),
                gid: rustix::process::getgid().as_raw(),
            },
        },
    };
    let config = serde_json::to_vec(&config).map_err(|error| failed(error.into()))?;
    std::fs::write(bundle.join(CONFIG), config).map_err(failed)
}

fn run_one(hook: &Hook, bundle: &Path, state: &[u8]) -> Result<(), HookError> {
    let failed = |source| HookError::Execute {
        path: hook.path.clone(),
        source,
    };
    let mut command = Command::new(&hook.path);
    if let Some((name, arguments)) = hook.arguments.split_first() {
        command.arg0(name).args(arguments);
    }
    let mut environment = Environment::default();
    for variable in &hook.environment {
        environment.set_any(variable);
    }
    command
        .env_clear()
        .envs(environment.iter())
        .current_dir(bundle);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .map_err(failed)?;
    if let Some(mut input) = child.stdin.take() {
        // The state is shorter than a pipe's buffer; a hook that does not want it may close its end.
        match input.write_all(state) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(failed(error)),
            _ => {}
        }
    }
    let limit = hook.timeout.map(|it| Duration::from_secs(it.into()));
    match wait(&mut child, limit).map_err(failed)? {
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(HookError::Failed {
            path: hook.path.clone(),
            status,
        }),
        None => Err(HookError::Late {
            path: hook.path.clone(),
            seconds: hook.timeout.unwrap_or_default(),
        }),
    }
}

/// Waits for a process; None where it had to be killed.
fn wait(child: &mut Child, limit: Option<Duration>) -> io::Result<Option<ExitStatus>> {
    let Some(limit) = limit else {
        return child.wait().map(Some);
    };
    let end = Instant::now() + limit;
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).ok();
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], left.as_ref()) {
            Ok(0) => break,
            Ok(_) => return child.wait().map(Some),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    program::end(child);
    Ok(None)
}
