//! The state machine of one end of a link.
//!
//! Order of use: `handle_*` with what happened, or commands; then [`Link::schedule`]; then [`Link::poll_event`] until
//! `None`; then [`Link::take_output`] for every lane that has some; then sleep until [`Link::poll_timeout`].
//!
//! Here are the link's parts, its lanes, its end and its time; `arrival` is what comes over the lanes, `streams` what the
//! local ends do, `schedule` what goes out.

mod arrival;
mod schedule;
mod streams;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use super::budget::Filling;
use super::codec::CodecError;
use super::frame::FrameError;
use super::later;
use super::pipe::{Cargo, Control, Lane};
use super::stream::{Piece, Receiving, Sending, StreamError};
use crate::memory::{Full, Memory};

/// Streams open at once.
pub const STREAMS_MAX: usize = 1024;
/// Lanes open at once.
pub const LANES_MAX: usize = 64;
/// A stream has so long to say its target.
const NAME_TIMEOUT: Duration = Duration::from_secs(30);
/// Frames about streams that may wait for room on a lane: what every stream may have, and as many refused streams.
const CONTROL_MAX: usize = 8 * STREAMS_MAX;

/// Which end of the link this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The relay: streams come.
    Acceptor,
    /// The laptop: opens streams.
    Opener,
}

#[derive(Debug, Clone, Copy)]
pub struct Config {
    pub side: Side,
    pub filling: Filling,
    /// Without any lane for so long, the link is over.
    pub grace: Duration,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The other side has opened a stream.
    Opened { stream: u64, target: String },
    /// There may be something to read, or the stream was reset.
    Readable(u64),
    /// There may be room to write, or nobody reads any more.
    Writable(u64),
    /// The lane has not moved for long: [`Link::is_stuck`]. Comes again while it is so.
    Stuck(u32),
    /// The link is over; so are all its streams.
    Over,
}

/// Why a link is over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    #[error("this side has closed the link")]
    Closed,
    #[error("{0}")]
    Gone(String),
    #[error("the other side has closed the link")]
    Goodbye,
    #[error("no lane was open for {0} s")]
    NoLane(u64),
    #[error("the link is broken: {0}")]
    Broken(#[from] LinkError),
}

/// A peer that breaks the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    #[error("{0}")]
    Frame(#[from] FrameError),
    #[error("stream {0}: {1}")]
    Stream(u64, StreamError),
    #[error("a lane acknowledges more than it was given")]
    AckBeyondSent,
    #[error("stream {0} was never opened")]
    UnknownStream(u64),
    #[error("the name of a target is not UTF-8")]
    BadTarget,
    #[error("more than {CONTROL_MAX} answers are waiting for a peer that does not take them")]
    Flood,
}

/// Why a stream gives or takes no more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamEnd {
    /// The local end has finished it, or the other side reads no more.
    #[error("nobody reads the stream any more")]
    Closed,
    /// What carries it has ended before the stream did.
    #[error("the connection between bastion and its relay was cut")]
    Cut,
    /// One of the two sides has reset it, and why.
    #[error("{0}")]
    Reset(String),
    #[error("{0}")]
    Unreadable(CodecError),
    /// At this end there is no memory for what comes.
    #[error("{0}")]
    NoMemory(Full),
    /// With its link.
    #[error("{0}")]
    Over(Ended),
}

impl From<CodecError> for StreamEnd {
    fn from(error: CodecError) -> Self {
        match error {
            CodecError::Full(full) => Self::NoMemory(full),
            error => Self::Unreadable(error),
        }
    }
}

/// What went through, before packing and after it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    pub sent: u64,
    pub sent_packed: u64,
    pub received: u64,
    pub received_packed: u64,
    /// Pieces sent once more because their lane was lost or stalled.
    pub resent: u64,
}

struct Stream {
    sending: Sending,
    receiving: Receiving,
    /// Its place in the turns: what it has sent, as far as that counts.
    tag: u64,
    in_turn: bool,
    /// The name of its target is known.
    named: bool,
    /// Nobody holds it any more.
    released: bool,
    /// How it has ended other than by the ends of both directions.
    cut: Option<StreamEnd>,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "tag {} turn {} {:?} {:?}", self.tag, self.in_turn, self.sending, self.receiving)
    }
}

impl Stream {
    fn new(named: bool, memory: &Memory) -> Self {
        Self {
            sending: Sending::new(memory),
            receiving: Receiving::new(memory),
            tag: 0,
            in_turn: false,
            named,
            released: false,
            cut: None,
        }
    }

    /// Nothing goes out or comes any more; what has come before can be read.
    fn cut(&mut self, end: StreamEnd) {
        self.cut.get_or_insert(end);
        self.sending.stop();
        self.receiving.cut();
    }
}

/// See the module.
pub struct Link {
    config: Config,
    memory: Memory,
    lanes: BTreeMap<u32, Lane>,
    next_lane: u32,
    streams: BTreeMap<u64, Stream>,
    last_stream: u64,
    /// Streams with something to send, by their tags.
    turns: BTreeSet<(u64, u64)>,
    /// The tag of the stream that was served last.
    served: u64,
    resend: VecDeque<Piece>,
    control: VecDeque<Control>,
    /// Streams whose encoder has a context.
    contexts: BTreeSet<u64>,
    /// Streams whose reset waits for what was written before it, and how long.
    resets: BTreeMap<u64, Instant>,
    /// Streams that have not said their targets, and until when they may, in this order; with some that have.
    unnamed: VecDeque<(Instant, u64)>,
    clear_until: Option<Instant>,
    used: u64,
    no_lane_since: Option<Instant>,
    over: Option<Ended>,
    events: VecDeque<Event>,
    totals: Totals,
}

impl std::fmt::Debug for Link {
    /// No bytes of any stream.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link")
            .field("side", &self.config.side)
            .field("lanes", &self.lanes)
            .field("streams", &self.streams)
            .field("turns", &self.turns)
            .field("resend", &self.resend.len())
            .field("control", &self.control)
            .field("totals", &self.totals)
            .field("over", &self.over)
            .finish_non_exhaustive()
    }
}

impl Link {
    /// `memory` is what all links of the process may have.
    pub fn new(config: Config, memory: Memory) -> Self {
        Self {
            config,
            memory,
            lanes: BTreeMap::new(),
            next_lane: 0,
            streams: BTreeMap::new(),
            last_stream: 0,
            turns: BTreeSet::new(),
            served: 0,
            resend: VecDeque::new(),
            control: VecDeque::new(),
            contexts: BTreeSet::new(),
            resets: BTreeMap::new(),
            unnamed: VecDeque::new(),
            clear_until: None,
            used: 0,
            no_lane_since: None,
            over: None,
            events: VecDeque::new(),
            totals: Totals::default(),
        }
    }

    pub fn totals(&self) -> Totals {
        self.totals
    }

    pub fn open_streams(&self) -> usize {
        self.streams.values().filter(|stream| !stream.released).count()
    }

    /// Lanes, and those of them that move.
    pub fn lanes(&self) -> (usize, usize) {
        (self.lanes.len(), self.lanes.values().filter(|lane| !lane.is_stalled()).count())
    }

    /// The lane has not moved for so long that whoever knows its path to be open had better replace it.
    pub fn is_stuck(&self, lane: u32) -> bool {
        self.lanes.get(&lane).is_some_and(Lane::is_stuck)
    }

    /// The shortest round trip of the quickest lane.
    pub fn round_trip(&self) -> Option<Duration> {
        self.lanes.values().filter_map(|lane| lane.budget.best()).min()
    }

    pub fn over(&self) -> Option<&Ended> {
        self.over.as_ref()
    }

    /// Everything sent has arrived.
    pub fn is_drained(&self) -> bool {
        self.turns.is_empty()
            && self.resend.is_empty()
            && self.control.is_empty()
            && self.lanes.values().all(|lane| !lane.has_items() && !lane.has_output())
    }

    /// A new lane; `None`: the link is over, or has as many as it may.
    pub fn add_lane(&mut self) -> Option<u32> {
        if self.over.is_some() || self.lanes.len() >= LANES_MAX {
            return None;
        }
        let id = self.next_lane;
        self.next_lane = id.checked_add(1)?;
        self.lanes.insert(id, Lane::new(self.config.filling));
        self.no_lane_since = None;
        Some(id)
    }

    /// The lane's pipe is gone. What was under way on it goes on others.
    pub fn handle_lane_lost(&mut self, now: Instant, lane: u32) {
        let Some(mut lane) = self.lanes.remove(&lane) else { return };
        self.send_again(lane.take_items());
        if self.lanes.is_empty() {
            self.no_lane_since = Some(now);
        }
    }

    fn send_again(&mut self, cargo: Vec<Cargo>) {
        for cargo in cargo {
            match cargo {
                Cargo::Piece(piece) => {
                    self.totals.resent = self.totals.resent.saturating_add(1);
                    self.resend.push_back(piece);
                }
                Cargo::Control(control) => self.control.push_back(control),
                Cargo::Ask => {}
            }
        }
    }

    /// Ends streams that have taken too long to say what they are for.
    fn end_unnamed(&mut self, now: Instant) {
        while let Some((at, id)) = self.unnamed.pop_front() {
            let waits = self.streams.get(&id).is_some_and(|stream| !stream.named && stream.cut.is_none());
            match waits {
                true if at > now => return self.unnamed.push_front((at, id)),
                // It may have said so, on a lane that is gone.
                true if self.lanes.is_empty() => self.unnamed.push_back((later(now, NAME_TIMEOUT), id)),
                true => {
                    let reason = format!("it did not say its target within {} s", NAME_TIMEOUT.as_secs());
                    self.refuse(id, StreamEnd::Reset(reason));
                }
                false => {}
            }
            if self.unnamed.front().is_some_and(|(at, _)| *at > now) {
                return;
            }
        }
    }

    /// Ends a stream that this side carries no further; everything else goes on.
    fn refuse(&mut self, id: u64, end: StreamEnd) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        self.control.push_back(Control::Reset { stream: id, reason: end.to_string() });
        stream.cut(end);
        stream.receiving.forget();
        // Nobody will ever hold one whose target is not known.
        stream.released |= !stream.named;
        self.resets.remove(&id);
        self.contexts.remove(&id);
        self.wake(id);
        self.retire(id);
    }

    /// Ends the link; tells the other side.
    pub fn close(&mut self) {
        self.end(Ended::Closed);
    }

    /// Ends the link because the other side is known to exist no more.
    pub fn give_up(&mut self, cause: &str) {
        self.end(Ended::Gone(cause.to_owned()));
    }

    fn end(&mut self, ended: Ended) {
        if self.over.is_some() {
            return;
        }
        for stream in self.streams.values_mut() {
            stream.cut(StreamEnd::Over(ended.clone()));
        }
        self.turns.clear();
        self.contexts.clear();
        self.resets.clear();
        self.resend.clear();
        self.control.clear();
        for lane in self.lanes.values_mut() {
            lane.take_items();
            if ended != Ended::Goodbye {
                lane.put_goodbye();
            }
        }
        self.over = Some(ended);
        self.events.push_back(Event::Over);
    }

    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// The next thing to do if nothing else happens, and why.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        if self.over.is_some() {
            return None;
        }
        let lanes = self.lanes.values().filter_map(Lane::timeout);
        let idle = self.contexts.iter().filter_map(|id| self.streams.get(id)?.sending.encoder.idle_at());
        let no_lane = self.no_lane_since.map(|since| (later(since, self.config.grace), "no lane"));
        let resets = self.resets.values().map(|at| (*at, "reset"));
        let unnamed = self.unnamed.front().map(|(at, _)| (*at, "no target"));
        let others = no_lane.into_iter().chain(resets).chain(unnamed);
        lanes.chain(idle.map(|at| (at, "idle context"))).chain(others).min_by_key(|(at, _)| *at)
    }

    /// Fires what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.over.is_some() {
            return;
        }
        for (id, lane) in &mut self.lanes {
            if lane.handle_timeout(now) {
                self.events.push_back(Event::Stuck(*id));
            }
        }
        let idle: Vec<u64> = self.contexts.iter().copied().filter(|id| self.is_idle(*id, now)).collect();
        for id in idle {
            self.contexts.remove(&id);
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.sending.end_context();
                self.take_turn(id);
            }
        }
        let late: Vec<u64> = self.resets.iter().filter(|(_, at)| **at <= now).map(|(id, _)| *id).collect();
        for id in late {
            self.reset_at_once(id);
        }
        self.end_unnamed(now);
        if self.no_lane_since.is_some_and(|since| later(since, self.config.grace) <= now) {
            self.end(Ended::NoLane(self.config.grace.as_secs()));
        }
    }

    fn is_idle(&self, id: u64, now: Instant) -> bool {
        self.streams.get(&id).and_then(|stream| stream.sending.encoder.idle_at()).is_none_or(|at| at <= now)
    }
}
