//! What an image says about how to run it.
//!
//! Our images carry the OCI config in `/.cista/image.json`, so that a start needs no shell. Images that enroot or mksquashfs made have, at
//! best, `/etc/rc`, a script that is given the command line, and `/etc/environment`. The script also wins where someone changed it in a named
//! container, or filled the `/etc/rc.local` that it sources: that is how enroot's users adapt containers.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

use cista_images::import::record::{self, Record};
use rustix::fs::FileType;

use super::environment::Environment;
use super::view::View;

/// The command script of enroot's images.
const SCRIPT: &str = "/etc/rc";
/// What the command script sources.
const LOCAL_SCRIPT: &str = "/etc/rc.local";
/// The shell that runs the command script.
const SHELL: &str = "/bin/sh";
/// The environment of enroot's images.
const ENVIRONMENT: &str = "/etc/environment";
/// Longest `/etc/environment` that is read, in bytes.
const MAX_ENVIRONMENT: u64 = 1 << 20;

/// How to run an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// What is run.
    pub start: Start,
    /// The image's variables.
    pub environment: Environment,
    /// Where the program starts; None for the user's home directory.
    pub working_directory: Option<PathBuf>,
    /// Directories that stay writable when the root is not.
    pub volumes: Vec<PathBuf>,
}

/// What is run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// A shell, or the command that is given.
    #[default]
    Command,
    /// The image's entrypoint with the command that is given, or with the image's own.
    Config {
        /// The program with its first arguments.
        entrypoint: Vec<OsString>,
        /// Its further arguments when no command is given.
        command: Vec<OsString>,
    },
    /// The command script with the command that is given.
    Script,
}

/// Why the facts cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum FactsError {
    /// A file of the image cannot be read.
    #[error("cannot read `{path}` of the image")]
    Read {
        /// Path in the image.
        path: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// The record is not understood.
    #[error("the image does not say how to run it")]
    Record(#[from] record::RecordError),
}

/// Reads what a root file system says; `adapted` where its command script or environment is not the image's own any more.
///
/// # Errors
///
/// A record that cannot be read or understood.
pub fn read(
    view: View<'_>,
    adapted: bool,
    host: impl Fn(&OsStr) -> Option<OsString>,
) -> Result<Facts, FactsError> {
    let record = view
        .read(&Path::new("/").join(record::PATH), record::MAX_SIZE as u64)
        .map_err(|source| FactsError::Read {
            path: record::PATH,
            source,
        })?;
    let Some(record) = record else {
        return from_files(view, host);
    };
    let facts = from_record(&record)?;
    if (adapted || has_local_script(view)) && view.is_executable(Path::new(SHELL)) {
        let files = from_files(view, host)?;
        if files.start == Start::Script {
            return Ok(Facts {
                volumes: facts.volumes,
                ..files
            });
        }
    }
    Ok(facts)
}

/// What the files say that enroot puts into its images.
fn from_files(
    view: View<'_>,
    host: impl Fn(&OsStr) -> Option<OsString>,
) -> Result<Facts, FactsError> {
    let mut facts = Facts::default();
    let environment = view
        .read(Path::new(ENVIRONMENT), MAX_ENVIRONMENT)
        .map_err(|source| FactsError::Read {
            path: ENVIRONMENT,
            source,
        })?;
    if let Some(file) = environment {
        facts.environment.set_lines(&file, host);
    }
    if view.file_type(Path::new(SCRIPT)) == Some(FileType::RegularFile) {
        facts.start = Start::Script;
    }
    Ok(facts)
}

/// Whether there is more in the local script than comments, which enroot puts into every image.
fn has_local_script(view: View<'_>) -> bool {
    let path = Path::new(LOCAL_SCRIPT);
    view.file_size(path).is_some_and(|size| size > 0)
        && view
            .read(path, MAX_ENVIRONMENT)
            // Too long to be read is long enough to matter.
            .map_or(true, |content| {
                content.is_some_and(|content| says_something(&content))
            })
}

fn says_something(script: &[u8]) -> bool {
    script
        .split(|&byte| byte == b'\n')
        .map(<[u8]>::trim_ascii)
        .any(|line| !line.is_empty() && !line.starts_with(b"#"))
}

fn from_record(json: &[u8]) -> Result<Facts, FactsError> {
    let config = Record::parse(json)?.image_config()?.config;
    let mut environment = Environment::default();
    for assignment in &config.env {
        environment.set_assignment(OsStr::new(assignment));
    }
    let strings = |list: Vec<String>| list.into_iter().map(OsString::from).collect::<Vec<_>>();
    let start = if config.entrypoint.is_empty() && config.cmd.is_empty() {
        Start::Command
    } else {
        Start::Config {
            entrypoint: strings(config.entrypoint),
            command: strings(config.cmd),
        }
    };
    Ok(Facts {
        start,
        environment,
        working_directory: Some(if config.working_dir.is_empty() {
            PathBuf::from("/")
        } else {
            Path::new("/").join(config.working_dir)
        }),
        volumes: config.volumes.into_keys().map(PathBuf::from).collect(),
    })
}

impl Start {
    /// The whole command line, given the command of the user and the user's shell.
    #[must_use]
    pub fn command_line(&self, command: &[OsString], shell: &OsStr) -> Vec<OsString> {
        match self {
            Self::Command if command.is_empty() => vec![shell.to_owned()],
            Self::Command => command.to_vec(),
            Self::Config {
                entrypoint,
                command: own,
            } => {
                let command = if command.is_empty() { own } else { command };
                [entrypoint, command].concat()
            }
            Self::Script => {
                let mut line = vec![OsString::from(SHELL), OsString::from(SCRIPT)];
                line.extend_from_slice(command);
                line
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::rootfs::Rootfs;
    use rustix::fs::{Mode, OFlags};

    fn record(config: &str) -> Vec<u8> {
        format!(r#"{{"format":1,"config":{{"config":{config}}}}}"#).into_bytes()
    }

    #[test]
    fn the_command_replaces_the_images_command_and_not_its_entrypoint() {
        let words = |line: &str| {
            line.split(' ')
                .filter(|word| !word.is_empty())
                .map(OsString::from)
                .collect::<Vec<_>>()
        };
        for (config, given, expected) in [
            (r#"{"Entrypoint":["/e","x"],"Cmd":["c"]}"#, "", "/e x c"),
            (
                r#"{"Entrypoint":["/e","x"],"Cmd":["c"]}"#,
                "d e",
                "/e x d e",
            ),
            (r#"{"Cmd":["c"]}"#, "", "c"),
            (r#"{"Cmd":["c"]}"#, "d", "d"),
            ("{}", "", "/bin/zsh"),
            ("null", "d", "d"),
        ] {
            let facts = from_record(&record(config)).unwrap();
            let line = facts
                .start
                .command_line(&words(given), OsStr::new("/bin/zsh"));
            assert_eq!(line, words(expected), "{config} {given}");
        }
    }

    #[test]
    fn the_working_directory_is_absolute() {
        for (config, expected) in [
            (r#"{"WorkingDir":"/w"}"#, "/w"),
            (r#"{"WorkingDir":"w/x"}"#, "/w/x"),
            (r#"{"WorkingDir":""}"#, "/"),
            ("{}", "/"),
        ] {
            let facts = from_record(&record(config)).unwrap();
            assert_eq!(facts.working_directory.unwrap(), Path::new(expected));
        }
    }

    #[test]
    fn scripts_win_where_someone_changed_them() {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path();
        let rootfs = Rootfs::new(rustix::fs::open(root, OFlags::PATH, Mode::empty()).unwrap());
        let start = |changed| {
            read(View::Mounted(&rootfs), changed, |_| None)
                .unwrap()
                .start
        };
        assert_eq!(start(false), Start::Command);
        for directory in ["etc", "bin", ".cista"] {
            std::fs::create_dir(root.join(directory)).unwrap();
        }
        std::fs::write(root.join("etc/rc"), "exec \"$@\"").unwrap();
        assert_eq!(start(false), Start::Script);
        std::fs::write(root.join(record::PATH), record(r#"{"Cmd":["c"]}"#)).unwrap();
        let config = Start::Config {
            entrypoint: vec![],
            command: vec!["c".into()],
        };
        assert_eq!(start(false), config);
        assert_eq!(start(true), config, "without a shell the script cannot run");
        std::fs::copy("/bin/sh", root.join("bin/sh")).unwrap();
        assert_eq!(start(true), Start::Script);
        std::fs::write(root.join("etc/rc.local"), "# comment\n\n").unwrap();
        assert_eq!(start(false), config);
        std::fs::write(root.join("etc/rc.local"), "# comment\nA=1\n").unwrap();
        assert_eq!(start(false), Start::Script);
    }
}
