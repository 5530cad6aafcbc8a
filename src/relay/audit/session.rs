//! The records of a session: statements, what became of them, files. They come often, so they are written into the buffer of
//! their connection without a detour, behind fields that do not change.

use bastion_wire::mysql::local_infile::SentFile;
use bastion_wire::redact::How;
use bastion_wire::session::text::{Hash, Kind, Statement, Text};

use crate::relay::audit::ConnRecord;
use crate::relay::audit::line::{Fields, HEAD_MAX, LINE_MAX, fit, limit, push_number};

/// Bytes of a statement's line besides its text and whose it is: version, time, number, name, length, hash, part, what was cut.
const AROUND_MAX: usize = HEAD_MAX + limit::STATEMENT_NAME + 512;
/// Parts of a text; more of them come only of texts that JSON makes much longer.
const PARTS_MAX: usize = 24;

/// What became of a file of the client that the database has asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileOutcome {
    /// The connection ended before the file.
    CutShort,
    Refused,
    Sent,
}

/// The lines of one connection.
pub(super) struct Lines {
    /// Whose they are.
    conn: Fields,
    /// What the line of a statement has between its time and its number.
    statement: Fields,
    pending: Fields,
}

impl Lines {
    pub(super) fn new(conn: &ConnRecord) -> Self {
        let conn = conn.short();
        let mut statement = Fields::default();
        statement.event("statement");
        statement.append(&conn);
        statement.key("statement");
        Self { conn, statement, pending: Fields::default() }
    }

    /// What is to go into the log.
    pub(super) fn pending(&mut self) -> &mut Vec<u8> {
        &mut self.pending.json
    }

    fn begin(&mut self, event: &str) -> &mut Fields {
        self.pending.begin(event);
        self.pending.append(&self.conn);
        &mut self.pending
    }

    /// The `number`th statement of the connection. A text that does not fit into one line goes on in the next ones.
    pub(super) fn statement(&mut self, number: u64, statement: &Statement) {
        let Statement { kind, name, text, whole } = statement;
        let around = self.conn.json.len().saturating_add(AROUND_MAX);
        let room = LINE_MAX.saturating_sub(around);
        let (all, ends) = count(statement.sql().unwrap_or_default(), room);
        let parts = if *whole { all } else { 1 };
        let is_cut = parts < all || !ends || text.as_ref().is_some_and(|text| text.is_cut());
        let mut rest = statement.sql();
        for part in 1..=parts {
            let fields = &mut self.pending;
            fields.time();
            fields.append(&self.statement);
            push_number(&mut fields.json, number);
            match kind {
                Kind::Command => fields.word("kind", "command"),
                Kind::Execute => fields.word("kind", "execute"),
                Kind::Function => fields.word("kind", "function"),
                Kind::Prepare => fields.word("kind", "prepare"),
                Kind::Query => fields.word("kind", "query"),
            }
            if let Some(name) = name {
                fields.text("name", name, limit::STATEMENT_NAME);
            }
            let now = rest.map(|rest| fit(rest, room));
            fields.optional("sql", now, room);
            rest = rest.and_then(|rest| rest.get(now.map_or(0, str::len)..));
            if let Some(text) = text {
                describe(fields, text);
            }
            if parts > 1 {
                fields.number("part", part);
                fields.number("parts", parts);
            }
            if is_cut {
                fields.cut("sql");
            }
            fields.end();
        }
    }

    /// The server has skipped the `number`th statement.
    pub(super) fn not_run(&mut self, number: u64) {
        let fields = self.begin("statement_not_run");
        fields.number("statement", number);
        fields.end();
    }

    /// What has come of a file, at its end.
    pub(super) fn file_sent(&mut self, file: &SentFile) {
        let outcome = if file.complete { FileOutcome::Sent } else { FileOutcome::CutShort };
        self.file(&file.name, Some(file.bytes), outcome);
    }

    pub(super) fn file(&mut self, name: &str, bytes: Option<u64>, outcome: FileOutcome) {
        let fields = self.begin("local_infile");
        fields.text("file", name, limit::SENTENCE);
        match bytes {
            Some(bytes) => fields.number("bytes", bytes),
            None => fields.raw("bytes", "null"),
        }
        let outcome = match outcome {
            FileOutcome::CutShort => "cut_short",
            FileOutcome::Refused => "refused",
            FileOutcome::Sent => "sent",
        };
        fields.word("outcome", outcome);
        fields.end();
    }

    /// The stream of this side has left its protocol.
    pub(super) fn out_of_protocol(&mut self, from: &str, error: &str) {
        let fields = self.begin("protocol_violation");
        fields.word("from", from);
        fields.text("error", error, limit::SENTENCE);
        fields.end();
    }
}

/// How many parts of so many bytes in JSON a text has, and whether these are all of it.
fn count(text: &str, room: usize) -> (u64, bool) {
    let mut rest = text;
    for count in 1..=PARTS_MAX {
        rest = rest.get(fit(rest, room).len()..).unwrap_or_default();
        if rest.is_empty() {
            return (u64::try_from(count).unwrap_or(u64::MAX), true);
        }
    }
    (u64::try_from(PARTS_MAX).unwrap_or(u64::MAX), false)
}

/// Which text it was.
fn describe(fields: &mut Fields, text: &Text) {
    match text.hash() {
        Some(Hash::Keyed(hash)) => {
            fields.number("bytes", text.bytes());
            fields.hexadecimal("hmac_sha256", hash);
        }
        Some(Hash::Sha256(hash)) => {
            fields.number("bytes", text.bytes());
            fields.hexadecimal("sha256", hash);
        }
        None => {}
    }
    match text.redacted() {
        Some(How::Literals) => fields.word("redacted", "literals"),
        Some(How::Verb) => fields.word("redacted", "verb"),
        None => {}
    }
}
