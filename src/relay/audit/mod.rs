//! The audit log: who did what, as JSON lines on stdout. What must be in the log before somebody is let in is waited for;
//! statements go on once they are on their way there. `docs/audit.md` is the schema. Nothing else writes to stdout, and no
//! secret can get here: a record has names and numbers only.

mod emf;
mod queue;
mod record;
mod watch;

use std::io::Write;
use std::time::{Duration, SystemTime};

use serde::{Serialize, Serializer};
use tracing::error;

use crate::relay::identity::Person;
use crate::relay::{Config, wall_clock};
use crate::wire::statements::{Kind, Statement};

pub(super) use emf::Emf;
pub(super) use queue::NotWritten;
use queue::{Queue, Stream};
pub(super) use record::{ConnRecord, Ended, Refused};
pub(super) use watch::Watch;

/// The version of the schema: raised when a field goes or changes its meaning.
const SCHEMA: u32 = 1;

/// What every record of a relay has.
#[derive(Debug, Clone, Serialize)]
struct Place {
    env: String,
    access: String,
    owner: Option<String>,
    reason: Option<String>,
}

/// The audit log.
pub(super) struct Audit {
    queue: Queue,
    place: Place,
}

#[derive(Serialize)]
struct Line<'a, T: Serialize> {
    audit: u32,
    time: Time,
    event: &'a str,
    #[serde(flatten)]
    place: &'a Place,
    #[serde(flatten)]
    record: &'a T,
}

impl Audit {
    /// # Errors
    /// If there can be no thread for the writer.
    pub(super) fn start(config: &Config, log: impl Write + Send + 'static) -> std::io::Result<Self> {
        let Config { environment, access, owner, reason, .. } = config;
        let place =
            Place { env: environment.clone(), access: access.clone(), owner: owner.clone(), reason: reason.clone() };
        Ok(Self { queue: Queue::start(log)?, place })
    }

    /// A connection whose login is done. It must not be served if this fails.
    pub(super) async fn opened(&self, conn: &ConnRecord) -> Result<(), NotWritten> {
        self.write("connection_opened", conn).await
    }

    pub(super) async fn closed(&self, conn: &ConnRecord, ended: &Ended) {
        #[derive(Serialize)]
        struct Closed<'a> {
            #[serde(flatten)]
            conn: &'a ConnRecord,
            #[serde(flatten)]
            ended: &'a Ended,
        }
        self.tell("connection_closed", &Closed { conn, ended }).await;
    }

    /// A connection that did not come to its service.
    pub(super) async fn refused(&self, conn: &ConnRecord, refused: &Refused) {
        #[derive(Serialize)]
        struct Line<'a> {
            #[serde(flatten)]
            conn: &'a ConnRecord,
            #[serde(flatten)]
            refused: &'a Refused,
        }
        self.tell("connection_refused", &Line { conn, refused }).await;
    }

    /// A file of the client that the database has asked for and did not get.
    pub(super) async fn file_refused(&self, conn: &ConnRecord, name: &str) {
        let mut line = Vec::new();
        push_file(&mut line, conn, name, None, FileOutcome::Refused);
        if self.queue.write(line).await.is_err() {
            error!(event = LOCAL_INFILE, "the audit log cannot be written");
        }
    }

    /// Somebody has proven who they are, and has signed logins to `vaults`. They must not get a token if this fails.
    pub(super) async fn identity_granted(&self, person: &Person, vaults: &[&str]) -> Result<(), NotWritten> {
        #[derive(Serialize)]
        struct Record<'a> {
            #[serde(flatten)]
            who: record::Who,
            vaults: &'a [&'a str],
        }
        self.write("identity_granted", &Record { who: record::who(Some(person)), vaults }).await
    }

    /// `arn` where STS has said it.
    pub(super) async fn identity_refused(&self, arn: Option<String>, kind: &'static str, message: &str) {
        #[derive(Serialize)]
        struct Record<'a> {
            person: Option<String>,
            kind: &'static str,
            error: &'a str,
        }
        self.tell("identity_refused", &Record { person: arn, kind, error: message }).await;
    }

    /// Whether the next line has to wait.
    #[cfg(test)]
    pub(super) fn is_full(&self) -> bool {
        self.queue.is_full()
    }

    /// The lines of one connection's statements.
    fn stream(&self) -> Stream {
        self.queue.stream()
    }

    /// Lines in a format of their own, on the same way out.
    pub(super) async fn other(&self, lines: Vec<u8>) {
        if self.queue.write(lines).await.is_err() {
            error!("the metrics cannot be written to stdout");
        }
    }

    async fn write(&self, event: &str, record: &impl Serialize) -> Result<(), NotWritten> {
        let line = Line { audit: SCHEMA, time: Time(wall_clock()), event, place: &self.place, record };
        let mut bytes = serde_json::to_vec(&line).map_err(|_| NotWritten)?;
        bytes.push(b'\n');
        self.queue.write(bytes).await
    }

    /// For what has happened already: there is nothing left to hold back.
    async fn tell(&self, event: &str, record: &impl Serialize) {
        if self.write(event, record).await.is_err() {
            error!(event, "the audit log cannot be written");
        }
    }
}

/// Bytes of one text that are kept. The log drivers of containers split lines above 16 KiB; JSON needs room for its escapes.
pub(super) const TEXT_MAX: usize = 8 * 1024;

const LOCAL_INFILE: &str = "local_infile";
/// Characters of a file's name that are kept.
const FILE_NAME_MAX: usize = 1024;

/// What became of a file of the client that the database has asked for.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
enum FileOutcome {
    /// The connection ended before the file.
    CutShort,
    Refused,
    Sent,
}

/// Appends the line of a file to `lines`, as that of a statement.
fn push_file(lines: &mut Vec<u8>, conn: &ConnRecord, name: &str, bytes: Option<u64>, outcome: FileOutcome) {
    #[derive(Serialize)]
    struct Line<'a> {
        audit: u32,
        time: Time,
        event: &'a str,
        conn_id: u64,
        target: &'a str,
        session_name: Option<&'a str>,
        db_user: Option<&'a str>,
        file: String,
        bytes: Option<u64>,
        outcome: FileOutcome,
    }
    let line = Line {
        audit: SCHEMA,
        time: Time(wall_clock()),
        event: LOCAL_INFILE,
        conn_id: conn.conn_id,
        target: &conn.target,
        session_name: conn.who.session_name.as_deref(),
        db_user: conn.db_user.as_deref(),
        file: name.chars().take(FILE_NAME_MAX).collect(),
        bytes,
        outcome,
    };
    // Text and numbers always become JSON.
    let _infallible = serde_json::to_writer(&mut *lines, &line);
    lines.push(b'\n');
}

/// Appends the line that says that a statement did not run, of which there is a line already.
fn push_not_run(lines: &mut Vec<u8>, conn: &ConnRecord, number: u64) {
    #[derive(Serialize)]
    struct Line<'a> {
        audit: u32,
        time: Time,
        event: &'a str,
        conn_id: u64,
        target: &'a str,
        statement: u64,
    }
    let event = "statement_not_run";
    let line = Line {
        audit: SCHEMA,
        time: Time(wall_clock()),
        event,
        conn_id: conn.conn_id,
        target: &conn.target,
        statement: number,
    };
    // Text and numbers always become JSON.
    let _infallible = serde_json::to_writer(&mut *lines, &line);
    lines.push(b'\n');
}

/// Appends the line of a statement to `lines`. It names the connection, whose record has the rest.
fn push_statement(lines: &mut Vec<u8>, conn: &ConnRecord, number: u64, statement: &Statement) {
    // Written for each statement of a busy relay: without the detour that flattening takes.
    #[derive(Serialize)]
    struct Line<'a> {
        audit: u32,
        time: Time,
        event: &'a str,
        conn_id: u64,
        target: &'a str,
        session_name: Option<&'a str>,
        db_user: Option<&'a str>,
        statement: u64,
        kind: Kind,
        #[serde(skip_serializing_if = "Option::is_none")]
        name: Option<&'a str>,
        sql: Option<&'a str>,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        truncated: bool,
    }
    let Statement { kind, name, sql, truncated } = statement;
    let line = Line {
        audit: SCHEMA,
        time: Time(wall_clock()),
        event: "statement",
        conn_id: conn.conn_id,
        target: &conn.target,
        session_name: conn.who.session_name.as_deref(),
        db_user: conn.db_user.as_deref(),
        statement: number,
        kind: *kind,
        name: name.as_deref(),
        sql: sql.as_deref(),
        truncated: *truncated,
    };
    // Text and numbers always become JSON.
    let _infallible = serde_json::to_writer(&mut *lines, &line);
    lines.push(b'\n');
}

/// RFC 3339, without a text of its own.
struct Time(SystemTime);

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_rfc3339_millis(self.0))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
