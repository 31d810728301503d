//! Unpacking, against images that mksquashfs makes.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking, and says on stderr what it skips"
)]

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{
    FileExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink,
};
use std::path::{Path, PathBuf};
use std::process::Command;

use cista_images::cancel::Cancel;
use cista_images::digest::Digest;
use cista_images::squashfs::reader::Reader;
use cista_images::unpack::{UnpackError, remove_tree, unpack};
use rustix::fs::XattrFlags;

/// Whether a tool is there. Says so if not, and fails where the environment demands that nothing is skipped.
fn have(tool: &str) -> bool {
    let found = std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|directory| directory.join(tool).is_file())
    });
    if !found {
        eprintln!("skipped: {tool} is not installed");
        assert!(
            std::env::var_os("CISTA_TEST_REQUIRE").is_none(),
            "{tool} is required"
        );
    }
    found
}

/// What a tree holds, by path: type, mode, time, size or target, digest, attribute, and which paths share an inode.
fn listing(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![root.to_owned()];
    let mut inodes = BTreeMap::new();
    while let Some(path) = waiting.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(root).unwrap().to_owned();
        let content = if metadata.is_dir() {
            waiting.extend(
                fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
            "directory".to_owned()
        } else if metadata.is_symlink() {
            format!("-> {:?}", fs::read_link(&path).unwrap())
        } else if metadata.file_type().is_fifo() {
            "fifo".to_owned()
        } else {
            let mut value = [0; 64];
            let xattr = rustix::fs::getxattr(&path, "user.test", &mut value)
                .map(|length| String::from_utf8_lossy(&value[..length]).into_owned());
            let content = fs::read(&path).unwrap();
            format!("{} {} {xattr:?}", content.len(), Digest::of(&content))
        };
        let links = if metadata.is_dir() {
            1
        } else {
            metadata.nlink()
        };
        inodes
            .entry(metadata.ino())
            .or_insert_with(Vec::new)
            .push(name.clone());
        let line = format!(
            "{content} {:o} {} {links}",
            metadata.mode(),
            metadata.mtime()
        );
        found.insert(name, line);
    }
    for mut paths in inodes.into_values().filter(|paths| paths.len() > 1) {
        paths.sort();
        for path in &paths {
            found
                .get_mut(path)
                .unwrap()
                .push_str(&format!(" {paths:?}"));
        }
    }
    found
}

fn mksquashfs(tree: &Path, image: &Path) -> Reader {
    let made = Command::new("mksquashfs")
        .args([tree, image])
        .args([
            "-quiet",
            "-no-progress",
            "-comp",
            "zstd",
            "-Xcompression-level",
            "1",
            "-all-root",
        ])
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    Reader::open(File::open(image).unwrap(), 0).unwrap()
}

fn awkward_tree(root: &Path) {
    fs::create_dir_all(root.join("many")).unwrap();
    fs::create_dir_all(root.join("deep/er/est")).unwrap();
    for number in 0..1000_u32 {
        let content = number.to_string().repeat(number as usize);
        fs::write(root.join(format!("many/{number}")), content).unwrap();
    }
    let noise: Vec<u8> = (0..13_000_000_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    fs::write(root.join("large"), &noise).unwrap();
    let sparse = File::create(root.join("sparse")).unwrap();
    sparse.write_all_at(b"middle", 40 << 20).unwrap();
    sparse.set_len(80 << 20).unwrap();
    File::create(root.join("small-hole"))
        .unwrap()
        .set_len(300_000)
        .unwrap();
    File::create(root.join("empty")).unwrap();
    fs::write(root.join("deep/er/est/file"), "x").unwrap();
    fs::hard_link(root.join("large"), root.join("deep/large-too")).unwrap();
    fs::hard_link(root.join("many/7"), root.join("deep/er/seven")).unwrap();
    symlink("/etc/passwd", root.join("absolute")).unwrap();
    symlink("../..", root.join("deep/up")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        root.join("pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    fs::write(
        root.join(std::ffi::OsStr::from_bytes(b"odd \xff\n name")),
        "odd",
    )
    .unwrap();
    rustix::fs::setxattr(
        root.join("empty"),
        "user.test",
        b"value",
        XattrFlags::empty(),
    )
    .unwrap();
    fs::set_permissions(root.join("many/1"), Permissions::from_mode(0o4755)).unwrap();
    fs::set_permissions(root.join("many/2"), Permissions::from_mode(0o000)).unwrap();
    fs::set_permissions(root.join("deep/er"), Permissions::from_mode(0o555)).unwrap();
    fs::set_permissions(root.join("many"), Permissions::from_mode(0o1777)).unwrap();
}

#[test]
fn an_unpacked_tree_is_the_packed_one() {
    if !have("mksquashfs") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let tree = scratch.path().join("tree");
    awkward_tree(&tree);
    let reader = mksquashfs(&tree, &scratch.path().join("image"));
    for threads in [1, 4] {
        let unpacked = scratch.path().join(format!("unpacked-{threads}"));
        let summary = unpack(&reader, &unpacked, threads, &Cancel::new()).unwrap();
        assert_eq!(listing(&unpacked), listing(&tree));
        assert_eq!((summary.files, summary.directories), (1006, 5));
        assert_eq!((summary.devices, summary.refused_xattrs), (0, 0));
        let blocks = fs::metadata(unpacked.join("sparse")).unwrap().blocks();
        assert!(blocks * 512 < 1 << 20, "holes were filled");
        remove_tree(&unpacked).unwrap();
        assert!(!unpacked.exists());
    }
}

#[test]
fn an_existing_destination_is_left_alone() {
    if !have("mksquashfs") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let tree = scratch.path().join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("file"), "x").unwrap();
    let reader = mksquashfs(&tree, &scratch.path().join("image"));
    let error = unpack(&reader, &tree, 1, &Cancel::new()).unwrap_err();
    assert!(matches!(error, UnpackError::Destination { .. }), "{error}");
    assert!(tree.join("file").exists());
}

#[test]
fn a_cancelled_unpack_says_so() {
    if !have("mksquashfs") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let tree = scratch.path().join("tree");
    awkward_tree(&tree);
    let reader = mksquashfs(&tree, &scratch.path().join("image"));
    let cancel = Cancel::new();
    cancel.cancel();
    let error = unpack(&reader, &scratch.path().join("out"), 2, &cancel).unwrap_err();
    assert!(matches!(error, UnpackError::Cancelled(_)), "{error}");
}

#[test]
fn corrupt_content_fails_and_names_the_file() {
    if !have("mksquashfs") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let tree = scratch.path().join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("victim"), "all work and no play ".repeat(100_000)).unwrap();
    let image = scratch.path().join("image");
    drop(mksquashfs(&tree, &image));
    let file = File::options().write(true).open(&image).unwrap();
    file.write_all_at(&[0x55; 64], 96).unwrap();
    let reader = Reader::open(File::open(&image).unwrap(), 0).unwrap();
    let error = unpack(&reader, &scratch.path().join("out"), 2, &Cancel::new()).unwrap_err();
    assert!(error.to_string().contains("/victim"), "{error}");
}

#[test]
fn a_tree_deeper_than_any_path_is_refused() {
    if !have("mksquashfs") {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    // A pseudo file definition: mksquashfs itself could not walk so deep a tree of the host.
    let tree = scratch.path().join("tree");
    fs::create_dir(&tree).unwrap();
    let mut path = String::new();
    let definitions: String = (0..2100)
        .map(|_| {
            path.push_str("d/");
            format!("{} d 755 0 0\n", path.trim_end_matches('/'))
        })
        .collect();
    fs::write(scratch.path().join("definitions"), definitions).unwrap();
    let image = scratch.path().join("image");
    let made = Command::new("mksquashfs")
        .args([&tree, &image])
        .args(["-quiet", "-no-progress", "-pf"])
        .arg(scratch.path().join("definitions"))
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let reader = Reader::open(File::open(&image).unwrap(), 0).unwrap();
    let out = scratch.path().join("out");
    let error = unpack(&reader, &out, 2, &Cancel::new()).unwrap_err();
    assert!(matches!(error, UnpackError::TooDeep { .. }), "{error}");
    remove_tree(&out).unwrap();
}
