//! What the parts of a running relay share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use bastion_wire::memory::Memory;
use rustls::{ClientConfig, ServerConfig};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::targets::Unavailable;
use crate::credential::Logins;
use crate::relay::audit::Audit;
use crate::relay::config::Config;
use crate::relay::greeting::RememberedGreeting;
use crate::relay::identity::Identity;
use crate::relay::lifetime::Lifetime;
use crate::relay::links::Links;
use crate::relay::local_password::LocalPassword;
use crate::relay::metrics::{Metrics, TargetMetrics};
use crate::relay::shortage::Shortage;
use crate::types::Target;

/// A target with all that serving it needs.
pub(super) struct Served {
    pub(super) target: Target,
    /// One permit a connection to this target.
    pub(super) room: Semaphore,
    pub(super) logins: Logins,
    pub(super) metrics: TargetMetrics,
    /// Of MySQL.
    pub(super) greeting: RememberedGreeting,
}

/// What every connection shares.
pub(super) struct RelayState {
    pub(super) config: Config,
    pub(super) served: Vec<Arc<Served>>,
    pub(super) unavailable: Vec<Unavailable>,
    pub(super) upstream_tls: Arc<ClientConfig>,
    pub(super) client_tls: Option<Arc<ServerConfig>>,
    /// The `tls-server-end-point` hash of the certificate for clients.
    pub(super) client_binding: Option<Vec<u8>>,
    pub(super) local_password: Option<LocalPassword>,
    pub(super) audit: Audit,
    pub(super) identity: Identity,
    pub(super) metrics: Metrics,
    /// One permit a connection.
    pub(super) room: Semaphore,
    pub(super) lifetime: Lifetime,
    pub(super) started_at: std::time::SystemTime,
    pub(super) next_conn: AtomicU64,
    pub(super) ready: AtomicBool,
    /// Cancelled when no new connection may start.
    pub(super) drain: CancellationToken,
    /// Cancelled when open connections must end.
    pub(super) cut: CancellationToken,
    pub(super) conns: TaskTracker,
    pub(super) links: Links,
    pub(super) memory: Memory,
    /// Open connections of launchers without a link.
    pub(super) plain: AtomicUsize,
    pub(super) shortage: Shortage,
}

impl RelayState {
    /// The target of this name, or a sentence for whoever asked.
    pub(super) fn wanted(&self, name: &str) -> Result<&Arc<Served>, String> {
        if let Some(served) = self.served.iter().find(|served| served.target.name == name) {
            return Ok(served);
        }
        if let Some(Unavailable { problem, .. }) = self.unavailable.iter().find(|target| target.name == name) {
            return Err(format!("target {name} is not served: {problem}"));
        }
        let served = self.served.iter().map(|served| served.target.name.as_str());
        let known: Vec<&str> = served.chain(self.unavailable.iter().map(|target| target.name.as_str())).collect();
        Err(format!("there is no target {name:?} here; the targets are {}", known.join(", ")))
    }

    pub(super) fn conn_id(&self) -> u64 {
        self.next_conn.fetch_add(1, Ordering::Relaxed)
    }
}
