//! Typed settings: where things are and how they are done.
//!
//! The only module that reads the process environment. Directories follow the XDG base directory specification; each
//! can be set by a `CISTA_…` variable.

pub mod import;

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
    /// `CISTA_MAX_PROCESSORS`; see [`Self::max_processors`].
    processors: Option<usize>,
    /// How an image becomes a root file system. `CISTA_MOUNT`: `auto`, `fuse` or `unpack`.
    pub mount: MountMethod,
    /// Bytes of decoded blocks that the server of an image keeps in memory. `CISTA_IMAGE_CACHE_SIZE`, 256 MiB.
    pub image_cache: usize,
    /// Bytes that a container may keep in memory as files: `/tmp` and, where they do not persist, changes of its root. `CISTA_SCRATCH_SIZE`; None
    /// for the kernel's default, half of the memory.
    pub scratch_size: Option<u64>,
}

/// How an image becomes a root file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MountMethod {
    /// The best that works here.
    #[default]
    Auto,
    /// Our FUSE server, or an error.
    Fuse,
    /// An unpacked copy in the cache.
    Unpack,
}

/// A variable of the caller's environment, for what is passed into a container by name.
#[must_use]
pub fn host_variable(name: &std::ffi::OsStr) -> Option<OsString> {
    std::env::var_os(name)
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

    /// Threads for compression and decompression: what `CISTA_MAX_PROCESSORS` says, otherwise the processors that this process may use.
    ///
    /// Counted when asked for: limits of control groups are in files, and a start has no time to read them.
    #[must_use]
    pub fn max_processors(&self) -> usize {
        self.processors
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
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
        let processors = match variable("CISTA_MAX_PROCESSORS") {
            None => None,
            Some(value) => Some(
                value
                    .to_str()
                    .and_then(|text| text.parse().ok())
                    .filter(|count| (1..=1024).contains(count))
                    .ok_or_else(|| ConfigError::Value {
                        variable: "CISTA_MAX_PROCESSORS",
                        value: value.to_string_lossy().into_owned(),
                        expected: "expected a number from 1 to 1024",
                    })?,
            ),
        };
        let mount = match variable("CISTA_MOUNT") {
            None => MountMethod::Auto,
            Some(value) => match value.to_str() {
                Some("auto") => MountMethod::Auto,
                Some("fuse") => MountMethod::Fuse,
                Some("unpack") => MountMethod::Unpack,
                _ => {
                    return Err(ConfigError::Value {
                        variable: "CISTA_MOUNT",
                        value: value.to_string_lossy().into_owned(),
                        expected: "expected `auto`, `fuse` or `unpack`",
                    });
                }
            },
        };
        let size = |name: &'static str| {
            match variable(name) {
            None => Ok(None),
            Some(value) => value
                .to_str()
                .and_then(parse_size)
                .map(Some)
                .ok_or_else(|| ConfigError::Value {
                    variable: name,
                    value: value.to_string_lossy().into_owned(),
                    expected: "expected a number of bytes, perhaps followed by `K`, `M`, `G` or `T`",
                }),
        }
        };
        let image_cache = size("CISTA_IMAGE_CACHE_SIZE")?.map_or(DEFAULT_IMAGE_CACHE, |bytes| {
            usize::try_from(bytes).unwrap_or(usize::MAX)
        });
        let scratch_size = size("CISTA_SCRATCH_SIZE")?;
        Ok(Self {
            mount,
            image_cache,
            scratch_size,
            cache_path: directory("cache", "CISTA_CACHE_PATH", "XDG_CACHE_HOME", ".cache")?,
            data_path: directory("data", "CISTA_DATA_PATH", "XDG_DATA_HOME", ".local/share")?,
            runtime_path,
            config_path: directory(
                "configuration",
                "CISTA_CONFIG_PATH",
                "XDG_CONFIG_HOME",
                ".config",
            )?,
            processors,
        })
    }
}

/// Bytes of decoded blocks that the server of an image keeps unless told otherwise.
const DEFAULT_IMAGE_CACHE: usize = 256 << 20;

/// A number of bytes with an optional binary unit, such as `256M`.
fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let (digits, shift) = match text.char_indices().last()? {
        (at, 'k' | 'K') => (&text[..at], 10),
        (at, 'm' | 'M') => (&text[..at], 20),
        (at, 'g' | 'G') => (&text[..at], 30),
        (at, 't' | 'T') => (&text[..at], 40),
        _ => (text, 0),
    };
    let number: u64 = digits.parse().ok()?;
    number.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", Some(0)),
            ("4096", Some(4096)),
            ("256M", Some(256 << 20)),
            (" 1g ", Some(1 << 30)),
            ("", None),
            ("M", None),
            ("1.5G", None),
            ("99999999T", None),
            ("1é", None),
        ] {
            assert_eq!(parse_size(text), bytes, "{text}");
        }
    }
}
