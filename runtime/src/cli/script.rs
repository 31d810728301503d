//! Scripts that `start --conf`, `start --rc` and `batch` are given.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::{Context, Failure};
use crate::config::{Config, enroot};
use crate::container::additions::MAX_FILE;

/// A script that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the script `{path}`")]
struct ScriptFile {
    path: PathBuf,
    source: io::Error,
}

/// The path of a configuration script, whatever the working directory will be.
pub(super) fn find(path: &Path) -> Result<PathBuf, Failure> {
    // A file that has no name any more, as Slurm's plugin passes one, is found through this process.
    if let Ok(descriptor) = path.strip_prefix("/proc/self/fd")
        && path.canonicalize().is_err()
    {
        let pid = std::process::id().to_string();
        return Ok(Path::new("/proc").join(pid).join("fd").join(descriptor));
    }
    path.canonicalize().map_err(|source| {
        ScriptFile {
            path: path.to_owned(),
            source,
        }
        .into()
    })
}

/// The content of a command script, which may also come through a pipe.
pub(super) fn read_rc(path: &Path) -> Result<Vec<u8>, Failure> {
    let mut content = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut content))
        .and_then(|length| match length as u64 > MAX_FILE {
            true => Err(io::Error::from_raw_os_error(libc::EFBIG)),
            false => Ok(content),
        })
        .map_err(|source| {
            ScriptFile {
                path: path.to_owned(),
                source,
            }
            .into()
        })
}

/// The context with the settings that a configuration script has in its comments.
pub(super) fn with_directives(path: &Path, context: &Context) -> Result<Context, Failure> {
    let directives = enroot::directives(&read_rc(path)?);
    let sources = context.config.sources.clone().with_directives(&directives);
    Ok(Context {
        config: Config::from_sources(sources)?,
        verbose: context.verbose,
    })
}
