//! Hooks that come with devices, run as the OCI runtime specification says ("POSIX-platform Hooks"), as far as they were not done natively.
//!
//! They run where the [hooks](super::hooks) of the administrator run, just before them: in the container's namespaces with every capability there and
//! no other, on the host's files, with the root mounted at a path. As the specification wants, a hook gets the state of the container on its standard
//! input, and a bundle whose `config.json` says where the root is; and its own variables and no others. A hook that takes longer than its
//! description allows is killed, and one that fails stops the start.

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
    pid: i32,
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

/// Runs hooks one after the other. `bundle` is a directory for them, and `root` the container's root.
///
/// # Errors
///
/// A hook that cannot be executed, fails, or takes too long. The start must stop then.
pub(super) fn run(
    hooks: &[Hook],
    bundle: &Path,
    root: &Path,
    environment: &Environment,
) -> Result<(), HookError> {
    if hooks.is_empty() {
        return Ok(());
    }
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let (bundle_text, root_text) = (text(bundle), text(root));
    let config = Config {
        oci_version: VERSION,
        root: Root { path: &root_text },
        process: Process {
            cwd: "/",
            env: environment
                .strings()
                .iter()
                .map(|variable| variable.to_string_lossy().into_owned())
                .collect(),
            user: User {
                uid: rustix::process::getuid().as_raw(),
                gid: rustix::process::getgid().as_raw(),
            },
        },
    };
    let pid = rustix::process::getpid().as_raw_pid();
    let state = State {
        oci_version: VERSION,
        id: format!("cista-{pid}"),
        status: "creating",
        pid,
        bundle: &bundle_text,
    };
    let failed = |source| HookError::File {
        name: CONFIG,
        source,
    };
    let config = serde_json::to_vec(&config).map_err(|error| failed(error.into()))?;
    let state = serde_json::to_vec(&state).map_err(|error| failed(error.into()))?;
    std::fs::write(bundle.join(CONFIG), config).map_err(failed)?;
    for hook in hooks {
        run_one(hook, bundle, &state)?;
    }
    Ok(())
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
