//! One request for a part of a blob, and what its answer may be.
//!
//! RFC 9110, section 14.2: a server that knows ranges answers 206 with the bytes asked for, one that does not answers 200 with all of them.
//! Both are right, so what was not asked for is skipped. Each request begins at the registry, even when an earlier one had been redirected,
//! since signed URLs of object stores expire.

use std::io::{self, Read};

use super::RegistryError;
use super::client::Client;
use super::http::{self, Answer, Range};
use crate::digest::Digest;
use crate::source::SourceError;

/// A blob of a repository.
#[derive(Debug, Clone, Copy)]
pub(super) struct Blob {
    pub(super) digest: Digest,
    /// Its size in bytes as the manifest says.
    pub(super) size: u64,
}

/// An answer that stands at the byte that was asked for.
pub(super) struct Arriving {
    answer: Answer,
    /// The server sends the whole blob, whatever was asked for.
    pub(super) whole: bool,
    /// Bytes that the answer still has, where it says.
    left: Option<u64>,
}

impl Blob {
    /// Its name in messages.
    pub(super) fn name(self) -> String {
        format!("blob {}", self.digest)
    }

    /// Asks for the bytes from `from` up to, not including, `end`.
    pub(super) fn request(
        self,
        client: &Client,
        from: u64,
        end: u64,
    ) -> Result<Arriving, SourceError> {
        let range = match (from, end >= self.size) {
            (0, true) => Range::All,
            (_, true) => Range::From(from),
            (_, false) => Range::Of(from, end.saturating_sub(1)),
        };
        let mut answer = match client.open_blob(self.digest, range) {
            // Range not satisfiable: the server's blob ends here.
            Err(RegistryError::Status { status: 416, .. }) => {
                return Err(SourceError::Truncated {
                    what: self.name(),
                    expected: self.size,
                    actual: from,
                });
            }
            answer => answer?,
        };
        let length = answer.length();
        if answer.status == 206 {
            let total = self.check_range(&answer, from)?;
            self.check_size(total)?;
            if end >= self.size {
                self.check_size(length.map(|length| from.saturating_add(length)))?;
            }
            return Ok(Arriving {
                answer,
                whole: false,
                left: length,
            });
        }
        self.check_size(length)?;
        skip(&mut answer, from)?;
        Ok(Arriving {
            answer,
            whole: true,
            left: length.map(|length| length.saturating_sub(from)),
        })
    }

    /// A blob that is announced with another size than the manifest's is known to be wrong before a byte was read.
    fn check_size(self, announced: Option<u64>) -> Result<(), SourceError> {
        match announced {
            Some(size) if size < self.size => Err(SourceError::Truncated {
                what: self.name(),
                expected: self.size,
                actual: size,
            }),
            Some(size) if size > self.size => Err(self.too_large()),
            _ => Ok(()),
        }
    }

    fn too_large(self) -> SourceError {
        SourceError::TooLarge {
            what: self.name(),
            expected: self.size,
        }
    }

    /// `Content-Range: bytes FIRST-LAST/SIZE` must begin where we asked; returns the size where it tells one.
    fn check_range(self, answer: &Answer, from: u64) -> Result<Option<u64>, RegistryError> {
        let range = answer.header("content-range").unwrap_or_default().trim();
        let (range, total) = range.split_once('/').unwrap_or((range, ""));
        let first = range
            .strip_prefix("bytes ")
            .and_then(|range| range.split('-').next())
            .and_then(|first| first.trim().parse::<u64>().ok());
        if first == Some(from) {
            return Ok(total.trim().parse().ok());
        }
        Err(RegistryError::Answer {
            host: answer.host.clone(),
            what: self.name(),
            problem: format!("asked for the bytes from {from}, it sends others"),
        })
    }

    /// At the last byte of a blob: nothing may come behind it, as far as that can be told. Where no length was announced, only reading
    /// tells; that nothing comes within the time limit, not even an end, does no harm: all of it is here.
    pub(super) fn check_end(
        self,
        arriving: &mut Arriving,
        has_more: bool,
    ) -> Result<(), SourceError> {
        let has_more = has_more
            || arriving.left.is_none() && matches!(arriving.answer.body.read(&mut [0; 1]), Ok(1..));
        if has_more {
            return Err(self.too_large());
        }
        Ok(())
    }
}

impl Arriving {
    /// Reads some bytes, at least one.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, RegistryError> {
        let host = &self.answer.host;
        match self.answer.body.read(buffer) {
            // A clean end before the end is a cut too: bodies without a length end so.
            Ok(0) => Err(http::transfer_error(
                host,
                io::ErrorKind::UnexpectedEof.into(),
            )),
            Ok(read) => {
                self.left = self.left.map(|left| left.saturating_sub(read as u64));
                Ok(read)
            }
            Err(error) => Err(http::transfer_error(host, error)),
        }
    }

    /// Lets the connection be used again, if the answer was read to its end. Closes it if not.
    pub(super) fn finish(mut self) {
        if self.left == Some(0) {
            // The connection goes back when its end is seen.
            let _ = self.answer.body.read(&mut [0; 1]);
        }
    }
}

/// Reads what stands before the byte that was asked for.
fn skip(answer: &mut Answer, mut left: u64) -> Result<(), RegistryError> {
    let mut buffer = vec![0; if left > 0 { 64 << 10 } else { 0 }];
    while left > 0 {
        let most = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let error = match answer.body.read(&mut buffer[..most]) {
            Ok(0) => io::ErrorKind::UnexpectedEof.into(),
            Ok(read) => {
                left -= read as u64;
                continue;
            }
            Err(error) => error,
        };
        return Err(http::transfer_error(&answer.host, error));
    }
    Ok(())
}
