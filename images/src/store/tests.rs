//! One process, one store.

use super::*;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::MetadataExt;

fn store() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("deep/store")).unwrap();
    (directory, store)
}

fn record(manifest: &Digest) -> ImageRecord {
    ImageRecord {
        reference: "docker://x/y:1".to_owned(),
        manifest: manifest.to_string(),
        options: "zstd:1".to_owned(),
        created: 7,
        size: 5,
        digest: None,
    }
}

#[test]
fn blobs_are_found_once_committed() {
    let (_directory, store) = store();
    let digest = Digest::of(b"blob");
    assert!(store.blob(&digest).unwrap().is_none());
    let pending = store.begin_blob(&digest, 4).unwrap();
    pending.file().write_all(b"blob").unwrap();
    assert!(store.blob(&digest).unwrap().is_none());
    pending.commit().unwrap();
    let mut content = String::new();
    let mut found = store.blob(&digest).unwrap().unwrap();
    found.read_to_string(&mut content).unwrap();
    assert_eq!(content, "blob");
    store.discard_blob(&digest).unwrap();
    store.discard_blob(&digest).unwrap();
    assert!(store.blob(&digest).unwrap().is_none());
}

#[test]
fn the_second_writer_of_a_blob_succeeds() {
    let (_directory, store) = store();
    let digest = Digest::of(b"blob");
    let first = store.begin_blob(&digest, 4).unwrap();
    let second = store.begin_blob(&digest, 4).unwrap();
    first.commit().unwrap();
    second.commit().unwrap();
    store.begin_blob(&digest, 4).unwrap().commit().unwrap();
}

fn claim_image(store: &Store, manifest: &Digest, options: &Digest) -> PendingImage {
    match store.claim_image(manifest, options, &mut Watch::default()) {
        Ok(Claim::Mine(pending)) => pending,
        other => panic!("{other:?}"),
    }
}

fn claim_blob(store: &Store, digest: &Digest, size: u64) -> PendingBlob {
    match store.claim_blob(digest, size, &mut Watch::default()) {
        Ok(Claim::Mine(pending)) => pending,
        other => panic!("{other:?}"),
    }
}

/// A small image, whole.
fn image() -> Vec<u8> {
    use crate::cancel::Cancel;
    use crate::squashfs::writer::{Options, Writer};
    let file = tempfile::tempfile().unwrap();
    let options = Options {
        compression: "none".parse().unwrap(),
        block_size: 4096,
        threads: 1,
        mkfs_time: 0,
    };
    let writer = Writer::new(file, options, Cancel::new()).unwrap();
    let metadata = crate::tree::Metadata {
        mode: 0o755,
        mtime: 0,
        uid: 0,
        gid: 0,
        xattrs: None,
    };
    let summary = writer.finish(&crate::tree::Tree::new(metadata)).unwrap();
    let mut content = vec![0; usize::try_from(summary.file.metadata().unwrap().len()).unwrap()];
    use std::os::unix::fs::FileExt as _;
    summary.file.read_exact_at(&mut content, 0).unwrap();
    content
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn one_makes_an_image_and_others_wait_for_it() {
    let (_directory, store) = store();
    let (manifest, options) = (Digest::of(b"m"), Digest::of(b"o"));
    let content = image();
    let record = ImageRecord {
        size: content.len() as u64,
        ..record(&manifest)
    };
    let pending = claim_image(&store, &manifest, &options);
    pending.output().file().write_all(&content).unwrap();
    // Progress is told a few times a second.
    std::thread::sleep(Duration::from_millis(250));
    pending.advance(1 << 30, 4 << 30);
    let mut watch = Watch::default();
    match store.claim_image(&manifest, &options, &mut watch) {
        Ok(Claim::Busy(holder)) => {
            let told = format!("process {}, 25 % done", std::process::id());
            assert_eq!(holder.to_string(), told);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(store.image(&manifest, &options).unwrap(), None);
    let path = pending.commit(record.clone()).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), content);
    match store.claim_image(&manifest, &options, &mut watch) {
        Ok(Claim::Ready(found)) => assert_eq!(found, path),
        other => panic!("{other:?}"),
    }
    assert_eq!(store.image(&manifest, &options).unwrap(), Some(path));
    let recorded = ImageRecord {
        digest: Some(Digest::of(&content).to_string()),
        ..record
    };
    assert_eq!(
        store.image_record(&manifest, &options).unwrap(),
        Some(recorded)
    );
    assert_eq!(store.image(&manifest, &Digest::of(b"p")).unwrap(), None);
    assert_eq!(store.image_record(&options, &options).unwrap(), None);
    assert_eq!(names(&store.images).len(), 2);
}

#[test]
fn a_damaged_image_is_missing_and_made_again() {
    let (_directory, store) = store();
    let (manifest, options) = (Digest::of(b"m"), Digest::of(b"o"));
    let content = image();
    let record = ImageRecord {
        size: content.len() as u64,
        ..record(&manifest)
    };
    let make = || {
        let pending = claim_image(&store, &manifest, &options);
        pending.output().file().write_all(&content).unwrap();
        pending.commit(record.clone()).unwrap()
    };
    let path = make();
    let record_path = path.with_extension("json");
    let damages: [&dyn Fn(); 5] = [
        &|| std::fs::write(&path, &content[..content.len() - 1]).unwrap(),
        &|| std::fs::write(&path, b"").unwrap(),
        &|| std::fs::write(&path, vec![0; content.len()]).unwrap(),
        &|| std::fs::write(&record_path, b"").unwrap(),
        &|| std::fs::remove_file(&record_path).unwrap(),
    ];
    for damage in damages {
        assert_eq!(
            store.image(&manifest, &options).unwrap(),
            Some(path.clone())
        );
        damage();
        assert_eq!(store.image(&manifest, &options).unwrap(), None);
        assert_eq!(make(), path);
    }
    assert_eq!(std::fs::read(&path).unwrap(), content);
}

/// A store whose lease on a blob has been left by a process that died after `done` bytes of a part of `length`.
fn abandoned(store: &Store, digest: &Digest, length: u64, done: u64) {
    let pending = claim_blob(store, digest, 8 << 20);
    pending.file().set_len(length).unwrap();
    pending.advance(done).unwrap();
    let lease = store.blobs.join(format!(".{}.lease", digest.hex()));
    let part = store.blobs.join(format!(".{}.part", digest.hex()));
    let text = std::fs::read_to_string(&lease).unwrap();
    // No process of that id that old is alive: it is ours.
    let (before, after) = text.split_once("\"started\":").unwrap();
    let (_, after) = after.split_once('}').unwrap();
    let text = format!("{before}\"started\":1}}{after}");
    let text = text.replace("\"done\":0", &format!("\"done\":{done}"));
    std::fs::write(&lease, &text).unwrap();
    drop(pending);
    assert!(lease.exists(), "what is another's is not removed");
    assert!(part.exists(), "what is another's is not removed");
}

#[test]
fn a_part_is_gone_on_with_as_far_as_it_is_good() {
    let (_directory, store) = store();
    let digest = Digest::of(b"x");
    for (length, done, resumed) in [
        (4 << 20, 3 << 20, 3 << 20),
        (3 << 20, 4 << 20, 3 << 20),
        (4 << 20, 5, 0),
        (0, 0, 0),
    ] {
        abandoned(&store, &digest, length, done);
        let pending = claim_blob(&store, &digest, 8 << 20);
        assert_eq!(pending.resumed(), resumed, "{length} {done}");
        assert_eq!(pending.file().metadata().unwrap().len(), resumed);
    }
    assert_eq!(names(&store.blobs), Vec::<String>::new());
}

#[test]
fn an_interrupted_blob_is_gone_on_with() {
    let (_directory, store) = store();
    let digest = Digest::of(b"x");
    let pending = claim_blob(&store, &digest, 8 << 20);
    // What came out of order behind the first gap does not count.
    pending.file().set_len(6 << 20).unwrap();
    pending.advance(2 << 20).unwrap();
    drop(pending);
    let mut pending = claim_blob(&store, &digest, 8 << 20);
    assert_eq!(pending.resumed(), 2 << 20);
    pending.restart().unwrap();
    assert_eq!(pending.resumed(), 0);
    drop(pending);
    assert_eq!(names(&store.blobs), Vec::<String>::new());
    // Of another size than it should have: not the same blob.
    let pending = claim_blob(&store, &digest, 8 << 20);
    pending.file().set_len(4 << 20).unwrap();
    pending.advance(4 << 20).unwrap();
    drop(pending);
    assert_eq!(claim_blob(&store, &digest, 2 << 20).resumed(), 0);
}

#[test]
fn whoever_was_taken_for_dead_neither_writes_nor_commits() {
    let (_directory, store) = store();
    let digest = Digest::of(b"x");
    let pending = claim_blob(&store, &digest, 4);
    abandoned_by_us(&store, &digest);
    let error = pending.commit().unwrap_err();
    assert!(matches!(error, StoreError::TakenOver { .. }), "{error}");
    assert!(store.blob(&digest).unwrap().is_none());
}

/// Puts another's lease in the place of ours.
fn abandoned_by_us(store: &Store, digest: &Digest) {
    let lease = store.blobs.join(format!(".{}.lease", digest.hex()));
    let text = std::fs::read_to_string(&lease).unwrap();
    let (before, after) = text.split_once("\"serial\":").unwrap();
    let (_, after) = after.split_once(',').unwrap();
    std::fs::write(&lease, format!("{before}\"serial\":99999999,{after}")).unwrap();
}

#[test]
fn abandoned_writers_leave_nothing() {
    let (_directory, store) = store();
    let digest = Digest::of(b"x");
    drop(store.begin_blob(&digest, 4).unwrap());
    drop(claim_blob(&store, &digest, 4));
    drop(claim_image(&store, &digest, &digest));
    for directory in [&store.blobs, &store.images] {
        assert_eq!(std::fs::read_dir(directory).unwrap().count(), 0);
    }
}

/// Puts an image of a manifest, which names layers, into a store, with its blobs.
fn fill(store: &Store, name: &str, layers: &[&str]) -> Digest {
    let named: Vec<String> = layers
        .iter()
        .map(|layer| format!("{{\"digest\":\"{}\"}}", Digest::of(layer.as_bytes())))
        .collect();
    let config = format!("config of {name}");
    let manifest = format!(
        "{{\"config\":{{\"digest\":\"{}\"}},\"layers\":[{}]}}",
        Digest::of(config.as_bytes()),
        named.join(",")
    );
    for blob in layers.iter().copied().chain([config.as_str(), &manifest]) {
        let digest = Digest::of(blob.as_bytes());
        let claimed = store.claim_blob(&digest, blob.len() as u64, &mut Watch::default());
        if let Claim::Mine(pending) = claimed.unwrap() {
            pending.file().write_all(blob.as_bytes()).unwrap();
            pending.commit().unwrap();
        }
    }
    let manifest = Digest::of(manifest.as_bytes());
    let content = image();
    let pending = claim_image(store, &manifest, &manifest);
    pending.output().file().write_all(&content).unwrap();
    let record = ImageRecord {
        size: content.len() as u64,
        ..record(&manifest)
    };
    pending.commit(record).unwrap();
    manifest
}

/// Lets all blobs and images have arrived, and a manifest have been used, so many hours ago.
fn age(store: &Store, manifest: &Digest, hours: u64) {
    let then = |hours| std::time::SystemTime::now() - Duration::from_secs(hours * 3600);
    for directory in [&store.blobs, &store.images] {
        for name in names(directory) {
            let file = File::open(directory.join(name)).unwrap();
            file.set_modified(then(1000)).unwrap();
        }
    }
    let path = store.note_use(manifest).unwrap();
    File::open(path).unwrap().set_modified(then(hours)).unwrap();
}

#[test]
fn what_was_not_used_for_longest_goes_first() {
    let (_directory, store) = store();
    let old = fill(&store, "old", &["layer of old", "shared layer"]);
    let new = fill(&store, "new", &["layer of new", "shared layer"]);
    age(&store, &old, 20);
    age(&store, &new, 10);
    let contents = store.contents().unwrap();
    assert_eq!((contents.images.len(), contents.blobs.len()), (2, 7));
    let order: Vec<Digest> = contents.images.iter().map(|image| image.manifest).collect();
    assert_eq!(order, [new, old]);
    let pretend = Prune {
        everything: true,
        pretend: true,
        ..Prune::default()
    };
    let all = store.prune(&pretend).unwrap();
    assert_eq!((all.removed.len(), all.left), (9, 0));
    assert_eq!(store.contents().unwrap().size(), contents.size());
    // One byte too much: the old one's own blobs are enough.
    let prune = Prune {
        size: Some(contents.size() - 1),
        ..Prune::default()
    };
    let pruned = store.prune(&prune).unwrap();
    assert_eq!(pruned.removed.len(), 1);
    assert_eq!(pruned.left, store.contents().unwrap().size());
    assert!(store.image(&old, &old).unwrap().is_some());
    // By age: all of the old one, nothing of the new one, nor what they share.
    let prune = Prune {
        unused_for: Some(Duration::from_secs(15 * 3600)),
        ..Prune::default()
    };
    store.prune(&prune).unwrap();
    assert!(store.image(&old, &old).unwrap().is_none());
    assert!(store.image(&new, &new).unwrap().is_some());
    let blob = |text: &str| store.blob(&Digest::of(text.as_bytes())).unwrap();
    assert!(blob("layer of old").is_none());
    assert!(blob("layer of new").is_some() && blob("shared layer").is_some());
    assert_eq!(names(&store.uses).len(), 1);
    assert_eq!(names(&store.images).len(), 2);
    let limited = Store {
        settings: Settings {
            limit: Some(0),
            ..Settings::default()
        },
        ..store
    };
    limited.evict().unwrap();
    assert_eq!(limited.contents().unwrap().size(), 0);
}

#[test]
fn what_is_in_use_stays() {
    let (_directory, store) = store();
    let manifest = fill(&store, "it", &["layer"]);
    let all = Prune {
        size: Some(0),
        ..Prune::default()
    };
    // Found a moment ago, perhaps about to be opened.
    store.note_use(&manifest).unwrap();
    assert_eq!(store.prune(&all).unwrap().in_use.len(), 1);
    age(&store, &manifest, 10);
    // Open in a process of this machine.
    let path = store.image(&manifest, &manifest).unwrap().unwrap();
    let mut reader = std::process::Command::new("sleep")
        .arg("60")
        .stdin(File::open(&path).unwrap())
        .spawn()
        .unwrap();
    assert!(store.contents().unwrap().images[0].is_in_use);
    assert_eq!(
        store.prune(&all).unwrap().in_use,
        std::slice::from_ref(&path)
    );
    reader.kill().unwrap();
    reader.wait().unwrap();
    // Used by another machine, half an hour ago.
    let elsewhere = store.uses.join(format!("{}@node7", manifest.hex()));
    std::fs::write(&elsewhere, b"").unwrap();
    let file = File::open(&elsewhere).unwrap();
    let ago = |minutes: u64| std::time::SystemTime::now() - Duration::from_secs(minutes * 60);
    file.set_modified(ago(30)).unwrap();
    let everything = Prune {
        everything: true,
        ..Prune::default()
    };
    assert_eq!(
        store.prune(&everything).unwrap().in_use,
        std::slice::from_ref(&path)
    );
    // It said nothing for more than an hour.
    file.set_modified(ago(70)).unwrap();
    let pruned = store.prune(&everything).unwrap();
    assert_eq!((pruned.in_use.len(), pruned.left), (0, 0));
    assert!(!path.exists() && !path.with_extension("json").exists());
    assert_eq!(names(&store.uses), Vec::<String>::new());
}

#[test]
fn damage_is_found_by_verification() {
    let (_directory, store) = store();
    let manifest = fill(&store, "it", &["layer"]);
    let damages = || {
        let mut found = Vec::new();
        let never = crate::cancel::Cancel::new();
        store
            .verify(&never, |verified| found.push(verified))
            .unwrap();
        assert_eq!(found.len(), 4);
        let damaged = found.into_iter().filter_map(|verified| {
            let path = verified.path;
            verified.damage.map(|damage| (path, damage))
        });
        damaged.collect::<Vec<_>>()
    };
    assert_eq!(damages(), []);
    let path = store.image(&manifest, &manifest).unwrap().unwrap();
    let never = crate::cancel::Cancel::new();
    assert!(store.is_image_good(&path, &never).unwrap());
    let mut content = std::fs::read(&path).unwrap();
    let last = content.len() - 1;
    content[last] ^= 1;
    std::fs::write(&path, &content).unwrap();
    let blob = store.blob_path(&Digest::of(b"layer"));
    std::fs::write(&blob, b"Layer").unwrap();
    let expected = [
        (path.clone(), Damage::Content),
        (blob.clone(), Damage::Content),
    ];
    assert_eq!(damages(), expected);
    assert!(!store.is_image_good(&path, &never).unwrap());
    // Not seen without reading all of it.
    assert!(store.image(&manifest, &manifest).unwrap().is_some());
    std::fs::write(&path, &content[..100]).unwrap();
    assert_eq!(damages()[0], (path.clone(), Damage::Form));
    store.discard(&path).unwrap();
    store.discard(&blob).unwrap();
    assert_eq!(names(&store.images), Vec::<String>::new());
    assert_eq!(names(&store.blobs).len(), 2);
}

#[test]
fn what_is_no_file_is_neither_followed_nor_waited_for() {
    let (directory, store) = store();
    let digest = Digest::of(b"blob");
    let target = directory.path().join("target");
    std::fs::write(&target, b"blob").unwrap();
    std::os::unix::fs::symlink(&target, store.blob_path(&digest)).unwrap();
    assert!(store.blob(&digest).is_err());
    store.discard_blob(&digest).unwrap();
    let (pipe, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR);
    rustix::fs::mknodat(rustix::fs::CWD, store.blob_path(&digest), pipe, mode, 0).unwrap();
    assert!(store.blob(&digest).is_err());
}

#[test]
fn lack_of_room_is_found_before_work_is_done() {
    let (_directory, store) = store();
    let error = store.begin_blob(&Digest::of(b"x"), u64::MAX).unwrap_err();
    assert!(
        matches!(
            error,
            StoreError::Full {
                needed: u64::MAX,
                ..
            }
        ),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("CISTA_CACHE_PATH"));
}

#[test]
fn backup_programs_are_told() {
    let (directory, store) = store();
    let tag = directory.path().join("deep/store").join(TAG);
    assert!(!tag.exists());
    drop(store.begin_blob(&Digest::of(b"x"), 1).unwrap());
    let text = std::fs::read_to_string(tag).unwrap();
    assert!(text.starts_with("Signature: 8a477f597d28d172789f06886806bc55\n"));
}

#[test]
fn directories_are_private() {
    let (directory, store) = store();
    let metadata = directory.path().join("deep").metadata().unwrap();
    assert_eq!(metadata.mode() & 0o777, 0o700);
    drop(store);
}

#[test]
fn images_of_shared_stores_are_used_if_nobody_else_can_change_them() {
    let directory = tempfile::tempdir().unwrap();
    let shared = directory.path().join("shared");
    let readable = Settings {
        readable: true,
        ..Settings::default()
    };
    let prepared = Store::with_settings(&shared, readable).unwrap();
    let manifest = fill(&prepared, "it", &["layer"]);
    // Whoever prepares more of it later need not say so again.
    let prepared = Store::open(&shared).unwrap();
    let other = fill(&prepared, "other", &["layer of other"]);
    let image = prepared.image(&manifest, &manifest).unwrap().unwrap();
    let mode = |path: &Path| path.metadata().unwrap().mode() & 0o777;
    let set_mode = |path: &Path, mode| {
        std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    };
    for path in [&shared, &prepared.blobs, &prepared.images] {
        assert_eq!(mode(path), 0o755, "{}", path.display());
    }
    for name in names(&prepared.images) {
        assert_eq!(mode(&prepared.images.join(&name)), 0o644, "{name}");
    }
    let own = directory.path().join("own");
    let open = || {
        let settings = Settings {
            shared: vec![shared.clone()],
            ..Settings::default()
        };
        Store::with_settings(&own, settings).unwrap()
    };
    let find = || open().image(&manifest, &manifest).unwrap();
    assert_eq!(find(), Some(image.clone()));
    assert!(open().image(&other, &other).unwrap().is_some());
    assert_eq!(open().distrusted().count(), 0);
    let layer = Digest::of(b"layer");
    assert!(open().blob(&layer).unwrap().is_some());
    let claimed = open().claim_blob(&layer, 5, &mut Watch::default()).unwrap();
    assert!(matches!(claimed, Claim::Ready(_)));
    // One file that others can change is left alone; a directory that they can change spoils all.
    for (path, spoils_all) in [
        (image.clone(), false),
        (image.with_extension("json"), false),
        (prepared.images.clone(), true),
        (shared.clone(), true),
    ] {
        let before = mode(&path);
        set_mode(&path, before | 0o020);
        assert_eq!(find(), None, "{}", path.display());
        assert_eq!(open().distrusted().count(), usize::from(spoils_all));
        assert!(open().blob(&layer).unwrap().is_some(), "blobs are verified");
        set_mode(&path, before);
        assert_eq!(find(), Some(image.clone()));
    }
    set_mode(directory.path(), 0o777);
    assert_eq!(find(), None, "it could be put in the place of another");
    set_mode(directory.path(), 0o1777);
    assert!(find().is_some());
    // A store of somebody else is that of whom its root belongs to.
    if rustix::process::getuid().is_root() {
        std::os::unix::fs::chown(&image, Some(4711), None).unwrap();
        assert_eq!(find(), None);
        std::os::unix::fs::chown(&shared, Some(4711), None).unwrap();
        assert!(find().is_some());
    }
    std::fs::remove_dir_all(&shared).unwrap();
    assert_eq!(find(), None);
    assert!(matches!(
        open().distrusted().next().unwrap().1,
        Distrust::Unreadable { .. }
    ));
    assert_eq!(mode(&own), 0o700);
}
