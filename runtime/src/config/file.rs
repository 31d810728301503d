//! Files of settings: TOML 1.1, read key by key against the table of settings.
//!
//! ```toml
//! [paths]
//! data = "/scratch/${USER}/cista"
//!
//! [limits]
//! max_processors = 8
//! image_cache_size = "512M"
//! ```
//!
//! A key that is not known is an error: a misspelt setting must not be a setting that quietly does nothing. Every error
//! says file, line and column, and shows the line. In texts and paths `${NAME}` stands for a variable of the environment.
//!
//! Tables that are no lists of settings ([`STRUCTURED`]) are left to those who need them; see [`TomlFile::structure`].

use std::ffi::OsString;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::settings::{self, Kind, Setting};

/// Tables with a structure of their own.
pub const STRUCTURED: [&str; 2] = ["registries", "policy"];

/// The longest file that is read, in bytes.
const MAX_SIZE: u64 = 1 << 20;

/// The longest line that an error shows, in characters.
const MAX_SHOWN: usize = 160;

/// A place in a file, with what stands there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub path: Arc<PathBuf>,
    /// The line, from 1 on.
    pub line: usize,
    /// The character in the line, from 1 on.
    pub column: usize,
    /// The line.
    pub text: String,
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{}:{}:{}",
            self.path.display(),
            self.line,
            self.column
        )
    }
}

impl Place {
    /// Finds the line of a position in a text, in bytes from its start.
    #[must_use]
    pub fn new(path: &Arc<PathBuf>, text: &str, at: usize) -> Self {
        let mut at = at.min(text.len());
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        let before = &text[..at];
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = text[start..].lines().next().unwrap_or_default();
        Self {
            path: Arc::clone(path),
            line: before.matches('\n').count() + 1,
            column: text[start..at].chars().count() + 1,
            text: line.chars().take(MAX_SHOWN).collect(),
        }
    }

    /// The line with its number, and a mark below the column.
    #[must_use]
    pub fn shown(&self) -> String {
        let number = self.line.to_string();
        let margin = " ".repeat(number.len());
        let column = self.column.min(MAX_SHOWN + 1);
        // Tabs stay, so that the mark stands below what it means.
        let indent: String = self
            .text
            .chars()
            .take(column - 1)
            .map(|character| if character == '\t' { '\t' } else { ' ' })
            .collect();
        format!("{number} | {}\n{margin} | {indent}^", self.text)
    }
}

/// What is wrong with a file of settings.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It is there and cannot be read.
    #[error("cannot read `{path}`")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// Something in it cannot be used.
    #[error("{place}: {message}\n{}", place.shown())]
    Content {
        /// Where.
        place: Place,
        /// What is wrong there.
        message: String,
    },
}

/// A value in a file.
#[derive(Clone, Debug)]
pub struct FileValue {
    /// What is set.
    pub setting: &'static Setting,
    /// To what, as a variable would say it.
    pub value: OsString,
    /// Where.
    pub place: Place,
}

/// A file of settings that was read.
#[derive(Clone, Debug)]
pub struct TomlFile {
    /// Where it is.
    pub path: Arc<PathBuf>,
    /// Whether it is the administrator's.
    pub is_system: bool,
    /// The settings that it has.
    pub values: Vec<FileValue>,
    text: String,
}

impl TomlFile {
    /// Reads a file; None where there is none.
    ///
    /// # Errors
    ///
    /// A file that cannot be read, and the first thing in it that is not understood.
    pub fn read(
        path: &Path,
        is_system: bool,
        variable: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<Option<Self>, FileError> {
        let failed = |source| FileError::Read {
            path: path.to_owned(),
            source,
        };
        let file = match std::fs::File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let mut text = String::new();
        std::io::Read::read_to_string(&mut std::io::Read::take(file, MAX_SIZE + 1), &mut text)
            .map_err(failed)?;
        if text.len() as u64 > MAX_SIZE {
            return Err(failed(std::io::Error::from_raw_os_error(libc::EFBIG)));
        }
        Self::parse(path, text, is_system, variable).map(Some)
    }

    /// Reads the text of a file.
    ///
    /// # Errors
    ///
    /// The first thing in it that is not understood.
    pub fn parse(
        path: &Path,
        text: String,
        is_system: bool,
        variable: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<Self, FileError> {
        let path = Arc::new(path.to_owned());
        let mut values = Vec::new();
        let table = parse_document(&path, &text)?;
        for (name, content) in table.get_ref() {
            let section = name.get_ref().as_ref();
            let refuse = |span: Range<usize>, message: String| FileError::Content {
                place: Place::new(&path, &text, span.start),
                message,
            };
            if STRUCTURED.contains(&section) {
                continue;
            }
            let known: Vec<&'static Setting> = settings::ALL
                .iter()
                .copied()
                .filter(|setting| setting.section == section && setting.kind != Kind::Secret)
                .collect();
            if known.is_empty() {
                let sections = settings::ALL.iter().map(|setting| setting.section);
                let message = unknown("table", section, sections.chain(STRUCTURED));
                return Err(refuse(name.span(), message));
            }
            let DeValue::Table(entries) = content.get_ref() else {
                let message = format!("`{section}` is a table: write `[{section}]`");
                return Err(refuse(name.span(), message));
            };
            for (key, value) in entries {
                let Some(setting) = known.iter().find(|known| known.key == key.get_ref()) else {
                    let keys = known.iter().map(|setting| setting.key);
                    let message = unknown("setting", key.get_ref(), keys);
                    return Err(refuse(key.span(), message));
                };
                let value_text =
                    convert(value.get_ref(), setting.kind, variable).ok_or_else(|| {
                        let expected = expected(setting.kind);
                        let message = format!("`{section}.{}` should be {expected}", setting.key);
                        refuse(value.span(), message)
                    })?;
                values.push(FileValue {
                    setting,
                    value: value_text,
                    place: Place::new(&path, &text, key.span().start),
                });
            }
        }
        drop(table);
        Ok(Self {
            path,
            is_system,
            values,
            text,
        })
    }

    /// Reads a table with a structure of its own; None where the file does not have it. A `T` that denies unknown fields gives errors for
    /// misspelt keys too.
    ///
    /// # Errors
    ///
    /// The place that does not fit.
    pub fn structure<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, FileError> {
        let table = parse_document(&self.path, &self.text)?;
        let Some((_, value)) = table
            .into_inner()
            .into_iter()
            .find(|(key, _)| key.get_ref() == name)
        else {
            return Ok(None);
        };
        let start = value.span().start;
        T::deserialize(toml::de::ValueDeserializer::from(value))
            .map(Some)
            .map_err(|error| refused(&self.path, &self.text, &error, start))
    }

    /// The place of a position in the file, in bytes, for errors that are found later.
    #[must_use]
    pub fn place(&self, at: usize) -> Place {
        Place::new(&self.path, &self.text, at)
    }
}

fn parse_document<'a>(
    path: &Arc<PathBuf>,
    text: &'a str,
) -> Result<Spanned<DeTable<'a>>, FileError> {
    DeTable::parse(text).map_err(|error| refused(path, text, &error, 0))
}

fn refused(path: &Arc<PathBuf>, text: &str, error: &toml::de::Error, start: usize) -> FileError {
    let at = error.span().map_or(start, |span| span.start);
    FileError::Content {
        place: Place::new(path, text, at),
        message: error.message().to_owned(),
    }
}

/// What is said of a name that is not known, with the one that was probably meant.
#[must_use]
pub fn unknown<'a>(what: &str, name: &str, known: impl Iterator<Item = &'a str>) -> String {
    let mut known: Vec<&str> = known.collect();
    known.dedup();
    match known.iter().min_by_key(|known| distance(name, known)) {
        Some(near) if distance(name, near) <= 2 => {
            format!("unknown {what} `{name}`; did you mean `{near}`?")
        }
        _ => format!("unknown {what} `{name}`; there are {}", known.join(", ")),
    }
}

/// How many letters have to be changed, added or left out (Levenshtein) to make one word of another.
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (at, letter) in from.chars().take(64).enumerate() {
        let mut diagonal = row[0];
        row[0] = at + 1;
        for (column, other) in to.iter().enumerate() {
            let above = row[column + 1];
            let replaced = diagonal + usize::from(letter != *other);
            row[column + 1] = replaced.min(above + 1).min(row[column] + 1);
            diagonal = above;
        }
    }
    row[to.len()]
}

/// A value of TOML as a variable would say it; None where it is not of the kind.
fn convert(
    value: &DeValue<'_>,
    kind: Kind,
    variable: &dyn Fn(&str) -> Option<OsString>,
) -> Option<OsString> {
    let text = match (kind, value) {
        (Kind::Switch, DeValue::Boolean(value)) => value.to_string(),
        (Kind::Number { .. } | Kind::Seconds | Kind::Size, DeValue::Integer(number)) => {
            let plain = number.as_str().replace('_', "");
            u64::from_str_radix(&plain, number.radix())
                .ok()?
                .to_string()
        }
        (Kind::Size | Kind::Choice(_) | Kind::Compression, DeValue::String(text)) => {
            text.to_string()
        }
        (Kind::Text, DeValue::String(text)) => return Some(substitute(text, variable)),
        (Kind::Socket, DeValue::String(text)) => {
            let text = substitute(text, variable);
            return text
                .to_str()
                .is_some_and(|text| kind.accepts(text))
                .then_some(text);
        }
        (Kind::Directory { .. } | Kind::RuntimeDirectory | Kind::Path, DeValue::String(text)) => {
            return absolute(text, variable);
        }
        (Kind::Paths, DeValue::Array(paths)) => {
            let paths: Option<Vec<OsString>> = paths
                .iter()
                .map(|path| absolute(path.get_ref().as_str()?, variable))
                .collect();
            return std::env::join_paths(paths?).ok();
        }
        _ => return None,
    };
    kind.accepts(&text).then(|| text.into())
}

/// What [`convert`] takes, for errors.
fn expected(kind: Kind) -> String {
    match kind {
        Kind::Switch => "`true` or `false`".into(),
        Kind::Directory { .. } | Kind::RuntimeDirectory | Kind::Path => {
            "an absolute path, in quotes".into()
        }
        Kind::Paths => "a list of absolute paths".into(),
        Kind::Text => "a text, in quotes".into(),
        kind => kind.expected(),
    }
}

/// A relative path in a file would mean another place in every working directory.
fn absolute(text: &str, variable: &dyn Fn(&str) -> Option<OsString>) -> Option<OsString> {
    Some(substitute(text, variable)).filter(|path| Path::new(path).is_absolute())
}

/// Replaces `${NAME}` by the variable of that name, which is empty when it is not set.
fn substitute(text: &str, variable: &dyn Fn(&str) -> Option<OsString>) -> OsString {
    let mut result = OsString::new();
    let mut rest = text;
    while let Some((before, reference)) = rest.split_once("${") {
        result.push(before);
        match reference.split_once('}') {
            Some((name, after)) => {
                result.push(variable(name).unwrap_or_default());
                rest = after;
            }
            None => {
                result.push("${");
                rest = reference;
            }
        }
    }
    result.push(rest);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<TomlFile, FileError> {
        let variable = |name: &str| (name == "USER").then(|| OsString::from("me"));
        TomlFile::parse(Path::new("/c.toml"), text.to_owned(), true, &variable)
    }

    #[test]
    fn values_have_their_places() {
        let file = parse(
            "# comment\n[paths]\ndata = \"/s/${USER}/x${NONE}\"\n\n[limits]\nmax_processors = 0x10\nscratch_size = \"2G\"\n\
             [transfer]\nallow_http = true\nca_directories = [\"/a\", \"/b\"]\n[registries.x]\nanything = 1\n",
        )
        .unwrap();
        let mut found: Vec<_> = file
            .values
            .iter()
            .map(|value| {
                let text = value.value.to_str().unwrap();
                format!("{}={text} {}", value.setting.key, value.place)
            })
            .collect();
        found.sort();
        assert_eq!(
            found,
            [
                "allow_http=true /c.toml:9:1",
                "ca_directories=/a:/b /c.toml:10:1",
                "data=/s/me/x /c.toml:3:1",
                "max_processors=16 /c.toml:6:1",
                "scratch_size=2G /c.toml:7:1",
            ]
        );
    }

    #[test]
    fn what_is_wrong_is_shown() {
        for (text, expected) in [
            (
                "[limits]\n  max_procesors = 1\n",
                "/c.toml:2:3: unknown setting `max_procesors`; did you mean `max_processors`?\n2 |   max_procesors = 1\n  |   ^",
            ),
            (
                "[limts]\n",
                "/c.toml:1:2: unknown table `limts`; did you mean `limits`?\n1 | [limts]\n  |  ^",
            ),
            (
                "[limits]\nmax_processors = 0\n",
                "/c.toml:2:18: `limits.max_processors` should be a number from 1 to 1024\n2 | max_processors = 0\n  |                  ^",
            ),
            (
                "limits = 1\n",
                "/c.toml:1:1: `limits` is a table: write `[limits]`\n1 | limits = 1\n  | ^",
            ),
            (
                "[paths]\ndata = \"x\"\n",
                "/c.toml:2:8: `paths.data` should be an absolute path, in quotes\n2 | data = \"x\"\n  |        ^",
            ),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), expected);
        }
        for text in [
            "[limits]\nmax_processors = \"4\"\n",
            "[limits]\nimage_cache_size = \"much\"\n",
            "[limits]\nimage_cache_size = -1\n",
            "[transfer]\nallow_http = \"yes\"\n",
            "[transfer]\npassword = \"x\"\n",
            "[start]\nmount = \"loop\"\n",
            "[paths]\ndata = 1\ndata = 2\n",
            "[paths\n",
            "\u{0}",
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.starts_with("/c.toml:"), "{error}");
        }
    }

    #[test]
    fn structures_are_read_by_their_owners() {
        #[derive(Debug, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Policy {
            #[serde(default)]
            require: Vec<String>,
        }
        let file = parse("[policy]\nrequire = [\"a\"]\n").unwrap();
        let policy: Policy = file.structure("policy").unwrap().unwrap();
        assert_eq!(policy.require, ["a"]);
        assert!(file.structure::<Policy>("registries").unwrap().is_none());
        let file = parse("\n[policy]\nrequires = [\"a\"]\n").unwrap();
        let error = file.structure::<Policy>("policy").unwrap_err().to_string();
        assert!(
            error.starts_with("/c.toml:3:1: unknown field `requires`"),
            "{error}"
        );
    }
}
