//! Writes what happens in one session into the audit log: its statements, before they go on, and the files that its client has
//! sent.

use std::task::{Context, Poll};

use bastion_wire::memory::Budget;
use bastion_wire::session::Event;

use crate::relay::audit::session::Lines;
use crate::relay::audit::{Audit, ConnRecord, NotWritten, Stream};

/// See the module.
pub(in crate::relay) struct Watch {
    stream: Stream,
    lines: Lines,
    /// There are records of what has happened already.
    has_happened: bool,
}

impl Watch {
    /// What waits for the log takes memory of `records`.
    pub(in crate::relay) fn new(audit: &Audit, conn: &ConnRecord, records: &Budget) -> Self {
        Self { stream: audit.stream(records), lines: Lines::new(conn), has_happened: false }
    }

    /// Takes the events of a session. What they are about may go on once [`Watch::poll`] is ready.
    pub(in crate::relay) fn push(&mut self, events: &mut Vec<Event>) {
        for event in events.drain(..) {
            match event {
                Event::Statement { number, statement } => self.lines.statement(number, &statement),
                Event::NotRun { number } => {
                    self.lines.not_run(number);
                    self.has_happened = true;
                }
                Event::File(file) => {
                    self.lines.file_sent(&file);
                    self.has_happened = true;
                }
            }
        }
    }

    /// Waits until the records of what has happened are on their way into the log. Those of statements that did not go on may
    /// stay out.
    pub(in crate::relay) async fn flush(&mut self) -> Result<(), NotWritten> {
        match std::mem::take(&mut self.has_happened) {
            true => std::future::poll_fn(|context| self.poll(context)).await,
            false => Ok(()),
        }
    }

    /// Ready when everything seen so far is on its way into the log, in order.
    pub(in crate::relay) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<(), NotWritten>> {
        self.stream.poll(context, self.lines.pending())
    }
}
