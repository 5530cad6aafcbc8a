//! What the relay itself has to say to a client in the midst of its session, at the seams of the upstream's stream.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;

use crate::wire::downstream::Downstream;
use crate::wire::error_text::ErrorText;

/// A notice that is not due yet.
type Notice<'a> = Pin<Box<dyn Future<Output = ErrorText> + Send + 'a>>;

/// See the module.
pub(in crate::relay) struct Aside<'a> {
    stream: Downstream,
    notice: Option<Notice<'a>>,
    /// Waits for the end of a message.
    due: Option<Bytes>,
}

impl<'a> Aside<'a> {
    /// `stream` is what has gone to the client.
    pub(in crate::relay) fn new(stream: Downstream) -> Self {
        Self { stream, notice: None, due: None }
    }

    /// `notice` ends with what the client is to be told.
    pub(in crate::relay) fn with_notice(self, notice: impl Future<Output = ErrorText> + Send + 'a) -> Self {
        Self { notice: Some(Box::pin(notice)), ..self }
    }

    /// Where the stream to the client stands.
    pub(in crate::relay) fn stream(&mut self) -> &mut Downstream {
        &mut self.stream
    }

    /// What must go to the client now, before any more bytes of the upstream.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Option<Bytes> {
        if let Some(notice) = &mut self.notice
            && let Poll::Ready(text) = notice.as_mut().poll(context)
        {
            self.notice = None;
            self.due = self.stream.notice(&text);
        }
        self.due.take_if(|_| self.stream.is_between_messages())
    }

    /// Follows bytes on their way to the client. After how many of them something must be said, and what.
    pub(super) fn pass(&mut self, bytes: &[u8]) -> Option<(usize, Bytes)> {
        let mut end = 0;
        let mut said = None;
        if self.due.is_some() {
            end = self.stream.pass_message(bytes);
            said = self.due.take_if(|_| self.stream.is_between_messages());
        }
        self.stream.pass(bytes.get(end..).unwrap_or_default());
        said.map(|said| (end, said))
    }
}
