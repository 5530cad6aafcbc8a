//! The agent's end of a session: its websocket to the gateway, without the socket.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;

use super::session::Session;

/// One agent's connection. Sending is shared, receiving is not: the agent has a single reader.
#[derive(Clone)]
pub(crate) struct Leg {
    session: Arc<Session>,
}

/// What comes to the agent.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// The session is over and nothing more comes.
    Closed,
    /// The connection is lost; [`Leg::reconnect`] makes a new one.
    Cut,
    Frame(Bytes),
}

/// The receiving half.
pub(crate) struct Reader {
    session: Arc<Session>,
    cuts: watch::Receiver<u64>,
}

impl Leg {
    pub(crate) fn new(session: Arc<Session>) -> (Self, Reader) {
        let cuts = session.leg.subscribe();
        (Self { session: Arc::clone(&session) }, Reader { session, cuts })
    }

    /// Waits while the gateway takes nothing. False: the leg is cut and the frame lost.
    pub(crate) async fn send(&self, frame: Bytes) -> bool {
        self.session.while_not(|knobs| knobs.agent_hangs).await;
        self.session.take_from_agent(frame).await
    }

    /// A websocket ping; false if no pong comes.
    pub(crate) fn ping(&self) -> bool {
        self.session.agent_pings()
    }

    pub(crate) fn reconnect(&self) {
        self.session.agent_returns();
    }

    /// Waits while dials hang.
    pub(crate) async fn dial(&self) {
        self.session.while_not(|knobs| knobs.dials_hang).await;
    }

    /// The agent does not take what has come.
    pub(crate) fn refuses(&self) {
        self.session.agent_refuses();
    }

    /// The next smux frame has another version.
    pub(crate) fn spoils_smux(&self) -> bool {
        self.session.spoils_smux()
    }
}

impl Reader {
    pub(crate) async fn recv(&mut self) -> Incoming {
        self.session.while_not(|knobs| knobs.agent_hangs).await;
        tokio::select! {
            biased;
            Ok(()) = self.cuts.changed() => Incoming::Cut,
            frame = self.session.up.pop() => frame.map_or(Incoming::Closed, Incoming::Frame),
        }
    }
}
