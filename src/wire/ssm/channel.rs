//! The sequenced channel of a port session: what is sent until it is acknowledged, what is received in order.
//!
//! Facts that shape it, from the agent's `agent/session/datachannel/datachannel.go` and measurements of agent 3.3.1142:
//! acknowledgements are selective, one a message, and not cumulative; the agent repeats only its oldest unacknowledged
//! message, so every duplicate must be acknowledged again or its queue jams; a message that the agent cannot take yet
//! stays unacknowledged and must be repeated soon; counters are never reset, not by a reconnect either.
//!
//! Order of use: `handle_*` with what happened, then [`Channel::poll_event`] until `None`, then
//! [`Channel::poll_transmit`] until `None`, then sleep until [`Channel::poll_timeout`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::message::{FLAG_FIN, FLAG_SYN, Message, MessageId, MessageType, PayloadType, SCHEMA_VERSION};
use super::pace::Pace;
use super::payload::{Acknowledge, ChannelClosed, from_json, to_json};
use super::rtt::Rtt;

/// Messages kept that came ahead of a missing one; the plugin keeps as many. At 1 KiB each that is 10 MB.
const EARLY_MAX: usize = 10_000;
/// Acknowledgements waiting for the socket before it is no longer read.
const ACKS_MAX: usize = 20_000;
/// Later messages acknowledged before an open one counts as lost: gateways may swap neighbours.
const GAP: u32 = 3;
/// Resend times until the first acknowledgement: for some milliseconds after the handshake the agent takes nothing.
const EAGER: [u64; 4] = [20, 40, 80, 160];

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

#[derive(Debug)]
struct Sent {
    payload_type: PayloadType,
    payload: Bytes,
    id: MessageId,
    sent_at: Instant,
    resends: u32,
    /// Acknowledged messages that were sent after this one.
    overtaken: u32,
}

/// Counts for people and tests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub resent: u64,
    /// Frames that were dropped because they do not parse or do not match their digest.
    pub bad_frames: u64,
    pub duplicates: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Channel {
    next_out: i64,
    unacked: BTreeMap<i64, Sent>,
    unacked_bytes: usize,
    resend: BTreeSet<i64>,
    resend_at: Option<Instant>,
    ever_acked: bool,
    expected: i64,
    early: BTreeMap<i64, (PayloadType, Bytes)>,
    acks: VecDeque<(MessageId, i64)>,
    /// Small messages of our own that go before tunnel bytes: handshake and flags.
    control: VecDeque<(PayloadType, Bytes)>,
    events: VecDeque<Event>,
    paused: bool,
    closed: bool,
    rtt: Rtt,
    pace: Pace,
    counts: Counts,
}

impl Channel {
    pub fn new(pace: Pace) -> Self {
        Self {
            next_out: 0,
            unacked: BTreeMap::new(),
            unacked_bytes: 0,
            resend: BTreeSet::new(),
            resend_at: None,
            ever_acked: false,
            expected: 0,
            early: BTreeMap::new(),
            acks: VecDeque::new(),
            control: VecDeque::new(),
            events: VecDeque::new(),
            paused: false,
            closed: false,
            rtt: Rtt::default(),
            pace,
            counts: Counts::default(),
        }
    }

    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Smoothed time from a message to its acknowledgement.
    pub fn round_trip(&self) -> Duration {
        self.rtt.smoothed()
    }

    /// Payload bytes of the largest message that may be sent now.
    pub fn message_size(&self) -> usize {
        self.pace.message_size()
    }

    /// Nothing of ours waits for an acknowledgement or for the socket.
    pub fn is_drained(&self) -> bool {
        self.unacked.is_empty() && self.control.is_empty() && self.acks.is_empty()
    }

    /// Messages without an acknowledgement.
    pub fn open_messages(&self) -> usize {
        self.unacked.len()
    }

    /// How long the oldest message has waited for its acknowledgement.
    pub fn oldest_unacked(&self, now: Instant) -> Option<Duration> {
        self.unacked.values().map(|sent| now.saturating_duration_since(sent.sent_at)).max()
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
                self.paused = false;
                if let Ok(ack) = Acknowledge::decode(&message.payload) {
                    self.acknowledged(now, ack.acknowledged_message_sequence_number);
                }
            }
            MessageType::OutputStreamData => {
                self.paused = false;
                self.receive(message);
            }
            MessageType::ChannelClosed if !self.closed => {
                let closed: ChannelClosed = from_json(&message.payload).unwrap_or_default();
                self.closed = true;
                self.events.push_back(Event::Closed(closed.output));
            }
            MessageType::PausePublication => self.paused = true,
            MessageType::StartPublication => self.paused = false,
            _ => {}
        }
    }

    fn receive(&mut self, message: Message) {
        let sequence = message.sequence;
        if sequence < self.expected {
            self.counts.duplicates = self.counts.duplicates.saturating_add(1);
        } else if sequence > self.expected {
            if self.early.len() >= EARLY_MAX && !self.early.contains_key(&sequence) {
                return;
            }
            if self.early.insert(sequence, (message.payload_type, message.payload)).is_some() {
                self.counts.duplicates = self.counts.duplicates.saturating_add(1);
            }
        } else {
            self.events.push_back(Event::Data(message.payload_type, message.payload));
            self.expected = self.expected.saturating_add(1);
            while let Some((payload_type, payload)) = self.early.remove(&self.expected) {
                self.events.push_back(Event::Data(payload_type, payload));
                self.expected = self.expected.saturating_add(1);
            }
        }
        // Also for a duplicate: the acknowledgement of the first one may be lost.
        self.acks.push_back((message.id, sequence));
    }

    fn acknowledged(&mut self, now: Instant, sequence: i64) {
        let Some(acked) = self.unacked.remove(&sequence) else { return };
        self.ever_acked = true;
        self.resend.remove(&sequence);
        self.unacked_bytes = self.unacked_bytes.saturating_sub(acked.payload.len());
        if acked.resends == 0 {
            self.rtt.sample(now.saturating_duration_since(acked.sent_at));
        }
        self.pace.acknowledged(now, acked.payload.len(), acked.resends == 0);
        for (open, sent) in self.unacked.range_mut(..sequence) {
            if sent.sent_at <= acked.sent_at {
                sent.overtaken = sent.overtaken.saturating_add(1);
                if sent.overtaken >= GAP && sent.resends == 0 {
                    self.resend.insert(*open);
                }
            }
        }
        if self.unacked.is_empty() {
            self.resend_at = None;
        }
    }

    /// The socket is a new one: everything that is open goes out again, oldest first. `too_large`: the old socket was
    /// closed with a message of a new size under way.
    pub fn handle_reconnect(&mut self, now: Instant) -> Option<Bytes> {
        self.paused = false;
        let given_back = self.pace.reconnected(now).and_then(|probe| self.take_back(probe));
        self.resend.extend(self.unacked.keys().copied());
        self.resend_at = None;
        given_back
    }

    /// Undoes the newest message, which the gateway does not carry, so that its bytes can go out in smaller ones.
    fn take_back(&mut self, sequence: i64) -> Option<Bytes> {
        let newest = self.unacked.last_key_value().map(|(newest, _)| *newest);
        if newest != Some(sequence) || sequence.checked_add(1) != Some(self.next_out) {
            return None;
        }
        let sent = self.unacked.remove(&sequence)?;
        self.unacked_bytes = self.unacked_bytes.saturating_sub(sent.payload.len());
        self.next_out = sequence;
        Some(sent.payload)
    }

    /// Fires what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.resend_at.is_some_and(|at| at <= now) {
            self.resend_at = None;
            let (eager, rtt) = (!self.ever_acked, self.rtt);
            for (sequence, sent) in &self.unacked {
                if deadline(sent, eager, rtt) <= now {
                    self.resend.insert(*sequence);
                }
            }
            self.arm();
        }
    }

    /// When to call [`Channel::handle_timeout`] or [`Channel::poll_transmit`] at the latest, and why.
    pub fn poll_timeout(&self, wants_to_send: bool) -> Option<(Instant, &'static str)> {
        let resend = self.resend_at.map(|at| (at, "resend"));
        let pace = (wants_to_send && self.has_room()).then(|| self.pace.next_send_at()).flatten();
        [resend, pace.map(|at| (at, "pace"))].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// True if tunnel bytes may go out now, as far as window, pause and pace allow.
    pub fn can_send(&self, now: Instant) -> bool {
        self.has_room() && self.pace.next_send_at().is_none_or(|at| at <= now)
    }

    fn has_room(&self) -> bool {
        !self.paused && !self.closed && self.unacked_bytes < self.pace.window() && !self.pace.is_probing()
    }

    /// The next frame: acknowledgements first, then what must be repeated, then control messages. Tunnel bytes come
    /// from [`Channel::transmit_data`].
    pub fn poll_transmit(&mut self, now: Instant, stamp: Stamp) -> Option<Bytes> {
        if let Some((id, sequence)) = self.acks.pop_front() {
            return Some(acknowledge(id, sequence, stamp));
        }
        while let Some(sequence) = self.resend.pop_first() {
            if let Some(sent) = self.unacked.get_mut(&sequence) {
                sent.sent_at = now;
                sent.resends = sent.resends.saturating_add(1);
                sent.overtaken = 0;
                let frame = data(sequence, sent.payload_type, sent.payload.clone(), sent.id, stamp.created_ms);
                self.counts.resent = self.counts.resent.saturating_add(1);
                self.pace.resent();
                self.arm();
                return Some(frame);
            }
        }
        let (payload_type, payload) = self.control.pop_front()?;
        Some(self.transmit(now, payload_type, payload, stamp))
    }

    /// The frame for tunnel bytes; call it only if [`Channel::can_send`], with at most [`Channel::message_size`] bytes.
    pub fn transmit_data(&mut self, now: Instant, payload: Bytes, stamp: Stamp) -> Bytes {
        self.pace.sent(now, payload.len(), self.next_out);
        self.transmit(now, PayloadType::OUTPUT, payload, stamp)
    }

    fn transmit(&mut self, now: Instant, payload_type: PayloadType, payload: Bytes, stamp: Stamp) -> Bytes {
        let (sequence, id) = (self.next_out, MessageId(stamp.id));
        self.next_out = self.next_out.saturating_add(1);
        self.unacked_bytes = self.unacked_bytes.saturating_add(payload.len());
        let frame = data(sequence, payload_type, payload.clone(), id, stamp.created_ms);
        self.unacked.insert(sequence, Sent { payload_type, payload, id, sent_at: now, resends: 0, overtaken: 0 });
        self.arm();
        frame
    }

    /// Sets the timer for the earliest deadline, if it does not run.
    fn arm(&mut self) {
        if self.resend_at.is_none() {
            let (eager, rtt) = (!self.ever_acked, self.rtt);
            let open = self.unacked.iter().filter(|(sequence, _)| !self.resend.contains(sequence));
            self.resend_at = open.map(|(_, sent)| deadline(sent, eager, rtt)).min();
        }
    }
}

/// When a message counts as lost: later each time, at most a second apart.
fn deadline(sent: &Sent, eager: bool, rtt: Rtt) -> Instant {
    let doublings = sent.resends.min(6);
    let wait = match usize::try_from(sent.resends).ok().and_then(|n| EAGER.get(n)) {
        Some(ms) if eager => Duration::from_millis(*ms),
        _ => rtt.timeout().saturating_mul(1_u32.checked_shl(doublings).unwrap_or(64)).min(Duration::from_secs(1)),
    };
    sent.sent_at.checked_add(wait).unwrap_or(sent.sent_at)
}

fn data(sequence: i64, payload_type: PayloadType, payload: Bytes, id: MessageId, created_ms: u64) -> Bytes {
    let message = Message {
        message_type: MessageType::InputStreamData,
        schema_version: SCHEMA_VERSION,
        created_ms,
        sequence,
        flags: 0,
        id,
        payload_type,
        payload,
    };
    message.to_frame()
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
