//! Connections: one request and its answer, over TLS or not, through a proxy or not.
//!
//! A thin layer over `ureq`: its own redirects are off, since they are followed in `client.rs` under our rules, and its errors are
//! translated to ours. There is one agent, and so one pool of connections, for each way of connecting that occurs.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::pki_types::CertificateDer;
use ureq::http::{HeaderMap, Method, Request, Uri, header, request};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, AsSendBody, Proxy, ProxyProtocol};

use super::address::{self, Origin};
use super::credentials::Secret;
use super::routes::Access;
use super::{RegistryError, Settings};

/// Where distributions keep the certificate authorities, as one file.
const AUTHORITIES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Bytes that one read from a connection may bring.
pub(super) const READ_SIZE: usize = 256 << 10;

/// A request without a body.
#[derive(Debug)]
pub(super) struct Call<'a> {
    pub(super) method: Method,
    pub(super) uri: &'a Uri,
    pub(super) accept: Option<&'a str>,
    pub(super) authorization: Option<&'a Secret>,
    pub(super) range: Range,
}

/// Which bytes of the content are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Range {
    #[default]
    All,
    /// From this byte on.
    From(u64),
    /// From the first to the last, which is one of them.
    Of(u64, u64),
}

/// An answer.
pub(super) struct Answer {
    /// `HOST[:PORT]`, for messages.
    pub(super) host: String,
    pub(super) origin: Origin,
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Box<dyn Read + Send>,
}

impl Answer {
    /// A header's value; None when it is missing or no text.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The announced length of the body.
    pub(super) fn length(&self) -> Option<u64> {
        self.header("content-length")?.trim().parse().ok()
    }

    /// Up to `limit` bytes of the body; None when there are more.
    pub(super) fn read_body(self, limit: u64) -> Result<Option<Vec<u8>>, RegistryError> {
        let mut content = Vec::new();
        let room = limit.saturating_add(1);
        match self.body.take(room).read_to_end(&mut content) {
            Ok(_) if content.len() as u64 > limit => Ok(None),
            Ok(_) => Ok(Some(content)),
            Err(error) => Err(transfer_error(&self.host, error)),
        }
    }
}

#[derive(Debug)]
pub(super) struct Http {
    settings: Settings,
    /// The host of which certificates of nobody known are accepted. Where it leads to others, these are looked at as usual.
    unverified: Option<String>,
    /// Certificate authorities beside the usual ones.
    ca: Option<PathBuf>,
    /// By https, by direct, and by unverified.
    agents: Mutex<[[[Option<Agent>; 2]; 2]; 2]>,
    stopped: AtomicBool,
}

impl Http {
    pub(super) fn new(
        settings: Settings,
        registry: &str,
        access: &Access,
    ) -> Result<Self, RegistryError> {
        let http = Self {
            settings,
            unverified: access
                .insecure
                .then(|| address::host_of(registry).to_owned()),
            ca: access.ca.clone(),
            agents: Mutex::default(),
            stopped: AtomicBool::new(false),
        };
        for https in [false, true] {
            http.proxy(https)?;
        }
        Ok(http)
    }

    /// Interrupts every request, and refuses new ones.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
        let agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        for agent in agents.iter().flatten().flatten().flatten() {
            agent.clone().shutdown();
        }
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// Sends a request and receives the head of the answer, whatever its status.
    pub(super) fn send(&self, call: &Call<'_>) -> Result<Answer, RegistryError> {
        let mut request = Request::builder().method(call.method.clone());
        if let Some(accept) = call.accept {
            request = request.header(header::ACCEPT, accept);
        }
        if let Some(authorization) = call.authorization {
            request = request.header(header::AUTHORIZATION, authorization.expose());
        }
        match call.range {
            Range::All => {}
            Range::From(first) => {
                request = request.header(header::RANGE, format!("bytes={first}-"));
            }
            Range::Of(first, last) => {
                request = request.header(header::RANGE, format!("bytes={first}-{last}"));
            }
        }
        self.exchange(call.uri, request, ())
    }

    /// Sends a form (`application/x-www-form-urlencoded`) with POST and receives the head of the answer, whatever its status.
    pub(super) fn post(&self, uri: &Uri, form: &Secret) -> Result<Answer, RegistryError> {
        let request = Request::builder()
            .method(Method::POST)
            .header(header::ACCEPT, "application/json")
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
        self.exchange(uri, request, form.expose())
    }

    fn exchange(
        &self,
        uri: &Uri,
        request: request::Builder,
        body: impl AsSendBody,
    ) -> Result<Answer, RegistryError> {
        let Some(origin) = Origin::of(uri) else {
            return Err(RegistryError::Address {
                registry: uri.host().unwrap_or_default().to_owned(),
            });
        };
        let agent = self.agent(&origin)?;
        let host = origin.server();
        let request =
            request
                .uri(uri.clone())
                .body(body)
                .map_err(|source| RegistryError::Protocol {
                    host: host.clone(),
                    source: source.into(),
                })?;
        let outcome = agent.run(request);
        if self.is_stopped() {
            return Err(RegistryError::Stopped);
        }
        let (head, body) = outcome
            .map_err(|error| wire_error(&host, error))?
            .into_parts();
        Ok(Answer {
            host,
            origin,
            status: head.status.as_u16(),
            headers: head.headers,
            body: Box::new(body.into_with_config().limit(u64::MAX).reader()),
        })
    }

    fn agent(&self, origin: &Origin) -> Result<Agent, RegistryError> {
        let direct = address::is_direct(&origin.host, &self.settings.no_proxy);
        let mut agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_stopped() {
            return Err(RegistryError::Stopped);
        }
        let unverified = self.unverified.as_deref() == Some(origin.host.as_str());
        let slot =
            &mut agents[usize::from(origin.https)][usize::from(direct)][usize::from(unverified)];
        if let Some(agent) = slot {
            return Ok(agent.clone());
        }
        let agent = self.new_agent(origin.https, direct, unverified)?;
        *slot = Some(agent.clone());
        Ok(agent)
    }

    fn new_agent(
        &self,
        https: bool,
        direct: bool,
        unverified: bool,
    ) -> Result<Agent, RegistryError> {
        let settings = &self.settings;
        let proxy = if direct { None } else { self.proxy(https)? };
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("cista/", env!("CARGO_PKG_VERSION")))
            // Digests are those of the bytes as stored, whatever a proxy would like to do to them.
            .accept_encoding("identity")
            .proxy(proxy)
            .timeout_connect(Some(settings.connect_timeout))
            .timeout_per_read(Some(settings.idle_timeout))
            .timeout_per_write(Some(settings.idle_timeout))
            .input_buffer_size(READ_SIZE)
            .output_buffer_size(16 << 10)
            .max_idle_connections(settings.max_connections.saturating_add(2))
            .max_idle_connections_per_host(settings.max_connections.saturating_add(1));
        if https {
            let roots = root_certificates(settings, self.ca.as_deref())?;
            let tls = TlsConfig::builder()
                .root_certs(roots)
                .disable_verification(unverified);
            config = config.tls_config(tls.build());
        }
        Ok(Agent::new_with_config(config.build()))
    }

    fn proxy(&self, https: bool) -> Result<Option<Proxy>, RegistryError> {
        let (value, setting) = if https {
            (&self.settings.https_proxy, "https_proxy")
        } else {
            (&self.settings.http_proxy, "http_proxy")
        };
        let Some(value) = value.as_ref().filter(|value| !value.expose().is_empty()) else {
            return Ok(None);
        };
        match Proxy::new(value.expose()) {
            // Others than these would not be used, and the registry reached without a proxy.
            Ok(proxy) if matches!(proxy.protocol(), ProxyProtocol::Http | ProxyProtocol::Https) => {
                Ok(Some(proxy))
            }
            _ => Err(RegistryError::Proxy { setting }),
        }
    }
}

/// The certificate authorities to trust: the configured ones, else the system's, else those of Mozilla that are built in; and beside them
/// those of the registry's own file.
fn root_certificates(settings: &Settings, own: Option<&Path>) -> Result<RootCerts, RegistryError> {
    let Some(own) = own else {
        let usual = usual_certificates(settings)?;
        return Ok(usual.map_or(RootCerts::WebPki, as_roots));
    };
    let mut all = usual_certificates(settings)?.unwrap_or_default();
    all.extend(load_certificates(Some(own), &[])?);
    Ok(as_roots(all))
}

/// The configured authorities, else the system's; None where there are none.
fn usual_certificates(
    settings: &Settings,
) -> Result<Option<Vec<CertificateDer<'static>>>, RegistryError> {
    let file = settings.ca_file.as_deref();
    if file.is_some() || !settings.ca_directories.is_empty() {
        return load_certificates(file, &settings.ca_directories).map(Some);
    }
    let system = AUTHORITIES
        .iter()
        .map(Path::new)
        .find(|path| fs::metadata(path).is_ok_and(|metadata| metadata.len() > 0));
    // One bad certificate among the system's does not make the others bad.
    Ok(system
        .map(|file| rustls_native_certs::load_certs_from_paths(Some(file), None).certs)
        .filter(|certificates| !certificates.is_empty()))
}

fn load_certificates(
    file: Option<&Path>,
    directories: &[PathBuf],
) -> Result<Vec<CertificateDer<'static>>, RegistryError> {
    let mut loaded = rustls_native_certs::load_certs_from_paths(file, None);
    for directory in directories {
        let more = rustls_native_certs::load_certs_from_paths(None, Some(directory));
        loaded.certs.extend(more.certs);
        loaded.errors.extend(more.errors);
    }
    if loaded.certs.is_empty() {
        let problem = loaded
            .errors
            .first()
            .map_or_else(|| "it holds none".to_owned(), ToString::to_string);
        let first = file.or(directories.first().map(PathBuf::as_path));
        return Err(RegistryError::Authorities {
            path: first.unwrap_or(Path::new("/")).to_owned(),
            problem,
        });
    }
    Ok(loaded.certs)
}

fn as_roots(certificates: Vec<CertificateDer<'static>>) -> RootCerts {
    let certificates = certificates
        .iter()
        .map(|der| Certificate::from_der(der.as_ref()).to_owned());
    RootCerts::Specific(Arc::new(certificates.collect()))
}

/// Translates an error of making or using a connection.
fn wire_error(host: &str, error: ureq::Error) -> RegistryError {
    let host = host.to_owned();
    match error {
        ureq::Error::Io(source) => io_error(host, source),
        ureq::Error::Timeout(which) => timeout_error(host, which),
        ureq::Error::HostNotFound => RegistryError::Resolve {
            host,
            source: io::Error::new(io::ErrorKind::NotFound, "no such host"),
        },
        ureq::Error::ConnectionFailed => RegistryError::Connect {
            host,
            source: io::Error::other("no address of it answers"),
        },
        ureq::Error::Rustls(error) => tls_error(host, error),
        ureq::Error::ConnectProxyFailed(problem) => RegistryError::Connect {
            host,
            source: io::Error::other(format!("the proxy refuses: {problem}")),
        },
        other => RegistryError::Protocol {
            host,
            source: Box::new(other),
        },
    }
}

fn timeout_error(host: String, which: ureq::Timeout) -> RegistryError {
    let (phase, connecting) = match which {
        ureq::Timeout::Resolve => ("finding its address", true),
        ureq::Timeout::Connect => ("connecting", true),
        ureq::Timeout::RecvBody => ("receiving", false),
        _ => ("waiting for data", false),
    };
    RegistryError::Timeout {
        host,
        phase,
        connecting,
    }
}

fn tls_error(host: String, error: rustls::Error) -> RegistryError {
    let speaks_none = matches!(
        error,
        rustls::Error::InvalidMessage(_)
            | rustls::Error::AlertReceived(rustls::AlertDescription::ProtocolVersion)
    );
    RegistryError::Tls {
        host,
        speaks_none,
        source: Box::new(error),
    }
}

fn io_error(host: String, source: io::Error) -> RegistryError {
    use io::ErrorKind as Kind;
    if let Some(error) = source
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>())
    {
        return tls_error(host, error.clone());
    }
    match source.kind() {
        Kind::ConnectionRefused
        | Kind::HostUnreachable
        | Kind::NetworkUnreachable
        | Kind::NetworkDown
        | Kind::AddrNotAvailable
        | Kind::PermissionDenied => RegistryError::Connect { host, source },
        Kind::ConnectionReset
        | Kind::ConnectionAborted
        | Kind::BrokenPipe
        | Kind::UnexpectedEof
        | Kind::NotConnected
        | Kind::TimedOut
        | Kind::WouldBlock => RegistryError::Transfer { host, source },
        // The resolver's errors have no kind of their own.
        _ if source.to_string().contains("lookup") => RegistryError::Resolve { host, source },
        _ => RegistryError::Transfer { host, source },
    }
}

/// Translates an error of reading a body.
pub(super) fn transfer_error(host: &str, error: io::Error) -> RegistryError {
    match error.downcast::<ureq::Error>() {
        Ok(error) => wire_error(host, error),
        Err(source) => RegistryError::Transfer {
            host: host.to_owned(),
            source,
        },
    }
}
