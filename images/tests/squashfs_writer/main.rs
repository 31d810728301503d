//! Images of the squashfs writer, read by others: `unsquashfs`, the kernel, `squashfuse` and `backhand`.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "tests fail by panicking, and name what they skip"
)]

mod model;
mod oracles;
#[path = "../xattrs/mod.rs"]
mod xattrs;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;

use backhand::{FilesystemReader, InnerNode};
use cista_images::cancel::Cancel;
use cista_images::squashfs::compression::Compression;
use cista_images::squashfs::writer::{Options, WriteError, Writer};
use cista_images::tree::{ContentId, Inode, Kind, Metadata, Tree, Xattrs};
use model::{Content, Depth, Entry, Model, Node, compare, entry, noise};
use proptest::prelude::*;

const BLOCK: usize = 128 << 10;

fn options(compression: Compression) -> Options {
    Options {
        compression,
        threads: 2,
        ..Options::default()
    }
}

fn xattrs(pairs: &[(&str, &[u8])]) -> Xattrs {
    pairs
        .iter()
        .map(|(name, value)| (name.as_bytes().into(), (*value).into()))
        .collect()
}

/// Everything that the format has a case for.
fn sample() -> Model {
    let file = |bytes: Vec<u8>| entry(Node::File(Content::bytes(bytes)));
    let mut model = Model::from([(Vec::new(), entry(Node::Directory))]);
    let mut add = |path: &str, entry: Entry| {
        model.insert(path.as_bytes().to_vec(), entry);
    };
    add("sizes", entry(Node::Directory));
    for size in [
        0,
        1,
        100,
        BLOCK - 1,
        BLOCK,
        BLOCK + 1,
        BLOCK + 4096,
        BLOCK + 4097,
        2 * BLOCK - 1,
        2 * BLOCK,
        9 * BLOCK + 70_000,
    ] {
        add(&format!("sizes/{size}"), file(noise(size as u64, size)));
        add(
            &format!("sizes/{size} again"),
            file(noise(size as u64, size)),
        );
    }
    // Equal blocks, different tails, and the other way round.
    let (blocks, tail) = (noise(1, 3 * BLOCK), noise(2, 500));
    add("sizes/x", file([&blocks[..], &tail].concat()));
    add("sizes/y", file([&blocks[..], &tail[1..]].concat()));
    add("sizes/z", file([&blocks[..2 * BLOCK], &tail].concat()));

    add("holes", entry(Node::Directory));
    let hole = |size, patches: &[(u64, usize)]| {
        entry(Node::File(Content {
            size,
            patches: patches
                .iter()
                .map(|(offset, size)| (*offset, noise(*offset, *size)))
                .collect(),
        }))
    };
    add("holes/only", hole(40 * BLOCK as u64, &[]));
    add("holes/only, odd", hole(40 * BLOCK as u64 + 70_000, &[]));
    add("holes/small", hole(1000, &[]));
    add(
        "holes/middle",
        hole(5_000_000, &[(1, 10), (3_000_000, 100_000)]),
    );
    add("holes/end", hole(5_000_000, &[(0, 300_000)]));
    add("holes/zeros", file(vec![0; 3 * BLOCK + 1]));
    add("holes/2 GiB", hole((2 << 30) + 7, &[((2 << 30) - 9, 16)]));
    add(
        "holes/6 GiB",
        hole((6 << 30) + 70_001, &[(5 << 30, 9), ((6 << 30) + 70_000, 1)]),
    );

    add("links", entry(Node::Directory));
    add("links/a", file(b"linked".to_vec()));
    add("links/b", entry(Node::HardLink(b"links/a".to_vec())));
    add(
        "links/symbolic",
        entry(Node::Symlink(b"../sizes/1".to_vec())),
    );
    add(
        "links/symbolic, hard",
        entry(Node::HardLink(b"links/symbolic".to_vec())),
    );
    add(
        "links/long",
        entry(Node::Symlink(
            noise(3, 4095).iter().map(|b| b'a' + b % 26).collect(),
        )),
    );
    add("links/none", entry(Node::Symlink(b"nowhere".to_vec())));
    add("zz", entry(Node::HardLink(b"links/a".to_vec())));

    add("odd", entry(Node::Directory));
    add("odd/fifo", entry(Node::Fifo));
    add("odd/socket", entry(Node::Socket));
    add(&format!("odd/{}", "n".repeat(255)), file(b"long".to_vec()));
    add("odd/ space\nnewline\\", file(b"name".to_vec()));
    add(
        "odd/setuid",
        Entry {
            mode: 0o4755,
            ..file(b"s".to_vec())
        },
    );
    add(
        "odd/secret",
        Entry {
            mode: 0o400,
            ..file(b"s".to_vec())
        },
    );
    add(
        "odd/sticky",
        Entry {
            mode: 0o1777,
            ..entry(Node::Directory)
        },
    );
    add(
        "odd/1970",
        Entry {
            mtime: 0,
            ..file(b"t".to_vec())
        },
    );
    add(
        "odd/2106",
        Entry {
            mtime: u32::MAX,
            ..file(b"t".to_vec())
        },
    );
    add("odd/empty", entry(Node::Directory));
    model.insert(b"odd/not \xff UTF-8".to_vec(), file(b"bytes".to_vec()));

    let mut deep = "deep".to_owned();
    for level in 0..120 {
        model.insert(deep.clone().into_bytes(), entry(Node::Directory));
        deep.push_str(&format!("/{level}"));
    }
    model
}

/// The sample with extended attributes; unlike its other parts, only root may set all of them.
fn sample_with_xattrs() -> Model {
    let mut model = sample();
    let long = noise(4, 3000);
    // Version 2 of struct vfs_cap_data with CAP_NET_RAW, see capabilities(7).
    let capability = [&[1, 0, 0, 2, 0, 0x20][..], &[0; 14]].concat();
    type Pairs<'a> = &'a [(&'a str, &'a [u8])];
    let sets: [(&str, Pairs<'_>); 6] = [
        ("", &[("user.root", b"yes")]),
        ("sizes", &[("user.empty", b""), ("user.long", &long)]),
        ("sizes/1", &[("user.long", &long), ("user.short", b"1234")]),
        (
            "sizes/100",
            &[("user.long", &long), ("user.short", b"1234")],
        ),
        ("sizes/131073", &[("user.only long", &long)]),
        ("links/a", &[("security.capability", &capability)]),
    ];
    for (path, pairs) in sets {
        model.get_mut(path.as_bytes()).unwrap().xattrs = xattrs(pairs);
    }
    if oracles::is_root() {
        for path in ["links/symbolic", "odd/fifo", "odd/socket"] {
            model.get_mut(path.as_bytes()).unwrap().xattrs =
                xattrs(&[("trusted.x", b"a value of more than eight bytes")]);
        }
    }
    model
}

fn image_bytes(model: &Model, options: &Options, piece: usize) -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().unwrap();
    model::write(model, file.reopen().unwrap(), options, piece).unwrap();
    fs::read(file.path()).unwrap()
}

#[test]
fn others_read_what_we_write() {
    let model = sample_with_xattrs();
    let scratch = tempfile::tempdir().unwrap();
    for compression in ["zstd:1", "zstd:15", "gzip", "gzip:1", "xz", "lz4", "none"] {
        let image = scratch.path().join(format!("{compression}.sqsh"));
        let options = options(compression.parse().unwrap());
        let summary =
            model::write(&model, File::create(&image).unwrap(), &options, 10_000).unwrap();
        let size = image.metadata().unwrap().len();
        assert_eq!(size, summary.bytes_used.next_multiple_of(4096));

        let extracted = scratch.path().join(format!("{compression}.extracted"));
        let depth = Depth {
            metadata: oracles::is_root(),
            inodes: true,
            xattrs: oracles::is_root(),
            directory_links: false,
        };
        if oracles::unsquashfs(&image, &extracted) {
            compare(&model, &extracted, depth);
        }
        let mounted = Depth {
            directory_links: true,
            ..depth
        };
        let target = scratch.path().join(format!("{compression}.kernel"));
        if let Some(mount) = oracles::kernel(&image, &target) {
            compare(&model, mount.path(), mounted);
        }
        let target = scratch.path().join(format!("{compression}.squashfuse"));
        if let Some(mount) = oracles::squashfuse(&image, &target) {
            // squashfuse makes up inode numbers, and shows no `trusted.` attributes.
            let depth = Depth {
                inodes: false,
                xattrs: false,
                ..depth
            };
            compare(&model, mount.path(), depth);
        }
    }
}

#[test]
fn backhand_reads_what_we_write() {
    // backhand takes long targets of symbolic links for corruption, and long to read gigabytes of zeros.
    let mut model = sample();
    model.retain(|path, _| path != b"links/long" && !path.ends_with(b"GiB"));
    for compression in ["zstd:1", "gzip", "xz"] {
        let bytes = image_bytes(&model, &options(compression.parse().unwrap()), 1 << 20);
        let image = FilesystemReader::from_reader(io::Cursor::new(bytes)).unwrap();
        let mut found = 0;
        for node in image.files() {
            let path = node.fullpath.as_os_str().as_bytes();
            let expected = &model[path.strip_prefix(b"/").unwrap()];
            let target;
            let expected = match &expected.node {
                Node::HardLink(first) => {
                    target = model[first].clone();
                    &target
                }
                _ => expected,
            };
            found += 1;
            assert_eq!(node.header.permissions, expected.mode);
            assert_eq!(node.header.mtime, expected.mtime);
            match (&node.inner, &expected.node) {
                (InnerNode::File(file), Node::File(content)) => {
                    let mut bytes = Vec::new();
                    let mut reader = image.file(file).reader();
                    io::Read::read_to_end(&mut reader, &mut bytes).unwrap();
                    assert!(
                        bytes == model::expected(content, 0, content.size),
                        "{node:?}"
                    );
                }
                (InnerNode::Symlink(link), Node::Symlink(target)) => {
                    assert_eq!(link.link.as_os_str().as_bytes(), target);
                }
                (InnerNode::Dir(_), Node::Directory)
                | (InnerNode::NamedPipe, Node::Fifo)
                | (InnerNode::Socket, Node::Socket) => {}
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(found, model.len());
    }
}

#[test]
fn equal_calls_give_equal_bytes() {
    let model = sample_with_xattrs();
    for compression in ["zstd:1", "zstd:3", "gzip:1", "lz4", "xz"] {
        let mut options = options(compression.parse().unwrap());
        let reference = image_bytes(&model, &options, 1 << 20);
        for (threads, piece) in [(1, 777), (3, BLOCK), (16, 1 << 20)] {
            options.threads = threads;
            let again = image_bytes(&model, &options, piece);
            assert!(again == reference, "{compression} with {threads} threads");
        }
    }
}

#[test]
fn equal_content_is_stored_once() {
    let mut model = Model::from([(Vec::new(), entry(Node::Directory))]);
    let content = noise(1, 20 * BLOCK + 3000);
    for copy in 0..10 {
        let node = Node::File(Content::bytes(content.clone()));
        model.insert(format!("{copy}").into_bytes(), entry(node));
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    let options = options(Compression::None);
    let summary = model::write(&model, file.reopen().unwrap(), &options, 1 << 20).unwrap();
    assert_eq!(summary.content_bytes, 10 * content.len() as u64);
    assert_eq!(summary.stored_bytes, content.len() as u64);
    assert_eq!(summary.duplicates, 18);
    assert_eq!(file.as_file().metadata().unwrap().len() % 4096, 0);
    assert!(file.as_file().metadata().unwrap().len() < 21 * BLOCK as u64 + 8192);
}

#[test]
fn large_directories_can_be_listed_and_searched() {
    const COUNT: usize = 70_000;
    let mut model = Model::from([(Vec::new(), entry(Node::Directory))]);
    let mut add = |path: String, entry| model.insert(path.into_bytes(), entry);
    add("first".to_owned(), entry(Node::Directory));
    add("many".to_owned(), entry(Node::Directory));
    for number in 0..COUNT {
        let node = Node::File(Content::bytes(format!("{}", number % 97).into_bytes()));
        add(
            format!("many/{number:x} and a name of some length"),
            entry(node),
        );
        // A link whose inode number is far from its neighbours'.
        if number % 1000 == 0 {
            let target = format!("many/{number:x} and a name of some length");
            add(
                format!("zlinks {number}"),
                entry(Node::HardLink(target.into_bytes())),
            );
        }
    }
    let scratch = tempfile::tempdir().unwrap();
    let image = scratch.path().join("image");
    let options = options(Compression::default());
    let summary = model::write(&model, File::create(&image).unwrap(), &options, 1000).unwrap();
    assert_eq!(summary.inodes as usize, COUNT + 3);
    let depth = Depth {
        metadata: true,
        inodes: true,
        xattrs: false,
        directory_links: false,
    };
    let extracted = scratch.path().join("extracted");
    if oracles::is_root() && oracles::unsquashfs(&image, &extracted) {
        compare(&model, &extracted, depth);
    }
    // Looks up every name through the directory index.
    if let Some(mount) = oracles::kernel(&image, &scratch.path().join("kernel")) {
        compare(&model, mount.path(), depth);
        let absent = mount.path().join("many/4 and another name");
        let error = fs::symlink_metadata(absent).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}

#[test]
fn holes_take_no_room_when_mounted() {
    let scratch = tempfile::tempdir().unwrap();
    let image = scratch.path().join("image");
    let options = options(Compression::default());
    model::write(&sample(), File::create(&image).unwrap(), &options, 1000).unwrap();
    assert!(image.metadata().unwrap().len() < 5 << 20);
    if let Some(mount) = oracles::kernel(&image, &scratch.path().join("kernel")) {
        let sparse = fs::metadata(mount.path().join("holes/6 GiB")).unwrap();
        assert!(
            sparse.blocks() <= 4 * BLOCK as u64 / 512,
            "{}",
            sparse.blocks()
        );
        let full = fs::metadata(mount.path().join(format!("sizes/{BLOCK}"))).unwrap();
        assert_eq!(full.blocks() * 512, BLOCK as u64);
    }
}

fn metadata() -> Metadata {
    Metadata {
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime: 0,
        xattrs: None,
    }
}

fn writer() -> Writer {
    let file = tempfile::tempfile().unwrap();
    Writer::new(file, options(Compression::default()), Cancel::new()).unwrap()
}

fn tree_with(name: &[u8], kind: Kind) -> Tree {
    let mut tree = Tree::new(metadata());
    let metadata = metadata();
    let child = tree.add(Inode { metadata, kind }).unwrap();
    tree.link(Tree::ROOT, name, child);
    tree
}

#[test]
fn sizes_are_exact() {
    let mut writer = writer();
    let mut file = writer.begin_file(10).unwrap();
    file.write(b"12345").unwrap();
    let error = file.write(b"678901").unwrap_err();
    assert!(matches!(error, WriteError::ContentLong { announced: 10 }));
    let error = file.write_hole(6).unwrap_err();
    assert!(matches!(error, WriteError::ContentLong { announced: 10 }));
    let error = file.read_from(&mut &b"67"[..], 5).unwrap_err();
    let short = |error| {
        matches!(
            error,
            WriteError::ContentShort {
                announced: 10,
                missing: 3
            }
        )
    };
    assert!(short(error));
    assert!(short(file.finish().unwrap_err()));
    assert!(matches!(writer.begin_file(1), Err(WriteError::Unfinished)));
    let error = writer.finish(&Tree::new(metadata())).unwrap_err();
    assert!(matches!(error, WriteError::Unfinished));
}

#[test]
fn sizes_have_a_limit() {
    assert!(matches!(
        writer().begin_file(u64::MAX),
        Err(WriteError::TooManyBlocks)
    ));
}

#[test]
fn what_the_format_cannot_hold_is_refused() {
    let refuse = |tree: &Tree| writer().finish(tree).unwrap_err();
    let long = vec![b'n'; 257];
    for name in [&b""[..], b".", b"..", b"a/b", b"a\0b", &long] {
        let error = refuse(&tree_with(name, Kind::Fifo));
        assert!(matches!(error, WriteError::Name(_)), "{name:?}: {error}");
    }
    for target in [0, 4096] {
        let error = refuse(&tree_with(
            b"link",
            Kind::Symlink(vec![b'x'; target].into()),
        ));
        assert!(matches!(error, WriteError::SymlinkTarget(_)), "{error}");
    }
    let error = refuse(&tree_with(b"file", Kind::File(ContentId(0))));
    assert!(matches!(error, WriteError::UnknownContent(0)));

    // A directory with two names, one of them its own child's.
    let mut tree = tree_with(b"a", Kind::Directory(BTreeMap::new()));
    let directory = tree.child(Tree::ROOT, b"a").unwrap();
    tree.link(directory, b"loop", directory);
    assert!(matches!(refuse(&tree), WriteError::DirectoryLinks));

    let mut tree = Tree::new(metadata());
    for id in 0..65536 {
        let inode = Inode {
            metadata: Metadata {
                uid: id,
                ..metadata()
            },
            kind: Kind::Fifo,
        };
        let child = tree.add(inode).unwrap();
        tree.link(Tree::ROOT, format!("{id}").as_bytes(), child);
    }
    assert!(matches!(refuse(&tree), WriteError::TooManyIds));

    let mut tree = Tree::new(metadata());
    tree.inode_mut(Tree::ROOT).metadata.xattrs = Some(Box::new(xattrs(&[("user.x", &[0; 65537])])));
    assert!(matches!(
        refuse(&tree),
        WriteError::XattrSize { size: 65537, .. }
    ));
}

#[test]
fn options_are_checked() {
    let refuse = |options| {
        Writer::new(tempfile::tempfile().unwrap(), options, Cancel::new())
            .err()
            .unwrap()
    };
    for block_size in [0, 2048, 5000, 2 << 20] {
        let options = Options {
            block_size,
            ..Options::default()
        };
        assert!(matches!(refuse(options), WriteError::BlockSize(_)));
    }
    for compression in [
        Compression::Zstd(0),
        Compression::Zstd(23),
        Compression::Gzip(10),
    ] {
        assert!(matches!(
            refuse(options(compression)),
            WriteError::Compression(_)
        ));
    }
}

#[test]
fn unreachable_inodes_are_left_out() {
    let mut tree = Tree::new(metadata());
    let kind = Kind::Directory(BTreeMap::new());
    let orphan = tree
        .add(Inode {
            metadata: metadata(),
            kind,
        })
        .unwrap();
    let child = tree
        .add(Inode {
            metadata: metadata(),
            kind: Kind::Fifo,
        })
        .unwrap();
    tree.link(orphan, b"child", child);
    assert_eq!(writer().finish(&tree).unwrap().inodes, 1);
}

#[test]
fn a_full_disk_is_reported_once_and_stops_the_writer() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    // gzip:9 records no options, so the first write is that of a block.
    let options = options(Compression::Gzip(9));
    let mut writer = Writer::new(full, options, Cancel::new()).unwrap();
    let content = noise(1, BLOCK);
    let error = (0..1000)
        .find_map(|_| writer.add_file(&content).err())
        .unwrap();
    match error {
        WriteError::Write(error) => assert_eq!(error.kind(), io::ErrorKind::StorageFull),
        other => panic!("{other:?}"),
    }
    assert!(matches!(writer.begin_file(0), Err(WriteError::Unfinished)));
}

#[test]
fn a_cancelled_writer_stops() {
    let cancel = Cancel::new();
    let options = options(Compression::default());
    let mut writer = Writer::new(tempfile::tempfile().unwrap(), options, cancel.clone()).unwrap();
    writer.add_file(&noise(1, 5 * BLOCK)).unwrap();
    let mut file = writer.begin_file(BLOCK as u64).unwrap();
    cancel.cancel();
    let error = file.write(&noise(2, BLOCK)).unwrap_err();
    assert!(matches!(error, WriteError::Cancelled(_)));
}

/// A tree of up to 40 entries with names of one or two letters, so that some are nested and some names collide.
fn any_model() -> impl Strategy<Value = Model> {
    let content = prop_oneof![
        4 => (0..40_000_usize, 0..4_u64).prop_map(|(size, seed)| Content::bytes(noise(seed, size))),
        1 => (0..4_u64, prop::collection::vec((0..30_000_u64, 1..9000_usize), 0..4)).prop_map(
            |(seed, gaps)| {
                let mut content = Content::default();
                for (gap, length) in gaps {
                    content.patches.push((content.size + gap, noise(seed, length)));
                    content.size += gap + length as u64;
                }
                content.size += seed * 10_000;
                content
            }
        ),
    ];
    let node = prop_oneof![
        3 => Just(Node::Directory),
        6 => content.prop_map(Node::File),
        1 => "[a-z/]{1,40}".prop_map(|target| Node::Symlink(target.into_bytes())),
        2 => "[a-d]{1,2}(/[a-d]{1,2}){0,3}".prop_map(|target| Node::HardLink(target.into_bytes())),
        1 => Just(Node::Fifo),
    ];
    let mode = (0..0o10000_u16).prop_map(|mode| mode | 0o700);
    let entry = ("[a-d]{1,2}(/[a-d]{1,2}){0,3}", node, mode, any::<u32>());
    prop::collection::vec(entry, 0..40).prop_map(|entries| {
        let mut model = Model::from([(Vec::new(), entry_of_root())]);
        for (path, node, mode, mtime) in entries {
            let mut parent = String::new();
            for component in path
                .split('/')
                .rev()
                .skip(1)
                .collect::<Vec<_>>()
                .iter()
                .rev()
            {
                if !parent.is_empty() {
                    parent.push('/');
                }
                parent.push_str(component);
                model.insert(parent.clone().into_bytes(), model::entry(Node::Directory));
            }
            let entry = Entry {
                node,
                mode,
                mtime,
                xattrs: Xattrs::new(),
            };
            model.entry(path.into_bytes()).or_insert(entry);
        }
        // What became a directory's descendant of something else has no parent: leave it out; so with links to nothing.
        let whole = model.clone();
        model.retain(|path, entry| {
            let parents_are_directories = (0..path.len())
                .filter(|end| path[*end] == b'/')
                .all(|end| matches!(whole[&path[..end]].node, Node::Directory));
            let link_is_good = match &entry.node {
                Node::HardLink(target) => {
                    target < path
                        && matches!(
                            whole.get(target),
                            Some(Entry {
                                node: Node::File(_),
                                ..
                            })
                        )
                }
                _ => true,
            };
            parents_are_directories && link_is_good
        });
        model
    })
}

fn entry_of_root() -> Entry {
    entry(Node::Directory)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_tree_survives(
        model in any_model(),
        block_log in 12..15_u32,
        compression in prop_oneof![Just("zstd:1"), Just("lz4"), Just("gzip:1"), Just("none")],
        piece in 1..20_000_usize,
    ) {
        let scratch = tempfile::tempdir().unwrap();
        let image = scratch.path().join("image");
        let options = Options {
            block_size: 1 << block_log,
            ..options(compression.parse().unwrap())
        };
        model::write(&model, File::create(&image).unwrap(), &options, piece).unwrap();
        let extracted = scratch.path().join("extracted");
        let depth = Depth { metadata: oracles::is_root(), inodes: true, xattrs: false, directory_links: false };
        if oracles::unsquashfs(&image, &extracted) {
            compare(&model, &extracted, depth);
        }
    }
}
