//! SQL in tokens, as a server with certain modes reads it (PostgreSQL's `scan.l`, MySQL's `sql_lex.cc`).

use super::{Dialect, Encoding};

/// How a text is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reading {
    pub(super) dialect: Dialect,
    /// A backslash in `'…'` escapes.
    pub(super) backslash: bool,
    pub(super) encoding: Encoding,
    /// `"…"` of MySQL is a name, in which no backslash escapes.
    pub(super) ansi_quotes: bool,
}

impl Reading {
    fn is_mysql(self) -> bool {
        self.dialect == Dialect::Mysql
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Blank,
    Comment,
    /// The start of a comment of MySQL that a server may run: `/*!` and a version.
    Executable,
    /// A word, a name without quotes, a parameter.
    Word,
    /// A name in quotes.
    Name,
    /// `"…"` in MySQL: a string, or with `ANSI_QUOTES` a name.
    Quoted,
    /// `'…'` with its prefix, and in PostgreSQL with those behind line ends that belong to it.
    Text,
    /// `$tag$…$tag$`.
    Dollar,
    Number,
    /// One byte.
    Other,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Token<'a> {
    pub(super) kind: Kind,
    pub(super) text: &'a [u8],
    /// It has ended before the text did, or needs no end.
    pub(super) closed: bool,
}

impl Token<'_> {
    pub(super) fn is(&self, word: &str) -> bool {
        self.text.eq_ignore_ascii_case(word.as_bytes())
    }

    pub(super) fn is_one_of(&self, words: &[&str]) -> bool {
        words.iter().any(|word| self.is(word))
    }
}

#[derive(Clone, Copy)]
pub(super) struct Lexer<'a> {
    rest: &'a [u8],
    reading: Reading,
    /// The token before ends a name, and nothing stands between.
    behind_name: bool,
    /// A dot behind a name.
    behind_dot: bool,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a [u8], reading: Reading) -> Self {
        Self { rest: text, reading, behind_name: false, behind_dot: false }
    }

    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next token that is no blank and no comment.
    pub(super) fn significant(&mut self) -> Option<Token<'a>> {
        self.find(|token| !matches!(token.kind, Kind::Blank | Kind::Comment))
    }

    /// The kind of the next token, what is behind it, and whether it was ended.
    fn read(&self, first: u8) -> (Kind, &'a [u8], bool) {
        let (rest, reading) = (self.rest, self.reading);
        let mysql = reading.is_mysql();
        let behind = rest.get(1..).unwrap_or_default();
        let next = behind.first().copied();
        match first {
            b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c => (Kind::Blank, blanks(rest), true),
            b'\'' => self.text(behind, reading.backslash),
            b'"' if mysql => {
                let (rest, closed) = quoted(behind, b'"', reading.backslash && !reading.ansi_quotes, reading);
                (Kind::Quoted, rest, closed)
            }
            b'"' => named(quoted(behind, b'"', false, reading)),
            b'`' if mysql => named(quoted(behind, b'`', false, reading)),
            b'-' if is_line_comment(behind, mysql) => line(rest, mysql),
            b'#' if mysql => line(rest, mysql),
            b'/' if mysql && (behind.starts_with(b"*!") || behind.starts_with(b"*M!")) => {
                let version = behind.get(if next == Some(b'*') && behind.starts_with(b"*M") { 3 } else { 2 }..);
                (Kind::Executable, skip_while(version.unwrap_or_default(), u8::is_ascii_digit), true)
            }
            b'*' if mysql && next == Some(b'/') => (Kind::Comment, behind.get(1..).unwrap_or_default(), true),
            b'/' if next == Some(b'*') => block(behind.get(1..).unwrap_or_default(), !mysql),
            b'$' if !mysql => dollar(rest),
            b'.' if !self.behind_name && next.is_some_and(|next| next.is_ascii_digit()) => {
                (Kind::Number, number(rest, reading), true)
            }
            // A name of MySQL may begin with digits, or have nothing else behind its schema.
            b'0'..=b'9' if mysql && (self.behind_dot || !is_number(rest)) => (Kind::Word, word(rest, reading), true),
            b'0'..=b'9' => (Kind::Number, number(rest, reading), true),
            b'e' | b'E' if !mysql && next == Some(b'\'') => self.text(behind.get(1..).unwrap_or_default(), true),
            b'b' | b'B' | b'x' | b'X' if next == Some(b'\'') => self.text(behind.get(1..).unwrap_or_default(), false),
            b'n' | b'N' if next == Some(b'\'') => self.text(behind.get(1..).unwrap_or_default(), reading.backslash),
            b'u' | b'U' if !mysql && behind.starts_with(b"&'") => self.text(behind.get(2..).unwrap_or_default(), false),
            _ if is_word(first) || mysql && first == b'$' => (Kind::Word, word(rest, reading), true),
            _ => (Kind::Other, behind, true),
        }
    }

    /// A string behind its quote.
    fn text(&self, mut rest: &'a [u8], backslash: bool) -> (Kind, &'a [u8], bool) {
        loop {
            let (behind, closed) = quoted(rest, b'\'', backslash, self.reading);
            // It keeps its kind, however it is written.
            match continued(behind).filter(|_| closed && !self.reading.is_mysql()) {
                Some(next) => rest = next,
                None => return (Kind::Text, behind, closed),
            }
        }
    }
}

impl<'a> Iterator for Lexer<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        let first = *self.rest.first()?;
        let (kind, behind, closed) = self.read(first);
        let length = self.rest.len().saturating_sub(behind.len());
        let (text, _) = self.rest.split_at_checked(length)?;
        self.rest = behind;
        self.behind_dot = kind == Kind::Other && first == b'.' && self.behind_name;
        self.behind_name = matches!(kind, Kind::Word | Kind::Name | Kind::Quoted);
        Some(Token { kind, text, closed })
    }
}

fn named((rest, closed): (&[u8], bool)) -> (Kind, &[u8], bool) {
    (Kind::Name, rest, closed)
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

fn skip_while(mut rest: &[u8], skips: impl Fn(&u8) -> bool) -> &[u8] {
    while let Some((first, behind)) = rest.split_first()
        && skips(first)
    {
        rest = behind;
    }
    rest
}

fn blanks(rest: &[u8]) -> &[u8] {
    skip_while(rest, |byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c))
}

/// Behind the first character.
fn character(rest: &[u8], encoding: Encoding) -> &[u8] {
    rest.get(rest.first().map_or(0, |first| encoding.length(*first))..).unwrap_or_default()
}

fn word(mut rest: &[u8], reading: Reading) -> &[u8] {
    while let Some(first) = rest.first()
        && (is_word(*first) || first.is_ascii_digit() || *first == b'$')
    {
        rest = character(rest, reading.encoding);
    }
    rest
}

/// Behind the end of what is quoted, and whether there is one.
fn quoted(mut rest: &[u8], quote: u8, backslash: bool, reading: Reading) -> (&[u8], bool) {
    loop {
        rest = match rest {
            [] => return (rest, false),
            [first, second, behind @ ..] if *first == quote && *second == quote => behind,
            [first, behind @ ..] if *first == quote => return (behind, true),
            // MySQL takes one byte behind it, whatever character that begins.
            [b'\\', _, behind @ ..] if backslash && reading.is_mysql() => behind,
            [b'\\', behind @ ..] if backslash => character(behind, reading.encoding),
            _ => character(rest, reading.encoding),
        }
    }
}

/// Behind the quote with which a string of PostgreSQL goes on: there is a line end before it, and nothing but blanks and line
/// comments.
fn continued(mut rest: &[u8]) -> Option<&[u8]> {
    let mut line_end = false;
    loop {
        rest = match rest {
            [b'\'', behind @ ..] => return line_end.then_some(behind),
            [b'\n' | b'\r', behind @ ..] => {
                line_end = true;
                behind
            }
            [b' ' | b'\t' | 0x0b | 0x0c, behind @ ..] => behind,
            [b'-', b'-', ..] => skip_while(rest, |byte| !matches!(byte, b'\n' | b'\r')),
            _ => return None,
        }
    }
}

/// Whether the dash before `behind` begins a comment; in MySQL only with a space or control character behind the second one.
fn is_line_comment(behind: &[u8], mysql: bool) -> bool {
    behind.strip_prefix(b"-").is_some_and(|behind| {
        !mysql || behind.first().is_none_or(|next| next.is_ascii_whitespace() || next.is_ascii_control())
    })
}

fn line(rest: &[u8], mysql: bool) -> (Kind, &[u8], bool) {
    let behind = skip_while(rest, |byte| *byte != b'\n' && (mysql || *byte != b'\r'));
    (Kind::Comment, behind, !behind.is_empty())
}

fn block(mut rest: &[u8], nested: bool) -> (Kind, &[u8], bool) {
    let mut depth = 1_u32;
    while depth > 0 {
        rest = match rest {
            [] => return (Kind::Comment, rest, false),
            [b'/', b'*', behind @ ..] if nested => {
                depth = depth.saturating_add(1);
                behind
            }
            [b'*', b'/', behind @ ..] => {
                depth = depth.saturating_sub(1);
                behind
            }
            [_, behind @ ..] => behind,
        }
    }
    (Kind::Comment, rest, true)
}

/// Whether what begins with a digit is a number for MySQL, and no name.
fn is_number(rest: &[u8]) -> bool {
    let end = skip_while(rest, |byte| byte.is_ascii_alphanumeric() || *byte == b'_' || *byte == b'$' || *byte >= 0x80);
    let whole = rest.get(..rest.len().saturating_sub(end.len())).unwrap_or_default();
    match whole {
        [b'0', b'x', digits @ ..] if !digits.is_empty() && digits.iter().all(u8::is_ascii_hexdigit) => true,
        [b'0', b'b', digits @ ..] if !digits.is_empty() && digits.iter().all(|digit| matches!(digit, b'0' | b'1')) => {
            true
        }
        _ => match skip_while(whole, u8::is_ascii_digit) {
            [] => true,
            // An exponent has its digits here or behind its sign.
            [b'e' | b'E'] => matches!(end, [b'+' | b'-', digit, ..] if digit.is_ascii_digit()),
            [b'e' | b'E', digit, ..] => digit.is_ascii_digit(),
            _ => false,
        },
    }
}

/// Behind a number and all that clings to it: `1`, `1.5e-3`, `0xff`, `1_000`.
fn number(rest: &[u8], reading: Reading) -> &[u8] {
    let hexadecimal = matches!(rest, [b'0', b'x' | b'X', ..]);
    let (mut rest, mut before) = (rest, 0);
    loop {
        rest = match rest {
            [b'+' | b'-', digit, ..] if matches!(before, b'e' | b'E') && !hexadecimal && digit.is_ascii_digit() => {
                rest.get(1..).unwrap_or_default()
            }
            [first, ..] if is_word(*first) || first.is_ascii_digit() || *first == b'.' => {
                before = *first;
                character(rest, reading.encoding)
            }
            _ => return rest,
        }
    }
}

/// `$1` is a parameter, `$tag$…$tag$` a string, anything else an operator.
fn dollar(rest: &[u8]) -> (Kind, &[u8], bool) {
    let inside = rest.get(1..).unwrap_or_default();
    if inside.first().is_some_and(u8::is_ascii_digit) {
        return (Kind::Word, skip_while(inside, u8::is_ascii_digit), true);
    }
    let behind = skip_while(inside, |byte| is_word(*byte) || byte.is_ascii_digit());
    match behind {
        // The start of a tag where the text was cut, or nothing that runs.
        [] => (Kind::Dollar, behind, false),
        [b'$', body @ ..] => {
            let tag = rest.get(..rest.len().saturating_sub(body.len())).unwrap_or_default();
            match find(body, tag) {
                Some(behind) => (Kind::Dollar, behind, true),
                None => (Kind::Dollar, &[], false),
            }
        }
        _ => (Kind::Other, inside, true),
    }
}

/// What is behind the first `wanted`, which begins with a byte that it has only there and at its end.
pub(super) fn find<'a>(mut text: &'a [u8], wanted: &[u8]) -> Option<&'a [u8]> {
    let first = *wanted.first()?;
    loop {
        let at = text.iter().position(|byte| *byte == first)?;
        text = text.get(at..)?;
        if let Some(behind) = text.strip_prefix(wanted) {
            return Some(behind);
        }
        text = text.get(1..)?;
    }
}
