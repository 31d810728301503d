//! Who we are: credentials as typed values, and secrets that cannot be shown by accident.

use std::error::Error;
use std::fmt;

/// A text that must not appear in messages, logs or arguments.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes a text into custody.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text. Only for building the header or URL that needs it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// A user and a password, or a token that a registry takes in place of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// The user name.
    pub user: String,
    /// The password.
    pub password: Secret,
}

/// Where credentials come from.
pub trait Credentials: Send + Sync + fmt::Debug {
    /// The credential for a registry (`HOST[:PORT]` as in a reference), for a certain user when the reference names one. None when there is
    /// none: then the same is asked for the registry's own token service, and if there is none either, the registry is asked anonymously.
    ///
    /// # Errors
    ///
    /// When there is a credential that cannot be read.
    fn lookup(
        &self,
        registry: &str,
        user: Option<&str>,
    ) -> Result<Option<Credential>, Box<dyn Error + Send + Sync>>;
}

/// No credentials at all.
#[derive(Clone, Copy, Debug, Default)]
pub struct Anonymous;

impl Credentials for Anonymous {
    fn lookup(
        &self,
        _: &str,
        _: Option<&str>,
    ) -> Result<Option<Credential>, Box<dyn Error + Send + Sync>> {
        Ok(None)
    }
}

/// One credential for one registry.
#[derive(Clone, Debug)]
pub struct Fixed {
    /// The registry (`HOST[:PORT]` as in a reference) that it belongs to.
    pub registry: String,
    /// The credential.
    pub credential: Credential,
}

impl Credentials for Fixed {
    fn lookup(
        &self,
        registry: &str,
        user: Option<&str>,
    ) -> Result<Option<Credential>, Box<dyn Error + Send + Sync>> {
        let is_meant =
            registry == self.registry && user.is_none_or(|user| user == self.credential.user);
        Ok(is_meant.then(|| self.credential.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        let credential = Credential {
            user: "me".to_owned(),
            password: Secret::new("hunter2"),
        };
        let shown = format!("{credential:?} {}", credential.password);
        assert!(!shown.contains("hunter2"), "{shown}");
        assert_eq!(credential.password.expose(), "hunter2");
    }

    #[test]
    fn a_fixed_credential_serves_its_registry_and_user_alone() {
        let fixed = Fixed {
            registry: "x.org:5000".to_owned(),
            credential: Credential {
                user: "me".to_owned(),
                password: Secret::new("p"),
            },
        };
        let has = |registry, user| fixed.lookup(registry, user).unwrap().is_some();
        assert!(has("x.org:5000", None));
        assert!(has("x.org:5000", Some("me")));
        assert!(!has("x.org:5000", Some("you")));
        assert!(!has("x.org", None));
    }
}
