//! Reads the statements of one connection off its bytes and writes them into the audit log before they go on, and the files
//! that its client has sent.

use std::task::{Context, Poll};

use crate::relay::audit::{Audit, ConnRecord, FileOutcome, NotWritten, Stream, push_file, push_statement};
use crate::types::{Engine, Target};
use crate::wire::mysql::local_infile::SentFile;
use crate::wire::statements::{Limits, Observer, Statement};

/// The log drivers of containers split lines above 16 KiB; JSON needs room for its escapes.
const TEXT_MAX: usize = 8 * 1024;

/// Whether literals are kept out of the log.
#[derive(Debug, Clone, Copy)]
pub(in crate::relay) struct Redact(pub(in crate::relay) bool);

/// See the module.
pub(in crate::relay) struct Watch {
    /// Where statements are read.
    observer: Option<Observer>,
    stream: Stream,
    conn: ConnRecord,
    found: Vec<Statement>,
    /// The record of a file is under way.
    has_file: bool,
}

impl Watch {
    /// `statements` is how those are kept, where they are read. `None` where nothing is written.
    pub(in crate::relay) fn new(
        audit: &Audit,
        target: &Target,
        statements: Option<Redact>,
        conn: &ConnRecord,
    ) -> Option<Self> {
        let limits = statements.map(|Redact(redact)| Limits { text: TEXT_MAX, redact });
        let observer = match target.engine {
            Engine::Mysql => limits.map(Observer::mysql),
            Engine::Postgres => limits.map(Observer::postgres),
            Engine::Tcp => None,
        };
        let writes = observer.is_some() || target.local_infile;
        writes.then(|| Self {
            observer,
            stream: audit.stream(),
            conn: conn.clone(),
            found: Vec::new(),
            has_file: false,
        })
    }

    /// Bytes of the client that go on once [`Watch::poll`] is ready.
    pub(in crate::relay) fn up(&mut self, bytes: &[u8]) {
        if let Some(observer) = &mut self.observer {
            observer.up(bytes, &mut self.found);
        }
        self.push();
    }

    /// The client's next packets are a file.
    pub(in crate::relay) fn file_begins(&mut self) {
        if let Some(observer) = &mut self.observer {
            observer.file_begins();
        }
    }

    /// What has come of a file, at its end.
    pub(in crate::relay) fn file_sent(&mut self, file: &SentFile) {
        let outcome = if file.complete { FileOutcome::Sent } else { FileOutcome::CutShort };
        push_file(self.stream.push(), &self.conn, &file.name, Some(file.bytes), outcome);
        self.has_file = true;
    }

    /// Waits until the records of files are on their way into the log. Those of statements that did not go on may stay out.
    pub(in crate::relay) async fn flush_files(&mut self) -> Result<(), NotWritten> {
        match std::mem::take(&mut self.has_file) {
            true => std::future::poll_fn(|context| self.poll(context)).await,
            false => Ok(()),
        }
    }

    fn push(&mut self) {
        for statement in self.found.drain(..) {
            push_statement(self.stream.push(), &self.conn, &statement);
        }
    }

    /// A command that the relay answers itself, once its record is on its way into the log.
    pub(in crate::relay) async fn answered(&mut self, bytes: &[u8]) -> Result<(), NotWritten> {
        if let Some(observer) = &mut self.observer {
            observer.answered(bytes, &mut self.found);
        }
        self.push();
        std::future::poll_fn(|context| self.poll(context)).await
    }

    pub(in crate::relay) fn down(&mut self, bytes: &[u8]) {
        if let Some(observer) = &mut self.observer {
            observer.down(bytes);
        }
    }

    /// Ready when everything seen so far is on its way into the log, in order.
    pub(in crate::relay) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<(), NotWritten>> {
        self.stream.poll(context)
    }
}
