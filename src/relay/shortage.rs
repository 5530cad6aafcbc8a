//! A limit of open files or sockets that is reached is told now and then.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// When somebody was told last that connections cannot be accepted.
#[derive(Default)]
pub(super) struct Shortage(Mutex<Option<Instant>>);

impl Shortage {
    /// One line a minute says as much as ten a second.
    const EVERY: Duration = Duration::from_secs(60);

    pub(super) fn may_be_told(&self) -> bool {
        let mut last = self.0.lock();
        let now = Instant::now();
        let due = last.is_none_or(|last| now.duration_since(last) >= Self::EVERY);
        if due {
            *last = Some(now);
        }
        due
    }
}
