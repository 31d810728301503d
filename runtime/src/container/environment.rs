//! The environment of a container's program.
//!
//! As with enroot, the environment of the caller is not passed on: what is set is what the image says, then what is asked for with `-e`,
//! then, where they are still missing, the variables of a login (HOME, USER, LOGNAME, SHELL, PATH) and the terminal's TERM.
//! A job under Slurm gets its environment through the plugin.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

/// Where programs are looked up when the image does not say.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Variables by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment(BTreeMap<OsString, OsString>);

/// A variable of the command line that cannot be set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{option}` does not begin with the name of a variable")]
pub struct EnvironmentError {
    /// What was given to `-e`.
    pub option: String,
}

impl Environment {
    /// Sets a variable.
    pub fn set(&mut self, name: impl Into<OsString>, value: impl Into<OsString>) {
        self.0.insert(name.into(), value.into());
    }

    /// Sets a variable that is not set.
    pub fn set_default(&mut self, name: &str, value: impl Into<OsString>) {
        if !self.0.contains_key(OsStr::new(name)) {
            self.set(name, value);
        }
    }

    /// The value of a variable.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&OsStr> {
        self.0.get(OsStr::new(name)).map(OsString::as_os_str)
    }

    /// Sets what a `NAME=VALUE` text says; anything else is left out, as in `/etc/environment` of an image.
    pub fn set_assignment(&mut self, assignment: &OsStr) {
        if let Some((name, value)) = split(assignment.as_bytes()) {
            self.set(OsStr::from_bytes(name), OsStr::from_bytes(value));
        }
    }

    /// Sets what a `NAME=VALUE` text of a running process says, whatever its name looks like: shells export functions as `BASH_FUNC_f%%`.
    pub fn set_any(&mut self, assignment: &OsStr) {
        let bytes = assignment.as_bytes();
        if let Some(at) = bytes
            .iter()
            .position(|&byte| byte == b'=')
            .filter(|&at| at > 0)
        {
            let (name, value) = (&bytes[..at], &bytes[at + 1..]);
            self.set(OsStr::from_bytes(name), OsStr::from_bytes(value));
        }
    }

    /// Sets what the lines of an image's `/etc/environment` or of an `environ.d/*.env` say, `${NAME}` being replaced by the host's variable
    /// of that name. Quotes around a whole value are taken off. What is no assignment, or of a name that is ours, is left out.
    pub fn set_lines(&mut self, file: &[u8], host: impl Fn(&OsStr) -> Option<OsString>) {
        let mut left = MAX_SUBSTITUTED;
        for line in file.split(|&byte| byte == b'\n') {
            if let Some((name, value)) = split(line.trim_ascii_start())
                && !is_reserved(name)
            {
                let value = substitute(without_quotes(value), &host, &mut left);
                self.set(OsStr::from_bytes(name), value);
            }
        }
    }

    /// Removes a variable.
    pub fn remove(&mut self, name: &OsStr) {
        self.0.remove(name);
    }

    /// The variables in the order of names.
    pub fn iter(&self) -> impl Iterator<Item = (&OsStr, &OsStr)> {
        self.0
            .iter()
            .map(|(name, value)| (name.as_os_str(), value.as_os_str()))
    }

    /// `NAME=VALUE` strings for execve(2), in the order of names.
    #[must_use]
    pub fn strings(&self) -> Vec<CString> {
        self.0
            .iter()
            .filter_map(|(name, value)| {
                let mut string = name.as_bytes().to_vec();
                string.push(b'=');
                string.extend_from_slice(value.as_bytes());
                CString::new(string).ok()
            })
            .collect()
    }
}

/// Reads an argument of `-e`: `NAME=VALUE`, or `NAME` for the host's value. None where the host has no such variable.
///
/// # Errors
///
/// A name that shells would not take.
pub fn parse_option(
    option: &OsStr,
    host: impl Fn(&OsStr) -> Option<OsString>,
) -> Result<Option<(OsString, OsString)>, EnvironmentError> {
    let bytes = option.as_bytes();
    if let Some((name, value)) = split(bytes) {
        return Ok(Some((
            OsStr::from_bytes(name).to_owned(),
            OsStr::from_bytes(value).to_owned(),
        )));
    }
    if is_name(bytes) {
        return Ok(host(option).map(|value| (option.to_owned(), value)));
    }
    Err(EnvironmentError {
        option: option.to_string_lossy().into_owned(),
    })
}

fn split(assignment: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = assignment.iter().position(|&byte| byte == b'=')?;
    let name = &assignment[..at];
    is_name(name).then_some((name, &assignment[at + 1..]))
}

/// Settings, which are for the program that starts a container and may be secrets.
fn is_reserved(name: &[u8]) -> bool {
    name.starts_with(b"ENROOT_") || name.starts_with(b"CISTA_")
}

fn without_quotes(value: &[u8]) -> &[u8] {
    let trimmed = value.trim_ascii_end();
    match trimmed {
        [b'"' | b'\'', inside @ .., b'"' | b'\''] => inside,
        _ => value,
    }
}

fn is_name(name: &[u8]) -> bool {
    !name.is_empty()
        && !name[0].is_ascii_digit()
        && name
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
}

/// Bytes that the host's variables may bring into the text of one file: an image could name a long one as often as it likes.
pub const MAX_SUBSTITUTED: usize = 4 << 20;

/// Replaces `${NAME}` by the host's variable; one that is not set is empty, and so is one for which `left`, the bytes that may still come in this way, does
/// not suffice.
#[must_use]
pub fn substitute(
    value: &[u8],
    host: &impl Fn(&OsStr) -> Option<OsString>,
    left: &mut usize,
) -> OsString {
    let mut result = Vec::with_capacity(value.len());
    let mut rest = value;
    while let Some((&byte, after)) = rest.split_first() {
        let reference = rest.strip_prefix(b"${").and_then(|inside| {
            let is_outside = |byte: &u8| !(byte.is_ascii_alphanumeric() || *byte == b'_');
            let end = inside.iter().position(is_outside)?;
            (inside[end] == b'}' && is_name(&inside[..end]))
                .then_some((&inside[..end], &inside[end + 1..]))
        });
        if let Some((name, next)) = reference {
            let value = host(OsStr::from_bytes(name));
            if let Some(value) = value.filter(|value| value.len() <= *left) {
                *left -= value.len();
                result.extend_from_slice(value.as_bytes());
            }
            rest = next;
        } else {
            result.push(byte);
            rest = after;
        }
    }
    OsString::from_vec(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &OsStr) -> Option<OsString> {
        (name == "DISPLAY").then(|| ":0".into())
    }

    #[test]
    fn options() {
        for (option, expected) in [
            ("A=1", Some(("A", "1"))),
            ("A=", Some(("A", ""))),
            ("_a9=x=y", Some(("_a9", "x=y"))),
            ("DISPLAY", Some(("DISPLAY", ":0"))),
            ("UNSET", None),
        ] {
            let expected = expected.map(|(name, value)| (name.into(), value.into()));
            assert_eq!(
                parse_option(OsStr::new(option), host).unwrap(),
                expected,
                "{option}"
            );
        }
        for option in ["", "=x", "9A=1", "A B=1", "A-B"] {
            assert!(parse_option(OsStr::new(option), host).is_err(), "{option}");
        }
    }

    #[test]
    fn lines_of_an_image() {
        let mut environment = Environment::default();
        environment.set_lines(
            b"PATH=/bin\n# comment\nQ=\"a b\" \n  R='c'\nS=\"\nENROOT_X=1\nCISTA_X=1\nX=a${DISPLAY}b${NONE}c${not a name}$HOME\n\nbad line\nPATH=/usr/bin",
            host,
        );
        environment.set_default("PATH", "/no");
        environment.set_default("HOME", "/root");
        assert_eq!(
            environment.strings(),
            [
                c"HOME=/root",
                c"PATH=/usr/bin",
                c"Q=a b",
                c"R=c",
                c"S=\"",
                c"X=a:0bc${not a name}$HOME"
            ]
            .map(CString::from)
        );
    }

    /// An image says what is replaced, so neither time nor memory may grow beyond what it says.
    #[test]
    fn variables_are_replaced_in_bounds() {
        let many = "${".repeat(2 << 20);
        let mut left = MAX_SUBSTITUTED;
        let began = std::time::Instant::now();
        assert_eq!(
            substitute(many.as_bytes(), &host, &mut left),
            OsStr::new(&many)
        );
        assert!(began.elapsed().as_secs() < 5, "{:?}", began.elapsed());
        let long = |_: &OsStr| Some("x".repeat(1 << 20).into());
        let mut environment = Environment::default();
        let lines: String = (0..1000)
            .map(|line| format!("A{line}=${{L}}${{L}}\n"))
            .collect();
        environment.set_lines(lines.as_bytes(), long);
        let bytes: usize = environment.iter().map(|(_, value)| value.len()).sum();
        assert_eq!(bytes, MAX_SUBSTITUTED);
    }
}
