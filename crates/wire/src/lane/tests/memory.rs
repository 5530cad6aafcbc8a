//! What hostile and clumsy launchers can have a relay remember.

use super::super::frame::{Frame, Segment};
use super::*;
use crate::memory::Budget;

const GRACE: Duration = Duration::from_secs(60);

/// A relay's end with this much memory for what has come, and one lane.
fn acceptor(arrived: usize) -> (Link, u32, Memory, Instant) {
    let memory = Memory { arrived: Budget::new("tests", arrived), ..Memory::relay() };
    let mut link = Link::new(Config { side: Side::Acceptor, filling: Filling::DOWN, grace: GRACE }, memory.clone());
    let lane = link.add_lane().unwrap();
    (link, lane, memory, start())
}

fn segment(stream: u64, offset: u64, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    Frame::Segment(Segment { stream, offset, fin: false, asks: false, data }).encode(&mut out);
    out
}

/// The streams that the link has reset, and why.
fn resets(link: &mut Link, now: Instant, lane: u32) -> Vec<(u64, String)> {
    link.schedule(now);
    let out = link.take_output(lane);
    let (mut rest, mut found) = (out.as_slice(), Vec::new());
    while let Some((frame, used)) = Frame::decode(rest).unwrap() {
        if let Frame::Reset { stream, reason } = frame {
            found.push((stream, reason.to_owned()));
        }
        rest = &rest[used..];
    }
    found
}

#[test]
fn pieces_out_of_order_are_counted_as_what_they_cost_and_the_stream_that_brings_too_many_is_reset() {
    let (mut link, lane, memory, now) = acceptor(1 << 20);
    let mut bytes = Vec::new();
    for stream in 1..=4 {
        for piece in 0..4000 {
            bytes.extend(segment(stream, 1 + 2 * piece, b"x"));
        }
    }
    link.handle_bytes(now, lane, &bytes);
    // 16,000 bytes in pieces of one take more than a megabyte.
    let found = resets(&mut link, now, lane);
    assert_eq!(found.iter().map(|(stream, _)| *stream).collect::<Vec<_>>(), [3, 4], "{found:?}");
    assert!(found[0].1.ends_with(" is used up: 1024 KiB"), "{found:?}");
    assert!(link.over().is_none() && memory.arrived.left() > 200_000);
    // Whoever goes on with them is not listened to, and others are served.
    link.handle_bytes(now, lane, &segment(3, 9001, b"x"));
    link.handle_bytes(now, lane, &segment(5, 0, b"\x04echohello"));
    assert_eq!(link.poll_event(), Some(Event::Opened { stream: 5, target: "echo".to_owned() }));
    link.close();
    drop(link);
    assert_eq!(memory.arrived.left(), 1 << 20);
}

#[test]
fn bytes_in_order_cost_little_more_than_themselves_however_small_the_pieces() {
    let (mut link, lane, memory, now) = acceptor(300_000);
    let mut bytes = segment(1, 0, b"\x04echo");
    for offset in 5..100_000 {
        bytes.extend(segment(1, offset, &[7]));
    }
    link.handle_bytes(now, lane, &bytes);
    assert_eq!(resets(&mut link, now, lane), []);
    let held = 300_000 - memory.arrived.left();
    assert!((99_995..110_000).contains(&held), "{held}");
}

/// Opens a stream whose sender always has more than it may send; the limit that it is given in the end.
fn grown(link: &mut Link, now: Instant, lane: u32, stream: u64) -> u64 {
    link.handle_bytes(now, lane, &segment(stream, 0, b"\x04echo"));
    let mut limit = WINDOW.0;
    loop {
        let mut blocked = Vec::new();
        Frame::Blocked { stream, limit }.encode(&mut blocked);
        link.handle_bytes(now, lane, &blocked);
        link.schedule(now);
        let out = link.take_output(lane);
        let (mut rest, mut more) = (out.as_slice(), None);
        while let Some((frame, used)) = Frame::decode(rest).unwrap() {
            if let Frame::Credit { stream: of, limit } = frame
                && of == stream
            {
                more = Some(limit);
            }
            rest = &rest[used..];
        }
        match more {
            Some(more) => limit = more,
            None => return limit,
        }
    }
}

#[test]
fn one_upload_has_what_a_good_line_needs_and_the_tenth_one_still_has_something() {
    let memory = Memory::relay();
    let all = memory.arrived.left();
    let mut link = Link::new(Config { side: Side::Acceptor, filling: Filling::DOWN, grace: GRACE }, memory.clone());
    let (lane, now) = (link.add_lane().unwrap(), start());
    let limits: Vec<u64> = (1..=10).map(|stream| grown(&mut link, now, lane, stream)).collect();
    assert!(limits[0] >= 10 << 20 && limits[1] >= 5 << 20 && limits[2] >= 2 << 20, "{limits:?}");
    assert!(limits.is_sorted_by(|first, next| first >= next), "{limits:?}");
    // Those that want no more than they have from the start find a quarter of it all.
    assert!(memory.arrived.left() >= all / 4, "{}", memory.arrived.left());
    // What one gives back is there for the next one.
    for stream in 1..=10 {
        let mut reset = Vec::new();
        Frame::Reset { stream, reason: "" }.encode(&mut reset);
        link.handle_bytes(now, lane, &reset);
    }
    assert_eq!(memory.arrived.left(), all);
    assert_eq!(grown(&mut link, now, lane, 11), limits[0]);
    // The laptop has more for the few that it has.
    let mut link = Link::new(Config { side: Side::Acceptor, filling: Filling::DOWN, grace: GRACE }, Memory::laptop());
    let lane = link.add_lane().unwrap();
    assert_eq!([1, 2, 3].map(|stream| grown(&mut link, now, lane, stream) >= WINDOW.1), [true; 3]);
}

#[test]
fn a_larger_window_is_memory_that_is_there_when_it_is_used() {
    let (mut link, lane, memory, now) = acceptor(8 << 20);
    let limits: Vec<u64> = (1..=40).map(|stream| grown(&mut link, now, lane, stream)).collect();
    // The first ones get much, the later ones less, and none takes it all.
    assert!(limits[0] > 1 << 20 && limits[1] > WINDOW.0 && limits[0] <= WINDOW.1 + WINDOW.0, "{limits:?}");
    assert!(memory.arrived.left() > 0);
    // What was promised can be sent by everybody at once, beyond the budget by nobody.
    for (stream, limit) in (1..).zip(&limits) {
        let mut offset = 5;
        while offset < *limit && limit > &(WINDOW.0 * 2) {
            let length = usize::try_from((limit - offset).min(16_000)).unwrap();
            link.handle_bytes(now, lane, &segment(stream, offset, &vec![7; length]));
            offset += length as u64;
        }
    }
    assert_eq!(resets(&mut link, now, lane), []);
}

#[test]
fn a_stream_that_never_says_its_target_is_over_after_half_a_minute() {
    let (mut link, lane, _, now) = acceptor(1 << 20);
    let after = |seconds| now + Duration::from_secs(seconds);
    // The length of a name, and not the name; and one that is only said to exist.
    link.handle_bytes(now, lane, &segment(2, 0, b"\x04ec"));
    link.handle_bytes(after(10), lane, &segment(3, 0, b"\x04echo"));
    assert!(link.poll_timeout().is_some_and(|(at, _)| at <= after(30)));
    link.handle_timeout(after(29));
    assert_eq!(resets(&mut link, after(29), lane), []);
    link.handle_timeout(after(30));
    let why = "it did not say its target within 30 s".to_owned();
    assert_eq!(resets(&mut link, after(30), lane), [(1, why.clone()), (2, why)]);
    assert_eq!(link.open_streams(), 1);
    // Not while there is no lane on which it could say so.
    link.handle_bytes(after(31), lane, &segment(4, 0, b"\x04ec"));
    link.handle_lane_lost(after(40), lane);
    link.handle_timeout(after(70));
    let lane = link.add_lane().unwrap();
    link.handle_bytes(after(71), lane, &segment(4, 3, b"ho"));
    assert_eq!(link.open_streams(), 2);
    assert!(link.over().is_none());
}
