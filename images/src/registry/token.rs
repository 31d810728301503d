//! Tokens: the authorization server of the Distribution project ("Token Authentication Specification").
//!
//! The token service named by the challenge is asked for a token for our scope: with GET, and Basic credentials where it is the registry's own
//! service and we have some; with an identity token by POST ("OAuth2 Token Authentication"). A token lives for `expires_in` seconds from when we asked, 60 where it does not say.

use std::time::{Duration, Instant};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde::Deserialize;
use ureq::http::{Method, Uri};

use super::RegistryError;
use super::address::{self, Origin, percent_encode};
use super::credentials::{Credential, Secret};
use super::http::{self, Call, Http, Range};
use super::retry;

/// Largest answer of a token service; Docker Hub's are some 3 KiB.
const MAX_ANSWER: u64 = 1 << 20;

/// Most redirects that are followed for one token.
const MAX_REDIRECTS: usize = 3;

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

/// The `Authorization` header of RFC 7617; None for an identity token, which only a token service understands.
pub(super) fn basic(credential: &Credential) -> Option<Secret> {
    let Credential::Login { user, password } = credential else {
        return None;
    };
    let pair = format!("{user}:{}", password.expose());
    Some(Secret::new(format!(
        "Basic {}",
        BASE64_STANDARD.encode(pair)
    )))
}

/// What a token is wanted for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Want<'a> {
    /// URL of the token service.
    pub(super) realm: &'a str,
    /// The name under which the service knows the registry.
    pub(super) service: Option<&'a str>,
    /// What the token should permit; None for a mere login.
    pub(super) scope: Option<&'a str>,
}

impl Want<'_> {
    /// As parts of a query, each behind a `&`.
    fn parameters(&self) -> String {
        let named = [("service", self.service), ("scope", self.scope)];
        named
            .into_iter()
            .filter_map(|(name, value)| Some(format!("&{name}={}", percent_encode(value?))))
            .collect()
    }
}

/// Asks a token service. Where it redirects to is for `follow` to judge: it gets both addresses and returns the credential that may be shown
/// to the second.
pub(super) fn fetch(
    http: &Http,
    want: Want<'_>,
    credential: Option<&Credential>,
    follow: impl Fn(&Uri, &Uri) -> Result<Option<Credential>, RegistryError>,
) -> Result<Token, RegistryError> {
    let asked = Instant::now();
    if let Some(Credential::IdentityToken(token)) = credential {
        let uri = address_of(want.realm.to_owned())?;
        let form = format!(
            "grant_type=refresh_token&client_id=cista{}&refresh_token={}",
            want.parameters(),
            percent_encode(token.expose())
        );
        // A redirect is not followed: the form would go with it.
        return accept(http.post(&uri, &Secret::new(form))?, asked);
    }
    let mut url = format!("{}{}", want.realm, want.parameters());
    if !want.realm.contains('?') {
        url = url.replacen('&', "?", 1);
    }
    let mut uri = address_of(url)?;
    let mut authorization = credential.and_then(basic);
    for _ in 0..=MAX_REDIRECTS {
        let answer = http.send(&Call {
            method: Method::GET,
            uri: &uri,
            accept: Some("application/json"),
            authorization: authorization.as_ref(),
            range: Range::All,
        })?;
        if !matches!(answer.status, 301 | 302 | 303 | 307 | 308) {
            return accept(answer, asked);
        }
        let target = answer
            .header("location")
            .and_then(|location| address::resolve_location(&uri, location))
            .ok_or_else(|| unusable(&answer.host, "redirects to nowhere"))?;
        if Origin::of(&target) != Origin::of(&uri) {
            authorization = follow(&uri, &target)?.as_ref().and_then(basic);
        }
        uri = target;
    }
    Err(unusable(realm_host(want.realm), "redirects without end"))
}

fn unusable(host: &str, problem: &str) -> RegistryError {
    RegistryError::Token {
        host: host.to_owned(),
        problem: problem.to_owned(),
    }
}

fn address_of(url: String) -> Result<Uri, RegistryError> {
    url.parse()
        .map_err(|_| unusable(realm_host(&url), "has no usable address"))
}

/// Reads the token of an answer to a request of the time `asked`.
fn accept(answer: http::Answer, asked: Instant) -> Result<Token, RegistryError> {
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
