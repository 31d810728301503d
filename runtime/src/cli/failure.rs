//! How a command fails: an error with its chain, a hint, an exit status.

use std::borrow::Cow;
use std::error::Error;

use super::hints;

/// Exit statuses of `cista` itself. A container's own status is passed through untouched.
pub mod status {
    /// A command failed.
    pub const FAILURE: u8 = 1;
    /// The command line is wrong.
    pub const USAGE: u8 = 2;
    /// `start`, `run` or `exec` failed before the container's program was executed.
    pub const SETUP: u8 = 125;
    /// The container's program was found but cannot be executed.
    pub const CANNOT_EXECUTE: u8 = 126;
    /// The container's program was not found.
    pub const NOT_FOUND: u8 = 127;
    /// Interrupted by SIGINT; 128 plus the signal's number, as shells say it.
    pub const INTERRUPTED: u8 = 130;
}

/// A command's failure, ready to be shown.
#[derive(Debug)]
pub struct Failure {
    error: Box<dyn Error + Send + Sync>,
    hint: Option<String>,
    status: Option<u8>,
}

impl Failure {
    /// A failure whose cause is known.
    pub fn new(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            error: error.into(),
            hint: None,
            status: None,
        }
    }

    /// What the user can do about it.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// What was done when it failed.
    #[must_use]
    pub fn during(mut self, phase: &'static str) -> Self {
        self.error = Box::new(During {
            phase,
            source: self.error,
        });
        self
    }

    /// The exit status to end with; see [`status`].
    #[must_use]
    pub fn with_status(mut self, status: u8) -> Self {
        self.status = Some(status);
        self
    }

    /// The error and its chain of sources.
    #[must_use]
    pub fn error(&self) -> &(dyn Error + Send + Sync + 'static) {
        self.error.as_ref()
    }

    /// What the user can do about it: what the command says, or what is known of such errors.
    #[must_use]
    pub fn hint(&self) -> Option<Cow<'_, str>> {
        match &self.hint {
            Some(hint) => Some(Cow::Borrowed(hint)),
            None => hints::of(self.error.as_ref()).map(Cow::Owned),
        }
    }

    /// The exit status, where the command set one.
    #[must_use]
    pub fn status(&self) -> Option<u8> {
        self.status
    }
}

/// An error, and what was done when it came.
#[derive(Debug, thiserror::Error)]
#[error("{phase} failed")]
struct During {
    phase: &'static str,
    source: Box<dyn Error + Send + Sync>,
}

impl<E: Error + Send + Sync + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::new(error)
    }
}
