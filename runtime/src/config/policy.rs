//! Which images of registries may be used: the table `[policy]` of `cista.toml`.
//!
//! ```toml
//! [policy]
//! registries = ["registry.example.com", "docker.io/library", "*.corp.example"]   # nothing else
//! require_digest = ["docker.io"]             # or `true`, for all
//!
//! [[policy.signed]]
//! images = ["registry.example.com/ml"]       # all, when left out
//! keys = ["/etc/cista/keys/ml.pub"]          # of `cosign generate-key-pair`; one of them has to have signed
//! identity = "any"                           # for images that were copied with their signatures from under another name
//! ```
//!
//! The tables of all files hold at once: the user's may ask for more than the administrator's, never for less.

use std::path::PathBuf;

use cista_images::policy::{Identity, Key, Policy, Rules, Scope, Signed};
use cista_images::registry::Prefix;
use serde::Deserialize;
use toml::Spanned;

use super::Sources;
use super::file::{FileError, TomlFile};

/// Largest file of a key that is read, in bytes.
const MAX_KEY: u64 = 64 << 10;

/// `[policy]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    registries: Option<Vec<Spanned<String>>>,
    require_digest: Option<Spanned<RequireDigest>>,
    #[serde(default)]
    signed: Vec<SignedTable>,
}

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "expected `true`, `false` or a list of registries and parts of registries"
)]
enum RequireDigest {
    Switch(bool),
    Of(Vec<String>),
}

/// `[[policy.signed]]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SignedTable {
    images: Option<Vec<Spanned<String>>>,
    keys: Spanned<Vec<Spanned<PathBuf>>>,
    #[serde(default)]
    identity: IdentityEntry,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum IdentityEntry {
    #[default]
    Repository,
    Any,
}

/// The policy of all files.
///
/// # Errors
///
/// The first thing in a file that is not understood, and keys that cannot be read, with their place.
pub fn load(sources: &Sources) -> Result<Policy, FileError> {
    let tables = sources.structures::<Table>("policy")?;
    let rules = tables
        .into_iter()
        .map(|(file, table)| table.rules(file))
        .collect::<Result<_, FileError>>()?;
    Ok(Policy { rules })
}

fn refuse(file: &TomlFile, at: usize, message: String) -> FileError {
    FileError::Content {
        place: file.place(at),
        message,
    }
}

fn prefixes(file: &TomlFile, texts: &[Spanned<String>]) -> Result<Vec<Prefix>, FileError> {
    texts
        .iter()
        .map(|text| {
            let prefix = text.get_ref().parse::<Prefix>();
            prefix.map_err(|error| refuse(file, text.span().start, error.to_string()))
        })
        .collect()
}

fn pinned(file: &TomlFile, wanted: Spanned<RequireDigest>) -> Result<Scope, FileError> {
    let span = wanted.span();
    Ok(match wanted.into_inner() {
        RequireDigest::Switch(false) => Scope::Nothing,
        RequireDigest::Switch(true) => Scope::Everything,
        RequireDigest::Of(texts) => {
            let texts: Vec<_> = texts
                .into_iter()
                .map(|text| Spanned::new(span.clone(), text))
                .collect();
            Scope::Of(prefixes(file, &texts)?)
        }
    })
}

impl Table {
    fn rules(self, file: &TomlFile) -> Result<Rules, FileError> {
        let registries = self.registries.as_deref();
        Ok(Rules {
            origin: file.path.display().to_string(),
            registries: registries.map(|texts| prefixes(file, texts)).transpose()?,
            pinned: match self.require_digest {
                None => Scope::Nothing,
                Some(wanted) => pinned(file, wanted)?,
            },
            signed: self
                .signed
                .into_iter()
                .map(|signed| signed.rules(file))
                .collect::<Result<_, FileError>>()?,
        })
    }
}

impl SignedTable {
    fn rules(self, file: &TomlFile) -> Result<Signed, FileError> {
        let start = self.keys.span().start;
        let keys = self.keys.into_inner();
        if keys.is_empty() {
            return Err(refuse(
                file,
                start,
                "`keys` should name at least one file".to_owned(),
            ));
        }
        Ok(Signed {
            images: match &self.images {
                None => Scope::Everything,
                Some(texts) => Scope::Of(prefixes(file, texts)?),
            },
            keys: keys
                .iter()
                .map(|path| read_key(file, path))
                .collect::<Result<_, FileError>>()?,
            identity: match self.identity {
                IdentityEntry::Repository => Identity::Repository,
                IdentityEntry::Any => Identity::Any,
            },
        })
    }
}

fn read_key(file: &TomlFile, path: &Spanned<PathBuf>) -> Result<Key, FileError> {
    use std::io::Read as _;
    let name = path.get_ref();
    let refused = |problem: &dyn std::fmt::Display| {
        let message = format!("the key `{}` cannot be used: {problem}", name.display());
        refuse(file, path.span().start, message)
    };
    if !name.is_absolute() {
        return Err(refused(&"its path should be absolute"));
    }
    let mut text = Vec::new();
    std::fs::File::open(name)
        .and_then(|key| key.take(MAX_KEY).read_to_end(&mut text))
        .map_err(|error| refused(&error))?;
    Key::from_pem(&text).map_err(|error| refused(&error))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn load(text: &str) -> Result<Rules, FileError> {
        let file = TomlFile::parse(Path::new("/c.toml"), text.to_owned(), true, &|_| None)?;
        let table = file.structure::<Table>("policy")?;
        table
            .unwrap_or_else(|| panic!("`{text}` has no policy"))
            .rules(&file)
    }

    #[test]
    fn tables() {
        let rules =
            load("[policy]\nregistries = [\"quay.io\", \"*.corp.org\"]\nrequire_digest = true\n")
                .unwrap();
        assert_eq!(rules.origin, "/c.toml");
        assert_eq!(rules.registries.map(|all| all.len()), Some(2));
        assert!(matches!(rules.pinned, Scope::Everything));
        let rules = load("[policy]\nrequire_digest = [\"docker.io\"]\n").unwrap();
        assert!(rules.registries.is_none());
        assert!(matches!(rules.pinned, Scope::Of(prefixes) if prefixes.len() == 1));
        let rules = load("[policy]\nregistries = []\n").unwrap();
        assert_eq!(rules.registries.map(|all| all.len()), Some(0));
    }

    #[test]
    fn errors_point_at_the_line() {
        for (text, place, words) in [
            ("[policy]\nregistry = []\n", "/c.toml:2:", "registry"),
            (
                "[policy]\nregistries = [\"quay.io\",\n\"a b\"]\n",
                "/c.toml:3:",
                "a b",
            ),
            (
                "[policy]\nrequire_digest = [\"a b\"]\n",
                "/c.toml:2:",
                "a b",
            ),
            ("[policy]\nrequire_digest = 1\n", "/c.toml:2:", "list"),
            ("[policy]\n[[policy.signed]]\n", "/c.toml:", "keys"),
            (
                "[[policy.signed]]\nkeys = []\n",
                "/c.toml:2:",
                "at least one",
            ),
            (
                "[[policy.signed]]\nkeys = [\"k.pub\"]\n",
                "/c.toml:2:",
                "absolute",
            ),
            (
                "[[policy.signed]]\nkeys = [\"/nonexistent\"]\n",
                "/c.toml:2:",
                "/nonexistent",
            ),
            (
                "[[policy.signed]]\nkeys = [\"/dev/null\"]\n",
                "/c.toml:2:",
                "PEM",
            ),
            (
                "[[policy.signed]]\nkeys = [\"/k\"]\nidentity = \"none\"\n",
                "/c.toml:3:",
                "none",
            ),
        ] {
            let error = load(text).unwrap_err().to_string();
            assert!(
                error.starts_with(place) && error.contains(words),
                "{text}: {error}"
            );
        }
    }
}
