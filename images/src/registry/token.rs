//! Tokens: the authorization server of the Distribution project ("Token Authentication Specification").
//!
//! The token service named by the challenge is asked with GET for a token for our scope, with Basic credentials where it is the registry's own
//! service and we have some. A token lives for `expires_in` seconds from when we asked, 60 where it does not say.

use std::time::{Duration, Instant};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde::Deserialize;
use ureq::http::{Method, Uri};

use super::RegistryError;
use super::address::{Origin, percent_encode};
use super::credentials::{Credential, Secret};
use super::http::{Call, Http, Range};
use super::retry;

/// Largest answer of a token service; Docker Hub's are some 3 KiB.
const MAX_ANSWER: u64 = 1 << 20;

/// How long a token lives when the service does not say.
const DEFAULT_LIFE: Duration = Duration::from_secs(60);

/// How long before its end a token is no longer used.
const MARGIN: Duration = Duration::from_secs(5);

/// Longest life that is believed.
const LONGEST_LIFE: Duration = Duration::from_secs(24 * 3600);

/// A token as an `Authorization` header.
#[derive(Debug, Clone)]
pub(super) struct Token {
    pub(super) header: Secret,
    pub(super) expires: Instant,
}

#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

/// The `Authorization` header of RFC 7617.
pub(super) fn basic(credential: &Credential) -> Secret {
    let pair = format!("{}:{}", credential.user, credential.password.expose());
    Secret::new(format!("Basic {}", BASE64_STANDARD.encode(pair)))
}

/// Asks a token service.
pub(super) fn fetch(
    http: &Http,
    realm: &str,
    service: Option<&str>,
    scope: &str,
    credential: Option<&Credential>,
) -> Result<Token, RegistryError> {
    let mut url = realm.to_owned();
    url.push(if realm.contains('?') { '&' } else { '?' });
    if let Some(service) = service {
        url.push_str(&format!("service={}&", percent_encode(service)));
    }
    url.push_str(&format!("scope={}", percent_encode(scope)));
    let unusable = |host: &str, problem: &str| RegistryError::Token {
        host: host.to_owned(),
        problem: problem.to_owned(),
    };
    let uri: Uri = url
        .parse()
        .map_err(|_| unusable(realm_host(realm), "has no usable address"))?;
    let asked = Instant::now();
    let authorization = credential.map(basic);
    let answer = http.send(&Call {
        method: Method::GET,
        uri: &uri,
        accept: Some("application/json"),
        authorization: authorization.as_ref(),
        range: Range::All,
    })?;
    let host = answer.host.clone();
    match answer.status {
        200 => {}
        429 => {
            return Err(RegistryError::RateLimited {
                retry_after: retry::asked_pause(&answer),
                host,
            });
        }
        status => {
            return Err(RegistryError::Status {
                what: "a token".to_owned(),
                detail: String::new(),
                retry_after: retry::asked_pause(&answer),
                status,
                host,
            });
        }
    }
    let text = answer
        .read_body(MAX_ANSWER)?
        .ok_or_else(|| unusable(&host, "sends too much"))?;
    let parsed: Answer =
        serde_json::from_slice(&text).map_err(|_| unusable(&host, "sends no token"))?;
    let token = [parsed.token, parsed.access_token]
        .into_iter()
        .flatten()
        .find(|token| !token.is_empty())
        .ok_or_else(|| unusable(&host, "sends no token"))?;
    // It becomes part of a header, so nothing that could end one may be in it.
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(unusable(&host, "sends a malformed token"));
    }
    let life = parsed
        .expires_in
        .filter(|seconds| *seconds > 0)
        .map_or(DEFAULT_LIFE, Duration::from_secs)
        .min(LONGEST_LIFE);
    Ok(Token {
        header: Secret::new(format!("Bearer {token}")),
        expires: asked + life.saturating_sub(MARGIN.min(life / 2)),
    })
}

/// The host of a realm, for messages.
pub(super) fn realm_host(realm: &str) -> &str {
    realm
        .split_once("://")
        .map_or(realm, |(_, rest)| rest)
        .split(['/', '?'])
        .next()
        .unwrap_or_default()
}

/// The origin of a realm; None when it is no address.
pub(super) fn realm_origin(realm: &str) -> Option<Origin> {
    Origin::of(&realm.parse().ok()?)
}
