//! The smoothed round trip, and how long to wait for an acknowledgement (RFC 6298).

use std::time::Duration;

/// Before the first round trip is known.
const INITIAL: Duration = Duration::from_millis(200);
/// Added to the round trip at least.
const MIN_VARIATION: Duration = Duration::from_millis(25);
/// The first wait just after the handshake, when the agent may refuse data without a word.
const EARLY: Duration = Duration::from_millis(20);

#[derive(Debug, Default)]
pub(super) struct RoundTrip {
    smoothed: Option<Duration>,
    variation: Duration,
}

impl RoundTrip {
    pub(super) fn smoothed(&self) -> Option<Duration> {
        self.smoothed
    }

    pub(super) fn sample(&mut self, delay: Duration) {
        let Some(smoothed) = self.smoothed else {
            self.smoothed = Some(delay);
            self.variation = part(delay, 1);
            return;
        };
        self.variation = weigh(self.variation, smoothed.abs_diff(delay), 2);
        self.smoothed = Some(weigh(smoothed, delay, 3));
    }

    /// The wait for an acknowledgement behind a queue that takes `queue`.
    pub(super) fn timeout(&self, queue: Duration) -> Duration {
        self.smoothed.map_or(INITIAL, |smoothed| {
            smoothed.max(queue).saturating_add(self.variation.saturating_mul(4).max(MIN_VARIATION))
        })
    }

    /// The same while the agent may still refuse data.
    pub(super) fn early_timeout(&self) -> Duration {
        self.smoothed.map_or(INITIAL, |smoothed| EARLY.max(smoothed.saturating_add(Duration::from_millis(10))))
    }

    /// How much later than one that was acknowledged a message may have left before and still be on its way.
    pub(super) fn patience(&self) -> Duration {
        let smoothed = self.smoothed.unwrap_or(INITIAL);
        smoothed.saturating_add(part(smoothed, 2).max(Duration::from_millis(2)))
    }
}

/// `old` weighted with `1 - 2^-shift`, `new` with the rest.
fn weigh(old: Duration, new: Duration, shift: u32) -> Duration {
    old.saturating_sub(part(old, shift)).saturating_add(part(new, shift))
}

/// `duration` divided by two, `shift` times.
fn part(duration: Duration, shift: u32) -> Duration {
    duration.checked_div(1 << shift).unwrap_or_default()
}
