//! A link that keeps, delays and harms frames, in the time of the test.

use std::collections::{BinaryHeap, VecDeque};
use std::time::{Duration, Instant};

/// Chance of each fault for one frame, in percent.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Faults {
    pub(super) drop: u64,
    pub(super) duplicate: u64,
    pub(super) reorder: u64,
    pub(super) corrupt: u64,
}

/// A link that keeps frames until they are due.
pub(super) struct Link {
    pub(super) latency: Duration,
    pub(super) faults: Faults,
    /// Bytes a second; what does not fit waits.
    pub(super) rate: Option<u64>,
    /// Waits for that, and what of it may leave by now.
    pub(super) waiting: VecDeque<Vec<u8>>,
    credit: u64,
    credited: Option<Instant>,
    /// Bytes that wait before the sender is held back, as TCP does.
    pub(super) buffer: usize,
    last_due: Option<Instant>,
    /// Bytes that have left.
    pub(super) carried: u64,
    pub(super) queue: BinaryHeap<std::cmp::Reverse<(Instant, u64, Vec<u8>)>>,
    count: u64,
    random: u64,
}

impl Link {
    pub(super) fn new(latency: Duration, faults: Faults, seed: u64) -> Self {
        Self {
            latency,
            faults,
            rate: None,
            waiting: VecDeque::new(),
            credit: 0,
            credited: None,
            buffer: usize::MAX,
            last_due: None,
            carried: 0,
            queue: BinaryHeap::new(),
            count: 0,
            random: seed | 1,
        }
    }

    fn chance(&mut self, percent: u64) -> bool {
        // xorshift64, enough to shuffle faults.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % 100 < percent
    }

    pub(super) fn push(&mut self, now: Instant, frame: &[u8]) {
        if self.rate.is_some() {
            self.waiting.push_back(frame.to_vec());
        } else {
            self.leave(now, frame);
        }
    }

    /// Lets leave what the rate allows by now.
    pub(super) fn serve(&mut self, now: Instant) {
        let Some(rate) = self.rate else { return };
        let passed = now - self.credited.replace(now).unwrap_or(now);
        self.credit += rate * u64::try_from(passed.as_micros()).unwrap();
        while let Some(frame) = self.waiting.front() {
            let Some(rest) = self.credit.checked_sub(frame.len() as u64 * 1_000_000) else { return };
            self.credit = rest;
            let frame = self.waiting.pop_front().unwrap();
            self.leave(now, &frame);
        }
        self.credit = 0;
    }

    fn leave(&mut self, now: Instant, frame: &[u8]) {
        self.carried += frame.len() as u64;
        let faults = self.faults;
        let copies = if self.chance(faults.drop) { 0 } else { 1 + usize::from(self.chance(faults.duplicate)) };
        for _ in 0..copies {
            let late = if self.chance(faults.reorder) { Duration::from_millis(7) } else { Duration::ZERO };
            let mut frame = frame.to_vec();
            if self.chance(faults.corrupt) {
                let last = frame.len() - 1;
                frame[last] ^= 0x20;
            }
            self.count += 1;
            // A shorter path does not overtake what is on the longer one.
            let due = self.last_due.unwrap_or(now).max(now + self.latency);
            self.last_due = Some(due);
            self.queue.push(std::cmp::Reverse((due + late, self.count, frame)));
        }
    }

    /// Whether the sender may write.
    pub(super) fn takes(&self) -> bool {
        self.waiting.iter().map(Vec::len).sum::<usize>() < self.buffer
    }

    pub(super) fn pop(&mut self, now: Instant) -> Option<Vec<u8>> {
        let due = self.queue.peek().is_some_and(|first| first.0.0 <= now);
        due.then(|| self.queue.pop().unwrap().0.2)
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.queue.peek().map(|first| first.0.0)
    }
}
