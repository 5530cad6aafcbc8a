//! A session that is copied: what is said of it in the audit log before its bytes go on, and what the relay itself says in it,
//! between two messages of the server.

use std::pin::Pin;
use std::task::{Context, Poll};

use bastion_wire::error_text::ErrorText;
use bastion_wire::session::{Event, Pass, Session};
use bytes::Bytes;

use crate::relay::audit::{NotWritten, Watch};

/// A notice that is not due yet.
type Notice<'a> = Pin<Box<dyn Future<Output = ErrorText> + Send + 'a>>;

/// See the module.
pub(in crate::relay) struct Followed<'a> {
    session: Session,
    /// Where its events go, in a target that has any written.
    records: Option<Watch>,
    events: Vec<Event>,
    notice: Option<Notice<'a>>,
    /// Waits for the end of a message.
    due: Option<Bytes>,
}

impl<'a> Followed<'a> {
    pub(in crate::relay) fn new(session: Session, records: Option<Watch>) -> Self {
        Self { session, records, events: Vec::new(), notice: None, due: None }
    }

    /// `notice` ends with what the client is to be told.
    pub(in crate::relay) fn with_notice(self, notice: impl Future<Output = ErrorText> + Send + 'a) -> Self {
        Self { notice: Some(Box::pin(notice)), ..self }
    }

    pub(in crate::relay) fn session(&mut self) -> &mut Session {
        &mut self.session
    }

    /// The relay answers the command that has stopped the client, once its record is on its way into the log.
    pub(in crate::relay) async fn answered(&mut self, command: &[u8]) -> Result<(), NotWritten> {
        self.session.answered(command, &mut self.events);
        self.record();
        std::future::poll_fn(|context| self.poll_records(context)).await
    }

    /// Waits until the records of what has happened are on their way into the log. Those of statements that did not go on may
    /// stay out.
    pub(in crate::relay) async fn flush_records(&mut self) -> Result<(), NotWritten> {
        match &mut self.records {
            Some(records) => records.flush().await,
            None => Ok(()),
        }
    }

    /// Bytes of the client. Those that may go on must wait for [`Followed::poll_records`].
    pub(super) fn client(&mut self, bytes: &[u8]) -> Pass {
        let pass = self.session.client(bytes, &mut self.events);
        self.record();
        pass
    }

    /// Bytes of the server, and what goes to the client in the place of those that may go on, if it is not these very bytes.
    pub(super) fn server(&mut self, bytes: &[u8]) -> (Pass, Option<Vec<u8>>) {
        if self.due.is_none() {
            let pass = self.session.server(bytes, &mut self.events);
            self.record();
            return (pass, None);
        }
        let message = self.session.server_message(bytes, &mut self.events);
        let said = self.due.take_if(|_| self.session.is_between_messages());
        let (before, behind) = bytes.split_at_checked(message.forward).unwrap_or((bytes, &[]));
        let rest = match message.stop {
            Some(stop) => Pass { forward: 0, stop: Some(stop) },
            None => self.session.server(behind, &mut self.events),
        };
        self.record();
        let passes = behind.get(..rest.forward).unwrap_or_default();
        let forward = message.forward.saturating_add(rest.forward);
        (Pass { forward, ..rest }, said.map(|said| [before, &said, passes].concat()))
    }

    /// The end of the connection.
    pub(super) fn end(&mut self) {
        self.session.end(&mut self.events);
        self.record();
    }

    fn record(&mut self) {
        if self.events.is_empty() {
            return;
        }
        match &mut self.records {
            Some(records) => records.push(&mut self.events),
            None => self.events.clear(),
        }
    }

    /// Ready when everything seen so far is on its way into the log.
    pub(super) fn poll_records(&mut self, context: &mut Context<'_>) -> Poll<Result<(), NotWritten>> {
        self.records.as_mut().map_or(Poll::Ready(Ok(())), |records| records.poll(context))
    }

    /// What must go to the client now, before any more bytes of the server.
    pub(super) fn poll_notice(&mut self, context: &mut Context<'_>) -> Option<Bytes> {
        if let Some(notice) = &mut self.notice
            && let Poll::Ready(text) = notice.as_mut().poll(context)
        {
            self.notice = None;
            self.due = self.session.notice(&text);
        }
        self.due.take_if(|_| self.session.is_between_messages())
    }
}
