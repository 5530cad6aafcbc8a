//! What a target logs in with. A credential is redacted, wiped when dropped, exposed at one line of the relay, and
//! cached: a token until safely before its expiry, a secret until it is read again or refused.
//!
//! [`Logins`] is the way in, and behind it a [`Cache`] for everybody or one for each person. It lends a credential to a
//! connection ([`Loan`]) and knows what to try when the database refuses one: that is how a rotation in mid-run stays
//! invisible.

mod bounded;
mod cache;
mod personal;
mod rds_iam;
mod secret;
mod secrets_manager;
mod sources;
mod task_role;
mod vault;

pub(crate) use cache::{Cache, Loan, Warm};
pub(crate) use personal::{Admission, Logins};
pub(crate) use secrets_manager::SecretError;
pub(crate) use sources::Sources;
pub(crate) use vault::{SignedLogin, VaultError};

use rds_iam::RdsIam;
use secrets_manager::SecretsManager;
use task_role::TaskRole;
use vault::Vault;
use vault::lease::Lease;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::SystemTime;

use secrecy::{ExposeSecret as _, SecretString};

use crate::types::Engine;

/// What a secret is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Any authentication method that takes a password.
    Password,
    /// Only as a cleartext password.
    Token,
}

/// How long a credential may be handed out again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reuse {
    /// Until this time, when the source is asked again; if it cannot answer then, the old one goes on.
    ReadAgainAt(SystemTime),
    /// Until safely before it ends at this time.
    UntilExpiry(SystemTime),
    /// As long as its lease takes new connections.
    WhileLeased,
}

/// Where the database is, as far as a secret says it, and what it speaks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SecretEndpoint {
    /// The configured one, otherwise the secret's.
    pub(crate) engine: Option<Engine>,
    pub(crate) host: Option<String>,
    pub(crate) port: Option<u16>,
    pub(crate) database: Option<String>,
}

/// A login: database user and secret.
#[derive(Debug)]
pub(crate) struct Credential {
    pub(crate) user: String,
    pub(crate) secret: SecretString,
    pub(crate) kind: Kind,
    pub(crate) endpoint: SecretEndpoint,
    reuse: Reuse,
    /// What must live as long as somebody uses it.
    lease: Option<Arc<Lease>>,
    /// Whether a database has accepted it.
    worked: AtomicBool,
}

impl Credential {
    fn new(user: String, secret: SecretString, kind: Kind, reuse: Reuse) -> Self {
        Self {
            user,
            secret,
            kind,
            endpoint: SecretEndpoint::default(),
            reuse,
            lease: None,
            worked: AtomicBool::new(false),
        }
    }

    /// Whether trying `other` as well could bring anything new.
    fn is_same_login(&self, other: &Self) -> bool {
        self.user == other.user && self.secret.expose_secret() == other.secret.expose_secret()
    }
}

/// Why there is no credential. The texts hold no secret and no body of an answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MintError {
    #[error("the task has no role: neither AWS_CONTAINER_CREDENTIALS_RELATIVE_URI nor _FULL_URI is set")]
    NoTaskRole,
    #[error("the container credentials endpoint gave no credentials: {0}")]
    Endpoint(String),
    #[error("Vault lets people in as themselves, and on this connection nobody has proven who they are")]
    Nobody,
    #[error("secret {id}: {error}")]
    Secret { id: String, error: SecretError },
    #[error("the token could not be signed: {0}")]
    Sign(String),
    #[error("Vault at {address}: {error}")]
    Vault { address: String, error: VaultError },
    #[error("the container credentials endpoint did not answer within {0} s")]
    Timeout(u64),
}

impl MintError {
    /// Whether the same may work a moment later.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Self::Secret { error, .. } => {
                matches!(error, SecretError::Failed(_) | SecretError::Throttled | SecretError::Unreachable(_))
            }
            other => matches!(other, Self::Endpoint(_) | Self::Timeout(_)),
        }
    }
}

/// Where credentials come from.
#[derive(Debug)]
pub(crate) enum Source {
    #[cfg(test)]
    Fixed(fixed::Fixed),
    RdsIam(RdsIam),
    SecretsManager(SecretsManager),
    Vault(Box<Vault>),
}

impl Source {
    /// Makes a new credential, valid at `now`.
    async fn mint(&self, now: SystemTime) -> Result<Credential, MintError> {
        match self {
            #[cfg(test)]
            Self::Fixed(source) => Ok(source.mint(now)),
            Self::RdsIam(source) => source.mint(now).await,
            // Boxed: the future of the SDK is large, and few connections need it.
            Self::SecretsManager(source) => Box::pin(source.mint(now)).await,
            Self::Vault(source) => Box::pin(source.mint(now)).await,
        }
    }

    /// Every login that may be the right one just now, best first. `None`: only a new one from [`Source::mint`] is.
    async fn versions(&self, now: SystemTime) -> Result<Option<Vec<Credential>>, MintError> {
        match self {
            #[cfg(test)]
            Self::Fixed(source) => Ok(source.versions(now)),
            Self::RdsIam(_) | Self::Vault(_) => Ok(None),
            Self::SecretsManager(source) => Box::pin(source.versions(now)).await.map(Some),
        }
    }
}

#[cfg(test)]
pub(crate) mod fixed {
    //! A source under the test's control.

    use std::sync::Mutex;
    use std::time::{Duration, SystemTime};

    use super::{Credential, Kind, Reuse};

    /// Gives the passwords of `now`, the first one on a mint; `secret_like` ones are read again after a refusal.
    #[derive(Debug)]
    pub(crate) struct Fixed {
        pub(crate) user: String,
        pub(crate) secret_like: bool,
        pub(crate) passwords: Mutex<Vec<String>>,
        pub(crate) asked: Mutex<usize>,
    }

    impl Fixed {
        pub(crate) fn new(user: &str, password: &str) -> Self {
            let passwords = Mutex::new(vec![password.to_owned()]);
            Self { user: user.to_owned(), secret_like: false, passwords, asked: Mutex::new(0) }
        }

        fn credential(&self, password: &str, now: SystemTime) -> Credential {
            let end = now + Duration::from_secs(900);
            let reuse = if self.secret_like { Reuse::ReadAgainAt(end) } else { Reuse::UntilExpiry(end) };
            Credential::new(self.user.clone(), password.to_owned().into(), Kind::Password, reuse)
        }

        pub(super) fn mint(&self, now: SystemTime) -> Credential {
            *self.asked.lock().unwrap() += 1;
            self.credential(&self.passwords.lock().unwrap()[0], now)
        }

        pub(super) fn versions(&self, now: SystemTime) -> Option<Vec<Credential>> {
            if !self.secret_like {
                return None;
            }
            *self.asked.lock().unwrap() += 1;
            Some(self.passwords.lock().unwrap().iter().map(|password| self.credential(password, now)).collect())
        }
    }
}
