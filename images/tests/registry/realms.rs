//! Token services: which of them are told a login, how often, and what becomes of those that fail.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use cista_images::registry;

use crate::image::{Image, Recorder, check, pull, resolve};
use crate::server::{BASIC, Reply, Server, open, quick, with_credential};

/// A service whose answers are made from their number, the first being 1.
fn service(host: &str, answer: impl Fn(usize) -> Reply + Send + Sync + 'static) -> Server {
    let count = AtomicUsize::new(0);
    Server::start(
        host,
        move |_| answer(count.fetch_add(1, Ordering::SeqCst) + 1),
        |_, reply| reply,
    )
}

fn token(number: usize) -> Reply {
    Reply::body(format!(r#"{{"token":"token-{number}","expires_in":300}}"#))
}

/// A registry that wants tokens of a realm, each good for so many requests.
fn registry_of(image: &Image, realm: &str, uses: usize) -> Server {
    let challenge = format!(r#"Bearer realm="{realm}",service="s""#);
    let used = Mutex::new(HashMap::<String, usize>::new());
    Server::of(image, move |request, reply| {
        let refused = Reply::status(401).with("www-authenticate", challenge.clone());
        let Some(token) = request.header("authorization") else {
            return refused;
        };
        let mut used = used.lock().unwrap();
        let count = used.entry(token.to_owned()).or_default();
        *count += 1;
        if *count <= uses { reply } else { refused }
    })
}

fn impatient(settings: registry::Settings) -> registry::Settings {
    registry::Settings {
        retry_delay: Duration::from_millis(1),
        ..settings
    }
}

#[test]
fn a_login_of_the_service_serves_its_own_registry_alone() {
    let image = Image::small();
    for (host, is_own) in [("127.0.0.1", true), ("127.0.0.2", false)] {
        let service = service(host, token);
        let server = registry_of(&image, &format!("http://{}/t", service.address), usize::MAX);
        // The user has no login for the registry, but one for the service, as enroot's users have. If a registry could name any
        // service, it would get a token for what is not its own.
        let settings = with_credential(&service.address);
        let (resolved, layers) =
            pull(server.source(settings, None).as_ref(), &Recorder::default()).unwrap();
        check(&image, &resolved, &layers);
        let logins: Vec<_> = service
            .requests()
            .iter()
            .map(|request| request.header("authorization").map(str::to_owned))
            .collect();
        assert_eq!(logins, [is_own.then(|| BASIC.to_owned())], "{host}");
    }
}

#[test]
fn realms_that_cannot_be_asked_safely_are_not_asked() {
    let image = Image::small();
    for (realm, expected) in [
        ("http://registry.invalid/token", "without TLS"),
        ("ftp://127.0.0.1/token", "no usable address"),
        ("http://me:pw@127.0.0.1/token", "no usable address"),
        ("/token", "no usable address"),
    ] {
        let server = registry_of(&image, realm, usize::MAX);
        let settings = with_credential(&server.address);
        let error = resolve(server.source(settings, None).as_ref()).unwrap_err();
        assert!(error.to_string().contains(expected), "{realm}: {error}");
    }
}

#[test]
fn tokens_that_other_threads_used_up_are_no_refusal() {
    let image = Image::new("amd64", &[50_000; 10]);
    let service = service("127.0.0.1", token);
    let server = registry_of(&image, &format!("http://{}/t", service.address), 4);
    let directory = tempfile::tempdir().unwrap();
    let store = std::sync::Arc::new(cista_images::store::Store::open(directory.path()).unwrap());
    // Eight threads at once.
    let source = server.source(quick(), Some(&store));
    let (resolved, layers) = pull(source.as_ref(), &Recorder::default()).unwrap();
    check(&image, &resolved, &layers);
    assert!(service.requests().len() >= 3);
}

#[test]
fn a_registry_that_takes_no_token_is_given_up() {
    let image = Image::small();
    let service = service("127.0.0.1", token);
    let server = registry_of(&image, &format!("http://{}/t", service.address), 0);
    let error = resolve(server.source(quick(), None).as_ref()).unwrap_err();
    assert!(error.to_string().contains("denied"), "{error}");
    assert!(service.requests().len() < 20);
}

#[test]
fn a_refused_password_is_sent_once() {
    let image = Image::small();
    let server = Server::of(&image, |_, _| {
        Reply::status(401).with("www-authenticate", "Basic realm=\"x\"")
    });
    let settings = with_credential(&server.address);
    resolve(server.source(settings, None).as_ref()).unwrap_err();
    // Once for HEAD or GET: accounts get locked for more.
    let sent = server
        .requests()
        .iter()
        .filter(|request| request.header("authorization").is_some())
        .count();
    assert_eq!(sent, 1);
    // The user that a reference names must be the login's.
    let settings = with_credential(&server.address);
    let reference = format!("docker://you@{}/image:1", server.address);
    server.forget_requests();
    resolve(open(&reference, settings, None).as_ref()).unwrap_err();
    assert!(
        server
            .requests()
            .iter()
            .all(|request| request.header("authorization").is_none())
    );
}

#[test]
fn overloaded_services_are_asked_again_and_broken_ones_named() {
    let image = Image::small();
    let busy = service("127.0.0.1", |number| match number {
        1 | 2 => Reply::status(503),
        number => token(number),
    });
    let server = registry_of(&image, &format!("http://{}/t", busy.address), usize::MAX);
    let source = server.source(impatient(quick()), None);
    let (resolved, layers) = pull(source.as_ref(), &Recorder::default()).unwrap();
    check(&image, &resolved, &layers);

    for (answer, expected) in [
        ((|_| Reply::status(500)) as fn(usize) -> Reply, "500"),
        (|_| Reply::body(vec![b' '; 2 << 20]), "too much"),
    ] {
        let broken = service("127.0.0.1", answer);
        let server = registry_of(&image, &format!("http://{}/t", broken.address), usize::MAX);
        let error = resolve(server.source(impatient(quick()), None).as_ref()).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}
