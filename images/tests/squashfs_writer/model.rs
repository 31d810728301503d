//! What an image should contain, how to write it, and whether a directory contains it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;

use cista_images::cancel::Cancel;
use cista_images::squashfs::writer::{Options, Summary, WriteError, Writer};
use cista_images::tree::{Inode, InodeId, Kind, Metadata, Tree, Xattrs};

/// The content of a file: zeros with patches in ascending order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Content {
    pub size: u64,
    pub patches: Vec<(u64, Vec<u8>)>,
}

impl Content {
    pub(crate) fn bytes(bytes: Vec<u8>) -> Self {
        Self {
            size: bytes.len() as u64,
            patches: vec![(0, bytes)],
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Node {
    Directory,
    File(Content),
    /// Path of the file that this is another link to; it comes earlier in byte order.
    HardLink(Vec<u8>),
    Symlink(Vec<u8>),
    Fifo,
    Socket,
}

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub node: Node,
    pub mode: u16,
    pub mtime: u32,
    pub xattrs: Xattrs,
}

/// Paths without a leading slash, the root being the empty path; parents come before children, since they are their prefixes.
pub(crate) type Model = BTreeMap<Vec<u8>, Entry>;

pub(crate) fn entry(node: Node) -> Entry {
    let mode = match node {
        Node::Directory => 0o755,
        _ => 0o644,
    };
    Entry {
        node,
        mode,
        mtime: 1_600_000_000,
        xattrs: Xattrs::new(),
    }
}

/// Bytes that compress about as well as programs do, the same for the same seed.
pub(crate) fn noise(seed: u64, size: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        if state & 3 == 0 && !bytes.is_empty() {
            let from = (state >> 8) as usize % bytes.len();
            let until = (from + 64).min(bytes.len());
            bytes.extend_from_within(from..until);
        } else {
            bytes.extend_from_slice(&state.to_le_bytes());
        }
    }
    bytes.truncate(size);
    bytes
}

/// Writes the image of a model, in pieces of `piece` bytes.
pub(crate) fn write(
    model: &Model,
    file: File,
    options: &Options,
    piece: usize,
) -> Result<Summary, WriteError> {
    let mut writer = Writer::new(file, options.clone(), Cancel::new())?;
    let mut tree = Tree::new(metadata(&model[&b""[..]]));
    let mut ids: BTreeMap<&[u8], InodeId> = BTreeMap::from([(&b""[..], Tree::ROOT)]);
    for (path, entry) in model.iter().filter(|(path, _)| !path.is_empty()) {
        let kind = match &entry.node {
            Node::Directory => Some(Kind::Directory(BTreeMap::new())),
            Node::File(content) => {
                let mut file = writer.begin_file(content.size)?;
                let mut position = 0;
                for (offset, patch) in &content.patches {
                    file.write_hole(offset - position)?;
                    for piece in patch.chunks(piece) {
                        file.write(piece)?;
                    }
                    position = offset + patch.len() as u64;
                }
                file.write_hole(content.size - position)?;
                Some(Kind::File(file.finish()?))
            }
            Node::HardLink(_) => None,
            Node::Symlink(target) => Some(Kind::Symlink(target.clone().into())),
            Node::Fifo => Some(Kind::Fifo),
            Node::Socket => Some(Kind::Socket),
        };
        let id = match (kind, &entry.node) {
            (Some(kind), _) => tree
                .add(Inode {
                    metadata: metadata(entry),
                    kind,
                })
                .unwrap(),
            (None, Node::HardLink(target)) => ids[target.as_slice()],
            (None, _) => unreachable!(),
        };
        ids.insert(path, id);
        let (parent, name) = split(path);
        tree.link(ids[parent], name, id);
    }
    writer.finish(&tree)
}

fn metadata(entry: &Entry) -> Metadata {
    Metadata {
        mode: entry.mode,
        uid: 0,
        gid: 0,
        mtime: entry.mtime,
        xattrs: (!entry.xattrs.is_empty()).then(|| Box::new(entry.xattrs.clone())),
    }
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

/// What a comparison looks at besides names, types, sizes, content and targets of links.
#[derive(Clone, Copy)]
pub(crate) struct Depth {
    /// Mode, times, number of links.
    pub metadata: bool,
    /// That hard links have the same inode number.
    pub inodes: bool,
    /// Extended attributes.
    pub xattrs: bool,
    /// Number of links of directories, which extraction leaves to the file system.
    pub directory_links: bool,
}

/// Panics at the first difference between a model and a directory.
pub(crate) fn compare(model: &Model, root: &Path, depth: Depth) {
    let mut seen = Vec::new();
    list(root, &mut Vec::new(), &mut seen);
    seen.sort();
    let expected: Vec<&Vec<u8>> = model.keys().filter(|path| !path.is_empty()).collect();
    assert!(
        seen.iter().eq(expected.iter().copied()),
        "different names: {:?}",
        first_difference(&seen, &expected)
    );
    let mut links: BTreeMap<&[u8], u64> = BTreeMap::new();
    let mut subdirectories: BTreeMap<&[u8], u64> = BTreeMap::new();
    for (path, entry) in model {
        let target = match &entry.node {
            Node::HardLink(target) => target,
            _ => path,
        };
        *links.entry(target).or_default() += 1;
        if matches!(entry.node, Node::Directory) && !path.is_empty() {
            *subdirectories.entry(split(path).0).or_default() += 1;
        }
    }
    for (path, entry) in model {
        compare_entry(model, root, path, entry, depth, &links, &subdirectories);
    }
}

fn compare_entry(
    model: &Model,
    root: &Path,
    path: &[u8],
    entry: &Entry,
    depth: Depth,
    links: &BTreeMap<&[u8], u64>,
    subdirectories: &BTreeMap<&[u8], u64>,
) {
    let shown = String::from_utf8_lossy(path);
    let full = root.join(OsStr::from_bytes(path));
    let found = fs::symlink_metadata(&full).unwrap();
    let (first, entry) = match &entry.node {
        Node::HardLink(target) => (target.as_slice(), &model[target]),
        _ => (path, entry),
    };
    let file_type = found.file_type();
    match &entry.node {
        Node::Directory => assert!(file_type.is_dir(), "{shown}"),
        Node::File(content) => {
            assert!(file_type.is_file(), "{shown}");
            compare_content(content, &full, &shown);
        }
        Node::Symlink(target) => {
            let found = fs::read_link(&full).unwrap().into_os_string().into_vec();
            assert_eq!(&found, target, "{shown}");
        }
        Node::Fifo => assert!(file_type.is_fifo(), "{shown}"),
        Node::Socket => assert!(file_type.is_socket(), "{shown}"),
        Node::HardLink(_) => unreachable!("a hard link to a hard link"),
    }
    if depth.metadata {
        if !file_type.is_symlink() {
            assert_eq!(
                found.mode() & 0o7777,
                u32::from(entry.mode),
                "mode of {shown}"
            );
        }
        assert_eq!(found.mtime(), i64::from(entry.mtime), "mtime of {shown}");
        assert_eq!((found.uid(), found.gid()), (0, 0), "owner of {shown}");
        if !file_type.is_dir() {
            assert_eq!(found.nlink(), links[first], "links of {shown}");
            if depth.inodes {
                let other = fs::symlink_metadata(root.join(OsStr::from_bytes(first))).unwrap();
                assert_eq!(found.ino(), other.ino(), "inode of {shown}");
            }
        } else if depth.directory_links {
            let expected = 2 + subdirectories.get(path).copied().unwrap_or(0);
            assert_eq!(found.nlink(), expected, "links of {shown}");
        }
    }
    if depth.xattrs {
        assert_eq!(crate::xattrs::of(&full), entry.xattrs, "xattrs of {shown}");
    }
}

fn list(directory: &Path, prefix: &mut Vec<u8>, paths: &mut Vec<Vec<u8>>) {
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let length = prefix.len();
        if !prefix.is_empty() {
            prefix.push(b'/');
        }
        prefix.extend_from_slice(entry.file_name().as_bytes());
        paths.push(prefix.clone());
        if entry.file_type().unwrap().is_dir() {
            list(&entry.path(), prefix, paths);
        }
        prefix.truncate(length);
    }
}

fn first_difference(seen: &[Vec<u8>], expected: &[&Vec<u8>]) -> Option<(String, String)> {
    let show =
        |path: Option<&Vec<u8>>| format!("{:?}", path.map(|path| path.escape_ascii().to_string()));
    (0..seen.len().max(expected.len()))
        .find(|index| seen.get(*index) != expected.get(*index).copied())
        .map(|index| (show(seen.get(index)), show(expected.get(index).copied())))
}

/// Compares everything near a patch, and the size: holes of gigabytes are not read through.
fn compare_content(content: &Content, path: &Path, shown: &str) {
    const AROUND: u64 = 300 << 10;
    let file = File::open(path).unwrap();
    assert_eq!(
        file.metadata().unwrap().len(),
        content.size,
        "size of {shown}"
    );
    if content.size <= 64 << 20 {
        let mut found = Vec::new();
        (&file).read_to_end(&mut found).unwrap();
        assert!(
            found == expected(content, 0, content.size),
            "content of {shown}"
        );
        return;
    }
    for (offset, patch) in &content.patches {
        let start = offset.saturating_sub(AROUND);
        let end = (offset + patch.len() as u64 + AROUND).min(content.size);
        let mut found = vec![1; (end - start) as usize];
        file.read_exact_at(&mut found, start).unwrap();
        assert!(found == expected(content, start, end), "content of {shown}");
    }
}

pub(crate) fn expected(content: &Content, start: u64, end: u64) -> Vec<u8> {
    let mut bytes = vec![0; (end - start) as usize];
    for (offset, patch) in &content.patches {
        for (position, byte) in (*offset..).zip(patch) {
            if (start..end).contains(&position) {
                bytes[(position - start) as usize] = *byte;
            }
        }
    }
    bytes
}
