//! The end of one user of a task that others may use: whoever is the last one stops it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{Request, StatusCode};
use http_body_util::Full;
use secrecy::ExposeSecret as _;

use crate::api::{self, HEADER_LEAVE, HEADER_LINK, Others, Part};
use crate::cli::relay_client;
use crate::tunnel::lanes::Lanes;
use crate::tunnel::{Pass, Tunnel};

/// The relay answers at once.
const PATIENCE: Duration = Duration::from_secs(3);

/// Whether the launcher that goes has to stop the task.
pub(super) fn stops_task(others: Others, part: Part) -> bool {
    others.others == 0 && (part == Part::Started || part == Part::Used && others.last_stops)
}

/// Tells the relay that this launcher goes. A relay that does not know it, as older ones, or does not answer any more,
/// knows of nobody else.
pub(super) async fn leave(tunnel: &Tunnel, lanes: &Lanes, pass: &Arc<impl Pass>, part: Part) -> Others {
    let told = async {
        let mut renewed = false;
        loop {
            let token = pass.token();
            let answer = relay_client::send(tunnel, request(lanes, token.as_ref(), part)?).await?;
            match answer.status() {
                StatusCode::OK => return anyhow::Ok(serde_json::from_slice(answer.body())?),
                // The token may be too old, once.
                StatusCode::UNAUTHORIZED if !renewed => {
                    pass.renew(token.as_ref()).await?;
                    renewed = true;
                }
                status => bail!("HTTP status {}", status.as_u16()),
            }
        }
    };
    match tokio::time::timeout(PATIENCE, told).await {
        Ok(Ok(others)) => others,
        Ok(Err(error)) => {
            tracing::debug!(%error, "the relay does not say who else uses the task");
            Others::default()
        }
        Err(_) => Others::default(),
    }
}

fn request(
    lanes: &Lanes,
    token: Option<&secrecy::SecretString>,
    part: Part,
) -> Result<Request<Full<Bytes>>, http::Error> {
    let mut request = Request::post(api::LEAVE).header(HEADER_LEAVE, part.as_str());
    if let Some(link) = lanes.link() {
        request = request.header(HEADER_LINK, link.expose_secret());
    }
    if let Some(token) = token {
        request = request.header(AUTHORIZATION, format!("Bearer {}", token.expose_secret()));
    }
    request.body(Full::default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_one_stops_what_it_has_started_or_was_left() {
        let stops = |others, last_stops, part| stops_task(Others { others, last_stops }, part);
        assert!(stops(0, false, Part::Started) && stops(0, true, Part::Used));
        assert!(!stops(1, false, Part::Started) && !stops(1, true, Part::Used));
        // One that somebody keeps, or that runs for its idle time, is not a guest's to stop.
        assert!(!stops(0, false, Part::Used) && !stops(0, true, Part::Keep));
    }
}
