//! The sequenced channel of a port session: what is sent until it is acknowledged, what is received in order.
//!
//! Facts that shape it, from the agent's `agent/session/datachannel/datachannel.go` and measurements of agent 3.3.1142:
//! acknowledgements are selective, one a message, and not cumulative; the agent repeats only its oldest unacknowledged
//! message, so every duplicate must be acknowledged again or its queue jams; a message that the agent cannot take yet
//! stays unacknowledged and must be repeated soon; counters are never reset, not by a reconnect either.
//!
//! Order of use: `handle_*` with what happened, then [`Channel::poll_event`] until `None`, then
//! [`Channel::poll_transmit`] until `None`, then sleep until [`Channel::poll_timeout`].

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::super::smux::frame::NOP;
use super::message::{FLAG_FIN, FLAG_SYN, HEADER_SIZE, Message, MessageId, MessageType, PayloadType, SCHEMA_VERSION};
use super::pace::{PaceConfig, Pacer, Size, later};
use super::path::Path;
use super::payload::{Acknowledge, ChannelClosed, from_json, to_json};
use super::retransmit::{Cargo, Unacked};

/// Messages kept that came ahead of a missing one. The agent repeats ten lost ones a second and sends on meanwhile; what
/// is not kept is lost too, so there is room for 80 s of it.
const EARLY_MAX: usize = 65_536;
/// Acknowledgements waiting for the socket before it is no longer read.
const ACKS_MAX: usize = 20_000;
/// Messages without an acknowledgement, however small.
const UNACKED_MAX: usize = 8192;
/// A pause that nobody ends is over after this time: the word that ends it may be lost.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// Bytes of them.
const EARLY_BYTES: usize = 64 << 20;
/// A close with this much under way counts as the gateway's answer to our speed.
const LOAD: usize = 256 * 1024;
/// So much more than the window may be under way of those who have little to send.
const LITTLE: usize = 4096;

/// Randomness and wall clock for one outgoing message.
#[derive(Debug, Clone, Copy)]
pub struct Stamp {
    /// A fresh UUID.
    pub id: [u8; 16],
    /// Unix time in milliseconds, not 0.
    pub created_ms: u64,
}

/// What the channel delivers, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The gateway ended the session; the text is for the user and often empty.
    Closed(String),
    /// A data message of the agent.
    Data(PayloadType, Bytes),
}

/// Counts for people and tests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub resent: u64,
    /// Those of them whose first copy was only late.
    pub needless: u64,
    /// Frames that were dropped because they do not parse or do not match their digest.
    pub bad_frames: u64,
    pub duplicates: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Channel {
    unacked: Unacked,
    expected: i64,
    early: BTreeMap<i64, (PayloadType, Bytes)>,
    early_bytes: usize,
    missing_since: Option<Instant>,
    acks: VecDeque<(MessageId, i64)>,
    /// Small messages of our own that go before tunnel bytes: handshake and flags.
    control: VecDeque<(PayloadType, Bytes)>,
    events: VecDeque<Event>,
    paused: Option<Instant>,
    closed: bool,
    path: Path,
    pacer: Pacer,
    size: Size,
    first_size: usize,
    window: usize,
    counts: Counts,
}

impl Channel {
    pub fn new(config: PaceConfig) -> Self {
        Self {
            unacked: Unacked::default(),
            expected: 0,
            early: BTreeMap::new(),
            early_bytes: 0,
            missing_since: None,
            acks: VecDeque::new(),
            control: VecDeque::new(),
            events: VecDeque::new(),
            paused: None,
            closed: false,
            path: Path::new(),
            pacer: Pacer::new(config.first_rate),
            size: Size::new(config.first_size, config.max_size),
            first_size: config.first_size,
            window: config.window,
            counts: Counts::default(),
        }
    }

    pub fn counts(&self) -> Counts {
        let (resent, needless) = self.unacked.resends();
        Counts { resent, needless, ..self.counts }
    }

    /// Smoothed time from a message to its acknowledgement; zero before the first.
    pub fn round_trip(&self) -> Duration {
        self.unacked.round_trip().unwrap_or_default()
    }

    /// Payload bytes of the largest message that may be sent now.
    pub fn message_size(&self) -> usize {
        self.path.message_size(self.first_size, self.size.current())
    }

    /// Nothing of ours waits for an acknowledgement or for the socket.
    pub fn is_drained(&self) -> bool {
        self.unacked.is_empty() && self.control.is_empty() && self.acks.is_empty()
    }

    /// Messages without an acknowledgement.
    pub fn open_messages(&self) -> usize {
        self.unacked.len()
    }

    /// How long the oldest message has waited for its acknowledgement, repeats or not.
    pub fn oldest_unacked(&self, now: Instant) -> Option<Duration> {
        self.unacked.oldest().map(|sent| now.saturating_duration_since(sent))
    }

    /// What came through so far: messages of ours up to the first that is open, and those of the agent that were delivered.
    pub fn progress(&self) -> (i64, i64) {
        (self.unacked.first(), self.expected)
    }

    /// Payload bytes of the largest message that waits for its acknowledgement.
    pub fn largest_open(&self) -> usize {
        self.unacked.largest()
    }

    /// Payload bytes of a message that may be tried at most.
    pub fn size_limit(&self) -> usize {
        self.size.limit()
    }

    /// No message gets larger than that from now on, unless it has a number already.
    pub fn limit_size(&mut self, bytes: usize) {
        self.size.limit_to(bytes.max(self.first_size));
    }

    /// Since when something of the agent's is missing behind which other messages wait.
    pub fn missing_since(&self) -> Option<Instant> {
        self.missing_since
    }

    /// False: read nothing from the socket until the acknowledgements are out.
    pub fn wants_frames(&self) -> bool {
        self.acks.len() < ACKS_MAX
    }

    /// Queues a message that goes before tunnel bytes.
    pub fn send_control(&mut self, payload_type: PayloadType, payload: Bytes) {
        self.control.push_back((payload_type, payload));
    }

    /// Takes one websocket message.
    pub fn handle_frame(&mut self, now: Instant, frame: Bytes) {
        let Ok(message) = Message::decode(frame) else {
            // No acknowledgement: the agent repeats it.
            self.counts.bad_frames = self.counts.bad_frames.saturating_add(1);
            return;
        };
        match message.message_type {
            MessageType::Acknowledge => {
                self.paused = None;
                if let Ok(ack) = Acknowledge::decode(&message.payload) {
                    self.acknowledged(now, &ack);
                }
            }
            MessageType::OutputStreamData => {
                self.paused = None;
                self.receive(message);
                self.missing_since = (!self.early.is_empty()).then(|| self.missing_since.unwrap_or(now));
            }
            MessageType::ChannelClosed if !self.closed => {
                let closed: ChannelClosed = from_json(&message.payload).unwrap_or_default();
                self.closed = true;
                self.events.push_back(Event::Closed(closed.output));
            }
            MessageType::PausePublication => self.paused = Some(now),
            MessageType::StartPublication => self.paused = None,
            _ => {}
        }
    }

    fn receive(&mut self, message: Message) {
        let sequence = message.sequence;
        if sequence < self.expected {
            self.counts.duplicates = self.counts.duplicates.saturating_add(1);
        } else if sequence > self.expected {
            if self.early.contains_key(&sequence) {
                self.counts.duplicates = self.counts.duplicates.saturating_add(1);
            } else {
                let bytes = self.early_bytes.saturating_add(message.payload.len());
                if self.early.len() >= EARLY_MAX || bytes > EARLY_BYTES {
                    return;
                }
                self.early.insert(sequence, (message.payload_type, message.payload));
                self.early_bytes = bytes;
            }
        } else {
            self.deliver(message.payload_type, message.payload);
            while let Some((payload_type, payload)) = self.early.remove(&self.expected) {
                self.early_bytes = self.early_bytes.saturating_sub(payload.len());
                self.deliver(payload_type, payload);
            }
        }
        // Also for a duplicate: the acknowledgement of the first one may be lost.
        self.acks.push_back((message.id, sequence));
    }

    fn deliver(&mut self, payload_type: PayloadType, payload: Bytes) {
        if payload_type == PayloadType::HANDSHAKE_COMPLETE {
            self.unacked.expect_refusal();
        }
        self.events.push_back(Event::Data(payload_type, payload));
        self.expected = self.expected.saturating_add(1);
    }

    fn acknowledged(&mut self, now: Instant, ack: &Acknowledge<'_>) {
        let (sequence, id) = (ack.acknowledged_message_sequence_number, ack.acknowledged_message_id.as_ref());
        let shortest = self.path.shortest().unwrap_or_default();
        let Some(acked) = self.unacked.acknowledge(now, sequence, id, shortest) else { return };
        if let Some(sample) = acked.sample.filter(|_| acked.cargo != Cargo::Little) {
            self.path.on_ack(now, sample, self.unacked.delivery(), self.window);
            self.pacer.follow(now, self.path.pace());
        }
        match acked.cargo {
            Cargo::Control => return,
            Cargo::Data | Cargo::Little => self.size.on_ack(acked.bytes),
            Cargo::Probe => self.size.on_probe_ack(acked.bytes),
        }
        if let Some(shortest) = self.path.shortest() {
            self.pacer.on_ack(now, shortest, self.path.is_doubling());
        }
    }

    /// The socket is a new one: everything that is open goes out again, oldest first.
    pub fn handle_reconnect(&mut self, now: Instant) {
        self.paused = None;
        if self.unacked.bytes() > LOAD {
            self.pacer.on_close(now);
        }
        if self.unacked.shrink_probes(&Bytes::from_static(&NOP)) {
            self.size.on_probe_close();
        }
        self.unacked.resume();
        self.path = Path::new();
        self.pacer.follow(now, None);
    }

    /// Fires what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.paused.is_some_and(|since| later(since, PAUSE_MAX) <= now) {
            self.paused = None;
        }
        self.unacked.handle_timeout(now);
    }

    /// When to call [`Channel::handle_timeout`] or [`Channel::poll_transmit`] at the latest, and why.
    pub fn poll_timeout(&self, wants_to_send: bool) -> Option<(Instant, &'static str)> {
        let resend = self.unacked.timeout().map(|at| (at, "resend"));
        let pause = self.paused.map(|since| (later(since, PAUSE_MAX), "pause"));
        let pace = (wants_to_send && self.has_room()).then(|| self.pacer.ready_at()).flatten();
        [resend, pause, pace.map(|at| (at, "pace"))].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// True if tunnel bytes may go out now, as far as window, pause and pace allow.
    pub fn can_send(&mut self, now: Instant) -> bool {
        if self.has_room() {
            return self.pacer.allows(now);
        }
        if self.path.is_doubling() {
            self.pacer.keep_up();
        }
        false
    }

    /// Payload bytes that may go out all the same in a small message, of those who have little to send.
    pub fn room_for_little(&self) -> usize {
        let room = if self.may_send() { LITTLE.saturating_sub(self.unacked.little()) } else { 0 };
        room.saturating_sub(HEADER_SIZE).min(self.first_size)
    }

    fn has_room(&self) -> bool {
        self.may_send() && self.path.allows(self.unacked.flight(), self.message_size().saturating_add(HEADER_SIZE))
    }

    fn may_send(&self) -> bool {
        self.paused.is_none()
            && !self.closed
            && !self.unacked.has_due()
            && self.unacked.bytes() < self.window
            && self.unacked.len() < UNACKED_MAX
    }

    /// The next frame: acknowledgements first, then what must be repeated, then control messages. Tunnel bytes come
    /// from [`Channel::transmit_data`].
    pub fn poll_transmit(&mut self, now: Instant, stamp: Stamp) -> Option<Bytes> {
        if let Some((id, sequence)) = self.acks.pop_front() {
            return Some(acknowledge(id, sequence, stamp));
        }
        let path = &self.path;
        if let Some(frame) = self.unacked.send_again(now, stamp.id, |flight, bytes| path.allows(flight, bytes)) {
            return Some(frame);
        }
        let (payload_type, payload) = self.control.pop_front()?;
        self.transmit(now, payload_type, payload, Cargo::Control, stamp)
    }

    /// A message that carries only keepalives, if a larger size is to be tried now; as [`Channel::transmit_data`].
    pub fn transmit_probe(&mut self, now: Instant, stamp: Stamp) -> Option<Bytes> {
        let useful = self.path.message_size(self.first_size, usize::MAX);
        let payload = NOP.repeat(self.size.probe(useful)?.checked_div(NOP.len())?);
        self.pacer.spend(payload.len());
        self.transmit(now, PayloadType::OUTPUT, payload.into(), Cargo::Probe, stamp)
    }

    /// The frame for tunnel bytes; call it only if [`Channel::can_send`], with at most [`Channel::message_size`] bytes.
    pub fn transmit_data(&mut self, now: Instant, payload: Bytes, stamp: Stamp) -> Option<Bytes> {
        self.pacer.spend(payload.len());
        self.size.on_send(payload.len());
        self.transmit(now, PayloadType::OUTPUT, payload, Cargo::Data, stamp)
    }

    /// The same of those who have little to send, with at most [`Channel::room_for_little`] bytes.
    pub fn transmit_little(&mut self, now: Instant, payload: Bytes, stamp: Stamp) -> Option<Bytes> {
        self.transmit(now, PayloadType::OUTPUT, payload, Cargo::Little, stamp)
    }

    fn transmit(
        &mut self,
        now: Instant,
        payload_type: PayloadType,
        payload: Bytes,
        cargo: Cargo,
        stamp: Stamp,
    ) -> Option<Bytes> {
        let message = Message {
            message_type: MessageType::InputStreamData,
            schema_version: SCHEMA_VERSION,
            created_ms: stamp.created_ms,
            sequence: 0,
            flags: 0,
            id: MessageId(stamp.id),
            payload_type,
            payload,
        };
        self.unacked.send(now, message, cargo)
    }
}

fn acknowledge(id: MessageId, sequence: i64, stamp: Stamp) -> Bytes {
    let payload = to_json(&Acknowledge {
        acknowledged_message_type: "output_stream_data".into(),
        acknowledged_message_id: id.to_string().into(),
        acknowledged_message_sequence_number: sequence,
        is_sequential_message: true,
    });
    let message = Message {
        message_type: MessageType::Acknowledge,
        schema_version: SCHEMA_VERSION,
        created_ms: stamp.created_ms,
        sequence: 0,
        flags: FLAG_SYN | FLAG_FIN,
        id: MessageId(stamp.id),
        payload_type: PayloadType::NONE,
        payload: payload.into(),
    };
    message.to_frame()
}

#[cfg(test)]
mod tests;
