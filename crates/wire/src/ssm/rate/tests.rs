use super::*;

#[test]
#[expect(clippy::disallowed_methods, reason = "only a start; the test moves it")]
fn what_left_slowly_shows_no_slower_path() {
    let (mut delivery, start) = (Delivery::default(), Instant::now());
    let at = |ms| start + Duration::from_millis(ms);
    let mut copy = |sent, flight, acked| {
        let mark = delivery.on_send(at(sent), flight);
        delivery.on_arrival(at(acked), 1000);
        delivery.on_copy(at(acked), at(sent), mark);
        (delivery.latest(), delivery.arrives())
    };
    assert_eq!(copy(0, 0, 250), (Some(4000), Some(4000)));
    // It left 400 ms after the one before, and was acknowledged 200 ms after it.
    assert_eq!(copy(400, 1, 450), (Some(2500), Some(5000)));
}
