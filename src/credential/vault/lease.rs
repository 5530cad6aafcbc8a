//! A lease and who uses it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// How long a new database user may take to reach every replica: Aurora's readers are behind by milliseconds, replicas of
/// RDS by seconds.
const REPLICATION: Duration = Duration::from_secs(10);

/// What a lease is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// New connections may use it.
    Open,
    /// Those that use it must end at this time; new ones get another.
    Ending(Instant),
    /// Nobody may use it.
    Over,
}

#[derive(Debug, Clone, Copy)]
struct State {
    conns: usize,
    phase: Phase,
    made: Instant,
}

/// A database user that lives as long as its lease.
#[derive(Debug)]
pub(crate) struct Lease(watch::Sender<State>);

/// One connection that uses a lease, until dropped.
#[derive(Debug)]
pub(crate) struct Hold(Arc<Lease>);

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.0.send_modify(|state| state.conns = state.conns.saturating_sub(1));
    }
}

impl Hold {
    /// Waits until it is known when the connection must end, and says when. Cancel safe.
    pub(crate) async fn ending(&self) -> Instant {
        let mut state = self.0.0.subscribe();
        loop {
            let phase = state.borrow_and_update().phase;
            match phase {
                Phase::Ending(at) => return at,
                // The sender lives in `self`, so a change is all that `changed` can mean.
                Phase::Open | Phase::Over => drop(state.changed().await),
            }
        }
    }

    /// Waits until the connection must end. Cancel safe.
    pub(crate) async fn ended(&self) {
        let mut state = self.0.0.subscribe();
        loop {
            let phase = state.borrow_and_update().phase;
            match phase {
                Phase::Over => return,
                // The sender lives in `self`, so a change is all that `changed` can mean.
                Phase::Open => drop(state.changed().await),
                Phase::Ending(at) => tokio::select! {
                    () = tokio::time::sleep_until(at) => return,
                    _ = state.changed() => {}
                },
            }
        }
    }
}

impl Lease {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(State { conns: 0, phase: Phase::Open, made: Instant::now() }))
    }

    /// For a new connection; `None` if it must take another lease.
    pub(crate) fn hold(self: &Arc<Self>) -> Option<Hold> {
        let held = self.0.send_if_modified(|state| {
            let open = state.phase == Phase::Open;
            state.conns = state.conns.saturating_add(usize::from(open));
            open
        });
        held.then(|| Hold(Arc::clone(self)))
    }

    pub(super) fn conns(&self) -> usize {
        self.0.borrow().conns
    }

    /// Whether the database user is so new that a replica may not have it yet.
    pub(crate) fn is_young(&self) -> bool {
        self.0.borrow().made.elapsed() < REPLICATION
    }

    pub(crate) fn is_open(&self) -> bool {
        self.0.borrow().phase == Phase::Open
    }

    /// No new connections; those that there are end at this time.
    pub(super) fn end_at(&self, at: Instant) {
        self.0.send_modify(|state| state.phase = Phase::Ending(at));
    }

    pub(super) fn end(&self) {
        self.0.send_modify(|state| state.phase = Phase::Over);
    }

    /// Waits until nobody has used it for `linger`; it is over then. Cancel safe.
    pub(super) async fn unused(&self, linger: Duration) {
        let mut state = self.0.subscribe();
        loop {
            // The sender lives in `self`.
            let _alive = state.wait_for(|state| state.conns == 0).await.map(drop);
            tokio::select! {
                () = tokio::time::sleep(linger) => {
                    let over = self.0.send_if_modified(|state| {
                        let unused = state.conns == 0;
                        if unused {
                            state.phase = Phase::Over;
                        }
                        unused
                    });
                    if over {
                        return;
                    }
                }
                _ = state.changed() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_lease_is_over_when_nobody_has_used_it_for_a_while() {
        let lease = Arc::new(Lease::new());
        let begun = Instant::now();
        let user = async {
            let hold = lease.hold().unwrap();
            tokio::time::sleep(60 * SECOND).await;
            drop(hold);
            tokio::time::sleep(5 * SECOND).await;
            drop(lease.hold().unwrap());
        };
        tokio::join!(lease.unused(10 * SECOND), user);
        assert_eq!(begun.elapsed(), 75 * SECOND);
        assert!(lease.hold().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn an_ending_lease_takes_nobody_and_ends_those_that_it_has() {
        let lease = Arc::new(Lease::new());
        let (first, second) = (lease.hold().unwrap(), lease.hold().unwrap());
        let begun = Instant::now();
        let announcing = async {
            tokio::time::sleep(SECOND).await;
            lease.end_at(begun + 30 * SECOND);
        };
        let (announced, ()) = tokio::join!(first.ending(), announcing);
        assert_eq!((announced, begun.elapsed()), (begun + 30 * SECOND, SECOND));
        assert!(lease.hold().is_none() && !lease.is_open() && lease.conns() == 2);
        first.ended().await;
        assert_eq!(begun.elapsed(), 30 * SECOND);
        lease.end_at(begun + 90 * SECOND);
        let ending = async {
            tokio::time::sleep(SECOND).await;
            lease.end();
        };
        tokio::join!(second.ended(), ending);
        assert_eq!(begun.elapsed(), 31 * SECOND);
    }
}
