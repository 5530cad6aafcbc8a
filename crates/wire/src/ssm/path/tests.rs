use super::*;

#[expect(clippy::disallowed_methods, reason = "only a start; the tests move it")]
fn start() -> Instant {
    Instant::now()
}

/// Of one message alone: so many bytes in so many milliseconds.
fn delivered(delivery: &mut Delivery, now: Instant, bytes: usize, millis: u64) {
    let mark = delivery.on_send(now, 0);
    let later = now + Duration::from_millis(millis);
    delivery.on_arrival(later, bytes);
    delivery.on_copy(later, now, mark);
}

#[test]
fn a_sender_that_has_little_to_send_does_not_stop_to_measure() {
    for (flight, stops) in [(2_000, false), (30_000, true)] {
        let (mut path, mut delivery, start) = (Path::new(), Delivery::default(), start());
        delivered(&mut delivery, start, 100_000, 40);
        path.on_ack(start, Sample { delay: Duration::from_millis(40), flight, bytes: 1000 }, &delivery, 1 << 20);
        // Less arrives, and later, but within what a queue of ours may take.
        let now = start + Duration::from_secs(10);
        delivered(&mut delivery, now, 50_000, 55);
        for _ in 0..IN_A_ROW {
            path.on_ack(now, Sample { delay: Duration::from_millis(55), flight, bytes: 1000 }, &delivery, 1 << 20);
        }
        assert_eq!(path.allows(1_000, 1_000), !stops, "{flight} bytes under way");
    }
}

#[test]
fn what_leaves_slowly_is_no_reason_to_stop_and_measure() {
    let (mut path, mut delivery, start) = (Path::new(), Delivery::default(), start());
    delivered(&mut delivery, start, 100_000, 40);
    let sample = |millis| Sample { delay: Duration::from_millis(millis), flight: 30_000, bytes: 1000 };
    path.on_ack(start, sample(40), &delivery, 1 << 20);
    let now = start + Duration::from_secs(10);
    delivered(&mut delivery, now, 100_000, 50);
    // It left long after the one before, and arrives as fast as ever.
    let sent = now + Duration::from_millis(51);
    let mark = delivery.on_send(sent, 30_000);
    let acked = now + Duration::from_millis(91);
    delivery.on_arrival(acked, 90_000);
    delivery.on_copy(acked, sent, mark);
    for _ in 0..IN_A_ROW {
        path.on_ack(acked, sample(55), &delivery, 1 << 20);
    }
    assert!(path.allows(1_000, 1_000));
}
