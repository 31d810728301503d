//! Typed settings: where things are and how they are done.
//!
//! The only module that reads the process environment. What there is to set stands in one table, [`settings`]; where it may be
//! set in [`sources`]; how files look in [`file`]. [`Config`] is what most commands need, and [`import`] what only imports
//! need. A start pays for what it uses: three system calls where there are no files.
//!
//! A table of `cista.toml` with a structure of its own gets a file of its own here, and is read by [`Sources::structures`].

pub mod credentials;
pub mod enroot;
pub mod file;
pub mod import;
pub mod policy;
pub mod registries;
pub mod settings;
pub mod sources;
pub mod store;

use std::ffi::OsString;
use std::path::PathBuf;

use crate::container::namespaces::Namespaces;
use crate::ui::log::{Identity, LogFormat};
use file::FileError;
pub use sources::{Dialect, Sources};

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
    /// What `/dev` is. `CISTA_DEV`: `private` or `host`; called as enroot it is the host's unless `ENROOT_RESTRICT_DEV` says otherwise.
    pub dev: Dev,
    /// Where devices and drivers are looked for; None for `/`. `CISTA_HOST_ROOT`.
    pub host_root: Option<PathBuf>,
    /// Whether the root file system can be written to without `-w`. `CISTA_ROOTFS_WRITABLE`.
    pub writable: bool,
    /// Whether the user is root inside without `-r`. `CISTA_REMAP_ROOT`.
    pub remap_root: bool,
    /// Whether the user's home directory is mounted. `CISTA_MOUNT_HOME`.
    pub mount_home: bool,
    /// Whether a shell reads `/etc/profile` first. `CISTA_LOGIN_SHELL`.
    pub login_shell: bool,
    /// Whether PMI is passed on. `CISTA_SLURM_PMI`; called as enroot also by its hook for that.
    pub slurm_pmi: bool,
    /// Whether PyTorch is told of Slurm's tasks. `CISTA_SLURM_PYTORCH`.
    pub slurm_pytorch: bool,
    /// Whether what exists is replaced without `-f`. `CISTA_FORCE_OVERRIDE`.
    pub force: bool,
    /// Namespaces that every container has of its own. `CISTA_UNSHARE_PID`, `_NET`, `_IPC`, `_UTS`.
    pub namespaces: Namespaces,
    /// How messages look. `CISTA_LOG_FORMAT`: `text` or `json`.
    pub log_format: LogFormat,
    /// Where starts and imports are counted. `CISTA_METRICS_DIRECTORY`; None where they are not.
    pub metrics_directory: Option<PathBuf>,
    /// Where the settings come from, for those that only some commands need.
    pub sources: Sources,
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

/// What `/dev` of a container is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dev {
    /// One of its own, with the standard devices.
    Private,
    /// That of the host, as with enroot.
    Host,
}

/// A variable of the caller's environment, for what is passed into a container by name.
#[must_use]
pub fn host_variable(name: &std::ffi::OsStr) -> Option<OsString> {
    std::env::var_os(name)
}

/// The variables of the caller's environment whose names begin with a prefix.
#[must_use]
pub fn host_variables(prefix: &str) -> Vec<(OsString, OsString)> {
    std::env::vars_os()
        .filter(|(name, _)| name.as_encoded_bytes().starts_with(prefix.as_bytes()))
        .collect()
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
    /// A value cannot be used.
    #[error("`{name}` is `{value}`: expected {expected}")]
    Value {
        /// The variable, or the setting and where it is set.
        name: String,
        /// Its value.
        value: String,
        /// What it should be.
        expected: String,
    },
    /// A file of settings cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
}

impl Config {
    /// Reads the environment and the files.
    ///
    /// # Errors
    ///
    /// A file or a value that cannot be used.
    pub fn load(dialect: Dialect) -> Result<Self, ConfigError> {
        Self::from_sources(Sources::load(dialect)?)
    }

    /// Threads for compression and decompression: what `CISTA_MAX_PROCESSORS` says, otherwise the processors that this process may use.
    ///
    /// Counted when asked for: limits of control groups are in files, and a start has no time to read them.
    #[must_use]
    pub fn max_processors(&self) -> usize {
        self.processors()
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
    }

    /// Threads for parallel work, where a number is set.
    #[must_use]
    pub fn processors(&self) -> Option<usize> {
        self.processors
    }

    /// Variables for hooks besides those of the process: the paths and switches of enroot, which its hooks ask for. Without a value
    /// they are to be removed.
    #[must_use]
    pub fn for_hooks(&self) -> Vec<(OsString, Option<OsString>)> {
        let mut variables = self.sources.for_hooks();
        let mut path = |name: &str, path: &std::path::Path| {
            variables.push((name.into(), Some(path.as_os_str().to_owned())));
        };
        path("ENROOT_CACHE_PATH", &self.cache_path);
        path("ENROOT_DATA_PATH", &self.data_path);
        path("ENROOT_RUNTIME_PATH", &self.runtime_path);
        path("ENROOT_CONFIG_PATH", &self.config_path);
        variables
    }

    /// The settings that sources give.
    ///
    /// # Errors
    ///
    /// A value that cannot be used.
    pub fn from_sources(sources: Sources) -> Result<Self, ConfigError> {
        let mount = sources.parsed(&settings::MOUNT, |word| match word {
            "auto" => Some(MountMethod::Auto),
            "fuse" => Some(MountMethod::Fuse),
            "unpack" => Some(MountMethod::Unpack),
            _ => None,
        })?;
        let dev = sources.parsed(&settings::DEV, |word| match word {
            "private" => Some(Dev::Private),
            "host" => Some(Dev::Host),
            _ => None,
        })?;
        let usual_dev = match sources.dialect() {
            Dialect::Cista => Dev::Private,
            Dialect::Enroot => Dev::Host,
        };
        let is_on = |setting| Ok::<_, ConfigError>(sources.switch(setting)?.unwrap_or(false));
        let image_cache = sources.size(&settings::IMAGE_CACHE_SIZE)?;
        Ok(Self {
            cache_path: sources.directory(&settings::CACHE_PATH)?,
            data_path: sources.directory(&settings::DATA_PATH)?,
            runtime_path: sources.directory(&settings::RUNTIME_PATH)?,
            config_path: sources.directory(&settings::CONFIG_PATH)?,
            processors: sources
                .number(&settings::MAX_PROCESSORS)?
                .map(|number| number as usize),
            mount: mount.unwrap_or_default(),
            image_cache: image_cache.map_or(DEFAULT_IMAGE_CACHE, |bytes| {
                usize::try_from(bytes).unwrap_or(usize::MAX)
            }),
            scratch_size: sources.size(&settings::SCRATCH_SIZE)?,
            dev: dev.unwrap_or(usual_dev),
            host_root: sources.path(&settings::HOST_ROOT),
            writable: is_on(&settings::ROOTFS_WRITABLE)?,
            remap_root: is_on(&settings::REMAP_ROOT)?,
            force: is_on(&settings::FORCE)?,
            mount_home: is_on(&settings::MOUNT_HOME)?,
            login_shell: is_on(&settings::LOGIN_SHELL)?,
            slurm_pmi: is_on(&settings::SLURM_PMI)?,
            slurm_pytorch: sources.switch(&settings::SLURM_PYTORCH)?.unwrap_or(true),
            namespaces: Namespaces {
                pid: is_on(&settings::UNSHARE_PID)?,
                net: is_on(&settings::UNSHARE_NET)?,
                ipc: is_on(&settings::UNSHARE_IPC)?,
                uts: is_on(&settings::UNSHARE_UTS)?,
                cgroup: sources.dialect() == Dialect::Enroot,
            },
            log_format: sources
                .parsed(&settings::LOG_FORMAT, LogFormat::parse)?
                .unwrap_or_default(),
            metrics_directory: sources.path(&settings::METRICS_DIRECTORY),
            sources,
        })
    }
}

/// The format of messages as the environment has it, for errors that come before the settings are known.
#[must_use]
pub fn early_log_format() -> LogFormat {
    let word = std::env::var(settings::LOG_FORMAT.variables[0]);
    word.ok()
        .and_then(|word| LogFormat::parse(&word))
        .unwrap_or_default()
}

/// Who logs: a command, and the job and step that Slurm runs it for.
#[must_use]
pub fn log_identity(command: &'static str) -> Identity {
    let variable = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
    let job = variable("SLURM_JOB_ID");
    // Only tasks have the name of their node.
    let name = || {
        let system = rustix::system::uname();
        system.nodename().to_string_lossy().into_owned()
    };
    Identity {
        command,
        node: variable("SLURMD_NODENAME").or_else(|| job.is_some().then(name)),
        job,
        step: variable("SLURM_STEP_ID"),
        task: variable("SLURM_PROCID"),
    }
}

/// Bytes of decoded blocks that the server of an image keeps unless told otherwise.
const DEFAULT_IMAGE_CACHE: usize = 256 << 20;
