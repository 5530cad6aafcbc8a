//! How fast the path carries: bytes acknowledged a second, measured for every message (as BBR does,
//! draft-ietf-ccwg-bbr, section "Delivery Rate Estimation").

use std::time::{Duration, Instant};

/// The highest rate is that of the last one to two of these.
const KEEP: Duration = Duration::from_secs(5);

/// What was under way when a message left.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mark {
    delivered: u64,
    delivered_at: Instant,
    /// When the message left whose acknowledgement was the newest then.
    first_sent: Instant,
    /// Bytes that were under way before it.
    pub(super) flight: usize,
}

/// Bytes acknowledged so far, and the rates that follow from them.
#[derive(Debug, Default)]
pub(super) struct Delivery {
    delivered: u64,
    delivered_at: Option<Instant>,
    first_sent: Option<Instant>,
    latest: Option<u64>,
    arrives: Option<u64>,
    /// The highest of this time and of the one before, and when this time began.
    highest: (u64, u64),
    began: Option<Instant>,
}

impl Delivery {
    /// The newest measurement, bytes a second.
    pub(super) fn latest(&self) -> Option<u64> {
        self.latest
    }

    /// The same, however slowly it left: what left slowly, because the window had shrunk, shows no slower path.
    pub(super) fn arrives(&self) -> Option<u64> {
        self.arrives
    }

    /// The highest one of the last seconds.
    pub(super) fn highest(&self) -> Option<u64> {
        self.latest.map(|_| self.highest.0.max(self.highest.1))
    }

    /// A message leaves while `flight` bytes are under way.
    pub(super) fn on_send(&mut self, now: Instant, flight: usize) -> Mark {
        if flight == 0 {
            (self.delivered_at, self.first_sent) = (Some(now), Some(now));
        }
        Mark {
            delivered: self.delivered,
            delivered_at: *self.delivered_at.get_or_insert(now),
            first_sent: *self.first_sent.get_or_insert(now),
            flight,
        }
    }

    /// A message of `bytes` was acknowledged, whichever copy of it.
    pub(super) fn on_arrival(&mut self, now: Instant, bytes: usize) {
        self.delivered = self.delivered.saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX));
        self.delivered_at = Some(now);
    }

    /// It was the copy that left at `sent` with `mark`.
    pub(super) fn on_copy(&mut self, now: Instant, sent: Instant, mark: Mark) {
        self.first_sent = self.first_sent.max(Some(sent));
        let bytes = self.delivered.saturating_sub(mark.delivered);
        let arrived_in = now.saturating_duration_since(mark.delivered_at);
        let took = arrived_in.max(sent.saturating_duration_since(mark.first_sent));
        let Some(latest) = rate(bytes, took) else { return };
        self.latest = Some(latest);
        self.arrives = rate(bytes, arrived_in).or(self.latest);
        let began = *self.began.get_or_insert(now);
        if now.saturating_duration_since(began) > KEEP {
            self.highest = (0, self.highest.0);
            self.began = Some(now);
        }
        self.highest.0 = self.highest.0.max(latest);
    }
}

/// Bytes a second; `None` when no time has passed.
fn rate(bytes: u64, time: Duration) -> Option<u64> {
    bytes.saturating_mul(1_000_000).checked_div(u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
}

/// Bytes that pass in `time`.
pub(super) fn bytes_in(rate: u64, time: Duration) -> usize {
    let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    usize::try_from(rate.saturating_mul(micros) / 1_000_000).unwrap_or(usize::MAX)
}

/// How long `bytes` take; nothing when the rate is not known.
pub(super) fn time_for(bytes: usize, rate: Option<u64>) -> Duration {
    let micros = u64::try_from(bytes).unwrap_or(u64::MAX).saturating_mul(1_000_000);
    Duration::from_micros(rate.and_then(|rate| micros.checked_div(rate)).unwrap_or(0))
}

#[cfg(test)]
mod tests;
