//! Packs layers into an image: `repack OUT.sqsh LAYER…`, each an image file or a directory, the lowest first.
//!
//! For measurements of packing alone.

use std::error::Error;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use cista_images::cancel::Cancel;
use cista_images::pack::{Layer, pack};
use cista_images::squashfs::reader::Reader;
use cista_images::squashfs::writer::{Options, Writer};

enum Opened {
    Image(Box<Reader>),
    Directory(PathBuf),
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let Some((output, layers)) = arguments.split_first() else {
        return Err("usage: repack OUT.sqsh LAYER…".into());
    };
    let opened = layers
        .iter()
        .map(|layer| open(layer))
        .collect::<Result<Vec<_>, _>>()?;
    let layers: Vec<Layer<'_>> = opened
        .iter()
        .map(|opened| match opened {
            Opened::Image(reader) => Layer::Image(reader),
            Opened::Directory(path) => Layer::Directory(path),
        })
        .collect();
    let begin = Instant::now();
    let cancel = Cancel::new();
    let mut writer = Writer::new(File::create(output)?, Options::default(), cancel.clone())?;
    let packed = pack(&layers, &[], &mut writer, &cancel)?;
    let summary = writer.finish(&packed.tree)?;
    writeln!(
        std::io::stdout(),
        "{} inodes, {} -> {} bytes, {} duplicates, {:.3?}",
        summary.inodes,
        summary.content_bytes,
        summary.bytes_used,
        summary.duplicates,
        begin.elapsed()
    )?;
    Ok(())
}

fn open(path: &Path) -> Result<Opened, Box<dyn Error>> {
    if path.is_dir() {
        return Ok(Opened::Directory(path.to_owned()));
    }
    Ok(Opened::Image(Box::new(Reader::open(File::open(path)?, 0)?)))
}
