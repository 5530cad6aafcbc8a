//! A port session against an agent that says what it likes, over a link that brings it in any order.
//!
//! The agent has a list of messages that never changes; what varies is which of them arrive, when, how often and whole or
//! not. So what must come out is known: the list from its start up to the first message that never arrived.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::smux::pattern;
use super::{Input, start};
use crate::port::{Event, PortSession};
use crate::smux::frame::{Command, Frame, FrameError, NOP};
use crate::ssm::channel::Stamp;
use crate::ssm::message::{Message, MessageId, MessageType, PayloadType, SCHEMA_VERSION};
use crate::ssm::pace::PaceConfig;
use crate::ssm::payload::{Acknowledge, Flag};

/// More frames than the window and the pace let out at once.
const FRAMES_MAX: usize = 100_000;
/// What a real agent sends first.
const REQUEST: &[u8] = br#"{"AgentVersion":"3.3.1142.0","RequestedClientActions":[{"ActionType":"SessionType","ActionParameters":{"SessionType":"Port","Properties":{"type":"LocalPortForwarding"}}}]}"#;

pub(super) fn session(data: &[u8]) {
    let mut input = Input(data);
    let flags = input.byte();
    let mut world = World::new();
    if flags & 1 == 0 {
        world.say(PayloadType::HANDSHAKE_REQUEST, Bytes::from_static(REQUEST));
        world.say(PayloadType::HANDSHAKE_COMPLETE, Bytes::from_static(b"{}"));
        world.deliver(0);
        world.acknowledge(0);
        world.deliver(1);
    }
    while !input.is_empty() {
        world.step(&mut input);
    }
    world.check();
}

struct World {
    client: PortSession,
    now: Instant,
    stamps: u64,
    opened: bool,
    ended: bool,
    /// What the agent says, by sequence number, and whether it has arrived.
    said: Vec<(PayloadType, Bytes, bool)>,
    /// What the client sent, by sequence number.
    heard: BTreeMap<i64, (PayloadType, Bytes)>,
    written: BTreeMap<u32, Vec<u8>>,
    events: BTreeMap<u32, Delivered>,
}

#[derive(Default)]
struct Delivered {
    bytes: Vec<u8>,
    ended: bool,
}

impl World {
    fn new() -> Self {
        Self {
            client: PortSession::new(PaceConfig::default()),
            now: start(),
            stamps: 0,
            opened: false,
            ended: false,
            said: Vec::new(),
            heard: BTreeMap::new(),
            written: BTreeMap::new(),
            events: BTreeMap::new(),
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let (step, chosen) = (input.byte(), input.byte());
        let stream = self.written.keys().copied().nth(usize::from(chosen) % self.written.len().max(1));
        let stream = stream.unwrap_or_else(|| u32::from(chosen));
        match step % 20 {
            0 => {
                let opened = self.client.open(self.now);
                assert_eq!(opened.is_some(), self.opened && !self.ended);
                if let Some(stream) = opened {
                    assert!(self.written.last_key_value().is_none_or(|(last, _)| *last < stream));
                    self.written.insert(stream, Vec::new());
                }
            }
            1 => {
                let before = self.written.get(&stream).map_or(0, Vec::len);
                let bytes = pattern(before, input.word() >> 2);
                if self.client.write(stream, bytes.clone()) {
                    self.written.get_mut(&stream).expect("only open streams take bytes").extend_from_slice(&bytes);
                }
            }
            2 => self.client.close_write(self.now, stream, Duration::from_millis(u64::from(input.word()))),
            3 => self.client.finish(stream),
            4 => self.client.reset(stream),
            5 => self.client.terminate(self.now + Duration::from_millis(u64::from(chosen))),
            6 => self.client.handle_reconnect(self.now),
            7 => self.pass(Duration::from_millis(u64::from(input.word()))),
            8 => {
                // To the next thing that the session waits for.
                if let Some((at, _)) = self.client.poll_timeout() {
                    self.pass(at.saturating_duration_since(self.now));
                }
            }
            9 => self.say(PayloadType(u32::from(chosen)), Bytes::copy_from_slice(input.short())),
            10 => self.say(PayloadType::OUTPUT, Bytes::copy_from_slice(input.short())),
            11 => {
                let command = [Command::Psh, Command::Fin, Command::Nop, Command::Syn][usize::from(chosen >> 6)];
                let data = if command == Command::Psh { Bytes::copy_from_slice(input.short()) } else { Bytes::new() };
                let mut frame = Vec::new();
                Frame { command, stream, data }.encode(&mut frame);
                self.say(PayloadType::OUTPUT, frame.into());
            }
            12 => self.say(PayloadType::FLAG, Bytes::copy_from_slice(&Flag::ConnectToPortError.encode())),
            13 => self.deliver(usize::from(chosen)),
            14 => {
                if let Some(next) = self.said.iter().position(|(.., arrived)| !arrived) {
                    self.deliver(next);
                }
            }
            15 => self.acknowledge(i64::from(chosen)),
            16 => {
                self.heard.keys().copied().collect::<Vec<_>>().into_iter().for_each(|number| self.acknowledge(number));
            }
            17 => self.gateway(chosen),
            18 => {
                let frame = Bytes::copy_from_slice(input.short());
                // An empty message of the agent needs no digest; it would be one that is not on the list.
                let data = |message: Message| message.message_type == MessageType::OutputStreamData;
                if !Message::decode(frame.clone()).is_ok_and(data) {
                    self.handle(frame);
                }
            }
            _ => self.damaged(usize::from(chosen), input.byte()),
        }
        self.pump();
    }

    fn say(&mut self, payload_type: PayloadType, payload: Bytes) {
        self.said.push((payload_type, payload, false));
    }

    fn message(
        &mut self,
        message_type: MessageType,
        sequence: i64,
        payload_type: PayloadType,
        payload: Bytes,
    ) -> Message {
        let id = MessageId(self.stamp().id);
        let (schema_version, created_ms, flags) = (SCHEMA_VERSION, 1, 0);
        Message { message_type, schema_version, created_ms, sequence, flags, id, payload_type, payload }
    }

    /// The message of that number arrives, perhaps again.
    fn deliver(&mut self, number: usize) {
        let Some((payload_type, payload, arrived)) = self.said.get_mut(number) else { return };
        *arrived = true;
        let (payload_type, payload) = (*payload_type, payload.clone());
        let sequence = i64::try_from(number).unwrap_or(i64::MAX);
        let message = self.message(MessageType::OutputStreamData, sequence, payload_type, payload);
        self.handle(message.to_frame());
        self.pump();
    }

    /// The same with one byte of its payload changed: it counts as lost.
    fn damaged(&mut self, number: usize, at: u8) {
        let Some((payload_type, payload, _)) = self.said.get(number).filter(|(_, payload, _)| !payload.is_empty())
        else {
            return;
        };
        let (payload_type, payload) = (*payload_type, payload.clone());
        let back = usize::from(at) % payload.len();
        let sequence = i64::try_from(number).unwrap_or(i64::MAX);
        let message = self.message(MessageType::OutputStreamData, sequence, payload_type, payload);
        let mut frame = message.to_frame().to_vec();
        let at = frame.len() - 1 - back;
        frame[at] ^= 0x40;
        let before = self.client.counts().bad_frames;
        self.handle(frame.into());
        assert_eq!(self.client.counts().bad_frames, before + 1, "a damaged frame was taken");
    }

    fn acknowledge(&mut self, number: i64) {
        let text = format!(r#"{{"AcknowledgedMessageSequenceNumber":{number}}}"#);
        let message = self.message(MessageType::Acknowledge, 0, PayloadType::NONE, text.into());
        self.handle(message.to_frame());
    }

    /// What the gateway says by itself.
    fn gateway(&mut self, chosen: u8) {
        let (message_type, payload) = match chosen % 4 {
            0 => (MessageType::ChannelClosed, Bytes::from_static(br#"{"Output":"over"}"#)),
            1 => (MessageType::StartPublication, Bytes::new()),
            2 => (MessageType::PausePublication, Bytes::new()),
            _ => (MessageType::AgentSessionState, Bytes::from_static(b"{}")),
        };
        let message = self.message(message_type, 0, PayloadType::NONE, payload);
        self.handle(message.to_frame());
    }

    fn handle(&mut self, frame: Bytes) {
        self.client.handle_frame(self.now, frame);
        self.take_events();
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.client.handle_timeout(self.now);
    }

    fn stamp(&mut self) -> Stamp {
        self.stamps += 1;
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.stamps.to_be_bytes());
        Stamp { id, created_ms: 1 }
    }

    fn pump(&mut self) {
        self.transmit();
        if self.client.poll_timeout().is_some_and(|(at, _)| at <= self.now) {
            self.pass(Duration::ZERO);
            self.transmit();
            let again = self.client.poll_timeout().filter(|(at, _)| *at <= self.now);
            assert_eq!(again, None, "its driver would turn without a pause");
        }
    }

    fn transmit(&mut self) {
        self.take_events();
        for count in 0.. {
            assert!(count < FRAMES_MAX, "frames without end");
            let stamp = self.stamp();
            let Some(frame) = self.client.poll_transmit(self.now, stamp) else { break };
            self.take_frame(frame);
        }
    }

    fn take_events(&mut self) {
        while let Some(event) = self.client.poll_event() {
            assert!(!self.ended, "something after the end of the session");
            match event {
                Event::Opened { .. } => {
                    assert!(!self.opened);
                    self.opened = true;
                }
                Event::Data(stream, bytes) => self.of_stream(stream).bytes.extend_from_slice(&bytes),
                Event::Fin { stream, .. } => self.of_stream(stream).ended = true,
                Event::Ended(_) => self.ended = true,
            }
        }
    }

    fn of_stream(&mut self, stream: u32) -> &mut Delivered {
        assert!(self.written.contains_key(&stream), "an event for a stream that was never opened");
        let delivered = self.events.entry(stream).or_default();
        assert!(!delivered.ended, "something after the end of a stream");
        delivered
    }

    fn take_frame(&mut self, frame: Bytes) {
        let message = Message::decode(frame).expect("what we send parses");
        match message.message_type {
            MessageType::Acknowledge => {
                let ack = Acknowledge::decode(&message.payload).expect("what we send parses");
                let number = usize::try_from(ack.acknowledged_message_sequence_number).unwrap_or(usize::MAX);
                let arrived = self.said.get(number).is_some_and(|(.., arrived)| *arrived);
                assert!(arrived, "an acknowledgement of {number}, which never arrived");
            }
            MessageType::InputStreamData => {
                let next = i64::try_from(self.heard.len()).unwrap_or(i64::MAX);
                let (number, payload_type, payload) = (message.sequence, message.payload_type, message.payload);
                assert!((0..=next).contains(&number), "number {number} after {next} messages");
                assert!(payload_type != PayloadType::OUTPUT || self.opened, "tunnel bytes before the session is open");
                if let Some((_, before)) = self.heard.insert(number, (payload_type, payload.clone())) {
                    let probe = payload == Bytes::from_static(&NOP) && before.chunks(NOP.len()).all(|part| part == NOP);
                    assert!(probe || before == payload, "message {number} is another one when it is repeated");
                }
            }
            other => panic!("the client sends {other:?}"),
        }
    }

    /// Both directions, as the far end of each reads them.
    fn check(&self) {
        let ours = self.heard.values().filter(|(payload_type, _)| *payload_type == PayloadType::OUTPUT);
        let ours = ours.flat_map(|(_, payload)| payload.iter().copied()).collect::<Vec<u8>>();
        let (ours, clean) = streams(&ours);
        clean.expect("what we send is smux");
        for (stream, sent) in ours {
            let written = self.written.get(&stream).expect("only streams that were opened");
            assert!(written.starts_with(&sent), "other bytes than were written");
        }
        let theirs = self.said.iter().take_while(|(.., arrived)| *arrived);
        // Earlier ones are not part of the tunnel.
        let theirs = theirs.skip_while(|(payload_type, ..)| *payload_type != PayloadType::HANDSHAKE_COMPLETE);
        let theirs = theirs.filter(|(payload_type, ..)| *payload_type == PayloadType::OUTPUT);
        let theirs = theirs.flat_map(|(_, payload, _)| payload.iter().copied()).collect::<Vec<u8>>();
        let (theirs, _) = streams(&theirs);
        for (stream, delivered) in &self.events {
            let sent = theirs.get(stream).map(Vec::as_slice).unwrap_or_default();
            assert!(is_within(&delivered.bytes, sent), "other bytes than the agent sent");
        }
    }
}

/// The bytes of every stream, up to where the frames break.
fn streams(mut rest: &[u8]) -> (BTreeMap<u32, Vec<u8>>, Result<(), FrameError>) {
    let mut streams: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
    loop {
        match Frame::decode(rest) {
            Ok(Some((frame, used))) => {
                if frame.command == Command::Psh {
                    streams.entry(frame.stream).or_default().extend_from_slice(&frame.data);
                }
                rest = &rest[used..];
            }
            end => return (streams, end.map(drop)),
        }
    }
}

/// Bytes for a stream that is not open yet or any more are dropped, so what is delivered is a part without a gap.
fn is_within(part: &[u8], whole: &[u8]) -> bool {
    part.is_empty() || whole.windows(part.len()).any(|window| window == part)
}
