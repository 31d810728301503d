//! Where an image comes from: one trait, one file a kind of source.
//!
//! | reference | source | file |
//! |---|---|---|
//! | `docker://` | a registry | [`crate::registry`] |
//! | `oci:`, `oci-archive:` | an OCI image layout | `layout.rs` |
//! | `docker-archive:` | what `docker save` writes | `docker_archive.rs` |
//! | `tar:` | a root file system as one tar | `flat.rs` |
//! | `-` | whichever archive comes on standard input | `stream.rs` |
//! | `dockerd://`, `podman://` | an engine of this machine | `engine.rs`, `stream.rs` |
//! | `dir:` | has no layers: [`crate::pack`] makes the image | |
//!
//! A source finds the manifest and the config (`resolve.rs`, `document.rs`) and gives the layers as verified streams (`verified.rs`).
//! Nothing that it reads is trusted: sizes are bounded before anything is allocated, digests are checked before anything is parsed.

pub(crate) mod archive;
mod docker_archive;
pub(crate) mod document;
mod engine;
mod flat;
mod layout;
pub(crate) mod resolve;
mod stream;
pub(crate) mod verified;

use std::error::Error;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;

pub use document::DocumentError;
pub use engine::EngineError;

use crate::cancel::{Cancel, Cancelled};
use crate::digest::Digest;
use crate::layer::Limits;
use crate::layer::decompress::DecodeError;
use crate::platform::Platform;
use crate::progress::Progress;
use crate::reference::{Reference, TarFile};
use crate::registry::{RegistryError, RegistrySource};
use crate::store::{Store, StoreError};

/// A layer blob as the manifest announces it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerBlob {
    /// Digest of the blob as stored; None where the source has none (a plain tar file, old docker-archives).
    pub digest: Option<Digest>,
    /// Size of the blob as stored, in bytes; None where it is not known before it was read (standard input).
    pub size: Option<u64>,
    /// Digest of the uncompressed tar as the config announces it; None without a config.
    pub diff_id: Option<Digest>,
}

/// An image whose manifest and config are known and verified.
#[derive(Clone, Debug)]
pub struct ResolvedImage {
    /// The reference in canonical form, as provenance: `docker://registry/name:tag`.
    pub reference: String,
    /// Digest of the image manifest; of the config for docker-archives; None for plain root file systems.
    pub digest: Option<Digest>,
    /// The image config as its JSON text (OCI image specification, "Image Configuration"); None for plain root file systems.
    pub config: Option<Vec<u8>>,
    /// The layers, lowest first, as in the manifest.
    pub layers: Vec<LayerBlob>,
}

impl ResolvedImage {
    /// Sum of the sizes of the layer blobs in bytes, as far as they are known.
    #[must_use]
    pub fn layer_bytes(&self) -> u64 {
        self.layers
            .iter()
            .fold(0, |sum, layer| sum.saturating_add(layer.size.unwrap_or(0)))
    }

    pub(crate) fn layer(&self, layer: usize) -> Result<&LayerBlob, SourceError> {
        self.layers
            .get(layer)
            .ok_or(SourceError::NoSuchLayer { layer })
    }
}

/// What an operation on a source needs from its caller.
#[derive(Clone, Copy)]
pub struct Task<'a> {
    /// Is told what happens.
    pub progress: &'a dyn Progress,
    /// Stops the operation.
    pub cancel: &'a Cancel,
}

/// A place that images come from.
pub trait Source: Send + Sync {
    /// Finds the image for a platform; fetches and verifies its manifest and config. Sends [`crate::progress::Event::Resolved`].
    fn resolve(&self, platform: &Platform, task: Task<'_>) -> Result<ResolvedImage, SourceError>;

    /// Finds only the digest of the image for a platform, as [`ResolvedImage::digest`], with as few requests as possible and no event.
    fn digest(&self, platform: &Platform, task: Task<'_>) -> Result<Option<Digest>, SourceError>;

    /// Opens a layer (0 is the lowest) for reading from its first byte.
    ///
    /// The stream is the blob as stored, still compressed. It is verified: a stream whose size or digest is not the announced one ends
    /// in an error of [`std::io::Error`] in place of the end of file. Bytes may be read before the whole blob has arrived. May be called
    /// again for the same layer, except on sources that cannot seek, which say so.
    fn open_layer<'a>(
        &'a self,
        image: &ResolvedImage,
        layer: usize,
        task: Task<'a>,
    ) -> Result<Box<dyn Read + Send + 'a>, SourceError>;

    /// After a layer turned out to be another than it should be: whether there is a further place to take it from, which is asked when layers are
    /// opened again. Each time this is true there is one place less.
    fn goes_on_elsewhere(&self) -> bool {
        false
    }
}

/// How sources are opened.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// How registries are reached.
    pub registry: crate::registry::Settings,
    /// Where blobs are kept and found again; None to keep nothing.
    pub store: Option<Arc<Store>>,
    /// Where an archive that comes as a stream is kept, without a name, while it is read; None for `/var/tmp`.
    pub temporary: Option<PathBuf>,
    /// The socket of the Docker daemon; None for `/var/run/docker.sock`.
    pub docker_socket: Option<PathBuf>,
    /// When a compressed archive that comes as a stream counts as an attack.
    pub limits: Limits,
}

/// Opens the source that a reference names. Touches no network yet.
///
/// # Errors
///
/// [`SourceError::Directory`] for `dir:`, which has no layers and is packed with [`crate::pack`]; else when a local file cannot be read.
pub fn open(reference: &Reference, settings: &Settings) -> Result<Box<dyn Source>, SourceError> {
    Ok(match reference {
        Reference::Registry(registry) => Box::new(RegistrySource::new(registry.clone(), settings)?),
        Reference::OciLayout(local) => Box::new(layout::OciLayout::directory(local, reference)?),
        Reference::OciArchive(local) => Box::new(layout::OciLayout::archive(local, reference)?),
        Reference::DockerArchive(local) => {
            Box::new(docker_archive::DockerArchive::open(local, reference)?)
        }
        Reference::Directory(path) => {
            return Err(SourceError::Directory { path: path.clone() });
        }
        Reference::Tar(TarFile::Path(path)) => Box::new(flat::FlatTar::file(path)?),
        Reference::Tar(TarFile::Stdin) => Box::new(flat::FlatTar::stdin()?),
        Reference::Stdin | Reference::Docker(_) | Reference::Podman(_) => {
            Box::new(stream::StreamSource::new(reference.clone(), settings))
        }
    })
}

/// Why a source cannot give an image.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A registry did not do what was asked.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The store did not.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An engine of this machine does not give the image.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// An archive that comes as a stream cannot be kept while it is read.
    #[error("cannot keep the archive in `{path}` while it is read")]
    Spool {
        /// The directory.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The caller asked to stop.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// A manifest, index or config cannot be used.
    #[error("cannot use {what}")]
    Document {
        /// Which document: `the manifest of …`.
        what: String,
        /// What is wrong with it.
        source: DocumentError,
    },
    /// A local file cannot be opened or read.
    #[error("cannot read `{path}`")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A local file is not what the scheme says.
    #[error("`{path}` is no {expected}: {problem}")]
    NotA {
        /// The file or directory.
        path: PathBuf,
        /// What it should be.
        expected: &'static str,
        /// Why it is not.
        problem: String,
    },
    /// The archive as a whole is compressed, so its members cannot be found without unpacking it.
    #[error("archive `{path}` is compressed with {compression}")]
    CompressedArchive {
        /// The archive.
        path: PathBuf,
        /// `gzip`, `zstd`, `xz` or `bzip2`; also the name of the program that undoes it.
        compression: &'static str,
    },
    /// No image has the name or digest asked for.
    #[error("there is no image `{wanted}` in `{path}`: it has {available}")]
    NoSuchImage {
        /// The directory or archive.
        path: PathBuf,
        /// The name or digest asked for.
        wanted: String,
        /// The names that exist.
        available: String,
    },
    /// Several images, and no name to choose one by.
    #[error("`{path}` holds several images: {available}")]
    SeveralImages {
        /// The directory or archive.
        path: PathBuf,
        /// Their names.
        available: String,
    },
    /// The image does not exist for the platform.
    #[error("{what} is not available for {wanted}, only for {available}")]
    Platform {
        /// The image.
        what: String,
        /// The platform asked for.
        wanted: Platform,
        /// The platforms that exist.
        available: String,
    },
    /// Content has another digest than announced.
    #[error("{what} is corrupt: its digest is {actual} instead of {expected}")]
    WrongDigest {
        /// What was read.
        what: String,
        /// The digest that was announced.
        expected: Digest,
        /// The digest of what came.
        actual: Digest,
    },
    /// Content is shorter than announced.
    #[error("{what} is truncated: it ends after {actual} of {expected} bytes")]
    Truncated {
        /// What was read.
        what: String,
        /// The size that was announced, in bytes.
        expected: u64,
        /// The size of what came, in bytes.
        actual: u64,
    },
    /// Content is longer than announced, or than any sensible content of its kind.
    #[error("{what} is larger than the {expected} bytes that it may have")]
    TooLarge {
        /// What was read.
        what: String,
        /// The size that was announced or is allowed, in bytes.
        expected: u64,
    },
    /// The image has no layer of this number.
    #[error("the image has no layer {layer}")]
    NoSuchLayer {
        /// Position of the layer, 0 being the lowest.
        layer: usize,
    },
    /// Standard input was read already and cannot be read again.
    #[error("standard input can be read only once")]
    ReadTwice,
    /// A directory has no layers.
    #[error("`dir:{path}` is a directory and has no layers")]
    Directory {
        /// The directory.
        path: PathBuf,
    },
}

/// What the user can do about an error that came from here, directly or through a stream; None where nothing is known.
#[must_use]
pub fn hint(error: &(dyn Error + 'static)) -> Option<String> {
    causes(error).find_map(|error| {
        if let Some(error) = error.downcast_ref::<RegistryError>() {
            return Some(error.hint());
        }
        if let Some(error) = error.downcast_ref::<SourceError>() {
            return error.own_hint().map(Some);
        }
        if let Some(DecodeError::Expands { .. }) = error.downcast_ref() {
            let hint = "if you trust the image, `CISTA_MAX_LAYER_SIZE` allows more";
            return Some(Some(hint.to_owned()));
        }
        let error = error.downcast_ref::<io::Error>()?;
        (error.kind() == io::ErrorKind::StorageFull)
            .then(|| Some("free some space, or choose another directory".to_owned()))
    })?
}

/// Whether an error came from here, directly or through a stream: what was to be read did not come as it should.
#[must_use]
pub fn is_of_source(error: &(dyn Error + 'static)) -> bool {
    causes(error).any(|error| error.is::<RegistryError>() || error.is::<SourceError>())
}

/// Whether an error says that a layer came and was another than it should be.
pub(crate) fn is_wrong_content(error: &(dyn Error + 'static)) -> bool {
    causes(error).any(|error| {
        matches!(
            error.downcast_ref(),
            Some(
                SourceError::WrongDigest { .. }
                    | SourceError::Truncated { .. }
                    | SourceError::TooLarge { .. }
            )
        )
    })
}

/// An error and its causes. Chains are short; the bound only guards against one that circles.
fn causes<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> + 'a {
    std::iter::successors(Some(error), |error| cause(*error)).take(32)
}

/// The cause of an error, also where it is shared or carried by an error of a stream.
fn cause<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    if let Some(shared) = error.downcast_ref::<Arc<SourceError>>() {
        return Some(shared.as_ref());
    }
    // `io::Error::source` skips the error that it carries.
    match error
        .downcast_ref::<io::Error>()
        .and_then(io::Error::get_ref)
    {
        Some(inner) => Some(inner),
        None => error.source(),
    }
}

impl SourceError {
    fn own_hint(&self) -> Option<String> {
        Some(match self {
            Self::CompressedArchive { path, compression } => {
                let program = if *compression == "bzip2" {
                    "bzip2"
                } else {
                    compression
                };
                format!("decompress it first: `{program} -dk {}`", path.display())
            }
            Self::NotA { expected, .. } if expected.contains("archive") => {
                "`docker-archive:` takes what `docker save` writes, `oci-archive:` what `podman save --format oci-archive` does, and `tar:` a root file system".to_owned()
            }
            Self::SeveralImages { path, .. } => {
                format!("choose one: `{}:TAG`", path.display())
            }
            Self::Platform { .. } => "choose another architecture with `--arch`".to_owned(),
            Self::Registry(error) => return error.hint(),
            Self::Store(error) => return error.hint(),
            Self::Engine(error) => return error.hint(),
            Self::Spool { .. } => "`CISTA_TEMP_PATH` names another directory for it".to_owned(),
            _ => return None,
        })
    }
}
