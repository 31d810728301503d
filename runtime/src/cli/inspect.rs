//! `cista inspect`: show what an image file contains.
//!
//! Reads the superblock, the record that our imports leave in an image, and counts what the directories lead to; no file
//! content is read. Works on any squashfs image, enroot's among them, which have no record.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::process::ExitCode;

use cista_images::import::record::{self, ImageConfig, Record};
use cista_images::layer::path::Shown;
use cista_images::squashfs::format::flags;
use cista_images::squashfs::reader::{Inode, InodeKind, ReadError, Reader};
use indicatif::HumanBytes;
use serde::Serialize;

use super::{Context, Failure, Outcome};
use crate::ui;

/// Show what an image file contains
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print one JSON object; `cista help json` tells its fields
    #[arg(long)]
    json: bool,
    /// Image file
    image: PathBuf,
}

/// All that is shown. Fields are added but never renamed or removed.
#[derive(Debug, Serialize)]
struct Report {
    /// Size of the file in bytes.
    size: u64,
    squashfs: Squashfs,
    contents: Contents,
    /// What was asked for when the image was imported.
    reference: Option<String>,
    /// Digest of the manifest it was imported from.
    digest: Option<String>,
    /// The image config, as it came.
    config: Option<serde_json::Value>,
}

/// What the superblock says.
#[derive(Debug, Serialize)]
struct Squashfs {
    /// Size of the file system in bytes, without padding.
    bytes_used: u64,
    compression: String,
    /// Size of a block in bytes.
    block_size: u32,
    /// Seconds since 1970.
    created: u32,
    inodes: u32,
    /// Blocks that hold several small files each.
    fragments: u32,
    duplicates_removed: bool,
    exportable: bool,
    xattrs: bool,
}

/// What the directories lead to. A file with several names counts once.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
struct Contents {
    directories: u64,
    files: u64,
    symlinks: u64,
    /// Devices, named pipes and sockets.
    special: u64,
    /// Names beyond the first of each file.
    hard_links: u64,
    /// Content of all files in bytes, holes included.
    bytes: u64,
}

pub(super) fn run(args: Args, _context: &Context) -> Outcome {
    let failed = |error: ReadError| {
        Failure::new(Unusable {
            path: args.image.clone(),
            source: error,
        })
    };
    let file = File::open(&args.image).map_err(|source| Unreadable {
        path: args.image.clone(),
        source,
    })?;
    let size = file
        .metadata()
        .map_err(|source| Unreadable {
            path: args.image.clone(),
            source,
        })?
        .len();
    let reader = Reader::open(file, 0).map_err(failed)?;
    let contents = count(&reader).map_err(failed)?;
    let record = read_record(&reader).map_err(failed)?;
    let record = record.map(|json| Record::parse(&json)).transpose()?;
    let config = match &record {
        Some(record) => record.image_config()?,
        None => ImageConfig::default(),
    };
    let report = Report {
        size,
        squashfs: squashfs(&reader),
        contents,
        reference: record.as_ref().and_then(|record| record.reference.clone()),
        digest: record.as_ref().and_then(|record| record.digest.clone()),
        config: record
            .as_ref()
            .and_then(Record::config_json)
            .map(serde_json::from_str)
            .transpose()?,
    };
    if args.json {
        ui::data(serde_json::to_string_pretty(&report)?);
    } else {
        for line in lines(&report, &config) {
            ui::data(line);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// An image file that cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot open `{path}`")]
pub(super) struct Unreadable {
    path: PathBuf,
    /// The system's answer.
    pub(super) source: std::io::Error,
}

/// A file that is no image, or a damaged one.
#[derive(Debug, thiserror::Error)]
#[error("`{path}` is not a usable image")]
struct Unusable {
    path: PathBuf,
    source: ReadError,
}

fn squashfs(reader: &Reader) -> Squashfs {
    let superblock = reader.superblock();
    let has = |flag: u16| superblock.flags.get() & flag != 0;
    let compression = if has(flags::UNCOMPRESSED_DATA) && has(flags::UNCOMPRESSED_INODES) {
        "none".to_owned()
    } else {
        format!("{:?}", reader.compressor()).to_lowercase()
    };
    Squashfs {
        bytes_used: reader.bytes_used(),
        compression,
        block_size: reader.block_size(),
        created: superblock.mkfs_time.get(),
        inodes: superblock.inode_count.get(),
        fragments: superblock.fragment_count.get(),
        duplicates_removed: has(flags::DUPLICATES),
        exportable: has(flags::EXPORTABLE),
        xattrs: !has(flags::NO_XATTRS),
    }
}

/// The record's JSON text; None when the image has none.
fn read_record(reader: &Reader) -> Result<Option<Vec<u8>>, ReadError> {
    match reader.walk(record::PATH.as_bytes())? {
        Some(inode) if matches!(inode.kind, InodeKind::File(_)) => {
            reader.read_file(&inode, record::MAX_SIZE as u64).map(Some)
        }
        _ => Ok(None),
    }
}

/// Walks all directories. A hostile image may lead in circles; the number of inodes bounds the walk.
fn count(reader: &Reader) -> Result<Contents, ReadError> {
    let mut contents = Contents::default();
    // Names that each inode with several of them still has.
    let mut shared: BTreeMap<u32, u32> = BTreeMap::new();
    let mut left = vec![reader.inode(reader.root_ref())?];
    while let Some(directory) = left.pop() {
        contents.directories += 1;
        if contents.directories > u64::from(reader.superblock().inode_count.get()) {
            return Err(ReadError::Corrupt {
                what: "directories lead in circles",
                offset: 0,
            });
        }
        let mut cursor = reader.open_directory(&directory)?;
        while let Some(entry) = cursor.advance()? {
            let inode = reader.inode(entry.inode)?;
            if matches!(inode.kind, InodeKind::Directory(_)) {
                left.push(inode);
            } else if inode.nlink > 1 && shared.insert(inode.number, inode.nlink).is_some() {
                contents.hard_links += 1;
            } else {
                contents.add(&inode);
            }
        }
    }
    Ok(contents)
}

impl Contents {
    fn add(&mut self, inode: &Inode) {
        match &inode.kind {
            InodeKind::File(file) => {
                self.files += 1;
                self.bytes = self.bytes.saturating_add(file.size);
            }
            InodeKind::Symlink(_) => self.symlinks += 1,
            InodeKind::Directory(_) => self.directories += 1,
            InodeKind::BlockDevice(_)
            | InodeKind::CharacterDevice(_)
            | InodeKind::Fifo
            | InodeKind::Socket => self.special += 1,
        }
    }
}

/// The report for a person. Text of the image is escaped.
fn lines(report: &Report, config: &ImageConfig) -> Vec<String> {
    let shown = |text: &str| Shown(text.as_bytes()).to_string();
    let words = |words: &[String]| {
        let words: Vec<_> = words.iter().map(|word| format!("{word:?}")).collect();
        words.join(" ")
    };
    let mut lines = Vec::new();
    let mut line = |name: &str, value: String| {
        if !value.is_empty() {
            lines.push(format!("{name:<13}{value}"));
        }
    };
    let Squashfs {
        compression,
        block_size,
        inodes,
        ..
    } = &report.squashfs;
    let contents = &report.contents;
    line(
        "reference",
        report.reference.as_deref().map(shown).unwrap_or_default(),
    );
    line(
        "digest",
        report.digest.as_deref().map(shown).unwrap_or_default(),
    );
    let platform = [config.os.as_deref(), config.architecture.as_deref()];
    let platform: Vec<_> = platform.into_iter().flatten().map(shown).collect();
    line("platform", platform.join("/"));
    line(
        "created",
        config.created.as_deref().map(shown).unwrap_or_default(),
    );
    line(
        "size",
        format!(
            "{} ({} bytes), {} of files",
            HumanBytes(report.size),
            report.size,
            HumanBytes(contents.bytes)
        ),
    );
    line(
        "squashfs",
        format!(
            "{compression}, blocks of {}, {inodes} inodes",
            HumanBytes(u64::from(*block_size))
        ),
    );
    line(
        "contents",
        format!(
            "{} files, {} directories, {} symbolic links, {} hard links, {} special",
            contents.files,
            contents.directories,
            contents.symlinks,
            contents.hard_links,
            contents.special
        ),
    );
    let execution = &config.config;
    line("entrypoint", words(&execution.entrypoint));
    line("command", words(&execution.cmd));
    line("directory", shown(&execution.working_dir));
    line("user", shown(&execution.user));
    for variable in &execution.env {
        line("environment", shown(variable));
    }
    for volume in execution.volumes.keys() {
        line("volume", shown(volume));
    }
    for (name, value) in &execution.labels {
        line("label", format!("{}={}", shown(name), shown(value)));
    }
    lines
}
