//! One session as the gateway sees it: its grant, its two links, who is there and who is away.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bastion_wire::ssm::message::MessageType;
use bytes::Bytes;
use percent_encoding::NON_ALPHANUMERIC;
use percent_encoding::utf8_percent_encode;
use serde::Serialize;
use tokio::sync::Notify;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::SessionSpec;
use super::Started;
use super::frames;
use super::knobs::Direction;
use super::knobs::Event;
use super::knobs::Kind;
use super::knobs::Knobs;
use super::knobs::WhenDown;
use super::link::Counts;
use super::link::Link;

/// What a socket takes before the gateway notices that nobody reads: for an agent that sends less than 1 MB a second TCP
/// grows its buffer no further.
const SOCKET: usize = 128 * 1024;

/// What a client's connection is told to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Order {
    Bye,
    Cut,
    Freeze,
    Run,
}

pub(crate) struct Session {
    pub(crate) spec: SessionSpec,
    pub(crate) up: Link,
    pub(crate) down: Link,
    /// Set by [`super::Faults`].
    pub(crate) knobs: watch::Sender<Arc<Knobs>>,
    /// Who reads `down`: one client connection at a time.
    pub(crate) turn: tokio::sync::Mutex<()>,
    /// A client has opened the channel for the first time.
    pub(crate) opened: Notify,
    /// The session is over for good.
    pub(crate) over: CancellationToken,
    /// How often the agent's leg was cut.
    pub(crate) leg: watch::Sender<u64>,
    state: Mutex<State>,
}

struct State {
    token: String,
    cell: String,
    client: Option<watch::Sender<Order>>,
    agent_is_up: bool,
    agent_state: Option<String>,
    agent_pings: u64,
    active_at: Instant,
    connections: u64,
    /// Of the agent's data that has come.
    next_sequence: i64,
    smux_is_next: bool,
    cuts: u64,
    hung: u64,
    junk: u64,
    refused: u64,
}

/// What a session has seen, for tests and for whoever watches the sandbox.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Snapshot {
    pub session_id: String,
    pub target: String,
    pub up: Counts,
    pub down: Counts,
    pub client_is_there: bool,
    /// Client connections that got past OpenDataChannel.
    pub connections: u64,
    /// How often a client's connection was cut, let fall silent or closed.
    pub cuts: u64,
    /// How often the agent's connection was cut.
    pub agent_cuts: u64,
    /// Last `agent_session_state`.
    pub agent_state: Option<String>,
    pub agent_pings: u64,
    /// How often the agent wanted something that hangs.
    pub hung: u64,
    /// How often junk was sent, or a smux frame of another version.
    pub junk: u64,
    /// How often the agent did not take a message.
    pub refused: u64,
    pub over: bool,
}

impl Session {
    pub(crate) fn new(spec: SessionSpec, seed: &[u64], knobs: Arc<Knobs>) -> Self {
        let knobs = watch::Sender::new(knobs);
        Self {
            up: Link::new(Direction::Up, seed, knobs.subscribe()),
            down: Link::new(Direction::Down, seed, knobs.subscribe()),
            knobs,
            turn: tokio::sync::Mutex::new(()),
            opened: Notify::new(),
            over: CancellationToken::new(),
            leg: watch::Sender::new(0),
            state: Mutex::new(State {
                token: opaque(8),
                cell: cell(),
                client: None,
                agent_is_up: true,
                agent_state: None,
                agent_pings: 0,
                active_at: Instant::now(),
                connections: 0,
                next_sequence: 0,
                smux_is_next: false,
                cuts: 0,
                hung: 0,
                junk: 0,
                refused: 0,
            }),
            spec,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn grant(&self) -> Started {
        let state = self.state();
        Started {
            session_id: self.spec.session_id.clone(),
            token: state.token.clone(),
            stream_path: format!(
                "/v1/data-channel/{}?role=publish_subscribe&cell-number={}",
                self.spec.session_id,
                utf8_percent_encode(&state.cell, NON_ALPHANUMERIC)
            ),
        }
    }

    /// A new token and another cell; the old ones are refused from now on.
    pub(crate) fn renew(&self) -> Started {
        {
            let mut state = self.state();
            state.token = opaque(8);
            state.cell = cell();
        }
        self.grant()
    }

    pub(crate) fn is_cell(&self, number: &str) -> bool {
        self.state().cell == number
    }

    pub(crate) fn is_token(&self, token: &str) -> bool {
        self.state().token == token
    }

    fn drops(&self) -> bool {
        self.knobs.borrow().when_down == WhenDown::Drop
    }

    /// A client opened the channel. An older connection is cut.
    pub(crate) fn client_arrives(&self, orders: watch::Sender<Order>) {
        let mut state = self.state();
        state.connections += 1;
        if let Some(old) = state.client.replace(orders) {
            old.send_replace(Order::Cut);
        }
        state.active_at = Instant::now();
        drop(state);
        self.opened.notify_one();
    }

    /// The connection may read `down` now. Called with [`Self::turn`] held.
    pub(crate) fn client_starts(&self) {
        self.down.mute(false);
        self.down.push_own(frames::publication_to_client(MessageType::StartPublication));
        self.up.push_own(frames::publication_to_agent(MessageType::StartPublication));
    }

    /// The connection is gone; `frozen` if what was written to it last was never read.
    pub(crate) fn client_leaves(&self, orders: &watch::Sender<Order>, frozen: bool) {
        if self.drops() {
            self.down.mute(true);
            self.down.lose();
            self.up.lose();
        } else if frozen {
            self.down.lose_first(SOCKET);
        }
        let mut state = self.state();
        if state.client.as_ref().is_some_and(|current| current.same_channel(orders)) {
            state.client = None;
        }
        drop(state);
        self.up.push_own(frames::publication_to_agent(MessageType::PausePublication));
    }

    /// A frame of the client.
    pub(crate) async fn take_from_client(&self, frame: Bytes) {
        if Kind::of(&frame) == Kind::Data {
            self.touch();
        }
        self.up.push(frame).await;
    }

    /// A frame of the agent. False if its leg is down: the frame is lost.
    pub(crate) async fn take_from_agent(&self, frame: Bytes) -> bool {
        if !self.state().agent_is_up {
            self.down.lost();
            return false;
        }
        if frame.get(4..36).is_some_and(|name| name.starts_with(b"agent_session_state")) {
            let state: Option<serde_json::Value> =
                frame.get(120..).and_then(|payload| serde_json::from_slice(payload).ok());
            self.state().agent_state = state.and_then(|state| Some(state.get("SessionState")?.as_str()?.to_owned()));
            return true;
        }
        if Kind::of(&frame) == Kind::Data {
            self.touch();
            let sequence = frame.get(48..56).and_then(|bytes| bytes.try_into().ok()).map_or(0, i64::from_be_bytes);
            let mut state = self.state();
            state.next_sequence = state.next_sequence.max(sequence + 1);
        }
        self.down.push(frame).await;
        true
    }

    /// Waits while that knob is set.
    pub(crate) async fn while_not(&self, is_set: impl Fn(&Knobs) -> bool) {
        let mut knobs = self.knobs.subscribe();
        if is_set(&knobs.borrow()) {
            self.state().hung += 1;
            // The sender lives in the session, so this cannot fail.
            drop(knobs.wait_for(|knobs| !is_set(knobs)).await);
        }
    }

    pub(crate) fn spoils_smux(&self) -> bool {
        let mut state = self.state();
        let spoils = std::mem::take(&mut state.smux_is_next);
        state.junk += u64::from(spoils);
        spoils
    }

    pub(crate) fn agent_pings(&self) -> bool {
        let mut state = self.state();
        state.agent_pings += 1;
        state.agent_is_up
    }

    fn touch(&self) {
        self.state().active_at = Instant::now();
    }

    pub(crate) fn idle_until(&self, limit: Duration) -> Instant {
        self.state().active_at + limit
    }

    pub(crate) fn cut_agent(&self) {
        self.state().agent_is_up = false;
        if self.drops() {
            self.up.mute(true);
        }
        self.up.lose();
        self.down.lose();
        self.leg.send_modify(|cuts| *cuts += 1);
        self.down.push_own(frames::publication_to_client(MessageType::PausePublication));
    }

    pub(crate) fn agent_returns(&self) {
        self.state().agent_is_up = true;
        self.up.mute(false);
        self.down.push_own(frames::publication_to_client(MessageType::StartPublication));
    }

    pub(crate) fn happen(&self, event: Event) {
        let order = match event {
            Event::Bye => Order::Bye,
            Event::CutClient => Order::Cut,
            Event::FreezeClient => Order::Freeze,
            Event::CutAgent => return self.cut_agent(),
            Event::Junk => return self.junk(),
            Event::SmuxVersion => return self.state().smux_is_next = true,
            Event::DropNext { direction: Direction::Up, kind, count } => return self.up.drop_next(kind, count),
            Event::DropNext { direction: Direction::Down, kind, count } => return self.down.drop_next(kind, count),
        };
        let mut state = self.state();
        if let Some(client) = &state.client {
            client.send_replace(order);
            state.cuts += 1;
        }
    }

    /// A client's connection is ended here, for a reason of the knobs.
    pub(crate) fn cuts_client(&self) {
        self.state().cuts += 1;
    }

    /// The agent does not take a message.
    pub(crate) fn agent_refuses(&self) {
        self.state().refused += 1;
    }

    fn junk(&self) {
        let sequence = {
            let mut state = self.state();
            state.junk += 1;
            state.next_sequence
        };
        frames::junk(sequence).into_iter().for_each(|frame| self.down.push_own(frame));
    }

    /// Tells both sides that the session is over.
    pub(crate) fn end(&self, output: &str) {
        if self.over.is_cancelled() {
            return;
        }
        let frame = frames::channel_closed(&self.spec.session_id, output);
        self.down.push_own(frame.clone());
        self.up.push_own(frame);
        self.down.close();
        self.up.close();
        self.over.cancel();
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let state = self.state();
        Snapshot {
            session_id: self.spec.session_id.clone(),
            target: self.spec.target.clone(),
            up: self.up.counts(),
            down: self.down.counts(),
            client_is_there: state.client.is_some(),
            connections: state.connections,
            cuts: state.cuts,
            agent_cuts: *self.leg.borrow(),
            agent_state: state.agent_state.clone(),
            agent_pings: state.agent_pings,
            hung: state.hung,
            junk: state.junk,
            refused: state.refused,
            over: self.over.is_cancelled(),
        }
    }
}

/// Characters like those of AWS: base64 of `blocks` times 16 random bytes.
fn opaque(blocks: usize) -> String {
    let bytes: Vec<u8> = (0..blocks).flat_map(|_| Uuid::new_v4().into_bytes()).collect();
    BASE64_STANDARD.encode(bytes)
}

/// A cell number holds `+`, `/` and `=`, which a URL must escape and a signature must escape the same way.
fn cell() -> String {
    format!("AAEAA+/{}==", opaque(3))
}
