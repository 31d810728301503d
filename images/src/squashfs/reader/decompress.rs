//! One compressed block to plain bytes, never more than the caller allows.
//!
//! Every thread keeps one context for each compressor that it met: making a zstd context costs more than
//! decoding a metadata block with it. What each format means inside squashfs follows the kernel's
//! `fs/squashfs/*_wrapper.c`: zlib streams, raw LZO1X and LZ4 blocks, whole xz streams, whole zstd frames.

use std::cell::RefCell;

use crate::squashfs::compression::Compressor;

/// Memory that an xz stream may ask for: a dictionary of the largest block size, and the decoder's own state.
const XZ_MEMORY_LIMIT: u64 = 16 << 20;

#[derive(Default)]
struct Contexts {
    zstd: Option<zstd::bulk::Decompressor<'static>>,
    zlib: Option<flate2::Decompress>,
}

thread_local! {
    static CONTEXTS: RefCell<Contexts> = RefCell::default();
}

/// Whether this reader has a decoder for `compressor`.
pub(super) fn supported(number: u16) -> Option<Compressor> {
    [
        Compressor::Gzip,
        Compressor::Lzo,
        Compressor::Xz,
        Compressor::Lz4,
        Compressor::Zstd,
    ]
    .into_iter()
    .find(|compressor| *compressor as u16 == number)
}

/// Replaces the content of `output` by what `input` decompresses to; an error if that is more than `limit` bytes.
pub(super) fn decompress(
    compressor: Compressor,
    input: &[u8],
    limit: usize,
    output: &mut Vec<u8>,
) -> Result<(), String> {
    output.clear();
    // zstd takes nothing for a sequence of no frames, which decompresses to nothing.
    if input.is_empty() {
        return Err("it has no bytes".to_owned());
    }
    match compressor {
        Compressor::Zstd => {
            output.reserve_exact(limit);
            CONTEXTS.with_borrow_mut(|contexts| {
                let context = match &mut contexts.zstd {
                    Some(context) => context,
                    empty => empty.insert(zstd::bulk::Decompressor::new()?),
                };
                context.decompress_to_buffer(input, output)
            })
        }
        .map_err(|error| error.to_string())?,
        Compressor::Gzip => {
            output.reserve_exact(limit);
            CONTEXTS.with_borrow_mut(|contexts| {
                let context = contexts
                    .zlib
                    .get_or_insert_with(|| flate2::Decompress::new(true));
                context.reset(true);
                match context.decompress_vec(input, output, flate2::FlushDecompress::Finish) {
                    Ok(flate2::Status::StreamEnd) => Ok(output.len()),
                    Ok(_) => Err("the zlib stream does not end where it should".to_owned()),
                    Err(error) => Err(error.to_string()),
                }
            })?
        }
        Compressor::Xz => {
            output.reserve_exact(limit);
            let mut stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY_LIMIT, 0)
                .map_err(|error| error.to_string())?;
            match stream.process_vec(input, output, liblzma::stream::Action::Finish) {
                Ok(liblzma::stream::Status::StreamEnd) => output.len(),
                Ok(_) => return Err("the xz stream does not end where it should".to_owned()),
                Err(error) => return Err(error.to_string()),
            }
        }
        Compressor::Lz4 => {
            output.resize(limit, 0);
            let length = lz4_flex::block::decompress_into(input, output)
                .map_err(|error| error.to_string())?;
            output.truncate(length);
            length
        }
        Compressor::Lzo => {
            output.resize(limit, 0);
            let length = lzo::decompress_into(input, output).map_err(|error| error.to_string())?;
            output.truncate(length);
            length
        }
        Compressor::Lzma => return Err("LZMA is not supported".to_owned()),
    };
    if output.len() > limit {
        return Err(format!(
            "it holds {} bytes, more than the {limit} allowed",
            output.len()
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_never_decodes_beyond_its_limit() {
        let plain = vec![7_u8; 100_000];
        let zstd = zstd::bulk::compress(&plain, 1).unwrap();
        let lz4 = lz4_flex::block::compress(&plain);
        let mut zlib = Vec::new();
        let mut encoder = flate2::read::ZlibEncoder::new(&plain[..], flate2::Compression::fast());
        std::io::Read::read_to_end(&mut encoder, &mut zlib).unwrap();
        let mut xz = Vec::new();
        let mut encoder = liblzma::read::XzEncoder::new(&plain[..], 1);
        std::io::Read::read_to_end(&mut encoder, &mut xz).unwrap();
        for (compressor, packed) in [
            (Compressor::Zstd, zstd),
            (Compressor::Lz4, lz4),
            (Compressor::Gzip, zlib),
            (Compressor::Xz, xz),
        ] {
            let mut output = Vec::new();
            decompress(compressor, &packed, plain.len(), &mut output).unwrap();
            assert_eq!(output, plain, "{compressor:?}");
            for limit in [0, 1, 8192, plain.len() - 1] {
                // A buffer that was used before, with room to spare.
                decompress(compressor, &packed, limit, &mut output).unwrap_err();
                let mut output = Vec::new();
                decompress(compressor, &packed, limit, &mut output).unwrap_err();
            }
            for cut in [0, 1, packed.len() / 2, packed.len() - 1] {
                let result = decompress(compressor, &packed[..cut], plain.len(), &mut output);
                assert!(
                    result.is_err(),
                    "{compressor:?} cut at {cut} of {}",
                    packed.len()
                );
            }
        }
    }

    #[test]
    fn contexts_survive_an_error() {
        let packed = zstd::bulk::compress(&[9; 5000], 1).unwrap();
        let mut output = Vec::new();
        decompress(Compressor::Zstd, b"nonsense", 8192, &mut output).unwrap_err();
        decompress(Compressor::Zstd, &packed, 8192, &mut output).unwrap();
        assert_eq!(output, [9; 5000]);
    }
}
