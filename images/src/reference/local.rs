//! `dockerd://IMAGE[:TAG]` and `podman://IMAGE[:TAG]`, without the scheme.
//!
//! The names are those of registries, or the number that the engine gave an image: 12 or all 64 digits of the digest of its config. The text
//! goes to the engine as it is, so nothing may be in it that is no name.

use std::fmt;
use std::str::FromStr;

use super::{ReferenceError, RegistryReference};

/// An image of an engine on this machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LocalImage {
    text: String,
    /// None where an image's number was given.
    name: Option<RegistryReference>,
}

impl LocalImage {
    /// What the engine is asked for: always one image, never all tags of a name.
    #[must_use]
    pub fn wanted(&self) -> String {
        match &self.name {
            Some(name) if name.tag.is_none() && name.digest.is_none() => {
                format!("{}:latest", self.text)
            }
            _ => self.text.clone(),
        }
    }

    /// The default file name without its extension.
    pub(super) fn file_stem(&self) -> String {
        match &self.name {
            Some(name) => name.file_stem(),
            None => self.text.trim_start_matches("sha256:").to_owned(),
        }
    }
}

impl FromStr for LocalImage {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let digits = text.strip_prefix("sha256:").unwrap_or(text);
        let is_number = matches!(digits.len(), 12 | 64)
            && digits
                .bytes()
                .all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
        let name = if is_number {
            None
        } else {
            let name: RegistryReference = text.parse()?;
            if name.user.is_some() || text.contains('#') {
                return Err(ReferenceError::Name {
                    name: text.to_owned(),
                    problem: "an engine on this machine has neither users nor `#`",
                });
            }
            Some(name)
        };
        Ok(Self {
            text: text.to_owned(),
            name,
        })
    }
}

impl fmt::Display for LocalImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_image_is_asked_for() {
        for (text, wanted) in [
            ("ubuntu", Some("ubuntu:latest")),
            ("localhost:5000/a/b", Some("localhost:5000/a/b:latest")),
            ("a/b:1", Some("a/b:1")),
            ("0123456789ab", Some("0123456789ab")),
            ("sha256:0123456789ab", Some("sha256:0123456789ab")),
            ("", None),
            ("--all", None),
            ("../x", None),
            ("a b", None),
            ("a?x=y", None),
            ("me@a", None),
            ("Upper", None),
        ] {
            let parsed = text.parse::<LocalImage>();
            assert_eq!(
                parsed.ok().map(|image| image.wanted()).as_deref(),
                wanted,
                "{text}"
            );
        }
    }
}
