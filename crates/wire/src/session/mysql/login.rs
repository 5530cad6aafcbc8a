//! The server's side alone, from its greeting on: where a message of the launcher may stand, and which number it has.
//!
//! The commands are not known here, so an answer behind the login is told by its first packet, whose number is 1. That is not sure,
//! and is good enough for a last word: the next answer is read anew.

use bytes::Bytes;

use super::answer::{At, EOF, Kind, Metadata, Packet, Rules, START};
use crate::error_text::ErrorText;
use crate::mysql::packet::{ERR, LOGIN_PACKET_MAX, OK, PAYLOAD_MAX};

/// Bytes before a payload.
const HEAD: usize = 4;
/// Number of the first packet of an answer.
const FIRST: u8 = 1;
/// Longest number of columns.
const COUNT_MAX: usize = 10;
/// Length of the first packet of an answer to a prepare, without and with CLIENT_OPTIONAL_RESULTSET_METADATA.
const PREPARED: [usize; 2] = [12, 13];

/// Nobody has said what was agreed. These read both ways of ending definitions.
const RULES: Rules = Rules { deprecates_eof: true, metadata: Metadata::Unknown, progress: true };

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Up to the OK packet or an error.
    Login,
    Session,
    /// It is not the protocol: most likely it is encrypted.
    Lost,
}

/// See the module.
#[derive(Debug, PartialEq, Eq)]
pub struct Login {
    stage: Stage,
    /// The head of the packet under way and the start of its payload.
    start: [u8; HEAD + START],
    /// Of those, what has come.
    have: usize,
    /// Of the payload, what has not.
    missing: usize,
    /// The packet goes on with the payload of the one before.
    continues: bool,
    /// Of the last packet.
    number: u8,
    kind: Kind,
    at: At,
}

impl Login {
    pub(in crate::session) fn new() -> Self {
        Self {
            stage: Stage::Login,
            start: [0; HEAD + START],
            have: 0,
            missing: 0,
            continues: false,
            number: 0,
            kind: Kind::Results,
            at: At::Ended,
        }
    }

    /// Follows bytes that go to the client.
    pub(in crate::session) fn server(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.stage != Stage::Lost {
            let passed = self.message(bytes);
            bytes = bytes.get(passed..).unwrap_or_default();
        }
    }

    /// The same, no further than to the end of the packet under way: how much that is.
    pub(in crate::session) fn message(&mut self, bytes: &[u8]) -> usize {
        if self.stage == Stage::Lost {
            return bytes.len();
        }
        let head = HEAD.saturating_sub(self.have).min(bytes.len());
        self.keep(bytes.get(..head).unwrap_or_default());
        if self.have < HEAD {
            return head;
        }
        if head > 0 {
            self.missing = self.length();
            if self.stage == Stage::Login && !self.is_login() {
                self.stage = Stage::Lost;
                return bytes.len();
            }
        }
        let rest = bytes.get(head..).unwrap_or_default();
        let now = rest.get(..self.missing).unwrap_or(rest);
        self.keep(now);
        self.missing = self.missing.saturating_sub(now.len());
        if self.missing == 0 {
            self.end();
        }
        head.saturating_add(now.len())
    }

    fn keep(&mut self, bytes: &[u8]) {
        for (to, from) in self.start.iter_mut().skip(self.have).zip(bytes) {
            *to = *from;
            self.have = self.have.saturating_add(1);
        }
    }

    fn length(&self) -> usize {
        let [a, b, c, ..] = self.start;
        usize::try_from(u32::from_le_bytes([a, b, c, 0])).unwrap_or(usize::MAX)
    }

    /// A packet of a login follows one of the client, or the one before.
    fn is_login(&self) -> bool {
        let [_, _, _, number, ..] = self.start;
        let since = number.wrapping_sub(self.number);
        self.length() <= LOGIN_PACKET_MAX && (since == 1 || since == 2 || number == 0)
    }

    /// The packet is whole.
    fn end(&mut self) {
        let ([_, _, _, number, start @ ..], length) = (self.start, self.length());
        let packet = Packet { start: start.get(..length.min(START)).unwrap_or_default(), length };
        let before = std::mem::replace(&mut self.number, number);
        self.have = 0;
        let goes_on = std::mem::replace(&mut self.continues, length == PAYLOAD_MAX);
        if goes_on {
            return;
        }
        if self.stage == Stage::Login {
            if number > 0 && matches!(packet.first(), Some(OK | ERR)) {
                self.stage = Stage::Session;
            }
            return;
        }
        // In a long answer, this number comes behind 0 again.
        if number == FIRST && (self.at == At::Ended || before != 0) {
            (self.kind, self.at) = (kind(&packet), At::Begin);
        }
        self.at = match self.at {
            // Behind the client's packets.
            At::File => At::Result,
            at => at,
        };
        self.at = self.at.after(self.kind, &packet, RULES).unwrap_or(At::Ended);
    }

    pub(in crate::session) fn is_between_messages(&self) -> bool {
        self.stage != Stage::Lost && self.have == 0 && !self.continues
    }

    pub(in crate::session) fn is_idle(&self) -> bool {
        self.is_between_messages() && self.at == At::Ended
    }

    /// The error after which the connection is closed. `None` in the middle of a message.
    pub(in crate::session) fn last_words(&self, text: &ErrorText) -> Option<Bytes> {
        // It comes in the place of the answer to what the client has sent or will send.
        let number = match self.stage {
            Stage::Login => self.number.wrapping_add(2),
            _ if self.at == At::Ended => FIRST,
            _ => self.number.wrapping_add(1),
        };
        self.is_between_messages().then(|| text.packet(number, true))
    }
}

/// What an answer that begins like this most likely is.
fn kind(packet: &Packet<'_>) -> Kind {
    match packet.first() {
        // An OK packet of the same length has numbers above 65535, or a text, where the high byte of the statement's number and
        // the filler are.
        Some(OK) => match packet.prepared() {
            Some((1..0x100_0000, _)) if PREPARED.contains(&packet.length) && packet.start.get(9) == Some(&0) => {
                Kind::Prepared
            }
            _ => Kind::Results,
        },
        Some(ERR | EOF) => Kind::Results,
        // The definition of a column.
        Some(3) if packet.length > COUNT_MAX => Kind::Rows,
        Some(text) if text.is_ascii_graphic() && packet.length > COUNT_MAX => Kind::Text,
        _ => Kind::Results,
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use proptest::prelude::*;

    use super::*;
    use crate::mysql::packet;

    const GREETING: &[u8] = b"\x0a8.4.0\0";
    const FINE: &[u8] = &[OK, 0, 0, 2, 0, 0, 0];
    const END: &[u8] = &[EOF, 0, 0, 2, 0];
    const END_AS_OK: &[u8] = &[EOF, 0, 0, 2, 0, 0, 0];
    const ROW: &[u8] = b"\x011";
    const COLUMN: &[u8] = b"\x03def\0\0\0";
    const REPORT: &[u8] = b"\xff\xff\xff\x01\x01\x02\x10\x27\x00\x04copy";

    fn packets(payloads: &[(u8, &[u8])]) -> Vec<u8> {
        let mut out = BytesMut::new();
        for (number, payload) in payloads {
            packet::encode(*number, payload, &mut out);
        }
        out.to_vec()
    }

    /// The number of the last words behind these packets.
    fn number_behind(payloads: &[(u8, &[u8])]) -> Option<u8> {
        let mut stream = Login::new();
        stream.server(&packets(payloads));
        stream.last_words(&ErrorText::default()).map(|said| said[3])
    }

    fn in_session(payloads: &[(u8, &[u8])]) -> u8 {
        let login: [(u8, &[u8]); 2] = [(0, GREETING), (2, FINE)];
        number_behind(&[&login[..], payloads].concat()).expect("between packets")
    }

    #[test]
    fn a_login_is_followed_if_it_stays_in_clear() {
        assert_eq!(number_behind(&[(0, GREETING)]), Some(2));
        assert_eq!(number_behind(&[(0, GREETING), (2, b"\xfemysql_native_password\0")]), Some(4));
        assert_eq!(number_behind(&[(0, GREETING), (2, FINE)]), Some(1));
        assert_eq!(number_behind(&[(0, GREETING), (2, b"\xfex\0"), (4, b"\x01\x03"), (5, FINE)]), Some(1));
        // A ServerHello where an answer is due.
        let mut stream = Login::new();
        stream.server(&packets(&[(0, GREETING)]));
        stream.server(b"\x16\x03\x03\0\x7a\x02\0\0\x76");
        assert!(!stream.is_between_messages() && stream.last_words(&ErrorText::default()).is_none());
    }

    #[test]
    fn behind_a_whole_answer_the_next_one_is_due() {
        for idle in [
            &[][..],
            &[(1, FINE)],
            &[(1, &[1]), (2, COLUMN), (3, END), (4, ROW), (5, END)],
            &[(1, &[1]), (2, COLUMN), (3, ROW), (4, END_AS_OK)],
            &[(1, &[1]), (2, COLUMN), (3, ROW), (4, b"\xffoh")],
            &[(1, &[1]), (2, COLUMN), (3, END), (4, ROW), (5, &[EOF, 0, 0, 10, 0]), (6, FINE)],
            // A prepared statement with one column and one parameter, with and without the ends of its definitions.
            &[(1, &[OK, 9, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0]), (2, COLUMN), (3, COLUMN)],
            &[(1, &[OK, 9, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0]), (2, COLUMN), (3, END), (4, COLUMN), (5, END)],
            // Statistics; a table's fields; reports of progress; an answer that was not understood before.
            &[(1, b"Uptime: 7  Threads: 1")],
            &[(1, b"\x03def\0\x01\0a\0\0\0"), (2, END)],
            &[(1, REPORT), (2, FINE)],
            &[(1, &[1]), (2, COLUMN), (1, FINE)],
            // OK packets as long as that of a prepared statement.
            &[(1, &[OK, 0xfc, 0x2c, 1, 0xfd, 0x70, 0x11, 1, 2, 0, 0, 0])],
            &[(1, b"\x00\x01\x00\x02\x00\x00\x00\x04done")],
        ] {
            assert_eq!(in_session(idle), 1, "{idle:?}");
        }
    }

    #[test]
    fn within_an_answer_the_next_number_is_due() {
        for within in [
            &[(1, &[1][..])][..],
            &[(1, &[1]), (2, COLUMN)],
            &[(1, &[1]), (2, COLUMN), (3, END)],
            &[(1, &[1]), (2, COLUMN), (3, &[OK, 0, 5])],
            &[(1, &[1]), (2, COLUMN), (3, END), (4, &[EOF, 0, 0, 10, 0])],
            &[(1, &[OK, 9, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0]), (2, COLUMN)],
            &[(1, REPORT), (2, REPORT)],
            &[(1, b"\xfb/tmp/rows.csv")],
        ] {
            assert_eq!(in_session(within), within.last().unwrap().0 + 1, "{within:?}");
        }
        assert_eq!(in_session(&[(1, &[1]), (2, COLUMN), (255, ROW)]), 0);
        assert_eq!(in_session(&[(1, &[1]), (2, COLUMN), (0, ROW), (1, ROW)]), 2);
    }

    proptest! {
        #[test]
        fn any_chunking_finds_the_same_ends(
            bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..30), 0..20),
            cut in 1_usize..40,
        ) {
            let payloads: Vec<_> = bodies.iter().zip(2..).map(|(body, number)| (number, &body[..])).collect();
            let stream = packets(&payloads);
            let (mut whole, mut pieces, mut messages) = (Login::new(), Login::new(), Login::new());
            whole.server(&stream);
            stream.chunks(cut).for_each(|piece| pieces.server(piece));
            let mut rest = &stream[..];
            while !rest.is_empty() {
                let end = messages.message(rest);
                prop_assert!((1..=rest.len()).contains(&end) && messages.is_between_messages());
                rest = &rest[end..];
            }
            prop_assert!(whole == pieces && whole == messages);
        }
    }
}
