//! The relay: the program in the task. Accepts clients on loopback, logs in to the database for them, copies bytes.
//!
//! Read in this order: [`Relay::bind`] and [`Relay::serve`] here (idle stop, maximum age, drain), `state` (what all parts share),
//! `accept` (clients), `resolve` (the engines that only secrets say), `conn` (one client: drive the login, then splice),
//! `upstream` (dial, TLS), `reply` (what a client is told when it fails), `http` (health, metrics, targets, upgrade to a
//! connection), `identity` (who the caller is).

mod accept;
mod audit;
mod authorize;
mod client_io;
mod clock;
mod config;
mod conn;
mod emf;
mod error;
mod fetch;
mod greeting;
mod health;
mod http;
mod identity;
mod lane;
mod leave;
mod lifetime;
mod links;
mod local_password;
mod metrics;
mod reply;
mod resolve;
mod response;
mod shortage;
mod splice;
mod start_error;
mod state;
mod upstream;

pub(crate) use config::{AuditConfig, ClientTls, Config};
pub(crate) use fetch::HttpEndpoint;
pub(crate) use health::healthy;
pub(crate) use identity::{IdentityConfig, Pattern, TaskSource, is_task_name};
pub(crate) use lifetime::Ended;
pub(crate) use start_error::StartError;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bastion_wire::memory::{self, Memory};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::api;
use crate::api::authorize::Audience;
use crate::api::targets::Unavailable;
use crate::credential::{Logins, Sources};
use crate::relay::audit::Audit;
use crate::relay::clock::wall_clock;
use crate::relay::emf::Emf;
use crate::relay::greeting::RememberedGreeting;
use crate::relay::identity::Identity;
use crate::relay::lifetime::Lifetime;
use crate::relay::links::Links;
use crate::relay::local_password::LocalPassword;
use crate::relay::metrics::Metrics;
use crate::relay::resolve::Resolved;
use crate::relay::shortage::Shortage;
use crate::relay::state::{RelayState, Served};
use crate::tls;
use crate::types::{Target, lowered};

/// How long open connections may go on after the drain began. ECS sends SIGKILL 30 s after SIGTERM by default; a second
/// and a quarter goes to farewells, four to Vault's leases and the laptops' last bytes.
const DRAIN_GRACE: Duration = Duration::from_secs(24);

/// CloudWatch keeps metrics by the minute.
const EMF_EVERY: Duration = Duration::from_secs(60);

/// A relay that listens.
pub(crate) struct Relay {
    shared: Arc<RelayState>,
    http: TcpListener,
    plain: Vec<(TcpListener, Arc<Served>)>,
}

impl Relay {
    /// Reads the secrets that have to name an engine and opens every port. `drain` ends the relay gently, `now` at once.
    ///
    /// # Errors
    /// [`StartError`] if a port is taken or a certificate cannot be used.
    pub(crate) async fn bind(
        config: Config,
        drain: CancellationToken,
        now: CancellationToken,
    ) -> Result<Self, StartError> {
        let sources =
            Sources::new(config.region.clone(), config.extra_ca.clone(), config.secrets_manager_endpoint.clone())?;
        let Resolved { targets, logins, unavailable } = resolve::resolve(&config, &sources, &drain).await;
        let logins = |target: &Target| match logins.get(&target.name) {
            Some(cache) => Ok(Logins::Shared(Arc::clone(cache))),
            None => sources.logins(target),
        };
        Self::bind_with(config, targets, unavailable, drain, now, std::io::stdout(), logins).await
    }

    /// As [`Relay::bind`], with audit log and logins of the caller's choice.
    async fn bind_with(
        config: Config,
        targets: Vec<Target>,
        unavailable: Vec<Unavailable>,
        drain: CancellationToken,
        now: CancellationToken,
        log: impl std::io::Write + Send + 'static,
        logins: impl Fn(&Target) -> Result<Logins, tls::TlsConfigError>,
    ) -> Result<Self, StartError> {
        let upstream_tls = tls::upstream(&config.extra_ca)?;
        let client_tls = config.client_tls.as_ref().map(|tls| tls::server(&tls.certificate, &tls.key)).transpose()?;
        let (client_tls, client_binding) = client_tls.unzip();
        let local_password = config.local_password.then(LocalPassword::new).transpose()?;
        let metrics = Metrics::new();
        let served: Vec<_> = targets
            .into_iter()
            .map(|target| {
                Ok(Arc::new(Served {
                    room: Semaphore::new(target.max_connections.unwrap_or(config.max_connections)),
                    logins: logins(&target)?,
                    metrics: metrics.target(&target.name),
                    greeting: RememberedGreeting::default(),
                    target,
                }))
            })
            .collect::<Result<_, tls::TlsConfigError>>()?;
        let http = accept::listen(config.listen, api::PORT).await?;
        let mut plain = Vec::with_capacity(served.len());
        // Nobody can say on a plain port who they are.
        for served in served.iter().filter(|_| !config.identity.required) {
            plain.push((accept::listen(config.listen, served.target.relay_port).await?, Arc::clone(served)));
        }
        let aws_tls = tls::aws(&config.extra_ca)?;
        let vaults = vaults(&served);
        let identity = Identity::new(config.identity.clone(), &config.region, config.owner.as_deref(), vaults, aws_tls);
        let audit = Audit::start(&config, log).await?;
        let shared = Arc::new(RelayState {
            audit,
            identity,
            room: Semaphore::new(config.max_connections),
            lifetime: Lifetime::new(config.idle_stop, config.max_age),
            config,
            served,
            unavailable,
            upstream_tls,
            client_tls,
            client_binding: client_binding.flatten(),
            local_password,
            metrics,
            started_at: wall_clock(),
            next_conn: AtomicU64::new(1),
            ready: AtomicBool::new(false),
            drain,
            cut: now,
            conns: TaskTracker::new(),
            links: Links::default(),
            memory: Memory::relay_of(lowered("BASTION_TEST_ARRIVED", memory::ARRIVED)),
            plain: AtomicUsize::new(0),
            shortage: Shortage::default(),
        });
        Ok(Self { shared, http, plain })
    }

    /// Serves until a signal, the idle limit or the maximum age, then drains. Says what ended it.
    pub(crate) async fn serve(self) -> Ended {
        let Self { shared, http, plain } = self;
        let listeners = TaskTracker::new();
        let health = CancellationToken::new();
        listeners.spawn(http::serve(http, Arc::clone(&shared), health.clone()));
        for (listener, served) in plain {
            info!(
                target = served.target.name,
                engine = %served.target.engine,
                upstream = %served.target.endpoint,
                port = served.target.relay_port,
                "listening"
            );
            listeners.spawn(accept::accept(listener, served, Arc::clone(&shared)));
        }
        let emf = CancellationToken::new();
        if shared.config.audit.emf {
            listeners.spawn(tell_metrics(Arc::clone(&shared), emf.clone()));
        }
        prepare_identity(&shared.identity).await;
        shared.ready.store(true, Ordering::Release);
        info!(
            env = shared.config.environment,
            access = shared.config.access,
            owner = shared.config.owner,
            reason = shared.config.reason,
            listen = %shared.config.listen,
            "ready for connections"
        );
        let ended = tokio::select! {
            () = shared.drain.cancelled() => Ended::Signal,
            ended = shared.lifetime.ended() => ended,
            () = shared.links.left() => Ended::Left,
        };
        shared.drain.cancel();
        drain(&shared, ended).await;
        // Together: each has a few seconds.
        let closing = TaskTracker::new();
        let links = Arc::clone(&shared);
        closing.spawn(async move { links.links.close().await });
        for served in &shared.served {
            let served = Arc::clone(served);
            closing.spawn(async move { served.logins.close().await });
        }
        closing.close();
        closing.wait().await;
        health.cancel();
        emf.cancel();
        listeners.close();
        listeners.wait().await;
        shared.audit.stopped(&ended.to_string()).await;
        ended
    }
}

/// The Vaults that people log in to as themselves, each once.
fn vaults(served: &[Arc<Served>]) -> Vec<Audience> {
    let mut vaults: Vec<Audience> = Vec::new();
    for audience in served.iter().filter_map(|served| served.logins.audience()) {
        if !vaults.contains(audience) {
            vaults.push(audience.clone());
        }
    }
    vaults
}

/// Finds out early what a caller needs, and says what would lock everybody out.
async fn prepare_identity(identity: &Identity) {
    if !identity.is_required() {
        info!("plain ports are open to everybody who reaches this task: identity is optional");
        return;
    }
    if !identity.has_owner() {
        warn!("nobody can come in: BASTION_OWNER is not the ARN of a caller, and allow is empty");
    }
    match identity.task().await {
        Ok(task) => info!(task, "callers prove who they are; plain ports are closed"),
        Err(error) => warn!(%error, "nobody can come in yet"),
    }
}

/// Metrics for CloudWatch once a minute and at the end.
async fn tell_metrics(shared: Arc<RelayState>, end: CancellationToken) {
    let mut emf = Emf::default();
    let mut last = false;
    while !last {
        tokio::select! {
            () = tokio::time::sleep(EMF_EVERY) => {}
            () = end.cancelled() => last = true,
        }
        shared.audit.other(emf.lines(&shared, wall_clock())).await;
    }
}

async fn drain(shared: &RelayState, ended: Ended) {
    let open = shared.lifetime.open();
    info!(cause = %ended, open, "draining");
    shared.lifetime.drained_by(ended);
    shared.conns.close();
    tokio::select! {
        () = shared.conns.wait() => return,
        () = tokio::time::sleep(DRAIN_GRACE) => {}
        () = shared.cut.cancelled() => {}
    }
    warn!(open = shared.lifetime.open(), "cutting open connections");
    shared.cut.cancel();
    shared.conns.wait().await;
}

#[cfg(test)]
mod tests;
