//! The state machine of one end of a link.
//!
//! Order of use: `handle_*` with what happened, or commands; then [`Link::schedule`]; then [`Link::poll_event`] until
//! `None`; then [`Link::take_output`] for every lane that has some; then sleep until [`Link::poll_timeout`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use super::budget::Filling;
use super::codec::CodecError;
use super::frame::{Frame, FrameError, Segment};
use super::later;
use super::pipe::{Cargo, Control, Lane};
use super::stream::{Piece, Read, Receiving, Sending, StreamError, WINDOW};

/// Streams open at once.
pub const STREAMS_MAX: usize = 1024;
/// Lanes open at once.
pub const LANES_MAX: usize = 64;
/// Bytes of a target's name.
pub const TARGET_MAX: usize = 255;
/// A stream that was quiet may send so much before busy ones have their turn.
const BONUS: u64 = 32 * 1024;
/// One that is so far behind the others was quiet; streams that all have much to send differ by a segment or two.
const SMALL_LAG: u64 = 4 * 1024;
/// And may put so much on a lane that is full already.
const SMALL_EXTRA: usize = 4 * 1024;
/// So long after a quiet stream has sent something, one lane is kept nearly empty for it.
const KEEP_CLEAR: Duration = Duration::from_secs(1);
/// What a piece costs beside its data, for the turns of the streams.
const PIECE_COST: u64 = 64;
/// All windows together may grow by so much.
const GROWTH_MAX: u64 = 64 << 20;
/// Frames about streams that may wait for room on a lane: what every stream may have, and as many refused streams.
const CONTROL_MAX: usize = 8 * STREAMS_MAX;
/// Streams that may have a context for compression at the same time.
const CONTEXTS_MAX: usize = 16;

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
    /// The link is over; so are all its streams.
    Over,
}

/// Why a link is over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    #[error("this side has closed the link")]
    Closed,
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
    #[error("{0}")]
    Reset(String),
    #[error("{0}")]
    Unreadable(#[from] CodecError),
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
    reset: Option<String>,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "tag {} turn {} {:?} {:?}", self.tag, self.in_turn, self.sending, self.receiving)
    }
}

impl Stream {
    fn new(named: bool) -> Self {
        Self {
            sending: Sending::new(),
            receiving: Receiving::new(),
            tag: 0,
            in_turn: false,
            named,
            released: false,
            reset: None,
        }
    }

    fn end(&mut self, reason: &str) {
        self.reset.get_or_insert_with(|| reason.to_owned());
        self.sending.stop();
        self.receiving.forget();
    }
}

/// See the module.
pub struct Link {
    config: Config,
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
    /// By how much windows have grown.
    grown: u64,
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
    pub fn new(config: Config) -> Self {
        Self {
            config,
            lanes: BTreeMap::new(),
            next_lane: 0,
            streams: BTreeMap::new(),
            last_stream: 0,
            turns: BTreeSet::new(),
            served: 0,
            resend: VecDeque::new(),
            control: VecDeque::new(),
            contexts: BTreeSet::new(),
            grown: 0,
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
        (self.lanes.len(), self.lanes.values().filter(|lane| !lane.stalled).count())
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

    // Lanes.

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

    /// Takes bytes of a lane, cut anywhere. A peer that breaks the protocol ends the link.
    pub fn handle_bytes(&mut self, now: Instant, lane: u32, bytes: &[u8]) {
        let Some(entry) = self.lanes.get_mut(&lane) else { return };
        let mut incoming = std::mem::take(&mut entry.incoming);
        incoming.extend_from_slice(bytes);
        let mut rest: &[u8] = &incoming;
        // Nothing counts that comes after the end, behind a goodbye or on another lane.
        while self.over.is_none() {
            match Frame::decode(rest) {
                Ok(Some((frame, used))) => {
                    rest = rest.get(used..).unwrap_or_default();
                    if let Some(lane) = self.lanes.get_mut(&lane) {
                        let at_once = matches!(frame, Frame::Ask | Frame::Segment(Segment { asks: true, .. }));
                        lane.on_frame(now, used, !matches!(frame, Frame::Ack { .. }), at_once);
                    }
                    if let Err(error) = self.handle_frame(now, lane, &frame).and_then(|()| self.check_control()) {
                        return self.end(Ended::Broken(error));
                    }
                }
                Ok(None) => break,
                Err(error) => return self.end(Ended::Broken(error.into())),
            }
        }
        let rest = rest.len();
        let used = incoming.len().saturating_sub(rest);
        let left = incoming.split_off(used);
        if let Some(entry) = self.lanes.get_mut(&lane) {
            entry.incoming = left;
        }
    }

    fn handle_frame(&mut self, now: Instant, lane: u32, frame: &Frame<'_>) -> Result<(), LinkError> {
        match *frame {
            Frame::Ack { received } => {
                let Some(lane) = self.lanes.get_mut(&lane) else { return Ok(()) };
                let arrived = lane.on_ack(now, received).ok_or(LinkError::AckBeyondSent)?;
                for cargo in arrived {
                    if let Cargo::Piece(piece) = cargo {
                        self.arrived(piece.stream);
                    }
                }
            }
            Frame::Credit { stream, limit } => {
                if let Some(entry) = self.stream(stream)? {
                    entry.sending.credit(limit);
                    self.take_turn(stream);
                }
            }
            Frame::Blocked { stream, limit: _ } => {
                let room = GROWTH_MAX.saturating_sub(self.grown);
                if let Some(entry) = self.stream(stream)? {
                    let grown = entry.receiving.grow(room);
                    self.grown = self.grown.saturating_add(grown);
                    self.grant(stream);
                }
            }
            Frame::Reset { stream, reason } => {
                if let Some(entry) = self.stream(stream)? {
                    entry.end(reason);
                    self.wake(stream);
                    self.retire(stream);
                }
            }
            Frame::Stop { stream } => {
                if let Some(entry) = self.stream(stream)? {
                    entry.sending.stop();
                    self.wake(stream);
                    self.retire(stream);
                }
            }
            Frame::Ask => {}
            Frame::Goodbye => self.end(Ended::Goodbye),
            Frame::Segment(segment) => self.handle_segment(&segment)?,
        }
        Ok(())
    }

    /// A peer that asks for more answers than it takes would fill our memory.
    fn check_control(&self) -> Result<(), LinkError> {
        if self.control.len() > CONTROL_MAX { Err(LinkError::Flood) } else { Ok(()) }
    }

    fn handle_segment(&mut self, segment: &Segment<'_>) -> Result<(), LinkError> {
        let id = segment.stream;
        let Some(stream) = self.stream(id)? else { return Ok(()) };
        let taken = stream.receiving.take(segment.offset, segment.data, segment.fin);
        let fresh = taken.map_err(|error| LinkError::Stream(id, error))?;
        let named = stream.named;
        self.totals.received_packed =
            self.totals.received_packed.saturating_add(u64::try_from(segment.data.len()).unwrap_or(0));
        if fresh && named {
            self.events.push_back(Event::Readable(id));
        } else if fresh {
            self.read_name(id)?;
        }
        self.retire(id);
        Ok(())
    }

    /// A stream begins with the length of its target's name and the name.
    fn read_name(&mut self, id: u64) -> Result<(), LinkError> {
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        let Some(length) = stream.receiving.peek() else { return Ok(()) };
        let Some(name) = stream.receiving.take_plain(usize::from(length).saturating_add(1)) else { return Ok(()) };
        let name = name.get(1..).unwrap_or_default().to_vec();
        stream.named = true;
        let target = String::from_utf8(name).map_err(|_| LinkError::BadTarget)?;
        self.events.push_back(Event::Opened { stream: id, target });
        Ok(())
    }

    /// The stream of this number, opened now if the other side opens streams; `None`: it is over, or not wanted.
    fn stream(&mut self, id: u64) -> Result<Option<&mut Stream>, LinkError> {
        if id > self.last_stream {
            let news = usize::try_from(id.saturating_sub(self.last_stream)).unwrap_or(usize::MAX);
            if self.config.side == Side::Opener || news > STREAMS_MAX {
                return Err(LinkError::UnknownStream(id));
            }
            // Lanes overtake one another: those before it will come too.
            for new in self.last_stream.saturating_add(1)..=id {
                if self.streams.len() < STREAMS_MAX {
                    self.streams.insert(new, Stream::new(false));
                } else {
                    let reason = format!("the link has {STREAMS_MAX} connections already");
                    self.control.push_back(Control::Reset { stream: new, reason });
                }
            }
            self.last_stream = id;
        }
        Ok(self.streams.get_mut(&id))
    }

    /// A piece of the stream has arrived.
    fn arrived(&mut self, id: u64) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.sending.outstanding = stream.sending.outstanding.saturating_sub(1);
            self.retire(id);
        }
    }

    fn wake(&mut self, id: u64) {
        if self.streams.get(&id).is_some_and(|stream| !stream.released) {
            self.events.push_back(Event::Readable(id));
            self.events.push_back(Event::Writable(id));
        }
    }

    /// Forgets the stream once nobody holds it and nothing of it is under way.
    fn retire(&mut self, id: u64) {
        let over = |stream: &Stream| {
            stream.released && stream.sending.is_done() && (stream.receiving.done || stream.receiving.is_complete())
        };
        if self.streams.get(&id).is_some_and(over) {
            self.forget(id);
        }
    }

    fn forget(&mut self, id: u64) {
        if let Some(stream) = self.streams.remove(&id) {
            self.turns.remove(&(stream.tag, id));
            self.contexts.remove(&id);
            self.grown = self.grown.saturating_sub(stream.receiving.window().saturating_sub(WINDOW.0));
        }
    }

    // Streams.

    /// Opens a stream to a target; it goes out with the next [`Link::flush`]. `None`: the link is over or full.
    pub fn open(&mut self, target: &str) -> Option<u64> {
        let length = u8::try_from(target.len()).ok()?;
        if self.over.is_some() || self.config.side == Side::Acceptor || self.streams.len() >= STREAMS_MAX {
            return None;
        }
        let id = self.last_stream.checked_add(1)?;
        self.last_stream = id;
        let mut stream = Stream::new(true);
        stream.sending.put(&[length]);
        stream.sending.put(target.as_bytes());
        self.streams.insert(id, stream);
        Some(id)
    }

    /// Takes bytes for the other side and says how many; 0: there is no room, [`Event::Writable`] follows.
    ///
    /// # Errors
    /// [`StreamEnd`]: the stream takes no more.
    pub fn write(&mut self, now: Instant, id: u64, mut data: &[u8]) -> Result<usize, StreamEnd> {
        let mut taken = 0_usize;
        while !data.is_empty() {
            let stream = self.streams.get_mut(&id).ok_or(StreamEnd::Closed)?;
            if let Some(reason) = &stream.reset {
                return Err(StreamEnd::Reset(reason.clone()));
            }
            if !stream.sending.can_write() {
                return Err(StreamEnd::Closed);
            }
            if !stream.sending.has_room() {
                stream.sending.wants_room = true;
                break;
            }
            let length = stream.sending.encoder.push(data);
            data = data.get(length..).unwrap_or_default();
            taken = taken.saturating_add(length);
            if stream.sending.encoder.is_full() {
                self.flush(now, id);
            }
        }
        self.totals.sent = self.totals.sent.saturating_add(u64::try_from(taken).unwrap_or(0));
        Ok(taken)
    }

    /// What was written goes out now. A writer calls it whenever it has nothing more for the moment.
    pub fn flush(&mut self, now: Instant, id: u64) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if !stream.sending.encoder.is_empty() {
            let packed = stream.sending.flush(now, self.contexts.len() < CONTEXTS_MAX);
            self.totals.sent_packed = self.totals.sent_packed.saturating_add(u64::try_from(packed).unwrap_or(0));
            if stream.sending.encoder.has_context() {
                self.contexts.insert(id);
            } else {
                self.contexts.remove(&id);
            }
        }
        self.take_turn(id);
    }

    /// The local end has finished writing; the other direction goes on.
    pub fn finish(&mut self, now: Instant, id: u64) {
        self.flush(now, id);
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.sending.finish();
            self.contexts.remove(&id);
            self.take_turn(id);
        }
    }

    /// Reads into `out`.
    ///
    /// # Errors
    /// [`StreamEnd`]: the stream was reset, never with its end.
    pub fn read(&mut self, id: u64, out: &mut [u8]) -> Result<Read, StreamEnd> {
        let stream = self.streams.get_mut(&id).ok_or(StreamEnd::Closed)?;
        if let Some(reason) = &stream.reset {
            return Err(StreamEnd::Reset(reason.clone()));
        }
        if stream.receiving.done {
            return Ok(Read::End);
        }
        match stream.receiving.read(out) {
            Ok(read) => {
                if let Read::Data(length) = read {
                    self.totals.received = self.totals.received.saturating_add(u64::try_from(length).unwrap_or(0));
                }
                self.grant(id);
                Ok(read)
            }
            Err(error) => {
                stream.end(&error.to_string());
                self.control.push_back(Control::Reset { stream: id, reason: error.to_string() });
                Err(error.into())
            }
        }
    }

    /// Tells the other side that it may send more, if that is due.
    fn grant(&mut self, id: u64) {
        let limit = self.streams.get_mut(&id).and_then(|stream| stream.receiving.new_limit());
        if let Some(limit) = limit {
            self.control.retain(|control| !matches!(control, Control::Credit { stream, .. } if *stream == id));
            self.control.push_back(Control::Credit { stream: id, limit });
        }
    }

    /// Ends both directions at once, and not cleanly.
    pub fn reset(&mut self, id: u64, reason: &str) {
        if let Some(stream) = self.streams.get_mut(&id)
            && stream.reset.is_none()
        {
            stream.end(reason);
            self.control.push_back(Control::Reset { stream: id, reason: reason.to_owned() });
            self.wake(id);
        }
    }

    /// The stream's holder is gone. What it has finished still arrives; anything else is reset.
    pub fn release(&mut self, id: u64) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.sending.can_write() {
            self.reset(id, "the other end of the connection is gone");
        } else if !stream.receiving.done && !stream.receiving.is_complete() && stream.reset.is_none() {
            self.control.push_back(Control::Stop { stream: id });
        }
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.receiving.forget();
            stream.released = true;
        }
        self.retire(id);
    }

    /// Ends the link; tells the other side.
    pub fn close(&mut self) {
        self.end(Ended::Closed);
    }

    fn end(&mut self, ended: Ended) {
        if self.over.is_some() {
            return;
        }
        let cause = ended.to_string();
        for stream in self.streams.values_mut() {
            stream.end(&cause);
        }
        self.turns.clear();
        self.contexts.clear();
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

    // What goes out.

    fn take_turn(&mut self, id: u64) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if let Some(limit) = stream.sending.blocked() {
            self.control.push_back(Control::Blocked { stream: id, limit });
        }
        if stream.in_turn || !stream.sending.is_ready() {
            return;
        }
        stream.tag = stream.tag.max(self.served.saturating_sub(BONUS));
        stream.in_turn = true;
        self.turns.insert((stream.tag, id));
    }

    /// Puts what may go out on the lanes.
    pub fn schedule(&mut self, now: Instant) {
        if self.over.is_some() {
            return;
        }
        self.rescue();
        while let Some(lane) = self.quickest() {
            let Some(control) = self.control.pop_front() else { break };
            self.use_lane(lane, |lane| lane.put_control(now, control));
        }
        while let Some(piece) = self.resend.front() {
            if self.streams.get(&piece.stream).is_none_or(|stream| stream.sending.stopped) {
                self.resend.pop_front();
                continue;
            }
            let Some((lane, limit)) = self.choose(now, false) else { return };
            let Some(piece) = self.resend.pop_front() else { return };
            self.use_lane(lane, |lane| lane.put_piece(now, piece, limit));
        }
        while let Some((tag, id)) = self.turns.first().copied() {
            // It was quiet while others sent: what somebody types, most likely.
            let small = self.served.saturating_sub(tag) > SMALL_LAG;
            let Some((lane, limit)) = self.choose(now, small) else { return };
            if small {
                self.clear_until = Some(later(now, KEEP_CLEAR));
            }
            self.turns.pop_first();
            self.serve(now, id, lane, limit);
        }
    }

    fn serve(&mut self, now: Instant, id: u64, lane: u32, limit: usize) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.in_turn = false;
        self.served = self.served.max(stream.tag);
        let size = self.lanes.get(&lane).map_or(0, |lane| lane.budget.segment());
        let Some(piece) = stream.sending.next(id, size) else { return };
        let cost = u64::try_from(piece.data.len()).unwrap_or(0).saturating_add(PIECE_COST);
        stream.tag = stream.tag.saturating_add(cost);
        stream.sending.outstanding = stream.sending.outstanding.saturating_add(1);
        if stream.sending.wants_room && stream.sending.has_room() {
            stream.sending.wants_room = false;
            self.events.push_back(Event::Writable(id));
        }
        self.take_turn(id);
        self.use_lane(lane, |lane| lane.put_piece(now, piece, limit));
    }

    fn use_lane(&mut self, id: u32, put: impl FnOnce(&mut Lane)) {
        self.used = self.used.saturating_add(1);
        if let Some(lane) = self.lanes.get_mut(&id) {
            lane.used = self.used;
            put(lane);
        }
    }

    /// What stalled lanes have under way goes on others, if there are any.
    fn rescue(&mut self) {
        if self.lanes.values().all(|lane| lane.stalled) {
            return;
        }
        let stuck: Vec<Cargo> =
            self.lanes.values_mut().filter(|lane| lane.stalled).flat_map(Lane::take_items).collect();
        self.send_again(stuck);
    }

    /// The lane that brings a few bytes soonest.
    fn quickest(&self) -> Option<u32> {
        let moving = self.lanes.iter().filter(|(_, lane)| !lane.stalled);
        moving.min_by_key(|(_, lane)| (lane.budget.takes(lane.in_flight()), lane.used)).map(|(id, _)| *id)
    }

    /// The lane for the next piece, and how much that lane may have under way; `None`: all are full.
    fn choose(&mut self, now: Instant, small: bool) -> Option<(u32, usize)> {
        let moving = self.lanes.values().filter(|lane| !lane.stalled).count();
        let keep_clear = self.clear_until.is_some_and(|until| now < until) && moving > 1;
        let mut best: Option<((Duration, u64), u32, usize)> = None;
        let mut clear = keep_clear && !small;
        for (id, lane) in self.lanes.iter_mut().filter(|(_, lane)| !lane.stalled) {
            let budget = &mut lane.budget;
            let limit = match std::mem::take(&mut clear) {
                true => match budget.holds().saturating_sub(budget.segment()) {
                    // Even one segment would be in the way.
                    0 => continue,
                    some => some,
                },
                _ if small => budget.bytes().saturating_add(SMALL_EXTRA),
                _ if budget.wants_empty(now) && budget.best().is_some() => 1,
                _ => budget.bytes(),
            };
            let in_flight = lane.in_flight();
            if in_flight >= limit.max(1) {
                if in_flight >= lane.budget.bytes() {
                    lane.budget.on_full();
                }
                lane.ask(now);
                continue;
            }
            let cost = (lane.budget.takes(in_flight), lane.used);
            if best.is_none_or(|(lowest, ..)| cost < lowest) {
                best = Some((cost, *id, limit));
            }
        }
        best.map(|(_, id, limit)| (id, limit))
    }

    pub fn has_output(&self, lane: u32) -> bool {
        self.lanes.get(&lane).is_some_and(Lane::has_output)
    }

    /// Bytes for the lane's pipe.
    pub fn take_output(&mut self, lane: u32) -> Vec<u8> {
        self.lanes.get_mut(&lane).map(Lane::take_output).unwrap_or_default()
    }

    // Time.

    /// The next thing to do if nothing else happens, and why.
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        if self.over.is_some() {
            return None;
        }
        let lanes = self.lanes.values().filter_map(Lane::timeout);
        let idle = self.contexts.iter().filter_map(|id| self.streams.get(id)?.sending.encoder.idle_at());
        let no_lane = self.no_lane_since.map(|since| (later(since, self.config.grace), "no lane"));
        lanes.chain(idle.map(|at| (at, "idle context"))).chain(no_lane).min_by_key(|(at, _)| *at)
    }

    /// Fires what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        for lane in self.lanes.values_mut() {
            lane.handle_timeout(now);
        }
        let idle: Vec<u64> = self.contexts.iter().copied().filter(|id| self.is_idle(*id, now)).collect();
        for id in idle {
            self.contexts.remove(&id);
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.sending.end_context();
                self.take_turn(id);
            }
        }
        if self.no_lane_since.is_some_and(|since| later(since, self.config.grace) <= now) {
            self.end(Ended::NoLane(self.config.grace.as_secs()));
        }
    }

    fn is_idle(&self, id: u64, now: Instant) -> bool {
        self.streams.get(&id).and_then(|stream| stream.sending.encoder.idle_at()).is_none_or(|at| at <= now)
    }
}
