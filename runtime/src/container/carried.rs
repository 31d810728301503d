//! What `cista bundle --all` puts into a bundle of its maker's: the files of `environ.d`, `mounts.d` and `hooks.d` in the user's directory of settings.
//!
//! Whoever runs the bundle gets them before what the own directories add, so that the own word is the last. Hooks are executed from files in
//! memory.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::IntoRawFd as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::additions::{self, Additions, AdditionsError, Directory};
use super::fstab;
use crate::config::{Sources, host_variable};
use crate::sys;

/// Files, in the order in which they are used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Carried {
    environment: Vec<Carry>,
    mounts: Vec<Carry>,
    hooks: Vec<Carry>,
}

/// A file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Carry {
    /// Its path, for messages.
    path: PathBuf,
    /// Its content, as base64.
    content: String,
}

/// Why what a bundle carries cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CarriedError {
    /// A file is not as it was put in.
    #[error("`{path}` in the bundle is damaged")]
    Damaged {
        /// Its path when the bundle was made.
        path: PathBuf,
        /// What is wrong with it.
        source: base64::DecodeError,
    },
    /// It is not understood.
    #[error(transparent)]
    Additions(#[from] AdditionsError),
    /// A hook cannot be put into memory.
    #[error("cannot prepare the hook `{path}` of the bundle")]
    Hook {
        /// Its path when the bundle was made.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

impl Carry {
    fn read(path: PathBuf) -> Result<Self, AdditionsError> {
        let content = STANDARD.encode(additions::read(&path)?);
        Ok(Self { path, content })
    }

    fn content(&self) -> Result<Vec<u8>, CarriedError> {
        STANDARD
            .decode(&self.content)
            .map_err(|source| CarriedError::Damaged {
                path: self.path.clone(),
                source,
            })
    }
}

impl Carried {
    /// Reads the user's files.
    ///
    /// # Errors
    ///
    /// One that cannot be read, or mounts that are not understood.
    pub fn load(sources: &Sources) -> Result<Self, AdditionsError> {
        let Some(directory) = &sources.user_directory else {
            return Ok(Self::default());
        };
        let Directory {
            environment,
            mounts,
            hooks,
        } = Directory::list(directory)?;
        let read = |paths: Vec<PathBuf>| -> Result<Vec<Carry>, AdditionsError> {
            paths.into_iter().map(Carry::read).collect()
        };
        let carried = Self {
            environment: read(environment)?,
            mounts: read(mounts)?,
            hooks: read(hooks)?,
        };
        for file in &carried.mounts {
            // Better now than where it runs.
            fstab::parse_file(&file.path, &additions::read(&file.path)?, &host_variable)
                .map_err(AdditionsError::from)?;
        }
        Ok(carried)
    }

    /// Their paths, for display.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        [&self.environment, &self.mounts, &self.hooks]
            .into_iter()
            .flatten()
            .map(|file| &*file.path)
    }

    /// Puts what is carried before what is added here.
    ///
    /// # Errors
    ///
    /// A file that is not understood; no memory for a hook.
    pub fn precede(&self, additions: &mut Additions) -> Result<(), CarriedError> {
        let mut first = Additions::default();
        for file in &self.environment {
            first.environment.push(file.content()?);
        }
        for file in &self.mounts {
            let entries = fstab::parse_file(&file.path, &file.content()?, &host_variable)
                .map_err(AdditionsError::from)?;
            first.mounts.extend(entries);
        }
        for file in &self.hooks {
            let content = file.content()?;
            let hook = in_memory(&content).map_err(|source| CarriedError::Hook {
                path: file.path.clone(),
                source,
            })?;
            first.hooks.push(hook);
        }
        first.environment.append(&mut additions.environment);
        first.mounts.append(&mut additions.mounts);
        first.hooks.append(&mut additions.hooks);
        first.slurm_pmi = additions.slurm_pmi;
        *additions = first;
        Ok(())
    }
}

/// Puts a program into memory, and leaves it open until another program is executed in this process; its path, for this process and its children.
fn in_memory(content: &[u8]) -> io::Result<PathBuf> {
    let mut file: File = sys::again::executable_file(c"hook")?;
    file.write_all(content)?;
    // Its interpreter opens it again by this path; the container's program does not get it.
    rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty())?;
    Ok(format!("/proc/self/fd/{}", file.into_raw_fd()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_carried_comes_first() {
        let carry = |path: &str, content: &str| Carry {
            path: path.into(),
            content: STANDARD.encode(content),
        };
        let carried = Carried {
            environment: vec![carry("a.env", "A=1")],
            mounts: vec![carry("a.fstab", "tmpfs /a tmpfs\n")],
            hooks: vec![carry("a.sh", "#!/bin/sh\nexit 7\n")],
        };
        let text = serde_json::to_vec(&carried).unwrap();
        let carried: Carried = serde_json::from_slice(&text).unwrap();
        let mut additions = Additions {
            environment: vec![b"B=2".into()],
            hooks: vec!["/own.sh".into()],
            ..Additions::default()
        };
        carried.precede(&mut additions).unwrap();
        assert_eq!(additions.environment, [&b"A=1"[..], b"B=2"]);
        assert_eq!(additions.mounts.len(), 1);
        assert_eq!(additions.hooks.len(), 2);
        let status = std::process::Command::new(&additions.hooks[0]).status();
        assert_eq!(status.unwrap().code(), Some(7));
        let damaged = Carried {
            environment: vec![Carry {
                path: "x".into(),
                content: "!".into(),
            }],
            ..Carried::default()
        };
        assert!(damaged.precede(&mut additions).is_err());
    }
}
