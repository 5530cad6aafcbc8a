//! Finds the commands among the bytes that a client sends after its login, without looking into them.
//!
//! Only headers are read: three bytes of length, the sequence number (0 begins a command), then the command itself
//! (MySQL Source Code Documentation, "Command Phase"). Two commands are not the database's to answer, see
//! [`change_user`](super::change_user); everything else is passed over.

use super::capability::DEPRECATE_EOF;
use super::in_flight::InFlight;
use super::packet::PAYLOAD_MAX;
use crate::wire::downstream::Downstream;

/// `COM_CHANGE_USER`, with which connection pools start a session anew.
pub const CHANGE_USER: u8 = 0x11;
/// `COM_RESET_CONNECTION`.
pub const RESET_CONNECTION: u8 = 0x1f;

/// What a scan has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scan {
    /// So many bytes may pass. The others are the start of a header, or of the command that stops.
    pub pass: usize,
    /// The byte after `pass` begins a command that is not for the database.
    pub stop: bool,
}

/// Where the client's stream stands.
#[derive(Debug, Clone, Default)]
pub struct Commands {
    /// Bytes of the current packet that are still to come.
    skip: usize,
    /// The next packet continues the one before.
    continued: bool,
    /// Whether a session must be made read-only again after a reset.
    stops_at_reset: bool,
    /// CLIENT_DEPRECATE_EOF holds.
    deprecates_eof: bool,
    in_flight: InFlight,
}

impl Commands {
    /// `read_only` is whether the relay has set up the session, `capabilities` are those that the login agreed on.
    pub fn new(read_only: bool, capabilities: u32) -> Self {
        let deprecates_eof = capabilities & DEPRECATE_EOF != 0;
        Self { stops_at_reset: read_only, deprecates_eof, ..Self::default() }
    }

    /// The upstream's stream while the session is idle.
    pub fn downstream(&self) -> Downstream {
        Downstream::mysql(self.deprecates_eof)
    }

    fn stops_at(&self, command: u8) -> bool {
        command == CHANGE_USER || self.stops_at_reset && command == RESET_CONNECTION
    }

    /// Bytes of the upstream.
    pub fn down(&mut self, bytes: &[u8]) {
        self.in_flight.down(bytes);
    }

    /// Whether the upstream has answered all that has passed.
    pub fn is_answered(&self) -> bool {
        self.in_flight.is_answered()
    }

    /// Looks at `bytes`, which begin with what the scan before did not pass.
    pub fn scan(&mut self, bytes: &[u8]) -> Scan {
        let mut rest = bytes;
        loop {
            let Some(at_header) = rest.get(self.skip..).filter(|after| !after.is_empty()) else {
                self.skip = self.skip.saturating_sub(rest.len());
                return Scan { pass: bytes.len(), stop: false };
            };
            self.skip = 0;
            let passed = Scan { pass: bytes.len().saturating_sub(at_header.len()), stop: false };
            let Some((&[a, b, c, sequence], payload)) = at_header.split_first_chunk::<4>() else { return passed };
            let length = usize::try_from(u32::from_le_bytes([a, b, c, 0])).unwrap_or(usize::MAX);
            if !self.continued && sequence == 0 && length > 0 {
                match payload.first() {
                    None => return passed,
                    Some(&command) if self.stops_at(command) => {
                        self.in_flight.hold(self.downstream());
                        return Scan { stop: true, ..passed };
                    }
                    Some(&command) => self.in_flight.command(command, self.downstream()),
                }
            }
            self.continued = length == PAYLOAD_MAX;
            self.skip = length;
            rest = payload;
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use proptest::prelude::*;

    use super::super::packet::encode;
    use super::*;

    fn packets(payloads: &[(u8, Vec<u8>)]) -> Vec<u8> {
        let mut out = BytesMut::new();
        for (sequence, payload) in payloads {
            encode(*sequence, payload, &mut out);
        }
        out.to_vec()
    }

    /// Feeds `bytes` in pieces of `cut`; what passed, and whether it stopped.
    fn fed(commands: &mut Commands, bytes: &[u8], cut: usize) -> (usize, bool) {
        let (mut passed, mut held) = (0, Vec::new());
        for piece in bytes.chunks(cut) {
            held.extend_from_slice(piece);
            let scan = commands.scan(&held);
            passed += scan.pass;
            if scan.stop {
                return (passed, true);
            }
            held.drain(..scan.pass);
            assert!(held.len() < 5, "only a header may be held back");
        }
        (passed, false)
    }

    #[test]
    fn stops_at_change_user_however_the_bytes_are_cut() {
        let before = packets(&[(0, b"\x03select 0x11".to_vec()), (0, b"\x0e".to_vec()), (0, Vec::new())]);
        let whole = [before.clone(), packets(&[(0, b"\x11root\0".to_vec())])].concat();
        for cut in 1..=whole.len() {
            assert_eq!(fed(&mut Commands::default(), &whole, cut), (before.len(), true), "{cut}");
        }
    }

    #[test]
    fn a_reset_stops_only_where_it_must() {
        let reset = packets(&[(0, vec![RESET_CONNECTION])]);
        assert_eq!(fed(&mut Commands::new(false, 0), &reset, 3), (5, false));
        assert_eq!(fed(&mut Commands::new(true, 0), &reset, 3), (0, true));
    }

    #[test]
    fn what_continues_a_long_packet_is_no_command() {
        let mut long = vec![0x03; PAYLOAD_MAX];
        long[1] = CHANGE_USER;
        let whole = packets(&[(0, long), (1, b"\x11not a command".to_vec()), (0, b"\x11a command".to_vec())]);
        let end = whole.len() - 4 - b"\x11a command".len();
        for cut in [1000, 65_536, whole.len()] {
            assert_eq!(fed(&mut Commands::default(), &whole, cut), (end, true), "{cut}");
        }
        // Exactly as long as a packet can be: an empty one ends it.
        let exact = packets(&[(0, vec![0x03; PAYLOAD_MAX]), (1, Vec::new()), (0, vec![CHANGE_USER])]);
        assert_eq!(fed(&mut Commands::default(), &exact, 65_536), (exact.len() - 5, true));
    }

    proptest! {
        #[test]
        fn everything_passes_that_is_not_such_a_command(
            payloads in proptest::collection::vec(proptest::collection::vec(proptest::num::u8::ANY, 0..40), 0..20),
            cut in 1_usize..50,
        ) {
            let payloads: Vec<_> =
                payloads.into_iter().filter(|payload| payload.first() != Some(&CHANGE_USER)).map(|payload| (0, payload)).collect();
            let whole = packets(&payloads);
            prop_assert_eq!(fed(&mut Commands::default(), &whole, cut), (whole.len(), false));
        }
    }
}
