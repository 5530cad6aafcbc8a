//! A Session Manager agent for port sessions that behaves like amazon-ssm-agent 3.3, quirks included.
//!
//! From its source (`agent/session/datachannel`, `agent/session/plugins/port`) and measurements: at most 1024 bytes a
//! message and a pause of 1 ms after each; only the oldest unacknowledged message is repeated, looked at every 100 ms;
//! messages are kept for repetition only after they were written; digests are not checked; data before the handshake is
//! complete is acknowledged and thrown away, data just after it is refused without an acknowledgement; smux 1 with one
//! reader for all streams; targets are dialled one after the other. Left out: KMS, shells, the unmultiplexed mode.

mod out;
mod smux;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bastion_wire::ssm::message::{Message, MessageType, PayloadType};
use bastion_wire::ssm::payload::{
    ACTION_SESSION_TYPE, ACTION_SUCCESS, Acknowledge, Flag, HandshakeComplete, HandshakeRequest, HandshakeResponse,
    RequestedAction, from_json, to_json,
};
use bytes::Bytes;
use serde_json::json;
use tokio::time::Instant;

use crate::agent::out::Out;
use crate::agent::smux::Smux;
use crate::gateway::{Incoming, Leg, Reader, SessionSpec, message};

/// Messages kept that came too early.
const EARLY_MAX: usize = 100_000;
/// After the client asked for the end, so long for its acknowledgements.
const DRAIN: Duration = Duration::from_secs(2);
const RECONNECT: Duration = Duration::from_millis(100);
const VERSION: &str = "3.3.1142.0";

/// What a session carries, without the framing of Session Manager: each direction in its order.
#[derive(Debug, Default)]
pub struct Capture {
    /// From the client.
    pub up: Mutex<Vec<u8>>,
    pub down: Mutex<Vec<u8>>,
}

fn keep(direction: &Mutex<Vec<u8>>, bytes: &[u8]) {
    direction.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
}

/// What differs between machines and versions.
#[derive(Debug, Clone)]
pub struct Options {
    /// After each message of at most 1024 bytes. 1 ms in the source; no version waits less, but tests of other things
    /// than speed may.
    pub pause: Duration,
    /// So long after HandshakeComplete data is refused: the port handler is not there yet.
    pub refuse_for: Duration,
    /// The client has so long for its part of the handshake.
    pub greeting: Duration,
    /// Bytes a second that a session takes from the client, in messages of any size; `None`: as fast as it goes. The real
    /// one took 52 to 78 MB/s in a session, 34 where the round trip was 40 ms, and 28 to 40 s of processor for a GB: what it
    /// takes is a matter of the machine, so there is no default.
    pub up_bytes_per_second: Option<u64>,
    /// Sessions that get a worker (`SessionWorkersLimit`); further ones start and never shake hands. `None`: 1000, more
    /// than any test has.
    pub workers: Option<usize>,
    /// Where to keep what crosses the tunnel, for tests with one session.
    pub capture: Option<Arc<Capture>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            pause: Duration::from_millis(1),
            refuse_for: Duration::from_millis(3),
            greeting: Duration::from_secs(15),
            up_bytes_per_second: None,
            workers: None,
            capture: None,
        }
    }
}

/// Bytes of full messages of all sessions so far, and the pauses after them.
pub(crate) fn throttle() -> (u64, Duration) {
    smux::throttle()
}

/// What became of a data message.
#[derive(Debug, PartialEq, Eq)]
enum Handled {
    Taken,
    /// No acknowledgement, no progress.
    Refused,
    /// The session ends; the text is for the user.
    Ended(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Greeting,
    Open { takes_from: Instant },
}

/// Runs the agent's end of one session; returns what `channel_closed` tells the user.
pub(crate) async fn run(spec: &SessionSpec, options: &Options, leg: Leg, mut reader: Reader) -> String {
    let out = Arc::new(Out::new(leg.clone()));
    let repeating = out.repeat();
    let working = async {
        let mut agent = Agent {
            options: options.clone(),
            out: Arc::clone(&out),
            smux: Smux::new(spec, options, Arc::clone(&out)),
            phase: Phase::Greeting,
            began: Instant::now(),
            busy_until: Instant::now(),
            expected: 0,
            early: BTreeMap::new(),
        };
        agent.greet(spec).await;
        agent.work(&leg, &mut reader).await
    };
    tokio::select! {
        output = working => output,
        () = repeating => String::new(),
    }
}

struct Agent {
    options: Options,
    out: Arc<Out>,
    smux: Smux,
    phase: Phase,
    began: Instant,
    busy_until: Instant,
    expected: i64,
    early: BTreeMap<i64, Message>,
}

impl Agent {
    async fn greet(&self, spec: &SessionSpec) {
        let state = json!({"SchemaVersion": 1, "SessionState": "Connected", "SessionId": spec.session_id});
        self.out.unsequenced(MessageType::AgentSessionState, state.to_string().into()).await;
        let port = spec.port.to_string();
        let request = HandshakeRequest {
            agent_version: VERSION.to_owned(),
            requested_client_actions: vec![RequestedAction {
                action_type: ACTION_SESSION_TYPE.to_owned(),
                action_parameters: json!({
                    "SessionType": "Port",
                    "Properties": {"localPortNumber": port, "portNumber": port, "type": "LocalPortForwarding"}
                }),
            }],
        };
        self.out.send(PayloadType::HANDSHAKE_REQUEST, to_json(&request).into()).await;
    }

    async fn work(&mut self, leg: &Leg, reader: &mut Reader) -> String {
        let mut pings = tokio::time::interval(Duration::from_secs(54));
        loop {
            let greeting_ends = self.began + self.options.greeting;
            let incoming = tokio::select! {
                incoming = reader.recv() => incoming,
                () = tokio::time::sleep_until(greeting_ends), if self.phase == Phase::Greeting => {
                    return "Handshake timed out. Please ensure that you have the latest version of the session manager plugin.".to_owned();
                }
                _ = pings.tick() => {
                    leg.ping();
                    continue;
                }
            };
            match incoming {
                Incoming::Closed => return String::new(),
                Incoming::Cut => {
                    tokio::time::sleep(RECONNECT).await;
                    leg.reconnect();
                }
                Incoming::Frame(frame) => {
                    if let Some(output) = self.frame(frame).await {
                        self.drain(reader).await;
                        return output;
                    }
                }
            }
        }
    }

    /// Keeps reading acknowledgements until all is out.
    async fn drain(&self, reader: &mut Reader) {
        let draining = async {
            while !self.out.is_empty() {
                match reader.recv().await {
                    Incoming::Frame(frame) => self.acknowledged(&frame),
                    Incoming::Closed | Incoming::Cut => return,
                }
            }
        };
        // A client that is gone acknowledges nothing.
        let _in_time = tokio::time::timeout(DRAIN, draining).await;
    }

    fn acknowledged(&self, frame: &Bytes) {
        if let Ok(message) = Message::decode_unverified(frame.clone())
            && message.message_type == MessageType::Acknowledge
            && let Ok(ack) = Acknowledge::decode(&message.payload)
        {
            self.out.acknowledged(ack.acknowledged_message_sequence_number);
        }
    }

    /// `Some`: the session ends.
    async fn frame(&mut self, frame: Bytes) -> Option<String> {
        let message = Message::decode_unverified(frame).ok()?;
        if message.created_ms == 0 {
            return None;
        }
        match message.message_type {
            MessageType::Acknowledge => {
                if let Ok(ack) = Acknowledge::decode(&message.payload) {
                    self.out.acknowledged(ack.acknowledged_message_sequence_number);
                }
                None
            }
            MessageType::InputStreamData => self.input(message).await,
            MessageType::PausePublication => {
                self.out.pause(true);
                None
            }
            MessageType::StartPublication => {
                self.out.pause(false);
                None
            }
            _ => None,
        }
    }

    async fn input(&mut self, message: Message) -> Option<String> {
        self.out.pause(false);
        if message.sequence < self.expected {
            self.acknowledge(&message).await;
            return None;
        }
        if message.sequence > self.expected {
            if self.early.len() < EARLY_MAX {
                self.acknowledge(&message).await;
                self.early.insert(message.sequence, message);
            }
            return None;
        }
        let mut next = Some(message);
        let mut was_early = false;
        while let Some(message) = next {
            match self.handle(&message).await {
                Handled::Taken => {}
                Handled::Refused => {
                    self.out.leg().refuses();
                    if was_early {
                        self.early.insert(message.sequence, message);
                    }
                    return None;
                }
                Handled::Ended(output) => {
                    self.acknowledge(&message).await;
                    return Some(output);
                }
            }
            if !was_early {
                self.acknowledge(&message).await;
            }
            self.expected += 1;
            next = self.early.remove(&self.expected);
            was_early = true;
        }
        None
    }

    async fn handle(&mut self, data: &Message) -> Handled {
        match (self.phase, data.payload_type) {
            (Phase::Greeting, PayloadType::HANDSHAKE_RESPONSE) => {
                let Ok(response) = from_json::<HandshakeResponse>(&data.payload) else {
                    return Handled::Ended("Handshake response does not parse".to_owned());
                };
                if let Some(failed) =
                    response.processed_client_actions.iter().find(|action| action.action_status != ACTION_SUCCESS)
                {
                    return Handled::Ended(format!(
                        "{} failed on client with status {} error: {}",
                        failed.action_type, failed.action_status, failed.error
                    ));
                }
                let complete = HandshakeComplete {
                    handshake_time_to_complete: i64::try_from(self.began.elapsed().as_nanos()).unwrap_or(i64::MAX),
                    customer_message: String::new(),
                };
                self.out.send(PayloadType::HANDSHAKE_COMPLETE, to_json(&complete).into()).await;
                self.phase = Phase::Open { takes_from: Instant::now() + self.options.refuse_for };
                Handled::Taken
            }
            // Acknowledged and thrown away.
            (Phase::Greeting, _) => Handled::Taken,
            (Phase::Open { takes_from }, _) if Instant::now() < takes_from => Handled::Refused,
            (Phase::Open { .. }, PayloadType::OUTPUT) => {
                if let Some(capture) = &self.options.capture {
                    keep(&capture.up, &data.payload);
                }
                self.smux.input(&data.payload).await;
                self.rest(data.payload.len()).await;
                Handled::Taken
            }
            (Phase::Open { .. }, PayloadType::FLAG) if Flag::decode(&data.payload) == Some(Flag::TerminateSession) => {
                Handled::Ended(String::new())
            }
            _ => Handled::Taken,
        }
    }

    /// Takes as long for these bytes as its speed says.
    async fn rest(&mut self, bytes: usize) {
        if let Some(rate) = self.options.up_bytes_per_second {
            let takes = Duration::from_nanos((bytes as u64).saturating_mul(1_000_000_000) / rate.max(1));
            self.busy_until = self.busy_until.max(Instant::now()) + takes;
            tokio::time::sleep_until(self.busy_until).await;
        }
    }

    async fn acknowledge(&self, data: &Message) {
        let ack = Acknowledge {
            acknowledged_message_type: "input_stream_data".into(),
            acknowledged_message_id: data.id.to_string().into(),
            acknowledged_message_sequence_number: data.sequence,
            is_sequential_message: true,
        };
        self.out.unsequenced(MessageType::Acknowledge, to_json(&ack).into()).await;
    }
}

/// A message that is not counted.
fn frame(message_type: MessageType, payload: Bytes) -> Bytes {
    message(message_type, PayloadType::NONE, payload).to_frame()
}
