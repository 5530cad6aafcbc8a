//! The binary message: a header of 120 bytes, then the payload.
//!
//! Layout as in the agent's `agent/session/contracts/messageparser.go` and the plugin's `src/message/messageparser.go`.
//! All integers are big endian; the digest is SHA-256 of the payload.

use std::fmt;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use thiserror::Error;

/// The value of the HeaderLength field: the offset of PayloadLength, not the length of the header.
pub const HEADER_LENGTH: u32 = 116;
/// Bytes before the payload.
pub const HEADER_SIZE: usize = 120;
/// The only schema version there is.
pub const SCHEMA_VERSION: u32 = 1;
/// Flag bit of a first message.
pub const FLAG_SYN: u64 = 1;
/// Flag bit of a last message.
pub const FLAG_FIN: u64 = 2;

const TYPE_SIZE: usize = 32;

/// A message id: a UUID, whose two halves are swapped on the wire (only there).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct MessageId(pub [u8; 16]);

impl MessageId {
    fn swapped(self) -> [u8; 16] {
        let mut halves = self.0;
        halves.rotate_left(8);
        halves
    }
}

impl fmt::Display for MessageId {
    /// Lower case with hyphens, as in the JSON of an acknowledgement.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let mut text = String::with_capacity(36);
        for (position, byte) in self.0.iter().enumerate() {
            if matches!(position, 4 | 6 | 8 | 10) {
                text.push('-');
            }
            for nibble in [byte >> 4, byte & 15] {
                text.push(HEX.get(usize::from(nibble)).copied().map_or('0', char::from));
            }
        }
        f.write_str(&text)
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What kind of message it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageType {
    Acknowledge,
    AgentSessionState,
    ChannelClosed,
    /// Client → agent, sequenced.
    InputStreamData,
    /// A type that this client does not know; its 32 bytes as they came.
    Other([u8; TYPE_SIZE]),
    /// Agent → client, sequenced.
    OutputStreamData,
    PausePublication,
    StartPublication,
}

impl MessageType {
    const KNOWN: [(&'static str, Self); 7] = [
        ("output_stream_data", Self::OutputStreamData),
        ("acknowledge", Self::Acknowledge),
        ("input_stream_data", Self::InputStreamData),
        ("channel_closed", Self::ChannelClosed),
        ("start_publication", Self::StartPublication),
        ("pause_publication", Self::PausePublication),
        ("agent_session_state", Self::AgentSessionState),
    ];

    /// The name on the wire; `None` for a type that this client does not know.
    pub fn name(self) -> Option<&'static str> {
        Self::KNOWN.iter().find(|(_, known)| *known == self).map(|(name, _)| *name)
    }

    fn decode(field: &[u8; TYPE_SIZE]) -> Self {
        let text = field.as_slice().trim_ascii();
        let text = match text.iter().position(|byte| *byte == 0) {
            Some(end) => text.get(..end).unwrap_or_default().trim_ascii(),
            None => text,
        };
        Self::KNOWN.iter().find(|(name, _)| name.as_bytes() == text).map_or(Self::Other(*field), |(_, known)| *known)
    }

    fn encode(self) -> [u8; TYPE_SIZE] {
        let mut field = [b' '; TYPE_SIZE];
        match (self, self.name()) {
            (Self::Other(bytes), _) => field = bytes,
            (_, name) => {
                for (to, from) in field.iter_mut().zip(name.unwrap_or_default().bytes()) {
                    *to = from;
                }
            }
        }
        field
    }
}

/// What the payload of a data message is: the PayloadType field, 0 for everything that is not data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PayloadType(pub u32);

impl PayloadType {
    pub const NONE: Self = Self(0);
    /// Bytes of the tunnel.
    pub const OUTPUT: Self = Self(1);
    pub const PARAMETER: Self = Self(4);
    pub const HANDSHAKE_REQUEST: Self = Self(5);
    pub const HANDSHAKE_RESPONSE: Self = Self(6);
    pub const HANDSHAKE_COMPLETE: Self = Self(7);
    /// A big-endian u32, [`super::payload::Flag`].
    pub const FLAG: Self = Self(10);
}

/// Why a frame is not a message. Such a frame is dropped without an acknowledgement; the sender sends it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum DecodeError {
    #[error("the message has no date")]
    Date,
    #[error("the payload does not match its digest")]
    Digest,
    #[error("the header length {0} does not fit the frame")]
    HeaderLength(u32),
    #[error("the payload length {claimed} is not the {actual} bytes of the frame")]
    PayloadLength { claimed: u32, actual: usize },
    #[error("the frame of {0} bytes is shorter than its header")]
    Truncated(usize),
}

/// One message of the data channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub message_type: MessageType,
    pub schema_version: u32,
    /// Unix time in milliseconds. Agent and client drop a message of 0.
    pub created_ms: u64,
    pub sequence: i64,
    /// [`FLAG_SYN`], [`FLAG_FIN`]. Nobody acts on them.
    pub flags: u64,
    pub id: MessageId,
    pub payload_type: PayloadType,
    pub payload: Bytes,
}

impl Message {
    /// Reads one frame and checks the digest of its payload.
    ///
    /// `start_publication` and `pause_publication` come from the gateway, possibly with an almost empty header: of them
    /// only the type is read.
    ///
    /// # Errors
    /// [`DecodeError`]: the frame is to be dropped.
    pub fn decode(frame: Bytes) -> Result<Self, DecodeError> {
        let (message, digest) = Self::parse(frame)?;
        match digest {
            Some(digest) if !message.payload.is_empty() && Sha256::digest(&message.payload).as_slice() != digest => {
                Err(DecodeError::Digest)
            }
            _ => Ok(message),
        }
    }

    /// Reads one frame as the agent does, which does not look at the digest.
    ///
    /// # Errors
    /// [`DecodeError`]: the frame is to be dropped.
    pub fn decode_unverified(frame: Bytes) -> Result<Self, DecodeError> {
        Self::parse(frame).map(|(message, _)| message)
    }

    /// Appends the frame; the digest is computed here.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let digest: [u8; 32] = Sha256::digest(&self.payload).into();
        out.reserve(HEADER_SIZE.saturating_add(self.payload.len()));
        out.extend_from_slice(&HEADER_LENGTH.to_be_bytes());
        out.extend_from_slice(&self.message_type.encode());
        out.extend_from_slice(&self.schema_version.to_be_bytes());
        out.extend_from_slice(&self.created_ms.to_be_bytes());
        out.extend_from_slice(&self.sequence.to_be_bytes());
        out.extend_from_slice(&self.flags.to_be_bytes());
        out.extend_from_slice(&self.id.swapped());
        out.extend_from_slice(&digest);
        out.extend_from_slice(&self.payload_type.0.to_be_bytes());
        out.extend_from_slice(&u32::try_from(self.payload.len()).unwrap_or(u32::MAX).to_be_bytes());
        out.extend_from_slice(&self.payload);
    }

    /// The frame as one buffer.
    pub fn to_frame(&self) -> Bytes {
        let mut out = Vec::new();
        self.encode(&mut out);
        out.into()
    }

    fn parse(frame: Bytes) -> Result<(Self, Option<[u8; 32]>), DecodeError> {
        let size = frame.len();
        let truncated = DecodeError::Truncated(size);
        let mut fields = Fields(&frame);
        let header_length = u32::from_be_bytes(fields.take().ok_or(truncated)?);
        let field = fields.take::<TYPE_SIZE>().ok_or(truncated)?;
        let message_type = MessageType::decode(&field);
        if matches!(message_type, MessageType::PausePublication | MessageType::StartPublication) {
            return Ok((Self::of_gateway(message_type), None));
        }
        let message = Self {
            message_type,
            schema_version: u32::from_be_bytes(fields.take().ok_or(truncated)?),
            created_ms: u64::from_be_bytes(fields.take().ok_or(truncated)?),
            sequence: i64::from_be_bytes(fields.take().ok_or(truncated)?),
            flags: u64::from_be_bytes(fields.take().ok_or(truncated)?),
            id: MessageId(MessageId(fields.take().ok_or(truncated)?).swapped()),
            payload_type: PayloadType::NONE,
            payload: Bytes::new(),
        };
        if message.created_ms == 0 {
            return Err(DecodeError::Date);
        }
        let digest = fields.take::<32>().ok_or(truncated)?;
        let payload_type = PayloadType(u32::from_be_bytes(fields.take().ok_or(truncated)?));
        let claimed = u32::from_be_bytes(fields.take().ok_or(truncated)?);
        let start = usize::try_from(header_length).ok().and_then(|length| length.checked_add(4));
        let start = start.filter(|start| (HEADER_SIZE..=size).contains(start));
        let start = start.ok_or(DecodeError::HeaderLength(header_length))?;
        let payload = frame.slice(start..);
        if usize::try_from(claimed) != Ok(payload.len()) {
            return Err(DecodeError::PayloadLength { claimed, actual: payload.len() });
        }
        Ok((Self { payload_type, payload, ..message }, Some(digest)))
    }

    fn of_gateway(message_type: MessageType) -> Self {
        Self {
            message_type,
            schema_version: SCHEMA_VERSION,
            created_ms: 0,
            sequence: 0,
            flags: 0,
            id: MessageId([0; 16]),
            payload_type: PayloadType::NONE,
            payload: Bytes::new(),
        }
    }
}

/// Cuts fixed fields off the front.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*field)
    }
}

#[cfg(test)]
mod tests {
    use super::super::vectors;
    use super::*;

    #[test]
    fn recorded_frames_decode_and_encode_byte_for_byte() {
        for record in vectors::all() {
            let message = Message::decode(record.frame.clone()).unwrap();
            assert_eq!(message.message_type.name(), Some(record.message_type.as_str()));
            assert_eq!(message.sequence, record.sequence);
            assert_eq!(message.flags, record.flags);
            assert_eq!(message.id.to_string(), record.id);
            assert_eq!(message.payload_type.0, record.payload_type);
            assert_eq!(message.payload.len(), record.payload_length);
            assert_eq!(message.schema_version, 1);
            assert_eq!(message.to_frame(), record.frame);
        }
    }

    #[test]
    fn every_prefix_of_every_recorded_frame_is_an_error() {
        for record in vectors::all() {
            for end in 0..record.frame.len() {
                Message::decode(record.frame.slice(..end)).unwrap_err();
            }
        }
    }

    #[test]
    fn a_changed_byte_in_the_payload_is_found_by_the_digest() {
        for record in vectors::all() {
            let mut frame = record.frame.to_vec();
            *frame.last_mut().unwrap() ^= 1;
            assert_eq!(Message::decode(frame.clone().into()), Err(DecodeError::Digest));
            Message::decode_unverified(frame.into()).unwrap();
        }
    }

    #[test]
    fn swaps_the_halves_of_the_message_id() {
        let id = MessageId(*b"\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff");
        assert_eq!(id.to_string(), "00112233-4455-6677-8899-aabbccddeeff");
        assert_eq!(id.swapped(), *b"\x88\x99\xaa\xbb\xcc\xdd\xee\xff\x00\x11\x22\x33\x44\x55\x66\x77");
    }

    #[test]
    fn a_header_length_outside_the_frame_is_an_error() {
        let whole = vectors::all().remove(0).frame;
        for length in [0_u32, 1, 115, 0x7fff_ffff, u32::MAX] {
            let mut frame = whole.to_vec();
            frame[..4].copy_from_slice(&length.to_be_bytes());
            assert_eq!(Message::decode(frame.into()), Err(DecodeError::HeaderLength(length)));
        }
    }

    #[test]
    fn without_a_date_it_is_an_error() {
        let mut frame = vectors::all().remove(0).frame.to_vec();
        frame[40..48].fill(0);
        assert_eq!(Message::decode(frame.into()), Err(DecodeError::Date));
    }

    #[test]
    fn pause_and_start_need_nothing_but_their_type() {
        for (name, expected) in
            [("pause_publication", MessageType::PausePublication), ("start_publication", MessageType::StartPublication)]
        {
            for padding in [b' ', 0] {
                let mut frame = vec![0; 4];
                frame.extend_from_slice(name.as_bytes());
                frame.resize(36, padding);
                assert_eq!(Message::decode(frame.into()).unwrap().message_type, expected);
            }
        }
    }

    #[test]
    fn an_unknown_type_keeps_its_bytes() {
        let mut frame = vectors::all().remove(0).frame.to_vec();
        frame[4..8].copy_from_slice(b"what");
        let message = Message::decode(frame.clone().into()).unwrap();
        assert_eq!(message.message_type.name(), None);
        assert_eq!(message.to_frame(), frame);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_a_message_or_an_error(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
            if let Ok(message) = Message::decode_unverified(bytes.into()) {
                let again = Message::decode(message.to_frame()).unwrap();
                proptest::prop_assert_eq!(again.payload, message.payload);
            }
        }
    }
}
