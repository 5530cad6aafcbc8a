//! Tables and scenarios for `retransmit`; the clock belongs to the test.

use super::*;

use crate::ssm::message::{MessageId, MessageType, PayloadType, SCHEMA_VERSION};

const MS: Duration = Duration::from_millis(1);

fn message(length: usize) -> Message {
    Message {
        message_type: MessageType::InputStreamData,
        schema_version: SCHEMA_VERSION,
        created_ms: 1,
        sequence: 0,
        flags: 0,
        id: MessageId([7; 16]),
        payload_type: PayloadType::OUTPUT,
        payload: vec![0; length].into(),
    }
}

#[expect(clippy::disallowed_methods, reason = "only a start; the tests move it")]
fn start() -> Instant {
    Instant::now()
}

fn sent(count: usize, now: Instant) -> Unacked {
    let mut unacked = Unacked::default();
    for _ in 0..count {
        unacked.send(now, message(100), Cargo::Data).unwrap();
    }
    unacked
}

/// Sends what is due, each copy with this id.
fn resent(unacked: &mut Unacked, now: Instant, id: u8) -> Vec<i64> {
    let frames = std::iter::from_fn(|| unacked.send_again(now, [id; 16], |_, _| true));
    frames.map(|frame| Message::decode(frame).unwrap().sequence).collect()
}

/// An acknowledgement of the copy with this id.
fn ack(unacked: &mut Unacked, now: Instant, sequence: i64, id: u8) -> Option<Acked> {
    unacked.acknowledge(now, sequence, &MessageId([id; 16]).to_string(), Duration::ZERO)
}

/// One that names nothing, on a path whose shortest round trip is 30 ms.
fn nameless(unacked: &mut Unacked, now: Instant, sequence: i64) -> Option<Acked> {
    unacked.acknowledge(now, sequence, "", 30 * MS)
}

#[test]
fn a_gap_in_the_acknowledgements_is_sent_again_after_one_round_trip() {
    let start = start();
    let mut unacked = sent(10, start);
    let now = start + 40 * MS;
    for sequence in [0, 1, 3, 4] {
        ack(&mut unacked, now, sequence, 7).unwrap();
        assert!(unacked.due.is_empty());
    }
    ack(&mut unacked, now, 5, 7).unwrap();
    assert_eq!(resent(&mut unacked, now, 8), [2]);
    assert_eq!(unacked.resends(), (1, 0));
}

#[test]
fn the_last_gap_is_found_by_time() {
    let start = start();
    let mut unacked = sent(3, start);
    ack(&mut unacked, start + 40 * MS, 0, 7).unwrap();
    ack(&mut unacked, start + 41 * MS, 2, 7).unwrap();
    let at = unacked.timeout().unwrap();
    assert!(at < start + 60 * MS);
    unacked.handle_timeout(at);
    assert_eq!(resent(&mut unacked, at, 8), [1]);
}

#[test]
fn a_lost_burst_is_repaired_in_two_steps() {
    let start = start();
    let mut unacked = sent(100, start);
    let probe = unacked.timeout().unwrap();
    unacked.handle_timeout(probe);
    assert_eq!(resent(&mut unacked, probe, 8), [0], "one message asks whether the peer is there");
    ack(&mut unacked, probe + 10 * MS, 0, 8).unwrap();
    assert_eq!(resent(&mut unacked, probe + 10 * MS, 9).len(), 99, "the probe left after all of them");
}

#[test]
fn what_is_only_late_is_not_taken_for_lost() {
    let start = start();
    let mut unacked = sent(100, start);
    let probe = unacked.timeout().unwrap();
    unacked.handle_timeout(probe);
    assert_eq!(resent(&mut unacked, probe, 8), [0]);
    // The first copy was in a queue.
    let now = start + 900 * MS;
    let acked = ack(&mut unacked, now, 0, 7).unwrap();
    assert_eq!(acked.sample.unwrap().delay, 900 * MS);
    assert_eq!(resent(&mut unacked, now, 9), [0_i64; 0], "nothing else is in doubt");
    assert_eq!(unacked.resends(), (1, 1));
    assert!(unacked.timeout().unwrap() > now + 900 * MS, "the next probe knows the queue");
}

#[test]
fn an_acknowledgement_that_names_no_copy_proves_nothing_when_two_can_be_meant() {
    let start = start();
    let mut unacked = sent(100, start);
    let probe = unacked.timeout().unwrap();
    unacked.handle_timeout(probe);
    resent(&mut unacked, probe, 8);
    let backoff = unacked.backoff;
    assert_eq!(nameless(&mut unacked, probe + 31 * MS, 0).unwrap().sample, None);
    assert_eq!((unacked.backoff, unacked.largest_acked), (backoff, None));
    assert!(unacked.due.is_empty());
    // Sooner than any round trip after the repeat, it is for the first copy.
    let probe = unacked.timeout().unwrap();
    unacked.handle_timeout(probe);
    assert_eq!(resent(&mut unacked, probe, 9), [1]);
    let acked = nameless(&mut unacked, probe + 29 * MS, 1).unwrap();
    assert_eq!(acked.sample.unwrap().delay, probe + 29 * MS - start);
    assert_eq!((unacked.backoff, unacked.largest_acked), (0, Some(1)));
}

#[test]
fn the_probes_stay_backed_off_until_a_round_trip_is_known_for_sure() {
    let start = start();
    let mut unacked = sent(3, start);
    let mut now = start;
    for _ in 0..2 {
        now = unacked.timeout().unwrap();
        unacked.handle_timeout(now);
        resent(&mut unacked, now, 8);
    }
    now += 50 * MS;
    nameless(&mut unacked, now, 0).unwrap();
    assert_eq!(unacked.timeout(), Some(now + 500 * MS));
    ack(&mut unacked, now, 1, 7).unwrap();
    assert!(unacked.backoff == 0);
}

#[test]
fn a_probe_waits_for_the_queue_that_is_there() {
    let start = start();
    let mut unacked = sent(1000, start);
    // 220 bytes every 20 ms: 999 more need 20 s.
    for (n, sequence) in (0..20).enumerate() {
        ack(&mut unacked, start + 20 * MS * u32::try_from(n + 1).unwrap(), sequence, 7).unwrap();
    }
    let wait = unacked.timeout().unwrap() - (start + 400 * MS);
    assert!(wait > Duration::from_secs(15), "{wait:?}");
}

#[test]
fn a_path_that_reorders_gets_more_patience() {
    let start = start();
    let mut unacked = sent(30, start);
    let now = start + 40 * MS;
    for sequence in 1..8 {
        ack(&mut unacked, now, sequence, 7).unwrap();
    }
    assert_eq!(resent(&mut unacked, now, 8), [0]);
    ack(&mut unacked, now + MS, 0, 7).unwrap();
    assert_eq!(unacked.resends(), (1, 1));
    for sequence in 9..15 {
        ack(&mut unacked, now + MS, sequence, 7).unwrap();
    }
    assert_eq!(resent(&mut unacked, now + MS, 8), [0_i64; 0], "8 may come as late as 0 did");
}

#[test]
fn a_silent_peer_is_asked_often_for_a_while_and_then_seldom() {
    let start = start();
    let mut unacked = sent(50, start);
    let mut waits = Vec::new();
    let mut now = start;
    for _ in 0..43 {
        let at = unacked.timeout().unwrap();
        waits.push((at - now).as_millis());
        now = at;
        unacked.handle_timeout(now);
        assert_eq!(resent(&mut unacked, now, 8), [0], "the one that the agent waits for");
    }
    let (often, seldom) = waits.split_at(40);
    assert_eq!(often, [&[200, 400][..], &[500; 38]].concat());
    assert_eq!(seldom, [5000; 3]);
}

#[test]
fn just_after_the_handshake_it_waits_20_40_80_ms() {
    let start = start();
    let mut unacked = Unacked::default();
    unacked.send(start, message(0), Cargo::Control).unwrap();
    ack(&mut unacked, start + MS, 0, 7).unwrap();
    unacked.expect_refusal();
    unacked.send(start + MS, message(0), Cargo::Data).unwrap();
    let mut now = start + MS;
    for wait in [20, 40, 80] {
        assert_eq!(unacked.timeout(), Some(now + wait * MS));
        now += wait * MS;
        unacked.handle_timeout(now);
        assert_eq!(resent(&mut unacked, now, 8), [1]);
    }
}

#[test]
fn everything_is_due_again_after_a_resume_in_order() {
    let start = start();
    let mut unacked = sent(5, start);
    ack(&mut unacked, start + MS, 1, 7).unwrap();
    unacked.resume();
    assert_eq!(resent(&mut unacked, start, 8), [0, 2, 3, 4]);
    assert_eq!(unacked.bytes(), 400);
    // What arrives of the old websocket tells nothing about the new one.
    assert_eq!(ack(&mut unacked, start + 60_000 * MS, 0, 7).unwrap().sample, None);
    assert!(ack(&mut unacked, start + 60_000 * MS, 2, 8).unwrap().sample.is_some());
}

#[test]
fn an_acknowledgement_of_nothing_is_ignored() {
    let start = start();
    let mut unacked = sent(2, start);
    for sequence in [-1, 2, i64::MIN, i64::MAX] {
        assert_eq!(ack(&mut unacked, start, sequence, 7), None);
    }
    assert!(ack(&mut unacked, start, 1, 7).is_some());
    assert_eq!(ack(&mut unacked, start, 1, 7), None, "the second copy");
    ack(&mut unacked, start, 0, 7).unwrap();
    assert_eq!((unacked.len(), unacked.bytes(), unacked.flight(), unacked.timeout()), (0, 0, 0, None));
}
