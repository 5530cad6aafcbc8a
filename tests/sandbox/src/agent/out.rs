//! What the agent sends: counted messages, kept until acknowledged, with the agent's way of repeating them.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bastion_wire::ssm::message::{FLAG_SYN, MessageType, PayloadType};
use bytes::Bytes;
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::Instant;

use crate::agent::frame;
use crate::gateway::{Leg, message};

/// The agent looks so often whether its oldest message is overdue.
const SCAN: Duration = Duration::from_millis(100);
/// `agent/session/config`: first estimates, bounds, and how many messages are kept.
const FIRST_RTT: Duration = Duration::from_millis(100);
const FIRST_TIMEOUT: Duration = Duration::from_millis(200);
const MAX_TIMEOUT: Duration = Duration::from_secs(1);
const MIN_SLACK: Duration = Duration::from_millis(10);
const KEPT_MAX: usize = 100_000;

struct Kept {
    sequence: i64,
    frame: Bytes,
    sent_at: Instant,
}

struct State {
    kept: VecDeque<Kept>,
    rtt: Duration,
    variation: Duration,
    timeout: Duration,
    paused: bool,
}

pub(super) struct Out {
    leg: Leg,
    /// The next number; held while a message is written, so that they go out in order.
    next: AsyncMutex<i64>,
    state: Mutex<State>,
}

impl Out {
    pub(super) fn new(leg: Leg) -> Self {
        let state = State {
            kept: VecDeque::new(),
            rtt: FIRST_RTT,
            variation: Duration::ZERO,
            timeout: FIRST_TIMEOUT,
            paused: false,
        };
        Self { leg, next: AsyncMutex::new(0), state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a counted message. It is kept only after it was written, as the agent does: an acknowledgement that is
    /// faster finds nothing.
    pub(super) async fn send(&self, payload_type: PayloadType, payload: Bytes) {
        let mut next = self.next.lock().await;
        let mut data = message(MessageType::OutputStreamData, payload_type, payload);
        data.sequence = *next;
        data.flags = if *next == 0 { FLAG_SYN } else { 0 };
        let frame = data.to_frame();
        let sent_at = Instant::now();
        // A cut leg loses it; it is kept and repeated.
        let _sent = self.leg.send(frame.clone()).await;
        let mut state = self.state();
        if state.kept.len() < KEPT_MAX {
            state.kept.push_back(Kept { sequence: *next, frame, sent_at });
        }
        *next += 1;
    }

    pub(super) async fn unsequenced(&self, message_type: MessageType, payload: Bytes) {
        // Neither acknowledgements nor states are repeated.
        let _sent = self.leg.send(frame(message_type, payload)).await;
    }

    pub(super) fn acknowledged(&self, sequence: i64) {
        let mut state = self.state();
        let Some(at) = state.kept.iter().position(|kept| kept.sequence == sequence) else { return };
        let Some(kept) = state.kept.remove(at) else { return };
        let sample = kept.sent_at.elapsed();
        state.variation = (state.variation * 3 + state.rtt.abs_diff(sample)) / 4;
        state.rtt = (state.rtt * 7 + sample) / 8;
        state.timeout = (state.rtt + MIN_SLACK.max(state.variation * 4)).min(MAX_TIMEOUT);
    }

    pub(super) fn leg(&self) -> &Leg {
        &self.leg
    }

    pub(super) fn is_empty(&self) -> bool {
        self.state().kept.is_empty()
    }

    pub(super) fn pause(&self, paused: bool) {
        self.state().paused = paused;
    }

    pub(super) fn is_paused(&self) -> bool {
        self.state().paused
    }

    /// Repeats the oldest message whenever it is overdue; never returns.
    pub(super) async fn repeat(&self) {
        let mut scan = tokio::time::interval(SCAN);
        loop {
            scan.tick().await;
            let overdue = {
                let mut state = self.state();
                let (timeout, paused) = (state.timeout, state.paused);
                state.kept.front_mut().filter(|kept| !paused && kept.sent_at.elapsed() > timeout).map(|kept| {
                    kept.sent_at = Instant::now();
                    kept.frame.clone()
                })
            };
            if let Some(frame) = overdue {
                // Lost again: repeated again.
                let _sent = self.leg.send(frame).await;
            }
        }
    }
}
