//! smux: frames, and a multiplexer whose other side sends anything.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::Input;
use crate::smux::frame::{Command, Frame, FrameError, HEADER_SIZE, NOP};
use crate::smux::mux::{Event, Mux};

/// Commands and bytes of the agent in any order.
pub(super) fn smux(data: &[u8]) {
    check_frames(data);
    let mut input = Input(data);
    let mut mux = Mux::new();
    let mut streams: BTreeMap<u32, Stream> = BTreeMap::new();
    let mut outgoing = Outgoing::default();
    while !input.is_empty() {
        let step = input.byte();
        let chosen = input.byte();
        let id = streams.keys().copied().nth(usize::from(chosen) % streams.len().max(1)).unwrap_or_default();
        match step % 10 {
            0 => {
                let id = mux.open().expect("there are enough ids");
                assert!(streams.last_key_value().is_none_or(|(last, _)| *last < id), "ids are not used again");
                streams.insert(id, Stream::default());
            }
            1 => {
                let bytes = pattern(streams.get(&id).map_or(0, |stream| stream.written.len()), input.word());
                let open = mux.is_open(id);
                let taken = mux.write(id, bytes.clone());
                assert!(open || !taken);
                if let Some(stream) = streams.get_mut(&id).filter(|_| taken) {
                    stream.written.extend_from_slice(&bytes);
                }
            }
            2 => mux.finish(id),
            3 => {
                mux.reset(id);
                assert_eq!(mux.waiting(id), 0);
            }
            4 => mux.send_nop(),
            5 => mux.handle_port_error(),
            6 => drain(&mut mux, usize::from(input.word()), &mut outgoing),
            7 => {
                // A frame of the agent, for a stream that is open.
                let command = [Command::Psh, Command::Fin, Command::Nop, Command::Syn][usize::from(chosen >> 6)];
                let data = if command == Command::Psh { Bytes::copy_from_slice(input.short()) } else { Bytes::new() };
                if !receive(&mut mux, &mut streams, &encoded(&Frame { command, stream: id, data })) {
                    break;
                }
            }
            _ => {
                if !receive(&mut mux, &mut streams, input.short()) {
                    break;
                }
            }
        }
        assert!(mux.open_streams() <= streams.len());
    }
    while mux.wants_to_send() {
        drain(&mut mux, 1024, &mut outgoing);
    }
    assert!(outgoing.partial.is_empty(), "half a frame went out");
    for (id, sent) in &outgoing.streams {
        let stream = streams.get(id).expect("only streams that were opened");
        assert!(stream.written.starts_with(sent), "bytes of stream {id} that nobody wrote, or not in their order");
    }
}

#[derive(Default)]
struct Stream {
    written: Vec<u8>,
    ended: bool,
}

/// False: the connection is broken.
fn receive(mux: &mut Mux, streams: &mut BTreeMap<u32, Stream>, bytes: &[u8]) -> bool {
    let alive = mux.handle_bytes(bytes).is_ok();
    while let Some(event) = mux.poll_event() {
        let (Event::Data(id, _) | Event::Fin { stream: id, .. }) = event;
        let stream = streams.get_mut(&id).expect("an event for a stream that was never opened");
        assert!(!stream.ended, "something after the end of stream {id}");
        stream.ended = matches!(event, Event::Fin { .. });
    }
    alive
}

/// What the other side reads.
#[derive(Default)]
struct Outgoing {
    partial: Vec<u8>,
    streams: BTreeMap<u32, Vec<u8>>,
    finished: Vec<u32>,
}

fn drain(mux: &mut Mux, max: usize, outgoing: &mut Outgoing) {
    let bytes = mux.fill(max);
    // A keepalive has its header whatever the limit is.
    assert!(bytes.len() <= max.max(HEADER_SIZE), "{} bytes where {max} fit", bytes.len());
    outgoing.partial.extend_from_slice(&bytes);
    while let Some((frame, used)) = Frame::decode(&outgoing.partial).expect("what we send is smux") {
        outgoing.partial.drain(..used);
        let id = frame.stream;
        assert!(!outgoing.finished.contains(&id), "a frame after the FIN of stream {id}");
        match frame.command {
            Command::Nop => assert_eq!(encoded(&frame), NOP),
            Command::Syn => assert!(outgoing.streams.insert(id, Vec::new()).is_none(), "stream {id} opens twice"),
            Command::Psh => {
                outgoing.streams.get_mut(&id).expect("a stream opens before its data").extend_from_slice(&frame.data);
            }
            Command::Fin => outgoing.finished.push(id),
        }
    }
}

/// Any bytes are a frame that comes back byte for byte, too few, or the same error as their first bytes.
fn check_frames(data: &[u8]) {
    let whole = Frame::decode(data);
    if let Ok(Some((frame, used))) = &whole {
        assert_eq!(encoded(frame), data.get(..*used).expect("used within the data"));
    }
    for end in 0..data.len().min(24) {
        let prefix: Result<Option<(Frame, usize)>, FrameError> = Frame::decode(data.get(..end).unwrap_or_default());
        match prefix {
            Ok(None) => {}
            sooner => {
                assert_eq!(sooner, whole);
                break;
            }
        }
    }
}

fn encoded(frame: &Frame) -> Vec<u8> {
    let mut out = Vec::new();
    frame.encode(&mut out);
    out
}

/// The bytes of a stream from `offset` on; of no other length than 251 do they repeat.
pub(super) fn pattern(offset: usize, length: u16) -> Bytes {
    let range = offset..offset + usize::from(length);
    range.map(|at| u8::try_from(at % 251).unwrap_or_default()).collect::<Vec<u8>>().into()
}
