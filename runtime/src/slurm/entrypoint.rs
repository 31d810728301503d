//! The entrypoint of an image, executed once for a step, before its tasks.
//!
//! An entrypoint is a program that prepares something, and then executes the command line that it was given. Here that command line is a shell that
//! stops itself: then the entrypoint has done its work, and what it has changed of the environment and the working directory is read from the
//! stopped process, for the tasks. (What else it changed is in the container.)

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _};
use std::os::unix::ffi::OsStrExt as _;

use rustix::fs::{MemfdFlags, Mode, OFlags};
use rustix::process::{Pid, WaitOptions};

use crate::container::Ready;
use crate::container::environment::Environment;
use crate::container::{privileges, program};
use crate::{sys, ui};

/// The command line that an entrypoint is given.
const STOP: [&str; 3] = ["/bin/sh", "-c", "kill -STOP $$ ; exit 0"];

/// Longest output that is shown, in bytes: its end.
const MAX_LOG: u64 = 64 << 10;

/// Why the entrypoint did not work.
#[derive(Debug, thiserror::Error)]
pub enum EntrypointError {
    /// It cannot be executed, or watched.
    #[error("cannot run the entrypoint `{program}`")]
    Run {
        /// What is executed.
        program: String,
        /// The system's answer.
        source: io::Error,
    },
    /// It ended before it executed its command line.
    #[error(
        "the entrypoint `{program}` ended with status {status} and did not execute its command line"
    )]
    Ended {
        /// What is executed.
        program: String,
        /// Its exit status, or 128 plus the signal that ended it.
        status: i32,
    },
}

/// Runs the entrypoint where the image has one; the environment is then what the entrypoint has made of it, and so is the working directory.
///
/// # Errors
///
/// An entrypoint that cannot be run, or does not execute its command line. What it printed is shown then.
pub fn run(
    ready: &Ready,
    environment: &mut Environment,
    shows_output: bool,
) -> Result<(), EntrypointError> {
    let line = &ready.plan.line;
    let Some(program) = line.first().filter(|_| *line != command_line()) else {
        return Ok(());
    };
    let shown = program.to_string_lossy().into_owned();
    let failed = |source| EntrypointError::Run {
        program: shown.clone(),
        source,
    };
    let log = rustix::fs::memfd_create(c"cista", MemfdFlags::CLOEXEC)
        .map_err(|error| failed(error.into()))?;
    let child = sys::process::spawn_helper(|| {
        let error = rustix::stdio::dup2_stdout(&log)
            .and_then(|()| rustix::stdio::dup2_stderr(&log))
            .map_err(io::Error::from)
            .and_then(|()| sys::process::close_on_exec_but(&[]))
            .err();
        if error.is_some() || privileges::give_up(ready.root_inside, ready.fakes_ownership).is_err()
        {
            return 125;
        }
        sys::sigpipe::restore();
        let error = program::execute(line, environment, &[]);
        ui::message(ui::chain(&error));
        127
    })
    .map_err(failed)?;
    let status = wait_until_stopped(child.pid()).map_err(failed)?;
    let result = match status {
        None => {
            let taken = take(child.pid(), environment).map_err(failed);
            child.kill();
            let _ = child.wait();
            taken
        }
        Some(status) => Err(EntrypointError::Ended {
            program: shown.clone(),
            status,
        }),
    };
    if shows_output || result.is_err() {
        show(log.into());
    }
    result
}

/// What an image without an entrypoint would execute.
#[must_use]
pub fn command_line() -> Vec<OsString> {
    STOP.map(OsString::from).into()
}

/// Waits until a child stops; its status where it ends instead.
fn wait_until_stopped(pid: u32) -> io::Result<Option<i32>> {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or(io::ErrorKind::InvalidInput)?;
    loop {
        let options =
            WaitOptions::UNTRACED | WaitOptions::from_bits_retain(libc::__WALL.cast_unsigned());
        match rustix::process::waitpid(Some(pid), options) {
            Ok(Some((_, status))) if status.stopped() => return Ok(None),
            Ok(Some((_, status))) => {
                let signal = || status.terminating_signal().map_or(1, |signal| 128 + signal);
                return Ok(Some(status.exit_status().unwrap_or_else(signal)));
            }
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Takes environment and working directory of the stopped process.
fn take(pid: u32, environment: &mut Environment) -> io::Result<()> {
    let mut taken = Environment::default();
    for assignment in fs::read(format!("/proc/{pid}/environ"))?.split(|&byte| byte == 0) {
        taken.set_any(OsStr::from_bytes(assignment));
    }
    // Shells set these for themselves.
    for name in ["_", "SHLVL", "PWD", "OLDPWD"] {
        taken.remove(OsStr::new(name));
    }
    *environment = taken;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(format!("/proc/{pid}/cwd"), flags, Mode::empty())?;
    rustix::process::fchdir(directory)?;
    Ok(())
}

fn show(mut log: File) {
    let length = log.metadata().map_or(0, |status| status.len());
    let mut text = Vec::new();
    let read = log
        .seek(io::SeekFrom::Start(length.saturating_sub(MAX_LOG)))
        .and_then(|_| log.read_to_end(&mut text));
    if read.is_ok() {
        for line in String::from_utf8_lossy(&text).lines() {
            ui::message(format_args!("entrypoint: {line}"));
        }
    }
}
