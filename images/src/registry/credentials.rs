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

/// What is shown to a registry or its token service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    /// A user and a password, or a token that a registry takes in place of one.
    Login {
        /// The user name.
        user: String,
        /// The password.
        password: Secret,
    },
    /// An identity token of an earlier login: the token service takes it as a refresh token of OAuth 2 (RFC 6749, section 6).
    IdentityToken(Secret),
}

impl Credential {
    /// A user and a password.
    #[must_use]
    pub fn login(user: impl Into<String>, password: impl Into<String>) -> Self {
        Self::Login {
            user: user.into(),
            password: Secret::new(password),
        }
    }

    /// Who it is, for messages.
    pub(super) fn whom(&self) -> String {
        match self {
            Self::Login { user, .. } => format!("to user `{user}`"),
            Self::IdentityToken(_) => "to the identity token of an earlier login".to_owned(),
        }
    }
}

/// What a credential is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted<'a> {
    /// The registry or its token service: `HOST[:PORT]`, as a reference or a challenge names it.
    pub server: &'a str,
    /// The repository to be read, for credentials of only a part of a registry; empty where it is about the registry as a whole.
    pub repository: &'a str,
    /// The user that the reference names.
    pub user: Option<&'a str>,
    /// The server is the registry's token service: enroot's users have their logins under its name, docker's and podman's never do.
    pub token_service: bool,
}

/// Where credentials come from. Asked only after a registry has refused a request without them.
pub trait Credentials: Send + Sync + fmt::Debug {
    /// The credential for a server. None when there is none: then the same is asked for the registry's own token service, and if there is none
    /// either, the registry is asked anonymously, unless the reference names a user.
    ///
    /// # Errors
    ///
    /// When there is a credential that cannot be read.
    fn lookup(
        &self,
        wanted: Wanted<'_>,
    ) -> Result<Option<Credential>, Box<dyn Error + Send + Sync>>;
}

/// No credentials at all.
#[derive(Clone, Copy, Debug, Default)]
pub struct Anonymous;

impl Credentials for Anonymous {
    fn lookup(&self, _: Wanted<'_>) -> Result<Option<Credential>, Box<dyn Error + Send + Sync>> {
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
        wanted: Wanted<'_>,
    ) -> Result<Option<Credential>, Box<dyn Error + Send + Sync>> {
        let is_users = |wanted: &str| match &self.credential {
            Credential::Login { user, .. } => user == wanted,
            Credential::IdentityToken(_) => false,
        };
        let is_meant = wanted.server == self.registry && wanted.user.is_none_or(is_users);
        Ok(is_meant.then(|| self.credential.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        let secret = Secret::new("hunter2");
        for credential in [
            Credential::login("me", "hunter2"),
            Credential::IdentityToken(secret.clone()),
        ] {
            let shown = format!("{credential:?} {} {secret}", credential.whom());
            assert!(!shown.contains("hunter2"), "{shown}");
        }
        assert_eq!(secret.expose(), "hunter2");
    }

    #[test]
    fn a_fixed_credential_serves_its_registry_and_user_alone() {
        let fixed = Fixed {
            registry: "x.org:5000".to_owned(),
            credential: Credential::login("me", "p"),
        };
        let has = |server, user| {
            let wanted = Wanted {
                server,
                repository: "image",
                user,
                token_service: false,
            };
            fixed.lookup(wanted).unwrap().is_some()
        };
        assert!(has("x.org:5000", None));
        assert!(has("x.org:5000", Some("me")));
        assert!(!has("x.org:5000", Some("you")));
        assert!(!has("x.org", None));
    }
}
