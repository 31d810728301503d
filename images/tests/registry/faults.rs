//! Cut connections, busy servers, wrong bytes, lies about sizes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cista_images::registry;
use cista_images::source;
use cista_images::store::Store;

use crate::image::{Image, Recorder, check, pull, resolve};
use crate::server::{Reply, Server, open, quick};

/// Runs a check without a store and with one.
fn both_ways(check: impl Fn(Option<&Arc<Store>>)) {
    check(None);
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(directory.path()).unwrap());
    check(Some(&store));
}

/// None of the large layers, with which the server misbehaves, is in the store.
fn assert_no_layers(image: &Image, store: Option<&Arc<Store>>) {
    for layer in [image.layers[0], image.layers[2]] {
        if let Some(store) = store {
            assert!(store.blob(&layer).unwrap().is_none(), "{layer}");
        }
    }
}

#[test]
fn a_healthy_registry_gives_the_image() {
    let image = Image::small();
    let server = Server::of(&image, |_, reply| reply);
    both_ways(|store| {
        let recorder = Recorder::default();
        let (resolved, layers) = pull(server.source(quick(), store).as_ref(), &recorder).unwrap();
        check(&image, &resolved, &layers);
        assert_eq!(
            resolved.reference,
            format!("docker://{}/image:1", server.address)
        );
        for (layer, content) in layers.iter().enumerate() {
            assert_eq!(recorder.fetched(layer), content.len() as u64);
        }
        assert_eq!((recorder.complete(), recorder.cached()), (3, 0));
    });
}

#[test]
fn cut_connections_are_resumed_where_they_were_cut() {
    let image = Image::small();
    both_ways(|store| {
        // Every answer is cut after 150,000 bytes.
        let server = Server::of(&image, |request, reply| Reply {
            cut: (request.is_blob() && reply.body.len() > 150_000).then_some(150_000),
            ..reply
        });
        let recorder = Recorder::default();
        let (resolved, layers) = pull(server.source(quick(), store).as_ref(), &recorder).unwrap();
        check(&image, &resolved, &layers);
        // Nothing was sent twice: each request went on at a multiple of what the one before had brought.
        let starts: Vec<_> = server
            .requests()
            .iter()
            .filter(|request| request.path.ends_with(&image.layers[2].to_string()))
            .map(crate::server::Request::from)
            .collect();
        assert_eq!(starts, [0, 150_000, 300_000, 450_000, 600_000]);
    });
}

#[test]
fn servers_without_ranges_send_it_again() {
    let image = Image::small();
    both_ways(|store| {
        let cuts = AtomicUsize::new(0);
        let whole = image.clone();
        let server = Server::of(&image, move |request, reply| {
            let digest = request
                .path
                .rsplit('/')
                .next()
                .and_then(|text| text.parse().ok());
            match digest.and_then(|digest| whole.blobs.get(&digest)) {
                Some(content) if request.is_blob() => Reply {
                    cut: (cuts.fetch_add(1, Ordering::Relaxed) % 3 != 2)
                        .then_some(content.len() / 2 + 1),
                    ..Reply::body(content.clone())
                },
                _ => reply,
            }
        });
        let recorder = Recorder::default();
        let (resolved, layers) = pull(server.source(quick(), store).as_ref(), &recorder).unwrap();
        check(&image, &resolved, &layers);
    });
}

#[test]
fn bodies_without_a_length_end_only_at_the_announced_size() {
    let image = Image::small();
    both_ways(|store| {
        let server = Server::of(&image, |request, reply| Reply {
            endless: request.is_blob(),
            cut: (request.is_blob() && reply.body.len() > 300_000).then_some(250_000),
            ..reply
        });
        let recorder = Recorder::default();
        let (resolved, layers) = pull(server.source(quick(), store).as_ref(), &recorder).unwrap();
        check(&image, &resolved, &layers);
    });
}

#[test]
fn silence_after_the_last_byte_does_no_harm() {
    let image = Image::small();
    let server = Server::of(&image, |_, reply| Reply {
        endless: reply.body.len() > 100_000,
        hang: (reply.body.len() > 100_000).then_some(reply.body.len()),
        ..reply
    });
    let settings = registry::Settings {
        idle_timeout: Duration::from_millis(200),
        ..quick()
    };
    let recorder = Recorder::default();
    let (resolved, layers) = pull(server.source(settings, None).as_ref(), &recorder).unwrap();
    check(&image, &resolved, &layers);
}

#[test]
fn busy_servers_are_waited_for() {
    let image = Image::small();
    both_ways(|store| {
        let count = AtomicUsize::new(0);
        let server = Server::of(&image, move |_, reply| {
            match count.fetch_add(1, Ordering::Relaxed) {
                0 => Reply::status(503),
                1 => Reply::status(429).with("retry-after", "1"),
                4 => Reply::status(500),
                _ => reply,
            }
        });
        let began = Instant::now();
        let recorder = Recorder::default();
        let (resolved, layers) = pull(server.source(quick(), store).as_ref(), &recorder).unwrap();
        check(&image, &resolved, &layers);
        assert!(began.elapsed() >= Duration::from_secs(1));
    });
}

#[test]
fn servers_that_stay_busy_are_given_up() {
    let image = Image::small();
    let settings = || registry::Settings {
        retries: 1,
        ..quick()
    };
    for (status, retry_after, fragment) in [
        (503, None, "answers 503"),
        (429, None, "limits the rate"),
        (429, Some("86400"), "asks to wait 86400 s"),
    ] {
        let server = Server::of(&image, move |_, _| {
            let reply = Reply::status(status);
            match retry_after {
                Some(value) => reply.with("retry-after", value),
                None => reply,
            }
        });
        let began = Instant::now();
        let error = resolve(server.source(settings(), None).as_ref()).unwrap_err();
        assert!(error.to_string().contains(fragment), "{error}");
        assert!(began.elapsed() < Duration::from_secs(5));
    }
}

#[test]
fn a_wrong_byte_is_found_and_not_kept() {
    let image = Image::small();
    let bad = image.layers[2];
    both_ways(|store| {
        let server = Server::of(&image, move |request, mut reply| {
            if request.path.ends_with(&bad.to_string()) {
                reply.body[1000] ^= 1;
            }
            reply
        });
        let error = pull(server.source(quick(), store).as_ref(), &Recorder::default()).unwrap_err();
        assert!(
            error.contains("corrupt") && error.contains(&bad.to_string()),
            "{error}"
        );
        if let Some(store) = store {
            assert!(store.blob(&bad).unwrap().is_none());
        }
    });
}

#[test]
fn blobs_of_another_size_than_announced_are_refused_without_reading_them() {
    let image = Image::small();
    for (change, fragment) in [(-7_isize, "truncated"), (7, "larger than")] {
        both_ways(|store| {
            let server = Server::of(&image, move |request, mut reply| {
                if request.is_blob() && reply.body.len() > 1000 {
                    let length = reply.body.len().checked_add_signed(change).unwrap();
                    reply.body.resize(length, 0);
                }
                reply
            });
            let error =
                pull(server.source(quick(), store).as_ref(), &Recorder::default()).unwrap_err();
            assert!(error.contains(fragment), "{error}");
            assert_no_layers(&image, store);
        });
    }
}

#[test]
fn blobs_that_go_on_beyond_their_size_are_refused() {
    let image = Image::small();
    both_ways(|store| {
        let server = Server::of(&image, |request, mut reply| {
            if request.is_blob() && reply.body.len() > 1000 {
                reply.endless = true;
                reply.body.extend([0; 100_000]);
            }
            reply
        });
        let error = pull(server.source(quick(), store).as_ref(), &Recorder::default()).unwrap_err();
        assert!(error.contains("larger than"), "{error}");
        assert_no_layers(&image, store);
    });
}

#[test]
fn ranges_that_are_not_those_asked_for_are_refused() {
    let image = Image::small();
    let server = Server::of(&image, |request, mut reply| {
        if request.is_blob() && reply.body.len() > 1000 {
            if request.from() > 0 {
                reply.headers = vec![("content-range".to_owned(), "bytes 5-9/10".to_owned())];
            } else {
                reply.cut = Some(1000);
            }
        }
        reply
    });
    let error = pull(server.source(quick(), None).as_ref(), &Recorder::default()).unwrap_err();
    assert!(error.contains("sends others"), "{error}");
}

#[test]
fn wrong_manifests_and_configs_are_refused() {
    let image = Image::small();
    for wrong in ["config", "manifest"] {
        let digest = if wrong == "config" {
            image.config
        } else {
            image.manifest
        };
        both_ways(|store| {
            let server = Server::of(&image, move |request, mut reply| {
                if request.path.ends_with(&digest.to_string()) {
                    *reply.body.last_mut().unwrap() = b' ';
                }
                reply
            });
            let reference = format!("docker://{}/image@{}", server.address, image.manifest);
            let error = resolve(open(&reference, quick(), store).as_ref()).unwrap_err();
            assert!(error.to_string().contains("corrupt"), "{wrong}: {error}");
            assert!(
                server
                    .requests()
                    .iter()
                    .all(|request| !request.path.ends_with("manifests/1"))
            );
        });
    }
}

#[test]
fn documents_without_end_are_not_read() {
    let image = Image::small();
    let server = Server::of(&image, |request, mut reply| {
        if request.path.contains("/manifests/") {
            reply.endless = true;
            reply.body = vec![b' '; 6 << 20];
        }
        reply
    });
    let error = resolve(server.source(quick(), None).as_ref()).unwrap_err();
    assert!(error.to_string().contains("larger than"), "{error}");
}

#[test]
fn what_does_not_exist_is_named() {
    let image = Image::small();
    let server = Server::of(&image, |_, reply| reply);
    both_ways(|store| {
        for (reference, wanted) in [("image:2", "`2`"), ("other:1", "`1`")] {
            let reference = format!("docker://{}/{reference}", server.address);
            let error = resolve(open(&reference, quick(), store).as_ref()).unwrap_err();
            let shown = error.to_string();
            assert!(
                shown.contains("no image") && shown.contains(wanted),
                "{shown}"
            );
            assert!(shown.contains("manifest unknown"), "{shown}");
            assert!(source::hint(&error).is_some());
        }
    });
}

#[test]
fn web_servers_are_not_taken_for_registries() {
    for status in [200, 404] {
        let server = Server::start(
            "127.0.0.1",
            move |_| Reply {
                status,
                ..Reply::body("<html>hello</html>").with("content-type", "text/html")
            },
            |_, reply| reply,
        );
        let error = resolve(server.source(quick(), None).as_ref()).unwrap_err();
        assert!(
            error.to_string().contains("not a container registry"),
            "{error}"
        );
    }
}

#[test]
fn nobody_there_is_told_at_once() {
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let began = Instant::now();
    let source = open(&format!("docker://127.0.0.1:{port}/x"), quick(), None);
    let error = resolve(source.as_ref()).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("cannot connect to `127.0.0.1:{port}`")
    );
    assert!(source::hint(&error).unwrap().contains("port"));
    let source = open("docker://registry.invalid/x", quick(), None);
    let error = resolve(source.as_ref()).unwrap_err();
    assert!(error.to_string().contains("registry.invalid"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[test]
fn silence_ends_after_the_idle_timeout() {
    let image = Image::small();
    let settings = registry::Settings {
        idle_timeout: Duration::from_millis(300),
        retries: 1,
        ..quick()
    };
    both_ways(|store| {
        let server = Server::of(&image, |request, reply| Reply {
            hang: (request.is_blob() && reply.body.len() > 1000).then_some(1000),
            ..reply
        });
        let began = Instant::now();
        let error = pull(
            server.source(settings.clone(), store).as_ref(),
            &Recorder::default(),
        )
        .unwrap_err();
        assert!(error.contains("took too long"), "{error}");
        assert!(began.elapsed() < Duration::from_secs(5));
        assert_no_layers(&image, store);
    });
}

#[test]
fn a_slow_drip_is_no_silence() {
    let image = Image::new("amd64", &[100_000]);
    let settings = registry::Settings {
        idle_timeout: Duration::from_millis(400),
        retries: 0,
        ..quick()
    };
    let server = Server::of(&image, |request, reply| Reply {
        drip: request.is_blob().then_some(Duration::from_millis(100)),
        ..reply
    });
    let (resolved, layers) =
        pull(server.source(settings, None).as_ref(), &Recorder::default()).unwrap();
    check(&image, &resolved, &layers);
}
