//! Compressed streams: recognised by their first bytes, decoded in one pass, limited in how far they expand.
//!
//! Formats: gzip (RFC 1952) with any number of members, Zstandard (RFC 8878) with any number of frames and skippable
//! frames (zstd:chunked and eStargz are such streams), xz, and plain tar. Media types are not consulted: registries
//! hold gzip layers that are called plain and the other way round, and engines sniff too.
//!
//! The limit on expansion grows with what was read: a layer may expand to a fixed floor plus a multiple of its own
//! size. So a small bomb stops early and a large honest image never meets the limit.

use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use flate2::bufread::MultiGzDecoder;
use liblzma::bufread::XzDecoder;

use super::{BLOCK, Limits, tar};

/// Size of the buffer between a blob and its decoder, in bytes.
const BUFFER: usize = 256 << 10;

/// Most memory that xz may take for its dictionary, in bytes; the highest preset wants 65 MiB.
const XZ_MEMORY: u64 = 128 << 20;

/// How a stream is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Not at all.
    Plain,
    /// gzip, RFC 1952.
    Gzip,
    /// Zstandard, RFC 8878.
    Zstd,
    /// xz.
    Xz,
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Plain => "plain",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Xz => "xz",
        })
    }
}

/// Why a stream cannot be decoded.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The blob itself cannot be read, or is not what was announced.
    #[error("{0}")]
    Read(#[source] io::Error),
    /// The stream is in a compression format that layers never have.
    #[error("the stream is compressed with {0}, which no layer may be")]
    Unsupported(&'static str),
    /// The stream is neither compressed in a known way nor a tar stream.
    #[error("the stream is neither gzip, zstd, xz nor plain tar")]
    Unknown,
    /// The decoder cannot be set up.
    #[error("cannot set up the {format} decoder")]
    Setup {
        /// The format.
        format: Format,
        /// What the decoder says.
        source: io::Error,
    },
    /// The compressed stream is damaged.
    #[error("the {format} stream is corrupt")]
    Corrupt {
        /// The format.
        format: Format,
        /// What the decoder says.
        source: io::Error,
    },
    /// The compressed stream ends too early.
    #[error("the {format} stream ends too early")]
    Truncated {
        /// The format.
        format: Format,
    },
    /// The stream expands beyond what its size allows.
    #[error(
        "the {format} stream expands to more than {limit} bytes, from {compressed}: it looks like a decompression bomb"
    )]
    Expands {
        /// The format.
        format: Format,
        /// Compressed bytes that were read.
        compressed: u64,
        /// What they may expand to.
        limit: u64,
    },
}

/// Counts what is read of a blob, and remembers whether reading failed, since decoders report both kinds of failure in
/// the same way.
struct Blob<'a> {
    inner: Box<dyn Read + Send + 'a>,
    shared: Arc<BlobState>,
}

#[derive(Default)]
struct BlobState {
    bytes: AtomicU64,
    failed: AtomicBool,
}

impl Read for Blob<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.inner.read(buffer) {
            Ok(length) => {
                self.shared
                    .bytes
                    .fetch_add(length as u64, Ordering::Relaxed);
                Ok(length)
            }
            Err(error) => {
                if error.kind() != io::ErrorKind::Interrupted {
                    self.shared.failed.store(true, Ordering::Relaxed);
                }
                Err(error)
            }
        }
    }
}

type Input<'a> = BufReader<io::Chain<Cursor<Vec<u8>>, Blob<'a>>>;

enum Inner<'a> {
    Plain(Input<'a>),
    Gzip(Box<MultiGzDecoder<Input<'a>>>),
    Zstd(zstd::stream::read::Decoder<'static, Input<'a>>),
    Xz(XzDecoder<Input<'a>>),
}

/// A stream being decoded.
pub struct Decoder<'a> {
    inner: Inner<'a>,
    format: Format,
    blob: Arc<BlobState>,
    limits: Limits,
    decoded: u64,
}

impl<'a> Decoder<'a> {
    /// Recognises the format of a blob by its first bytes.
    pub fn new(blob: Box<dyn Read + Send + 'a>, limits: Limits) -> Result<Self, DecodeError> {
        let state = Arc::new(BlobState::default());
        let mut blob = Blob {
            inner: blob,
            shared: Arc::clone(&state),
        };
        let mut start = Vec::with_capacity(BLOCK);
        blob.by_ref()
            .take(BLOCK as u64)
            .read_to_end(&mut start)
            .map_err(DecodeError::Read)?;
        let format = detect(&start)?;
        let input = BufReader::with_capacity(BUFFER, Cursor::new(start).chain(blob));
        let setup = |source| DecodeError::Setup { format, source };
        let inner = match format {
            Format::Plain => Inner::Plain(input),
            Format::Gzip => Inner::Gzip(Box::new(MultiGzDecoder::new(input))),
            Format::Zstd => {
                Inner::Zstd(zstd::stream::read::Decoder::with_buffer(input).map_err(setup)?)
            }
            Format::Xz => Inner::Xz(XzDecoder::new_stream(
                input,
                liblzma::stream::Stream::new_stream_decoder(
                    XZ_MEMORY,
                    liblzma::stream::CONCATENATED,
                )
                .map_err(|error| setup(error.into()))?,
            )),
        };
        Ok(Self {
            inner,
            format,
            blob: state,
            limits,
            decoded: 0,
        })
    }

    /// The format that was recognised.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// Bytes of the blob that were read so far; some of them may still wait to be decoded.
    #[must_use]
    pub fn compressed(&self) -> u64 {
        self.blob.bytes.load(Ordering::Relaxed)
    }

    /// Decodes bytes into `buffer` until it is full or the stream ends, and returns their number; less than the buffer's
    /// length only at the end of the stream. At the end the whole blob has been read, so that it is verified.
    pub fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, DecodeError> {
        let mut filled = 0;
        while filled < buffer.len() {
            let target = &mut buffer[filled..];
            let result = match &mut self.inner {
                Inner::Plain(input) => input.read(target),
                Inner::Gzip(decoder) => decoder.read(target),
                Inner::Zstd(decoder) => decoder.read(target),
                Inner::Xz(decoder) => decoder.read(target),
            };
            match result {
                Ok(0) => {
                    self.drain()?;
                    break;
                }
                Ok(length) => filled += length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.explain(error)),
            }
        }
        self.decoded += filled as u64;
        let compressed = self.compressed();
        let limit = self
            .limits
            .expansion_floor
            .saturating_add(compressed.saturating_mul(self.limits.expansion_ratio));
        if self.decoded > limit {
            return Err(DecodeError::Expands {
                format: self.format,
                compressed,
                limit,
            });
        }
        Ok(filled)
    }

    /// The error of a decoder, or what the blob's own verification says when it is the blob that is damaged.
    fn explain(&mut self, error: io::Error) -> DecodeError {
        match self.classify(error) {
            error @ DecodeError::Read(_) => error,
            error => self.drain().err().unwrap_or(error),
        }
    }

    /// Reads what stands behind the compressed stream, which only the blob's own verification is interested in.
    fn drain(&mut self) -> Result<(), DecodeError> {
        let input = match &mut self.inner {
            Inner::Plain(input) => input,
            Inner::Gzip(decoder) => decoder.get_mut(),
            Inner::Zstd(decoder) => decoder.get_mut(),
            Inner::Xz(decoder) => decoder.get_mut(),
        };
        loop {
            match input.fill_buf() {
                Ok([]) => return Ok(()),
                Ok(data) => {
                    let length = data.len();
                    input.consume(length);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.classify(error)),
            }
        }
    }

    fn classify(&self, error: io::Error) -> DecodeError {
        if self.blob.failed.load(Ordering::Relaxed) || self.format == Format::Plain {
            DecodeError::Read(error)
        } else if error.kind() == io::ErrorKind::UnexpectedEof {
            DecodeError::Truncated {
                format: self.format,
            }
        } else {
            DecodeError::Corrupt {
                format: self.format,
                source: error,
            }
        }
    }
}

/// The format of a stream that begins with `start`: its first block, or all of it when it is shorter.
fn detect(start: &[u8]) -> Result<Format, DecodeError> {
    match start {
        [0x1f, 0x8b, ..] => Ok(Format::Gzip),
        // The second is a skippable frame (RFC 8878, section 3.1.2).
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Format::Zstd),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Ok(Format::Xz),
        [] => Ok(Format::Plain),
        _ if tar::is_start(start) => Ok(Format::Plain),
        [b'B', b'Z', b'h', ..] => Err(DecodeError::Unsupported("bzip2")),
        [0x04, 0x22, 0x4d, 0x18, ..] => Err(DecodeError::Unsupported("lz4")),
        _ => Err(DecodeError::Unknown),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// A tar stream of one file with content that compresses.
    fn tar_stream() -> Vec<u8> {
        let mut builder = ::tar::Builder::new(Vec::new());
        let content: Vec<u8> = (0..400_000_u32)
            .flat_map(|n| (n / 7).to_le_bytes())
            .collect();
        let mut header = ::tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        builder
            .append_data(&mut header, "file", &content[..])
            .unwrap();
        builder.into_inner().unwrap()
    }

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn xz(data: &[u8]) -> Vec<u8> {
        let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(data: &[u8]) -> Vec<u8> {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        // Without it damage may go unnoticed until the layer's own digest is compared.
        encoder.include_checksum(true).unwrap();
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn decode(blob: &[u8], limits: Limits) -> Result<Vec<u8>, DecodeError> {
        let mut decoder = Decoder::new(Box::new(blob), limits)?;
        let mut stream = Vec::new();
        let mut buffer = vec![0; 10_007];
        loop {
            let length = decoder.fill(&mut buffer)?;
            stream.extend_from_slice(&buffer[..length]);
            if length < buffer.len() {
                assert_eq!(decoder.compressed(), blob.len() as u64);
                return Ok(stream);
            }
        }
    }

    #[test]
    fn every_format_and_its_concatenation() {
        let plain = tar_stream();
        let (left, right) = plain.split_at(plain.len() / 3);
        let skippable = [&[0x5e, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"toc"].concat();
        for blob in [
            plain.clone(),
            gzip(&plain),
            zstd(&plain),
            xz(&plain),
            [gzip(left), gzip(right)].concat(),
            [zstd(left), zstd(right)].concat(),
            [xz(left), xz(right)].concat(),
            [
                skippable.clone(),
                zstd(left),
                skippable.clone(),
                zstd(right),
                skippable,
            ]
            .concat(),
        ] {
            assert!(decode(&blob, Limits::default()).unwrap() == plain);
        }
        assert_eq!(decode(b"", Limits::default()).unwrap(), b"");
        assert_eq!(decode(&[0; 1024], Limits::default()).unwrap(), [0; 1024]);
    }

    #[test]
    fn truncated_and_corrupt_streams_are_refused() {
        let plain = tar_stream();
        for (format, blob) in [
            (Format::Gzip, gzip(&plain)),
            (Format::Zstd, zstd(&plain)),
            (Format::Xz, xz(&plain)),
        ] {
            for cut in [7, blob.len() / 2, blob.len() - 1] {
                let result = decode(&blob[..cut], Limits::default());
                assert!(
                    matches!(result, Err(DecodeError::Truncated { format: f }) if f == format),
                    "{format} cut at {cut}: {:?}",
                    result.map(|stream| stream.len())
                );
            }
            let mut corrupt = blob.clone();
            let middle = corrupt.len() / 2;
            corrupt[middle..middle + 8].copy_from_slice(&[0x5a; 8]);
            let result = decode(&corrupt, Limits::default());
            assert!(
                matches!(&result, Err(DecodeError::Corrupt { format: f, .. }) if *f == format)
                    // Where nothing but the end of the stream tells, the decoder may find that first.
                    || matches!(&result, Err(DecodeError::Truncated { .. })),
                "{format}"
            );
        }
    }

    #[test]
    fn garbage_behind_a_stream_is_refused() {
        let plain = tar_stream();
        for blob in [gzip(&plain), zstd(&plain), xz(&plain)] {
            assert!(decode(&[blob, b"garbage!".to_vec()].concat(), Limits::default()).is_err());
        }
    }

    #[test]
    fn unknown_streams_are_refused() {
        for (blob, unsupported) in [
            (&b"BZh91AY&SY"[..], true),
            (&[0x04, 0x22, 0x4d, 0x18, 0x60, 0x40], true),
            (b"<html>not found</html>", false),
            (&[b'x'; 1024], false),
        ] {
            let error = decode(blob, Limits::default()).unwrap_err();
            assert_eq!(matches!(error, DecodeError::Unsupported(_)), unsupported);
            assert_eq!(matches!(error, DecodeError::Unknown), !unsupported);
        }
    }

    #[test]
    fn bombs_are_stopped() {
        let limits = Limits {
            expansion_floor: 1 << 20,
            expansion_ratio: 10,
            ..Limits::default()
        };
        let zeros = vec![0; 8 << 20];
        for blob in [gzip(&zeros), zstd(&zeros), xz(&zeros)] {
            assert!(matches!(
                decode(&blob, limits),
                Err(DecodeError::Expands { .. })
            ));
        }
        assert_eq!(decode(&zeros, limits).unwrap().len(), zeros.len());
    }

    #[test]
    fn a_blob_that_knows_of_its_damage_is_believed() {
        struct Damaged<'a>(&'a [u8]);
        impl Read for Damaged<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                match self.0.read(buffer)? {
                    0 => Err(io::Error::other("wrong digest")),
                    length => Ok(length),
                }
            }
        }
        for mut blob in [gzip(&tar_stream()), xz(&tar_stream()), zstd(&tar_stream())] {
            let middle = blob.len() / 2;
            blob[middle..middle + 8].fill(0x5a);
            for blob in [&blob[..], &blob[..middle]] {
                let mut decoder = Decoder::new(Box::new(Damaged(blob)), Limits::default()).unwrap();
                let error = decoder.fill(&mut vec![0; 4 << 20]).unwrap_err();
                assert!(matches!(error, DecodeError::Read(_)), "{error}");
            }
        }
    }

    #[test]
    fn a_failing_blob_is_told_from_a_corrupt_one() {
        struct Failing;
        impl Read for Failing {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("connection lost"))
            }
        }
        for blob in [tar_stream(), gzip(&tar_stream()), zstd(&tar_stream())] {
            let half = Cursor::new(blob[..600].to_vec()).chain(Failing);
            let mut decoder = Decoder::new(Box::new(half), Limits::default()).unwrap();
            let error = decoder.fill(&mut vec![0; 4 << 20]).unwrap_err();
            assert!(matches!(error, DecodeError::Read(_)), "{error}");
        }
    }
}
