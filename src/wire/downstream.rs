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
use crate::wire::mysql::answer::{Answer, LOCAL_FILE, Start};
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
    /// The next answer of MySQL is rows without a head, those of a cursor.
    begins_with_rows: bool,
    /// A request for a file of the client is not passed.
    holds_file_requests: bool,
    /// It stands before such a request.
    at_file_request: bool,
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
            begins_with_rows: false,
            holds_file_requests: false,
            at_file_request: false,
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

    /// Stops before a packet in which MySQL asks for a file of the client: see [`Downstream::pass_up_to_file_request`].
    #[must_use]
    pub fn holding_file_requests(self) -> Self {
        Self { holds_file_requests: true, ..self }
    }

    /// The next answer of MySQL is that to COM_STMT_FETCH.
    pub fn expect_rows(&mut self) {
        self.begins_with_rows = true;
    }

    /// From a message on; everything before it is whole.
    pub fn postgres() -> Self {
        Self::new(Engine::Postgres)
    }

    /// Follows bytes that go to the client.
    pub fn pass(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() && !self.at_file_request {
            let used = self.pass_message(rest);
            rest = rest.get(used..).unwrap_or_default();
        }
    }

    /// The answer under way has ended: it was that of a login, which is not followed.
    pub fn end_answer(&mut self) {
        self.answer = Answer::Ended;
    }

    /// Follows bytes that go to the client, up to a packet that asks for one of its files. Where among `bytes` that packet
    /// begins, 0 if its head has come before. The stream then stands before that packet, and passes no more.
    pub fn pass_up_to_file_request(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut passed = 0_usize;
        while let Some(rest) = bytes.get(passed..).filter(|rest| !rest.is_empty() && !self.at_file_request) {
            passed = passed.saturating_add(self.pass_message(rest));
        }
        self.at_file_request.then_some(passed)
    }

    /// Follows the packet that was held, which the client may read.
    pub fn pass_file_request(&mut self, packet: &[u8]) {
        self.at_file_request = false;
        let holds = std::mem::take(&mut self.holds_file_requests);
        self.pass(packet);
        self.holds_file_requests = holds;
    }

    /// Where requests for files are held: how much has come of a head whose packet has not begun to come.
    pub fn pending_head(&self) -> usize {
        match self.at {
            _ if !self.holds_file_requests => 0,
            At::Head(have) => have,
            At::Body(missing) if self.engine == Engine::Mysql && missing == self.packet.start.length() => {
                self.engine.head()
            }
            At::Body(_) | At::Lost => 0,
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
                    if self.is_file_request(missing, body) {
                        self.stand_before();
                        return 0;
                    }
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

    /// Whether `body`, of which `missing` bytes are to come, begins a request for a file that is not to pass.
    fn is_file_request(&self, missing: usize, body: &[u8]) -> bool {
        self.holds_file_requests
            && body.first() == Some(&LOCAL_FILE)
            && missing == self.packet.start.length()
            && !self.packet.continues
            && self.login == Login::Done
            && self.answer.is_due()
    }

    /// As before the packet whose head has come; the client expects its number.
    fn stand_before(&mut self) {
        self.at = At::Head(0);
        self.answer = Answer::Result;
        self.packet.sequence = self.packet.sequence.wrapping_sub(1);
        self.packet.start = Start::new(0);
        self.at_file_request = true;
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
                    self.answer = if std::mem::take(&mut self.begins_with_rows) { Answer::Rows } else { Answer::Ended };
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
mod tests;
