//! How fast and in what pieces tunnel bytes go out.
//!
//! The agent takes messages of any size at any speed; what the message gateway takes is not documented. So sending
//! starts like the official plugin (1 KiB, about 1 MB/s), and both double while acknowledgements come back. A new size is
//! tried with one message alone; if the gateway closes the socket on it twice, its bytes go out in smaller messages and
//! the size is never tried again.

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
    /// Bytes that may be sent without an acknowledgement.
    pub window: usize,
}

impl Default for PaceConfig {
    fn default() -> Self {
        Self { first_size: 1024, max_size: 32 * 1024, first_rate: 1_000_000, window: 2 << 20 }
    }
}

/// Faster than any path to a gateway; from here on only the window holds back.
const RATE_MAX: u64 = 1_000_000_000;
/// Clean messages before the next step.
const STEP: u32 = 32;
/// What may go out at once after a pause.
const BURST: Duration = Duration::from_millis(5);
/// Closes on the same message until its size is to blame.
const CLOSES: u32 = 2;

#[derive(Debug)]
struct Probe {
    sequence: i64,
    closes: u32,
}

/// See the module.
#[derive(Debug)]
pub struct Pace {
    config: PaceConfig,
    size: usize,
    rate: u64,
    clean: u32,
    /// A larger size is due with the next full message.
    grow: bool,
    probe: Option<Probe>,
    next_send_at: Option<Instant>,
}

impl Pace {
    pub fn new(config: PaceConfig) -> Self {
        Self {
            size: config.first_size,
            rate: config.first_rate,
            config,
            clean: 0,
            grow: false,
            probe: None,
            next_send_at: None,
        }
    }

    pub(super) fn window(&self) -> usize {
        self.config.window
    }

    /// The size for the next message: a doubled one if a step is due.
    pub(super) fn message_size(&self) -> usize {
        if self.grow { self.larger() } else { self.size }
    }

    fn larger(&self) -> usize {
        self.size.saturating_mul(2).min(self.config.max_size)
    }

    /// A message of a new size is under way; nothing follows it until it is acknowledged.
    pub(super) fn is_probing(&self) -> bool {
        self.probe.is_some()
    }

    pub(super) fn next_send_at(&self) -> Option<Instant> {
        self.next_send_at
    }

    pub(super) fn sent(&mut self, now: Instant, length: usize, sequence: i64) {
        if self.grow && length > self.size {
            self.probe = Some(Probe { sequence, closes: 0 });
            self.grow = false;
        }
        let nanos = u64::try_from(length).unwrap_or(u64::MAX).saturating_mul(1_000_000_000).checked_div(self.rate);
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let from = self.next_send_at.map_or(earliest, |at| at.max(earliest));
        self.next_send_at = from.checked_add(Duration::from_nanos(nanos.unwrap_or(0)));
    }

    pub(super) fn acknowledged(&mut self, now: Instant, length: usize, clean: bool) {
        if self.probe.is_some() && length > self.size {
            self.size = length.max(self.larger());
            self.probe = None;
            self.clean = 0;
        }
        if !clean || length.saturating_mul(2) < self.size {
            // Small messages say nothing about what a full one would do.
            return;
        }
        self.clean = self.clean.saturating_add(1);
        if self.clean >= STEP {
            self.clean = 0;
            self.rate = self.rate.saturating_mul(2).min(RATE_MAX);
            if self.rate == RATE_MAX {
                self.next_send_at = self.next_send_at.map(|at| at.min(now));
            }
            self.grow = self.larger() > self.size && self.probe.is_none();
        }
    }

    pub(super) fn resent(&mut self) {
        self.clean = 0;
    }

    /// A new socket. Returns the message whose size the gateway does not carry.
    pub(super) fn reconnected(&mut self, now: Instant) -> Option<i64> {
        self.clean = 0;
        self.grow = false;
        self.rate = self.rate.checked_div(2).unwrap_or(0).max(self.config.first_rate);
        self.next_send_at = Some(now);
        let probe = self.probe.as_mut()?;
        probe.closes = probe.closes.saturating_add(1);
        if probe.closes < CLOSES {
            return None;
        }
        self.config.max_size = self.size;
        self.probe.take().map(|probe| probe.sequence)
    }
}
