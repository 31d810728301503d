//! One block in, one compressed block out: the five compressors behind one type.
//!
//! An encoder belongs to one thread and keeps what its library lets it keep between blocks (contexts, tables). Equal input
//! gives equal output whatever was compressed before, which the determinism of images rests on.
//!
//! What the kernel's decompressors ask for (`fs/squashfs/*_wrapper.c`): a zstd window and an xz dictionary no larger than the
//! block size, xz with CRC32 at most and one LZMA2 filter, LZ4 without frame, zlib with its header.
//! The options that `mksquashfs` would record behind the superblock are in [`recorded_options`].

use std::io;

use crate::squashfs::compression::{Compression, Compressor};

/// Preset of `xz` when nothing is said.
const XZ_PRESET: u32 = 6;
/// The only version of the LZ4 options.
const LZ4_LEGACY: u32 = 1;
/// Window of zlib in bits.
const ZLIB_WINDOW: u16 = 15;
/// Levels that `mksquashfs` takes for granted, so that they are not recorded.
const ZSTD_DEFAULT: i32 = 15;
const GZIP_DEFAULT: u32 = 9;

/// A compressor of blocks with its memory.
pub(super) enum Encoder {
    None,
    Gzip(flate2::Compress),
    /// With the size of its dictionary in bytes. Its library's settings cannot be kept.
    Xz(u32),
    Lz4(Box<lz4_flex::block::CompressTable>),
    Zstd(zstd::bulk::Compressor<'static>),
}

impl Encoder {
    /// An encoder for blocks of at most `block_size` bytes.
    pub(super) fn new(compression: Compression, block_size: u32) -> io::Result<Self> {
        Ok(match compression {
            Compression::None => Self::None,
            Compression::Gzip(level) => {
                Self::Gzip(flate2::Compress::new(flate2::Compression::new(level), true))
            }
            Compression::Xz => Self::Xz(block_size),
            Compression::Lz4 => Self::Lz4(Box::new(lz4_flex::block::CompressTable::large())),
            Compression::Zstd(level) => Self::Zstd(zstd::bulk::Compressor::new(level)?),
        })
    }

    /// Compresses `input` into `output`, which [`output_size`] sized. None when that makes it no smaller, so that it is better
    /// stored as it is; else the number of bytes written.
    pub(super) fn compress(
        &mut self,
        input: &[u8],
        output: &mut [u8],
    ) -> io::Result<Option<usize>> {
        let written = match self {
            Self::None => return Ok(None),
            Self::Gzip(context) => {
                context.reset();
                let status = context.compress(input, output, flate2::FlushCompress::Finish)?;
                match status {
                    flate2::Status::StreamEnd => usize::try_from(context.total_out()).ok(),
                    _ => None,
                }
            }
            Self::Xz(dictionary_size) => {
                let mut options = liblzma::stream::LzmaOptions::new_preset(XZ_PRESET)?;
                options.dict_size(*dictionary_size);
                let mut filters = liblzma::stream::Filters::new();
                filters.lzma2(&options);
                let mut stream = liblzma::stream::Stream::new_stream_encoder(
                    &filters,
                    liblzma::stream::Check::Crc32,
                )?;
                let status = stream.process(input, output, liblzma::stream::Action::Finish)?;
                match status {
                    liblzma::stream::Status::StreamEnd => usize::try_from(stream.total_out()).ok(),
                    _ => None,
                }
            }
            Self::Lz4(table) => Some(
                lz4_flex::block::compress_into_with_table(input, output, table)
                    .map_err(io::Error::other)?,
            ),
            Self::Zstd(context) => Some(context.compress_to_buffer(input, output)?),
        };
        Ok(written.filter(|written| *written < input.len()))
    }
}

/// How large the output buffer for an input of `input` bytes must be, in bytes.
pub(super) fn output_size(compression: Compression, input: usize) -> usize {
    match compression {
        Compression::None => 0,
        // An output that would need more is no smaller than the input, and refused anyway.
        Compression::Gzip(_) | Compression::Xz => input,
        Compression::Lz4 => lz4_flex::block::get_maximum_output_size(input),
        // zstd is faster where it need not watch the end of the buffer.
        Compression::Zstd(_) => zstd::zstd_safe::compress_bound(input),
    }
}

/// The compressor that the superblock names.
pub(super) fn compressor(compression: Compression) -> Compressor {
    match compression {
        Compression::None | Compression::Gzip(_) => Compressor::Gzip,
        Compression::Xz => Compressor::Xz,
        Compression::Lz4 => Compressor::Lz4,
        Compression::Zstd(_) => Compressor::Zstd,
    }
}

/// The options to record behind the superblock: where the kernel needs them (LZ4), or they are not the defaults of `mksquashfs`.
pub(super) fn recorded_options(compression: Compression) -> Option<Vec<u8>> {
    match compression {
        Compression::None | Compression::Xz => None,
        Compression::Gzip(GZIP_DEFAULT) | Compression::Zstd(ZSTD_DEFAULT) => None,
        Compression::Gzip(level) => {
            let mut options = level.to_le_bytes().to_vec();
            options.extend_from_slice(&ZLIB_WINDOW.to_le_bytes());
            // Strategies that were tried: none but the default.
            options.extend_from_slice(&0u16.to_le_bytes());
            Some(options)
        }
        Compression::Lz4 => {
            let mut options = LZ4_LEGACY.to_le_bytes().to_vec();
            // Flags: not the high compression mode.
            options.extend_from_slice(&0u32.to_le_bytes());
            Some(options)
        }
        Compression::Zstd(level) => Some(level.to_le_bytes().to_vec()),
    }
}

/// Whether the levels in a [`Compression`] exist.
pub(super) fn is_valid(compression: Compression) -> bool {
    match compression {
        Compression::None | Compression::Xz | Compression::Lz4 => true,
        Compression::Gzip(level) => (1..=9).contains(&level),
        Compression::Zstd(level) => (1..=22).contains(&level),
    }
}
