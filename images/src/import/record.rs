//! `/.cista/image.json`: what an image file says about itself.
//!
//! A squashfs file alone does not know its entrypoint, its environment or where it came from. The import therefore
//! stores the OCI image config, unchanged to the byte, together with the digest of the manifest and the reference
//! that was asked for. A start reads it through the squashfs reader, before anything is mounted.
//!
//! Config: OCI image specification, "Image Configuration". Docker writes the same fields, with `null` where OCI leaves
//! a field out, so every field is optional here and `null` counts as absent.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::digest::Digest;

/// Where the record stands in an image, without the leading `/`.
pub const PATH: &str = ".cista/image.json";

/// Version of the record's format that this program writes and understands.
pub const FORMAT: u32 = 1;

/// Longest record that is read, in bytes. Configs are limited to 8 MiB where they are fetched.
pub const MAX_SIZE: usize = 16 << 20;

/// The content of [`PATH`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Version of the format; see [`FORMAT`].
    pub format: u32,
    /// What was asked for, in canonical form; absent in images of the store, which depend on the digest alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// Digest of the image manifest, `sha256:…`; absent for plain root file systems.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// The image config as the source has it; absent for plain root file systems.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    config: Option<Box<RawValue>>,
}

/// A record that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It is not the JSON that we expect.
    #[error("`/{PATH}` is malformed")]
    Syntax(#[source] serde_json::Error),
    /// A newer program wrote it.
    #[error("`/{PATH}` has format {found}, this program knows {FORMAT}")]
    Format {
        /// The version found.
        found: u32,
    },
    /// The image config is not the JSON that we expect.
    #[error("the image config is malformed")]
    Config(#[source] serde_json::Error),
}

impl Record {
    /// A record; `config` is the JSON text of the image config.
    pub fn new(
        reference: Option<String>,
        digest: Option<Digest>,
        config: Option<&[u8]>,
    ) -> Result<Self, RecordError> {
        Ok(Self {
            format: FORMAT,
            reference,
            digest: digest.map(|digest| digest.to_string()),
            config: config
                .map(serde_json::from_slice)
                .transpose()
                .map_err(RecordError::Config)?,
        })
    }

    /// Reads a record.
    pub fn parse(json: &[u8]) -> Result<Self, RecordError> {
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        let version: Version = serde_json::from_slice(json).map_err(RecordError::Syntax)?;
        if version.format != FORMAT {
            return Err(RecordError::Format {
                found: version.format,
            });
        }
        serde_json::from_slice(json).map_err(RecordError::Syntax)
    }

    /// The record as JSON text, with a final newline.
    pub fn to_json(&self) -> Result<Vec<u8>, RecordError> {
        let mut json = serde_json::to_vec(self).map_err(RecordError::Syntax)?;
        json.push(b'\n');
        Ok(json)
    }

    /// The image config's JSON text, byte for byte as the source had it, so that its digest can be verified.
    #[must_use]
    pub fn config_json(&self) -> Option<&str> {
        self.config.as_deref().map(RawValue::get)
    }

    /// The image config; the default (nothing set) for plain root file systems.
    pub fn image_config(&self) -> Result<ImageConfig, RecordError> {
        self.config_json()
            .map_or_else(|| Ok(ImageConfig::default()), ImageConfig::parse)
    }
}

/// The image config, as far as we use it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct ImageConfig {
    /// GOARCH of the programs in the image.
    pub architecture: Option<String>,
    /// GOOS of the programs in the image.
    pub os: Option<String>,
    /// When the image was made, RFC 3339.
    pub created: Option<String>,
    /// How to run it.
    #[serde(default, deserialize_with = "null_as_default")]
    pub config: Execution,
}

/// The property `config` of the image config: how a container of the image is run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Execution {
    /// User to run as; kept for display, since a container runs as the user who starts it.
    #[serde(deserialize_with = "null_as_default")]
    pub user: String,
    /// Environment variables, each `NAME=VALUE`.
    #[serde(deserialize_with = "null_as_default")]
    pub env: Vec<String>,
    /// The program that is run with the arguments, or with [`Self::cmd`] when there are none.
    #[serde(deserialize_with = "null_as_default")]
    pub entrypoint: Vec<String>,
    /// Arguments of the entrypoint, or the whole command when there is no entrypoint.
    #[serde(deserialize_with = "null_as_default")]
    pub cmd: Vec<String>,
    /// Directory that the program starts in; empty for `/`.
    #[serde(deserialize_with = "null_as_default")]
    pub working_dir: String,
    /// Paths that hold data of the user.
    #[serde(deserialize_with = "null_as_default")]
    pub volumes: BTreeMap<String, serde_json::Value>,
    /// Arbitrary metadata.
    #[serde(deserialize_with = "null_as_default")]
    pub labels: BTreeMap<String, String>,
}

impl ImageConfig {
    /// Reads an image config from its JSON text.
    pub fn parse(json: &str) -> Result<Self, RecordError> {
        serde_json::from_str(json).map_err(RecordError::Config)
    }

    /// When the image was made, in seconds since 1970, clamped to what squashfs can store; None when the config does not
    /// say or says it wrongly.
    #[must_use]
    pub fn created_seconds(&self) -> Option<u32> {
        self.created.as_deref().and_then(rfc3339_seconds)
    }
}

fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// Seconds since 1970 of a time stamp such as `2024-02-29T12:00:00.25+01:00` (RFC 3339, section 5.6); the fraction is
/// dropped, and the result clamped to 0 … 2^32 - 1.
fn rfc3339_seconds(text: &str) -> Option<u32> {
    let number = |range: std::ops::Range<usize>| -> Option<i64> {
        let digits = text.get(range)?;
        digits
            .bytes()
            .all(|byte| byte.is_ascii_digit())
            .then(|| digits.parse().ok())?
    };
    let separator = |at: usize, allowed: &[u8]| -> Option<()> {
        allowed.contains(text.as_bytes().get(at)?).then_some(())
    };
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    for (at, allowed) in [(4, "-"), (7, "-"), (10, "Tt "), (13, ":"), (16, ":")] {
        separator(at, allowed.as_bytes())?;
    }
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 {
        return None;
    }
    let mut zone = 19;
    if text.as_bytes().get(zone) == Some(&b'.') {
        zone += 1;
        while text.as_bytes().get(zone).is_some_and(u8::is_ascii_digit) {
            zone += 1;
        }
    }
    let offset = match text.as_bytes().get(zone)? {
        b'Z' | b'z' if text.len() == zone + 1 => 0,
        sign @ (b'+' | b'-') if text.len() == zone + 6 => {
            separator(zone + 3, b":")?;
            let minutes = number(zone + 1..zone + 3)? * 60 + number(zone + 4..zone + 6)?;
            if *sign == b'+' { minutes } else { -minutes }
        }
        _ => return None,
    };
    // Days since 1970 in the Gregorian calendar, with years that begin in March so that leap days come last.
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days = year * 365 + year.div_euclid(4) - year.div_euclid(100)
        + year.div_euclid(400)
        + (month * 153 + 2) / 5
        + day
        - 1
        - 719_468;
    let seconds = ((days * 24 + hour) * 60 + minute - offset) * 60 + second;
    Some(u32::try_from(seconds.max(0)).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_stamps() {
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2024-02-29T12:00:00Z", Some(1_709_208_000)),
            ("2024-02-29T12:00:00.123456789Z", Some(1_709_208_000)),
            ("2024-02-29T13:30:00+01:30", Some(1_709_208_000)),
            ("2024-02-29t07:00:00-05:00", Some(1_709_208_000)),
            ("2000-03-01T00:00:00Z", Some(951_868_800)),
            ("0001-01-01T00:00:00Z", Some(0)),
            ("9999-12-31T23:59:59Z", Some(u32::MAX)),
            ("2024-02-29T12:00:00", None),
            ("2024-02-29T12:00:00Zx", None),
            ("2024-13-29T12:00:00Z", None),
            ("2024-02-29T12:00:00+0100", None),
            ("2024-02-+9T12:00:00Z", None),
            ("２024-02-29T12:00:00Z", None),
            ("", None),
        ] {
            assert_eq!(rfc3339_seconds(text), seconds, "{text}");
        }
    }

    #[test]
    fn a_config_survives_to_the_byte() {
        let config =
            br#"{ "architecture":"amd64",  "config":{"Env":["A=1"],"Cmd":null}, "rootfs":{} }"#;
        let record = Record::new(
            Some("docker://x/y:1".to_owned()),
            Some(Digest::of(b"m")),
            Some(config),
        )
        .unwrap();
        let read = Record::parse(&record.to_json().unwrap()).unwrap();
        assert_eq!(read.config_json().unwrap().as_bytes(), config);
        assert_eq!(read.digest, record.digest);
        let parsed = read.image_config().unwrap();
        assert_eq!(parsed.config.env, ["A=1"]);
        assert!(parsed.config.cmd.is_empty());
        assert_eq!(parsed.architecture.as_deref(), Some("amd64"));
    }

    #[test]
    fn null_and_absent_fields_are_the_same() {
        let null = r#"{"created":null,"config":{"Entrypoint":null,"Labels":null,"Volumes":null,"WorkingDir":null,"User":null}}"#;
        assert_eq!(ImageConfig::parse(null).unwrap(), ImageConfig::default());
        assert_eq!(
            ImageConfig::parse(r#"{"config":null}"#).unwrap(),
            ImageConfig::default()
        );
        assert!(ImageConfig::parse(r#"{"config":{"Env":"A=1"}}"#).is_err());
    }

    #[test]
    fn other_formats_are_refused() {
        assert!(matches!(
            Record::parse(br#"{"format":2,"unknown":true}"#),
            Err(RecordError::Format { found: 2 })
        ));
        assert!(matches!(Record::parse(b"{"), Err(RecordError::Syntax(_))));
        assert!(matches!(
            Record::new(None, None, Some(b"not json")),
            Err(RecordError::Config(_))
        ));
    }
}
