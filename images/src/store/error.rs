//! Why the store cannot be used, and what can be done about it.

use std::io;
use std::path::PathBuf;

use crate::output::OutputError;

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A directory of the store cannot be made.
    #[error("cannot create directory `{path}` of the store")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Something in the store cannot be read.
    #[error("cannot read `{path}` in the store")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Something cannot be written to the store.
    #[error("cannot write `{path}` in the store")]
    Write {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// It cannot be agreed upon who makes something.
    #[error("cannot take the lease `{path}` in the store")]
    Lease {
        /// The lease.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// This process was taken for dead and its work taken over.
    #[error("another process has taken over `{path}`, since this one did not move for too long")]
    TakenOver {
        /// What was to be made.
        path: PathBuf,
    },
    /// There is less room than something needs.
    #[error("the store in `{path}` needs {needed} bytes more, but {available} are free there")]
    Full {
        /// The store's blobs.
        path: PathBuf,
        /// What is to be written, in bytes.
        needed: u64,
        /// What the file system has left for this user, in bytes.
        available: u64,
    },
    /// Something cannot be added to the store.
    #[error("cannot add to the store")]
    Output(#[from] OutputError),
    /// A record is no JSON of the form that this version writes.
    #[error("`{path}` in the store is malformed")]
    Record {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
}

impl StoreError {
    /// What the user can do about it; None where nothing is known.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        let error = match self {
            Self::Full { .. } => None,
            Self::Directory { source, .. }
            | Self::Read { source, .. }
            | Self::Write { source, .. }
            | Self::Lease { source, .. }
            | Self::Output(
                OutputError::Directory { source, .. }
                | OutputError::Create { source, .. }
                | OutputError::Sync { source, .. }
                | OutputError::Place { source, .. },
            ) => Some(source.kind()),
            Self::TakenOver { .. } => {
                return Some(
                    "a slow file system may need a longer `CISTA_LEASE_TIMEOUT`".to_owned(),
                );
            }
            Self::Output(_) | Self::Record { .. } => return None,
        };
        let what = match error {
            None | Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
                "free some space (`cista cache prune`)"
            }
            Some(io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) => {
                "get the right to write there"
            }
            Some(_) => return None,
        };
        Some(format!(
            "{what}, or name another directory in `CISTA_CACHE_PATH`"
        ))
    }
}
