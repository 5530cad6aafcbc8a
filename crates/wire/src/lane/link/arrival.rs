//! What comes over the lanes.

use std::time::Instant;

use super::super::frame::{Frame, Segment};
use super::super::pipe::{Cargo, Control};
use super::{
    CONTROL_MAX, Ended, Event, Link, LinkError, NAME_TIMEOUT, STREAMS_MAX, Side, Stream, StreamEnd, StreamError, later,
};

impl Link {
    /// Takes bytes of a lane, cut anywhere. A peer that breaks the protocol ends the link.
    pub fn handle_bytes(&mut self, now: Instant, lane: u32, bytes: &[u8]) {
        let Some(entry) = self.lanes.get_mut(&lane) else { return };
        let mut incoming = std::mem::take(&mut entry.incoming);
        incoming.extend_from_slice(bytes);
        let mut rest: &[u8] = &incoming;
        // Nothing counts that comes after the end, behind a goodbye or on another lane.
        while self.over.is_none() {
            match Frame::decode(rest) {
                Ok(Some((frame, used))) => {
                    rest = rest.get(used..).unwrap_or_default();
                    if let Some(lane) = self.lanes.get_mut(&lane) {
                        let at_once = matches!(frame, Frame::Ask | Frame::Segment(Segment { asks: true, .. }));
                        lane.on_frame(now, used, !matches!(frame, Frame::Ack { .. }), at_once);
                    }
                    if let Err(error) = self.handle_frame(now, lane, &frame).and_then(|()| self.check_control()) {
                        return self.end(Ended::Broken(error));
                    }
                }
                Ok(None) => break,
                Err(error) => return self.end(Ended::Broken(error.into())),
            }
        }
        let rest = rest.len();
        let used = incoming.len().saturating_sub(rest);
        let left = incoming.split_off(used);
        if let Some(entry) = self.lanes.get_mut(&lane) {
            entry.incoming = left;
        }
    }

    fn handle_frame(&mut self, now: Instant, lane: u32, frame: &Frame<'_>) -> Result<(), LinkError> {
        match *frame {
            Frame::Ack { received } => {
                let Some(lane) = self.lanes.get_mut(&lane) else { return Ok(()) };
                let arrived = lane.on_ack(now, received).ok_or(LinkError::AckBeyondSent)?;
                for cargo in arrived {
                    if let Cargo::Piece(piece) = cargo {
                        self.arrived(piece.stream);
                    }
                }
            }
            Frame::Credit { stream, limit } => {
                if let Some(entry) = self.stream(now, stream)? {
                    entry.sending.credit(limit);
                    self.take_turn(stream);
                }
            }
            Frame::Blocked { stream, limit: _ } => {
                if let Some(entry) = self.stream(now, stream)? {
                    entry.receiving.grow();
                    self.grant(stream);
                }
            }
            Frame::Reset { stream, reason } => {
                if let Some(entry) = self.stream(now, stream)? {
                    entry.cut(StreamEnd::Reset(reason.to_owned()));
                    // Nobody will ever hold one whose target is not known.
                    entry.released |= !entry.named;
                    if entry.released {
                        entry.receiving.forget();
                    }
                    self.resets.remove(&stream);
                    self.wake(stream);
                    self.retire(stream);
                }
            }
            Frame::Stop { stream } => {
                if let Some(entry) = self.stream(now, stream)? {
                    entry.sending.stop();
                    self.resets.remove(&stream);
                    self.wake(stream);
                    self.retire(stream);
                }
            }
            Frame::Ask => {}
            Frame::Goodbye => self.end(Ended::Goodbye),
            Frame::Segment(segment) => self.handle_segment(now, &segment)?,
        }
        Ok(())
    }

    /// A peer that asks for more answers than it takes would fill our memory.
    fn check_control(&self) -> Result<(), LinkError> {
        if self.control.len() > CONTROL_MAX { Err(LinkError::Flood) } else { Ok(()) }
    }

    fn handle_segment(&mut self, now: Instant, segment: &Segment<'_>) -> Result<(), LinkError> {
        let id = segment.stream;
        let Some(stream) = self.stream(now, id)? else { return Ok(()) };
        let taken = stream.receiving.take(segment.offset, segment.data, segment.fin);
        let named = stream.named;
        let fresh = match taken {
            Ok(fresh) => fresh,
            Err(StreamError::Full(full)) => {
                self.refuse(id, StreamEnd::NoMemory(full));
                return Ok(());
            }
            Err(error) => return Err(LinkError::Stream(id, error)),
        };
        self.totals.received_packed =
            self.totals.received_packed.saturating_add(u64::try_from(segment.data.len()).unwrap_or(0));
        if fresh && named {
            self.events.push_back(Event::Readable(id));
        } else if fresh {
            self.read_name(id)?;
        }
        self.retire(id);
        Ok(())
    }

    /// A stream begins with the length of its target's name and the name.
    fn read_name(&mut self, id: u64) -> Result<(), LinkError> {
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        let Some(length) = stream.receiving.peek() else { return Ok(()) };
        let Some(name) = stream.receiving.take_plain(usize::from(length).saturating_add(1)) else { return Ok(()) };
        let name = name.get(1..).unwrap_or_default().to_vec();
        stream.named = true;
        let target = String::from_utf8(name).map_err(|_| LinkError::BadTarget)?;
        self.events.push_back(Event::Opened { stream: id, target });
        Ok(())
    }

    /// The stream of this number, opened now if the other side opens streams; `None`: it is over, or not wanted.
    fn stream(&mut self, now: Instant, id: u64) -> Result<Option<&mut Stream>, LinkError> {
        if id > self.last_stream {
            let news = usize::try_from(id.saturating_sub(self.last_stream)).unwrap_or(usize::MAX);
            if self.config.side == Side::Opener || news > STREAMS_MAX {
                return Err(LinkError::UnknownStream(id));
            }
            // Lanes overtake one another: those before it will come too.
            for new in self.last_stream.saturating_add(1)..=id {
                if self.streams.len() < STREAMS_MAX {
                    self.streams.insert(new, Stream::new(false, &self.memory));
                    self.unnamed.push_back((later(now, NAME_TIMEOUT), new));
                } else {
                    let reason = format!("the link has {STREAMS_MAX} connections already");
                    self.control.push_back(Control::Reset { stream: new, reason });
                }
            }
            self.last_stream = id;
        }
        Ok(self.streams.get_mut(&id))
    }

    /// A piece of the stream has arrived.
    fn arrived(&mut self, id: u64) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.sending.outstanding = stream.sending.outstanding.saturating_sub(1);
            self.reset_if_due(id);
            self.retire(id);
        }
    }
}
