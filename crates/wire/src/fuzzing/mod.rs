//! What the fuzz targets of `fuzz/` run, as ordinary functions of bytes: any bytes must get through them, and every
//! `assert!` in them is a promise of the protocol code. The tests at the end replay the committed corpora on a stable
//! compiler (`docs/fuzzing.md`).
//!
//! `login` plays both peers of a database login, `port` the agent behind a port session, `lane` one or both ends of a link;
//! the others feed a parser.

mod commands;
mod conn;
mod lane;
mod login;
mod mysql;
mod pg;
mod port;
mod redact;
mod session;
mod smux;
mod ssm;

use std::fmt::Debug;
use std::time::Instant;

use bytes::BytesMut;

use crate::Malformed;

/// A target's name, and what it runs.
pub type Target = (&'static str, fn(&[u8]));

/// Every target by its name, which is also that of its file in `fuzz/fuzz_targets` and of its folder in `fuzz/corpus`.
pub const TARGETS: &[Target] = &[
    ("conn", conn::pipe),
    ("lane_frames", lane::frames),
    ("lane_link", lane::link_of_two),
    ("lane_peer", lane::peer),
    ("mysql_change_user", commands::change_user),
    ("mysql_handshake", |data| _ = mysql::handshake(data)),
    ("mysql_packets", mysql::packets),
    ("mysql_session", session::mysql),
    ("pg_handshake", |data| _ = pg::handshake(data)),
    ("pg_messages", pg::messages),
    ("pg_session", session::postgres),
    ("port_session", port::session),
    ("redact", redact::redact),
    ("smux", smux::smux),
    ("ssm_messages", ssm::messages),
];

/// Runs one target on one input.
///
/// # Panics
/// If the target is not in [`TARGETS`], or has found something.
pub fn run(target: &str, data: &[u8]) {
    let found = TARGETS.iter().find(|(name, _)| *name == target);
    let (_, function) = found.unwrap_or_else(|| panic!("no fuzz target is called {target}"));
    function(data);
}

/// Decisions from the front of the input: 0 and nothing once it is used up, so that every input is a valid one.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn byte(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or_default()
    }

    fn word(&mut self) -> u16 {
        u16::from(self.byte()) << 8 | u16::from(self.byte())
    }

    /// As many as there are, up to `length`.
    fn bytes(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// Up to 255 bytes, after their length.
    fn short(&mut self) -> &'a [u8] {
        let length = self.byte();
        self.bytes(usize::from(length))
    }
}

/// A decoder takes nothing until it has all, gives what it gives however the bytes come, and refuses a length that it
/// would not store.
fn check_decoder<T: PartialEq + Debug>(
    data: &[u8],
    longest: usize,
    decode: fn(&mut BytesMut) -> Result<Option<T>, Malformed>,
) -> Option<T> {
    let mut buffer = BytesMut::from(data);
    let whole = decode(&mut buffer);
    let used = data.len() - buffer.len();
    match &whole {
        Ok(Some(_)) => assert!(data.ends_with(&buffer) && used <= longest),
        Ok(None) => assert!(used == 0 && data.len() < longest, "it waits for more than it may store"),
        Err(_) => {}
    }
    for end in 0..data.len().min(64) {
        let mut prefix = BytesMut::from(data.get(..end).unwrap_or_default());
        match decode(&mut prefix) {
            Ok(None) => assert_eq!(prefix.len(), end, "it took bytes of an incomplete message"),
            sooner => {
                assert_eq!(sooner, whole, "after {end} bytes");
                break;
            }
        }
    }
    whole.ok().flatten()
}

#[expect(clippy::disallowed_methods, reason = "only a start; the targets move it")]
fn start() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests;
