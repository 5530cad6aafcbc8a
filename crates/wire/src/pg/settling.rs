//! The upstream's messages from AuthenticationOk to its first ReadyForQuery. They pass unchanged; what is added is a
//! statement of the relay that makes the session one that only reads, where the startup packet could not say it.

use bytes::{BufMut as _, Bytes, BytesMut};

use super::message::{self, ErrorFields, LOGIN_MESSAGE_MAX};
use super::parameters::READ_ONLY;
use crate::Malformed;
use crate::error_text::ErrorText;

/// Where the relay's own statement is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Statement {
    None,
    Due,
    Sent,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Settling {
    /// Not sent to the client yet.
    held: BytesMut,
    /// Of a message that is too long to be kept, what has not come yet.
    passing: usize,
    /// The error that passes in this way.
    failed: Option<ErrorText>,
    statement: Statement,
    /// The process of the server that has the session.
    process: Option<u32>,
}

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Settled {
    /// Send this upstream.
    Ask(Bytes),
    /// The upstream has ended the login with this error, whose message is the last of these bytes for the client.
    Failed(ErrorText, Bytes),
    Malformed(Malformed),
    /// The upstream has refused the statement.
    NotReadOnly(ErrorText),
    Read,
    /// The login is done, with these bytes for the client.
    Ready(Bytes),
    /// Send this to the client: there is a lot of it.
    Tell(Bytes),
}

impl Settling {
    /// `held` are messages for the client, AuthenticationOk last.
    pub(super) fn new(held: BytesMut, makes_read_only: bool) -> Self {
        let statement = if makes_read_only { Statement::Due } else { Statement::None };
        Self { held, passing: 0, failed: None, statement, process: None }
    }

    /// The number of the server's process, as BackendKeyData has said it.
    pub(super) fn process(&self) -> Option<u32> {
        self.process
    }

    /// Takes what is at the front of `input`.
    pub(super) fn poll(&mut self, input: &mut BytesMut) -> Settled {
        loop {
            if self.passing > 0 {
                let part = input.split_to(self.passing.min(input.len()));
                self.passing = self.passing.saturating_sub(part.len());
                self.held.put_slice(&part);
                if self.passing == 0
                    && let Some(said) = self.failed.take()
                {
                    return Settled::Failed(said, self.take());
                }
            }
            if self.held.len() > LOGIN_MESSAGE_MAX {
                return Settled::Tell(self.take());
            }
            if self.passing > 0 {
                return Settled::Read;
            }
            match message::header(input) {
                Some((tag, length)) if length > LOGIN_MESSAGE_MAX => {
                    if let Some(done) = self.begin_long(tag, length, input) {
                        return done;
                    }
                }
                _ => {
                    if let Some(done) = self.take_message(input) {
                        return done;
                    }
                }
            }
        }
    }

    /// A message that passes without being kept: a notice, an error, or a setting may be of any length.
    fn begin_long(&mut self, tag: u8, length: usize, input: &BytesMut) -> Option<Settled> {
        if !matches!(tag, b'A' | b'E' | b'N' | b'S') || i32::try_from(length).is_err() {
            return Some(Settled::Malformed(message::LENGTH));
        }
        if tag == b'E' {
            // As much as a record of it needs.
            if input.len() < LOGIN_MESSAGE_MAX {
                return Some(Settled::Read);
            }
            let said = said(input.get(5..).unwrap_or_default());
            if self.statement == Statement::Sent {
                return Some(Settled::NotReadOnly(said));
            }
            self.failed = Some(said);
        }
        self.passing = length.saturating_add(1);
        None
    }

    fn take_message(&mut self, input: &mut BytesMut) -> Option<Settled> {
        let message = match message::decode(input) {
            Ok(Some(message)) => message,
            Ok(None) => return Some(Settled::Read),
            Err(error) => return Some(Settled::Malformed(error)),
        };
        match (message.tag, self.statement) {
            (b'E', Statement::Sent) => return Some(Settled::NotReadOnly(said(&message.body))),
            (b'E', _) => {
                self.held.put_slice(&message.raw);
                return Some(Settled::Failed(said(&message.body), self.take()));
            }
            (b'Z', Statement::Due) => {
                self.statement = Statement::Sent;
                let mut query = BytesMut::new();
                message::encode(b'Q', format!("SET {READ_ONLY} = on\0").as_bytes(), &mut query);
                return Some(Settled::Ask(query.freeze()));
            }
            (b'Z', _) => {
                self.held.put_slice(&message.raw);
                self.held.put_slice(&input.split());
                return Some(Settled::Ready(self.take()));
            }
            // The answer to what the client did not ask.
            (b'C', Statement::Sent) => {}
            (b'K', _) => {
                self.process = message.body.first_chunk().map(|number| u32::from_be_bytes(*number));
                self.held.put_slice(&message.raw);
            }
            _ => self.held.put_slice(&message.raw),
        }
        None
    }

    fn take(&mut self) -> Bytes {
        self.held.split().freeze()
    }
}

pub(super) fn said(body: &[u8]) -> ErrorText {
    let ErrorFields { code, message, detail, hint, .. } = ErrorFields::parse(body);
    ErrorText { number: 0, sqlstate: code, message, detail, hint }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(messages: &[(u8, &[u8])]) -> BytesMut {
        let mut out = BytesMut::new();
        messages.iter().for_each(|(tag, body)| message::encode(*tag, body, &mut out));
        out
    }

    fn settling(makes_read_only: bool) -> Settling {
        Settling::new(BytesMut::from(&b"ok"[..]), makes_read_only)
    }

    /// Everything that comes of `input`, given in pieces of `piece` bytes, with what goes to the client joined.
    fn played(settling: &mut Settling, input: &[u8], piece: usize) -> (Vec<u8>, Vec<Settled>) {
        let (mut to_client, mut rest) = (Vec::new(), Vec::new());
        let mut buffer = BytesMut::new();
        for part in input.chunks(piece) {
            buffer.put_slice(part);
            loop {
                match settling.poll(&mut buffer) {
                    Settled::Read => break,
                    Settled::Tell(bytes) => to_client.extend_from_slice(&bytes),
                    Settled::Ready(bytes) => {
                        to_client.extend_from_slice(&bytes);
                        rest.push(Settled::Ready(Bytes::new()));
                        return (to_client, rest);
                    }
                    Settled::Failed(said, bytes) => {
                        to_client.extend_from_slice(&bytes);
                        rest.push(Settled::Failed(said, Bytes::new()));
                        return (to_client, rest);
                    }
                    asked @ Settled::Ask(_) => rest.push(asked),
                    over => {
                        rest.push(over);
                        return (to_client, rest);
                    }
                }
            }
        }
        (to_client, rest)
    }

    #[test]
    fn messages_of_any_length_pass_however_they_are_cut() {
        let long = vec![b'x'; 200_000];
        let input = encoded(&[(b'N', &long), (b'S', b"TimeZone\0UTC\0"), (b'S', &long), (b'Z', b"I")]);
        for piece in [1_000, 65_536, 1_000_000] {
            let (to_client, rest) = played(&mut settling(false), &input, piece);
            assert_eq!(to_client, [b"ok", &input[..]].concat());
            assert_eq!(rest, [Settled::Ready(Bytes::new())]);
        }
        // One that is no message of a login is not waited for.
        for (tag, length) in [(b'Z', 70_000_u32), (b'D', 70_000), (b'N', u32::MAX)] {
            let mut bad = BytesMut::from(&[tag][..]);
            bad.put_u32(length);
            assert_eq!(settling(false).poll(&mut bad), Settled::Malformed(message::LENGTH), "{tag} {length}");
        }
    }

    #[test]
    fn a_long_error_passes_and_is_known() {
        let mut body = b"SFATAL\0C57P03\0Mnot now\0D".to_vec();
        body.extend_from_slice(&vec![b'x'; 100_000]);
        body.extend_from_slice(b"\0\0");
        let input = encoded(&[(b'E', &body)]);
        let (to_client, rest) = played(&mut settling(false), &input, 10_000);
        assert_eq!(to_client, [b"ok", &input[..]].concat());
        assert!(
            matches!(&rest[..], [Settled::Failed(said, _)] if said.sqlstate == "57P03" && said.message == "not now")
        );
    }

    #[test]
    fn the_statement_of_the_relay_is_invisible_but_for_what_it_changes() {
        let input = encoded(&[
            (b'S', b"default_transaction_read_only\0off\0"),
            (b'K', &[0, 0, 0, 7, 1, 2, 3, 4]),
            (b'Z', b"I"),
            (b'N', b"SNOTICE\0\0"),
            (b'C', b"SET\0"),
            (b'S', b"default_transaction_read_only\0on\0"),
            (b'Z', b"I"),
        ]);
        let visible = encoded(&[
            (b'S', b"default_transaction_read_only\0off\0"),
            (b'K', &[0, 0, 0, 7, 1, 2, 3, 4]),
            (b'N', b"SNOTICE\0\0"),
            (b'S', b"default_transaction_read_only\0on\0"),
            (b'Z', b"I"),
        ]);
        let query = encoded(&[(b'Q', b"SET default_transaction_read_only = on\0")]).freeze();
        for piece in [1, 7, 1_000] {
            let mut settling = settling(true);
            let (to_client, rest) = played(&mut settling, &input, piece);
            assert_eq!(settling.process(), Some(7));
            assert_eq!(to_client, [b"ok", &visible[..]].concat());
            assert_eq!(rest, [Settled::Ask(query.clone()), Settled::Ready(Bytes::new())]);
        }
    }

    #[test]
    fn an_upstream_that_does_not_make_the_session_read_only_is_found_out() {
        let error: &[u8] = b"SERROR\0C42501\0Mpermission denied\0\0";
        let input = encoded(&[(b'Z', b"I"), (b'E', error), (b'Z', b"I")]);
        let (to_client, rest) = played(&mut settling(true), &input, 1_000);
        assert!(to_client.is_empty());
        assert!(matches!(&rest[..], [Settled::Ask(_), Settled::NotReadOnly(said)] if said.sqlstate == "42501"));
        // An error of the login itself is the client's.
        let (to_client, rest) = played(&mut settling(true), &encoded(&[(b'E', error)]), 1_000);
        assert!(to_client.starts_with(b"okE") && matches!(&rest[..], [Settled::Failed(..)]));
    }
}
