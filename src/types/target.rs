//! A database that is served: as the configuration has it, and once its engine is known.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

#[cfg(feature = "relay")]
use crate::types::rds_host;
use crate::types::{CredentialConfig, Engine};

/// The first port that needs no privilege.
const FIRST_PORT: u16 = 1024;

/// Where a database is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    /// The endpoint's real name: it is dialled, its certificate must carry it, and the token is signed for it.
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Who says where a database is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// The configuration, or it and the secret together.
    Fixed(Address),
    /// The secret, but for what the configuration names.
    FromSecret { host: Option<String>, port: Option<u16> },
}

impl Endpoint {
    /// The host, as far as it is known.
    #[cfg(any(feature = "relay", test))]
    pub(crate) fn host(&self) -> Option<&str> {
        match self {
            Self::Fixed(address) => Some(&address.host),
            Self::FromSecret { host, .. } => host.as_deref(),
        }
    }

    /// The port, as far as it is known.
    pub(crate) fn port(&self) -> Option<u16> {
        match self {
            Self::Fixed(address) => Some(address.port),
            Self::FromSecret { port, .. } => *port,
        }
    }
}

/// For messages.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(address) => address.fmt(f),
            Self::FromSecret { host: Some(host), port: Some(port) } => write!(f, "{host}:{port}"),
            Self::FromSecret { host: Some(host), port: None } => f.write_str(host),
            Self::FromSecret { host: None, .. } => f.write_str("the address in its secret"),
        }
    }
}

/// A target as it is configured: the engine, and the plain port in the task, may be left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TargetSpec {
    pub(crate) name: String,
    /// `None`: the secret names it.
    pub(crate) engine: Option<Engine>,
    pub(crate) endpoint: Endpoint,
    /// Dial this address instead of looking the host up (libpq's `hostaddr`); TLS and tokens still use the host.
    pub(crate) hostaddr: Option<IpAddr>,
    pub(crate) database: Option<String>,
    /// Transactions are read-only unless the client asks for another one: a guard against slips, not a boundary.
    pub(crate) read_only: bool,
    /// Whether clients may send files of their own computer with LOAD DATA LOCAL.
    pub(crate) local_infile: bool,
    /// Connections at once to this target; the limit over all targets holds as well.
    pub(crate) max_connections: Option<usize>,
    /// The port wished for on the laptop.
    pub(crate) local_port: Option<u16>,
    pub(crate) relay_port: Option<u16>,
    pub(crate) credential: CredentialConfig,
}

impl TargetSpec {
    /// The target with this engine. Its plain port is the configured one, otherwise the engine's usual one or the next that is
    /// not `taken`, which it is afterwards.
    pub(crate) fn resolve(self, engine: Engine, taken: &mut BTreeSet<u16>) -> Target {
        let relay_port = self.relay_port.unwrap_or_else(|| {
            let mut port = engine.default_port().or_else(|| self.endpoint.port()).unwrap_or(FIRST_PORT);
            while !taken.insert(port) {
                port = port.checked_add(1).unwrap_or(FIRST_PORT);
            }
            port
        });
        Target {
            name: self.name,
            engine,
            endpoint: self.endpoint,
            hostaddr: self.hostaddr,
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

/// A target that is served. The fields are those of [`TargetSpec`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) name: String,
    pub(crate) engine: Engine,
    pub(crate) endpoint: Endpoint,
    pub(crate) hostaddr: Option<IpAddr>,
    pub(crate) database: Option<String>,
    pub(crate) read_only: bool,
    pub(crate) local_infile: bool,
    pub(crate) max_connections: Option<usize>,
    pub(crate) local_port: Option<u16>,
    pub(crate) relay_port: u16,
    pub(crate) credential: CredentialConfig,
}

#[cfg(feature = "relay")]
impl Target {
    /// Whether it is reached through RDS Proxy, as far as its host is known.
    pub(crate) fn is_rds_proxy(&self) -> bool {
        self.endpoint.host().is_some_and(rds_host::is_proxy)
    }

    /// Whether its secret may have something to say besides the login.
    pub(crate) fn needs_secret(&self) -> bool {
        matches!(self.credential, CredentialConfig::SecretsManager { .. })
            && (matches!(self.endpoint, Endpoint::FromSecret { .. }) || self.database.is_none())
    }

    /// The target with what its secret says in place of what the configuration leaves out. Its endpoint is fixed then, if
    /// one of them names a host and the port is known or usual.
    pub(crate) fn with_secret(&self, host: Option<&str>, port: Option<u16>, database: Option<&str>) -> Self {
        let host = self.endpoint.host().or(host).map(str::to_owned);
        let port = self.endpoint.port().or(port).or_else(|| self.engine.default_port());
        let endpoint = match (host, port) {
            (Some(host), Some(port)) => Endpoint::Fixed(Address { host, port }),
            (host, port) => Endpoint::FromSecret { host, port },
        };
        let database = self.database.clone().or_else(|| database.map(str::to_owned));
        Self { endpoint, database, ..self.clone() }
    }
}
