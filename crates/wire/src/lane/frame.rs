//! The frames of a lane, and nothing of their meaning. The format is described in `docs/lane-protocol.md`.
//!
//! Numbers are variable-length integers as in RFC 9000, section 16.

/// Data in one segment at most.
pub const SEGMENT_MAX: usize = 16 * 1024;
/// Why a stream was reset, in a sentence at most this long.
pub const REASON_MAX: usize = 512;
/// The largest number that fits (RFC 9000, section 16).
pub const NUMBER_MAX: u64 = (1 << 62) - 1;
/// Type, three numbers and the length of a segment at most.
pub const SEGMENT_OVERHEAD: usize = 1 + 3 * 8;

const ACK: u8 = 0x01;
const CREDIT: u8 = 0x02;
const BLOCKED: u8 = 0x03;
const RESET: u8 = 0x04;
const STOP: u8 = 0x05;
const GOODBYE: u8 = 0x06;
const ASK: u8 = 0x07;
const SEGMENT: u8 = 0x10;
const SEGMENT_FIN: u8 = 0x01;
const SEGMENT_ASKS: u8 = 0x02;

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame<'a> {
    /// So many bytes of this lane have arrived.
    Ack {
        received: u64,
    },
    /// The sender wants an acknowledgement at once.
    Ask,
    /// The stream's bytes up to `limit` may be sent.
    Credit {
        stream: u64,
        limit: u64,
    },
    /// The sender has more than `limit` allows.
    Blocked {
        stream: u64,
        limit: u64,
    },
    /// Both directions of the stream are over, and not at their ends.
    Reset {
        stream: u64,
        reason: &'a str,
    },
    /// Nobody reads the stream any more.
    Stop {
        stream: u64,
    },
    /// The link is over.
    Goodbye,
    Segment(Segment<'a>),
}

/// Bytes of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment<'a> {
    pub stream: u64,
    /// Where `data` stands in the stream.
    pub offset: u64,
    /// `data` ends the stream.
    pub fin: bool,
    /// The sender wants an acknowledgement at once.
    pub asks: bool,
    pub data: &'a [u8],
}

/// A lane that cannot be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("a frame has the unknown type {0:#04x}")]
    UnknownType(u8),
    #[error("a segment has {0} bytes, more than {SEGMENT_MAX}")]
    SegmentTooLong(u64),
    #[error("a reason has {0} bytes, more than {REASON_MAX}")]
    ReasonTooLong(u64),
    #[error("a reason is not UTF-8")]
    BadReason,
}

/// Reads from the front; `None`: more bytes are needed.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (front, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(front)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn number(&mut self) -> Option<u64> {
        let first = self.byte()?;
        let more = (1_usize << (first >> 6)).saturating_sub(1);
        let front = u64::from(first & 0x3f);
        Some(self.take(more)?.iter().fold(front, |value, byte| (value << 8) | u64::from(*byte)))
    }
}

impl<'a> Frame<'a> {
    /// The frame at the start of `bytes` and its length; `None`: more bytes are needed.
    ///
    /// # Errors
    /// [`FrameError`]: nothing after this point of the lane can be understood.
    pub fn decode(bytes: &'a [u8]) -> Result<Option<(Self, usize)>, FrameError> {
        let mut reader = Reader { rest: bytes };
        let frame = Self::read(&mut reader)?;
        Ok(frame.map(|frame| (frame, bytes.len().saturating_sub(reader.rest.len()))))
    }

    fn read(reader: &mut Reader<'a>) -> Result<Option<Self>, FrameError> {
        let Some(kind) = reader.byte() else { return Ok(None) };
        let two = |reader: &mut Reader<'a>| Some((reader.number()?, reader.number()?));
        Ok(match kind {
            ACK => reader.number().map(|received| Self::Ack { received }),
            CREDIT => two(reader).map(|(stream, limit)| Self::Credit { stream, limit }),
            BLOCKED => two(reader).map(|(stream, limit)| Self::Blocked { stream, limit }),
            RESET => {
                let Some((stream, length)) = two(reader) else { return Ok(None) };
                let length = bounded(length, REASON_MAX).ok_or(FrameError::ReasonTooLong(length))?;
                let Some(reason) = reader.take(length) else { return Ok(None) };
                let reason = std::str::from_utf8(reason).map_err(|_| FrameError::BadReason)?;
                Some(Self::Reset { stream, reason })
            }
            STOP => reader.number().map(|stream| Self::Stop { stream }),
            GOODBYE => Some(Self::Goodbye),
            ASK => Some(Self::Ask),
            _ if kind & !(SEGMENT_FIN | SEGMENT_ASKS) == SEGMENT => {
                let Some((stream, offset)) = two(reader) else { return Ok(None) };
                let Some(length) = reader.number() else { return Ok(None) };
                let length = bounded(length, SEGMENT_MAX).ok_or(FrameError::SegmentTooLong(length))?;
                let Some(data) = reader.take(length) else { return Ok(None) };
                let (fin, asks) = (kind & SEGMENT_FIN != 0, kind & SEGMENT_ASKS != 0);
                Some(Self::Segment(Segment { stream, offset, fin, asks, data }))
            }
            _ => return Err(FrameError::UnknownType(kind)),
        })
    }

    /// Appends the frame. A reason that is too long is cut.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Ack { received } => {
                out.push(ACK);
                number(*received, out);
            }
            Self::Credit { stream, limit } => {
                out.push(CREDIT);
                number(*stream, out);
                number(*limit, out);
            }
            Self::Blocked { stream, limit } => {
                out.push(BLOCKED);
                number(*stream, out);
                number(*limit, out);
            }
            Self::Reset { stream, reason } => {
                let length = reason.floor_char_boundary(REASON_MAX);
                out.push(RESET);
                number(*stream, out);
                number(u64::try_from(length).unwrap_or(0), out);
                out.extend_from_slice(reason.as_bytes().get(..length).unwrap_or_default());
            }
            Self::Stop { stream } => {
                out.push(STOP);
                number(*stream, out);
            }
            Self::Goodbye => out.push(GOODBYE),
            Self::Ask => out.push(ASK),
            Self::Segment(segment) => {
                let fin = if segment.fin { SEGMENT_FIN } else { 0 };
                let asks = if segment.asks { SEGMENT_ASKS } else { 0 };
                out.push(SEGMENT | fin | asks);
                number(segment.stream, out);
                number(segment.offset, out);
                number(u64::try_from(segment.data.len()).unwrap_or(0), out);
                out.extend_from_slice(segment.data);
            }
        }
    }
}

fn bounded(length: u64, max: usize) -> Option<usize> {
    usize::try_from(length).ok().filter(|length| *length <= max)
}

/// Appends `value`, which is at most [`NUMBER_MAX`], in as few bytes as hold it.
fn number(value: u64, out: &mut Vec<u8>) {
    let value = value.min(NUMBER_MAX);
    let [a, b, c, d, e, f, g, h] = value.to_be_bytes();
    match value {
        0..=0x3f => out.push(h),
        0x40..=0x3fff => out.extend_from_slice(&[0x40 | g, h]),
        0x4000..=0x3fff_ffff => out.extend_from_slice(&[0x80 | e, f, g, h]),
        _ => out.extend_from_slice(&[0xc0 | a, b, c, d, e, f, g, h]),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn numbers() -> impl Strategy<Value = u64> {
        prop_oneof![0..100_u64, 0..40_000_u64, 0..=NUMBER_MAX]
    }

    fn round_trip(frame: &Frame<'_>) {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        for end in 0..bytes.len() {
            assert_eq!(Frame::decode(&bytes[..end]), Ok(None), "{frame:?} after {end} of {} bytes", bytes.len());
        }
        let length = bytes.len();
        bytes.extend_from_slice(b"more");
        assert_eq!(Frame::decode(&bytes), Ok(Some((frame.clone(), length))));
    }

    proptest! {
        #[test]
        fn frames_come_back_and_every_prefix_wants_more(
            (a, b) in (numbers(), numbers()),
            (fin, asks) in any::<(bool, bool)>(),
            data in proptest::collection::vec(any::<u8>(), 0..300),
            reason in "\\PC{0,100}",
        ) {
            round_trip(&Frame::Ack { received: a });
            round_trip(&Frame::Credit { stream: a, limit: b });
            round_trip(&Frame::Blocked { stream: a, limit: b });
            round_trip(&Frame::Reset { stream: a, reason: &reason });
            round_trip(&Frame::Stop { stream: a });
            round_trip(&Frame::Goodbye);
            round_trip(&Frame::Ask);
            round_trip(&Frame::Segment(Segment { stream: a, offset: b, fin, asks, data: &data }));
        }

        #[test]
        fn any_bytes_are_a_frame_an_error_or_too_few(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(Some((_, used))) = Frame::decode(&bytes) {
                prop_assert!(used >= 1 && used <= bytes.len());
            }
        }
    }

    #[test]
    fn numbers_have_the_lengths_of_the_rfc() {
        // RFC 9000, appendix A.1.
        for (value, wanted) in [
            (37, vec![0x25]),
            (15_293, vec![0x7b, 0xbd]),
            (494_878_333, vec![0x9d, 0x7f, 0x3e, 0x7d]),
            (151_288_809_941_952_652, vec![0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c]),
        ] {
            let mut bytes = Vec::new();
            number(value, &mut bytes);
            assert_eq!(bytes, wanted);
        }
    }

    #[test]
    fn a_length_is_refused_before_its_bytes_are_waited_for() {
        let mut bytes = vec![SEGMENT, 1, 0];
        number(16_385, &mut bytes);
        assert_eq!(Frame::decode(&bytes), Err(FrameError::SegmentTooLong(16_385)));
        let mut bytes = vec![RESET, 1];
        number(513, &mut bytes);
        assert_eq!(Frame::decode(&bytes), Err(FrameError::ReasonTooLong(513)));
        assert_eq!(Frame::decode(&[0]), Err(FrameError::UnknownType(0)));
        assert_eq!(Frame::decode(&[RESET, 1, 1, 0xff]), Err(FrameError::BadReason));
    }

    #[test]
    fn a_reason_is_cut_between_characters() {
        let long = "ä".repeat(400);
        let mut bytes = Vec::new();
        Frame::Reset { stream: 1, reason: &long }.encode(&mut bytes);
        let Ok(Some((Frame::Reset { reason, .. }, _))) = Frame::decode(&bytes) else { panic!("{bytes:?}") };
        assert_eq!(reason.len(), 512);
    }
}
