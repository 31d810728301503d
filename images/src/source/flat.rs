//! `tar:`: a root file system as one tar, from a file or from standard input.
//!
//! What `docker export` and `debootstrap`-like tools write. One layer, no manifest, no config; compressed or not is for the decoder to see.

use std::fs::File;
use std::io::{self, Cursor, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::archive::FileRange;
use super::verified::{Verified, stream_error};
use super::{LayerBlob, ResolvedImage, Source, SourceError, Task};
use crate::digest::Digest;
use crate::platform::Platform;

/// A root file system as one tar.
#[derive(Debug)]
pub(super) struct FlatTar {
    input: Input,
    reference: String,
}

#[derive(Debug)]
enum Input {
    File {
        path: PathBuf,
        range: FileRange,
        size: u64,
    },
    /// Can be taken once: bytes that were read already, and where the others come from. Pipes named by a path are the same.
    Stream(Mutex<Option<(Vec<u8>, File)>>),
}

impl FlatTar {
    pub(super) fn file(path: &Path) -> Result<Self, SourceError> {
        let unreadable = |source| SourceError::Read {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        if metadata.is_dir() {
            return Err(SourceError::NotA {
                path: path.to_owned(),
                expected: "tar",
                problem: "it is a directory".to_owned(),
            });
        }
        let input = if metadata.is_file() {
            Input::File {
                path: path.to_owned(),
                range: FileRange::whole(file, metadata.len()),
                size: metadata.len(),
            }
        } else {
            Input::Stream(Mutex::new(Some((Vec::new(), file))))
        };
        Ok(Self {
            input,
            reference: format!("tar:{}", path.display()),
        })
    }

    pub(super) fn stdin() -> Result<Self, SourceError> {
        Ok(Self::stream(Vec::new(), stdin()?, "tar:-".to_owned()))
    }

    /// A stream of which the first bytes were read already.
    pub(super) fn stream(start: Vec<u8>, rest: File, reference: String) -> Self {
        Self {
            input: Input::Stream(Mutex::new(Some((start, rest)))),
            reference,
        }
    }

    /// All of a file, which `path` names in messages.
    pub(super) fn whole(file: File, path: PathBuf, reference: String) -> Result<Self, SourceError> {
        let size = file
            .metadata()
            .map_err(|source| SourceError::Read {
                path: path.clone(),
                source,
            })?
            .len();
        Ok(Self {
            input: Input::File {
                path,
                range: FileRange::whole(file, size),
                size,
            },
            reference,
        })
    }
}

/// Standard input.
pub(super) fn stdin() -> Result<File, SourceError> {
    let handle = rustix::stdio::stdin()
        .as_fd()
        .try_clone_to_owned()
        .map_err(|source| SourceError::Read {
            path: PathBuf::from("-"),
            source,
        })?;
    Ok(File::from(handle))
}

impl Source for FlatTar {
    fn resolve(&self, _: &Platform, task: Task<'_>) -> Result<ResolvedImage, SourceError> {
        task.cancel.check()?;
        let size = match &self.input {
            Input::File { size, .. } => Some(*size),
            Input::Stream(_) => None,
        };
        Ok(ResolvedImage {
            reference: self.reference.clone(),
            digest: None,
            config: None,
            layers: vec![LayerBlob {
                digest: None,
                size,
                diff_id: None,
            }],
        })
    }

    fn digest(&self, _: &Platform, _: Task<'_>) -> Result<Option<Digest>, SourceError> {
        Ok(None)
    }

    fn open_layer<'a>(
        &'a self,
        image: &ResolvedImage,
        layer: usize,
        task: Task<'a>,
    ) -> Result<Box<dyn Read + Send + 'a>, SourceError> {
        image.layer(layer)?;
        match &self.input {
            Input::File { path, range, size } => Ok(Box::new(Verified::new(
                range.clone(),
                format!("`{}`", path.display()),
                None,
                Some(*size),
            ))),
            Input::Stream(stream) => stream
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take()
                .map(|(start, file)| {
                    let rest = Interruptible::new(file, task);
                    Box::new(Cursor::new(start).chain(rest)) as Box<dyn Read + Send + 'a>
                })
                .ok_or(SourceError::ReadTwice),
        }
    }
}

/// Reads a pipe, and stops when the caller wishes it even while the other end is silent.
pub(super) struct Interruptible<'a> {
    file: File,
    task: Task<'a>,
}

impl<'a> Interruptible<'a> {
    pub(super) fn new(file: File, task: Task<'a>) -> Self {
        Self { file, task }
    }
}

impl Read for Interruptible<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        const INTERVAL: Timespec = Timespec {
            tv_sec: 0,
            tv_nsec: 100_000_000,
        };
        loop {
            let mut descriptors = [PollFd::new(&self.file, PollFlags::IN)];
            match poll(&mut descriptors, Some(&INTERVAL)) {
                Ok(0) | Err(Errno::INTR) => {}
                // What cannot be waited for can be read at once.
                _ => return self.file.read(buffer),
            }
            self.task
                .cancel
                .check()
                .map_err(|cancelled| stream_error(cancelled.into()))?;
        }
    }
}
