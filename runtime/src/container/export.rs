//! A named container becomes an image file, without being mounted.
//!
//! What is left out: the mount points that starts made (empty, with mode 0), and the image's record of how to run it where the container's
//! own command script has taken its place.
//!
//! The image depends on the container alone: exported again, an unchanged container gives the same bytes. So its time of creation is that of the newest
//! file in it.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use cista_images::cancel::Cancel;
use cista_images::import::record;
use cista_images::output::{Output, OutputError};
use cista_images::pack::{self, Layer, PackError};
use cista_images::squashfs::reader::{ReadError, Reader};
use cista_images::squashfs::writer::{self, WriteError, Writer};

use super::named::{Container, Content, UPPER};

/// Directories below each other in which mount points are looked for.
const MAX_DEPTH: usize = 64;

/// Why a container cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The container's image cannot be opened.
    #[error("cannot open `{path}`")]
    Open {
        /// The image.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The container's image cannot be read.
    #[error("`{path}` is not a usable image")]
    Image {
        /// The image.
        path: PathBuf,
        /// What is wrong with it.
        source: ReadError,
    },
    /// The new file cannot be made.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// The container cannot be packed.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// The new image cannot be written.
    #[error("cannot write `{path}`")]
    Write {
        /// The new file.
        path: PathBuf,
        /// Why.
        source: WriteError,
    },
}

/// What was exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Size of the image, in bytes.
    pub bytes: u64,
    /// Files, directories and links in it.
    pub inodes: u32,
}

/// Writes a container to an image file. `time` is for all time stamps in it, in seconds since 1970 (`SOURCE_DATE_EPOCH`); None for the files' own.
///
/// # Errors
///
/// The step that failed; no file is left behind then.
pub fn export(
    container: &Container,
    path: &Path,
    overwrite: bool,
    time: Option<u32>,
    threads: usize,
    cancel: &Cancel,
) -> Result<Summary, ExportError> {
    let output = Output::create(path, overwrite)?;
    let failed = |source| ExportError::Write {
        path: path.to_owned(),
        source,
    };
    let options = writer::Options {
        threads,
        ..writer::Options::default()
    };
    let mut writer = Writer::new(output.handle()?, options, cancel.clone()).map_err(failed)?;
    let mut packed = match &container.content {
        Content::Image(image) => {
            let file = fs::File::open(image).map_err(|source| ExportError::Open {
                path: image.clone(),
                source,
            })?;
            let reader = Reader::open(file, 0).map_err(|source| ExportError::Image {
                path: image.clone(),
                source,
            })?;
            let upper = container.directory.join(UPPER);
            let layers = [Layer::Image(&reader), Layer::Directory(&upper)];
            let excluded = excluded(container, &upper);
            pack::pack(&layers, &paths(&excluded), &mut writer, cancel)?
        }
        Content::Tree(tree) => {
            let layers = [Layer::Directory(tree)];
            let excluded = excluded(container, tree);
            pack::pack(&layers, &paths(&excluded), &mut writer, cancel)?
        }
    };
    if let Some(time) = time {
        packed.tree.set_times(time);
    }
    writer.set_mkfs_time(packed.tree.newest());
    let summary = writer.finish(&packed.tree).map_err(failed)?;
    output.commit()?;
    Ok(Summary {
        bytes: summary.bytes_used,
        inodes: summary.inodes,
    })
}

fn paths(buffers: &[PathBuf]) -> Vec<&Path> {
    buffers.iter().map(PathBuf::as_path).collect()
}

/// What is left out of the export of a container whose changes are in `changed`; paths relative to the root.
fn excluded(container: &Container, changed: &Path) -> Vec<PathBuf> {
    let mut excluded = Vec::new();
    mount_points(changed, Path::new(""), 0, &mut excluded);
    if container.is_adapted() {
        excluded.push(record::PATH.into());
    }
    excluded
}

/// Finds the mount points that starts made. What cannot be read is left to the packing, which says so.
fn mount_points(root: &Path, below: &Path, depth: usize, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(root.join(below)) else {
        return;
    };
    for entry in entries.flatten() {
        let Ok(status) = entry.metadata() else {
            continue;
        };
        let path = below.join(entry.file_name());
        let is_made = status.mode() & 0o7777 == 0;
        if status.is_file() && is_made && status.len() == 0 {
            found.push(path);
        } else if status.is_dir() {
            // Root can look into a directory of mode 0; for others it is as empty as it was made.
            let is_empty =
                || fs::read_dir(root.join(&path)).map_or(true, |mut list| list.next().is_none());
            if is_made && is_empty() {
                found.push(path);
            } else if depth < MAX_DEPTH {
                mount_points(root, &path, depth + 1, found);
            }
        }
    }
}
