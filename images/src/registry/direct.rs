//! A layer straight from the registry, where there is no store.
//!
//! A thread receives and verifies, the reader takes pieces from a bounded channel: a slow reader slows the thread, and a reader that is
//! interrupted while the network is silent is free at once.

use std::io::{self, Read};
use std::sync::Arc;
use std::thread;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::blob::BlobStream;
use super::client::Client;
use super::http::READ_SIZE;
use super::{CANCEL_INTERVAL, RegistryError};
use crate::cancel::Cancelled;
use crate::digest::Digest;
use crate::progress::Event;
use crate::source::verified::stream_error;
use crate::source::{SourceError, Task};

/// Pieces that may wait for the reader.
const PIECES: usize = 8;

/// A verified layer that arrives over a channel.
pub(super) struct DirectStream<'a> {
    pieces: Receiver<io::Result<Vec<u8>>>,
    /// Empty buffers on their way back.
    spent: Sender<Vec<u8>>,
    current: Vec<u8>,
    position: usize,
    finished: bool,
    layer: usize,
    task: Task<'a>,
}

impl<'a> DirectStream<'a> {
    pub(super) fn start(
        client: &Arc<Client>,
        digest: Digest,
        size: u64,
        layer: usize,
        task: Task<'a>,
    ) -> Result<Self, SourceError> {
        let (piece_sender, pieces) = bounded(PIECES);
        let (spent, spent_receiver) = bounded::<Vec<u8>>(PIECES);
        let mut stream = BlobStream::verified(client, digest, size);
        thread::Builder::new()
            .name("blob".to_owned())
            .spawn(move || {
                loop {
                    let mut piece = spent_receiver.try_recv().unwrap_or_default();
                    piece.resize(READ_SIZE, 0);
                    let outcome = stream.read(&mut piece).map(|read| {
                        piece.truncate(read);
                        piece
                    });
                    let goes_on = matches!(&outcome, Ok(piece) if !piece.is_empty());
                    // The reader is gone when the layer is not wanted to its end.
                    if piece_sender.send(outcome).is_err() || !goes_on {
                        return;
                    }
                }
            })
            .map_err(|source| RegistryError::Thread { source })?;
        Ok(Self {
            pieces,
            spent,
            current: Vec::new(),
            position: 0,
            finished: false,
            layer,
            task,
        })
    }

    /// Waits for the next piece; an empty one is the verified end.
    fn next_piece(&mut self) -> io::Result<Vec<u8>> {
        loop {
            match self.pieces.recv_timeout(CANCEL_INTERVAL) {
                Ok(piece) => return piece,
                Err(RecvTimeoutError::Timeout) if self.task.cancel.is_cancelled() => {
                    return Err(stream_error(Cancelled.into()));
                }
                Err(RecvTimeoutError::Timeout) => {}
                // It ended without a verified end: after an error that was given already.
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(stream_error(RegistryError::Stopped.into()));
                }
            }
        }
    }
}

impl Read for DirectStream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.position == self.current.len() {
            if self.finished {
                return Ok(0);
            }
            let piece = self.next_piece()?;
            let spent = std::mem::replace(&mut self.current, piece);
            // Full only while the thread has enough of them.
            let _ = self.spent.try_send(spent);
            self.position = 0;
            let layer = self.layer;
            if self.current.is_empty() {
                self.finished = true;
                self.task.progress.event(Event::LayerComplete { layer });
                return Ok(0);
            }
            self.task.progress.event(Event::LayerFetched {
                layer,
                bytes: self.current.len() as u64,
            });
        }
        let left = &self.current[self.position..];
        let count = left.len().min(buffer.len());
        buffer[..count].copy_from_slice(&left[..count]);
        self.position += count;
        Ok(count)
    }
}
