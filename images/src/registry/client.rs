//! One repository of a registry: authenticated requests and redirects.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ureq::http::{Method, Uri};

use super::address::{self, Origin};
use super::challenge::{self, Challenge};
use super::credentials::{Credential, Secret, Wanted};
use super::error::Again;
use super::http::{Answer, Call, Http, Range};
use super::mirrors::{self, Mirror, Observer};
use super::retry::{self, Backoff, Stop};
use super::routes::{Access, Place};
use super::throttle::{Throttle, Throttled};
use super::{Pull, RegistryError, Settings, token};
use crate::digest::Digest;
use crate::reference::RegistryReference;

/// Most redirects that are followed for one request.
const MAX_REDIRECTS: usize = 5;

/// Most tokens that are asked for in a row, none of which was good for anything, before the registry is believed to mean no.
const MAX_RENEWALS: u32 = 5;

/// Most bytes of an error's body that are read.
const MAX_ERROR: u64 = 64 << 10;

/// What is asked of a repository.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    pub(super) method: Method,
    /// Behind `/v2/REPOSITORY/`.
    pub(super) path: String,
    pub(super) accept: Option<&'static str>,
    pub(super) range: Range,
    /// For messages.
    pub(super) what: String,
}

/// A client of one repository, or of a registry as a whole where the repository is empty. Shared by the threads that fetch its blobs.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) registry: String,
    pub(super) repository: String,
    user: Option<String>,
    settings: Settings,
    /// How this host is talked to.
    access: Access,
    http: Http,
    throttle: Option<Arc<Throttle>>,
    stop: Arc<Stop>,
    /// Where the same is asked before.
    mirrors: Vec<Mirror>,
    /// Whether the registry speaks https, once it is known.
    https: Mutex<Option<bool>>,
    identity: Mutex<Identity>,
    answered: AtomicBool,
    /// How often an introduction was accepted.
    accepted: AtomicUsize,
}

/// How we introduce ourselves.
#[derive(Debug, Default)]
struct Identity {
    header: Option<Secret>,
    expires: Option<Instant>,
    challenge: Option<Challenge>,
    /// The token service that was not told our credentials, since it is not the registry's own.
    withheld_from: Option<String>,
    credential: Option<Option<Credential>>,
}

/// What there is to say after a refusal.
enum Renewal {
    /// Nothing (else).
    Nothing,
    /// A new header.
    ByUs(Secret),
    /// The header that another thread got after its own refusal.
    ByAnother(Secret),
}

impl Client {
    pub(super) fn new(
        reference: &RegistryReference,
        settings: Settings,
    ) -> Result<Self, RegistryError> {
        let (own, mirrors) = settings.routes.places(reference)?;
        let mirrors = mirrors
            .into_iter()
            .map(|place| Ok(Mirror::new(Self::of(place, None, settings.clone())?)))
            .collect::<Result<_, RegistryError>>()?;
        Ok(Self {
            mirrors,
            ..Self::of(own, reference.user.as_deref(), settings)?
        })
    }

    /// A client of a registry as a whole (`HOST[:PORT]`).
    pub(super) fn of_registry(
        registry: &str,
        user: Option<&str>,
        settings: Settings,
    ) -> Result<Self, RegistryError> {
        let place = Place {
            registry: registry.to_owned(),
            repository: String::new(),
            access: settings.routes.access(registry, ""),
        };
        Self::of(place, user, settings)
    }

    fn of(place: Place, user: Option<&str>, settings: Settings) -> Result<Self, RegistryError> {
        let access = place.access;
        Ok(Self {
            http: Http::new(settings.clone(), &place.registry, &access)?,
            registry: place.registry,
            repository: place.repository,
            user: user.map(str::to_owned),
            throttle: access.max_rate.map(|rate| Arc::new(Throttle::new(rate))),
            settings,
            access,
            stop: Arc::default(),
            mirrors: Vec::new(),
            https: Mutex::new(None),
            identity: Mutex::default(),
            answered: AtomicBool::new(false),
            accepted: AtomicUsize::new(0),
        })
    }

    /// How many connections may fetch blobs at once.
    pub(super) fn max_connections(&self) -> usize {
        let usual = self.settings.max_connections;
        self.access
            .max_connections
            .map_or(usual, |most| most.min(usual))
    }

    pub(super) fn observer(&self) -> &dyn Observer {
        self.settings.observer.as_ref()
    }

    /// Whether plain http is allowed with a host.
    fn may_be_plain(&self, host: &Origin) -> bool {
        self.settings.allow_http || self.settings.routes.access(&host.server(), "").insecure
    }

    /// Waits, unless it is stopped.
    pub(super) fn pause(&self, duration: Duration) -> Result<(), RegistryError> {
        if self.stop.pause(duration) {
            return Err(RegistryError::Stopped);
        }
        Ok(())
    }

    /// Interrupts everything; the client is of no use afterwards.
    pub(super) fn stop(&self) {
        self.stop.stop();
        self.http.stop();
        mirrors::stop(&self.mirrors);
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stop.is_stopped()
    }

    pub(super) fn backoff(&self) -> Backoff {
        Backoff::new(self.settings.retries, self.settings.retry_delay)
    }

    /// Pauses after a failure that may pass, and returns it where it will not, or not in time.
    pub(super) fn pause_after(
        &self,
        error: RegistryError,
        backoff: &mut Backoff,
    ) -> Result<(), RegistryError> {
        if self.is_stopped() {
            return Err(RegistryError::Stopped);
        }
        if matches!(
            error,
            RegistryError::Transfer { .. } | RegistryError::Timeout { .. }
        ) {
            mirrors::cut(&self.mirrors, &error);
        }
        match error.again(self.has_answered()) {
            Again::Never => Err(error),
            Again::After(asked) => match backoff.next(asked) {
                None => Err(error),
                Some(pause) if self.stop.pause(pause) => Err(RegistryError::Stopped),
                Some(_) => Ok(()),
            },
        }
    }

    /// Sends a request until it is answered with success or a final failure. HEAD requests get whatever status is final.
    pub(super) fn request(&self, ask: &Ask) -> Result<Answer, RegistryError> {
        self.check_online(&ask.what)?;
        let mut backoff = self.backoff();
        loop {
            let error = match self.attempt(ask) {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            self.pause_after(error, &mut backoff)?;
        }
    }

    /// Whether another place may be asked, after this sent something whose digest is another.
    pub(super) fn distrust_mirror(&self, what: &str) -> bool {
        mirrors::distrust(&self.mirrors, what)
    }

    /// Refuses what would go over the network when nothing may.
    fn check_online(&self, what: &str) -> Result<(), RegistryError> {
        match self.settings.pull {
            Pull::Always | Pull::Missing => Ok(()),
            Pull::Never => Err(RegistryError::Offline {
                what: what.to_owned(),
                registry: self.registry.clone(),
            }),
        }
    }

    pub(super) fn pull(&self) -> Pull {
        self.settings.pull
    }

    /// One attempt: answered with success, or a failure.
    pub(super) fn attempt(&self, ask: &Ask) -> Result<Answer, RegistryError> {
        self.check_online(&ask.what)?;
        let passing = match mirrors::attempt(&self.mirrors, ask)? {
            Ok(answer) => return Ok(answer),
            Err(passing) => passing,
        };
        match (self.own_attempt(ask), passing) {
            // Where only the mirrors can be reached, they are what is asked again.
            (
                Err(
                    RegistryError::Connect { .. }
                    | RegistryError::Resolve { .. }
                    | RegistryError::Tls { .. }
                    | RegistryError::Timeout {
                        connecting: true, ..
                    },
                ),
                Some(passing),
            ) => Err(passing),
            (outcome, _) => outcome,
        }
    }

    /// Whether this host was ever reached.
    pub(super) fn has_answered(&self) -> bool {
        self.answered.load(Ordering::Relaxed)
    }

    /// One attempt, at no mirror.
    fn own_attempt(&self, ask: &Ask) -> Result<Answer, RegistryError> {
        let mut answer = self.authenticated(ask)?;
        self.answered.store(true, Ordering::Relaxed);
        if (200..300).contains(&answer.status) {
            if let Some(throttle) = &self.throttle {
                answer.body = Box::new(Throttled {
                    inner: answer.body,
                    throttle: Arc::clone(throttle),
                    stop: Arc::clone(&self.stop),
                });
            }
            Ok(answer)
        } else {
            Err(self.failure(ask, answer))
        }
    }

    /// Introduces itself as far as the registry wants.
    fn authenticated(&self, ask: &Ask) -> Result<Answer, RegistryError> {
        let mut header = self.header()?;
        let mut renewals = 0;
        let mut accepted = self.accepted.load(Ordering::Relaxed);
        loop {
            let answer = self.any_scheme(ask, header.as_ref())?;
            // What a redirect led to has no say in who we are.
            let is_asked = answer.status == 401 && self.is_registrys(&answer);
            if !is_asked && header.is_some() {
                self.accepted.fetch_add(1, Ordering::Relaxed);
            }
            // A token that is good for a few requests may be used up by other threads before it is used here.
            let accepted_now = self.accepted.load(Ordering::Relaxed);
            if accepted_now != accepted {
                (accepted, renewals) = (accepted_now, 0);
            }
            if !is_asked || renewals == MAX_RENEWALS {
                return Ok(answer);
            }
            let challenges = challenge::parse(
                answer
                    .headers
                    .get_all("www-authenticate")
                    .iter()
                    .filter_map(|value| value.to_str().ok()),
            );
            let renewed = match self.authenticate(challenges, header.as_ref())? {
                Renewal::Nothing => return Ok(answer),
                Renewal::ByAnother(renewed) => renewed,
                Renewal::ByUs(renewed) => {
                    renewals += 1;
                    renewed
                }
            };
            // The small body is read so that the connection can be used again.
            let _ = answer.read_body(MAX_ERROR);
            header = Some(renewed);
        }
    }

    /// The header to send, renewed when it has expired.
    fn header(&self) -> Result<Option<Secret>, RegistryError> {
        let mut identity = self.lock_identity();
        if identity
            .expires
            .is_some_and(|expires| expires <= Instant::now())
            && let Some(challenge) = identity.challenge.clone()
        {
            self.answer_challenge(&challenge, &mut identity)?;
        }
        Ok(identity.header.clone())
    }

    /// Whether an answer comes from the registry itself, and not from where it redirected to.
    fn is_registrys(&self, answer: &Answer) -> bool {
        self.origin().is_some_and(|origin| origin == answer.origin)
    }

    /// A new header after `used` was refused.
    fn authenticate(
        &self,
        challenges: Vec<Challenge>,
        used: Option<&Secret>,
    ) -> Result<Renewal, RegistryError> {
        let mut identity = self.lock_identity();
        if let Some(header) = identity.header.clone()
            && Some(&header) != used
        {
            return Ok(Renewal::ByAnother(header));
        }
        let is_bearer = |challenge: &Challenge| matches!(challenge, Challenge::Bearer { .. });
        let Some(challenge) = challenges
            .iter()
            .find(|challenge| is_bearer(challenge))
            .or(challenges.first())
        else {
            return Ok(Renewal::Nothing);
        };
        if used.is_some() && *challenge == Challenge::Basic {
            return Ok(Renewal::Nothing);
        }
        self.answer_challenge(challenge, &mut identity)?;
        Ok(match identity.header.clone() {
            Some(header) => Renewal::ByUs(header),
            None => Renewal::Nothing,
        })
    }

    fn answer_challenge(
        &self,
        challenge: &Challenge,
        identity: &mut Identity,
    ) -> Result<(), RegistryError> {
        let mut credential = match &identity.credential {
            Some(credential) => credential.clone(),
            None => self.lookup(&self.registry, false)?,
        };
        identity.credential = Some(credential.clone());
        identity.challenge = Some(challenge.clone());
        match challenge {
            Challenge::Basic => {
                self.require_login(&credential)?;
                identity.header = credential.as_ref().and_then(token::basic);
            }
            Challenge::Bearer {
                realm,
                service,
                scope,
            } => {
                let unusable = |problem: &str| RegistryError::Token {
                    host: token::realm_host(realm).to_owned(),
                    problem: problem.to_owned(),
                };
                let service_origin =
                    token::realm_origin(realm).ok_or_else(|| unusable("has no usable address"))?;
                let registry_origin = self
                    .origin()
                    .ok_or_else(|| unusable("belongs to no usable registry"))?;
                // A token opens what a password opens.
                if !self.may_ask_for_tokens(&registry_origin, &service_origin) {
                    return Err(unusable("would be asked without TLS"));
                }
                let own = address::is_own_realm(&registry_origin, &service_origin);
                if own && credential.is_none() {
                    // enroot's users have their logins under the token service's name.
                    credential = self.lookup(token::realm_host(realm), true)?;
                    identity.credential = Some(credential.clone());
                }
                self.require_login(&credential)?;
                identity.withheld_from =
                    (!own && credential.is_some()).then(|| token::realm_host(realm).to_owned());
                let default_scope = format!("repository:{}:pull", self.repository);
                let want = token::Want {
                    realm,
                    service: service.as_deref(),
                    scope: scope
                        .as_deref()
                        .or(Some(default_scope.as_str()).filter(|_| !self.repository.is_empty())),
                };
                let shown = credential.as_ref().filter(|_| own);
                let fetched = token::fetch(&self.http, want, shown, |from, to| {
                    self.credential_behind(&registry_origin, from, to)
                });
                match fetched {
                    Ok(token) => {
                        identity.header = Some(token.header);
                        identity.expires = Some(token.expires);
                    }
                    // Its refusal is the registry's.
                    Err(RegistryError::Status {
                        status: 400 | 401 | 403,
                        ..
                    }) => identity.header = None,
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Whether a token service is reached as safely as the registry has to be.
    fn may_ask_for_tokens(&self, registry: &Origin, service: &Origin) -> bool {
        let may_be_plain = !registry.https
            && (self.may_be_plain(service)
                || self.access.insecure && service.host == registry.host
                || service.is_loopback());
        service.https || may_be_plain
    }

    /// The credential for where a token service redirects to: its own, where it belongs to the registry, as with netrc files.
    fn credential_behind(
        &self,
        registry: &Origin,
        from: &Uri,
        to: &Uri,
    ) -> Result<Option<Credential>, RegistryError> {
        let redirect = |problem| RegistryError::Redirect {
            host: from.host().unwrap_or_default().to_owned(),
            problem,
        };
        let from = Origin::of(from).ok_or_else(|| redirect("it comes from nowhere"))?;
        let may_be_plain = Origin::of(to).is_some_and(|to| self.may_be_plain(&to));
        if let Some(problem) = address::redirect_problem(&from, to, may_be_plain) {
            return Err(redirect(problem));
        }
        match Origin::of(to).filter(|to| address::is_own_realm(registry, to)) {
            Some(own) => self.lookup(&own.server(), true),
            None => Ok(None),
        }
    }

    /// Refuses to go on anonymously as a user whom the reference names.
    fn require_login(&self, credential: &Option<Credential>) -> Result<(), RegistryError> {
        match (&self.user, credential) {
            (Some(user), None) => Err(RegistryError::NoLogin {
                registry: self.registry.clone(),
                user: user.clone(),
            }),
            _ => Ok(()),
        }
    }

    fn lookup(
        &self,
        server: &str,
        token_service: bool,
    ) -> Result<Option<Credential>, RegistryError> {
        let wanted = Wanted {
            server,
            repository: &self.repository,
            user: self.user.as_deref(),
            token_service,
        };
        self.settings
            .credentials
            .lookup(wanted)
            .map_err(|source| RegistryError::Credentials {
                registry: server.to_owned(),
                source,
            })
    }

    fn lock_identity(&self) -> std::sync::MutexGuard<'_, Identity> {
        self.identity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn decided_scheme(&self) -> Option<bool> {
        *self.https.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn origin(&self) -> Option<Origin> {
        let https = self.decided_scheme().unwrap_or(true);
        Origin::of(&self.uri(https, "").ok()?)
    }

    fn uri(&self, https: bool, path: &str) -> Result<Uri, RegistryError> {
        let scheme = if https { "https" } else { "http" };
        let repository = match self.repository.as_str() {
            "" => String::new(),
            repository => format!("{repository}/"),
        };
        format!("{scheme}://{}/v2/{repository}{path}", self.registry)
            .parse()
            .map_err(|_| RegistryError::Address {
                registry: self.registry.clone(),
            })
    }

    /// Finds out with the first request whether the registry speaks https. Other schemes than https are tried only where they are allowed:
    /// on loopback addresses, where it is usual, http first; elsewhere https first, and http only when there is no https, not when
    /// there is one with a bad certificate.
    fn any_scheme(&self, ask: &Ask, header: Option<&Secret>) -> Result<Answer, RegistryError> {
        if let Some(https) = self.decided_scheme() {
            return self.follow(https, ask, header);
        }
        let loopback = address::is_loopback(address::host_of(&self.registry));
        let allow_http = self.settings.allow_http || self.access.insecure;
        let (first, second) = match (loopback, allow_http) {
            (true, _) => (false, Some(true)),
            (false, true) => (true, Some(false)),
            (false, false) => (true, None),
        };
        let answer = self.follow(first, ask, header);
        let is_wrong = match &answer {
            // What TLS servers say to plain http.
            Ok(answer) => !first && answer.status == 400,
            Err(error) => match error {
                RegistryError::Tls { speaks_none, .. } => *speaks_none,
                RegistryError::Connect { .. }
                | RegistryError::Protocol { .. }
                | RegistryError::Transfer { .. }
                | RegistryError::Timeout {
                    connecting: true, ..
                } => true,
                _ => false,
            },
        };
        let (https, answer) = match second {
            Some(second) if is_wrong => match self.follow(second, ask, header) {
                Err(
                    RegistryError::Connect { .. }
                    | RegistryError::Protocol { .. }
                    | RegistryError::Transfer { .. }
                    | RegistryError::Timeout { .. }
                    | RegistryError::Tls {
                        speaks_none: true, ..
                    },
                ) => (first, answer),
                other => (second, other),
            },
            _ => (first, answer),
        };
        if answer.is_ok() {
            *self.https.lock().unwrap_or_else(PoisonError::into_inner) = Some(https);
        }
        answer
    }

    /// Sends a request and follows redirects; the header goes to the registry alone.
    fn follow(
        &self,
        https: bool,
        ask: &Ask,
        header: Option<&Secret>,
    ) -> Result<Answer, RegistryError> {
        let mut uri = self.uri(https, &ask.path)?;
        let registry = Origin::of(&uri);
        for _ in 0..=MAX_REDIRECTS {
            let here = Origin::of(&uri);
            let answer = self.http.send(&Call {
                method: ask.method.clone(),
                uri: &uri,
                accept: ask.accept,
                authorization: header.filter(|_| here.is_some() && here == registry),
                range: ask.range,
            })?;
            if !matches!(answer.status, 301 | 302 | 303 | 307 | 308) {
                return Ok(answer);
            }
            let redirect = |problem| RegistryError::Redirect {
                host: answer.host.clone(),
                problem,
            };
            let location = answer
                .header("location")
                .ok_or_else(|| redirect("it names no target"))?;
            let target = address::resolve_location(&uri, location)
                .ok_or_else(|| redirect("its target is malformed"))?;
            let here = here.ok_or_else(|| redirect("it comes from nowhere"))?;
            let may_be_plain = Origin::of(&target).is_some_and(|target| self.may_be_plain(&target));
            if let Some(problem) = address::redirect_problem(&here, &target, may_be_plain) {
                return Err(redirect(problem));
            }
            let _ = answer.read_body(MAX_ERROR);
            uri = target;
        }
        Err(RegistryError::Redirect {
            host: self.registry.clone(),
            problem: "there are too many in a row",
        })
    }

    /// What an answer that is no success means.
    fn failure(&self, ask: &Ask, answer: Answer) -> RegistryError {
        let (status, host) = (answer.status, answer.host.clone());
        let is_registrys = self.is_registrys(&answer);
        let retry_after = retry::asked_pause(&answer);
        let is_registrys_own = answer.header("docker-distribution-api-version").is_some();
        let body = answer
            .read_body(MAX_ERROR)
            .ok()
            .flatten()
            .unwrap_or_default();
        let stated = stated_errors(&body);
        let detail = stated
            .as_deref()
            .filter(|text| !text.is_empty())
            .map_or_else(String::new, |text| format!(": {text}"));
        let repository = match self.repository.as_str() {
            "" => self.registry.clone(),
            repository => format!("{}/{repository}", self.registry),
        };
        match status {
            401 | 403 if is_registrys => self.unauthorized(repository, detail),
            404 if ask.path.starts_with("manifests/") => {
                if is_registrys_own || stated.is_some() || ask.method == Method::HEAD {
                    RegistryError::UnknownImage {
                        repository,
                        wanted: ask.path.trim_start_matches("manifests/").to_owned(),
                        detail,
                    }
                } else {
                    RegistryError::NotARegistry {
                        registry: self.registry.clone(),
                        status,
                    }
                }
            }
            429 => RegistryError::RateLimited { host, retry_after },
            _ => RegistryError::Status {
                host,
                status,
                what: ask.what.clone(),
                detail,
                retry_after,
            },
        }
    }

    fn unauthorized(&self, repository: String, detail: String) -> RegistryError {
        let identity = self.lock_identity();
        let shown = identity
            .credential
            .as_ref()
            .and_then(Option::as_ref)
            .map(Credential::whom);
        let with_credentials = shown.is_some();
        let whom = match (shown, &identity.withheld_from) {
            (Some(_), Some(realm)) => {
                format!(
                    "without credentials, which were not sent since the token service `{realm}` is not the registry's own"
                )
            }
            (Some(whom), None) => whom,
            (None, _) => "without credentials".to_owned(),
        };
        RegistryError::Unauthorized {
            repository,
            whom,
            with_credentials,
            detail,
        }
    }

    /// Whether the registry has asked who we are.
    pub(super) fn was_asked(&self) -> bool {
        self.lock_identity().challenge.is_some()
    }

    /// Begins to receive bytes of a blob.
    pub(super) fn open_blob(&self, digest: Digest, range: Range) -> Result<Answer, RegistryError> {
        self.attempt(&Ask {
            method: Method::GET,
            path: format!("blobs/{digest}"),
            accept: None,
            range,
            what: format!("blob {digest}"),
        })
    }
}

/// The messages of an error body (distribution specification, "Error Codes"), fit to be shown; None when it is none.
fn stated_errors(body: &[u8]) -> Option<String> {
    let parsed: serde_json::Value = serde_json::from_slice(body).ok()?;
    let messages: Vec<&str> = parsed
        .get("errors")?
        .as_array()?
        .iter()
        .filter_map(|error| {
            error
                .get("message")
                .and_then(serde_json::Value::as_str)
                .filter(|text| !text.is_empty())
                .or_else(|| error.get("code").and_then(serde_json::Value::as_str))
        })
        .collect();
    let text: String = messages
        .join("; ")
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(300)
        .collect();
    Some(text)
}
