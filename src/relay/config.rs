//! The configuration of a relay, resolved; it does not change.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::relay::identity::IdentityConfig;
use crate::types::{ExtraCa, Target, TargetSpec};

/// Certificate for clients that want TLS on the loopback port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ClientTls {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// What goes into the audit log besides connections and callers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct AuditConfig {
    /// The SQL of the clients.
    pub(crate) statements: bool,
    /// Without its literals.
    pub(crate) redact: bool,
    /// The key of the hashes of such SQL is in the first record.
    pub(crate) log_hash_key: bool,
    /// Metrics for CloudWatch, once a minute.
    pub(crate) emf: bool,
}

/// The resolved configuration of a relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) environment: String,
    pub(crate) access: String,
    pub(crate) region: String,
    pub(crate) owner: Option<String>,
    pub(crate) reason: Option<String>,
    pub(crate) audit: AuditConfig,
    pub(crate) identity: IdentityConfig,
    /// Clients must show a password that is made at the start and told to proven callers.
    pub(crate) local_password: bool,
    pub(crate) listen: IpAddr,
    /// No database connection for so long: the relay ends itself.
    pub(crate) idle_stop: Option<Duration>,
    /// So old: the relay ends itself whatever is open.
    pub(crate) max_age: Option<Duration>,
    pub(crate) max_connections: usize,
    pub(crate) extra_ca: ExtraCa,
    pub(crate) client_tls: Option<ClientTls>,
    /// Another endpoint of Secrets Manager than that of the region.
    pub(crate) secrets_manager_endpoint: Option<String>,
    pub(crate) targets: Vec<Target>,
    /// Targets whose engine only their secrets say.
    pub(crate) without_engine: Vec<TargetSpec>,
}
