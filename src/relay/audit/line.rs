//! The one writer of records: JSON lines that are never longer than what log drivers and CloudWatch take whole, whatever the
//! texts in them are. Each foreign text is cut by what it takes in JSON, and the record names the fields that were cut.
//!
//! A line begins behind its version and number, which it gets where its place in the log is known.

use std::io::Write as _;

use crate::relay::wall_clock;

/// Bytes of a line with its end: the `awslogs` driver splits what is longer than 16 KiB.
pub(super) const LINE_MAX: usize = 15 * 1024;
/// Bytes of version and number: `{"audit":2,"n":18446744073709551615,`, and the total in the last line.
pub(super) const HEAD_MAX: usize = 80;
/// The version of the schema: raised when a field goes or changes its meaning.
pub(super) const SCHEMA: u32 = 2;

/// What a text may take in JSON.
pub(super) mod limit {
    /// A name: of an environment, a target, a user, a host.
    pub(in crate::relay::audit) const NAME: usize = 256;
    /// Of the client's program.
    pub(in crate::relay::audit) const PROGRAM: usize = 128;
    /// Of a prepared statement.
    pub(in crate::relay::audit) const STATEMENT_NAME: usize = 128;
    /// An ARN, an error, the name of a file.
    pub(in crate::relay::audit) const SENTENCE: usize = 1024;
    /// Characters of a reason, which has [`SENTENCE`] bytes too.
    pub(in crate::relay::audit) const REASON_CHARS: usize = 256;
    /// All names of a list together.
    pub(in crate::relay::audit) const LIST: usize = 2048;
}

/// A line that is being written, or the fields that many lines begin with.
#[derive(Debug, Clone, Default)]
pub(super) struct Fields {
    pub(super) json: Vec<u8>,
    /// The names of the fields that were cut.
    truncated: Vec<&'static str>,
}

impl Fields {
    /// The start of a record of now.
    pub(super) fn of(event: &str) -> Self {
        let mut fields = Self::default();
        fields.begin(event);
        fields
    }

    /// Time and event, at the start of a line in a buffer that has lines already.
    pub(super) fn begin(&mut self, event: &str) {
        self.truncated.clear();
        let time = humantime::format_rfc3339_millis(wall_clock());
        // A buffer in memory takes everything.
        let _infallible = write!(self.json, "\"time\":\"{time}\",\"event\":\"{event}\"");
    }

    fn key(&mut self, name: &str) {
        self.json.extend_from_slice(b",\"");
        self.json.extend_from_slice(name.as_bytes());
        self.json.extend_from_slice(b"\":");
    }

    pub(super) fn raw(&mut self, name: &str, value: &str) {
        self.key(name);
        self.json.extend_from_slice(value.as_bytes());
    }

    pub(super) fn number(&mut self, name: &str, value: u64) {
        self.key(name);
        let _infallible = write!(self.json, "{value}");
    }

    pub(super) fn boolean(&mut self, name: &str, value: bool) {
        self.raw(name, if value { "true" } else { "false" });
    }

    /// A word of ours, which is not cut and has nothing to escape.
    pub(super) fn word(&mut self, name: &str, value: &str) {
        self.key(name);
        let _infallible = write!(self.json, "\"{value}\"");
    }

    /// A text that takes `limit` bytes in JSON at most.
    pub(super) fn text(&mut self, name: &'static str, value: &str, limit: usize) {
        self.key(name);
        let kept = fit(value, limit);
        self.string(kept);
        if kept.len() < value.len() {
            self.cut(name);
        }
    }

    pub(super) fn optional(&mut self, name: &'static str, value: Option<&str>, limit: usize) {
        match value {
            Some(value) => self.text(name, value, limit),
            None => self.raw(name, "null"),
        }
    }

    pub(super) fn hexadecimal(&mut self, name: &str, value: &[u8; 32]) {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let digit = |value: u8| DIGITS.get(usize::from(value & 15)).copied().unwrap_or_default();
        let mut text = [0; 64];
        for (two, byte) in text.chunks_exact_mut(2).zip(value) {
            two.copy_from_slice(&[digit(byte >> 4), digit(*byte)]);
        }
        self.key(name);
        self.json.push(b'"');
        self.json.extend_from_slice(&text);
        self.json.push(b'"');
    }

    /// As many texts as fit together.
    pub(super) fn list(&mut self, name: &'static str, values: &[&str]) {
        self.key(name);
        self.json.push(b'[');
        let mut room = limit::LIST;
        for (n, value) in values.iter().enumerate() {
            let needed = encoded(value).saturating_add(3);
            if needed > room {
                self.cut(name);
                break;
            }
            room = room.saturating_sub(needed);
            if n > 0 {
                self.json.push(b',');
            }
            self.string(value);
        }
        self.json.push(b']');
    }

    fn string(&mut self, value: &str) {
        // Text always becomes JSON.
        let _infallible = serde_json::to_writer(&mut self.json, value);
    }

    /// This field has not all that there was.
    pub(super) fn cut(&mut self, name: &'static str) {
        if !self.truncated.contains(&name) {
            self.truncated.push(name);
        }
    }

    /// What other lines begin with.
    pub(super) fn append(&mut self, fields: &Self) {
        self.json.extend_from_slice(&fields.json);
        self.truncated.extend_from_slice(&fields.truncated);
    }

    /// The end of the line.
    pub(super) fn end(&mut self) {
        let mut separator = b",\"truncated\":[".as_slice();
        for name in &self.truncated {
            self.json.extend_from_slice(separator);
            let _infallible = write!(self.json, "\"{name}\"");
            separator = b",";
        }
        self.json.extend_from_slice(if self.truncated.is_empty() { b"}\n" } else { b"]}\n" });
    }

    /// The line, whole.
    pub(super) fn line(mut self) -> Vec<u8> {
        self.end();
        self.json
    }
}

/// What a byte of a text takes in JSON.
fn width(byte: u8) -> usize {
    match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0c => 2,
        0..0x20 => 6,
        _ => 1,
    }
}

fn encoded(text: &str) -> usize {
    text.bytes().map(width).sum()
}

/// The start of `text` that takes `limit` bytes in JSON at most.
pub(super) fn fit(text: &str, limit: usize) -> &str {
    // No byte takes more than six.
    if text.len().saturating_mul(6) <= limit {
        return text;
    }
    let mut room = limit;
    for (at, byte) in text.bytes().enumerate() {
        match room.checked_sub(width(byte)) {
            Some(left) => room = left,
            None => return text.get(..text.floor_char_boundary(at)).unwrap_or_default(),
        }
    }
    text
}

/// The start of `text` with so many characters.
pub(super) fn first_characters(text: &str, count: usize) -> &str {
    text.char_indices().nth(count).and_then(|(at, _)| text.get(..at)).unwrap_or(text)
}
