//! READ: the right bytes, whatever is asked for in whatever order.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;

use cista_images::squashfs::reader::{Extent, Reader};
use cista_images::tree::Tree;
use proptest::prelude::*;

use crate::image::{Builder, content};
use crate::kernel::{INIT, Kernel, READ, init_in, read_in};

const EIO: i32 = 5;
/// The pretended kernel's socket takes no larger messages.
const LARGEST: u32 = 128 << 10;

/// Files of all sorts: several blocks with a tail, whole blocks, small ones that share a fragment block, holes, nothing.
fn files(block: usize) -> Vec<(&'static str, Vec<u8>)> {
    let mut holes = content(3, block);
    holes.resize(block * 5, 0);
    holes.extend_from_slice(&content(4, block + 77));
    vec![
        ("tail", content(1, block * 6 + 1234)),
        ("whole", content(2, block * 4)),
        ("holes", holes),
        ("zeros", vec![0; block * 3 + 5]),
        ("small", content(5, 100)),
        ("smaller", content(6, 1)),
        ("empty", Vec::new()),
    ]
}

fn image(block: usize, files: &[(&str, Vec<u8>)]) -> File {
    let mut builder = Builder::new(block as u32);
    for (name, content) in files {
        builder.file(Tree::ROOT, name.as_bytes(), content);
    }
    builder.finish()
}

fn expected(content: &[u8], offset: u64, size: u32) -> &[u8] {
    let start = content
        .len()
        .min(usize::try_from(offset).unwrap_or(usize::MAX));
    let end = content.len().min(start.saturating_add(size as usize));
    &content[start..end]
}

#[test]
fn what_is_foreseen_comes_unasked_once_it_is_known() {
    let files = files(4096);
    let foresight = cista::fuse::Foresight {
        files: Box::new(|reader: &Reader| {
            let find = |name: &[u8]| reader.walk(name).unwrap().unwrap();
            vec![find(b"tail"), find(b"holes"), find(b"small")]
        }),
        reader_processor: usize::MAX,
        patience: Duration::from_secs(60),
    };
    let mut kernel = Kernel::foreseeing(image(4096, &files), 1 << 20, 2, Some(foresight));
    kernel.ask(INIT, 0, &init_in(7, 38)).unwrap();
    // Not the first one, and one that was not foreseen.
    kernel.lookup(1, b"whole").unwrap();
    for name in ["holes", "tail", "small"] {
        let content = &files.iter().find(|(found, _)| *found == name).unwrap().1;
        let node = kernel.lookup(1, name.as_bytes()).unwrap().node;
        let mut at = 0;
        while at < content.len() {
            let (stored, offset, bytes) = kernel.receive_store();
            assert_eq!((stored, offset), (node, at as u64), "{name}");
            assert!(bytes == content[at..at + bytes.len()], "{name} at {at}");
            at += bytes.len();
        }
    }
    kernel.stop().unwrap();
}

#[test]
fn from_one_end_to_the_other() {
    for block in [4096, 131_072] {
        let files = files(block);
        // A cache for one block, and for all.
        for cache in [0, block * 2, 64 << 20] {
            let mut kernel = Kernel::with(image(block, &files), cache, 2);
            for (name, content) in &files {
                let node = kernel.lookup(1, name.as_bytes()).unwrap().node;
                for size in [4096, 10_000, 65_536, LARGEST] {
                    let mut found = Vec::new();
                    loop {
                        let piece = kernel.read(node, found.len() as u64, size).unwrap();
                        if piece.is_empty() {
                            break;
                        }
                        found.extend_from_slice(&piece);
                    }
                    assert!(found == *content, "{name} {block} {cache} {size}");
                }
            }
            kernel.stop().unwrap();
        }
    }
}

#[test]
fn many_at_once() {
    let files = files(16 << 10);
    let mut kernel = Kernel::with(image(16 << 10, &files), 64 << 10, 8);
    let nodes: Vec<u64> = files
        .iter()
        .map(|(name, _)| kernel.lookup(1, name.as_bytes()).unwrap().node)
        .collect();
    let mut asked = HashMap::new();
    for round in 0..60_u64 {
        while asked.len() < 16 {
            let which = (round * 7 + asked.len() as u64 * 3) as usize % files.len();
            let offset = (round * 4099 + asked.len() as u64 * 8191) % (100 << 10);
            let size = 4096 + (round as u32 * 977) % (60 << 10);
            let unique = kernel.send(READ, nodes[which], &read_in(offset, size));
            asked.insert(unique, (which, offset, size));
        }
        for _ in 0..8 {
            let (unique, result) = kernel.receive();
            let (which, offset, size) = asked.remove(&unique).unwrap();
            let found = result.unwrap();
            assert!(found == expected(&files[which].1, offset, size));
        }
    }
    while !asked.is_empty() {
        let (unique, result) = kernel.receive();
        let (which, offset, size) = asked.remove(&unique).unwrap();
        assert!(result.unwrap() == expected(&files[which].1, offset, size));
    }
    kernel.stop().unwrap();
}

#[test]
fn a_damaged_block_fails_and_its_neighbours_do_not() {
    let block = 4096;
    let whole = content(9, block * 8);
    let file = image(block, &[("file", whole.clone())]);
    let reader = Reader::open(file.try_clone().unwrap(), 0).unwrap();
    let inode = reader.walk(b"file").unwrap().unwrap();
    let Extent::Block(third) = reader.extent(&reader.file_map(&inode).unwrap(), 3).unwrap() else {
        panic!("the block is not stored as one");
    };
    assert!(third.compressed);
    file.write_all_at(&vec![0xff; third.stored as usize], third.offset)
        .unwrap();
    let mut kernel = Kernel::start(file);
    let node = kernel.lookup(1, b"file").unwrap().node;
    for _ in 0..2 {
        for number in 0..8_usize {
            let found = kernel.read(node, (number * block) as u64, block as u32);
            if number == 3 {
                assert_eq!(found, Err(EIO));
            } else {
                assert!(found.unwrap() == whole[number * block..][..block]);
            }
        }
        assert_eq!(kernel.read(node, 0, 8 * block as u32), Err(EIO));
    }
    kernel.stop().unwrap();
}

#[test]
fn an_image_that_is_cut_off_meanwhile_fails_without_ending_the_server() {
    let block = 4096;
    let file = image(block, &[("file", content(9, block * 64))]);
    let cut = file.try_clone().unwrap();
    let mut kernel = Kernel::start(file);
    let node = kernel.lookup(1, b"file").unwrap().node;
    cut.set_len(1000).unwrap();
    assert_eq!(kernel.read(node, 40 * block as u64, 4096), Err(EIO));
    assert_eq!(kernel.lookup(1, b"file").unwrap().node, node);
    kernel.stop().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn any_range_of_any_file(
        reads in proptest::collection::vec((0_usize..7, 0_u64..120_000, 0_u32..LARGEST), 1..120),
        cache in 0_usize..100_000,
        threads in 0_usize..5,
    ) {
        let files = files(16 << 10);
        let mut kernel = Kernel::with(image(16 << 10, &files), cache, threads);
        for (which, offset, size) in reads {
            let node = kernel.lookup(1, files[which].0.as_bytes()).unwrap().node;
            let found = kernel.read(node, offset, size).unwrap();
            prop_assert!(found == expected(&files[which].1, offset, size));
        }
        for offset in [u64::MAX, u64::MAX - 1000, 1 << 40] {
            let node = kernel.lookup(1, b"tail").unwrap().node;
            prop_assert_eq!(kernel.read(node, offset, 4096), Ok(Vec::new()));
        }
        kernel.stop().unwrap();
    }
}
