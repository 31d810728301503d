//! Which images of registries may be used: registries and parts of them, digests rather than tags, signatures.
//!
//! A policy is a list of [`Rules`], each of one author, and all of them have to be satisfied: so a user may ask for more than the
//! administrator, never for less. What a policy is about is the name that the user gives an image, wherever mirrors take it from.
//!
//! It keeps users from mistakes and from images that nobody vouches for. It does not lock them in: a user can run a file of any origin.

mod signature;

pub use signature::{Key, KeyError};
pub(crate) use signature::{Signature, SignatureManifest};

use crate::digest::Digest;
use crate::reference::RegistryReference;
use crate::registry::Prefix;

/// What one author demands.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Where it is written, for messages.
    pub origin: String,
    /// Registries, or parts of them, that images may come from; None for all.
    pub registries: Option<Vec<Prefix>>,
    /// Images that have to be named by their digest.
    pub pinned: Scope,
    /// Images that have to be signed. Each entry that fits an image has to be satisfied.
    pub signed: Vec<Signed>,
}

/// Some of all images.
#[derive(Clone, Debug, Default)]
pub enum Scope {
    /// None of them.
    #[default]
    Nothing,
    /// All of them.
    Everything,
    /// Those of these registries or parts of registries.
    Of(Vec<Prefix>),
}

impl Scope {
    fn holds(&self, reference: &RegistryReference) -> bool {
        match self {
            Self::Nothing => false,
            Self::Everything => true,
            Self::Of(prefixes) => prefixes.iter().any(|prefix| prefix.matches(reference)),
        }
    }
}

/// Signatures that are demanded.
#[derive(Clone, Debug)]
pub struct Signed {
    /// Of which images.
    pub images: Scope,
    /// One of these has to have signed.
    pub keys: Vec<Key>,
    /// What the signature has to say of the image's name.
    pub identity: Identity,
}

/// What a signature says of the name of its image (`critical.identity.docker-reference`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Identity {
    /// The name that the image is asked for by, tag and digest left aside: what is signed as one image cannot pass for another.
    #[default]
    Repository,
    /// Anything: for images that were copied to another registry with their signatures.
    Any,
}

/// All that is demanded.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// All of these have to be satisfied.
    pub rules: Vec<Rules>,
}

/// Why an image may not be used.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// Its registry, or this part of it, is not among those that are allowed.
    #[error("the policy in `{origin}` does not allow `{reference}`")]
    NotAllowed {
        /// The image.
        reference: String,
        /// Where that is written.
        origin: String,
    },
    /// It is named by a tag.
    #[error("the policy in `{origin}` demands a digest in place of the tag in `{reference}`")]
    NotPinned {
        /// The image.
        reference: String,
        /// Where that is written.
        origin: String,
    },
    /// There is no good signature.
    #[error(
        "the policy in `{origin}` demands a signature of `{reference}` ({digest}), and {problem}"
    )]
    NotSigned {
        /// The image.
        reference: String,
        /// Its digest.
        digest: Digest,
        /// Where that is written.
        origin: String,
        /// What there is instead.
        problem: String,
    },
}

impl PolicyError {
    /// What the user can do about it.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::NotPinned { .. } => Some(
                "name it as `IMAGE@sha256:…`; `cista digest` prints what a tag stands for"
                    .to_owned(),
            ),
            Self::NotAllowed { .. } => {
                Some("`registries` of the policy lists what is allowed".to_owned())
            }
            Self::NotSigned { .. } => None,
        }
    }
}

impl Policy {
    /// The part that is about where images come from alone: for asking what a tag stands for, without using it.
    #[must_use]
    pub fn of_origins(&self) -> Self {
        let only_origins = |rules: &Rules| Rules {
            pinned: Scope::Nothing,
            signed: Vec::new(),
            ..rules.clone()
        };
        Self {
            rules: self.rules.iter().map(only_origins).collect(),
        }
    }

    /// Checks what the name of an image tells.
    ///
    /// # Errors
    ///
    /// [`PolicyError::NotAllowed`], [`PolicyError::NotPinned`].
    pub fn check_reference(&self, reference: &RegistryReference) -> Result<(), PolicyError> {
        for rules in &self.rules {
            let (shown, origin) = (|| reference.canonical(), || rules.origin.clone());
            let is_allowed = rules
                .registries
                .as_ref()
                .is_none_or(|allowed| allowed.iter().any(|prefix| prefix.matches(reference)));
            if !is_allowed {
                return Err(PolicyError::NotAllowed {
                    reference: shown(),
                    origin: origin(),
                });
            }
            if reference.digest.is_none() && rules.pinned.holds(reference) {
                return Err(PolicyError::NotPinned {
                    reference: shown(),
                    origin: origin(),
                });
            }
        }
        Ok(())
    }

    /// Whether an image needs a signature.
    pub(crate) fn wants_signature(&self, reference: &RegistryReference) -> bool {
        self.demands(reference).next().is_some()
    }

    fn demands<'a>(
        &'a self,
        reference: &'a RegistryReference,
    ) -> impl Iterator<Item = (&'a Rules, &'a Signed)> {
        self.rules.iter().flat_map(move |rules| {
            rules
                .signed
                .iter()
                .filter(move |signed| signed.images.holds(reference))
                .map(move |signed| (rules, signed))
        })
    }

    /// Checks the signatures of an image with a certain digest.
    ///
    /// # Errors
    ///
    /// [`PolicyError::NotSigned`].
    pub(crate) fn check_signatures(
        &self,
        reference: &RegistryReference,
        digest: Digest,
        signatures: &[Signature],
    ) -> Result<(), PolicyError> {
        for (rules, signed) in self.demands(reference) {
            let mut problem = "there is none".to_owned();
            let is_good = signatures.iter().any(|signature| {
                let checked = signature.check(reference, digest, &signed.keys, signed.identity);
                checked.map_err(|why| problem = why).is_ok()
            });
            if !is_good {
                return Err(PolicyError::NotSigned {
                    reference: reference.canonical(),
                    digest,
                    origin: rules.origin.clone(),
                    problem,
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(registries: Option<&[&str]>, pinned: Scope) -> Rules {
        Rules {
            origin: "p".to_owned(),
            registries: registries.map(|all| all.iter().map(|one| one.parse().unwrap()).collect()),
            pinned,
            signed: Vec::new(),
        }
    }

    fn outcome(policy: &Policy, name: &str) -> &'static str {
        match policy.check_reference(&name.parse().unwrap()) {
            Ok(()) => "fine",
            Err(PolicyError::NotAllowed { .. }) => "not allowed",
            Err(PolicyError::NotPinned { .. }) => "not pinned",
            Err(PolicyError::NotSigned { .. }) => "not signed",
        }
    }

    #[test]
    fn every_author_is_obeyed() {
        let pinned = Scope::Of(vec!["docker.io".parse().unwrap()]);
        let policy = Policy {
            rules: vec![
                rules(Some(&["quay.io/team", "docker.io", "*.corp.org"]), pinned),
                rules(Some(&["quay.io", "docker.io/library"]), Scope::Nothing),
            ],
        };
        let digest = format!("ubuntu@sha256:{}", "0".repeat(64));
        for (name, expected) in [
            ("quay.io/team/app:1", "fine"),
            ("quay.io/teams/app:1", "not allowed"),
            ("a.corp.org/x", "not allowed"),
            ("ubuntu", "not pinned"),
            (digest.as_str(), "fine"),
            ("nvidia/cuda", "not pinned"),
            ("evil.org/quay.io/team/app", "not allowed"),
        ] {
            assert_eq!(outcome(&policy, name), expected, "{name}");
        }
        assert_eq!(outcome(&policy.of_origins(), "ubuntu"), "fine");
        assert_eq!(outcome(&policy.of_origins(), "ghcr.io/x"), "not allowed");
        assert_eq!(outcome(&Policy::default(), "ghcr.io/x"), "fine");
        let nothing = Policy {
            rules: vec![rules(Some(&[]), Scope::Everything)],
        };
        assert_eq!(outcome(&nothing, "ubuntu"), "not allowed");
    }
}
