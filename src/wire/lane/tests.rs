//! Two ends of a link over simulated lanes; the clock belongs to the test.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::budget::Filling;
use super::link::{Config, Ended, Event, Link, STREAMS_MAX, Side, StreamEnd};
use super::stream::{Read, WINDOW};

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
}

impl Pipe {
    fn push(&mut self, now: Instant, bytes: Vec<u8>) {
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
            links: [Link::new(config(Side::Opener, Filling::UP)), Link::new(config(Side::Acceptor, Filling::DOWN))],
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
                    if self.links[end].has_output(lane.ids[end]) {
                        let bytes = self.links[end].take_output(lane.ids[end]);
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn bytes_arrive_once_in_order_and_both_directions_end(
        seed in any::<u64>(),
        lengths in proptest::collection::vec(0_usize..200_000, 1..6),
        lanes in 1_usize..5,
        latencies in proptest::collection::vec(0_u64..60, 5),
        losses in proptest::collection::vec((0_usize..400, any::<bool>()), 0..8),
    ) {
        let next = std::cell::Cell::new(0);
        let pipe = || {
            let latency = Duration::from_millis(latencies[next.replace(next.get() + 1) % latencies.len()]);
            agent(latency)
        };
        let mut world = World::new(lanes, pipe, seed);
        let sent: Vec<(u64, Vec<u8>)> = lengths
            .iter()
            .zip(1..)
            .map(|(length, n)| {
                let data = bytes(*length, seed ^ n);
                (world.open("echo", data.clone()), data)
            })
            .collect();
        for (steps, freeze) in losses {
            for _ in 0..steps {
                world.step();
            }
            let index = usize::try_from(world.chance(world.lanes.len() as u64)).unwrap();
            if freeze {
                let until = world.now + Duration::from_secs(5);
                world.lanes[index].pipes.iter_mut().for_each(|pipe| pipe.frozen_until = Some(until));
            } else {
                world.lose_lane(index);
                world.settle();
                world.add_lane(pipe());
            }
        }
        world.run_until(Duration::from_secs(300), |world| sent.iter().all(|(id, _)| world.ended(*id)));
        for (id, data) in sent {
            prop_assert!(world.halves[ACCEPTOR][&id].received == data, "stream {} upwards", id);
            prop_assert!(world.halves[OPENER][&id].received == data, "stream {} downwards", id);
        }
    }

    #[test]
    fn any_bytes_on_a_lane_do_no_harm(parts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..20)) {
        let mut world = World::new(1, quick, 1);
        for part in parts {
            world.links[ACCEPTOR].handle_bytes(world.now, 0, &part);
            world.settle();
        }
    }
}

#[test]
fn the_name_of_the_target_comes_first_however_lanes_overtake() {
    let slow = Duration::from_millis(300);
    let latency = std::cell::Cell::new(Duration::from_millis(1));
    let pipe = || {
        let latency = latency.replace(slow);
        [Pipe { latency, ..Pipe::default() }, Pipe { latency, ..Pipe::default() }]
    };
    let mut world = World::new(2, pipe, 7);
    let ids = ["a", "orders", "echo"].map(|target| world.open(target, bytes(50_000, 3)));
    world.run_until(Duration::from_secs(10), |world| ids.iter().all(|id| world.ended(*id)));
    world.targets.sort();
    assert_eq!(world.targets, ["a", "echo", "orders"]);
}

#[test]
fn four_lanes_carry_four_times_as_much_as_one_and_queues_stay_short() {
    let took = |lanes, latency| {
        let mut world = World::new(lanes, || agent(Duration::from_millis(latency)), 3);
        let id = world.open("open", Vec::new());
        world.run_until(Duration::from_secs(1), |world| world.halves[ACCEPTOR].contains_key(&id));
        let began = world.now;
        world.halves[ACCEPTOR].get_mut(&id).unwrap().to_send = noise(3_000_000).into();
        world.run_until(Duration::from_secs(60), |world| world.halves[OPENER][&id].received.len() == 3_000_000);
        let most = world.lanes.iter().map(|lane| lane.pipes[OPENER].most).max().unwrap();
        (world.now - began, most)
    };
    for latency in [0, 1, 20] {
        let (one, _) = took(1, latency);
        let (four, most) = took(4, latency);
        let ratio = one.as_secs_f64() / four.as_secs_f64();
        assert!(ratio > 3.5, "{latency} ms: {one:?} and {four:?}");
        // The path of a lane holds 0.8 MB/s times the round trip; the start is a guess.
        assert!(most <= 80_000, "{latency} ms: {most} bytes were in one lane");
    }
}

#[test]
fn what_somebody_types_overtakes_a_download() {
    for latency in [0, 1, 20] {
        let mut world = World::new(4, || agent(Duration::from_millis(latency)), 3);
        let bulk = world.open("open", Vec::new());
        let typed = world.open("echo", Vec::new());
        world.halves[OPENER].get_mut(&typed).unwrap().finish = false;
        world.run_until(Duration::from_secs(1), |world| world.halves[ACCEPTOR].len() == 2);
        let ping = |world: &mut World| {
            let began = world.now;
            let half = world.halves[OPENER].get_mut(&typed).unwrap();
            half.to_send.extend([1; 50]);
            let wanted = half.received.len() + 50;
            world.run_until(Duration::from_secs(5), |world| world.halves[OPENER][&typed].received.len() == wanted);
            world.now - began
        };
        let idle = ping(&mut world);
        world.halves[ACCEPTOR].get_mut(&bulk).unwrap().to_send = noise(10_000_000).into();
        world.run_until(Duration::from_secs(5), |world| world.halves[OPENER][&bulk].received.len() > 2_000_000);
        let mut loaded: Vec<Duration> = (0..50).map(|_| ping(&mut world)).collect();
        loaded.sort();
        assert!(loaded[25] < 2 * idle, "{idle:?} alone, {:?} beside a download", loaded[25]);
        // The first one finds no lane that is clear.
        let worst = 4 * idle.max(Duration::from_millis(1));
        assert!(loaded[49] < worst, "{idle:?} alone, at most {:?} beside a download", loaded[49]);
    }
}

#[test]
fn a_reader_that_stops_holds_back_its_own_stream_only() {
    let mut world = World::new(2, quick, 5);
    let [stuck, other] = ["echo", "echo"].map(|target| world.open(target, bytes(9_000_000, 1)));
    world.halves[OPENER].get_mut(&stuck).unwrap().paused = true;
    world.run_until(Duration::from_secs(60), |world| world.ended(other));
    assert!(world.halves[ACCEPTOR][&stuck].to_send.len() > 1_000_000, "nothing was held back");
    world.halves[OPENER].get_mut(&stuck).unwrap().paused = false;
    world.run_until(Duration::from_secs(60), |world| world.ended(stuck));
    assert_eq!(world.halves[OPENER][&stuck].received.len(), 9_000_000);
}

#[test]
fn a_lane_that_stalls_is_taken_out_and_comes_back() {
    let mut world = World::new(2, || agent(Duration::from_millis(5)), 5);
    let id = world.open("echo", bytes(1_500_000, 1));
    world.run_until(Duration::from_secs(9), |world| world.halves[OPENER][&id].received.len() > 100_000);
    let frozen = world.now + Duration::from_secs(600);
    world.lanes[0].pipes.iter_mut().for_each(|pipe| pipe.frozen_until = Some(frozen));
    world.run_until(Duration::from_secs(20), |world| world.ended(id));
    assert_eq!(world.links[OPENER].lanes(), (2, 1));
    assert!(world.links[ACCEPTOR].totals().resent > 0);
    // It moves again: what it still held is known already, and it is used again.
    world.lanes[0].pipes.iter_mut().for_each(|pipe| pipe.frozen_until = None);
    world.run_until(Duration::from_secs(20), |world| {
        world.links[OPENER].lanes() == (2, 2) && world.links[ACCEPTOR].lanes() == (2, 2)
    });
    assert_eq!(world.halves[OPENER][&id].received.len(), 1_500_000);
}

#[test]
fn without_a_lane_streams_wait_and_then_fail_but_never_end() {
    let mut world = World::new(1, quick, 5);
    let id = world.open("open", b"hello".to_vec());
    world.run_until(Duration::from_secs(1), |world| world.halves[ACCEPTOR].contains_key(&id));
    world.lose_lane(0);
    world.halves[ACCEPTOR].get_mut(&id).unwrap().to_send = bytes(1000, 1).into();
    let gone = world.now;
    world.run_until(Duration::from_secs(61), |world| world.over == [true; 2]);
    assert_eq!(world.now - gone, Duration::from_secs(60));
    for (end, link) in world.links.iter().enumerate() {
        assert_eq!(link.over(), Some(&Ended::NoLane(60)));
        let half = &world.halves[end][&id];
        assert!(!half.ended || end == ACCEPTOR && half.received == b"hello");
    }
    world.settle();
    assert_eq!(world.halves[OPENER][&id].failed.as_deref(), Some("no lane was open for 60 s"));
    assert_eq!(world.links[OPENER].open("echo"), None);
}

#[test]
fn a_new_lane_in_time_brings_everything() {
    let mut world = World::new(1, quick, 5);
    let id = world.open("echo", bytes(400_000, 1));
    world.run_until(Duration::from_secs(1), |world| world.halves[OPENER][&id].received.len() > 50_000);
    world.lose_lane(0);
    for _ in 0..50 {
        world.settle();
        world.now += Duration::from_secs(1);
    }
    world.add_lane(quick());
    world.run_until(Duration::from_secs(9), |world| world.ended(id));
    assert!(world.halves[OPENER][&id].received == bytes(400_000, 1));
}

#[test]
fn a_reset_says_why_and_a_released_stream_is_forgotten() {
    let mut world = World::new(2, quick, 5);
    let id = world.open("open", b"hello".to_vec());
    world.run_until(Duration::from_secs(1), |world| world.halves[ACCEPTOR].contains_key(&id));
    world.links[ACCEPTOR].reset(id, "there is no target \"open\" here");
    world.run_until(Duration::from_secs(1), |world| world.halves[OPENER][&id].failed.is_some());
    assert_eq!(world.halves[OPENER][&id].failed.as_deref(), Some("there is no target \"open\" here"));
    let error = world.links[OPENER].write(world.now, id, b"x").unwrap_err();
    assert_eq!(error, StreamEnd::Reset("there is no target \"open\" here".to_owned()));
    for end in [OPENER, ACCEPTOR] {
        world.links[end].release(id);
        world.halves[end].remove(&id);
        assert_eq!(world.links[end].open_streams(), 0);
    }
    // The next one is not disturbed by it.
    let next = world.open("echo", bytes(100, 1));
    world.run_until(Duration::from_secs(1), |world| world.ended(next));
}

#[test]
fn a_writer_that_has_finished_and_gone_loses_nothing() {
    let mut world = World::new(2, || agent(Duration::from_millis(5)), 5);
    let id = world.open("open", b"hello".to_vec());
    world.run_until(Duration::from_secs(1), |world| world.halves[ACCEPTOR].contains_key(&id));
    world.halves[ACCEPTOR].insert(id, Half { to_send: bytes(60_000, 1).into(), finish: true, ..Half::default() });
    world.run_until(Duration::from_secs(1), |world| world.halves[ACCEPTOR][&id].finished);
    world.links[ACCEPTOR].release(id);
    world.halves[ACCEPTOR].remove(&id);
    world.run_until(Duration::from_secs(5), |world| world.halves[OPENER][&id].ended);
    assert!(world.halves[OPENER][&id].received == bytes(60_000, 1));
}

#[test]
fn a_closed_link_is_closed_at_both_ends() {
    let mut world = World::new(2, quick, 5);
    let id = world.open("open", b"hello".to_vec());
    world.run_until(Duration::from_secs(1), |world| world.halves[ACCEPTOR].contains_key(&id));
    world.links[OPENER].close();
    world.run_until(Duration::from_secs(1), |world| world.over == [true; 2]);
    assert_eq!(world.links[ACCEPTOR].over(), Some(&Ended::Goodbye));
    assert_eq!(world.links[OPENER].over(), Some(&Ended::Closed));
    assert!(matches!(world.links[ACCEPTOR].read(id, &mut [0; 9]), Err(StreamEnd::Reset(_)) | Ok(Read::End)));
}

#[test]
fn a_peer_that_breaks_the_rules_ends_the_link() {
    use super::frame::{Frame, Segment};
    let data = [0; 100];
    let segment = |stream, offset, fin| Frame::Segment(Segment { stream, offset, fin, asks: false, data: &data });
    for (frames, wanted) in [
        (vec![segment(1, WINDOW.0, false)], "stream 1: more bytes than the stream's credit allows"),
        (vec![segment(1, 0, true), segment(1, 100, false)], "stream 1: bytes after the stream's end"),
        (vec![segment(2000, 0, false)], "stream 2000 was never opened"),
        (vec![Frame::Ack { received: 7 }], "a lane acknowledges more than it was given"),
    ] {
        let mut world = World::new(1, quick, 5);
        let mut bytes = Vec::new();
        frames.iter().for_each(|frame| frame.encode(&mut bytes));
        world.links[ACCEPTOR].handle_bytes(world.now, 0, &bytes);
        assert_eq!(world.links[ACCEPTOR].over().unwrap().to_string(), format!("the link is broken: {wanted}"));
    }
    let mut world = World::new(1, quick, 5);
    let mut bytes = Vec::new();
    segment(1, 0, false).encode(&mut bytes);
    world.links[OPENER].handle_bytes(world.now, 0, &bytes);
    assert!(world.links[OPENER].over().is_some(), "the acceptor opens no streams");
}

#[test]
fn streams_are_bounded_and_the_next_ones_are_refused() {
    let mut world = World::new(1, quick, 5);
    let mut bytes = Vec::new();
    for stream in 1..=STREAMS_MAX as u64 + 1 {
        let data = b"\x04open";
        let segment = super::frame::Segment { stream, offset: 0, fin: false, asks: false, data };
        super::frame::Frame::Segment(segment).encode(&mut bytes);
    }
    world.links[ACCEPTOR].handle_bytes(world.now, 0, &bytes);
    assert!(world.links[ACCEPTOR].over().is_none());
    assert_eq!(world.links[ACCEPTOR].open_streams(), STREAMS_MAX);
    world.links[ACCEPTOR].schedule(world.now);
    let out = world.links[ACCEPTOR].take_output(0);
    assert!(String::from_utf8_lossy(&out).contains("has 1024 connections already"), "{out:?}");
}

#[test]
fn a_peer_that_takes_no_answers_ends_the_link() {
    let mut world = World::new(1, quick, 5);
    let acceptor = &mut world.links[ACCEPTOR];
    for stream in 1..=10 * STREAMS_MAX as u64 {
        let mut bytes = Vec::new();
        let segment = super::frame::Segment { stream, offset: 0, fin: false, asks: false, data: b"\x04open" };
        super::frame::Frame::Segment(segment).encode(&mut bytes);
        acceptor.handle_bytes(world.now, 0, &bytes);
    }
    let wanted = "the link is broken: more than 8192 answers are waiting for a peer that does not take them";
    assert_eq!(acceptor.over().unwrap().to_string(), wanted);
}

#[test]
fn nothing_counts_after_the_end() {
    let mut world = World::new(2, quick, 5);
    let acceptor = &mut world.links[ACCEPTOR];
    let mut bytes = Vec::new();
    super::frame::Frame::Goodbye.encode(&mut bytes);
    let segment = super::frame::Segment { stream: 1, offset: 0, fin: false, asks: false, data: b"\x04open" };
    super::frame::Frame::Segment(segment).encode(&mut bytes);
    acceptor.handle_bytes(world.now, 0, &bytes);
    acceptor.handle_bytes(world.now, 1, &bytes);
    assert_eq!(std::iter::from_fn(|| acceptor.poll_event()).collect::<Vec<_>>(), [Event::Over]);
    assert_eq!(acceptor.open_streams(), 0);
}

#[test]
fn contexts_end_when_they_are_idle() {
    let mut world = World::new(1, quick, 5);
    let id = world.open("open", bytes(100_000, 1));
    world.halves[OPENER].get_mut(&id).unwrap().finish = false;
    world.run_until(Duration::from_secs(1), |world| world.halves.iter().all(|half| half.contains_key(&id)));
    world.run_until(Duration::from_secs(1), |world| world.halves[ACCEPTOR][&id].received.len() == 100_000);
    assert!(world.links[OPENER].poll_timeout().is_some());
    while world.step() {}
    // Nothing is left that would need a timer, so nothing is held.
    assert_eq!(world.links[OPENER].poll_timeout(), None);
    assert_eq!(world.links[ACCEPTOR].poll_timeout(), None);
    assert!(world.links[OPENER].is_drained());
}
