//! The compressors of squashfs: names, numbers, and the settings that a user may choose.

use std::fmt;
use std::str::FromStr;

/// A compressor, with the number that stands in the superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Compressor {
    /// zlib (RFC 1950).
    Gzip = 1,
    /// LZMA alone; read and written by nobody today.
    Lzma = 2,
    /// LZO1X; readable only.
    Lzo = 3,
    /// xz.
    Xz = 4,
    /// LZ4 block format.
    Lz4 = 5,
    /// Zstandard (RFC 8878).
    Zstd = 6,
}

/// How the writer compresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Store everything as it is. The superblock says gzip, as mksquashfs does with `-no-compression`.
    None,
    /// zlib with a level of 1 to 9.
    Gzip(u32),
    /// xz with the default preset.
    Xz,
    /// LZ4 block format.
    Lz4,
    /// Zstandard with a level of 1 to 22.
    Zstd(i32),
}

impl Default for Compression {
    /// zstd, level 1: the fastest that still compresses well, and the best to read.
    fn default() -> Self {
        Self::Zstd(1)
    }
}

/// A compression that does not exist.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown compression `{0}`: expected `zstd`, `zstd:N` (N = 1-22), `lz4`, `gzip`, `gzip:N` (N = 1-9), `xz` or `none`"
)]
pub struct UnknownCompression(String);

impl FromStr for Compression {
    type Err = UnknownCompression;

    fn from_str(text: &str) -> Result<Self, UnknownCompression> {
        let (name, level) = match text.split_once(':') {
            Some((name, level)) => (
                name,
                Some(
                    level
                        .parse::<u32>()
                        .map_err(|_| UnknownCompression(text.to_owned()))?,
                ),
            ),
            None => (text, None),
        };
        match (name, level) {
            ("none", None) => Ok(Self::None),
            ("xz", None) => Ok(Self::Xz),
            ("lz4", None) => Ok(Self::Lz4),
            ("gzip", None) => Ok(Self::Gzip(9)),
            ("gzip", Some(level @ 1..=9)) => Ok(Self::Gzip(level)),
            ("zstd", None) => Ok(Self::default()),
            ("zstd", Some(level @ 1..=22)) => Ok(Self::Zstd(level.cast_signed())),
            _ => Err(UnknownCompression(text.to_owned())),
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => write!(f, "none"),
            Self::Gzip(level) => write!(f, "gzip:{level}"),
            Self::Xz => write!(f, "xz"),
            Self::Lz4 => write!(f, "lz4"),
            Self::Zstd(level) => write!(f, "zstd:{level}"),
        }
    }
}
