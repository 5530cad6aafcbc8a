//! One lane: what it has under way, what it has to acknowledge, whether it still moves.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::BytesMut;

use super::budget::{Budget, Filling};
use super::frame::{Frame, Segment};
use super::later;
use super::stream::Piece;

/// What did not ask for an acknowledgement gets one after this time, or with the next frames.
const ACK_DELAY: Duration = Duration::from_millis(100);
/// Bounds of the time without an acknowledgement after which a lane is taken out.
const STALL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));
/// The same before the first round trip is known.
const STALL_FIRST: Duration = Duration::from_secs(3);
/// One that has been out for so long is stuck, if its path is open; whether it is, is asked anew after a while.
const STUCK: Duration = Duration::from_secs(20);
const STUCK_AGAIN: Duration = Duration::from_secs(5);

/// Something that must arrive, whichever lane brings it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Cargo {
    Ask,
    Control(Control),
    Piece(Piece),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Control {
    Blocked {
        stream: u64,
        limit: u64,
    },
    /// The limit is the one at the time of sending.
    Credit {
        stream: u64,
        limit: u64,
    },
    Reset {
        stream: u64,
        reason: String,
    },
    Stop {
        stream: u64,
    },
}

/// Whether a lane brings what it is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Health {
    Moves,
    /// Nothing new is put on it.
    Stalled {
        until: Instant,
    },
    Stuck {
        again: Instant,
    },
}

struct Item {
    /// The lane's bytes up to the end of this frame.
    end: u64,
    sent_at: Instant,
    asked: bool,
    /// Nothing else was under way when it was sent.
    empty: bool,
    cargo: Cargo,
}

pub(super) struct Lane {
    pub(super) incoming: BytesMut,
    pub(super) budget: Budget,
    health: Health,
    /// When it was last given something, as a count.
    pub(super) used: u64,
    out: Vec<u8>,
    /// Bytes put on the lane, and those of them that have arrived.
    sent: u64,
    acked: u64,
    /// What was put on the lane up to here will be acknowledged.
    last: u64,
    since_ask: usize,
    items: VecDeque<Item>,
    received: u64,
    ack_due: Option<Instant>,
    ack_now: bool,
}

impl std::fmt::Debug for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { sent, acked, health, budget, items, .. } = self;
        write!(f, "sent {sent}, acked {acked}, {} items, {health:?}, {} of {budget:?}", items.len(), budget.bytes())
    }
}

impl Lane {
    pub(super) fn new(filling: Filling) -> Self {
        Self {
            incoming: BytesMut::new(),
            budget: Budget::new(filling),
            health: Health::Moves,
            used: 0,
            out: Vec::new(),
            sent: 0,
            acked: 0,
            last: 0,
            since_ask: 0,
            items: VecDeque::new(),
            received: 0,
            ack_due: None,
            ack_now: false,
        }
    }

    pub(super) fn is_stalled(&self) -> bool {
        self.health != Health::Moves
    }

    /// It has not moved for so long that it is better replaced, if its path is open.
    pub(super) fn is_stuck(&self) -> bool {
        matches!(self.health, Health::Stuck { .. })
    }

    pub(super) fn in_flight(&self) -> usize {
        usize::try_from(self.last.saturating_sub(self.acked)).unwrap_or(usize::MAX)
    }

    /// Puts a piece on the lane. `limit`: so much may be under way.
    pub(super) fn put_piece(&mut self, now: Instant, piece: Piece, limit: usize) {
        let length = piece.data.len();
        self.since_ask = self.since_ask.saturating_add(length);
        let in_flight = self.in_flight();
        // The last one that fits asks, or the lane would wait for the delayed acknowledgement.
        let full = in_flight.saturating_add(length) >= limit;
        let empty = in_flight == 0;
        let asks = full || self.since_ask >= self.budget.ask_after() || empty && self.budget.wants_empty(now);
        if asks {
            self.since_ask = 0;
        }
        let Piece { stream, offset, fin, .. } = piece;
        self.encode(&Frame::Segment(Segment { stream, offset, fin, asks, data: &piece.data }));
        self.keep(now, asks, empty, Cargo::Piece(piece));
    }

    pub(super) fn put_control(&mut self, now: Instant, control: Control) {
        let empty = self.in_flight() == 0;
        match &control {
            Control::Blocked { stream, limit } => self.encode(&Frame::Blocked { stream: *stream, limit: *limit }),
            Control::Credit { stream, limit } => self.encode(&Frame::Credit { stream: *stream, limit: *limit }),
            Control::Reset { stream, reason } => self.encode(&Frame::Reset { stream: *stream, reason }),
            Control::Stop { stream } => self.encode(&Frame::Stop { stream: *stream }),
        }
        self.since_ask = self.since_ask.saturating_add(1);
        self.keep(now, false, empty, Cargo::Control(control));
    }

    /// Wants to know at once what has arrived, unless that was asked already.
    pub(super) fn ask(&mut self, now: Instant) {
        if std::mem::take(&mut self.since_ask) > 0 {
            self.encode(&Frame::Ask);
            self.keep(now, true, false, Cargo::Ask);
        }
    }

    fn keep(&mut self, sent_at: Instant, asked: bool, empty: bool, cargo: Cargo) {
        self.last = self.sent;
        self.items.push_back(Item { end: self.sent, sent_at, asked, empty, cargo });
    }

    pub(super) fn put_goodbye(&mut self) {
        self.encode(&Frame::Goodbye);
    }

    fn encode(&mut self, frame: &Frame<'_>) {
        if self.out.is_empty() {
            self.acknowledge();
        }
        self.encode_alone(frame);
    }

    fn encode_alone(&mut self, frame: &Frame<'_>) {
        let before = self.out.len();
        frame.encode(&mut self.out);
        let length = self.out.len().saturating_sub(before);
        self.sent = self.sent.saturating_add(u64::try_from(length).unwrap_or(0));
    }

    /// An acknowledgement that is owed travels with whatever goes out.
    fn acknowledge(&mut self) {
        if self.ack_due.take().is_some() {
            self.ack_now = false;
            let received = self.received;
            self.encode_alone(&Frame::Ack { received });
        }
    }

    pub(super) fn has_output(&self) -> bool {
        self.ack_now || !self.out.is_empty()
    }

    /// Bytes for the pipe. An acknowledgement that may still travel with something else is not among them.
    pub(super) fn take_output(&mut self) -> Vec<u8> {
        if self.has_output() {
            self.acknowledge();
        }
        std::mem::take(&mut self.out)
    }

    /// A frame of `length` bytes came; an `eliciting` one is to be acknowledged, perhaps `at_once`.
    pub(super) fn on_frame(&mut self, now: Instant, length: usize, eliciting: bool, at_once: bool) {
        self.received = self.received.saturating_add(u64::try_from(length).unwrap_or(0));
        if eliciting {
            self.ack_due.get_or_insert_with(|| later(now, ACK_DELAY));
            self.ack_now |= at_once;
        }
    }

    /// What has arrived; `None`: more than was ever sent.
    pub(super) fn on_ack(&mut self, now: Instant, received: u64) -> Option<Vec<Cargo>> {
        if received > self.sent {
            return None;
        }
        if received <= self.acked {
            return Some(Vec::new());
        }
        self.acked = received;
        self.health = Health::Moves;
        let mut arrived = Vec::new();
        let (mut delay, mut was_empty) = (None, false);
        while let Some(item) = self.items.pop_front_if(|item| item.end <= received) {
            // Only what was answered at once tells the round trip.
            delay = (item.asked && item.end == received).then(|| now.saturating_duration_since(item.sent_at));
            was_empty = item.empty;
            arrived.push(item.cargo);
        }
        self.budget.on_ack(now, received, delay, was_empty);
        Some(arrived)
    }

    /// Everything under way, to be sent on other lanes.
    pub(super) fn take_items(&mut self) -> Vec<Cargo> {
        self.items.drain(..).map(|item| item.cargo).collect()
    }

    pub(super) fn has_items(&self) -> bool {
        !self.items.is_empty()
    }

    fn stalls_at(&self) -> Option<Instant> {
        if self.is_stalled() {
            return None;
        }
        let patience = match self.budget.smoothed() {
            Some(round_trip) => round_trip.saturating_mul(4).saturating_add(ACK_DELAY).clamp(STALL.0, STALL.1),
            None => STALL_FIRST,
        };
        self.items.front().map(|item| later(item.sent_at, patience))
    }

    fn stuck_at(&self) -> Option<Instant> {
        match self.health {
            Health::Moves => None,
            Health::Stalled { until: at } | Health::Stuck { again: at } => Some(at),
        }
    }

    pub(super) fn timeout(&self) -> Option<(Instant, &'static str)> {
        let ack = self.ack_due.filter(|_| !self.ack_now).map(|at| (at, "acknowledge"));
        let stall = self.stalls_at().map(|at| (at, "stall"));
        let stuck = self.stuck_at().map(|at| (at, "stuck"));
        [ack, stall, stuck].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    /// True if it is to be looked at because it is stuck.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> bool {
        self.ack_now |= self.ack_due.is_some_and(|at| at <= now);
        if self.stalls_at().is_some_and(|at| at <= now) {
            self.health = Health::Stalled { until: later(now, STUCK) };
        }
        let stuck = self.stuck_at().is_some_and(|at| at <= now);
        if stuck {
            self.health = Health::Stuck { again: later(now, STUCK_AGAIN) };
        }
        stuck
    }
}
