//! Names of devices: `vendor.com/class=device` (CDI specification, "Kind" and "CDI Devices").
//!
//! Vendor and class are called the kind together. A vendor looks like a domain, a class and a device like words; a device name may hold
//! colons too, since names of MIG devices do (`0:1`).

use std::fmt;
use std::str::FromStr;

/// Longest vendor, as the specification says of a DNS subdomain.
const MAX_VENDOR: usize = 253;

/// Longest class, as the specification says.
const MAX_CLASS: usize = 63;

/// Longest device name. The specification sets none; file names are not longer either.
const MAX_DEVICE: usize = 255;

/// The kind of a device: `vendor.com/class`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kind {
    /// Who makes the device, such as `nvidia.com`.
    pub vendor: String,
    /// What it is, such as `gpu`.
    pub class: String,
}

/// The whole name of a device: `vendor.com/class=name`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QualifiedName {
    /// Who makes the device, such as `nvidia.com`.
    pub vendor: String,
    /// What it is, such as `gpu`.
    pub class: String,
    /// Which of that kind.
    pub name: String,
}

/// Why a text names no device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// There is no `=`.
    #[error("`{0}` is no CDI device: expected `VENDOR/CLASS=NAME`")]
    NoDevice(String),
    /// There is no `/`.
    #[error("`{0}` is no kind of CDI devices: expected `VENDOR/CLASS`")]
    NoClass(String),
    /// A part is empty, too long, or has a character that it must not have.
    #[error(
        "`{text}` is no name of a CDI {part}: it begins {begins}, ends with a letter or a digit, has letters, digits and {inside} between, and at most {longest} characters"
    )]
    Part {
        /// Which part.
        part: &'static str,
        /// The text.
        text: String,
        /// What it may begin with.
        begins: &'static str,
        /// What it may hold besides letters and digits.
        inside: &'static str,
        /// How long it may be.
        longest: usize,
    },
}

impl QualifiedName {
    /// Whether a text is meant to be the name of a CDI device, rather than a path, an index or a UUID.
    #[must_use]
    pub fn is_meant(text: &str) -> bool {
        !text.starts_with('/')
            && text
                .split_once('=')
                .is_some_and(|(kind, _)| kind.contains('/'))
    }

    /// Reads a name.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let (kind, name) = text
            .split_once('=')
            .ok_or_else(|| NameError::NoDevice(shortened(text)))?;
        check_device(name)?;
        let Kind { vendor, class } = kind.parse()?;
        Ok(Self {
            vendor,
            class,
            name: name.to_owned(),
        })
    }

    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        Kind {
            vendor: self.vendor.clone(),
            class: self.class.clone(),
        }
    }
}

impl FromStr for Kind {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let (vendor, class) = text
            .split_once('/')
            .ok_or_else(|| NameError::NoClass(shortened(text)))?;
        let letter = "with a letter";
        check(vendor, "vendor", letter, "`_`, `-` and `.`", MAX_VENDOR)?;
        check(class, "class", letter, "`_`, `-` and `.`", MAX_CLASS)?;
        Ok(Self {
            vendor: vendor.to_owned(),
            class: class.to_owned(),
        })
    }
}

/// Checks the last part of a name.
///
/// # Errors
///
/// A text that is no such name.
pub fn check_device(text: &str) -> Result<(), NameError> {
    let begins = "with a letter or a digit";
    check(text, "device", begins, "`_`, `-`, `.` and `:`", MAX_DEVICE)
}

fn check(
    text: &str,
    part: &'static str,
    begins: &'static str,
    inside: &'static str,
    longest: usize,
) -> Result<(), NameError> {
    let bytes = text.as_bytes();
    let may_begin =
        |byte: u8| byte.is_ascii_alphabetic() || part == "device" && byte.is_ascii_digit();
    let may_hold = |byte: u8| {
        byte.is_ascii_alphanumeric()
            || matches!(byte, b'_' | b'-' | b'.')
            || part == "device" && byte == b':'
    };
    let is_good = bytes.len() <= longest
        && bytes.first().copied().is_some_and(may_begin)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.iter().copied().all(may_hold);
    if is_good {
        return Ok(());
    }
    Err(NameError::Part {
        part,
        text: shortened(text),
        begins,
        inside,
        longest,
    })
}

/// As much of a text as an error shows.
fn shortened(text: &str) -> String {
    let mut short: String = text.chars().take(80).flat_map(char::escape_debug).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.vendor, self.class)
    }
}

impl fmt::Display for QualifiedName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}={}", self.vendor, self.class, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_what_are_none() {
        for good in [
            "nvidia.com/gpu=all",
            "nvidia.com/gpu=0:1",
            "vendor.com/class=dev_1-x.y",
            "foo.bar.baz/foo-bar123.B_az=0",
        ] {
            assert_eq!(QualifiedName::parse(good).unwrap().to_string(), good);
            assert!(QualifiedName::is_meant(good));
        }
        let long = format!("{}/c=d", "v".repeat(254));
        for (bad, word) in [
            ("gpu", "expected `VENDOR/CLASS=NAME`"),
            ("gpu=0", "expected `VENDOR/CLASS`"),
            ("/class=0", "CDI vendor"),
            ("vendor/=0", "CDI class"),
            ("vendor.com/foo/=x", "CDI class"),
            ("vendor.com/foo/bar=x", "CDI class"),
            ("1vendor/c=0", "CDI vendor"),
            ("vendor./c=0", "CDI vendor"),
            ("vendor/c=", "CDI device"),
            ("vendor/c=-0", "CDI device"),
            ("vendor/c=a=b", "CDI device"),
            ("vendor/c=é", "CDI device"),
            ("vendor/c=a\nb", "CDI device"),
            (&long, "253"),
        ] {
            let error = QualifiedName::parse(bad).unwrap_err().to_string();
            assert!(error.contains(word), "{bad}: {error}");
            assert!(!error.contains('\n'), "{bad}");
        }
        for other in ["/dev/x/y=z", "0", "GPU-1234", "MIG-GPU/1/2", "all"] {
            assert!(!QualifiedName::is_meant(other), "{other}");
        }
    }
}
