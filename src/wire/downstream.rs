//! Where a database's stream stands, so that the relay or the launcher can say something of its own between two messages of
//! the database: that the session will end, and why it has ended. Little is read: type and length in PostgreSQL
//! (manual, "Message Formats"); length, sequence number (MySQL Source Code Documentation, "MySQL Packets") and the start of the
//! payload in MySQL, see [`answer`](crate::wire::mysql::answer).
//!
//! PostgreSQL lets a server send a NoticeResponse between any two messages ("Asynchronous Operations"), in COPY too, and an
//! ErrorResponse before it closes. MySQL has no notices. A server that closes an idle session sends an ERR packet that
//! nobody has asked for (MySQL since 8.0.24, `ER_CLIENT_INTERACTION_TIMEOUT`; MariaDB, `ER_CONNECTION_KILLED`), which a
//! client reads where it looks for the answer to its next command. Numbers in an answer begin at 1, and clients that count
//! refuse another one, so 1 is what such a packet has here; in the middle of an answer it has the next number.

use bytes::{Bytes, BytesMut};

use crate::wire::error_text::ErrorText;
use crate::wire::mysql::answer::{Answer, Start};
use crate::wire::mysql::packet::{ERR, LOGIN_PACKET_MAX, OK, PAYLOAD_MAX};

/// Number of the first packet of an answer.
const FIRST: u8 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Engine {
    Mysql,
    Postgres,
}

impl Engine {
    /// Bytes before the body.
    fn head(self) -> usize {
        match self {
            Self::Mysql => 4,
            Self::Postgres => 5,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// So many bytes of a head have come; 0 is between two messages.
    Head(usize),
    /// So many bytes of the body are still to come, not 0.
    Body(usize),
    /// It is not the protocol.
    Lost,
}

/// A login that the stream begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Login {
    Done,
    /// Before the first message, there are answers of one byte each to requests for encryption.
    Postgres,
    /// Up to the OK packet or an error.
    Mysql,
}

/// What is kept of MySQL's last packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Packet {
    sequence: u8,
    start: Start,
    /// It begins an answer.
    begins: bool,
    /// It goes on with the payload of the one before.
    continues: bool,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Downstream {
    engine: Engine,
    login: Login,
    at: At,
    head: [u8; 5],
    packet: Packet,
    answer: Answer,
    /// MySQL's definitions have no EOF packets behind them.
    deprecates_eof: bool,
    /// Of MySQL, those that have begun; `None` once numbers have come that no answers have.
    answers: Option<usize>,
}

impl Downstream {
    fn new(engine: Engine) -> Self {
        Self {
            engine,
            login: Login::Done,
            at: At::Head(0),
            head: [0; 5],
            packet: Packet { sequence: 0, start: Start::new(0), begins: false, continues: false },
            answer: Answer::Ended,
            deprecates_eof: true,
            answers: Some(0),
        }
    }

    /// From the greeting on. A session that becomes encrypted is not followed.
    pub fn mysql_login() -> Self {
        Self { login: Login::Mysql, ..Self::new(Engine::Mysql) }
    }

    /// From the first byte on. A session that becomes encrypted is not followed.
    pub fn postgres_login() -> Self {
        Self { login: Login::Postgres, ..Self::new(Engine::Postgres) }
    }

    /// From an answer on; everything before it is whole. `deprecates_eof` is whether both sides have agreed on
    /// CLIENT_DEPRECATE_EOF.
    pub fn mysql(deprecates_eof: bool) -> Self {
        Self { deprecates_eof, ..Self::new(Engine::Mysql) }
    }

    /// From a message on; everything before it is whole.
    pub fn postgres() -> Self {
        Self::new(Engine::Postgres)
    }

    /// Follows bytes that go to the client.
    pub fn pass(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let used = self.pass_message(rest);
            rest = rest.get(used..).unwrap_or_default();
        }
    }

    /// Follows the bytes up to the end of the message under way, or all of them if it ends later. How many those are.
    pub fn pass_message(&mut self, bytes: &[u8]) -> usize {
        if self.login == Login::Postgres {
            return self.pass_answer(bytes);
        }
        let mut used = 0;
        if let At::Head(have) = self.at {
            let wanted = self.engine.head().saturating_sub(have).min(bytes.len());
            let now = bytes.get(..wanted).unwrap_or_default();
            let into = self.head.get_mut(have..have.saturating_add(wanted)).unwrap_or_default();
            into.copy_from_slice(now);
            used = wanted;
            self.at = At::Head(have.saturating_add(wanted));
            if have.saturating_add(wanted) < self.engine.head() {
                return used;
            }
            self.begin();
        }
        match self.at {
            At::Head(_) => used,
            At::Body(missing) => {
                let body = bytes.get(used..).unwrap_or_default();
                let now = missing.min(body.len());
                if self.engine == Engine::Mysql {
                    self.packet.start.pass(missing, body.get(..now).unwrap_or_default());
                }
                match missing.saturating_sub(now) {
                    0 => self.finish(),
                    missing => self.at = At::Body(missing),
                }
                used.saturating_add(now)
            }
            At::Lost => bytes.len(),
        }
    }

    /// PostgreSQL's answers before its first message: no, or yes and then something else. The first message of a login
    /// asks for authentication, refuses or negotiates the version.
    fn pass_answer(&mut self, bytes: &[u8]) -> usize {
        match bytes.first() {
            None | Some(b'N') => return bytes.len().min(1),
            Some(b'R' | b'E' | b'v') => {}
            Some(_) => self.at = At::Lost,
        }
        self.login = Login::Done;
        self.pass_message(bytes)
    }

    /// A packet of MySQL's login follows one of the client, or the one before; anything else is most likely TLS.
    fn is_login(&self, sequence: u8, length: usize) -> bool {
        let since = sequence.wrapping_sub(self.packet.sequence);
        length <= LOGIN_PACKET_MAX && (since == 1 || since == 2 || sequence == 0)
    }

    /// The head is whole.
    fn begin(&mut self) {
        let [a, b, c, d, e] = self.head;
        let sequence = d;
        let length = match self.engine {
            Engine::Mysql => {
                let length = usize::try_from(u32::from_le_bytes([a, b, c, 0])).unwrap_or(usize::MAX);
                if self.login == Login::Mysql && !self.is_login(sequence, length) {
                    self.at = At::Lost;
                    return;
                }
                let continues = self.is_continued();
                // In a long answer, this number comes behind 0 again.
                let over = self.answer == Answer::Ended || self.packet.sequence != 0;
                let begins = sequence == FIRST && over && !continues;
                if begins {
                    self.answer = Answer::Ended;
                    self.answers = self.answers.map(|begun| begun.saturating_add(1));
                } else if sequence != self.packet.sequence.wrapping_add(1) {
                    self.answers = None;
                }
                self.packet = Packet { sequence, start: Start::new(length), begins, continues };
                Some(length)
            }
            Engine::Postgres => {
                u32::from_be_bytes([b, c, d, e]).checked_sub(4).and_then(|body| usize::try_from(body).ok())
            }
        };
        match length {
            None => self.at = At::Lost,
            Some(0) => self.finish(),
            Some(length) => self.at = At::Body(length),
        }
    }

    /// The message is whole.
    fn finish(&mut self) {
        self.at = At::Head(0);
        let Packet { sequence, start, begins, continues } = self.packet;
        if self.engine == Engine::Postgres || continues {
            return;
        }
        if self.login != Login::Mysql {
            self.answer = self.answer.after(&start, begins, self.deprecates_eof);
            if self.answer == Answer::Login {
                self.login = Login::Mysql;
            }
        } else if sequence > 0 && matches!(start.first(), Some(OK | ERR)) {
            (self.login, self.answer) = (Login::Done, Answer::Ended);
        }
    }

    /// The next packet of MySQL goes on with the payload of the last one.
    fn is_continued(&self) -> bool {
        self.engine == Engine::Mysql && self.packet.start.length() == PAYLOAD_MAX
    }

    /// Whether every message that has begun is whole.
    pub fn is_between_messages(&self) -> bool {
        self.at == At::Head(0) && !self.is_continued()
    }

    /// How many answers of MySQL have begun; `None` if it does not look like answers. The last one may have ended where
    /// [`Downstream::is_between_answers`] says so.
    pub fn answers(&self) -> Option<usize> {
        self.answers
    }

    pub fn is_between_answers(&self) -> bool {
        self.is_between_messages() && self.answer == Answer::Ended
    }

    /// What a client shows, or hands to its program, while the session goes on: between two messages. `None` where the
    /// engine has no such thing.
    pub fn notice(&self, text: &ErrorText) -> Option<Bytes> {
        if self.engine == Engine::Mysql {
            return None;
        }
        let mut out = BytesMut::new();
        text.fields("WARNING").encode_notice(&mut out);
        Some(out.freeze())
    }

    /// The error after which the connection is closed. `None` in the middle of a message.
    pub fn last_words(&self, text: &ErrorText) -> Option<Bytes> {
        self.is_between_messages().then(|| match self.engine {
            // It comes in the place of the answer to what the client has sent or will send.
            Engine::Mysql if self.login == Login::Mysql => text.packet(self.packet.sequence.wrapping_add(2), true),
            Engine::Mysql if self.answer == Answer::Ended => text.packet(FIRST, true),
            Engine::Mysql => text.packet(self.packet.sequence.wrapping_add(1), true),
            Engine::Postgres => {
                let mut out = BytesMut::new();
                text.fields("FATAL").encode(&mut out);
                out.freeze()
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::mysql::packet::{self, ErrPacket};
    use crate::wire::pg::message::{self, ErrorFields};

    fn text() -> ErrorText {
        let (sqlstate, message) = ("57P01".to_owned(), "it ends".to_owned());
        ErrorText { number: 1053, sqlstate, message, detail: String::new(), hint: "connect again".to_owned() }
    }

    fn packets(payloads: &[(u8, &[u8])]) -> Vec<u8> {
        let mut out = BytesMut::new();
        for (sequence, payload) in payloads {
            packet::encode(*sequence, payload, &mut out);
        }
        out.to_vec()
    }

    /// The number of the last words behind these packets.
    fn number(payloads: &[(u8, &[u8])]) -> u8 {
        let mut stream = Downstream::mysql(true);
        stream.pass(&packets(payloads));
        let said = stream.last_words(&text()).expect("between packets");
        let said = packet::decode(&mut BytesMut::from(&said[..])).unwrap().unwrap();
        assert_eq!(ErrPacket::parse(&said.payload).message, "it ends. connect again");
        said.sequence
    }

    #[test]
    fn postgres_is_told_between_messages_and_not_within_one() {
        let mut out = BytesMut::new();
        message::encode(b'D', b"row", &mut out);
        message::encode(b'I', b"", &mut out);
        for end in 0..=out.len() {
            let mut stream = Downstream::postgres();
            stream.pass(&out[..end]);
            assert_eq!(stream.last_words(&text()).is_some(), [0, 8, 13].contains(&end), "{end}");
        }
        let stream = Downstream::postgres();
        for (said, tag, severity) in
            [(stream.last_words(&text()).unwrap(), b'E', "FATAL"), (stream.notice(&text()).unwrap(), b'N', "WARNING")]
        {
            let said = message::decode(&mut BytesMut::from(&said[..])).unwrap().unwrap();
            let fields = ErrorFields::parse(&said.body);
            assert_eq!((said.tag, fields.severity.as_str(), fields.message.as_str()), (tag, severity, "it ends"));
        }
    }

    #[test]
    fn postgres_is_followed_from_its_first_byte_if_it_stays_in_clear() {
        let mut out = BytesMut::from(&b"NN"[..]);
        message::encode(b'R', b"\0\0\0\0", &mut out);
        message::encode(b'S', b"a\0b\0", &mut out);
        for end in 0..=out.len() {
            let mut stream = Downstream::postgres_login();
            for byte in &out[..end] {
                stream.pass(&[*byte]);
            }
            let mut whole = Downstream::postgres_login();
            whole.pass(&out[..end]);
            assert_eq!(whole, stream);
            assert_eq!(stream.last_words(&text()).is_some(), [0, 1, 2, 11, 20].contains(&end), "{end}");
        }
        for encrypted in [&b"S"[..], b"NG", b"S\x16\x03\x03"] {
            let mut stream = Downstream::postgres_login();
            stream.pass(encrypted);
            assert!(stream.last_words(&text()).is_none(), "{encrypted:?}");
        }
    }

    #[test]
    fn mysql_is_followed_from_its_greeting_if_it_stays_in_clear() {
        const GREETING: &[u8] = b"\x0a8.4.0\0";
        const FINE: &[u8] = &[OK, 0, 0, 2, 0, 0, 0];
        let number = |payloads: &[(u8, &[u8])]| {
            let mut stream = Downstream::mysql_login();
            stream.pass(&packets(payloads));
            stream.last_words(&text()).map(|said| said[3])
        };
        assert_eq!(number(&[(0, GREETING)]), Some(2));
        assert_eq!(number(&[(0, GREETING), (2, b"\xfemysql_native_password\0")]), Some(4));
        // Idle.
        assert_eq!(number(&[(0, GREETING), (2, FINE)]), Some(1));
        assert_eq!(number(&[(0, GREETING), (2, b"\xfex\0"), (4, b"\x01\x03"), (5, FINE)]), Some(1));
        // In the middle of an answer.
        assert_eq!(number(&[(0, GREETING), (2, FINE), (1, &[1]), (2, b"\x03def")]), Some(3));
        // A ServerHello where an answer is due.
        let mut stream = Downstream::mysql_login();
        stream.pass(&packets(&[(0, GREETING)]));
        stream.pass(b"\x16\x03\x03\0\x7a\x02\0\0\x76");
        assert!(stream.last_words(&text()).is_none());
    }

    #[test]
    fn a_length_that_no_message_has_is_never_interrupted() {
        let mut stream = Downstream::postgres();
        stream.pass(b"D\0\0\0\x03D\0\0\0\x04");
        assert!(stream.last_words(&text()).is_none());
    }

    #[test]
    fn mysql_gets_the_number_that_its_client_waits_for() {
        const ROW: &[u8] = b"\x011";
        const END: &[u8] = &[0xfe, 0, 0, 2, 0];
        const FINE: &[u8] = &[OK, 0, 0, 2, 0, 0, 0];
        let column: &[u8] = b"\x03def\0\0\0";
        // Idle: after the login, a statement, a result, an error, a procedure.
        for idle in [
            &[][..],
            &[(1, FINE)],
            &[(1, &[1]), (2, column), (3, END), (4, ROW), (5, END)],
            &[(1, &[1]), (2, column), (3, ROW), (4, b"\xffoh")],
            &[(1, &[1]), (2, column), (3, ROW), (4, &[0xfe, 0, 0, 10, 0]), (5, FINE)],
            // A prepared statement with one column and one parameter; statistics; an answer that was not understood before.
            &[(1, &[OK, 9, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0]), (2, column), (3, column)],
            &[(1, b"Uptime: 7  Threads: 1")],
            &[(1, &[1]), (2, column), (1, FINE)],
            // Another user, with a password or without.
            &[(1, b"\xfecaching_sha2_password\0"), (3, b"\x01\x03"), (4, FINE)],
            &[(1, b"\xfemysql_native_password\0"), (3, FINE), (1, FINE)],
            &[(1, b"\xfemysql_native_password\0"), (3, b"\xff\x19\x04#42000no")],
        ] {
            assert_eq!(number(idle), 1, "{idle:?}");
        }
        // In the middle of an answer, also where a row of a prepared statement looks like an OK packet.
        assert_eq!(number(&[(1, &[1]), (2, column)]), 3);
        assert_eq!(number(&[(1, &[1]), (2, column), (255, ROW)]), 0);
        assert_eq!(number(&[(1, &[1]), (2, column), (3, &[OK, 0, 5])]), 4);
        // More is to come: rows, another result, a definition, the client's proof.
        assert_eq!(number(&[(1, &[1]), (2, column), (3, END)]), 4);
        assert_eq!(number(&[(1, &[1]), (2, column), (3, END), (4, &[0xfe, 0, 0, 10, 0])]), 5);
        assert_eq!(number(&[(1, &[OK, 9, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0]), (2, column)]), 3);
        assert_eq!(number(&[(1, b"\xfecaching_sha2_password\0")]), 3);
        assert!(Downstream::mysql(true).notice(&text()).is_none());
    }

    #[test]
    fn a_long_mysql_packet_is_not_interrupted_before_its_last_part() {
        let long = vec![b'x'; PAYLOAD_MAX];
        let mut stream = Downstream::mysql(true);
        stream.pass(&packets(&[(4, &long)]));
        assert!(!stream.is_between_messages());
        stream.pass(&packets(&[(5, b"")]));
        assert_eq!(stream.last_words(&text()).unwrap()[3], 6);
    }

    /// A stream, and where its messages end.
    fn stream(mysql: bool, bodies: &[Vec<u8>]) -> (Vec<u8>, Vec<usize>) {
        let (mut out, mut ends) = (BytesMut::new(), vec![0]);
        for (number, body) in (1..).zip(bodies) {
            match mysql {
                true => packet::encode(number, body, &mut out),
                false => message::encode(b'D', body, &mut out),
            }
            ends.push(out.len());
        }
        (out.to_vec(), ends)
    }

    proptest! {
        #[test]
        fn any_chunking_finds_the_same_ends(
            mysql: bool,
            bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..30), 0..20),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        ) {
            let (bytes, ends) = stream(mysql, &bodies);
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let begin = if mysql { Downstream::mysql(true) } else { Downstream::postgres() };
            let (mut whole, mut pieces) = (begin.clone(), begin);
            for pair in cuts.windows(2) {
                pieces.pass(&bytes[pair[0]..pair[1]]);
                prop_assert_eq!(pieces.is_between_messages(), ends.contains(&pair[1]), "at {}", pair[1]);
            }
            whole.pass(&bytes);
            prop_assert_eq!(whole.last_words(&text()), pieces.last_words(&text()));
            // From anywhere, the next end is found.
            for pair in cuts.windows(2) {
                let mut stream = if mysql { Downstream::mysql(true) } else { Downstream::postgres() };
                stream.pass(&bytes[..pair[0]]);
                let found = pair[0] + stream.pass_message(&bytes[pair[0]..]);
                let next = ends.iter().find(|end| **end > pair[0]).copied().unwrap_or(bytes.len());
                prop_assert_eq!(found, next);
            }
        }
    }
}
