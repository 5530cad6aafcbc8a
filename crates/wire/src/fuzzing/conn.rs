//! `bastion-conn/2`: what the other end of a pipe sends, which may be anything, and what is read of it.

use bytes::BytesMut;

use super::Input;
use crate::conn::{Decoder, encode_chunk, encode_end, encode_reset};
use crate::lane::frame::REASON_MAX;
use crate::lane::link::StreamEnd;
use crate::lane::stream::Read;

/// The bytes of a direction, and how it ended; `None`: more may come.
type Told = (Vec<u8>, Option<Result<(), StreamEnd>>);

/// Two bytes say in what pieces the rest comes and how much is read at a time.
pub(super) fn pipe(data: &[u8]) {
    let mut input = Input(data);
    let (piece, room) = (usize::from(input.byte()) + 1, usize::from(input.byte()) + 1);
    let pipe = input.0;
    let told = as_the_format_says(pipe);
    assert_eq!(read([pipe].into_iter(), 1 << 16, false), told);
    assert_eq!(read(pipe.chunks(piece), room, false), told, "{piece} bytes at a time into {room}");

    let (bytes, ended) = told;
    // A pipe that is cut has not ended well, unless the end was told before.
    let after_cut = ended.clone().unwrap_or(Err(StreamEnd::Cut));
    assert_eq!(read(pipe.chunks(piece), room, true), (bytes.clone(), Some(after_cut)));

    let again = encoded(&bytes, ended.as_ref());
    assert!(!ended.as_ref().is_some_and(|ended| *ended != Err(StreamEnd::Cut)) || again.len() <= pipe.len());
    let ended = ended.filter(|ended| *ended != Err(StreamEnd::Cut));
    assert_eq!(read(again.chunks(piece), room, false), (bytes, ended), "what was read, told again");
}

fn encoded(mut bytes: &[u8], ended: Option<&Result<(), StreamEnd>>) -> BytesMut {
    let mut out = BytesMut::new();
    while !bytes.is_empty() {
        let taken = encode_chunk(bytes, &mut out);
        bytes = &bytes[taken..];
    }
    match ended {
        Some(Ok(())) => encode_end(&mut out),
        Some(Err(StreamEnd::Reset(reason))) => encode_reset(reason, &mut out),
        _ => {}
    }
    out
}

/// All that can be read, `room` bytes at a time; `cut`: then nothing more comes.
fn read<'a>(pieces: impl Iterator<Item = &'a [u8]>, room: usize, cut: bool) -> Told {
    let (mut decoder, mut bytes, mut buffer) = (Decoder::default(), Vec::new(), vec![0; room]);
    let mut ended = None;
    for piece in pieces {
        decoder.take(piece);
        let now = drain(&mut decoder, &mut bytes, &mut buffer);
        assert!(ended.is_none() || ended == now, "{ended:?} became {now:?}");
        ended = now;
    }
    if cut {
        decoder.cut();
        ended = drain(&mut decoder, &mut bytes, &mut buffer);
    }
    (bytes, ended)
}

fn drain(decoder: &mut Decoder, bytes: &mut Vec<u8>, buffer: &mut [u8]) -> Option<Result<(), StreamEnd>> {
    loop {
        match decoder.read(buffer) {
            Ok(Read::Data(length)) => {
                assert!(length > 0, "its reader would turn for ever");
                bytes.extend_from_slice(&buffer[..length]);
            }
            Ok(Read::Pending) => return None,
            Ok(Read::End) => return Some(Ok(())),
            Err(end) => {
                if let StreamEnd::Reset(reason) = &end {
                    assert!(reason.len() <= REASON_MAX, "a reason of {} bytes", reason.len());
                }
                return Some(Err(end));
            }
        }
    }
}

/// `docs/lane-protocol.md`, of bytes that are all there.
fn as_the_format_says(mut pipe: &[u8]) -> Told {
    let mut bytes = Vec::new();
    while let Some((length, rest)) = pipe.split_first_chunk() {
        let length = usize::from(u16::from_be_bytes(*length));
        if length == 0 {
            return (bytes, end(rest));
        }
        let (chunk, rest) = rest.split_at(length.min(rest.len()));
        bytes.extend_from_slice(chunk);
        pipe = rest;
    }
    (bytes, None)
}

/// An end, behind the length that is 0.
fn end(told: &[u8]) -> Option<Result<(), StreamEnd>> {
    match told {
        [] => None,
        [1, ..] => Some(Ok(())),
        [2, rest @ ..] => {
            let (length, rest) = rest.split_first_chunk()?;
            let length = usize::from(u16::from_be_bytes(*length));
            if length > REASON_MAX {
                return Some(Err(StreamEnd::Cut));
            }
            let reason = String::from_utf8(rest.get(..length)?.to_vec());
            Some(Err(reason.map_or(StreamEnd::Cut, StreamEnd::Reset)))
        }
        _ => Some(Err(StreamEnd::Cut)),
    }
}
