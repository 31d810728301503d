//! Where settings come from, and which of several wins.
//!
//! In this order: a variable of the environment, the user's `cista.toml`, the administrator's `conf.d/*.toml` (of several
//! the last by name), the administrator's `cista.toml`, the default. Called as `enroot`, the names of enroot are asked as
//! well: its variables after ours, its files before our files.
//!
//! Without files this costs a start three system calls.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use super::ConfigError;
use super::enroot::{self, Enroot};
use super::file::{FileError, Place, TomlFile};
use super::settings::{self, Kind, Setting};
use crate::sys;

/// Where the administrator's files are, unless `CISTA_SYSCONF_PATH` says otherwise.
const SYSTEM_DIRECTORY: &str = "/etc/cista";
/// The file of a directory of settings.
const FILE: &str = "cista.toml";
/// Further files of the administrator.
const FURTHER_FILES: &str = "conf.d";

/// Whose names are spoken: it depends on the name that the program is called by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dialect {
    /// Our own.
    #[default]
    Cista,
    /// enroot's.
    Enroot,
}

impl Dialect {
    /// The dialect of a program's name.
    #[must_use]
    pub fn of_program(name: Option<&OsStr>) -> Self {
        match name.map(Path::new).and_then(Path::file_name) {
            Some(name) if name == Self::Enroot.name() => Self::Enroot,
            _ => Self::Cista,
        }
    }

    /// Its name, which is also that of its directories.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cista => "cista",
            Self::Enroot => "enroot",
        }
    }
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A variable of the environment.
    Variable(&'static str),
    /// A file.
    File(Place),
    /// Nobody set it.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Variable(name) => formatter.write_str(name),
            Self::File(place) => write!(formatter, "{}:{}", place.path.display(), place.line),
            Self::Default => formatter.write_str("default"),
        }
    }
}

/// A value that somebody set.
#[derive(Clone, Debug)]
pub struct Found {
    /// What it was set to.
    pub value: OsString,
    /// By whom.
    pub origin: Origin,
}

/// All that settings come from.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The environment; None for that of the process.
    environment: Option<Vec<(OsString, OsString)>>,
    /// Settings of a script, as variables.
    directives: Vec<(OsString, OsString)>,
    /// Files of settings; the first one that has a setting wins.
    files: Vec<TomlFile>,
    /// The files of enroot, when called by that name.
    enroot: Option<Enroot>,
    /// The administrator's directory, where there is one.
    pub system_directory: Option<PathBuf>,
    /// The user's directory, where there is one.
    pub user_directory: Option<PathBuf>,
}

impl Sources {
    /// Looks for the files and reads them.
    ///
    /// # Errors
    ///
    /// A file that cannot be read or is not understood.
    pub fn load(dialect: Dialect) -> Result<Self, ConfigError> {
        Self::default().with_files()?.speaking(dialect)
    }

    /// Adds the names and files of a dialect.
    ///
    /// # Errors
    ///
    /// A file that cannot be read.
    pub fn speaking(mut self, dialect: Dialect) -> Result<Self, ConfigError> {
        self.enroot = match dialect {
            Dialect::Cista => None,
            Dialect::Enroot => {
                let files = Enroot::load(&|name| self.variable(name))?;
                // Hooks and mounts are where enroot has them.
                self.system_directory =
                    Some(files.directory.clone()).filter(|directory| directory.is_dir());
                Some(files)
            }
        };
        if self.enroot.is_some() {
            self.user_directory = self
                .directory(&settings::CONFIG_PATH)
                .ok()
                .filter(|directory| directory.is_dir());
        }
        Ok(self)
    }

    /// Whose names are spoken.
    #[must_use]
    pub fn dialect(&self) -> Dialect {
        match self.enroot {
            None => Dialect::Cista,
            Some(_) => Dialect::Enroot,
        }
    }

    /// The files of enroot, when called by that name.
    #[must_use]
    pub fn enroot(&self) -> Option<&Enroot> {
        self.enroot.as_ref()
    }

    /// An environment of one's own and no files.
    #[must_use]
    pub fn of(variables: &[(&str, &str)]) -> Self {
        let variables = variables
            .iter()
            .map(|(name, value)| (OsString::from(name), OsString::from(value)));
        Self {
            environment: Some(variables.collect()),
            ..Self::default()
        }
    }

    /// Adds the files that the environment leads to.
    ///
    /// # Errors
    ///
    /// A file that cannot be read or is not understood.
    pub fn with_files(mut self) -> Result<Self, ConfigError> {
        let system = self
            .variable("CISTA_SYSCONF_PATH")
            .map_or_else(|| PathBuf::from(SYSTEM_DIRECTORY), PathBuf::from);
        let mut files = Vec::new();
        // Most machines have no such directory: then there is nothing in it to ask for.
        if system.is_dir() {
            self.read(&system.join(FILE), true, &mut files)?;
            for path in names(&system.join(FURTHER_FILES), "toml")? {
                self.read(&path, true, &mut files)?;
            }
            self.system_directory = Some(system);
        }
        files.reverse();
        self.files = files;
        // The administrator may say where the user's directory is. A user without a home has none, which is an error only for
        // those who need it.
        if let Ok(user) = self.directory(&settings::CONFIG_PATH)
            && user.is_dir()
        {
            let mut own = Vec::new();
            self.read(&user.join(FILE), false, &mut own)?;
            self.files.splice(0..0, own);
            self.user_directory = Some(user);
        }
        Ok(self)
    }

    fn read(
        &self,
        path: &Path,
        is_system: bool,
        files: &mut Vec<TomlFile>,
    ) -> Result<(), ConfigError> {
        files.extend(TomlFile::read(path, is_system, &|name| {
            self.variable(name).or_else(|| user_number(name))
        })?);
        Ok(())
    }

    /// What the files of enroot set, and what the environment sets to no, which is the same as not set.
    pub(super) fn for_hooks(&self) -> Vec<(OsString, Option<OsString>)> {
        let mut variables = Vec::new();
        if let Some(files) = &self.enroot {
            let variable = |name: &str| self.variable_of_enroot(name);
            for name in files.names() {
                if self.variable(name).is_none() {
                    let found = files.value(name, &variable).map(|found| found.value);
                    let value = found.filter(|value| !enroot::says_no(value));
                    variables.push((name.into(), value));
                }
            }
            let directory = files.directory.as_os_str().to_owned();
            variables.push(("ENROOT_SYSCONF_PATH".into(), Some(directory)));
            if self.variable("ENROOT_LIBRARY_PATH").is_none()
                && !files.names().any(|name| name == "ENROOT_LIBRARY_PATH")
            {
                variables.push(("ENROOT_LIBRARY_PATH".into(), Some("/usr/lib/enroot".into())));
            }
        }
        let set_to_no = self.variables().into_iter().filter(|(name, value)| {
            name.as_encoded_bytes().starts_with(b"ENROOT_") && enroot::says_no(value)
        });
        variables.extend(set_to_no.map(|(name, _)| (name, None)));
        for (name, value) in &self.directives {
            variables.push((name.clone(), Some(value.clone())));
        }
        variables
    }

    /// The environment.
    fn variables(&self) -> Vec<(OsString, OsString)> {
        match &self.environment {
            None => std::env::vars_os().collect(),
            Some(variables) => variables.clone(),
        }
    }

    /// The user's home directory: `HOME`, which services and jobs may lack, or what the host's database of users says.
    #[must_use]
    pub fn home(&self) -> Option<PathBuf> {
        if let Some(home) = self.variable("HOME").filter(|home| !home.is_empty()) {
            return Some(home.into());
        }
        self.environment.is_none().then(|| {
            let user = sys::accounts::user(rustix::process::geteuid().as_raw())?;
            let home = PathBuf::from(OsString::from_vec(user.home));
            home.is_absolute().then_some(home)
        })?
    }

    /// Adds settings that win over all others: the directives of a script, with their lines. Names of enroot are understood whatever the program
    /// is called.
    #[must_use]
    pub fn with_directives(mut self, directives: &[(String, Vec<u8>)]) -> Self {
        for (name, word) in directives {
            let value = enroot::expand(word, &|name| self.variable_of_enroot(name));
            let ours = settings::ALL
                .iter()
                .find(|setting| setting.enroot == Some(name.as_str()));
            if let Some(setting) = ours
                && let Some(variable) = setting.variables.first()
                && let Some(value) = enroot::translate(setting, &value)
            {
                self.directives.push(((*variable).into(), value));
            }
            if !enroot::says_no(&value) {
                self.directives.push((name.into(), value));
            }
        }
        self
    }

    /// A variable of the environment that is not empty.
    #[must_use]
    pub fn variable(&self, name: &str) -> Option<OsString> {
        if let Some((_, value)) = self
            .directives
            .iter()
            .rev()
            .find(|(known, _)| known == name)
        {
            return Some(value.clone());
        }
        let value = match &self.environment {
            None => std::env::var_os(name),
            Some(variables) => variables
                .iter()
                .find(|(known, _)| known == name)
                .map(|(_, value)| value.clone()),
        };
        value.filter(|value| !value.is_empty())
    }

    /// What a setting was set to; None where nobody set it.
    #[must_use]
    pub fn find(&self, setting: &'static Setting) -> Option<Found> {
        let variable = setting.variables.iter().find_map(|name| {
            Some(Found {
                value: self.variable(name)?,
                origin: Origin::Variable(name),
            })
        });
        variable
            .or_else(|| self.find_for_enroot(setting))
            .or_else(|| {
                self.files
                    .iter()
                    .flat_map(|file| &file.values)
                    .find(|value| value.setting == setting)
                    .map(|found| Found {
                        value: found.value.clone(),
                        origin: Origin::File(found.place.clone()),
                    })
            })
    }

    fn find_for_enroot(&self, setting: &'static Setting) -> Option<Found> {
        let (files, name) = (self.enroot.as_ref()?, setting.enroot?);
        let variable = |name: &str| self.variable_of_enroot(name);
        let (value, origin) = match self.variable(name) {
            Some(value) => (value, Origin::Variable(name)),
            None => {
                let found = files.value(name, &variable)?;
                (found.value, Origin::File(found.place))
            }
        };
        Some(Found {
            value: enroot::translate(setting, &value)?,
            origin,
        })
    }

    /// A variable, or where it is not set what enroot sets it to before it reads its files.
    fn variable_of_enroot(&self, name: &str) -> Option<OsString> {
        self.variable(name)
            .or_else(|| user_number(name))
            .or_else(|| {
                let below_home = |path: &str| Some(self.home()?.join(path).into_os_string());
                match name {
                    "XDG_DATA_HOME" => below_home(".local/share"),
                    "XDG_CONFIG_HOME" => below_home(".config"),
                    "XDG_CACHE_HOME" => below_home(".cache"),
                    "XDG_RUNTIME_DIR" => Some("/run".into()),
                    _ => None,
                }
            })
    }

    /// A setting, as `parse` reads it.
    ///
    /// # Errors
    ///
    /// A value that `parse` does not take.
    pub fn parsed<T>(
        &self,
        setting: &'static Setting,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(found) = self.find(setting) else {
            return Ok(None);
        };
        match found.value.to_str().and_then(parse) {
            Some(value) => Ok(Some(value)),
            None => Err(ConfigError::Value {
                name: match found.origin {
                    Origin::Variable(name) => name.to_owned(),
                    origin => format!("{}.{} ({origin})", setting.section, setting.key),
                },
                value: match setting.kind {
                    Kind::Secret => "…".to_owned(),
                    _ => found.value.to_string_lossy().into_owned(),
                },
                expected: setting.kind.expected(),
            }),
        }
    }

    /// A text.
    ///
    /// # Errors
    ///
    /// A value that is not UTF-8.
    pub fn text(&self, setting: &'static Setting) -> Result<Option<String>, ConfigError> {
        self.parsed(setting, |text| Some(text.to_owned()))
    }

    /// Yes or no.
    ///
    /// # Errors
    ///
    /// A value that is neither.
    pub fn switch(&self, setting: &'static Setting) -> Result<Option<bool>, ConfigError> {
        self.parsed(setting, settings::parse_switch)
    }

    /// A number or a time in seconds, within the bounds of the table.
    ///
    /// # Errors
    ///
    /// A value that is no such number.
    pub fn number(&self, setting: &'static Setting) -> Result<Option<u32>, ConfigError> {
        self.parsed(setting, |text| match setting.kind {
            Kind::Number { from, to } => settings::parse_number(text, from, to),
            _ => settings::parse_seconds(text),
        })
    }

    /// A number of bytes.
    ///
    /// # Errors
    ///
    /// A value that is no such number.
    pub fn size(&self, setting: &'static Setting) -> Result<Option<u64>, ConfigError> {
        self.parsed(setting, settings::parse_size)
    }

    /// A path that was set.
    #[must_use]
    pub fn path(&self, setting: &'static Setting) -> Option<PathBuf> {
        self.find(setting).map(|found| PathBuf::from(found.value))
    }

    /// A directory of the user: the one that was set, or where the XDG base directory specification puts it.
    ///
    /// # Errors
    ///
    /// Neither it nor the home directory is known.
    pub fn directory(&self, setting: &'static Setting) -> Result<PathBuf, ConfigError> {
        if let Some(path) = self.path(setting) {
            return Ok(path);
        }
        // The specification: a relative path in an XDG variable is invalid and ignored.
        let absolute = |name| {
            self.variable(name)
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
        };
        match setting.kind {
            Kind::Directory { xdg, below_home } => {
                let base = absolute(xdg).or_else(|| self.home().map(|home| home.join(below_home)));
                base.map(|base| base.join(self.dialect().name()))
                    .ok_or_else(|| ConfigError::NoHome {
                        what: setting.key,
                        variable: setting.variables.first().copied().unwrap_or_default(),
                    })
            }
            _ => {
                let name = self.dialect().name();
                Ok(absolute("XDG_RUNTIME_DIR").map_or_else(
                    || {
                        let uid = rustix::process::getuid().as_raw();
                        PathBuf::from(format!("/tmp/{name}-{uid}"))
                    },
                    |base| base.join(name),
                ))
            }
        }
    }

    /// The tables of a name that have a structure of their own, those that win first. See [`super::file::STRUCTURED`].
    ///
    /// # Errors
    ///
    /// A table that is not understood.
    pub fn structures<T: DeserializeOwned>(
        &self,
        name: &str,
    ) -> Result<Vec<(&TomlFile, T)>, FileError> {
        let tables = self
            .files
            .iter()
            .map(|file| Ok(file.structure(name)?.map(|table| (file, table))));
        tables.filter_map(Result::transpose).collect()
    }
}

/// `UID`, which bash knows and few environments have: the number of the user.
fn user_number(name: &str) -> Option<OsString> {
    (name == "UID").then(|| rustix::process::getuid().as_raw().to_string().into())
}

/// The files of a directory with an extension, in the order of their names. None where there is no such directory.
///
/// # Errors
///
/// A directory that is there and cannot be read.
pub fn names(directory: &Path, extension: &str) -> Result<Vec<PathBuf>, FileError> {
    let failed = |source| FileError::Read {
        path: directory.to_owned(),
        source,
    };
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        // A file that is hidden is an editor's.
        let is_hidden = path
            .file_name()
            .is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        if path.extension() == Some(OsStr::new(extension)) && !is_hidden {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_nearest_wins() {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path();
        let at = |name: &str| root.join(name).display().to_string();
        fs::create_dir_all(root.join("etc/conf.d")).unwrap();
        fs::create_dir_all(root.join("user")).unwrap();
        let write = |name: &str, text: &str| fs::write(root.join(name), text).unwrap();
        write(
            "etc/cista.toml",
            "[limits]\nmax_processors = 1\nscratch_size = \"1M\"\n[import]\ncompression = \"xz\"\n[start]\nmount = \"fuse\"\n",
        );
        write(
            "etc/conf.d/10.toml",
            "[limits]\nmax_processors = 2\nscratch_size = \"2M\"\n",
        );
        write("etc/conf.d/20.toml", "[limits]\nmax_processors = 3\n");
        write("etc/conf.d/30.txt", "not read");
        write("etc/conf.d/.x.toml", "not read");
        write(
            "user/cista.toml",
            "[limits]\nmax_processors = 4\n[import]\ncompression = \"lz4\"\n",
        );
        let variables = [
            ("CISTA_SYSCONF_PATH", at("etc")),
            ("CISTA_CONFIG_PATH", at("user")),
            ("CISTA_MAX_PROCESSORS", "5".to_owned()),
        ];
        let variables: Vec<_> = variables
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        let sources = Sources::of(&variables).with_files().unwrap();
        for (setting, value, origin) in [
            (
                &settings::MAX_PROCESSORS,
                "5",
                "CISTA_MAX_PROCESSORS".to_owned(),
            ),
            (&settings::COMPRESSION, "lz4", at("user/cista.toml:4")),
            (&settings::SCRATCH_SIZE, "2M", at("etc/conf.d/10.toml:3")),
            (&settings::MOUNT, "fuse", at("etc/cista.toml:7")),
        ] {
            let found = sources.find(setting).unwrap();
            assert_eq!(
                (found.value.to_str().unwrap(), found.origin.to_string()),
                (value, origin)
            );
        }
        let sources = Sources::of(&variables[..2]).with_files().unwrap();
        assert_eq!(sources.number(&settings::MAX_PROCESSORS).unwrap(), Some(4));
    }

    #[test]
    fn the_names_of_enroot_count_when_called_so() {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path();
        fs::create_dir(root.join("enroot.conf.d")).unwrap();
        let conf = "ENROOT_DATA_PATH ${XDG_RUNTIME_DIR}/d\nENROOT_REMAP_ROOT yes\nENROOT_MAX_PROCESSORS 3\n";
        fs::write(root.join("enroot.conf"), conf).unwrap();
        fs::write(
            root.join("enroot.conf.d/x.conf"),
            "ENROOT_MAX_CONNECTIONS=7\n",
        )
        .unwrap();
        let directory = root.display().to_string();
        let variables = [
            ("HOME", "/h"),
            ("ENROOT_SYSCONF_PATH", directory.as_str()),
            ("ENROOT_REMAP_ROOT", "No"),
            ("CISTA_MAX_PROCESSORS", "9"),
            ("ENROOT_ROOTFS_WRITABLE", "y"),
        ];
        let sources = Sources::of(&variables).speaking(Dialect::Enroot).unwrap();
        let directory = |setting| sources.directory(setting).unwrap();
        assert_eq!(directory(&settings::DATA_PATH), Path::new("/run/d"));
        assert_eq!(
            directory(&settings::CACHE_PATH),
            Path::new("/h/.cache/enroot")
        );
        assert_eq!(sources.switch(&settings::REMAP_ROOT).unwrap(), Some(false));
        assert_eq!(
            sources.switch(&settings::ROOTFS_WRITABLE).unwrap(),
            Some(true)
        );
        assert_eq!(sources.number(&settings::MAX_PROCESSORS).unwrap(), Some(9));
        assert_eq!(sources.number(&settings::MAX_CONNECTIONS).unwrap(), Some(7));
        let sources = Sources::of(&variables);
        assert_eq!(sources.switch(&settings::ROOTFS_WRITABLE).unwrap(), None);
    }

    #[test]
    fn the_program_may_be_called_enroot() {
        for (name, dialect) in [
            (Some("/usr/bin/enroot"), Dialect::Enroot),
            (Some("enroot"), Dialect::Enroot),
            (Some("cista"), Dialect::Cista),
            (Some("/x/enroot/cista"), Dialect::Cista),
            (None, Dialect::Cista),
        ] {
            assert_eq!(Dialect::of_program(name.map(OsStr::new)), dialect);
        }
    }

    #[test]
    fn directories_follow_the_specification() {
        for (variables, expected) in [
            (&[("CISTA_DATA_PATH", "/d")][..], Some("/d")),
            (&[("XDG_DATA_HOME", "/x"), ("HOME", "/h")], Some("/x/cista")),
            (
                &[("XDG_DATA_HOME", "x"), ("HOME", "/h")],
                Some("/h/.local/share/cista"),
            ),
            (&[], None),
        ] {
            let found = Sources::of(variables).directory(&settings::DATA_PATH);
            assert_eq!(
                found.ok().as_deref(),
                expected.map(Path::new),
                "{variables:?}"
            );
        }
    }
}
