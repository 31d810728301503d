//! The doctor: what a machine has of what containers need, and the command that mends what it lacks.
//!
//! Where it can, it does what a start would do and sees what comes of it, in a child process that ends afterwards ([`tried`]); a setting of the kernel
//! says less than an attempt. The rest is looked up ([`host`]). Nothing is changed but for files that are removed again.

mod host;
mod tried;

use serde::Serialize;

use crate::config::Config;

/// What a machine has of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It is there, or nothing here wants it.
    Ok,
    /// Something works less well without it.
    Degraded,
    /// It is not there.
    Missing,
}

impl State {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Degraded => "degraded",
            Self::Missing => "missing",
        }
    }
}

/// What was found out about one thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Its name, which stays the same from version to version.
    pub name: &'static str,
    /// What there is of it.
    pub state: State,
    /// Whether no container starts without it.
    pub needed: bool,
    /// What was seen.
    pub detail: String,
    /// What mends it: a command, or what an administrator has to do.
    pub fix: Option<String>,
}

impl Finding {
    fn new(name: &'static str, state: State, detail: impl Into<String>) -> Self {
        Self {
            name,
            state,
            needed: false,
            detail: detail.into(),
            fix: None,
        }
    }

    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self::new(name, State::Ok, detail)
    }

    fn degraded(name: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            fix: Some(fix.into()),
            ..Self::new(name, State::Degraded, detail)
        }
    }

    fn missing(name: &'static str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            fix: Some(fix.into()),
            ..Self::new(name, State::Missing, detail)
        }
    }

    fn needed(self) -> Self {
        Self {
            needed: true,
            ..self
        }
    }

    /// Whether containers cannot be started because of it.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        self.needed && self.state == State::Missing
    }
}

/// Looks at everything. The calling process must have one thread.
#[must_use]
pub fn all(config: &Config) -> Vec<Finding> {
    let mut findings = vec![
        host::kernel().needed(),
        tried::user_namespace().needed(),
        tried::seccomp().needed(),
    ];
    findings.extend(tried::further_namespaces());
    findings.push(tried::fuse());
    findings.push(tried::overlay());
    findings.push(tried::container_overlay(&config.data_path));
    findings.extend(host::directories(config));
    findings.push(host::kernel_squashfs());
    findings.push(host::control_groups());
    findings.extend(host::gpus());
    findings.push(host::fabric());
    findings.push(host::slurm());
    findings
}
