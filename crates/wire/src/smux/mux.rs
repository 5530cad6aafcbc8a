//! The client's side of one smux connection: opens streams, cuts their bytes into frames, delivers what comes back.
//!
//! smux 1 has no window per stream and its FIN closes both directions. So a local end of stream is held back until the
//! other side has finished (`PortSession::close_write`), and a stream whose receiver is slow is bounded by whoever drives.

use std::collections::{BTreeMap, VecDeque};

use bytes::{Buf as _, Bytes, BytesMut};

use super::frame::{Command, Frame, FrameError, HEADER_SIZE, Header};

/// The official client starts here; ids go up by two and are never used again.
const FIRST_ID: u32 = 3;
/// Data in one PSH frame: small enough that streams take turns often.
const CHUNK: usize = 8 * 1024;
/// Of a longer frame, so much is delivered at a time: 8 ms of the agent, and a quarter of the work that each of its messages
/// would make.
const PART: usize = 4 * 1024;
/// A stream has little to send that has no more than this, which one small message carries with its headers.
const LITTLE: usize = 1000;

/// What came for a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Data(u32, Bytes),
    /// The other side has closed; all of its bytes were delivered. `refused`: the agent could not connect.
    Fin {
        stream: u32,
        refused: bool,
    },
}

#[derive(Debug, Default)]
struct Stream {
    /// SYN not yet sent.
    opening: bool,
    out: VecDeque<Bytes>,
    out_bytes: usize,
    /// Our FIN goes out once `out` is empty.
    finishing: bool,
    /// Whether the agent has sent anything.
    answered: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Mux {
    next_id: Option<u32>,
    streams: BTreeMap<u32, Stream>,
    /// Streams with something to send, in turn.
    ready: VecDeque<u32>,
    incoming: BytesMut,
    /// Data of a frame that has begun to come: for which stream, and how many bytes are missing.
    coming: (u32, usize),
    events: VecDeque<Event>,
    /// A ConnectToPortError has come; it is about the next stream that ends without an answer.
    port_errors: usize,
    nop: bool,
}

impl Mux {
    pub fn new() -> Self {
        Self {
            next_id: Some(FIRST_ID),
            streams: BTreeMap::new(),
            ready: VecDeque::new(),
            incoming: BytesMut::new(),
            coming: (0, 0),
            events: VecDeque::new(),
            port_errors: 0,
            nop: false,
        }
    }

    /// A fresh connection whose ids go on where this one's ended, so that an id means one stream over both.
    #[must_use]
    pub fn successor(&self) -> Self {
        Self { next_id: self.next_id, ..Self::new() }
    }

    /// Opens a stream; `None` once all two thousand million ids are used.
    pub fn open(&mut self) -> Option<u32> {
        let id = self.next_id?;
        self.next_id = id.checked_add(2);
        self.streams.insert(id, Stream { opening: true, ..Stream::default() });
        // In front: a new connection does not wait behind bulk data.
        self.ready.push_front(id);
        Some(id)
    }

    pub fn is_open(&self, id: u32) -> bool {
        self.streams.contains_key(&id)
    }

    pub fn open_streams(&self) -> usize {
        self.streams.len()
    }

    /// Bytes of a stream that wait to be sent; the driver takes no more from its socket above a bound.
    pub fn waiting(&self, id: u32) -> usize {
        self.streams.get(&id).map_or(0, |stream| stream.out_bytes)
    }

    /// Queues bytes; false if the stream is closed.
    pub fn write(&mut self, id: u32, data: Bytes) -> bool {
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| !stream.finishing) else { return false };
        if !data.is_empty() {
            if stream.out.is_empty() && !stream.opening {
                self.ready.push_back(id);
            }
            stream.out_bytes = stream.out_bytes.saturating_add(data.len());
            stream.out.push_back(data);
        }
        true
    }

    /// Closes both directions once everything written is out; later bytes of the other side are dropped.
    pub fn finish(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(&id) {
            if stream.out.is_empty() && !stream.opening && !stream.finishing {
                self.ready.push_back(id);
            }
            stream.finishing = true;
        }
    }

    /// Closes both directions now and forgets what was not sent yet.
    pub fn reset(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.out.clear();
            stream.out_bytes = 0;
            stream.opening = false;
            if !stream.finishing {
                stream.finishing = true;
                self.ready.push_front(id);
            }
        }
    }

    /// The agent has said that it could not connect, without saying for which stream; that stream's FIN follows.
    pub fn handle_port_error(&mut self) {
        self.port_errors = self.port_errors.saturating_add(1);
    }

    /// Takes bytes of the agent, cut anywhere. Data is delivered before its frame is whole: it may be of 32 KiB, which take
    /// the agent 40 ms and more.
    ///
    /// # Errors
    /// [`FrameError`]: the smux connection is dead, and with it every stream.
    pub fn handle_bytes(&mut self, bytes: &[u8]) -> Result<(), FrameError> {
        self.incoming.extend_from_slice(bytes);
        loop {
            let (id, missing) = self.coming;
            let length = missing.min(self.incoming.len());
            if length > 0 && (length >= PART || length == missing) {
                let data = self.incoming.split_to(length).freeze();
                self.coming = (id, missing.saturating_sub(length));
                self.handle_data(id, data);
            } else if missing > 0 {
                return Ok(());
            } else {
                let Some(header) = Header::decode(&self.incoming)? else { return Ok(()) };
                self.incoming.advance(HEADER_SIZE);
                self.handle_header(header);
            }
        }
    }

    fn handle_data(&mut self, id: u32, data: Bytes) {
        if let Some(stream) = self.streams.get_mut(&id).filter(|stream| !stream.finishing) {
            stream.answered = true;
            self.events.push_back(Event::Data(id, data));
        }
    }

    fn handle_header(&mut self, header: Header) {
        let id = header.stream;
        match header.command {
            Command::Psh => self.coming = (id, usize::from(header.length)),
            Command::Fin => {
                if let Some(stream) = self.streams.remove(&id) {
                    let refused = !stream.answered && self.port_errors > 0;
                    if refused {
                        self.port_errors = self.port_errors.saturating_sub(1);
                    }
                    if !stream.finishing {
                        self.events.push_back(Event::Fin { stream: id, refused });
                    }
                }
            }
            // The agent opens no streams.
            Command::Nop | Command::Syn => {}
        }
    }

    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Asks for a keepalive frame with the next bytes.
    pub fn send_nop(&mut self) {
        self.nop = true;
    }

    /// True if [`Mux::fill`] would give bytes.
    pub fn wants_to_send(&self) -> bool {
        self.nop || !self.ready.is_empty()
    }

    /// As [`Mux::fill`], only of streams that have little to send, as that of somebody who types.
    pub fn fill_little(&mut self, max: usize) -> Bytes {
        let mut out = Vec::new();
        while out.len().saturating_add(HEADER_SIZE.saturating_mul(2)) < max {
            let Some(id) = self.little().and_then(|place| self.ready.remove(place)) else { break };
            self.take_turn(id, max, &mut out);
        }
        out.into()
    }

    /// Its place among those that have something to send.
    fn little(&self) -> Option<usize> {
        self.ready.iter().position(|id| self.streams.get(id).is_some_and(|stream| stream.out_bytes <= LITTLE))
    }

    /// Up to `max` bytes of frames (at least a header), streams taking turns.
    pub fn fill(&mut self, max: usize) -> Bytes {
        let mut out = Vec::new();
        if std::mem::take(&mut self.nop) {
            out.extend_from_slice(&Header { command: Command::Nop, length: 0, stream: 0 }.encode());
        }
        while out.len().saturating_add(HEADER_SIZE.saturating_mul(2)) < max {
            let Some(id) = self.ready.pop_front() else { break };
            self.take_turn(id, max, &mut out);
        }
        out.into()
    }

    fn take_turn(&mut self, id: u32, max: usize, out: &mut Vec<u8>) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let room = max.saturating_sub(out.len());
        if fill_stream(id, stream, room, out) {
            self.ready.push_back(id);
        } else if stream.finishing {
            self.streams.remove(&id);
        }
    }
}

impl Default for Mux {
    fn default() -> Self {
        Self::new()
    }
}

/// One turn of a stream; true if it has more.
fn fill_stream(id: u32, stream: &mut Stream, room: usize, out: &mut Vec<u8>) -> bool {
    let mut left = room;
    if std::mem::take(&mut stream.opening) {
        out.extend_from_slice(&Header { command: Command::Syn, length: 0, stream: id }.encode());
        left = left.saturating_sub(HEADER_SIZE);
    }
    let chunk = left.saturating_sub(HEADER_SIZE).min(CHUNK);
    if let Some(front) = stream.out.front_mut().filter(|_| chunk > 0) {
        let data = front.split_to(front.len().min(chunk));
        if front.is_empty() {
            stream.out.pop_front();
        }
        stream.out_bytes = stream.out_bytes.saturating_sub(data.len());
        left = left.saturating_sub(HEADER_SIZE.saturating_add(data.len()));
        Frame { command: Command::Psh, stream: id, data }.encode(out);
    }
    if !stream.out.is_empty() {
        return true;
    }
    if stream.finishing {
        if left < HEADER_SIZE {
            return true;
        }
        out.extend_from_slice(&Header { command: Command::Fin, length: 0, stream: id }.encode());
    }
    false
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn opened(streams: usize) -> (Mux, Vec<u32>) {
        let mut mux = Mux::new();
        let ids = (0..streams).map(|_| mux.open().unwrap()).collect();
        (mux, ids)
    }

    /// What came for each stream, and which of them have ended.
    fn delivered(mux: &mut Mux) -> (BTreeMap<u32, Vec<u8>>, Vec<u32>) {
        let (mut data, mut ends) = (BTreeMap::<u32, Vec<u8>>::new(), Vec::new());
        while let Some(event) = mux.poll_event() {
            match event {
                Event::Data(id, bytes) => {
                    assert!(!bytes.is_empty() && !ends.contains(&id));
                    data.entry(id).or_default().extend_from_slice(&bytes);
                }
                Event::Fin { stream, .. } => ends.push(stream),
            }
        }
        (data, ends)
    }

    #[test]
    fn data_is_delivered_before_its_frame_is_whole() {
        let (mut mux, ids) = opened(1);
        let data: Vec<u8> = (0..=255).cycle().take(10_000).collect();
        let header = Header { command: Command::Psh, length: 10_000, stream: ids[0] }.encode();
        mux.handle_bytes(&header).unwrap();
        let mut parts = Vec::new();
        for message in data.chunks(1024) {
            mux.handle_bytes(message).unwrap();
            while let Some(Event::Data(id, part)) = mux.poll_event() {
                assert_eq!(id, ids[0]);
                parts.push(part);
            }
        }
        assert_eq!(parts.iter().map(Bytes::len).collect::<Vec<_>>(), [4096, 4096, 1808]);
        assert!(parts.concat() == data);
        // What is still to come of a stream that was reset is no header.
        mux.handle_bytes(&header).unwrap();
        mux.handle_bytes(&data[..5000]).unwrap();
        assert!(mux.poll_event().is_some());
        mux.reset(ids[0]);
        mux.handle_bytes(&data[5000..]).unwrap();
        mux.handle_bytes(&Header { command: Command::Nop, length: 0, stream: 0 }.encode()).unwrap();
        assert_eq!(mux.poll_event(), None);
    }

    #[test]
    fn who_has_little_to_send_is_found_behind_those_with_much() {
        let (mut mux, ids) = opened(2);
        while mux.wants_to_send() {
            mux.fill(1024);
        }
        mux.write(ids[0], vec![7; 100_000].into());
        assert!(mux.fill_little(1024).is_empty());
        for part in [b"sel", b"ect"] {
            mux.write(ids[1], Bytes::from_static(part));
        }
        let mut expected = Vec::new();
        for part in [b"sel", b"ect"] {
            Frame { command: Command::Psh, stream: ids[1], data: Bytes::from_static(part) }.encode(&mut expected);
        }
        assert_eq!(mux.fill_little(1024), expected);
        assert!(mux.fill_little(1024).is_empty());
        mux.finish(ids[1]);
        assert_eq!(mux.fill_little(1024)[..], Header { command: Command::Fin, length: 0, stream: ids[1] }.encode());
        assert!(!mux.is_open(ids[1]) && mux.waiting(ids[0]) == 100_000);
    }

    proptest! {
        #[test]
        fn every_stream_gets_its_bytes_however_they_are_cut(
            frames in prop::collection::vec((0_usize..3, prop::collection::vec(any::<u8>(), 0..40), 1_usize..500), 0..20),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        ) {
            let (mut mux, ids) = opened(3);
            let (mut bytes, mut sent) = (Vec::new(), BTreeMap::<u32, Vec<u8>>::new());
            for (stream, data, times) in frames {
                let data = data.repeat(times);
                if !data.is_empty() {
                    sent.entry(ids[stream]).or_default().extend_from_slice(&data);
                }
                Frame { command: Command::Psh, stream: ids[stream], data: data.into() }.encode(&mut bytes);
            }
            Frame { command: Command::Fin, stream: ids[1], data: Bytes::new() }.encode(&mut bytes);
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            for pair in cuts.windows(2) {
                mux.handle_bytes(&bytes[pair[0]..pair[1]]).unwrap();
            }
            prop_assert_eq!(delivered(&mut mux), (sent, vec![ids[1]]));
        }
    }
}
