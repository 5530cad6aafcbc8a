//! A session followed by several readers, each of which knows one thing of it.

use bytes::Bytes;

#[cfg(feature = "relay")]
use super::Stop;
use super::{Event, Pass, ends_with_goodbye};
use crate::wire::downstream::Downstream;
use crate::wire::error_text::ErrorText;
#[cfg(feature = "relay")]
use crate::wire::mysql::agreed::Agreed;
#[cfg(feature = "relay")]
use crate::wire::mysql::commands::Commands;
#[cfg(feature = "relay")]
use crate::wire::session::text::{Limits, Statement};
#[cfg(feature = "relay")]
use crate::wire::statements::Observer;

/// Head of a packet of MySQL.
#[cfg(feature = "relay")]
const HEAD: usize = 4;
/// Longest name of a file (`FN_REFLEN` of the servers is 512).
#[cfg(feature = "relay")]
const NAME_MAX: usize = 4096;

/// See the module.
pub struct Parts {
    downstream: Downstream,
    goodbye: bool,
    /// Of the server's bytes that did not go on, those that were looked at.
    #[cfg(feature = "relay")]
    seen: usize,
    /// They are a request for a file.
    asks: bool,
    #[cfg(feature = "relay")]
    commands: Option<Commands>,
    #[cfg(feature = "relay")]
    observer: Option<Observer>,
    /// Of the last statement.
    #[cfg(feature = "relay")]
    number: u64,
}

impl Parts {
    #[cfg(feature = "relay")]
    pub(super) fn mysql(agreed: Agreed, statements: Option<Limits>) -> Self {
        let commands = Commands::new(agreed.stops_at_reset, agreed.capabilities);
        let downstream = commands.downstream().holding_file_requests();
        let observer = statements.map(Observer::mysql);
        Self { commands: Some(commands), observer, ..Self::new(downstream) }
    }

    pub(super) fn mysql_login() -> Self {
        Self::new(Downstream::mysql_login())
    }

    fn new(downstream: Downstream) -> Self {
        Self {
            downstream,
            goodbye: false,
            #[cfg(feature = "relay")]
            seen: 0,
            asks: false,
            #[cfg(feature = "relay")]
            commands: None,
            #[cfg(feature = "relay")]
            observer: None,
            #[cfg(feature = "relay")]
            number: 0,
        }
    }

    pub(super) fn logged_in(&mut self, bytes: &[u8]) {
        self.downstream.pass(bytes);
        self.downstream.end_answer();
    }

    pub(super) fn withholds(&self) -> bool {
        self.asks
    }

    pub(super) fn is_between_messages(&self) -> bool {
        self.downstream.is_between_messages()
    }

    pub(super) fn has_said_goodbye(&self) -> bool {
        self.goodbye
    }

    pub(super) fn last_words(&self, text: &ErrorText) -> Option<Bytes> {
        self.downstream.last_words(text)
    }
}

#[cfg(not(feature = "relay"))]
impl Parts {
    pub(super) fn client(&mut self, bytes: &[u8], _events: &mut Vec<Event>) -> Pass {
        self.goodbye = ends_with_goodbye(bytes);
        Pass { forward: bytes.len(), stop: None }
    }

    pub(super) fn server(&mut self, bytes: &[u8], _events: &mut Vec<Event>) -> Pass {
        self.downstream.pass(bytes);
        Pass { forward: bytes.len(), stop: None }
    }

    pub(super) fn server_message(&mut self, bytes: &[u8], _events: &mut Vec<Event>) -> Pass {
        Pass { forward: self.downstream.pass_message(bytes), stop: None }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.downstream.is_between_answers()
    }

    pub(super) fn answered(&mut self, _command: &[u8], _events: &mut Vec<Event>) {}

    pub(super) fn end(&mut self, _events: &mut Vec<Event>) {}
}

#[cfg(feature = "relay")]
impl Parts {
    pub(super) fn client(&mut self, bytes: &[u8], events: &mut Vec<Event>) -> Pass {
        self.goodbye = ends_with_goodbye(bytes);
        let pass = match &mut self.commands {
            Some(commands) => {
                let scan = commands.scan(bytes);
                events.extend(commands.take_sent_files().into_iter().map(Event::File));
                Pass { forward: scan.pass, stop: scan.stop.then_some(Stop::Command) }
            }
            None => Pass { forward: bytes.len(), stop: None },
        };
        let mut found = Vec::new();
        if let Some(observer) = &mut self.observer {
            observer.up(bytes.get(..pass.forward).unwrap_or_default(), &mut found);
        }
        self.tell(found, events);
        pass
    }

    fn tell(&mut self, found: Vec<Statement>, events: &mut Vec<Event>) {
        for statement in found {
            self.number = self.number.saturating_add(1);
            events.push(Event::Statement { number: self.number, statement });
        }
    }

    /// Bytes of the server that go on.
    fn forward(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        if let Some(observer) = &mut self.observer {
            observer.down(bytes);
        }
        if let Some(commands) = &mut self.commands {
            commands.down(bytes);
        }
    }

    pub(super) fn server(&mut self, bytes: &[u8], _events: &mut Vec<Event>) -> Pass {
        let mut forward = 0;
        loop {
            let rest = bytes.get(forward..).unwrap_or_default();
            if !self.asks {
                let fresh = rest.get(self.seen..).unwrap_or_default();
                match self.downstream.pass_up_to_file_request(fresh) {
                    None => {
                        let held = self.downstream.pending_head().min(rest.len());
                        let pass = rest.len().saturating_sub(held);
                        self.forward(rest.get(..pass).unwrap_or_default());
                        self.seen = held;
                        return Pass { forward: forward.saturating_add(pass), stop: None };
                    }
                    // Its head may have come before.
                    Some(at) => {
                        let before = if at == 0 { 0 } else { self.seen.saturating_add(at) };
                        self.forward(rest.get(..before).unwrap_or_default());
                        forward = forward.saturating_add(before);
                        self.asks = true;
                    }
                }
            }
            match self.decide(bytes.get(forward..).unwrap_or_default()) {
                Ok(0) => return Pass { forward, stop: None },
                Ok(request) => forward = forward.saturating_add(request),
                Err(stop) => return Pass { forward, stop: Some(stop) },
            }
        }
    }

    /// Decides on the request for a file that `held` begins with, once it is whole: its length, if it may pass.
    fn decide(&mut self, held: &[u8]) -> Result<usize, Stop> {
        self.seen = held.len();
        let Some(&[a, b, c, _number]) = held.first_chunk::<HEAD>() else { return Ok(0) };
        let length = usize::try_from(u32::from_le_bytes([a, b, c, 0])).unwrap_or(usize::MAX);
        let (name_from, end) = (HEAD.saturating_add(1), HEAD.saturating_add(length));
        let refused = |name: &[u8]| Stop::File(String::from_utf8_lossy(name).into_owned());
        let Some(commands) = self.commands.as_mut().filter(|commands| length <= NAME_MAX && commands.may_send_files())
        else {
            return Err(refused(held.get(name_from..end.min(held.len()).min(NAME_MAX)).unwrap_or_default()));
        };
        let Some(name) = held.get(name_from..end) else { return Ok(0) };
        if !commands.grant_file(name) {
            return Err(refused(name));
        }
        let request = held.get(..end).unwrap_or_default();
        self.downstream.pass_file_request(request);
        self.forward(request);
        if let Some(observer) = &mut self.observer {
            observer.file_begins();
        }
        (self.asks, self.seen) = (false, 0);
        Ok(end)
    }

    pub(super) fn server_message(&mut self, bytes: &[u8], events: &mut Vec<Event>) -> Pass {
        let fresh = bytes.get(self.seen..).unwrap_or_default();
        let passed = self.downstream.pass_message(fresh);
        if passed == 0 {
            // A request for a file.
            return self.server(bytes, events);
        }
        let forward = passed.saturating_add(std::mem::take(&mut self.seen));
        self.forward(bytes.get(..forward).unwrap_or_default());
        Pass { forward, stop: None }
    }

    pub(super) fn stop_at_resets(&mut self, stops: bool) {
        if let Some(commands) = &mut self.commands {
            commands.stop_at_resets(stops);
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.commands.as_ref().is_none_or(Commands::is_answered) && self.downstream.is_between_answers()
    }

    pub(super) fn answered(&mut self, command: &[u8], events: &mut Vec<Event>) {
        let mut found = Vec::new();
        if let Some(observer) = &mut self.observer {
            observer.answered(command, &mut found);
        }
        self.tell(found, events);
        if let Some(commands) = &mut self.commands {
            commands.start_anew();
            self.downstream = commands.downstream().holding_file_requests();
        }
        (self.seen, self.asks) = (0, false);
    }

    pub(super) fn end(&mut self, events: &mut Vec<Event>) {
        events.extend(self.commands.as_mut().and_then(Commands::take_unfinished_file).map(Event::File));
    }
}
