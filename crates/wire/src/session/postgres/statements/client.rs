//! What a client says, message by message: its records, and what the server is going to do.

use std::sync::Arc;

use super::{Copy, Known, Run, Statements, UNTOLD_MAX};
use crate::redact::Modes;
use crate::session::postgres::asked::{After, Asked};
use crate::session::postgres::effects::{Effects, Names as Forgets};
use crate::session::postgres::names::{Moment, NAME_MAX, Name};
use crate::session::postgres::out;
use crate::session::text::{Kind, Statement, Text};
use crate::session::{Event, OutOfProtocol};

impl Statements {
    /// Some of the body of a client's message.
    pub(in crate::session::postgres) fn client_body(&mut self, tag: u8, mut bytes: &[u8]) {
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
    pub(in crate::session::postgres) fn client_message(
        &mut self,
        tag: u8,
        events: &mut Vec<Event>,
    ) -> Result<(), OutOfProtocol> {
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
}

/// A name for people, if there is one.
fn shown(name: &[u8]) -> Option<String> {
    (!name.is_empty()).then(|| String::from_utf8_lossy(name.get(..NAME_MAX).unwrap_or(name)).into_owned())
}
