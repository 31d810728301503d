//! `docker://[USER@][REGISTRY#|REGISTRY/]IMAGE[:TAG][@sha256:…]`, without the scheme.
//!
//! Names and tags obey the OCI distribution specification, "Pulling manifests":
//! name `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*`, tag `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`.
//! Both become parts of a URL and of file names, so nothing else may pass.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use super::ReferenceError;
use crate::digest::Digest;

/// The host that serves Docker Hub's images.
pub const DOCKER_HUB: &str = "registry-1.docker.io";

/// Longest `REGISTRY/IMAGE` that registries take, in bytes (the limit of the reference implementation).
const MAX_NAME: usize = 255;

/// Longest tag, in bytes.
const MAX_TAG: usize = 128;

/// An image in a registry.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RegistryReference {
    /// The user to log in as, where one was given.
    pub user: Option<String>,
    /// Host and optional port, in lower case: `quay.io`, `127.0.0.1:5000`, `[::1]:5000`.
    pub registry: String,
    /// The repository: `library/ubuntu`.
    pub repository: String,
    /// The tag, where one was given. It counts only when there is no digest.
    pub tag: Option<String>,
    /// The digest of the manifest or the index, where one was given.
    pub digest: Option<Digest>,
}

impl RegistryReference {
    /// What the registry is asked for: the digest, else the tag, else `latest`.
    #[must_use]
    pub fn wanted(&self) -> String {
        match &self.digest {
            Some(digest) => digest.to_string(),
            None => self.tag.as_deref().unwrap_or("latest").to_owned(),
        }
    }

    /// `docker://REGISTRY/REPOSITORY:TAG` or `docker://REGISTRY/REPOSITORY@DIGEST`, without the user.
    #[must_use]
    pub fn canonical(&self) -> String {
        let separator = if self.digest.is_some() { '@' } else { ':' };
        format!(
            "docker://{}/{}{separator}{}",
            self.registry,
            self.repository,
            self.wanted()
        )
    }

    /// The default file name without its extension.
    pub(super) fn file_stem(&self) -> String {
        let name = match self.repository.strip_prefix("library/") {
            Some(name) if self.registry == DOCKER_HUB => name,
            _ => &self.repository,
        };
        format!("{}+{}", name.replace('/', "+"), self.wanted())
    }
}

/// Whether what stands before the first slash is a registry, by itself.
fn is_registry(first: &str) -> bool {
    first.contains(['.', ':']) || first == "localhost" || first.starts_with('[')
}

impl fmt::Display for RegistryReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("docker://")?;
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        // Before a slash, a short name would be a part of the repository, at Docker Hub.
        let parting = if is_registry(&self.registry) {
            '/'
        } else {
            '#'
        };
        write!(f, "{}{parting}{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for RegistryReference {
    type Err = ReferenceError;

    /// Parses the text after `docker://`; also what the Slurm plugin takes as an image.
    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let (user, rest, digest) = split_user_and_digest(text)?;
        let missing = |what| ReferenceError::Missing {
            text: format!("docker://{rest}"),
            what,
        };
        let (registry, image) = match rest.split_once('#') {
            Some((registry, image)) => (Some(registry), image),
            None => match rest.split_once('/') {
                Some((first, image)) if is_registry(first) => (Some(first), image),
                _ => (None, rest),
            },
        };
        let (repository, tag) = match image.rsplit_once(':') {
            // A colon before a slash belongs to no tag; the name check says what is wrong.
            Some((repository, tag)) if !tag.contains('/') => (repository, Some(tag)),
            _ => (image, None),
        };
        if repository.is_empty() {
            return Err(missing("an image name"));
        }
        if tag == Some("") {
            return Err(missing("a tag after the colon"));
        }
        let registry = match registry {
            None => DOCKER_HUB.to_owned(),
            Some(registry) => check_registry(registry)?,
        };
        check_repository(repository)?;
        tag.map_or(Ok(()), check_tag)?;
        let repository = if registry == DOCKER_HUB && !repository.contains('/') {
            format!("library/{repository}")
        } else {
            repository.to_owned()
        };
        if registry.len() + 1 + repository.len() > MAX_NAME {
            return Err(ReferenceError::Name {
                name: repository,
                problem: "registry and name together are longer than 255 bytes",
            });
        }
        Ok(Self {
            user,
            registry,
            repository,
            tag: tag.map(str::to_owned),
            digest,
        })
    }
}

/// Takes `USER@` from the front and `@DIGEST` from the end. A user may hold `@` itself (mail addresses), so it ends at the last one that
/// does not begin a digest.
fn split_user_and_digest(
    text: &str,
) -> Result<(Option<String>, &str, Option<Digest>), ReferenceError> {
    let (front, digest) = match text.rsplit_once('@') {
        Some((front, last)) if looks_like_digest(last) => (front, Some(last)),
        _ => (text, None),
    };
    let (user, rest) = match front.rsplit_once('@') {
        None => (None, front),
        Some((user, rest)) => {
            // Checked before anything is quoted in an error, so that a password is never repeated.
            if user.contains(':') {
                return Err(ReferenceError::Password);
            }
            // What enroot takes in a user name (`$oauthtoken`, a mail address), less the colon.
            if let Some(character) = user
                .chars()
                .find(|c| !c.is_ascii_alphanumeric() && !"_.!~*'()%;&=+$,-@".contains(*c))
            {
                return Err(ReferenceError::User { character });
            }
            if user.is_empty() {
                return Err(ReferenceError::Missing {
                    text: format!("docker://@{rest}"),
                    what: "a user before the `@`",
                });
            }
            (Some(user.to_owned()), rest)
        }
    };
    Ok((user, rest, digest.map(str::parse).transpose()?))
}

/// `ALGORITHM:HEX`, well-formed or not: no registry, and no image with a tag, ends like this.
fn looks_like_digest(text: &str) -> bool {
    text.split_once(':').is_some_and(|(algorithm, encoded)| {
        (algorithm.starts_with("sha") && !algorithm.contains(['.', '/']))
            && !encoded.contains(['/', '#'])
    })
}

/// Checks `HOST[:PORT]` and returns it in lower case, Docker Hub's other names replaced.
///
/// # Errors
///
/// [`ReferenceError::Registry`].
pub fn check_registry(registry: &str) -> Result<String, ReferenceError> {
    let malformed = || ReferenceError::Registry {
        registry: registry.to_owned(),
    };
    let (host, port) = if let Some(rest) = registry.strip_prefix('[') {
        let (address, port) = rest.split_once(']').ok_or_else(malformed)?;
        address.parse::<Ipv6Addr>().map_err(|_| malformed())?;
        let port = match port {
            "" => None,
            port => Some(port.strip_prefix(':').ok_or_else(malformed)?),
        };
        (&registry[..address.len() + 2], port)
    } else {
        let (host, port) = match registry.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (registry, None),
        };
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if host.len() > 253 || !host.split('.').all(label) {
            return Err(malformed());
        }
        (host, port)
    };
    if let Some(port) = port {
        let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        if !digits || port.parse::<u16>().map_or(true, |port| port == 0) {
            return Err(malformed());
        }
    }
    let lower = host.to_ascii_lowercase();
    match lower.as_str() {
        "docker.io" | "index.docker.io" | DOCKER_HUB if matches!(port, None | Some("443")) => {
            Ok(DOCKER_HUB.to_owned())
        }
        _ => Ok(match port {
            Some(port) => format!("{lower}:{port}"),
            None => lower,
        }),
    }
}

/// Checks a repository name.
///
/// # Errors
///
/// [`ReferenceError::Name`].
pub fn check_repository(name: &str) -> Result<(), ReferenceError> {
    let problem = if name.len() > MAX_NAME {
        Some("longer than 255 bytes")
    } else {
        name.split('/').find_map(component_problem)
    };
    match problem {
        None => Ok(()),
        Some(problem) => Err(ReferenceError::Name {
            name: name.to_owned(),
            problem,
        }),
    }
}

/// What is wrong with a component of a repository name.
fn component_problem(component: &str) -> Option<&'static str> {
    let bytes = component.as_bytes();
    let is_alphanumeric = |byte: &u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9');
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return Some("it has an empty component");
    };
    if bytes.iter().any(u8::is_ascii_uppercase) {
        return Some("upper case is not allowed");
    }
    if bytes
        .iter()
        .any(|byte| !is_alphanumeric(byte) && !b"._-".contains(byte))
    {
        return Some("only lower-case letters, digits, `.`, `_`, `-` and `/` are allowed");
    }
    if !is_alphanumeric(first) || !is_alphanumeric(last) {
        return Some("each component must begin and end with a letter or digit");
    }
    let separators = component
        .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        .filter(|run| !run.is_empty());
    for run in separators {
        if !matches!(run, "." | "_" | "__") && !run.bytes().all(|byte| byte == b'-') {
            return Some("separators are one `.`, one or two `_`, or any number of `-`");
        }
    }
    None
}

/// Checks a tag.
pub(super) fn check_tag(tag: &str) -> Result<(), ReferenceError> {
    let problem = if tag.is_empty() {
        "it is empty"
    } else if tag.len() > MAX_TAG {
        "longer than 128 bytes"
    } else if tag.starts_with(['.', '-']) {
        "it must begin with a letter, a digit or `_`"
    } else if !tag
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    {
        "only letters, digits, `.`, `_` and `-` are allowed"
    } else {
        return Ok(());
    };
    Err(ReferenceError::Tag {
        tag: tag.to_owned(),
        problem,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn references_split_as_enroot_splits_them() {
        let digest = format!("sha256:{HEX}");
        let with_tag_and_digest = format!("ubuntu:22.04@{digest}");
        let full = format!("me@example.org@nvcr.io#a/b@{digest}");
        let user_and_digest = format!("me@ubuntu@{digest}");
        for (text, user, registry, repository, tag, has_digest) in [
            ("ubuntu", None, DOCKER_HUB, "library/ubuntu", None, false),
            (
                "ubuntu:22.04",
                None,
                DOCKER_HUB,
                "library/ubuntu",
                Some("22.04"),
                false,
            ),
            (
                "nvidia/cuda:12",
                None,
                DOCKER_HUB,
                "nvidia/cuda",
                Some("12"),
                false,
            ),
            (
                "docker.io/ubuntu",
                None,
                DOCKER_HUB,
                "library/ubuntu",
                None,
                false,
            ),
            ("index.docker.io/a/b", None, DOCKER_HUB, "a/b", None, false),
            ("Quay.IO/a/b/c", None, "quay.io", "a/b/c", None, false),
            ("quay.io/x", None, "quay.io", "x", None, false),
            ("localhost/x:1", None, "localhost", "x", Some("1"), false),
            ("localhost:5000/x", None, "localhost:5000", "x", None, false),
            (
                "127.0.0.1:5000/ml/python:3",
                None,
                "127.0.0.1:5000",
                "ml/python",
                Some("3"),
                false,
            ),
            ("[::1]:5000/x:1", None, "[::1]:5000", "x", Some("1"), false),
            ("[fe80::1]/x", None, "[fe80::1]", "x", None, false),
            ("gitlab/x/y", None, DOCKER_HUB, "gitlab/x/y", None, false),
            ("host#x:1", None, "host", "x", Some("1"), false),
            (
                "$oauthtoken@nvcr.io#nvidia/pytorch:23.01-py3",
                Some("$oauthtoken"),
                "nvcr.io",
                "nvidia/pytorch",
                Some("23.01-py3"),
                false,
            ),
            (
                "me@ubuntu:1",
                Some("me"),
                DOCKER_HUB,
                "library/ubuntu",
                Some("1"),
                false,
            ),
            (
                "me@mail.org@quay.io/x",
                Some("me@mail.org"),
                "quay.io",
                "x",
                None,
                false,
            ),
            (
                with_tag_and_digest.as_str(),
                None,
                DOCKER_HUB,
                "library/ubuntu",
                Some("22.04"),
                true,
            ),
            (
                full.as_str(),
                Some("me@example.org"),
                "nvcr.io",
                "a/b",
                None,
                true,
            ),
            (
                user_and_digest.as_str(),
                Some("me"),
                DOCKER_HUB,
                "library/ubuntu",
                None,
                true,
            ),
        ] {
            let parsed: RegistryReference = text
                .parse()
                .unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(parsed.user.as_deref(), user, "{text}");
            assert_eq!(parsed.registry, registry, "{text}");
            assert_eq!(parsed.repository, repository, "{text}");
            assert_eq!(parsed.tag.as_deref(), tag, "{text}");
            assert_eq!(parsed.digest.is_some(), has_digest, "{text}");
        }
    }

    #[test]
    fn canonical_form_is_complete_and_has_no_user() {
        let parsed: RegistryReference = "me@ubuntu".parse().unwrap();
        assert_eq!(
            parsed.canonical(),
            "docker://registry-1.docker.io/library/ubuntu:latest"
        );
        let parsed: RegistryReference = format!("x.org/a:1@sha256:{HEX}").parse().unwrap();
        assert_eq!(parsed.canonical(), format!("docker://x.org/a@sha256:{HEX}"));
        assert_eq!(parsed.wanted(), format!("sha256:{HEX}"));
    }

    #[test]
    fn malformed_references_say_what_is_wrong() {
        let long_tag = format!("x:{}", "a".repeat(129));
        let long_name = format!("x.org/{}", "a/".repeat(128) + "a");
        let upper_digest = format!("x@sha256:{}", HEX.to_uppercase());
        for (text, fragment) in [
            ("", "lacks an image name"),
            (":1", "lacks an image name"),
            ("x:", "lacks a tag"),
            ("@x", "lacks a user"),
            ("quay.io/", "lacks an image name"),
            ("Ubuntu", "upper case"),
            ("a//b", "empty component"),
            ("../x", "is not a registry"),
            ("a/../b", "begin and end"),
            ("a/b/", "empty component"),
            ("-a", "begin and end"),
            ("a-", "begin and end"),
            ("a___b", "separators"),
            ("a..b/c", "is not a registry"),
            ("x/a..b", "separators"),
            ("x/a._b", "separators"),
            ("x y", "only lower-case"),
            ("x/ü", "only lower-case"),
            ("x:a/b", "is not a registry"),
            ("h.org/x:a:b", "only lower-case"),
            ("x:.a", "must begin"),
            (&long_tag, "longer than 128"),
            (&long_name, "longer than 255"),
            ("host:0/x", "is not a registry"),
            ("host:99999/x", "is not a registry"),
            ("host:+5/x", "is not a registry"),
            ("[::1/x", "is not a registry"),
            ("[::zz]/x", "is not a registry"),
            ("-a.org/x", "is not a registry"),
            ("a b.org#x", "is not a registry"),
            ("#x", "is not a registry"),
            ("x@sha256:00", "digest"),
            ("x@sha512:00", "digest"),
            (&upper_digest, "digest"),
            ("a b@x", "not allowed"),
        ] {
            let error = text.parse::<RegistryReference>().unwrap_err();
            let shown = match &error {
                ReferenceError::Digest(source) => format!("{error}: {source}"),
                _ => error.to_string(),
            };
            assert!(shown.contains(fragment), "{text}: {shown}");
        }
    }

    #[test]
    fn passwords_are_refused_and_never_repeated() {
        for text in [
            "me:hunter2@quay.io/x",
            "me:hunter2@X Y",
            "me:hunter2@",
            "me:hunter2@quay.io/x@sha256:00",
        ] {
            let error = text.parse::<RegistryReference>().unwrap_err();
            assert_eq!(error, ReferenceError::Password, "{text}");
            assert!(!format!("{error} {error:?}").contains("hunter2"));
        }
    }

    proptest! {
        #[test]
        fn nothing_panics_and_what_parses_is_stable(text in "\\PC{0,80}") {
            if let Ok(parsed) = text.parse::<RegistryReference>() {
                let shown = parsed.to_string();
                let again: RegistryReference = shown.strip_prefix("docker://").unwrap().parse().unwrap();
                prop_assert_eq!(&again, &parsed);
            }
            let _ = text.parse::<super::super::Reference>();
        }

        #[test]
        fn well_formed_references_round_trip(
            user in proptest::option::of("[a-z$][a-z0-9._-]{0,8}"),
            registry in "([a-z][a-z0-9]{0,5}\\.[a-z]{2,3}|[a-z][a-z0-9]{0,8}|localhost|127\\.0\\.0\\.1)(:[1-9][0-9]{0,3})?",
            repository in "[a-z0-9]{1,5}((\\.|_|__|-{1,3})[a-z0-9]{1,3}){0,2}(/[a-z0-9]{1,5}){0,2}",
            tag in proptest::option::of("[A-Za-z0-9_][A-Za-z0-9._-]{0,20}"),
            digest in proptest::option::of(proptest::array::uniform32(any::<u8>())),
        ) {
            let expected = RegistryReference { user, registry, repository, tag, digest: digest.map(Digest::from_bytes) };
            let shown = expected.to_string();
            let parsed: RegistryReference = shown.strip_prefix("docker://").unwrap().parse().unwrap();
            prop_assert_eq!(&parsed, &expected);
            let short = shown.strip_prefix("docker://").unwrap();
            let hashed = match short.contains('#') {
                true => shown.clone(),
                false => format!("docker://{}", short.replacen('/', "#", 1)),
            };
            prop_assert_eq!(hashed.parse::<super::super::Reference>().unwrap(), super::super::Reference::Registry(expected));
        }

        #[test]
        fn file_names_hold_no_slash(text in "[a-z0-9./:_-]{1,40}") {
            if let Ok(reference) = format!("docker://{text}").parse::<super::super::Reference>() {
                let name = reference.default_file_name().unwrap();
                prop_assert!(!name.contains('/') && !name.starts_with('.'));
            }
        }
    }
}
