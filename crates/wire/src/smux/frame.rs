//! The smux frame: eight bytes of header, then data. Integers are little endian.
//!
//! As in xtaci/smux `frame.go`: version 1, commands SYN, FIN, PSH, NOP.

use bytes::Bytes;
use thiserror::Error;

/// The only version that the agent speaks.
pub const VERSION: u8 = 1;
/// Bytes before the data.
pub const HEADER_SIZE: usize = 8;
/// The most data the agent puts into one frame (`MaxFrameSize` of the default configuration).
pub const MAX_AGENT_DATA: usize = 32 * 1024;

/// A whole keepalive frame.
pub const NOP: [u8; HEADER_SIZE] = [VERSION, 3, 0, 0, 0, 0, 0, 0];

/// What a frame is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Closes both directions of the stream.
    Fin,
    /// Keepalive, on stream 0.
    Nop,
    /// Data.
    Psh,
    /// Opens the stream.
    Syn,
}

impl Command {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => Self::Syn,
            1 => Self::Fin,
            2 => Self::Psh,
            3 => Self::Nop,
            _ => return None,
        })
    }

    fn byte(self) -> u8 {
        match self {
            Self::Syn => 0,
            Self::Fin => 1,
            Self::Psh => 2,
            Self::Nop => 3,
        }
    }
}

/// Why bytes are no frames. There is no way back into step: the smux connection is dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum FrameError {
    #[error("smux command {0} is not one of version 1")]
    Command(u8),
    #[error("a smux frame of command {command:?} carries {length} bytes of data")]
    Data { command: Command, length: u16 },
    #[error("smux version {0} instead of 1")]
    Version(u8),
}

/// The first eight bytes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub command: Command,
    /// Bytes of data that follow; 0 unless the command is [`Command::Psh`].
    pub length: u16,
    pub stream: u32,
}

impl Header {
    /// `Ok(None)`: fewer than [`HEADER_SIZE`] bytes, and no mistake in them yet.
    ///
    /// # Errors
    /// [`FrameError`]: the smux connection is dead.
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>, FrameError> {
        if let Some(version) = bytes.first().filter(|version| **version != VERSION) {
            return Err(FrameError::Version(*version));
        }
        let Some((&[_, command, low, high, a, b, c, d], _)) = bytes.split_first_chunk::<HEADER_SIZE>() else {
            return Ok(None);
        };
        let command = Command::from_byte(command).ok_or(FrameError::Command(command))?;
        let length = u16::from_le_bytes([low, high]);
        if length != 0 && command != Command::Psh {
            return Err(FrameError::Data { command, length });
        }
        Ok(Some(Self { command, length, stream: u32::from_le_bytes([a, b, c, d]) }))
    }

    pub fn encode(self) -> [u8; HEADER_SIZE] {
        let [low, high] = self.length.to_le_bytes();
        let [a, b, c, d] = self.stream.to_le_bytes();
        [VERSION, self.command.byte(), low, high, a, b, c, d]
    }
}

/// A whole frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub command: Command,
    pub stream: u32,
    /// At most 65,535 bytes.
    pub data: Bytes,
}

impl Frame {
    /// The frame at the start of `bytes` and how many of them it takes; `Ok(None)`: need more.
    ///
    /// # Errors
    /// [`FrameError`]: the smux connection is dead.
    pub fn decode(bytes: &[u8]) -> Result<Option<(Self, usize)>, FrameError> {
        let Some(header) = Header::decode(bytes)? else { return Ok(None) };
        let end = HEADER_SIZE.saturating_add(usize::from(header.length));
        let Some(data) = bytes.get(HEADER_SIZE..end) else { return Ok(None) };
        Ok(Some((Self { command: header.command, stream: header.stream, data: Bytes::copy_from_slice(data) }, end)))
    }

    /// Appends the frame, or several where the data is longer than one can carry.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut rest = self.data.as_ref();
        loop {
            let (now, later) = rest.split_at(rest.len().min(usize::from(u16::MAX)));
            let length = u16::try_from(now.len()).unwrap_or(u16::MAX);
            out.extend_from_slice(&Header { command: self.command, length, stream: self.stream }.encode());
            out.extend_from_slice(now);
            rest = later;
            if rest.is_empty() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ssm::message::{Message, PayloadType};
    use crate::ssm::vectors;

    /// The smux bytes of the recordings, one buffer per recording and direction.
    fn recorded() -> Vec<Vec<u8>> {
        let mut streams = vec![Vec::new(); 4];
        let first = vectors::port_session().len();
        for (number, record) in vectors::all().into_iter().enumerate() {
            let stream = usize::from(number >= first) * 2 + usize::from(record.from_agent);
            let message = Message::decode(record.frame).unwrap();
            if message.payload_type == PayloadType::OUTPUT {
                streams[stream].extend_from_slice(&message.payload);
            }
        }
        assert!(streams.iter().all(|stream| !stream.is_empty()));
        streams
    }

    #[test]
    fn recorded_frames_decode_and_encode_byte_for_byte() {
        let mut commands = Vec::new();
        for bytes in recorded() {
            let (mut rest, mut again) = (bytes.as_slice(), Vec::new());
            while let Some((frame, used)) = Frame::decode(rest).unwrap() {
                assert_eq!(frame.stream, 3);
                frame.encode(&mut again);
                commands.push(frame.command);
                rest = &rest[used..];
            }
            assert!(rest.is_empty());
            assert_eq!(again, bytes);
        }
        use Command::{Fin, Psh, Syn};
        assert_eq!(commands, [Syn, Psh, Fin, Psh, Fin, Syn, Psh, Fin, Fin]);
    }

    #[test]
    fn every_prefix_of_every_recorded_frame_is_incomplete() {
        for bytes in recorded() {
            let mut rest = bytes.as_slice();
            while let Some((_, used)) = Frame::decode(rest).unwrap() {
                for end in 0..used {
                    assert_eq!(Frame::decode(&rest[..end]), Ok(None));
                }
                rest = &rest[used..];
            }
        }
    }

    #[test]
    fn version_2_is_an_error_at_its_first_byte() {
        assert_eq!(Header::decode(&[2]), Err(FrameError::Version(2)));
        assert_eq!(Header::decode(&[1, 4, 0, 0, 3, 0, 0, 0]), Err(FrameError::Command(4)));
        assert_eq!(
            Header::decode(&[1, 1, 1, 0, 3, 0, 0, 0]),
            Err(FrameError::Data { command: Command::Fin, length: 1 })
        );
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_a_frame_or_incomplete_or_an_error(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..40)) {
            if let Ok(Some((frame, used))) = Frame::decode(&bytes) {
                let mut again = Vec::new();
                frame.encode(&mut again);
                proptest::prop_assert_eq!(&again, &bytes[..used]);
            }
        }

        #[test]
        fn long_data_is_split_over_frames(length in 0usize..200_000) {
            let data = Bytes::from((0..length).map(|at| u8::try_from(at % 251).unwrap()).collect::<Vec<u8>>());
            let mut out = Vec::new();
            Frame { command: Command::Psh, stream: 7, data: data.clone() }.encode(&mut out);
            let (mut rest, mut joined) = (out.as_slice(), Vec::new());
            while let Some((frame, used)) = Frame::decode(rest).unwrap() {
                joined.extend_from_slice(&frame.data);
                rest = &rest[used..];
            }
            proptest::prop_assert!(rest.is_empty());
            proptest::prop_assert_eq!(joined, data);
        }
    }
}
