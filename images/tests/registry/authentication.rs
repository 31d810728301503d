//! Who is told what: Basic, Bearer, redirects, foreign realms.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cista_images::source;

use crate::image::{Image, Recorder, check, pull, resolve};
use crate::server::{BASIC, Reply, Request, Server, quick, with_credential};

/// A token service that gives `token-1`, `token-2`, … to those who know the password (or to all).
fn token_service(host: &str, needs_password: bool) -> Server {
    let count = AtomicUsize::new(0);
    Server::start(
        host,
        move |request| {
            if needs_password && request.header("authorization") != Some(BASIC) {
                return Reply::status(401);
            }
            let number = count.fetch_add(1, Ordering::Relaxed) + 1;
            Reply::body(format!(r#"{{"token":"token-{number}","expires_in":300}}"#))
        },
        |_, reply| reply,
    )
}

/// A registry that wants tokens of a service, each good for so many requests.
fn bearer_registry(image: &Image, realm: &str, uses: usize) -> Server {
    let challenge = format!(
        r#"Bearer realm="http://{realm}/token",service="the registry",scope="repository:image:pull""#
    );
    let used = std::sync::Mutex::new(std::collections::HashMap::<String, usize>::new());
    Server::of(image, move |request, reply| {
        let token = request
            .header("authorization")
            .and_then(|header| header.strip_prefix("Bearer token-"));
        if let Some(token) = token {
            let mut used = used.lock().unwrap();
            let count = used.entry(token.to_owned()).or_default();
            *count += 1;
            if *count <= uses {
                return reply;
            }
        }
        Reply::status(401).with("www-authenticate", challenge.clone())
    })
}

fn pull_well(image: &Image, server: &Server, settings: cista_images::registry::Settings) {
    let recorder = Recorder::default();
    let (resolved, layers) = pull(server.source(settings, None).as_ref(), &recorder).unwrap();
    check(image, &resolved, &layers);
}

#[test]
fn anonymous_tokens_are_fetched_once() {
    let image = Image::small();
    let service = token_service("127.0.0.1", false);
    let server = bearer_registry(&image, &service.address, usize::MAX);
    pull_well(&image, &server, quick());
    let requests = service.requests();
    assert_eq!(requests.len(), 1);
    assert!(
        requests[0].path.contains("service=the%20registry"),
        "{requests:?}"
    );
    assert!(requests[0].path.contains("scope=repository%3Aimage%3Apull"));
    assert_eq!(requests[0].header("authorization"), None);
}

#[test]
fn tokens_are_had_with_the_password_which_the_registry_never_sees() {
    let image = Image::small();
    let service = token_service("127.0.0.1", true);
    let server = bearer_registry(&image, &service.address, usize::MAX);
    pull_well(&image, &server, with_credential(&server.address));
    assert_eq!(service.requests().len(), 1);
    for request in server.requests() {
        assert_ne!(request.header("authorization"), Some(BASIC));
    }
}

#[test]
fn tokens_that_expire_in_the_middle_are_renewed() {
    let image = Image::small();
    let service = token_service("127.0.0.1", true);
    let server = bearer_registry(&image, &service.address, 2);
    pull_well(&image, &server, with_credential(&server.address));
    assert!(service.requests().len() >= 3);
}

#[test]
fn expired_tokens_are_not_even_tried() {
    let image = Image::small();
    let service = Server::start(
        "127.0.0.1",
        |_| Reply::body(r#"{"access_token":"token-1","expires_in":1}"#),
        |_, reply| reply,
    );
    let server = bearer_registry(&image, &service.address, usize::MAX);
    let source = server.source(quick(), None);
    resolve(source.as_ref()).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(1100));
    resolve(source.as_ref()).unwrap();
    assert_eq!(service.requests().len(), 2);
    let refused = server
        .requests()
        .iter()
        .filter(|request| request.header("authorization").is_none())
        .count();
    assert_eq!(refused, 1);
}

#[test]
fn wrong_passwords_are_told_apart_from_none() {
    let image = Image::small();
    let service = token_service("127.0.0.1", true);
    let server = bearer_registry(&image, &service.address, usize::MAX);
    let error = resolve(server.source(quick(), None).as_ref()).unwrap_err();
    assert!(
        error.to_string().contains("denied without credentials"),
        "{error}"
    );
    assert!(source::hint(&error).unwrap().contains("cista login"));

    let server = Server::of(&image, |_, _| {
        Reply::status(401).with("www-authenticate", "Basic realm=\"x\"")
    });
    let settings = with_credential(&server.address);
    let error = resolve(server.source(settings, None).as_ref()).unwrap_err();
    assert!(error.to_string().contains("denied to user `me`"), "{error}");
    assert!(!format!("{error} {error:?}").contains("hunter2"));
    assert!(source::hint(&error).unwrap().contains("check user"));
}

#[test]
fn basic_is_sent_only_after_the_registry_asked() {
    let image = Image::small();
    let server = Server::of(&image, |request, reply| {
        if request.header("authorization") == Some(BASIC) {
            reply
        } else {
            Reply::status(401).with("www-authenticate", "Basic realm=\"x\"")
        }
    });
    pull_well(&image, &server, with_credential(&server.address));
    let requests = server.requests();
    assert_eq!(requests[0].header("authorization"), None);
    assert!(
        requests[1..]
            .iter()
            .all(|request| request.header("authorization") == Some(BASIC))
    );
}

#[test]
fn foreign_token_services_are_not_told_the_password() {
    let image = Image::small();
    let service = token_service("127.0.0.2", true);
    let server = bearer_registry(&image, &service.address, usize::MAX);
    let settings = with_credential(&server.address);
    let error = resolve(server.source(settings, None).as_ref()).unwrap_err();
    assert!(
        error.to_string().contains("not the registry's own"),
        "{error}"
    );
    assert!(!service.requests().is_empty());
    for request in service.requests() {
        assert_eq!(request.header("authorization"), None);
    }
}

#[test]
fn redirects_do_not_carry_the_header_to_another_host() {
    let image = Image::small();
    let blobs = image.clone();
    let elsewhere = Server::start(
        "127.0.0.1",
        move |request: &Request| {
            let digest = request
                .path
                .trim_start_matches("/signed/")
                .split('?')
                .next();
            let content = digest
                .and_then(|text| text.parse().ok())
                .and_then(|digest| blobs.blobs.get(&digest));
            match content {
                Some(content) => Reply::body(content.clone()),
                None => Reply::status(404),
            }
        },
        |_, reply| reply,
    );
    let target = elsewhere.address.clone();
    let server = Server::of(&image, move |request, reply| {
        if request.header("authorization") != Some(BASIC) {
            return Reply::status(401).with("www-authenticate", "Basic realm=\"x\"");
        }
        if !request.is_blob() {
            return reply;
        }
        let digest = request.path.rsplit('/').next().unwrap();
        // First within the registry, then away from it.
        if request.path.starts_with("/v2/") {
            Reply::status(307).with("location", format!("/moved/blobs/{digest}"))
        } else {
            Reply::status(302).with(
                "location",
                format!("http://{target}/signed/{digest}?signature=x"),
            )
        }
    });
    pull_well(&image, &server, with_credential(&server.address));
    assert_eq!(elsewhere.requests().len(), 4);
    for request in elsewhere.requests() {
        assert_eq!(
            request.header("authorization"),
            None,
            "leaked to {}",
            request.path
        );
    }
    assert!(
        server.requests()[1..]
            .iter()
            .all(|request| request.header("authorization") == Some(BASIC))
    );
}

#[test]
fn redirects_resume_at_the_registry() {
    let image = Image::new("amd64", &[200_000]);
    let blobs = image.clone();
    // Each signed address works once, and is cut.
    let elsewhere = Arc::new(Server::start(
        "127.0.0.1",
        move |request: &Request| {
            let digest = request
                .path
                .rsplit('/')
                .next()
                .and_then(|text| text.parse().ok());
            match digest.and_then(|digest| blobs.blobs.get(&digest)) {
                Some(content) => {
                    let from = request.from();
                    let mut reply = Reply::body(&content[from..]);
                    if from > 0 {
                        reply.status = 206;
                        reply = reply.with(
                            "content-range",
                            format!("bytes {from}-{}/{}", content.len() - 1, content.len()),
                        );
                    }
                    reply.cut = (content.len() - from > 90_000).then_some(90_000);
                    reply
                }
                None => Reply::status(404),
            }
        },
        |_, reply| reply,
    ));
    let target = elsewhere.address.clone();
    let server = Server::of(&image, move |request, reply| {
        if request.is_blob() {
            let digest = request.path.rsplit('/').next().unwrap();
            Reply::status(307).with("location", format!("http://{target}/{digest}"))
        } else {
            reply
        }
    });
    pull_well(&image, &server, quick());
    let layer = image.layers[0].to_string();
    assert_eq!(server.count("GET", &layer), 3);
    assert_eq!(elsewhere.count("GET", &layer), 3);
}

#[test]
fn circles_and_dead_ends_of_redirects_are_errors() {
    let image = Image::small();
    for (location, fragment) in [
        (Some("/again"), "too many"),
        (Some("gopher://x/"), "malformed"),
        (Some("http://registry.invalid/"), "another host by http"),
        (None, "no target"),
    ] {
        let server = Server::of(&image, move |_, _| match location {
            Some(location) => Reply::status(307).with("location", location),
            None => Reply::status(307),
        });
        let error = resolve(server.source(quick(), None).as_ref()).unwrap_err();
        assert!(error.to_string().contains(fragment), "{error}");
    }
}

#[test]
fn tokens_that_would_break_a_header_are_refused() {
    let image = Image::small();
    for (answer, fragment) in [
        (r#"{"token":"a\r\nx: y"}"#, "malformed"),
        (r#"{"token":""}"#, "no token"),
        ("{}", "no token"),
        ("<html>", "no token"),
    ] {
        let service = Server::start("127.0.0.1", move |_| Reply::body(answer), |_, reply| reply);
        let server = bearer_registry(&image, &service.address, usize::MAX);
        let error = resolve(server.source(quick(), None).as_ref()).unwrap_err();
        assert!(error.to_string().contains(fragment), "{answer}: {error}");
    }
}
