//! What can go wrong in the harness itself.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

/// A failure of the harness or of a program that it ran.
#[derive(Debug, thiserror::Error)]
pub enum HarnessError {
    /// A file system operation failed.
    #[error("cannot {operation} `{}`", path.display())]
    Io {
        /// What was tried: `read`, `create`…
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A program could not be started.
    #[error("cannot run `{program}`")]
    Spawn {
        /// The program and its first arguments.
        program: String,
        /// Why not.
        source: io::Error,
    },
    /// A program that had to succeed did not.
    #[error("`{program}` ended with {status}: {}", stderr.trim_end())]
    Status {
        /// The program and its first arguments.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it wrote on stderr.
        stderr: String,
    },
    /// A program was still running when its time was up. It was killed.
    #[error("`{program}` did not end within {limit:?}; stdout: {stdout:?}, stderr: {stderr:?}")]
    Timeout {
        /// The program and its first arguments.
        program: String,
        /// The time it had.
        limit: Duration,
        /// The end of what it wrote on stdout.
        stdout: String,
        /// The end of what it wrote on stderr.
        stderr: String,
    },
    /// A program did not print what was waited for.
    #[error("`{program}` did not print {expected:?} within {limit:?}, but {printed:?}")]
    Silent {
        /// The program and its first arguments.
        program: String,
        /// What was waited for.
        expected: String,
        /// The time it had.
        limit: Duration,
        /// The end of what it printed instead.
        printed: String,
    },
    /// A program ended, but something that it left behind keeps its stdout or stderr open.
    #[error(
        "`{program}` has ended, but a process that it left behind keeps its stdout or stderr open"
    )]
    OutputHeld {
        /// The program and its first arguments.
        program: String,
    },
    /// Something that this machine lacks.
    #[error("missing: {what} ({hint})")]
    Missing {
        /// What.
        what: String,
        /// How to get it.
        hint: String,
    },
    /// Text that should be JSON of a certain shape.
    #[error("cannot understand the JSON of {what}")]
    Json {
        /// Where it came from.
        what: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A file of the system or of an image does not look as it should.
    #[error("cannot make sense of {what}: {why}")]
    Malformed {
        /// What was read.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// The registry did not answer in time, on any of the ports that were tried.
    #[error("the registry did not start; its log ends: {log:?}")]
    Registry {
        /// The end of its log.
        log: String,
    },
}

/// Names the operation and the path of a failed file system operation.
pub trait IoContext<T> {
    /// Adds what was tried, and on what.
    fn context(self, operation: &'static str, path: impl AsRef<Path>) -> Result<T, HarnessError>;
}

impl<T, E: Into<io::Error>> IoContext<T> for Result<T, E> {
    fn context(self, operation: &'static str, path: impl AsRef<Path>) -> Result<T, HarnessError> {
        self.map_err(|source| HarnessError::Io {
            operation,
            path: path.as_ref().to_owned(),
            source: source.into(),
        })
    }
}
