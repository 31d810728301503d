//! The top-down merge against a naive bottom-up model, over random stacks of layers, and case by case.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod oracle;

use std::collections::BTreeMap;

use cista_images::layer::Limits;
use cista_images::layer::tar::Archive;
use cista_images::merge::{FileSink, Merge, MergeError, Settings, Sink};
use cista_images::squashfs::writer::WriteError;
use cista_images::tree::{ContentId, InodeId, Kind, Tree};
use oracle::{Entry, Found, Path};
use proptest::prelude::*;

/// Keeps content in memory.
#[derive(Default)]
struct Memory(Vec<Vec<u8>>);

struct MemoryFile<'a> {
    memory: &'a mut Memory,
    content: Vec<u8>,
    size: u64,
}

impl Sink for Memory {
    type File<'a> = MemoryFile<'a>;

    fn begin_file(&mut self, size: u64) -> Result<MemoryFile<'_>, WriteError> {
        Ok(MemoryFile {
            memory: self,
            content: Vec::new(),
            size,
        })
    }
}

impl FileSink for MemoryFile<'_> {
    fn write(&mut self, piece: &[u8]) -> Result<(), WriteError> {
        self.content.extend_from_slice(piece);
        Ok(())
    }

    fn write_hole(&mut self, length: u64) -> Result<(), WriteError> {
        self.content
            .resize(self.content.len() + usize::try_from(length).unwrap(), 0);
        Ok(())
    }

    fn finish(self) -> Result<ContentId, WriteError> {
        assert_eq!(self.content.len() as u64, self.size);
        self.memory.0.push(self.content);
        Ok(ContentId(u32::try_from(self.memory.0.len() - 1).unwrap()))
    }
}

const IMPLIED: u32 = 7;

fn mtime(layer: usize, entry: usize) -> u32 {
    u32::try_from(1000 + layer * 100 + entry).unwrap()
}

fn tar(number: usize, entries: &[Entry]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (position, entry) in entries.iter().enumerate() {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_mtime(u64::from(mtime(number, position)));
        let mut content = "";
        let (name, kind) = match entry {
            Entry::Directory(path) => (path.join("/"), tar::EntryType::Directory),
            Entry::File(path, text) => {
                content = text;
                (path.join("/"), tar::EntryType::Regular)
            }
            Entry::Symlink(path, target) => {
                header.set_link_name_literal(target).unwrap();
                (path.join("/"), tar::EntryType::Symlink)
            }
            Entry::HardLink(path, target) => {
                header.set_link_name_literal(target.join("/")).unwrap();
                (path.join("/"), tar::EntryType::Link)
            }
            Entry::Fifo(path) => (path.join("/"), tar::EntryType::Fifo),
            Entry::Device(path) => (path.join("/"), tar::EntryType::Char),
            Entry::Whiteout(path) => {
                let (name, parent) = path.split_last().unwrap();
                let name = format!(".wh.{name}");
                let whole = [parent, &[&name]].concat().join("/");
                (whole, tar::EntryType::Regular)
            }
            Entry::Opaque(path) => (
                [&path[..], &[".wh..wh..opq"]].concat().join("/"),
                tar::EntryType::Regular,
            ),
        };
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        // Raw, since the builder refuses names that a hostile layer may have.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        builder.append(&header, content.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

fn settings(retain: usize) -> Settings {
    Settings {
        retain,
        ..Settings::new(IMPLIED)
    }
}

/// Merges plain tar streams, lowest first, and returns the tree, the content, and how many layers were read twice.
fn merge_streams(
    layers: &[Vec<u8>],
    settings: Settings,
) -> Result<(Tree, Memory, usize), MergeError> {
    let mut merge = Merge::new(settings);
    let mut sink = Memory::default();
    for (index, layer) in layers.iter().enumerate().rev() {
        merge.add_layer(index, &mut Archive::new(&layer[..]), &mut sink)?;
    }
    let again = merge.unfinished();
    for index in &again {
        merge.revisit(*index, &mut Archive::new(&layers[*index][..]), &mut sink)?;
    }
    Ok((merge.finish()?, sink, again.len()))
}

fn merge(entries: &[Vec<Entry>], retain: usize) -> Result<BTreeMap<Path, Found>, MergeError> {
    let layers: Vec<_> = entries
        .iter()
        .enumerate()
        .map(|(number, entries)| tar(number, entries))
        .collect();
    let (tree, sink, _) = merge_streams(&layers, settings(retain))?;
    let mut found = BTreeMap::new();
    let mut groups = BTreeMap::new();
    list(
        &tree,
        &sink,
        Tree::ROOT,
        &mut Vec::new(),
        &mut groups,
        &mut found,
    );
    // No entry's content is written twice.
    for content in &sink.0 {
        let written = sink.0.iter().filter(|other| *other == content).count();
        let entries = entries
            .iter()
            .flatten()
            .filter(|entry| matches!(entry, Entry::File(_, text) if text.as_bytes() == content));
        assert!(written <= entries.count(), "content was written twice");
    }
    Ok(found)
}

fn list(
    tree: &Tree,
    sink: &Memory,
    directory: InodeId,
    path: &mut Path,
    groups: &mut BTreeMap<InodeId, Path>,
    found: &mut BTreeMap<Path, Found>,
) {
    let Kind::Directory(entries) = &tree.inode(directory).kind else {
        panic!("{path:?} is no directory");
    };
    for (name, child) in entries {
        path.push(std::str::from_utf8(name).unwrap().to_owned().leak());
        let inode = tree.inode(*child);
        let mtime = inode.metadata.mtime;
        let mut group = || groups.entry(*child).or_insert_with(|| path.clone()).clone();
        let what = match &inode.kind {
            Kind::Directory(_) => {
                assert_eq!(inode.metadata.mode & 0o700, 0o700);
                Found::Directory {
                    mtime: (mtime != IMPLIED).then_some(mtime),
                }
            }
            Kind::File(content) => Found::File {
                content: String::from_utf8(sink.0[content.0 as usize].clone()).unwrap(),
                mtime,
                group: group(),
            },
            Kind::Symlink(target) => Found::Symlink {
                target: String::from_utf8(target.to_vec()).unwrap(),
                mtime,
                group: group(),
            },
            Kind::Fifo => Found::Fifo {
                mtime,
                group: group(),
            },
            Kind::Socket => panic!("{path:?} is a hole"),
        };
        if matches!(inode.kind, Kind::Directory(_)) {
            list(tree, sink, *child, path, groups, found);
        }
        found.insert(path.clone(), what);
        path.pop();
    }
}

fn path() -> impl Strategy<Value = Path> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4)
}

fn entry() -> impl Strategy<Value = Entry> {
    let targets = vec![
        "a", "b", "/a", "/a/b", "../a", "b/c", "../../c", "/", "x/../b",
    ];
    prop_oneof![
        4 => path().prop_map(Entry::Directory),
        8 => path().prop_map(|path| Entry::File(path, String::new())),
        2 => (path(), prop::sample::select(targets)).prop_map(|(path, target)| Entry::Symlink(path, target)),
        5 => (path(), path()).prop_map(|(path, target)| Entry::HardLink(path, target)),
        1 => path().prop_map(Entry::Fifo),
        1 => path().prop_map(Entry::Device),
        3 => path().prop_map(Entry::Whiteout),
        2 => path().prop_map(Entry::Opaque),
        1 => Just(Entry::Opaque(Vec::new())),
    ]
}

fn stack() -> impl Strategy<Value = Vec<Vec<Entry>>> {
    prop::collection::vec(prop::collection::vec(entry(), 0..8), 1..5).prop_map(|mut layers| {
        // Every file has content of its own.
        for (number, layer) in layers.iter_mut().enumerate() {
            for (position, entry) in layer.iter_mut().enumerate() {
                if let Entry::File(_, content) = entry {
                    *content = format!("{number}/{position}");
                }
            }
        }
        layers
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_stacks_merge_as_the_model_says(layers in stack(), keep in any::<bool>()) {
        let merged = merge(&layers, if keep { 1 << 20 } else { 0 });
        match oracle::apply(&layers, mtime) {
            Ok(expected) => prop_assert_eq!(merged.unwrap(), expected),
            Err(oracle::Refused) => prop_assert!(merged.is_err(), "{:?}", merged),
        }
    }
}

/// Entries of one layer from a short notation: `d a/b`, `f a CONTENT`, `l a TARGET` (symbolic), `h a TARGET` (hard), `w a`
/// (whiteout), `o a` (opaque), `p a` (FIFO), `c a` (device).
fn layer(notation: &[&'static str]) -> Vec<Entry> {
    let path =
        |text: &'static str| -> Path { text.split('/').filter(|part| !part.is_empty()).collect() };
    notation
        .iter()
        .map(|line| {
            let words: Vec<&'static str> = line.split(' ').collect();
            match words[..] {
                ["d", name] => Entry::Directory(path(name)),
                ["f", name, content] => Entry::File(path(name), content.to_owned()),
                ["l", name, target] => Entry::Symlink(path(name), target),
                ["h", name, target] => Entry::HardLink(path(name), path(target)),
                ["w", name] => Entry::Whiteout(path(name)),
                ["o", name] => Entry::Opaque(path(name)),
                ["p", name] => Entry::Fifo(path(name)),
                ["c", name] => Entry::Device(path(name)),
                _ => panic!("{line}"),
            }
        })
        .collect()
}

/// Paths and what they are: `d`, `f CONTENT`, `l TARGET`, `p`; hard links name their first path.
fn show(found: &BTreeMap<Path, Found>) -> Vec<String> {
    found
        .iter()
        .map(|(path, found)| {
            let (what, group) = match found {
                Found::Directory { .. } => ("d".to_owned(), path),
                Found::File { content, group, .. } => (format!("f {content}"), group),
                Found::Symlink { target, group, .. } => (format!("l {target}"), group),
                Found::Fifo { group, .. } => ("p".to_owned(), group),
            };
            let link = if group == path {
                String::new()
            } else {
                format!(" = {}", group.join("/"))
            };
            format!("{} {what}{link}", path.join("/"))
        })
        .collect()
}

#[test]
fn stacks_by_hand() {
    /// What it is about, the layers from the lowest up, and what they make.
    type Case = (
        &'static str,
        &'static [&'static [&'static str]],
        &'static [&'static str],
    );
    let cases: &[Case] = &[
        (
            "a higher layer replaces and deletes",
            &[
                &["d etc", "f etc/a 1", "f etc/b 1", "f c 1"],
                &["f etc/a 2", "w etc/b", "d c"],
            ],
            &["c d", "etc d", "etc/a f 2"],
        ),
        (
            "an opaque directory shows its own entries alone, wherever the marker stands",
            &[
                &["f d/old 1", "f e/old 1"],
                &["f d/new 2", "o d", "o e", "f e/new 2"],
            ],
            &["d d", "d/new f 2", "e d", "e/new f 2"],
        ),
        (
            "a whiteout beside a directory of the same name",
            &[&["f d/old 1"], &["w d", "f d/new 2"], &["f d/newer 3"]],
            &["d d", "d/new f 2", "d/newer f 3"],
        ),
        (
            "a file in between hides what is lower",
            &[&["f d/old 1"], &["f d 2"], &["f d/new 3"]],
            &["d d", "d/new f 3"],
        ),
        (
            "a directory of an upper layer wins over a symbolic link, as with overlayfs",
            &[&["f usr/lib/a 1", "l lib usr/lib"], &["f lib/b 2"]],
            &["lib d", "lib/b f 2", "usr d", "usr/lib d", "usr/lib/a f 1"],
        ),
        (
            "a symbolic link of the same layer is followed, within the root",
            &[&[
                "l lib usr/lib",
                "f lib/a 1",
                "l up ../../../etc",
                "f up/b 2",
                "l abs /usr/./lib/../share",
                "f abs/c 3",
            ]],
            &[
                "abs l /usr/./lib/../share",
                "etc d",
                "etc/b f 2",
                "lib l usr/lib",
                "up l ../../../etc",
                "usr d",
                "usr/lib d",
                "usr/lib/a f 1",
                "usr/share d",
                "usr/share/c f 3",
            ],
        ),
        (
            "the last of duplicate entries wins",
            &[&["f a 1", "d b", "f b/x 1", "f a 2", "f b 2", "d b"]],
            &["a f 2", "b d"],
        ),
        (
            "devices are dropped and still hide",
            &[&["f a 1", "f b 1"], &["c a", "p b"]],
            &["b p"],
        ),
        (
            "a hard link survives its target",
            &[&["f a 1", "h b a", "h c a"], &["w a"]],
            &["b f 1", "c f 1 = b"],
        ),
        (
            "a hard link to a lower layer, whose target is replaced above",
            &[&["f a 1"], &["h b a"], &["f a 3"]],
            &["a f 3", "b f 1"],
        ),
        (
            "a hard link to a lower layer is one inode with its target",
            &[&["f a 1", "h x a"], &["h b a"], &["h c b"]],
            &["a f 1", "b f 1 = a", "c f 1 = a", "x f 1 = a"],
        ),
        (
            "a hard link to a symbolic link",
            &[&["l a somewhere", "h b a"]],
            &["a l somewhere", "b l somewhere = a"],
        ),
        (
            "metadata of AUFS is ignored",
            &[&["f .wh..wh.aufs x", "f .wh..wh.plnk/1 x", "f a 1"]],
            &["a f 1"],
        ),
    ];
    for (what, layers, expected) in cases {
        let layers: Vec<_> = layers.iter().map(|notation| layer(notation)).collect();
        for retain in [0, 1 << 20] {
            assert_eq!(show(&merge(&layers, retain).unwrap()), *expected, "{what}");
        }
    }
}

#[test]
fn refused_stacks() {
    /// What it is about, the layers from the lowest up, and the error that they make.
    type Case = (
        &'static str,
        &'static [&'static [&'static str]],
        fn(&MergeError) -> bool,
    );
    let cases: &[Case] = &[
        ("a file as parent", &[&["f a 1", "f a/b 2"]], |error| {
            matches!(error, MergeError::Parent { .. })
        }),
        (
            "a symbolic link to a file as parent",
            &[&["f f 1", "l a f", "f a/b 2"]],
            |error| matches!(error, MergeError::Parent { .. }),
        ),
        ("a loop", &[&["l a b", "l b a", "f a/x 1"]], |error| {
            matches!(error, MergeError::Loop { .. })
        }),
        (
            "a link to itself as parent",
            &[&["l a a", "d a/x"]],
            |error| matches!(error, MergeError::Loop { .. }),
        ),
        ("no target", &[&["h a nowhere"]], |error| {
            matches!(error, MergeError::LinkTarget { .. })
        }),
        (
            "a target that was deleted in between",
            &[&["f t 1"], &["w t"], &["h a t"]],
            |error| matches!(error, MergeError::LinkTarget { .. }),
        ),
        ("a directory as target", &[&["d t", "h a t"]], |error| {
            matches!(error, MergeError::LinkToDirectory { .. })
        }),
        (
            "a lower directory as target",
            &[&["d t"], &["h a t"]],
            |error| matches!(error, MergeError::LinkToDirectory { .. }),
        ),
        ("the root as target", &[&["h a /"]], |error| {
            matches!(error, MergeError::LinkToDirectory { .. })
        }),
        ("an empty whiteout", &[&["f .wh. x"]], |error| {
            matches!(error, MergeError::Whiteout { .. })
        }),
        (
            "a whiteout of the directory",
            &[&["f d/.wh.. x"]],
            |error| matches!(error, MergeError::Whiteout { .. }),
        ),
        ("a whiteout of the parent", &[&["f d/.wh... x"]], |error| {
            matches!(error, MergeError::Whiteout { .. })
        }),
    ];
    for (what, layers, is_expected) in cases {
        let layers: Vec<_> = layers.iter().map(|notation| layer(notation)).collect();
        let error = merge(&layers, 0).unwrap_err();
        assert!(is_expected(&error), "{what}: {error:?}");
    }
}

#[test]
fn paths_that_links_make_too_long_are_refused() {
    // Each link multiplies the depth, so that a short layer could ask for a path of any length.
    let deep = "d/".repeat(49);
    let mut builder = tar::Builder::new(Vec::new());
    let mut append = |kind, name: &str, target: &str| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(0);
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_link_name_literal(target).unwrap();
        header.set_cksum();
        builder.append(&header, &b""[..]).unwrap();
    };
    let mut name = String::new();
    for _ in 0..60 {
        append(tar::EntryType::Symlink, &format!("{name}l"), &deep);
        name = format!("{name}l/");
        if name.len() > 90 {
            break;
        }
    }
    append(tar::EntryType::Directory, &format!("{name}x"), "");
    let stream = builder.into_inner().unwrap();
    assert!(matches!(
        merge_streams(&[stream], settings(0)),
        Err(MergeError::Resolved { .. })
    ));
}

#[test]
fn names_are_limited() {
    let stream = tar(0, &layer(&["f a 1", "f b 1", "f c/d/e 1"]));
    let limited = |names| Settings {
        limits: Limits {
            names,
            ..Limits::default()
        },
        ..settings(0)
    };
    assert!(merge_streams(&[stream.clone(), stream.clone()], limited(12)).is_ok());
    assert!(matches!(
        merge_streams(&[stream.clone(), stream], limited(11)),
        Err(MergeError::TooManyNames { limit: 11 })
    ));
}

#[test]
fn hidden_content_is_kept_or_read_again() {
    let layers = [
        tar(
            0,
            &layer(&["f a 12345", "h b a", "f c 678", "h d c", "h e c"]),
        ),
        tar(1, &layer(&["w a", "f c new"])),
    ];
    for (retain, again) in [(8, 0), (7, 1), (5, 1), (4, 1), (0, 1)] {
        let (tree, sink, read_again) = merge_streams(&layers, settings(retain)).unwrap();
        assert_eq!(read_again, again, "{retain}");
        // Nothing is written that is not used.
        assert_eq!(sink.0.len(), 3);
        let content = |name: &[u8]| {
            let id = tree.child(Tree::ROOT, name).unwrap();
            match tree.inode(id).kind {
                Kind::File(content) => &sink.0[content.0 as usize],
                _ => panic!(),
            }
        };
        assert_eq!(content(b"b"), b"12345");
        assert_eq!(content(b"c"), b"new");
        assert_eq!(content(b"d"), b"678");
        assert_eq!(tree.child(Tree::ROOT, b"d"), tree.child(Tree::ROOT, b"e"));
    }
}

#[test]
fn a_layer_that_changes_between_two_readings_is_refused() {
    let layers = [
        tar(0, &layer(&["f a 12345", "h b a"])),
        tar(1, &layer(&["w a"])),
    ];
    for other in [tar(0, &layer(&["d x"])), tar(0, &[])] {
        let mut merge = Merge::new(settings(0));
        let mut sink = Memory::default();
        for (index, layer) in layers.iter().enumerate().rev() {
            merge
                .add_layer(index, &mut Archive::new(&layer[..]), &mut sink)
                .unwrap();
        }
        assert_eq!(merge.unfinished(), [0]);
        assert!(matches!(
            merge.revisit(0, &mut Archive::new(&other[..]), &mut sink),
            Err(MergeError::Changed)
        ));
    }
}

#[test]
fn metadata_comes_from_the_highest_entry() {
    let stream = |number: usize, entries: &[(&str, u32, u64)]| {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, mode, time) in entries {
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(if name.ends_with('/') {
                tar::EntryType::Directory
            } else {
                tar::EntryType::Regular
            });
            header.set_path(name).unwrap();
            header.set_mode(*mode);
            header.set_mtime(*time);
            header.set_uid(1000 + number as u64);
            header.set_size(0);
            header.set_cksum();
            builder.append(&header, &b""[..]).unwrap();
        }
        builder.into_inner().unwrap()
    };
    let layers = [
        stream(
            0,
            &[
                ("./", 0o755, 1),
                ("d/", 0o2070, 2),
                ("e/", 0o700, 3),
                ("g/h", 0o644, 4),
            ],
        ),
        stream(
            1,
            &[("d/x", 0o4011, 5), ("e/", 0o1777, u64::from(u32::MAX) + 9)],
        ),
        stream(2, &[("d/y", 0o600, 6), ("e/z", 0o600, 7)]),
    ];
    let (tree, _, _) = merge_streams(&layers, settings(0)).unwrap();
    let metadata = |path: &str| {
        let id = path
            .split('/')
            .filter(|part| !part.is_empty())
            .fold(Tree::ROOT, |id, name| {
                tree.child(id, name.as_bytes()).unwrap()
            });
        let metadata = &tree.inode(id).metadata;
        assert_eq!((metadata.uid, metadata.gid), (0, 0));
        (metadata.mode, metadata.mtime)
    };
    assert_eq!(metadata(""), (0o755, 1));
    assert_eq!(metadata("d"), (0o2770, 2));
    assert_eq!(metadata("e"), (0o1777, u32::MAX));
    assert_eq!(metadata("g"), (0o755, IMPLIED));
    assert_eq!(metadata("d/x"), (0o4411, 5));
}
