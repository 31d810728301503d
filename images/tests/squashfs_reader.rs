//! The squashfs reader against images made by `mksquashfs`: everything that went in is read back, whatever the
//! compressor and block size, and damaged images give errors, never a panic or an endless loop.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking and reports what it skips"
)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use cista_images::squashfs::format::InodeRef;
use cista_images::squashfs::reader::{Inode, InodeKind, ReadError, Reader};
use proptest::prelude::*;

/// Skips a test, loudly; fails instead where the tests are required to run.
fn has_tool(tool: &str) -> bool {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(tool).is_file()));
    if !found {
        assert!(
            std::env::var_os("CISTA_TEST_REQUIRE").is_none(),
            "`{tool}` is not installed"
        );
        eprintln!("skipped: `{tool}` is not installed");
    }
    found
}

/// A directory that goes with its handle; in it, an empty directory and the path of an image to make from it. None where
/// images cannot be made.
fn scratch() -> Option<(tempfile::TempDir, PathBuf, PathBuf)> {
    has_tool("mksquashfs").then(|| {
        let directory = tempfile::tempdir().unwrap();
        let (source, image) = (
            directory.path().join("source"),
            directory.path().join("image"),
        );
        fs::create_dir(&source).unwrap();
        (directory, source, image)
    })
}

/// Bytes that compress somewhat and differ by seed.
fn content(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..length)
        .map(|i| {
            if i % 16 == 0 {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
            }
            (state >> (i % 8 * 8)) as u8
        })
        .collect()
}

/// A directory with one of everything.
fn sample(root: &Path) {
    let dir = |name: &str| {
        fs::create_dir_all(root.join(name)).unwrap();
        root.join(name)
    };
    let usr = dir("usr/lib/deep/er");
    fs::write(usr.join("empty"), b"").unwrap();
    fs::write(usr.join("small"), content(1, 300)).unwrap();
    fs::write(usr.join("exact"), content(2, 131_072)).unwrap();
    fs::write(usr.join("exact4k"), content(3, 4096)).unwrap();
    fs::write(usr.join("tail"), content(4, 1_500_000)).unwrap();
    // More than one chunk of the block list with blocks of 4 KiB.
    fs::write(usr.join("long"), content(5, 2048 * 4096 * 2 + 77)).unwrap();
    let mut sparse = fs::File::create(root.join("sparse")).unwrap();
    sparse.write_all(b"begin").unwrap();
    sparse.seek(SeekFrom::Start(5_000_000)).unwrap();
    sparse.write_all(b"middle").unwrap();
    sparse.set_len(9_000_001).unwrap();
    fs::hard_link(usr.join("tail"), root.join("tail-again")).unwrap();
    symlink("usr/lib", root.join("lib")).unwrap();
    symlink("/nowhere/at all", root.join("dangling")).unwrap();
    dir("empty-directory");
    let many = dir("many");
    for i in 0..3000 {
        fs::write(
            many.join(format!("file-with-a-longer-name-{i:05}")),
            format!("{i}"),
        )
        .unwrap();
    }
    fs::write(many.join("x".repeat(255)), b"long name").unwrap();
    let odd = std::ffi::OsString::from_vec(vec![0xff, 0xfe, b'\n', b' ', b'"']);
    fs::write(root.join(odd), b"odd name").unwrap();
    let run = |command: &mut Command| assert!(command.status().unwrap().success(), "{command:?}");
    run(Command::new("mkfifo").arg(root.join("fifo")));
    fs::set_permissions(usr.join("small"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::set_permissions(root.join("many"), fs::Permissions::from_mode(0o1777)).unwrap();
    for (file, value) in [
        ("a", "short".to_owned()),
        ("b", "y".repeat(2000)),
        ("c", "y".repeat(2000)),
    ] {
        let path = root.join(file);
        fs::write(&path, file).unwrap();
        rustix::fs::setxattr(
            &path,
            "user.cista.test",
            value.as_bytes(),
            rustix::fs::XattrFlags::empty(),
        )
        .unwrap();
    }
    if rustix::process::geteuid().is_root() {
        // Every extended inode type that is left: only privileged namespaces work on links and pipes.
        for (name, value) in [("dangling", b"link"), ("fifo", b"pipe"), ("c", b"file")] {
            let flags = rustix::fs::XattrFlags::empty();
            rustix::fs::lsetxattr(root.join(name), "trusted.cista.test", value, flags).unwrap();
        }
    }
    rustix::fs::setxattr(
        root.join("usr"),
        "user.on-directory",
        b"yes",
        rustix::fs::XattrFlags::empty(),
    )
    .unwrap();
}

fn mksquashfs(source: &Path, image: &Path, options: &[&str]) {
    let output = Command::new("mksquashfs")
        .args([source, image])
        .args(["-noappend", "-quiet", "-no-progress", "-processors", "2"])
        .args(options)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Compares an image's directory with the one that it was made from, and everything below.
fn compare(reader: &Reader, inode: &Inode, path: &Path, seen: &mut BTreeMap<u64, InodeRef>) {
    let metadata = path.symlink_metadata().unwrap();
    assert_eq!(
        u32::from(inode.mode) | inode.file_type(),
        metadata.mode(),
        "{path:?}"
    );
    assert_eq!(i64::from(inode.mtime), metadata.mtime(), "{path:?}");
    assert_eq!(
        reader.id(inode.uid_index).unwrap(),
        metadata.uid(),
        "{path:?}"
    );
    assert_eq!(
        reader.id(inode.gid_index).unwrap(),
        metadata.gid(),
        "{path:?}"
    );
    assert_eq!(
        reader.inode_by_number(inode.number).unwrap(),
        Some(inode.reference)
    );
    let mut names = vec![0; 65_536];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let mut xattrs = BTreeMap::new();
    for name in names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        let mut value = vec![0; 65_536];
        let length = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
        xattrs.insert(Box::from(name), Box::from(&value[..length]));
    }
    assert_eq!(reader.xattrs(inode).unwrap(), xattrs, "{path:?}");
    match &inode.kind {
        InodeKind::Directory(_) => {
            let mut expected = fs::read_dir(path)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_vec())
                .collect::<Vec<_>>();
            expected.sort();
            let entries = reader
                .open_directory(inode)
                .unwrap()
                .collect::<Result<Vec<_>, _>>()
                .unwrap();
            let found = entries
                .iter()
                .map(|entry| entry.name.to_vec())
                .collect::<Vec<_>>();
            assert_eq!(found, expected, "{path:?}");
            // Every place of the listing can be returned to.
            let mut cursor = reader.open_directory(inode).unwrap();
            for (i, entry) in entries.iter().enumerate().step_by(7) {
                while cursor.name() != &*entry.name {
                    cursor.advance().unwrap();
                }
                let rest = reader
                    .resume_directory(inode, cursor.cookie())
                    .unwrap()
                    .take(2)
                    .map(Result::unwrap)
                    .collect::<Vec<_>>();
                assert_eq!(
                    rest,
                    entries[i + 1..].iter().take(2).cloned().collect::<Vec<_>>()
                );
            }
            for entry in &entries {
                let target = reader.lookup(inode, &entry.name).unwrap();
                assert_eq!(target, Some(entry.target));
                let child = reader.inode(entry.target.inode).unwrap();
                assert_eq!(child.number, entry.target.number);
                compare(
                    reader,
                    &child,
                    &path.join(std::ffi::OsStr::from_bytes(&entry.name)),
                    seen,
                );
            }
            for absent in [
                &b"zzz"[..],
                b"",
                b"!",
                b".",
                b"..",
                b"file-with-a-longer-name-01500x",
            ] {
                assert_eq!(reader.lookup(inode, absent).unwrap(), None);
            }
        }
        InodeKind::File(_) => {
            assert_eq!(u64::from(inode.nlink), metadata.nlink());
            if metadata.nlink() > 1 {
                let reference = *seen.entry(metadata.ino()).or_insert(inode.reference);
                assert_eq!(reference, inode.reference);
            }
            let expected = fs::read(path).unwrap();
            assert!(
                reader.read_file(inode, expected.len() as u64).unwrap() == expected,
                "{path:?}"
            );
            if !expected.is_empty() {
                reader
                    .read_file(inode, expected.len() as u64 - 1)
                    .unwrap_err();
            }
            let map = reader.file_map(inode).unwrap();
            for (offset, length) in [
                (0, 10),
                (4090, 20),
                (130_000, 5000),
                (4_999_990, 40),
                (8_999_990, 4096),
            ] {
                let mut buffer = vec![1; length];
                let read = reader.read_at(&map, offset as u64, &mut buffer).unwrap();
                let start = offset.min(expected.len());
                let end = (offset + length).min(expected.len());
                assert_eq!(&buffer[..read], &expected[start..end], "{path:?}");
            }
        }
        InodeKind::Symlink(_) => assert_eq!(
            reader.readlink(inode).unwrap(),
            fs::read_link(path).unwrap().into_os_string().into_vec()
        ),
        _ => {}
    }
}

fn open(image: &Path) -> Reader {
    Reader::open(fs::File::open(image).unwrap(), 0).unwrap()
}

fn check(options: &[&str]) {
    let Some((_scratch, source, image)) = scratch() else {
        return;
    };
    sample(&source);
    mksquashfs(&source, &image, options);
    let reader = open(&image);
    let root = reader.inode(reader.root_ref()).unwrap();
    compare(&reader, &root, &source, &mut BTreeMap::new());
    assert!(reader.cached_bytes() <= 16 << 20);
    let found = reader.walk(b"/usr//lib/./deep/er/small").unwrap().unwrap();
    assert_eq!(found.size(), 300);
    for nowhere in ["lib/deep", "usr/../usr", "usr/lib/deep/er/small/x", "none"] {
        assert!(
            reader.walk(nowhere.as_bytes()).unwrap().is_none(),
            "{nowhere}"
        );
    }
}

#[test]
fn zstd() {
    check(&["-comp", "zstd", "-Xcompression-level", "1"]);
}

#[test]
fn gzip() {
    check(&["-comp", "gzip"]);
}

#[test]
fn xz_with_filters() {
    check(&["-comp", "xz", "-Xbcj", "x86,arm"]);
}

#[test]
fn lzo_as_enroot_does() {
    check(&["-comp", "lzo", "-noD"]);
}

#[test]
fn lzo() {
    check(&["-comp", "lzo"]);
}

#[test]
fn lz4() {
    check(&["-comp", "lz4"]);
}

#[test]
fn uncompressed() {
    check(&["-noI", "-noD", "-noF", "-noX"]);
}

#[test]
fn small_blocks() {
    check(&["-comp", "zstd", "-b", "4096"]);
}

#[test]
fn large_blocks() {
    check(&["-comp", "zstd", "-b", "1M"]);
}

#[test]
fn without_fragments() {
    check(&["-comp", "zstd", "-no-fragments"]);
}

#[test]
fn always_fragments() {
    check(&["-comp", "zstd", "-always-use-fragments"]);
}

#[test]
fn devices_and_sockets() {
    let Some((_scratch, source, image)) = scratch() else {
        return;
    };
    let pseudo = [
        "null c 666 0 0 1 3",
        "disk b 660 7 8 259 300",
        "socket i 755 0 0 s",
    ];
    let options = pseudo.iter().flat_map(|definition| ["-p", definition]);
    mksquashfs(
        &source,
        &image,
        &options.chain(["-no-exports"]).collect::<Vec<_>>(),
    );
    let reader = open(&image);
    let inode = |name: &str| reader.walk(name.as_bytes()).unwrap().unwrap();
    assert!(matches!(
        inode("null").kind,
        InodeKind::CharacterDevice(0x103)
    ));
    // Twelve bits of the major number; the minor number's upper bits above them.
    let disk = inode("disk");
    assert!(matches!(disk.kind, InodeKind::BlockDevice(0x0011_032c)));
    assert_eq!(
        (
            reader.id(disk.uid_index).unwrap(),
            reader.id(disk.gid_index).unwrap()
        ),
        (7, 8)
    );
    assert!(matches!(inode("socket").kind, InodeKind::Socket));
    assert_eq!(inode("socket").file_type() | 0o755, 0o140_755);
    assert_eq!(reader.inode_by_number(disk.number).unwrap(), None);
    assert!(matches!(
        reader.read_file(&disk, 10),
        Err(ReadError::WrongType(_))
    ));
    assert!(matches!(
        reader.lookup(&disk, b"x"),
        Err(ReadError::WrongType(_))
    ));
}

#[test]
fn more_than_64_ki_entries_and_4_gib() {
    let Some((_scratch, source, image)) = scratch() else {
        return;
    };
    fs::create_dir_all(source.join("many")).unwrap();
    let size = (4_u64 << 30) + 100_003;
    let large = fs::File::create(source.join("large")).unwrap();
    large.set_len(size).unwrap();
    large.write_all_at(b"middle", (4 << 30) - 3).unwrap();
    large.write_all_at(b"end", size - 3).unwrap();
    let first = source.join("many/first");
    fs::write(&first, b"first").unwrap();
    let name = |i: u32| format!("entry-{i:06}");
    for i in 0..70_000 {
        fs::hard_link(&first, source.join("many").join(name(i)))
            .or_else(|_| fs::write(source.join("many").join(name(i)), b"other"))
            .unwrap();
    }
    mksquashfs(&source, &image, &["-comp", "zstd"]);
    let reader = open(&image);
    let many = reader.walk(b"many").unwrap().unwrap();
    assert_eq!(reader.open_directory(&many).unwrap().count(), 70_001);
    for i in (0..70_000).step_by(701) {
        assert!(
            reader.lookup(&many, name(i).as_bytes()).unwrap().is_some(),
            "{i}"
        );
    }
    // A listing in pieces, as a kernel asks for it.
    let (mut cookie, mut count) = (0, 0);
    loop {
        let mut cursor = reader.resume_directory(&many, cookie).unwrap();
        let piece = (0..1000)
            .take_while(|_| cursor.advance().unwrap().is_some())
            .count();
        count += piece;
        cookie = cursor.cookie();
        if piece < 1000 {
            break;
        }
    }
    assert_eq!(count, 70_001);
    let large = reader.walk(b"large").unwrap().unwrap();
    assert_eq!(large.size(), size);
    let map = reader.file_map(&large).unwrap();
    let mut buffer = [1; 10];
    assert_eq!(
        reader.read_at(&map, (4 << 30) - 5, &mut buffer).unwrap(),
        10
    );
    assert_eq!(&buffer, b"\0\0middle\0\0");
    assert_eq!(reader.read_at(&map, size - 4, &mut buffer).unwrap(), 4);
    assert_eq!(&buffer[..4], b"\0end");
    assert!(matches!(
        reader.read_file(&large, 1 << 20),
        Err(ReadError::TooLarge { .. })
    ));
}

#[test]
fn an_image_cannot_steer_the_overlay_above_it() {
    let Some((_scratch, source, image)) = scratch() else {
        return;
    };
    let directory = source.join("directory");
    fs::create_dir_all(&directory).unwrap();
    for name in ["user.overlay.opaque", "user.overlayed"] {
        rustix::fs::setxattr(&directory, name, b"y", rustix::fs::XattrFlags::empty()).unwrap();
    }
    mksquashfs(&source, &image, &[]);
    let reader = open(&image);
    let inode = reader.walk(b"directory").unwrap().unwrap();
    let names: Vec<_> = reader.xattrs(&inode).unwrap().into_keys().collect();
    assert_eq!(names, [Box::from(&b"user.overlayed"[..])]);
}

#[test]
fn an_image_may_begin_anywhere_in_its_file() {
    let Some((scratch, source, image)) = scratch() else {
        return;
    };
    fs::write(source.join("file"), b"content").unwrap();
    mksquashfs(&source, &image, &[]);
    let shifted = scratch.path().join("shifted");
    let mut bytes = vec![b'#'; 12_345];
    bytes.extend(fs::read(&image).unwrap());
    fs::write(&shifted, bytes).unwrap();
    let reader = Reader::open(fs::File::open(&shifted).unwrap(), 12_345).unwrap();
    let file = reader.walk(b"file").unwrap().unwrap();
    assert_eq!(reader.read_file(&file, 100).unwrap(), b"content");
}

#[test]
fn threads_share_a_reader_whose_cache_is_too_small() {
    let Some((_scratch, source, image)) = scratch() else {
        return;
    };
    for i in 0..400 {
        let length = 1000 + i as usize * 997 % 200_000;
        fs::write(source.join(format!("{i}")), content(i, length)).unwrap();
    }
    mksquashfs(&source, &image, &["-comp", "zstd", "-b", "16K"]);
    let limit = 4 * 16_384;
    let reader = open(&image).with_cache(limit);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let reader = &reader;
            scope.spawn(move || {
                // Neighbouring files share fragments, and several threads meet in each.
                for i in (0..400).map(|i| (i + thread / 2) % 400) {
                    let file = reader.walk(format!("{i}").as_bytes()).unwrap().unwrap();
                    let map = reader.file_map(&file).unwrap();
                    let mut found = vec![0; file.size() as usize];
                    assert_eq!(reader.read_at(&map, 0, &mut found).unwrap(), found.len());
                    assert!(found == content(i, found.len()), "{i}");
                    assert!(reader.cached_bytes() <= limit);
                }
            });
        }
    });
    assert!(reader.cached_bytes() > 0);
}

#[test]
fn what_is_no_image_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    let open = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        Reader::open(fs::File::open(&path).unwrap(), 0).map(drop)
    };
    assert!(matches!(open(b""), Err(ReadError::NotSquashfs)));
    assert!(matches!(open(&[0; 4096]), Err(ReadError::NotSquashfs)));
    assert!(matches!(open(b"hsqs"), Err(ReadError::NotSquashfs)));
    let mut superblock = [0; 4096];
    superblock[..4].copy_from_slice(b"hsqs");
    assert!(matches!(open(&superblock), Err(ReadError::Version { .. })));
    let error = Reader::open(fs::File::open(directory.path()).unwrap(), 0).map(drop);
    assert!(matches!(error, Err(ReadError::Directory)), "{error:?}");
}

#[test]
fn a_truncated_image_is_refused() {
    if !has_tool("mksquashfs") {
        return;
    }
    let image = Sample::new();
    let path = image.directory.path().join("cut");
    fs::write(&path, &image.bytes[..image.bytes.len() / 2]).unwrap();
    let error = Reader::open(fs::File::open(&path).unwrap(), 0).map(drop);
    assert!(
        matches!(error, Err(ReadError::Truncated { .. })),
        "{error:?}"
    );
}

/// A small image with one of everything, to damage.
struct Sample {
    directory: tempfile::TempDir,
    bytes: Vec<u8>,
}

impl Sample {
    fn new() -> Self {
        // Metadata stored plain: most changes then reach the parser rather than the decompressor.
        Self::with(&["-comp", "zstd", "-noI", "-noId", "-noX", "-b", "4096"])
    }

    fn with(options: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let source = directory.path().join("source");
        fs::create_dir(&source).unwrap();
        fs::create_dir_all(source.join("a/b/c")).unwrap();
        fs::write(source.join("a/file"), content(1, 30_000)).unwrap();
        fs::write(source.join("a/b/tail"), content(2, 9_000)).unwrap();
        fs::hard_link(source.join("a/file"), source.join("a/b/c/link")).unwrap();
        symlink("a/b", source.join("s")).unwrap();
        fs::create_dir(source.join("many")).unwrap();
        for i in 0..600 {
            fs::write(
                source.join(format!("many/some-name-that-is-long-{i}")),
                format!("{i}"),
            )
            .unwrap();
        }
        fs::write(source.join("x"), b"x").unwrap();
        for (name, length) in [("user.one", 10), ("user.two", 3000)] {
            rustix::fs::setxattr(
                source.join("x"),
                name,
                &content(9, length),
                rustix::fs::XattrFlags::empty(),
            )
            .unwrap();
        }
        let image = directory.path().join("image");
        mksquashfs(&source, &image, options);
        let bytes = fs::read(image).unwrap();
        Self { directory, bytes }
    }

    fn scratch(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

/// Reads everything that can be reached, within limits on how often. Errors are what it is about.
fn exercise(file: fs::File) -> Result<(), ReadError> {
    let reader = Reader::open(file, 0)?.with_cache(1 << 20);
    let mut budget = 3000_u32;
    let mut pending = vec![reader.root_ref()];
    let mut seen = std::collections::HashSet::new();
    let mut first_error = None;
    while let Some(reference) = pending.pop() {
        if budget == 0 {
            break;
        }
        budget -= 1;
        let mut note = |error| {
            first_error.get_or_insert(error);
        };
        let inode = match reader.inode(reference) {
            Ok(inode) => inode,
            Err(error) => {
                note(error);
                continue;
            }
        };
        let _ = reader.xattrs(&inode).map_err(&mut note);
        let _ = reader.id(inode.uid_index).map_err(&mut note);
        let _ = reader.inode_by_number(inode.number).map_err(&mut note);
        match &inode.kind {
            InodeKind::Directory(_) => {
                let _ = reader
                    .lookup(&inode, b"some-name-that-is-long-333")
                    .map_err(&mut note);
                // Made-up cookies may well give errors.
                for cookie in [0, 21, 5000, 3 << 32 | 100, u64::MAX] {
                    let _ = reader
                        .resume_directory(&inode, cookie)
                        .and_then(|mut entries| entries.advance());
                }
                let entries = match reader.open_directory(&inode) {
                    Ok(entries) => entries,
                    Err(error) => {
                        note(error);
                        continue;
                    }
                };
                for entry in entries.take(3000) {
                    match entry {
                        Ok(entry) if seen.insert(entry.target.inode) => {
                            pending.push(entry.target.inode);
                        }
                        Ok(_) => {}
                        Err(error) => note(error),
                    }
                }
            }
            InodeKind::File(_) => match reader.file_map(&inode) {
                Ok(map) => {
                    let count = map.extent_count();
                    for index in (0..count.min(20)).chain(count.saturating_sub(2)..count) {
                        let _ = reader.extent(&map, index).map_err(&mut note);
                    }
                    for offset in [0, inode.size() / 2, inode.size().saturating_sub(5000)] {
                        let _ = reader
                            .read_at(&map, offset, &mut [0; 10_000])
                            .map_err(&mut note);
                    }
                }
                Err(error) => note(error),
            },
            InodeKind::Symlink(_) => {
                let _ = reader.readlink(&inode).map_err(&mut note);
            }
            _ => {}
        }
    }
    first_error.map_or(Ok(()), Err)
}

/// Where an image's metadata begins: its inode table.
fn metadata_start(bytes: &[u8]) -> usize {
    u64::from_le_bytes(*bytes[64..].first_chunk().unwrap()) as usize
}

#[test]
fn damaged_images_give_errors() {
    if !has_tool("mksquashfs") {
        return;
    }
    let sample = Sample::new();
    let path = sample.scratch("damaged");
    fs::write(&path, &sample.bytes).unwrap();
    exercise(fs::File::open(&path).unwrap()).unwrap();
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    let metadata = metadata_start(&sample.bytes);
    let runs = std::env::var("CISTA_FUZZ_CASES").map_or(3000, |cases| cases.parse().unwrap());
    let place = prop_oneof![
        0..96_usize,
        metadata..sample.bytes.len(),
        0..sample.bytes.len()
    ];
    let value = prop_oneof![
        any::<u8>().prop_map(|byte| vec![byte]),
        prop::sample::select(vec![
            vec![0; 2],
            vec![0xff; 2],
            vec![0; 4],
            vec![0xff; 4],
            vec![0xff; 8],
            vec![0xff, 0xff, 0xff, 0x7f]
        ]),
        prop::collection::vec(any::<u8>(), 1..12),
    ];
    let changes = prop::collection::vec((place, value), 1..4);
    let config = ProptestConfig {
        cases: runs,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let failures = std::cell::Cell::new(0);
    proptest!(config, |(changes in changes)| {
        for (at, value) in &changes {
            let end = (at + value.len()).min(sample.bytes.len());
            file.write_all_at(&value[..end - at], *at as u64).unwrap();
        }
        let begin = std::time::Instant::now();
        if exercise(file.try_clone().unwrap()).is_err() {
            failures.set(failures.get() + 1);
        }
        // A thousand times what it takes; a loop or a balloon takes longer.
        prop_assert!(begin.elapsed().as_secs() < 20, "{:?}", begin.elapsed());
        for (at, value) in &changes {
            let end = (at + value.len()).min(sample.bytes.len());
            file.write_all_at(&sample.bytes[*at..end], *at as u64).unwrap();
        }
    });
    // The changes do reach the parser.
    assert!(failures.get() > runs / 20, "{} of {runs}", failures.get());
}

#[test]
fn every_byte_of_the_metadata_may_be_wrong() {
    if !has_tool("mksquashfs") {
        return;
    }
    let sample = Sample::new();
    let path = sample.scratch("damaged");
    fs::write(&path, &sample.bytes).unwrap();
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    let metadata = metadata_start(&sample.bytes);
    for at in (0..96).chain((metadata..sample.bytes.len()).step_by(41)) {
        for value in [0, 0xff, sample.bytes[at] ^ 1, sample.bytes[at] ^ 0x80] {
            file.write_all_at(&[value], at as u64).unwrap();
            let _ = exercise(file.try_clone().unwrap());
        }
        file.write_all_at(&sample.bytes[at..=at], at as u64)
            .unwrap();
    }
}
