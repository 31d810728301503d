//! From a source to an image file, in one pass.
//!
//! ```text
//! blobs --> decoders, ahead --> merge, top-down --> squashfs writer --> file
//! ```
//!
//! The caller resolves the image and makes the file; what is here joins the rooms in between: it decodes layers ahead
//! ([`crate::layer::ahead`]), merges them ([`crate::merge`]), reads layers again where a visible link names a hidden
//! file, adds the files that enroot and we need to start the image (`provision`, [`record`]), and completes the image.
//! Nothing is extracted, and no file but the image is written.
//!
//! # Determinism
//!
//! The image is a function of the manifest's digest and [`Options`], whatever the number of threads, the machine, the
//! cache or the run. [`Options::record_reference`] adds the reference as it was asked for, which is provenance: two tags
//! of one manifest then make files that differ in that line alone. The store leaves it out, so that its images depend on
//! the manifest alone and a cluster can compare them by hash.

pub mod record;

mod provision;

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use self::provision::Provision;
use self::record::{ImageConfig, Record, RecordError};
use crate::cancel::Cancelled;
use crate::layer::ahead::{Ahead, LayerStream, Plan, Settings as AheadSettings};
use crate::layer::tar::{Archive, TarError};
use crate::layer::{LayerName, Limits};
use crate::merge::{Merge, MergeError, Settings as MergeSettings};
use crate::pack::{self, PackError};
use crate::progress::Event;
use crate::source::{self, ResolvedImage, Source, Task};
use crate::squashfs::compression::Compression;
use crate::squashfs::writer::{self, WriteError, Writer};
use crate::start_files;
use crate::tree::Tree;

/// How an image is made.
#[derive(Clone, Debug)]
pub struct Options {
    /// How blocks are compressed.
    pub compression: Compression,
    /// Size of a block in bytes, a power of two from 4 KiB to 1 MiB.
    pub block_size: u32,
    /// Time of creation and of every file, in seconds since 1970; None for the time that the config tells (or 0), and the
    /// files' own. (`SOURCE_DATE_EPOCH`, as enroot understands it.)
    pub time: Option<u32>,
    /// Whether the record names the reference that was asked for.
    pub record_reference: bool,
    /// Threads that compress, and that decode ahead. The image does not depend on it.
    pub threads: usize,
    /// Decoded bytes that may wait to be merged. The image does not depend on it.
    pub memory: usize,
    /// When an image counts as an attack.
    pub limits: Limits,
}

impl Options {
    /// The default options with a number of threads.
    #[must_use]
    pub fn new(threads: usize) -> Self {
        Self {
            compression: Compression::default(),
            block_size: 128 << 10,
            time: None,
            record_reference: true,
            threads: threads.max(1),
            memory: AheadSettings::for_threads(threads).budget,
            limits: Limits::default(),
        }
    }

    /// All that determines the image besides the manifest, as a line of text: what the store tells images of one manifest
    /// apart by. Its first word changes whenever this program makes another image of the same input.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let time = self
            .time
            .map_or_else(|| "image".to_owned(), |time| time.to_string());
        format!(
            "cista-{FORMAT} compression={} block={} time={time} reference={}",
            self.compression, self.block_size, self.record_reference
        )
    }

    fn writer(&self, time: u32) -> writer::Options {
        writer::Options {
            compression: self.compression,
            block_size: self.block_size,
            threads: self.threads.max(1),
            mkfs_time: time,
        }
    }
}

/// Changes whenever this program makes another image of the same input.
const FORMAT: u32 = 2;

/// What was made. Sizes are bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Size of the image file.
    pub size: u64,
    /// Content of all files, holes included.
    pub content: u64,
    /// Content as it is stored.
    pub stored: u64,
    /// Files, directories and links that are no hard links.
    pub inodes: u32,
    /// How often content was found to be stored already.
    pub duplicates: u64,
    /// Layers that were read a second time.
    pub layers_read_again: usize,
}

/// Why an image cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A layer cannot be read, is malformed, or does not fit the others.
    #[error("cannot use {what}")]
    Layer {
        /// Which one: `layer 3 (…)`, or the file where there is no image but one tar.
        what: String,
        /// What is wrong.
        source: LayerError,
    },
    /// The layers together make no file system.
    #[error("cannot merge the layers")]
    Merge(#[from] MergeError),
    /// The image cannot be written.
    #[error(transparent)]
    Write(WriteError),
    /// The image config cannot be used.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A directory cannot be packed.
    #[error("cannot pack `{path}`")]
    Pack {
        /// The directory.
        path: PathBuf,
        /// What is wrong.
        source: PackError,
    },
    /// The file cannot be begun again, after a layer turned out to be wrong.
    #[error("cannot begin the image again")]
    Again(#[source] io::Error),
    /// The image's length cannot be told.
    #[error("cannot look at the finished image")]
    Length(#[source] io::Error),
    /// The caller has given up.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// What is wrong with a layer.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// It cannot be fetched or decoded, or it is not what was announced.
    #[error("{0}")]
    Stream(#[source] io::Error),
    /// It is malformed, or does not fit the layers above it.
    #[error("{0}")]
    Merge(#[from] MergeError),
    /// It has neither a digest nor an end marker.
    #[error("the tar stream has no end marker, so it may have been cut")]
    Unmarked,
}

impl From<WriteError> for ImportError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Cancelled(cancelled) => Self::Cancelled(cancelled),
            error => Self::Write(error),
        }
    }
}

/// Imports an image into `file`, which is empty and open for writing. The caller makes it durable and gives it its name.
///
/// # Errors
///
/// [`ImportError::Cancelled`] whenever the flag of `task` is set, whatever failed because of it.
pub fn import(
    source: &dyn Source,
    image: &ResolvedImage,
    options: &Options,
    file: File,
    task: Task<'_>,
) -> Result<Summary, ImportError> {
    loop {
        let target = file.try_clone().map_err(ImportError::Again)?;
        let result = import_layers(source, image, options, target, task);
        task.cancel.check()?;
        match result {
            // What came is in the image already, so the image is begun again.
            Err(ImportError::Layer {
                what,
                source: error,
            }) if source::is_wrong_content(&error) && source.goes_on_elsewhere() => {
                let text = format!("cannot use {what}: {error}; it is fetched again");
                task.progress.event(Event::Warning(text));
                file.set_len(0)
                    .and_then(|()| (&file).seek(SeekFrom::Start(0)))
                    .map_err(ImportError::Again)?;
            }
            result => return result,
        }
    }
}

/// Imports a directory of the host as the root file system.
///
/// # Errors
///
/// As [`import`].
pub fn import_directory(
    path: &Path,
    reference: &str,
    options: &Options,
    file: File,
    task: Task<'_>,
) -> Result<Summary, ImportError> {
    let cancel = task.cancel.child();
    let time = options.time.unwrap_or(0);
    let mut writer = Writer::new(file, options.writer(time), cancel.clone())?;
    let packed =
        pack::pack(&[pack::Layer::Directory(path)], &[], &mut writer, &cancel).map_err(|source| {
            ImportError::Pack {
                path: path.to_owned(),
                source,
            }
        });
    task.cancel.check()?;
    let packed = packed?;
    for (count, what) in [(packed.devices, "devices"), (packed.mounts, "other mounts")] {
        if count > 0 {
            let text = format!("{count} {what} in `{}` are left out", path.display());
            task.progress.event(Event::Warning(text));
        }
    }
    let record = Record::new(
        options.record_reference.then(|| reference.to_owned()),
        None,
        None,
    )?;
    let result = complete(writer, packed.tree, &record, None, options, time, 0, task);
    task.cancel.check()?;
    result
}

fn import_layers(
    source: &dyn Source,
    image: &ResolvedImage,
    options: &Options,
    file: File,
    task: Task<'_>,
) -> Result<Summary, ImportError> {
    let record = Record::new(
        options.record_reference.then(|| image.reference.clone()),
        image.digest,
        image.config.as_deref(),
    )?;
    let config = match &image.config {
        Some(_) => Some(record.image_config()?),
        None => None,
    };
    let time = options
        .time
        .or_else(|| config.as_ref()?.created_seconds())
        .unwrap_or(0);
    let mut writer = Writer::new(file, options.writer(time), task.cancel.clone())?;
    let mut merge = Merge::new(MergeSettings {
        limits: options.limits,
        plain_loader: plain_loader(image),
        ..MergeSettings::new(time)
    });
    let plan = |index: usize| Plan {
        name: LayerName {
            index,
            digest: image.layers[index].digest,
        },
        diff_id: image.layers[index].diff_id,
    };
    let all: Vec<_> = (0..image.layers.len()).rev().map(plan).collect();
    read_layers(source, image, &all, options, task, |stream| {
        let index = stream.name().index;
        let mut archive = Archive::new(stream);
        merge.add_layer(index, &mut archive, &mut writer)?;
        // With a digest, what the config says is what the layer must be, be it nothing. Without one, the end marker is all
        // that tells a whole stream from one that was cut between entries.
        if image.layers[index].diff_id.is_none() {
            if archive.is_empty() {
                return Err(MergeError::from(TarError::Empty).into());
            }
            if archive.is_unmarked() {
                return Err(LayerError::Unmarked);
            }
        }
        Ok(())
    })?;
    let again = merge.unfinished();
    if !again.is_empty() {
        let silent = Task {
            // What is read here has been counted already.
            progress: &crate::progress::Silent,
            ..task
        };
        let plan: Vec<_> = again.iter().map(|index| plan(*index)).collect();
        read_layers(source, image, &plan, options, silent, |stream| {
            let index = stream.name().index;
            let mut archive = Archive::new(stream);
            Ok(merge.revisit(index, &mut archive, &mut writer)?)
        })?;
    }
    let tree = merge.finish()?;
    complete(
        writer,
        tree,
        &record,
        config.as_ref(),
        options,
        time,
        again.len(),
        task,
    )
}

/// Whether what [`start_files::is_loaded_first`] names are stored uncompressed: in images that grow by little more than one in a hundred.
/// What is not known for every source must not decide it.
fn plain_loader(image: &ResolvedImage) -> bool {
    let sizes = image.layers.iter().map(|layer| layer.size);
    image.digest.is_some()
        && sizes
            .sum::<Option<u64>>()
            .is_some_and(|size| size >= start_files::MIN_LAYERS)
}

/// Reads layers in the order of a plan; `each` takes a layer's stream to the end of its archive.
fn read_layers(
    source: &dyn Source,
    image: &ResolvedImage,
    plan: &[Plan],
    options: &Options,
    task: Task<'_>,
    mut each: impl FnMut(&mut LayerStream<'_>) -> Result<(), LayerError>,
) -> Result<(), ImportError> {
    let settings = AheadSettings {
        budget: options.memory,
        limits: options.limits,
        ..AheadSettings::for_threads(options.threads)
    };
    // Set when the merge ends, however it does, so that the decoders end too.
    let cancel = task.cancel.child();
    let task = Task {
        cancel: &cancel,
        ..task
    };
    let open = |layer| source.open_layer(image, layer, task);
    Ahead::run(plan, settings, &open, task, |ahead| {
        for Plan { name, .. } in plan {
            let Some(mut stream) = ahead.next_layer() else {
                break;
            };
            let result = each(&mut stream);
            if let Err(LayerError::Merge(MergeError::Write { source, .. })) = result {
                // The writer works behind: its errors have nothing to do with the layer.
                return Err(source.into());
            }
            // To the end of the stream, behind the end of the archive, so that all of it is verified. When the archive is
            // malformed because the blob is damaged, the damage is what should be told.
            let verified = stream.drain().map_err(LayerError::Stream);
            verified.and(result).map_err(|source| ImportError::Layer {
                what: match image.config {
                    Some(_) => name.to_string(),
                    None => format!("`{}`", image.reference),
                },
                source,
            })?;
        }
        Ok(())
    })
}

/// Adds our own files, writes the tables.
#[expect(
    clippy::too_many_arguments,
    reason = "the last step, where everything comes together"
)]
fn complete(
    mut writer: Writer,
    mut tree: Tree,
    record: &Record,
    config: Option<&ImageConfig>,
    options: &Options,
    time: u32,
    layers_read_again: usize,
    task: Task<'_>,
) -> Result<Summary, ImportError> {
    let provision = Provision::new(config, record);
    for warning in &provision.warnings {
        task.progress.event(Event::Warning(warning.clone()));
    }
    provision.apply(&mut tree, &record.to_json()?, time, &mut writer)?;
    if let Some(time) = options.time {
        tree.set_times(time);
    }
    let summary = writer.finish(&tree)?;
    let length = summary.file.metadata().map_err(ImportError::Length)?.len();
    Ok(Summary {
        size: length,
        content: summary.content_bytes,
        stored: summary.stored_bytes,
        inodes: summary.inodes,
        duplicates: summary.duplicates,
        layers_read_again,
    })
}
