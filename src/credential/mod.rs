//! What a target logs in with. A credential is redacted, wiped when dropped, exposed at one line of the relay, and
//! cached until safely before its expiry.

mod cache;
mod rds_iam;

pub(crate) use cache::{Cache, Freshness};
pub(crate) use rds_iam::{RdsIam, TaskRole};

use std::time::SystemTime;

use secrecy::SecretString;

/// What a secret is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Any authentication method that takes a password.
    #[cfg_attr(not(test), expect(dead_code, reason = "password sources come with Vault and Secrets Manager"))]
    Password,
    /// Only as a cleartext password.
    Token,
}

/// A login: database user and secret.
#[derive(Debug)]
pub(crate) struct Credential {
    pub(crate) user: String,
    pub(crate) secret: SecretString,
    pub(crate) kind: Kind,
    pub(crate) expires_at: Option<SystemTime>,
}

/// Why there is no credential. The texts hold no secret and no body of an answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MintError {
    #[error("the task has no role: neither AWS_CONTAINER_CREDENTIALS_RELATIVE_URI nor _FULL_URI is set")]
    NoTaskRole,
    #[error("the container credentials endpoint gave no credentials: {0}")]
    Endpoint(String),
    #[error("the token could not be signed: {0}")]
    Sign(String),
    #[error("the container credentials endpoint did not answer within {0} s")]
    Timeout(u64),
}

/// Where credentials come from.
#[derive(Debug)]
pub(crate) enum Source {
    #[cfg(test)]
    Fixed {
        user: String,
        password: String,
        mints: std::sync::atomic::AtomicUsize,
    },
    RdsIam(RdsIam),
}

impl Source {
    /// Makes a new credential, valid at `now`.
    async fn mint(&self, now: SystemTime) -> Result<Credential, MintError> {
        match self {
            #[cfg(test)]
            Self::Fixed { user, password, mints } => {
                mints.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                Ok(Credential {
                    user: user.clone(),
                    secret: password.clone().into(),
                    kind: Kind::Password,
                    expires_at: Some(now + std::time::Duration::from_secs(900)),
                })
            }
            Self::RdsIam(source) => source.mint(now).await,
        }
    }
}
