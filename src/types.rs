//! The vocabulary that the parts share: plain values, no behaviour beyond parsing and printing.

mod partition;
#[cfg(feature = "relay")]
pub(crate) mod rds_host;
mod shortened;
mod sts;
mod target;

#[cfg(feature = "launcher")]
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
#[cfg(feature = "launcher")]
use std::time::Duration;

#[cfg(feature = "launcher")]
use secrecy::SecretString;

pub(crate) use crate::types::partition::Partition;
#[cfg(feature = "relay")]
pub(crate) use crate::types::shortened::lowered;
pub(crate) use crate::types::shortened::shortened;
#[cfg(feature = "launcher")]
pub(crate) use crate::types::sts::StsHost;
pub(crate) use crate::types::sts::is_region;
pub(crate) use crate::types::target::{Address, Endpoint, Target, TargetSpec};

/// Certificate authorities that the relay trusts besides those that come with it.
#[cfg(feature = "relay")]
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ExtraCa {
    pub(crate) file: Option<PathBuf>,
    /// One or more certificates as text.
    pub(crate) pem: Option<String>,
}

/// What a target speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Engine {
    Mysql,
    Postgres,
    Tcp,
}

impl Engine {
    pub(crate) const NAMES: [&'static str; 3] = ["postgres", "mysql", "tcp"];

    /// The port a client of this engine dials when none is given.
    pub(crate) fn default_port(self) -> Option<u16> {
        match self {
            Self::Mysql => Some(3306),
            Self::Postgres => Some(5432),
            Self::Tcp => None,
        }
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Mysql => "mysql",
            Self::Postgres => "postgres",
            Self::Tcp => "tcp",
        }
    }
}

/// A name that is no engine's, or that of one which only another version knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("is {0:?}, not an engine")]
pub(crate) struct UnknownEngine(String);

impl FromStr for Engine {
    type Err = UnknownEngine;

    fn from_str(text: &str) -> Result<Self, UnknownEngine> {
        match text {
            "mysql" => Ok(Self::Mysql),
            "postgres" => Ok(Self::Postgres),
            "tcp" => Ok(Self::Tcp),
            _ => Err(UnknownEngine(text.to_owned())),
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How the relay gets the login for a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CredentialConfig {
    /// The client logs in itself; the relay only relays.
    Client,
    /// An RDS IAM token minted from the task role for this database user, signed for the region: that of the host's name if
    /// none is given, otherwise the relay's.
    RdsIam { user: String, region: Option<String> },
    /// User and password from a secret, by name or ARN; of the relay's region if none is given.
    SecretsManager { secret_id: String, region: Option<String> },
    /// A database user that Vault makes for the task role or for the caller.
    Vault(Box<VaultConfig>),
}

/// Whom Vault lets in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum VaultAs {
    /// The person at the laptop, who signs the login.
    Caller,
    /// The task role.
    Task,
}

impl VaultAs {
    #[cfg(feature = "relay")]
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Caller => "caller",
            Self::Task => "task",
        }
    }
}

/// Where Vault is and what to ask of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VaultConfig {
    pub(crate) address: String,
    pub(crate) login: VaultAs,
    /// Path of the AWS auth method.
    pub(crate) mount: String,
    /// Role of the AWS auth method. `None`: Vault takes the one that is named as the caller's role or user of IAM.
    pub(crate) role: Option<String>,
    /// Path of the database user: `<mount>/creds/<role>`.
    pub(crate) creds: String,
    pub(crate) namespace: Option<String>,
    pub(crate) ca_file: Option<PathBuf>,
    /// Value of `X-Vault-AWS-IAM-Server-ID`, if the auth method wants one; always there for logins as the caller.
    pub(crate) server_id: Option<String>,
    /// The STS region that the auth method asks; the global endpoint if none is given.
    pub(crate) sts_region: Option<String>,
}

#[cfg(feature = "relay")]
impl CredentialConfig {
    /// The word for `status`, logs and `/v1/targets`.
    pub(crate) fn source(&self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::RdsIam { .. } => "rds_iam",
            Self::SecretsManager { .. } => "secrets_manager",
            Self::Vault(_) => "vault",
        }
    }

    /// Name or ARN of the secret, where the login is from one.
    pub(crate) fn secret_id(&self) -> Option<&str> {
        match self {
            Self::SecretsManager { secret_id, .. } => Some(secret_id),
            Self::Client | Self::RdsIam { .. } | Self::Vault(_) => None,
        }
    }

    /// Whom Vault lets in, in one word, where Vault makes the user.
    pub(crate) fn login(&self) -> Option<&'static str> {
        match self {
            Self::Vault(config) => Some(config.login.as_str()),
            Self::Client | Self::RdsIam { .. } | Self::SecretsManager { .. } => None,
        }
    }

    /// The database user the relay logs in as, where the configuration fixes it.
    pub(crate) fn db_user(&self) -> Option<&str> {
        match self {
            Self::RdsIam { user, .. } => Some(user),
            Self::Client | Self::SecretsManager { .. } | Self::Vault(_) => None,
        }
    }
}

/// One access level of an environment: what is run, where, and what it may reach.
#[cfg(feature = "launcher")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Access {
    pub(crate) task_definition: String,
    /// The container in the task definition that runs the relay.
    pub(crate) container: String,
    pub(crate) subnets: Vec<String>,
    pub(crate) security_groups: Vec<String>,
    pub(crate) assign_public_ip: bool,
    pub(crate) reason_required: bool,
    pub(crate) targets: BTreeMap<String, Target>,
    /// Targets whose engine only their secrets say, which the launcher does not read.
    pub(crate) without_engine: Vec<TargetSpec>,
}

/// An environment: where the tasks run and which access levels there are.
#[cfg(feature = "launcher")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Environment {
    pub(crate) name: String,
    pub(crate) region: String,
    pub(crate) cluster: String,
    /// The Session Manager document for the port session.
    pub(crate) document: String,
    pub(crate) idle_stop: Option<Duration>,
    pub(crate) max_age: Option<Duration>,
    /// Session Manager sessions that carry the clients together.
    pub(crate) lanes: usize,
    /// The access level for whoever names none.
    pub(crate) default_access: Option<String>,
    pub(crate) access: BTreeMap<String, Access>,
}

/// What StartSession and ResumeSession return. Token and URL open the session to whoever has them.
#[cfg(feature = "launcher")]
#[derive(Clone)]
pub(crate) struct SessionGrant {
    pub(crate) session_id: String,
    pub(crate) token: SecretString,
    pub(crate) stream_url: SecretString,
}

#[cfg(feature = "launcher")]
impl fmt::Debug for SessionGrant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionGrant").field("session_id", &self.session_id).finish_non_exhaustive()
    }
}
