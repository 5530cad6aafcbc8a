//! The server's direction: which command each packet answers, and what has become of that command.

use super::answer::{At, EOF, Kind, LOCAL_FILE, Packet, START};
use super::session::{HEAD, Session, length, out};
use crate::mysql::packet::{ERR, OK};
use crate::session::{Event, Pass, Stop};

/// Longest name of a file (`FN_REFLEN` of the servers is 512).
const NAME_MAX: usize = 4096;
/// Commands without an answer that there is memory for at any time.
const ASKED_KEPT: usize = 64;

impl Session {
    /// The end of the login.
    pub(in crate::session) fn logged_in(&mut self, mut bytes: &[u8]) {
        while let Some((&[a, b, c, _number], after)) = bytes.split_first_chunk::<HEAD>() {
            let length = length([a, b, c]);
            let (payload, next) = after.split_at(length.min(after.len()));
            let packet = Packet { start: payload.get(..START).unwrap_or(payload), length };
            if packet.first() == Some(OK)
                && let (Some(statements), Some(status)) = (&mut self.statements, packet.status())
            {
                statements.begin(status);
            }
            bytes = next;
        }
    }

    /// Bytes of the server.
    pub(in crate::session) fn server(&mut self, bytes: &[u8], events: &mut Vec<Event>) -> Pass {
        let mut forward = 0_usize;
        while let Some(rest) = bytes.get(forward..).filter(|rest| !rest.is_empty()) {
            let message = self.server_message(rest, events);
            forward = forward.saturating_add(message.forward);
            if message.forward == 0 || message.stop.is_some() {
                return Pass { forward, stop: message.stop };
            }
        }
        Pass { forward, stop: None }
    }

    /// The same, no further than to the end of the message under way.
    pub(in crate::session) fn server_message(&mut self, bytes: &[u8], events: &mut Vec<Event>) -> Pass {
        let mut rest = bytes;
        loop {
            let _payload = self.server.take(&mut rest);
            let forward = bytes.len().saturating_sub(rest.len());
            let is_whole = forward > 0 && self.server.is_whole();
            if rest.is_empty() || is_whole {
                return Pass { forward, stop: None };
            }
            match self.server_packet(rest, events) {
                // The start of a packet.
                Ok(0) => return Pass { forward, stop: None },
                Ok(passed) => rest = rest.get(passed..).unwrap_or_default(),
                Err(stop) => return Pass { forward, stop: Some(stop) },
            }
        }
    }

    /// A packet of the server begins: how many of its bytes need not be looked at again. 0: more of them must have come.
    fn server_packet(&mut self, bytes: &[u8], events: &mut Vec<Event>) -> Result<usize, Stop> {
        let Some((&[a, b, c, number], payload)) = bytes.split_first_chunk::<HEAD>() else { return Ok(0) };
        let length = length([a, b, c]);
        // Behind an empty payload stands the next head.
        let first = payload.first().copied().filter(|_| length > 0);
        let is_row = matches!(self.at, At::Rows { .. }) && first.is_some_and(|first| !matches!(first, EOF | ERR));
        if self.server.continues || is_row {
            self.check_server(number, first)?;
            self.packet = number;
            self.server.begin(length);
            return Ok(HEAD);
        }
        let start = match payload.get(..length.min(START)) {
            Some(start) => start,
            // It is not to go on.
            None if first == Some(LOCAL_FILE) => payload,
            None => return Ok(0),
        };
        let packet = Packet { start, length };
        let is_last = first == Some(ERR) && self.at == At::Begin && number == 0 && self.packet != u8::MAX;
        let Some(kind) = self.asked.front().and_then(|asked| asked.kind).filter(|_| !is_last) else {
            self.last_error(first, events)?;
            self.server.begin(length);
            return Ok(HEAD);
        };
        self.check_server(number, first)?;
        let at = self.at.after(kind, &packet, self.rules).ok_or_else(|| {
            let first = first.map_or_else(|| "nothing".to_owned(), |first| format!("0x{first:02x}"));
            out("database", format!("a packet that begins with {first} is no answer ({kind:?}, {:?})", self.at))
        })?;
        if at == At::File {
            return self.decide(bytes, length, number);
        }
        if let Some(statements) = self.statements.as_mut().filter(|_| kind == Kind::Prepared && self.at == At::Begin) {
            statements.prepared = packet.prepared().map(|(number, _)| number);
        }
        (self.at, self.packet, self.behind_file) = (at, number, false);
        self.server.begin(length);
        if at == At::Ended {
            self.answer_ended(packet.error(), events);
        }
        if matches!(at, At::Ended | At::Result)
            && matches!(kind, Kind::Fine | Kind::Results | Kind::Rows)
            && let (Some(statements), Some(status)) = (&mut self.statements, packet.status())
        {
            statements.status(status);
        }
        Ok(HEAD)
    }

    /// Within an answer the numbers run on, from those of the command or of a file. Errors may have others: a server that
    /// gives up has not read all. Events of a binary log are not counted like this.
    fn check_server(&self, number: u8, first: Option<u8>) -> Result<(), Stop> {
        let due = self.packet.wrapping_add(1);
        let is_free = first == Some(ERR)
            || self.behind_file
            || matches!(self.asked.front(), Some(asked) if asked.kind == Some(Kind::Events));
        match number == due || is_free {
            true => Ok(()),
            false => Err(out("database", format!("its packet has the number {number} where {due} is due"))),
        }
    }

    /// A server may say once why it ends a session, to no command. It has a number of its own then, and reads none of those that
    /// wait.
    fn last_error(&mut self, first: Option<u8>, events: &mut Vec<Event>) -> Result<(), Stop> {
        if first != Some(ERR) || self.has_ended {
            return Err(out("database", "it says something that nobody has asked for".to_owned()));
        }
        (self.over, self.has_ended) = (true, true);
        events.extend(self.asked.drain(..).filter_map(|asked| asked.record).map(|number| Event::NotRun { number }));
        Ok(())
    }

    /// The first command of those that wait has its whole answer.
    fn answer_ended(&mut self, error: Option<u16>, events: &mut Vec<Event>) {
        let Some(asked) = self.asked.pop_front() else { return };
        if let Some(statements) = &mut self.statements {
            if error.is_some() && asked.kind == Some(Kind::Results) {
                statements.failed();
            }
            if !statements.answered(asked.effect, error) {
                events.extend(asked.record.map(|number| Event::NotRun { number }));
            }
            while let Some(asked) = self.asked.pop_front_if(|asked| asked.kind.is_none()) {
                statements.happened(asked.effect);
            }
        }
        self.at = At::Begin;
        if self.asked.is_empty() {
            let _less = self.memory.hold(0);
        }
        match self.asked.front() {
            Some(next) => self.packet = next.packet,
            // A client that has not waited may never do so again.
            None if self.asked.capacity() > ASKED_KEPT => self.asked.shrink_to(ASKED_KEPT),
            None => {}
        }
    }

    /// Decides on the request for a file that `held` begins with, once it is whole: its length, if it may pass.
    fn decide(&mut self, held: &[u8], length: usize, number: u8) -> Result<usize, Stop> {
        self.asks = true;
        let (name_from, end) = (HEAD.saturating_add(1), HEAD.saturating_add(length));
        let refused = |name: &[u8]| Stop::File(String::from_utf8_lossy(name).into_owned());
        let is_only = self.asked.len() == 1;
        let Some(files) = self.files.as_mut().filter(|_| length <= NAME_MAX) else {
            return Err(refused(held.get(name_from..end.min(held.len()).min(NAME_MAX)).unwrap_or_default()));
        };
        let Some(name) = held.get(name_from..end) else { return Ok(0) };
        if !is_only || !files.grant(name) {
            return Err(refused(name));
        }
        (self.asks, self.at, self.packet) = (false, At::Result, number);
        Ok(end)
    }
}
