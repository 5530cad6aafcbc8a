//! The Session Manager data channel: one protocol message per binary websocket message.
//!
//! Follows what amazon-ssm-agent 3.3.1142.0 and session-manager-plugin 1.2.677.0 do on the wire
//! (`docs/session-manager-protocol.md`). Left out: KMS encryption and shell sessions; a port session has neither.

pub mod channel;
mod entry;
pub mod message;
pub mod pace;
mod path;
pub mod payload;
mod rate;
mod retransmit;
mod round_trip;

#[cfg(test)]
pub(crate) mod vectors;
