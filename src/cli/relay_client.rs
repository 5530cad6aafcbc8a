//! Requests to the relay's HTTP side, each over a stream of the tunnel of its own.

use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::header::HOST;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;

use crate::api::targets::Relay;
use crate::api::{self, Refusal};
use crate::cli::error::CommandError;
use crate::cli::session::Sessions;
use crate::cli::ui::Ui;
use crate::http_client;
use crate::tunnel::Tunnel;

const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const ANSWER_MAX: usize = 1 << 20;

/// Waits until the relay at the other end of the tunnel is ready, and gives what it says about itself.
///
/// # Errors
/// If it does not come up, or is not the relay of what was asked for.
pub(super) async fn wait_until_ready(
    ui: &Ui,
    tunnel: &Tunnel,
    sessions: &Sessions,
    patience: Duration,
) -> Result<Relay, CommandError> {
    let phase = ui.phase("relay");
    let asking = async {
        loop {
            match get(tunnel, api::READY).await {
                Ok(answer) if answer.status() == StatusCode::OK => break,
                Ok(_) | Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
        describe(tunnel).await
    };
    let Ok(answer) = tokio::time::timeout(patience, asking).await else {
        let message = anyhow::anyhow!("the relay in the task is not ready after {} s", patience.as_secs());
        return Err(CommandError::failed(message));
    };
    let relay = answer?;
    if !sessions.is_expected(&relay)? {
        ui.warn("  ! the relay is older and does not say which environment and access level it is for: that cannot be checked");
    }
    let noun = if relay.targets.len() == 1 { "target" } else { "targets" };
    let unavailable = match relay.unavailable.len() {
        0 => String::new(),
        count => format!(", {count} not served"),
    };
    ui.done(phase, &format!("version {}, {} {noun}{unavailable}", relay.version, relay.targets.len()));
    Ok(relay)
}

/// What the relay says about itself.
pub(super) async fn describe(tunnel: &Tunnel) -> anyhow::Result<Relay> {
    let answer = get(tunnel, api::TARGETS).await?;
    if answer.status() != StatusCode::OK {
        bail!("the relay answered {} with HTTP status {}", api::TARGETS, answer.status().as_u16());
    }
    serde_json::from_slice(answer.body()).context("the relay's list of targets does not parse; is it a newer version?")
}

/// One small request and its answer.
pub(super) async fn send(tunnel: &Tunnel, mut request: Request<Full<Bytes>>) -> anyhow::Result<Response<Bytes>> {
    request.headers_mut().insert(HOST, HeaderValue::from_static("bastion"));
    let stream = tunnel.connect(ANSWER_TIMEOUT)?;
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, http_client::exchange(stream, request, ANSWER_MAX)).await;
    Ok(answer.with_context(|| format!("the relay did not answer within {} s", ANSWER_TIMEOUT.as_secs()))??)
}

pub(super) async fn get(tunnel: &Tunnel, path: &str) -> anyhow::Result<Response<Bytes>> {
    send(tunnel, Request::get(path).body(Full::default())?).await
}

/// The relay's sentence in an answer that is a refusal.
pub(super) fn refusal(answer: &Response<Bytes>) -> Option<String> {
    serde_json::from_slice(answer.body()).ok().map(|Refusal { error }| error)
}
