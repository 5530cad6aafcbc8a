//! What the local ends of the streams do.

use std::time::{Duration, Instant};

use super::super::later;
use super::super::pipe::Control;
use super::super::stream::Read;
use super::{Event, Link, STREAMS_MAX, Side, Stream, StreamEnd};

/// Streams that may have a context for compression at the same time.
const CONTEXTS_MAX: usize = 16;
/// What was written before a reset has so long to arrive; a reader that takes nothing must not keep the other end's
/// database session open.
const RESET_TIMEOUT: Duration = Duration::from_secs(30);

impl Link {
    /// Opens a stream to a target; it goes out with the next [`Link::flush`]. `None`: the link is over or full.
    pub fn open(&mut self, target: &str) -> Option<u64> {
        let length = u8::try_from(target.len()).ok()?;
        if self.over.is_some() || self.config.side == Side::Acceptor || self.streams.len() >= STREAMS_MAX {
            return None;
        }
        let id = self.last_stream.checked_add(1)?;
        self.last_stream = id;
        let mut stream = Stream::new(true, &self.memory);
        stream.sending.put(&[length]);
        stream.sending.put(target.as_bytes());
        self.streams.insert(id, stream);
        Some(id)
    }

    /// Takes bytes for the other side and says how many; 0: there is no room, [`Event::Writable`] follows.
    ///
    /// # Errors
    /// [`StreamEnd`]: the stream takes no more.
    pub fn write(&mut self, now: Instant, id: u64, mut data: &[u8]) -> Result<usize, StreamEnd> {
        let mut taken = 0_usize;
        while !data.is_empty() {
            let stream = self.streams.get_mut(&id).ok_or(StreamEnd::Closed)?;
            if let Some(end) = &stream.cut {
                return Err(end.clone());
            }
            if !stream.sending.can_write() {
                return Err(StreamEnd::Closed);
            }
            if !stream.sending.has_room() {
                stream.sending.wants_room = true;
                break;
            }
            let length = stream.sending.encoder.push(data);
            data = data.get(length..).unwrap_or_default();
            taken = taken.saturating_add(length);
            if stream.sending.encoder.is_full() {
                self.flush(now, id);
            }
        }
        self.totals.sent = self.totals.sent.saturating_add(u64::try_from(taken).unwrap_or(0));
        Ok(taken)
    }

    /// What was written goes out now. A writer calls it whenever it has nothing more for the moment.
    pub fn flush(&mut self, now: Instant, id: u64) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if !stream.sending.encoder.is_empty() {
            let packed = stream.sending.flush(now, self.contexts.len() < CONTEXTS_MAX);
            self.totals.sent_packed = self.totals.sent_packed.saturating_add(u64::try_from(packed).unwrap_or(0));
            if stream.sending.encoder.has_context() {
                self.contexts.insert(id);
            } else {
                self.contexts.remove(&id);
            }
        }
        self.take_turn(id);
    }

    /// The local end has finished writing; the other direction goes on.
    pub fn finish(&mut self, now: Instant, id: u64) {
        self.flush(now, id);
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.sending.finish();
            self.contexts.remove(&id);
            self.take_turn(id);
        }
    }

    /// Reads into `out`.
    ///
    /// # Errors
    /// [`StreamEnd`]: the stream was reset, never with its end, and everything that came before has been read.
    pub fn read(&mut self, id: u64, out: &mut [u8]) -> Result<Read, StreamEnd> {
        let stream = self.streams.get_mut(&id).ok_or(StreamEnd::Closed)?;
        if stream.receiving.done {
            return stream.cut.clone().map_or(Ok(Read::End), Err);
        }
        match (stream.receiving.read(out), &stream.cut) {
            (Ok(Read::Pending) | Err(_), Some(end)) => Err(end.clone()),
            (Ok(read), _) => {
                if let Read::Data(length) = read {
                    self.totals.received = self.totals.received.saturating_add(u64::try_from(length).unwrap_or(0));
                }
                self.grant(id);
                Ok(read)
            }
            (Err(error), None) => {
                self.refuse(id, error.into());
                Err(error.into())
            }
        }
    }

    /// Tells the other side that it may send more, if that is due.
    pub(super) fn grant(&mut self, id: u64) {
        let limit = self.streams.get_mut(&id).and_then(|stream| stream.receiving.new_limit());
        if let Some(limit) = limit {
            self.control.retain(|control| !matches!(control, Control::Credit { stream, .. } if *stream == id));
            self.control.push_back(Control::Credit { stream: id, limit });
        }
    }

    /// Ends both directions, and neither at its end. What was written still arrives before the other side hears of it.
    pub fn reset(&mut self, now: Instant, id: u64, reason: &str) {
        self.flush(now, id);
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| stream.cut.is_none()) else { return };
        stream.cut = Some(StreamEnd::Reset(reason.to_owned()));
        stream.receiving.forget();
        self.contexts.remove(&id);
        if stream.sending.can_write() {
            stream.sending.reset(reason);
            self.resets.insert(id, later(now, RESET_TIMEOUT));
            // The name of its target alone is no news.
            if self.config.side == Side::Opener && !stream.sending.has_begun() {
                self.reset_at_once(id);
            }
            self.reset_if_due(id);
        } else if !stream.receiving.is_complete() {
            self.control.push_back(Control::Stop { stream: id });
        }
        self.wake(id);
    }

    /// Tells the other side of a reset, once everything before it has arrived.
    pub(super) fn reset_if_due(&mut self, id: u64) {
        if let Some(reason) = self.streams.get_mut(&id).and_then(|stream| stream.sending.take_reset()) {
            self.resets.remove(&id);
            self.control.push_back(Control::Reset { stream: id, reason });
        }
    }

    /// Gives up what was written before a reset and has not arrived.
    pub(super) fn reset_at_once(&mut self, id: u64) {
        self.resets.remove(&id);
        if let Some(stream) = self.streams.get_mut(&id)
            && let Some(StreamEnd::Reset(reason)) = &stream.cut
        {
            let reason = reason.clone();
            stream.sending.stop();
            self.control.push_back(Control::Reset { stream: id, reason });
            self.retire(id);
        }
    }

    /// The stream's holder is gone. What it has finished still arrives; anything else is reset.
    pub fn release(&mut self, now: Instant, id: u64) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.sending.can_write() && stream.cut.is_none() {
            self.reset(now, id, "the other end of the connection is gone");
        } else if !stream.receiving.done && !stream.receiving.is_complete() && stream.cut.is_none() {
            self.control.push_back(Control::Stop { stream: id });
        }
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.receiving.forget();
            stream.released = true;
        }
        self.retire(id);
    }

    pub(super) fn wake(&mut self, id: u64) {
        if self.streams.get(&id).is_some_and(|stream| !stream.released) {
            self.events.push_back(Event::Readable(id));
            self.events.push_back(Event::Writable(id));
        }
    }

    /// Forgets the stream once nobody holds it and nothing of it is under way.
    pub(super) fn retire(&mut self, id: u64) {
        let over = |stream: &Stream| {
            stream.released && stream.sending.is_done() && (stream.receiving.done || stream.receiving.is_complete())
        };
        if self.streams.get(&id).is_some_and(over) {
            self.forget(id);
        }
    }

    fn forget(&mut self, id: u64) {
        if let Some(stream) = self.streams.remove(&id) {
            self.turns.remove(&(stream.tag, id));
            self.contexts.remove(&id);
        }
    }
}
