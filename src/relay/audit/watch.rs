//! Reads the statements of one connection off its bytes and writes them into the audit log before they go on.

use std::task::{Context, Poll};

use crate::relay::audit::{Audit, ConnRecord, NotWritten, Stream, push_statement};
use crate::types::Engine;
use crate::wire::statements::{Limits, Observer, Statement};

/// The log drivers of containers split lines above 16 KiB; JSON needs room for its escapes.
const TEXT_MAX: usize = 8 * 1024;

/// See the module.
pub(in crate::relay) struct Watch {
    observer: Observer,
    stream: Stream,
    conn: ConnRecord,
    found: Vec<Statement>,
}

impl Watch {
    /// `None` for engines whose statements the relay does not understand.
    pub(in crate::relay) fn new(audit: &Audit, engine: Engine, redact: bool, conn: &ConnRecord) -> Option<Self> {
        let limits = Limits { text: TEXT_MAX, redact };
        let observer = match engine {
            Engine::Mysql => Observer::mysql(limits),
            Engine::Postgres => Observer::postgres(limits),
            Engine::Tcp => return None,
        };
        Some(Self { observer, stream: audit.stream(), conn: conn.clone(), found: Vec::new() })
    }

    /// Bytes of the client that go on once [`Watch::poll`] is ready.
    pub(in crate::relay) fn up(&mut self, bytes: &[u8]) {
        self.observer.up(bytes, &mut self.found);
        self.push();
    }

    fn push(&mut self) {
        for statement in self.found.drain(..) {
            push_statement(self.stream.push(), &self.conn, &statement);
        }
    }

    /// A command that the relay answers itself, once its record is on its way into the log.
    pub(in crate::relay) async fn answered(&mut self, bytes: &[u8]) -> Result<(), NotWritten> {
        self.observer.answered(bytes, &mut self.found);
        self.push();
        std::future::poll_fn(|context| self.poll(context)).await
    }

    pub(in crate::relay) fn down(&mut self, bytes: &[u8]) {
        self.observer.down(bytes);
    }

    /// Ready when everything seen so far is on its way into the log, in order.
    pub(in crate::relay) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<(), NotWritten>> {
        self.stream.poll(context)
    }
}
