//! Docker's `config.json` and podman's `auth.json` (docker-login; containers-auth.json(5)): the format, and which entry is meant.
//!
//! `auths` holds logins by registry; docker writes a registry as `HOST[:PORT]` or as a URL with that host, podman also writes a part of a
//! registry, `HOST[:PORT]/NAMESPACE[/NAME]`, and the longest that fits counts. `credHelpers` names a program for a registry, `credsStore`
//! one for all others. Docker Hub has several names, of which `https://index.docker.io/v1/` is what helpers know.

use std::collections::BTreeMap;

use base64::alphabet;
use base64::engine::{DecodePaddingMode, Engine as _, GeneralPurpose, GeneralPurposeConfig};
use cista_images::reference::DOCKER_HUB;
use cista_images::registry::{Credential, Secret};
use serde::Deserialize;

/// How docker and its helpers name Docker Hub.
pub(super) const HUB_KEY: &str = "https://index.docker.io/v1/";

/// Base64 with or without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The parts of a file that are about logins.
#[derive(Deserialize, Default)]
pub(super) struct File {
    auths: Option<BTreeMap<String, Option<Entry>>>,
    #[serde(rename = "credHelpers")]
    helpers: Option<BTreeMap<String, String>>,
    #[serde(rename = "credsStore")]
    store: Option<String>,
}

#[derive(Deserialize, Default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

/// What a file has for a registry.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    Credential(Credential),
    /// A program has it.
    Helper(Helper),
    Nothing,
}

/// A credential helper and what to ask it for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Helper {
    /// `NAME` of `docker-credential-NAME`.
    pub(super) name: String,
    /// How the registry is named to it.
    pub(super) key: String,
    /// It is the helper for all registries, and may well have nothing for this one.
    pub(super) is_store: bool,
}

/// What is wrong with a file. Never holds anything of its content.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// It is no JSON, or not of docker's form.
    #[error("line {line}, column {column}: {problem}")]
    Json {
        /// The line, the first being 1.
        line: usize,
        /// The column, the first being 1.
        column: usize,
        /// What is wrong.
        problem: &'static str,
    },
    /// The `auth` of an entry is not base64 of `USER:PASSWORD`.
    #[error("`auth` of `{key}` is not base64 of `USER:PASSWORD`")]
    Auth {
        /// The entry's key.
        key: String,
    },
    /// A helper's name is no name.
    #[error("the name of the credential helper for `{server}` holds a `/`")]
    HelperName {
        /// The registry.
        server: String,
    },
}

impl From<serde_json::Error> for FormatError {
    fn from(error: serde_json::Error) -> Self {
        // The error's own text may quote a value.
        Self::Json {
            line: error.line(),
            column: error.column(),
            problem: match error.classify() {
                serde_json::error::Category::Data => "a value of another kind is expected",
                _ => "the JSON is malformed",
            },
        }
    }
}

impl File {
    /// Reads the format. An empty file is one without entries.
    pub(super) fn parse(text: &[u8]) -> Result<Self, FormatError> {
        if text.trim_ascii().is_empty() {
            return Ok(Self::default());
        }
        Ok(serde_json::from_slice(text)?)
    }

    /// What there is for a repository of a registry, or for the registry as a whole where the repository is empty.
    pub(super) fn find(
        &self,
        server: &str,
        repository: &str,
        user: Option<&str>,
    ) -> Result<Found, FormatError> {
        if let Some(helper) = self.helper_of(server)? {
            return Ok(Found::Helper(helper));
        }
        // The longest key first.
        let mut matching: Vec<_> = self.matching(server, repository).collect();
        matching.sort_by_key(|(length, _, _)| std::cmp::Reverse(*length));
        for (_, key, entry) in matching {
            let credential = entry.credential(user).map_err(|()| FormatError::Auth {
                key: key.to_owned(),
            })?;
            if let Some(credential) = credential {
                return Ok(Found::Credential(credential));
            }
        }
        Ok(match self.store_of(server)? {
            Some(helper) => Found::Helper(helper),
            None => Found::Nothing,
        })
    }

    /// The helper of just this registry.
    fn helper_of(&self, server: &str) -> Result<Option<Helper>, FormatError> {
        let found = self
            .helpers
            .iter()
            .flatten()
            .find(|(key, name)| !name.is_empty() && fits(key, server, "").is_some());
        found
            .map(|(key, name)| Helper::new(name, server, key, false))
            .transpose()
    }

    /// The helper of all registries.
    fn store_of(&self, server: &str) -> Result<Option<Helper>, FormatError> {
        let key = self.matching(server, "").next();
        let key = key.map_or(server, |(_, key, _)| key);
        self.store
            .as_deref()
            .filter(|name| !name.is_empty())
            .map(|name| Helper::new(name, server, key, true))
            .transpose()
    }

    /// The helper that a new login for a registry goes to.
    pub(super) fn helper_for(&self, server: &str) -> Result<Option<Helper>, FormatError> {
        match self.helper_of(server)? {
            Some(helper) => Ok(Some(helper)),
            None => self.store_of(server),
        }
    }

    /// The keys of entries for the registry as a whole.
    pub(super) fn keys_of(&self, server: &str) -> Vec<String> {
        self.matching(server, "")
            .map(|(_, key, _)| key.to_owned())
            .collect()
    }

    fn matching<'a>(
        &'a self,
        server: &'a str,
        repository: &'a str,
    ) -> impl Iterator<Item = (usize, &'a str, &'a Entry)> {
        self.auths.iter().flatten().filter_map(move |(key, entry)| {
            let length = fits(key, server, repository)?;
            Some((length, key.as_str(), entry.as_ref()?))
        })
    }
}

impl Helper {
    fn new(name: &str, server: &str, key: &str, is_store: bool) -> Result<Self, FormatError> {
        // A path would run any program.
        if name.contains('/') {
            return Err(FormatError::HelperName {
                server: server.to_owned(),
            });
        }
        Ok(Self {
            name: name.to_owned(),
            key: if server == DOCKER_HUB { HUB_KEY } else { key }.to_owned(),
            is_store,
        })
    }
}

impl Entry {
    /// The credential, if there is one, of a certain user if one is given.
    fn credential(&self, wanted: Option<&str>) -> Result<Option<Credential>, ()> {
        let text = |field: &Option<String>| field.clone().filter(|text| !text.is_empty());
        let pair = match text(&self.auth) {
            None => None,
            Some(auth) => {
                let decoded = BASE64.decode(auth.trim()).map_err(|_| ())?;
                let decoded = String::from_utf8(decoded).map_err(|_| ())?;
                let (user, password) = decoded.split_once(':').ok_or(())?;
                // Old versions of docker filled the field up with zeros.
                Some((user.to_owned(), password.trim_end_matches('\0').to_owned()))
            }
        };
        let user = pair
            .as_ref()
            .map(|(user, _)| user.clone())
            .or_else(|| text(&self.username));
        if let Some(token) = text(&self.identitytoken) {
            // The user beside a token may be a mere placeholder.
            let is_wanted = match (wanted, user.as_deref()) {
                (Some(wanted), Some(user)) => is_placeholder(user) || user == wanted,
                _ => true,
            };
            return Ok(is_wanted.then(|| Credential::IdentityToken(Secret::new(token))));
        }
        let password = pair
            .map(|(_, password)| password)
            .or_else(|| text(&self.password));
        let (Some(user), Some(password)) = (user, password) else {
            return Ok(None);
        };
        Ok(
            (!password.is_empty() && wanted.is_none_or(|wanted| wanted == user))
                .then(|| Credential::login(user, password)),
        )
    }
}

/// Whether a user is none: what docker and Azure write beside a token.
pub(super) fn is_placeholder(user: &str) -> bool {
    matches!(
        user,
        "" | "<token>" | "00000000-0000-0000-0000-000000000000"
    )
}

/// How long the path of a key is that fits a repository of a registry: 0 for the registry as a whole. None when it does not fit.
fn fits(key: &str, server: &str, repository: &str) -> Option<usize> {
    let is_url = key.starts_with("http://") || key.starts_with("https://");
    let bare = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"))
        .unwrap_or(key);
    let (host, path) = bare.split_once('/').unwrap_or((bare, ""));
    if one_name(&host.to_ascii_lowercase()) != one_name(server) {
        return None;
    }
    let path = path.trim_end_matches('/');
    // A URL's path, and what is left of one, is the version of an interface.
    if is_url || matches!(path, "" | "v1" | "v2") {
        return Some(0);
    }
    let rest = repository.strip_prefix(path)?;
    (rest.is_empty() || rest.starts_with('/')).then_some(path.len())
}

/// One name for Docker Hub, which has several.
pub(super) fn one_name(host: &str) -> &str {
    match host {
        "docker.io" | "index.docker.io" => DOCKER_HUB,
        host => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str, server: &str, repository: &str, user: Option<&str>) -> String {
        match File::parse(text.as_bytes()).and_then(|file| file.find(server, repository, user)) {
            Ok(Found::Nothing) => "nothing".to_owned(),
            Ok(Found::Helper(helper)) => {
                let store = if helper.is_store { " of all" } else { "" };
                format!("{}{store} {}", helper.name, helper.key)
            }
            Ok(Found::Credential(Credential::Login { user, password })) => {
                format!("{user}:{}", password.expose())
            }
            Ok(Found::Credential(Credential::IdentityToken(token))) => {
                format!("token {}", token.expose())
            }
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn entries_of_the_field() {
        // `me:hunter2`, `you:secret:2`, `0…0:` and `me` in base64.
        let text = r#"{
            "auths": {
                "quay.io": {"auth": "bWU6aHVudGVyMg=="},
                "quay.io/team": {"auth": "eW91OnNlY3JldDoy"},
                "quay.io/team/app": {"username": "app", "password": "p"},
                "https://index.docker.io/v1/": {"auth": "bWU6aHVudGVyMg"},
                "http://local:5000": {"auth": "bWU6aHVudGVyMg=="},
                "https://gitlab.org/v2/": {"username": "u", "password": "p"},
                "x.azurecr.io": {"auth": "MDAwMDAwMDAtMDAwMC0wMDAwLTAwMDAtMDAwMDAwMDAwMDAwOg==", "identitytoken": "idt"},
                "named.io": {"auth": "bWU6", "identitytoken": "idt"},
                "empty.io": {},
                "null.io": null,
                "broken.io": {"auth": "bWU="}
            },
            "credHelpers": {"gcr.io": "gcloud", "public.ecr.aws": ""},
            "HttpHeaders": {"User-Agent": "x"}
        }"#;
        for (server, repository, user, expected) in [
            ("quay.io", "other/app", None, "me:hunter2"),
            ("quay.io", "team/x", None, "you:secret:2"),
            ("quay.io", "team/app", None, "app:p"),
            ("quay.io", "team/app/x", None, "app:p"),
            ("quay.io", "team/app", Some("me"), "me:hunter2"),
            ("quay.io", "team-b/app", None, "me:hunter2"),
            ("quay.io", "team", Some("nobody"), "nothing"),
            ("quay.io:5000", "team", None, "nothing"),
            (DOCKER_HUB, "library/ubuntu", None, "me:hunter2"),
            ("local:5000", "a", None, "me:hunter2"),
            ("gitlab.org", "a", None, "u:p"),
            ("x.azurecr.io", "a", Some("me"), "token idt"),
            ("named.io", "a", Some("me"), "token idt"),
            ("named.io", "a", Some("you"), "nothing"),
            ("empty.io", "a", None, "nothing"),
            ("null.io", "a", None, "nothing"),
            ("gcr.io", "a", Some("me"), "gcloud gcr.io"),
            ("public.ecr.aws", "a", None, "nothing"),
            ("unknown.io", "a", None, "nothing"),
            (
                "broken.io",
                "a",
                None,
                "`auth` of `broken.io` is not base64 of `USER:PASSWORD`",
            ),
        ] {
            assert_eq!(
                found(text, server, repository, user),
                expected,
                "{server} {repository} {user:?}"
            );
        }
    }

    #[test]
    fn stores_have_what_the_file_has_not() {
        let text = r#"{"auths": {"https://a.io": {}, "b.io": {"auth": "bWU6aHVudGVyMg=="}},
            "credHelpers": {"docker.io": "hub"}, "credsStore": "pass"}"#;
        for (server, expected) in [
            ("a.io", "pass of all https://a.io"),
            ("b.io", "me:hunter2"),
            ("c.io", "pass of all c.io"),
            (DOCKER_HUB, "hub https://index.docker.io/v1/"),
        ] {
            assert_eq!(found(text, server, "x", None), expected, "{server}");
        }
        let path = r#"{"credsStore": "../evil"}"#;
        assert!(found(path, "a.io", "x", None).contains("holds a `/`"));
    }

    #[test]
    fn what_is_malformed_is_told_by_line_and_never_quoted() {
        for text in [
            "{\n\"auths\": {\"a.io\": \"hunter2\"}}",
            "{\n\"auths\": {\"a.io\": {\"auth\": hunter2}}}",
            "{\n\"auths\": [\"hunter2\"]}",
        ] {
            let shown = found(text, "a.io", "x", None);
            assert!(shown.starts_with("line 2"), "{shown}");
            assert!(!shown.contains("hunter2"), "{shown}");
        }
        assert_eq!(found("", "a.io", "x", None), "nothing");
        assert_eq!(found("{}", "a.io", "x", None), "nothing");
    }
}
