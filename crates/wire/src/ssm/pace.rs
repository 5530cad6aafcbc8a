//! How fast tunnel bytes leave, and in what size, as far as the gateway is concerned.
//!
//! Nobody outside AWS knows what its gateway tolerates, so both start low and grow: the rate by a quarter per round trip in
//! which it was the limit, the size of a message by doubling. What the path carries is `path`'s business. A larger
//! size is tried with a message that carries nothing (smux NOPs): where the gateway closes the websocket over it, the
//! message can be sent again in small without changing the byte stream. Data that has a sequence number never can.

use std::time::{Duration, Instant};

/// Start, end and bounds of the growth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PaceConfig {
    /// Payload bytes of the first messages.
    pub first_size: usize,
    /// Payload bytes of the largest message.
    pub max_size: usize,
    /// Bytes per second at the start.
    pub first_rate: u64,
    /// Bytes that may be sent without an acknowledgement, on the longest and fastest paths.
    pub window: usize,
}

impl Default for PaceConfig {
    fn default() -> Self {
        Self { first_size: 1024, max_size: 32 * 1024, first_rate: 1_000_000, window: 16 << 20 }
    }
}

/// Faster than any path to a gateway; from here on only the window holds back.
const RATE_MAX: u64 = 100_000_000;

/// The rate is never below this, bytes per second.
const FLOOR: u64 = 128 * 1024;
/// Bytes that may leave at once after a quiet time.
const BURST: i64 = 64 * 1024;
const SMALL_BURST: i64 = 4 * 1024;
/// The rate changes at most once in this time, or once per round trip.
const MIN_STEP: Duration = Duration::from_millis(25);
/// After a close under load the rate stays below what it was for this long.
const REMEMBER: Duration = Duration::from_secs(600);
/// Full messages of one size that must be acknowledged before the next size is tried.
const PROOF: u32 = 4;

/// A token bucket whose rate grows.
#[derive(Debug)]
pub(super) struct Pacer {
    rate: u64,
    start: u64,
    /// Bytes that may leave now; below zero after a large message.
    tokens: i64,
    refilled: Option<Instant>,
    /// Whether the rate was what held bytes back since it last changed.
    limiting: bool,
    changed: Option<Instant>,
    ceiling: Option<(u64, Instant)>,
    /// What the path asks for, if that is less.
    path: Option<u64>,
}

impl Pacer {
    pub(super) fn new(start: u64) -> Self {
        let rate = start.clamp(FLOOR, RATE_MAX);
        Self {
            rate,
            start: rate,
            tokens: BURST,
            refilled: None,
            limiting: false,
            changed: None,
            ceiling: None,
            path: None,
        }
    }

    /// Bytes a second that the path asks for.
    pub(super) fn follow(&mut self, now: Instant, path: Option<u64>) {
        self.refill(now);
        self.path = path;
    }

    fn effective(&self) -> u64 {
        self.path.map_or(self.rate, |path| path.max(1).min(self.rate))
    }

    /// Whether bytes may leave now.
    pub(super) fn allows(&mut self, now: Instant) -> bool {
        self.refill(now);
        self.limiting |= self.tokens <= 0 && self.effective() == self.rate;
        self.tokens > 0
    }

    pub(super) fn spend(&mut self, bytes: usize) {
        self.tokens = self.tokens.saturating_sub(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// When bytes may leave again; `None`: nothing holds them back.
    pub(super) fn ready_at(&self) -> Option<Instant> {
        let missing = u64::try_from(1_i64.saturating_sub(self.tokens)).ok().filter(|missing| *missing > 0)?;
        let micros = missing.saturating_mul(1_000_000).checked_div(self.effective()).unwrap_or(0);
        Some(later(self.refilled?, Duration::from_micros(micros.saturating_add(1))))
    }

    /// The window was what held bytes back, while it still doubles: the rate grows with it, or it would hold back next.
    pub(super) fn keep_up(&mut self) {
        self.limiting = true;
    }

    /// An acknowledgement came; `shortest` is the shortest round trip. Until the path has shown a queue (`doubling`), the rate
    /// grows twice as fast.
    pub(super) fn on_ack(&mut self, now: Instant, shortest: Duration, doubling: bool) {
        let changed = *self.changed.get_or_insert(now);
        if !self.limiting || now.saturating_duration_since(changed) < shortest.max(MIN_STEP) {
            return;
        }
        let ceiling = self.ceiling.filter(|(_, until)| now < *until).map_or(RATE_MAX, |(rate, _)| rate);
        self.refill(now);
        self.rate = self.rate.saturating_add(self.rate >> if doubling { 1 } else { 2 }).min(ceiling.max(self.rate));
        self.limiting = false;
        self.changed = Some(now);
    }

    /// The websocket closed while a lot was on its way: be slower for a while.
    pub(super) fn on_close(&mut self, now: Instant) {
        let lower = (self.rate >> 1).max(self.start.min(self.rate));
        self.ceiling = Some((self.rate.saturating_sub(self.rate >> 2).max(lower), later(now, REMEMBER)));
        self.rate = lower;
        self.changed = Some(now);
    }

    fn refill(&mut self, now: Instant) {
        let refilled = *self.refilled.get_or_insert(now);
        let micros = u64::try_from(now.saturating_duration_since(refilled).as_micros()).unwrap_or(u64::MAX);
        let rate = self.effective();
        let gained = rate.saturating_mul(micros).checked_div(1_000_000).unwrap_or(0);
        if gained == 0 {
            return;
        }
        // What leaves in 16 ms. A path that asks for its pace would have a queue of any burst.
        let least = if self.path.is_some() { SMALL_BURST } else { BURST };
        let burst = i64::try_from(rate >> 6).unwrap_or(i64::MAX).max(least);
        self.tokens = self.tokens.saturating_add(i64::try_from(gained).unwrap_or(i64::MAX)).min(burst);
        self.refilled = Some(now);
    }
}

/// The size of messages: proven ones for data, the next one for a probe.
#[derive(Debug)]
pub(super) struct Size {
    current: usize,
    max: usize,
    proofs: u32,
    /// Whether the last data message used the size.
    full: bool,
    probing: bool,
}

impl Size {
    pub(super) fn new(start: usize, max: usize) -> Self {
        Self { current: start.min(max), max, proofs: 0, full: false, probing: false }
    }

    /// What may be tried at most.
    pub(super) fn limit(&self) -> usize {
        self.max
    }

    pub(super) fn limit_to(&mut self, bytes: usize) {
        self.max = self.max.min(bytes);
        self.current = self.current.min(bytes);
    }

    /// The most payload bytes a data message may carry.
    pub(super) fn current(&self) -> usize {
        self.current
    }

    /// The size to try next, when enough messages of the current one came through and one of `useful` bytes would be sent.
    pub(super) fn probe(&mut self, useful: usize) -> Option<usize> {
        let next = self.current.saturating_mul(2).min(self.max);
        if self.probing || !self.full || next <= self.current || next > useful || self.proofs < PROOF {
            return None;
        }
        self.probing = true;
        Some(next)
    }

    pub(super) fn on_send(&mut self, bytes: usize) {
        self.full = bytes.saturating_mul(2) > self.current;
    }

    /// A data message of `bytes` was acknowledged.
    pub(super) fn on_ack(&mut self, bytes: usize) {
        if bytes.saturating_mul(2) > self.current {
            self.proofs = self.proofs.saturating_add(1);
        }
    }

    /// The probe of `bytes` was acknowledged.
    pub(super) fn on_probe_ack(&mut self, bytes: usize) {
        self.current = bytes.clamp(self.current, self.max.max(self.current));
        self.proofs = 0;
        self.probing = false;
    }

    /// The websocket closed with a probe on its way: never try that size again.
    pub(super) fn on_probe_close(&mut self) {
        self.max = self.current;
        self.probing = false;
    }
}

pub(super) fn later(at: Instant, by: Duration) -> Instant {
    at.checked_add(by).unwrap_or(at)
}

#[cfg(test)]
mod tests;
