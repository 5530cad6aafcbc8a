//! Round-trip estimate and resend timeout, with the constants of the agent and the plugin
//! (`agent/session/config/config.go`), only with a lower bound fit for short paths.

use std::time::Duration;

const INITIAL: Duration = Duration::from_millis(100);
const INITIAL_TIMEOUT: Duration = Duration::from_millis(200);
const SLACK: Duration = Duration::from_millis(20);
const MAX: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Rtt {
    smoothed: Option<Duration>,
    variation: Duration,
}

impl Rtt {
    pub(super) fn smoothed(self) -> Duration {
        self.smoothed.unwrap_or(INITIAL)
    }

    /// A message that was sent once has been acknowledged after `sample`.
    pub(super) fn sample(&mut self, sample: Duration) {
        let Some(old) = self.smoothed else {
            self.smoothed = Some(sample);
            self.variation = halve(sample);
            return;
        };
        let error = old.abs_diff(sample);
        self.variation = weigh(self.variation, 3, error, 4);
        self.smoothed = Some(weigh(old, 7, sample, 8));
    }

    /// After so long without acknowledgement a message is sent again.
    pub(super) fn timeout(self) -> Duration {
        let Some(smoothed) = self.smoothed else { return INITIAL_TIMEOUT };
        smoothed.saturating_add(SLACK.max(self.variation.saturating_mul(4))).min(MAX)
    }
}

fn halve(duration: Duration) -> Duration {
    duration.checked_div(2).unwrap_or_default()
}

/// `(weight * old + new) / of`
fn weigh(old: Duration, weight: u32, new: Duration, of: u32) -> Duration {
    old.saturating_mul(weight).saturating_add(new).checked_div(of).unwrap_or_default()
}
