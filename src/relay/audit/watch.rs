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
            Engine::Postgres => Observer::postgres(limits),
            Engine::Mysql | Engine::Tcp => return None,
        };
        Some(Self { observer, stream: audit.stream(), conn: conn.clone(), found: Vec::new() })
    }

    /// Bytes of the client that go on once [`Watch::poll`] is ready.
    pub(in crate::relay) fn up(&mut self, bytes: &[u8]) {
        self.observer.up(bytes, &mut self.found);
        for statement in self.found.drain(..) {
            push_statement(self.stream.push(), &self.conn, &statement);
        }
    }

    pub(in crate::relay) fn down(&mut self, bytes: &[u8]) {
        self.observer.down(bytes);
    }

    /// Ready when everything seen so far is on its way into the log, in order.
    pub(in crate::relay) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<(), NotWritten>> {
        self.stream.poll(context)
    }
}
