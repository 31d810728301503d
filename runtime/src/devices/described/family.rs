//! The format of `devices.d/*.toml`: one family of devices a file.
//!
//! A family is either one thing, such as `/dev/knem`, or has instances, such as the adapters of a fabric, each with nodes of its own. What is
//! written is checked whole before anything of it is used; what we do not know is refused. Paths are of the host and the same in the
//! container. In those of nodes, `{instance}` stands for the name of an instance, and `{entry}` for an entry of the directory that
//! `entries` names; both are single names of files, whatever stands in the directories of the host.

use serde::Deserialize;

/// Longest file that is read, in bytes.
pub(super) const MAX_SIZE: u64 = 256 << 10;

/// A family of devices.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Family {
    /// Its name, as in `--device host/NAME=all`.
    pub name: String,
    /// What one of them is called in messages.
    pub title: String,
    /// Who gets them.
    pub grant: Policy,
    /// The variable by which images and users choose instances.
    pub variable: Option<String>,
    /// Where its instances are; None for a family that is one thing.
    pub instances: Option<Instances>,
    /// Its device nodes.
    #[serde(default)]
    pub nodes: Vec<Node>,
    /// Directories of `/sys` where containers see the instances that they have, and no others of the family.
    #[serde(default)]
    pub filter: Vec<Filter>,
    /// Libraries of the host, for those who ask for them.
    pub libraries: Option<Libraries>,
}

/// Who gets the devices of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// Every container, as far as its user may open them.
    Default,
    /// Those that ask by `--device` or the family's variable.
    Asked,
    /// Nobody.
    Never,
}

/// The instances of a family.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Instances {
    /// The directory whose entries they are.
    pub directory: String,
    /// Which entries: a name in which `*` stands for anything.
    #[serde(default = "anything")]
    pub names: String,
    /// Only those with one of these drivers.
    #[serde(default)]
    pub drivers: Vec<String>,
    /// None of those with one of these drivers.
    #[serde(default)]
    pub not_drivers: Vec<String>,
}

/// A device node, or one for each entry of a directory.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Node {
    /// Its path.
    pub path: String,
    /// The directory with an entry for each node.
    pub entries: Option<String>,
    /// The file of an entry that holds the name of its instance.
    #[serde(rename = "match")]
    pub matching: Option<String>,
}

/// A directory of `/sys` that is filtered.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Filter {
    /// The directory. Its entries are called as instances are.
    pub directory: String,
    /// Unless this says which file of an entry holds the name of its instance.
    #[serde(rename = "match")]
    pub matching: Option<String>,
}

/// Libraries and files of the host.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Libraries {
    /// Names by which the dynamic linker knows them. Those that the host lacks are left out.
    #[serde(default)]
    pub names: Vec<String>,
    /// Files and directories, mounted where they are. Those that the host lacks are left out.
    #[serde(default)]
    pub paths: Vec<String>,
}

/// Why a description cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FamilyError {
    /// It is not TOML of this shape.
    #[error("{}", .0.to_string().trim_end())]
    Toml(#[from] Box<toml::de::Error>),
    /// A value is wrong.
    #[error("`{field}` is {value:?}: expected {expected}")]
    Value {
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
}

fn anything() -> String {
    "*".into()
}

impl Family {
    /// Reads a description.
    ///
    /// # Errors
    ///
    /// One that is not understood.
    pub fn parse(text: &str) -> Result<Self, FamilyError> {
        let family: Self = toml::from_str(text).map_err(Box::new)?;
        family.check()?;
        Ok(family)
    }

    fn check(&self) -> Result<(), FamilyError> {
        let is_word = self
            .name
            .starts_with(|first: char| first.is_ascii_alphabetic())
            && self
                .name
                .ends_with(|last: char| last.is_ascii_alphanumeric())
            && self.name.len() <= 63
            && self
                .name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
        let expected = "letters, digits, `-` and `_`, with a letter first";
        holds(is_word, "name", &self.name, expected)?;
        let is_line = !self.title.is_empty() && !self.title.contains(char::is_control);
        holds(is_line, "title", &self.title, "a few words")?;
        if let Some(variable) = &self.variable {
            let is_name = !variable.is_empty()
                && variable
                    .bytes()
                    .all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_');
            holds(is_name, "variable", variable, "the name of a variable")?;
        }
        if let Some(instances) = &self.instances {
            path("instances.directory", &instances.directory, &[])?;
            let is_pattern = !instances.names.is_empty() && !instances.names.contains('/');
            let expected = "a name in which `*` stands for anything";
            holds(is_pattern, "instances.names", &instances.names, expected)?;
        }
        for node in &self.nodes {
            self.check_node(node)?;
        }
        for filter in &self.filter {
            path("filter.directory", &filter.directory, &[])?;
            let is_below = filter.directory.starts_with("/sys/") && self.instances.is_some();
            let expected = "a directory below `/sys`, in a family with `instances`";
            holds(is_below, "filter.directory", &filter.directory, expected)?;
            matching("filter.match", filter.matching.as_ref())?;
        }
        if let Some(libraries) = &self.libraries {
            for name in &libraries.names {
                let is_name = !name.is_empty() && !name.contains('/');
                holds(
                    is_name,
                    "libraries.names",
                    name,
                    "names without directories",
                )?;
            }
            for text in &libraries.paths {
                path("libraries.paths", text, &[])?;
            }
        }
        Ok(())
    }

    fn check_node(&self, node: &Node) -> Result<(), FamilyError> {
        let may_stand: &[&str] = match (&self.instances, &node.entries) {
            (Some(_), Some(_)) => &["{instance}", "{entry}"],
            (Some(_), None) => &["{instance}"],
            (None, Some(_)) => &["{entry}"],
            (None, None) => &[],
        };
        path("nodes.path", &node.path, may_stand)?;
        let expected = "a path below `/dev`";
        holds(
            node.path.starts_with("/dev/"),
            "nodes.path",
            &node.path,
            expected,
        )?;
        if let Some(directory) = &node.entries {
            path("nodes.entries", directory, &["{instance}"])?;
            let expected = "a path with `{entry}`, where there are `entries`";
            holds(
                node.path.contains("{entry}"),
                "nodes.path",
                &node.path,
                expected,
            )?;
        }
        matching("nodes.match", node.matching.as_ref())
    }
}

impl Node {
    /// Whether the node belongs to one instance, rather than to all of the family.
    #[must_use]
    pub fn is_of_instance(&self) -> bool {
        self.path.contains("{instance}") || self.entries.is_some()
    }
}

fn holds(
    is_so: bool,
    field: &'static str,
    value: &str,
    expected: &'static str,
) -> Result<(), FamilyError> {
    if is_so {
        return Ok(());
    }
    Err(FamilyError::Value {
        field,
        value: value.chars().take(200).collect(),
        expected,
    })
}

/// An absolute path without `.` and `..`, and without braces but those of placeholders.
fn path(field: &'static str, text: &str, placeholders: &[&str]) -> Result<(), FamilyError> {
    let mut plain = text.to_owned();
    for placeholder in placeholders {
        plain = plain.replace(placeholder, "x");
    }
    let is_path = plain.len() > 1
        && plain.starts_with('/')
        && !plain.contains(['{', '}', '\0'])
        && plain[1..]
            .split('/')
            .all(|name| !matches!(name, "" | "." | ".."));
    holds(is_path, field, text, "an absolute path without `..`")
}

fn matching(field: &'static str, name: Option<&String>) -> Result<(), FamilyError> {
    name.map_or(Ok(()), |name| {
        let is_name = !matches!(name.as_str(), "" | "." | "..") && !name.contains('/');
        holds(is_name, field, name, "the name of a file")
    })
}

/// Whether a name is as a pattern says, in which `*` stands for anything.
pub(super) fn is_like(name: &str, pattern: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else {
        return name == pattern;
    };
    let Some(mut left) = name.strip_prefix(first) else {
        return false;
    };
    // Each piece but the last at its first place; the last one at the end.
    let mut pieces: Vec<&str> = rest.split('*').collect();
    let last = pieces.pop().unwrap_or_default();
    for piece in pieces {
        match left.find(piece) {
            Some(at) => left = &left[at + piece.len()..],
            None => return false,
        }
    }
    left.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, yes, no) in [
            ("*", &["", "a"][..], &[][..]),
            ("cxi*", &["cxi", "cxi0"], &["xcxi0"]),
            ("mlx5_*", &["mlx5_0"], &["mlx4_0"]),
            ("a*b*c", &["abc", "axxbxxc", "abbc"], &["ab", "acb", "abcd"]),
            ("a*a", &["aa", "aba"], &["a"]),
            ("x", &["x"], &["xx"]),
        ] {
            assert!(yes.iter().all(|name| is_like(name, pattern)), "{pattern}");
            assert!(!no.iter().any(|name| is_like(name, pattern)), "{pattern}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        let head = "name = 'x'\ntitle = 'X'\ngrant = 'default'\n";
        Family::parse(head).unwrap();
        for (text, problem) in [
            ("name = 'x'", "title"),
            ("[[[", "TOML"),
            ("name = '1x'\ntitle = 'X'\ngrant = 'asked'", "`name`"),
            ("name = 'x'\ntitle = 'X'\ngrant = 'maybe'", "maybe"),
            (&format!("{head}other = 1"), "other"),
            (&format!("{head}variable = 'a b'"), "`variable`"),
            (
                &format!("{head}[[nodes]]\npath = '/etc/passwd'"),
                "below `/dev`",
            ),
            (
                &format!("{head}[[nodes]]\npath = '/dev/../etc'"),
                "without `..`",
            ),
            (
                &format!("{head}[[nodes]]\npath = '/dev/{{instance}}'"),
                "`nodes.path`",
            ),
            (
                &format!("{head}[[nodes]]\npath = '/dev/x'\nentries = '/sys/y'"),
                "`{entry}`",
            ),
            (
                &format!(
                    "{head}[[nodes]]\npath = '/dev/{{entry}}'\nentries = '/sys/y'\nmatch = 'a/b'"
                ),
                "nodes.match",
            ),
            (
                &format!("{head}[[filter]]\ndirectory = '/sys/x'"),
                "filter.directory",
            ),
            (
                &format!("{head}[instances]\ndirectory = '/sys/x'\n[[filter]]\ndirectory = '/etc'"),
                "below `/sys`",
            ),
            (
                &format!("{head}[libraries]\nnames = ['/a']"),
                "libraries.names",
            ),
            (
                &format!("{head}[libraries]\npaths = ['a']"),
                "libraries.paths",
            ),
        ] {
            let error = Family::parse(text).unwrap_err().to_string();
            assert!(error.contains(problem), "{text}: {error}");
        }
    }
}
