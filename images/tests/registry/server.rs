//! A tiny HTTP server on loopback that serves an image, and misbehaves as a test tells it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cista_images::digest::Digest;
use cista_images::reference::Reference;
use cista_images::registry::{self, Credential, Fixed};
use cista_images::source::{self, Source};
use cista_images::store::Store;

use crate::image::{Image, OCI_INDEX, OCI_MANIFEST};

/// A request as it came.
#[derive(Clone, Debug, Default)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: String,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    pub(crate) fn is_blob(&self) -> bool {
        self.path.contains("/blobs/")
    }

    /// The first byte that a `Range` header asks for.
    pub(crate) fn from(&self) -> usize {
        self.range().map_or(0, |(first, _)| first)
    }

    /// What a `Range` header asks for: the first byte, and the last where it says one.
    pub(crate) fn range(&self) -> Option<(usize, Option<usize>)> {
        let (first, last) = self
            .header("range")?
            .strip_prefix("bytes=")?
            .split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()))
    }
}

/// What is answered.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Close the connection after so many bytes of the body.
    pub(crate) cut: Option<usize>,
    /// Announce this length instead of the true one.
    pub(crate) announce: Option<usize>,
    /// Announce no length, and end the body by closing.
    pub(crate) endless: bool,
    /// Fall silent after so many bytes of the body.
    pub(crate) hang: Option<usize>,
    /// Wait before each piece of the body of 16 KiB.
    pub(crate) drip: Option<Duration>,
}

impl Reply {
    pub(crate) fn status(status: u16) -> Self {
        Self {
            status,
            ..Self::default()
        }
    }

    pub(crate) fn body(body: impl Into<Vec<u8>>) -> Self {
        Self {
            status: 200,
            body: body.into(),
            ..Self::default()
        }
    }

    pub(crate) fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }
}

type Behaviour = dyn Fn(&Request, Reply) -> Reply + Send + Sync;

struct Shared {
    serve: Box<dyn Fn(&Request) -> Reply + Send + Sync>,
    behaviour: Box<Behaviour>,
    requests: Mutex<Vec<Request>>,
    stopped: AtomicBool,
    active: AtomicUsize,
    most_active: AtomicUsize,
    connections: AtomicUsize,
}

/// A running server; stops when dropped.
pub(crate) struct Server {
    pub(crate) address: String,
    shared: Arc<Shared>,
}

impl Server {
    /// Serves an image as `image:1`, each answer passing through `behaviour`.
    pub(crate) fn of(
        image: &Image,
        behaviour: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let image = image.clone();
        let top = image.manifest;
        Self::start(
            "127.0.0.1",
            move |request| serve_image(&image, top, request),
            behaviour,
        )
    }

    /// Serves images whose tag `1` is an index, which is among the blobs.
    pub(crate) fn of_index(image: &Image, index: Digest) -> Self {
        let image = image.clone();
        Self::start(
            "127.0.0.1",
            move |request| serve_image(&image, index, request),
            |_, reply| reply,
        )
    }

    /// Serves whatever `serve` says.
    pub(crate) fn start(
        host: &str,
        serve: impl Fn(&Request) -> Reply + Send + Sync + 'static,
        behaviour: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((host, 0)).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shared = Arc::new(Shared {
            serve: Box::new(serve),
            behaviour: Box::new(behaviour),
            requests: Mutex::default(),
            stopped: AtomicBool::new(false),
            active: AtomicUsize::new(0),
            most_active: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
        });
        let accepting = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if accepting.stopped.load(Ordering::Relaxed) {
                    return;
                }
                let shared = Arc::clone(&accepting);
                // Connections that the client closes are no failure of the server.
                std::thread::spawn(move || stream.map(|stream| shared.connection(&stream)));
            }
        });
        Self { address, shared }
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.shared.requests.lock().unwrap().clone()
    }

    pub(crate) fn forget_requests(&self) {
        self.shared.requests.lock().unwrap().clear();
    }

    /// Requests of a method whose path holds a text.
    pub(crate) fn count(&self, method: &str, path: &str) -> usize {
        self.requests()
            .iter()
            .filter(|request| request.method == method && request.path.contains(path))
            .count()
    }

    /// The most blob requests that were answered at one time.
    pub(crate) fn most_active(&self) -> usize {
        self.shared.most_active.load(Ordering::Relaxed)
    }

    /// Connections that were made.
    pub(crate) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// A source for `image:1` on this server.
    pub(crate) fn source(
        &self,
        registry: registry::Settings,
        store: Option<&Arc<Store>>,
    ) -> Box<dyn Source> {
        open(
            &format!("docker://{}/image:1", self.address),
            registry,
            store,
        )
    }
}

/// A source for a reference.
pub(crate) fn open(
    reference: &str,
    registry: registry::Settings,
    store: Option<&Arc<Store>>,
) -> Box<dyn Source> {
    let reference: Reference = reference.parse().unwrap();
    let settings = source::Settings {
        registry,
        store: store.cloned(),
        ..source::Settings::default()
    };
    source::open(&reference, &settings).unwrap()
}

/// Settings that do not make a test wait for long.
pub(crate) fn quick() -> registry::Settings {
    registry::Settings {
        connect_timeout: Duration::from_secs(5),
        idle_timeout: Duration::from_secs(10),
        ..registry::Settings::default()
    }
}

/// Settings with a credential for a registry.
pub(crate) fn with_credential(registry: &str) -> registry::Settings {
    registry::Settings {
        credentials: Arc::new(Fixed {
            registry: registry.to_owned(),
            credential: Credential::login("me", "hunter2"),
        }),
        ..quick()
    }
}

/// `me:hunter2` as RFC 7617 writes it.
pub(crate) const BASIC: &str = "Basic bWU6aHVudGVyMg==";

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        // Wakes the accepting thread.
        let _ = TcpStream::connect(&self.address);
    }
}

impl Shared {
    fn connection(&self, stream: &TcpStream) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        self.connections.fetch_add(1, Ordering::SeqCst);
        let mut reader = BufReader::new(stream.try_clone()?);
        // The first byte of a TLS handshake is answered as web servers do.
        if reader.fill_buf()?.first() == Some(&0x16) {
            self.answer(stream, &Request::default(), &Reply::status(400))?;
            return Ok(());
        }
        while let Some(request) = read_request(&mut reader)? {
            self.requests.lock().unwrap().push(request.clone());
            if request.is_blob() {
                let active = self.active.fetch_add(1, Ordering::SeqCst) + 1;
                self.most_active.fetch_max(active, Ordering::SeqCst);
            }
            let reply = (self.behaviour)(&request, (self.serve)(&request));
            let goes_on = self.answer(stream, &request, &reply);
            if request.is_blob() {
                self.active.fetch_sub(1, Ordering::SeqCst);
            }
            if !goes_on? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Sends a reply; whether the connection can be used again.
    fn answer(
        &self,
        mut stream: &TcpStream,
        request: &Request,
        reply: &Reply,
    ) -> std::io::Result<bool> {
        let mut head = format!("HTTP/1.1 {} Status\r\n", reply.status);
        for (name, value) in &reply.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if reply.endless {
            head.push_str("connection: close\r\n");
        } else {
            let length = reply.announce.unwrap_or(reply.body.len());
            head.push_str(&format!("content-length: {length}\r\n"));
        }
        head.push_str("\r\n");
        stream.write_all(head.as_bytes())?;
        if request.method == "HEAD" {
            return Ok(true);
        }
        let end = reply
            .cut
            .or(reply.hang)
            .unwrap_or(reply.body.len())
            .min(reply.body.len());
        for piece in reply.body[..end].chunks(16 << 10) {
            if let Some(pause) = reply.drip {
                std::thread::sleep(pause);
            }
            stream.write_all(piece)?;
        }
        if reply.hang.is_some() {
            while !self.stopped.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        let whole = reply.cut.is_none() && reply.announce.is_none() && !reply.endless;
        Ok(whole && reply.hang.is_none())
    }
}

fn read_request(reader: &mut impl BufRead) -> std::io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let (Some(method), Some(path)) = (words.next(), words.next()) else {
        return Ok(None);
    };
    let mut request = Request {
        method: method.to_owned(),
        path: path.to_owned(),
        ..Request::default()
    };
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim_end().split_once(": ") {
            Some((name, value)) => {
                request
                    .headers
                    .insert(name.to_ascii_lowercase(), value.to_owned());
            }
            None => break,
        }
    }
    let length = request
        .header("content-length")
        .and_then(|length| length.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body)?;
    request.body = String::from_utf8_lossy(&body).into_owned();
    Ok(Some(request))
}

pub(crate) fn serve_image(image: &Image, top: Digest, request: &Request) -> Reply {
    let missing = Reply {
        body: br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#.to_vec(),
        ..Reply::status(404)
    }
    .with("docker-distribution-api-version", "registry/2.0");
    let Some(rest) = request.path.strip_prefix("/v2/image/") else {
        return missing;
    };
    if let Some(wanted) = rest.strip_prefix("manifests/") {
        let digest = if wanted == "1" {
            Some(top)
        } else {
            wanted.parse().ok()
        };
        return match digest.and_then(|digest| Some((digest, image.blobs.get(&digest)?))) {
            Some((digest, content)) => Reply::body(content.clone())
                .with("docker-content-digest", digest.to_string())
                .with(
                    "content-type",
                    if content.windows(11).any(|window| window == b"\"manifests\"") {
                        OCI_INDEX
                    } else {
                        OCI_MANIFEST
                    },
                ),
            None => missing,
        };
    }
    let digest = rest
        .strip_prefix("blobs/")
        .and_then(|text| text.parse().ok());
    match digest.and_then(|digest: Digest| image.blobs.get(&digest)) {
        None => missing,
        Some(content) => {
            let Some((from, last)) = request.range() else {
                return Reply::body(content.clone());
            };
            if from >= content.len() {
                return Reply::status(416);
            }
            let last = last.unwrap_or(usize::MAX).min(content.len() - 1);
            Reply {
                status: 206,
                ..Reply::body(&content[from..=last])
            }
            .with(
                "content-range",
                format!("bytes {from}-{last}/{}", content.len()),
            )
        }
    }
}
