//! The lane protocol: frames, one end of a link against a peer that sends anything, and two ends over lanes that come, go
//! and bring their bytes in any pieces at any time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use super::smux::pattern;
use super::{Input, start};
use crate::lane::budget::Filling;
use crate::lane::frame::{Frame, REASON_MAX, SEGMENT_MAX, SEGMENT_OVERHEAD, Segment};
use crate::lane::link::{Config, Event, Link, Side};
use crate::lane::stream::Read;
use crate::memory::Memory;

/// Frames that are larger than this were never whole.
const FRAME_MAX: usize = SEGMENT_MAX + SEGMENT_OVERHEAD + REASON_MAX;

/// Any bytes are a frame that comes back, too few, or the same error as their first bytes.
pub(super) fn frames(data: &[u8]) {
    let whole = Frame::decode(data);
    match &whole {
        Ok(Some((frame, used))) => {
            let mut again = Vec::new();
            frame.encode(&mut again);
            // Numbers may come in more bytes than they need.
            assert!((1..=data.len()).contains(used) && again.len() <= *used);
            assert_eq!(Frame::decode(&again), Ok(Some((frame.clone(), again.len()))));
        }
        Ok(None) => assert!(data.len() < FRAME_MAX, "it waits for more than it may store"),
        Err(_) => {}
    }
    for end in 0..data.len().min(64) {
        match Frame::decode(data.get(..end).unwrap_or_default()) {
            Ok(None) => {}
            sooner => {
                assert_eq!(sooner, whole, "after {end} bytes");
                break;
            }
        }
    }
}

fn link(side: Side) -> Link {
    let filling = if side == Side::Opener { Filling::UP } else { Filling::DOWN };
    Link::new(Config { side, filling, grace: Duration::from_secs(60) }, Memory::relay())
}

/// One end, and a peer that sends anything.
pub(super) fn peer(data: &[u8]) {
    let mut input = Input(data);
    let side = if input.byte() & 1 == 0 { Side::Acceptor } else { Side::Opener };
    let mut end = Attacked {
        link: link(side),
        now: start(),
        lanes: BTreeMap::new(),
        streams: BTreeMap::new(),
        over: false,
        took: 0,
        gave: 0,
    };
    end.add_lane();
    while !input.is_empty() {
        end.step(&mut input);
        end.settle();
    }
}

struct Attacked {
    link: Link,
    now: Instant,
    /// What each lane has sent, as far as it is not a whole frame, and how much in all.
    lanes: BTreeMap<u32, (Vec<u8>, u64)>,
    /// Where the peer is in each stream.
    streams: BTreeMap<u64, u64>,
    over: bool,
    took: usize,
    gave: usize,
}

impl Attacked {
    fn add_lane(&mut self) {
        match self.link.add_lane() {
            Some(lane) => assert!(self.lanes.insert(lane, (Vec::new(), 0)).is_none(), "a lane's number is used again"),
            None => assert!(self.over || self.link.lanes().0 > 1),
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let (step, chosen) = (input.byte(), input.byte());
        let lane = self.lanes.keys().copied().nth(usize::from(chosen >> 4) % self.lanes.len().max(1)).unwrap_or(7);
        let stream = u64::from(chosen & 0xf);
        let sent = self.lanes.get(&lane).map_or(0, |(_, sent)| *sent);
        match step % 20 {
            0 => self.add_lane(),
            1 => {
                self.link.handle_lane_lost(self.now, lane);
                self.lanes.remove(&lane);
            }
            2 => self.bytes(lane, input.short()),
            3 => self.frame(lane, &Frame::Ack { received: sent.saturating_sub(u64::from(input.byte())) }),
            4 => self.frame(lane, &Frame::Credit { stream, limit: u64::from(input.word()) << 8 }),
            5 => self.frame(lane, &Frame::Blocked { stream, limit: 0 }),
            6 => self.frame(lane, &Frame::Reset { stream, reason: "so" }),
            7 => self.frame(lane, &Frame::Stop { stream }),
            8 => self.frame(lane, &Frame::Ask),
            9 | 10 => {
                let flags = input.byte();
                let gap = u64::from(flags >> 2);
                let data = input.short();
                let next = self.streams.entry(stream).or_default();
                let offset = *next + gap;
                *next = offset + data.len() as u64;
                let (fin, asks) = (flags & 1 != 0, flags & 2 != 0);
                self.frame(lane, &Frame::Segment(Segment { stream, offset, fin, asks, data }));
            }
            11 => {
                self.streams.insert(stream, u64::from(input.word()));
            }
            12 => {
                if let Some(opened) = self.link.open("orders") {
                    assert!(!self.over);
                    self.streams.entry(opened).or_default();
                }
            }
            13 => {
                let bytes = pattern(0, input.word());
                if let Ok(taken) = self.link.write(self.now, stream, &bytes) {
                    assert!(taken <= bytes.len());
                    self.took += taken;
                }
            }
            14 => self.link.flush(self.now, stream),
            15 => self.link.finish(self.now, stream),
            16 => {
                let mut buffer = vec![0; usize::from(input.word()) + 1];
                if let Ok(Read::Data(length)) = self.link.read(stream, &mut buffer) {
                    assert!(length <= buffer.len());
                }
            }
            17 => self.link.reset(self.now, stream, "why not"),
            18 => self.link.release(self.now, stream),
            _ => {
                self.now += Duration::from_millis(u64::from(input.word()));
                self.link.handle_timeout(self.now);
            }
        }
    }

    fn frame(&mut self, lane: u32, frame: &Frame<'_>) {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        self.bytes(lane, &bytes);
    }

    fn bytes(&mut self, lane: u32, bytes: &[u8]) {
        self.took += bytes.len();
        self.link.handle_bytes(self.now, lane, bytes);
    }

    fn settle(&mut self) {
        self.link.schedule(self.now);
        while let Some(event) = self.link.poll_event() {
            assert!(!self.over, "something after the end of the link");
            match event {
                Event::Over => self.over = true,
                Event::Opened { stream, .. } => drop(self.streams.entry(stream).or_default()),
                Event::Readable(_) | Event::Stuck(_) | Event::Writable(_) => {}
            }
        }
        assert_eq!(self.link.over().is_some(), self.over);
        for (lane, (partial, sent)) in &mut self.lanes {
            if !self.link.has_output(*lane) {
                continue;
            }
            let bytes = self.link.take_output(*lane);
            assert!(!self.link.has_output(*lane), "output without end");
            *sent += bytes.len() as u64;
            self.gave += bytes.len();
            partial.extend_from_slice(&bytes);
            while let Some((_, used)) = Frame::decode(partial).expect("what we send parses") {
                partial.drain(..used);
            }
            assert!(partial.is_empty(), "half a frame went out");
        }
        // Every lane may get everything once more, and streams that are not wanted are answered.
        assert!(self.gave <= (self.took + 4096) * 128, "{} bytes for {}", self.gave, self.took);
        if self.link.poll_timeout().is_some_and(|(at, _)| at <= self.now) {
            self.link.handle_timeout(self.now);
            let again = self.link.poll_timeout().filter(|(at, _)| *at <= self.now);
            assert_eq!(again, None, "its driver would turn without a pause");
        }
    }
}

/// Two ends that keep to the rules.
pub(super) fn link_of_two(data: &[u8]) {
    let mut input = Input(data);
    let mut pair = Pair { ends: [End::new(Side::Opener), End::new(Side::Acceptor)], now: start(), lanes: Vec::new() };
    pair.add_lane();
    while !input.is_empty() {
        pair.step(&mut input);
        pair.settle();
    }
    pair.check(false);
    // Whatever happened before: over lanes that hold, everything arrives and everything ends.
    pair.add_lane();
    let mut turns = 0;
    while !pair.ends.iter().any(|end| end.over) {
        turns += 1;
        assert!(turns < 10_000, "it never comes to rest");
        let before = pair.bytes_read();
        pair.deliver_all();
        if pair.bytes_read() > before || pair.lanes.iter().any(|(_, ways)| ways.iter().any(|way| !way.is_empty())) {
            continue;
        }
        // Nothing is under way: on to the next thing that somebody waits for.
        let Some((at, _)) = pair.ends.iter().filter_map(|end| end.link.poll_timeout()).min() else { break };
        pair.pass(at.saturating_duration_since(pair.now));
    }
    pair.check(!pair.ends.iter().any(|end| end.over));
}

struct End {
    link: Link,
    halves: BTreeMap<u64, Half>,
    over: bool,
}

#[derive(Default)]
struct Half {
    written: Vec<u8>,
    read: Vec<u8>,
    finished: bool,
    ended: bool,
    /// Reset by one of the two: bytes may be missing, and no end may be seen.
    cut: bool,
}

impl End {
    fn new(side: Side) -> Self {
        Self { link: link(side), halves: BTreeMap::new(), over: false }
    }
}

struct Pair {
    ends: [End; 2],
    now: Instant,
    /// Numbers at both ends, and the bytes on their way to each.
    lanes: Vec<([u32; 2], [VecDeque<u8>; 2])>,
}

impl Pair {
    fn add_lane(&mut self) {
        let [a, b] = &mut self.ends;
        if a.over || b.over || self.lanes.len() >= 8 {
            return;
        }
        if let (Some(a), Some(b)) = (a.link.add_lane(), b.link.add_lane()) {
            self.lanes.push(([a, b], Default::default()));
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let (step, chosen) = (input.byte(), input.byte());
        let end = usize::from(chosen & 1);
        let stream = u64::from(chosen >> 1 & 7);
        let lane = usize::from(chosen >> 4) % self.lanes.len().max(1);
        let now = self.now;
        match step % 12 {
            0 => {
                if let Some(stream) = self.ends[0].link.open("orders") {
                    self.ends[0].halves.insert(stream, Half::default());
                }
            }
            1 | 2 => {
                let At { link, halves } = self.at(end);
                let Some(half) = halves.get_mut(&stream).filter(|half| !half.finished && !half.cut) else { return };
                let bytes = pattern(half.written.len(), input.word());
                if let Ok(taken) = link.write(now, stream, &bytes) {
                    half.written.extend_from_slice(&bytes[..taken]);
                }
                link.flush(now, stream);
            }
            3 => {
                let At { link, halves } = self.at(end);
                if let Some(half) = halves.get_mut(&stream) {
                    half.finished = true;
                    link.finish(now, stream);
                }
            }
            4 => self.read(end, stream, usize::from(input.word())),
            5 | 6 => self.deliver(lane, end, usize::from(input.word())),
            7 => self.add_lane(),
            8 => {
                if self.lanes.len() > 1 {
                    let (ids, _) = self.lanes.remove(lane);
                    for (end, id) in self.ends.iter_mut().zip(ids) {
                        end.link.handle_lane_lost(now, id);
                    }
                }
            }
            9 => {
                for end in &mut self.ends {
                    if let Some(half) = end.halves.get_mut(&stream) {
                        half.cut = true;
                    }
                }
                self.ends[end].link.reset(now, stream, "enough");
            }
            10 => self.deliver_all(),
            _ => self.pass(Duration::from_millis(u64::from(input.word() >> 4))),
        }
    }

    fn bytes_read(&self) -> usize {
        self.ends.iter().flat_map(|end| end.halves.values()).map(|half| half.read.len()).sum()
    }

    fn at(&mut self, end: usize) -> At<'_> {
        let End { link, halves, .. } = &mut self.ends[end];
        At { link, halves }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        for end in &mut self.ends {
            end.link.handle_timeout(self.now);
        }
        self.settle();
    }

    fn read(&mut self, end: usize, stream: u64, length: usize) {
        let At { link, halves } = self.at(end);
        let Some(half) = halves.get_mut(&stream).filter(|half| !half.ended) else { return };
        let mut buffer = vec![0; length + 1];
        match link.read(stream, &mut buffer) {
            Ok(Read::Data(length)) => half.read.extend_from_slice(&buffer[..length]),
            Ok(Read::End) => half.ended = true,
            Ok(Read::Pending) => {}
            Err(error) => assert!(half.cut || self.ends[end].over, "an end that keeps to the rules breaks {error}"),
        }
    }

    /// The next bytes of one lane, as many as are there.
    fn deliver(&mut self, lane: usize, end: usize, length: usize) {
        let Some((ids, ways)) = self.lanes.get_mut(lane) else { return };
        let length = length.min(ways[end].len());
        let bytes: Vec<u8> = ways[end].drain(..length).collect();
        let id = ids[end];
        self.ends[end].link.handle_bytes(self.now, id, &bytes);
        self.settle();
    }

    fn deliver_all(&mut self) {
        for lane in 0..self.lanes.len() {
            for end in [0, 1] {
                self.deliver(lane, end, usize::MAX);
            }
        }
        for end in [0, 1] {
            for stream in self.ends[end].halves.keys().copied().collect::<Vec<_>>() {
                self.read(end, stream, 4096);
            }
        }
        self.settle();
    }

    fn settle(&mut self) {
        for end in [0, 1] {
            // What an end has reset before the other heard of it is reset there too.
            let known = self.ends[1 - end].halves.iter();
            let cut: BTreeSet<u64> = known.filter(|(_, half)| half.cut).map(|(id, _)| *id).collect();
            let End { link, halves, over } = &mut self.ends[end];
            link.schedule(self.now);
            while let Some(event) = link.poll_event() {
                match event {
                    Event::Over => *over = true,
                    Event::Opened { stream, target } => {
                        assert_eq!((end, target.as_str()), (1, "orders"));
                        let half = Half { cut: cut.contains(&stream), ..Half::default() };
                        assert!(halves.insert(stream, half).is_none(), "a stream opens twice");
                    }
                    Event::Readable(_) | Event::Stuck(_) | Event::Writable(_) => {}
                }
            }
            for (ids, ways) in &mut self.lanes {
                ways[1 - end].extend(link.take_output(ids[end]));
            }
        }
    }

    /// `all`: nothing is on its way any more.
    fn check(&self, all: bool) {
        for (end, other) in [(0, 1), (1, 0)] {
            for (stream, half) in &self.ends[end].halves {
                let none = Half::default();
                let far = self.ends[other].halves.get(stream).unwrap_or(&none);
                assert!(far.written.starts_with(&half.read), "other bytes than were written");
                assert!(!half.ended || half.cut || far.finished && half.read == far.written, "an end too early");
                if all && !half.cut && !far.cut {
                    assert_eq!(half.read.len(), far.written.len(), "bytes of stream {stream} never arrive");
                    assert_eq!(half.ended, far.finished, "the end of stream {stream} never arrives");
                }
            }
        }
        if let Some(broken) = self.ends.iter().find_map(|end| end.link.over()) {
            let text = broken.to_string();
            assert!(!text.contains("broken"), "two ends that keep to the rules: {text}");
        }
    }
}

struct At<'a> {
    link: &'a mut Link,
    halves: &'a mut BTreeMap<u64, Half>,
}
