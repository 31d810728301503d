//! Where cargo puts things.

use std::path::{Path, PathBuf};

use crate::error::HarnessError;

/// The root of the workspace.
#[must_use]
pub fn workspace() -> &'static Path {
    // This crate is one directory below it.
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new("."))
}

/// The target directory.
#[must_use]
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

/// A profile of cargo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// For tests.
    Debug,
    /// For the demo and the benches.
    Release,
}

/// The program that `CISTA_BIN` names.
#[must_use]
pub fn given() -> Option<PathBuf> {
    std::env::var_os("CISTA_BIN")
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
}

/// The Slurm plugin: `CISTA_PLUGIN`, else the one that cargo built.
pub fn plugin(profile: Profile) -> Result<PathBuf, HarnessError> {
    let given = std::env::var_os("CISTA_PLUGIN").filter(|path| !path.is_empty());
    if let Some(path) = given {
        return Ok(path.into());
    }
    match profile {
        Profile::Debug => built("debug", "libspank_cista.so"),
        // A panic must not leave it: it has a release profile of its own.
        Profile::Release => built("plugin", "libspank_cista.so"),
    }
}

/// The `cista` program: `CISTA_BIN`, else the one that cargo built.
pub fn cista(profile: Profile) -> Result<PathBuf, HarnessError> {
    if let Some(path) = given() {
        return Ok(path);
    }
    match profile {
        Profile::Debug => built("debug", "cista"),
        Profile::Release => built("release", "cista"),
    }
}

fn built(directory: &str, name: &str) -> Result<PathBuf, HarnessError> {
    let path = target().join(directory).join(name);
    if path.is_file() {
        Ok(path)
    } else {
        Err(HarnessError::Missing {
            what: format!("`{}`", path.display()),
            hint: "run `cargo build --workspace` first, as `cargo xtask test` does".into(),
        })
    }
}
