//! The real kernel: the image is mounted in a user and mount namespace of its own by the example `serve-image`.

use std::fs::File;
use std::io::{Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use cista_images::tree::{Kind, Tree};

use crate::image::{Builder, content, metadata};

/// Mounts `image` at `$mount`, starts its server as `$server`, and runs `script`; what it printed. None, loudly, where that
/// is not possible; fails instead where the tests are required to run.
fn mounted(directory: &Path, image: File, cache_mib: u32, script: &str) -> Option<Output> {
    let possible = Command::new("unshare")
        .args([
            "--user",
            "--map-root-user",
            "--mount",
            "sh",
            "-c",
            ": <>/dev/fuse",
        ])
        .output();
    if !possible.is_ok_and(|output| output.status.success()) {
        let why = "no user namespace in which /dev/fuse can be opened";
        assert!(std::env::var_os("CISTA_TEST_REQUIRE").is_none(), "{why}");
        eprintln!("skipped: {why}");
        return None;
    }
    let path = directory.join("image");
    let mut image = image;
    image.seek(SeekFrom::Start(0)).unwrap();
    std::io::copy(&mut image, &mut File::create(&path).unwrap()).unwrap();
    let point = directory.join("mount");
    std::fs::create_dir(&point).unwrap();
    let preamble = r#"
        set -eu
        trap '[ $? = 0 ] || kill -KILL $server 2>/dev/null' EXIT
        "$program" "$image" "$mount" "$cache" 2 &
        server=$!
        tries=0
        until mountpoint -q "$mount"; do
            tries=$((tries + 1)); [ $tries -lt 500 ]; sleep 0.01
        done
    "#;
    // The server sits in the namespace that holds its mount, so it does not end by itself when the script does.
    let end = r#"
        umount "$mount"
        wait $server
    "#;
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c"])
        .arg([preamble, script, end].concat())
        .env("program", program())
        .env("image", &path)
        .env("mount", &point)
        .env("cache", cache_mib.to_string())
        .env("other", directory.join("other"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    Some(output)
}

/// The example; `cargo test --test fuse` alone does not build it.
fn program() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let profile = own.parent().and_then(Path::parent).unwrap();
    let release = profile.ends_with("release").then_some("--release");
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--example", "serve-image"])
        .args([
            "--manifest-path",
            concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"),
        ])
        .args(release)
        .status()
        .unwrap();
    assert!(built.success());
    profile.join("examples/serve-image")
}

#[test]
fn every_file_is_there_and_the_server_ends_with_its_mount() {
    let directory = tempfile::tempdir().unwrap();
    let other = directory.path().join("other");
    std::fs::create_dir(&other).unwrap();
    let mut builder = Builder::new(131_072);
    for number in 0..40_u64 {
        let name = format!("directory {number}");
        let inside = builder.directory(Tree::ROOT, name.as_bytes());
        std::fs::create_dir(other.join(&name)).unwrap();
        for file in 0..25_u64 {
            let bytes = content(number * 1000 + file, (number * file * 997) as usize);
            let path = format!("file {file}");
            builder.file(inside, path.as_bytes(), &bytes);
            std::fs::write(other.join(&name).join(&path), &bytes).unwrap();
        }
    }
    let target = b"directory 3/file 4".as_slice();
    builder.add(
        Tree::ROOT,
        b"link",
        metadata(0o777, &[("user.tag", b"value")]),
        Kind::Symlink(target.into()),
    );
    std::os::unix::fs::symlink("directory 3/file 4", other.join("link")).unwrap();
    let script = r#"
        find "$mount" -type f -print0 | xargs -0 -n 50 -P 4 cat >/dev/null
        diff -r --no-dereference "$mount" "$other"
        cmp "$mount/link" "$other/directory 3/file 4"
        ! cat "$mount/nothing" 2>/dev/null
        ! touch "$mount/new" 2>/dev/null
    "#;
    mounted(directory.path(), builder.finish(), 64, script);
}

#[test]
fn memory_is_bounded_by_the_cache() {
    let directory = tempfile::tempdir().unwrap();
    let mut builder = Builder::new(131_072);
    for number in 0..4_u64 {
        let bytes = content(number, 100 << 20);
        builder.file(Tree::ROOT, format!("large {number}").as_bytes(), &bytes);
    }
    // Tails of large files, all in fragment blocks, which stay in the cache as long as there is room.
    for number in 0..1000_u64 {
        let bytes = content(1000 + number, 100 << 10);
        builder.file(Tree::ROOT, format!("small {number}").as_bytes(), &bytes);
    }
    let script = r#"
        find "$mount" -type f -print0 | xargs -0 -n 4 -P 4 cat | wc -c
        sed -n 's/^VmHWM:[^0-9]*\([0-9]*\) kB/\1/p' /proc/$server/status
    "#;
    let Some(output) = mounted(directory.path(), builder.finish(), 16, script) else {
        return;
    };
    let text = String::from_utf8(output.stdout).unwrap();
    let numbers: Vec<u64> = text.lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(numbers[0], ((4 * 100) << 20) + 1000 * (100 << 10));
    assert!(numbers[1] < 64 << 10, "{} KiB of memory", numbers[1]);
}
