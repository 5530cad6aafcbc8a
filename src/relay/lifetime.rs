//! How long a relay lives: it ends itself when nobody uses it and when it is too old.

use std::fmt;
use std::sync::OnceLock;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// What ended a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    Idle,
    /// Whoever has started the task has left it to others, and the last of them is gone.
    Left,
    MaxAge,
    Signal,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Idle => "idle",
            Self::Left => "its last user has left",
            Self::MaxAge => "maximum age",
            Self::Signal => "signal",
        })
    }
}

/// Counts database connections and knows the limits.
pub(super) struct Lifetime {
    idle_stop: Option<Duration>,
    deadline: Option<Instant>,
    open: watch::Sender<usize>,
    /// What has begun the drain.
    cause: OnceLock<Ended>,
}

/// One open database connection, until dropped.
pub(super) struct OpenGuard<'a>(&'a watch::Sender<usize>);

impl Drop for OpenGuard<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|open| *open = open.saturating_sub(1));
    }
}

impl Lifetime {
    /// The age counts from now.
    pub(super) fn new(idle_stop: Option<Duration>, max_age: Option<Duration>) -> Self {
        let deadline = max_age.map(|age| Instant::now() + age);
        Self { idle_stop, deadline, open: watch::Sender::new(0), cause: OnceLock::new() }
    }

    pub(super) fn opened(&self) -> OpenGuard<'_> {
        self.open.send_modify(|open| *open = open.saturating_add(1));
        OpenGuard(&self.open)
    }

    pub(super) fn open(&self) -> usize {
        *self.open.borrow()
    }

    /// Says why the drain begins.
    pub(super) fn drained_by(&self, cause: Ended) {
        self.cause.get_or_init(|| cause);
    }

    pub(super) fn cause(&self) -> Option<Ended> {
        self.cause.get().copied()
    }

    /// Waits for a limit. Cancel safe.
    pub(super) async fn ended(&self) -> Ended {
        tokio::select! {
            () = self.idle() => Ended::Idle,
            () = self.too_old() => Ended::MaxAge,
        }
    }

    async fn too_old(&self) {
        match self.deadline {
            Some(deadline) => tokio::time::sleep_until(deadline).await,
            None => std::future::pending().await,
        }
    }

    async fn idle(&self) {
        let Some(limit) = self.idle_stop else { return std::future::pending().await };
        let mut open = self.open.subscribe();
        loop {
            if open.wait_for(|open| *open == 0).await.is_err() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(limit) => return,
                // Any connection starts the wait anew, even one that has ended already.
                _ = open.changed() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn idleness_counts_from_the_last_connection() {
        let lifetime = Lifetime::new(Some(30 * MINUTE), None);
        let start = Instant::now();
        let user = async {
            tokio::time::sleep(29 * MINUTE).await;
            let guard = lifetime.opened();
            tokio::time::sleep(100 * MINUTE).await;
            drop(guard);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            ended = lifetime.ended() => assert_eq!(ended, Ended::Idle),
            () = user => {}
        }
        assert_eq!(start.elapsed().as_secs() / 60, 159);
    }

    #[tokio::test(start_paused = true)]
    async fn the_maximum_age_holds_even_in_use() {
        let lifetime = Lifetime::new(Some(MINUTE), Some(480 * MINUTE));
        let _guard = lifetime.opened();
        assert_eq!(lifetime.ended().await, Ended::MaxAge);
    }
}
