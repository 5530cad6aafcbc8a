//! Session Manager: the binary message and the payloads in it.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::ssm::message::{DecodeError, HEADER_SIZE, Message, MessageType, PayloadType};
use crate::ssm::payload::{
    Acknowledge, ChannelClosed, Flag, HandshakeComplete, HandshakeRequest, HandshakeResponse, from_json, to_json,
};

/// Any bytes, as a frame of the websocket and as each payload that has a shape.
pub(super) fn messages(data: &[u8]) {
    frame(data);
    json::<ChannelClosed>(data);
    json::<HandshakeComplete>(data);
    json::<HandshakeResponse>(data);
    if let Some(request) = json::<HandshakeRequest>(data) {
        let _any_shape = request.port_properties();
    }
    if let Ok(acknowledge) = Acknowledge::decode(data) {
        let text = to_json(&acknowledge);
        assert_eq!(Acknowledge::decode(&text).expect("what we write we read"), acknowledge);
    }
    if let Some(flag) = Flag::decode(data) {
        assert_eq!(flag.encode(), data);
    }
}

fn frame(data: &[u8]) {
    let frame = Bytes::copy_from_slice(data);
    let strict = Message::decode(frame.clone());
    let Ok(message) = Message::decode_unverified(frame) else {
        assert!(!matches!(strict, Ok(_) | Err(DecodeError::Digest)));
        return;
    };
    let gateway = matches!(message.message_type, MessageType::PausePublication | MessageType::StartPublication);
    assert!(gateway || data.len() >= HEADER_SIZE && data.ends_with(&message.payload));
    // With a digest of ours it is a message for everybody.
    let sent = message.to_frame();
    let again = Message::decode(sent.clone()).expect("what we write we read");
    assert_eq!(again, message);
    if !gateway {
        for end in [0, 3, 4, 36, HEADER_SIZE - 1, sent.len() - 1] {
            assert!(Message::decode(sent.slice(..end)).is_err(), "{end} bytes of {}", sent.len());
        }
    }
    match strict {
        Ok(verified) => assert_eq!(verified, message),
        Err(error) => assert_eq!(error, DecodeError::Digest),
    }
    match message.payload_type {
        PayloadType::HANDSHAKE_REQUEST => drop(json::<HandshakeRequest>(&message.payload)),
        PayloadType::FLAG => drop(Flag::decode(&message.payload)),
        _ => {}
    }
}

fn json<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(data: &[u8]) -> Option<T> {
    let value: T = from_json(data).ok()?;
    assert_eq!(from_json::<T>(&to_json(&value)).expect("what we write we read"), value);
    Some(value)
}
