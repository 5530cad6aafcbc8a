//! How long a login waits, and for whom: the two peers have a time of their own each, which only waiting for them uses up.

use std::pin::pin;
use std::sync::LazyLock;
use std::time::Duration;

use bastion_wire::login::{Action, Peer};
use tokio::time::{Instant, timeout};
use tracing::info;

use crate::relay::error::{ConnError, DialError, UpstreamTlsError};
use crate::types::shortened;

/// For look-up, dial, TLS and login together. Aurora Serverless that has paused at 0 ACU holds the first connection until
/// it has resumed: about 15 s, 30 s and more after a day (Aurora User Guide, "Scaling to Zero ACUs").
pub(super) static UPSTREAM_TIMEOUT: LazyLock<Duration> =
    LazyLock::new(|| shortened("BASTION_TEST_UPSTREAM_TIMEOUT", Duration::from_secs(40)));
/// Longer than a database needs that is awake: the log says that it is waited for.
const UNUSUAL: Duration = Duration::from_secs(5);

/// What is left of both times.
#[derive(Debug)]
pub(super) struct Patience {
    /// What the client had at first.
    opening: Duration,
    client: Duration,
    upstream: Duration,
    conn_id: u64,
    /// Whether the log has been told about the upstream.
    logged: bool,
}

/// Whom an action waits for, and what it means if that takes too long.
#[derive(Debug)]
pub(super) struct Limit {
    whose: Peer,
    too_late: ConnError,
}

/// It has not happened in time.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLate;

impl Patience {
    /// `client` is the time for what the client has to say.
    pub(super) fn new(opening: Duration, conn_id: u64) -> Self {
        Self { opening, client: opening, upstream: *UPSTREAM_TIMEOUT, conn_id, logged: false }
    }

    /// Waits for `carrying`, which carries out an action, as long as the peer that it is for may take; `limit` is that of the
    /// action.
    pub(super) async fn carry_out<T>(
        &mut self,
        target: &str,
        limit: Limit,
        carrying: impl Future<Output = Result<T, ConnError>>,
    ) -> Result<T, ConnError> {
        let done = match limit.whose {
            Peer::Client => self.for_client(carrying).await,
            Peer::Upstream => self.for_upstream(target, carrying).await,
        };
        done.unwrap_or(Err(limit.too_late))
    }

    pub(super) fn limit(&self, action: &Action) -> Limit {
        Limit { whose: waits_for(action), too_late: self.too_late(action) }
    }

    /// What it means if `action` takes too long.
    fn too_late(&self, action: &Action) -> ConnError {
        let seconds = UPSTREAM_TIMEOUT.as_secs();
        match (action, waits_for(action)) {
            (_, Peer::Client) => ConnError::OpeningTimeout(self.opening.as_secs()),
            (Action::Dial, _) => DialError::Timeout(seconds).into(),
            (Action::StartTls { .. }, _) => UpstreamTlsError::Timeout(seconds).into(),
            _ => ConnError::LoginTimeout(seconds),
        }
    }

    /// Waits for something that the client has to do.
    async fn for_client<T>(&mut self, what: impl Future<Output = T>) -> Result<T, TooLate> {
        let begun = Instant::now();
        let done = timeout(self.client, what).await;
        self.client = self.client.saturating_sub(begun.elapsed());
        done.map_err(|_| TooLate)
    }

    /// Waits for something that the database `target` has to do.
    pub(super) async fn for_upstream<T>(&mut self, target: &str, what: impl Future<Output = T>) -> Result<T, TooLate> {
        let begun = Instant::now();
        let mut what = pin!(what);
        let unusual = UNUSUAL.saturating_sub(UPSTREAM_TIMEOUT.saturating_sub(self.upstream));
        let mut done = timeout(if self.logged { self.upstream } else { unusual }, what.as_mut()).await;
        if done.is_err() && !self.logged {
            self.logged = true;
            let (conn_id, limit) = (self.conn_id, UPSTREAM_TIMEOUT.as_secs());
            info!(conn_id, target, limit, "the database is slow to let a client in; if it was paused, it is waking");
            done = timeout(self.upstream.saturating_sub(begun.elapsed()), what).await;
        }
        self.upstream = self.upstream.saturating_sub(begun.elapsed());
        done.map_err(|_| TooLate)
    }
}

/// Who keeps the login waiting while `action` is carried out.
fn waits_for(action: &Action) -> Peer {
    match action {
        Action::Read(peer) | Action::Send(peer, _) | Action::StartTls { peer, .. } => *peer,
        Action::Dial | Action::NeedCredential | Action::SendSecret(_) => Peer::Upstream,
        Action::Cancel(_) | Action::Refuse(_) | Action::Splice { .. } => Peer::Client,
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_peer_uses_up_its_own_time_only() {
        let seconds = Duration::from_secs;
        let mut patience = Patience::new(seconds(15), 1);
        for (client, upstream) in [(7, 20), (7, 19)] {
            assert_eq!(patience.for_client(sleep(seconds(client))).await, Ok(()));
            assert_eq!(patience.for_upstream("orders", sleep(seconds(upstream))).await, Ok(()));
        }
        let begun = Instant::now();
        assert_eq!(patience.for_client(sleep(seconds(2))).await, Err(TooLate));
        assert_eq!(patience.for_upstream("orders", sleep(seconds(2))).await, Err(TooLate));
        assert_eq!(begun.elapsed(), seconds(2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_single_step_has_all_of_the_time() {
        let mut patience = Patience::new(Duration::from_secs(15), 1);
        let begun = Instant::now();
        assert_eq!(patience.for_upstream("orders", std::future::pending::<()>()).await, Err(TooLate));
        assert_eq!(begun.elapsed(), *UPSTREAM_TIMEOUT);
        assert!(patience.logged);
        // What is there at once needs none.
        assert_eq!(patience.for_upstream("orders", std::future::ready(1)).await, Ok(1));
    }
}
