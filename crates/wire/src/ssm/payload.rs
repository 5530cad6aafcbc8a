//! The payloads that have a shape of their own: JSON objects and flags. Tunnel bytes have none.
//!
//! Names and order of the JSON keys as in the agent's `agent/session/contracts/model.go` and the plugin's
//! `src/message/messageparser.go`. Every decoder takes a JSON object with the keys it needs and ignores the others.

use std::borrow::Cow;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The action of every handshake: what kind of session it is.
pub const ACTION_SESSION_TYPE: &str = "SessionType";
/// The session type of a port session.
pub const SESSION_TYPE_PORT: &str = "Port";
/// `type` among the properties of a port session that is multiplexed.
pub const LOCAL_PORT_FORWARDING: &str = "LocalPortForwarding";

/// The payload of an `acknowledge` message: one per data message, never cumulative.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Acknowledge<'a> {
    #[serde(borrow, default)]
    pub acknowledged_message_type: Cow<'a, str>,
    #[serde(borrow, default)]
    pub acknowledged_message_id: Cow<'a, str>,
    /// The one key that the receivers look at.
    pub acknowledged_message_sequence_number: i64,
    #[serde(default)]
    pub is_sequential_message: bool,
}

impl<'a> Acknowledge<'a> {
    /// Reads the JSON of an acknowledgement.
    ///
    /// # Errors
    /// When it is not a JSON object with the sequence number.
    pub fn decode(payload: &'a [u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(payload)
    }
}

/// The payload of `channel_closed`: the session is over.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ChannelClosed {
    pub message_id: String,
    pub created_date: String,
    pub destination_id: String,
    pub session_id: String,
    pub message_type: String,
    pub schema_version: i64,
    /// Empty at a normal end, otherwise a text for the user.
    pub output: String,
}

/// Agent → client, the first data message of a port session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct HandshakeRequest {
    #[serde(default)]
    pub agent_version: String,
    #[serde(default)]
    pub requested_client_actions: Vec<RequestedAction>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RequestedAction {
    pub action_type: String,
    /// Depends on the action; see [`HandshakeRequest::port_properties`].
    #[serde(default)]
    pub action_parameters: Value,
}

impl HandshakeRequest {
    /// The properties of the port session that is asked for; `None` for any other kind of session.
    pub fn port_properties(&self) -> Option<&Value> {
        let action = self.requested_client_actions.iter().find(|action| action.action_type == ACTION_SESSION_TYPE)?;
        let parameters = &action.action_parameters;
        (parameters.get("SessionType")?.as_str()? == SESSION_TYPE_PORT).then(|| parameters.get("Properties"))?
    }
}

/// Client → agent: what became of the requested actions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct HandshakeResponse {
    pub client_version: String,
    #[serde(default)]
    pub processed_client_actions: Vec<ProcessedAction>,
    #[serde(default)]
    pub errors: Option<Vec<String>>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ProcessedAction {
    pub action_type: String,
    /// [`ACTION_SUCCESS`]; 2 is a failure, 3 an action that is not known.
    pub action_status: u32,
    #[serde(default)]
    pub action_result: Value,
    #[serde(default)]
    pub error: String,
}

pub const ACTION_SUCCESS: u32 = 1;

/// Agent → client: tunnel bytes may flow from now on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct HandshakeComplete {
    /// Nanoseconds.
    #[serde(default)]
    pub handshake_time_to_complete: i64,
    #[serde(default)]
    pub customer_message: String,
}

/// What a payload of type [`super::message::PayloadType::FLAG`] says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flag {
    /// Agent → client, just before the FIN of the stream it is about; it names no stream.
    ConnectToPortError,
    /// Client → agent; a multiplexed session ignores it.
    DisconnectToPort,
    Other(u32),
    /// Client → agent: end the session.
    TerminateSession,
}

impl Flag {
    /// `None`: not four bytes.
    pub fn decode(payload: &[u8]) -> Option<Self> {
        Some(match u32::from_be_bytes(payload.try_into().ok()?) {
            1 => Self::DisconnectToPort,
            2 => Self::TerminateSession,
            3 => Self::ConnectToPortError,
            other => Self::Other(other),
        })
    }

    pub fn encode(self) -> [u8; 4] {
        let value: u32 = match self {
            Self::DisconnectToPort => 1,
            Self::TerminateSession => 2,
            Self::ConnectToPortError => 3,
            Self::Other(other) => other,
        };
        value.to_be_bytes()
    }
}

/// Reads one of the JSON payloads of this file.
///
/// # Errors
/// When it is not such an object.
pub fn from_json<T: DeserializeOwned>(payload: &[u8]) -> Result<T, serde_json::Error> {
    serde_json::from_slice(payload)
}

/// Writes one of the JSON payloads of this file, keys in the order of the agent and the plugin.
pub fn to_json<T: Serialize>(payload: &T) -> Vec<u8> {
    // Nothing in these types can refuse: string keys, no maps of other keys, writing to memory.
    serde_json::to_vec(payload).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::message::{Message, MessageType, PayloadType};
    use super::super::vectors;
    use super::*;

    #[test]
    fn recorded_payloads_decode_and_encode_byte_for_byte() {
        let mut seen = [0; 5];
        for record in vectors::all() {
            let message = Message::decode(record.frame).unwrap();
            let payload = message.payload.as_ref();
            let (kind, again) = match (message.message_type, message.payload_type) {
                (MessageType::Acknowledge, _) => (0, to_json(&Acknowledge::decode(payload).unwrap())),
                (_, PayloadType::HANDSHAKE_REQUEST) => (1, to_json(&from_json::<HandshakeRequest>(payload).unwrap())),
                (_, PayloadType::HANDSHAKE_RESPONSE) => (2, to_json(&from_json::<HandshakeResponse>(payload).unwrap())),
                (_, PayloadType::HANDSHAKE_COMPLETE) => (3, to_json(&from_json::<HandshakeComplete>(payload).unwrap())),
                (_, PayloadType::FLAG) => (4, Flag::decode(payload).unwrap().encode().to_vec()),
                _ => continue,
            };
            assert_eq!(again, payload);
            seen[kind] += 1;
        }
        assert_eq!(seen, [18, 2, 2, 2, 3]);
    }

    #[test]
    fn finds_the_properties_of_a_port_session() {
        let record = vectors::port_session().remove(1);
        let request: HandshakeRequest = from_json(&Message::decode(record.frame).unwrap().payload).unwrap();
        assert_eq!(request.agent_version, "3.3.1142.0");
        assert_eq!(request.port_properties().unwrap()["type"], LOCAL_PORT_FORWARDING);
        assert_eq!(request.port_properties().unwrap()["portNumber"], "19001");
    }

    #[test]
    fn an_acknowledgement_needs_only_its_sequence_number() {
        let acknowledge = Acknowledge::decode(br#"{"AcknowledgedMessageSequenceNumber":7}"#).unwrap();
        assert_eq!(acknowledge.acknowledged_message_sequence_number, 7);
        Acknowledge::decode(b"{}").unwrap_err();
    }

    #[test]
    fn a_shell_session_has_no_port_properties() {
        let text = br#"{"AgentVersion":"3","RequestedClientActions":[{"ActionType":"SessionType",
            "ActionParameters":{"SessionType":"Standard_Stream","Properties":null}}]}"#;
        assert_eq!(from_json::<HandshakeRequest>(text).unwrap().port_properties(), None);
    }

    #[test]
    fn reads_what_the_gateway_says_at_the_end() {
        let text = br#"{"MessageId":"m","CreatedDate":"d","DestinationId":"x","SessionId":"s",
            "MessageType":"channel_closed","SchemaVersion":1,"Output":"Forwarding to IP address x is forbidden."}"#;
        assert_eq!(from_json::<ChannelClosed>(text).unwrap().output, "Forwarding to IP address x is forbidden.");
        assert_eq!(from_json::<ChannelClosed>(b"{}").unwrap(), ChannelClosed::default());
    }

    #[test]
    fn a_flag_is_four_bytes() {
        for flag in [Flag::ConnectToPortError, Flag::DisconnectToPort, Flag::Other(9), Flag::TerminateSession] {
            assert_eq!(Flag::decode(&flag.encode()), Some(flag));
        }
        assert_eq!(Flag::decode(&[0, 0, 2]), None);
    }
}
