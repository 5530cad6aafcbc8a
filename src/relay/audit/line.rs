//! The one writer of records: JSON lines that are never longer than what log drivers and CloudWatch take whole, whatever the
//! texts in them are. Each foreign text is cut by what it takes in JSON, and the record names the fields that were cut.
//!
//! A line begins behind its version and number, which it gets where its place in the log is known.

use std::io::Write as _;
use std::time::{Duration, SystemTime};

use crate::relay::clock::wall_clock;

/// Bytes of a line with its end: the `awslogs` driver splits what is longer than 16 KiB.
pub(super) const LINE_MAX: usize = 15 * 1024;
/// Bytes of version and number: `{"audit":2,"n":18446744073709551615,`, and the total in the last line.
pub(super) const HEAD_MAX: usize = 80;
/// A record up to its number. The version of the schema is raised when a field goes or changes its meaning.
pub(super) const START: &[u8] = b"{\"audit\":2,\"n\":";

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
    time: Time,
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
        self.time();
        self.event(event);
    }

    /// A line begins with it.
    #[inline]
    pub(super) fn time(&mut self) {
        self.truncated.clear();
        self.json.extend_from_slice(b"\"time\":\"");
        self.json.extend_from_slice(self.time.at(wall_clock()));
        self.json.push(b'"');
    }

    /// The first field behind the time.
    pub(super) fn event(&mut self, event: &str) {
        self.word("event", event);
    }

    // Most names and words are constants. Where they are in sight, they are stored without a call to copy a few bytes.
    #[inline]
    pub(super) fn key(&mut self, name: &str) {
        self.json.extend_from_slice(b",\"");
        self.json.extend_from_slice(name.as_bytes());
        self.json.extend_from_slice(b"\":");
    }

    #[inline]
    pub(super) fn raw(&mut self, name: &str, value: &str) {
        self.key(name);
        self.json.extend_from_slice(value.as_bytes());
    }

    #[inline]
    pub(super) fn number(&mut self, name: &str, value: u64) {
        self.key(name);
        push_number(&mut self.json, value);
    }

    pub(super) fn boolean(&mut self, name: &str, value: bool) {
        self.raw(name, if value { "true" } else { "false" });
    }

    /// A word of ours, which is not cut and has nothing to escape.
    #[inline]
    pub(super) fn word(&mut self, name: &str, value: &str) {
        self.key(name);
        self.json.push(b'"');
        self.json.extend_from_slice(value.as_bytes());
        self.json.push(b'"');
    }

    /// A text that takes `limit` bytes in JSON at most.
    #[inline]
    pub(super) fn text(&mut self, name: &'static str, value: &str, limit: usize) {
        self.key(name);
        self.fitting(name, value, limit);
    }

    fn fitting(&mut self, name: &'static str, value: &str, limit: usize) {
        let kept = fit(value, limit);
        self.string(kept);
        if kept.len() < value.len() {
            self.cut(name);
        }
    }

    #[inline]
    pub(super) fn optional(&mut self, name: &'static str, value: Option<&str>, limit: usize) {
        match value {
            Some(value) => self.text(name, value, limit),
            None => self.raw(name, "null"),
        }
    }

    #[inline]
    pub(super) fn hexadecimal(&mut self, name: &str, value: &[u8; 32]) {
        self.key(name);
        self.digits(value);
    }

    fn digits(&mut self, value: &[u8; 32]) {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let digit = |value: u8| DIGITS.get(usize::from(value & 15)).copied().unwrap_or_default();
        let mut text = [0; 64];
        for (two, byte) in text.chunks_exact_mut(2).zip(value) {
            two.copy_from_slice(&[digit(byte >> 4), digit(*byte)]);
        }
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
        if self.truncated.is_empty() {
            self.json.extend_from_slice(b"}\n");
            return;
        }
        let mut separator = b",\"truncated\":[".as_slice();
        for name in &self.truncated {
            // A buffer in memory takes everything.
            let _infallible = self.json.write_all(separator).and_then(|()| write!(self.json, "\"{name}\""));
            separator = b",";
        }
        self.json.extend_from_slice(b"]}\n");
    }

    /// The line, whole.
    pub(super) fn line(mut self) -> Vec<u8> {
        self.end();
        self.json
    }
}

/// A copy of so few bytes takes longer than one by one.
#[inline]
pub(super) fn push_number(json: &mut Vec<u8>, value: u64) {
    itoa::Buffer::new().format(value).bytes().for_each(|digit| json.push(digit));
}

/// A time as RFC 3339 has it, in milliseconds: most records come within the second of the one before.
#[derive(Debug, Clone)]
struct Time {
    /// Since 1970; the text has it.
    second: u64,
    text: [u8; Self::LENGTH],
}

impl Default for Time {
    fn default() -> Self {
        Self { second: 0, text: *b"1970-01-01T00:00:00.000Z" }
    }
}

impl Time {
    const LENGTH: usize = "1970-01-01T00:00:00.000Z".len();

    #[inline]
    fn at(&mut self, now: SystemTime) -> &[u8; Self::LENGTH] {
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        if since.as_secs() != self.second {
            self.second = since.as_secs();
            let text = humantime::format_rfc3339_millis(SystemTime::UNIX_EPOCH + Duration::from_secs(self.second));
            self.text.iter_mut().zip(text.to_string().bytes()).for_each(|(to, from)| *to = from);
        }
        let [.., hundreds, tens, ones, _] = &mut self.text;
        let mut rest = since.subsec_millis();
        for digit in [ones, tens, hundreds] {
            *digit = b'0' + u8::try_from(rest % 10).unwrap_or_default();
            rest /= 10;
        }
        &self.text
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_written_as_the_library_writes_it_whatever_was_written_before() {
        let mut time = Time::default();
        for millis in
            [0, 7, 999, 1_000, 1_764_570_000_042, 1_764_570_000_999, 1_764_570_001_000, 61, 253_402_300_799_999]
        {
            let now = SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
            let wanted = humantime::format_rfc3339_millis(now).to_string();
            assert_eq!(str::from_utf8(time.at(now)), Ok(wanted.as_str()));
        }
    }
}
