//! Typed settings: where things are and how they are done.
//!
//! The only module that reads the process environment. Directories follow the XDG base directory specification; each
//! can be set by a `CISTA_…` variable.

use std::ffi::OsString;
use std::path::PathBuf;

/// The effective settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// The store: blobs and images by digest. `CISTA_CACHE_PATH`, `$XDG_CACHE_HOME/cista`.
    pub cache_path: PathBuf,
    /// Containers by name. `CISTA_DATA_PATH`, `$XDG_DATA_HOME/cista`.
    pub data_path: PathBuf,
    /// State of running containers. `CISTA_RUNTIME_PATH`, `$XDG_RUNTIME_DIR/cista`, `/tmp/cista-UID`.
    pub runtime_path: PathBuf,
    /// Configuration of the user. `CISTA_CONFIG_PATH`, `$XDG_CONFIG_HOME/cista`.
    pub config_path: PathBuf,
    /// Threads for compression and decompression. `CISTA_MAX_PROCESSORS`, the processors that this process may use.
    pub max_processors: usize,
}

/// A setting that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Neither the variable nor HOME tells where a directory is.
    #[error("cannot tell where the {what} directory is: neither `{variable}` nor `HOME` is set")]
    NoHome {
        /// What the directory is for.
        what: &'static str,
        /// The variable that names it.
        variable: &'static str,
    },
    /// A variable's value cannot be used.
    #[error("`{variable}` is `{value}`: {expected}")]
    Value {
        /// The variable.
        variable: &'static str,
        /// Its value.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
}

impl Config {
    /// Reads the environment.
    pub fn load() -> Result<Self, ConfigError> {
        Self::from_variables(|name| std::env::var_os(name).filter(|value| !value.is_empty()))
    }

    fn from_variables(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, ConfigError> {
        let directory = |what, own: &'static str, xdg: &str, below_home: &str| {
            if let Some(path) = variable(own) {
                return Ok(PathBuf::from(path));
            }
            // The specification: a relative path in an XDG variable is invalid and ignored.
            if let Some(base) = variable(xdg)
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
            {
                return Ok(base.join("cista"));
            }
            variable("HOME")
                .map(|home| PathBuf::from(home).join(below_home).join("cista"))
                .ok_or(ConfigError::NoHome {
                    what,
                    variable: own,
                })
        };
        let runtime_path = variable("CISTA_RUNTIME_PATH").map_or_else(
            || match variable("XDG_RUNTIME_DIR")
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
            {
                Some(base) => base.join("cista"),
                None => PathBuf::from(format!("/tmp/cista-{}", rustix::process::getuid().as_raw())),
            },
            PathBuf::from,
        );
        let max_processors = match variable("CISTA_MAX_PROCESSORS") {
            None => std::thread::available_parallelism().map_or(1, usize::from),
            Some(value) => value
                .to_str()
                .and_then(|text| text.parse().ok())
                .filter(|count| (1..=1024).contains(count))
                .ok_or_else(|| ConfigError::Value {
                    variable: "CISTA_MAX_PROCESSORS",
                    value: value.to_string_lossy().into_owned(),
                    expected: "expected a number from 1 to 1024",
                })?,
        };
        Ok(Self {
            cache_path: directory("cache", "CISTA_CACHE_PATH", "XDG_CACHE_HOME", ".cache")?,
            data_path: directory("data", "CISTA_DATA_PATH", "XDG_DATA_HOME", ".local/share")?,
            runtime_path,
            config_path: directory(
                "configuration",
                "CISTA_CONFIG_PATH",
                "XDG_CONFIG_HOME",
                ".config",
            )?,
            max_processors,
        })
    }
}
