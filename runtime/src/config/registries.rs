//! How registries are reached: the table `[registries]` of `cista.toml`, and podman's `registries.conf` where there is one.
//!
//! ```toml
//! [registries."docker.io"]                   # HOST[:PORT], a part of one (`quay.io/team`), or `*.example.com`
//! mirrors = [
//!     "mirror.example.com/hub",              # `library/ubuntu` is `hub/library/ubuntu` there
//!     { location = "10.0.0.1:5000", insecure = true, serves = "digests" },
//! ]
//!
//! [registries."registry.example.com"]
//! ca = "/etc/pki/example.pem"                # trusted beside the usual authorities
//! max_connections = 4
//! max_rate = "200M"                          # bytes in a second
//! ```
//!
//! The longest key that fits an image counts, and the user's file goes before the administrator's. The other keys are `location` (the images
//! are somewhere else), `blocked`, and `insecure`, which allows plain http, and https with a certificate of nobody known.
//!
//! Where no key fits, containers-registries.conf(5) is followed, in its version 2: `$CONTAINERS_REGISTRIES_CONF`, or the user's file, or
//! `/etc/containers/registries.conf`, and the files of the directories `registries.conf.d` beside them. Of it, `[[registry]]` is understood;
//! the rest is about short names, which mean Docker Hub here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use cista_images::registry::{Access, Location, Mirror, Prefix, Routes, Rule, Serves};
use serde::Deserialize;
use toml::Spanned;

use super::file::{FileError, Place};
use super::settings::parse_size;
use super::sources::{Sources, names};

/// Where podman's files are for all users.
const SYSTEM_CONTAINERS: &str = "/etc/containers";

/// Largest file of podman's that is read, in bytes.
const MAX_SIZE: u64 = 1 << 20;

/// `[registries."KEY"]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Registry {
    location: Option<Spanned<String>>,
    #[serde(default)]
    mirrors: Vec<Spanned<MirrorEntry>>,
    #[serde(default)]
    blocked: bool,
    #[serde(default)]
    insecure: bool,
    ca: Option<Spanned<PathBuf>>,
    max_connections: Option<Spanned<usize>>,
    max_rate: Option<Spanned<Rate>>,
}

/// A mirror: its location alone, or with more.
#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "expected a location (`HOST[:PORT][/PATH]`), or a table with `location` and perhaps `insecure`, `ca`, `serves`"
)]
enum MirrorEntry {
    Location(String),
    Table(MirrorTable),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MirrorTable {
    location: String,
    #[serde(default)]
    insecure: bool,
    ca: Option<PathBuf>,
    #[serde(default)]
    serves: ServesEntry,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ServesEntry {
    #[default]
    All,
    Digests,
    Tags,
}

/// Bytes in a second: a number, or one with a unit.
#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "expected a number of bytes, or a text such as \"50M\""
)]
enum Rate {
    Number(u64),
    Text(String),
}

/// The rules of all files, ours before podman's.
///
/// # Errors
///
/// The first thing in a file that is not understood, with its place.
pub fn load(sources: &Sources) -> Result<Routes, FileError> {
    let mut own: Vec<Rule> = Vec::new();
    for (file, table) in sources.structures::<BTreeMap<Spanned<String>, Registry>>("registries")? {
        // The nearest file that has a key has all of it.
        let nearer = own.len();
        for (key, entry) in table {
            let rule = entry.rule(&key, &|at, message| at_place(file.place(at), message))?;
            if !own[..nearer]
                .iter()
                .any(|known| known.prefix == rule.prefix)
            {
                own.push(rule);
            }
        }
    }
    Ok(Routes {
        groups: vec![own, containers(sources)?],
    })
}

fn at_place(place: Place, message: String) -> FileError {
    FileError::Content { place, message }
}

type Refuse<'a> = dyn Fn(usize, String) -> FileError + 'a;

fn parsed<T: FromStr<Err: std::fmt::Display>>(
    text: &str,
    at: usize,
    refuse: &Refuse<'_>,
) -> Result<T, FileError> {
    text.parse()
        .map_err(|error: T::Err| refuse(at, error.to_string()))
}

fn absolute(path: &Path, at: usize, refuse: &Refuse<'_>) -> Result<PathBuf, FileError> {
    if path.is_absolute() {
        return Ok(path.to_owned());
    }
    Err(refuse(at, "`ca` should be an absolute path".to_owned()))
}

impl Registry {
    fn rule(self, key: &Spanned<String>, refuse: &Refuse<'_>) -> Result<Rule, FileError> {
        let location = self.location.as_ref();
        let location = location
            .map(|text| parsed(text.get_ref(), text.span().start, refuse))
            .transpose()?;
        let mirrors = self.mirrors.into_iter().map(|entry| {
            let at = entry.span().start;
            let table = match entry.into_inner() {
                MirrorEntry::Table(table) => table,
                MirrorEntry::Location(location) => MirrorTable {
                    location,
                    insecure: false,
                    ca: None,
                    serves: ServesEntry::All,
                },
            };
            Ok(Mirror {
                location: parsed(&table.location, at, refuse)?,
                access: Access {
                    insecure: table.insecure,
                    ca: table
                        .ca
                        .map(|path| absolute(&path, at, refuse))
                        .transpose()?,
                    ..Access::default()
                },
                serves: match table.serves {
                    ServesEntry::All => Serves::All,
                    ServesEntry::Digests => Serves::Digests,
                    ServesEntry::Tags => Serves::Tags,
                },
            })
        });
        let max_connections = self.max_connections.map(|number| match *number.get_ref() {
            count @ 1..=256 => Ok(count),
            _ => Err(refuse(
                number.span().start,
                "`max_connections` should be a number from 1 to 256".to_owned(),
            )),
        });
        let max_rate = self.max_rate.map(|rate| {
            let bytes = match rate.get_ref() {
                Rate::Number(bytes) => Some(*bytes),
                Rate::Text(text) => parse_size(text),
            };
            bytes.filter(|bytes| *bytes > 0).ok_or_else(|| {
                refuse(
                    rate.span().start,
                    "`max_rate` should be a number of bytes in a second, such as \"50M\""
                        .to_owned(),
                )
            })
        });
        Ok(Rule {
            prefix: parsed(key.get_ref(), key.span().start, refuse)?,
            location,
            mirrors: mirrors.collect::<Result<_, FileError>>()?,
            blocked: self.blocked,
            access: Access {
                insecure: self.insecure,
                ca: self
                    .ca
                    .map(|path| absolute(path.get_ref(), path.span().start, refuse))
                    .transpose()?,
                max_connections: max_connections.transpose()?,
                max_rate: max_rate.transpose()?,
            },
        })
    }
}

/// `registries.conf`. Unknown keys are of other programs.
#[derive(Deserialize)]
struct Containers {
    #[serde(default)]
    registry: Vec<ContainersRegistry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct ContainersRegistry {
    prefix: Option<Spanned<String>>,
    location: Option<Spanned<String>>,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    blocked: bool,
    #[serde(default)]
    mirror_by_digest_only: bool,
    #[serde(default)]
    mirror: Vec<ContainersMirror>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct ContainersMirror {
    location: Spanned<String>,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    pull_from_mirror: PullFromMirror,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum PullFromMirror {
    #[default]
    #[serde(alias = "")]
    All,
    DigestOnly,
    TagOnly,
}

/// The rules of podman's files. A later file's entry takes the place of an earlier one's with the same prefix.
fn containers(sources: &Sources) -> Result<Vec<Rule>, FileError> {
    let mut rules: Vec<Rule> = Vec::new();
    for path in containers_files(sources)? {
        let Some(text) = read(&path)? else {
            continue;
        };
        for rule in parse_containers(&Arc::new(path), &text)? {
            rules.retain(|known| known.prefix != rule.prefix);
            rules.push(rule);
        }
    }
    Ok(rules)
}

/// The files, in the order in which they are read.
fn containers_files(sources: &Sources) -> Result<Vec<PathBuf>, FileError> {
    let system = Path::new(SYSTEM_CONTAINERS);
    let user = sources
        .variable("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| sources.home().map(|home| home.join(".config")))
        .map(|config| config.join("containers"));
    if let Some(named) = sources.variable("CONTAINERS_REGISTRIES_CONF") {
        return Ok(vec![PathBuf::from(named)]);
    }
    let own = user.as_ref().map(|user| user.join("registries.conf"));
    let main = own
        .filter(|path| path.exists())
        .unwrap_or_else(|| system.join("registries.conf"));
    let mut files = vec![main];
    for directory in [Some(system), user.as_deref()].into_iter().flatten() {
        files.extend(names(&directory.join("registries.conf.d"), "conf")?);
    }
    Ok(files)
}

/// A file; None where there is none.
fn read(path: &Path) -> Result<Option<String>, FileError> {
    use std::io::{ErrorKind, Read as _};
    let failed = |source| FileError::Read {
        path: path.to_owned(),
        source,
    };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut text = String::new();
    file.take(MAX_SIZE + 1)
        .read_to_string(&mut text)
        .map_err(failed)?;
    if text.len() as u64 > MAX_SIZE {
        return Err(failed(ErrorKind::FileTooLarge.into()));
    }
    Ok(Some(text))
}

fn parse_containers(path: &Arc<PathBuf>, text: &str) -> Result<Vec<Rule>, FileError> {
    let refuse = |at: usize, message: String| at_place(Place::new(path, text, at), message);
    let file: Containers = toml::from_str(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        refuse(at, error.message().to_owned())
    })?;
    file.registry
        .into_iter()
        .map(|registry| registry.rule(&refuse))
        .collect()
}

impl ContainersRegistry {
    fn rule(self, refuse: &Refuse<'_>) -> Result<Rule, FileError> {
        let filled = |text: &&Spanned<String>| !text.get_ref().is_empty();
        let place_of =
            |text: &Spanned<String>| parsed::<Location>(text.get_ref(), text.span().start, refuse);
        let location = self.location.as_ref().filter(filled);
        let prefix = self.prefix.as_ref().filter(filled);
        let Some(named) = prefix.or(location) else {
            let at = self
                .location
                .or(self.prefix)
                .map_or(0, |text| text.span().start);
            return Err(refuse(
                at,
                "an entry has neither `prefix` nor `location`".to_owned(),
            ));
        };
        let by_digest = self.mirror_by_digest_only;
        let mirrors = self.mirror.iter().map(|mirror| {
            Ok(Mirror {
                location: place_of(&mirror.location)?,
                access: Access {
                    insecure: mirror.insecure,
                    ..Access::default()
                },
                serves: match mirror.pull_from_mirror {
                    PullFromMirror::All if by_digest => Serves::Digests,
                    PullFromMirror::All => Serves::All,
                    PullFromMirror::DigestOnly => Serves::Digests,
                    PullFromMirror::TagOnly => Serves::Tags,
                },
            })
        });
        Ok(Rule {
            prefix: parsed::<Prefix>(named.get_ref(), named.span().start, refuse)?,
            mirrors: mirrors.collect::<Result<_, FileError>>()?,
            // Where nothing is rewritten, the place is the name.
            location: match (prefix, location) {
                (Some(prefix), Some(location)) if prefix.get_ref() != location.get_ref() => {
                    Some(place_of(location)?)
                }
                _ => None,
            },
            blocked: self.blocked,
            access: Access {
                insecure: self.insecure,
                ..Access::default()
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::file::TomlFile;
    use super::*;

    fn own(text: &str) -> Result<Vec<Rule>, FileError> {
        let variable = |_: &str| None;
        let file = TomlFile::parse(Path::new("/c.toml"), text.to_owned(), true, &variable)?;
        let table: BTreeMap<Spanned<String>, Registry> =
            file.structure("registries")?.unwrap_or_default();
        table
            .into_iter()
            .map(|(key, entry)| entry.rule(&key, &|at, message| at_place(file.place(at), message)))
            .collect()
    }

    fn podmans(text: &str) -> Result<Vec<Rule>, FileError> {
        parse_containers(&Arc::new(PathBuf::from("/r.conf")), text)
    }

    #[test]
    fn our_table() {
        let rules = own(
            "[registries.\"docker.io\"]\nmirrors = [\"a.org/hub\", { location = \"b.org:5000\", insecure = true, serves = \"digests\" }]\n\
             [registries.\"quay.io/team\"]\nca = \"/ca.pem\"\nmax_connections = 4\nmax_rate = \"2M\"\nlocation = \"c.org\"\n\
             [registries.\"*.bad.org\"]\nblocked = true\ninsecure = true\nmax_rate = 7\n",
        )
        .unwrap();
        let of = |prefix: &str| {
            let prefix: Prefix = prefix.parse().unwrap();
            rules.iter().find(|rule| rule.prefix == prefix).unwrap()
        };
        let hub = of("docker.io");
        assert_eq!(hub.mirrors[0].location, "a.org/hub".parse().unwrap());
        assert_eq!(hub.mirrors[0].serves, Serves::All);
        assert!(hub.mirrors[1].access.insecure && hub.mirrors[1].serves == Serves::Digests);
        let team = of("quay.io/team");
        assert_eq!(team.location, Some("c.org".parse().unwrap()));
        assert_eq!(
            team.access,
            Access {
                insecure: false,
                ca: Some("/ca.pem".into()),
                max_connections: Some(4),
                max_rate: Some(2 << 20),
            }
        );
        let bad = of("*.bad.org");
        assert!(bad.blocked && bad.access.insecure && bad.access.max_rate == Some(7));
        assert!(own("[limits]\n").unwrap().is_empty());
    }

    #[test]
    fn errors_point_at_the_line() {
        for (text, place, words) in [
            (
                "[registries.\"a b\"]\nblocked = true\n",
                "/c.toml:1:",
                "a b",
            ),
            ("[registries.x]\nmirors = []\n", "/c.toml:2:", "mirors"),
            (
                "[registries.x]\n\nmirrors = [\n\"http://y\"]\n",
                "/c.toml:4:",
                "http",
            ),
            (
                "[registries.x]\nmirrors = [{ insecure = true }]\n",
                "/c.toml:2:",
                "location",
            ),
            (
                "[registries.x]\nca = \"ca.pem\"\n",
                "/c.toml:2:",
                "absolute",
            ),
            ("[registries.x]\nmax_connections = 0\n", "/c.toml:2:", "256"),
            ("[registries.x]\nmax_rate = \"much\"\n", "/c.toml:2:", "50M"),
            (
                "[registries.x]\ninsecure = \"yes\"\n",
                "/c.toml:2:",
                "boolean",
            ),
            ("registries = 1\n", "/c.toml:1:", ""),
        ] {
            let error = own(text).unwrap_err().to_string();
            assert!(
                error.starts_with(place) && error.contains(words),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn podmans_file() {
        let rules = podmans(
            "unqualified-search-registries = [\"docker.io\"]\nshort-name-mode = \"enforcing\"\n[aliases]\n\"a\" = \"b\"\n\
             [[registry]]\nprefix = \"example.com/foo\"\nlocation = \"inside.org/bar\"\ninsecure = true\n\
             [[registry.mirror]]\nlocation = \"m1.org\"\ninsecure = true\n\
             [[registry.mirror]]\nlocation = \"m2.org/x\"\npull-from-mirror = \"tag-only\"\n\
             [[registry]]\nlocation = \"quay.io\"\nmirror-by-digest-only = true\n[[registry.mirror]]\nlocation = \"m3.org\"\n\
             [[registry]]\nprefix = \"*.bad.org\"\nlocation = \"\"\nblocked = true\n",
        )
        .unwrap();
        assert_eq!(rules.len(), 3);
        assert_eq!(rules[0].location, Some("inside.org/bar".parse().unwrap()));
        assert!(rules[0].access.insecure && rules[0].mirrors[0].access.insecure);
        assert_eq!(rules[0].mirrors[1].serves, Serves::Tags);
        assert_eq!(rules[1].location, None);
        assert_eq!(rules[1].mirrors[0].serves, Serves::Digests);
        assert!(rules[2].blocked && rules[2].location.is_none());
        for (text, place) in [
            ("[[registry]]\nblocked = true\n", "/r.conf:1:"),
            ("\n[[registry]]\nlocation = \"a b\"\n", "/r.conf:3:"),
            ("[[registry]]\nlocation = 1\n", "/r.conf:2:"),
        ] {
            let error = podmans(text).unwrap_err().to_string();
            assert!(error.starts_with(place), "{text}: {error}");
        }
    }

    #[test]
    fn files_of_podman_are_found_and_later_ones_win() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = scratch.path().join("containers");
        std::fs::create_dir_all(directory.join("registries.conf.d")).unwrap();
        let write = |name: &str, text: &str| std::fs::write(directory.join(name), text).unwrap();
        write(
            "registries.conf",
            "[[registry]]\nlocation = \"a.org\"\ninsecure = true\n[[registry]]\nlocation = \"b.org\"\ninsecure = true\n",
        );
        write(
            "registries.conf.d/1.conf",
            "[[registry]]\nlocation = \"a.org\"\nblocked = true\n",
        );
        let config = scratch.path().to_str().unwrap();
        let rules = containers(&Sources::of(&[("XDG_CONFIG_HOME", config)])).unwrap();
        let of = |name: &str| {
            let prefix: Prefix = name.parse().unwrap();
            rules
                .iter()
                .filter(|rule| rule.prefix == prefix)
                .collect::<Vec<_>>()
        };
        assert!(of("a.org").len() == 1 && of("a.org")[0].blocked);
        assert!(of("b.org")[0].access.insecure);
        let named = directory.join("registries.conf");
        let alone = [("CONTAINERS_REGISTRIES_CONF", named.to_str().unwrap())];
        let rules = containers(&Sources::of(&alone)).unwrap();
        assert_eq!(rules.len(), 2);
    }
}
