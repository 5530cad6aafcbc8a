//! The vocabulary that the parts share: plain values, no behaviour beyond parsing and printing.

#[cfg(feature = "relay")]
pub(crate) mod endpoint;
mod partition;
mod shortened;
mod sts;

#[cfg(feature = "launcher")]
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
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

/// The first port that needs no privilege.
const FIRST_PORT: u16 = 1024;

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

impl FromStr for Engine {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "mysql" => Ok(Self::Mysql),
            "postgres" => Ok(Self::Postgres),
            "tcp" => Ok(Self::Tcp),
            _ => Err(()),
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

/// A configured database: engine, address, user, credential.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) name: String,
    pub(crate) engine: Engine,
    /// The endpoint's real name: it is dialled, its certificate must carry it, and the token is signed for it. `None`:
    /// the secret names it.
    pub(crate) host: Option<String>,
    /// Dial this address instead of looking `host` up (libpq's `hostaddr`); TLS and tokens still use `host`.
    pub(crate) hostaddr: Option<IpAddr>,
    /// `None`: the secret names it, or it is the engine's usual one.
    pub(crate) port: Option<u16>,
    pub(crate) database: Option<String>,
    /// Transactions are read-only unless the client asks for another one: a guard against slips, not a boundary.
    pub(crate) read_only: bool,
    /// Whether clients may send files of their own computer with LOAD DATA LOCAL.
    pub(crate) local_infile: bool,
    /// Connections at once to this target; the limit over all targets holds as well.
    pub(crate) max_connections: Option<usize>,
    /// The port wished for on the laptop.
    pub(crate) local_port: Option<u16>,
    /// The plain port inside the task.
    pub(crate) relay_port: u16,
    pub(crate) credential: CredentialConfig,
}

impl Target {
    /// `host:port` as far as it is known, for messages.
    pub(crate) fn address(&self) -> String {
        match (&self.host, self.port) {
            (Some(host), Some(port)) => format!("{host}:{port}"),
            (Some(host), None) => host.clone(),
            (None, _) => "the address in its secret".to_owned(),
        }
    }
}

#[cfg(feature = "relay")]
impl Target {
    /// Whether it is reached through RDS Proxy, as far as its host is known.
    pub(crate) fn is_rds_proxy(&self) -> bool {
        self.host.as_deref().is_some_and(endpoint::is_proxy)
    }

    /// Whether the configuration says all that a connection needs.
    pub(crate) fn is_complete(&self) -> bool {
        self.host.is_some() && self.port.is_some() && self.database.is_some()
            || !matches!(self.credential, CredentialConfig::SecretsManager { .. })
    }

    /// The target with what its secret says in place of what the configuration leaves out.
    pub(crate) fn completed(&self, host: Option<&str>, port: Option<u16>, database: Option<&str>) -> Self {
        Self {
            host: self.host.clone().or_else(|| host.map(str::to_owned)),
            port: self.port.or(port).or_else(|| self.engine.default_port()),
            database: self.database.clone().or_else(|| database.map(str::to_owned)),
            ..self.clone()
        }
    }
}

/// A target without its engine: until the configuration has been read to its end, and, where that leaves the engine out,
/// until the secret has said it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Undecided {
    pub(crate) name: String,
    pub(crate) host: Option<String>,
    pub(crate) hostaddr: Option<IpAddr>,
    pub(crate) port: Option<u16>,
    pub(crate) database: Option<String>,
    pub(crate) read_only: bool,
    pub(crate) local_infile: bool,
    pub(crate) max_connections: Option<usize>,
    pub(crate) local_port: Option<u16>,
    /// The plain port inside the task, if the configuration names one.
    pub(crate) relay_port: Option<u16>,
    pub(crate) credential: CredentialConfig,
}

impl Undecided {
    /// The target of this engine. Its plain port is the configured one, otherwise the engine's usual one or the next that is
    /// not `taken`, which it is afterwards.
    pub(crate) fn decide(self, engine: Engine, taken: &mut BTreeSet<u16>) -> Target {
        let relay_port = self.relay_port.unwrap_or_else(|| {
            let mut port = engine.default_port().or(self.port).unwrap_or(FIRST_PORT);
            while !taken.insert(port) {
                port = port.checked_add(1).unwrap_or(FIRST_PORT);
            }
            port
        });
        Target {
            name: self.name,
            engine,
            host: self.host,
            hostaddr: self.hostaddr,
            port: self.port,
            database: self.database,
            read_only: self.read_only,
            local_infile: self.local_infile,
            max_connections: self.max_connections,
            local_port: self.local_port,
            relay_port,
            credential: self.credential,
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
    pub(crate) undecided: Vec<Undecided>,
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
