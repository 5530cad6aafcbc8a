//! Keeps one lease: renews it while connections use it, says when it must end, revokes it.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::credential::vault::VaultError;
use crate::credential::vault::api::{Issued, Session};
use crate::credential::vault::lease::Lease;

/// How long an unused database user waits for the next connection: clients open several one after the other.
const LINGER: Duration = Duration::from_secs(10);
/// Between two tries to renew while Vault does not answer.
const TRY_AGAIN: Duration = Duration::from_secs(10);
/// For the calls that end a lease.
const REVOKE_TIMEOUT: Duration = Duration::from_secs(3);

/// See the module.
pub(super) struct Keeper {
    session: Session,
    lease: Arc<Lease>,
    lease_id: String,
    path: String,
    /// What Vault gave at first, and what is asked for again.
    lifetime: Duration,
    renewable: bool,
    expires: Instant,
    renew_at: Instant,
    failing: bool,
}

impl Keeper {
    pub(super) fn new(session: Session, issued: &Issued, lease: Arc<Lease>, path: String) -> Self {
        let lifetime = match session.token_lifetime {
            Duration::ZERO => issued.lifetime,
            token => issued.lifetime.min(token),
        };
        let now = Instant::now();
        Self {
            session,
            lease,
            lease_id: issued.lease_id.clone(),
            path,
            lifetime,
            renewable: issued.renewable,
            expires: now + lifetime,
            renew_at: now + lifetime / 2,
            failing: false,
        }
    }

    pub(super) async fn run(mut self, stop: CancellationToken) {
        let lease = Arc::clone(&self.lease);
        // Made once: a renewal must not start its wait anew.
        let unused = lease.unused(LINGER);
        tokio::pin!(unused);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = &mut unused => break,
                () = tokio::time::sleep_until(self.expires) => break,
                () = tokio::time::sleep_until(self.renew_at), if self.lease.is_open() => {
                    // A Vault that does not answer must not keep the end waiting.
                    let expires = self.expires;
                    let lost = tokio::select! {
                        () = stop.cancelled() => true,
                        () = tokio::time::sleep_until(expires) => true,
                        renewed = self.renew() => !renewed,
                    };
                    if lost {
                        break;
                    }
                }
            }
        }
        let conns = self.lease.conns();
        self.lease.end();
        match tokio::time::timeout(REVOKE_TIMEOUT, self.session.revoke(&self.lease_id)).await {
            Ok(Ok(())) => debug!(path = self.path, conns, "lease revoked"),
            Ok(Err(error)) => warn!(path = self.path, %error, "cannot revoke a lease, it ends with its time"),
            Err(_) => warn!(path = self.path, "Vault did not revoke a lease in time, it ends with its time"),
        }
    }

    /// False: the lease is gone.
    async fn renew(&mut self) -> bool {
        if !self.renewable {
            self.end_at_expiry("it cannot be renewed");
            return true;
        }
        match self.session.renew(&self.lease_id, self.lifetime).await {
            Ok(granted) => {
                let now = Instant::now();
                self.expires = now + granted;
                self.renew_at = now + granted / 2;
                if self.failing {
                    info!(path = self.path, "Vault renews the lease again");
                }
                self.failing = false;
                // Vault gives less than was asked for only when the maximum is near.
                if granted < self.lifetime - self.lifetime / 10 {
                    self.end_at_expiry("it is at its maximum");
                }
            }
            Err(VaultError::NoLease) => {
                warn!(
                    path = self.path,
                    conns = self.lease.conns(),
                    "the lease was revoked in Vault, closing its connections"
                );
                return false;
            }
            Err(error @ VaultError::Denied) => self.end_at_expiry(&error.to_string()),
            Err(error) => {
                if !self.failing {
                    let seconds = self.expires.saturating_duration_since(Instant::now()).as_secs();
                    warn!(path = self.path, %error, seconds, "cannot renew a lease; connections go on until it ends");
                }
                self.failing = true;
                let left = self.expires.saturating_duration_since(Instant::now());
                self.renew_at = Instant::now() + TRY_AGAIN.min(left / 4);
            }
        }
        true
    }

    fn end_at_expiry(&self, why: &str) {
        let seconds = self.expires.saturating_duration_since(Instant::now()).as_secs();
        let conns = self.lease.conns();
        warn!(
            path = self.path,
            conns, seconds, why, "a lease ends: new connections get a new user, these are closed then"
        );
        self.lease.end_at(self.expires);
    }
}
