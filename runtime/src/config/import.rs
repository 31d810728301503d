//! Settings of imports: how registries are reached, how images are made.
//!
//! Apart from the other settings, since a start needs none of them. Names without `CISTA_` are those that every program
//! follows: OpenSSL's for certificates, curl's for proxies (of which `http_proxy` is read in lower case only, because
//! a CGI client could set the other), and reproducible-builds.org's for time stamps.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cista_images::layer::Limits;
use cista_images::registry::{Credential, Observer, RegistryError, Secret, Settings};
use cista_images::squashfs::compression::Compression;

use super::credentials::CredentialPaths;
use super::{ConfigError, Sources, policy, registries, settings};
use crate::credentials::StoredCredentials;
use crate::ui;

/// Tells the user of what goes wrong without stopping anything.
#[derive(Debug)]
struct Warnings;

impl Observer for Warnings {
    fn mirror_failed(&self, mirror: &str, error: &RegistryError) {
        ui::warning(format_args!(
            "the mirror `{mirror}` is not used any more: {}",
            ui::chain(error)
        ));
    }
}

/// The settings of imports.
#[derive(Clone, Debug)]
pub struct ImportConfig {
    /// How registries are reached: `CISTA_ALLOW_HTTP`, `CISTA_MAX_CONNECTIONS`, `CISTA_CONNECT_TIMEOUT` and
    /// `CISTA_TRANSFER_TIMEOUT` (both in seconds), `CISTA_TRANSFER_RETRIES`, `SSL_CERT_FILE`, `SSL_CERT_DIR`, `https_proxy`,
    /// `http_proxy`, `all_proxy`, `no_proxy`.
    pub registry: Settings,
    /// Password for the user of a reference. `CISTA_PASSWORD`.
    pub password: Option<Secret>,
    /// Where logins are kept.
    pub credentials: CredentialPaths,
    /// How images are compressed. `CISTA_COMPRESSION`, zstd:1.
    pub compression: Compression,
    /// Time stamp of everything in an image, in seconds since 1970. `SOURCE_DATE_EPOCH`.
    pub time: Option<u32>,
    /// Where an archive that comes as a stream is kept while it is imported. `CISTA_TEMP_PATH`, the cache.
    pub temporary: Option<PathBuf>,
    /// The socket of the Docker daemon. `DOCKER_HOST`, which must be `unix://PATH`.
    pub docker_socket: Option<PathBuf>,
    /// Bytes of decoded layers that may wait to be merged. `CISTA_IMPORT_MEMORY`, 128 MiB.
    pub memory: Option<usize>,
    /// Bytes that every layer may expand to, however small it is; a larger one may expand to a hundred times its size as
    /// well. `CISTA_MAX_LAYER_SIZE`, 16 GiB.
    pub layer_size: Option<u64>,
}

impl ImportConfig {
    /// When an image counts as an attack.
    #[must_use]
    pub fn limits(&self) -> Limits {
        let defaults = Limits::default();
        Limits {
            expansion_floor: self.layer_size.unwrap_or(defaults.expansion_floor),
            ..defaults
        }
    }

    /// The settings of imports that sources give.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Value`].
    pub fn load(sources: &Sources) -> Result<Self, ConfigError> {
        let seconds = |setting, default| {
            let number = sources.number(setting)?;
            Ok::<_, ConfigError>(
                number.map_or(default, |number| Duration::from_secs(u64::from(number))),
            )
        };
        let all = sources.text(&settings::ALL_PROXY)?;
        let proxy = |setting| {
            let own = sources.text(setting)?;
            Ok::<_, ConfigError>(own.or_else(|| all.clone()).map(Secret::new))
        };
        let defaults = Settings::default();
        let registry = Settings {
            allow_http: sources.switch(&settings::ALLOW_HTTP)?.unwrap_or(false),
            ca_file: sources.path(&settings::CA_FILE),
            ca_directories: sources
                .path(&settings::CA_DIRECTORIES)
                .map(|directories| std::env::split_paths(&directories).collect())
                .unwrap_or_default(),
            https_proxy: proxy(&settings::HTTPS_PROXY)?,
            http_proxy: proxy(&settings::HTTP_PROXY)?,
            no_proxy: sources.text(&settings::NO_PROXY)?.unwrap_or_default(),
            connect_timeout: seconds(&settings::CONNECT_TIMEOUT, defaults.connect_timeout)?,
            idle_timeout: seconds(&settings::TRANSFER_TIMEOUT, defaults.idle_timeout)?,
            retry_delay: defaults.retry_delay,
            retries: sources
                .number(&settings::TRANSFER_RETRIES)?
                .unwrap_or(defaults.retries),
            max_connections: sources
                .number(&settings::MAX_CONNECTIONS)?
                .map_or(defaults.max_connections, |number| number as usize),
            credentials: defaults.credentials,
            pull: sources
                .parsed(&settings::PULL, settings::parse_pull)?
                .unwrap_or_default(),
            routes: Arc::new(registries::load(sources)?),
            policy: Arc::new(policy::load(sources)?),
            observer: Arc::new(Warnings),
        };
        let compression = sources.parsed(&settings::COMPRESSION, |text| text.parse().ok())?;
        let memory = sources.size(&settings::IMPORT_MEMORY)?;
        Ok(Self {
            memory: memory.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX)),
            temporary: sources
                .path(&settings::TEMP_PATH)
                .or_else(|| sources.directory(&settings::CACHE_PATH).ok()),
            docker_socket: sources.parsed(&settings::DOCKER_HOST, |text| {
                settings::parse_socket(text).map(PathBuf::from)
            })?,
            layer_size: sources.size(&settings::MAX_LAYER_SIZE)?,
            registry,
            password: sources.text(&settings::PASSWORD)?.map(Secret::new),
            compression: compression.unwrap_or_default(),
            time: sources.number(&settings::TIME)?,
            credentials: CredentialPaths::find(sources),
        })
    }

    /// The registry settings for a reference: with the logins that are stored, and the password that was given for its user.
    #[must_use]
    pub fn registry_for(&self, registry: &str, user: Option<&str>) -> Settings {
        let given = match (user, &self.password) {
            (Some(user), Some(password)) => Some(Credential::login(user, password.expose())),
            _ => None,
        };
        self.with_given(registry, given)
    }

    /// The registry settings for trying a login.
    #[must_use]
    pub fn settings_with(&self, registry: &str, credential: Credential) -> Settings {
        self.with_given(registry, Some(credential))
    }

    fn with_given(&self, registry: &str, given: Option<Credential>) -> Settings {
        let given = given.map(|credential| (registry.to_owned(), credential));
        Settings {
            credentials: Arc::new(StoredCredentials {
                paths: self.credentials.clone(),
                given,
            }),
            ..self.registry.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use cista_images::registry::Wanted;

    use super::*;

    fn load(variables: &[(&str, &str)]) -> Result<ImportConfig, ConfigError> {
        ImportConfig::load(&Sources::of(variables))
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
        let has = |settings: &Settings, server| {
            let wanted = Wanted {
                server,
                repository: "image",
                user: None,
                token_service: false,
            };
            settings.credentials.lookup(wanted).unwrap().is_some()
        };
        let settings = config.registry_for("host:5000", Some("me"));
        assert!(has(&settings, "host:5000"));
        assert!(!has(&settings, "other"));
        assert!(!format!("{config:?} {settings:?}").contains("hunter2"));
        assert!(!has(&config.registry_for("host:5000", None), "host:5000"));
    }
}
