//! An interrupted or abandoned import is free at once and leaves nothing behind.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cista_images::cancel::Cancel;
use cista_images::platform::Platform;
use cista_images::progress::Silent;
use cista_images::source::{SourceError, Task};
use cista_images::store::Store;

use crate::image::{Image, Recorder, check, pull, resolve};
use crate::server::{Reply, Server, quick};

/// All files below a directory.
fn files(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            found.extend(files(&entry.path()));
        } else {
            found.push(entry.file_name().into_string().unwrap());
        }
    }
    found
}

/// Cancels soon.
fn cancel_soon() -> Cancel {
    let cancel = Cancel::new();
    let flag = cancel.clone();
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(200));
        flag.cancel();
    });
    cancel
}

#[test]
fn resolving_can_be_interrupted() {
    let image = Image::small();
    let server = Server::of(&image, |_, reply| Reply {
        hang: Some(10),
        ..reply
    });
    let source = server.source(quick(), None);
    let cancel = cancel_soon();
    let began = Instant::now();
    let task = Task {
        progress: &Silent,
        cancel: &cancel,
    };
    let error = source.resolve(&Platform::linux("amd64"), task).unwrap_err();
    assert!(matches!(error, SourceError::Cancelled(_)), "{error}");
    drop(source);
    assert!(began.elapsed() < Duration::from_secs(2));
}

#[test]
fn reading_can_be_interrupted() {
    let image = Image::small();
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(directory.path()).unwrap());
    for store in [None, Some(&store)] {
        let server = Server::of(&image, |request, reply| Reply {
            hang: (request.is_blob() && reply.body.len() > 1000).then_some(1000),
            ..reply
        });
        let source = server.source(quick(), store);
        let resolved = resolve(source.as_ref()).unwrap();
        let cancel = cancel_soon();
        let began = Instant::now();
        let task = Task {
            progress: &Silent,
            cancel: &cancel,
        };
        let error = source
            .open_layer(&resolved, 2, task)
            .unwrap()
            .read_to_end(&mut Vec::new())
            .unwrap_err();
        assert!(error.to_string().contains("interrupted"), "{error}");
        drop(source);
        assert!(began.elapsed() < Duration::from_secs(2));
    }
    let documents = [
        image.manifest.hex(),
        image.config.hex(),
        image.layers[1].hex(),
    ];
    for file in files(&directory.path().join("blobs")) {
        assert!(documents.contains(&file), "{file} was left");
    }
}

#[test]
fn an_abandoned_download_leaves_nothing_and_can_be_taken_up() {
    let image = Image::small();
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(directory.path()).unwrap());
    let slow = Server::of(&image, |request, reply| Reply {
        drip: request.is_blob().then_some(Duration::from_millis(100)),
        ..reply
    });
    let source = slow.source(quick(), Some(&store));
    let resolved = resolve(source.as_ref()).unwrap();
    let cancel = Cancel::new();
    let task = Task {
        progress: &Silent,
        cancel: &cancel,
    };
    let mut buffer = [0; 1000];
    let mut stream = source.open_layer(&resolved, 2, task).unwrap();
    stream.read_exact(&mut buffer).unwrap();
    drop(stream);
    let began = Instant::now();
    drop(source);
    assert!(began.elapsed() < Duration::from_secs(2));
    assert!(store.blob(&image.layers[2]).unwrap().is_none());
    assert!(
        files(directory.path())
            .iter()
            .all(|name| !name.starts_with('.'))
    );

    let server = Server::of(&image, |_, reply| reply);
    let (resolved, layers) = pull(
        server.source(quick(), Some(&store)).as_ref(),
        &Recorder::default(),
    )
    .unwrap();
    check(&image, &resolved, &layers);
}

#[test]
fn a_layer_may_be_left_early_and_opened_again() {
    let image = Image::small();
    let server = Server::of(&image, |_, reply| reply);
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(directory.path()).unwrap());
    for store in [None, Some(&store)] {
        let source = server.source(quick(), store);
        let resolved = resolve(source.as_ref()).unwrap();
        let cancel = Cancel::new();
        let task = Task {
            progress: &Silent,
            cancel: &cancel,
        };
        let mut buffer = [0; 100];
        source
            .open_layer(&resolved, 0, task)
            .unwrap()
            .read_exact(&mut buffer)
            .unwrap();
        let mut first = source.open_layer(&resolved, 0, task).unwrap();
        let mut second = source.open_layer(&resolved, 0, task).unwrap();
        let (mut a, mut b) = (Vec::new(), Vec::new());
        first.read_to_end(&mut a).unwrap();
        second.read_to_end(&mut b).unwrap();
        assert_eq!(a, image.blob(image.layers[0]));
        assert_eq!(a, b);
        assert!(source.open_layer(&resolved, 3, task).is_err());
    }
}
