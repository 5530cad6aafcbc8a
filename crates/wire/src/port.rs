//! A port session, still without any I/O: the channel's handshake, then smux over its tunnel bytes.
//!
//! Order of use: `handle_*` with what happened or commands, then [`PortSession::poll_event`] until `None`, then
//! [`PortSession::poll_transmit`] until `None`, then sleep until [`PortSession::poll_timeout`].

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::Value;

use super::smux::mux::{self, Mux};
use super::ssm::channel::{self, Channel, Counts, Stamp};
use super::ssm::message::PayloadType;
use super::ssm::pace::PaceConfig;
use super::ssm::payload::{
    ACTION_SESSION_TYPE, ACTION_SUCCESS, Flag, HandshakeRequest, HandshakeResponse, LOCAL_PORT_FORWARDING,
    ProcessedAction, from_json, to_json,
};

/// Announced to the agent and the gateway: the smallest version that AWS documents as supported, with smux and without
/// its keepalive.
pub const CLIENT_VERSION: &str = "1.2.764.0";
/// Agents up to here do not multiplex (`agent/session/plugins/port`, since 3.0.222).
const OLD_AGENT: [u64; 4] = [3, 0, 196, 0];
/// A frame now and then while streams are open, against the idle limit of Session Manager (20 minutes by default).
const KEEPALIVE: Duration = Duration::from_secs(60);

/// What happened, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The session carries streams from now on.
    Opened {
        agent_version: String,
    },
    Data(u32, Bytes),
    /// The other side has closed the stream cleanly; or the agent could not connect to the port (`refused`).
    Fin {
        stream: u32,
        refused: bool,
    },
    /// The session is over: nothing more comes, and every stream that is open is cut.
    Ended(Ended),
}

/// Why a session is over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    #[error("Session Manager ended the session{}", detail(.0))]
    Closed(String),
    #[error("the agent opened something else than a multiplexed port session: {0}")]
    Unsupported(String),
    #[error("the multiplexed stream is broken: {0}")]
    Broken(String),
}

fn detail(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(": {text}") }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Waiting for the HandshakeRequest.
    Greeting,
    /// Answered; bytes sent now would be acknowledged and thrown away.
    Answered,
    Open,
    Ended,
}

/// A stream whose local end has closed its write side.
#[derive(Debug)]
struct HalfClosed {
    linger: Duration,
    until: Instant,
}

/// See the module.
#[derive(Debug)]
pub struct PortSession {
    channel: Channel,
    mux: Mux,
    phase: Phase,
    agent_version: String,
    events: VecDeque<Event>,
    half_closed: BTreeMap<u32, HalfClosed>,
    keepalive_at: Option<Instant>,
    keeps_alive: bool,
    /// The agent is to be asked for the end of the session, at this time at the latest.
    terminate_by: Option<Instant>,
}

impl PortSession {
    pub fn new(pace: PaceConfig) -> Self {
        Self {
            channel: Channel::new(pace),
            mux: Mux::new(),
            phase: Phase::Greeting,
            agent_version: String::new(),
            events: VecDeque::new(),
            half_closed: BTreeMap::new(),
            keepalive_at: None,
            keeps_alive: true,
            terminate_by: None,
        }
    }

    /// A new session after this one is over; ids of streams go on where this one's ended.
    #[must_use]
    pub fn successor(&self, pace: PaceConfig) -> Self {
        Self { mux: self.mux.successor(), keeps_alive: self.keeps_alive, ..Self::new(pace) }
    }

    pub fn counts(&self) -> Counts {
        self.channel.counts()
    }

    pub fn round_trip(&self) -> Duration {
        self.channel.round_trip()
    }

    pub fn open_streams(&self) -> usize {
        self.mux.open_streams()
    }

    /// Bytes of a stream that wait to be sent.
    pub fn waiting(&self, stream: u32) -> usize {
        self.mux.waiting(stream)
    }

    /// How long the oldest message has waited for its acknowledgement.
    pub fn oldest_unacked(&self, now: Instant) -> Option<Duration> {
        self.channel.oldest_unacked(now)
    }

    /// What came through so far, in messages: of ours without a gap, and of the agent.
    pub fn progress(&self) -> (i64, i64) {
        self.channel.progress()
    }

    /// Payload bytes of the largest message that waits for its acknowledgement.
    pub fn largest_open(&self) -> usize {
        self.channel.largest_open()
    }

    /// Payload bytes of a message that may be tried at most.
    pub fn size_limit(&self) -> usize {
        self.channel.size_limit()
    }

    /// No message gets larger than that from now on, unless it has a number already.
    pub fn limit_size(&mut self, bytes: usize) {
        self.channel.limit_size(bytes);
    }

    /// Since when something of the agent's is missing behind which other messages wait.
    pub fn missing_since(&self) -> Option<Instant> {
        self.channel.missing_since()
    }

    /// False: read nothing from the socket for now.
    pub fn wants_frames(&self) -> bool {
        self.channel.wants_frames()
    }

    pub fn is_drained(&self) -> bool {
        self.terminate_by.is_none() && self.channel.is_drained()
    }

    /// Opens a stream; `None` before the session is open or after its end.
    pub fn open(&mut self, now: Instant) -> Option<u32> {
        if self.phase != Phase::Open {
            return None;
        }
        self.keepalive_at.get_or_insert_with(|| after(now, KEEPALIVE));
        self.mux.open()
    }

    /// Whether open streams keep the session from being idle; they do unless told otherwise.
    pub fn keep_alive(&mut self, on: bool) {
        self.keeps_alive = on;
    }

    pub fn keeps_alive(&self) -> bool {
        self.keeps_alive
    }

    /// Queues bytes; false if the stream is closed.
    pub fn write(&mut self, stream: u32, data: Bytes) -> bool {
        self.mux.write(stream, data)
    }

    /// The local end has finished writing. smux can only close both directions, so that waits until the answer is in:
    /// until the other side closes, or nothing came for `linger`.
    pub fn close_write(&mut self, now: Instant, stream: u32, linger: Duration) {
        if self.mux.is_open(stream) {
            self.half_closed.insert(stream, HalfClosed { linger, until: after(now, linger) });
        }
    }

    /// Closes both directions once everything written is out.
    pub fn finish(&mut self, stream: u32) {
        self.half_closed.remove(&stream);
        self.mux.finish(stream);
    }

    /// Closes both directions at once.
    pub fn reset(&mut self, stream: u32) {
        self.half_closed.remove(&stream);
        self.mux.reset(stream);
    }

    /// Asks the agent to end the session, which cuts its streams: after what they were given, but by `latest`.
    pub fn terminate(&mut self, latest: Instant) {
        if self.phase != Phase::Ended {
            self.terminate_by = Some(latest);
        }
    }

    fn ask_for_the_end(&mut self, now: Instant) {
        if self.terminate_by.is_some_and(|latest| latest <= now || !self.wants_to_send()) {
            self.terminate_by = None;
            self.channel.send_control(PayloadType::FLAG, Bytes::copy_from_slice(&Flag::TerminateSession.encode()));
        }
    }

    /// Takes one websocket message.
    pub fn handle_frame(&mut self, now: Instant, frame: Bytes) {
        self.channel.handle_frame(now, frame);
        while let Some(event) = self.channel.poll_event() {
            match event {
                channel::Event::Closed(text) => self.end(Ended::Closed(text)),
                channel::Event::Data(payload_type, payload) => self.handle_data(now, payload_type, &payload),
            }
        }
    }

    fn handle_data(&mut self, now: Instant, payload_type: PayloadType, payload: &Bytes) {
        match (self.phase, payload_type) {
            (Phase::Greeting, PayloadType::HANDSHAKE_REQUEST) => self.answer(payload),
            (Phase::Greeting, _) => {
                self.end(Ended::Unsupported("it sent data without a handshake, as a shell does".to_owned()));
            }
            (Phase::Answered, PayloadType::HANDSHAKE_COMPLETE) => {
                self.phase = Phase::Open;
                self.events.push_back(Event::Opened { agent_version: self.agent_version.clone() });
            }
            (Phase::Open, PayloadType::OUTPUT) => match self.mux.handle_bytes(payload) {
                Ok(()) => self.forward(now),
                Err(error) => self.end(Ended::Broken(error.to_string())),
            },
            (Phase::Open, PayloadType::FLAG) if Flag::decode(payload) == Some(Flag::ConnectToPortError) => {
                self.mux.handle_port_error();
            }
            _ => {}
        }
    }

    fn forward(&mut self, now: Instant) {
        while let Some(event) = self.mux.poll_event() {
            self.events.push_back(match event {
                mux::Event::Data(stream, data) => {
                    if let Some(half) = self.half_closed.get_mut(&stream) {
                        half.until = after(now, half.linger);
                    }
                    Event::Data(stream, data)
                }
                mux::Event::Fin { stream, refused } => {
                    self.half_closed.remove(&stream);
                    Event::Fin { stream, refused }
                }
            });
        }
    }

    fn answer(&mut self, payload: &Bytes) {
        let Ok(request) = from_json::<HandshakeRequest>(payload) else {
            return self.end(Ended::Unsupported("its handshake request does not parse".to_owned()));
        };
        let kind = request.port_properties().and_then(|properties| properties.get("type")).and_then(Value::as_str);
        if kind != Some(LOCAL_PORT_FORWARDING) {
            return self.end(Ended::Unsupported("the session is not of type LocalPortForwarding".to_owned()));
        }
        if version(&request.agent_version) <= OLD_AGENT {
            let text =
                format!("agent {} does not multiplex; it needs a version above 3.0.196.0", request.agent_version);
            return self.end(Ended::Unsupported(text));
        }
        let response = HandshakeResponse {
            client_version: CLIENT_VERSION.to_owned(),
            processed_client_actions: vec![ProcessedAction {
                action_type: ACTION_SESSION_TYPE.to_owned(),
                action_status: ACTION_SUCCESS,
                action_result: Value::Null,
                error: String::new(),
            }],
            errors: None,
        };
        self.agent_version = request.agent_version;
        self.channel.send_control(PayloadType::HANDSHAKE_RESPONSE, to_json(&response).into());
        self.phase = Phase::Answered;
    }

    fn end(&mut self, ended: Ended) {
        if self.phase != Phase::Ended {
            self.phase = Phase::Ended;
            self.events.push_back(Event::Ended(ended));
        }
    }

    /// The socket is a new one.
    pub fn handle_reconnect(&mut self, now: Instant) {
        self.channel.handle_reconnect(now);
    }

    /// Fires what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.channel.handle_timeout(now);
        let quiet: Vec<u32> =
            self.half_closed.iter().filter(|(_, half)| half.until <= now).map(|(stream, _)| *stream).collect();
        for stream in quiet {
            self.half_closed.remove(&stream);
            self.mux.finish(stream);
        }
        if self.keepalive_at.is_some_and(|at| at <= now) {
            self.keepalive_at = None;
            if self.mux.open_streams() > 0 && self.phase == Phase::Open {
                if self.keeps_alive {
                    self.mux.send_nop();
                }
                self.keepalive_at = Some(after(now, KEEPALIVE));
            }
        }
    }

    /// The next thing to do if nothing else happens, and why.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        let half = self.half_closed.values().map(|half| half.until).min();
        let own = [(half, "half-close"), (self.keepalive_at, "keepalive"), (self.terminate_by, "terminate")];
        let own = own.into_iter().filter_map(|(at, why)| Some((at?, why)));
        own.chain(self.channel.poll_timeout(self.wants_to_send())).min_by_key(|(at, _)| *at)
    }

    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    fn wants_to_send(&self) -> bool {
        self.phase == Phase::Open && self.mux.wants_to_send()
    }

    /// The next frame for the socket.
    pub fn poll_transmit(&mut self, now: Instant, stamp: Stamp) -> Option<Bytes> {
        self.ask_for_the_end(now);
        if let Some(frame) = self.channel.poll_transmit(now, stamp) {
            return Some(frame);
        }
        if !self.wants_to_send() {
            return None;
        }
        if !self.channel.can_send(now) {
            let payload = self.mux.fill_little(self.channel.room_for_little());
            return if payload.is_empty() { None } else { self.channel.transmit_little(now, payload, stamp) };
        }
        if let Some(probe) = self.channel.transmit_probe(now, stamp) {
            return Some(probe);
        }
        let payload = self.mux.fill(self.channel.message_size());
        if payload.is_empty() { None } else { self.channel.transmit_data(now, payload, stamp) }
    }
}

fn after(now: Instant, wait: Duration) -> Instant {
    now.checked_add(wait).unwrap_or(now)
}

/// Four dotted numbers; what is missing counts as 0.
fn version(text: &str) -> [u64; 4] {
    let mut parts = text.split('.').map(|part| part.parse().unwrap_or(0));
    [(); 4].map(|()| parts.next().unwrap_or(0))
}

#[cfg(test)]
mod tests;
