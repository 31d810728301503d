//! What the administrator says in plugstack.conf, behind the path of the plugin: `NAME=VALUE` words.
//!
//! The names of pyxis keep their meaning, so that a line of plugstack.conf can be taken over.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Component, Path, PathBuf};

/// The settings of the plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Arguments {
    /// `program=PATH`: the program that builds containers, executed as the job's user.
    pub(crate) program: PathBuf,
    /// `runtime_path=DIR`: where each user gets a directory for the state of running containers.
    pub(crate) runtime_path: PathBuf,
    /// `execute_entrypoint=BOOL`: whether the entrypoint of images is executed unless the user says otherwise.
    pub(crate) execute_entrypoint: bool,
    /// `container_scope=global|job`: whether the names of containers belong to a job.
    pub(crate) job_scope: bool,
    /// `sbatch_support=BOOL`: whether sbatch has the options, and batch scripts run in containers.
    pub(crate) sbatch_support: bool,
    /// `importer=PATH`: a program that gets images.
    pub(crate) importer: Option<PathBuf>,
    /// `mount=fuse|kernel|auto`: how images are mounted.
    pub(crate) mount: Mount,
    /// `trust=DIR[:DIR…]`: directories whose image files the kernel may mount, besides files that only root can change.
    pub(crate) trust: Vec<PathBuf>,
}

/// How images are mounted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Mount {
    /// By the server of `cista`, which is the user's own.
    #[default]
    Fuse,
    /// By the kernel, and an image that the site does not trust not at all.
    Kernel,
    /// By the kernel where the site trusts the image, otherwise by the server.
    Auto,
}

impl Default for Arguments {
    fn default() -> Self {
        Self {
            program: "/usr/bin/cista".into(),
            runtime_path: "/run/cista".into(),
            execute_entrypoint: false,
            job_scope: false,
            sbatch_support: true,
            importer: None,
            mount: Mount::Fuse,
            trust: Vec::new(),
        }
    }
}

impl Arguments {
    /// Reads the words.
    ///
    /// # Errors
    ///
    /// A text for the user: the word that is not understood.
    pub(crate) fn parse(words: &[OsString]) -> Result<Self, String> {
        let mut arguments = Self::default();
        for word in words {
            let wrong = |expected: &str| {
                format!(
                    "`{}` in plugstack.conf: expected {expected}",
                    word.display()
                )
            };
            let bytes = word.as_bytes();
            let at = bytes.iter().position(|&byte| byte == b'=');
            let (name, value) = match at {
                Some(at) => (&bytes[..at], OsStr::from_bytes(&bytes[at + 1..])),
                None => return Err(wrong("`NAME=VALUE`")),
            };
            let switch = || switch(value).ok_or_else(|| wrong("`yes` or `no`"));
            let path = || absolute(value).ok_or_else(|| wrong("an absolute path"));
            match name {
                b"program" => arguments.program = path()?,
                b"runtime_path" => arguments.runtime_path = path()?,
                b"execute_entrypoint" => arguments.execute_entrypoint = switch()?,
                b"container_scope" => {
                    arguments.job_scope = match value.as_bytes() {
                        b"job" => true,
                        b"global" => false,
                        _ => return Err(wrong("`job` or `global`")),
                    };
                }
                b"sbatch_support" => arguments.sbatch_support = switch()?,
                b"importer" => arguments.importer = Some(path()?),
                b"mount" => {
                    arguments.mount = match value.as_bytes() {
                        b"fuse" => Mount::Fuse,
                        b"kernel" => Mount::Kernel,
                        b"auto" => Mount::Auto,
                        _ => return Err(wrong("`fuse`, `kernel` or `auto`")),
                    };
                }
                b"trust" => {
                    for path in value.as_bytes().split(|&byte| byte == b':') {
                        let path = trusted(OsStr::from_bytes(path)).ok_or_else(|| {
                            wrong("absolute paths of directories, without `.` and `..`, separated by `:`")
                        })?;
                        arguments.trust.push(path);
                    }
                }
                // What they choose between in pyxis is always the better one here.
                b"use_enroot_load" | b"use_squashfuse" => {
                    switch()?;
                }
                _ => {
                    return Err(wrong(
                        "one of `program`, `runtime_path`, `execute_entrypoint`, `container_scope`, `sbatch_support`, `importer`, `mount`, `trust`",
                    ));
                }
            }
        }
        Ok(arguments)
    }
}

fn absolute(value: &OsStr) -> Option<PathBuf> {
    let path = Path::new(value);
    path.is_absolute().then(|| path.to_owned())
}

/// A directory, as the kernel tells the path of an open file below it.
fn trusted(value: &OsStr) -> Option<PathBuf> {
    let path = absolute(value)?;
    let mut parts = path.components();
    parts
        .all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
        .then(|| path.components().collect())
}

/// Yes or no.
pub(crate) fn switch(value: &OsStr) -> Option<bool> {
    let lower = OsString::from_vec(value.as_bytes().to_ascii_lowercase());
    match lower.as_bytes() {
        b"1" | b"true" | b"t" | b"yes" | b"y" | b"on" => Some(true),
        b"0" | b"false" | b"f" | b"no" | b"n" | b"off" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments, String> {
        let words: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        Arguments::parse(&words)
    }

    #[test]
    fn a_line_of_pyxis_is_taken_over() {
        let arguments = parse(
            "runtime_path=/run/pyxis execute_entrypoint=0 container_scope=job sbatch_support=yes use_enroot_load=1 use_squashfuse=true",
        )
        .unwrap();
        assert_eq!(arguments.runtime_path, Path::new("/run/pyxis"));
        assert!(arguments.job_scope && arguments.sbatch_support && !arguments.execute_entrypoint);
        assert_eq!(parse("").unwrap(), Arguments::default());
        let arguments = parse("mount=auto trust=/images/:/apps//images").unwrap();
        assert_eq!(arguments.mount, Mount::Auto);
        let expected = ["/images", "/apps/images"].map(PathBuf::from);
        assert_eq!(arguments.trust, expected);
        assert_eq!(arguments.trust[0].as_os_str(), "/images");
        assert_eq!(parse("mount=kernel").unwrap().mount, Mount::Kernel);
    }

    #[test]
    fn what_is_not_understood_is_named() {
        for line in [
            "runtime_path=run",
            "execute_entrypoint=maybe",
            "container_scope=node",
            "importer=",
            "mount=loop",
            "trust=",
            "trust=images",
            "trust=/images:",
            "trust=/images/../home",
            "unknown=1",
            "word",
        ] {
            assert!(parse(line).unwrap_err().contains(line), "{line}");
        }
    }
}
