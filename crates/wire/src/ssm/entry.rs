//! One message without an acknowledgement, and the copies of it that were sent.
//!
//! The agent acknowledges each copy with the id that the copy had, and reads nothing else from the id. So every copy gets
//! an id of its own, and an acknowledgement tells which copy arrived: as the transmission numbers of QUIC (RFC 9002) and
//! the timestamps of Eifel (RFC 3522) do. An acknowledgement that names no copy, of another agent perhaps, proves
//! something about a copy only if no other copy can be meant (Karn's rule): one that left less than the shortest round
//! trip ago cannot.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::message::{Message, MessageId};
use super::rate::Mark;

/// Copies remembered of one message: the first and the latest.
const COPIES: usize = 8;

/// What a message carries, as far as its loss matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cargo {
    /// Handshake and flags.
    Control,
    Data,
    /// Data of somebody who has little to send, which may leave when no other may.
    Little,
    /// Nothing but NOPs: a larger size is being tried.
    Probe,
}

/// One transmission.
#[derive(Debug, Clone, Copy)]
pub(super) struct Copy {
    id: MessageId,
    /// Counts transmissions of all messages.
    pub(super) number: u64,
    pub(super) at: Instant,
    pub(super) mark: Mark,
    /// It was sent over a websocket that is gone: when it arrives says nothing about the new one.
    pub(super) stale: bool,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) message: Message,
    pub(super) cargo: Cargo,
    pub(super) first_sent: Option<Instant>,
    /// Oldest first.
    pub(super) copies: Vec<Copy>,
    pub(super) acked: bool,
}

impl Entry {
    pub(super) fn new(message: Message, cargo: Cargo) -> Self {
        Self { message, cargo, first_sent: None, copies: Vec::new(), acked: false }
    }

    /// Those of its bytes that count for the window.
    pub(super) fn weight(&self) -> usize {
        if self.cargo == Cargo::Little { 0 } else { self.frame_bytes() }
    }

    pub(super) fn frame_bytes(&self) -> usize {
        self.message.payload.len().saturating_add(super::message::HEADER_SIZE)
    }

    /// The frame of a new copy; the first one keeps the id that the message has.
    pub(super) fn copy(&mut self, now: Instant, number: u64, id: [u8; 16], mark: Mark) -> Bytes {
        if self.first_sent.is_some() {
            self.message.id = MessageId(id);
        }
        self.first_sent.get_or_insert(now);
        if self.copies.len() >= COPIES {
            self.copies.remove(1);
        }
        self.copies.push(Copy { id: self.message.id, number, at: now, mark, stale: false });
        self.message.to_frame()
    }

    /// The copy that an acknowledgement is for; `None`: that cannot be told.
    pub(super) fn copy_of(&self, now: Instant, id: &str, shortest: Duration) -> Option<Copy> {
        let named = self.copies.iter().find(|copy| copy.id.to_string() == id);
        let mut possible = self.copies.iter().filter(|copy| now.saturating_duration_since(copy.at) >= shortest);
        let only = match self.copies.as_slice() {
            [only] => Some(only),
            _ => possible.next().filter(|_| possible.next().is_none()),
        };
        named.or(only).copied()
    }
}
