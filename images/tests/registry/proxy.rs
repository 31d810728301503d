//! Registries behind a proxy.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use cista_images::registry::{self, Secret};
use cista_images::source;

use crate::image::{Image, Recorder, check, pull, resolve};
use crate::server::{Server, open, quick};

/// A proxy that knows CONNECT alone, and leads every tunnel to one server. Remembers the heads of the requests.
fn start_proxy(target: String) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let heads = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&heads);
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let (target, seen) = (target.clone(), Arc::clone(&seen));
            std::thread::spawn(move || -> std::io::Result<()> {
                let mut reader = BufReader::new(client.try_clone()?);
                let mut head = String::new();
                while !head.ends_with("\r\n\r\n") {
                    reader.read_line(&mut head)?;
                }
                seen.lock().unwrap().push(head);
                (&client).write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
                let server = TcpStream::connect(target)?;
                let (mut back_from, mut back_to) = (server.try_clone()?, client.try_clone()?);
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut back_from, &mut back_to);
                    let _ = back_to.shutdown(Shutdown::Both);
                });
                std::io::copy(&mut reader, &mut &server)?;
                server.shutdown(Shutdown::Both)
            });
        }
    });
    (address, heads)
}

#[test]
fn registries_are_reached_through_the_proxy_except_where_told() {
    let image = Image::small();
    let server = Server::of(&image, |_, reply| reply);
    let (proxy, heads) = start_proxy(server.address.clone());
    let secret = Secret::new(format!("http://me:hunter2@{proxy}"));
    let settings = registry::Settings {
        allow_http: true,
        https_proxy: Some(secret.clone()),
        http_proxy: Some(secret),
        retries: 0,
        ..quick()
    };
    // The name has no address: only the proxy can reach it.
    let reference = "docker://registry.invalid:5000/image:1";
    let source = open(reference, settings.clone(), None);
    let (resolved, layers) = pull(source.as_ref(), &Recorder::default()).unwrap();
    check(&image, &resolved, &layers);
    let seen = heads.lock().unwrap().clone();
    assert!(
        seen.iter()
            .all(|head| head.starts_with("CONNECT registry.invalid:5000 ")),
        "{seen:?}"
    );
    assert!(
        seen[0]
            .to_lowercase()
            .contains("proxy-authorization: basic ")
    );
    for request in server.requests() {
        assert!(
            request.header("proxy-authorization").is_none(),
            "the registry was told the proxy's password"
        );
    }

    let direct = registry::Settings {
        no_proxy: "other.org,.invalid".to_owned(),
        ..settings
    };
    let error = resolve(open(reference, direct, None).as_ref()).unwrap_err();
    assert!(error.to_string().contains("registry.invalid"), "{error}");
    assert_eq!(heads.lock().unwrap().len(), seen.len());
}

#[test]
fn malformed_proxies_are_refused_without_showing_them() {
    let settings = source::Settings {
        registry: registry::Settings {
            https_proxy: Some(Secret::new("http://me:hunter2@[")),
            ..quick()
        },
        store: None,
        ..source::Settings::default()
    };
    let Err(error) = source::open(&"docker://x".parse().unwrap(), &settings) else {
        panic!("a malformed proxy was accepted");
    };
    let shown = format!("{error} {error:?}");
    assert!(
        shown.contains("https_proxy") && !shown.contains("hunter2"),
        "{shown}"
    );
}
