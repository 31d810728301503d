//! How registries, or parts of them, are reached where that differs from the usual: mirrors, other places, http, certificates, limits.
//!
//! The ideas and names are those of containers-registries.conf(5). A rule is found by the longest prefix of `HOST[:PORT]/REPOSITORY`. A name
//! stays what the user calls an image; where it is fetched from is the rule's business. Mirrors are tried in their order, the place itself
//! comes last. What comes is verified by its digest wherever it comes from, but which digest a tag stands for is the mirror's word.

use std::path::PathBuf;
use std::str::FromStr;

use super::RegistryError;
use crate::reference::{ReferenceError, RegistryReference, check_registry, check_repository};

/// How a host is talked to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Plain http is allowed, and https with a certificate of nobody known.
    pub insecure: bool,
    /// PEM file of certificate authorities to trust beside the usual ones.
    pub ca: Option<PathBuf>,
    /// Most connections that fetch blobs at once.
    pub max_connections: Option<usize>,
    /// Most bytes that are received in a second, over all connections.
    pub max_rate: Option<u64>,
}

impl Access {
    /// This where it says something, `other` for the rest.
    #[must_use]
    pub fn or(self, other: &Self) -> Self {
        Self {
            insecure: self.insecure || other.insecure,
            ca: self.ca.or_else(|| other.ca.clone()),
            max_connections: self.max_connections.or(other.max_connections),
            max_rate: self.max_rate.or(other.max_rate),
        }
    }
}

/// Which references a mirror serves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Serves {
    /// All.
    #[default]
    All,
    /// Those with a digest, which have only one answer.
    Digests,
    /// Those with a tag alone.
    Tags,
}

/// Another place that has the same images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// What takes the place of the rule's prefix.
    pub location: Location,
    /// How it is talked to.
    pub access: Access,
    /// What it is asked for.
    pub serves: Serves,
}

/// What holds for the images of a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Whose images these are.
    pub prefix: Prefix,
    /// What takes the place of the prefix; None where it stays.
    pub location: Option<Location>,
    /// Other places, tried before, in this order.
    pub mirrors: Vec<Mirror>,
    /// These images may not be fetched at all.
    pub blocked: bool,
    /// How the place is talked to.
    pub access: Access,
}

/// `HOST[:PORT][/PATH]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// As in a reference.
    pub registry: String,
    /// The beginning of the repository's name; may be empty.
    pub path: String,
}

impl FromStr for Location {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let (registry, path) = text.split_once('/').unwrap_or((text, ""));
        let path = path.trim_end_matches('/');
        if !path.is_empty() {
            check_repository(path)?;
        }
        Ok(Self {
            registry: check_registry(registry)?,
            path: path.to_owned(),
        })
    }
}

impl Location {
    /// The repository of this name and what stands behind a prefix.
    fn with(&self, rest: &str) -> String {
        let rest = rest.trim_start_matches('/');
        match (self.path.as_str(), rest) {
            ("", rest) => rest.to_owned(),
            (path, "") => path.to_owned(),
            (path, rest) => format!("{path}/{rest}"),
        }
    }
}

/// Images whose names begin alike: `HOST[:PORT][/PATH][:TAG|@DIGEST]`, or `*.DOMAIN` for every registry below a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefix {
    host: Host,
    path: String,
    /// A tag or a digest.
    end: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Host {
    Is(String),
    /// Ends with this, which begins with a dot.
    Below(String),
}

impl FromStr for Prefix {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if let Some(domain) = text.strip_prefix("*.") {
            return Ok(Self {
                host: Host::Below(format!(".{}", check_registry(domain)?)),
                path: String::new(),
                end: None,
            });
        }
        let (front, end) = match text.split_once('@') {
            Some((front, digest)) => (front, Some(digest)),
            None => match text.rsplit_once(':') {
                // A colon of the host is followed by a port.
                Some((front, tag)) if front.contains('/') && !tag.contains('/') => {
                    (front, Some(tag))
                }
                _ => (text, None),
            },
        };
        let location: Location = front.parse()?;
        Ok(Self {
            host: Host::Is(location.registry),
            path: location.path,
            end: end.map(str::to_owned),
        })
    }
}

impl Prefix {
    /// How much of a name it covers, and what of the repository stands behind it; None where it does not fit.
    fn covers<'a>(&self, reference: &'a RegistryReference) -> Option<(usize, &'a str)> {
        let length = match &self.host {
            Host::Is(host) => (*host == reference.registry).then_some(host.len())?,
            Host::Below(end) => {
                let front = reference.registry.strip_suffix(end.as_str())?;
                (!front.is_empty()).then_some(end.len())?
            }
        };
        let rest = match self.path.as_str() {
            "" => reference.repository.as_str(),
            path => reference.repository.strip_prefix(path)?,
        };
        let is_whole = self.path.is_empty() || rest.is_empty() || rest.starts_with('/');
        let ends = match &self.end {
            None => true,
            Some(end) => rest.is_empty() && *end == reference.wanted(),
        };
        let end = self.end.as_ref().map_or(0, String::len);
        (is_whole && ends).then_some((length + self.path.len() + end, rest))
    }

    /// Whether an image's name begins so.
    #[must_use]
    pub fn matches(&self, reference: &RegistryReference) -> bool {
        self.covers(reference).is_some()
    }
}

/// All rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routes {
    /// Groups of rules: the first group that has one for an image gives the longest one that it has.
    pub groups: Vec<Vec<Rule>>,
}

/// A place to fetch from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) registry: String,
    pub(super) repository: String,
    pub(super) access: Access,
}

impl Routes {
    /// The rule for an image, and what of its repository stands behind the rule's prefix.
    fn find<'a>(&self, reference: &'a RegistryReference) -> Option<(&Rule, &'a str)> {
        self.groups.iter().find_map(|rules| {
            rules
                .iter()
                .filter_map(|rule| {
                    let (length, rest) = rule.prefix.covers(reference)?;
                    Some((length, rule, rest))
                })
                .max_by_key(|(length, _, _)| *length)
                .map(|(_, rule, rest)| (rule, rest))
        })
    }

    /// How a repository of a host is talked to.
    pub(super) fn access(&self, registry: &str, repository: &str) -> Access {
        let reference = RegistryReference {
            user: None,
            registry: registry.to_owned(),
            repository: repository.to_owned(),
            tag: None,
            digest: None,
        };
        self.find(&reference)
            .map(|(rule, _)| rule.access.clone())
            .unwrap_or_default()
    }

    /// Where an image is fetched from: the place itself, and its mirrors in order.
    pub(super) fn places(
        &self,
        reference: &RegistryReference,
    ) -> Result<(Place, Vec<Place>), RegistryError> {
        let as_named = || Place {
            registry: reference.registry.clone(),
            repository: reference.repository.clone(),
            access: Access::default(),
        };
        let Some((rule, rest)) = self.find(reference) else {
            return Ok((as_named(), Vec::new()));
        };
        if rule.blocked {
            return Err(RegistryError::Blocked {
                reference: reference.canonical(),
            });
        }
        let place = |location: &Location, access: &Access| Place {
            access: access
                .clone()
                .or(&self.access(&location.registry, &location.path)),
            registry: location.registry.clone(),
            repository: location.with(rest),
        };
        let own = match &rule.location {
            None => Place {
                access: rule.access.clone(),
                ..as_named()
            },
            Some(location) => place(location, &rule.access),
        };
        let mirrors = rule
            .mirrors
            .iter()
            .filter(|mirror| match mirror.serves {
                Serves::All => true,
                Serves::Digests => reference.digest.is_some(),
                Serves::Tags => reference.digest.is_none(),
            })
            .map(|mirror| place(&mirror.location, &mirror.access))
            .collect();
        Ok((own, mirrors))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(prefix: &str, location: Option<&str>, mirrors: &[&str]) -> Rule {
        Rule {
            prefix: prefix.parse().unwrap(),
            location: location.map(|location| location.parse().unwrap()),
            mirrors: mirrors
                .iter()
                .map(|location| Mirror {
                    location: location.parse().unwrap(),
                    access: Access::default(),
                    serves: Serves::All,
                })
                .collect(),
            blocked: false,
            access: Access::default(),
        }
    }

    fn reference(text: &str) -> RegistryReference {
        text.parse().unwrap()
    }

    fn shown(routes: &Routes, name: &str) -> Vec<String> {
        let (own, mirrors) = routes.places(&reference(name)).unwrap();
        mirrors
            .iter()
            .chain([&own])
            .map(|place| format!("{}/{}", place.registry, place.repository))
            .collect()
    }

    #[test]
    fn the_longest_prefix_counts() {
        let routes = Routes {
            groups: vec![
                vec![
                    rule("quay.io", None, &["a.org"]),
                    rule("quay.io/team", Some("b.org/x"), &[]),
                    rule("quay.io/team/app:1", None, &["c.org/y/z"]),
                    rule("docker.io", None, &["d.org:5000/hub"]),
                    rule("*.corp.org", None, &["e.org"]),
                ],
                vec![
                    rule("quay.io/team/app", None, &["late.org"]),
                    rule("ghcr.io", Some("f.org"), &[]),
                ],
            ],
        };
        for (name, expected) in [
            ("quay.io/app:1", vec!["a.org/app", "quay.io/app"]),
            ("quay.io/team/app:2", vec!["b.org/x/app"]),
            ("quay.io/team:2", vec!["b.org/x"]),
            (
                "quay.io/teams/app",
                vec!["a.org/teams/app", "quay.io/teams/app"],
            ),
            ("quay.io/team/app:1", vec!["c.org/y/z", "quay.io/team/app"]),
            (
                "ubuntu",
                vec![
                    "d.org:5000/hub/library/ubuntu",
                    "registry-1.docker.io/library/ubuntu",
                ],
            ),
            ("r.corp.org/a", vec!["e.org/a", "r.corp.org/a"]),
            ("corp.org/a", vec!["corp.org/a"]),
            ("ghcr.io/a/b", vec!["f.org/a/b"]),
            ("other.io/a", vec!["other.io/a"]),
        ] {
            assert_eq!(shown(&routes, name), expected, "{name}");
        }
    }

    #[test]
    fn mirrors_serve_what_they_should_and_blocked_is_blocked() {
        let digest = format!("quay.io/a@sha256:{}", "0".repeat(64));
        let mut rule = rule("quay.io", None, &["a.org", "b.org"]);
        rule.mirrors[0].serves = Serves::Digests;
        rule.mirrors[1].serves = Serves::Tags;
        let mut routes = Routes {
            groups: vec![vec![rule]],
        };
        assert_eq!(shown(&routes, &digest), ["a.org/a", "quay.io/a"]);
        assert_eq!(shown(&routes, "quay.io/a"), ["b.org/a", "quay.io/a"]);
        routes.groups[0][0].blocked = true;
        let error = routes.places(&reference("quay.io/a")).unwrap_err();
        assert!(error.to_string().contains("blocked"), "{error}");
    }

    #[test]
    fn hosts_have_their_own_access() {
        let mut mirror = rule("a.org", None, &[]);
        mirror.access.insecure = true;
        mirror.access.max_rate = Some(7);
        let routes = Routes {
            groups: vec![vec![rule("quay.io", None, &["a.org/x"]), mirror]],
        };
        let (own, mirrors) = routes.places(&reference("quay.io/b")).unwrap();
        assert_eq!(own.access, Access::default());
        assert!(mirrors[0].access.insecure && mirrors[0].access.max_rate == Some(7));
        assert!(routes.access("a.org", "").insecure);
    }

    #[test]
    fn malformed_prefixes_are_refused() {
        for text in [
            "",
            "a b",
            "quay.io/UPPER",
            "*.",
            "*",
            "a.*.org",
            "quay.io//a",
        ] {
            assert!(text.parse::<Prefix>().is_err(), "{text}");
        }
        for text in ["", "quay.io/a:1", "http://quay.io"] {
            assert!(text.parse::<Location>().is_err(), "{text}");
        }
    }
}
