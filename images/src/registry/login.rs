//! Trying a login: the version check of the distribution specification ("Determining Support"), which needs one wherever anything does.

use std::sync::Arc;

use ureq::http::Method;

use super::client::{Ask, Client};
use super::http::Range;
use super::{RegistryError, Settings, wait_for};
use crate::cancel::Cancel;
use crate::source::SourceError;

/// What a registry says to a login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Welcome {
    /// It took it.
    Accepted,
    /// It lets everybody in and did not look at it.
    NotAsked,
}

/// Shows the credentials of the settings to a registry (`HOST[:PORT]`), as a user if one is given.
///
/// # Errors
///
/// [`RegistryError::Unauthorized`] when they are refused, [`RegistryError::NotARegistry`] when the host is none, those of connections, and
/// [`SourceError::Cancelled`].
pub fn check_login(
    registry: &str,
    user: Option<&str>,
    settings: Settings,
    cancel: &Cancel,
) -> Result<Welcome, SourceError> {
    let client = Arc::new(Client::of_registry(registry, user, settings)?);
    let asked = Arc::clone(&client);
    wait_for(&client, cancel, move || Ok(ask(&asked)?))
}

fn ask(client: &Client) -> Result<Welcome, RegistryError> {
    let ask = Ask {
        method: Method::GET,
        path: String::new(),
        accept: None,
        range: Range::All,
        what: "the version of its protocol".to_owned(),
    };
    match client.request(&ask) {
        Ok(_) if client.was_asked() => Ok(Welcome::Accepted),
        Ok(answer) => {
            let is_html = answer
                .header("content-type")
                .is_some_and(|kind| kind.starts_with("text/html"));
            if is_html && answer.header("docker-distribution-api-version").is_none() {
                return Err(RegistryError::NotARegistry {
                    registry: client.registry.clone(),
                    status: answer.status,
                });
            }
            Ok(Welcome::NotAsked)
        }
        Err(RegistryError::Status { status: 404, .. }) => Err(RegistryError::NotARegistry {
            registry: client.registry.clone(),
            status: 404,
        }),
        Err(error) => Err(error),
    }
}
