//! What a session runs, for the audit log.
//!
//! A prepared statement has the number that the server's answer gives it, and is known by it from then on until the server has read
//! what ends it. So a text is named only where no answer that is still to come can make it another one's.

use std::collections::HashMap;
use std::sync::Arc;

use super::command::Command;
use crate::mysql::commands::{
    INIT_DB, PROCESS_KILL, QUERY, RESET_CONNECTION, STMT_BULK_EXECUTE, STMT_CLOSE, STMT_EXECUTE, STMT_PREPARE,
    only_looks, word,
};
use crate::mysql::server::Server;
use crate::redact::{Dialect, Modes, NO_BACKSLASH_ESCAPES};
use crate::session::Event;
use crate::session::text::{ARGUMENT_MAX, Collector, Kind, Limits, Statement, Text};

/// Statements whose texts are kept; the oldest is forgotten.
const KEPT: usize = 256;
/// MariaDB: the statement that was prepared last.
const LAST: u32 = u32::MAX;
/// `ER_UNKNOWN_STMT_HANDLER`, `ER_MAX_PREPARED_STMT_COUNT_REACHED`.
const UNKNOWN_STATEMENT: u16 = 1243;
const TOO_MANY_STATEMENTS: u16 = 1461;

/// What a command does to prepared statements, once the server has read it.
#[derive(Debug)]
pub(super) enum Effect {
    None,
    Prepare(Arc<Text>),
    Execute(Option<u32>),
    Close(u32),
    Reset,
}

struct Known {
    text: Arc<Text>,
    /// Counts them.
    at: u64,
    /// The client has ended it, and the server may not have read that.
    is_closed: bool,
}

/// See the module.
pub(super) struct Statements {
    server: Server,
    text: Collector,
    argument: Vec<u8>,
    modes: Modes,
    /// What the server says of its modes can be believed, now and where the session begins.
    is_honest: bool,
    begins_honest: bool,
    known: HashMap<u32, Known>,
    /// Those that were kept.
    at: u64,
    /// There are some that are not known.
    has_forgotten: bool,
    /// MariaDB: what was prepared last, if it is there.
    last: Option<u32>,
    /// Of the prepare that is being answered.
    pub(super) prepared: Option<u32>,
    /// Commands without an answer.
    prepares: u32,
    resets: u32,
    /// Ends of statements that the server may not have read.
    closes: u32,
    /// Of the last record.
    number: u64,
}

impl Statements {
    pub(super) fn new(limits: Limits, server: Server) -> Self {
        Self {
            server,
            text: Collector::new(limits, Dialect::Mysql),
            argument: Vec::new(),
            modes: Modes::default(),
            is_honest: true,
            begins_honest: true,
            known: HashMap::new(),
            at: 0,
            has_forgotten: false,
            last: None,
            prepared: None,
            prepares: 0,
            resets: 0,
            closes: 0,
            number: 0,
        }
    }

    /// Some of a command, behind its code.
    pub(super) fn body(&mut self, code: u8, bytes: &[u8]) {
        match code {
            QUERY | STMT_PREPARE => self.text.push(bytes),
            INIT_DB => {
                // One byte more than is kept says that there is more.
                let room = ARGUMENT_MAX.saturating_add(1).saturating_sub(self.argument.len());
                self.argument.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
            }
            _ => {}
        }
    }

    /// A command is whole: the number of its record, and what it will do. `is_idle`: nothing before it waits for an answer.
    pub(super) fn command(
        &mut self,
        command: Command,
        is_idle: bool,
        events: &mut Vec<Event>,
    ) -> (Option<u64>, Effect) {
        let Command { code, id, is_hidden } = command;
        // What has no answer may change the modes.
        let modes = if is_idle { self.modes } else { Modes::default() };
        let (statement, effect) = match code {
            QUERY => {
                let text = (!is_hidden).then(|| self.text.finish(modes));
                (Statement::new(Kind::Query, None, text), Effect::None)
            }
            STMT_PREPARE => {
                let text = self.text.finish(modes);
                self.prepares = self.prepares.saturating_add(1);
                let kept = text.to_keep();
                (Statement::new(Kind::Prepare, None, Some(text)), Effect::Prepare(kept))
            }
            STMT_EXECUTE | STMT_BULK_EXECUTE if code == STMT_EXECUTE || self.server == Server::MariaDb => {
                let name = id.filter(|id| !self.is_last(*id)).map(|id| id.to_string());
                (Statement::new(Kind::Execute, name, id.and_then(|id| self.text_of(id))), Effect::Execute(id))
            }
            STMT_CLOSE => return (None, id.map_or(Effect::None, |id| self.will_close(id))),
            _ if only_looks(code) => return (None, Effect::None),
            _ => {
                let text = match code {
                    INIT_DB => Some(std::mem::take(&mut self.argument)),
                    PROCESS_KILL => id.map(|id| id.to_string().into_bytes()),
                    _ => None,
                };
                let text = text.map(|text| Text::argument(&text, self.text.limits()));
                let effect = if code == RESET_CONNECTION { self.will_reset() } else { Effect::None };
                (Statement::new(Kind::Command, Some(word(code)), text), effect)
            }
        };
        (Some(self.tell(statement, events)), effect)
    }

    fn tell(&mut self, statement: Statement, events: &mut Vec<Event>) -> u64 {
        self.number = self.number.saturating_add(1);
        events.push(Event::Statement { number: self.number, statement });
        self.number
    }

    fn is_last(&self, id: u32) -> bool {
        id == LAST && self.server == Server::MariaDb
    }

    /// What an execute of this number runs, if it runs anything.
    fn text_of(&self, id: u32) -> Option<Arc<Text>> {
        let id = match self.is_last(id) {
            true if self.prepares > 0 || self.closes > 0 => return None,
            true => self.last?,
            false => id,
        };
        let known = self.known.get(&id).filter(|known| self.resets == 0 && !known.is_closed)?;
        Some(Arc::clone(&known.text))
    }

    fn will_close(&mut self, id: u32) -> Effect {
        self.closes = self.closes.saturating_add(1);
        let id = match self.last {
            Some(last) if self.is_last(id) && self.prepares == 0 => last,
            _ => id,
        };
        if let Some(known) = self.known.get_mut(&id) {
            known.is_closed = true;
        }
        Effect::Close(id)
    }

    fn will_reset(&mut self) -> Effect {
        self.resets = self.resets.saturating_add(1);
        Effect::Reset
    }

    /// The server says how the session is. Its flag for NO_BACKSLASH_ESCAPES is that of the last SET, also of one in a
    /// procedure, behind which the mode is what it was before (seen in MariaDB 10.11 and MySQL 9.7). So it is believed as long as
    /// nobody has set that mode in the session itself. That one is seen, unless the same statement has failed behind it.
    pub(super) fn status(&mut self, flags: u16) {
        self.is_honest &= flags & NO_BACKSLASH_ESCAPES == 0;
        self.modes = Modes::default();
        if self.is_honest {
            self.modes.status(flags);
        }
    }

    /// What the server says at the end of the login. Its modes may be others before the first command (`init_connect`).
    pub(super) fn begin(&mut self, flags: u16) {
        self.begins_honest = flags & NO_BACKSLASH_ESCAPES == 0;
        self.is_honest = self.begins_honest;
    }

    /// A statement has failed.
    pub(super) fn failed(&mut self) {
        (self.is_honest, self.modes) = (false, Modes::default());
    }

    /// The server has read something that has no answer.
    pub(super) fn happened(&mut self, effect: Effect) {
        let Effect::Close(id) = effect else { return };
        self.closes = self.closes.saturating_sub(1);
        let id = if self.is_last(id) { self.last } else { Some(id) };
        if let Some(id) = id {
            self.known.remove(&id);
        }
        self.last = self.last.filter(|last| Some(*last) != id);
    }

    /// The answer to a command is whole. False: the server has certainly not run it.
    pub(super) fn answered(&mut self, effect: Effect, error: Option<u16>) -> bool {
        match effect {
            Effect::None | Effect::Close(_) => true,
            Effect::Prepare(text) => {
                self.prepares = self.prepares.saturating_sub(1);
                let number = self.prepared.take();
                if let (None, Some(number)) = (error, number) {
                    self.keep(number, text);
                    return true;
                }
                // It forgets the one before, unless it refuses without a look at the text (`mysqld_stmt_prepare` of MariaDB).
                if error != Some(TOO_MANY_STATEMENTS) {
                    self.last = None;
                }
                false
            }
            // What runs may end with the same error.
            Effect::Execute(Some(id)) => error != Some(UNKNOWN_STATEMENT) || self.has_forgotten || self.is_known(id),
            Effect::Execute(None) => true,
            Effect::Reset => {
                self.resets = self.resets.saturating_sub(1);
                self.forget();
                (self.has_forgotten, self.is_honest) = (error.is_some(), error.is_none());
                true
            }
        }
    }

    /// The server has a statement of this number. There are more errors than one that leave a last statement of MariaDB.
    fn is_known(&self, id: u32) -> bool {
        self.is_last(id) || self.known.contains_key(&id)
    }

    fn keep(&mut self, number: u32, text: Arc<Text>) {
        if self.known.len() >= KEPT && !self.known.contains_key(&number) {
            let oldest = self.known.iter().min_by_key(|(_, known)| known.at).map(|(number, _)| *number);
            oldest.and_then(|oldest| self.known.remove(&oldest));
            self.has_forgotten = true;
        }
        self.at = self.at.saturating_add(1);
        self.known.insert(number, Known { text, at: self.at, is_closed: false });
        self.last = Some(number);
    }

    fn forget(&mut self) {
        self.known.clear();
        self.last = None;
        self.has_forgotten = false;
    }

    /// The relay answers the command of this code, and the session has nothing of what it had.
    pub(super) fn begin_anew(&mut self, code: Option<u8>, events: &mut Vec<Event>) {
        if let Some(code) = code {
            self.tell(Statement::new(Kind::Command, Some(word(code)), None), events);
        }
        self.forget();
        (self.is_honest, self.modes) = (self.begins_honest, Modes::default());
    }
}
