//! Files that every start reads stand in one fragment block of their own, whatever else the image has.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use cista_images::cancel::Cancel;
use cista_images::squashfs::reader::{Extent, Reader};
use cista_images::squashfs::writer::{Options, Writer};
use cista_images::tree::{ContentId, Inode, Kind, Metadata, Tree};

fn metadata(mode: u16) -> Metadata {
    Metadata {
        mode,
        uid: 0,
        gid: 0,
        mtime: 1,
        xattrs: None,
    }
}

fn add(tree: &mut Tree, name: &str, content: ContentId) {
    let inode = tree
        .add(Inode {
            metadata: metadata(0o644),
            kind: Kind::File(content),
        })
        .unwrap();
    tree.link(Tree::ROOT, name.as_bytes(), inode);
}

/// Content that does not repeat.
fn content(seed: usize, length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| ((at * 31 + seed * 7919) >> 3) as u8)
        .collect()
}

#[test]
fn held_files_share_one_small_block() {
    for threads in [1, 3] {
        let mut writer = Writer::new(
            tempfile::tempfile().unwrap(),
            Options {
                threads,
                ..Options::default()
            },
            Cancel::new(),
        )
        .unwrap();
        let mut tree = Tree::new(metadata(0o755));
        let mut expected = Vec::new();
        for number in 0..300 {
            // Equal to an ordinary file: the held one must not be taken for its duplicate, which is elsewhere.
            let small = content(number / 2, 1000 + number);
            let held = number % 100 == 50;
            let id = if held {
                writer.hold_file(small.clone()).unwrap()
            } else {
                writer.add_file(&small).unwrap()
            };
            let name = format!("file{number:03}");
            add(&mut tree, &name, id);
            expected.push((name, small, held));
        }
        let empty = writer.hold_file(Vec::new()).unwrap();
        add(&mut tree, "empty", empty);
        // Too much to be held: an ordinary file.
        let large = content(1, 300_000);
        let id = writer.hold_file(large.clone()).unwrap();
        add(&mut tree, "large", id);
        let summary = writer.finish(&tree).unwrap();

        let reader = Reader::open(summary.file, 0).unwrap();
        let mut blocks = Vec::new();
        for (name, content, held) in expected {
            let inode = reader.walk(name.as_bytes()).unwrap().unwrap();
            assert_eq!(
                reader.read_file(&inode, 1 << 20).unwrap(),
                content,
                "{name}"
            );
            if held {
                let map = reader.file_map(&inode).unwrap();
                assert_eq!(map.extent_count(), 1);
                match reader.extent(&map, 0).unwrap() {
                    Extent::Fragment { block, .. } => blocks.push((block.offset, block.length)),
                    other => panic!("{name} is no fragment: {other:?}"),
                }
            }
        }
        assert_eq!(blocks.len(), 3);
        assert!(blocks.iter().all(|block| *block == blocks[0]), "{blocks:?}");
        let large_again = reader.walk(b"large").unwrap().unwrap();
        assert_eq!(reader.read_file(&large_again, 1 << 20).unwrap(), large);
        let empty_again = reader.walk(b"empty").unwrap().unwrap();
        assert_eq!(empty_again.size(), 0);
    }
}

#[test]
fn a_plain_file_is_stored_as_it_is() {
    let mut writer = Writer::new(
        tempfile::tempfile().unwrap(),
        Options::default(),
        Cancel::new(),
    )
    .unwrap();
    let mut tree = Tree::new(metadata(0o755));
    let bytes = [
        vec![7; 300_000],
        vec![0; 131_072 - 37_856],
        content(1, 131_072),
    ]
    .concat();
    for plain in [false, true] {
        let mut file = writer.begin_file(bytes.len() as u64).unwrap();
        if plain {
            file.store_plain();
        }
        file.write(&bytes).unwrap();
        let id = file.finish().unwrap();
        add(&mut tree, if plain { "plain" } else { "packed" }, id);
    }
    let reader = Reader::open(writer.finish(&tree).unwrap().file, 0).unwrap();
    for (name, compressed) in [("packed", true), ("plain", false)] {
        let inode = reader.walk(name.as_bytes()).unwrap().unwrap();
        assert_eq!(reader.read_file(&inode, 1 << 20).unwrap(), bytes, "{name}");
        let map = reader.file_map(&inode).unwrap();
        match reader.extent(&map, 0).unwrap() {
            Extent::Block(block) => assert_eq!(block.compressed, compressed, "{name}"),
            other => panic!("{name} begins with {other:?}"),
        }
    }
}
