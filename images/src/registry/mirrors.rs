//! The mirrors of a repository: asked in their order before the repository itself, and given up when they fail.
//!
//! A mirror that lacks something (404), refuses us or is busy is passed over for that request: it may be behind, or hold only a part. One that
//! cannot be reached is not asked again, and neither is one that fails too often or sends what is not what was asked for, so that a dead
//! mirror costs one time limit and not one for each layer. There is one attempt: the next place is the second.

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};

use super::RegistryError;
use super::client::{Ask, Client};
use super::http::Answer;

/// Failures after which a mirror is given up.
const MAX_FAILURES: u32 = 5;

/// Is told what does not stop anything.
pub trait Observer: Send + Sync + fmt::Debug {
    /// A mirror (`HOST[:PORT]/REPOSITORY`) is not asked any more.
    fn mirror_failed(&self, mirror: &str, error: &RegistryError);
}

/// Looks away.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unobserved;

impl Observer for Unobserved {
    fn mirror_failed(&self, _: &str, _: &RegistryError) {}
}

/// A mirror and how often it has failed.
#[derive(Debug)]
pub(super) struct Mirror {
    client: Client,
    failures: AtomicU32,
}

impl Mirror {
    pub(super) fn new(client: Client) -> Self {
        Self {
            client,
            failures: AtomicU32::new(0),
        }
    }

    fn is_alive(&self) -> bool {
        self.failures.load(Ordering::Relaxed) < MAX_FAILURES
    }

    /// Counts failures, and tells when they are too many.
    fn fail(&self, by: u32, error: &RegistryError) {
        let before = self.failures.fetch_add(by, Ordering::Relaxed);
        if before < MAX_FAILURES && before.saturating_add(by) >= MAX_FAILURES {
            let name = format!("{}/{}", self.client.registry, self.client.repository);
            self.client.observer().mirror_failed(&name, error);
        }
    }
}

/// Asks the mirrors that are left. Where none of them has an answer: the failure of one that may well answer when asked again.
pub(super) fn attempt(
    mirrors: &[Mirror],
    ask: &Ask,
) -> Result<Result<Answer, Option<RegistryError>>, RegistryError> {
    let mut passing = None;
    for mirror in mirrors.iter().filter(|mirror| mirror.is_alive()) {
        let error = match mirror.client.attempt(ask) {
            Ok(answer) => return Ok(Ok(answer)),
            Err(error) => error,
        };
        match error {
            RegistryError::Stopped | RegistryError::Thread { .. } => return Err(error),
            RegistryError::UnknownImage { .. }
            | RegistryError::NotARegistry { status: 404, .. }
            | RegistryError::Status { status: 404, .. } => {}
            // What was asked for is longer than what is here: it is another thing.
            RegistryError::Status { status: 416, .. } => mirror.fail(MAX_FAILURES, &error),
            RegistryError::RateLimited { .. }
            | RegistryError::Status { .. }
            | RegistryError::Transfer { .. } => {
                mirror.fail(1, &error);
                passing = passing.or(Some(error).filter(|_| mirror.is_alive()));
            }
            RegistryError::Connect { host, source } if mirror.client.has_answered() => {
                // It was there a moment ago.
                let error = RegistryError::Transfer { host, source };
                mirror.fail(1, &error);
                passing = passing.or(Some(error).filter(|_| mirror.is_alive()));
            }
            error => mirror.fail(MAX_FAILURES, &error),
        }
    }
    Ok(Err(passing))
}

/// The mirror that is in use has cut off an answer.
pub(super) fn cut(mirrors: &[Mirror], error: &RegistryError) {
    if let Some(mirror) = mirrors.iter().find(|mirror| mirror.is_alive()) {
        mirror.fail(1, error);
    }
}

/// The mirror that is in use has sent what it should not. Whether there was one: then the next place may be asked.
pub(super) fn distrust(mirrors: &[Mirror], what: &str) -> bool {
    let Some(mirror) = mirrors.iter().find(|mirror| mirror.is_alive()) else {
        return false;
    };
    let error = RegistryError::Answer {
        host: mirror.client.registry.clone(),
        what: what.to_owned(),
        problem: "its digest is another".to_owned(),
    };
    mirror.fail(MAX_FAILURES, &error);
    true
}

/// Interrupts all.
pub(super) fn stop(mirrors: &[Mirror]) {
    for mirror in mirrors {
        mirror.client.stop();
    }
}
