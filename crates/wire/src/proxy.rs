//! What the logins of all engines have in common: one machine between two peers, which lets the client in as a server
//! and logs in upstream as a client, with a credential of the relay.
//!
//! Drive a [`Handshake`] so: call [`Handshake::poll_action`], do what it says, tell the outcome with the `handle_*`
//! method that the action names, call it again. It ends with `Splice`, `Cancel` or `Refuse`. There is no action that
//! sends a credential before [`Handshake::handle_tls`] was called for the upstream, so a driver cannot forget the TLS.

use bytes::Bytes;

use crate::error_text::ErrorText;
use crate::login::{Action, Peer, SecretKind};
use crate::memory::Budget;
use crate::session::Session;
use crate::session::text::Limits;
use crate::{mysql, pg};

/// The login of one connection; see the module.
pub enum Handshake {
    Mysql(Box<mysql::handshake::Handshake>),
    /// A command in mid-session that goes through the door again.
    MysqlChange(Box<mysql::change_user::ChangeUser>),
    Postgres(Box<pg::handshake::Handshake>),
}

impl Handshake {
    /// `random` makes the challenge for the client.
    pub fn mysql(settings: mysql::handshake::Settings, random: [u8; mysql::greeting::SCRAMBLE]) -> Self {
        Self::Mysql(Box::new(mysql::handshake::Handshake::new(settings, random)))
    }

    pub fn postgres(settings: pg::handshake::Settings) -> Self {
        Self::Postgres(Box::new(pg::handshake::Handshake::new(settings)))
    }

    /// For a cancel request of PostgreSQL: dials and does TLS, then ends with an empty `Cancel` where the startup
    /// packet would go.
    pub fn postgres_cancel() -> Self {
        Self::Postgres(Box::new(pg::handshake::Handshake::for_cancel()))
    }

    /// What to do now.
    pub fn poll_action(&mut self) -> Action {
        match self {
            Self::Mysql(handshake) => handshake.poll_action(),
            Self::MysqlChange(change) => change.poll_action(),
            Self::Postgres(handshake) => handshake.poll_action(),
        }
    }

    pub fn handle_data(&mut self, peer: Peer, data: &[u8]) {
        match self {
            Self::Mysql(handshake) => handshake.handle_data(peer, data),
            Self::MysqlChange(change) => change.handle_data(peer, data),
            Self::Postgres(handshake) => handshake.handle_data(peer, data),
        }
    }

    pub fn handle_eof(&mut self, peer: Peer) {
        match self {
            Self::Mysql(handshake) => handshake.handle_eof(peer),
            Self::MysqlChange(change) => change.handle_eof(peer),
            Self::Postgres(handshake) => handshake.handle_eof(peer),
        }
    }

    pub fn handle_dialed(&mut self) {
        match self {
            Self::Mysql(handshake) => handshake.handle_dialed(),
            Self::MysqlChange(_) => {}
            Self::Postgres(handshake) => handshake.handle_dialed(),
        }
    }

    /// `binding` is the `tls-server-end-point` hash of the server's certificate (RFC 5929), if it has one: the upstream's,
    /// which is verified, or ours. `alpn`: the client has named the protocol of its engine in the TLS handshake.
    pub fn handle_tls(&mut self, peer: Peer, binding: Option<Vec<u8>>, alpn: bool) {
        match self {
            Self::Mysql(handshake) => handshake.handle_tls(peer),
            Self::MysqlChange(_) => {}
            Self::Postgres(handshake) => handshake.handle_tls(peer, binding, alpn),
        }
    }

    pub fn handle_credential(&mut self, user: &str, secret: &[u8], kind: SecretKind) {
        match self {
            Self::Mysql(handshake) => handshake.handle_credential(user, secret, kind),
            Self::MysqlChange(_) => {}
            Self::Postgres(handshake) => handshake.handle_credential(user, secret, kind),
        }
    }

    /// What a client gets that names no database, if that is known only now.
    pub fn set_database(&mut self, database: Option<&str>) {
        match self {
            Self::Mysql(handshake) => handshake.set_database(database),
            Self::MysqlChange(_) => {}
            Self::Postgres(handshake) => handshake.set_database(database),
        }
    }

    /// The upstream does not take PostgreSQL's parameter for a session that only reads, if that is known only now.
    pub fn read_only_by_statement(&mut self) {
        if let Self::Postgres(handshake) = self {
            handshake.read_only_by_statement();
        }
    }

    /// Starts over with a new upstream connection, for a credential that was stale. False if it is too late for that.
    #[must_use]
    pub fn retry(&mut self) -> bool {
        match self {
            Self::Mysql(handshake) => handshake.retry(),
            Self::MysqlChange(_) => false,
            Self::Postgres(handshake) => handshake.retry(),
        }
    }

    /// Whether the client has said what it wants; until then it is the client that keeps us waiting.
    pub fn has_opened(&self) -> bool {
        match self {
            Self::Mysql(handshake) => handshake.has_opened(),
            Self::MysqlChange(change) => change.has_opened(),
            Self::Postgres(handshake) => handshake.has_opened(),
        }
    }

    /// Whether a client that keeps us waiting is told so: not before it has shown that it speaks the protocol, where its
    /// server is silent as well.
    pub fn answers_silence(&self) -> bool {
        match self {
            Self::Mysql(_) | Self::MysqlChange(_) => true,
            Self::Postgres(handshake) => handshake.has_startup(),
        }
    }

    /// Whether the client has sent something that was not looked at yet. Without it, a client that has ended its side
    /// during the login will never want anything.
    pub fn has_more_of_client(&self) -> bool {
        match self {
            Self::Mysql(handshake) => handshake.has_more_of_client(),
            Self::MysqlChange(change) => change.has_more_of_client(),
            Self::Postgres(handshake) => handshake.has_more_of_client(),
        }
    }

    /// What the client calls its program, for logs.
    pub fn client_program(&self) -> Option<String> {
        match self {
            Self::Mysql(handshake) => handshake.client_program(),
            Self::MysqlChange(_) => None,
            Self::Postgres(handshake) => handshake.client_program(),
        }
    }

    /// The server's own number of the session: of the process of PostgreSQL, of the connection of MySQL.
    pub fn server_number(&self) -> Option<u32> {
        match self {
            Self::Mysql(handshake) => handshake.greeting().map(|greeting| greeting.connection_id),
            Self::MysqlChange(_) => None,
            Self::Postgres(handshake) => handshake.process(),
        }
    }

    /// The session behind the login. What its client has `asked` takes memory of that budget; `statements` are those that the
    /// audit log keeps, if any.
    pub fn session(&self, asked: &Budget, statements: Option<Limits>) -> Session {
        match self {
            Self::Mysql(handshake) => Session::mysql(handshake.agreed(), asked, statements),
            Self::MysqlChange(change) => Session::mysql(change.agreed(), asked, statements),
            Self::Postgres(_) => Session::postgres(statements),
        }
    }

    /// Whether the session must be set up again where MySQL's client resets it.
    pub fn stops_at_resets(&self) -> bool {
        match self {
            Self::Mysql(handshake) => handshake.stops_at_resets(),
            Self::MysqlChange(change) => change.stops_at_resets(),
            Self::Postgres(_) => false,
        }
    }

    /// What the upstream of MySQL says first, once it has.
    pub fn greeting(&self) -> Option<&mysql::greeting::Greeting> {
        match self {
            Self::Mysql(handshake) => handshake.greeting(),
            Self::MysqlChange(_) | Self::Postgres(_) => None,
        }
    }

    /// The exchange for the command that stopped the copy, which `command` begins with. `random` is for its challenge.
    pub fn again(&self, random: [u8; mysql::greeting::SCRAMBLE], command: &[u8]) -> Option<Self> {
        let change = match self {
            Self::Mysql(handshake) => handshake.change_user(random, command),
            Self::MysqlChange(change) => change.again(random, command),
            Self::Postgres(_) => return None,
        };
        Some(Self::MysqlChange(Box::new(change)))
    }

    /// The bytes that tell the client why its connection ends.
    pub fn encode_error(&self, error: &ErrorText) -> Bytes {
        match self {
            Self::Mysql(handshake) => handshake.encode_error(error),
            Self::MysqlChange(change) => change.encode_error(error),
            Self::Postgres(handshake) => handshake.encode_error(error),
        }
    }
}
