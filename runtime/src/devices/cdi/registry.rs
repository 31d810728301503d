//! The devices that the documents of this machine describe.
//!
//! Documents stand in several directories, `/etc/cdi` and `/var/run/cdi` usually: what was written by hand, and what programs write at every
//! boot. A device of a later directory hides that of the same name in an earlier one. Two documents of one directory that describe the same
//! device contradict each other: then it is nobody's, and asking for it is an error. A document that cannot be used hides nothing
//! and hinders no other.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use super::document::{Document, DocumentError, Edits, Format, MAX_SIZE};
use super::grant::DIRECTORIES;
use super::name::{Kind, NameError, QualifiedName};
use crate::devices::host::Host;

/// Most documents of one directory.
const MAX_DOCUMENTS: usize = 1024;

/// The documents of some directories.
#[derive(Debug, Default)]
pub struct Registry {
    documents: Vec<Loaded>,
    devices: BTreeMap<QualifiedName, Place>,
    conflicts: BTreeMap<QualifiedName, [PathBuf; 2]>,
    problems: Vec<CdiError>,
}

/// A document and where it was found.
#[derive(Debug)]
struct Loaded {
    document: Document,
    path: PathBuf,
    /// Position of its directory: later ones count more.
    priority: usize,
}

/// Where a device stands.
#[derive(Clone, Copy, Debug)]
struct Place {
    document: usize,
    device: usize,
}

/// A device that can be asked for.
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    /// Its whole name.
    pub name: &'a QualifiedName,
    /// The document that describes it.
    pub path: &'a Path,
    /// What it needs itself.
    pub edits: &'a Edits,
    /// What every device of its document needs.
    pub common: &'a Edits,
}

/// Why devices cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum CdiError {
    /// A directory or a document cannot be read.
    #[error("cannot read `{path}`")]
    Read {
        /// The directory or document.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A directory has too many documents.
    #[error("`{path}` has more than {MAX_DOCUMENTS} descriptions of CDI devices")]
    TooMany {
        /// The directory.
        path: PathBuf,
    },
    /// A document cannot be used.
    #[error("cannot use the description of CDI devices `{path}`")]
    Document {
        /// The document.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<DocumentError>,
    },
    /// No document describes devices of a kind.
    #[error("no CDI device of the kind `{kind}` is described{}", and_broken(.unusable))]
    NoKind {
        /// The kind.
        kind: Kind,
        /// Documents that cannot be used, which could describe it.
        unusable: Vec<PathBuf>,
    },
    /// No document describes a device.
    #[error("there is no CDI device `{name}`; of its kind there are {}{}", known.join(", "), and_broken(.unusable))]
    NoDevice {
        /// The device.
        name: QualifiedName,
        /// Names of others of its kind.
        known: Vec<String>,
        /// Documents that cannot be used, which could describe it.
        unusable: Vec<PathBuf>,
    },
    /// A text names no device.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Two documents describe a device.
    #[error("the CDI device `{name}` is described twice: in `{}` and in `{}`", .paths[0].display(), .paths[1].display())]
    Conflict {
        /// The device.
        name: QualifiedName,
        /// The documents.
        paths: [PathBuf; 2],
    },
}

fn and_broken(paths: &[PathBuf]) -> String {
    let paths: Vec<String> = paths
        .iter()
        .map(|path| format!("`{}`", path.display()))
        .collect();
    if paths.is_empty() {
        String::new()
    } else {
        format!(
            ", and these descriptions cannot be used: {}",
            paths.join(", ")
        )
    }
}

impl Registry {
    /// Reads the documents of a host. What is wrong with some is kept: see [`Self::problems`].
    #[must_use]
    pub fn load(host: &Host) -> Self {
        Self::load_from(host, &DIRECTORIES.map(PathBuf::from))
    }

    /// The same with other directories, the later of which count more.
    #[must_use]
    pub fn load_from(host: &Host, directories: &[PathBuf]) -> Self {
        let mut registry = Self::default();
        for (priority, directory) in directories.iter().enumerate() {
            let paths = match documents(host, directory) {
                Ok(paths) => paths,
                Err(problem) => {
                    registry.problems.push(problem);
                    continue;
                }
            };
            for (path, format) in paths {
                match read(host, &path, format) {
                    Ok(document) => registry.add(document, path, priority),
                    Err(problem) => registry.problems.push(problem),
                }
            }
        }
        registry
    }

    /// Adds a document. Those of one directory come one after the other, directories in their order.
    pub fn add(&mut self, document: Document, path: PathBuf, priority: usize) {
        let at = self.documents.len();
        for (position, device) in document.devices.iter().enumerate() {
            let name = QualifiedName {
                vendor: document.kind.vendor.clone(),
                class: document.kind.class.clone(),
                name: device.name.clone(),
            };
            let place = Place {
                document: at,
                device: position,
            };
            let before = self.devices.insert(name.clone(), place);
            let other = before.and_then(|before| self.documents.get(before.document));
            match other.filter(|other| other.priority == priority) {
                Some(other) => {
                    let paths = [other.path.clone(), path.clone()];
                    self.conflicts.insert(name, paths);
                }
                None => {
                    self.conflicts.remove(&name);
                }
            }
        }
        self.documents.push(Loaded {
            document,
            path,
            priority,
        });
    }

    /// What is wrong: documents that cannot be used, and devices that are described twice.
    pub fn problems(&self) -> impl Iterator<Item = String> {
        let conflicts = self.conflicts.iter().map(|(name, paths)| {
            let (name, paths) = (name.clone(), paths.clone());
            CdiError::Conflict { name, paths }.to_string()
        });
        self.problems.iter().map(chain).chain(conflicts)
    }

    /// The devices that can be asked for, in the order of their names.
    pub fn devices(&self) -> impl Iterator<Item = Found<'_>> {
        let can_be_had = |(name, _): &(&QualifiedName, &Place)| !self.conflicts.contains_key(*name);
        self.devices
            .iter()
            .filter(can_be_had)
            .filter_map(|(name, place)| self.at(name, *place))
    }

    fn at<'a>(&'a self, name: &'a QualifiedName, place: Place) -> Option<Found<'a>> {
        let loaded = self.documents.get(place.document)?;
        let device = loaded.document.devices.get(place.device)?;
        Some(Found {
            name,
            path: &loaded.path,
            edits: &device.edits,
            common: &loaded.document.edits,
        })
    }

    /// Finds one device.
    ///
    /// # Errors
    ///
    /// It is not described, or twice.
    pub fn find(&self, name: &QualifiedName) -> Result<Found<'_>, CdiError> {
        if let Some(paths) = self.conflicts.get(name) {
            return Err(CdiError::Conflict {
                name: name.clone(),
                paths: paths.clone(),
            });
        }
        let found = self.devices.get_key_value(name);
        if let Some(found) = found.and_then(|(name, place)| self.at(name, *place)) {
            return Ok(found);
        }
        let unusable = self.problems.iter().filter_map(CdiError::path).collect();
        let kind = name.kind();
        let known: Vec<String> = self
            .devices()
            .filter(|found| found.name.kind() == kind)
            .map(|found| format!("`{}`", found.name.name))
            .take(32)
            .collect();
        Err(if known.is_empty() {
            CdiError::NoKind { kind, unusable }
        } else {
            CdiError::NoDevice {
                name: name.clone(),
                known,
                unusable,
            }
        })
    }

    /// What containers get with some devices, in the order in which it is done: what all devices of a document need comes once, before the first
    /// of them. Asking twice for a device is asking once.
    ///
    /// # Errors
    ///
    /// The first device that cannot be had.
    pub fn edits(&self, names: &[QualifiedName]) -> Result<Vec<Asked<'_>>, CdiError> {
        let mut asked = Vec::new();
        let mut devices = BTreeSet::new();
        let mut documents = BTreeSet::new();
        for name in names {
            let found = self.find(name)?;
            if !devices.insert(name) {
                continue;
            }
            if documents.insert(found.path) {
                asked.push(Asked {
                    name: found.name,
                    path: found.path,
                    edits: found.common,
                    is_common: true,
                });
            }
            asked.push(Asked {
                name: found.name,
                path: found.path,
                edits: found.edits,
                is_common: false,
            });
        }
        Ok(asked)
    }
}

/// What a container gets with a device that was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The device.
    pub name: &'a QualifiedName,
    /// The document that describes it.
    pub path: &'a Path,
    /// What it needs.
    pub edits: &'a Edits,
    /// Whether that is what all devices of the document need.
    pub is_common: bool,
}

impl CdiError {
    fn path(&self) -> Option<PathBuf> {
        match self {
            Self::Read { path, .. } | Self::TooMany { path } | Self::Document { path, .. } => {
                Some(path.clone())
            }
            Self::NoKind { .. } | Self::NoDevice { .. } | Self::Name(_) | Self::Conflict { .. } => {
                None
            }
        }
    }
}

fn chain(error: &CdiError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// The documents of a directory in the order of their names; none where it is not there. What is below it is no document.
fn documents(host: &Host, directory: &Path) -> Result<Vec<(PathBuf, Format)>, CdiError> {
    let names = match host.entries(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        result => result.map_err(|source| CdiError::Read {
            path: directory.to_owned(),
            source,
        })?,
    };
    let mut found = Vec::new();
    for name in names {
        let path = directory.join(name);
        let format = match path.extension().and_then(|extension| extension.to_str()) {
            Some("json") => Format::Json,
            Some("yaml") => Format::Yaml,
            _ => continue,
        };
        if found.len() == MAX_DOCUMENTS {
            return Err(CdiError::TooMany {
                path: directory.to_owned(),
            });
        }
        found.push((path, format));
    }
    Ok(found)
}

fn read(host: &Host, path: &Path, format: Format) -> Result<Document, CdiError> {
    let content = host.read(path, MAX_SIZE).map_err(|source| CdiError::Read {
        path: path.to_owned(),
        source,
    })?;
    Document::parse(&content, format).map_err(|source| CdiError::Document {
        path: path.to_owned(),
        source: Box::new(source),
    })
}
