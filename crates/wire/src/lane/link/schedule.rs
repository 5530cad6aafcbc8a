//! What goes out: whose turn it is, and on which lane.

use std::time::{Duration, Instant};

use super::super::later;
use super::super::pipe::{Cargo, Control, Lane};
use super::{Event, Link};

/// A stream that was quiet may send so much before busy ones have their turn.
const BONUS: u64 = 32 * 1024;
/// One that is so far behind the others was quiet; streams that all have much to send differ by a segment or two.
const SMALL_LAG: u64 = 4 * 1024;
/// And may put so much on a lane that is full already.
const SMALL_EXTRA: usize = 4 * 1024;
/// So long after a quiet stream has sent something, one lane is kept nearly empty for it.
const KEEP_CLEAR: Duration = Duration::from_secs(1);
/// What a piece costs beside its data, for the turns of the streams.
const PIECE_COST: u64 = 64;

impl Link {
    pub(super) fn take_turn(&mut self, id: u64) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if let Some(limit) = stream.sending.blocked() {
            self.control.push_back(Control::Blocked { stream: id, limit });
        }
        if stream.in_turn || !stream.sending.is_ready() {
            return;
        }
        stream.tag = stream.tag.max(self.served.saturating_sub(BONUS));
        stream.in_turn = true;
        self.turns.insert((stream.tag, id));
    }

    /// Puts what may go out on the lanes.
    pub fn schedule(&mut self, now: Instant) {
        if self.over.is_some() {
            return;
        }
        self.rescue();
        while let Some(lane) = self.quickest() {
            let Some(control) = self.control.pop_front() else { break };
            self.use_lane(lane, |lane| lane.put_control(now, control));
        }
        while let Some(piece) = self.resend.front() {
            if self.streams.get(&piece.stream).is_none_or(|stream| stream.sending.stopped) {
                self.resend.pop_front();
                continue;
            }
            let Some((lane, limit)) = self.choose(now, false) else { return };
            let Some(piece) = self.resend.pop_front() else { return };
            self.use_lane(lane, |lane| lane.put_piece(now, piece, limit));
        }
        while let Some((tag, id)) = self.turns.first().copied() {
            // It was quiet while others sent: what somebody types, most likely.
            let small = self.served.saturating_sub(tag) > SMALL_LAG;
            let Some((lane, limit)) = self.choose(now, small) else { return };
            if small {
                self.clear_until = Some(later(now, KEEP_CLEAR));
            }
            self.turns.pop_first();
            self.serve(now, id, lane, limit);
        }
    }

    fn serve(&mut self, now: Instant, id: u64, lane: u32, limit: usize) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.in_turn = false;
        self.served = self.served.max(stream.tag);
        let size = self.lanes.get(&lane).map_or(0, |lane| lane.budget.segment());
        let Some(piece) = stream.sending.next(id, size) else { return };
        let cost = u64::try_from(piece.data.len()).unwrap_or(0).saturating_add(PIECE_COST);
        stream.tag = stream.tag.saturating_add(cost);
        stream.sending.outstanding = stream.sending.outstanding.saturating_add(1);
        if stream.sending.wants_room && stream.sending.has_room() {
            stream.sending.wants_room = false;
            self.events.push_back(Event::Writable(id));
        }
        self.take_turn(id);
        self.use_lane(lane, |lane| lane.put_piece(now, piece, limit));
    }

    fn use_lane(&mut self, id: u32, put: impl FnOnce(&mut Lane)) {
        self.used = self.used.saturating_add(1);
        if let Some(lane) = self.lanes.get_mut(&id) {
            lane.used = self.used;
            put(lane);
        }
    }

    /// What stalled lanes have under way goes on others, if there are any.
    fn rescue(&mut self) {
        if self.lanes.values().all(|lane| lane.is_stalled()) {
            return;
        }
        let stuck: Vec<Cargo> =
            self.lanes.values_mut().filter(|lane| lane.is_stalled()).flat_map(Lane::take_items).collect();
        self.send_again(stuck);
    }

    /// The lane that brings a few bytes soonest.
    fn quickest(&self) -> Option<u32> {
        let moving = self.lanes.iter().filter(|(_, lane)| !lane.is_stalled());
        moving.min_by_key(|(_, lane)| (lane.budget.takes(lane.in_flight()), lane.used)).map(|(id, _)| *id)
    }

    /// The lane for the next piece, and how much that lane may have under way; `None`: all are full.
    fn choose(&mut self, now: Instant, small: bool) -> Option<(u32, usize)> {
        let moving = self.lanes.values().filter(|lane| !lane.is_stalled()).count();
        let keep_clear = self.clear_until.is_some_and(|until| now < until) && moving > 1;
        let mut best: Option<((Duration, u64), u32, usize)> = None;
        let mut clear = keep_clear && !small;
        for (id, lane) in self.lanes.iter_mut().filter(|(_, lane)| !lane.is_stalled()) {
            let budget = &mut lane.budget;
            let limit = match std::mem::take(&mut clear) {
                true => match budget.holds().saturating_sub(budget.segment()) {
                    // Even one segment would be in the way.
                    0 => continue,
                    some => some,
                },
                _ if small => budget.bytes().saturating_add(SMALL_EXTRA),
                _ if budget.wants_empty(now) && budget.best().is_some() => 1,
                _ => budget.bytes(),
            };
            let in_flight = lane.in_flight();
            if in_flight >= limit.max(1) {
                if in_flight >= lane.budget.bytes() {
                    lane.budget.on_full();
                }
                lane.ask(now);
                continue;
            }
            let cost = (lane.budget.takes(in_flight), lane.used);
            if best.is_none_or(|(lowest, ..)| cost < lowest) {
                best = Some((cost, *id, limit));
            }
        }
        best.map(|(_, id, limit)| (id, limit))
    }

    pub fn has_output(&self, lane: u32) -> bool {
        self.lanes.get(&lane).is_some_and(Lane::has_output)
    }

    /// Bytes for the lane's pipe.
    pub fn take_output(&mut self, lane: u32) -> Vec<u8> {
        self.lanes.get_mut(&lane).map(Lane::take_output).unwrap_or_default()
    }
}
