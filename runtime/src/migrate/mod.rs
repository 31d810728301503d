//! Moving from enroot and pyxis: what their files say becomes files of ours.
//!
//! Three rooms of files, each read line by line: the settings ([`conf`]: `enroot.conf`, `enroot.conf.d`), what is added to containers
//! ([`additions`]: `environ.d`, `mounts.d`, `hooks.d`), and pyxis' line for Slurm ([`plugstack`]). Each line ends as a [`Step`], so that nobody has to
//! guess what became of it. Nothing of enroot's is changed, nothing is executed, and no password is read: logins are used where enroot has them.
//!
//! A [`Plan`] is made first and written then, or only shown.

pub mod additions;
pub mod conf;
pub mod plugstack;

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crate::config::file::FileError;

/// The longest file that is read, in bytes.
const MAX_FILE: u64 = 4 << 20;

/// What becomes of a line or a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It stays as it is, or is copied.
    Kept,
    /// It is written in our words.
    Translated,
    /// What it says is so anyway.
    NotNeeded,
    /// Somebody has to look at it.
    Attention,
}

impl Fate {
    /// How it is shown.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::Translated => "translated",
            Self::NotNeeded => "not needed",
            Self::Attention => "look at",
        }
    }
}

/// A line or a file of enroot, and what becomes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What becomes of it.
    pub fate: Fate,
    /// Where it stands: a file, or a file and a line.
    pub place: String,
    /// The line; empty for a file.
    pub text: String,
    /// What it becomes, or why nothing.
    pub note: String,
}

/// A file to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewFile {
    /// Where.
    pub path: PathBuf,
    /// What.
    pub content: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Every line that was found.
    pub steps: Vec<Step>,
    /// The files that come of it.
    pub files: Vec<NewFile>,
}

/// What became of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// It was written.
    New,
    /// It was there and said the same.
    Same,
    /// Another one is there and was left alone.
    Differs,
}

/// Why files cannot be moved.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// A file of enroot cannot be read.
    #[error(transparent)]
    Read(#[from] FileError),
    /// A file of ours cannot be written.
    #[error("cannot write `{path}`")]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

impl Plan {
    fn step(&mut self, fate: Fate, place: impl ToString, text: &str, note: impl Into<String>) {
        self.steps.push(Step {
            fate,
            place: place.to_string(),
            text: text.to_owned(),
            note: note.into(),
        });
    }

    /// Writes the files. One that is there and says something else is replaced only by `force`.
    ///
    /// # Errors
    ///
    /// A file or its directory cannot be written.
    pub fn write(&self, force: bool) -> Result<Vec<(&Path, Written)>, MigrateError> {
        let mut written = Vec::new();
        for file in &self.files {
            let failed = |source| MigrateError::Write {
                path: file.path.clone(),
                source,
            };
            let outcome = file.write(force).map_err(failed)?;
            written.push((file.path.as_path(), outcome));
        }
        Ok(written)
    }
}

impl NewFile {
    fn write(&self, force: bool) -> io::Result<Written> {
        match fs::read(&self.path) {
            Ok(content) if content == self.content => return Ok(Written::Same),
            Ok(_) if !force => return Ok(Written::Differs),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let directory = self.path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(directory)?;
        // Whole or not at all, whoever starts a container meanwhile.
        let mut name = std::ffi::OsString::from(".");
        name.push(self.path.file_name().unwrap_or_default());
        name.push(format!(".{}", std::process::id()));
        let temporary = directory.join(name);
        let outcome = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(self.mode)
            .open(&temporary)
            .and_then(|mut file| {
                file.write_all(&self.content)?;
                file.set_permissions(fs::Permissions::from_mode(self.mode))?;
                file.sync_all()
            })
            .and_then(|()| fs::rename(&temporary, &self.path));
        if outcome.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        outcome.map(|()| Written::New)
    }
}

/// A file; None where there is none.
fn read(path: &Path) -> Result<Option<Vec<u8>>, FileError> {
    let failed = |source| FileError::Read {
        path: path.to_owned(),
        source,
    };
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut content = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, MAX_FILE + 1), &mut content).map_err(failed)?;
    if content.len() as u64 > MAX_FILE {
        return Err(failed(io::Error::from_raw_os_error(libc::EFBIG)));
    }
    Ok(Some(content))
}
