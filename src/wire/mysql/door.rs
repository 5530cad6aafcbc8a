//! The door for clients: which plugin they answer with, and whether the answer lets them in.
//!
//! A client has a plugin of its own and may not know others: libmysql 8 comes with caching_sha2_password, clients of
//! before 2018 with mysql_native_password only. So each one is asked with the plugin that it names itself.

use bytes::{BufMut as _, BytesMut};

use super::auth::{CACHING_SHA2, FAST_AUTH_SUCCESS, NATIVE};
use super::greeting::SCRAMBLE;
use super::packet::encode;

/// What the greeting announces: every client of protocol 4.1 knows it, or names another one.
pub const ANNOUNCED: &str = NATIVE;

/// First byte of an AuthSwitchRequest.
pub const SWITCH: u8 = 0xfe;
/// First byte of a packet with further data of a plugin.
pub const MORE_DATA: u8 = 0x01;

/// The plugin to ask a client with that named `named`. One that names anything else gets what all know; its password is
/// never asked for in clear.
pub fn plugin_for(named: Option<&[u8]>) -> &'static str {
    match named {
        Some(name) if name == CACHING_SHA2.as_bytes() => CACHING_SHA2,
        _ => NATIVE,
    }
}

/// Appends the AuthSwitchRequest for `plugin`.
pub fn encode_switch(sequence: u8, plugin: &str, challenge: &[u8; SCRAMBLE], out: &mut BytesMut) {
    let mut payload = BytesMut::new();
    payload.put_u8(SWITCH);
    payload.put_slice(plugin.as_bytes());
    payload.put_u8(0);
    payload.put_slice(challenge);
    payload.put_u8(0);
    encode(sequence, &payload, out);
}

/// A client that is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admitted {
    /// Its plugin waits for the word that its proof is known, before the OK packet.
    pub awaits_success: bool,
}

/// Lets the client in: without a local password any answer counts.
pub fn admit(plugin: &str, answer: &[u8]) -> Admitted {
    // A single zero byte is the answer of somebody without a password.
    Admitted { awaits_success: plugin == CACHING_SHA2 && answer.len() > 1 }
}

impl Admitted {
    /// Appends what comes before the OK packet; the sequence number for the OK packet.
    pub fn encode(self, sequence: u8, out: &mut BytesMut) -> u8 {
        if !self.awaits_success {
            return sequence;
        }
        encode(sequence, &[MORE_DATA, FAST_AUTH_SUCCESS], out);
        sequence.wrapping_add(1)
    }
}
