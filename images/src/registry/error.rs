//! What can go wrong with a registry, and what the user can do about it.

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why a registry did not do what was asked. Hosts and statuses are shown, URLs are not: they may carry signatures.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The operation was stopped by its caller.
    #[error("interrupted")]
    Stopped,
    /// No thread could be started.
    #[error("cannot start a thread")]
    Thread {
        /// The system's answer.
        source: io::Error,
    },
    /// The registry's name makes no URL.
    #[error("`{registry}` cannot be part of an address")]
    Address {
        /// The registry.
        registry: String,
    },
    /// The registry must not be asked for what the store lacks.
    #[error("{what} is not in the store, and `{registry}` must not be asked for it")]
    Offline {
        /// What is missing.
        what: String,
        /// The registry.
        registry: String,
    },
    /// A proxy setting is malformed. The value may hold a password and is not shown.
    #[error("the {setting} setting is malformed: expected http://[USER:PASSWORD@]HOST:PORT")]
    Proxy {
        /// `http_proxy` or `https_proxy`.
        setting: &'static str,
    },
    /// The certificate authorities cannot be read.
    #[error("cannot read certificate authorities from `{path}`: {problem}")]
    Authorities {
        /// The file or directory.
        path: PathBuf,
        /// Why not.
        problem: String,
    },
    /// No connection could be made.
    #[error("cannot connect to `{host}`")]
    Connect {
        /// The host.
        host: String,
        /// The system's answer.
        source: io::Error,
    },
    /// The host's name has no address.
    #[error("cannot find the address of `{host}`")]
    Resolve {
        /// The host.
        host: String,
        /// The system's answer.
        source: io::Error,
    },
    /// The encrypted connection could not be made.
    #[error("cannot make a secure connection to `{host}`")]
    Tls {
        /// The host.
        host: String,
        /// The host does not speak TLS at all.
        speaks_none: bool,
        /// What is wrong.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The host is silent.
    #[error("`{host}` does not answer: {phase} took too long")]
    Timeout {
        /// The host.
        host: String,
        /// What was being waited for.
        phase: &'static str,
        /// The connection was not even made.
        connecting: bool,
    },
    /// The connection was cut.
    #[error("the connection to `{host}` was cut")]
    Transfer {
        /// The host.
        host: String,
        /// What was seen.
        source: io::Error,
    },
    /// The answer is no HTTP.
    #[error("`{host}` gives no proper HTTP answer")]
    Protocol {
        /// The host.
        host: String,
        /// What is wrong.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The host answers, but is no registry.
    #[error(
        "`{registry}` is not a container registry: it answers {status} without what registries send"
    )]
    NotARegistry {
        /// The registry as in the reference.
        registry: String,
        /// The HTTP status.
        status: u16,
    },
    /// There is no such repository or tag.
    #[error("there is no image `{wanted}` in `{repository}`{detail}")]
    UnknownImage {
        /// `REGISTRY/REPOSITORY`.
        repository: String,
        /// The tag or digest.
        wanted: String,
        /// What the registry says, after a colon; may be empty.
        detail: String,
    },
    /// The registry wants credentials, or others.
    #[error("access to `{repository}` denied {whom}{detail}")]
    Unauthorized {
        /// `REGISTRY/REPOSITORY`.
        repository: String,
        /// `to user …`, or `without credentials`.
        whom: String,
        /// Credentials were there and were refused.
        with_credentials: bool,
        /// What the registry says, after a colon; may be empty.
        detail: String,
    },
    /// Too many requests.
    #[error("`{host}` limits the rate of requests{}", wait(.retry_after))]
    RateLimited {
        /// The host.
        host: String,
        /// How long it asks to wait.
        retry_after: Option<Duration>,
    },
    /// Any other status that is not a success.
    #[error("`{host}` answers {status} to the request for {what}{detail}")]
    Status {
        /// The host.
        host: String,
        /// The HTTP status.
        status: u16,
        /// What was asked for.
        what: String,
        /// What the host says, after a colon; may be empty.
        detail: String,
        /// How long it asks to wait.
        retry_after: Option<Duration>,
    },
    /// A redirect that is not followed.
    #[error("a redirect of `{host}` is not followed: {problem}")]
    Redirect {
        /// The host that redirects.
        host: String,
        /// Why not.
        problem: &'static str,
    },
    /// The credentials cannot be read.
    #[error("cannot read the credentials for `{registry}`")]
    Credentials {
        /// The registry as in the reference.
        registry: String,
        /// Why not.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The policy forbids the image.
    #[error(transparent)]
    Policy(#[from] crate::policy::PolicyError),
    /// The configuration of registries forbids the image.
    #[error("`{reference}` is blocked by the configuration of registries")]
    Blocked {
        /// The image.
        reference: String,
    },
    /// The reference names a user of whom nothing else is known.
    #[error("there is no password for `{user}` at `{registry}`")]
    NoLogin {
        /// The registry as in the reference.
        registry: String,
        /// The user.
        user: String,
    },
    /// The token service's answer cannot be used.
    #[error("the token service `{host}` {problem}")]
    Token {
        /// Its host.
        host: String,
        /// What is wrong.
        problem: String,
    },
    /// An answer contradicts itself or the request.
    #[error("the answer of `{host}` for {what} cannot be used: {problem}")]
    Answer {
        /// The host.
        host: String,
        /// What was asked for.
        what: String,
        /// What is wrong.
        problem: String,
    },
}

fn wait(retry_after: &Option<Duration>) -> String {
    retry_after.map_or_else(String::new, |wait| {
        format!(", and asks to wait {} s", wait.as_secs())
    })
}

/// Whether and when to try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Again {
    Never,
    /// After a pause, at least this long.
    After(Option<Duration>),
}

impl RegistryError {
    /// Whether another attempt may succeed. `connected` tells whether the registry has answered before: what then fails to connect was
    /// there a moment ago, while at first a wrong name or a closed port should be reported at once.
    pub(super) fn again(&self, connected: bool) -> Again {
        match self {
            Self::Transfer { .. }
            | Self::Timeout {
                connecting: false, ..
            } => Again::After(None),
            Self::Connect { .. } | Self::Resolve { .. } | Self::Timeout { .. } if connected => {
                Again::After(None)
            }
            Self::RateLimited { retry_after, .. }
            | Self::Status {
                status: 408 | 500 | 502 | 503 | 504,
                retry_after,
                ..
            } => Again::After(*retry_after),
            _ => Again::Never,
        }
    }

    /// What the user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Tls {
                speaks_none: true, ..
            } => "the registry may speak plain http: `CISTA_ALLOW_HTTP=1` allows it, if you trust the network".to_owned(),
            Self::Tls { source, .. } if source.to_string().contains("CaUsedAsEndEntity") => {
                "the registry shows the certificate of an authority as its own: it needs one made without `CA:TRUE`".to_owned()
            }
            Self::Tls { .. } => {
                "if the registry has a certificate of your site's own authority, set `SSL_CERT_FILE` to its PEM file".to_owned()
            }
            Self::Connect { .. } | Self::Resolve { .. } | Self::Timeout { connecting: true, .. } => {
                "check the registry's name and port, and the proxy settings; `--offline` uses what the store has".to_owned()
            }
            Self::NotARegistry { .. } => {
                "check the registry's name and port: `docker://HOST:PORT/IMAGE:TAG`".to_owned()
            }
            Self::UnknownImage { .. } => "check the spelling of the image and its tag".to_owned(),
            Self::Unauthorized {
                with_credentials: false,
                ..
            } => "the image may not exist, or needs credentials: `cista login` stores them".to_owned(),
            Self::Unauthorized { .. } => {
                "check user and password, and that the user may read this image; `cista login` stores another login".to_owned()
            }
            Self::NoLogin { registry, user } => {
                format!("store it with `cista login -u {user} {registry}`, or set `CISTA_PASSWORD`")
            }
            Self::Policy(error) => return error.hint(),
            Self::Blocked { .. } => {
                "`blocked` says so in `[registries]` of `cista.toml`, or in podman's `registries.conf`".to_owned()
            }
            Self::Offline { .. } => "leave out `--offline`, or `--pull never`, to ask it".to_owned(),
            Self::RateLimited { .. } => "log in, or try again later".to_owned(),
            _ => return None,
        })
    }
}
