//! Database users that Vault makes: login with the task role or as the caller, a user from the database engine, and its
//! lease.
//!
//! Each lease has a token of its own. So the lease is revoked by ending the token, which every policy allows, and when
//! the relay dies without a word nobody renews the token: Vault ends it, and the database user with it.

mod api;
mod caller;
mod keeper;
pub(super) mod lease;
mod sign;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bastion_wire::memory::TooLong;
use rustls::ClientConfig;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::credential::vault::api::Api;
use crate::credential::vault::keeper::Keeper;
use crate::credential::vault::lease::Lease;
use crate::credential::{Credential, Kind, MintError, Reuse, TaskRole};
use crate::tls::TlsConfigError;
use crate::types::VaultConfig;

pub(crate) use caller::{SignedLogin, Slot, Standing};

/// For revoking everything at the end, between the drain and the SIGKILL of ECS.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(4);

/// Why Vault gives no login. No token, no password; what Vault says is sorted, not shown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum VaultError {
    #[error("its answer could not be read")]
    Answer,
    #[error("its certificate has expired, so nothing was sent to it")]
    CertificateExpired,
    #[error("its certificate is not from a trusted CA, so nothing was sent to it")]
    CertificateIssuer,
    #[error("its certificate is for another name, so nothing was sent to it")]
    CertificateName,
    #[error("the token of the login may not read {0}")]
    CredsDenied(String),
    #[error("it could not make a user in the database")]
    Database,
    #[error("permission denied")]
    Denied,
    #[error("it refused the login to the role {0}")]
    LoginDenied(String),
    #[error("there is no role at {0}")]
    NoCredsRole(String),
    #[error("it is a standby, and its cluster has no active node")]
    NoActive,
    #[error("the lease has been revoked")]
    NoLease,
    #[error("its AWS auth method has no role {0}")]
    NoLoginRole(String),
    #[error("there is no AWS auth method at the configured mount")]
    NoMount,
    #[error("you are not among the principals of the role {0}")]
    OtherCaller(String),
    #[error("the task role is not among those of role {0}")]
    OtherPrincipal(String),
    #[error("it answered with HTTP status {0}")]
    Refused(u16),
    #[error("it is sealed")]
    Sealed,
    #[error("it wants another X-Vault-AWS-IAM-Server-ID")]
    ServerId,
    #[error("it is a standby that sends callers to another address, where nothing was sent")]
    Standby,
    #[error("STS did not confirm to it who has signed the login")]
    Sts,
    #[error("it is slowing the task down")]
    Throttled,
    #[error("{0}")]
    TooLong(TooLong),
    #[error("nobody serves there just now (HTTP status {0})")]
    Unavailable(u16),
    #[error("it cannot be reached: {0}")]
    Unreachable(String),
    #[error("the login that you have signed was used; you must sign another one")]
    Unsigned,
}

impl VaultError {
    /// Whether Vault has decided nothing. Every kind stands here, so that a new one is sorted too.
    fn is_outage(&self) -> bool {
        match self {
            Self::CertificateExpired
            | Self::CertificateIssuer
            | Self::CertificateName
            | Self::Database
            | Self::NoActive
            | Self::Sealed
            | Self::Standby
            | Self::Throttled
            | Self::Unavailable(_)
            | Self::Unreachable(_) => true,
            Self::Answer
            | Self::CredsDenied(_)
            | Self::Denied
            | Self::LoginDenied(_)
            | Self::NoCredsRole(_)
            | Self::NoLease
            | Self::NoLoginRole(_)
            | Self::NoMount
            | Self::OtherCaller(_)
            | Self::OtherPrincipal(_)
            | Self::Refused(_)
            | Self::ServerId
            | Self::Sts
            | Self::TooLong(_)
            | Self::Unsigned => false,
        }
    }
}

/// Who logs in.
pub(crate) enum Login {
    /// The person whose slot it is.
    Caller(Arc<Slot>),
    Task(Arc<TaskRole>),
}

/// The Vault of one target, and all that was made there.
pub(crate) struct Server {
    config: VaultConfig,
    api: Api,
    /// Logins under way and leases.
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Server {
    /// # Errors
    /// If the HTTP client cannot be made.
    pub(super) fn new(config: VaultConfig, tls: &ClientConfig) -> Result<Self, TlsConfigError> {
        let api = Api::new(config.clone(), tls).map_err(TlsConfigError::AwsClient)?;
        Ok(Self { config, api, tasks: TaskTracker::new(), stop: CancellationToken::new() })
    }

    pub(super) fn address(&self) -> &str {
        &self.config.address
    }

    /// What `slot` was given is not kept for longer than it is good for, whether somebody asks for it or not.
    pub(super) fn forget_in_time(&self, slot: Arc<Slot>, signed: &SignedLogin) {
        let end = signed.good_until;
        let forgetting = async move {
            tokio::time::sleep_until(end).await;
            slot.forget_old();
        };
        self.tasks.spawn(self.stop.clone().run_until_cancelled_owned(forgetting));
    }

    /// Revokes every lease.
    pub(super) async fn close(&self) {
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(CLOSE_TIMEOUT, self.tasks.wait()).await.is_err() {
            warn!(vault = self.config.address, "Vault did not revoke every lease in time; they end with their time");
        }
    }

    async fn issue(&self, identity: &sign::SignedIdentity) -> Result<(Credential, Keeper), VaultError> {
        let creds = &self.config.creds;
        let session = self.api.log_in(identity).await?;
        let issued = match session.issue(creds).await {
            Ok(issued) => issued,
            Err(error) => {
                session.end().await;
                return Err(error);
            }
        };
        let lease = Arc::new(Lease::new());
        let keeper = Keeper::new(session, &issued, Arc::clone(&lease), creds.clone());
        let credential = Credential::new(issued.user, issued.password, Kind::Password, Reuse::WhileLeased);
        Ok((Credential { lease: Some(lease), ..credential }, keeper))
    }
}

/// The database users of one target, or of one person there.
pub(crate) struct Vault {
    login: Login,
    server: Arc<Server>,
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let config = &self.server.config;
        write!(f, "Vault({} at {}, login as the {})", config.creds, config.address, config.login.as_str())
    }
}

impl Vault {
    pub(super) fn new(login: Login, server: Arc<Server>) -> Self {
        Self { login, server }
    }

    /// Logs in and makes a new user, whose lease is kept from now on. Cancel safe: it goes on by itself, and what nobody
    /// uses is revoked.
    pub(super) async fn mint(&self, now: SystemTime) -> Result<Credential, MintError> {
        let config = &self.server.config;
        let failed = |error| MintError::Vault { address: config.address.clone(), error };
        let (identity, slot) = match &self.login {
            Login::Caller(slot) => {
                let signed = slot.take().map_err(failed)?;
                (sign::handed_in(&signed, config), Some((Arc::clone(slot), signed)))
            }
            Login::Task(role) => (sign::identity(&role.credentials().await?, config, now)?, None),
        };
        let server = Arc::clone(&self.server);
        let minted = self.server.tasks.spawn(async move {
            let issued = server.issue(&identity).await;
            if let Some((slot, signed)) = slot {
                slot.settle(signed, issued.as_ref().err());
            }
            let (credential, keeper) = issued?;
            server.tasks.spawn(keeper.run(server.stop.clone()));
            Ok(credential)
        });
        minted.await.unwrap_or(Err(VaultError::Answer)).map_err(failed)
    }

    /// Revokes every lease.
    pub(super) async fn close(&self) {
        self.server.close().await;
    }
}
