//! One process, one store.

use super::*;
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
    let path = pending.commit(&record).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), content);
    match store.claim_image(&manifest, &options, &mut watch) {
        Ok(Claim::Ready(found)) => assert_eq!(found, path),
        other => panic!("{other:?}"),
    }
    assert_eq!(store.image(&manifest, &options).unwrap(), Some(path));
    assert_eq!(
        store.image_record(&manifest, &options).unwrap(),
        Some(record)
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
        pending.commit(&record).unwrap()
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

#[test]
fn finding_updates_the_time_of_last_use_alone() {
    let (_directory, store) = store();
    let digest = Digest::of(b"x");
    store.begin_blob(&digest, 4).unwrap().commit().unwrap();
    let old = Timespec {
        tv_sec: 1000,
        tv_nsec: 0,
    };
    let file = File::open(store.blob_path(&digest)).unwrap();
    rustix::fs::futimens(
        &file,
        &Timestamps {
            last_access: old,
            last_modification: old,
        },
    )
    .unwrap();
    store.blob(&digest).unwrap().unwrap();
    let metadata = file.metadata().unwrap();
    assert_eq!(metadata.mtime(), 1000);
    assert!(metadata.atime() > 1_000_000_000);
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
