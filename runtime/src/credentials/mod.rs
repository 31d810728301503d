//! Logins at registries, as the user has stored them for enroot, docker and podman.
//!
//! Nothing here happens before a registry has refused a request without a login: then the places are asked in this order, and the first
//! that has a login for the registry (and for the user, where the reference names one) is used:
//!
//! 1. `CISTA_PASSWORD`, for the user and the registry of the reference
//! 2. files in enroot's format: ours, then enroot's (`netrc.rs`); these may also name the token service in place of the registry
//! 3. files in docker's format: `REGISTRY_AUTH_FILE`, docker's, podman's (`docker.rs`), and the helper programs that they name
//!
//! `cista login` and `logout` change docker's file (`login.rs`). Programs are run in `program.rs`.
//!
//! The crate `docker_credential` does not fit: it reads the environment itself, waits for a helper for ever, puts what a helper prints into
//! its errors, knows no path-scoped keys and no user to choose by, and writes nothing.

mod docker;
mod login;
mod netrc;
pub(crate) mod program;

use std::error::Error;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use cista_images::registry::{Credential, Credentials, Secret, Wanted};
use serde::Deserialize;

pub use docker::FormatError;
pub use login::{Kept, LoginError, forget, keep};
pub use program::ProgramError;

use crate::config::credentials::{CredentialPaths, command_environment};
use crate::ui;

/// Largest file of logins that is read, in bytes.
const MAX_FILE: u64 = 4 << 20;

/// The stored logins of the user.
#[derive(Clone, Debug)]
pub struct StoredCredentials {
    /// Where they are.
    pub paths: CredentialPaths,
    /// The login that was given with the command, and the registry that it is for.
    pub given: Option<(String, Credential)>,
}

/// Why stored logins cannot be used. What they hold is never part of it.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// A file cannot be read.
    #[error("cannot read `{path}`")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A file in enroot's format is malformed.
    #[error("`{path}`, line {line}: {problem}")]
    Netrc {
        /// The file.
        path: PathBuf,
        /// The line, the first being 1.
        line: usize,
        /// What is wrong.
        problem: &'static str,
    },
    /// A file in docker's format is malformed.
    #[error("`{path}` cannot be used")]
    Docker {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: FormatError,
    },
    /// The command that should give a password did not run well.
    #[error("the command for the password of `{user}` at `{machine}` in `{path}` failed")]
    Command {
        /// The file.
        path: PathBuf,
        /// The machine of the entry.
        machine: String,
        /// Its user.
        user: String,
        /// Why.
        source: ProgramError,
    },
    /// The command gave nothing.
    #[error(
        "the command for the password of `{user}` at `{machine}` in `{path}` gives no password ({status})"
    )]
    NoPassword {
        /// The file.
        path: PathBuf,
        /// The machine of the entry.
        machine: String,
        /// Its user.
        user: String,
        /// How the shell ended.
        status: std::process::ExitStatus,
    },
    /// A credential helper did not run well.
    #[error("the credential helper `docker-credential-{name}` of `{path}` failed")]
    Helper {
        /// The helper.
        name: String,
        /// The file that names it.
        path: PathBuf,
        /// Why.
        source: ProgramError,
    },
    /// A credential helper reports a failure, or answers nonsense.
    #[error("the credential helper `docker-credential-{name}` of `{path}` {problem}")]
    HelperAnswer {
        /// The helper.
        name: String,
        /// The file that names it.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

impl Credentials for StoredCredentials {
    fn lookup(
        &self,
        wanted: Wanted<'_>,
    ) -> Result<Option<Credential>, Box<dyn Error + Send + Sync>> {
        if let Some((registry, credential)) = &self.given
            && registry == wanted.server
        {
            return Ok(Some(credential.clone()));
        }
        Ok(self.stored(wanted)?)
    }
}

impl StoredCredentials {
    fn stored(&self, wanted: Wanted<'_>) -> Result<Option<Credential>, CredentialError> {
        for path in &self.paths.netrc {
            if let Some(credential) = from_netrc(path, wanted)? {
                return Ok(Some(credential));
            }
        }
        if wanted.token_service {
            return Ok(None);
        }
        for path in &self.paths.docker {
            if let Some(credential) = from_docker(path, wanted)? {
                return Ok(Some(credential));
            }
        }
        Ok(None)
    }
}

/// The file in enroot's format whose login for a registry is used before one that [`keep`] stores.
///
/// # Errors
///
/// [`CredentialError::Read`], [`CredentialError::Netrc`].
pub fn preferred(
    paths: &CredentialPaths,
    server: &str,
) -> Result<Option<PathBuf>, CredentialError> {
    let wanted = Wanted {
        server,
        repository: "",
        user: None,
        token_service: false,
    };
    for path in &paths.netrc {
        if netrc_entry(path, wanted)?.is_some() {
            return Ok(Some(path.clone()));
        }
    }
    Ok(None)
}

/// A small file as a whole; None where it does not exist. One that others' rights keep from us counts as missing, with a warning: a login
/// made under sudo should stop nobody from reading a public image.
fn read(path: &Path) -> Result<Option<Vec<u8>>, CredentialError> {
    let failed = |source| CredentialError::Read {
        path: path.to_owned(),
        source,
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) => {
            return match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Ok(None),
                io::ErrorKind::PermissionDenied => {
                    ui::warning(format_args!(
                        "logins in `{}` are not used: {error}",
                        path.display()
                    ));
                    Ok(None)
                }
                _ => Err(failed(error)),
            };
        }
    };
    let mut text = Vec::new();
    file.take(MAX_FILE + 1)
        .read_to_end(&mut text)
        .map_err(failed)?;
    if text.len() as u64 > MAX_FILE {
        return Err(failed(io::ErrorKind::FileTooLarge.into()));
    }
    Ok(Some(text))
}

/// The first entry of a file in enroot's format that is meant.
fn netrc_entry(path: &Path, wanted: Wanted<'_>) -> Result<Option<netrc::Entry>, CredentialError> {
    let Some(text) = read(path)? else {
        return Ok(None);
    };
    let malformed = |line, problem| CredentialError::Netrc {
        path: path.to_owned(),
        line,
        problem,
    };
    let text = String::from_utf8(text).map_err(|error| {
        let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        malformed(line, "it is no UTF-8 text")
    })?;
    let entries = netrc::parse(&text).map_err(|error| malformed(error.line, error.problem))?;
    let (server, host) = (
        docker::one_name(wanted.server),
        docker::one_name(without_port(wanted.server)),
    );
    Ok(netrc::find(
        &entries,
        |machine| docker::one_name(machine) == server,
        |machine| docker::one_name(machine) == host,
        wanted.user,
    )
    .cloned())
}

fn from_netrc(path: &Path, wanted: Wanted<'_>) -> Result<Option<Credential>, CredentialError> {
    let Some(entry) = netrc_entry(path, wanted)? else {
        return Ok(None);
    };
    let words = match entry.password {
        netrc::Password::Literal(password) => {
            return Ok(Some(Credential::login(entry.login, password.expose())));
        }
        netrc::Password::Shell(words) => words,
    };
    ui::note(format_args!(
        "the password of `{}` at `{}` comes from a command in `{}`, which is run now",
        entry.login,
        entry.machine,
        path.display()
    ));
    let environment = command_environment(words.expose());
    let ended =
        program::expand(&words, environment).map_err(|source| CredentialError::Command {
            path: path.to_owned(),
            machine: entry.machine.clone(),
            user: entry.login.clone(),
            source,
        })?;
    if ended.output.expose().is_empty() || !ended.status.success() {
        return Err(CredentialError::NoPassword {
            path: path.to_owned(),
            machine: entry.machine,
            user: entry.login,
            status: ended.status,
        });
    }
    Ok(Some(Credential::login(entry.login, ended.output.expose())))
}

fn from_docker(path: &Path, wanted: Wanted<'_>) -> Result<Option<Credential>, CredentialError> {
    let Some(text) = read(path)? else {
        return Ok(None);
    };
    let found = docker::File::parse(&text)
        .and_then(|file| file.find(wanted.server, wanted.repository, wanted.user))
        .map_err(|source| CredentialError::Docker {
            path: path.to_owned(),
            source,
        })?;
    let helper = match found {
        docker::Found::Nothing => return Ok(None),
        docker::Found::Credential(credential) => return Ok(Some(credential)),
        docker::Found::Helper(helper) => helper,
    };
    match ask_helper(path, &helper, wanted.user) {
        // It was not named for this registry, which may well need no login. Should it need one, both messages are there.
        Err(error) if helper.is_store => {
            ui::warning(ui::chain(&error));
            Ok(None)
        }
        answer => answer,
    }
}

/// What a helper answers to `get`.
#[derive(Deserialize)]
struct HelperAnswer {
    #[serde(rename = "Username")]
    user: String,
    #[serde(rename = "Secret")]
    secret: String,
}

fn ask_helper(
    path: &Path,
    helper: &docker::Helper,
    user: Option<&str>,
) -> Result<Option<Credential>, CredentialError> {
    let answer = run_helper(path, helper, "get", &Secret::new(helper.key.as_str()))?;
    let Some(answer) = answer else {
        return Ok(None);
    };
    let answer: HelperAnswer =
        serde_json::from_str(answer.expose()).map_err(|_| CredentialError::HelperAnswer {
            name: helper.name.clone(),
            path: path.to_owned(),
            problem: "answers without `Username` and `Secret`".to_owned(),
        })?;
    if answer.secret.is_empty() {
        return Ok(None);
    }
    if answer.user == "<token>" {
        return Ok(Some(Credential::IdentityToken(Secret::new(answer.secret))));
    }
    Ok(user
        .is_none_or(|user| user == answer.user)
        .then(|| Credential::login(answer.user, answer.secret)))
}

/// Runs a helper. None when it says that it knows no such registry.
fn run_helper(
    path: &Path,
    helper: &docker::Helper,
    verb: &str,
    input: &Secret,
) -> Result<Option<Secret>, CredentialError> {
    let ended =
        program::helper(&helper.name, verb, input).map_err(|source| CredentialError::Helper {
            name: helper.name.clone(),
            path: path.to_owned(),
            source,
        })?;
    if ended.status.success() {
        return Ok(Some(ended.output));
    }
    // The one message that the protocol fixes; others are the helper's own and may hold anything.
    if ended.output.expose().contains("credentials not found") {
        return Ok(None);
    }
    Err(CredentialError::HelperAnswer {
        name: helper.name.clone(),
        path: path.to_owned(),
        problem: format!("reports a failure of `{verb}` ({})", ended.status),
    })
}

/// `HOST` of `HOST[:PORT]`.
fn without_port(server: &str) -> &str {
    match server.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => server,
    }
}
