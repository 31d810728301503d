//! Everything that passes, at once and at random; and the ends of patience.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cista_images::registry;
use cista_images::source;
use cista_images::store::Store;

use crate::image::{Image, Recorder, check, noise, pull, resolve};
use crate::server::{Reply, Server, quick};

/// Repeatable chance.
struct Dice(std::vec::IntoIter<u8>);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(noise(seed, 1 << 16).into_iter())
    }

    /// A number below `sides`.
    fn roll(&mut self, sides: usize) -> usize {
        let bytes = self.0.by_ref().take(3);
        bytes.fold(0, |number, byte| number << 8 | usize::from(byte)) % sides
    }
}

#[test]
fn pulls_survive_whatever_passes() {
    let image = Image::new("amd64", &[900_000, 300_000, 1, 40_000, 700_000]);
    let size: usize = image
        .layers
        .iter()
        .map(|layer| image.blob(*layer).len())
        .sum();
    for seed in 0..30 {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(directory.path()).unwrap());
        let dice = Mutex::new(Dice::new(seed + 1));
        let sent = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&sent);
        let server = Server::of(&image, move |request, mut reply| {
            let mut dice = dice.lock().unwrap();
            match dice.roll(8) {
                0 => return Reply::status(500),
                1 => return Reply::status(429).with("retry-after", "0"),
                2 | 3 if !reply.body.is_empty() => reply.cut = Some(dice.roll(reply.body.len())),
                4 => reply.drip = Some(Duration::from_millis(1)),
                5 => reply.endless = true,
                _ => {}
            }
            if request.is_blob() {
                counted.fetch_add(reply.cut.unwrap_or(reply.body.len()), Ordering::SeqCst);
            }
            reply
        });
        let settings = registry::Settings {
            retries: 20,
            retry_delay: Duration::from_micros(100),
            ..quick()
        };
        let source = server.source(settings, (seed % 2 == 0).then_some(&store));
        match pull(source.as_ref(), &Recorder::default()) {
            Ok((resolved, layers)) => check(&image, &resolved, &layers),
            Err(error) => panic!("seed {seed}: {error}"),
        }
        // What had come was not asked for again. Configs are blobs too, and may be begun anew.
        let sent = sent.load(Ordering::SeqCst);
        assert!(sent < size + size / 20, "seed {seed}: {sent} for {size}");
    }
}

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
