//! A session of PostgreSQL, from message to message (manual, "Message Flow" and "Message Formats").
//!
//! Of most messages only type and length are read. What clients ask and servers answer is followed where statements are told to
//! the audit log; then a stream that cannot be followed ends the session, and a length that no message has always does. A
//! server may send a NoticeResponse between any two messages ("Asynchronous Operations"), in a COPY too, and an ErrorResponse
//! before it closes; so may the relay.

mod asked;
mod effects;
mod frame;
mod names;
mod statements;

use bytes::{Bytes, BytesMut};

use super::{Event, OutOfProtocol, Pass, Stop};
use crate::error_text::ErrorText;
use crate::session::text::Limits;
use frame::{Framer, Part};
use statements::Statements;

/// What the server's side may begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    /// Answers of one byte each to requests for encryption, then the first message of a login.
    Login,
    Message,
    /// It is not followed: most likely it is encrypted.
    Hidden,
}

/// See the module.
pub struct Session {
    start: Start,
    client: Framer,
    server: Framer,
    /// The client's last message is Terminate.
    goodbye: bool,
    statements: Option<Box<Statements>>,
}

fn out(from: &'static str, what: String) -> OutOfProtocol {
    OutOfProtocol { from, what }
}

impl Session {
    fn from(start: Start) -> Self {
        Self { start, client: Framer::default(), server: Framer::default(), goodbye: false, statements: None }
    }

    /// From an idle session on.
    pub(super) fn new(limits: Option<Limits>) -> Self {
        let statements = limits.map(|limits| Box::new(Statements::new(limits)));
        Self { statements, ..Self::from(Start::Message) }
    }

    /// The server's side alone, from its first byte on.
    pub(super) fn login() -> Self {
        Self::from(Start::Login)
    }

    /// The end of the login: settings of the session, and its first ReadyForQuery.
    pub(super) fn logged_in(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.start == Start::Message {
            match self.server.next(&mut bytes) {
                Part::Head | Part::Begin { .. } => {}
                Part::Body { tag, bytes, is_whole } => {
                    self.server_body(tag, bytes);
                    if is_whole {
                        self.set(tag);
                    }
                }
                Part::Impossible { .. } => self.start = Start::Hidden,
            }
        }
    }

    /// Bytes of the client.
    pub(super) fn client(&mut self, bytes: &[u8], events: &mut Vec<Event>) -> Pass {
        let mut rest = bytes;
        // Where the message under way begins among the bytes.
        let mut began = 0_usize;
        while !rest.is_empty() {
            if self.client.is_between_messages() {
                began = bytes.len().saturating_sub(rest.len());
            }
            let told = match self.client.next(&mut rest) {
                Part::Head => continue,
                Part::Begin { tag, is_whole } => {
                    self.goodbye = tag == b'X';
                    if is_whole { self.client_message(tag, events) } else { Ok(()) }
                }
                Part::Body { tag, bytes, is_whole } => {
                    self.client_body(tag, bytes);
                    if is_whole { self.client_message(tag, events) } else { Ok(()) }
                }
                Part::Impossible { tag, length } => Err(impossible("client", tag, length).into()),
            };
            if let Err(stop) = told {
                // Of a message that is not to go on, the end does not.
                return Pass { forward: began, stop: Some(stop) };
            }
        }
        Pass { forward: bytes.len(), stop: None }
    }

    fn client_body(&mut self, tag: u8, bytes: &[u8]) {
        if let Some(statements) = &mut self.statements {
            statements.client_body(tag, bytes);
        }
    }

    fn client_message(&mut self, tag: u8, events: &mut Vec<Event>) -> Result<(), Stop> {
        let Some(statements) = &mut self.statements else { return Ok(()) };
        statements.hold()?;
        Ok(statements.client_message(tag, events)?)
    }

    /// Bytes of the server.
    pub(super) fn server(&mut self, bytes: &[u8], events: &mut Vec<Event>) -> Pass {
        let mut forward = 0_usize;
        while let Some(rest) = bytes.get(forward..).filter(|rest| !rest.is_empty()) {
            let message = self.server_message(rest, events);
            forward = forward.saturating_add(message.forward);
            if message.stop.is_some() {
                return Pass { forward, ..message };
            }
        }
        Pass { forward, stop: None }
    }

    /// Bytes of the server, up to the end of a message.
    pub(super) fn server_message(&mut self, bytes: &[u8], events: &mut Vec<Event>) -> Pass {
        let mut rest = bytes;
        while let Some(first) = rest.first() {
            match (self.start, first) {
                (Start::Hidden, _) => return Pass { forward: bytes.len(), stop: None },
                (Start::Login, b'N') => {
                    rest = rest.get(1..).unwrap_or_default();
                    continue;
                }
                // It asks for authentication, refuses or negotiates the version.
                (Start::Login, b'R' | b'E' | b'v') => self.start = Start::Message,
                // Yes, and what follows is something else.
                (Start::Login, _) => {
                    self.start = Start::Hidden;
                    continue;
                }
                (Start::Message, _) => {}
            }
            let (before, at) = (self.server, bytes.len().saturating_sub(rest.len()));
            let (told, is_whole) = match self.server.next(&mut rest) {
                Part::Head => (Ok(()), false),
                Part::Begin { tag, is_whole } => {
                    let told = if is_whole { self.server_told(tag, events) } else { Ok(()) };
                    (told, is_whole)
                }
                Part::Body { tag, bytes, is_whole } => {
                    self.server_body(tag, bytes);
                    let told = if is_whole { self.server_told(tag, events) } else { Ok(()) };
                    (told, is_whole)
                }
                Part::Impossible { tag, length } => {
                    self.server = before;
                    let stop = Some(Stop::OutOfProtocol(impossible("database", tag, length)));
                    return Pass { forward: at, stop };
                }
            };
            let forward = bytes.len().saturating_sub(rest.len());
            if let Err(error) = told {
                return Pass { forward, stop: Some(Stop::OutOfProtocol(error)) };
            }
            if is_whole {
                return Pass { forward, stop: None };
            }
        }
        Pass { forward: bytes.len(), stop: None }
    }

    /// A message of the login's end is whole.
    fn set(&mut self, tag: u8) {
        if let Some(statements) = &mut self.statements {
            statements.set(tag);
        }
    }

    fn server_body(&mut self, tag: u8, bytes: &[u8]) {
        if let Some(statements) = &mut self.statements {
            statements.server_body(tag, bytes);
        }
    }

    fn server_told(&mut self, tag: u8, events: &mut Vec<Event>) -> Result<(), OutOfProtocol> {
        self.statements.as_mut().map_or(Ok(()), |statements| statements.server_message(tag, events))
    }

    /// Whether the client is to wait.
    pub(super) fn is_full(&self) -> bool {
        self.statements.as_ref().is_some_and(|statements| statements.is_full())
    }

    /// Whether everything is answered, as far as that is followed.
    pub(super) fn is_idle(&self) -> bool {
        let asked = self.statements.as_ref().is_some_and(|statements| !statements.is_idle());
        self.is_between_messages() && !asked
    }

    pub(super) fn is_between_messages(&self) -> bool {
        self.start != Start::Hidden && self.server.is_between_messages()
    }

    pub(super) fn has_said_goodbye(&self) -> bool {
        self.goodbye
    }

    pub(super) fn notice(&self, text: &ErrorText) -> Bytes {
        let mut out = BytesMut::new();
        text.fields("WARNING").encode_notice(&mut out);
        out.freeze()
    }

    pub(super) fn last_words(&self, text: &ErrorText) -> Option<Bytes> {
        self.is_between_messages().then(|| {
            let mut out = BytesMut::new();
            text.fields("FATAL").encode(&mut out);
            out.freeze()
        })
    }
}

fn impossible(from: &'static str, tag: u8, length: u32) -> OutOfProtocol {
    out(from, format!("a message of the type {:?} cannot have the length {length}", char::from(tag)))
}

#[cfg(test)]
mod tests;
