//! Layouts and archives, as skopeo writes them and as nobody should.

use std::io::Read as _;
use std::path::Path;

use cista_images::cancel::Cancel;
use cista_images::digest::Digest;
use cista_images::platform::Platform;
use cista_images::progress::Silent;
use cista_images::reference::Reference;
use cista_images::source::{self, SourceError, Task};

use crate::image::{Image, Recorder, check, index, pull, resolve, write_layout};
use crate::server::{open, quick};
use crate::tools::{have, run, skopeo_copy, text};

/// Opens a source that cannot be opened.
fn open_error(reference: &str) -> SourceError {
    let reference: Reference = reference.parse().unwrap();
    match source::open(&reference, &source::Settings::default()) {
        Err(error) => error,
        Ok(_) => panic!("{reference} can be opened"),
    }
}

fn layout(images: &[&Image], entries: &[serde_json::Value]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    write_layout(directory.path(), images, &index(entries));
    directory
}

#[test]
fn layouts_are_read_by_tag_name_and_digest() {
    let (one, two) = (Image::small(), Image::new("amd64", &[100]));
    let directory = layout(
        &[&one, &two],
        &[
            one.entry(None, Some("1.0")),
            two.entry(None, Some("docker.io/library/two:2.0")),
        ],
    );
    let path = text(directory.path());
    for (suffix, image) in [
        (":1.0", &one),
        (":2.0", &two),
        (":two:2.0", &two),
        (&format!("@{}", two.manifest), &two),
    ] {
        let source = open(&format!("oci:{path}{suffix}"), quick(), None);
        let (resolved, layers) = pull(source.as_ref(), &Recorder::default()).unwrap();
        check(image, &resolved, &layers);
        assert_eq!(resolved.reference, format!("oci:{path}{suffix}"));
    }
    for (suffix, fragment) in [
        ("", "several images"),
        (":3.0", "no image `3.0`"),
        (&format!("@{}", Digest::of(b"x")), "no image `sha256:"),
    ] {
        let source = open(&format!("oci:{path}{suffix}"), quick(), None);
        let error = resolve(source.as_ref()).unwrap_err();
        let shown = error.to_string();
        assert!(
            shown.contains(fragment) && shown.contains("`1.0`"),
            "{shown}"
        );
    }
}

#[test]
fn layouts_of_several_platforms() {
    let (amd, arm) = (Image::small(), Image::new("arm64", &[100]));
    let directory = layout(
        &[&amd, &arm],
        &[
            arm.entry(Some("arm64"), Some("1")),
            amd.entry(Some("amd64"), Some("1")),
        ],
    );
    let source = open(&format!("oci:{}:1", text(directory.path())), quick(), None);
    let (resolved, layers) = pull(source.as_ref(), &Recorder::default()).unwrap();
    check(&amd, &resolved, &layers);
    let cancel = Cancel::new();
    let task = Task {
        progress: &Silent,
        cancel: &cancel,
    };
    let digest = source.digest(&Platform::linux("arm64"), task).unwrap();
    assert_eq!(digest, Some(arm.manifest));
    assert!(source.digest(&Platform::linux("s390x"), task).is_err());
}

#[test]
fn indexes_are_followed_only_so_deep() {
    let image = Image::small();
    let mut blobs = image.clone();
    let mut entry = image.entry(None, None);
    for _ in 0..6 {
        let text = index(&[entry]);
        entry = serde_json::json!({
            "mediaType": crate::image::OCI_INDEX,
            "digest": Digest::of(&text).to_string(),
            "size": text.len(),
        });
        blobs.blobs.insert(Digest::of(&text), text);
    }
    let directory = layout(&[&blobs], &[entry]);
    let source = open(&format!("oci:{}", text(directory.path())), quick(), None);
    let error = resolve(source.as_ref()).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("nested"), "{error}: {cause}");
}

#[test]
fn damaged_layouts_say_what_is_wrong() {
    let image = Image::small();
    let blob = |directory: &Path, digest: Digest| directory.join("blobs/sha256").join(digest.hex());
    type Damage<'a> = Box<dyn Fn(&Path) + 'a>;
    let damages: Vec<(&str, Damage<'_>)> = vec![
        (
            "`index.json`",
            Box::new(|path| std::fs::remove_file(path.join("index.json")).unwrap()),
        ),
        (
            "index.json",
            Box::new(|path| std::fs::write(path.join("index.json"), "{").unwrap()),
        ),
        (
            "larger than",
            Box::new(|path| {
                std::fs::File::create(path.join("index.json"))
                    .unwrap()
                    .set_len(5 << 20)
                    .unwrap();
            }),
        ),
        (
            "lacks",
            Box::new(|path| std::fs::remove_file(blob(path, image.manifest)).unwrap()),
        ),
        (
            "lacks",
            Box::new(|path| std::fs::remove_file(blob(path, image.config)).unwrap()),
        ),
        (
            "lacks",
            Box::new(|path| std::fs::remove_file(blob(path, image.layers[0])).unwrap()),
        ),
        (
            "truncated",
            Box::new(|path| std::fs::write(blob(path, image.config), "{").unwrap()),
        ),
        (
            "truncated",
            Box::new(|path| std::fs::write(blob(path, image.layers[0]), "x").unwrap()),
        ),
        (
            "corrupt",
            Box::new(|path| {
                let path = blob(path, image.layers[0]);
                let mut content = std::fs::read(&path).unwrap();
                content[100] ^= 1;
                std::fs::write(path, content).unwrap();
            }),
        ),
        (
            "larger than",
            Box::new(|path| {
                let path = blob(path, image.layers[0]);
                let mut content = std::fs::read(&path).unwrap();
                content.push(0);
                std::fs::write(path, content).unwrap();
            }),
        ),
    ];
    for (number, (fragment, damage)) in damages.iter().enumerate() {
        let directory = layout(&[&image], &[image.entry(None, None)]);
        damage(directory.path());
        let source = open(&format!("oci:{}", text(directory.path())), quick(), None);
        let error = pull(source.as_ref(), &Recorder::default()).unwrap_err();
        assert!(error.contains(fragment), "{number}: {error}");
    }
    let error = open_error("oci:/nonexistent");
    assert!(error.to_string().contains("/nonexistent"), "{error}");
}

#[test]
fn archives_as_skopeo_writes_them() {
    if !have("archives_as_skopeo_writes_them", &["skopeo"]) {
        return;
    }
    let image = Image::small();
    let directory = layout(&[&image], &[image.entry(None, None)]);
    let from = format!("oci:{}", text(directory.path()));
    let oci = directory.path().join("oci.tar");
    let docker = directory.path().join("docker.tar");
    skopeo_copy(&from, &format!("oci-archive:{}:1.0", text(&oci)), &[]);
    skopeo_copy(
        &from,
        &format!("docker-archive:{}:team/name:1.0", text(&docker)),
        &[],
    );

    for suffix in ["", ":1.0"] {
        let source = open(
            &format!("oci-archive:{}{suffix}", text(&oci)),
            quick(),
            None,
        );
        let (resolved, layers) = pull(source.as_ref(), &Recorder::default()).unwrap();
        check(&image, &resolved, &layers);
    }
    for suffix in ["", ":1.0", ":name:1.0"] {
        let source = open(
            &format!("docker-archive:{}{suffix}", text(&docker)),
            quick(),
            None,
        );
        let (resolved, layers) = pull(source.as_ref(), &Recorder::default()).unwrap();
        // Its layers are not compressed: they are what the diff_ids say.
        for (layer, content) in layers.iter().enumerate() {
            assert_eq!(Digest::of(content), image.diff_ids[layer]);
            assert_eq!(resolved.layers[layer].diff_id, Some(image.diff_ids[layer]));
            assert_eq!(resolved.layers[layer].size, Some(content.len() as u64));
        }
        assert_eq!(resolved.digest, Some(Digest::of(&resolved.config.unwrap())));
    }
    let source = open(
        &format!("docker-archive:{}:2.0", text(&docker)),
        quick(),
        None,
    );
    let error = resolve(source.as_ref()).unwrap_err();
    assert!(error.to_string().contains("name:1.0"), "{error}");

    run("gzip", &["-k", text(&docker)]);
    let error = open_error(&format!("docker-archive:{}.gz", text(&docker)));
    assert!(matches!(
        error,
        SourceError::CompressedArchive {
            compression: "gzip",
            ..
        }
    ));
    assert!(source::hint(&error).unwrap().contains("gzip -dk"));
    let swapped = open(&format!("docker-archive:{}", text(&oci)), quick(), None);
    let error = resolve(swapped.as_ref()).unwrap_err();
    assert!(error.to_string().contains("manifest.json"), "{error}");
}

/// A docker archive with the given members.
fn docker_archive(members: &[(&str, &[u8])]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let mut builder =
        tar::Builder::new(std::fs::File::create(directory.path().join("a.tar")).unwrap());
    for (name, content) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        builder.append_data(&mut header, name, *content).unwrap();
    }
    builder.finish().unwrap();
    directory
}

#[test]
fn malformed_docker_archives_say_what_is_wrong() {
    let image = Image::small();
    let config = image.blob(image.config);
    let config_name = format!("{}.json", image.config.hex());
    let wrong_name = format!("{}.json", Digest::of(b"x").hex());
    let one =
        format!(r#"[{{"Config":"{config_name}","RepoTags":["a:1"],"Layers":["l","l","l"]}}]"#);
    let fewer = one.replace(r#""l","l","l""#, r#""l""#);
    let none = one.replace(r#""l","l","l""#, "");
    let lying = one.replace(&config_name, &wrong_name);
    let two = format!(
        "{},{}",
        &one[..one.len() - 1],
        &one.replace("a:1", "b:1")[1..]
    );
    for (manifest, name, fragment) in [
        ("{", &config_name, "malformed"),
        ("{}", &config_name, "malformed"),
        ("[]", &config_name, "no image"),
        (&two, &config_name, "several images"),
        (&one, &wrong_name, "lacks"),
        (&lying, &wrong_name, "corrupt"),
        (&fewer, &config_name, "lists 3 layers"),
        (&none, &config_name, "no layers"),
    ] {
        let directory = docker_archive(&[
            ("manifest.json", manifest.as_bytes()),
            (name, config),
            ("l", b""),
        ]);
        let path = directory.path().join("a.tar");
        let source = open(&format!("docker-archive:{}", text(&path)), quick(), None);
        let error = pull(source.as_ref(), &Recorder::default()).unwrap_err();
        assert!(error.contains(fragment), "{manifest}: {error}");
    }
    let directory = docker_archive(&[
        ("manifest.json", two.as_bytes()),
        (&config_name, config),
        ("l", b""),
    ]);
    let path = directory.path().join("a.tar");
    let source = open(
        &format!("docker-archive:{}:b:1", text(&path)),
        quick(),
        None,
    );
    assert_eq!(resolve(source.as_ref()).unwrap().digest, Some(image.config));
}

#[test]
fn flat_tars_are_one_layer() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("root.tar");
    std::fs::write(&path, b"anything").unwrap();
    let source = open(&format!("tar:{}", text(&path)), quick(), None);
    let (resolved, layers) = pull(source.as_ref(), &Recorder::default()).unwrap();
    assert_eq!(layers, [b"anything".to_vec()]);
    assert_eq!((resolved.digest, resolved.config), (None, None));
    assert_eq!(resolved.layers[0].size, Some(8));
    // Opened again, it begins again.
    pull(source.as_ref(), &Recorder::default()).unwrap();
    // Truncated while it is used.
    std::fs::write(&path, b"any").unwrap();
    let error = pull(source.as_ref(), &Recorder::default()).unwrap_err();
    assert!(error.contains("truncated"), "{error}");

    for (reference, fragment) in [
        ("tar:/nonexistent", "/nonexistent"),
        ("tar:/", "it is a directory"),
        ("dir:/", "has no layers"),
        ("oci-archive:/", "not a regular file"),
    ] {
        let error = open_error(reference);
        assert!(error.to_string().contains(fragment), "{error}");
    }
}

#[test]
fn pipes_are_read_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pipe");
    run("mkfifo", &[text(&path)]);
    let writer = path.clone();
    let writing = std::thread::spawn(move || std::fs::write(writer, b"from a pipe").unwrap());
    let source = open(&format!("tar:{}", text(&path)), quick(), None);
    let resolved = resolve(source.as_ref()).unwrap();
    assert_eq!(resolved.layers[0].size, None);
    let cancel = Cancel::new();
    let task = Task {
        progress: &Silent,
        cancel: &cancel,
    };
    let mut content = String::new();
    source
        .open_layer(&resolved, 0, task)
        .unwrap()
        .read_to_string(&mut content)
        .unwrap();
    assert_eq!(content, "from a pipe");
    writing.join().unwrap();
    assert!(matches!(
        source.open_layer(&resolved, 0, task).err(),
        Some(SourceError::ReadTwice)
    ));
}

#[test]
fn a_silent_pipe_can_be_interrupted() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pipe");
    run("mkfifo", &[text(&path)]);
    // Open for both, so that neither open waits and nobody ever writes.
    let holder = std::fs::File::options()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    let source = open(&format!("tar:{}", text(&path)), quick(), None);
    let resolved = resolve(source.as_ref()).unwrap();
    let cancel = Cancel::new();
    let task = Task {
        progress: &Silent,
        cancel: &cancel,
    };
    let mut stream = source.open_layer(&resolved, 0, task).unwrap();
    cancel.cancel();
    let error = stream.read(&mut [0; 10]).unwrap_err();
    assert!(error.to_string().contains("interrupted"), "{error}");
    drop(holder);
}
