//! `bastion-conn/2`: one client connection over one byte pipe whose own end says nothing, because what carries it knows
//! only one kind of end (smux 1 has nothing but FIN). Each direction is told its end. `docs/lane-protocol.md` has the
//! format.

use bytes::{Buf as _, BufMut as _, BytesMut};

use super::lane::frame::REASON_MAX;
use super::lane::link::StreamEnd;
use super::lane::stream::Read;

/// Bytes in one chunk at most.
const CHUNK_MAX: usize = 0xffff;
const END: u8 = 0x01;
const RESET: u8 = 0x02;

/// Puts the front of `data` into `out` and says how much that is.
pub fn encode_chunk(data: &[u8], out: &mut BytesMut) -> usize {
    let data = data.get(..CHUNK_MAX).unwrap_or(data);
    // A chunk without bytes would be the start of an end.
    if let Ok(length @ 1..) = u16::try_from(data.len()) {
        out.put_u16(length);
        out.put_slice(data);
    }
    data.len()
}

/// The direction has ended well.
pub fn encode_end(out: &mut BytesMut) {
    out.put_u16(0);
    out.put_u8(END);
}

/// Both directions are over, this one not at its end.
pub fn encode_reset(reason: &str, out: &mut BytesMut) {
    let reason = reason.get(..reason.floor_char_boundary(REASON_MAX)).unwrap_or_default();
    out.put_u16(0);
    out.put_u8(RESET);
    out.put_u16(u16::try_from(reason.len()).unwrap_or_default());
    out.put_slice(reason.as_bytes());
}

/// What comes.
#[derive(Debug, Default)]
pub struct Decoder {
    incoming: BytesMut,
    /// Of the chunk under way.
    missing: usize,
    ended: Option<Result<(), StreamEnd>>,
    cut: bool,
}

impl Decoder {
    /// Takes bytes of the pipe, cut anywhere.
    pub fn take(&mut self, bytes: &[u8]) {
        if self.ended.is_none() {
            self.incoming.extend_from_slice(bytes);
        }
    }

    /// Nothing more comes over the pipe.
    pub fn cut(&mut self) {
        self.cut = true;
    }

    /// Reads into `out`, which is not empty.
    ///
    /// # Errors
    /// [`StreamEnd`]: the direction is over, and not at its end.
    pub fn read(&mut self, out: &mut [u8]) -> Result<Read, StreamEnd> {
        loop {
            if self.missing > 0 && !self.incoming.is_empty() {
                let length = self.missing.min(self.incoming.len()).min(out.len());
                self.incoming.copy_to_slice(out.get_mut(..length).unwrap_or_default());
                self.missing = self.missing.saturating_sub(length);
                return Ok(Read::Data(length));
            }
            if let Some(ended) = &self.ended {
                return ended.clone().map(|()| Read::End);
            }
            if self.missing > 0 || !self.next() {
                return if self.cut { Err(StreamEnd::Cut) } else { Ok(Read::Pending) };
            }
        }
    }

    /// The head of a chunk, or an end; false: it is not whole yet.
    fn next(&mut self) -> bool {
        let Some(head) = self.incoming.first_chunk() else { return false };
        let length = usize::from(u16::from_be_bytes(*head));
        if length > 0 {
            self.incoming.advance(2);
            self.missing = length;
            return true;
        }
        self.ended = match self.incoming.get(2) {
            None => return false,
            Some(&END) => Some(Ok(())),
            Some(&RESET) => {
                let Some(length) = self.incoming.get(3..5).and_then(|length| length.try_into().ok()) else {
                    return false;
                };
                let length = usize::from(u16::from_be_bytes(length));
                if length > REASON_MAX {
                    Some(Err(StreamEnd::Cut))
                } else {
                    let Some(reason) = self.incoming.get(5..).and_then(|rest| rest.get(..length)) else { return false };
                    let reason = std::str::from_utf8(reason).map(String::from);
                    Some(Err(reason.map_or(StreamEnd::Cut, StreamEnd::Reset)))
                }
            }
            Some(_) => Some(Err(StreamEnd::Cut)),
        };
        self.incoming = BytesMut::new();
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// All of it, taken in `pieces`: the bytes, and how they ended.
    fn decoded<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<u8>, Result<Read, StreamEnd>) {
        let (mut decoder, mut data, mut out) = (Decoder::default(), Vec::new(), [0; 7]);
        let mut last = Ok(Read::Pending);
        for piece in pieces {
            decoder.take(piece);
            last = loop {
                match decoder.read(&mut out) {
                    Ok(Read::Data(length)) => data.extend_from_slice(&out[..length]),
                    other => break other,
                }
            };
        }
        (data, last)
    }

    proptest! {
        #[test]
        fn bytes_and_their_end_come_as_they_were_told(
            data in prop::collection::vec(any::<u8>(), 0..2000),
            reason in prop::option::of(".{0,200}"),
            cut in 1_usize..50,
        ) {
            let mut out = BytesMut::new();
            let mut rest = &data[..];
            while !rest.is_empty() {
                let taken = encode_chunk(&rest[..rest.len().min(300)], &mut out);
                rest = &rest[taken..];
            }
            match &reason {
                Some(reason) => encode_reset(reason, &mut out),
                None => encode_end(&mut out),
            }
            let (read, last) = decoded(out.chunks(cut));
            prop_assert_eq!(read, data);
            match (reason, last) {
                (None, last) => prop_assert_eq!(last, Ok(Read::End)),
                (Some(reason), Err(StreamEnd::Reset(said))) => prop_assert!(reason.starts_with(&said)),
                (reason, last) => prop_assert!(false, "{:?} {:?}", reason, last),
            }
            // Without its last byte nothing has ended.
            let (_, last) = decoded(out[..out.len() - 1].chunks(cut));
            prop_assert_eq!(last, Ok(Read::Pending));
        }

        #[test]
        fn anything_is_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), cut in 1_usize..50) {
            let _anything = decoded(bytes.chunks(cut));
        }
    }

    #[test]
    fn a_pipe_that_ends_before_the_end_was_told_is_cut() {
        let mut out = BytesMut::new();
        assert_eq!(encode_chunk(&[7; 100_000], &mut out), 0xffff);
        let mut decoder = Decoder::default();
        decoder.take(&out[..10]);
        decoder.cut();
        let mut bytes = [0; 20];
        assert_eq!(decoder.read(&mut bytes), Ok(Read::Data(8)));
        assert_eq!(decoder.read(&mut bytes), Err(StreamEnd::Cut));
        assert_eq!(decoded([&[0, 0, 9][..]].into_iter()).1, Err(StreamEnd::Cut));
        assert_eq!(decoded([&[0, 0, RESET, 0xff, 0xff][..]].into_iter()).1, Err(StreamEnd::Cut));
        // A reason is UTF-8: one that is not could become three times as long as it may be.
        assert_eq!(decoded([&[0, 0, RESET, 0, 1, 0xff][..]].into_iter()).1, Err(StreamEnd::Cut));
    }
}
