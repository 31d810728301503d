//! Names of entries: bytes from the archive become a path below the root, or an error.
//!
//! Rules: names are bytes, not text. A leading `/` and components `.` say nothing and are dropped, as every extractor
//! does. A component `..` never occurs in a layer that a builder made; it is refused, even where it would stay below
//! the root. The limits are those of Linux (`NAME_MAX`, `PATH_MAX`), which no builder can exceed either.

use std::fmt;

/// Longest component in bytes (`NAME_MAX`).
pub const MAX_COMPONENT: usize = 255;
/// Longest path in bytes (`PATH_MAX`, which counts the final NUL).
pub const MAX_PATH: usize = 4095;

/// Why a name is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// A component is `..`.
    #[error("the name climbs with `..`")]
    Climbs,
    /// The name holds a NUL byte.
    #[error("the name holds a NUL byte")]
    Nul,
    /// A component is longer than [`MAX_COMPONENT`].
    #[error("a component of the name is longer than {MAX_COMPONENT} bytes")]
    LongComponent,
    /// The name is longer than [`MAX_PATH`].
    #[error("the name is longer than {MAX_PATH} bytes")]
    Long,
}

/// A path relative to the root: components joined by single `/`, no `.`, no `..`; empty for the root itself.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct EntryPath(Vec<u8>);

impl EntryPath {
    /// Reads a name as it stands in an archive.
    pub fn parse(name: &[u8]) -> Result<Self, PathError> {
        if name.len() > MAX_PATH {
            return Err(PathError::Long);
        }
        if name.contains(&0) {
            return Err(PathError::Nul);
        }
        let mut path = Vec::with_capacity(name.len());
        for component in name.split(|byte| *byte == b'/') {
            match component {
                b"" | b"." => continue,
                b".." => return Err(PathError::Climbs),
                long if long.len() > MAX_COMPONENT => return Err(PathError::LongComponent),
                _ => {}
            }
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(component);
        }
        Ok(Self(path))
    }

    /// The components, from the root down.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.0
            .split(|byte| *byte == b'/')
            .filter(|component| !component.is_empty())
    }

    /// The parent's path and the last component; None for the root.
    #[must_use]
    pub fn split_last(&self) -> Option<(&[u8], &[u8])> {
        if self.0.is_empty() {
            return None;
        }
        Some(match self.0.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&self.0[..slash], &self.0[slash + 1..]),
            None => (b"", &self.0),
        })
    }

    /// The path's bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for EntryPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Shown(&self.0), f)
    }
}

impl fmt::Debug for EntryPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Shows a name from an archive: what is not printable is escaped, so that no image can write control sequences to
/// a terminal.
pub struct Shown<'a>(pub &'a [u8]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for character in chunk.valid().chars() {
                if character.is_control() {
                    write!(f, "{}", character.escape_default())?;
                } else {
                    write!(f, "{character}")?;
                }
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_paths() {
        let long = vec![b'x'; 255];
        for (name, path) in [
            (&b"a/b"[..], &b"a/b"[..]),
            (b"./a", b"a"),
            (b"/a//b/./c/", b"a/b/c"),
            (b"", b""),
            (b"/", b""),
            (b"./", b""),
            (b"...", b"..."),
            (b"a\xff\n b", b"a\xff\n b"),
            (&long, &long),
        ] {
            assert_eq!(EntryPath::parse(name).unwrap().as_bytes(), path);
        }
    }

    #[test]
    fn hostile_names_are_refused() {
        for (name, error) in [
            (&b"../a"[..], PathError::Climbs),
            (b"a/..", PathError::Climbs),
            (b"/..", PathError::Climbs),
            (b"a/../b", PathError::Climbs),
            (b"a\0b", PathError::Nul),
            (&[b'x'; 256], PathError::LongComponent),
            (&b"ab/".repeat(1366), PathError::Long),
        ] {
            assert_eq!(EntryPath::parse(name), Err(error));
        }
    }

    #[test]
    fn paths_are_split() {
        let path = EntryPath::parse(b"/usr/lib/x").unwrap();
        assert_eq!(path.split_last(), Some((&b"usr/lib"[..], &b"x"[..])));
        assert_eq!(
            EntryPath::parse(b"x").unwrap().split_last(),
            Some((&b""[..], &b"x"[..]))
        );
        assert_eq!(EntryPath::default().split_last(), None);
        assert_eq!(path.components().count(), 3);
        assert_eq!(EntryPath::default().components().count(), 0);
    }

    #[test]
    fn shown_names_cannot_drive_a_terminal() {
        assert_eq!(
            Shown(b"a\x1b[31m\xffb\n").to_string(),
            "a\\u{1b}[31m\\xffb\\n"
        );
    }
}
