//! The client of the OCI distribution specification: `docker://` references become images.
//!
//! Follows "Pulling manifests" and "Pulling blobs" of the distribution specification 1.1 and the token authentication of the Distribution
//! project. Synchronous: threads and blocking sockets, no runtime. The files, from the wire up:
//!
//! - `http.rs`: connections: TLS, proxies, time limits; one request, no redirect followed
//! - `address.rs`: what URLs say about hosts; which redirects are safe
//! - `retry.rs`: what is worth another attempt, and when
//! - `challenge.rs`, `token.rs`, `credentials.rs`: who we are, and how a registry is told
//! - `client.rs`: one repository: authenticated requests, redirects
//! - `routes.rs`: which hosts are asked for an image, and how; `mirrors.rs`: those that are asked first; `throttle.rs`: how fast
//! - `signatures.rs`: the signatures of an image, where a policy asks for them
//! - `login.rs`: trying a login
//! - `documents.rs`: its indexes, manifests and configs
//! - `blob.rs`: one request for a part of a blob
//! - `incoming.rs`: a blob on its way, in parts; `download.rs`: the connections that fetch them, right of way, resuming
//! - `follow.rs`: readers of blobs that are on their way, or in the store
//!
//! Two rules hold everywhere. Credentials go to the registry they belong to, and to its token service, never along a redirect. And no
//! network operation runs on the caller's thread, so that a caller is free at once when it is interrupted.

mod address;
mod blob;
mod challenge;
mod client;
mod credentials;
mod documents;
mod download;
mod error;
mod follow;
mod http;
mod incoming;
mod login;
mod mirrors;
mod retry;
mod routes;
mod signatures;
mod throttle;
mod token;

use std::io::Read;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::time::Duration;

pub use credentials::{Anonymous, Credential, Credentials, Fixed, Secret, Wanted};
pub use error::RegistryError;
pub use login::{Welcome, check_login};
pub use mirrors::{Observer, Unobserved};
pub use routes::{Access, Location, Mirror, Prefix, Routes, Rule, Serves};

use crate::cancel::{Cancel, Cancelled};
use crate::digest::Digest;
use crate::platform::Platform;
use crate::policy::Policy;
use crate::reference::RegistryReference;
use crate::source::resolve;
use crate::source::{ResolvedImage, Source, SourceError, Task};
use crate::store::Store;

use client::Client;
use download::Downloads;

/// How often a waiting caller looks whether it was cancelled.
const CANCEL_INTERVAL: Duration = Duration::from_millis(100);

/// How registries are reached. The caller fills it from its configuration; nothing here reads the environment.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Plain http is allowed, for every registry. Loopback addresses always may.
    pub allow_http: bool,
    /// PEM file of the certificate authorities to trust instead of the system's (`SSL_CERT_FILE`).
    pub ca_file: Option<PathBuf>,
    /// Directories of such PEM files (`SSL_CERT_DIR`), in addition to the file.
    pub ca_directories: Vec<PathBuf>,
    /// Proxy for https: `http://[USER:PASSWORD@]HOST:PORT` (`https_proxy`).
    pub https_proxy: Option<Secret>,
    /// Proxy for http (`http_proxy`).
    pub http_proxy: Option<Secret>,
    /// Hosts that are reached directly, separated by commas: names with all below them, addresses, networks, `*` (`no_proxy`).
    pub no_proxy: String,
    /// How long a connection may take to be made, with name resolution and TLS.
    pub connect_timeout: Duration,
    /// How long a connection may stay silent.
    pub idle_timeout: Duration,
    /// How often one request or blob is tried again without progress.
    pub retries: u32,
    /// The pause before the first of these attempts, which doubles with each, up to 15 s.
    pub retry_delay: Duration,
    /// How many connections fetch blobs at once, each a blob or a part of one.
    pub max_connections: usize,
    /// Who we are.
    pub credentials: Arc<dyn Credentials>,
    /// When the registry is asked.
    pub pull: Pull,
    /// Registries, or parts of them, that are reached in another way than the rest.
    pub routes: Arc<Routes>,
    /// Which images may be used.
    pub policy: Arc<Policy>,
    /// Is told what goes wrong without stopping anything.
    pub observer: Arc<dyn Observer>,
}

/// When a registry is asked, and when what the store knows has to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pull {
    /// What a tag stands for is asked each time; the rest when the store lacks it.
    #[default]
    Always,
    /// Only what the store does not know is asked: a tag stands for what it did last.
    Missing,
    /// Never: what the store does not have cannot be had.
    Never,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            allow_http: false,
            ca_file: None,
            ca_directories: Vec::new(),
            https_proxy: None,
            http_proxy: None,
            no_proxy: String::new(),
            connect_timeout: Duration::from_secs(20),
            idle_timeout: Duration::from_secs(60),
            retries: 6,
            retry_delay: Duration::from_millis(250),
            max_connections: 10,
            credentials: Arc::new(Anonymous),
            pull: Pull::default(),
            routes: Arc::default(),
            policy: Arc::default(),
            observer: Arc::new(Unobserved),
        }
    }
}

/// An image in a registry.
#[derive(Debug)]
pub struct RegistrySource {
    reference: RegistryReference,
    client: Arc<Client>,
    store: Option<Arc<Store>>,
    policy: Arc<Policy>,
    downloads: Downloads,
}

impl RegistrySource {
    /// A source for a reference. Touches no network yet.
    ///
    /// # Errors
    ///
    /// [`RegistryError::Proxy`] when a proxy setting is malformed; [`RegistryError::Policy`] and [`RegistryError::Blocked`] when the image may
    /// not be used.
    pub fn new(
        reference: RegistryReference,
        settings: &crate::source::Settings,
    ) -> Result<Self, SourceError> {
        let policy = Arc::clone(&settings.registry.policy);
        policy
            .check_reference(&reference)
            .map_err(RegistryError::Policy)?;
        let client = Arc::new(Client::new(&reference, settings.registry.clone())?);
        let downloads = Downloads::new(Arc::clone(&client), client.max_connections());
        Ok(Self {
            reference,
            client,
            store: settings.store.clone(),
            policy,
            downloads,
        })
    }

    /// Runs a network operation on a thread of its own and waits for it, or for the caller's wish to stop.
    fn interruptible<T: Send + 'static>(
        &self,
        task: Task<'_>,
        operation: impl FnOnce(Lookup) -> Result<T, SourceError> + Send + 'static,
    ) -> Result<T, SourceError> {
        let lookup = Lookup {
            client: Arc::clone(&self.client),
            store: self.store.clone(),
            policy: Arc::clone(&self.policy),
        };
        wait_for(&self.client, task.cancel, move || operation(lookup))
    }
}

/// Runs an operation of a client on a thread of its own and waits for it, or for the caller's wish to stop.
fn wait_for<T: Send + 'static>(
    client: &Client,
    cancel: &Cancel,
    operation: impl FnOnce() -> Result<T, SourceError> + Send + 'static,
) -> Result<T, SourceError> {
    cancel.check()?;
    let (sender, receiver) = mpsc::sync_channel(1);
    let thread = std::thread::Builder::new()
        .name("registry".to_owned())
        .spawn(move || {
            // The receiver is gone when the caller was interrupted.
            let _ = sender.send(operation());
        })
        .map_err(|source| RegistryError::Thread { source })?;
    loop {
        match receiver.recv_timeout(CANCEL_INTERVAL) {
            Ok(outcome) => {
                // A container can be started only by a process of one thread, so the caller must not go on beside this one.
                let _ = thread.join();
                return outcome;
            }
            Err(mpsc::RecvTimeoutError::Timeout) if cancel.is_cancelled() => {
                client.stop();
                return Err(Cancelled.into());
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            // The thread ended without an answer: it panicked, which is reported where it happened.
            Err(mpsc::RecvTimeoutError::Disconnected) => return Err(Cancelled.into()),
        }
    }
}

/// What finding an image needs, on the thread that does it.
struct Lookup {
    client: Arc<Client>,
    store: Option<Arc<Store>>,
    policy: Arc<Policy>,
}

impl Lookup {
    /// Checks that the policy allows an image that was found. Every way to an image leads through here.
    fn allow(
        &self,
        reference: &RegistryReference,
        top: Digest,
        manifest: Digest,
    ) -> Result<(), SourceError> {
        signatures::check(&self.documents(), &self.policy, reference, top, manifest)
    }

    fn documents(&self) -> documents::CachedDocuments<'_> {
        documents::CachedDocuments {
            client: &self.client,
            store: self.store.as_deref(),
        }
    }
}

impl Source for RegistrySource {
    fn resolve(&self, platform: &Platform, task: Task<'_>) -> Result<ResolvedImage, SourceError> {
        let (reference, platform) = (self.reference.clone(), platform.clone());
        let image = self.interruptible(task, move |lookup| {
            let documents = lookup.documents();
            let top = documents.top(&reference, None)?;
            let top_digest = top.digest;
            let image = resolve::resolve(&documents, top, &platform, reference.canonical())?;
            lookup.allow(&reference, top_digest, image.digest.unwrap_or(top_digest))?;
            Ok(image)
        })?;
        if let (Some(store), Some(digest)) = (&self.store, &image.digest) {
            store.note_use(digest);
        }
        resolve::announce(&image, task);
        Ok(image)
    }

    fn digest(&self, platform: &Platform, task: Task<'_>) -> Result<Option<Digest>, SourceError> {
        let (reference, platform) = (self.reference.clone(), platform.clone());
        self.interruptible(task, move |lookup| {
            let documents = lookup.documents();
            // A manifest's digest is enough; only an index has to be looked into.
            let head = documents.head(&reference)?;
            if let Some(digest) = head.and_then(|head| head.manifest()) {
                lookup.allow(&reference, digest, digest)?;
                return Ok(Some(digest));
            }
            let top = documents.top(&reference, head)?;
            let top_digest = top.digest;
            let (fetched, _) =
                resolve::find_manifest(&documents, top, &platform, &reference.canonical())?;
            lookup.allow(&reference, top_digest, fetched.digest)?;
            Ok(Some(fetched.digest))
        })
    }

    fn open_layer<'a>(
        &'a self,
        image: &ResolvedImage,
        layer: usize,
        task: Task<'a>,
    ) -> Result<Box<dyn Read + Send + 'a>, SourceError> {
        task.cancel.check()?;
        self.downloads.open(image, layer, self.store.as_ref(), task)
    }

    fn goes_on_elsewhere(&self) -> bool {
        if self.client.pull() == Pull::Never {
            return false;
        }
        let was_stored = self.downloads.forget_failures();
        was_stored || self.client.distrust_mirror("a layer")
    }
}

impl Drop for RegistrySource {
    fn drop(&mut self) {
        self.client.stop();
        self.downloads.finish();
    }
}
