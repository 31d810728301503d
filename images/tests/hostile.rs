//! Images of registries and archives that are damaged or made to harm: an import ends in bounded time and memory, with an image that can be read or with an
//! error that says something.
//!
//! Documents and layers are changed before their digests are made, so that the changes reach the parsers. `CISTA_FUZZ_CASES` makes the campaigns
//! longer, `CISTA_FUZZ_SEED` begins them elsewhere. A case depends on its number alone.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod errors;

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use cista_images::cancel::Cancel;
use cista_images::digest::Digest;
use cista_images::import::{self, Options};
use cista_images::layer::Limits;
use cista_images::platform::Platform;
use cista_images::progress::Silent;
use cista_images::reference::Reference;
use cista_images::source::{self, Settings, Task};
use cista_images::squashfs::reader::{InodeKind, Reader};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};

use errors::chain;

/// Longest that a case may take: a thousand times what it does.
const PATIENCE: Duration = Duration::from_secs(30);

/// Address space of this process: what an allocation by an unchecked number is stopped by. Most of it is the threads' stacks and heaps.
const ADDRESS_SPACE: u64 = 6 << 30;

/// Pseudo-random numbers (xorshift), the same for a seed.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, limit: u64) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 11) % limit.max(1)) as usize
    }

    fn among<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len() as u64)]
    }
}

/// The cases of a campaign, by number.
fn cases(usual: u64) -> std::ops::Range<u64> {
    let number =
        |name, usual| std::env::var(name).map_or(usual, |text| text.parse::<u64>().unwrap());
    let first = number("CISTA_FUZZ_SEED", 0);
    first..first + number("CISTA_FUZZ_CASES", usual)
}

fn bound_memory() {
    let limit = Rlimit {
        current: Some(ADDRESS_SPACE),
        maximum: getrlimit(Resource::As).maximum,
    };
    setrlimit(Resource::As, limit).unwrap();
}

fn header(kind: tar::EntryType, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(0o644);
    header.set_mtime(1_600_000_000);
    header
}

/// Layers with all that layers have, lowest first.
fn layers() -> Vec<Vec<u8>> {
    let file = |builder: &mut tar::Builder<Vec<u8>>, name: &str, content: &[u8]| {
        let mut header = header(tar::EntryType::Regular, content.len() as u64);
        builder.append_data(&mut header, name, content).unwrap();
    };
    let link = |builder: &mut tar::Builder<Vec<u8>>, kind, name: &str, target: &str| {
        builder
            .append_link(&mut header(kind, 0), name, target)
            .unwrap();
    };
    let mut bottom = tar::Builder::new(Vec::new());
    file(&mut bottom, "bin/sh", &[7; 5000]);
    file(&mut bottom, "etc/passwd", b"root:x:0:0::/root:/bin/sh\n");
    file(&mut bottom, &format!("long/{}", "n".repeat(150)), b"name");
    link(&mut bottom, tar::EntryType::Link, "bin/bash", "bin/sh");
    link(&mut bottom, tar::EntryType::Symlink, "lib", "usr/lib");
    let pax = [
        ("path", &b"usr/lib/of pax"[..]),
        ("SCHILY.xattr.user.tag", b"value"),
        ("mtime", b"1600000000.5"),
        ("size", b"11"),
    ];
    bottom.append_pax_extensions(pax).unwrap();
    file(&mut bottom, "short", b"pax content");
    let mut middle = tar::Builder::new(Vec::new());
    file(&mut middle, "bin/.wh.sh", b"");
    file(&mut middle, "etc/.wh..wh..opq", b"");
    file(&mut middle, "etc/group", b"root:x:0:\n");
    link(&mut middle, tar::EntryType::Link, "bin/again", "bin/bash");
    let sparse = [
        ("GNU.sparse.major", &b"1"[..]),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"sparse"),
        ("GNU.sparse.realsize", b"100000"),
    ];
    middle.append_pax_extensions(sparse).unwrap();
    let mut content = b"2\n0\n512\n99488\n512\n".to_vec();
    content.resize(512 + 1024, b'x');
    file(&mut middle, "GNUSparseFile.0/sparse", &content);
    let mut top = tar::Builder::new(Vec::new());
    file(&mut top, "lib/through a link", b"content");
    file(&mut top, "etc/passwd", b"user:x:1:1::/:/bin/sh\n");
    [bottom, middle, top]
        .map(|layer| layer.into_inner().unwrap())
        .into()
}

/// Numbers that sizes, counts and offsets are not checked for.
const NUMBERS: [&str; 8] = [
    "0",
    "-1",
    "4294967295",
    "9223372036854775807",
    "18446744073709551615",
    "1e400",
    "99999999999999999999999",
    "1.5",
];

/// Texts that are not expected where they come.
fn texts() -> Vec<String> {
    vec![
        String::new(),
        "../../../../etc/passwd".into(),
        "/".into(),
        "\0".into(),
        "sha256:../../x".into(),
        "sha512:".to_owned() + &"a".repeat(128),
        "sha256:".to_owned() + &"A".repeat(64),
        "x".repeat(70_000),
        "application/vnd.docker.distribution.manifest.v1+json".into(),
        "application/vnd.oci.image.index.v1+json".into(),
    ]
}

/// Changes bytes, or pieces, of anything.
fn damage(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(3) {
        let length = bytes.len() as u64;
        if length == 0 {
            return;
        }
        let at = random.below(length);
        match random.below(6) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = *random.among(&[0, b'0', b'7', 0x80, 0xff, b'/', b'.', b'{']),
            2 => bytes.truncate(at),
            3 => {
                let piece = bytes[at..].iter().copied().take(512).collect::<Vec<_>>();
                let to = random.below(length);
                bytes.splice(to..to, piece);
            }
            4 => {
                let end = (at + 1 + random.below(512)).min(bytes.len());
                bytes.drain(at..end);
            }
            _ => {
                let end = (at + 12).min(bytes.len());
                let number = random
                    .among(&NUMBERS)
                    .bytes()
                    .chain(std::iter::repeat(b' '));
                let number: Vec<u8> = number.take(end - at).collect();
                bytes[at..end].copy_from_slice(&number);
            }
        }
    }
}

/// Changes the fields of a header of a tar archive, and makes its checksum right again.
fn damage_header(stream: &mut [u8], random: &mut Random) {
    let blocks = (stream.len() / 512) as u64;
    let at = random.below(blocks) * 512;
    let Some(block) = stream.get_mut(at..at + 512) else {
        return;
    };
    // name, mode, size, mtime, type, link, magic, device, prefix
    let (from, length) = *random.among(&[
        (0, 100),
        (100, 8),
        (124, 12),
        (136, 12),
        (156, 1),
        (157, 100),
        (257, 8),
        (329, 16),
        (345, 155),
    ]);
    let value: &[u8] = random.among::<&[u8]>(&[
        b"77777777777\0",
        b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe",
        b"00000000000 ",
        b"../../../../../tmp/x\0",
        b"/absolute/path\0",
        b"bin/sh\0",
        b"S",
        b"L",
        b"x",
        b"g",
        b"1",
        b"5",
        b"9",
    ]);
    for (to, byte) in block[from..from + length].iter_mut().zip(value) {
        *to = *byte;
    }
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// Changes one value of a document, or its shape.
fn damage_document(document: &mut Value, random: &mut Random) {
    let mut paths = Vec::new();
    let mut waiting = vec![String::new()];
    while let Some(path) = waiting.pop() {
        match document.pointer(&path) {
            Some(Value::Object(members)) => waiting.extend(
                members
                    .keys()
                    .map(|key| format!("{path}/{}", key.replace('~', "~0").replace('/', "~1"))),
            ),
            Some(Value::Array(elements)) => {
                waiting.extend((0..elements.len()).map(|index| format!("{path}/{index}")));
            }
            _ => {}
        }
        paths.push(path);
    }
    let path = random.among(&paths).clone();
    let Some(value) = document.pointer_mut(&path) else {
        return;
    };
    *value = match random.below(9) {
        0 => Value::Null,
        1 => json!({}),
        2 => json!([]),
        3 => serde_json::from_str(random.among::<&str>(&NUMBERS)).unwrap_or(Value::Null),
        4 => random.among(&texts()).clone().into(),
        5 => (0..300).fold(Value::Null, |inner, _| json!([inner])),
        6 => Value::Array(vec![value.clone(); 3000]),
        7 => (0..100).fold(value.clone(), |inner, _| json!({ "manifests": [inner] })),
        _ => (0..20_000)
            .map(|number| (number.to_string(), Value::from(number)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
    };
}

fn text_of(document: &Value, random: &mut Random) -> Vec<u8> {
    let mut text = serde_json::to_vec(document).unwrap();
    if random.below(8) == 0 {
        damage(&mut text, random);
    }
    text
}

fn compressed(layer: &[u8], random: &mut Random) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    match random.below(3) {
        0 => layer.to_vec(),
        1 => zstd::encode_all(layer, 1).unwrap(),
        _ => {
            encoder.write_all(layer).unwrap();
            encoder.finish().unwrap()
        }
    }
}

/// An image as it is to be written: documents and layers.
struct Made {
    layers: Vec<(Vec<u8>, Digest)>,
    config: Vec<u8>,
    random: Random,
}

impl Made {
    /// The image of a case, of which about half has damaged layers, and half a damaged config.
    fn of(case: u64) -> Self {
        let mut random = Random::new(case);
        let mut layers: Vec<_> = layers();
        for _ in 0..random.below(3) {
            let count = layers.len() as u64;
            let layer = &mut layers[random.below(count)];
            match random.below(3) {
                0 => damage(layer, &mut random),
                _ => damage_header(layer, &mut random),
            }
        }
        let layers: Vec<_> = layers
            .iter()
            .map(|layer| {
                let mut blob = compressed(layer, &mut random);
                if random.below(8) == 0 {
                    damage(&mut blob, &mut random);
                }
                (blob, Digest::of(layer))
            })
            .collect();
        let diff_ids: Vec<_> = layers.iter().map(|(_, id)| id.to_string()).collect();
        let mut config = json!({
            "architecture": "amd64", "os": "linux", "created": "2024-02-29T12:00:00Z",
            "config": {
                "Env": ["A=1", "PATH=/bin"], "Cmd": ["sh"], "Entrypoint": ["/bin/sh", "-c"],
                "WorkingDir": "/work", "Labels": {"a": "b"}, "Volumes": {"/data": {}}, "User": "1:1",
            },
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": [{"created_by": "x", "empty_layer": true}],
        });
        if random.below(3) == 0 {
            damage_document(&mut config, &mut random);
        }
        let config = text_of(&config, &mut random);
        Self {
            layers,
            config,
            random,
        }
    }

    /// Writes it as an OCI layout, with a manifest and an index that may be damaged too.
    fn layout(mut self, directory: &Path) {
        let blobs = directory.join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        let descriptor = |content: &[u8], kind: &str| {
            let digest = Digest::of(content);
            fs::write(blobs.join(digest.hex()), content).unwrap();
            json!({"mediaType": kind, "digest": digest.to_string(), "size": content.len()})
        };
        let layer = "application/vnd.oci.image.layer.v1.tar+gzip";
        let layers: Vec<_> = self
            .layers
            .iter()
            .map(|(blob, _)| descriptor(blob, layer))
            .collect();
        let mut manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor(&self.config, "application/vnd.oci.image.config.v1+json"),
            "layers": layers,
        });
        if self.random.below(3) == 0 {
            damage_document(&mut manifest, &mut self.random);
        }
        let manifest = text_of(&manifest, &mut self.random);
        let mut entry = descriptor(&manifest, "application/vnd.oci.image.manifest.v1+json");
        entry["platform"] = json!({"os": "linux", "architecture": "amd64"});
        let mut index = json!({"schemaVersion": 2, "manifests": [entry]});
        if self.random.below(6) == 0 {
            damage_document(&mut index, &mut self.random);
        }
        let index = text_of(&index, &mut self.random);
        fs::write(directory.join("index.json"), index).unwrap();
        let version = r#"{"imageLayoutVersion":"1.0.0"}"#;
        fs::write(directory.join("oci-layout"), version).unwrap();
    }

    /// Writes it as an archive of `docker save`.
    fn archive(mut self, file: &Path) {
        let names: Vec<_> = (0..self.layers.len())
            .map(|number| format!("{number}/layer.tar"))
            .collect();
        let mut manifest = json!([{"Config": "config.json", "RepoTags": ["x:1"], "Layers": names}]);
        if self.random.below(3) == 0 {
            damage_document(&mut manifest, &mut self.random);
        }
        let manifest = text_of(&manifest, &mut self.random);
        let mut builder = tar::Builder::new(Vec::new());
        let mut add = |name: &str, content: &[u8]| {
            let mut header = header(tar::EntryType::Regular, content.len() as u64);
            builder.append_data(&mut header, name, content).unwrap();
        };
        for (name, (blob, _)) in names.iter().zip(&self.layers) {
            add(name, blob);
        }
        add("config.json", &self.config);
        add("manifest.json", &manifest);
        let mut archive = builder.into_inner().unwrap();
        match self.random.below(6) {
            0 => damage(&mut archive, &mut self.random),
            1 => damage_header(&mut archive, &mut self.random),
            _ => {}
        }
        fs::write(file, archive).unwrap();
    }
}

/// Imports what a URI names; an error as text.
fn import(uri: &str, file: File) -> Result<(), String> {
    let task = Task {
        progress: &Silent,
        cancel: &Cancel::new(),
    };
    let options = Options {
        limits: Limits {
            expansion_floor: 16 << 20,
            expansion_ratio: 10,
            names: 20_000,
        },
        memory: 1 << 20,
        ..Options::new(1)
    };
    let source =
        source::open(&uri.parse().unwrap(), &Settings::default()).map_err(|error| chain(&error))?;
    let image = source
        .resolve(&Platform::linux("amd64"), task)
        .map_err(|error| chain(&error))?;
    import::import(source.as_ref(), &image, &options, file, task)
        .map(drop)
        .map_err(|error| chain(&error))
}

/// Reads all of an image that was made. It has nothing outside its root, and no directory twice.
fn read_all(image: File) {
    let reader = Reader::open(image, 0).unwrap();
    let mut waiting = vec![reader.root_ref()];
    let mut directories = 0;
    while let Some(reference) = waiting.pop() {
        let inode = reader.inode(reference).unwrap();
        reader.xattrs(&inode).unwrap();
        match &inode.kind {
            InodeKind::Directory(_) => {
                directories += 1;
                assert!(directories < 100_000);
                for entry in reader.open_directory(&inode).unwrap() {
                    let entry = entry.unwrap();
                    assert!(!matches!(&*entry.name, b"" | b"." | b".."));
                    assert!(!entry.name.contains(&b'/'));
                    waiting.push(entry.target.inode);
                }
            }
            InodeKind::File(_) if inode.size() < 1 << 20 => {
                reader.read_file(&inode, 1 << 20).unwrap();
            }
            InodeKind::Symlink(_) => {
                reader.readlink(&inode).unwrap();
            }
            _ => {}
        }
    }
}

/// Runs a campaign. `write` makes the image of a case at a path, and returns its URI.
fn campaign(usual: u64, write: impl Fn(Made, &Path) -> String) {
    bound_memory();
    let cases = cases(usual);
    let (mut made, mut refused) = (0_u64, 0_u64);
    for case in cases.clone() {
        let place = tempfile::tempdir().unwrap();
        let uri = write(Made::of(case), &place.path().join("x"));
        let path = place.path().join("image");
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .unwrap();
        let begin = Instant::now();
        match import(&uri, file) {
            Ok(()) => {
                made += 1;
                read_all(File::open(&path).unwrap());
            }
            Err(text) => {
                refused += 1;
                assert!(text.len() > 10, "case {case}: {text}");
            }
        }
        let took = begin.elapsed();
        assert!(took < PATIENCE, "case {case}: {took:?}");
    }
    // The changes reach the parsers, and leave something to import.
    let count = cases.end - cases.start;
    assert!(made > count / 20, "{made} of {count}");
    assert!(refused > count / 5, "{refused} of {count}");
}

#[test]
fn damaged_layouts_end_clearly() {
    campaign(300, |made, path| {
        made.layout(path);
        format!("oci:{}", path.display())
    });
}

#[test]
fn damaged_archives_end_clearly() {
    campaign(300, |made, path| {
        made.archive(path);
        format!("docker-archive:{}", path.display())
    });
}

#[test]
fn any_text_is_a_reference_or_an_error() {
    let samples = [
        "docker://user@registry.example:5000#team/image:tag@sha256:0000000000000000000000000000000000000000000000000000000000000000",
        "docker://localhost/image",
        "oci:/a/b:tag",
        "oci-archive:/a/b.tar:tag",
        "docker-archive:x.tar",
        "dockerd://name:tag",
        "podman://name@sha256:ff",
        "dir:/a",
        "tar:-",
    ];
    for case in cases(20_000) {
        let mut random = Random::new(case);
        let mut text = random.among(&samples).as_bytes().to_vec();
        damage(&mut text, &mut random);
        text.truncate(100_000);
        let text = String::from_utf8_lossy(&text);
        match text.parse::<Reference>() {
            // What is shown means the same.
            Ok(reference) => {
                let shown = reference.to_string();
                let again = shown.parse::<Reference>();
                assert_eq!(again.as_ref().ok(), Some(&reference), "{text} {shown}");
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}
