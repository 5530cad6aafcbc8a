//! How many bytes one lane may have under way: what its path holds, and a little more so that it never runs dry.
//!
//! As in BBR (draft-ietf-ccwg-bbr), that is the shortest round trip times the highest rate at which bytes lately
//! arrived. The agent in the task sends a fixed number of bytes a millisecond, so anything beyond would only wait in its
//! queue, in front of whatever somebody types next.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::later;

/// How a side fills its lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Filling {
    /// Bytes under way before anything is known.
    pub first: usize,
    /// Parts in a hundred of what the path holds.
    pub gain: u64,
    /// Bytes beyond that, as far as they take no longer than `SLACK_FOR`.
    pub slack: usize,
    /// An acknowledgement is asked for after so many bytes at least.
    pub ask: usize,
}

impl Filling {
    /// Towards the laptop: behind the agent's slow clock every byte in the queue is time.
    pub const DOWN: Self = Self { first: 32 * 1024, gain: 125, slack: 3 * 1024, ask: 2 * 1024 };
    /// Towards the database: the channel below paces and grows, and must be kept busy for that.
    pub const UP: Self = Self { first: 64 * 1024, gain: 150, slack: 128 * 1024, ask: 16 * 1024 };
}

/// What is under way beyond what the path holds waits in front of what somebody types next, so on a slow path it is less;
/// but not less than [`SLACK_MIN`].
const SLACK_FOR: Duration = Duration::from_millis(25);
const SLACK_MIN: usize = 4 * 1024;
/// The rate is the highest of so many rounds.
const ROUNDS: usize = 10;
/// A round is a round trip, but not shorter than this: single acknowledgements say little.
const ROUND_MIN: Duration = Duration::from_millis(20);
/// While a round brings a quarter more than any before it, twice as much may be under way.
const GROWTH_GAIN: u64 = 200;
/// The shortest round trip is looked for anew after this time.
const BEST_FOR: Duration = Duration::from_secs(10);
/// One that was measured behind other bytes is only a guess.
const GUESS_FOR: Duration = Duration::from_millis(250);
/// Bytes a second where nothing is known: about what the agent does.
const USUAL: u64 = 800_000;
/// Data of a segment: with its header and that of the agent's multiplexer it fills one of the agent's messages.
const SEGMENT_MIN: usize = 1000;

/// See the module.
#[derive(Debug)]
pub(super) struct Budget {
    filling: Filling,
    /// The shortest round trip, and until when it is believed.
    best: Option<(Duration, Instant)>,
    smoothed: Option<Duration>,
    rates: VecDeque<u64>,
    round: Option<Round>,
    /// Rounds in a row that brought no growth.
    flat: u32,
}

#[derive(Debug, Clone, Copy)]
struct Round {
    began: Instant,
    acked: u64,
    /// More would have gone out if it had been allowed.
    full: bool,
}

impl Budget {
    pub(super) fn new(filling: Filling) -> Self {
        Self { filling, best: None, smoothed: None, rates: VecDeque::new(), round: None, flat: 0 }
    }

    /// The shortest round trip.
    pub(super) fn best(&self) -> Option<Duration> {
        self.best.map(|(best, _)| best)
    }

    pub(super) fn smoothed(&self) -> Option<Duration> {
        self.smoothed
    }

    /// Bytes a second.
    fn rate(&self) -> Option<u64> {
        self.rates.iter().copied().max()
    }

    /// What the path holds.
    pub(super) fn holds(&self) -> usize {
        let (Some(rate), Some(best)) = (self.rate(), self.best()) else { return self.filling.first };
        bytes_in(rate, best)
    }

    /// Bytes that may be under way.
    pub(super) fn bytes(&self) -> usize {
        if self.rates.is_empty() || self.best.is_none() {
            return self.filling.first;
        }
        let gain = if self.flat < 2 { self.filling.gain.max(GROWTH_GAIN) } else { self.filling.gain };
        let holds = u64::try_from(self.holds()).unwrap_or(u64::MAX);
        let bytes = usize::try_from(holds.saturating_mul(gain) / 100).unwrap_or(usize::MAX);
        let in_time = bytes_in(self.rate().unwrap_or(USUAL), SLACK_FOR).max(SLACK_MIN);
        bytes.saturating_add(self.filling.slack.min(in_time))
    }

    /// After so many bytes an acknowledgement is asked for.
    pub(super) fn ask_after(&self) -> usize {
        (self.bytes() >> 3).max(self.filling.ask)
    }

    /// Data of one segment: what leaves in a millisecond.
    pub(super) fn segment(&self) -> usize {
        let millisecond = usize::try_from(self.rate().unwrap_or(USUAL) / 1000).unwrap_or(usize::MAX);
        if millisecond < 2 * SEGMENT_MIN { SEGMENT_MIN } else { millisecond.min(super::frame::SEGMENT_MAX) }
    }

    /// How long a segment takes that leaves behind `in_flight` bytes.
    pub(super) fn takes(&self, in_flight: usize) -> Duration {
        let micros = u64::try_from(in_flight).unwrap_or(u64::MAX).saturating_mul(1_000_000);
        let queue = Duration::from_micros(micros.checked_div(self.rate().unwrap_or(USUAL)).unwrap_or(0));
        queue.saturating_add(part(self.best().unwrap_or_default(), 2))
    }

    /// The lane's round trip is not known, or was not for a while: something sent while it is empty shows it.
    pub(super) fn wants_empty(&self, now: Instant) -> bool {
        self.best.is_none_or(|(_, until)| until <= now)
    }

    /// More would have gone out.
    pub(super) fn on_full(&mut self) {
        if let Some(round) = &mut self.round {
            round.full = true;
        }
    }

    /// `acked` bytes of the lane have arrived in all. `delay`: of a segment that was acknowledged at once. `empty`:
    /// nothing else was under way when it left.
    pub(super) fn on_ack(&mut self, now: Instant, acked: u64, delay: Option<Duration>, empty: bool) {
        if let Some(delay) = delay {
            let known = self.best.filter(|_| !(empty && self.wants_empty(now)));
            self.best = Some(match known {
                Some((best, until)) if best <= delay => (best, until),
                Some((_, until)) if !empty => (delay, until),
                None if !empty => (delay, later(now, GUESS_FOR)),
                _ => (delay, later(now, BEST_FOR)),
            });
            let smoothed = self.smoothed.unwrap_or(delay);
            self.smoothed = Some(part(smoothed.saturating_mul(7).saturating_add(delay), 8));
        }
        let Some(round) = self.round else {
            self.round = Some(Round { began: now, acked, full: false });
            return;
        };
        let took = now.saturating_duration_since(round.began);
        if took < self.smoothed.unwrap_or_default().max(ROUND_MIN) {
            return;
        }
        self.round = Some(Round { began: now, acked, full: false });
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
        let rate = acked.saturating_sub(round.acked).saturating_mul(1_000_000).checked_div(micros).unwrap_or(0);
        let highest = self.rate().unwrap_or(0);
        if !round.full && rate <= highest {
            return;
        }
        if rate > highest.saturating_add(highest >> 2) {
            self.flat = 0;
        } else {
            self.flat = self.flat.saturating_add(1);
        }
        self.rates.push_back(rate);
        if self.rates.len() > ROUNDS {
            self.rates.pop_front();
        }
    }
}

fn part(time: Duration, parts: u32) -> Duration {
    time.checked_div(parts).unwrap_or_default()
}

fn bytes_in(rate: u64, time: Duration) -> usize {
    let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    usize::try_from(rate.saturating_mul(micros) / 1_000_000).unwrap_or(usize::MAX)
}
