//! What a session runs, for the audit log.
//!
//! A text is told before it goes on: where it runs, and where it gets a name. A portal that is fetched from in parts has one
//! record. What the server skips, because something before it has failed, or does not do, is told to have not run.
//!
//! The rules are those of the manual ("Extended Query", "Pipelining", "COPY Operations", "Function Call") and of the server's
//! main loop (`src/backend/tcop/postgres.c`): an error in a message of the extended protocol skips everything up to the next
//! Sync, a Query too; one in a Query or a FunctionCall skips nothing.

mod client;
mod server;

use std::collections::VecDeque;
use std::sync::Arc;

use super::asked::{After, Asked, Known, Run};
use super::effects::{Names as Forgets, Scanner};
use super::names::{Name, Names};
use crate::memory::Full;
use crate::redact::{Dialect, Modes};
use crate::session::Event;
use crate::session::text::{Collector, Limits, Text};
use crate::session::waiting::{TOLD, Waiting};

/// So many messages may wait for an answer before the client is held.
const FULL: usize = 4096;
/// Texts without a name that may run and have no record so far.
const UNTOLD_MAX: usize = 8;
/// Start of a server's message that is looked at.
const START: usize = 64;

/// What goes into a COPY.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Copy {
    None,
    /// The client has not ended it.
    Open,
}

/// See the module.
pub(super) struct Statements {
    /// Fields of the message under way: the first two names, the text, and which of them is next.
    first: Vec<u8>,
    second: Vec<u8>,
    text: Collector,
    field: usize,
    /// As the server has said last.
    modes: Modes,
    scanner: Scanner,
    statements: Names<Arc<Known>>,
    portals: Names<Run>,
    asked: VecDeque<Asked>,
    memory: Waiting,
    /// Counts messages.
    at: u64,
    /// Counts Syncs: an error lets nothing run up to the next one.
    batch: u64,
    /// Counts what may end the life of portals.
    portal_batch: u64,
    /// Of those, the ones that have no answer.
    ends: u32,
    /// The server skips what comes, up to a Sync.
    skipping: bool,
    /// The server has said that it ends the session, or the client has.
    over: bool,
    copy: Copy,
    /// Syncs that a COPY has swallowed, as far as is known; the server may have failed before it read them.
    swallowed: u32,
    /// So many answers to such Syncs may come, before any other answer.
    strays: u32,
    /// The first message without an answer has some of it.
    begun: bool,
    /// Texts without a name that have no record so far. One of them may be what runs where that is not known.
    untold: VecDeque<Arc<Text>>,
    /// A text was prepared that touches other names, so one that is not known may be it.
    has_tricks: bool,
    /// Of the last record.
    number: u64,
    /// Start of the server's message under way.
    said: Vec<u8>,
}

impl Statements {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            first: Vec::new(),
            second: Vec::new(),
            memory: Waiting::new(&limits.asked, TOLD),
            text: Collector::new(limits, Dialect::Postgres),
            field: 0,
            modes: Modes::default(),
            scanner: Scanner::default(),
            statements: Names::new(),
            portals: Names::new(),
            asked: VecDeque::new(),
            at: 0,
            batch: 0,
            portal_batch: 0,
            ends: 0,
            skipping: false,
            over: false,
            copy: Copy::None,
            swallowed: 0,
            strays: 0,
            begun: false,
            untold: VecDeque::new(),
            has_tricks: false,
            number: 0,
            said: Vec::new(),
        }
    }

    /// Takes memory for one message more.
    pub(super) fn hold(&mut self) -> Result<(), Full> {
        self.memory.hold(self.asked.len().saturating_add(1))
    }

    /// Whether the client is to wait for answers before it says more.
    pub(super) fn is_full(&self) -> bool {
        self.asked.len() >= FULL
    }

    /// Whether everything is answered.
    pub(super) fn is_idle(&self) -> bool {
        self.asked.is_empty() && !self.skipping
    }

    /// The server does not do this.
    fn skip(&mut self, asked: Asked, events: &mut Vec<Event>) {
        match asked {
            Asked::Parse { number, name, .. } => {
                events.extend(number.map(|number| Event::NotRun { number }));
                match name {
                    Some(Name::Unclear) => self.statements.keep(),
                    Some(name) => self.statements.unsay(&name),
                    None => {}
                }
            }
            Asked::Bind { portal, .. } | Asked::ClosePortal { portal } => match portal {
                Some(Name::Unclear) => self.portals.keep(),
                Some(portal) => self.portals.unsay(&portal),
                None => {}
            },
            Asked::CloseStatement { name, all } => {
                if all {
                    self.statements.keep();
                }
                if let Some(name) = name {
                    self.statements.unsay(&name);
                }
            }
            Asked::Execute { number, after } => {
                events.extend(number.map(|number| Event::NotRun { number }));
                self.will_not(after);
            }
            Asked::Query { number, after } => {
                events.push(Event::NotRun { number });
                self.statements.unsay(&Name::Unnamed);
                self.will_not(after.map(|after| Box::new(After { portals: false, ..*after })));
                self.ends = self.ends.saturating_sub(1);
            }
            Asked::Function { number } => {
                events.push(Event::NotRun { number });
                self.ends = self.ends.saturating_sub(1);
            }
            Asked::Sync => self.ends = self.ends.saturating_sub(1),
            Asked::Describe | Asked::CopyEnd => {}
        }
    }

    fn will_not(&mut self, after: Option<Box<After>>) {
        let Some(after) = after else { return };
        match after.statements {
            Forgets::Keep => {}
            Forgets::Forget(name) => self.statements.unsay(&name),
            Forgets::ForgetAll => self.statements.keep(),
        }
        if after.portals {
            self.ends = self.ends.saturating_sub(1);
        }
    }

    /// It has run, or has tried to.
    fn has(&mut self, after: Option<Box<After>>) {
        let Some(after) = after else { return };
        match after.statements {
            Forgets::Keep => {}
            Forgets::Forget(name) => self.statements.settle(&name, None, |_, _| {}),
            Forgets::ForgetAll => self.statements.clear(),
        }
        if after.portals {
            self.ends = self.ends.saturating_sub(1);
            self.portals.forget_all_settled();
        }
    }
}
