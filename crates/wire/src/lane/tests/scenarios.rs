//! What a link does for its streams while lanes are slow, stall, are lost and come, and what a peer cannot do to it.

use proptest::prelude::*;

use super::*;
use crate::lane::frame::{Frame, Segment};

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
fn an_upload_over_a_good_line_is_not_held_up_by_its_window() {
    let latency = Duration::from_millis(20);
    let pipe = || {
        let (down, up) =
            (Pipe { latency, ..Pipe::default() }, Pipe { rate: Some(40_000_000), latency, ..Pipe::default() });
        [down, up]
    };
    let mut world = World::new(4, pipe, 3);
    let id = world.open("open", noise(60_000_000));
    let seconds = Duration::from_secs;
    world.run_until(seconds(9), |world| {
        world.halves[ACCEPTOR].get(&id).is_some_and(|half| half.received.len() > 20_000_000)
    });
    let (began, before) = (world.now, world.halves[ACCEPTOR][&id].received.len());
    world.run_until(seconds(9), |world| world.halves[ACCEPTOR][&id].received.len() == 60_000_000);
    let rate = (60_000_000 - before) as f64 / (world.now - began).as_secs_f64();
    assert!(rate > 140_000_000.0, "{rate} bytes a second of 160 million");
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
fn a_question_costs_one_write_and_its_answer_another() {
    for lanes in [1, 4] {
        let mut world = World::new(lanes, quick, 1);
        let id = world.open("echo", b"first".to_vec());
        world.halves[OPENER].get_mut(&id).unwrap().finish = false;
        let mut asked = 0;
        let mut ask = |world: &mut World| {
            asked += 1;
            world.halves[OPENER].get_mut(&id).unwrap().to_send.extend(b"again");
            world.run_until(Duration::from_secs(1), |world| world.halves[OPENER][&id].received.len() == 5 + 5 * asked);
        };
        // Until every lane knows its round trip.
        for _ in 0..20 {
            ask(&mut world);
            world.run_until(Duration::from_secs(1), |world| world.links.iter().all(Link::is_drained));
        }
        let writes =
            |world: &World| world.lanes.iter().flat_map(|lane| &lane.pipes).map(|pipe| pipe.writes).sum::<usize>();
        let before = writes(&world);
        for _ in 0..20 {
            ask(&mut world);
        }
        assert_eq!(writes(&world) - before, 40, "{lanes} lanes: what nobody has asked for travels with something else");
    }
}

/// Otherwise a session would never be idle: keeping it alive is the tunnel's decision.
#[test]
fn a_link_that_nobody_uses_comes_to_rest() {
    for lanes in [1, 4] {
        let mut world = World::new(lanes, quick, 1);
        let (open, ended) = (world.open("echo", bytes(100_000, 1)), world.open("echo", bytes(100_000, 2)));
        world.halves[OPENER].get_mut(&open).unwrap().finish = false;
        world.run_until(Duration::from_secs(60), |world| {
            world.ended(ended) && world.halves[OPENER][&open].received.len() == 100_000
        });
        // No bytes on their way, and no timer that could send any.
        assert!((0..10_000).any(|_| !world.step()), "{:?}", world.links);
        assert!(world.links.iter().all(Link::is_drained) && world.over == [false; 2]);
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

fn freeze_first_lane(world: &mut World, until: Option<Instant>) {
    world.lanes[0].pipes.iter_mut().for_each(|pipe| pipe.frozen_until = until);
}

/// The first of two lanes freezes once so many of the bytes of a stream, whose id it is, have come back.
fn frozen_in_mid_stream(length: usize, so_far: usize, seed: u64) -> (World, u64) {
    let mut world = World::new(2, || agent(Duration::from_millis(5)), seed);
    let id = world.open("echo", bytes(length, 1));
    world.run_until(Duration::from_secs(9), |world| world.halves[OPENER][&id].received.len() > so_far);
    let until = world.now + Duration::from_secs(600);
    freeze_first_lane(&mut world, Some(until));
    (world, id)
}

#[test]
fn a_lane_that_stalls_is_taken_out_and_comes_back() {
    let (mut world, id) = frozen_in_mid_stream(1_500_000, 100_000, 5);
    world.run_until(Duration::from_secs(20), |world| world.ended(id));
    assert_eq!(world.links[OPENER].lanes(), (2, 1));
    assert!(world.links[ACCEPTOR].totals().resent > 0);
    // It moves again: what it still held is known already, and it is used again.
    freeze_first_lane(&mut world, None);
    world.run_until(Duration::from_secs(20), |world| {
        world.links[OPENER].lanes() == (2, 2) && world.links[ACCEPTOR].lanes() == (2, 2)
    });
    assert_eq!(world.halves[OPENER][&id].received.len(), 1_500_000);
}

#[test]
fn a_lane_that_stays_stalled_is_stuck_until_it_moves() {
    let (mut world, id) = frozen_in_mid_stream(300_000, 50_000, 6);
    let (lane, frozen_at) = (world.lanes[0].ids[OPENER], world.now);
    world.run_until(Duration::from_secs(60), |world| world.links[OPENER].is_stuck(lane));
    let stood = world.now - frozen_at;
    assert!(stood > Duration::from_secs(20) && stood < Duration::from_secs(32), "{stood:?}");
    assert!(world.ended(id) && !world.links[OPENER].is_stuck(world.lanes[1].ids[OPENER]));
    // Whoever did not want to replace it is asked again.
    assert!(world.links[OPENER].poll_timeout().is_some());
    freeze_first_lane(&mut world, None);
    world.run_until(Duration::from_secs(20), |world| !world.links[OPENER].is_stuck(lane));
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
    world.links[ACCEPTOR].reset(world.now, id, "there is no target \"open\" here");
    world.run_until(Duration::from_secs(1), |world| world.halves[OPENER][&id].failed.is_some());
    assert_eq!(world.halves[OPENER][&id].failed.as_deref(), Some("there is no target \"open\" here"));
    let error = world.links[OPENER].write(world.now, id, b"x").unwrap_err();
    assert_eq!(error, StreamEnd::Reset("there is no target \"open\" here".to_owned()));
    for end in [OPENER, ACCEPTOR] {
        world.links[end].release(world.now, id);
        world.halves[end].remove(&id);
        assert_eq!(world.links[end].open_streams(), 0);
    }
    // The next one is not disturbed by it.
    let next = world.open("echo", bytes(100, 1));
    world.run_until(Duration::from_secs(1), |world| world.ended(next));
}

#[test]
fn what_was_written_before_a_reset_is_read_before_it() {
    for (lanes, seed) in [(1, 5), (2, 6), (4, 7)] {
        let mut world = World::new(lanes, || agent(Duration::from_millis(5)), seed);
        let id = world.open("open", b"hello".to_vec());
        world.run_until(Duration::from_secs(1), |world| world.halves[ACCEPTOR].contains_key(&id));
        // Others fill the lanes.
        let other = world.open("echo", bytes(300_000, 2));
        let now = world.now;
        let acceptor = &mut world.links[ACCEPTOR];
        assert_eq!(acceptor.write(now, id, &bytes(20_000, 1)), Ok(20_000));
        acceptor.reset(now, id, "so it is");
        acceptor.release(now, id);
        world.halves[ACCEPTOR].remove(&id);
        world.run_until(Duration::from_secs(5), |world| world.halves[OPENER][&id].failed.is_some());
        let half = &world.halves[OPENER][&id];
        assert!(half.received == bytes(20_000, 1) && !half.ended, "{} bytes", half.received.len());
        assert_eq!(half.failed.as_deref(), Some("so it is"));
        world.run_until(Duration::from_secs(9), |world| world.ended(other));
    }
}

#[test]
fn a_reset_does_not_wait_for_ever_for_a_reader_that_reads_nothing() {
    let mut world = World::new(2, quick, 5);
    let id = world.open("open", b"hello".to_vec());
    world.run_until(Duration::from_secs(1), |world| world.halves[ACCEPTOR].contains_key(&id));
    world.halves[OPENER].get_mut(&id).unwrap().paused = true;
    let now = world.now;
    let acceptor = &mut world.links[ACCEPTOR];
    // Beyond the credit that the stream has.
    let window = usize::try_from(WINDOW.0).unwrap();
    let noise = noise(window + 10_000);
    let taken = acceptor.write(now, id, &noise).unwrap();
    acceptor.flush(now, id);
    acceptor.schedule(now);
    let more = acceptor.write(now, id, &noise[taken..]).unwrap();
    assert!(taken + more > window);
    acceptor.reset(now, id, "so it is");
    acceptor.release(now, id);
    world.halves[ACCEPTOR].remove(&id);
    world.run_until(Duration::from_secs(40), |world| world.now - now >= Duration::from_secs(30));
    world.halves[OPENER].get_mut(&id).unwrap().paused = false;
    world.run_until(Duration::from_secs(2), |world| world.halves[OPENER][&id].failed.is_some());
    assert_eq!(world.halves[OPENER][&id].failed.as_deref(), Some("so it is"));
    assert_eq!(world.links[ACCEPTOR].open_streams(), 0);
}

#[test]
fn a_writer_that_has_finished_and_gone_loses_nothing() {
    let mut world = World::new(2, || agent(Duration::from_millis(5)), 5);
    let id = world.open("open", b"hello".to_vec());
    world.run_until(Duration::from_secs(1), |world| world.halves[ACCEPTOR].contains_key(&id));
    world.halves[ACCEPTOR].insert(id, Half { to_send: bytes(60_000, 1).into(), finish: true, ..Half::default() });
    world.run_until(Duration::from_secs(1), |world| world.halves[ACCEPTOR][&id].finished);
    world.links[ACCEPTOR].release(world.now, id);
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
    assert!(matches!(
        world.links[ACCEPTOR].read(id, &mut [0; 9]),
        Err(StreamEnd::Over(Ended::Goodbye)) | Ok(Read::End)
    ));
}

#[test]
fn a_peer_that_breaks_the_rules_ends_the_link() {
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
        let segment = Segment { stream, offset: 0, fin: false, asks: false, data };
        Frame::Segment(segment).encode(&mut bytes);
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
        let segment = Segment { stream, offset: 0, fin: false, asks: false, data: b"\x04open" };
        Frame::Segment(segment).encode(&mut bytes);
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
    Frame::Goodbye.encode(&mut bytes);
    let segment = Segment { stream: 1, offset: 0, fin: false, asks: false, data: b"\x04open" };
    Frame::Segment(segment).encode(&mut bytes);
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
