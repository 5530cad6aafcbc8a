//! A port session against a model of the agent over a simulated link; the clock belongs to the test.

mod adversity;
mod line;
mod paths;
mod scenarios;

use line::{Faults, Link};

use super::*;
use crate::smux::frame::{Command, Frame};
use crate::ssm::message::{FLAG_SYN, Message, MessageId, MessageType, SCHEMA_VERSION};
use crate::ssm::payload::{Acknowledge, HandshakeComplete, RequestedAction};

/// The agent as measured: 1024 bytes a message and one a millisecond, repeats only its oldest unacknowledged message
/// every 100 ms, acknowledges what it takes, acknowledges duplicates again.
struct Agent {
    next_out: i64,
    unacked: BTreeMap<i64, Vec<u8>>,
    oldest_sent: Instant,
    expected: i64,
    early: BTreeMap<i64, (PayloadType, Bytes)>,
    greeted: bool,
    complete: bool,
    /// Nothing is taken before.
    takes_from: Instant,
    incoming: Vec<u8>,
    outgoing: VecDeque<u8>,
    next_send: Instant,
    received: BTreeMap<u32, Vec<u8>>,
    finished: Vec<u32>,
    terminated: bool,
    id: u8,
}

impl Agent {
    fn new(now: Instant) -> Self {
        Self {
            next_out: 0,
            unacked: BTreeMap::new(),
            oldest_sent: now,
            expected: 0,
            early: BTreeMap::new(),
            greeted: false,
            complete: false,
            takes_from: now,
            incoming: Vec::new(),
            outgoing: VecDeque::new(),
            next_send: now,
            received: BTreeMap::new(),
            finished: Vec::new(),
            terminated: false,
            id: 0,
        }
    }

    fn message(
        &mut self,
        message_type: MessageType,
        sequence: i64,
        payload_type: PayloadType,
        payload: Vec<u8>,
    ) -> Vec<u8> {
        self.id = self.id.wrapping_add(1);
        let flags = if sequence == 0 { FLAG_SYN } else { 0 };
        let message = Message {
            message_type,
            schema_version: SCHEMA_VERSION,
            created_ms: 1,
            sequence,
            flags,
            id: MessageId([self.id; 16]),
            payload_type,
            payload: payload.into(),
        };
        message.to_frame().to_vec()
    }

    fn send(&mut self, now: Instant, link: &mut Link, payload_type: PayloadType, payload: Vec<u8>) {
        let sequence = self.next_out;
        self.next_out += 1;
        let frame = self.message(MessageType::OutputStreamData, sequence, payload_type, payload);
        if self.unacked.is_empty() {
            self.oldest_sent = now;
        }
        self.unacked.insert(sequence, frame.clone());
        link.push(now, &frame);
    }

    fn write(&mut self, command: Command, stream: u32, data: &[u8]) {
        let mut out = Vec::new();
        Frame { command, stream, data: Bytes::copy_from_slice(data) }.encode(&mut out);
        self.outgoing.extend(out);
    }

    fn tick(&mut self, now: Instant, link: &mut Link) {
        if !self.greeted {
            self.greeted = true;
            let request = HandshakeRequest {
                agent_version: "3.3.1142.0".to_owned(),
                requested_client_actions: vec![RequestedAction {
                    action_type: ACTION_SESSION_TYPE.to_owned(),
                    action_parameters: serde_json::json!({"SessionType": "Port", "Properties": {"type": "LocalPortForwarding"}}),
                }],
            };
            self.send(now, link, PayloadType::HANDSHAKE_REQUEST, to_json(&request));
        }
        if self.complete && now >= self.next_send && !self.outgoing.is_empty() {
            let length = self.outgoing.len().min(1024);
            let payload = self.outgoing.drain(..length).collect();
            self.send(now, link, PayloadType::OUTPUT, payload);
            self.next_send = now + Duration::from_millis(1);
        }
        if now.duration_since(self.oldest_sent) >= Duration::from_millis(100)
            && let Some(frame) = self.unacked.values().next()
        {
            link.push(now, &frame.clone());
            self.oldest_sent = now;
        }
    }

    fn handle(&mut self, now: Instant, frame: Vec<u8>, link: &mut Link) {
        // The real one does not look at the digest; damage on this way is TLS's business, so the model drops it.
        let Ok(message) = Message::decode(frame.into()) else { return };
        if message.message_type == MessageType::Acknowledge {
            let ack = Acknowledge::decode(&message.payload).unwrap();
            self.unacked.remove(&ack.acknowledged_message_sequence_number);
            return;
        }
        if message.message_type != MessageType::InputStreamData || now < self.takes_from {
            return;
        }
        if message.sequence > self.expected {
            self.early.insert(message.sequence, (message.payload_type, message.payload.clone()));
        } else if message.sequence == self.expected {
            self.take(now, message.payload_type, &message.payload.clone(), link);
            self.expected += 1;
            while let Some((payload_type, payload)) = self.early.remove(&self.expected) {
                self.take(now, payload_type, &payload, link);
                self.expected += 1;
            }
        }
        let ack = Acknowledge {
            acknowledged_message_type: "input_stream_data".into(),
            acknowledged_message_id: message.id.to_string().into(),
            acknowledged_message_sequence_number: message.sequence,
            is_sequential_message: true,
        };
        let frame = self.message(MessageType::Acknowledge, 0, PayloadType::NONE, to_json(&ack));
        link.push(now, &frame);
    }

    fn take(&mut self, now: Instant, payload_type: PayloadType, payload: &Bytes, link: &mut Link) {
        if payload_type == PayloadType::HANDSHAKE_RESPONSE {
            let complete = HandshakeComplete { handshake_time_to_complete: 1, customer_message: String::new() };
            self.send(now, link, PayloadType::HANDSHAKE_COMPLETE, to_json(&complete));
            self.complete = true;
            // The port handler needs a moment; until then nothing is taken.
            self.takes_from = now + Duration::from_millis(5);
            return;
        }
        if payload_type == PayloadType::FLAG {
            self.terminated |= Flag::decode(payload) == Some(Flag::TerminateSession);
            return;
        }
        self.incoming.extend_from_slice(payload);
        while let Some((frame, used)) = Frame::decode(&self.incoming).unwrap() {
            self.incoming.drain(..used);
            match frame.command {
                Command::Psh => self.received.entry(frame.stream).or_default().extend_from_slice(&frame.data),
                Command::Fin => self.finished.push(frame.stream),
                Command::Syn => assert!(self.received.insert(frame.stream, Vec::new()).is_none(), "an id came again"),
                Command::Nop => {}
            }
        }
    }
}

/// Client, agent and the way between them.
struct Pair {
    now: Instant,
    client: PortSession,
    agent: Agent,
    up: Link,
    down: Link,
    connected: bool,
    events: Vec<Event>,
    got: BTreeMap<u32, Vec<u8>>,
    stamps: u64,
    largest: usize,
    sent_frames: usize,
    /// Frames above this size make the gateway close the socket.
    limit: usize,
    /// It passes them on before it closes; the acknowledgement is lost.
    passes_on: bool,
    closes: usize,
}

impl Pair {
    #[expect(clippy::disallowed_methods, reason = "only a start; the test moves it")]
    fn new(latency_ms: u64, faults: Faults, seed: u64) -> Self {
        let now = Instant::now();
        let latency = Duration::from_millis(latency_ms);
        Self {
            now,
            client: PortSession::new(PaceConfig::default()),
            agent: Agent::new(now),
            up: Link::new(latency, faults, seed),
            down: Link::new(latency, faults, seed.wrapping_mul(31)),
            connected: true,
            events: Vec::new(),
            got: BTreeMap::new(),
            stamps: 0,
            largest: 0,
            sent_frames: 0,
            limit: usize::MAX,
            passes_on: false,
            closes: 0,
        }
    }

    fn opened(latency_ms: u64, faults: Faults, seed: u64) -> Self {
        let mut pair = Self::new(latency_ms, faults, seed);
        pair.run_until("the session opens", |pair| {
            pair.events.iter().any(|event| matches!(event, Event::Opened { .. }))
        });
        pair
    }

    /// One millisecond, or until the next thing is due.
    fn step(&mut self) {
        while let Some(frame) = self.down.pop(self.now) {
            self.client.handle_frame(self.now, frame.into());
        }
        self.client.handle_timeout(self.now);
        while let Some(event) = self.client.poll_event() {
            if let Event::Data(stream, data) = &event {
                self.got.entry(*stream).or_default().extend_from_slice(data);
            }
            self.events.push(event);
        }
        while self.connected && self.up.takes() {
            self.stamps += 1;
            let mut id = [0; 16];
            id[..8].copy_from_slice(&self.stamps.to_be_bytes());
            let Some(frame) = self.client.poll_transmit(self.now, Stamp { id, created_ms: 1 }) else { break };
            self.largest = self.largest.max(frame.len());
            self.sent_frames += 1;
            if frame.len() > self.limit {
                if self.passes_on {
                    self.up.push(self.now, &frame);
                    while let Some((_, _, frame)) = self.up.queue.pop().map(|first| first.0) {
                        self.agent.handle(self.now, frame, &mut self.down);
                    }
                }
                self.cut();
                self.closes += 1;
                self.reconnect();
                continue;
            }
            self.up.push(self.now, &frame);
        }
        self.up.serve(self.now);
        while let Some(frame) = self.up.pop(self.now) {
            self.agent.handle(self.now, frame, &mut self.down);
        }
        if self.connected {
            self.agent.tick(self.now, &mut self.down);
        }
        self.now += Duration::from_millis(1);
    }

    /// Everything under way is lost.
    fn cut(&mut self) {
        self.connected = false;
        self.up.queue.clear();
        self.up.waiting.clear();
        self.down.queue.clear();
    }

    fn reconnect(&mut self) {
        self.connected = true;
        self.client.handle_reconnect(self.now);
    }

    fn run_until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        for _ in 0..600_000 {
            if done(self) {
                return;
            }
            self.step();
        }
        panic!("never: {what}; links {:?} {:?}", self.up.next(), self.down.next());
    }

    fn run(&mut self, milliseconds: u64) {
        for _ in 0..milliseconds {
            self.step();
        }
    }

    /// How long something small on a new stream takes, so many milliseconds after the start of an upload that is still
    /// under way then.
    fn small_beside(&mut self, upload: Vec<u8>, milliseconds: u64) -> Duration {
        let (bulk, length) = (self.client.open(self.now).unwrap(), upload.len());
        self.client.write(bulk, upload.into());
        self.run(milliseconds);
        let small = self.client.open(self.now).unwrap();
        self.client.write(small, Bytes::from_static(b"select 1"));
        let asked = self.now;
        self.run_until("the small one is there", |pair| {
            pair.agent.received.get(&small).is_some_and(|got| got == b"select 1")
        });
        assert!(self.agent.received[&bulk].len() < length, "the upload was over");
        self.now - asked
    }
}

fn seed_of(stream: u32) -> u8 {
    u8::try_from(stream % 256).unwrap()
}

fn bytes(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|n| u8::try_from(n % 256).unwrap().wrapping_mul(31).wrapping_add(seed)).collect()
}

const LOSSY: Faults = Faults { drop: 5, duplicate: 5, reorder: 10, corrupt: 2 };
