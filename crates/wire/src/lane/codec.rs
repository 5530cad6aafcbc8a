//! How the bytes of a stream are packed: in chunks, compressed where that helps.
//!
//! All compressed chunks of a stream belong to one zstd frame (RFC 8878) that is flushed at the end of every chunk, so
//! that later chunks profit from earlier ones and nothing waits. What fits one segment anyway and what does not shrink
//! goes as it is. A context costs memory on both sides, so the sender ends it when it has not been used for a while.

use std::time::{Duration, Instant};

use zstd_safe::zstd_sys::ZSTD_EndDirective;
use zstd_safe::{CCtx, CParameter, DCtx, DParameter, InBuffer, OutBuffer, SafeResult};

use super::later;
use crate::memory::{Budget, Full, PACKING_CONTEXT, Share, UNPACKING_CONTEXT};

/// Kind and length, in front of each chunk.
const HEADER: usize = 3;
const RAW: u8 = 0;
const COMPRESSED: u8 = 1;
/// The context of the compressed chunks before is not needed any more.
const END: u8 = 2;

/// Bytes packed into one chunk at most: compressed or not, their length fits the header.
pub(super) const CHUNK_MAX: usize = 48 * 1024;
/// What fits a segment of the smallest size is not worth a context.
const WORTH_IT: usize = 900;
/// Beyond level 3 a byte saved costs more time than the agent needs to carry it.
const LEVEL: i32 = 3;
/// 128 KiB: the most that a receiver must remember.
const WINDOW_LOG: u32 = 17;
/// Half of what the level would take, for one part in two hundred of what is saved.
const TABLES_LOG: (u32, u32) = (16, 15);
/// A context that was not used for so long is ended.
const CONTEXT_IDLE: Duration = Duration::from_secs(5);
/// After data that did not shrink so much goes as it is before compression is tried again, and at most so much.
const SKIP: (usize, usize) = (256 * 1024, 8 << 20);

/// A stream that cannot be unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    #[error("a chunk has the unknown kind {0}")]
    UnknownKind(u8),
    #[error("a chunk has {0} bytes, more than fit")]
    TooLong(usize),
    #[error("compressed data is broken: {0}")]
    Zstd(&'static str),
    #[error("the stream ends in the middle of a chunk")]
    Cut,
    #[error("there is no memory to unpack it")]
    OutOfMemory,
    #[error("{0}")]
    Full(#[from] Full),
}

/// A context with its share of what all contexts may have.
struct Context<C> {
    zstd: C,
    _memory: Share,
}

/// Packs one direction of one stream.
pub(super) struct Encoder {
    memory: Budget,
    pending: Vec<u8>,
    context: Option<Context<CCtx<'static>>>,
    used_at: Option<Instant>,
    /// So much more goes as it is.
    skip: usize,
    /// And so much after the next failure.
    next_skip: usize,
}

impl Encoder {
    pub(super) fn new(memory: Budget) -> Self {
        Self { memory, pending: Vec::new(), context: None, used_at: None, skip: 0, next_skip: 0 }
    }

    /// Forgets what waits and gives its memory back: nothing more is packed.
    pub(super) fn clear(&mut self) {
        self.pending = Vec::new();
        self.context = None;
    }

    /// Takes as much as fits the current chunk.
    pub(super) fn push(&mut self, data: &[u8]) -> usize {
        let length = data.len().min(CHUNK_MAX.saturating_sub(self.pending.len()));
        self.pending.extend_from_slice(data.get(..length).unwrap_or_default());
        length
    }

    pub(super) fn is_full(&self) -> bool {
        self.pending.len() >= CHUNK_MAX
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    pub(super) fn has_context(&self) -> bool {
        self.context.is_some()
    }

    /// When the context is to be ended.
    pub(super) fn idle_at(&self) -> Option<Instant> {
        self.context.as_ref().and(self.used_at).map(|at| later(at, CONTEXT_IDLE))
    }

    /// Appends the pending bytes as a chunk. `may_open`: a new context is allowed.
    pub(super) fn flush(&mut self, now: Instant, may_open: bool, out: &mut Vec<u8>) {
        // The buffer goes with its bytes: most streams are idle most of the time.
        let pending = std::mem::take(&mut self.pending);
        if pending.is_empty() {
            return;
        }
        if self.skip > 0 {
            self.skip = self.skip.saturating_sub(pending.len());
        } else if pending.len() > WORTH_IT && (may_open || self.context.is_some()) {
            if self.compress(now, &pending, out) {
                return;
            }
            self.end(out);
        }
        chunk(RAW, &pending, out);
    }

    /// Ends the context, if there is one.
    pub(super) fn end(&mut self, out: &mut Vec<u8>) {
        if self.context.take().is_some() {
            chunk(END, &[], out);
        }
    }

    /// False: there is no memory for it.
    fn compress(&mut self, now: Instant, data: &[u8], out: &mut Vec<u8>) -> bool {
        let Some(context) = self.context.take().or_else(|| open(&self.memory)) else { return false };
        let context = self.context.insert(context);
        let mut packed = Vec::with_capacity(zstd_safe::compress_bound(data.len()));
        if flush(&mut context.zstd, data, &mut packed).is_err() || u16::try_from(packed.len()).is_err() {
            return false;
        }
        chunk(COMPRESSED, &packed, out);
        self.used_at = Some(now);
        // Saves less than one part in sixteen: what follows is most likely of the same kind.
        if packed.len() > data.len().saturating_sub(data.len() >> 4) {
            self.skip = self.next_skip.clamp(SKIP.0, SKIP.1);
            self.next_skip = self.skip.saturating_mul(2);
            self.end(out);
        } else {
            self.next_skip = 0;
        }
        true
    }
}

fn open(memory: &Budget) -> Option<Context<CCtx<'static>>> {
    let memory = memory.take(PACKING_CONTEXT).ok()?;
    let mut context = CCtx::try_create()?;
    for parameter in [
        CParameter::CompressionLevel(LEVEL),
        CParameter::WindowLog(WINDOW_LOG),
        CParameter::HashLog(TABLES_LOG.0),
        CParameter::ChainLog(TABLES_LOG.1),
    ] {
        context.set_parameter(parameter).ok()?;
    }
    Some(Context { zstd: context, _memory: memory })
}

fn flush(context: &mut CCtx<'static>, data: &[u8], packed: &mut Vec<u8>) -> SafeResult {
    let mut input = InBuffer::around(data);
    loop {
        let filled = packed.len();
        let mut output = OutBuffer::around_pos(&mut *packed, filled);
        let left = context.compress_stream2(&mut output, &mut input, ZSTD_EndDirective::ZSTD_e_flush)?;
        if left == 0 && input.pos() == data.len() {
            return Ok(0);
        }
        packed.reserve(left.max(1024));
    }
}

fn chunk(kind: u8, data: &[u8], out: &mut Vec<u8>) {
    let [high, low] = u16::try_from(data.len()).unwrap_or(0).to_be_bytes();
    out.reserve(data.len().saturating_add(HEADER));
    out.extend_from_slice(&[kind, high, low]);
    out.extend_from_slice(data);
}

/// Where in a chunk the decoder is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Header {
        bytes: [u8; HEADER],
        have: usize,
    },
    Raw {
        left: usize,
    },
    /// `holds`: the context may have more than the reader had room for.
    Compressed {
        left: usize,
        holds: bool,
    },
}

const START: Place = Place::Header { bytes: [0; HEADER], have: 0 };

/// Unpacks one direction of one stream, into buffers of the reader's size: a small chunk that would become large is
/// read in as many steps as the reader wants.
pub(super) struct Decoder {
    memory: Budget,
    place: Place,
    context: Option<Context<DCtx<'static>>>,
}

impl Decoder {
    pub(super) fn new(memory: Budget) -> Self {
        Self { memory, place: START, context: None }
    }

    /// Gives its memory back: nothing more is unpacked.
    pub(super) fn clear(&mut self) {
        (self.place, self.context) = (START, None);
    }

    /// Whether the stream may end here.
    pub(super) fn is_between_chunks(&self) -> bool {
        self.place == START
    }

    /// Moves bytes from the front of `input` to `out`, from `filled` on; returns how far `out` is filled then. It stops
    /// when `out` is full or `input` is empty.
    pub(super) fn decode(&mut self, input: &mut &[u8], out: &mut [u8], mut filled: usize) -> Result<usize, CodecError> {
        while filled < out.len() {
            match &mut self.place {
                Place::Header { bytes, have } => {
                    let Some((byte, rest)) = input.split_first() else { break };
                    *input = rest;
                    if let Some(slot) = bytes.get_mut(*have) {
                        *slot = *byte;
                    }
                    *have = have.saturating_add(1);
                    if *have == HEADER {
                        let bytes = *bytes;
                        self.begin(bytes)?;
                    }
                }
                Place::Raw { left } => {
                    let room = out.get_mut(filled..).unwrap_or_default();
                    let length = (*left).min(room.len()).min(input.len());
                    if length == 0 {
                        break;
                    }
                    let (front, rest) = input.split_at_checked(length).unwrap_or_default();
                    room.get_mut(..length).unwrap_or_default().copy_from_slice(front);
                    *input = rest;
                    filled = filled.saturating_add(length);
                    *left = left.saturating_sub(length);
                    if *left == 0 {
                        self.place = START;
                    }
                }
                Place::Compressed { left, holds } => {
                    let offered = input.get(..(*left).min(input.len())).unwrap_or_default();
                    if offered.is_empty() && !*holds {
                        break;
                    }
                    let context = match &mut self.context {
                        Some(context) => context,
                        none => none.insert(open_decoder(&self.memory)?),
                    };
                    let mut from = InBuffer::around(offered);
                    let mut to = OutBuffer::around_pos(&mut *out, filled);
                    context
                        .zstd
                        .decompress_stream(&mut to, &mut from)
                        .map_err(|code| CodecError::Zstd(zstd_safe::get_error_name(code)))?;
                    let (used, position) = (from.pos(), to.pos());
                    *input = input.get(used..).unwrap_or_default();
                    *left = left.saturating_sub(used);
                    filled = position;
                    *holds = filled == out.len();
                    if *left == 0 && !*holds {
                        self.place = START;
                    }
                }
            }
        }
        Ok(filled)
    }

    fn begin(&mut self, [kind, high, low]: [u8; HEADER]) -> Result<(), CodecError> {
        let left = usize::from(u16::from_be_bytes([high, low]));
        self.place = match kind {
            RAW | COMPRESSED if left == 0 => START,
            RAW => Place::Raw { left },
            COMPRESSED => Place::Compressed { left, holds: false },
            END if left > 0 => return Err(CodecError::TooLong(left)),
            END => {
                self.context = None;
                START
            }
            kind => return Err(CodecError::UnknownKind(kind)),
        };
        Ok(())
    }
}

fn open_decoder(memory: &Budget) -> Result<Context<DCtx<'static>>, CodecError> {
    let memory = memory.take(UNPACKING_CONTEXT)?;
    let mut context = DCtx::try_create().ok_or(CodecError::OutOfMemory)?;
    context.set_parameter(DParameter::WindowLogMax(WINDOW_LOG)).map_err(|_| CodecError::OutOfMemory)?;
    Ok(Context { zstd: context, _memory: memory })
}

#[cfg(test)]
mod tests;
