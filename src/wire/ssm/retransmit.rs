//! The sending half of the channel: what is not acknowledged yet, and when to send it again.
//!
//! The peers look at the oldest message only, every 100 ms. Acknowledgements are selective, so we can do better, as QUIC
//! does (RFC 9002): every transmission has a number; a message is lost when one sent sufficiently later was acknowledged,
//! and when nothing comes back at all the oldest is sent again as a probe, whose acknowledgement then shows all losses.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::message::Message;
use super::pace::later;

/// A message is lost when one this many transmissions later was acknowledged.
const REORDER: u64 = 3;
/// Before the first round trip is known.
const INITIAL_TIMEOUT: Duration = Duration::from_millis(200);
/// Added to the round trip at least.
const MIN_VARIATION: Duration = Duration::from_millis(25);
/// The longest wait before the next probe, at first: the path is TCP, so probes crowd nobody out, and whoever waits behind a
/// loss waits no longer than that once it is over. The peers repeat five times as often.
const QUICK_TIMEOUT: Duration = Duration::from_millis(500);
/// After so many, some twenty seconds, the other side is away or busy: its queue must not fill with repeats.
const QUICK_PROBES: u32 = 40;
/// The longest wait then.
const MAX_TIMEOUT: Duration = Duration::from_secs(5);
/// The first wait just after the handshake, when the agent may refuse data without a word.
const EARLY_TIMEOUT: Duration = Duration::from_millis(20);

/// What a message carries, as far as its loss matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cargo {
    /// Handshake and flags.
    Control,
    Data,
    /// Nothing but NOPs: a larger size is being tried.
    Probe,
}

/// What an acknowledgement told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Acked {
    pub(super) cargo: Cargo,
    pub(super) bytes: usize,
    /// Since it was sent; `None` when it was sent more than once.
    pub(super) delay: Option<Duration>,
}

#[derive(Debug)]
struct Entry {
    message: Message,
    cargo: Cargo,
    first_sent: Option<Instant>,
    /// Number and time of the last transmission.
    sent: Option<(u64, Instant)>,
    resent: bool,
    acked: bool,
}

/// Round-trip estimates as in RFC 6298.
#[derive(Debug, Default)]
struct RoundTrip {
    smoothed: Option<Duration>,
    variation: Duration,
    best: Option<Duration>,
}

impl RoundTrip {
    fn sample(&mut self, delay: Duration) {
        self.best = Some(self.best.map_or(delay, |best| best.min(delay)));
        let Some(smoothed) = self.smoothed else {
            self.smoothed = Some(delay);
            self.variation = part(delay, 1);
            return;
        };
        self.variation = weigh(self.variation, smoothed.abs_diff(delay), 2);
        self.smoothed = Some(weigh(smoothed, delay, 3));
    }

    fn timeout(&self) -> Duration {
        self.smoothed.map_or(INITIAL_TIMEOUT, |smoothed| {
            smoothed.saturating_add(self.variation.saturating_mul(4).max(MIN_VARIATION))
        })
    }
}

/// `old` weighted with `1 - 2^-shift`, `new` with the rest.
fn weigh(old: Duration, new: Duration, shift: u32) -> Duration {
    old.saturating_sub(part(old, shift)).saturating_add(part(new, shift))
}

/// Everything with a sequence number that is not acknowledged.
#[derive(Debug, Default)]
pub(super) struct Unacked {
    /// Sequence number of the front of `entries`.
    base: i64,
    /// Without gaps; acknowledged ones stay until they are at the front.
    entries: VecDeque<Entry>,
    bytes: usize,
    /// Sequence numbers to send, now or again.
    due: BTreeSet<i64>,
    /// On their way: number of the transmission → sequence number.
    in_flight: BTreeMap<u64, i64>,
    next_transmission: u64,
    largest_acked: Option<u64>,
    round_trip: RoundTrip,
    backoff: u32,
    probed: Option<Instant>,
    loss_at: Option<Instant>,
    early: bool,
    resends: u64,
}

impl Unacked {
    /// The number of the next message.
    pub(super) fn next_sequence(&self) -> i64 {
        self.base.saturating_add(i64::try_from(self.entries.len()).unwrap_or(i64::MAX))
    }

    /// Payload bytes without acknowledgement.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Messages kept, acknowledged ones behind an open one included.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Messages that were sent again.
    pub(super) fn resends(&self) -> u64 {
        self.resends
    }

    /// The shortest and the smoothed time from a message to its acknowledgement.
    pub(super) fn round_trip(&self) -> Option<(Duration, Duration)> {
        Some((self.round_trip.best?, self.round_trip.smoothed?))
    }

    /// When the oldest open message was sent first.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.entries.front()?.first_sent
    }

    /// From now until the first acknowledgement of data, send again after 20, 40, 80 ms …
    pub(super) fn expect_refusal(&mut self) {
        self.early = true;
        self.backoff = 0;
    }

    /// Adds a message, numbered here; it is due at once.
    pub(super) fn push(&mut self, mut message: Message, cargo: Cargo) {
        message.sequence = self.next_sequence();
        self.due.insert(message.sequence);
        self.bytes = self.bytes.saturating_add(message.payload.len());
        self.entries.push_back(Entry { message, cargo, first_sent: None, sent: None, resent: false, acked: false });
    }

    /// The message that is due first, to be sent now.
    pub(super) fn transmit(&mut self, now: Instant) -> Option<Bytes> {
        let sequence = self.due.pop_first()?;
        let transmission = self.next_transmission;
        let entry = self.entry_mut(sequence)?;
        let again = entry.sent.is_some();
        entry.resent |= again;
        entry.first_sent.get_or_insert(now);
        entry.sent = Some((transmission, now));
        let frame = entry.message.to_frame();
        self.in_flight.insert(transmission, sequence);
        self.next_transmission = transmission.saturating_add(1);
        self.resends = self.resends.saturating_add(u64::from(again));
        Some(frame)
    }

    /// An acknowledgement came; `None`: of nothing that is open.
    pub(super) fn acknowledge(&mut self, now: Instant, sequence: i64) -> Option<Acked> {
        let smoothed = self.round_trip.smoothed.unwrap_or_default();
        let entry = self.entry_mut(sequence)?;
        let (transmission, at) = entry.sent?;
        if entry.acked {
            return None;
        }
        entry.acked = true;
        let bytes = std::mem::take(&mut entry.message.payload).len();
        let elapsed = now.saturating_duration_since(at);
        let acked = Acked { cargo: entry.cargo, bytes, delay: (!entry.resent).then_some(elapsed) };
        // An acknowledgement soon after a repeat is for the first copy, and shows nothing about what went between.
        if acked.delay.is_some() || elapsed >= part(smoothed, 1) {
            self.largest_acked = self.largest_acked.max(Some(transmission));
        }
        if let Some(delay) = acked.delay {
            self.round_trip.sample(delay);
        }
        self.in_flight.remove(&transmission);
        self.due.remove(&sequence);
        self.bytes = self.bytes.saturating_sub(acked.bytes);
        self.early &= acked.cargo == Cargo::Control;
        self.backoff = 0;
        while self.entries.front().is_some_and(|entry| entry.acked) {
            self.entries.pop_front();
            self.base = self.base.saturating_add(1);
        }
        self.find_lost(now);
        Some(acked)
    }

    /// Everything that is not acknowledged is due again: the websocket is a new one.
    pub(super) fn resume(&mut self) {
        let lost = std::mem::take(&mut self.in_flight);
        self.due.extend(lost.into_values());
        self.backoff = 0;
        self.probed = None;
        self.loss_at = None;
    }

    /// Puts `payload` in place of that of probes that are not acknowledged; `true` if there was one.
    pub(super) fn shrink_probes(&mut self, payload: &Bytes) -> bool {
        let mut found = false;
        for entry in self.entries.iter_mut().filter(|entry| entry.cargo == Cargo::Probe && !entry.acked) {
            found = true;
            self.bytes = self.bytes.saturating_sub(entry.message.payload.len()).saturating_add(payload.len());
            entry.message.payload = payload.clone();
            entry.cargo = Cargo::Control;
        }
        found
    }

    /// When [`Self::handle_timeout`] has something to do.
    pub(super) fn timeout(&self) -> Option<Instant> {
        let oldest = self.in_flight.values().next().and_then(|sequence| self.entry(*sequence)?.sent)?.1;
        let probe = later(self.probed.map_or(oldest, |probed| probed.max(oldest)), self.probe_timeout());
        Some(self.loss_at.map_or(probe, |loss| loss.min(probe)))
    }

    /// Marks as due what a timer says is lost.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if self.timeout().is_none_or(|at| now < at) {
            return;
        }
        self.find_lost(now);
        if self.timeout().is_none_or(|at| now < at) {
            return;
        }
        if let Some((_, sequence)) = self.in_flight.pop_first() {
            self.due.insert(sequence);
            self.probed = Some(now);
            self.backoff = self.backoff.saturating_add(1);
        }
    }

    fn probe_timeout(&self) -> Duration {
        let first = match self.round_trip.smoothed {
            Some(smoothed) if self.early => EARLY_TIMEOUT.max(smoothed.saturating_add(Duration::from_millis(10))),
            _ => self.round_trip.timeout(),
        };
        // A path with a long queue may take longer than the longest wait; asking sooner would only make the queue longer.
        let longest = if self.backoff < QUICK_PROBES { QUICK_TIMEOUT } else { MAX_TIMEOUT };
        first.saturating_mul(1 << self.backoff.min(10)).min(longest.max(first))
    }

    /// Moves to `due` what was sent well before something that is acknowledged.
    fn find_lost(&mut self, now: Instant) {
        self.loss_at = None;
        let Some(largest) = self.largest_acked else { return };
        let smoothed = self.round_trip.smoothed.unwrap_or(INITIAL_TIMEOUT);
        let patience = smoothed.saturating_add(part(smoothed, 2).max(Duration::from_millis(2)));
        while let Some((&transmission, &sequence)) = self.in_flight.first_key_value() {
            if transmission >= largest {
                return;
            }
            let sent = self.entry(sequence).and_then(|entry| entry.sent).map_or(now, |(_, at)| at);
            let deadline = later(sent, patience);
            if transmission.saturating_add(REORDER) > largest && now < deadline {
                self.loss_at = Some(deadline);
                return;
            }
            self.in_flight.pop_first();
            self.due.insert(sequence);
        }
    }

    fn index(&self, sequence: i64) -> Option<usize> {
        usize::try_from(sequence.checked_sub(self.base)?).ok()
    }

    fn entry(&self, sequence: i64) -> Option<&Entry> {
        self.entries.get(self.index(sequence)?)
    }

    fn entry_mut(&mut self, sequence: i64) -> Option<&mut Entry> {
        let index = self.index(sequence)?;
        self.entries.get_mut(index)
    }
}

/// `duration` divided by two, `shift` times.
fn part(duration: Duration, shift: u32) -> Duration {
    duration.checked_div(1 << shift).unwrap_or_default()
}

#[cfg(test)]
mod tests;
