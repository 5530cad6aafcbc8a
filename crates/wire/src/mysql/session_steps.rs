//! What the database is told in the place of COM_CHANGE_USER, one step after the other, so that the session is what the
//! command would have made of it.
//!
//! The command names a collation by its number, and with it the character sets of the session. Both servers take a number
//! that they do not know for none, which leaves the session their global values (`thd_init_client_charset`). A statement
//! tells them apart: it is refused. A step that fails ends the connection where MySQL ends it (`dispatch_command`); MariaDB
//! goes on with a session that has its global values.

use std::collections::VecDeque;

use bytes::{BufMut as _, Bytes, BytesMut};

use super::commands::RESET_CONNECTION;
use super::packet::{self, ERR, ErrPacket, OK, Reader, said};
use super::server::Server;
use crate::Malformed;
use crate::login::Refusal;

/// Makes the transactions of the session read-only.
pub const READ_ONLY: &str = "SET SESSION TRANSACTION READ ONLY";
/// `COM_INIT_DB`.
const INIT_DB: u8 = 0x02;
/// Errors for a collation that the server does not know: `ER_UNKNOWN_CHARACTER_SET`, `ER_UNKNOWN_COLLATION`.
const UNKNOWN: [u16; 2] = [1115, 1273];

/// MariaDB takes a number for a character set only if it is the one of its default collation, so the names are used.
const CHARACTER_SETS_OF_MARIADB: &str = "SET @@session.character_set_client=@@character_set_connection,\
                                         @@session.character_set_results=@@character_set_connection";
/// MySQL takes the collation that it was started with for none, too.
const CHARACTER_SETS_OF_MYSQL: &str = "SET @@session.character_set_client=IF(\
     @@collation_connection=@@global.collation_server AND @@global.character_set_client=@@global.character_set_server,\
     @@global.character_set_client,@@character_set_connection),\
     @@session.character_set_results=IF(\
     @@collation_connection=@@global.collation_server AND @@global.character_set_client=@@global.character_set_server,\
     @@global.character_set_results,@@character_set_connection),\
     @@session.collation_connection=IF(\
     @@collation_connection=@@global.collation_server AND @@global.character_set_client=@@global.character_set_server,\
     @@global.collation_connection,@@collation_connection)";
const GLOBAL_VALUES: &str = "SET @@session.character_set_client=@@global.character_set_client,\
                             @@session.character_set_results=@@global.character_set_results,\
                             @@session.collation_connection=@@global.collation_connection";

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Reset,
    /// The session may only go on if this one is good.
    ReadOnly,
    Collation(u16),
    /// Those of the collation, which is set.
    CharacterSets(u16),
    /// Character sets and collation as the server gives them to nobody in particular.
    GlobalValues,
    Database(Bytes),
}

impl Step {
    /// The command for `server`, in a session of these `capabilities`.
    fn command(&self, server: Server, capabilities: u32) -> Bytes {
        let query = |statement: &str| packet::query(capabilities, statement);
        match self {
            Self::Reset => Bytes::from_static(&[RESET_CONNECTION]),
            Self::ReadOnly => query(READ_ONLY),
            Self::Collation(number) => query(&format!("SET @@session.collation_connection={number}")),
            Self::CharacterSets(_) => query(match server {
                Server::MariaDb => CHARACTER_SETS_OF_MARIADB,
                Server::MySql => CHARACTER_SETS_OF_MYSQL,
            }),
            Self::GlobalValues => query(GLOBAL_VALUES),
            Self::Database(name) => [&[INIT_DB], &name[..]].concat().into(),
        }
    }
}

/// What comes of an answer.
#[derive(Debug, PartialEq, Eq)]
pub enum Answered {
    /// Another step is due.
    GoOn,
    /// This is the client's answer, and the session goes on.
    Done(Bytes),
    /// This is the client's answer, and the connection ends.
    End(Bytes),
}

/// See the module.
#[derive(Debug)]
pub struct SessionSteps {
    server: Server,
    capabilities: u32,
    waiting: VecDeque<Step>,
    /// Whose answer is due.
    current: Option<Step>,
    /// The last OK packet.
    ok: Bytes,
    /// What the client hears in the end, of a step that failed in a session that goes on.
    failed: Option<Bytes>,
    /// Number of the collation that a reset gives the session again, where the server remembers it.
    collation: Option<u16>,
}

impl SessionSteps {
    /// A reset of the session, which has agreed on `capabilities`. `collation` is the number of the last command that named one.
    pub fn reset(server: Server, capabilities: u32, read_only: bool, collation: Option<u16>) -> Self {
        let mut waiting = VecDeque::from([Step::Reset]);
        if read_only {
            waiting.push_back(Step::ReadOnly);
        }
        if let Some(number) = collation {
            waiting.push_back(Step::Collation(number));
        }
        Self { server, capabilities, waiting, current: None, ok: Bytes::new(), failed: None, collation }
    }

    /// Another user, of whom the command says `collation` (0 where it says nothing) and `database`, which may be empty.
    pub fn change_user(mut self, collation: u16, database: &[u8]) -> Self {
        self.waiting.retain(|step| !matches!(step, Step::Collation(_)));
        self.waiting.push_back(Step::Collation(collation));
        if !database.is_empty() {
            self.waiting.push_back(Step::Database(Bytes::copy_from_slice(database)));
        }
        self
    }

    /// See [`SessionSteps::reset`].
    pub fn collation(&self) -> Option<u16> {
        self.collation
    }

    /// The command that is to be sent now.
    pub fn next_command(&mut self) -> Option<Bytes> {
        self.current = self.waiting.pop_front();
        Some(self.current.as_ref()?.command(self.server, self.capabilities))
    }

    /// The payload of the answer to it.
    ///
    /// # Errors
    /// [`Refusal`] if the session cannot go on, and the client has not heard why.
    pub fn answered(&mut self, payload: &Bytes) -> Result<Answered, Refusal> {
        const ODD: Refusal = Refusal::UpstreamMalformed(Malformed("an unexpected answer to COM_RESET_CONNECTION"));
        let step = self.current.take().ok_or(ODD)?;
        match payload.first() {
            Some(&OK) => {
                self.ok = without_warnings(payload);
                match step {
                    Step::Collation(number) => self.waiting.push_front(Step::CharacterSets(number)),
                    Step::CharacterSets(number) if self.server == Server::MariaDb => self.collation = Some(number),
                    _ => {}
                }
            }
            Some(&ERR) => match (step, self.server) {
                (Step::ReadOnly, _) => return Err(Refusal::NotReadOnly(said(payload))),
                // Nothing has changed.
                (Step::Reset, _) => return Ok(Answered::Done(payload.clone())),
                (Step::Collation(_), server) if UNKNOWN.contains(&ErrPacket::parse(payload).number) => {
                    // A reset gives a session of MySQL its global values, and one of MariaDB those of its login.
                    if server == Server::MariaDb {
                        self.waiting.push_front(Step::GlobalValues);
                    }
                }
                (Step::GlobalValues, _) | (_, Server::MySql) => return Ok(Answered::End(payload.clone())),
                (_, Server::MariaDb) => {
                    self.failed = Some(payload.clone());
                    self.waiting = VecDeque::from([Step::GlobalValues]);
                }
            },
            _ => return Err(ODD),
        }
        if !self.waiting.is_empty() {
            return Ok(Answered::GoOn);
        }
        Ok(Answered::Done(self.failed.take().unwrap_or_else(|| self.ok.clone())))
    }
}

/// An OK packet that does not count the warnings of a statement which the client has not sent.
fn without_warnings(payload: &Bytes) -> Bytes {
    let mut reader = Reader::new(payload);
    let status =
        reader.u8().and_then(|_ok| reader.lenenc()).and_then(|_rows| reader.lenenc()).and_then(|_id| reader.u16());
    let (Some(_status), Some(_warnings)) = (status, reader.u16()) else { return payload.clone() };
    let rest = reader.rest();
    let front = payload.len().saturating_sub(rest.len()).saturating_sub(2);
    let mut out = BytesMut::from(payload.get(..front).unwrap_or_default());
    out.put_u16_le(0);
    out.put_slice(rest);
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FINE: &[u8] = &[OK, 0, 0, 2, 0, 0, 0];

    fn error(number: u16) -> Vec<u8> {
        [&[ERR][..], &number.to_le_bytes(), b"#42000no"].concat()
    }

    /// Plays the steps against a server that answers each with what `answer` says; their texts, and what comes of the last.
    fn play(mut steps: SessionSteps, answer: impl Fn(&str) -> Vec<u8>) -> (Vec<String>, Answered, Option<u16>) {
        let mut sent = Vec::new();
        loop {
            let command = String::from_utf8(steps.next_command().unwrap().to_vec()).unwrap();
            let answered = steps.answered(&answer(&command).into()).unwrap();
            sent.push(command);
            if answered != Answered::GoOn {
                return (sent, answered, steps.collation());
            }
        }
    }

    fn change(server: Server, collation: u16, database: &[u8]) -> SessionSteps {
        SessionSteps::reset(server, 0, false, None).change_user(collation, database)
    }

    #[test]
    fn a_collation_that_the_server_does_not_know_leaves_its_global_values() {
        for number in UNKNOWN {
            let answer = |command: &str| if command.contains("=9999") { error(number) } else { FINE.to_vec() };
            let (sent, answered, collation) = play(change(Server::MySql, 9999, b"scratch"), answer);
            assert_eq!(sent, ["\x1f", "\x03SET @@session.collation_connection=9999", "\x02scratch"]);
            assert_eq!((answered, collation), (Answered::Done(FINE.into()), None));
            let (sent, answered, collation) = play(change(Server::MariaDb, 9999, b""), answer);
            assert_eq!(sent.last().unwrap()[1..], *GLOBAL_VALUES);
            assert_eq!((answered, collation), (Answered::Done(FINE.into()), None));
        }
    }

    #[test]
    fn a_step_that_fails_is_the_answer_and_the_server_says_whether_the_session_goes_on() {
        // ucs2 is none that a client can have; the database is unknown.
        let cases: [fn(&str) -> bool; 2] = [|sent| sent.contains("set_client"), |sent| sent == "\x02scratch"];
        for is_bad in cases {
            let failed = std::cell::Cell::new(false);
            let answer = |command: &str| match is_bad(command) && !failed.replace(failed.get() || is_bad(command)) {
                true => error(1231),
                false => FINE.to_vec(),
            };
            let (_, answered, _) = play(change(Server::MySql, 35, b"scratch"), answer);
            assert_eq!(answered, Answered::End(error(1231).into()));
            failed.set(false);
            let (sent, answered, _) = play(change(Server::MariaDb, 35, b"scratch"), answer);
            assert_eq!(answered, Answered::Done(error(1231).into()));
            assert_eq!(sent.last().unwrap()[1..], *GLOBAL_VALUES);
        }
    }

    #[test]
    fn mariadb_remembers_the_collation_for_its_resets() {
        let fine = |_: &str| FINE.to_vec();
        assert_eq!(play(change(Server::MySql, 224, b""), fine).2, None);
        let (_, _, collation) = play(change(Server::MariaDb, 224, b""), fine);
        assert_eq!(collation, Some(224));
        let (sent, _, collation) = play(SessionSteps::reset(Server::MariaDb, 0, true, collation), fine);
        assert_eq!((sent.len(), collation), (4, Some(224)));
        assert_eq!(sent[2][1..], *"SET @@session.collation_connection=224");
    }

    #[test]
    fn warnings_of_our_own_statements_are_not_counted() {
        let with_text = [OK, 0xfc, 1, 1, 0, 2, 0x40, 7, 0, 4, b'd', b'o', b'n', b'e'];
        let expected = [OK, 0xfc, 1, 1, 0, 2, 0x40, 0, 0, 4, b'd', b'o', b'n', b'e'];
        assert_eq!(without_warnings(&Bytes::copy_from_slice(&with_text)), expected[..]);
        for end in 0..with_text.len() {
            without_warnings(&Bytes::copy_from_slice(&with_text[..end]));
        }
    }
}
