//! Feeds a plain tar file through the squashfs writer: `tar2squashfs IN.tar OUT.sqsh [THREADS [COMPRESSION]]`.
//!
//! For measurements of the writer alone. It knows files, directories, symbolic and hard links, no more.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::File;
use std::io::{BufReader, Write};
use std::time::Instant;

use cista_images::cancel::Cancel;
use cista_images::squashfs::writer::{Options, Writer};
use cista_images::tree::{Inode, InodeId, Kind, Metadata, Tree};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, input, output, rest @ ..] = arguments.as_slice() else {
        return Err("usage: tar2squashfs IN.tar OUT.sqsh [THREADS [COMPRESSION]]".into());
    };
    let mut options = Options::default();
    if let Some(threads) = rest.first() {
        options.threads = threads.parse()?;
    }
    if let Some(compression) = rest.get(1) {
        options.compression = compression.parse()?;
    }
    let begin = Instant::now();
    let mut writer = Writer::new(File::create(output)?, options, Cancel::new())?;
    let mut tree = Tree::new(metadata(0o755, 0));
    let mut archive = tar::Archive::new(BufReader::with_capacity(128 << 10, File::open(input)?));
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path_bytes().into_owned();
        let components: Vec<&[u8]> = path
            .split(|byte| *byte == b'/')
            .filter(|name| !name.is_empty() && *name != b".")
            .collect();
        let header = entry.header();
        let metadata = metadata(header.mode()? & 0o7777, header.mtime()?);
        let kind = header.entry_type();
        let Some((name, parents)) = components.split_last() else {
            tree.inode_mut(Tree::ROOT).metadata = metadata;
            continue;
        };
        let parent = walk(&tree, parents).ok_or("no parent")?;
        let kind = if kind.is_dir() {
            Kind::Directory(BTreeMap::new())
        } else if kind.is_file() {
            let size = entry.size();
            let mut content = writer.begin_file(size)?;
            content.read_from(&mut entry, size)?;
            Kind::File(content.finish()?)
        } else if kind.is_symlink() {
            Kind::Symlink(entry.link_name_bytes().ok_or("no target")?.into())
        } else if kind.is_hard_link() {
            let target = entry.link_name_bytes().ok_or("no target")?.into_owned();
            let components: Vec<&[u8]> = target
                .split(|byte| *byte == b'/')
                .filter(|name| !name.is_empty() && *name != b".")
                .collect();
            let target = walk(&tree, &components).ok_or("no target")?;
            tree.link(parent, name, target);
            continue;
        } else {
            continue;
        };
        let inode = tree.add(Inode { metadata, kind }).ok_or("too many")?;
        tree.link(parent, name, inode);
    }
    let streamed = begin.elapsed();
    let summary = writer.finish(&tree)?;
    let finished = begin.elapsed();
    summary.file.sync_all()?;
    writeln!(
        std::io::stdout(),
        "{} inodes, {} -> {} bytes, {} duplicates; {streamed:.3?} streamed, {finished:.3?} finished, {:.3?} synced",
        summary.inodes,
        summary.content_bytes,
        summary.bytes_used,
        summary.duplicates,
        begin.elapsed()
    )?;
    Ok(())
}

fn metadata(mode: u32, mtime: u64) -> Metadata {
    Metadata {
        mode: (mode & 0o7777) as u16,
        uid: 0,
        gid: 0,
        mtime: u32::try_from(mtime).unwrap_or(u32::MAX),
        xattrs: None,
    }
}

fn walk(tree: &Tree, components: &[&[u8]]) -> Option<InodeId> {
    components
        .iter()
        .try_fold(Tree::ROOT, |directory, name| tree.child(directory, name))
}
