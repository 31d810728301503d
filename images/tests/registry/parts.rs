//! Big blobs in parts: who is asked for what, and what happens when parts are not what was hoped for.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cista_images::registry;
use cista_images::store::Store;

use crate::image::{Image, Recorder, check, pull};
use crate::server::{Reply, Request, Server, quick};

const MIB: usize = 1 << 20;

/// Runs a check without a store and with one.
fn both_ways(check: impl Fn(Option<&Arc<Store>>)) {
    check(None);
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(directory.path()).unwrap());
    check(Some(&store));
}

/// What was asked for of a blob, in order.
fn ranges(server: &Server, image: &Image, layer: usize) -> Vec<(usize, usize)> {
    let size = image.blob(image.layers[layer]).len();
    let whole = |request: &Request| {
        let (first, last) = request.range().unwrap_or((0, None));
        (first, last.map_or(size, |last| last + 1))
    };
    let mut ranges: Vec<_> = server
        .requests()
        .iter()
        .filter(|request| request.path.ends_with(&image.layers[layer].to_string()))
        .map(whole)
        .collect();
    ranges.sort_unstable();
    ranges
}

#[test]
fn a_big_blob_is_fetched_in_parts_by_several_connections() {
    let image = Image::new("amd64", &[1000, 40 * MIB]);
    let size = image.blob(image.layers[1]).len();
    both_ways(|store| {
        let server = Server::of(&image, |request, reply| Reply {
            drip: request.is_blob().then_some(Duration::from_micros(200)),
            ..reply
        });
        let settings = registry::Settings {
            max_connections: 5,
            ..quick()
        };
        let recorder = Recorder::default();
        let source = server.source(settings, store);
        let (resolved, layers) = pull(source.as_ref(), &recorder).unwrap();
        check(&image, &resolved, &layers);
        assert_eq!(recorder.fetched(1), size as u64);
        let ranges = ranges(&server, &image, 1);
        assert!(ranges.len() > 5, "{ranges:?}");
        // Each byte once, in whatever order.
        let mut end = 0;
        for (first, last) in &ranges {
            assert_eq!(*first, end, "{ranges:?}");
            end = *last;
        }
        assert_eq!(end, size);
        let active = server.most_active();
        assert!((3..=5).contains(&active), "{active} connections");
        // A connection is used for one part after the other. The one for the documents may be another.
        assert!(server.connections() <= 7, "{}", server.connections());
    });
}

#[test]
fn servers_without_ranges_are_asked_for_a_blob_once() {
    let image = Image::new("amd64", &[12 * MIB]);
    let whole = image.clone();
    both_ways(|store| {
        let whole = whole.clone();
        let server = Server::of(&image, move |request, reply| {
            let digest = request
                .path
                .rsplit('/')
                .next()
                .and_then(|text| text.parse().ok());
            match digest.and_then(|digest| whole.blobs.get(&digest)) {
                Some(content) if request.is_blob() => Reply::body(content.clone()),
                _ => reply,
            }
        });
        let source = server.source(quick(), store);
        let (resolved, layers) = pull(source.as_ref(), &Recorder::default()).unwrap();
        check(&image, &resolved, &layers);
        assert_eq!(ranges(&server, &image, 0).len(), 1);
    });
}

#[test]
fn a_part_that_is_slow_is_shared() {
    let image = Image::new("amd64", &[16 * MIB]);
    let slow = Arc::new(AtomicUsize::new(0));
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(directory.path()).unwrap());
    let counted = Arc::clone(&slow);
    let server = Server::of(&image, move |request, reply| {
        // The second part of the blob, and only that answer: 4 MiB would take 25 s.
        let is_second = request.range().is_some_and(|(first, _)| first == 4 * MIB);
        let first_time = is_second && counted.fetch_add(1, Ordering::SeqCst) == 0;
        Reply {
            drip: first_time.then_some(Duration::from_millis(100)),
            ..reply
        }
    });
    let settings = registry::Settings {
        max_connections: 3,
        ..quick()
    };
    let began = Instant::now();
    let source = server.source(settings, Some(&store));
    let (resolved, layers) = pull(source.as_ref(), &Recorder::default()).unwrap();
    check(&image, &resolved, &layers);
    assert_eq!(slow.load(Ordering::SeqCst), 1);
    let seconds = began.elapsed().as_secs_f64();
    assert!(seconds < 10.0, "{seconds} s");
}

#[test]
fn a_blob_whose_parts_belong_to_another_size_is_refused() {
    let image = Image::new("amd64", &[12 * MIB]);
    both_ways(|store| {
        for (size, fragment) in [(7, "truncated"), (99 * MIB, "larger than")] {
            let server = Server::of(&image, move |request, mut reply| {
                if request.is_blob() && reply.status == 206 {
                    let (first, _) = request.range().unwrap();
                    let last = first + reply.body.len() - 1;
                    reply.headers = vec![(
                        "content-range".to_owned(),
                        format!("bytes {first}-{last}/{size}"),
                    )];
                }
                reply
            });
            let source = server.source(quick(), store);
            let error = pull(source.as_ref(), &Recorder::default()).unwrap_err();
            assert!(error.contains(fragment), "{error}");
        }
    });
}
