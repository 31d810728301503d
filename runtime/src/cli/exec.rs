//! `cista exec`: run a program in a running container

use std::ffi::{OsStr, OsString};
use std::os::fd::RawFd;

use super::start::{find, open_file, program_status};
use super::{Context, Failure, Outcome, status};
use crate::config;
use crate::container::join::{self, JoinError, Request};
use crate::container::{environment, program, running};

/// Run a program in a running container
///
/// The program gets the namespaces, the environment, the working directory and the privileges of the process that is named by its number, or of
/// the oldest process of the container.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Set a variable, or take the host's value
    #[arg(short, long = "env", value_name = "KEY[=VALUE]")]
    env: Vec<OsString>,
    /// Leave a file open for the program besides 0, 1 and 2, by its number
    #[arg(long, value_name = "FD", value_parser = open_file)]
    keep_fd: Vec<RawFd>,
    /// Process number, container (see `list`), or image file that a container was started from
    #[arg(value_name = "PID|NAME")]
    target: OsString,
    /// Program and arguments
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        required = true,
        value_name = "COMMAND"
    )]
    command: Vec<OsString>,
}

/// No process was found.
#[derive(Debug, thiserror::Error)]
#[error("container `{name}` is not running")]
struct NotRunning {
    name: String,
}

pub(super) fn run(args: Args, context: &Context) -> Outcome {
    exec(args, context).map_err(|failure| {
        if failure.status().is_some() {
            failure
        } else {
            failure.with_status(status::SETUP)
        }
    })
}

fn exec(args: Args, context: &Context) -> Outcome {
    program::protect();
    let environment = args
        .env
        .iter()
        .filter_map(|option| environment::parse_option(option, config::host_variable).transpose())
        .collect::<Result<_, _>>()?;
    let mut request = Request {
        pid: 0,
        environment,
        command: args.command,
        files: args.keep_fd,
    };
    if let Some(pid) = number(&args.target) {
        request.pid = pid;
        return match join::join(&request) {
            Ok(never) => match never {},
            Err(error) => Err(failure(error)),
        };
    }
    let root = find(args.target.as_ref(), context)?;
    let mut foreign = None;
    for (_, process) in running::processes(std::slice::from_ref(&root)) {
        request.pid = process.pid;
        match join::join(&request) {
            Ok(never) => match never {},
            // It has just ended; the container may have others.
            Err(JoinError::NoProcess { .. }) => {}
            // Somebody else has started the same image.
            Err(error @ JoinError::Foreign { .. }) => foreign = Some(error),
            Err(error) => return Err(failure(error)),
        }
    }
    if let Some(error) = foreign {
        return Err(failure(error));
    }
    let name = args.target.to_string_lossy().into_owned();
    Err(Failure::new(NotRunning { name })
        .with_hint("`cista list -f` shows what runs; `cista start` starts it"))
}

/// The process number that a word is. A container of such a name is reached by the number of one of its processes.
fn number(target: &OsStr) -> Option<u32> {
    let text = target.to_str()?;
    text.bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| text.parse().unwrap_or(u32::MAX))
        .filter(|_| !text.is_empty())
}

fn failure(error: JoinError) -> Failure {
    let hint = match &error {
        JoinError::NoProcess { .. } | JoinError::NotContained { .. } | JoinError::Helper { .. } => {
            Some("`cista list -f` shows the processes of containers")
        }
        _ => None,
    };
    let status = match &error {
        JoinError::Program(error) => program_status(error),
        _ => status::SETUP,
    };
    let failure = Failure::new(error).with_status(status);
    match hint {
        Some(hint) => failure.with_hint(hint),
        None => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_told_from_names() {
        for (word, expected) in [
            ("1", Some(1)),
            ("99999999999", Some(u32::MAX)),
            ("", None),
            ("py", None),
            ("-1", None),
            ("1.sqsh", None),
        ] {
            assert_eq!(number(OsStr::new(word)), expected, "{word}");
        }
    }
}
