//! Whole imports: from a layout on disk to an image that is read back.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod errors;

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use cista_images::cancel::Cancel;
use cista_images::digest::Digest;
use cista_images::import::record::{self, Record};
use cista_images::import::{self, ImportError, Options, Summary};
use cista_images::platform::Platform;
use cista_images::progress::{Event, Progress, Silent};
use cista_images::source::{self, Settings, Task};
use cista_images::squashfs::compression::Compression;
use cista_images::squashfs::reader::{InodeKind, Reader};

use errors::chain;

/// Bytes that a compressor cannot shorten much, the same for a seed.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // Half of it repeats, so that there is something to compress.
        bytes.extend_from_slice(&state.to_le_bytes()[..4]);
        bytes.extend_from_slice(b"abcd");
    }
    bytes.truncate(length);
    bytes
}

fn tar(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(1_600_000_000);
        builder
            .append_data(&mut header, name, &content[..])
            .unwrap();
    }
    builder.into_inner().unwrap()
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

/// The layers of the test image, lowest first: gzip, zstd, plain, and one of each compression that is large.
fn layers() -> Vec<(Vec<u8>, Vec<u8>)> {
    let many: Vec<_> = (0..300)
        .map(|n| (format!("many/{n}"), noise(n, 40 * n as usize)))
        .collect();
    let many: Vec<_> = many
        .iter()
        .map(|(name, content)| (name.as_str(), content.clone()))
        .collect();
    let streams = [
        tar(&[("a", noise(1, 3 << 20)), ("b", noise(2, 500_000))]),
        tar(&[("b", noise(3, 700_001)), ("etc/rc", b"old".to_vec())]),
        tar(&many),
        tar(&[("c", noise(4, 2 << 20)), (".wh.a", Vec::new())]),
    ];
    let blobs = [
        gzip(&streams[0]),
        zstd::encode_all(&streams[1][..], 1).unwrap(),
        streams[2].clone(),
        gzip(&streams[3]),
    ];
    blobs.into_iter().zip(streams).collect()
}

/// Writes an OCI layout. `diff_ids` replaces the right ones.
fn layout(directory: &Path, layers: &[(Vec<u8>, Vec<u8>)], diff_ids: Option<&[Digest]>) {
    let blobs = directory.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |content: &[u8]| {
        let digest = Digest::of(content);
        fs::write(blobs.join(digest.hex()), content).unwrap();
        (digest.to_string(), content.len())
    };
    let right: Vec<_> = layers
        .iter()
        .map(|(_, stream)| Digest::of(stream))
        .collect();
    let diff_ids: Vec<_> = diff_ids
        .unwrap_or(&right)
        .iter()
        .map(Digest::to_string)
        .collect();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "created": "2024-02-29T12:00:00Z",
        "config": {"Env": ["A=1"], "Cmd": ["sh"], "WorkingDir": "/work"},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let (config, config_size) = put(config.to_string().as_bytes());
    let entries: Vec<_> = layers
        .iter()
        .map(|(blob, _)| {
            let (digest, size) = put(blob);
            serde_json::json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "digest": digest, "size": size,
            })
        })
        .collect();
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": config, "size": config_size,
        },
        "layers": entries,
    });
    let (manifest, size) = put(manifest.to_string().as_bytes());
    let index = serde_json::json!({
        "schemaVersion": 2,
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": manifest, "size": size,
        }],
    });
    fs::write(directory.join("index.json"), index.to_string()).unwrap();
    fs::write(
        directory.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .unwrap();
}

/// Imports what a URI names into a new file.
fn import(
    uri: &str,
    options: &Options,
    file: &Path,
    task: Task<'_>,
) -> Result<Summary, ImportError> {
    let source = source::open(&uri.parse().unwrap(), &Settings::default()).unwrap();
    let image = source.resolve(&Platform::linux("amd64"), task).unwrap();
    import::import(
        source.as_ref(),
        &image,
        options,
        File::create_new(file).unwrap(),
        task,
    )
}

fn quietly(uri: &str, options: &Options, file: &Path) -> Result<Summary, ImportError> {
    import(
        uri,
        options,
        file,
        Task {
            progress: &Silent,
            cancel: &Cancel::new(),
        },
    )
}

fn read(image: &Path, path: &str) -> Option<Vec<u8>> {
    let reader = Reader::open(File::open(image).unwrap(), 0).unwrap();
    let inode = reader.walk(path.as_bytes()).unwrap()?;
    assert!(matches!(inode.kind, InodeKind::File(_)), "{path}");
    Some(reader.read_file(&inode, 1 << 30).unwrap())
}

#[test]
fn an_image_says_what_its_layers_say() {
    let place = tempfile::tempdir().unwrap();
    layout(&place.path().join("x"), &layers(), None);
    let uri = format!("oci:{}", place.path().join("x").display());
    let file = place.path().join("image");
    let summary = quietly(&uri, &Options::new(3), &file).unwrap();
    assert_eq!(summary.size, fs::metadata(&file).unwrap().len());
    assert_eq!(read(&file, "a"), None);
    assert_eq!(read(&file, "b").unwrap(), noise(3, 700_001));
    assert_eq!(read(&file, "c").unwrap(), noise(4, 2 << 20));
    for n in [0, 1, 77, 299] {
        assert_eq!(
            read(&file, &format!("many/{n}")).unwrap(),
            noise(n, 40 * n as usize)
        );
    }
    assert_eq!(read(&file, "etc/environment").unwrap(), b"A=1\n");
    let script = String::from_utf8(read(&file, "etc/rc").unwrap()).unwrap();
    assert!(script.contains("exec 'sh'"), "{script}");
    let json = read(&file, record::PATH).unwrap();
    let record = Record::parse(&json).unwrap();
    assert_eq!(record.reference.as_deref(), Some(uri.as_str()));
    assert_eq!(record.image_config().unwrap().config.cmd, ["sh"]);
    let reader = Reader::open(File::open(&file).unwrap(), 0).unwrap();
    assert_eq!(reader.superblock().mkfs_time.get(), 1_709_208_000);
    let time = |path: &str| reader.walk(path.as_bytes()).unwrap().unwrap().mtime;
    assert_eq!(time("b"), 1_600_000_000);
    assert_eq!(time("work"), 1_709_208_000);
}

#[test]
fn equal_input_makes_equal_images() {
    let place = tempfile::tempdir().unwrap();
    // Two places, so that the references differ.
    for name in ["x", "y"] {
        layout(&place.path().join(name), &layers(), None);
    }
    let make = |name: &str, options: Options| {
        let uri = format!("oci:{}", place.path().join(name).display());
        let file = place.path().join("image");
        quietly(&uri, &options, &file).unwrap();
        let image = fs::read(&file).unwrap();
        fs::remove_file(&file).unwrap();
        image
    };
    let without_reference = |threads| Options {
        record_reference: false,
        ..Options::new(threads)
    };
    let expected = make("x", without_reference(1));
    for threads in [2, 3, 8] {
        assert!(
            make("y", without_reference(threads)) == expected,
            "{threads} threads"
        );
    }
    let little = Options {
        memory: 0,
        ..without_reference(5)
    };
    assert!(make("x", little) == expected, "no memory to look ahead");
    assert!(make("x", Options::new(2)) == make("x", Options::new(4)));
    // What determines the image is in the fingerprint.
    let other = Options {
        compression: Compression::Lz4,
        ..without_reference(1)
    };
    assert!(make("x", other.clone()) != expected);
    assert_ne!(other.fingerprint(), without_reference(1).fingerprint());
    assert_eq!(
        without_reference(7).fingerprint(),
        without_reference(1).fingerprint()
    );
}

#[test]
fn a_time_for_everything() {
    let place = tempfile::tempdir().unwrap();
    layout(&place.path().join("x"), &layers(), None);
    let uri = format!("oci:{}", place.path().join("x").display());
    let file = place.path().join("image");
    let options = Options {
        time: Some(42),
        ..Options::new(2)
    };
    quietly(&uri, &options, &file).unwrap();
    let reader = Reader::open(File::open(&file).unwrap(), 0).unwrap();
    assert_eq!(reader.superblock().mkfs_time.get(), 42);
    for path in ["", "b", "many", "many/7", "etc/rc", ".cista/image.json"] {
        assert_eq!(
            reader.walk(path.as_bytes()).unwrap().unwrap().mtime,
            42,
            "{path}"
        );
    }
}

#[test]
fn damage_is_told_by_its_layer() {
    let place = tempfile::tempdir().unwrap();
    let layers = layers();
    type Damage = fn(&mut Vec<u8>);
    let damages: [(&str, Damage); 3] = [
        ("changed", |blob| {
            let middle = blob.len() / 2;
            blob[middle] ^= 0x55;
        }),
        ("cut", |blob| blob.truncate(blob.len() / 2)),
        ("longer", |blob| blob.extend_from_slice(b"more")),
    ];
    for (index, (blob, _)) in layers.iter().enumerate() {
        for (what, damage) in damages {
            let directory = place.path().join(format!("{index}{what}"));
            layout(&directory, &layers, None);
            let digest = Digest::of(blob);
            let mut blob = blob.clone();
            damage(&mut blob);
            fs::write(directory.join("blobs/sha256").join(digest.hex()), blob).unwrap();
            let file = place.path().join("image");
            let uri = format!("oci:{}", directory.display());
            let error = quietly(&uri, &Options::new(2), &file).unwrap_err();
            fs::remove_file(&file).unwrap();
            let text = chain(&error);
            // The source's own words, which know of the digest, whatever the decoder stumbled over.
            assert!(
                text.starts_with(&format!("cannot use layer {}", index + 1)),
                "{text}"
            );
            let cause = match what {
                "changed" => "corrupt",
                "cut" => "truncated",
                _ => "larger",
            };
            assert!(text.contains(cause), "{what}: {text}");
        }
    }
    let mut wrong: Vec<_> = layers
        .iter()
        .map(|(_, stream)| Digest::of(stream))
        .collect();
    wrong[1] = Digest::of(b"something else");
    layout(&place.path().join("wrong"), &layers, Some(&wrong));
    let uri = format!("oci:{}", place.path().join("wrong").display());
    let error = quietly(&uri, &Options::new(2), &place.path().join("image")).unwrap_err();
    let text = chain(&error);
    assert!(text.starts_with("cannot use layer 2"), "{text}");
    assert!(text.contains("announces"), "{text}");
}

#[test]
fn an_interrupted_import_ends_at_once() {
    /// Cancels when the first bytes have been merged.
    struct Interrupting(Cancel);
    impl Progress for Interrupting {
        fn event(&self, event: Event) {
            if matches!(event, Event::LayerMerged { .. }) {
                self.0.cancel();
            }
        }
    }
    let place = tempfile::tempdir().unwrap();
    layout(&place.path().join("x"), &layers(), None);
    let uri = format!("oci:{}", place.path().join("x").display());
    for threads in [1, 4] {
        let cancel = Cancel::new();
        let progress = Interrupting(cancel.clone());
        let task = Task {
            progress: &progress,
            cancel: &cancel,
        };
        let file = place.path().join("image");
        let start = Instant::now();
        let error = import(&uri, &Options::new(threads), &file, task).unwrap_err();
        fs::remove_file(&file).unwrap();
        assert!(matches!(error, ImportError::Cancelled(_)), "{error}");
        assert!(start.elapsed() < Duration::from_secs(5));
    }
}

#[test]
fn an_image_that_cannot_be_written_is_not_the_layers_fault() {
    let place = tempfile::tempdir().unwrap();
    layout(&place.path().join("x"), &layers(), None);
    let uri = format!("oci:{}", place.path().join("x").display());
    let source = source::open(&uri.parse().unwrap(), &Settings::default()).unwrap();
    let cancel = Cancel::new();
    let task = Task {
        progress: &Silent,
        cancel: &cancel,
    };
    let image = source.resolve(&Platform::linux("amd64"), task).unwrap();
    // Every write to it says that the disk is full.
    let full = File::options().write(true).open("/dev/full").unwrap();
    let error = import::import(source.as_ref(), &image, &Options::new(2), full, task).unwrap_err();
    assert!(matches!(error, ImportError::Write(_)), "{}", chain(&error));
    assert!(chain(&error).contains("No space left"), "{}", chain(&error));
}

#[test]
fn streams_without_a_digest_must_show_their_end() {
    let place = tempfile::tempdir().unwrap();
    let whole = tar(&[("a", b"a".to_vec()), ("b", b"b".to_vec())]);
    for (length, expected) in [
        (whole.len(), None),
        // Behind the first entry.
        (1024, Some("no end marker")),
        (1000, Some("ends within an entry")),
        (0, Some("nothing to read")),
    ] {
        let path = place.path().join("x.tar");
        fs::write(&path, &whole[..length]).unwrap();
        let file = place.path().join("image");
        let result = quietly(&format!("tar:{}", path.display()), &Options::new(2), &file);
        fs::remove_file(&file).unwrap();
        match (result, expected) {
            (Ok(_), None) => {}
            (Err(error), Some(expected)) => {
                assert!(chain(&error).contains(expected), "{}", chain(&error));
            }
            (result, _) => panic!("{length}: {result:?}"),
        }
    }
}

/// GNU tar, which writes sparse files in every format there is, long names, and odd ones.
#[test]
fn archives_of_gnu_tar() {
    use std::os::unix::ffi::OsStrExt as _;

    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("root");
    fs::create_dir(&root).unwrap();
    let odd = std::ffi::OsStr::from_bytes(b"odd \xff\n name");
    let long = "long-component/".repeat(20);
    fs::create_dir_all(root.join(&long)).unwrap();
    fs::write(root.join(&long).join("file"), b"deep").unwrap();
    fs::write(root.join(odd), b"odd").unwrap();
    // More extents than an old GNU header and one of its extensions hold, and one with a hole at the end.
    let mut sparse = File::create(root.join("sparse")).unwrap();
    let mut expected = vec![0; 200 * 65_536];
    for n in 0..100 {
        use std::io::{Seek as _, SeekFrom};
        let at = n * 2 * 65_536;
        sparse.seek(SeekFrom::Start(at as u64)).unwrap();
        let data = noise(n as u64, 5000);
        sparse.write_all(&data).unwrap();
        expected[at..at + data.len()].copy_from_slice(&data);
    }
    sparse.set_len(expected.len() as u64).unwrap();
    drop(sparse);
    fs::hard_link(root.join("sparse"), root.join("zz-link")).unwrap();
    for arguments in [
        &["--format=gnu", "--sparse"][..],
        &["--format=pax", "--sparse", "--sparse-version=0.0"],
        &["--format=pax", "--sparse", "--sparse-version=0.1"],
        &["--format=pax", "--sparse", "--sparse-version=1.0"],
        &["--format=gnu"],
        &["--format=pax"],
    ] {
        let archive = place.path().join("x.tar");
        let status = Command::new("tar")
            .arg("-C")
            .arg(&root)
            .args(arguments)
            .args(["--sort=name", "-cf"])
            .arg(&archive)
            .arg(".")
            .status()
            .unwrap();
        assert!(status.success(), "{arguments:?}");
        let file = place.path().join("image");
        quietly(
            &format!("tar:{}", archive.display()),
            &Options::new(2),
            &file,
        )
        .unwrap();
        assert!(read(&file, "sparse").unwrap() == expected, "{arguments:?}");
        assert_eq!(read(&file, &format!("{long}file")).unwrap(), b"deep");
        let reader = Reader::open(File::open(&file).unwrap(), 0).unwrap();
        let inode = |path: &[u8]| reader.walk(path).unwrap().unwrap();
        assert_eq!(
            reader.read_file(&inode(odd.as_bytes()), 10).unwrap(),
            b"odd"
        );
        assert_eq!(inode(b"sparse").number, inode(b"zz-link").number);
        fs::remove_file(&file).unwrap();
    }
}
