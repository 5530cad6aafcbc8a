//! What leaves beside the window; the clock belongs to the test.

use super::*;

const MS: Duration = Duration::from_millis(1);
const STAMP: Stamp = Stamp { id: [7; 16], created_ms: 1 };

#[expect(clippy::disallowed_methods, reason = "only a start; the tests move it")]
fn start() -> Instant {
    Instant::now()
}

fn channel() -> Channel {
    Channel::new(PaceConfig::default())
}

/// Sends data until the window is full; the bytes that are under way then.
fn fill(channel: &mut Channel, now: Instant) -> usize {
    while channel.can_send(now) {
        channel.transmit_data(now, vec![0; 1024].into(), STAMP).unwrap();
    }
    channel.unacked.flight()
}

/// Sends as much as the room for little takes: the bytes of the frames, and the number of the first one.
fn fill_with_little(channel: &mut Channel, now: Instant) -> (usize, i64) {
    let (mut bytes, first) = (0, channel.unacked.next_sequence());
    while channel.room_for_little() > 0 {
        bytes += channel.transmit_little(now, vec![0; channel.room_for_little()].into(), STAMP).unwrap().len();
    }
    (bytes, first)
}

#[test]
fn little_leaves_beside_a_full_window_up_to_4_kib() {
    let (mut channel, now) = (channel(), start());
    let window = fill(&mut channel, now);
    let (bytes, _) = fill_with_little(&mut channel, now);
    assert_eq!((bytes, channel.unacked.little(), channel.unacked.flight()), (4096, 4096, window));
    channel.handle_reconnect(now + 50 * MS);
    assert_eq!((channel.unacked.little(), channel.room_for_little()), (0, 0), "what is due goes first");
}

#[test]
fn little_takes_nothing_of_the_window_and_gives_its_own_room_back() {
    let (mut channel, now) = (channel(), start());
    let (_, first) = fill_with_little(&mut channel, now);
    assert_eq!(channel.unacked.flight(), 0);
    let window = fill(&mut channel, now);
    assert_eq!(window, fill(&mut self::channel(), now));
    channel.handle_frame(now + 40 * MS, acknowledge(MessageId(STAMP.id), first, STAMP));
    assert_eq!((channel.room_for_little(), channel.unacked.flight()), (1024, window));
}

#[test]
fn little_measures_nothing_of_the_path() {
    let (mut channel, now) = (channel(), start());
    fill(&mut channel, now);
    let (_, first) = fill_with_little(&mut channel, now);
    for sequence in first..channel.unacked.next_sequence() {
        channel.handle_frame(now + 10 * MS, acknowledge(MessageId(STAMP.id), sequence, STAMP));
    }
    assert_eq!(
        (channel.unacked.little(), channel.path.shortest(), channel.unacked.delivery().latest()),
        (0, None, None)
    );
    channel.handle_frame(now + 40 * MS, acknowledge(MessageId(STAMP.id), 0, STAMP));
    // 1 KB and a header in 40 ms.
    assert_eq!(channel.path.shortest(), Some(40 * MS));
    assert_eq!(channel.unacked.delivery().latest(), Some(28_600));
}
