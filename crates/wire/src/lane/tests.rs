//! Two ends of a link over simulated lanes; the clock belongs to the test.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

mod memory;
mod scenarios;

use super::budget::Filling;
use super::link::{Config, Ended, Event, Link, STREAMS_MAX, Side, StreamEnd};
use super::stream::Read;
use crate::memory::{Memory, WINDOW};

const OPENER: usize = 0;
const ACCEPTOR: usize = 1;

/// One direction of a lane: a byte pipe with a rate and a latency.
#[derive(Default)]
struct Pipe {
    /// Bytes a second.
    rate: Option<u64>,
    latency: Duration,
    queue: VecDeque<(Instant, Vec<u8>)>,
    free_at: Option<Instant>,
    /// Nothing arrives until this time.
    frozen_until: Option<Instant>,
    most: usize,
    /// Writes so far.
    writes: usize,
}

impl Pipe {
    fn push(&mut self, now: Instant, bytes: Vec<u8>) {
        self.writes += 1;
        for part in bytes.chunks(1024) {
            let took =
                self.rate.map_or(Duration::ZERO, |rate| Duration::from_nanos(part.len() as u64 * 1_000_000_000 / rate));
            let leaves = self.free_at.map_or(now, |at| at.max(now)) + took;
            self.free_at = Some(leaves);
            self.queue.push_back((leaves + self.latency, part.to_vec()));
        }
        self.most = self.most.max(self.queue.iter().map(|(_, part)| part.len()).sum());
    }

    fn next(&self) -> Option<Instant> {
        self.queue.front().map(|(due, _)| self.frozen_until.map_or(*due, |until| until.max(*due)))
    }
}

struct Lane {
    ids: [u32; 2],
    /// By the end that they lead to.
    pipes: [Pipe; 2],
}

#[expect(clippy::disallowed_methods, reason = "where the test's own clock starts")]
fn start() -> Instant {
    Instant::now()
}

/// What one end of a stream does.
#[derive(Default)]
struct Half {
    to_send: VecDeque<u8>,
    finish: bool,
    finished: bool,
    received: Vec<u8>,
    ended: bool,
    failed: Option<String>,
    paused: bool,
    /// A stream is answered with what it has sent.
    echo: bool,
}

struct World {
    now: Instant,
    links: [Link; 2],
    lanes: Vec<Lane>,
    halves: [BTreeMap<u64, Half>; 2],
    targets: Vec<String>,
    over: [bool; 2],
    random: u64,
}

impl World {
    fn new(lanes: usize, pipe: impl Fn() -> [Pipe; 2], seed: u64) -> Self {
        let config = |side, filling| Config { side, filling, grace: Duration::from_secs(60) };
        let mut world = Self {
            now: start(),
            links: [
                Link::new(config(Side::Opener, Filling::UP), Memory::laptop()),
                Link::new(config(Side::Acceptor, Filling::DOWN), Memory::relay()),
            ],
            lanes: Vec::new(),
            halves: Default::default(),
            targets: Vec::new(),
            over: [false; 2],
            random: seed | 1,
        };
        for _ in 0..lanes {
            world.add_lane(pipe());
        }
        world
    }

    fn chance(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below
    }

    fn add_lane(&mut self, pipes: [Pipe; 2]) {
        let ids =
            [0, 1].map(|end| self.links[end].add_lane().unwrap_or_else(|| panic!("{:?}", self.links[end].over())));
        self.lanes.push(Lane { ids, pipes });
    }

    /// The pipe is gone, with all that was in it.
    fn lose_lane(&mut self, index: usize) {
        let lane = self.lanes.remove(index);
        for end in [OPENER, ACCEPTOR] {
            self.links[end].handle_lane_lost(self.now, lane.ids[end]);
        }
    }

    fn open(&mut self, target: &str, to_send: Vec<u8>) -> u64 {
        let id = self.links[OPENER].open(target).unwrap();
        self.links[OPENER].flush(self.now, id);
        self.halves[OPENER].insert(id, Half { to_send: to_send.into(), finish: true, ..Half::default() });
        id
    }

    /// Everything that can happen now.
    fn settle(&mut self) {
        loop {
            let mut moved = false;
            for end in [OPENER, ACCEPTOR] {
                moved |= self.pump(end);
                self.links[end].schedule(self.now);
                while let Some(event) = self.links[end].poll_event() {
                    match event {
                        Event::Opened { stream, target } => {
                            let half = Half { echo: target == "echo", finish: target != "open", ..Half::default() };
                            self.halves[end].insert(stream, half);
                            self.targets.push(target);
                            moved = true;
                        }
                        Event::Over => self.over[end] = true,
                        Event::Stuck(lane) => assert!(self.links[end].is_stuck(lane)),
                        Event::Readable(_) | Event::Writable(_) => moved = true,
                    }
                }
                for lane in &mut self.lanes {
                    // Asked for whenever a lane moves, whether or not there is some.
                    let bytes = self.links[end].take_output(lane.ids[end]);
                    if !bytes.is_empty() {
                        lane.pipes[1 - end].push(self.now, bytes);
                        moved = true;
                    }
                }
            }
            if !moved {
                return;
            }
        }
    }

    /// The applications read and write; true if something moved.
    fn pump(&mut self, end: usize) -> bool {
        let (link, now) = (&mut self.links[end], self.now);
        let mut moved = false;
        let mut buffer = [0; 3000];
        for (id, half) in &mut self.halves[end] {
            while !half.paused && !half.ended && half.failed.is_none() {
                match link.read(*id, &mut buffer) {
                    Ok(Read::Data(length)) => {
                        half.received.extend_from_slice(&buffer[..length]);
                        if half.echo {
                            half.to_send.extend(&buffer[..length]);
                        }
                        moved = true;
                    }
                    Ok(Read::End) => half.ended = true,
                    Ok(Read::Pending) => break,
                    Err(error) => half.failed = Some(error.to_string()),
                }
            }
            if half.failed.is_some() || half.finished {
                continue;
            }
            while !half.to_send.is_empty() {
                let (front, _) = half.to_send.as_slices();
                let length = front.len().min(10_000);
                match link.write(now, *id, &front[..length]) {
                    Ok(0) => break,
                    Ok(length) => drop(half.to_send.drain(..length)),
                    Err(error) => {
                        half.failed = Some(error.to_string());
                        break;
                    }
                }
                moved = true;
            }
            link.flush(now, *id);
            if half.to_send.is_empty() && half.finish && (!half.echo || half.ended) && half.failed.is_none() {
                link.finish(now, *id);
                half.finished = true;
                moved = true;
            }
        }
        moved
    }

    /// One step to the next thing that happens; false if nothing ever will.
    fn step(&mut self) -> bool {
        self.settle();
        let due = self.lanes.iter().flat_map(|lane| lane.pipes.iter().filter_map(Pipe::next)).min();
        let timers = [0, 1].map(|end| self.links[end].poll_timeout().map(|(at, _)| at));
        let Some(next) = [due, timers[0], timers[1]].into_iter().flatten().min() else { return false };
        self.now = self.now.max(next);
        for index in 0..self.lanes.len() {
            for end in [OPENER, ACCEPTOR] {
                while self.lanes[index].pipes[end].next().is_some_and(|due| due <= self.now) {
                    let (_, part) = self.lanes[index].pipes[end].queue.pop_front().unwrap();
                    // Cut anywhere.
                    let at = usize::try_from(self.chance(part.len() as u64 + 1)).unwrap();
                    let lane = self.lanes[index].ids[end];
                    self.links[end].handle_bytes(self.now, lane, &part[..at]);
                    self.links[end].handle_bytes(self.now, lane, &part[at..]);
                }
            }
        }
        for link in &mut self.links {
            if link.poll_timeout().is_some_and(|(at, _)| at <= self.now) {
                link.handle_timeout(self.now);
            }
        }
        true
    }

    fn run_until(&mut self, limit: Duration, done: impl Fn(&Self) -> bool) {
        let until = self.now + limit;
        loop {
            self.settle();
            if done(self) {
                return;
            }
            let more = self.step();
            assert!(more && self.now < until, "stuck ({more}): {:?} {:?}", self.links[0], self.links[1]);
        }
    }

    fn ended(&self, id: u64) -> bool {
        self.halves.iter().all(|halves| halves.get(&id).is_some_and(|half| half.ended && half.finished))
    }
}

fn quick() -> [Pipe; 2] {
    [
        Pipe { latency: Duration::from_millis(1), ..Pipe::default() },
        Pipe { latency: Duration::from_millis(1), ..Pipe::default() },
    ]
}

/// As the agent: a slow clock towards the laptop, none the other way.
fn agent(latency: Duration) -> [Pipe; 2] {
    [
        Pipe { rate: Some(800_000), latency, ..Pipe::default() },
        Pipe { rate: Some(20_000_000), latency, ..Pipe::default() },
    ]
}

fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let step = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..length).map(step).collect()
}

fn bytes(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut out = Vec::with_capacity(length);
    while out.len() < length {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        // Half of it can be compressed.
        if state >> 63 == 0 {
            out.extend_from_slice(&state.to_le_bytes());
        } else {
            out.extend_from_slice(b"the same words again");
        }
    }
    out.truncate(length);
    out
}
