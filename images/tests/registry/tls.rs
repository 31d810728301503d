//! Encrypted registries: trust, and the lack of it.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;

use cista_images::registry;
use cista_images::source;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::image::{Image, resolve};
use crate::server::{Server, open, quick};
use crate::tools::{have, run, text};

/// A certificate for 127.0.0.1 and localhost, signed by itself.
pub(crate) fn make_certificate(directory: &Path) {
    run(
        "openssl",
        &[
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=IP:127.0.0.1,DNS:localhost",
            "-addext",
            "basicConstraints=critical,CA:FALSE",
            "-keyout",
            text(&directory.join("key.pem")),
            "-out",
            text(&directory.join("cert.pem")),
        ],
    );
}

/// Answers every request over TLS with 404 as a registry would; returns the port.
fn start(directory: &Path) -> u16 {
    let certificate = CertificateDer::from_pem_file(directory.join("cert.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(directory.join("key.pem")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let connection = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut stream = rustls::StreamOwned::new(connection, stream);
            let mut buffer = [0; 4096];
            // Who speaks plain http, or does not trust us, ends here.
            if stream.read(&mut buffer).is_ok() {
                let body = r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"over tls"}]}"#;
                let _ = write!(
                    stream,
                    "HTTP/1.1 404 Not Found\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
                    body.len()
                );
                let _ = stream.flush();
                stream.conn.send_close_notify();
                let _ = stream.flush();
            }
        }
    });
    port
}

#[test]
fn only_trusted_certificates_are_accepted() {
    if !have("only_trusted_certificates_are_accepted", &["openssl"]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    make_certificate(directory.path());
    let port = start(directory.path());
    let reference = format!("docker://127.0.0.1:{port}/image:1");

    let error = resolve(open(&reference, quick(), None).as_ref()).unwrap_err();
    assert!(error.to_string().contains("secure connection"), "{error}");
    assert!(source::hint(&error).unwrap().contains("SSL_CERT_FILE"));

    let trusting = registry::Settings {
        ca_file: Some(directory.path().join("cert.pem")),
        ..quick()
    };
    let error = resolve(open(&reference, trusting, None).as_ref()).unwrap_err();
    assert!(error.to_string().contains("over tls"), "{error}");

    let authorities = directory.path().join("authorities");
    std::fs::create_dir(&authorities).unwrap();
    std::fs::copy(
        directory.path().join("cert.pem"),
        authorities.join("one.pem"),
    )
    .unwrap();
    let trusting = registry::Settings {
        ca_directories: vec!["/nonexistent".into(), authorities],
        ..quick()
    };
    let error = resolve(open(&reference, trusting, None).as_ref()).unwrap_err();
    assert!(error.to_string().contains("over tls"), "{error}");
}

#[test]
fn unreadable_authorities_are_named() {
    for path in ["/nonexistent.pem", "/dev/null"] {
        let settings = registry::Settings {
            ca_file: Some(path.into()),
            ..quick()
        };
        let source = open("docker://registry.invalid/x", settings, None);
        let error = resolve(source.as_ref()).unwrap_err();
        assert!(error.to_string().contains(path), "{error}");
    }
}

#[test]
fn plain_http_is_not_spoken_to_other_hosts_unless_allowed() {
    // This machine by an address that is not a loopback address, where it has one.
    let probe = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    let own = probe
        .connect("192.0.2.1:9")
        .and_then(|()| probe.local_addr());
    let Ok(own) = own else {
        assert!(
            std::env::var_os("CISTA_TEST_REQUIRE").is_none(),
            "this machine has no address but loopback"
        );
        eprintln!(
            "SKIPPED plain_http_is_not_spoken_to_other_hosts_unless_allowed: no address but loopback"
        );
        return;
    };
    let image = Image::small();
    let served = image.clone();
    let server = Server::start(
        &own.ip().to_string(),
        move |_| crate::server::Reply::body(served.blob(served.manifest)),
        |_, reply| reply,
    );
    let error = resolve(server.source(quick(), None).as_ref()).unwrap_err();
    assert!(error.to_string().contains("secure connection"), "{error}");
    assert!(source::hint(&error).unwrap().contains("plain http"));
    assert!(server.requests().is_empty());

    let allowing = registry::Settings {
        allow_http: true,
        ..quick()
    };
    // The stand-in serves the manifest for every request, so that of the config is wrong; the point is that it was asked.
    resolve(server.source(allowing, None).as_ref()).unwrap_err();
    assert!(!server.requests().is_empty());
}
