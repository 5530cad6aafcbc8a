//! The frames that the gateway sends of its own.

use bastion_wire::ssm::message::Message;
use bastion_wire::ssm::message::MessageId;
use bastion_wire::ssm::message::MessageType;
use bastion_wire::ssm::message::PayloadType;
use bastion_wire::ssm::message::SCHEMA_VERSION;
use bastion_wire::ssm::payload::ChannelClosed;
use bastion_wire::ssm::payload::to_json;
use bytes::Bytes;
use jiff::Timestamp;
use uuid::Uuid;

/// Unix time in milliseconds, never 0: a message created at 0 is dropped by the agent.
pub(crate) fn created_ms() -> u64 {
    u64::try_from(Timestamp::now().as_millisecond()).unwrap_or(0).max(1)
}

/// A message with a fresh id, created now.
pub(crate) fn message(message_type: MessageType, payload_type: PayloadType, payload: impl Into<Bytes>) -> Message {
    Message {
        message_type,
        schema_version: SCHEMA_VERSION,
        created_ms: created_ms(),
        sequence: 0,
        flags: 3,
        id: MessageId(Uuid::new_v4().into_bytes()),
        payload_type,
        payload: payload.into(),
    }
}

/// The session is over. An empty `output` is a normal end, anything else is for the user.
pub(crate) fn channel_closed(session_id: &str, output: &str) -> Bytes {
    let payload = ChannelClosed {
        message_id: Uuid::new_v4().to_string(),
        created_date: Timestamp::now().to_string(),
        destination_id: session_id.to_owned(),
        session_id: session_id.to_owned(),
        message_type: "channel_closed".to_owned(),
        schema_version: 1,
        output: output.to_owned(),
    };
    message(MessageType::ChannelClosed, PayloadType::NONE, to_json(&payload)).to_frame()
}

/// `pause_publication` or `start_publication` as the agent needs it: its validator wants a whole header.
pub(crate) fn publication_to_agent(message_type: MessageType) -> Bytes {
    message(message_type, PayloadType::NONE, Bytes::new()).to_frame()
}

/// The same for a client: nothing but the type is set. That the plugin's validator exempts these two types from its
/// checks (`clientmessage.go`) hints that AWS sends them so.
pub(crate) fn publication_to_client(message_type: MessageType) -> Bytes {
    let mut frame = publication_to_agent(message_type).to_vec();
    for (at, byte) in frame.iter_mut().enumerate() {
        if !(4..36).contains(&at) {
            *byte = 0;
        }
    }
    frame.into()
}

/// Frames that a client must drop, each in its own way. `sequence` is the agent's next: what is not dropped is taken.
pub(crate) fn junk(sequence: i64) -> Vec<Bytes> {
    let data = message(MessageType::OutputStreamData, PayloadType::OUTPUT, &b"junk"[..]);
    let good = Message { sequence, ..data }.to_frame();
    let with = |at: usize, bytes: &[u8]| {
        let mut frame = good.to_vec();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        Bytes::from(frame)
    };
    vec![
        Bytes::new(),
        Bytes::from_static(b"junk"),
        Bytes::from(vec![0; 120]),
        Bytes::from(vec![0xff; 300]),
        // An unknown type, none, a header that ends behind the frame, none, no date, a digest of something else.
        with(4, b"interactive_shell  "),
        with(4, &[b' '; 32]),
        with(0, &u32::MAX.to_be_bytes()),
        with(0, &[0; 4]),
        with(40, &[0; 8]),
        with(80, &[7; 32]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn junk_is_no_message_of_the_agent() {
        for frame in junk(7) {
            let message = Message::decode(frame.clone());
            let taken = message.is_ok_and(|message| message.message_type == MessageType::OutputStreamData);
            assert!(!taken, "{frame:?}");
        }
    }

    #[test]
    fn a_publication_for_the_client_has_only_its_type() {
        let frame = publication_to_client(MessageType::PausePublication);
        assert_eq!(frame.len(), 120);
        assert_eq!(&frame[..4], [0; 4]);
        assert!(frame[36..].iter().all(|byte| *byte == 0));
        assert_eq!(Message::decode(frame).unwrap().message_type, MessageType::PausePublication);
    }

    #[test]
    fn channel_closed_carries_the_output() {
        let message = Message::decode(channel_closed("a@b-1", "why")).unwrap();
        let text = String::from_utf8(message.payload.to_vec()).unwrap();
        assert!(text.contains(r#""Output":"why""#) && text.contains(r#""SessionId":"a@b-1""#), "{text}");
    }
}
