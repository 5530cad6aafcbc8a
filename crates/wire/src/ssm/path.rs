//! How much may be under way: what the path holds without a queue, and a little more so that it never runs dry.
//!
//! Everything beyond what the path holds waits in a queue, in front of what somebody types next. The websocket is TCP, so
//! a queue shows as delay and not as loss. So delay steers the window: it grows while acknowledgements come about as soon
//! as the path allows, and shrinks to what arrives in the shortest round trip and half the allowance when they do not.
//!
//! The shortest round trip is the lowest one measured, of this websocket. When the path gets longer (another network
//! behind the same socket, a VPN), no window brings that round trip back: so when shrinking does not help, or the
//! round trip has become twice as long, nothing is sent until all is acknowledged, then one message alone. Its round trip
//! has no queue of ours in it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::pace::later;
use super::rate::{Delivery, bytes_in, time_for};

/// Bytes under way before anything is known.
const FIRST: usize = 32 * 1024;
/// The window never shrinks below this: three small messages.
const LEAST: usize = 3500;
/// Bounds of the time that a queue of ours may take, which is half of the shortest round trip between them.
const QUEUE: (Duration, Duration) = (Duration::from_millis(4), Duration::from_millis(500));
/// A path this short leads to a program on this machine: what waits, waits for a processor.
const LOCAL: Duration = Duration::from_millis(3);
const QUEUE_LOCAL: Duration = Duration::from_millis(25);
/// The queue is the lowest delay of so many acknowledgements in a row: a single late one says little.
const IN_A_ROW: usize = 4;
/// The window shrinks once in this time, or once per round trip: what it did before must show first.
const SHRINK_EVERY: Duration = Duration::from_millis(100);
/// So many times in a row without effect, and the queue is not ours.
const IN_VAIN: u32 = 3;
/// The path is measured anew at most so often because it carries less, in round trips and in time.
const AGAIN: (u32, Duration) = (10, Duration::from_secs(2));
/// A message takes at most this part of the window and of a second, so that what somebody types waits for a short one.
const PARTS: usize = 8;
const MESSAGE: Duration = Duration::from_millis(25);

/// What one acknowledgement has measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sample {
    pub(super) delay: Duration,
    /// Bytes that were under way before the message left.
    pub(super) flight: usize,
    /// Bytes of its frame.
    pub(super) bytes: usize,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Path {
    window: usize,
    shortest: Option<Duration>,
    /// Bytes that take as long as one message may.
    in_time: usize,
    recent: VecDeque<Duration>,
    /// The window doubles per round trip, until the first queue.
    doubling: bool,
    shrunk: Option<Instant>,
    in_vain: u32,
    /// Waits until nothing is under way, to measure with one message alone; the rate until then.
    emptying: Option<u64>,
    /// When that was last begun.
    emptied: Option<Instant>,
}

impl Path {
    pub(super) fn new() -> Self {
        Self {
            window: FIRST,
            shortest: None,
            in_time: usize::MAX,
            recent: VecDeque::new(),
            doubling: true,
            shrunk: None,
            in_vain: 0,
            emptying: None,
            emptied: None,
        }
    }

    /// The shortest round trip.
    pub(super) fn shortest(&self) -> Option<Duration> {
        self.shortest
    }

    pub(super) fn is_doubling(&self) -> bool {
        self.doubling
    }

    /// Whether a frame of `bytes` may leave while `flight` bytes are under way.
    pub(super) fn allows(&self, flight: usize, bytes: usize) -> bool {
        flight == 0 || self.emptying.is_none() && flight.saturating_add(bytes) <= self.window
    }

    /// The most payload bytes of a message, if `least` and `most` allow.
    pub(super) fn message_size(&self, least: usize, most: usize) -> usize {
        if self.emptying.is_some() {
            return least.min(most);
        }
        if self.shortest.is_some_and(|shortest| shortest < LOCAL) {
            return most;
        }
        (self.window / PARTS).min(self.in_time).max(least).min(most)
    }

    pub(super) fn on_ack(&mut self, now: Instant, sample: Sample, delivery: &Delivery, most: usize) {
        let shortest = self.shortest.map_or(sample.delay, |shortest| shortest.min(sample.delay));
        self.in_time = delivery.highest().map_or(usize::MAX, |rate| bytes_in(rate, MESSAGE));
        self.shortest = Some(shortest);
        if sample.flight == 0 && self.is_alone(sample, delivery, most) {
            return;
        }
        if self.emptying.is_some() {
            self.emptying = delivery.latest();
        }
        if self.recent.len() >= IN_A_ROW {
            self.recent.pop_front();
        }
        self.recent.push_back(sample.delay);
        let standing = self.recent.iter().min().copied().unwrap_or(sample.delay);
        // What arrives while the window is not used is what there was to send, and no queue of ours.
        let is_used = sample.flight.saturating_add(sample.bytes) >= self.window >> 1;
        let allowed = shortest.saturating_add(allowance(shortest));
        if standing <= allowed {
            self.in_vain = 0;
            self.grow(sample, standing, delivery, most);
        } else if self.recent.len() >= IN_A_ROW && self.emptying.is_none() {
            self.shrink(now, standing, delivery, shortest);
        }
        if is_used && standing > shortest.saturating_add(half(allowance(shortest))) {
            self.suspect(now, delivery, shortest);
        }
    }

    /// There is delay, and less arrives than before. Either the path carries less, or it is longer and the window too small.
    fn suspect(&mut self, now: Instant, delivery: &Delivery, shortest: Duration) {
        let less =
            delivery.arrives().unwrap_or(0).saturating_mul(4) < delivery.highest().unwrap_or(0).saturating_mul(3);
        let wait = shortest.saturating_mul(AGAIN.0).max(AGAIN.1);
        if less && self.emptying.is_none() && self.emptied.is_none_or(|at| later(at, wait) <= now) {
            self.empty(now, delivery);
        }
    }

    fn empty(&mut self, now: Instant, delivery: &Delivery) {
        self.emptying = delivery.latest();
        self.emptied = Some(now);
    }

    /// A message that left when nothing else was under way was acknowledged; true: the path has become longer.
    fn is_alone(&mut self, sample: Sample, delivery: &Delivery, most: usize) -> bool {
        let emptied = self.emptying.take();
        // Without the time that the message itself takes.
        let delay = sample.delay.saturating_sub(time_for(sample.bytes, emptied.or_else(|| delivery.highest())));
        let shortest = self.shortest.unwrap_or(delay);
        let queue = allowance(shortest);
        let longer = delay > shortest.saturating_add(if emptied.is_some() { half(half(queue)) } else { queue });
        if emptied.is_some() || longer {
            self.recent.clear();
            self.in_vain = 0;
        }
        if longer {
            self.shortest = Some(delay);
        }
        match emptied {
            Some(_) if longer => {
                let holds = bytes_in(delivery.highest().unwrap_or(0), delay);
                self.window = self.window.max(holds.min(most));
            }
            // It was a queue: the path carries less.
            Some(rate) => {
                let holds = bytes_in(rate, shortest.saturating_add(half(queue)));
                self.window = self.window.min(holds.max(LEAST));
            }
            None => {}
        }
        longer
    }

    /// By half per round trip while there is no queue, and by less the longer it is.
    fn grow(&mut self, sample: Sample, standing: Duration, delivery: &Delivery, most: usize) {
        let shortest = self.shortest.unwrap_or(standing);
        let used = sample.flight.saturating_add(sample.bytes);
        if self.emptying.is_some() || used < self.window >> 1 {
            return;
        }
        let queue = allowance(shortest);
        // Twice of what the path was seen to hold: or the window doubles once more before its queue shows.
        let limit = delivery.highest().map_or(most, |rate| {
            let time = shortest.saturating_add(queue).saturating_mul(2);
            bytes_in(rate, time).saturating_add(PARTS.saturating_mul(sample.bytes)).min(most)
        });
        let more = match self.doubling {
            true => sample.bytes,
            false => share(sample.bytes >> 1, shortest.saturating_add(queue).saturating_sub(standing), queue),
        };
        self.window = self.window.saturating_add(more).min(limit.max(self.window));
    }

    /// Bytes a second at which the window leaves without a burst that would be a queue itself; `None`: at once.
    pub(super) fn pace(&self) -> Option<u64> {
        let shortest = self.shortest.filter(|shortest| *shortest >= LOCAL)?;
        let micros = u64::try_from(shortest.as_micros()).unwrap_or(u64::MAX);
        // Twice the window a round trip, then a quarter more than it.
        let times = if self.doubling { 2_000_000 } else { 1_250_000 };
        u64::try_from(self.window).unwrap_or(u64::MAX).saturating_mul(times).checked_div(micros)
    }

    fn shrink(&mut self, now: Instant, standing: Duration, delivery: &Delivery, shortest: Duration) {
        self.doubling = false;
        if self.shrunk.is_some_and(|at| now < later(at, shortest.max(SHRINK_EVERY))) {
            return;
        }
        let queue = allowance(shortest);
        let holds = bytes_in(delivery.latest().unwrap_or(0), shortest.saturating_add(half(queue)));
        self.window = self.window.min(holds.max(self.window >> 1)).max(LEAST);
        self.shrunk = Some(now);
        self.in_vain = self.in_vain.saturating_add(1);
        if self.in_vain >= IN_VAIN || standing > shortest.saturating_add(queue).saturating_mul(2) {
            self.empty(now, delivery);
        }
    }
}

/// How long what we put on the path may wait there.
fn allowance(shortest: Duration) -> Duration {
    if shortest < LOCAL { QUEUE_LOCAL } else { half(shortest).max(QUEUE.0.min(shortest)).min(QUEUE.1) }
}

fn half(time: Duration) -> Duration {
    time.checked_div(2).unwrap_or_default()
}

/// So much of `bytes` as `part` is of `whole`.
fn share(bytes: usize, part: Duration, whole: Duration) -> usize {
    let (part, whole) = (part.as_micros(), whole.as_micros().max(1));
    let bytes = u128::try_from(bytes).unwrap_or(0);
    usize::try_from(bytes.saturating_mul(part.min(whole)).checked_div(whole).unwrap_or(0)).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
