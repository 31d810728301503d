//! Packing, with the kernel's overlayfs as oracle: what it shows is what the image must hold.
//!
//! Each case mounts an overlay in a user namespace of its own, changes it as a container would, copies what is visible
//! aside, and compares that with the image packed from the lower image and the upper directory.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "tests fail by panicking, and name what they skip"
)]

mod xattrs;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use cista_images::cancel::Cancel;
use cista_images::pack::{Layer, PackError, Packed, pack};
use cista_images::squashfs::reader::Reader;
use cista_images::squashfs::writer::{Options, Writer};
use cista_images::tree::Xattrs;
use cista_images::unpack::{remove_tree, unpack};
use proptest::prelude::*;

/// What one path is: everything that an image keeps. Two paths are links to the same file when `same_as` is equal.
#[derive(Debug, PartialEq, Eq)]
struct Shown {
    kind: &'static str,
    mode: u32,
    mtime: i64,
    content: Vec<u8>,
    same_as: PathBuf,
    xattrs: Xattrs,
}

type Listing = BTreeMap<PathBuf, Shown>;

fn listing(root: &Path) -> Listing {
    let mut found = Listing::new();
    let mut first: BTreeMap<(u64, u64), PathBuf> = BTreeMap::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(path) = waiting.pop() {
        let status = fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(root).unwrap().to_owned();
        let file_type = status.file_type();
        let (kind, content) = if file_type.is_dir() {
            let mut below: Vec<_> = fs::read_dir(&path)
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .collect();
            below.sort();
            waiting.extend(below.into_iter().rev());
            ("directory", Vec::new())
        } else if file_type.is_symlink() {
            (
                "link",
                fs::read_link(&path)
                    .unwrap()
                    .into_os_string()
                    .as_bytes()
                    .to_vec(),
            )
        } else if file_type.is_fifo() {
            ("fifo", Vec::new())
        } else if file_type.is_file() {
            ("file", fs::read(&path).unwrap())
        } else {
            panic!("{}: {file_type:?}", path.display());
        };
        let same_as = if file_type.is_dir() {
            name.clone()
        } else {
            first
                .entry((status.dev(), status.ino()))
                .or_insert(name.clone())
                .clone()
        };
        let mode = if file_type.is_symlink() {
            0
        } else {
            status.mode() & 0o7777
        };
        let shown = Shown {
            kind,
            mode,
            mtime: status.mtime(),
            content,
            same_as,
            xattrs: xattrs::of(&path),
        };
        found.insert(name, shown);
    }
    found
}

/// Panics unless two listings are equal, except that `found` may have hard links that `expected` has not.
fn compare(mut found: Listing, expected: &Listing) {
    let names = |listing: &Listing| listing.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&found), names(expected));
    let same_as = |name: &Path| found[name].same_as.clone();
    let links: Vec<_> = (expected.iter())
        .map(|(name, expected)| same_as(name) == same_as(&expected.same_as))
        .collect();
    for ((name, expected), linked) in expected.iter().zip(links) {
        // Overlayfs does not always show that two names of a changed file are links.
        assert!(
            linked,
            "{} is no link to {}",
            name.display(),
            expected.same_as.display()
        );
        let found = found.get_mut(name).unwrap();
        found.same_as.clone_from(&expected.same_as);
        assert_eq!(found, expected, "{}", name.display());
    }
}

/// Packs layers to a new image at `image`.
fn write(layers: &[Layer<'_>], excluded: &[&Path], image: &Path) -> Result<Packed, PackError> {
    let options = Options {
        threads: 2,
        ..Options::default()
    };
    write_with(options, layers, excluded, image)
}

fn write_with(
    options: Options,
    layers: &[Layer<'_>],
    excluded: &[&Path],
    image: &Path,
) -> Result<Packed, PackError> {
    let file = File::create(image).unwrap();
    let mut writer = Writer::new(file, options, Cancel::new()).unwrap();
    let packed = pack(layers, excluded, &mut writer, &Cancel::new())?;
    writer.finish(&packed.tree).unwrap();
    Ok(packed)
}

fn open(image: &Path) -> Reader {
    Reader::open(File::open(image).unwrap(), 0).unwrap()
}

/// What an image holds, by unpacking it.
fn content(image: &Path, scratch: &Path) -> Listing {
    let unpacked = scratch.join("unpacked");
    unpack(&open(image), &unpacked, 2, &Cancel::new()).unwrap();
    let listing = listing(&unpacked);
    remove_tree(&unpacked).unwrap();
    listing
}

/// Runs a shell script as root of a new user namespace; false when that cannot be had, which is said.
fn in_namespace(script: &str, directory: &Path) -> bool {
    let run = |script: &str| {
        Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-euc", script])
            .current_dir(directory)
            .output()
    };
    let probe = "mkdir -p p/l p/u p/w p/m && mount -t overlay -o userxattr,lowerdir=p/l,upperdir=p/u,workdir=p/w none p/m";
    static USABLE: OnceLock<bool> = OnceLock::new();
    let usable = USABLE.get_or_init(|| run(probe).is_ok_and(|output| output.status.success()));
    if !usable {
        assert!(
            std::env::var_os("CISTA_TEST_REQUIRE").is_none_or(|value| value != "1"),
            "overlayfs in a user namespace is required"
        );
        println!("skipped: overlayfs in a user namespace: cannot be mounted");
        return false;
    }
    let output = run(script).unwrap();
    assert!(
        output.status.success(),
        "{script}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    true
}

/// A lower tree with something of everything.
fn lower(root: &Path) {
    fs::create_dir_all(root).unwrap();
    for directory in ["a", "a/b", "a/b/c", "d", "d/e", "empty"] {
        fs::create_dir(root.join(directory)).unwrap();
    }
    for (number, file) in ["a/1", "a/2", "a/b/1", "a/b/c/1", "d/1", "d/e/1", "1", "2"]
        .iter()
        .enumerate()
    {
        fs::write(root.join(file), vec![number as u8; 1 << (3 * number)]).unwrap();
    }
    fs::hard_link(root.join("a/1"), root.join("d/2")).unwrap();
    fs::hard_link(root.join("a/1"), root.join("d/e/2")).unwrap();
    symlink("a/1", root.join("link")).unwrap();
}

/// Packs what the overlay of a lower image and the changes of a script has, and compares it with what the kernel shows.
fn overlay(changes: &str) {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name);
    lower(&path("lower"));
    write(
        &[Layer::Directory(&path("lower"))],
        &[],
        &path("lower.sqsh"),
    )
    .unwrap();
    let script = format!(
        "mkdir upper work merged
         mount -t overlay -o userxattr,lowerdir=lower,upperdir=upper,workdir=work none merged
         cd merged; {changes}
         cp -a . ../expected"
    );
    if !in_namespace(&script, scratch.path()) {
        return;
    }
    let expected = listing(&path("expected"));
    let lower = open(&path("lower.sqsh"));
    let upper = path("upper");
    for lower in [Layer::Image(&lower), Layer::Directory(&path("lower"))] {
        write(&[lower, Layer::Directory(&upper)], &[], &path("image.sqsh")).unwrap();
        compare(content(&path("image.sqsh"), scratch.path()), &expected);
    }
    // The work directory of an overlay has no permissions.
    remove_tree(&path("work")).unwrap();
}

#[test]
fn an_untouched_overlay_is_its_lower_layer() {
    overlay("true");
}

#[test]
fn removed_and_replaced_names() {
    overlay("rm 1 a/b/1; rm -r d; echo new > 1; mkdir 2.d; rm 2; mkdir 2; echo x > 2/x");
    overlay("rm -r a; echo file > a");
    overlay("rm link; mkdir link; rm -r a; ln -s d a");
}

#[test]
fn recreated_directories_are_opaque() {
    overlay("rm -r a; mkdir a; echo new > a/new; mkdir a/b");
    overlay("rm -r d/e; mkdir d/e; rm -r d/e; mkdir d/e; mkdir -p d/e/f/g; echo x > d/e/f/g/x");
}

#[test]
fn changed_metadata() {
    overlay("chmod 4711 1; chmod 700 a; touch -d @77 a/2 d; touch -h -d @78 link");
    overlay("setfattr -n user.x -v y a 2>/dev/null || true; mkfifo pipe; chmod 1777 empty");
}

#[test]
fn hard_links_of_a_layer() {
    overlay("echo x > h1; ln h1 h2; ln h1 a/h3; ln -s h1 s1; ln s1 s2; mkfifo p1; ln p1 d/p2");
    overlay("rm a/1; rm d/1");
    // Overlayfs shows the second and the third as links, the first as a file of its own.
    overlay("ln 2 empty; ln 2 a/b");
}

#[test]
fn several_layers() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name);
    lower(&path("lower"));
    let script = "for layer in 1 2 3; do
             mkdir $layer work$layer merged$layer
         done
         o=userxattr
         mount -t overlay -o $o,lowerdir=lower,upperdir=1,workdir=work1 none merged1
         (cd merged1; rm -r a; rm 1; mkdir n; echo 1 > n/1; echo 1 > d/1)
         umount merged1
         mount -t overlay -o $o,lowerdir=1:lower,upperdir=2,workdir=work2 none merged2
         (cd merged2; mkdir a; echo 2 > a/2; rm -r n; rmdir empty; echo f > empty; mkdir 1)
         umount merged2
         mount -t overlay -o $o,lowerdir=2:1:lower,upperdir=3,workdir=work3 none merged3
         (cd merged3; rm empty; mkdir empty; mkdir n; echo 3 > n/3; echo 3 > d/e/3)
         cp -a merged3/. expected";
    if !in_namespace(script, scratch.path()) {
        return;
    }
    let directories = ["lower", "1", "2", "3"].map(path);
    let layers: Vec<Layer<'_>> = (directories.iter())
        .map(|directory| Layer::Directory(directory))
        .collect();
    write(&layers, &[], &path("image")).unwrap();
    compare(
        content(&path("image"), scratch.path()),
        &listing(&path("expected")),
    );
    for number in 1..=3 {
        remove_tree(&path(&format!("work{number}"))).unwrap();
    }
}

#[test]
fn a_directory_is_stored_as_its_reader_would_see_it() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name);
    lower(&path("tree"));
    let sparse = File::create(path("tree/sparse")).unwrap();
    sparse.set_len(50 << 20).unwrap();
    sparse.write_all_at(b"here", 10 << 20).unwrap();
    sparse.write_all_at(b"there", (30 << 20) - 2).unwrap();
    fs::write(path("tree").join(OsStr::from_bytes(b"\xff\n")), "odd name").unwrap();
    rustix::fs::lsetxattr(
        path("tree/1"),
        "user.a",
        b"value",
        rustix::fs::XattrFlags::empty(),
    )
    .unwrap();
    let mut expected = listing(&path("tree"));
    for (name, mode) in [("a/2", 0o000), ("a/b/1", 0o6511), ("d", 0o500)] {
        fs::set_permissions(path("tree").join(name), Permissions::from_mode(mode)).unwrap();
    }
    if !rustix::process::geteuid().is_root() {
        fs::set_permissions(path("tree/a/2"), Permissions::from_mode(0o200)).unwrap();
        let error = write(&[Layer::Directory(&path("tree"))], &[], &path("image")).unwrap_err();
        assert!(
            matches!(
                error,
                PackError::Read {
                    operation: "open",
                    ..
                }
            ),
            "{error}"
        );
        fs::set_permissions(path("tree/a/2"), Permissions::from_mode(0o400)).unwrap();
    }
    for (name, mode) in [("a/2", 0o400), ("a/b/1", 0o6511), ("d", 0o700)] {
        expected.get_mut(Path::new(name)).unwrap().mode = mode;
    }
    write(&[Layer::Directory(&path("tree"))], &[], &path("image")).unwrap();
    compare(content(&path("image"), scratch.path()), &expected);
    let status = fs::metadata(path("image")).unwrap();
    assert!(status.len() < 1 << 20, "{} bytes with holes", status.len());
    // Packed again from the image, it is the same image.
    write(&[Layer::Image(&open(&path("image")))], &[], &path("again")).unwrap();
    assert!(fs::read(path("image")).unwrap() == fs::read(path("again")).unwrap());
}

#[test]
fn images_of_any_format_are_repacked() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name);
    lower(&path("tree"));
    // Blocks that compress, blocks that do not, holes, and a long and a short tail.
    for (name, tail) in [("long", 100_000), ("short", 1000)] {
        let mut content: Vec<u8> = (0..300_000_u32)
            .flat_map(|n| (n / 7).to_le_bytes())
            .collect();
        content.resize(2_000_000, 0);
        let mut state = 1_u32;
        content.extend((0..(2 << 17) + tail).map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        }));
        fs::write(path("tree").join(name), content).unwrap();
    }
    let expected = listing(&path("tree"));
    let formats =
        ["zstd:1", "zstd:3", "gzip:1", "gzip:9", "lz4", "xz", "none"].map(|name| Options {
            compression: name.parse().unwrap(),
            threads: 2,
            ..Options::default()
        });
    let small = Options {
        block_size: 64 << 10,
        ..formats[0].clone()
    };
    let formats = [&formats[..], &[small]].concat();
    let tree = path("tree");
    // What the others would be made to is the same code.
    let targets = [&formats[..4], &formats[7..]].concat();
    for from in &formats {
        write_with(from.clone(), &[Layer::Directory(&tree)], &[], &path("from")).unwrap();
        for to in &targets {
            let reader = open(&path("from"));
            write_with(to.clone(), &[Layer::Image(&reader)], &[], &path("to")).unwrap();
            compare(content(&path("to"), scratch.path()), &expected);
            // Copied or not, it is the same image as from the directory.
            write_with(to.clone(), &[Layer::Directory(&tree)], &[], &path("direct")).unwrap();
            assert!(
                fs::read(path("to")).unwrap() == fs::read(path("direct")).unwrap(),
                "{from:?} to {to:?}"
            );
        }
    }
}

#[test]
fn excluded_paths_are_left_out() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name);
    lower(&path("tree"));
    let excluded = [Path::new("/a/b"), Path::new("./d/1"), Path::new("nowhere")];
    write(
        &[Layer::Directory(&path("tree"))],
        &excluded,
        &path("image"),
    )
    .unwrap();
    fs::remove_dir_all(path("tree/a/b")).unwrap();
    fs::remove_file(path("tree/d/1")).unwrap();
    let names = |listing: Listing| listing.into_keys().collect::<Vec<_>>();
    assert_eq!(
        names(content(&path("image"), scratch.path())),
        names(listing(&path("tree")))
    );
}

#[test]
fn other_mounts_and_devices_are_left_out() {
    let scratch = tempfile::tempdir().unwrap();
    lower(&scratch.path().join("tree"));
    // The mounts exist in the namespace only, so the test has to run there: by itself, see below.
    let script = format!(
        "mount -t tmpfs none tree/a; echo hidden > tree/a/hidden
         mount --bind tree/2 tree/1
         mount --bind /dev/null tree/d/1
         CISTA_TEST_PACK=$PWD '{}' --exact pack_for_another_test",
        std::env::current_exe().unwrap().display()
    );
    if !in_namespace(&script, scratch.path()) {
        return;
    }
    let found = content(&scratch.path().join("image"), scratch.path());
    let names: Vec<&Path> = found.keys().map(PathBuf::as_path).collect();
    let expected = [
        "", "2", "a", "d", "d/2", "d/e", "d/e/1", "d/e/2", "empty", "link",
    ];
    assert_eq!(names, expected.map(Path::new));
}

/// Not a test by itself: the part of another that runs in a namespace.
#[test]
fn pack_for_another_test() {
    let Some(scratch) = std::env::var_os("CISTA_TEST_PACK").map(PathBuf::from) else {
        return;
    };
    let tree = scratch.join("tree");
    let packed = write(&[Layer::Directory(&tree)], &[], &scratch.join("image")).unwrap();
    assert_eq!((packed.mounts, packed.devices), (3, 0));
}

#[test]
fn devices_and_overlay_features() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name);
    lower(&path("tree"));
    let set = |file: &str, name: &str, value: &[u8]| {
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::lsetxattr(path(file), name, value, flags).unwrap();
    };
    set("tree/a", "user.overlay.origin", b"\0\xfb");
    set("tree/a", "user.overlay.impure", b"y");
    set("tree/a", "user.other", b"kept");
    write(&[Layer::Directory(&path("tree"))], &[], &path("image")).unwrap();
    let found = content(&path("image"), scratch.path());
    let kept = Xattrs::from([(b"user.other".as_slice().into(), b"kept".as_slice().into())]);
    assert_eq!(found[Path::new("a")].xattrs, kept);
    for (file, name) in [
        ("tree/d", "user.overlay.redirect"),
        ("tree/2", "user.overlay.metacopy"),
        ("tree/2", "user.overlay.whiteout"),
    ] {
        set(file, name, b"");
        let error = write(&[Layer::Directory(&path("tree"))], &[], &path("image")).unwrap_err();
        assert!(matches!(error, PackError::Overlay { .. }), "{error}");
        rustix::fs::lremovexattr(path(file), name).unwrap();
    }
}

#[test]
fn deep_trees_need_few_descriptors() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("tree");
    fs::create_dir(&root).unwrap();
    // Deeper than a path can say, and than a process may have files open.
    let script = "cd tree; i=0; while [ $i -lt 1500 ]; do mkdir d e; echo $i > e/f; cd -P d; i=$((i+1)); done";
    let output = Command::new("sh")
        .args(["-euc", script])
        .current_dir(scratch.path())
        .output();
    assert!(output.unwrap().status.success());
    let image = scratch.path().join("image");
    write(&[Layer::Directory(&root)], &[], &image).unwrap();
    let reader = open(&image);
    assert_eq!(reader.superblock().inode_count.get(), 1 + 3 * 1500);
    let path = [&b"d/".repeat(1499)[..], b"e/f"].concat();
    let inode = reader.walk(&path).unwrap().unwrap();
    assert_eq!(reader.read_file(&inode, 100).unwrap(), b"1499\n");
    remove_tree(&root).unwrap();
}

#[test]
fn a_missing_directory_is_named() {
    let scratch = tempfile::tempdir().unwrap();
    let missing = scratch.path().join("missing");
    let image = scratch.path().join("image");
    let error = write(&[Layer::Directory(&missing)], &[], &image).unwrap_err();
    assert!(
        matches!(&error, PackError::Open { path, .. } if *path == missing),
        "{error}"
    );
    fs::write(&missing, "a file").unwrap();
    let error = write(&[Layer::Directory(&missing)], &[], &image).unwrap_err();
    assert!(matches!(&error, PackError::Open { .. }), "{error}");
}

#[test]
fn cancel_stops_the_walk() {
    let scratch = tempfile::tempdir().unwrap();
    lower(&scratch.path().join("tree"));
    let file = tempfile::tempfile().unwrap();
    let mut writer = Writer::new(file, Options::default(), Cancel::new()).unwrap();
    let cancel = Cancel::new();
    cancel.cancel();
    let tree = scratch.path().join("tree");
    let error = pack(&[Layer::Directory(&tree)], &[], &mut writer, &cancel).unwrap_err();
    assert!(matches!(error, PackError::Cancelled(_)), "{error}");
}

/// A change that a container could make, some of which fail on what is there.
fn any_change() -> impl Strategy<Value = String> {
    let path = || {
        prop::sample::select(vec![
            "a", "a/b", "a/b/c", "a/1", "a/2", "a/b/1", "a/b/c/1", "d", "d/e", "d/1", "d/2",
            "d/e/1", "d/e/2", "1", "2", "empty", "link", "n", "n/n", "a/n", "d/e/n",
        ])
    };
    prop_oneof![
        path().prop_map(|path| format!("rm -rf {path}")),
        path().prop_map(|path| format!("mkdir {path}")),
        path().prop_map(|path| format!("echo {path} >> {path}")),
        path().prop_map(|path| format!("ln -s target {path}")),
        (path(), path()).prop_map(|(from, to)| format!("ln {from} {to}")),
        (path(), path()).prop_map(|(from, to)| format!("mv -T {from} {to}")),
        (path(), 0..0o10000_u32)
            .prop_map(|(path, mode)| format!("chmod {:o} {path}", mode | 0o700)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn any_changes(changes in prop::collection::vec(any_change(), 1..25)) {
        let changes: Vec<String> =
            changes.into_iter().map(|change| format!("{change} 2>/dev/null || :")).collect();
        overlay(&changes.join("; "));
    }
}
