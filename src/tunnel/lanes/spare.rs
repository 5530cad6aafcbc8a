//! Further sessions of the plain way, for new clients while its session is held up.
//!
//! A session has one order for all its streams and no window for each. A target that does not read stops what goes to all
//! others, and messages of the agent that were lost come back at ten a second, everything behind them waiting. Nothing helps
//! the streams in it; new clients get another session.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::MutexGuard;

use super::{Inner, Lanes};
use crate::tunnel::{State, Tunnel};

/// A session in which something has waited for so long is held up.
const HELD_UP: Duration = Duration::from_secs(6);
/// Further sessions at once: whatever holds up so many will hold up the next.
const MOST: usize = 4;
/// How often it is looked whether a further session is still of use, and how often in a row it must not be.
const LOOK: Duration = Duration::from_secs(5);
const IDLE: u32 = 12;
/// The first session has so long to be followed by another.
const PATIENCE: Duration = Duration::from_secs(20);

/// The further sessions.
pub(super) type Spares = tokio::sync::Mutex<Vec<Tunnel>>;

impl Lanes {
    /// The tunnel for a new client of the plain way.
    pub(in crate::tunnel) async fn plain(&self) -> Tunnel {
        let inner = self.inner();
        if !inner.first().is_held_up(HELD_UP) {
            inner.tell("");
            return inner.first().clone();
        }
        if inner.first().is_unused() {
            // Its agent waits for a target that nobody wants any more.
            let mut state = inner.first().state();
            inner.first().give_up("nothing moves in it");
            drop(tokio::time::timeout(PATIENCE, state.wait_for(|state| *state != State::Connected)).await);
            let _back = inner.first().up(PATIENCE).await;
            return inner.first().clone();
        }
        // One client opens the session, the others wait for it.
        let mut spares = inner.spares().lock().await;
        let usable = |tunnel: &&Tunnel| *tunnel.state().borrow() == State::Connected && !tunnel.is_held_up(HELD_UP);
        if let Some(spare) = spares.iter().find(usable) {
            return spare.clone();
        }
        inner.open_spare(&mut spares).await.unwrap_or_else(|| inner.first().clone())
    }
}

impl Inner {
    async fn open_spare(self: &Arc<Self>, spares: &mut MutexGuard<'_, Vec<Tunnel>>) -> Option<Tunnel> {
        let seconds = HELD_UP.as_secs();
        let held_up = format!(
            "nothing has come through the session for {seconds} s: a target does not read, or what the agent has sent was \
             lost, which it repeats slowly"
        );
        if spares.len() >= MOST {
            self.tell(&format!("{held_up}; so it is with {MOST} further sessions"));
            return None;
        }
        match self.opener().open().await {
            Ok((tunnel, session_id)) => {
                self.tell(&format!("{held_up}; new connections use another session"));
                spares.push(tunnel.clone());
                self.add_tunnel(&tunnel);
                let (inner, spare) = (Arc::clone(self), tunnel.clone());
                self.spawn(async move { inner.look_after(spare, session_id).await });
                Some(tunnel)
            }
            Err(error) => {
                self.tell(&format!("{held_up}; another session cannot be opened: {error}"));
                None
            }
        }
    }

    /// Ends the session when it is over, when nobody has used it for a while, or with everything else.
    async fn look_after(&self, spare: Tunnel, session_id: String) {
        let unused = async {
            let mut idle = 0;
            while idle < IDLE {
                tokio::time::sleep(LOOK).await;
                idle = if spare.is_unused() { idle.saturating_add(1) } else { 0 };
                if !self.first().is_held_up(HELD_UP) {
                    self.tell("");
                }
            }
        };
        let mut state = spare.state();
        let over = async { drop(state.wait_for(|state| matches!(state, State::Ended { .. })).await) };
        let until = async {
            tokio::select! {
                () = unused => {}
                () = over => {}
            }
        };
        let _stopped = self.stopped(until).await;
        self.spares().lock().await.retain(|known| !known.is(&spare));
        self.remove_tunnel(&spare);
        spare.close().await;
        self.opener().end(&session_id).await;
    }
}
