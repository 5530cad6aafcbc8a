//! What a server answers, message by message: what has become of what the client has said.

use super::{Copy, START, Statements};
use crate::session::postgres::asked::{After, Asked};
use crate::session::postgres::names::Name;
use crate::session::postgres::out;
use crate::session::{Event, OutOfProtocol};

impl Statements {
    /// Some of the body of a server's message.
    pub(in crate::session::postgres) fn server_body(&mut self, tag: u8, bytes: &[u8]) {
        if matches!(tag, b'E' | b'S' | b'Z') {
            let room = START.saturating_sub(self.said.len());
            self.said.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
        }
    }

    /// A server's message is whole.
    pub(in crate::session::postgres) fn server_message(
        &mut self,
        tag: u8,
        events: &mut Vec<Event>,
    ) -> Result<(), OutOfProtocol> {
        match tag {
            b'1' | b'2' | b'3' | b't' | b'T' | b'n' | b'C' | b'I' | b's' | b'V' | b'G' | b'W' => self.answer(tag)?,
            b'E' => self.error(events)?,
            b'Z' => {
                self.ready()?;
                let _less = self.memory.hold(self.asked.len());
            }
            // Rows, copies, notices.
            _ => {}
        }
        self.set(tag);
        Ok(())
    }

    /// A server's message is whole, of which only a setting counts.
    pub(in crate::session::postgres) fn set(&mut self, tag: u8) {
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
