//! Readers of blobs: of those that are on their way, and of those that the store has.
//!
//! A reader never touches the network, and looks several times a second whether its caller wants to stop, so that it is free at once even
//! while the network is silent.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use super::blob::Blob;
use super::download::Shared;
use super::incoming::{Available, Incoming};
use super::{CANCEL_INTERVAL, RegistryError};
use crate::cancel::Cancelled;
use crate::source::Task;
use crate::source::archive::FileRange;
use crate::source::verified::{Verified, stream_error};
use crate::store::Store;

/// Reads a blob while it arrives.
pub(super) struct Follower<'a> {
    shared: &'a Shared,
    incoming: Arc<Incoming>,
    position: u64,
    source: From,
    task: Task<'a>,
}

/// Where the next bytes are.
enum From {
    /// Nobody knows yet.
    Nowhere,
    /// In a file, up to this byte.
    File(Arc<File>, u64),
    /// In memory, from this byte on.
    Memory(Vec<u8>, usize),
    /// The verified end was seen.
    End,
}

impl<'a> Follower<'a> {
    pub(super) fn new(shared: &'a Shared, incoming: Arc<Incoming>, task: Task<'a>) -> Self {
        Self {
            shared,
            incoming,
            position: 0,
            source: From::Nowhere,
            task,
        }
    }

    fn report(&self) {
        self.incoming.report(self.task.progress);
        self.shared.report(self.task.progress);
    }

    /// Waits until more bytes are there, or the verified end.
    fn wait(&self) -> io::Result<From> {
        loop {
            self.report();
            let available = self
                .incoming
                .wait(self.position, CANCEL_INTERVAL)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            match available {
                Some(Available::UpTo(end, file)) => return Ok(From::File(file, end)),
                Some(Available::Bytes(bytes)) => {
                    // There is room in the window again.
                    self.shared.wake();
                    return Ok(From::Memory(bytes, 0));
                }
                Some(Available::End) => {
                    self.report();
                    return Ok(From::End);
                }
                None => self
                    .task
                    .cancel
                    .check()
                    .map_err(|cancelled: Cancelled| stream_error(cancelled.into()))?,
            }
        }
    }

    /// Reads what is there; 0 bytes when that is nothing.
    fn read_available(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.source {
            From::File(file, end) if self.position < *end => {
                let left = *end - self.position;
                let count =
                    usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
                match file.read_at(&mut buffer[..count], self.position)? {
                    // It is emptied when it turns out to be wrong.
                    0 => match self.incoming.wait(u64::MAX, Duration::ZERO) {
                        Err(error) => Err(io::Error::new(io::ErrorKind::InvalidData, error)),
                        Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
                    },
                    read => Ok(read),
                }
            }
            From::Memory(bytes, at) => {
                let left = &bytes[*at..];
                let count = left.len().min(buffer.len());
                buffer[..count].copy_from_slice(&left[..count]);
                *at += count;
                Ok(count)
            }
            From::Nowhere | From::File(..) | From::End => Ok(0),
        }
    }
}

impl Read for Follower<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            let read = self.read_available(buffer)?;
            if read > 0 {
                self.position += read as u64;
                return Ok(read);
            }
            if matches!(self.source, From::End) {
                return Ok(0);
            }
            self.source = self.wait()?;
        }
    }
}

impl Drop for Follower<'_> {
    fn drop(&mut self) {
        // What only this reader wanted is not fetched any further.
        if self.incoming.is_in_memory() {
            self.incoming.finish(Err(RegistryError::Stopped.into()));
            self.shared.wake();
        }
    }
}

/// Reads a blob that a store has. When it turns out to be damaged it is removed from the user's own, and not taken from a shared one again.
pub(super) struct CachedBlob<'a> {
    stream: Verified<FileRange>,
    shared: &'a Shared,
    store: Arc<Store>,
    blob: Blob,
}

impl<'a> CachedBlob<'a> {
    pub(super) fn new(shared: &'a Shared, store: &Arc<Store>, file: File, blob: Blob) -> Self {
        let what = match store.shared_store_of(&blob.digest) {
            Some(root) => format!("{} in the shared store `{}`", blob.name(), root.display()),
            None => format!("{} in the store (now removed from it)", blob.name()),
        };
        let range = FileRange::whole(file, blob.size);
        Self {
            stream: Verified::new(range, what, Some(blob.digest), Some(blob.size)),
            shared,
            store: Arc::clone(store),
            blob,
        }
    }
}

impl Read for CachedBlob<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.read(buffer).inspect_err(|error| {
            if error.kind() == io::ErrorKind::InvalidData {
                // The damage is what is reported; whether it could be removed is the lesser matter.
                let _ = self.store.discard_blob(&self.blob.digest);
                self.shared.note_damage();
            }
        })
    }
}
