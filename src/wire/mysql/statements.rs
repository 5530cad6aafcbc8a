//! Statements of MySQL's and MariaDB's command phase (MySQL Source Code Documentation, "Command Phase"; MariaDB
//! documentation, "Protocol Commands").
//!
//! A command is one packet, or several if it is long. A prepared statement has the number that its answer gives it, so
//! the upstream's packets are followed too, by their heads alone: numbers in an answer run on from 1, so a 1 that does not
//! follow a 0 begins the next answer, which belongs to the next command. Where that is not sure, no statement is taken for
//! another: it is reported without its text, which its `prepare` has.
//!
//! Left out: what procedures run, values of parameters. Attributes of a query stand before its text; the handshake takes
//! that capability out where statements are read.

use std::collections::VecDeque;
use std::sync::Arc;

use super::commands::{CHANGE_USER, RESET_CONNECTION};
use super::packet::{OK, PAYLOAD_MAX, Reader};
use crate::wire::redact::Dialect;
use crate::wire::statements::{Kind, Limits, Recent, SharedText, Statement, Text};

/// Commands by number (`my_command.h`); MariaDB has more of them from the end downwards (`mysql_com.h`).
const QUIT: u8 = 0x01;
const INIT_DB: u8 = 0x02;
const QUERY: u8 = 0x03;
const PROCESS_KILL: u8 = 0x0c;
const PREPARE: u8 = 0x16;
const EXECUTE: u8 = 0x17;
const SEND_LONG_DATA: u8 = 0x18;
const CLOSE: u8 = 0x19;
const BULK_EXECUTE: u8 = 0xfa;
/// MariaDB: the statement that was prepared last, whose number may still be on its way.
const LAST: u32 = u32::MAX;
/// Commands that only look, or only prepare for others: sleep, field list, statistics, connect, ping, time, delayed
/// insert, reset and fetch of a statement, daemon.
const SILENT: [u8; 10] = [0x00, 0x04, 0x09, 0x0b, 0x0e, 0x0f, 0x10, 0x1a, 0x1c, 0x1d];

/// Commands without an answer so far; more come from nobody who wants one.
const WAITING: usize = 4096;
/// Of an answer to a prepare: the mark and the number.
const ANSWER_HEAD: usize = 5;

/// Cuts one direction into packets and keeps the start of each payload.
struct Packets {
    head: Vec<u8>,
    kept: Vec<u8>,
    /// How much of a payload is kept.
    keep: usize,
    /// Of the payload.
    missing: usize,
}

/// A packet whose payload has begun or, with `missing` at 0, ended.
struct Whole {
    sequence: u8,
    length: usize,
}

impl Packets {
    fn new(keep: usize) -> Self {
        Self { head: Vec::with_capacity(4), kept: Vec::new(), keep, missing: 0 }
    }

    /// Takes bytes up to the end of a packet off the front of `bytes`; the packet, once it is whole.
    fn next(&mut self, bytes: &mut &[u8]) -> Option<Whole> {
        while self.head.len() < 4 {
            let (&first, rest) = bytes.split_first()?;
            self.head.push(first);
            *bytes = rest;
            if self.head.len() == 4 {
                self.missing = self.length();
                self.kept.clear();
            }
        }
        let (now, later) = bytes.split_at(self.missing.min(bytes.len()));
        let room = self.keep.saturating_sub(self.kept.len());
        self.kept.extend_from_slice(now.get(..room).unwrap_or(now));
        self.missing = self.missing.saturating_sub(now.len());
        *bytes = later;
        if self.missing > 0 {
            return None;
        }
        let whole = Whole { sequence: self.head.last().copied().unwrap_or_default(), length: self.length() };
        self.head.clear();
        Some(whole)
    }

    fn length(&self) -> usize {
        match self.head.first_chunk::<3>() {
            Some(&[a, b, c]) => usize::try_from(u32::from_le_bytes([a, b, c, 0])).unwrap_or(PAYLOAD_MAX),
            None => 0,
        }
    }
}

/// Which answer of the upstream is whose.
#[derive(Default)]
struct Answers {
    /// Commands whose answer has not begun: what each prepares, if it does.
    waiting: VecDeque<Option<SharedText>>,
    /// Number of the last packet, while there is an answer.
    last: Option<u8>,
    /// Whether the upstream has said anything since the last command.
    heard: bool,
    /// The answer goes on with the number behind those of a file.
    behind_file: bool,
    /// It cannot be told any more.
    lost: bool,
}

impl Answers {
    fn command(&mut self, prepares: Option<SharedText>) {
        if self.waiting.len() >= WAITING {
            self.give_up();
        }
        if !self.lost {
            self.waiting.push_back(prepares);
        }
        self.heard = false;
    }

    /// A packet of the upstream; what it answers, if it is the first packet of the answer to a prepare.
    fn packet(&mut self, sequence: u8) -> Option<SharedText> {
        let (last, heard) = (self.last.replace(sequence), std::mem::replace(&mut self.heard, true));
        if std::mem::take(&mut self.behind_file) {
            return None;
        }
        let goes_on = last.is_some_and(|last| sequence == last.wrapping_add(1));
        let begins = match (sequence, goes_on) {
            (1, false) => true,
            // Either the rows of an answer go on, or it has ended with a 0 and this is the next one.
            (1, true) if self.waiting.is_empty() => false,
            // Whoever waits for answers has read the last one to its end.
            (1, true) if self.waiting.len() == 1 && !heard => true,
            (1, true) => {
                self.give_up();
                false
            }
            (_, true) => false,
            // A server that shuts down speaks without being asked.
            (_, false) => {
                self.give_up();
                false
            }
        };
        if begins { self.waiting.pop_front().flatten() } else { None }
    }

    fn give_up(&mut self) {
        self.lost = true;
        self.waiting.clear();
    }
}

/// See the module.
pub struct Observer {
    limits: Limits,
    up: Packets,
    down: Packets,
    /// The next packet of the client goes on with the one before.
    continued: bool,
    /// The packets of the client are a file.
    in_file: bool,
    answers: Answers,
    /// What was prepared last.
    last: Option<SharedText>,
    statements: Recent<u32, SharedText>,
}

impl Observer {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            // The command and one byte more than is reported, which says that there is more.
            up: Packets::new(limits.text.saturating_add(2)),
            down: Packets::new(ANSWER_HEAD),
            continued: false,
            in_file: false,
            answers: Answers::default(),
            last: None,
            statements: Recent::default(),
        }
    }

    /// Bytes of the client, in order; what they run is appended to `found`.
    pub fn up(&mut self, mut bytes: &[u8], found: &mut Vec<Statement>) {
        while let Some(Whole { length, .. }) = self.up.next(&mut bytes) {
            // Only the first packet of a command has its code, and more text than is kept.
            let continued = std::mem::replace(&mut self.continued, length == PAYLOAD_MAX);
            if self.in_file {
                self.in_file = continued || length > 0;
            } else if !continued {
                let payload = std::mem::take(&mut self.up.kept);
                self.command(&payload, found);
                self.up.kept = payload;
            }
        }
    }

    /// The client's next packets are a file, up to an empty one.
    pub fn file_begins(&mut self) {
        self.in_file = true;
        self.answers.behind_file = true;
    }

    /// Bytes of the upstream, in order.
    pub fn down(&mut self, mut bytes: &[u8]) {
        while let Some(Whole { sequence, .. }) = self.down.next(&mut bytes) {
            // The other answer to a prepare is an error.
            if let Some(text) = self.answers.packet(sequence)
                && let &[OK, a, b, c, d, ..] = self.down.kept.as_slice()
            {
                self.statements.insert(u32::from_le_bytes([a, b, c, d]), text);
            }
        }
    }

    /// A command that the relay answers itself, with a session that starts anew.
    pub fn answered(&mut self, bytes: &[u8], found: &mut Vec<Statement>) {
        if let Some(command) = bytes.get(4) {
            found.push(Statement::new(Kind::Command, Some(word(*command)), None));
        }
        *self = Self::new(self.limits);
    }

    /// One command, of which `payload` is the start.
    fn command(&mut self, payload: &[u8], found: &mut Vec<Statement>) {
        let mut reader = Reader::new(payload);
        // A server takes an empty command for the one that only sleeps, and answers it.
        let command = reader.u8().unwrap_or_default();
        let mut prepares = None;
        match command {
            QUERY => {
                let text = self.limits.apply(reader.rest(), false, Dialect::Mysql);
                found.push(Statement::new(Kind::Query, None, Some(text)));
            }
            PREPARE => {
                let text = Arc::new(self.limits.apply(reader.rest(), false, Dialect::Mysql));
                found.push(Statement::new(Kind::Prepare, None, Some(Text::clone(&text))));
                self.last = Some(Arc::clone(&text));
                prepares = Some(text);
            }
            EXECUTE | BULK_EXECUTE => {
                let number = reader.u32();
                let text = match number {
                    Some(LAST) => self.last.as_deref(),
                    Some(number) if !self.answers.lost => self.statements.get(&number).map(Arc::as_ref),
                    _ => None,
                };
                let name = number.filter(|number| *number != LAST).map(|number| number.to_string());
                found.push(Statement::new(Kind::Execute, name, text.cloned()));
            }
            CLOSE => {
                if let Some(number) = reader.u32() {
                    self.statements.remove(&number);
                }
            }
            RESET_CONNECTION => {
                found.push(Statement::new(Kind::Command, Some(word(command)), None));
                self.statements = Recent::default();
                self.last = None;
            }
            INIT_DB => {
                // A name, which is no literal.
                let limits = Limits { redact: false, ..self.limits };
                let text = limits.apply(reader.rest(), false, Dialect::Mysql);
                found.push(Statement::new(Kind::Command, Some(word(command)), Some(text)));
            }
            PROCESS_KILL => {
                let limits = Limits { redact: false, ..self.limits };
                let number = reader.u32().map(|number| number.to_string());
                let text = number.map(|number| limits.apply(number.as_bytes(), false, Dialect::Mysql));
                found.push(Statement::new(Kind::Command, Some(word(command)), text));
            }
            QUIT | SEND_LONG_DATA => {}
            _ if SILENT.contains(&command) => {}
            _ => found.push(Statement::new(Kind::Command, Some(word(command)), None)),
        }
        // These have no answer.
        if !matches!(command, QUIT | SEND_LONG_DATA | CLOSE) {
            self.answers.command(prepares);
        }
    }
}

/// What a command is called.
fn word(command: u8) -> String {
    let known = match command {
        INIT_DB => "init_db",
        0x05 => "create_db",
        0x06 => "drop_db",
        0x07 => "refresh",
        0x08 => "shutdown",
        0x0a => "process_info",
        PROCESS_KILL => "process_kill",
        0x0d => "debug",
        CHANGE_USER => "change_user",
        0x12 => "binlog_dump",
        0x13 => "table_dump",
        0x14 => "connect_out",
        0x15 => "register_slave",
        0x1b => "set_option",
        0x1e => "binlog_dump_gtid",
        RESET_CONNECTION => "reset_connection",
        other => return format!("0x{other:02x}"),
    };
    known.to_owned()
}

#[cfg(test)]
mod tests;
