//! A blob as a stream that survives cut connections.
//!
//! When a connection is cut or falls silent, the blob is asked for again from the byte where it stopped (RFC 9110, section 14.2). A server that
//! does not know ranges sends it all again, and what is there already is skipped. Each request begins at the registry, even when the cut one
//! had been redirected, since signed URLs of object stores expire.

use std::io::{self, Read};
use std::sync::Arc;

use super::RegistryError;
use super::client::Client;
use super::http::{self, Answer};
use super::retry::Backoff;
use crate::digest::Digest;
use crate::source::SourceError;
use crate::source::verified::{Verified, stream_error};

/// Progress that makes earlier failures forgiven, in bytes.
const FORGIVING: u64 = 64 << 10;

/// The bytes of a blob, not verified.
pub(super) struct BlobStream {
    client: Arc<Client>,
    digest: Digest,
    size: u64,
    position: u64,
    /// Where the last failure was.
    failed_at: u64,
    backoff: Backoff,
    answer: Option<Answer>,
}

impl BlobStream {
    /// A blob from its first byte, verified at its end.
    pub(super) fn verified(client: &Arc<Client>, digest: Digest, size: u64) -> Verified<Self> {
        let stream = Self {
            client: Arc::clone(client),
            digest,
            size,
            position: 0,
            failed_at: 0,
            backoff: client.backoff(),
            answer: None,
        };
        Verified::new(stream, format!("blob {digest}"), Some(digest), Some(size))
    }

    /// Asks for the rest of the blob.
    fn connect(&self) -> Result<Answer, SourceError> {
        let mut answer = match self.client.open_blob(self.digest, self.position) {
            // Range not satisfiable: the server's blob ends here.
            Err(RegistryError::Status { status: 416, .. }) => {
                return Err(SourceError::Truncated {
                    what: format!("blob {}", self.digest),
                    expected: self.size,
                    actual: self.position,
                });
            }
            answer => answer?,
        };
        let length = answer.length();
        if answer.status == 206 {
            self.check_range(&answer)?;
            self.check_length(length, self.size - self.position)?;
            return Ok(answer);
        }
        self.check_length(length, self.size)?;
        let mut skipped = (&mut answer.body).take(self.position);
        let mut buffer = vec![0; 64 << 10];
        let mut left = self.position;
        while left > 0 {
            match skipped.read(&mut buffer) {
                Ok(0) => {
                    return Err(http::transfer_error(
                        &answer.host,
                        io::ErrorKind::UnexpectedEof.into(),
                    )
                    .into());
                }
                Ok(read) => left -= read as u64,
                Err(error) => return Err(http::transfer_error(&answer.host, error).into()),
            }
        }
        Ok(answer)
    }

    /// A blob that is announced with another size than the manifest's is known to be wrong before a byte was read.
    fn check_length(&self, announced: Option<u64>, expected: u64) -> Result<(), SourceError> {
        let what = || format!("blob {}", self.digest);
        match announced {
            Some(length) if length < expected => Err(SourceError::Truncated {
                what: what(),
                expected: self.size,
                actual: self.size - expected + length,
            }),
            Some(length) if length > expected => Err(SourceError::TooLarge {
                what: what(),
                expected: self.size,
            }),
            _ => Ok(()),
        }
    }

    /// `Content-Range: bytes FIRST-LAST/SIZE` must begin where we asked.
    fn check_range(&self, answer: &Answer) -> Result<(), RegistryError> {
        let range = answer.header("content-range").unwrap_or_default();
        let first = range
            .trim()
            .strip_prefix("bytes ")
            .and_then(|range| range.split('-').next())
            .and_then(|first| first.trim().parse::<u64>().ok());
        if first == Some(self.position) {
            return Ok(());
        }
        Err(RegistryError::Answer {
            host: answer.host.clone(),
            what: format!("blob {}", self.digest),
            problem: format!(
                "asked for the bytes from {}, it sends others",
                self.position
            ),
        })
    }

    fn read_once(&mut self, buffer: &mut [u8]) -> Result<usize, SourceError> {
        if self.answer.is_none() {
            self.answer = Some(self.connect()?);
        }
        let Some(answer) = &mut self.answer else {
            return Ok(0);
        };
        match answer.body.read(buffer) {
            // A clean end before the announced size is a cut too: close-delimited bodies end so.
            Ok(0) if self.position < self.size => {
                Err(http::transfer_error(&answer.host, io::ErrorKind::UnexpectedEof.into()).into())
            }
            Ok(read) => Ok(read),
            Err(error) => Err(http::transfer_error(&answer.host, error).into()),
        }
    }
}

impl Read for BlobStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let error = match self.read_once(buffer) {
                Ok(read) => {
                    self.position += read as u64;
                    return Ok(read);
                }
                // All of it is here. Only a server that announces no length and does not close the connection gets so far.
                Err(_) if self.position == self.size => return Ok(0),
                Err(error) => error,
            };
            self.answer = None;
            let SourceError::Registry(error) = error else {
                return Err(stream_error(error));
            };
            if self.position >= self.failed_at.saturating_add(FORGIVING) {
                self.backoff.reset();
            }
            self.failed_at = self.position;
            self.client
                .pause_after(error, &mut self.backoff)
                .map_err(|error| stream_error(error.into()))?;
        }
    }
}
