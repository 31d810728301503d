//! Settings of imports: how registries are reached, how images are made.
//!
//! Apart from the other settings, since a start needs none of them. Names without `CISTA_` are those that every program
//! follows: OpenSSL's for certificates, curl's for proxies (of which `http_proxy` is read in lower case only, because
//! a CGI client could set the other), and reproducible-builds.org's for time stamps.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cista_images::registry::{Credential, Fixed, Secret, Settings};
use cista_images::squashfs::compression::Compression;

use super::ConfigError;

/// The settings of imports.
#[derive(Clone, Debug)]
pub struct ImportConfig {
    /// How registries are reached: `CISTA_ALLOW_HTTP`, `CISTA_MAX_CONNECTIONS`, `CISTA_CONNECT_TIMEOUT` and
    /// `CISTA_TRANSFER_TIMEOUT` (both in seconds), `CISTA_TRANSFER_RETRIES`, `SSL_CERT_FILE`, `SSL_CERT_DIR`, `https_proxy`,
    /// `http_proxy`, `all_proxy`, `no_proxy`.
    pub registry: Settings,
    /// Password for the user of a reference. `CISTA_PASSWORD`.
    pub password: Option<Secret>,
    /// How images are compressed. `CISTA_COMPRESSION`, zstd:1.
    pub compression: Compression,
    /// Time stamp of everything in an image, in seconds since 1970. `SOURCE_DATE_EPOCH`.
    pub time: Option<u32>,
    /// Bytes of decoded layers that may wait to be merged. `CISTA_IMPORT_MEMORY`, 128 MiB.
    pub memory: Option<usize>,
    /// Bytes that every layer may expand to, however small it is; a larger one may expand to a hundred times its size as
    /// well. `CISTA_MAX_LAYER_SIZE`, 16 GiB.
    pub layer_size: Option<u64>,
}

impl ImportConfig {
    /// Reads the environment.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Value`].
    pub fn load() -> Result<Self, ConfigError> {
        Self::from_variables(|name| std::env::var_os(name).filter(|value| !value.is_empty()))
    }

    fn from_variables(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, ConfigError> {
        let text = |name: &'static str| match variable(name) {
            None => Ok(None),
            Some(value) => value.into_string().map(Some).map_err(|value| {
                let value = value.to_string_lossy().into_owned();
                refused(name, value, "expected text in UTF-8")
            }),
        };
        let number = |name: &'static str, range: std::ops::RangeInclusive<u32>, expected| {
            match text(name)? {
                None => Ok(None),
                Some(value) => match value.trim().parse() {
                    Ok(number) if range.contains(&number) => Ok(Some(number)),
                    _ => Err(refused(name, value, expected)),
                },
            }
        };
        let either = |lower: &'static str, upper: &'static str| match text(lower)? {
            Some(value) => Ok(Some(value)),
            None => text(upper),
        };
        let seconds = |name| {
            let number = number(
                name,
                1..=86_400,
                "expected a number of seconds from 1 to 86400",
            )?;
            Ok(number.map(|number| Duration::from_secs(u64::from(number))))
        };
        let all = either("all_proxy", "ALL_PROXY")?;
        let defaults = Settings::default();
        let registry = Settings {
            allow_http: text("CISTA_ALLOW_HTTP")?.is_some_and(|value| is_true(&value)),
            ca_file: variable("SSL_CERT_FILE").map(PathBuf::from),
            ca_directories: variable("SSL_CERT_DIR")
                .map(|directories| std::env::split_paths(&directories).collect())
                .unwrap_or_default(),
            https_proxy: either("https_proxy", "HTTPS_PROXY")?
                .or_else(|| all.clone())
                .map(Secret::new),
            http_proxy: text("http_proxy")?.or(all).map(Secret::new),
            no_proxy: either("no_proxy", "NO_PROXY")?.unwrap_or_default(),
            connect_timeout: seconds("CISTA_CONNECT_TIMEOUT")?.unwrap_or(defaults.connect_timeout),
            idle_timeout: seconds("CISTA_TRANSFER_TIMEOUT")?.unwrap_or(defaults.idle_timeout),
            retry_delay: defaults.retry_delay,
            retries: number(
                "CISTA_TRANSFER_RETRIES",
                0..=1000,
                "expected a number from 0 to 1000",
            )?
            .unwrap_or(defaults.retries),
            max_connections: number(
                "CISTA_MAX_CONNECTIONS",
                1..=256,
                "expected a number from 1 to 256",
            )?
            .map_or(defaults.max_connections, |number| number as usize),
            credentials: defaults.credentials,
        };
        let compression = match text("CISTA_COMPRESSION")? {
            None => Compression::default(),
            Some(value) => value.parse().map_err(|_| {
                refused(
                    "CISTA_COMPRESSION",
                    value,
                    "expected `zstd`, `zstd:N`, `lz4`, `gzip`, `gzip:N`, `xz` or `none`",
                )
            })?,
        };
        let time = number(
            "SOURCE_DATE_EPOCH",
            0..=u32::MAX,
            "expected a number of seconds since 1970, below 4294967296",
        )?;
        let size = |name: &'static str| match text(name)? {
            None => Ok(None),
            Some(value) => match super::parse_size(&value) {
                Some(size) => Ok(Some(size)),
                None => Err(refused(
                    name,
                    value,
                    "expected a number of bytes, perhaps followed by `K`, `M`, `G` or `T`",
                )),
            },
        };
        Ok(Self {
            memory: size("CISTA_IMPORT_MEMORY")?
                .map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX)),
            layer_size: size("CISTA_MAX_LAYER_SIZE")?,
            registry,
            password: text("CISTA_PASSWORD")?.map(Secret::new),
            compression,
            time,
        })
    }

    /// The registry settings for a reference, with the credential of its user.
    #[must_use]
    pub fn registry_for(&self, registry: &str, user: Option<&str>) -> Settings {
        let mut settings = self.registry.clone();
        if let (Some(user), Some(password)) = (user, &self.password) {
            settings.credentials = Arc::new(Fixed {
                registry: registry.to_owned(),
                credential: Credential {
                    user: user.to_owned(),
                    password: password.clone(),
                },
            });
        }
        settings
    }
}

fn refused(variable: &'static str, value: String, expected: &'static str) -> ConfigError {
    ConfigError::Value {
        variable,
        value,
        expected,
    }
}

/// Whether a switch is on: everything but the ways to say no that enroot knows.
fn is_true(value: &str) -> bool {
    !["no", "n", "false", "f", "0"]
        .iter()
        .any(|no| value.eq_ignore_ascii_case(no))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(variables: &[(&str, &str)]) -> Result<ImportConfig, ConfigError> {
        ImportConfig::from_variables(|name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| OsString::from(value))
        })
    }

    #[test]
    fn proxies_follow_curl() {
        let config = load(&[
            ("HTTP_PROXY", "http://evil"),
            ("HTTPS_PROXY", "http://upper"),
            ("all_proxy", "http://all"),
            ("NO_PROXY", "x,y"),
        ])
        .unwrap();
        let proxy =
            |secret: &Option<Secret>| secret.as_ref().map(|secret| secret.expose().to_owned());
        assert_eq!(proxy(&config.registry.https_proxy).unwrap(), "http://upper");
        assert_eq!(proxy(&config.registry.http_proxy).unwrap(), "http://all");
        assert_eq!(config.registry.no_proxy, "x,y");
    }

    #[test]
    fn values() {
        let config = load(&[
            ("CISTA_ALLOW_HTTP", "y"),
            ("CISTA_TRANSFER_TIMEOUT", "7"),
            ("SOURCE_DATE_EPOCH", "1700000000"),
            ("CISTA_COMPRESSION", "zstd:19"),
            ("CISTA_IMPORT_MEMORY", "64M"),
            ("CISTA_MAX_LAYER_SIZE", "1T"),
        ])
        .unwrap();
        assert!(config.registry.allow_http);
        assert_eq!(config.registry.idle_timeout, Duration::from_secs(7));
        assert_eq!(config.time, Some(1_700_000_000));
        assert_eq!(config.compression, Compression::Zstd(19));
        assert_eq!(config.memory, Some(64 << 20));
        assert_eq!(config.layer_size, Some(1 << 40));
        for no in ["no", "N", "False", "f", "0"] {
            assert!(
                !load(&[("CISTA_ALLOW_HTTP", no)])
                    .unwrap()
                    .registry
                    .allow_http
            );
        }
        for (name, value) in [
            ("SOURCE_DATE_EPOCH", "-1"),
            ("SOURCE_DATE_EPOCH", "4294967296"),
            ("CISTA_COMPRESSION", "lzo"),
            ("CISTA_MAX_CONNECTIONS", "0"),
            ("CISTA_CONNECT_TIMEOUT", "soon"),
            ("CISTA_IMPORT_MEMORY", "much"),
        ] {
            assert!(load(&[(name, value)]).is_err(), "{name}={value}");
        }
    }

    #[test]
    fn the_password_belongs_to_the_registry_of_the_reference() {
        let config = load(&[("CISTA_PASSWORD", "hunter2")]).unwrap();
        let settings = config.registry_for("host:5000", Some("me"));
        let found = settings
            .credentials
            .lookup("host:5000", Some("me"))
            .unwrap();
        assert_eq!(found.unwrap().user, "me");
        assert!(
            settings
                .credentials
                .lookup("other", None)
                .unwrap()
                .is_none()
        );
        assert!(!format!("{config:?}").contains("hunter2"));
        let anonymous = config.registry_for("host:5000", None);
        assert!(
            anonymous
                .credentials
                .lookup("host:5000", None)
                .unwrap()
                .is_none()
        );
    }
}
