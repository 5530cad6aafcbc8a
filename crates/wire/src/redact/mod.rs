//! Takes the literals out of SQL, for logs that must not hold data: strings, numbers, bit and hex strings, dollar-quoted
//! strings become `?`, comments a space; words, operators, quoted names and parameters (`$1`, `?`, `:x`) stay.
//!
//! A tokenizer and not a parser (PostgreSQL manual, "Lexical Structure"; MySQL manual, "Literal Values", "Comment Syntax").
//! Where a string ends depends on modes of the session. What is not known of them is tried in every way: if the results
//! differ, a statement could be taken for part of a string, so all that is kept is the verb. The same where a string is code
//! that cannot be read.

mod lexer;
mod render;

use serde::Serialize;

use lexer::{Kind, Lexer, Reading};
use render::Renderer;

/// Bytes of a verb.
const VERB_MAX: usize = 32;

/// Whose SQL it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    Mysql,
    Postgres,
}

/// How literals were taken out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// Each became a `?`.
    Literals,
    /// Only the first word of the text is kept, because it could not be told where its literals end.
    Verb,
}

/// How the bytes of a character set hold those of ASCII.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// Only for themselves.
    Plain,
    /// Also as second byte of two, behind one beyond ASCII: GBK, GB18030, BIG5, UHC, JOHAB.
    Double,
    /// The same, but for the half-width characters.
    Sjis,
}

impl Encoding {
    /// By PostgreSQL's name for it.
    fn of_postgres(name: &[u8]) -> Self {
        match name {
            b"SJIS" | b"SHIFT_JIS_2004" => Self::Sjis,
            b"BIG5" | b"GBK" | b"GB18030" | b"JOHAB" | b"UHC" => Self::Double,
            _ => Self::Plain,
        }
    }

    /// Of the character that begins with this byte; what is longer begins with such pairs.
    fn length(self, first: u8) -> usize {
        match self {
            Self::Double if first >= 0x80 => 2,
            Self::Sjis if first >= 0x80 && !matches!(first, 0xa0..=0xdf) => 2,
            _ => 1,
        }
    }
}

/// `SERVER_STATUS_NO_BACKSLASH_ESCAPES` of MySQL.
pub const NO_BACKSLASH_ESCAPES: u16 = 0x0200;

/// What of the modes of a session is known, when its server reads a text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Modes {
    /// A backslash in `'…'` escapes.
    backslash: Option<bool>,
    encoding: Option<Encoding>,
}

impl Modes {
    /// A ParameterStatus of PostgreSQL.
    pub fn parameter(&mut self, name: &[u8], value: &[u8]) {
        match name {
            b"standard_conforming_strings" => self.backslash = Some(value != b"on"),
            b"client_encoding" => self.encoding = Some(Encoding::of_postgres(value)),
            _ => {}
        }
    }

    /// The status flags of a packet of MySQL. Its character set cannot be known, because a session changes it in silence.
    pub fn status(&mut self, flags: u16) {
        self.backslash = Some(flags & NO_BACKSLASH_ESCAPES == 0);
    }
}

/// `sql` without its literals.
pub fn redact(sql: &[u8], dialect: Dialect, modes: Modes) -> (Vec<u8>, How) {
    match rendered(sql, dialect, modes) {
        Some(text) => (text, How::Literals),
        None => (verb(sql, dialect), How::Verb),
    }
}

/// `None` where the modes that are not known make a difference, or there is code that cannot be read.
fn rendered(sql: &[u8], dialect: Dialect, modes: Modes) -> Option<Vec<u8>> {
    const PLAIN: &[Encoding] = &[Encoding::Plain];
    const ALL: &[Encoding] = &[Encoding::Plain, Encoding::Double, Encoding::Sjis];
    let is_mysql = dialect == Dialect::Mysql;
    let escapes = (is_mysql || modes.backslash.is_none()) && sql.contains(&b'\\');
    let backslashes: &[bool] = match modes.backslash {
        Some(true) => &[true],
        Some(false) => &[false],
        None if escapes => &[true, false],
        None => &[true],
    };
    let encodings = match &modes.encoding {
        Some(encoding) => std::slice::from_ref(encoding),
        None if has_ambiguous_pairs(sql) => ALL,
        None => PLAIN,
    };
    let quotes: &[bool] = if is_mysql && escapes && sql.contains(&b'"') { &[false, true] } else { &[false] };
    let mut text = None;
    for &backslash in backslashes {
        for &encoding in encodings {
            for &ansi_quotes in quotes {
                let read = Renderer::read(sql, Reading { dialect, backslash, encoding, ansi_quotes }).ok()?;
                if text.as_ref().is_some_and(|text| *text != read) {
                    return None;
                }
                text = Some(read);
            }
        }
    }
    text
}

/// A second byte that would mean something alone.
fn has_ambiguous_pairs(sql: &[u8]) -> bool {
    sql.windows(2).any(|pair| matches!(pair, [0x80..=0xff, b'\\' | b'`']))
}

/// The first word, which is no literal.
fn verb(sql: &[u8], dialect: Dialect) -> Vec<u8> {
    let reading = Reading { dialect, backslash: false, encoding: Encoding::Plain, ansi_quotes: false };
    let mut lexer = Lexer::new(sql, reading);
    while let Some(token) = lexer.significant() {
        match token.kind {
            Kind::Word if token.text.first().is_some_and(u8::is_ascii_alphabetic) => {
                return token.text.get(..VERB_MAX).unwrap_or(token.text).to_vec();
            }
            Kind::Other if matches!(token.text, b"(" | b";") => {}
            _ => break,
        }
    }
    Vec::new()
}

#[cfg(test)]
mod tests;
