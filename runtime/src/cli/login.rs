//! `cista login` and `cista logout`: store and remove a login at a registry, where docker does.
//!
//! A login is shown to the registry before it is stored, so that a typing error is found now and not by a job at night. A password is never
//! an argument: those can be read by everybody.

use std::io;
use std::process::ExitCode;

use cista_images::reference::{DOCKER_HUB, check_registry};
use cista_images::registry::{Credential, RegistryError, Secret, Welcome, check_login};

use super::{Context, Failure, Outcome, import};
use crate::config::import::ImportConfig;
use crate::credentials::{self, Kept};
use crate::sys;
use crate::ui::{self, prompt};

/// Store a login at a registry
///
/// The login is shown to the registry first. It is stored in docker's `config.json`, or with the credential helper that this file
/// names, and is so known to docker and podman too.
#[derive(Debug, clap::Args)]
pub(super) struct LoginArgs {
    /// The user; asked for when left out
    #[arg(short, long)]
    user: Option<String>,
    /// Read the password from standard input
    #[arg(long, requires = "user")]
    password_stdin: bool,
    /// The registry, as in a URI: `HOST[:PORT]`; Docker Hub is `docker.io`
    registry: String,
}

/// Remove a stored login at a registry
#[derive(Debug, clap::Args)]
pub(super) struct LogoutArgs {
    /// The registry, as in a URI: `HOST[:PORT]`; Docker Hub is `docker.io`
    registry: String,
}

pub(super) fn login(args: LoginArgs, context: &Context) -> Outcome {
    let config = ImportConfig::load(&context.config.sources)?;
    let registry = registry_of(&args.registry)?;
    let ask = |what: &str, unseen: bool| {
        let question = format!("{what} for `{}`: ", name_of(&registry));
        let answer = if unseen {
            prompt::ask_unseen(&question)
        } else {
            prompt::ask(&question)
        };
        answer.map_err(|error| unread(what, error))
    };
    let on_terminal = prompt::is_possible();
    let user = match args.user {
        Some(user) => user,
        None if on_terminal => ask("User", false)?,
        None => {
            return Err(Failure::new(io::Error::other("there is no user"))
                .with_hint("name the user with `-u USER`"));
        }
    };
    let password = if args.password_stdin {
        prompt::read_password().map_err(|error| unread("Password", error))?
    } else if on_terminal {
        ask("Password", true)?
    } else {
        return Err(Failure::new(io::Error::other(
            "stdin is no terminal to type a password on",
        ))
        .with_hint("`--password-stdin` takes it from a file or another program"));
    };
    for (what, text) in [("user", &user), ("password", &password)] {
        if text.is_empty() {
            return Err(Failure::new(io::Error::other(format!(
                "the {what} is empty"
            ))));
        }
    }
    let password = Secret::new(password);
    let credential = Credential::login(user.as_str(), password.expose());
    let cancel = sys::signal::cancel_on_signals()?;
    let settings = config.settings_with(&registry, credential);
    let welcome = check_login(&registry, Some(&user), settings, &cancel)
        .map_err(|error| import::failure(error, &cancel))?;
    let kept = credentials::keep(&config.credentials, &registry, &user, &password)?;
    let place = match &kept {
        Kept::File(path) => format!("unencrypted in `{}`", path.display()),
        Kept::Helper(name) => format!("with `docker-credential-{name}`"),
    };
    let name = name_of(&registry);
    match welcome {
        Welcome::Accepted => ui::message(format_args!(
            "logged in to `{name}` as `{user}`; the password is stored {place}"
        )),
        Welcome::NotAsked => ui::warning(format_args!(
            "`{name}` lets everybody in and did not look at the password, which is stored {place}"
        )),
    }
    if let Some(path) = credentials::preferred(&config.credentials, &registry)? {
        ui::warning(format_args!(
            "`{}` has a login for `{name}` too, which is used before this one",
            path.display()
        ));
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn logout(args: LogoutArgs, context: &Context) -> Outcome {
    let config = ImportConfig::load(&context.config.sources)?;
    let registry = registry_of(&args.registry)?;
    let name = name_of(&registry);
    if credentials::forget(&config.credentials, &registry)? {
        ui::message(format_args!("removed the login for `{name}`"));
    } else {
        ui::message(format_args!("there is no stored login for `{name}`"));
    }
    if let Some(path) = credentials::preferred(&config.credentials, &registry)? {
        ui::warning(format_args!(
            "`{}` still has a login for `{name}`",
            path.display()
        ));
    }
    Ok(ExitCode::SUCCESS)
}

/// The registry that is meant; URLs are taken too, since docker takes them.
fn registry_of(text: &str) -> Result<String, Failure> {
    let bare = ["docker://", "https://", "http://"]
        .iter()
        .find_map(|scheme| text.strip_prefix(scheme))
        .unwrap_or(text);
    let bare = bare.trim_end_matches('/');
    let bare = ["/v1", "/v2"]
        .iter()
        .find_map(|end| bare.strip_suffix(end))
        .unwrap_or(bare);
    if bare.contains('@') {
        // It may be followed by a password, so it is not repeated.
        return Err(Failure::new(io::Error::other("a registry holds no `@`"))
            .with_hint("name the user with `-u USER`"));
    }
    Ok(check_registry(bare)?)
}

/// How a registry is named to the user.
fn name_of(registry: &str) -> &str {
    if registry == DOCKER_HUB {
        "docker.io"
    } else {
        registry
    }
}

fn unread(what: &str, error: io::Error) -> Failure {
    if let Some(signal) = sys::signal::received() {
        // Signal numbers are below 65.
        return Failure::new(RegistryError::Stopped).with_status(128 + (signal & 0x7f) as u8);
    }
    Failure::new(Unread {
        what: what.to_ascii_lowercase(),
        source: error,
    })
}

/// What was to be typed cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the {what}")]
struct Unread {
    what: String,
    source: io::Error,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_as_people_write_them() {
        for (text, expected) in [
            ("quay.io", "quay.io"),
            ("https://Quay.io/", "quay.io"),
            ("http://127.0.0.1:5000", "127.0.0.1:5000"),
            ("docker.io", DOCKER_HUB),
            ("https://index.docker.io/v1/", DOCKER_HUB),
        ] {
            assert_eq!(registry_of(text).unwrap(), expected, "{text}");
        }
        for text in ["", "a b", "quay.io/team", "x:y:z"] {
            assert!(registry_of(text).is_err(), "{text}");
        }
        let failure = registry_of("me:hunter2@quay.io").unwrap_err();
        assert!(!failure.error().to_string().contains("hunter2"));
    }
}
