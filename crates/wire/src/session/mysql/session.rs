//! Both directions behind a login. This file has the client's; see [`server`](super::server) for the other one.

use std::collections::VecDeque;

use bytes::Bytes;

use super::answer::{At, Kind, Metadata, Rules};
use super::command::Command;
use super::statements::{Effect, Statements};
use crate::error_text::ErrorText;
use crate::memory::Budget;
use crate::mysql::agreed::Agreed;
use crate::mysql::capability::{
    CACHE_METADATA, DEPRECATE_EOF, LOCAL_FILES, MULTI_COMMANDS, OPTIONAL_METADATA, PROGRESS, QUERY_ATTRIBUTES,
};
use crate::mysql::commands::{
    BINLOG_DUMP, BINLOG_DUMP_GTID, CHANGE_USER, FIELD_LIST, MULTI, PROCESS_INFO, PROCESS_KILL, QUERY, QUIT,
    RESET_CONNECTION, SLEEP, STATISTICS, STMT_BULK_EXECUTE, STMT_CLOSE, STMT_EXECUTE, STMT_FETCH, STMT_PREPARE,
    STMT_SEND_LONG_DATA, TABLE_DUMP,
};
use crate::mysql::local_infile::LocalFiles;
use crate::mysql::packet::{PAYLOAD_MAX, Reader};
use crate::mysql::server::Server;
use crate::session::text::Limits;
use crate::session::waiting::{TOLD, Waiting};
use crate::session::{Event, OutOfProtocol, Pass, Stop};

/// Bytes before a payload.
pub(super) const HEAD: usize = 4;
/// Number of the first packet of an answer, where the command has one packet.
const FIRST: u8 = 1;
/// So many commands may wait for an answer before the client is held.
const FULL: usize = 4096;
/// A client that is not held ends the session with so many.
const ASKED_MAX: usize = 65_536;
/// What a command without an answer costs where nothing is told: itself, in a queue that doubles.
const UNTOLD: usize = 80;
const _: () = assert!(2 * size_of::<Asked>() <= UNTOLD);

/// No attributes in one set, in front of a query's text.
const NO_ATTRIBUTES: &[u8] = &[0, 1];

/// A direction.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Direction {
    /// Of the payload under way, what has not come.
    pub(super) missing: usize,
    /// The next packet goes on with this payload.
    pub(super) continues: bool,
}

impl Direction {
    /// A head has come, of a payload of so many bytes.
    pub(super) fn begin(&mut self, length: usize) {
        (self.missing, self.continues) = (length, length == PAYLOAD_MAX);
    }

    /// Takes what has come of the payload under way off the front of `bytes`.
    pub(super) fn take<'b>(&mut self, bytes: &mut &'b [u8]) -> &'b [u8] {
        let (now, rest) = bytes.split_at(self.missing.min(bytes.len()));
        self.missing = self.missing.saturating_sub(now.len());
        *bytes = rest;
        now
    }

    /// Nothing of a payload is due.
    pub(super) fn is_whole(self) -> bool {
        self.missing == 0 && !self.continues
    }
}

/// The length in a head.
pub(super) fn length([a, b, c]: [u8; 3]) -> usize {
    usize::try_from(u32::from_le_bytes([a, b, c, 0])).unwrap_or(usize::MAX)
}

pub(super) fn out(from: &'static str, what: String) -> Stop {
    Stop::OutOfProtocol(OutOfProtocol { from, what })
}

/// What the client has asked of the server that has no answer so far.
pub(super) struct Asked {
    /// `None`: it has no answer, only an effect.
    pub(super) kind: Option<Kind>,
    /// Number of its last packet.
    pub(super) packet: u8,
    /// Of its record, if it has one.
    pub(super) record: Option<u64>,
    pub(super) effect: Effect,
}

/// See the module.
pub struct Session {
    agreed: Agreed,
    pub(super) rules: Rules,
    client: Direction,
    pub(super) server: Direction,
    command: Option<Command>,
    /// Number of the client's last packet that was none of a file.
    number: u8,
    pub(super) asked: VecDeque<Asked>,
    /// For those.
    pub(super) memory: Waiting,
    /// Where the first answer of those is.
    pub(super) at: At,
    /// Number of the last packet of the exchange under way, whoever has sent it.
    pub(super) packet: u8,
    /// That was one of a file.
    pub(super) behind_file: bool,
    /// What did not go on is a request for a file.
    pub(super) asks: bool,
    /// The server has ended the session, or the client has.
    pub(super) over: bool,
    /// The server has said why.
    pub(super) has_ended: bool,
    /// The client's last command is COM_QUIT.
    goodbye: bool,
    /// Where the login agreed that the client may send files.
    pub(super) files: Option<LocalFiles>,
    pub(super) statements: Option<Box<Statements>>,
}

impl Session {
    /// From an idle session on.
    pub(in crate::session) fn new(agreed: Agreed, asked: &Budget, limits: Option<Limits>) -> Self {
        let has = |capability: u32| agreed.capabilities & capability != 0;
        let extended = |capability: u32| agreed.extended & capability != 0;
        let metadata = match () {
            () if has(OPTIONAL_METADATA) && agreed.server == Server::MySql => Metadata::InFront,
            () if extended(CACHE_METADATA) => Metadata::Behind,
            () => Metadata::Always,
        };
        Self {
            rules: Rules { deprecates_eof: has(DEPRECATE_EOF), metadata, progress: extended(PROGRESS) },
            client: Direction::default(),
            server: Direction::default(),
            command: None,
            number: 0,
            asked: VecDeque::new(),
            memory: Waiting::new(asked, if limits.is_some() { TOLD } else { UNTOLD }),
            at: At::Begin,
            packet: 0,
            behind_file: false,
            asks: false,
            over: false,
            has_ended: false,
            goodbye: false,
            files: has(LOCAL_FILES).then(LocalFiles::default),
            statements: limits.map(|limits| Box::new(Statements::new(limits, agreed.server))),
            agreed,
        }
    }

    pub(in crate::session) fn stop_at_resets(&mut self, stops: bool) {
        self.agreed.stops_at_reset = stops;
    }

    /// Bytes of the client.
    pub(in crate::session) fn client(&mut self, bytes: &[u8], events: &mut Vec<Event>) -> Pass {
        let mut rest = bytes;
        loop {
            let now = self.client.take(&mut rest);
            self.client_body(now);
            if self.client.is_whole() {
                self.client_command(events);
            }
            let forward = bytes.len().saturating_sub(rest.len());
            if rest.is_empty() || self.client.missing > 0 {
                return Pass { forward, stop: None };
            }
            match self.client_packet(rest, events) {
                // The start of a head, or what is needed of a command.
                Ok(0) => return Pass { forward, stop: None },
                Ok(passed) => rest = rest.get(passed..).unwrap_or_default(),
                Err(stop) => return Pass { forward, stop: Some(stop) },
            }
        }
    }

    fn client_body(&mut self, bytes: &[u8]) {
        let Some(Command { code, is_hidden, .. }) = self.command.filter(|_| !bytes.is_empty()) else { return };
        if let Some(files) = &mut self.files {
            files.pass(bytes);
        }
        if let Some(statements) = self.statements.as_mut().filter(|_| !is_hidden) {
            statements.body(code, bytes);
        }
    }

    /// A packet of the client begins: how many of its bytes need not be looked at again. 0: more of them must have come.
    fn client_packet(&mut self, bytes: &[u8], events: &mut Vec<Event>) -> Result<usize, Stop> {
        let Some((&[a, b, c, number], payload)) = bytes.split_first_chunk::<HEAD>() else { return Ok(0) };
        let length = length([a, b, c]);
        let continued = self.client.continues;
        if let Some(files) = self.files.as_mut().filter(|files| files.is_sending()) {
            check(number, self.packet.wrapping_add(1))?;
            files.packet(length, continued);
            events.extend(files.take_sent().into_iter().map(Event::File));
            (self.packet, self.behind_file) = (number, true);
            self.client.begin(length);
            return Ok(HEAD);
        }
        if continued || number != 0 {
            // A replica acknowledges events with numbers of their own; they are no command to the server.
            let acknowledges = self.at == At::Events && self.command.is_none();
            if !acknowledges {
                check(number, if continued { self.number.wrapping_add(1) } else { 0 })?;
            }
            self.number = number;
            self.client.begin(length);
            return Ok(HEAD);
        }
        let Some(used) = self.begin_command(length, payload)? else { return Ok(0) };
        self.number = number;
        self.client.begin(length);
        self.client.missing = self.client.missing.saturating_sub(used);
        Ok(HEAD.saturating_add(used))
    }

    /// A command begins: how many bytes stand before its text. `None`: more of it must have come.
    fn begin_command(&mut self, length: usize, payload: &[u8]) -> Result<Option<usize>, Stop> {
        let code = match payload.first() {
            _ if length == 0 => SLEEP,
            None => return Ok(None),
            Some(&code) => code,
        };
        if code == CHANGE_USER || code == RESET_CONNECTION && self.agreed.stops_at_reset {
            return Err(Stop::Command);
        }
        let has_attributes = code == QUERY && self.agreed.capabilities & QUERY_ATTRIBUTES != 0;
        let needs = match code {
            STMT_EXECUTE | STMT_BULK_EXECUTE | STMT_CLOSE | PROCESS_KILL => 5,
            STMT_SEND_LONG_DATA => 7,
            QUERY if has_attributes => 3,
            _ => 1,
        };
        let Some(start) = payload.get(..length.min(needs)) else { return Ok(None) };
        if start.len() < needs && matches!(code, STMT_CLOSE | STMT_SEND_LONG_DATA) {
            // MySQL answers it then, MariaDB does not, and takes a number that was there before.
            return Err(out("client", format!("its command 0x{code:02x} has no number of a statement")));
        }
        if code == MULTI && self.agreed.extended & MULTI_COMMANDS != 0 {
            return Err(out("client", "it sends several commands in one".to_owned()));
        }
        self.memory.hold(self.asked.len().saturating_add(1))?;
        if self.asked.len() >= ASKED_MAX {
            return Err(out("client", format!("more than {ASKED_MAX} of its commands wait for their answers")));
        }
        let mut reader = Reader::new(start);
        let _code = reader.u8();
        let id = if needs >= 5 { reader.u32() } else { None };
        let is_hidden = has_attributes && start.get(1..) != Some(NO_ATTRIBUTES);
        self.goodbye = code == QUIT;
        if let Some(files) = &mut self.files {
            files.begin(code == QUERY && self.asked.is_empty());
        }
        self.command = Some(Command { code, id, is_hidden });
        Ok(Some(if has_attributes { start.len() } else { start.len().min(1) }))
    }

    /// The client's command is whole.
    fn client_command(&mut self, events: &mut Vec<Event>) {
        let Some(command) = self.command.take() else { return };
        let is_idle = self.asked.is_empty();
        let (record, effect) = match &mut self.statements {
            Some(statements) => statements.command(command, is_idle, events),
            None => (None, Effect::None),
        };
        if self.over {
            events.extend(record.map(|number| Event::NotRun { number }));
            return;
        }
        let kind = kind(command.code);
        match (kind, &mut self.statements) {
            (None, _) if command.code == QUIT => self.over = true,
            (None, Some(statements)) if is_idle => statements.happened(effect),
            (None, _) if matches!(effect, Effect::None) => {}
            _ => {
                if is_idle {
                    (self.at, self.packet, self.behind_file) = (At::Begin, self.number, false);
                }
                self.asked.push_back(Asked { kind, packet: self.number, record, effect });
            }
        }
    }

    /// Whether the client is to wait.
    pub(in crate::session) fn is_full(&self) -> bool {
        self.asked.len() >= FULL
    }

    /// Whether everything is answered.
    pub(in crate::session) fn is_idle(&self) -> bool {
        let is_sending = self.files.as_ref().is_some_and(LocalFiles::is_sending);
        self.asked.is_empty() && self.is_between_messages() && self.client.is_whole() && !is_sending
    }

    pub(in crate::session) fn is_between_messages(&self) -> bool {
        self.server.is_whole()
    }

    pub(in crate::session) fn has_said_goodbye(&self) -> bool {
        self.goodbye
    }

    pub(in crate::session) fn withholds(&self) -> bool {
        self.asks
    }

    /// The error after which the connection is closed. `None` in the middle of a message. A client that counts refuses another
    /// number than the one that its answer goes on with, and reads it in the place of the next answer if none is under way.
    pub(in crate::session) fn last_words(&self, text: &ErrorText) -> Option<Bytes> {
        let number = if self.asked.is_empty() { FIRST } else { self.packet.wrapping_add(1) };
        self.is_between_messages().then(|| text.packet(number, true))
    }

    /// The relay answers this command. Nothing is left of what the session had.
    pub(in crate::session) fn answered(&mut self, command: &[u8], events: &mut Vec<Event>) {
        if let Some(statements) = &mut self.statements {
            statements.begin_anew(command.get(HEAD).copied(), events);
        }
        self.files = self.files.as_ref().map(|_| LocalFiles::default());
    }

    /// The end of the connection.
    pub(in crate::session) fn end(&mut self, events: &mut Vec<Event>) {
        events.extend(self.files.as_mut().and_then(LocalFiles::take_unfinished).map(Event::File));
    }
}

/// Servers refuse another number.
fn check(number: u8, due: u8) -> Result<(), Stop> {
    match number == due {
        true => Ok(()),
        false => Err(out("client", format!("its packet has the number {number} where {due} is due"))),
    }
}

/// What the answer to a command is. `None`: it has none.
fn kind(command: u8) -> Option<Kind> {
    match command {
        QUIT | STMT_SEND_LONG_DATA | STMT_CLOSE => None,
        QUERY | PROCESS_INFO | STMT_EXECUTE | STMT_BULK_EXECUTE => Some(Kind::Results),
        STMT_PREPARE => Some(Kind::Prepared),
        FIELD_LIST | STMT_FETCH => Some(Kind::Rows),
        STATISTICS => Some(Kind::Text),
        BINLOG_DUMP | BINLOG_DUMP_GTID | TABLE_DUMP => Some(Kind::Events),
        _ => Some(Kind::Fine),
    }
}

#[cfg(test)]
mod tests;
