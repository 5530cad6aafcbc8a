//! One direction of one session inside the gateway: a bounded delay line on which faults happen.

use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use tokio::sync::Notify;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use tokio::sync::watch;
use tokio::time::Instant;

use super::knobs::Direction;
use super::knobs::Kind;
use super::knobs::Knobs;
use super::knobs::Odds;
use super::knobs::Path;
use super::rng::Rng;

/// Bytes under way before the sender is held back: 40 ms at 200 MB/s.
const CAPACITY: u32 = 8 << 20;
/// How far ahead of `bytes_per_second` the sender may run.
const AHEAD: Duration = Duration::from_millis(50);
/// Bytes of a frame in front of its payload, and where in it the digest stands.
const HEADER: usize = 120;
const DIGEST: Range<usize> = 80..112;

/// Frames seen and what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Data frames that came in.
    pub data: u64,
    /// Acks that came in.
    pub acks: u64,
    /// Bytes of all frames that came in.
    pub bytes: u64,
    /// The largest frame.
    pub largest: usize,
    pub dropped: u64,
    pub duplicated: u64,
    pub reordered: u64,
    pub corrupted: u64,
    /// With a digest of something else.
    pub misdigested: u64,
    /// Lost because a side was away or its leg was cut.
    pub lost: u64,
}

/// Many may push, one pops. Order is kept, except for frames that the knobs reorder.
pub(crate) struct Link {
    direction: Direction,
    knobs: watch::Receiver<Arc<Knobs>>,
    state: Mutex<State>,
    ready: Notify,
    room: Arc<Semaphore>,
}

struct State {
    queue: BinaryHeap<Item>,
    order: u64,
    last_due: Instant,
    free_at: Instant,
    first_at: Option<Instant>,
    data_odds: Rng,
    ack_odds: Rng,
    skip_data: u32,
    skip_acks: u32,
    /// Frames still to be lost of a burst.
    lose_more: u32,
    muted: bool,
    closed: bool,
    counts: Counts,
}

struct Item {
    due: Instant,
    order: u64,
    frame: Bytes,
    /// Given back when the frame leaves or is lost.
    _room: Option<OwnedSemaphorePermit>,
}

impl Link {
    pub(crate) fn new(direction: Direction, seed: &[u64], knobs: watch::Receiver<Arc<Knobs>>) -> Self {
        let now = Instant::now();
        let odds = |kind: u64| Rng::new(&[seed, &[u64::from(direction == Direction::Up), kind]].concat());
        Self {
            direction,
            knobs,
            state: Mutex::new(State {
                queue: BinaryHeap::new(),
                order: 0,
                last_due: now,
                free_at: now,
                first_at: None,
                lose_more: 0,
                data_odds: odds(1),
                ack_odds: odds(2),
                skip_data: 0,
                skip_acks: 0,
                muted: false,
                closed: false,
                counts: Counts::default(),
            }),
            ready: Notify::new(),
            room: Arc::new(Semaphore::new(CAPACITY as usize)),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self) -> Path {
        let now = Instant::now();
        let since = now.duration_since(*self.state().first_at.get_or_insert(now));
        let knobs = self.knobs.borrow();
        match self.direction {
            Direction::Up => knobs.up.at(since),
            Direction::Down => knobs.down.at(since),
        }
    }

    /// Takes a frame in; waits while too much is under way. Faults happen here.
    pub(crate) async fn push(&self, frame: Bytes) {
        let size = u32::try_from(frame.len()).unwrap_or(CAPACITY).min(CAPACITY);
        let Ok(room) = Arc::clone(&self.room).acquire_many_owned(size).await else { return };
        let path = self.path();
        let ahead_until = self.state().accept(frame, Some(room), &path);
        self.ready.notify_one();
        if let Some(until) = ahead_until {
            tokio::time::sleep_until(until).await;
        }
    }

    /// Takes in a frame of the gateway's own, behind all others; no fault touches it.
    pub(crate) fn push_own(&self, frame: Bytes) {
        let path = self.path();
        let mut state = self.state();
        if !state.closed && !state.muted {
            let due = state.last_due.max(Instant::now() + Duration::from_millis(path.latency_ms));
            state.put(due, frame, None);
        }
        drop(state);
        self.ready.notify_one();
    }

    /// The next frame that is due; `None` once the link is closed and empty. Cancel safe.
    pub(crate) async fn pop(&self) -> Option<Bytes> {
        loop {
            let due = {
                let mut state = self.state();
                let now = Instant::now();
                if let Some(frame) = state.take(now) {
                    return Some(frame);
                }
                match state.queue.peek() {
                    Some(item) => Some(item.due),
                    None if state.closed => return None,
                    None => None,
                }
            };
            match due {
                Some(due) => tokio::select! {
                    () = tokio::time::sleep_until(due) => {}
                    () = self.ready.notified() => {}
                },
                None => self.ready.notified().await,
            }
        }
    }

    /// The next frame if it is due already.
    pub(crate) fn try_pop(&self) -> Option<Bytes> {
        self.state().take(Instant::now())
    }

    /// Loses everything that is under way.
    pub(crate) fn lose(&self) {
        let mut state = self.state();
        state.counts.lost += state.queue.len() as u64;
        state.queue.clear();
    }

    /// Loses so many bytes of what is under way, the oldest, and the frame that they end in.
    pub(crate) fn lose_first(&self, bytes: usize) {
        let mut state = self.state();
        let mut lost = 0;
        while lost < bytes
            && let Some(item) = state.queue.pop()
        {
            lost += item.frame.len();
            state.counts.lost += 1;
        }
    }

    /// Counts a frame that was lost before it came in.
    pub(crate) fn lost(&self) {
        self.state().counts.lost += 1;
    }

    /// While muted, frames that come in are lost.
    pub(crate) fn mute(&self, muted: bool) {
        self.state().muted = muted;
    }

    pub(crate) fn drop_next(&self, kind: Kind, count: u32) {
        let mut state = self.state();
        match kind {
            Kind::Ack => state.skip_acks += count,
            Kind::Data | Kind::Other => state.skip_data += count,
        }
    }

    /// Nothing more comes in; what is under way still leaves.
    pub(crate) fn close(&self) {
        self.state().closed = true;
        self.room.close();
        self.ready.notify_one();
    }

    pub(crate) fn counts(&self) -> Counts {
        self.state().counts
    }
}

impl State {
    /// Draws the faults for one frame and queues what is left of it. Returns how long the sender must wait.
    fn accept(&mut self, frame: Bytes, room: Option<OwnedSemaphorePermit>, path: &Path) -> Option<Instant> {
        let kind = Kind::of(&frame);
        self.counts.bytes += frame.len() as u64;
        self.counts.largest = self.counts.largest.max(frame.len());
        let (odds, skip) = match kind {
            Kind::Data => {
                self.counts.data += 1;
                (path.data, Some(&mut self.skip_data))
            }
            Kind::Ack => {
                self.counts.acks += 1;
                (path.ack, Some(&mut self.skip_acks))
            }
            Kind::Other => (Odds::default(), None),
        };
        if self.closed || self.muted {
            self.counts.lost += 1;
            return None;
        }
        let skipped = skip.is_some_and(|left| {
            let skipped = *left > 0;
            *left = left.saturating_sub(1);
            skipped
        });
        let rng = if kind == Kind::Ack { &mut self.ack_odds } else { &mut self.data_odds };
        let (dropped, duplicated) = (rng.chance(odds.drop), rng.chance(odds.duplicate));
        let (reordered, corrupted) = (rng.chance(odds.reorder), rng.chance(odds.corrupt));
        let jitter = Duration::from_micros(rng.below(path.jitter_ms * 1000 + 1));
        let frame = if corrupted { flip_a_bit(frame, HEADER..usize::MAX, rng) } else { frame };
        let misdigested = rng.chance(odds.digest);
        let frame = if misdigested { flip_a_bit(frame, DIGEST, rng) } else { frame };

        let now = Instant::now();
        let mut ahead_until = None;
        let mut leaves = now;
        if let Some(rate) = path.bytes_per_second {
            let takes = |bytes: u64| Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / rate.max(1));
            let ahead = path.queue_bytes.map_or(AHEAD, takes);
            if path.tail_drop && self.free_at.saturating_duration_since(now) > ahead {
                self.counts.dropped += 1;
                return None;
            }
            self.free_at = self.free_at.max(now) + takes(frame.len() as u64);
            leaves = self.free_at;
            ahead_until = self.free_at.checked_sub(ahead).filter(|until| *until > now && !path.tail_drop);
        }
        let in_burst = self.lose_more > 0 && kind != Kind::Other;
        if dropped {
            self.lose_more = path.drop_burst.saturating_sub(1);
        } else if in_burst {
            self.lose_more -= 1;
        }
        if skipped || dropped || in_burst {
            self.counts.dropped += 1;
            return ahead_until;
        }
        self.counts.corrupted += u64::from(corrupted);
        self.counts.misdigested += u64::from(misdigested);
        let due = self.last_due.max(leaves + Duration::from_millis(path.latency_ms) + jitter);
        if duplicated {
            self.counts.duplicated += 1;
            self.put(due, frame.clone(), None);
        }
        if reordered {
            self.counts.reordered += 1;
            let last = self.last_due;
            self.put(due + Duration::from_millis(path.reorder_by_ms), frame, room);
            self.last_due = last;
        } else {
            self.put(due, frame, room);
        }
        ahead_until
    }

    fn put(&mut self, due: Instant, frame: Bytes, room: Option<OwnedSemaphorePermit>) {
        self.order += 1;
        self.last_due = due;
        self.queue.push(Item { due, order: self.order, frame, _room: room });
    }

    fn take(&mut self, now: Instant) -> Option<Bytes> {
        if self.queue.peek()?.due > now {
            return None;
        }
        self.queue.pop().map(|item| item.frame)
    }
}

/// One bit of that part; a frame without it stays whole.
fn flip_a_bit(frame: Bytes, part: Range<usize>, rng: &mut Rng) -> Bytes {
    let mut bytes = frame.to_vec();
    let length = part.end.min(bytes.len()).saturating_sub(part.start) as u64;
    let at = usize::try_from(rng.below(length)).unwrap_or(0);
    if let Some(byte) = bytes.get_mut(part.start + at) {
        *byte ^= 1 << rng.below(8);
    }
    bytes.into()
}

impl Ord for Item {
    /// The earliest is the greatest: `BinaryHeap` gives the greatest first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.due, other.order).cmp(&(self.due, self.order))
    }
}

impl PartialOrd for Item {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Item {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}

impl Eq for Item {}

#[cfg(test)]
mod tests {
    use super::*;

    fn line() -> Link {
        Link::new(Direction::Up, &[1], watch::channel(Arc::new(Knobs::default())).1)
    }

    /// Data of 1000 bytes; true if it was kept.
    fn push(link: &Link, path: &Path) -> (bool, Option<Instant>) {
        let mut frame = vec![0; 1000];
        frame[4..36].copy_from_slice(format!("{:<32}", "input_stream_data").as_bytes());
        let mut state = link.state();
        let before = state.queue.len();
        let held_until = state.accept(frame.into(), None, path);
        (state.queue.len() > before, held_until)
    }

    #[test]
    fn a_full_queue_holds_the_sender_back_or_loses_what_comes() {
        let mut path = Path { bytes_per_second: Some(1000), queue_bytes: Some(2000), ..Path::default() };
        let link = line();
        let held: Vec<bool> = (0..5).map(|_| push(&link, &path).1.is_some()).collect();
        assert_eq!(held, [false, false, true, true, true]);
        assert_eq!(link.counts().dropped, 0);
        path.tail_drop = true;
        let link = line();
        let kept: Vec<bool> = (0..5).map(|_| push(&link, &path).0).collect();
        assert_eq!(kept, [true, true, true, false, false]);
        assert_eq!(link.counts().dropped, 2);
    }

    #[test]
    fn losses_come_in_bursts() {
        let data = Odds { drop: 0.05, ..Odds::default() };
        let path = Path { data, drop_burst: 4, ..Path::default() };
        let link = line();
        let kept: String = (0..2000).map(|_| if push(&link, &path).0 { ' ' } else { 'x' }).collect();
        let bursts: Vec<usize> = kept.split(' ').map(str::len).filter(|length| *length > 0).collect();
        assert!(bursts.len() > 20 && bursts.iter().rev().skip(1).all(|length| *length >= 4), "{bursts:?}");
    }
}
