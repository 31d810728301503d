//! A stream that ends in an error unless it was what was announced.

use std::io::{self, Read};

use super::SourceError;
use crate::digest::{Digest, Hasher};

/// Passes bytes on and checks size and digest when they end; never gives more bytes than announced.
pub(crate) struct Verified<R> {
    inner: R,
    what: String,
    digest: Option<Digest>,
    size: Option<u64>,
    hasher: Option<Hasher>,
    seen: u64,
    finished: bool,
}

impl<R: Read> Verified<R> {
    /// Checks `inner`, which `what` names in errors.
    pub(crate) fn new(inner: R, what: String, digest: Option<Digest>, size: Option<u64>) -> Self {
        Self {
            inner,
            what,
            digest,
            size,
            hasher: digest.map(|_| Hasher::new()),
            seen: 0,
            finished: false,
        }
    }

    fn check_end(&mut self) -> io::Result<()> {
        if let Some(expected) = self.size.filter(|size| *size != self.seen) {
            return Err(stream_error(SourceError::Truncated {
                what: self.what.clone(),
                expected,
                actual: self.seen,
            }));
        }
        if let (Some(expected), Some(hasher)) = (self.digest, self.hasher.take()) {
            let actual = hasher.finish();
            if actual != expected {
                return Err(stream_error(SourceError::WrongDigest {
                    what: self.what.clone(),
                    expected,
                    actual,
                }));
            }
        }
        self.finished = true;
        Ok(())
    }
}

impl<R: Read> Read for Verified<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.finished || buffer.is_empty() {
            return Ok(0);
        }
        let read = self.inner.read(buffer)?;
        if read == 0 {
            self.check_end()?;
            return Ok(0);
        }
        self.seen = self.seen.saturating_add(read as u64);
        if let Some(expected) = self.size.filter(|size| *size < self.seen) {
            return Err(stream_error(SourceError::TooLarge {
                what: self.what.clone(),
                expected,
            }));
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buffer[..read]);
        }
        Ok(read)
    }
}

/// An error of a source as one of a stream.
pub(crate) fn stream_error(error: SourceError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(content: &[u8], digest: Digest, size: u64) -> Result<Vec<u8>, String> {
        let mut read = Vec::new();
        Verified::new(content, "it".to_owned(), Some(digest), Some(size))
            .read_to_end(&mut read)
            .map(|_| read)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn only_the_announced_bytes_end_well() {
        let digest = Digest::of(b"content");
        assert_eq!(outcome(b"content", digest, 7).unwrap(), b"content");
        assert!(
            outcome(b"conten", digest, 7)
                .unwrap_err()
                .contains("ends after 6")
        );
        assert!(
            outcome(b"contents", digest, 7)
                .unwrap_err()
                .contains("larger")
        );
        assert!(
            outcome(b"Content", digest, 7)
                .unwrap_err()
                .contains("digest")
        );
        assert!(outcome(b"", digest, 7).is_err());
    }

    #[test]
    fn an_error_at_the_end_is_not_followed_by_an_end() {
        let mut stream = Verified::new(&b"xx"[..], "it".to_owned(), None, Some(3));
        let mut buffer = [0; 8];
        assert_eq!(stream.read(&mut buffer).unwrap(), 2);
        assert!(stream.read(&mut buffer).is_err());
        assert!(stream.read(&mut buffer).is_err());
    }
}
