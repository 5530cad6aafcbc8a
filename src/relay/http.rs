//! The HTTP side on loopback: health, metrics, what is served, and one client connection over an upgrade.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{CONTENT_TYPE, UPGRADE};
use axum::http::{HeaderName, Response, StatusCode};
use axum::routing::{get, post};
use axum::{Json, Router};
use hyper::server::conn::http1;
use hyper::upgrade::Parts;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use crate::api::targets::{IDENTITY_OPTIONAL, IDENTITY_REQUIRED};
use crate::api::{self, HEADER_TARGET, Upgrade};
use crate::credential::Logins;
use crate::limits::Spare;
use crate::link::plain::Plain;
use crate::relay::accept::not_accepted;
use crate::relay::client_io::Early;
use crate::relay::clock::wall_clock;
use crate::relay::conn::NotAdmitted;
use crate::relay::identity::Person;
use crate::relay::response::{STOPPING, refusal, switching, unauthorized};
use crate::relay::state::{RelayState, Served};
use crate::relay::{authorize, conn, lane, leave, upstream};
use crate::types::{CredentialConfig, Target};

/// A client that opens the port and sends no request is closed.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests of ours are a few hundred bytes.
const BUFFER: usize = 16 * 1024;

/// For reading the secrets of all targets in `/v1/targets`; the launcher waits 10 s for its answer.
const SECRETS_TIMEOUT: Duration = Duration::from_secs(6);

/// Serves until `stop`; the relay keeps it up through the drain so that health and metrics stay readable.
pub(super) async fn serve(listener: TcpListener, shared: Arc<RelayState>, stop: CancellationToken) {
    let router = router(Arc::clone(&shared));
    let open = TaskTracker::new();
    let mut spare = Spare::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = spare.accept(listener.accept()) => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                not_accepted(&shared, &error, &listener, &mut spare).await;
                continue;
            }
        };
        upstream::tune(&stream);
        let service = TowerToHyperService::new(router.clone());
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_buf_size(BUFFER);
        let serving = builder.serve_connection(TokioIo::new(stream), service).with_upgrades();
        let stop = stop.clone();
        open.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                served = serving => if let Err(error) = served {
                    debug!(%error, "an HTTP connection ended badly");
                }
            }
        });
    }
    open.close();
    open.wait().await;
}

fn router(shared: Arc<RelayState>) -> Router {
    Router::new()
        .route(api::HEALTH, get(healthz))
        .route(api::READY, get(readyz))
        .route(api::METRICS, get(metrics))
        .route(api::TARGETS, get(targets))
        .route(api::AUTHORIZE, get(authorize::challenge).post(authorize::authorize))
        .route(api::LANE, get(upgrade))
        .route(api::LEAVE, post(leave::leave))
        .with_state(shared)
}

/// Alive: the runtime answers.
async fn healthz() -> Result<&'static str, Infallible> {
    std::future::ready(Ok("ok\n")).await
}

/// Ready: every port listens and no drain has begun.
async fn readyz(State(shared): State<Arc<RelayState>>) -> (StatusCode, &'static str) {
    let ready = shared.ready.load(Ordering::Acquire) && !shared.drain.is_cancelled();
    std::future::ready(match ready {
        true => (StatusCode::OK, "ready\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
    })
    .await
}

async fn metrics(State(shared): State<Arc<RelayState>>) -> ([(HeaderName, &'static str); 1], String) {
    const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    std::future::ready(([(CONTENT_TYPE, OPENMETRICS)], shared.metrics.text())).await
}

async fn targets(State(shared): State<Arc<RelayState>>) -> Json<api::targets::Relay> {
    let config = &shared.config;
    let mut targets = Vec::with_capacity(shared.served.len());
    let deadline = Instant::now() + SECRETS_TIMEOUT;
    for served in &shared.served {
        let (target, user, problem) = known(served, deadline).await;
        targets.push(api::targets::Target {
            engine: target.engine.as_str().to_owned(),
            credential: target.credential.source().to_owned(),
            login: target.credential.login().map(str::to_owned),
            open_connections: u64::try_from(served.metrics.open()).ok(),
            name: target.name,
            host: target.endpoint.host().map(str::to_owned),
            port: target.endpoint.port(),
            database: target.database,
            read_only: target.read_only,
            local_infile: target.local_infile,
            db_user: user,
            problem,
            relay_port: Some(target.relay_port),
            local_port: target.local_port,
        });
    }
    let identity = if shared.identity.is_required() { IDENTITY_REQUIRED } else { IDENTITY_OPTIONAL };
    Json(api::targets::Relay {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        env: Some(config.environment.clone()),
        access: Some(config.access.clone()),
        owner: config.owner.clone(),
        identity: Some(identity.to_owned()),
        local_password: config.local_password,
        started_at: Some(humantime::format_rfc3339_seconds(shared.started_at).to_string()),
        idle_stop_seconds: config.idle_stop.map(|limit| limit.as_secs()),
        max_age_seconds: config.max_age.map(|limit| limit.as_secs()),
        targets,
        unavailable: shared.unavailable.clone(),
    })
}

/// The target and who the relay is there, with what its secret says, or why the secret does not say it.
async fn known(served: &Served, deadline: Instant) -> (Target, Option<String>, Option<String>) {
    let target = &served.target;
    let configured = target.credential.db_user().map(str::to_owned);
    let (CredentialConfig::SecretsManager { .. }, Logins::Shared(cache)) = (&target.credential, &served.logins) else {
        return (target.clone(), configured, None);
    };
    match tokio::time::timeout_at(deadline, cache.credential(wall_clock())).await {
        Ok(Ok(loan)) => {
            let said = &loan.endpoint;
            let target = target.with_secret(said.host.as_deref(), said.port, said.database.as_deref());
            (target, Some(loan.user.clone()), None)
        }
        Ok(Err(error)) => (target.clone(), configured, Some(error.to_string())),
        Err(_) => (target.clone(), configured, Some("its secret could not be read in time".to_owned())),
    }
}

/// Turns this HTTP connection into a lane of a link, or into one client connection to the target that it names.
async fn upgrade(State(shared): State<Arc<RelayState>>, request: Request) -> Response<Body> {
    let wanted = request.headers().get(UPGRADE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let Some(protocol) = Upgrade::ALL.into_iter().find(|known| wanted.eq_ignore_ascii_case(known.token())) else {
        let known = Upgrade::ALL.map(Upgrade::token).join(", ");
        let message = format!("this address only upgrades to {known}; update bastion on the laptop or in the task");
        return refusal(StatusCode::UPGRADE_REQUIRED, &message);
    };
    match authorize::caller(&shared, request.headers()).await {
        Ok(_) if shared.drain.is_cancelled() => refusal(StatusCode::SERVICE_UNAVAILABLE, STOPPING),
        Ok(person) if protocol == Upgrade::Lane => lane::join(&shared, person, request),
        Ok(person) => connect(&shared, person, protocol, request).await,
        Err(no_token) => no_token.response(),
    }
}

/// One client connection.
async fn connect(
    shared: &Arc<RelayState>,
    person: Option<Arc<Person>>,
    protocol: Upgrade,
    mut request: Request,
) -> Response<Body> {
    let Some(name) = request.headers().get(HEADER_TARGET).and_then(|value| value.to_str().ok()) else {
        return refusal(StatusCode::BAD_REQUEST, &format!("the header {HEADER_TARGET} names no target"));
    };
    let served = match shared.wanted(name) {
        Ok(served) => Arc::clone(served),
        Err(message) => return refusal(StatusCode::NOT_FOUND, &message),
    };
    let conn = match conn::Conn::admit(Arc::clone(shared), served, conn::TUNNEL.to_owned(), person).await {
        Ok(conn) => conn,
        Err(NotAdmitted::ProofWanted(sentence)) => return unauthorized(&sentence),
        Err(NotAdmitted::Stopping) => return refusal(StatusCode::SERVICE_UNAVAILABLE, STOPPING),
    };
    let upgrade = hyper::upgrade::on(&mut request);
    let present = Present::new(shared);
    shared.conns.spawn(async move {
        let _present = present;
        // With the socket itself a connection can end by a reset.
        match upgrade.await.map(hyper::upgrade::Upgraded::downcast::<TokioIo<TcpStream>>) {
            Ok(Ok(Parts { io, read_buf, .. })) if protocol == Upgrade::Connection => {
                conn.serve(Plain::new(io.into_inner(), &read_buf)).await;
            }
            Ok(Ok(Parts { io, read_buf, .. })) => conn.serve(Early::new(read_buf, io.into_inner())).await,
            Ok(Err(_)) => debug!("an upgraded connection is no socket"),
            Err(error) => debug!(%error, "an upgrade did not come about"),
        }
    });
    switching(protocol)
}

/// An open connection without a link.
struct Present(Arc<RelayState>);

impl Present {
    fn new(shared: &Arc<RelayState>) -> Self {
        shared.plain.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(shared))
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        self.0.plain.fetch_sub(1, Ordering::Relaxed);
    }
}
