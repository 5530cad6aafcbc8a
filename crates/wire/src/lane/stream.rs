//! The two halves of a stream: what is still to send, and what has come.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use bytes::{Buf as _, Bytes, BytesMut};

use super::codec::{CodecError, Decoder, Encoder};
use crate::memory::{Full, Memory, Share, WINDOW};

/// New credit is given when this part of the window was read since the last, as a shift. The sender can have the rest of
/// the window under way: with half of it, a window brought only half of what it holds.
const CREDIT_SHIFT: u32 = 2;
/// Packed bytes that wait for a lane before the writer has to.
const UNSENT_MAX: usize = 64 * 1024;
/// Segments kept that came ahead of a missing one: more than fill the largest window.
const EARLY_MAX: usize = 32 * 1024;
/// What is kept costs more than its bytes: its place in a map or a queue, and what the allocator adds.
const PIECE: usize = 96;
/// Smaller pieces are put together once they are in order, to as much as that.
const SMALL: usize = 256;
const TOGETHER: usize = 4 * 1024;
/// A window that has grown is a promise, and what fills it comes in pieces: memory for so much more of it, as a shift.
const PROMISE_SHIFT: u32 = 3;

/// Bytes of a stream on their way in one segment; kept until they have arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) stream: u64,
    pub(super) offset: u64,
    pub(super) fin: bool,
    pub(super) data: Bytes,
}

/// A peer that breaks the rules of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    #[error("more bytes than the stream's credit allows")]
    BeyondCredit,
    #[error("bytes after the stream's end")]
    BeyondEnd,
    #[error("too many pieces out of order")]
    TooManyPieces,
    /// No fault of the peer's.
    #[error("{0}")]
    Full(#[from] Full),
}

/// The sending half.
pub(super) struct Sending {
    pub(super) encoder: Encoder,
    unsent: BytesMut,
    /// Where `unsent` begins in the stream.
    offset: u64,
    limit: u64,
    /// The limit that the other side was told to be too small.
    told: Option<u64>,
    /// The local end has finished writing.
    finished: bool,
    fin_sent: bool,
    /// What was written goes out, and then a reset in place of the end.
    resets: Option<String>,
    /// Nothing more goes out.
    pub(super) stopped: bool,
    /// Pieces that are under way or to be sent again.
    pub(super) outstanding: usize,
    /// The writer waits for room.
    pub(super) wants_room: bool,
}

impl std::fmt::Debug for Sending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { unsent, offset, limit, outstanding, finished, fin_sent, stopped, .. } = self;
        let unsent = unsent.len();
        write!(f, "sent {offset} of {limit}, {unsent} wait, {outstanding} out, {finished} {fin_sent} {stopped}")
    }
}

impl Sending {
    pub(super) fn new(memory: &Memory) -> Self {
        Self {
            encoder: Encoder::new(memory.packing.clone()),
            unsent: BytesMut::new(),
            offset: 0,
            limit: WINDOW.0,
            told: None,
            finished: false,
            fin_sent: false,
            resets: None,
            stopped: false,
            outstanding: 0,
            wants_room: false,
        }
    }

    pub(super) fn can_write(&self) -> bool {
        !self.finished && !self.stopped && self.resets.is_none()
    }

    pub(super) fn has_room(&self) -> bool {
        self.unsent.len() < UNSENT_MAX
    }

    /// Bytes that are not packed: the name of the target.
    pub(super) fn put(&mut self, bytes: &[u8]) {
        self.unsent.extend_from_slice(bytes);
    }

    /// Packs what waits in the encoder; returns its size then.
    pub(super) fn flush(&mut self, now: Instant, may_open: bool) -> usize {
        let mut packed = Vec::new();
        self.encoder.flush(now, may_open, &mut packed);
        self.unsent.extend_from_slice(&packed);
        packed.len()
    }

    pub(super) fn end_context(&mut self) {
        let mut packed = Vec::new();
        self.encoder.end(&mut packed);
        self.unsent.extend_from_slice(&packed);
    }

    /// Nothing more is written; call it after [`Sending::flush`].
    pub(super) fn finish(&mut self) {
        self.finished = true;
        self.encoder.clear();
    }

    /// Nothing more is written, and the other side is not to take that for an end: it is told once the rest has arrived.
    /// Call it after [`Sending::flush`].
    pub(super) fn reset(&mut self, reason: &str) {
        self.resets = Some(reason.to_owned());
        self.encoder.clear();
    }

    /// The reset that is due, once.
    pub(super) fn take_reset(&mut self) -> Option<String> {
        let reason = self.resets.take_if(|_| self.outstanding == 0 && self.unsent.is_empty())?;
        self.stop();
        Some(reason)
    }

    /// Bytes of it are on their way or have been.
    pub(super) fn has_begun(&self) -> bool {
        self.offset > 0
    }

    /// Nothing more is sent and nothing more is taken.
    pub(super) fn stop(&mut self) {
        self.stopped = true;
        self.resets = None;
        self.unsent = BytesMut::new();
        self.encoder.clear();
    }

    pub(super) fn credit(&mut self, limit: u64) {
        self.limit = self.limit.max(limit);
    }

    fn allowed(&self) -> usize {
        usize::try_from(self.limit.saturating_sub(self.offset)).unwrap_or(usize::MAX)
    }

    fn fin_is_due(&self) -> bool {
        self.finished && !self.fin_sent && self.unsent.is_empty()
    }

    /// Whether [`Sending::next`] would give a piece.
    pub(super) fn is_ready(&self) -> bool {
        !self.stopped && (self.fin_is_due() || !self.unsent.is_empty() && self.allowed() > 0)
    }

    /// The limit that holds bytes back, once.
    pub(super) fn blocked(&mut self) -> Option<u64> {
        let blocked = !self.stopped && !self.unsent.is_empty() && self.allowed() == 0;
        (blocked && self.told.replace(self.limit) != Some(self.limit)).then_some(self.limit)
    }

    /// The next piece, of at most `max` bytes.
    pub(super) fn next(&mut self, stream: u64, max: usize) -> Option<Piece> {
        if !self.is_ready() {
            return None;
        }
        let length = self.unsent.len().min(self.allowed()).min(max);
        let data = self.unsent.split_to(length).freeze();
        let offset = self.offset;
        self.offset = offset.saturating_add(u64::try_from(length).unwrap_or(0));
        let fin = self.fin_is_due();
        self.fin_sent |= fin;
        if self.unsent.is_empty() {
            // Pieces share the buffer; it goes with the last of them.
            self.unsent = BytesMut::new();
        }
        Some(Piece { stream, offset, fin, data })
    }

    /// Everything that will ever be sent has arrived.
    pub(super) fn is_done(&self) -> bool {
        self.stopped || self.fin_sent && self.outstanding == 0
    }
}

/// What a reader gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read {
    Data(usize),
    /// The other side has finished, and everything was read.
    End,
    /// More will come.
    Pending,
}

/// The receiving half.
pub(super) struct Receiving {
    decoder: Decoder,
    /// In order, not yet read.
    ready: VecDeque<BytesMut>,
    ready_bytes: usize,
    early: BTreeMap<u64, Bytes>,
    early_bytes: usize,
    /// Everything before has come.
    next: u64,
    end: Option<u64>,
    limit: u64,
    window: u64,
    /// For what is held, and for what the other side may send because its window has grown.
    memory: Share,
    read: u64,
    /// The reader has had the last byte, or wants no more.
    pub(super) done: bool,
    /// Nothing more comes; what has come in order can still be read.
    cut: bool,
}

impl std::fmt::Debug for Receiving {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { next, limit, window, read, end, ready_bytes, early_bytes, done, .. } = self;
        write!(
            f,
            "got {next} of {limit} ({window}), read {read}, end {end:?}, {ready_bytes} ready, {early_bytes} early, {done}"
        )
    }
}

impl Receiving {
    pub(super) fn new(memory: &Memory) -> Self {
        Self {
            decoder: Decoder::new(memory.unpacking.clone()),
            memory: memory.arrived.share(),
            ready: VecDeque::new(),
            ready_bytes: 0,
            early: BTreeMap::new(),
            early_bytes: 0,
            next: 0,
            end: None,
            limit: WINDOW.0,
            window: WINDOW.0,
            read: 0,
            done: false,
            cut: false,
        }
    }

    /// Takes a segment; true if there is something new to read. After [`Receiving::forget`] the bytes are dropped.
    pub(super) fn take(&mut self, offset: u64, data: &[u8], fin: bool) -> Result<bool, StreamError> {
        let end = offset.saturating_add(u64::try_from(data.len()).unwrap_or(u64::MAX));
        if end > self.limit {
            return Err(StreamError::BeyondCredit);
        }
        if self.end.is_some_and(|last| end > last || fin && end != last) || fin && end < self.next {
            return Err(StreamError::BeyondEnd);
        }
        if fin {
            self.end = Some(end);
        }
        if self.done || self.cut {
            self.next = if self.done { self.next.max(end) } else { self.next };
            return Ok(false);
        }
        if offset > self.next {
            self.keep(offset, data)?;
            self.cover()?;
            return Ok(false);
        }
        let before = self.next;
        self.append(offset, data);
        while let Some(entry) = self.early.first_entry() {
            if *entry.key() > self.next {
                break;
            }
            let (offset, data) = entry.remove_entry();
            self.early_bytes = self.early_bytes.saturating_sub(data.len());
            self.append(offset, &data);
        }
        self.cover()?;
        Ok(self.next > before || self.end == Some(self.next))
    }

    fn keep(&mut self, offset: u64, data: &[u8]) -> Result<(), StreamError> {
        if self.early.get(&offset).is_some_and(|kept| kept.len() >= data.len()) {
            return Ok(());
        }
        let bytes = self.early_bytes.saturating_add(data.len());
        if self.early.len() >= EARLY_MAX || u64::try_from(bytes).unwrap_or(u64::MAX) > WINDOW.1 {
            return Err(StreamError::TooManyPieces);
        }
        let replaced = self.early.insert(offset, Bytes::copy_from_slice(data));
        self.early_bytes = bytes.saturating_sub(replaced.map_or(0, |old| old.len()));
        Ok(())
    }

    /// What of `data` is new goes to the reader; `offset` is not beyond `next`.
    fn append(&mut self, offset: u64, data: &[u8]) {
        let known = usize::try_from(self.next.saturating_sub(offset)).unwrap_or(usize::MAX);
        let fresh = data.get(known..).unwrap_or_default();
        if !fresh.is_empty() {
            match self.ready.back_mut().filter(|last| fresh.len() < SMALL && last.len() < TOGETHER) {
                Some(last) => last.extend_from_slice(fresh),
                None => self.ready.push_back(BytesMut::from(fresh)),
            }
            self.ready_bytes = self.ready_bytes.saturating_add(fresh.len());
            self.next = self.next.saturating_add(u64::try_from(fresh.len()).unwrap_or(0));
        }
    }

    /// Has its share of the memory follow what it holds. Less always works.
    fn cover(&mut self) -> Result<(), Full> {
        let pieces = self.ready.len().saturating_add(self.early.len()).saturating_mul(PIECE);
        let held = pieces.saturating_add(self.ready_bytes).saturating_add(self.early_bytes);
        let over = self.done || self.cut || self.is_complete();
        let promised = if over || self.window <= WINDOW.0 { 0 } else { promise(self.window) };
        self.memory.resize(held.max(usize::try_from(promised).unwrap_or(usize::MAX)))
    }

    /// Takes `length` bytes that are not packed, once they are there.
    pub(super) fn take_plain(&mut self, length: usize) -> Option<Vec<u8>> {
        if self.ready_bytes < length {
            return None;
        }
        let mut out = Vec::with_capacity(length);
        while out.len() < length {
            let front = self.ready.front_mut()?;
            let part = front.len().min(length.saturating_sub(out.len()));
            out.extend_from_slice(front.get(..part).unwrap_or_default());
            front.advance(part);
            if front.is_empty() {
                self.ready.pop_front();
            }
        }
        self.count_read(length);
        Some(out)
    }

    pub(super) fn peek(&self) -> Option<u8> {
        self.ready.front()?.first().copied()
    }

    fn count_read(&mut self, length: usize) {
        self.ready_bytes = self.ready_bytes.saturating_sub(length);
        self.read = self.read.saturating_add(u64::try_from(length).unwrap_or(0));
    }

    /// Gives back the memory of what was read.
    fn settle(&mut self) {
        let _less_works = self.cover();
    }

    /// Unpacks into `out`.
    pub(super) fn read(&mut self, out: &mut [u8]) -> Result<Read, CodecError> {
        let mut filled = 0;
        loop {
            let before = filled;
            let mut front: &[u8] = self.ready.front().map(AsRef::as_ref).unwrap_or_default();
            let offered = front.len();
            filled = self.decoder.decode(&mut front, out, filled)?;
            let used = offered.saturating_sub(front.len());
            self.count_read(used);
            if let Some(bytes) = self.ready.front_mut() {
                bytes.advance(used);
                if bytes.is_empty() {
                    self.ready.pop_front();
                }
            }
            if used == 0 && filled == before || filled == out.len() {
                break;
            }
        }
        self.settle();
        if filled > 0 {
            return Ok(Read::Data(filled));
        }
        if self.end != Some(self.next) || !self.ready.is_empty() {
            return Ok(Read::Pending);
        }
        if !self.decoder.is_between_chunks() {
            return Err(CodecError::Cut);
        }
        self.forget();
        Ok(Read::End)
    }

    /// A new limit, when a quarter of the window was read since the last one.
    pub(super) fn new_limit(&mut self) -> Option<u64> {
        let wanted = self.read.saturating_add(self.window);
        let due = !self.done
            && !self.cut
            && self.end.is_none()
            && wanted.saturating_sub(self.limit) >= self.window >> CREDIT_SHIFT;
        due.then(|| {
            self.limit = wanted;
            wanted
        })
    }

    /// The sender has more than it may send: it has used the whole window before it heard of a new limit. A reader that
    /// keeps up gets a larger window, as far as there is memory for it.
    pub(super) fn grow(&mut self) {
        let waiting = u64::try_from(self.ready_bytes).unwrap_or(u64::MAX);
        let room = u64::try_from(self.memory.room()).unwrap_or(u64::MAX);
        let affordable = room.saturating_sub(room / ((1 << PROMISE_SHIFT) + 1));
        let window = self.window.saturating_mul(2).min(WINDOW.1).min(affordable);
        if waiting > self.window >> 1 || window <= self.window || self.done || self.cut {
            return;
        }
        let before = std::mem::replace(&mut self.window, window);
        if self.cover().is_err() {
            self.window = before;
        }
    }

    /// Nothing more comes. What has come in order stays to be read: it was said before the reset.
    pub(super) fn cut(&mut self) {
        self.cut = true;
        self.early = BTreeMap::new();
        self.early_bytes = 0;
        self.settle();
    }

    /// Nobody reads any more.
    pub(super) fn forget(&mut self) {
        self.done = true;
        self.ready = VecDeque::new();
        self.ready_bytes = 0;
        self.early = BTreeMap::new();
        self.early_bytes = 0;
        self.decoder.clear();
        self.settle();
    }

    /// Everything that will ever come has come.
    pub(super) fn is_complete(&self) -> bool {
        self.end == Some(self.next)
    }
}

fn promise(window: u64) -> u64 {
    window.saturating_add(window >> PROMISE_SHIFT)
}
