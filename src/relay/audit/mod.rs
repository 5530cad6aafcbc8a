//! The audit log: who did what, as JSON lines on stdout. What must be in the log before somebody is let in is waited for;
//! statements go on once they are on their way there. `docs/audit.md` is the schema. Nothing else writes to stdout, and no
//! secret can get here: a record has names and numbers only.

mod line;
mod queue;
mod record;
mod session;
mod watch;

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use bastion_wire::memory::{Budget, Memory};
use bastion_wire::session::text::{Key, Limits, TEXT_MAX};
use tracing::error;

use crate::relay::config::Config;
use crate::relay::identity::Person;
use crate::tls;

use line::{Fields, limit};
pub(super) use queue::NotWritten;
use queue::{Number, Queue, Stream};
pub(super) use record::{ConnRecord, Ended, Refused};
use session::{FileOutcome, Lines};
pub(super) use watch::Watch;

/// The audit log.
pub(super) struct Audit {
    queue: Queue,
    /// What every record of this relay has, but for those of sessions.
    place: Fields,
    statements: bool,
    /// Where literals are kept out of the log.
    redact: Option<Arc<Key>>,
}

/// Why there is no audit log.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("the operating system gives no random bytes for the key of its hashes")]
    NoRandom,
    #[error("the first record cannot be written")]
    NotWritten,
    #[error("there can be no thread for it: {0}")]
    Thread(#[from] std::io::Error),
}

impl Audit {
    /// With the first record written.
    ///
    /// # Errors
    /// [`StartError`]
    pub(super) async fn start(config: &Config, log: impl Write + Send + 'static) -> Result<Self, StartError> {
        let key: [u8; 32] = tls::random().map_err(|_| StartError::NoRandom)?;
        let settings = config.audit;
        let redact = settings.redact.then(|| Arc::new(Key::new(&key)));
        let queue = Queue::start(log)?;
        let audit = Self { queue, place: record::place(config), statements: settings.statements, redact };
        let mut fields = audit.record("relay_started");
        fields.word("version", env!("CARGO_PKG_VERSION"));
        fields.boolean("statements", settings.statements);
        fields.boolean("redact", settings.redact);
        match settings.log_hash_key {
            true => fields.hexadecimal("hash_key", &key),
            false => fields.raw("hash_key", "null"),
        }
        audit.write(fields).await.map_err(|_| StartError::NotWritten)?;
        Ok(audit)
    }

    /// The last record, with the number of all of them.
    pub(super) async fn stopped(&self, cause: &str) {
        let mut fields = self.record("relay_stopped");
        fields.text("cause", cause, limit::SENTENCE);
        if self.queue.write(fields.line(), Number::Last).await.is_err() {
            error!(event = "relay_stopped", "the audit log cannot be written");
        }
    }

    /// A connection whose login is done. It must not be served if this fails.
    pub(super) async fn opened(&self, conn: &ConnRecord) -> Result<(), NotWritten> {
        let mut fields = self.record("connection_opened");
        conn.write(&mut fields);
        self.write(fields).await
    }

    pub(super) async fn closed(&self, conn: &ConnRecord, ended: &Ended) {
        let mut fields = self.record("connection_closed");
        conn.write(&mut fields);
        ended.write(&mut fields);
        self.tell("connection_closed", fields.line()).await;
    }

    /// A connection that did not come to its service.
    pub(super) async fn refused(&self, conn: &ConnRecord, refused: &Refused) {
        let mut fields = self.record("connection_refused");
        conn.write(&mut fields);
        refused.write(&mut fields);
        self.tell("connection_refused", fields.line()).await;
    }

    /// A file of the client that the database has asked for and did not get.
    pub(super) async fn file_refused(&self, conn: &ConnRecord, name: &str) {
        let mut lines = Lines::new(conn);
        lines.file(name, None, FileOutcome::Refused);
        self.tell("local_infile", std::mem::take(lines.pending())).await;
    }

    /// The client or the database has left its protocol, and the connection ends.
    pub(super) async fn out_of_protocol(&self, conn: &ConnRecord, from: &str, error: &str) {
        let mut lines = Lines::new(conn);
        lines.out_of_protocol(from, error);
        self.tell("protocol_violation", std::mem::take(lines.pending())).await;
    }

    /// Somebody has proven who they are, and has signed logins to `vaults`. They must not get a token if this fails.
    pub(super) async fn identity_granted(&self, person: &Person, vaults: &[&str]) -> Result<(), NotWritten> {
        let mut fields = self.record("identity_granted");
        record::person(&mut fields, person);
        fields.list("vaults", vaults);
        self.write(fields).await
    }

    /// `arn` where STS has said it.
    pub(super) async fn identity_refused(&self, arn: Option<String>, kind: &'static str, message: &str) {
        let mut fields = self.record("identity_refused");
        fields.optional("person", arn.as_deref(), limit::SENTENCE);
        fields.word("kind", kind);
        fields.text("error", message, limit::SENTENCE);
        self.tell("identity_refused", fields.line()).await;
    }

    /// What of statements is recorded, where they are.
    pub(super) fn limits(&self, memory: &Memory) -> Option<Limits> {
        self.statements.then(|| Limits::new(TEXT_MAX, self.redact.clone(), memory))
    }

    /// Whether the next line has to wait.
    #[cfg(test)]
    pub(super) fn is_full(&self) -> bool {
        self.queue.is_full()
    }

    /// The lines of one connection's session.
    fn stream(&self, records: &Budget) -> Stream {
        self.queue.stream(records)
    }

    /// Lines in a format of their own, on the same way out.
    pub(super) async fn other(&self, lines: Vec<u8>) {
        if self.queue.write(lines, Number::None).await.is_err() {
            error!("the metrics cannot be written to stdout");
        }
    }

    fn record(&self, event: &str) -> Fields {
        let mut fields = Fields::of(event);
        fields.append(&self.place);
        fields
    }

    async fn write(&self, fields: Fields) -> Result<(), NotWritten> {
        self.queue.write(fields.line(), Number::Next).await
    }

    /// For what has happened already: there is nothing left to hold back.
    async fn tell(&self, event: &str, lines: Vec<u8>) {
        if self.queue.write(lines, Number::Next).await.is_err() {
            error!(event, "the audit log cannot be written");
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
