//! What the relay must know of a session behind its login: which of the client's commands are answered, where a message of the
//! relay may stand among those of the server, what must not go on, and what the audit log is to be told. The launcher
//! follows the server's side alone, from the first byte of the login on.
//!
//! A session is given the bytes of both directions in their order, and never waits for anything. Its bytes are not changed.

mod mysql;
mod postgres;
pub mod text;
mod waiting;

use bytes::Bytes;

use super::error_text::ErrorText;
use super::memory::Budget;
use super::memory::Full;
use super::mysql::agreed::Agreed;
use super::mysql::local_infile::SentFile;
use text::{Limits, Statement};

/// Terminate of PostgreSQL and COM_QUIT of MySQL: the last thing that a client says.
const GOODBYES: [&[u8]; 2] = [b"X\0\0\0\x04", b"\x01\0\0\0\x01"];

/// Whether `bytes` end with a client's goodbye, for a stream that nobody follows.
pub fn ends_with_goodbye(bytes: &[u8]) -> bool {
    GOODBYES.iter().any(|goodbye| bytes.ends_with(goodbye))
}

/// What of some bytes may go on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pass {
    /// So many of them. The others are given again, with what follows them: the start of a head, or what stops.
    pub forward: usize,
    /// Nothing behind those may go on.
    pub stop: Option<Stop>,
}

/// Why nothing more may go on in this direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// The client's next command is not for the database. It is to be answered once [`Session::is_idle`].
    Command,
    /// The server asks for this file of the client, which it may not have. It ends the session.
    File(String),
    /// The session has to end.
    OutOfProtocol(OutOfProtocol),
    /// The session has to end: there is no memory for what the client asks.
    Full(Full),
}

impl From<Full> for Stop {
    fn from(full: Full) -> Self {
        Self::Full(full)
    }
}

impl From<OutOfProtocol> for Stop {
    fn from(error: OutOfProtocol) -> Self {
        Self::OutOfProtocol(error)
    }
}

/// A stream that is not, or no longer, one of the protocol, so that nobody knows what its bytes mean.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the {from} has left the protocol: {what}")]
pub struct OutOfProtocol {
    /// `client` or `database`.
    pub from: &'static str,
    pub what: String,
}

/// What a session has to tell the audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Told before its bytes go on. Numbers of a session begin at 1.
    Statement { number: u64, statement: Statement },
    /// The server has skipped the statement of this number: it did not run.
    NotRun { number: u64 },
    /// A file of the client has come to its end, or the session has before it.
    File(SentFile),
}

/// See the module.
pub enum Session {
    Mysql(Box<mysql::Session>),
    MysqlLogin(Box<mysql::Login>),
    Postgres(Box<postgres::Session>),
}

impl Session {
    /// From an idle session on. What the client has `asked` takes memory of that budget; `statements` are told, if any.
    pub fn mysql(agreed: Agreed, asked: &Budget, statements: Option<Limits>) -> Self {
        Self::Mysql(Box::new(mysql::Session::new(agreed, asked, statements)))
    }

    /// From an idle session on.
    pub fn postgres(statements: Option<Limits>) -> Self {
        Self::Postgres(Box::new(postgres::Session::new(statements)))
    }

    /// The server's side alone, from the greeting on. A session that becomes encrypted is not followed.
    pub fn mysql_login() -> Self {
        Self::MysqlLogin(Box::new(mysql::Login::new()))
    }

    /// The server's side alone, from its first byte on. A session that becomes encrypted is not followed.
    pub fn postgres_login() -> Self {
        Self::Postgres(Box::new(postgres::Session::login()))
    }

    /// The end of the login, on its way to the client.
    pub fn logged_in(&mut self, bytes: &[u8]) {
        match self {
            Self::Mysql(session) => session.logged_in(bytes),
            Self::MysqlLogin(_) => {}
            Self::Postgres(session) => session.logged_in(bytes),
        }
    }

    /// Bytes of the client, which begin with what did not go on before.
    pub fn client(&mut self, bytes: &[u8], events: &mut Vec<Event>) -> Pass {
        match self {
            Self::Mysql(session) => session.client(bytes, events),
            Self::MysqlLogin(_) => Pass { forward: bytes.len(), stop: None },
            Self::Postgres(session) => session.client(bytes, events),
        }
    }

    /// Bytes of the server, which begin with what did not go on before.
    pub fn server(&mut self, bytes: &[u8], events: &mut Vec<Event>) -> Pass {
        match self {
            Self::Mysql(session) => session.server(bytes, events),
            Self::MysqlLogin(session) => {
                session.server(bytes);
                Pass { forward: bytes.len(), stop: None }
            }
            Self::Postgres(session) => session.server(bytes, events),
        }
    }

    /// As [`Session::server`], but no further than to the end of the message under way.
    pub fn server_message(&mut self, bytes: &[u8], events: &mut Vec<Event>) -> Pass {
        match self {
            Self::Mysql(session) => session.server_message(bytes, events),
            Self::MysqlLogin(session) => Pass { forward: session.message(bytes), stop: None },
            Self::Postgres(session) => session.server_message(bytes, events),
        }
    }

    /// What the server has said last and what did not go on is a request for a file, which must not reach the client.
    pub fn withholds(&self) -> bool {
        match self {
            Self::Mysql(session) => session.withholds(),
            Self::MysqlLogin(_) | Self::Postgres(_) => false,
        }
    }

    /// Whether the server has answered all that has gone on, to the end.
    pub fn is_idle(&self) -> bool {
        match self {
            Self::Mysql(session) => session.is_idle(),
            Self::MysqlLogin(session) => session.is_idle(),
            Self::Postgres(session) => session.is_idle(),
        }
    }

    /// Whether so much waits for answers that no more of the client should be read before some have come.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Mysql(session) => session.is_full(),
            Self::MysqlLogin(_) => false,
            Self::Postgres(session) => session.is_full(),
        }
    }

    /// Whether a message for the client may stand here.
    pub fn is_between_messages(&self) -> bool {
        match self {
            Self::Mysql(session) => session.is_between_messages(),
            Self::MysqlLogin(session) => session.is_between_messages(),
            Self::Postgres(session) => session.is_between_messages(),
        }
    }

    /// Whether the client has said the last thing that clients say.
    pub fn has_said_goodbye(&self) -> bool {
        match self {
            Self::Mysql(session) => session.has_said_goodbye(),
            Self::MysqlLogin(_) => false,
            Self::Postgres(session) => session.has_said_goodbye(),
        }
    }

    /// What a client shows, or hands to its program, while the session goes on: between two messages. `None` where the
    /// engine has no such thing.
    pub fn notice(&self, text: &ErrorText) -> Option<Bytes> {
        match self {
            Self::Mysql(_) => None,
            Self::MysqlLogin(_) => None,
            Self::Postgres(session) => Some(session.notice(text)),
        }
    }

    /// The error after which the connection is closed. `None` in the middle of a message.
    pub fn last_words(&self, text: &ErrorText) -> Option<Bytes> {
        match self {
            Self::Mysql(session) => session.last_words(text),
            Self::MysqlLogin(session) => session.last_words(text),
            Self::Postgres(session) => session.last_words(text),
        }
    }

    /// The relay answers the command that has stopped the client, which `command` begins with. The session is idle then, and
    /// has nothing of what it had before.
    pub fn answered(&mut self, command: &[u8], events: &mut Vec<Event>) {
        match self {
            Self::Mysql(session) => session.answered(command, events),
            // All commands are for the database.
            Self::MysqlLogin(_) | Self::Postgres(_) => {}
        }
    }

    /// Whether a COM_RESET_CONNECTION of MySQL stops the client: the relay has set up the session.
    pub fn stop_at_resets(&mut self, stops: bool) {
        if let Self::Mysql(session) = self {
            session.stop_at_resets(stops);
        }
    }

    /// The end of the connection.
    pub fn end(&mut self, events: &mut Vec<Event>) {
        match self {
            Self::Mysql(session) => session.end(events),
            Self::MysqlLogin(_) | Self::Postgres(_) => {}
        }
    }
}
