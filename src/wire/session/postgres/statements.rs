//! What a session runs, for the audit log.
//!
//! A text is told before it goes on: where it runs, and where it gets a name. A portal that is fetched from in parts has one
//! record. What the server skips, because something before it has failed, or does not do, is told to have not run.
//!
//! The rules are those of the manual ("Extended Query", "Pipelining", "COPY Operations", "Function Call") and of the server's
//! main loop (`src/backend/tcop/postgres.c`): an error in a message of the extended protocol skips everything up to the next
//! Sync, a Query too; one in a Query or a FunctionCall skips nothing.

use std::collections::VecDeque;
use std::sync::Arc;

use super::asked::{After, Asked};
use super::effects::{Effects, Names as Forgets, Scanner};
use super::names::{Moment, NAME_MAX, Name, Names};
use super::out;
use crate::wire::redact::{Dialect, Modes};
use crate::wire::session::text::{Collector, Kind, Limits, Statement, Text};
use crate::wire::session::{Event, OutOfProtocol};

/// Messages that may wait for an answer.
const ASKED_MAX: usize = 65_536;
/// Texts without a name that may run and have no record so far.
const UNTOLD_MAX: usize = 8;
/// Start of a server's message that is looked at.
const START: usize = 64;

/// A text that was prepared.
pub(super) struct Known {
    text: Arc<Text>,
    name: Option<String>,
    effects: Effects,
}

/// What a portal runs.
#[derive(Clone)]
pub(super) struct Run {
    known: Arc<Known>,
    /// It has a record already.
    told: bool,
}

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

    /// Whether everything is answered.
    pub(super) fn is_idle(&self) -> bool {
        self.asked.is_empty() && !self.skipping
    }

    /// Some of the body of a client's message.
    pub(super) fn client_body(&mut self, tag: u8, mut bytes: &[u8]) {
        let names = match tag {
            b'B' => 2,
            b'P' | b'E' => 1,
            b'C' if self.field == 0 => {
                // What it closes is one byte.
                let (now, later) = bytes.split_at(1.min(bytes.len()));
                self.second.extend_from_slice(now);
                self.field = 1;
                bytes = later;
                2
            }
            b'C' => 2,
            b'F' => {
                let room = 4_usize.saturating_sub(self.first.len());
                self.first.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
                return;
            }
            b'Q' => 0,
            _ => return,
        };
        while self.field < names {
            let field = if tag == b'C' || self.field == 0 { &mut self.first } else { &mut self.second };
            let end = bytes.iter().position(|byte| *byte == 0);
            let now = bytes.get(..end.unwrap_or(bytes.len())).unwrap_or_default();
            // One byte more than counts says that it is too long.
            let room = NAME_MAX.saturating_add(1).saturating_sub(field.len());
            field.extend_from_slice(now.get(..room).unwrap_or(now));
            let Some(end) = end else { return };
            self.field = self.field.saturating_add(1);
            bytes = bytes.get(end.saturating_add(1)..).unwrap_or_default();
        }
        if matches!(tag, b'P' | b'Q') && self.field == names {
            let end = bytes.iter().position(|byte| *byte == 0);
            let now = bytes.get(..end.unwrap_or(bytes.len())).unwrap_or_default();
            self.scanner.push(now);
            self.text.push(now);
            if end.is_some() {
                self.field = self.field.saturating_add(1);
            }
        }
    }

    /// A client's message is whole.
    pub(super) fn client_message(&mut self, tag: u8, events: &mut Vec<Event>) -> Result<(), OutOfProtocol> {
        self.at = self.at.saturating_add(1);
        if self.copy == Copy::Open && !matches!(tag, b'd' | b'c' | b'f' | b'H' | b'S' | b'X') {
            return Err(out("client", format!("it sends {:?} in a COPY that it has not ended", char::from(tag))));
        }
        if self.skipping && self.strays > 0 && !matches!(tag, b'd' | b'c' | b'f' | b'H' | b'S' | b'X') {
            return Err(out(
                "client",
                format!("it sends {:?} behind a COPY that has failed, and no Sync between", char::from(tag)),
            ));
        }
        if self.asked.len() >= ASKED_MAX {
            return Err(out("client", format!("more than {ASKED_MAX} of its messages wait for their answers")));
        }
        match tag {
            b'P' => self.parse(events),
            b'B' => self.bind(),
            b'C' => self.close(),
            b'D' => self.ask(Asked::Describe),
            b'E' => self.execute(events),
            b'Q' => self.query(events),
            b'F' => {
                let function = self.first.first_chunk::<4>().map(|oid| u32::from_be_bytes(*oid).to_string());
                let number = self.tell(Statement::new(Kind::Function, function, None), events);
                self.end_portals();
                self.ask_or_not_run(Asked::Function { number }, events);
            }
            b'S' => self.sync(),
            b'c' | b'f' => match self.copy {
                Copy::Open => self.copy = Copy::None,
                Copy::None if self.asked.is_empty() => {}
                Copy::None => self.ask(Asked::CopyEnd),
            },
            b'X' => self.over = true,
            b'd' | b'H' => {}
            _ => return Err(out("client", format!("there is no message of the type {:?}", char::from(tag)))),
        }
        self.first.clear();
        self.second.clear();
        self.field = 0;
        Ok(())
    }

    fn now(&self) -> Moment {
        Moment { at: self.at, batch: self.batch }
    }

    fn portal_now(&self) -> Moment {
        Moment { at: self.at, batch: self.portal_batch }
    }

    /// Whether what comes now is skipped for sure.
    fn is_skipped(&self) -> bool {
        self.skipping || self.over
    }

    fn ask(&mut self, asked: Asked) {
        if !self.is_skipped() {
            self.asked.push_back(asked);
        }
    }

    fn ask_or_not_run(&mut self, asked: Asked, events: &mut Vec<Event>) {
        if self.is_skipped() {
            self.skip(asked, events);
        } else {
            self.asked.push_back(asked);
        }
    }

    fn tell(&mut self, statement: Statement, events: &mut Vec<Event>) -> u64 {
        self.number = self.number.saturating_add(1);
        events.push(Event::Statement { number: self.number, statement });
        self.number
    }

    /// What has come of the text, and its effects.
    fn take_text(&mut self) -> (Arc<Text>, Effects) {
        // What has no answer may change the modes.
        let modes = if self.asked.is_empty() { self.modes } else { Modes::default() };
        (self.text.finish(modes), self.scanner.finish())
    }

    fn parse(&mut self, events: &mut Vec<Event>) {
        let (text, effects) = self.take_text();
        let name = Name::new(&self.first);
        self.has_tricks |= effects.statements != Forgets::Keep;
        let known = Arc::new(Known { text: text.to_keep(), name: shown(&self.first), effects });
        // It may run under its name without a text of its own, or there is no room for it up to then.
        let is_told = name != Name::Unnamed || known.text.sql().is_none();
        let number = is_told.then(|| self.tell(Statement::new(Kind::Prepare, known.name.clone(), Some(text)), events));
        while self.untold.pop_front_if(|text| text.is_told()).is_some() {}
        if number.is_none() {
            self.untold.push_back(Arc::clone(&known.text));
            let oldest = if self.untold.len() > UNTOLD_MAX { self.untold.pop_front() } else { None };
            self.tell_prepared(oldest, events);
        }
        let now = self.now();
        if name == Name::Unclear {
            self.statements.say_nothing_of_all(now);
        }
        let followed = self.statements.say(&name, Some(Arc::clone(&known)), now);
        let name = (followed || name == Name::Unclear).then_some(name);
        self.ask_or_not_run(Asked::Parse { number, name, known }, events);
    }

    /// Texts that may run without being known then.
    fn tell_prepared(&mut self, texts: impl IntoIterator<Item = Arc<Text>>, events: &mut Vec<Event>) {
        for text in texts.into_iter().filter(|text| !text.is_told()) {
            self.tell(Statement::new(Kind::Prepare, None, Some(text)), events);
        }
    }

    fn bind(&mut self) {
        let (portal, statement) = (Name::new(&self.first), Name::new(&self.second));
        let (now, portal_now) = (self.now(), self.portal_now());
        let known = self.statements.look(&statement, now, false).map(|known| Arc::clone(&*known));
        let run = known.map(|known| Run { known, told: false });
        if portal == Name::Unclear {
            self.portals.say_nothing_of_all(portal_now);
        }
        let followed = self.portals.say(&portal, run.clone(), portal_now);
        let portal = (followed || portal == Name::Unclear).then_some(portal);
        self.ask_or_forget(Asked::Bind { portal, run });
    }

    fn close(&mut self) {
        let (name, is_portal) = (Name::new(&self.first), self.second == b"P");
        let asked = if is_portal {
            let now = self.portal_now();
            if name == Name::Unclear {
                self.portals.say_nothing_of_all(now);
            }
            let followed = self.portals.say(&name, None, now);
            Asked::ClosePortal { portal: (followed || name == Name::Unclear).then_some(name) }
        } else {
            let now = self.now();
            let all = name == Name::Unclear;
            if all {
                self.statements.say_nothing_of_all(now);
            }
            let followed = self.statements.say(&name, None, now);
            Asked::CloseStatement { name: followed.then_some(name), all }
        };
        self.ask_or_forget(asked);
    }

    fn ask_or_forget(&mut self, asked: Asked) {
        self.ask_or_not_run(asked, &mut Vec::new());
    }

    fn execute(&mut self, events: &mut Vec<Event>) {
        let (portal, now, doubt) = (Name::new(&self.first), self.portal_now(), self.ends > 0);
        let run = self.portals.look(&portal, now, doubt);
        let (known, goes_on) = match run {
            Some(run) => (Some(Arc::clone(&run.known)), std::mem::replace(&mut run.told, true)),
            None => (None, false),
        };
        if goes_on {
            return self.ask(Asked::Execute { number: None, after: None });
        }
        let (name, text) = match &known {
            Some(known) => (known.name.clone(), Some(Arc::clone(&known.text))),
            None => {
                let untold = std::mem::take(&mut self.untold);
                self.tell_prepared(untold, events);
                (None, None)
            }
        };
        let number = Some(self.tell(Statement::new(Kind::Execute, name, text), events));
        let after = match &known {
            Some(known) => self.will(&known.effects),
            None if self.has_tricks => self.will(&Effects::ANY),
            None => self.will(&Effects { portals: true, ..Effects::default() }),
        };
        self.ask_or_not_run(Asked::Execute { number, after }, events);
    }

    /// A text with these effects runs.
    fn will(&mut self, effects: &Effects) -> Option<Box<After>> {
        if effects.are_none() {
            return None;
        }
        let now = self.now();
        let statements = match &effects.statements {
            Forgets::Keep => Forgets::Keep,
            Forgets::Forget(name) if !self.statements.say(name, None, now) => Forgets::Keep,
            Forgets::Forget(name) => Forgets::Forget(name.clone()),
            Forgets::ForgetAll => {
                self.statements.say_nothing_of_all(now);
                Forgets::ForgetAll
            }
        };
        if effects.portals {
            self.end_portals();
        }
        Some(Box::new(After { statements, portals: effects.portals }))
    }

    /// From here on portals may be gone.
    fn end_portals(&mut self) {
        self.portal_batch = self.portal_batch.saturating_add(1);
        self.ends = self.ends.saturating_add(1);
    }

    fn query(&mut self, events: &mut Vec<Event>) {
        let (text, effects) = self.take_text();
        let number = self.tell(Statement::new(Kind::Query, None, Some(text)), events);
        let now = self.now();
        // It has no name for what it runs, and takes that of the protocol.
        let _always = self.statements.say(&Name::Unnamed, None, now);
        let after = self.will(&Effects { portals: false, ..effects.clone() });
        let after = match (after, effects.portals) {
            (None, true) => Some(Box::new(After { statements: Forgets::Keep, portals: true })),
            (Some(mut after), portals) => {
                after.portals = portals;
                Some(after)
            }
            (None, false) => None,
        };
        self.end_portals();
        self.ask_or_not_run(Asked::Query { number, after }, events);
    }

    fn sync(&mut self) {
        if self.copy == Copy::Open {
            self.swallowed = self.swallowed.saturating_add(1);
            return;
        }
        self.batch = self.batch.saturating_add(1);
        if !self.over {
            self.skipping = false;
            self.end_portals();
            self.asked.push_back(Asked::Sync);
        }
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

    /// Some of the body of a server's message.
    pub(super) fn server_body(&mut self, tag: u8, bytes: &[u8]) {
        if matches!(tag, b'E' | b'S' | b'Z') {
            let room = START.saturating_sub(self.said.len());
            self.said.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
        }
    }

    /// A server's message is whole.
    pub(super) fn server_message(&mut self, tag: u8, events: &mut Vec<Event>) -> Result<(), OutOfProtocol> {
        match tag {
            b'1' | b'2' | b'3' | b't' | b'T' | b'n' | b'C' | b'I' | b's' | b'V' | b'G' | b'W' => self.answer(tag)?,
            b'E' => self.error(events)?,
            b'Z' => self.ready()?,
            // Rows, copies, notices.
            _ => {}
        }
        self.set(tag);
        Ok(())
    }

    /// A server's message is whole, of which only a setting counts.
    pub(super) fn set(&mut self, tag: u8) {
        let mut fields = self.said.split(|byte| *byte == 0);
        if let (b'S', Some(name), Some(value)) = (tag, fields.next(), fields.next()) {
            self.modes.parameter(name, value);
        }
        self.said.clear();
    }

    fn answer(&mut self, tag: u8) -> Result<(), OutOfProtocol> {
        self.strays = 0;
        // What goes on behind it has more answers.
        let stays = match self.asked.front() {
            Some(Asked::Query { .. }) => matches!(tag, b'T' | b'C' | b'I' | b'G' | b'W'),
            Some(Asked::Function { .. }) => tag == b'V',
            Some(Asked::Describe) => tag == b't',
            Some(Asked::Execute { .. }) => matches!(tag, b'G' | b'W'),
            _ => false,
        };
        if stays {
            self.begun = true;
            return if matches!(tag, b'G' | b'W') { self.begin_copy() } else { Ok(()) };
        }
        let fits = match self.asked.front() {
            Some(Asked::Parse { .. }) => tag == b'1',
            Some(Asked::Bind { .. }) => tag == b'2',
            Some(Asked::CloseStatement { .. } | Asked::ClosePortal { .. }) => tag == b'3',
            Some(Asked::Describe) => matches!(tag, b'T' | b'n'),
            Some(Asked::Execute { .. }) => matches!(tag, b'C' | b'I' | b's'),
            _ => false,
        };
        let Some(asked) = self.asked.pop_front_if(|_| fits) else {
            let word = self.asked.front().map_or("nothing", Asked::word);
            return Err(out("database", format!("it answers {word} with {:?}", char::from(tag))));
        };
        self.begun = false;
        match asked {
            Asked::Parse { name, known, .. } => match name {
                Some(Name::Unclear) => self.statements.clear(),
                Some(name) => self.statements.settle(&name, Some(known), |_, _| {}),
                None => {}
            },
            Asked::Bind { portal, run } => match portal {
                Some(Name::Unclear) => self.portals.clear(),
                Some(portal) => self.portals.settle(&portal, run, |run, said| run.told |= said.told),
                None => {}
            },
            Asked::CloseStatement { name, all } => {
                if all {
                    self.statements.clear();
                }
                if let Some(name) = name {
                    self.statements.settle(&name, None, |_, _| {});
                }
            }
            Asked::ClosePortal { portal } => match portal {
                Some(Name::Unclear) => self.portals.clear(),
                Some(portal) => self.portals.settle(&portal, None, |_, _| {}),
                None => {}
            },
            Asked::Execute { after, .. } => {
                self.has(after);
                (self.copy, self.swallowed) = (Copy::None, 0);
            }
            Asked::Describe | Asked::Query { .. } | Asked::Function { .. } | Asked::Sync | Asked::CopyEnd => {}
        }
        self.pass_copy_ends();
        Ok(())
    }

    /// Outside of a COPY they mean nothing.
    fn pass_copy_ends(&mut self) {
        while self.asked.pop_front_if(|asked| matches!(asked, Asked::CopyEnd)).is_some() {}
    }

    /// The server reads what it copies in. It passes over a Sync there, and takes nothing else.
    fn begin_copy(&mut self) -> Result<(), OutOfProtocol> {
        self.copy = Copy::Open;
        while let Some(next) = self.asked.get(1) {
            match next {
                Asked::Sync => {
                    self.swallowed = self.swallowed.saturating_add(1);
                    self.ends = self.ends.saturating_sub(1);
                }
                Asked::CopyEnd => self.copy = Copy::None,
                other => {
                    return Err(out("client", format!("it has sent {} in a COPY before its end", other.word())));
                }
            }
            let _swallowed = self.asked.remove(1);
            if self.copy == Copy::None {
                break;
            }
        }
        Ok(())
    }

    fn error(&mut self, events: &mut Vec<Event>) -> Result<(), OutOfProtocol> {
        self.portals.forget_all_settled();
        let swallowed = std::mem::take(&mut self.swallowed);
        self.strays = self.strays.saturating_add(swallowed);
        self.copy = Copy::None;
        if is_last(&self.said) {
            // Nothing behind what has failed runs.
            self.over = true;
            for asked in self.asked.split_off(1.min(self.asked.len())) {
                self.skip(asked, events);
            }
            return Ok(());
        }
        if self.asked.front().is_none_or(Asked::ends_ready) {
            self.begun = true;
            return Ok(());
        }
        self.begun = false;
        if let Some(asked) = self.asked.pop_front() {
            self.fail(asked, events);
        }
        self.skipping = true;
        while let Some(asked) = self.asked.pop_front_if(|asked| !matches!(asked, Asked::Sync)) {
            if swallowed > 0 && !matches!(asked, Asked::CopyEnd) {
                let word = asked.word();
                return Err(out(
                    "client",
                    format!("it has sent {word} behind a COPY that has failed, and no Sync between"),
                ));
            }
            self.skip(asked, events);
        }
        if !self.asked.is_empty() {
            self.skipping = false;
        }
        Ok(())
    }

    /// An error is the answer to this.
    fn fail(&mut self, asked: Asked, events: &mut Vec<Event>) {
        match asked {
            Asked::Parse { number, name: Some(Name::Unnamed), .. } => {
                // The one before is gone.
                events.extend(number.map(|number| Event::NotRun { number }));
                self.statements.settle(&Name::Unnamed, None, |_, _| {});
            }
            // It has tried to, and may have done something.
            Asked::Execute { after, .. } => self.has(after),
            other => self.skip(other, events),
        }
    }

    fn ready(&mut self) -> Result<(), OutOfProtocol> {
        let in_transaction = self.said.first() == Some(&b'T');
        (self.copy, self.swallowed) = (Copy::None, 0);
        // A Query has an answer before its end.
        let begun = std::mem::take(&mut self.begun);
        match self.asked.pop_front_if(|asked| asked.ends_ready() && (begun || matches!(asked, Asked::Sync))) {
            Some(asked) => {
                self.ends = self.ends.saturating_sub(1);
                let mut ends_portals = !in_transaction;
                if let Asked::Query { after, .. } = asked {
                    self.statements.settle(&Name::Unnamed, None, |_, _| {});
                    ends_portals |= after.as_ref().is_some_and(|after| after.portals);
                    self.has(after.map(|after| Box::new(After { portals: false, ..*after })));
                }
                if ends_portals {
                    self.portals.forget_all_settled();
                }
            }
            None if self.strays > 0 => {
                self.strays = self.strays.saturating_sub(1);
                self.skipping = self.over;
                self.portals.forget_all_settled();
            }
            None => {
                let word = self.asked.front().map_or("nothing", Asked::word);
                return Err(out("database", format!("it answers {word} with ReadyForQuery")));
            }
        }
        self.pass_copy_ends();
        Ok(())
    }
}

/// Whether an error ends the session, by its severity.
fn is_last(body: &[u8]) -> bool {
    let mut fields = body.split(|byte| *byte == 0);
    let severity = |field: &[u8]| matches!(field, b"VFATAL" | b"VPANIC" | b"SFATAL" | b"SPANIC");
    fields.any(severity)
}

/// A name for people, if there is one.
fn shown(name: &[u8]) -> Option<String> {
    (!name.is_empty()).then(|| String::from_utf8_lossy(name.get(..NAME_MAX).unwrap_or(name)).into_owned())
}
