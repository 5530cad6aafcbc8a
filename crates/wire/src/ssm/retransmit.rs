//! The sending half of the channel: what is not acknowledged yet, and when to send it again.
//!
//! The peers look at the oldest message only, every 100 ms. Acknowledgements are selective, so we can do better, as QUIC
//! does (RFC 9002): every transmission has a number; a message is lost when one sent sufficiently later was acknowledged,
//! and when nothing comes back at all the oldest is sent again as a probe, whose acknowledgement then shows all losses.
//! An acknowledgement counts for the copy that it names (`entry`), so one that is only late is never taken for that of a
//! repeat: it gives its round trip, however long, and ends the back-off of the probes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;

pub(super) use super::entry::Cargo;
use super::entry::Entry;
use super::message::Message;
use super::pace::later;
use super::path::Sample;
use super::rate::{Delivery, time_for};
use super::round_trip::RoundTrip;

/// A message is lost when one this many transmissions later was acknowledged; more once that was wrong.
const REORDER: u64 = 3;
const REORDER_MAX: u64 = 256;
/// The longest wait before the next probe, at first: the path is TCP, so probes crowd nobody out, and whoever waits behind a
/// loss waits no longer than that once it is over. The peers repeat five times as often.
const QUICK_TIMEOUT: Duration = Duration::from_millis(500);
/// After so many, some twenty seconds, the other side is away or busy: its queue must not fill with repeats.
const QUICK_PROBES: u32 = 40;
/// The longest wait then.
const MAX_TIMEOUT: Duration = Duration::from_secs(5);

/// What an acknowledgement told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Acked {
    pub(super) cargo: Cargo,
    pub(super) bytes: usize,
    /// `None`: it cannot be told which copy arrived, or that went over another websocket.
    pub(super) sample: Option<Sample>,
}

/// Everything with a sequence number that is not acknowledged.
#[derive(Debug)]
pub(super) struct Unacked {
    /// Sequence number of the front of `entries`.
    base: i64,
    /// Without gaps; acknowledged ones stay until they are at the front.
    entries: VecDeque<Entry>,
    bytes: usize,
    /// Sequence numbers to send again.
    due: BTreeSet<i64>,
    /// One of them that goes out whatever is under way.
    probe: Option<i64>,
    /// On their way: number of the newest transmission → sequence number.
    in_flight: BTreeMap<u64, i64>,
    /// Bytes of their frames that count for the window, and those that do not.
    flight: usize,
    little: usize,
    next_transmission: u64,
    largest_acked: Option<u64>,
    reorder: u64,
    round_trip: RoundTrip,
    delivery: Delivery,
    backoff: u32,
    /// The last time that a probe was due or an acknowledgement came.
    restarted: Option<Instant>,
    loss_at: Option<Instant>,
    early: bool,
    resends: u64,
    needless: u64,
}

impl Default for Unacked {
    fn default() -> Self {
        Self {
            base: 0,
            entries: VecDeque::new(),
            bytes: 0,
            due: BTreeSet::new(),
            probe: None,
            in_flight: BTreeMap::new(),
            flight: 0,
            little: 0,
            next_transmission: 0,
            largest_acked: None,
            reorder: REORDER,
            round_trip: RoundTrip::default(),
            delivery: Delivery::default(),
            backoff: 0,
            restarted: None,
            loss_at: None,
            early: false,
            resends: 0,
            needless: 0,
        }
    }
}

impl Unacked {
    /// The number of the next message.
    pub(super) fn next_sequence(&self) -> i64 {
        self.base.saturating_add(i64::try_from(self.entries.len()).unwrap_or(i64::MAX))
    }

    /// The number of the first message without an acknowledgement.
    pub(super) fn first(&self) -> i64 {
        self.base
    }

    /// Payload bytes of the largest one.
    pub(super) fn largest(&self) -> usize {
        self.entries.iter().map(|entry| entry.message.payload.len()).max().unwrap_or(0)
    }

    /// Payload bytes without acknowledgement.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Bytes of frames that are on their way, as far as is known.
    pub(super) fn flight(&self) -> usize {
        self.flight
    }

    /// The same of those who have little to send, which `flight` is without.
    pub(super) fn little(&self) -> usize {
        self.little
    }

    /// Messages kept, acknowledged ones behind an open one included.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Something must go out again before anything new.
    pub(super) fn has_due(&self) -> bool {
        !self.due.is_empty()
    }

    /// Messages that were sent again, and those of them whose first copy arrived all the same.
    pub(super) fn resends(&self) -> (u64, u64) {
        (self.resends, self.needless)
    }

    /// The smoothed time from a message to its acknowledgement.
    pub(super) fn round_trip(&self) -> Option<Duration> {
        self.round_trip.smoothed()
    }

    pub(super) fn delivery(&self) -> &Delivery {
        &self.delivery
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

    /// Sends a message, numbered here, for the first time.
    pub(super) fn send(&mut self, now: Instant, mut message: Message, cargo: Cargo) -> Option<Bytes> {
        message.sequence = self.next_sequence();
        self.bytes = self.bytes.saturating_add(message.payload.len());
        let (sequence, id) = (message.sequence, message.id.0);
        self.entries.push_back(Entry::new(message, cargo));
        self.transmit(now, sequence, id)
    }

    /// The message that is to be sent again now, with `id`. `allows`: whether so many bytes may leave while so many are on
    /// their way.
    pub(super) fn send_again(
        &mut self,
        now: Instant,
        id: [u8; 16],
        allows: impl Fn(usize, usize) -> bool,
    ) -> Option<Bytes> {
        let sequence = match self.probe.take() {
            Some(probe) => probe,
            None => {
                let first = *self.due.first()?;
                let bytes = self.entry(first)?.frame_bytes();
                if !allows(self.flight, bytes) {
                    return None;
                }
                first
            }
        };
        self.due.remove(&sequence);
        self.resends = self.resends.saturating_add(1);
        self.transmit(now, sequence, id)
    }

    fn transmit(&mut self, now: Instant, sequence: i64, id: [u8; 16]) -> Option<Bytes> {
        let number = self.next_transmission;
        let entry = self.entry(sequence)?;
        let (bytes, weight) = (entry.frame_bytes(), entry.weight());
        // What counts for nothing begins no measurement.
        let mark = self.delivery.on_send(now, if weight == 0 { self.flight.max(1) } else { self.flight });
        let entry = self.entry_mut(sequence)?;
        let frame = entry.copy(now, number, id, mark);
        self.in_flight.insert(number, sequence);
        self.flight = self.flight.saturating_add(weight);
        self.little = self.little.saturating_add(bytes.saturating_sub(weight));
        self.next_transmission = number.saturating_add(1);
        Some(frame)
    }

    /// An acknowledgement of the copy with `id` came; `None`: of nothing that is open. No round trip is below `shortest`.
    pub(super) fn acknowledge(&mut self, now: Instant, sequence: i64, id: &str, shortest: Duration) -> Option<Acked> {
        let entry = self.entry_mut(sequence).filter(|entry| !entry.acked)?;
        let newest = *entry.copies.last()?;
        let copy = entry.copy_of(now, id, shortest);
        let (frame_bytes, weight) = (entry.frame_bytes(), entry.weight());
        entry.acked = true;
        entry.copies = Vec::new();
        let bytes = std::mem::take(&mut entry.message.payload).len();
        let cargo = entry.cargo;
        self.forget_flight(newest.number, frame_bytes, weight);
        self.due.remove(&sequence);
        self.probe = self.probe.filter(|probe| *probe != sequence);
        self.bytes = self.bytes.saturating_sub(bytes);
        self.early &= cargo == Cargo::Control;
        self.restarted = Some(now);
        let copy = copy.filter(|copy| !copy.stale);
        let sample = copy.map(|copy| {
            if weight > 0 {
                self.delivery.on_arrival(now, weight);
                self.delivery.on_copy(now, copy.at, copy.mark);
            }
            let delay = now.saturating_duration_since(copy.at);
            self.round_trip.sample(delay);
            self.backoff = 0;
            if copy.number != newest.number {
                self.needless = self.needless.saturating_add(1);
            }
            let late = self.largest_acked.unwrap_or(0).saturating_sub(copy.number);
            if late >= self.reorder {
                // It was taken for lost, or would have been: this path reorders more than we thought.
                self.reorder = late.saturating_add(1).min(REORDER_MAX);
            }
            self.largest_acked = self.largest_acked.max(Some(copy.number));
            Sample { delay, flight: copy.mark.flight, bytes: frame_bytes }
        });
        while self.entries.front().is_some_and(|entry| entry.acked) {
            self.entries.pop_front();
            self.base = self.base.saturating_add(1);
        }
        self.find_lost(now);
        Some(Acked { cargo, bytes, sample })
    }

    /// Everything that is not acknowledged is due again: the websocket is a new one, and perhaps the path.
    pub(super) fn resume(&mut self) {
        self.due.extend(std::mem::take(&mut self.in_flight).into_values());
        self.entries.iter_mut().flat_map(|entry| entry.copies.iter_mut()).for_each(|copy| copy.stale = true);
        (self.flight, self.little) = (0, 0);
        self.probe = None;
        self.largest_acked = None;
        self.reorder = REORDER;
        self.round_trip = RoundTrip::default();
        self.delivery = Delivery::default();
        self.backoff = 0;
        self.restarted = None;
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
        let (number, sequence) = self.in_flight.first_key_value()?;
        let oldest = self.sent_at(*number, *sequence)?;
        let probe = later(self.restarted.map_or(oldest, |at| at.max(oldest)), self.probe_timeout());
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
        // The oldest is what the agent waits for, if it waits for something.
        let Some(newest) = self.entries.front().and_then(|entry| entry.copies.last()).map(|copy| copy.number) else {
            return;
        };
        let (bytes, weight) = self.entries.front().map_or((0, 0), |entry| (entry.frame_bytes(), entry.weight()));
        self.forget_flight(newest, bytes, weight);
        self.due.insert(self.base);
        self.probe = Some(self.base);
        self.restarted = Some(now);
        self.backoff = self.backoff.saturating_add(1);
    }

    fn probe_timeout(&self) -> Duration {
        let first = match self.early {
            true => self.round_trip.early_timeout(),
            // What is under way takes so long even if nothing is lost.
            false => self.round_trip.timeout(time_for(self.flight, self.delivery.latest())),
        };
        // A path with a long queue may take longer than the longest wait; asking sooner would only make the queue longer.
        let longest = if self.backoff < QUICK_PROBES { QUICK_TIMEOUT } else { MAX_TIMEOUT };
        first.saturating_mul(1 << self.backoff.min(10)).min(longest.max(first))
    }

    /// Moves to `due` what was sent well before something that is acknowledged.
    fn find_lost(&mut self, now: Instant) {
        self.loss_at = None;
        let Some(largest) = self.largest_acked else { return };
        let patience = self.round_trip.patience();
        while let Some((&number, &sequence)) = self.in_flight.first_key_value() {
            if number >= largest {
                return;
            }
            let deadline = later(self.sent_at(number, sequence).unwrap_or(now), patience);
            if number.saturating_add(self.reorder) > largest && now < deadline {
                self.loss_at = Some(deadline);
                return;
            }
            let (bytes, weight) = self.entry(sequence).map_or((0, 0), |entry| (entry.frame_bytes(), entry.weight()));
            self.forget_flight(number, bytes, weight);
            self.due.insert(sequence);
        }
    }

    /// The transmission is not on its way any more.
    fn forget_flight(&mut self, number: u64, bytes: usize, weight: usize) {
        if self.in_flight.remove(&number).is_some() {
            self.flight = self.flight.saturating_sub(weight);
            self.little = self.little.saturating_sub(bytes.saturating_sub(weight));
        }
    }

    fn sent_at(&self, number: u64, sequence: i64) -> Option<Instant> {
        self.entry(sequence)?.copies.iter().find(|copy| copy.number == number).map(|copy| copy.at)
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

#[cfg(test)]
mod tests;
