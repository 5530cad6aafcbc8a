//! What real paths do to a port session: slow uplinks, a target that does not read, a link that dies at the wrong time.

use super::*;

#[test]
fn a_slow_uplink_is_not_filled_with_repeats() {
    for rate in [1_000_000, 250_000] {
        let mut pair = Pair::opened(20, Faults::default(), 1);
        pair.up.rate = Some(rate);
        let total = 8 * usize::try_from(rate).unwrap();
        let stream = pair.client.open(pair.now).unwrap();
        pair.client.write(stream, bytes(total, 1).into());
        let start = pair.now;
        pair.run_until("all is there", |pair| pair.agent.received.get(&stream).is_some_and(|got| got.len() >= total));
        let took = pair.now - start;
        assert!(took < Duration::from_secs(12), "8 s of bytes took {took:?} at {rate} bytes/s");
        let resent = pair.client.counts().resent;
        assert!(resent < 10, "{resent} repeats at {rate} bytes/s");
    }
}

#[test]
fn a_slow_uplink_stays_usable_beside_a_bulk_upload() {
    let mut pair = Pair::opened(20, Faults::default(), 1);
    pair.up.rate = Some(500_000);
    // A whole window of 2 MB before it would be four seconds.
    let took = pair.small_beside(bytes(20_000_000, 1), 10_000);
    assert!(took < Duration::from_millis(700), "{took:?}");
}

#[test]
fn a_target_that_does_not_read_gets_few_repeats_and_then_everything() {
    let mut pair = Pair::opened(20, Faults::default(), 1);
    let stream = pair.client.open(pair.now).unwrap();
    let up = bytes(20 << 20, 1);
    pair.client.write(stream, up.clone().into());
    pair.run(500);
    pair.agent.takes_from = pair.now + Duration::from_secs(60);
    pair.run(59_000);
    let resent = pair.client.counts().resent;
    // The agent repeats 600 in that time.
    assert!(resent < 60, "{resent} repeats in a minute");
    assert!(pair.client.oldest_unacked(pair.now).unwrap() > Duration::from_secs(50));
    pair.run_until("all is there", |pair| pair.agent.received[&stream].len() >= up.len());
    assert!(pair.agent.received[&stream] == up);
}

#[test]
fn a_larger_message_that_arrived_before_the_close_does_no_harm() {
    let mut pair = Pair::opened(5, Faults::default(), 1);
    (pair.limit, pair.passes_on) = (5000, true);
    let up = bytes(2_000_000, 9);
    let stream = pair.client.open(pair.now).unwrap();
    pair.client.write(stream, up.clone().into());
    pair.run_until("all is there", |pair| pair.agent.received.get(&stream).is_some_and(|got| got.len() >= up.len()));
    assert!(pair.agent.received[&stream] == up);
    assert!(pair.closes > 0);
}

#[test]
fn a_pause_that_nobody_ends_is_over_after_a_minute() {
    let mut pair = Pair::opened(5, Faults::default(), 1);
    let stream = pair.client.open(pair.now).unwrap();
    pair.run(50);
    let mut pause = vec![0; 4];
    pause.extend_from_slice(format!("{:<32}", "pause_publication").as_bytes());
    pair.client.handle_frame(pair.now, pause.into());
    pair.client.write(stream, Bytes::from_static(b"later"));
    let since = pair.now;
    pair.run_until("it is there", |pair| pair.agent.received[&stream] == b"later");
    assert!(pair.now - since < Duration::from_secs(62));
}
