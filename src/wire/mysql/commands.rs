//! Finds the commands among the bytes that a client sends after its login, without looking into them.
//!
//! Only headers are read: three bytes of length, the sequence number (0 begins a command), then the command itself
//! (MySQL Source Code Documentation, "Command Phase"). Two commands are not the database's to answer, see
//! [`change_user`](super::change_user); everything else is passed over.

use super::capability::{DEPRECATE_EOF, LOCAL_FILES};
use super::in_flight::InFlight;
use super::local_infile::{LocalFiles, SentFile};
use super::packet::PAYLOAD_MAX;
use crate::wire::downstream::Downstream;

/// `COM_SLEEP`, which a server takes an empty command for (`dispatch_command`), and answers.
const SLEEP: u8 = 0x00;
/// `COM_QUERY`.
const QUERY: u8 = 0x03;
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
    /// Whether a session must be set up again after a reset.
    stops_at_reset: bool,
    /// CLIENT_DEPRECATE_EOF holds.
    deprecates_eof: bool,
    in_flight: InFlight,
    /// Where the login agreed that the client may send files.
    files: Option<LocalFiles>,
}

impl Commands {
    /// `stops_at_reset` is whether the relay has set up the session, `capabilities` are those that the login agreed on.
    pub fn new(stops_at_reset: bool, capabilities: u32) -> Self {
        let deprecates_eof = capabilities & DEPRECATE_EOF != 0;
        let files = (capabilities & LOCAL_FILES != 0).then(LocalFiles::default);
        Self { stops_at_reset, deprecates_eof, files, ..Self::default() }
    }

    /// Whether the login agreed that the client may send files.
    pub fn may_send_files(&self) -> bool {
        self.files.is_some()
    }

    /// Whether the upstream may have the file that it asks for: then the client's next packets are that file.
    pub fn grant_file(&mut self, name: &[u8]) -> bool {
        self.files.as_mut().is_some_and(|files| files.grant(name))
    }

    /// The files that the client has sent since this was asked.
    pub fn take_sent_files(&mut self) -> Vec<SentFile> {
        self.files.as_mut().map(LocalFiles::take_sent).unwrap_or_default()
    }

    /// The file that is on its way still, at the end of the connection.
    pub fn take_unfinished_file(&mut self) -> Option<SentFile> {
        self.files.as_mut()?.take_unfinished()
    }

    /// The upstream's stream while the session is idle.
    pub fn downstream(&self) -> Downstream {
        Downstream::mysql(self.deprecates_eof)
    }

    /// In a session that has started anew.
    pub fn start_anew(&mut self) {
        let (stops_at_reset, deprecates_eof) = (self.stops_at_reset, self.deprecates_eof);
        let files = self.files.as_ref().map(|_| LocalFiles::default());
        *self = Self { stops_at_reset, deprecates_eof, files, ..Self::default() };
    }

    /// Whether a session must be set up again after a reset.
    pub fn stop_at_resets(&mut self, stops: bool) {
        self.stops_at_reset = stops;
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
            if let Some(files) = &mut self.files {
                files.pass(rest.get(..self.skip.min(rest.len())).unwrap_or_default());
            }
            let Some(at_header) = rest.get(self.skip..).filter(|after| !after.is_empty()) else {
                self.skip = self.skip.saturating_sub(rest.len());
                return Scan { pass: bytes.len(), stop: false };
            };
            self.skip = 0;
            let passed = Scan { pass: bytes.len().saturating_sub(at_header.len()), stop: false };
            let Some((&[a, b, c, sequence], payload)) = at_header.split_first_chunk::<4>() else { return passed };
            let length = usize::try_from(u32::from_le_bytes([a, b, c, 0])).unwrap_or(usize::MAX);
            if let Some(files) = self.files.as_mut().filter(|files| files.is_sending()) {
                files.packet(length, self.continued);
            } else if !self.continued && sequence == 0 {
                let command = match payload.first() {
                    _ if length == 0 => SLEEP,
                    None => return passed,
                    Some(&command) => command,
                };
                if self.stops_at(command) {
                    self.in_flight.hold(self.downstream());
                    return Scan { stop: true, ..passed };
                }
                if let Some(files) = &mut self.files {
                    files.begin(command == QUERY && self.in_flight.is_answered());
                }
                self.in_flight.command(command, self.downstream());
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
    fn an_empty_command_has_an_answer() {
        let mut commands = Commands::new(true, 0);
        commands.scan(&packets(&[(0, Vec::new())]));
        assert!(!commands.is_answered());
        let scan = commands.scan(&packets(&[(0, vec![RESET_CONNECTION])]));
        assert!(scan.stop && !commands.is_answered());
        let unknown = b"\xff\x17\x04#08S01Unknown command";
        commands.down(&packets(&[(1, unknown.to_vec())]));
        assert!(commands.is_answered());
    }

    #[test]
    fn a_file_is_passed_over_whatever_it_begins_with() {
        let load = packets(&[(0, b"\x03load data local infile 'rows.csv' into table t".to_vec())]);
        let rows = packets(&[(2, b"\x11 1".to_vec()), (0, b"\x11 2".to_vec()), (1, b"\x1f".to_vec()), (2, Vec::new())]);
        let change = packets(&[(0, vec![CHANGE_USER])]);
        for cut in 1..=load.len() {
            let mut commands = Commands::new(true, LOCAL_FILES);
            assert_eq!(fed(&mut commands, &load, cut), (load.len(), false));
            commands.down(&packets(&[(1, b"\xfbrows.csv".to_vec())]));
            assert!(commands.grant_file(b"rows.csv") && !commands.clone().grant_file(b"rows.csv"));
            let both = [rows.clone(), change.clone()].concat();
            assert_eq!(fed(&mut commands, &both, cut), (rows.len(), true), "{cut}");
            let sent = SentFile { name: "rows.csv".to_owned(), bytes: 7, complete: true };
            assert_eq!((commands.take_sent_files(), commands.take_unfinished_file()), (vec![sent], None));
        }
        // Nobody has agreed; the statement is not the only command; it is another command.
        let mut commands = Commands::new(false, 0);
        commands.scan(&load);
        assert!(!commands.grant_file(b"rows.csv"));
        for more in [[packets(&[(0, b"\x0e".to_vec())]), load.clone()], [load, packets(&[(0, b"\x0e".to_vec())])]] {
            let mut commands = Commands::new(false, LOCAL_FILES);
            commands.scan(&more.concat());
            assert!(!commands.grant_file(b"rows.csv"));
        }
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
