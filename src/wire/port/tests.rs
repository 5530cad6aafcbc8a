//! A port session against a model of the agent over a simulated link; the clock belongs to the test.

use std::collections::BinaryHeap;

use proptest::prelude::*;

mod adversity;

use super::*;
use crate::wire::smux::frame::{Command, Frame};
use crate::wire::ssm::message::{FLAG_SYN, Message, MessageId, MessageType, SCHEMA_VERSION};
use crate::wire::ssm::payload::{Acknowledge, HandshakeComplete, RequestedAction};

/// Chance of each fault for one frame, in percent.
#[derive(Debug, Clone, Copy, Default)]
struct Faults {
    drop: u64,
    duplicate: u64,
    reorder: u64,
    corrupt: u64,
}

/// A link that keeps frames until they are due.
struct Link {
    latency: Duration,
    faults: Faults,
    /// Bytes a second; what does not fit waits.
    rate: Option<u64>,
    free_at: Option<Instant>,
    queue: BinaryHeap<std::cmp::Reverse<(Instant, u64, Vec<u8>)>>,
    count: u64,
    random: u64,
}

impl Link {
    fn new(latency: Duration, faults: Faults, seed: u64) -> Self {
        Self { latency, faults, rate: None, free_at: None, queue: BinaryHeap::new(), count: 0, random: seed | 1 }
    }

    fn chance(&mut self, percent: u64) -> bool {
        // xorshift64, enough to shuffle faults.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % 100 < percent
    }

    fn push(&mut self, now: Instant, frame: &[u8]) {
        let faults = self.faults;
        let copies = if self.chance(faults.drop) { 0 } else { 1 + usize::from(self.chance(faults.duplicate)) };
        for _ in 0..copies {
            let late = if self.chance(faults.reorder) { Duration::from_millis(7) } else { Duration::ZERO };
            let mut frame = frame.to_vec();
            if self.chance(faults.corrupt) {
                let last = frame.len() - 1;
                frame[last] ^= 0x20;
            }
            self.count += 1;
            let mut leaves = now;
            if let Some(rate) = self.rate {
                let takes = Duration::from_nanos(frame.len() as u64 * 1_000_000_000 / rate);
                leaves = self.free_at.map_or(now, |at| at.max(now)) + takes;
                self.free_at = Some(leaves);
            }
            self.queue.push(std::cmp::Reverse((leaves + self.latency + late, self.count, frame)));
        }
    }

    fn pop(&mut self, now: Instant) -> Option<Vec<u8>> {
        let due = self.queue.peek().is_some_and(|first| first.0.0 <= now);
        due.then(|| self.queue.pop().unwrap().0.2)
    }

    fn next(&self) -> Option<Instant> {
        self.queue.peek().map(|first| first.0.0)
    }
}

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
        while self.connected {
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
}

fn seed_of(stream: u32) -> u8 {
    u8::try_from(stream % 256).unwrap()
}

fn bytes(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|n| u8::try_from(n % 256).unwrap().wrapping_mul(31).wrapping_add(seed)).collect()
}

const LOSSY: Faults = Faults { drop: 5, duplicate: 5, reorder: 10, corrupt: 2 };

#[test]
fn bytes_arrive_once_and_in_order_on_a_bad_link() {
    for seed in 1..6 {
        let mut pair = Pair::opened(20, LOSSY, seed);
        let (up, down) = (bytes(200_000, 1), bytes(30_000, 2));
        let stream = pair.client.open(pair.now).unwrap();
        pair.client.write(stream, up.clone().into());
        pair.run_until("the agent sees the stream", |pair| pair.agent.received.contains_key(&stream));
        for part in down.chunks(5000) {
            pair.agent.write(Command::Psh, stream, part);
        }
        pair.run_until("both have all", |pair| {
            pair.agent.received[&stream].len() >= up.len()
                && pair.got.get(&stream).is_some_and(|got| got.len() >= down.len())
        });
        assert!(pair.agent.received[&stream] == up && pair.got[&stream] == down, "seed {seed}");
    }
}

#[test]
fn the_queue_of_the_agent_never_jams_because_duplicates_are_acknowledged_again() {
    let mut pair = Pair::opened(5, Faults::default(), 1);
    // Every acknowledgement of ours is lost for a while.
    pair.up.faults.drop = 100;
    let stream = pair.client.open(pair.now).unwrap();
    pair.agent.write(Command::Psh, stream, &bytes(20_000, 3));
    pair.run(500);
    assert!(pair.agent.unacked.len() > 10);
    pair.up.faults.drop = 0;
    pair.run_until("the queue is empty", |pair| pair.agent.unacked.is_empty());
    assert!(pair.client.counts().duplicates > 10);
}

#[test]
fn a_session_survives_cuts_with_everything_under_way_lost() {
    let mut pair = Pair::opened(20, Faults::default(), 1);
    let up = bytes(3_000_000, 5);
    let stream = pair.client.open(pair.now).unwrap();
    pair.client.write(stream, up.clone().into());
    pair.agent.write(Command::Psh, stream, &bytes(30_000, 6));
    for _ in 0..5 {
        pair.run(70);
        pair.cut();
        pair.run(500);
        pair.reconnect();
    }
    pair.run_until("all is there", |pair| {
        pair.agent.received.get(&stream).is_some_and(|got| got.len() >= up.len())
            && pair.got.get(&stream).is_some_and(|got| got.len() >= 30_000)
    });
    assert_eq!(pair.agent.received[&stream], up);
    assert_eq!(pair.got[&stream], bytes(30_000, 6));
}

#[test]
fn after_a_cut_everything_open_goes_out_at_once() {
    let mut pair = Pair::opened(20, Faults::default(), 1);
    let stream = pair.client.open(pair.now).unwrap();
    pair.client.write(stream, bytes(100_000, 1).into());
    pair.run(10);
    pair.cut();
    let open = pair.client.channel.open_messages();
    assert!(open > 3);
    pair.reconnect();
    let before = pair.sent_frames;
    pair.step();
    assert!(pair.sent_frames - before >= open, "{open} open, {} sent", pair.sent_frames - before);
}

#[test]
fn messages_grow_to_32_kib_and_uploads_become_fast() {
    for (latency, wanted) in [(0, 20_000_000), (20, 10_000_000)] {
        let mut pair = Pair::opened(latency, Faults::default(), 1);
        let stream = pair.client.open(pair.now).unwrap();
        let feed = |pair: &mut Pair| {
            while pair.client.waiting(stream) < 1 << 20 {
                pair.client.write(stream, vec![7; 1 << 20].into());
            }
        };
        for _ in 0..1500 {
            feed(&mut pair);
            pair.step();
        }
        let before = pair.agent.received[&stream].len();
        for _ in 0..300 {
            feed(&mut pair);
            pair.step();
        }
        // Simulated seconds: what the protocol allows, not how fast this machine is.
        let rate = (pair.agent.received[&stream].len() - before) * 10 / 3;
        assert!(rate >= wanted, "{rate} bytes/s at {latency} ms one way");
        assert_eq!(pair.largest, 32 * 1024 + 120);
    }
}

#[test]
fn a_gateway_that_closes_on_large_messages_gets_smaller_ones_and_no_byte_is_lost() {
    let mut pair = Pair::opened(5, Faults::default(), 1);
    pair.limit = 5000;
    let up = bytes(2_000_000, 9);
    let stream = pair.client.open(pair.now).unwrap();
    pair.client.write(stream, up.clone().into());
    pair.run_until("all is there", |pair| pair.agent.received.get(&stream).is_some_and(|got| got.len() >= up.len()));
    assert_eq!(pair.agent.received[&stream], up);
    assert_eq!(pair.closes, 1);
}

#[test]
fn no_byte_before_the_handshake_is_complete_and_early_refusals_are_repeated_soon() {
    let mut pair = Pair::new(0, Faults::default(), 1);
    assert_eq!(pair.client.open(pair.now), None);
    pair.run_until("the session opens", |pair| !pair.events.is_empty());
    let opened = pair.now;
    let stream = pair.client.open(pair.now).unwrap();
    pair.client.write(stream, Bytes::from_static(b"\n"));
    pair.run_until("the byte is there", |pair| pair.agent.received.get(&stream).is_some_and(|got| got == b"\n"));
    // The first repeat comes after 20 ms, not after a timeout made for long ways.
    assert!(pair.now - opened < Duration::from_millis(40), "{:?}", pair.now - opened);
}

#[test]
fn an_answer_after_half_close_is_kept_until_it_is_in() {
    let mut pair = Pair::opened(5, Faults::default(), 1);
    let stream = pair.client.open(pair.now).unwrap();
    pair.client.write(stream, Bytes::from_static(b"question"));
    pair.client.close_write(pair.now, stream, Duration::from_secs(10));
    pair.run(5000);
    assert!(pair.agent.finished.is_empty(), "FIN closes both directions, so it must wait");
    pair.agent.write(Command::Psh, stream, b"answer");
    pair.run(8000);
    pair.agent.write(Command::Psh, stream, b", more");
    pair.agent.write(Command::Fin, stream, b"");
    pair.run_until("the end is there", |pair| pair.events.contains(&Event::Fin { stream, refused: false }));
    assert_eq!(pair.got[&stream], b"answer, more");
}

#[test]
fn a_half_closed_stream_without_an_answer_is_closed_at_last() {
    let mut pair = Pair::opened(5, Faults::default(), 1);
    let stream = pair.client.open(pair.now).unwrap();
    pair.client.close_write(pair.now, stream, Duration::from_secs(2));
    pair.run_until("the agent has the FIN", |pair| pair.agent.finished == [stream]);
}

#[test]
fn a_new_connection_is_not_starved_by_a_bulk_upload() {
    let mut pair = Pair::opened(20, Faults::default(), 1);
    let bulk = pair.client.open(pair.now).unwrap();
    pair.client.write(bulk, vec![1; 50 << 20].into());
    pair.run(700);
    let small = pair.client.open(pair.now).unwrap();
    pair.client.write(small, Bytes::from_static(b"select 1"));
    let asked = pair.now;
    pair.run_until("the small one is there", |pair| {
        pair.agent.received.get(&small).is_some_and(|got| got == b"select 1")
    });
    // One window is under way before it; it does not wait for the 50 MB.
    assert!(pair.now - asked < Duration::from_millis(150), "{:?}", pair.now - asked);
    assert!(pair.agent.received[&bulk].len() < 50 << 20);
}

#[test]
fn a_refused_port_is_told_apart_from_a_clean_end() {
    let mut pair = Pair::opened(5, Faults::default(), 1);
    let refused = pair.client.open(pair.now).unwrap();
    pair.run_until("the agent sees it", |pair| pair.agent.received.contains_key(&refused));
    let flag = Flag::ConnectToPortError.encode().to_vec();
    let (now, mut agent) = (pair.now, std::mem::replace(&mut pair.agent, Agent::new(pair.now)));
    agent.send(now, &mut pair.down, PayloadType::FLAG, flag);
    agent.write(Command::Fin, refused, b"");
    pair.agent = agent;
    pair.run_until("the refusal is there", |pair| pair.events.contains(&Event::Fin { stream: refused, refused: true }));
    let clean = pair.client.open(pair.now).unwrap();
    assert!(clean > refused, "ids are not used again");
    pair.run_until("the agent sees it", |pair| pair.agent.received.contains_key(&clean));
    pair.agent.write(Command::Fin, clean, b"");
    pair.run_until("the end is there", |pair| pair.events.contains(&Event::Fin { stream: clean, refused: false }));
}

#[test]
fn one_corrupt_frame_is_dropped_and_comes_again() {
    let mut pair = Pair::opened(5, Faults::default(), 1);
    let stream = pair.client.open(pair.now).unwrap();
    pair.down.faults.corrupt = 100;
    pair.agent.write(Command::Psh, stream, b"precious");
    pair.run(20);
    pair.down.faults.corrupt = 0;
    pair.run_until("it is there", |pair| pair.got.get(&stream).is_some_and(|got| got == b"precious"));
    assert!(pair.client.counts().bad_frames > 0);
}

#[test]
fn junk_never_ends_the_session() {
    let mut pair = Pair::opened(5, Faults::default(), 1);
    let now = pair.now;
    for junk in [&b""[..], b"x", &[0; 119], &[0xff; 400]] {
        pair.client.handle_frame(now, Bytes::copy_from_slice(junk));
    }
    assert_eq!(pair.client.poll_event(), None);
    assert!(pair.client.open(now).is_some());
}

#[test]
fn the_end_of_the_session_is_told_with_its_reason() {
    let mut pair = Pair::opened(5, Faults::default(), 1);
    let closed = br#"{"Output":"Forwarding to IP address x is forbidden."}"#.to_vec();
    let frame = pair.agent.message(MessageType::ChannelClosed, 0, PayloadType::NONE, closed);
    pair.client.handle_frame(pair.now, frame.into());
    let Some(Event::Ended(ended)) = pair.client.poll_event() else { panic!("not ended") };
    assert_eq!(ended.to_string(), "Session Manager ended the session: Forwarding to IP address x is forbidden.");
    assert_eq!(pair.client.open(pair.now), None);
}

#[test]
fn the_end_is_asked_for_after_what_was_written_unless_that_cannot_leave() {
    let mut pair = Pair::opened(5, Faults::default(), 1);
    let up = bytes(300_000, 4);
    let stream = pair.client.open(pair.now).unwrap();
    pair.client.write(stream, up.clone().into());
    pair.client.terminate(pair.now + Duration::from_secs(60));
    pair.run_until("the agent is told", |pair| pair.agent.terminated);
    assert!(pair.agent.received[&stream] == up);

    let mut pair = Pair::opened(5, Faults::default(), 1);
    let stream = pair.client.open(pair.now).unwrap();
    pair.run(50);
    let mut pause = vec![0; 4];
    pause.extend_from_slice(format!("{:<32}", "pause_publication").as_bytes());
    pair.client.handle_frame(pair.now, pause.into());
    pair.client.write(stream, up.into());
    let latest = pair.now + Duration::from_millis(500);
    pair.client.terminate(latest);
    pair.run_until("the agent is told", |pair| pair.agent.terminated);
    assert!(pair.now >= latest && pair.agent.received[&stream].is_empty());
}

#[test]
fn a_keepalive_goes_out_only_while_a_stream_is_open() {
    let mut pair = Pair::opened(5, Faults::default(), 1);
    pair.run(200_000);
    let quiet = pair.sent_frames;
    let stream = pair.client.open(pair.now).unwrap();
    pair.run(125_000);
    let kept = pair.sent_frames - quiet;
    assert!((3..10).contains(&kept), "{kept}");
    // A lane is always open; it counts only while somebody uses it.
    pair.client.keep_alive(false);
    pair.run(70_000);
    let quiet = pair.sent_frames;
    pair.run(200_000);
    assert_eq!(pair.sent_frames, quiet);
    pair.client.keep_alive(true);
    pair.run(125_000);
    assert!(pair.sent_frames > quiet);
    pair.client.reset(stream);
    pair.run(70_000);
    let after = pair.sent_frames;
    pair.run(200_000);
    assert_eq!(pair.sent_frames, after);
}

#[test]
fn a_pause_of_the_gateway_holds_data_until_something_comes() {
    let mut pair = Pair::opened(5, Faults::default(), 1);
    let stream = pair.client.open(pair.now).unwrap();
    pair.run(50);
    let mut pause = vec![0; 4];
    pause.extend_from_slice(format!("{:<32}", "pause_publication").as_bytes());
    pair.client.handle_frame(pair.now, pause.into());
    pair.client.write(stream, Bytes::from_static(b"later"));
    pair.run(300);
    assert_eq!(pair.agent.received[&stream], b"");
    let mut start = vec![0; 4];
    start.extend_from_slice(format!("{:<32}", "start_publication").as_bytes());
    pair.client.handle_frame(pair.now, start.into());
    pair.run_until("it is there", |pair| pair.agent.received[&stream] == b"later");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Any faults, any cuts, any sizes: once, in order, both ways, and both ends finish.
    #[test]
    fn any_schedule_delivers(
        seed in any::<u64>(),
        latency in 0_u64..60,
        drop in 0_u64..15,
        duplicate in 0_u64..15,
        reorder in 0_u64..30,
        corrupt in 0_u64..10,
        cuts in proptest::collection::vec(1_u64..400, 0..4),
        writes in proptest::collection::vec(0_usize..40_000, 1..6),
    ) {
        let mut pair = Pair::opened(latency, Faults { drop, duplicate, reorder, corrupt }, seed);
        let streams: Vec<u32> = writes.iter().map(|length| {
            let stream = pair.client.open(pair.now).unwrap();
            pair.client.write(stream, bytes(*length, seed_of(stream)).into());
            pair.client.close_write(pair.now, stream, Duration::from_secs(3600));
            stream
        }).collect();
        for after in cuts {
            pair.run(after);
            pair.cut();
            pair.run(20);
            pair.reconnect();
        }
        pair.run_until("the agent knows all", |pair| streams.iter().zip(&writes).all(|(stream, length)| {
            pair.agent.received.get(stream).is_some_and(|got| got.len() >= *length)
        }));
        for (stream, length) in streams.iter().zip(&writes) {
            prop_assert!(pair.agent.received[stream] == bytes(*length, seed_of(*stream)));
            pair.agent.write(Command::Psh, *stream, &bytes(length / 4, 1));
            pair.agent.write(Command::Fin, *stream, b"");
        }
        pair.run_until("every stream ends", |pair| streams.iter().all(|stream| {
            pair.events.contains(&Event::Fin { stream: *stream, refused: false })
        }));
        for (stream, length) in streams.iter().zip(&writes) {
            prop_assert!(pair.got.get(stream).cloned().unwrap_or_default() == bytes(length / 4, 1));
        }
        prop_assert_eq!(pair.client.open_streams(), 0);
    }
}
