//! Tables and scenarios for `pace`; the clock belongs to the test.

use super::*;

const MB: u64 = 1_000_000;

#[expect(clippy::disallowed_methods, reason = "only a start; the tests move it")]
fn start() -> Instant {
    Instant::now()
}

/// Bytes that leave in `time` when all is acknowledged at once.
fn run(pacer: &mut Pacer, start: Instant, time: Duration) -> u64 {
    let (mut now, mut sent) = (start, 0);
    while now < start + time {
        if pacer.allows(now) {
            pacer.spend(1024);
            pacer.on_ack(now, Duration::from_millis(1), false);
            sent += 1024;
        } else {
            now = pacer.ready_at().unwrap();
        }
    }
    sent
}

#[test]
fn starts_near_the_first_rate_and_grows_while_it_is_the_limit() {
    let start = start();
    let mut pacer = Pacer::new(MB);
    let first = run(&mut pacer, start, Duration::from_millis(50));
    assert!((50_000..200_000).contains(&first), "{first}");
    run(&mut pacer, start + Duration::from_millis(50), Duration::from_secs(1));
    assert!(pacer.rate > 20 * MB, "{}", pacer.rate);
}

#[test]
fn a_rate_that_is_not_used_does_not_grow() {
    let start = start();
    let mut pacer = Pacer::new(MB);
    for second in 0..100 {
        let now = start + Duration::from_secs(second);
        assert!(pacer.allows(now));
        pacer.spend(100);
        pacer.on_ack(now, Duration::from_millis(1), false);
    }
    assert_eq!(pacer.rate, MB);
}

#[test]
fn a_close_under_load_is_remembered() {
    let start = start();
    let mut pacer = Pacer::new(MB);
    run(&mut pacer, start, Duration::from_secs(1));
    let before = pacer.rate;
    let now = start + Duration::from_secs(1);
    pacer.on_close(now);
    assert_eq!(pacer.rate, before / 2);
    run(&mut pacer, now, Duration::from_secs(2));
    assert!(pacer.rate < before);
}

#[test]
fn sizes_double_with_proof_and_stop_below_what_closed() {
    let mut size = Size::new(1024, 32 * 1024);
    size.on_send(1024);
    assert_eq!(size.probe(usize::MAX), None);
    for expected in [2048, 4096, 8192] {
        size.on_send(size.current());
        for _ in 0..PROOF {
            size.on_ack(size.current());
        }
        assert_eq!(size.probe(usize::MAX), Some(expected));
        assert_eq!(size.probe(usize::MAX), None, "one probe at a time");
        size.on_probe_ack(expected);
        assert_eq!(size.current(), expected);
    }
    size.on_send(8192);
    (0..PROOF).for_each(|_| size.on_ack(8192));
    assert_eq!(size.probe(usize::MAX), Some(16_384));
    size.on_probe_close();
    (0..PROOF).for_each(|_| size.on_ack(8192));
    assert_eq!(size.probe(usize::MAX), None);
    assert_eq!(size.current(), 8192);
}
