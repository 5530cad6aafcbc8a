//! An error as people read it, in the form of each engine.

use bytes::{Bytes, BytesMut};

use super::mysql::packet::ErrPacket;
use super::pg::message::ErrorFields;

/// `ER_UNKNOWN_ERROR` of MySQL, for errors without a number.
const UNKNOWN_ERROR: u16 = 1105;

/// What the upstream said, or what the client is told.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ErrorText {
    /// MySQL's error number; 0 where the engine has none.
    pub number: u16,
    /// Five characters.
    pub sqlstate: String,
    pub message: String,
    pub detail: String,
    pub hint: String,
}

impl ErrorText {
    /// As the fields of a PostgreSQL message.
    pub fn fields(&self, severity: &str) -> ErrorFields {
        ErrorFields {
            severity: severity.to_owned(),
            code: self.sqlstate.clone(),
            message: self.message.clone(),
            detail: self.detail.clone(),
            hint: self.hint.clone(),
        }
    }

    /// For the person at the terminal, who sees that it is bastion that speaks.
    pub fn sentence(&self) -> String {
        let parts = [&self.message, &self.detail, &self.hint];
        let parts: Vec<&str> =
            parts.into_iter().map(|part| part.trim_end_matches('.')).filter(|part| !part.is_empty()).collect();
        parts.join(". ").replacen("bastion: ", "", 1)
    }

    /// As an ERR packet of MySQL, one sentence after the other. Before the greeting it is to have no SQLSTATE, because
    /// nobody has agreed on protocol 4.1.
    pub fn packet(&self, sequence: u8, with_state: bool) -> Bytes {
        let parts = [&self.message, &self.hint, &self.detail];
        let parts: Vec<&str> = parts.into_iter().map(String::as_str).filter(|part| !part.is_empty()).collect();
        let number = if self.number == 0 { UNKNOWN_ERROR } else { self.number };
        let sqlstate = with_state.then(|| self.sqlstate.clone());
        let mut out = BytesMut::new();
        ErrPacket { number, sqlstate, message: parts.join(". ") }.encode(sequence, &mut out);
        out.freeze()
    }
}
