//! Tables and scenarios for `retransmit`; the clock belongs to the test.

use super::*;

use crate::wire::ssm::message::{MessageId, MessageType, PayloadType, SCHEMA_VERSION};

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
        unacked.push(message(100), Cargo::Data);
        unacked.transmit(now).unwrap();
    }
    unacked
}

fn resent(unacked: &mut Unacked, now: Instant) -> Vec<i64> {
    std::iter::from_fn(|| unacked.transmit(now)).map(|frame| Message::decode(frame).unwrap().sequence).collect()
}

#[test]
fn a_gap_in_the_acknowledgements_is_sent_again_after_one_round_trip() {
    let start = start();
    let mut unacked = sent(10, start);
    let now = start + 40 * MS;
    for sequence in [0, 1, 3, 4] {
        unacked.acknowledge(now, sequence).unwrap();
        assert!(unacked.due.is_empty());
    }
    unacked.acknowledge(now, 5).unwrap();
    assert_eq!(resent(&mut unacked, now), [2]);
    assert_eq!(unacked.resends(), 1);
}

#[test]
fn the_last_gap_is_found_by_time() {
    let start = start();
    let mut unacked = sent(3, start);
    unacked.acknowledge(start + 40 * MS, 0).unwrap();
    unacked.acknowledge(start + 41 * MS, 2).unwrap();
    let at = unacked.timeout().unwrap();
    assert!(at < start + 60 * MS);
    unacked.handle_timeout(at);
    assert_eq!(resent(&mut unacked, at), [1]);
}

#[test]
fn a_lost_burst_is_repaired_in_two_steps() {
    let start = start();
    let mut unacked = sent(100, start);
    let probe = unacked.timeout().unwrap();
    unacked.handle_timeout(probe);
    assert_eq!(resent(&mut unacked, probe), [0], "one message asks whether the peer is there");
    unacked.acknowledge(probe + 10 * MS, 0).unwrap();
    assert_eq!(resent(&mut unacked, probe + 10 * MS).len(), 97);
    let last = unacked.timeout().unwrap();
    unacked.handle_timeout(last);
    assert_eq!(resent(&mut unacked, last), [98, 99]);
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
        assert_eq!(resent(&mut unacked, now).len(), 1);
    }
    let (often, seldom) = waits.split_at(40);
    assert_eq!(often, [&[200, 400][..], &[500; 38]].concat());
    assert_eq!(seldom, [5000; 3]);
}

#[test]
fn just_after_the_handshake_it_waits_20_40_80_ms() {
    let start = start();
    let mut unacked = Unacked::default();
    unacked.push(message(0), Cargo::Control);
    unacked.transmit(start);
    unacked.acknowledge(start + MS, 0).unwrap();
    unacked.expect_refusal();
    unacked.push(message(0), Cargo::Data);
    unacked.transmit(start);
    let mut now = start;
    for wait in [20, 40, 80] {
        assert_eq!(unacked.timeout(), Some(now + wait * MS));
        now += wait * MS;
        unacked.handle_timeout(now);
        assert!(unacked.transmit(now).is_some());
    }
}

#[test]
fn everything_is_due_again_after_a_resume_in_order() {
    let start = start();
    let mut unacked = sent(5, start);
    unacked.acknowledge(start + MS, 1).unwrap();
    unacked.resume();
    assert_eq!(resent(&mut unacked, start), [0, 2, 3, 4]);
    assert_eq!(unacked.bytes(), 400);
}

#[test]
fn an_acknowledgement_of_nothing_is_ignored() {
    let start = start();
    let mut unacked = sent(2, start);
    for sequence in [-1, 2, i64::MIN, i64::MAX] {
        assert_eq!(unacked.acknowledge(start, sequence), None);
    }
    assert!(unacked.acknowledge(start, 1).is_some());
    assert_eq!(unacked.acknowledge(start, 1), None, "the second copy");
    unacked.acknowledge(start, 0).unwrap();
    assert_eq!((unacked.len(), unacked.bytes(), unacked.timeout()), (0, 0, None));
}
