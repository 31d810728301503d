//! What the store saves, and what it survives.

use std::sync::Arc;

use cista_images::cancel::Cancel;
use cista_images::digest::Digest;
use cista_images::platform::Platform;
use cista_images::progress::Silent;
use cista_images::registry;
use cista_images::source::{self, Source, Task};
use cista_images::store::Store;

use crate::image::{Image, Recorder, check, index, pull, resolve};
use crate::server::{Reply, Server, open, quick};

fn store() -> (tempfile::TempDir, Arc<Store>) {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(directory.path()).unwrap());
    (directory, store)
}

fn digest(source: &dyn Source, platform: &str) -> Option<Digest> {
    let cancel = Cancel::new();
    let task = Task {
        progress: &Silent,
        cancel: &cancel,
    };
    source.digest(&Platform::linux(platform), task).unwrap()
}

#[test]
fn the_second_pull_costs_one_head_request() {
    let image = Image::small();
    let (_directory, store) = store();
    let server = Server::of(&image, |_, reply| reply);
    pull(
        server.source(quick(), Some(&store)).as_ref(),
        &Recorder::default(),
    )
    .unwrap();
    server.forget_requests();
    let recorder = Recorder::default();
    let (resolved, layers) =
        pull(server.source(quick(), Some(&store)).as_ref(), &recorder).unwrap();
    check(&image, &resolved, &layers);
    assert_eq!((recorder.cached(), recorder.complete()), (3, 0));
    let requests = server.requests();
    assert_eq!(requests.len(), 1, "{requests:?}");
    assert_eq!(requests[0].method, "HEAD");
    assert!(
        requests[0]
            .header("accept")
            .unwrap()
            .contains("oci.image.manifest")
    );
}

#[test]
fn a_pinned_image_in_the_store_needs_no_registry() {
    let image = Image::small();
    let (_directory, store) = store();
    let server = Server::of(&image, |_, reply| reply);
    let reference = format!("docker://{}/image@{}", server.address, image.manifest);
    pull(
        open(&reference, quick(), Some(&store)).as_ref(),
        &Recorder::default(),
    )
    .unwrap();
    drop(server);
    let (resolved, layers) = pull(
        open(&reference, quick(), Some(&store)).as_ref(),
        &Recorder::default(),
    )
    .unwrap();
    check(&image, &resolved, &layers);
}

#[test]
fn a_damaged_blob_is_found_removed_and_fetched_anew() {
    let image = Image::small();
    let (directory, store) = store();
    let server = Server::of(&image, |_, reply| reply);
    let pull = || {
        pull(
            server.source(quick(), Some(&store)).as_ref(),
            &Recorder::default(),
        )
    };
    pull().unwrap();
    let path = directory
        .path()
        .join("blobs/sha256")
        .join(image.layers[0].hex());
    let mut content = std::fs::read(&path).unwrap();
    content[5000] ^= 1;
    std::fs::write(&path, &content).unwrap();
    let error = pull().unwrap_err();
    assert!(
        error.contains("corrupt") && error.contains("in the store"),
        "{error}"
    );
    // Removed, so the next pull fetches it.
    let (resolved, layers) = pull().unwrap();
    check(&image, &resolved, &layers);
    // One of another size is seen before anything is read.
    std::fs::write(&path, &content[..5000]).unwrap();
    let (resolved, layers) = pull().unwrap();
    check(&image, &resolved, &layers);
    // Damaged documents too.
    for digest in [image.manifest, image.config] {
        std::fs::write(
            directory.path().join("blobs/sha256").join(digest.hex()),
            b"{}",
        )
        .unwrap();
    }
    let (resolved, layers) = pull().unwrap();
    check(&image, &resolved, &layers);
}

#[test]
fn a_layer_that_occurs_twice_is_fetched_once() {
    let mut image = Image::small();
    // The same layer again on top, by hand.
    let manifest: serde_json::Value = serde_json::from_slice(image.blob(image.manifest)).unwrap();
    let config: serde_json::Value = serde_json::from_slice(image.blob(image.config)).unwrap();
    let (mut manifest, mut config) = (manifest, config);
    let again = manifest["layers"][0].clone();
    manifest["layers"].as_array_mut().unwrap().push(again);
    let again = config["rootfs"]["diff_ids"][0].clone();
    config["rootfs"]["diff_ids"]
        .as_array_mut()
        .unwrap()
        .push(again);
    let config = serde_json::to_vec(&config).unwrap();
    manifest["config"]["digest"] = Digest::of(&config).to_string().into();
    manifest["config"]["size"] = config.len().into();
    let manifest = serde_json::to_vec(&manifest).unwrap();
    image.config = Digest::of(&config);
    image.manifest = Digest::of(&manifest);
    image.layers.push(image.layers[0]);
    image.diff_ids.push(image.diff_ids[0]);
    image.blobs.insert(image.config, config);
    image.blobs.insert(image.manifest, manifest);

    let (_directory, store) = store();
    let server = Server::of(&image, |_, reply| reply);
    let (resolved, layers) = pull(
        server.source(quick(), Some(&store)).as_ref(),
        &Recorder::default(),
    )
    .unwrap();
    check(&image, &resolved, &layers);
    assert_eq!(server.count("GET", &image.layers[0].to_string()), 1);
}

#[test]
fn digests_cost_one_request() {
    let (amd, arm) = (Image::small(), Image::new("arm64", &[100]));
    let text = index(&[
        amd.entry(Some("amd64"), None),
        arm.entry(Some("arm64"), None),
        // What build tools attach.
        arm.entry(Some("unknown"), None),
    ]);
    let mut both = amd.clone();
    both.blobs.extend(arm.blobs.clone());
    both.blobs.insert(Digest::of(&text), text.clone());

    let plain = Server::of(&amd, |_, reply| reply);
    assert_eq!(
        digest(plain.source(quick(), None).as_ref(), "amd64"),
        Some(amd.manifest)
    );
    assert_eq!(plain.requests().len(), 1);

    let server = Server::of_index(&both, Digest::of(&text));
    let (_directory, store) = store();
    assert_eq!(
        digest(server.source(quick(), Some(&store)).as_ref(), "arm64"),
        Some(arm.manifest)
    );
    server.forget_requests();
    assert_eq!(
        digest(server.source(quick(), Some(&store)).as_ref(), "arm64"),
        Some(arm.manifest)
    );
    assert_eq!(server.requests().len(), 1);

    let (resolved, layers) =
        pull(server.source(quick(), None).as_ref(), &Recorder::default()).unwrap();
    check(&amd, &resolved, &layers);
    let cancel = Cancel::new();
    let task = Task {
        progress: &Silent,
        cancel: &cancel,
    };
    let error = server
        .source(quick(), None)
        .resolve(&Platform::linux("s390x"), task)
        .unwrap_err();
    let shown = error.to_string();
    assert!(
        shown.contains("linux/s390x, only for linux/amd64, linux/arm64"),
        "{shown}"
    );
    assert!(source::hint(&error).unwrap().contains("--arch"));
}

#[test]
fn images_of_another_platform_are_refused_without_an_index_too() {
    let image = Image::new("arm64", &[100]);
    let server = Server::of(&image, |_, reply| reply);
    let error = resolve(server.source(quick(), None).as_ref()).unwrap_err();
    assert!(
        error.to_string().contains("only for linux/arm64"),
        "{error}"
    );
}

#[test]
fn blobs_are_fetched_several_at_once_but_not_too_many() {
    let image = Image::new("amd64", &[60_000; 12]);
    let (_directory, store) = store();
    let server = Server::of(&image, |request, reply| Reply {
        drip: request
            .is_blob()
            .then_some(std::time::Duration::from_millis(20)),
        ..reply
    });
    let settings = registry::Settings {
        max_connections: 3,
        ..quick()
    };
    let (resolved, layers) = pull(
        server.source(settings, Some(&store)).as_ref(),
        &Recorder::default(),
    )
    .unwrap();
    check(&image, &resolved, &layers);
    assert_eq!(server.most_active(), 3);
    // The top layers, which the merge reads first, came first.
    let order: Vec<usize> = server
        .requests()
        .iter()
        .filter_map(|request| {
            image
                .layers
                .iter()
                .position(|layer| request.path.ends_with(&layer.to_string()))
        })
        .collect();
    assert_eq!(order.len(), 12);
    assert!(order[..3].iter().all(|layer| *layer >= 9), "{order:?}");
}

#[test]
fn a_full_store_is_a_clear_error() {
    let image = Image::small();
    let (directory, store) = store();
    let server = Server::of(&image, |_, reply| reply);
    let source = server.source(quick(), Some(&store));
    let resolved = resolve(source.as_ref()).unwrap();
    // As good as full: nothing can be created there any more.
    let blobs = directory.path().join("blobs/sha256");
    std::fs::remove_dir_all(&blobs).unwrap();
    let cancel = Cancel::new();
    let task = Task {
        progress: &Silent,
        cancel: &cancel,
    };
    let error = std::io::Read::read_to_end(
        &mut source.open_layer(&resolved, 2, task).unwrap(),
        &mut Vec::new(),
    )
    .unwrap_err();
    assert!(error.to_string().contains("store"), "{error}");
}

#[test]
fn several_that_pull_at_once_fetch_each_blob_once() {
    let image = Image::small();
    let (_directory, store) = store();
    let server = Server::of(&image, |_, reply| reply);
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                let source = server.source(quick(), Some(&store));
                let (resolved, layers) = pull(source.as_ref(), &Recorder::default()).unwrap();
                check(&image, &resolved, &layers);
            });
        }
    });
    let mut fetched: Vec<String> = server
        .requests()
        .iter()
        .filter(|request| request.method == "GET" && request.path.contains("/blobs/"))
        .map(|request| request.path.clone())
        .collect();
    let requests = fetched.len();
    fetched.sort();
    fetched.dedup();
    assert_eq!(fetched.len(), requests, "{fetched:?}");
    assert_eq!(requests, 4);
}
