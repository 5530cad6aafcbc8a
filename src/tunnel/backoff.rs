//! How long to wait before the next attempt.

use std::time::Duration;

/// Doubles from the first wait to the longest, and forgets that at a success.
#[derive(Debug, Clone)]
pub(super) struct Backoff {
    first: Duration,
    longest: Duration,
    wait: Duration,
}

impl Backoff {
    pub(super) const fn new((first, longest): (Duration, Duration)) -> Self {
        Self { first, longest, wait: first }
    }

    /// The wait of now, with jitter.
    pub(super) fn wait(&self) -> Duration {
        jittered(self.wait)
    }

    pub(super) fn grow(&mut self) {
        self.wait = self.wait.saturating_mul(2).min(self.longest);
    }

    pub(super) fn reset(&mut self) {
        self.wait = self.first;
    }

    /// Waits, and longer the next time.
    pub(super) async fn pause(&mut self) {
        tokio::time::sleep(self.wait()).await;
        self.grow();
    }
}

/// Between half of `wait` and all of it, so that many who have lost the same thing do not come back at once.
pub(super) fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(0.5 + fastrand::f64() / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waits_double_up_to_the_longest_and_begin_anew_after_a_success() {
        let ms = Duration::from_millis;
        let mut backoff = Backoff::new((ms(100), ms(1000)));
        for longest in [100, 200, 400, 800, 1000, 1000] {
            let before = tokio::time::Instant::now();
            backoff.pause().await;
            let waited = before.elapsed();
            // The clock of the runtime counts in milliseconds.
            assert!(waited >= ms(longest / 2) && waited <= ms(longest + 1), "{waited:?} of {longest} ms");
        }
        backoff.reset();
        assert!(backoff.wait() <= ms(100));
    }
}
