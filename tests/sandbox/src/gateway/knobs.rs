//! What can go wrong between client and agent, as data: read from JSON, changed while sessions run.

use std::time::Duration;

use serde::Deserialize;
use serde::Serialize;

/// Faults of one session, or of all. `Default` is a quiet network with the gateway's habits of AWS.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Knobs {
    /// Client → agent.
    pub up: Path,
    /// Agent → client.
    pub down: Path,
    /// What becomes of frames for a side that is away.
    pub when_down: WhenDown,
    /// While set, no byte is read from or written to a client socket, nothing is closed, and new upgrades hang.
    pub black_hole: bool,
    /// Cuts each client socket (no close frame) this long after it was opened.
    pub cut_client_every_ms: Option<u64>,
    /// Cuts the agent's leg again and again.
    pub cut_agent_every_ms: Option<u64>,
    /// Closes each client socket with 1000 "Bye" this long after it was opened. AWS does so about once an hour.
    pub bye_after_ms: Option<u64>,
    /// A binary frame above this many bytes closes the client's socket with 1009. AWS's limit is not known.
    pub max_frame: Option<usize>,
    /// While set, the agent reads and sends nothing, as a process that is stopped; its sockets live.
    pub agent_hangs: bool,
    /// While set, no dial of the agent comes to an end.
    pub dials_hang: bool,
}

impl Default for Knobs {
    fn default() -> Self {
        Self {
            up: Path::default(),
            down: Path::default(),
            when_down: WhenDown::default(),
            black_hole: false,
            cut_client_every_ms: None,
            cut_agent_every_ms: None,
            bye_after_ms: Some(3_600_000),
            max_frame: None,
            agent_hangs: false,
            dials_hang: false,
        }
    }
}

impl Knobs {
    /// The same one-way latency both ways, so a round trip of twice that.
    #[must_use]
    pub fn with_latency_ms(mut self, one_way: u64) -> Self {
        self.up.latency_ms = one_way;
        self.down.latency_ms = one_way;
        self
    }

    /// # Errors
    /// Names the knob whose probability is not in 0..=1, or whose number makes no sense.
    pub fn check(&self) -> Result<(), String> {
        for (path, name) in [(&self.up, "up"), (&self.down, "down")] {
            for (odds, kind) in [(&path.data, "data"), (&path.ack, "ack")] {
                for (value, knob) in [
                    (odds.drop, "drop"),
                    (odds.duplicate, "duplicate"),
                    (odds.reorder, "reorder"),
                    (odds.corrupt, "corrupt"),
                    (odds.digest, "digest"),
                ] {
                    if !(0.0..=1.0).contains(&value) {
                        return Err(format!("{name}.{kind}.{knob} is {value}: give a probability from 0 to 1"));
                    }
                }
            }
            let rates = path.phases.iter().map(|phase| phase.bytes_per_second).chain([path.bytes_per_second]);
            if rates.into_iter().any(|rate| rate == Some(0)) {
                return Err(format!("{name}.bytes_per_second is 0: use black_hole to stop every byte"));
            }
            if path.phases.iter().any(|phase| phase.for_ms == 0) {
                return Err(format!("{name}.phases has one of 0 ms: give at least 1"));
            }
            if path.drop_burst == 0 {
                return Err(format!("{name}.drop_burst is 0: give at least 1, and data.drop 0 to lose nothing"));
            }
        }
        for (value, knob) in
            [(self.cut_client_every_ms, "cut_client_every_ms"), (self.cut_agent_every_ms, "cut_agent_every_ms")]
        {
            if value == Some(0) {
                return Err(format!("{knob} is 0: give at least 1, or null for never"));
            }
        }
        Ok(())
    }
}

/// One direction.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Path {
    /// One-way delay. Frames keep their order.
    pub latency_ms: u64,
    /// Added to the latency, evenly from 0 to this. Frames keep their order.
    pub jitter_ms: u64,
    /// A link of this rate in front of the latency.
    pub bytes_per_second: Option<u64>,
    /// Bytes that wait in front of that link before the sender is held back, as TCP does; `None`: 50 ms of it.
    pub queue_bytes: Option<u64>,
    /// What does not fit in the queue is lost, as in a gateway that has no room; nobody is held back.
    pub tail_drop: bool,
    /// Rates and latencies, one after the other and from the start again, counted from the first frame. Frames that wait
    /// already keep the rate that they came with.
    pub phases: Vec<Phase>,
    /// So many frames in a row are lost when one is.
    pub drop_burst: u32,
    /// How much later a reordered frame comes than its neighbours.
    pub reorder_by_ms: u64,
    /// `input_stream_data` or `output_stream_data`.
    pub data: Odds,
    /// `acknowledge`.
    pub ack: Odds,
}

impl Default for Path {
    fn default() -> Self {
        Self {
            latency_ms: 0,
            jitter_ms: 0,
            bytes_per_second: None,
            queue_bytes: None,
            tail_drop: false,
            phases: Vec::new(),
            drop_burst: 1,
            reorder_by_ms: 5,
            data: Odds::default(),
            ack: Odds::default(),
        }
    }
}

impl Path {
    /// What it is like so long after its first frame.
    pub(crate) fn at(&self, since: Duration) -> Self {
        let mut now = Self { phases: Vec::new(), ..self.clone() };
        let all: u64 = self.phases.iter().map(|phase| phase.for_ms).sum();
        let mut left = u64::try_from(since.as_millis()).unwrap_or(u64::MAX).checked_rem(all).unwrap_or(0);
        for phase in &self.phases {
            if left < phase.for_ms {
                (now.bytes_per_second, now.latency_ms) = (phase.bytes_per_second, phase.latency_ms);
                break;
            }
            left -= phase.for_ms;
        }
        now
    }
}

/// What a path is like for a while.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Phase {
    pub for_ms: u64,
    #[serde(default)]
    pub bytes_per_second: Option<u64>,
    #[serde(default)]
    pub latency_ms: u64,
}

/// Probabilities, 0.0 to 1.0, drawn per frame from a seeded sequence.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Odds {
    pub drop: f64,
    pub duplicate: f64,
    pub reorder: f64,
    /// Flips one bit of the payload; header and digest stay as they were.
    pub corrupt: f64,
    /// Flips one bit of the digest; the payload stays as it was.
    pub digest: f64,
}

/// What the gateway does with frames for a side that is away. AWS's choice is not known, so both are here.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenDown {
    Drop,
    #[default]
    Hold,
}

/// Which way a frame goes.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// Agent → client.
    Down,
    /// Client → agent.
    Up,
}

/// What kind of frame, as far as faults tell them apart.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Ack,
    Data,
    /// Control frames; no fault touches them.
    Other,
}

impl Kind {
    /// From the message type, 32 bytes behind the header length.
    pub(crate) fn of(frame: &[u8]) -> Self {
        match frame.get(4..36).map(<[u8]>::trim_ascii_end) {
            Some(b"input_stream_data" | b"output_stream_data") => Self::Data,
            Some(b"acknowledge") => Self::Ack,
            _ => Self::Other,
        }
    }
}

/// Something that happens once, now.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Event {
    /// Closes the client's socket with 1000 "Bye", as AWS does hourly.
    Bye,
    /// The agent's leg is lost; it dials again after its reconnect delay.
    CutAgent,
    /// The client's socket is lost, without a close frame.
    CutClient,
    /// The next `count` frames of that kind and direction are lost.
    DropNext { direction: Direction, kind: Kind, count: u32 },
    /// The client gets frames that nobody understands: no message at all, messages of an unknown type or with a header
    /// that is wrong. None of them is data of the agent, but each that is taken for it stands where its next data should.
    Junk,
    /// The client's socket falls silent for good: no byte either way, no close. A new one works.
    FreezeClient,
    /// The agent's next smux frame has another version than 1.
    SmuxVersion,
}

/// What an administrator posts: for one session, or for all when `session` is absent.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Change {
    pub session: Option<String>,
    /// Replaces all knobs of the session, or of all sessions, also of those started later.
    pub knobs: Option<Knobs>,
    /// Happens after the knobs are set.
    pub event: Option<Event>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_change_from_json_with_defaults_for_the_rest() {
        let change: Change = serde_json::from_str(
            r#"{"knobs":{"up":{"latency_ms":20,"data":{"drop":0.1}},"when_down":"drop"},
                "event":{"drop_next":{"direction":"down","kind":"ack","count":3}}}"#,
        )
        .unwrap();
        let knobs = change.knobs.unwrap();
        assert_eq!((knobs.up.latency_ms, knobs.down.latency_ms), (20, 0));
        assert_eq!(knobs.when_down, WhenDown::Drop);
        assert_eq!(knobs.bye_after_ms, Some(3_600_000));
        assert_eq!(change.event, Some(Event::DropNext { direction: Direction::Down, kind: Kind::Ack, count: 3 }));
        let cut: Change = serde_json::from_str(r#"{"event":"cut_client"}"#).unwrap();
        assert_eq!(cut.event, Some(Event::CutClient));
    }

    #[test]
    fn a_path_goes_through_its_phases_again_and_again() {
        let path: Path = serde_json::from_str(
            r#"{"phases":[{"for_ms":1000,"bytes_per_second":64000,"latency_ms":2},{"for_ms":500,"latency_ms":750}]}"#,
        )
        .unwrap();
        for (ms, rate, latency) in
            [(0, Some(64_000), 2), (999, Some(64_000), 2), (1000, None, 750), (1500, Some(64_000), 2)]
        {
            let now = path.at(Duration::from_millis(ms));
            assert_eq!((now.bytes_per_second, now.latency_ms), (rate, latency), "{ms}");
        }
        let steady = Path { latency_ms: 7, ..Path::default() };
        assert_eq!(steady.at(Duration::from_secs(9)), steady);
    }

    #[test]
    fn names_the_knob_that_is_wrong() {
        let unknown = serde_json::from_str::<Change>(r#"{"knobs":{"up":{"latency":20}}}"#).unwrap_err();
        assert!(unknown.to_string().contains("latency"), "{unknown}");
        let mut knobs = Knobs::default();
        knobs.down.ack.drop = 1.5;
        assert_eq!(knobs.check().unwrap_err(), "down.ack.drop is 1.5: give a probability from 0 to 1");
        let stuck = Knobs { cut_client_every_ms: Some(0), ..Knobs::default() };
        assert!(stuck.check().unwrap_err().contains("cut_client_every_ms"));
    }
}
