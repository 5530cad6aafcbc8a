//! How soon a lost socket is followed by another, and when that has been tried for too long.
//!
//! The first socket after a good one is tried at once. One that does not last is no success, even if the gateway let it in:
//! the wait goes on growing, and so does the time that counts against the limit, until one lasts or brings something.

use std::time::Duration;

use tokio::time::Instant;

/// First wait between two attempts, and the longest.
pub(super) const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// The longest wait after a socket that has brought something before it was lost.
const BACKOFF_MOVED: Duration = Duration::from_secs(1);
/// A socket that has lasted so long was a good one.
pub(super) const STEADY: Duration = Duration::from_secs(5);
/// Closes that say that a frame is too large, before it is believed of frames of a size that worked; and such that say
/// nothing.
const TOO_LARGE: (u32, u32) = (3, 8);

/// A socket that is gone.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lost {
    pub(super) lived: Duration,
    /// Something new came through it, either way.
    pub(super) moved: bool,
    /// It was lost over messages that are larger than the first ones, none of which came through; `Some(true)`: the
    /// gateway has said so.
    pub(super) too_large: Option<bool>,
}

/// Sockets of one session that did not last.
#[derive(Debug)]
pub(super) struct Outage {
    began: Instant,
    wait: Option<Duration>,
    longest: Duration,
    /// The last socket was lost soon, and nothing had come through it.
    useless: bool,
    /// Closes over large frames in a row; one that says so counts for more.
    too_large: u32,
}

impl Outage {
    pub(super) fn new(now: Instant) -> Self {
        Self { began: now, wait: None, longest: BACKOFF.1, useless: false, too_large: 0 }
    }

    /// A socket is gone.
    pub(super) fn on_lost(&mut self, now: Instant, lost: Lost) {
        if lost.lived >= STEADY {
            *self = Self::new(now);
        } else if lost.moved {
            self.began = now;
        }
        self.useless = lost.lived < STEADY && !lost.moved;
        self.longest = if lost.moved { BACKOFF_MOVED } else { BACKOFF.1 };
        self.too_large = match lost.too_large {
            Some(true) => self.too_large.saturating_add(TOO_LARGE.1.div_ceil(TOO_LARGE.0)),
            Some(false) => self.too_large.saturating_add(1),
            None => 0,
        };
    }

    pub(super) fn began(&self) -> Instant {
        self.began
    }

    /// Messages of the size that is in use do not come through any more.
    pub(super) fn is_about_size(&self) -> bool {
        self.too_large >= TOO_LARGE.1
    }

    /// The next socket has to last, or to bring something, before it is called a connection.
    pub(super) fn must_prove(&self) -> bool {
        self.useless
    }

    /// How long to wait before the next attempt.
    pub(super) fn next_wait(&mut self) -> Duration {
        let wait = self.wait.unwrap_or_default().min(self.longest);
        self.wait = Some(wait.saturating_mul(2).clamp(BACKOFF.0, BACKOFF.1));
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Lost = Lost { lived: Duration::from_millis(20), moved: false, too_large: None };

    /// Attempts, and seconds that count, of a gateway that lets every socket in and closes it at once.
    fn attempts(lost: Lost, seconds: u64) -> (u32, Duration) {
        let start = Instant::now();
        let mut outage = Outage::new(start);
        let (mut now, mut attempts) = (start, 0);
        while now < start + Duration::from_secs(seconds) {
            outage.on_lost(now, lost);
            now += outage.next_wait() + lost.lived;
            attempts += 1;
        }
        (attempts, now.duration_since(outage.began()))
    }

    #[test]
    fn a_gateway_that_accepts_and_closes_is_asked_less_and_less_often_and_not_for_ever() {
        let (asked, counts) = attempts(SHORT, 10);
        assert!((5..10).contains(&asked), "{asked}");
        assert!(counts >= Duration::from_secs(10), "{counts:?}");
        let (asked, counts) = attempts(SHORT, 15 * 60);
        assert!(asked < 110, "{asked}");
        assert!(counts >= Duration::from_secs(15 * 60));
    }

    #[test]
    fn a_socket_that_brings_something_is_followed_within_a_second_and_does_not_count() {
        let (asked, counts) = attempts(Lost { moved: true, ..SHORT }, 60);
        assert!((50..80).contains(&asked), "{asked}");
        assert!(counts < Duration::from_secs(3), "{counts:?}");
    }

    #[test]
    fn after_one_that_lasted_the_next_is_tried_at_once() {
        let start = Instant::now();
        let mut outage = Outage::new(start);
        for _ in 0..5 {
            outage.on_lost(start, SHORT);
            outage.next_wait();
        }
        assert!(outage.must_prove());
        let later = start + Duration::from_secs(60);
        outage.on_lost(later, Lost { lived: STEADY, ..SHORT });
        assert_eq!((outage.began(), outage.must_prove(), outage.next_wait()), (later, false, Duration::ZERO));
    }

    #[test]
    fn closes_over_large_frames_are_believed_after_a_few() {
        for (said, needed) in [(true, 3), (false, 8)] {
            let mut outage = Outage::new(Instant::now());
            let lost = Lost { too_large: Some(said), ..SHORT };
            for _ in 1..needed {
                outage.on_lost(Instant::now(), lost);
                assert!(!outage.is_about_size());
            }
            outage.on_lost(Instant::now(), lost);
            assert!(outage.is_about_size(), "{said}");
            outage.on_lost(Instant::now(), SHORT);
            assert!(!outage.is_about_size());
        }
    }
}
