//! The end of one user of a task that others may use: whoever is the last one stops it.

use std::sync::Arc;
use std::time::Duration;

use secrecy::ExposeSecret as _;
use serde::Deserialize;

use crate::cli::target;
use crate::tunnel::lanes::Lanes;
use crate::tunnel::{Pass, Tunnel};
use crate::types::{HEADER_LEAVE, HEADER_LINK, LEAVE_KEEP, LEAVE_STARTED, LEAVE_USED};

/// The relay answers at once.
const PATIENCE: Duration = Duration::from_secs(3);

/// What a launcher has to do with its task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Started,
    Used,
    Keep,
}

/// What the relay knows of other users. Unknown fields come from newer relays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub(super) struct Others {
    pub(super) others: usize,
    /// Whoever started the task has left it to the others.
    pub(super) last_stops: bool,
}

impl Others {
    /// Whether the launcher that goes has to stop the task.
    pub(super) fn leaves_it_to_us(self, part: Part) -> bool {
        self.others == 0 && (part == Part::Started || part == Part::Used && self.last_stops)
    }
}

/// Tells the relay that this launcher goes. A relay that does not know it, as older ones, or does not answer any more,
/// knows of nobody else.
pub(super) async fn leave(tunnel: &Tunnel, lanes: &Lanes, pass: &Arc<impl Pass>, part: Part) -> Others {
    let told = async {
        let mut refused = None;
        loop {
            let token = pass.token();
            let (status, body) = target::exchange(tunnel, &request(lanes, token.as_ref(), part)).await?;
            match status {
                200 => return anyhow::Ok(serde_json::from_slice(&body)?),
                // The token may be too old, once.
                401 if refused.is_none() => {
                    pass.renew(token.as_ref()).await?;
                    refused = Some(status);
                }
                _ => anyhow::bail!("HTTP status {status}"),
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

fn request(lanes: &Lanes, token: Option<&secrecy::SecretString>, part: Part) -> String {
    let part = match part {
        Part::Started => LEAVE_STARTED,
        Part::Used => LEAVE_USED,
        Part::Keep => LEAVE_KEEP,
    };
    let mut head = format!(
        "POST /v1/leave HTTP/1.1\r\nHost: bastion\r\nConnection: close\r\nContent-Length: 0\r\n{HEADER_LEAVE}: {part}\r\n"
    );
    if let Some(link) = lanes.link() {
        head.push_str(&format!("{HEADER_LINK}: {}\r\n", link.expose_secret()));
    }
    if let Some(token) = token {
        head.push_str(&format!("Authorization: Bearer {}\r\n", token.expose_secret()));
    }
    head + "\r\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_one_stops_what_it_has_started_or_was_left() {
        let stops = |others, last_stops, part| Others { others, last_stops }.leaves_it_to_us(part);
        assert!(stops(0, false, Part::Started) && stops(0, true, Part::Used));
        assert!(!stops(1, false, Part::Started) && !stops(1, true, Part::Used));
        // One that somebody keeps, or that runs for its idle time, is not a guest's to stop.
        assert!(!stops(0, false, Part::Used) && !stops(0, true, Part::Keep));
    }
}
