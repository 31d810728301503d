//! The ends of patience: what is waited for, and for how long.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cista_images::registry;
use cista_images::source;
use cista_images::store::Store;

use crate::image::{Image, Recorder, pull, resolve};
use crate::server::{Reply, Server, quick};

#[test]
fn a_byte_at_a_time_is_no_progress() {
    let image = Image::small();
    let server = Server::of(&image, |request, reply| Reply {
        cut: (request.is_blob() && reply.body.len() > 1000).then_some(1),
        ..reply
    });
    let settings = registry::Settings {
        retry_delay: Duration::from_millis(1),
        ..quick()
    };
    let source = server.source(settings, None);
    let error = pull(source.as_ref(), &Recorder::default()).unwrap_err();
    assert!(error.contains("cut"), "{error}");
    assert!(server.requests().len() < 30);
}

#[test]
fn servers_say_how_long_to_wait_within_reason() {
    let image = Image::small();
    let refusal = |wait: &'static str| {
        let first = AtomicUsize::new(0);
        Server::of(&image, move |_, reply| {
            match first.fetch_add(1, Ordering::SeqCst) {
                0 => Reply::status(429).with("retry-after", wait),
                _ => reply,
            }
        })
    };
    let settings = || registry::Settings {
        retry_delay: Duration::from_millis(1),
        ..quick()
    };
    let began = Instant::now();
    resolve(refusal("1").source(settings(), None).as_ref()).unwrap();
    assert!(began.elapsed() >= Duration::from_secs(1));
    // A date that has passed.
    let began = Instant::now();
    let past = refusal("Sun, 06 Nov 1994 08:49:37 GMT");
    resolve(past.source(settings(), None).as_ref()).unwrap();
    // A day is longer than anybody waits for an import.
    let error = resolve(refusal("86400").source(settings(), None).as_ref()).unwrap_err();
    assert!(error.to_string().contains("86400"), "{error}");
    assert!(source::hint(&error).unwrap().contains("log in"));
    assert!(began.elapsed() < Duration::from_secs(2));
}

#[test]
fn bytes_can_be_read_before_the_blob_is_complete() {
    use std::io::Read as _;
    let image = Image::new("amd64", &[2 << 20]);
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(directory.path()).unwrap());
    for store in [None, Some(&store)] {
        let server = Server::of(&image, |request, reply| Reply {
            hang: (request.is_blob() && reply.body.len() > 1 << 20).then_some(1 << 20),
            ..reply
        });
        let source = server.source(quick(), store);
        let (recorder, cancel) = (Recorder::default(), cista_images::cancel::Cancel::new());
        let task = source::Task {
            progress: &recorder,
            cancel: &cancel,
        };
        let resolved = resolve(source.as_ref()).unwrap();
        let mut half = vec![0; 1 << 20];
        let mut stream = source.open_layer(&resolved, 0, task).unwrap();
        stream.read_exact(&mut half).unwrap();
        assert!(half == image.blob(image.layers[0])[..1 << 20]);
    }
}
