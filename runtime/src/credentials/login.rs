//! Storing and removing a login where docker does (docker-login): in its `config.json`, or with the credential helper that this file names.
//!
//! Of the file only `auths` changes; everything else stays as it was, to the byte. The new file takes the place of the old one in one step, and
//! only the user may read it. Where the file is a symbolic link, what it leads to is replaced.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use cista_images::reference::DOCKER_HUB;
use cista_images::registry::Secret;
use serde_json::value::{RawValue, to_raw_value};

use super::{CredentialError, FormatError, docker, read, run_helper};
use crate::config::credentials::CredentialPaths;

/// Where a login is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// In the file, readable for whoever can read the file.
    File(PathBuf),
    /// With the credential helper `docker-credential-NAME`.
    Helper(String),
}

/// Why a login is not stored or removed.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// Nothing tells where docker's file is.
    #[error(
        "cannot tell where docker's `config.json` is: neither `DOCKER_CONFIG` nor `HOME` is set"
    )]
    NoPlace,
    /// What is stored already cannot be used.
    #[error(transparent)]
    Stored(#[from] CredentialError),
    /// The file cannot be written.
    #[error("cannot write `{path}`")]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A user name with a colon could not be told from the password.
    #[error("a user name cannot hold a `:`")]
    Colon,
}

/// Stores a login for a registry (`HOST[:PORT]`).
///
/// # Errors
///
/// [`LoginError`].
pub fn keep(
    paths: &CredentialPaths,
    server: &str,
    user: &str,
    password: &Secret,
) -> Result<Kept, LoginError> {
    if user.contains(':') {
        return Err(LoginError::Colon);
    }
    let path = paths.docker_config.as_deref().ok_or(LoginError::NoPlace)?;
    let mut file = Editable::open(path)?;
    let key = key_of(server);
    let helper = file
        .parsed
        .helper_for(server)
        .map_err(|source| malformed(path, source))?;
    let (entry, kept) = match helper {
        Some(helper) => {
            let login = serde_json::json!({
                "ServerURL": helper.key, "Username": user, "Secret": password.expose(),
            });
            let login = Secret::new(login.to_string());
            run_helper(path, &helper, "store", &login)?;
            // Docker keeps an empty entry, and so knows where the user is logged in.
            (serde_json::json!({}), Kept::Helper(helper.name))
        }
        None => {
            let auth = BASE64_STANDARD.encode(format!("{user}:{}", password.expose()));
            let entry = serde_json::json!({ "auth": auth });
            (entry, Kept::File(path.to_owned()))
        }
    };
    for old in file.parsed.keys_of(server) {
        file.auths.remove(&old);
    }
    file.auths.insert(key.to_owned(), raw(path, &entry)?);
    file.save(path)?;
    Ok(kept)
}

/// Removes the login for a registry; whether there was one.
///
/// # Errors
///
/// [`LoginError`].
pub fn forget(paths: &CredentialPaths, server: &str) -> Result<bool, LoginError> {
    let path = paths.docker_config.as_deref().ok_or(LoginError::NoPlace)?;
    let mut file = Editable::open(path)?;
    let keys = file.parsed.keys_of(server);
    let helper = file
        .parsed
        .helper_for(server)
        .map_err(|source| malformed(path, source))?;
    let mut known = !keys.is_empty();
    if let Some(helper) = helper {
        // A helper is asked first: most end well when they have nothing to erase.
        let get = Secret::new(helper.key.as_str());
        if run_helper(path, &helper, "get", &get)?.is_some() {
            known = true;
            run_helper(path, &helper, "erase", &get)?;
        }
    }
    if !keys.is_empty() {
        for key in keys {
            file.auths.remove(&key);
        }
        file.save(path)?;
    }
    Ok(known)
}

/// How docker names a registry in its file.
fn key_of(server: &str) -> &str {
    if server == DOCKER_HUB {
        docker::HUB_KEY
    } else {
        server
    }
}

fn malformed(path: &Path, source: FormatError) -> CredentialError {
    CredentialError::Docker {
        path: path.to_owned(),
        source,
    }
}

/// A file whose parts that are not about logins stay as they are.
struct Editable {
    parsed: docker::File,
    all: BTreeMap<String, Box<RawValue>>,
    auths: BTreeMap<String, Box<RawValue>>,
}

impl Editable {
    fn open(path: &Path) -> Result<Self, LoginError> {
        let text = read(path)?.unwrap_or_default();
        let text = if text.trim_ascii().is_empty() {
            b"{}"
        } else {
            text.as_slice()
        };
        let parse = || -> Result<Self, FormatError> {
            let all: BTreeMap<String, Box<RawValue>> = serde_json::from_slice(text)?;
            let auths = match all.get("auths") {
                None => None,
                Some(auths) => serde_json::from_str(auths.get())?,
            };
            Ok(Self {
                parsed: docker::File::parse(text)?,
                all,
                auths: auths.unwrap_or_default(),
            })
        };
        Ok(parse().map_err(|source| malformed(path, source))?)
    }

    fn save(mut self, path: &Path) -> Result<(), LoginError> {
        let auths = raw(path, &self.auths)?;
        self.all.insert("auths".to_owned(), auths);
        let failed = |source| LoginError::Write {
            path: path.to_owned(),
            source,
        };
        let text = serde_json::to_vec_pretty(&self.all)
            .map_err(|source| failed(io::Error::other(source)))?;
        replace(path, &text).map_err(failed)
    }
}

fn raw(path: &Path, value: &impl serde::Serialize) -> Result<Box<RawValue>, LoginError> {
    to_raw_value(value).map_err(|source| LoginError::Write {
        path: path.to_owned(),
        source: io::Error::other(source),
    })
}

/// Puts a new file in the place of an old one, or of none; nobody else may read it.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let target = match fs::canonicalize(path) {
        Ok(target) => target,
        Err(error) if error.kind() == io::ErrorKind::NotFound => path.to_owned(),
        Err(error) => return Err(error),
    };
    let directory = target.parent().unwrap_or(Path::new("/"));
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    let temporary = directory.join(format!(".config.json.{}.tmp", std::process::id()));
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, &target)?;
        File::open(directory)?.sync_all()
    };
    let written = write();
    if written.is_err() {
        // Already renamed, or never made.
        let _ = fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn paths(file: &Path) -> CredentialPaths {
        CredentialPaths {
            docker_config: Some(file.to_owned()),
            ..CredentialPaths::default()
        }
    }

    #[test]
    fn logins_are_added_and_removed_and_the_rest_stays() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("made/config.json");
        let paths = paths(&file);
        let password = Secret::new("hunter2");
        assert!(!forget(&paths, "a.io").unwrap());
        assert!(!file.exists());

        let kept = keep(&paths, "a.io", "me", &password).unwrap();
        assert_eq!(kept, Kept::File(file.clone()));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&file), mode(file.parent().unwrap())), (0o600, 0o700));

        let rest = r#"{"HttpHeaders": {"X":  1.00},
            "auths": {"https://a.io/v1/": {"auth": "b2xk", "email": "x"}, "b.io": {"auth": "Yjpi", "email":  "y"}}}"#;
        fs::write(&file, rest).unwrap();
        keep(&paths, "a.io", "me", &password).unwrap();
        keep(&paths, DOCKER_HUB, "me", &password).unwrap();
        let text = fs::read_to_string(&file).unwrap();
        for part in [
            r#"{"X":  1.00}"#,
            r#"{"auth": "Yjpi", "email":  "y"}"#,
            docker::HUB_KEY,
            "bWU6aHVudGVyMg==",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(!text.contains("b2xk"), "{text}");

        assert!(forget(&paths, "a.io").unwrap());
        assert!(!forget(&paths, "a.io").unwrap());
        assert!(forget(&paths, DOCKER_HUB).unwrap());
        let text = fs::read_to_string(&file).unwrap();
        assert!(!text.contains("bWU6") && text.contains("Yjpi"), "{text}");
        assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn links_are_followed_and_broken_files_kept() {
        let directory = tempfile::tempdir().unwrap();
        let real = directory.path().join("real.json");
        let link = directory.path().join("config.json");
        fs::write(&real, "").unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        keep(&paths(&link), "a.io", "me", &Secret::new("p")).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert!(fs::read_to_string(&real).unwrap().contains("a.io"));

        fs::write(&real, "{\"auths\": hunter2").unwrap();
        let error = keep(&paths(&link), "a.io", "me", &Secret::new("p")).unwrap_err();
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
        assert_eq!(fs::read_to_string(&real).unwrap(), "{\"auths\": hunter2");
        let colon = keep(&paths(&link), "a.io", "m:e", &Secret::new("p")).unwrap_err();
        assert!(matches!(colon, LoginError::Colon));
    }
}
