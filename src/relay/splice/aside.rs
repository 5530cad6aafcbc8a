//! What the relay itself does with the upstream's stream on its way to the client: it says something of its own between two
//! messages, and holds a request for a file of the client until it is known whether that may pass.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;

use crate::wire::downstream::Downstream;
use crate::wire::error_text::ErrorText;

/// A notice that is not due yet.
type Notice<'a> = Pin<Box<dyn Future<Output = ErrorText> + Send + 'a>>;

/// Says whether a file of this name may go to the database, which it does then.
pub(super) type Grant<'g> = &'g mut dyn FnMut(&[u8]) -> bool;

/// Head of a packet of MySQL, and the byte before the name in a request for a file.
const HEAD: usize = 4;
/// Longest name of a file (`FN_REFLEN` of the servers is 512).
const NAME_MAX: usize = 4096;

/// See the module.
pub(in crate::relay) struct Aside<'a> {
    stream: Downstream,
    notice: Option<Notice<'a>>,
    /// Waits for the end of a message.
    due: Option<Bytes>,
    /// What has come and must not go on yet: the head of a packet, or all that has come of a request for a file.
    held: Vec<u8>,
    /// `held` is such a request.
    asks: bool,
    /// The file that was asked for and must not be sent.
    refused: Option<String>,
}

impl<'a> Aside<'a> {
    /// `stream` is what has gone to the client.
    pub(in crate::relay) fn new(stream: Downstream) -> Self {
        Self { stream, notice: None, due: None, held: Vec::new(), asks: false, refused: None }
    }

    /// `notice` ends with what the client is to be told.
    pub(in crate::relay) fn with_notice(self, notice: impl Future<Output = ErrorText> + Send + 'a) -> Self {
        Self { notice: Some(Box::pin(notice)), ..self }
    }

    /// Where the stream to the client stands.
    pub(in crate::relay) fn stream(&mut self) -> &mut Downstream {
        &mut self.stream
    }

    pub(super) fn is_between_messages(&self) -> bool {
        self.stream.is_between_messages()
    }

    /// The file that the upstream has asked for and may not have. Nothing passes any more.
    pub(super) fn refused(&self) -> Option<&str> {
        self.refused.as_deref()
    }

    /// Whether the answer of the upstream that went by last has ended.
    pub(super) fn is_between_answers(&self) -> bool {
        self.stream.is_between_answers()
    }

    /// The start of a message whose rest is not there yet.
    pub(super) fn take_head(&mut self) -> Vec<u8> {
        if self.asks { Vec::new() } else { std::mem::take(&mut self.held) }
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

    /// Follows bytes on their way to the client. What must go there in their place; `None`: these very bytes. Without a
    /// `grant` no file may be asked for.
    pub(super) fn pass(&mut self, bytes: &[u8], mut grant: Option<Grant<'_>>) -> Option<Vec<u8>> {
        if self.due.is_some() {
            return self.pass_with_notice(bytes);
        }
        if !self.asks {
            let at = self.stream.pass_up_to_file_request(bytes);
            if at.is_none() && self.held.is_empty() && self.stream.pending_head() == 0 {
                return None;
            }
            return Some(self.hold(at, bytes, grant));
        }
        self.held.extend_from_slice(bytes);
        Some(self.decide(&mut grant))
    }

    fn pass_with_notice(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        let end = self.stream.pass_message(bytes);
        let said = self.due.take_if(|_| self.stream.is_between_messages());
        let (before, behind) = bytes.split_at_checked(end).unwrap_or((bytes, &[]));
        self.stream.pass(behind);
        said.map(|said| [before, &said, behind].concat())
    }

    /// Keeps back the end of `bytes`: from the request at `at` on, or the head of a packet.
    fn hold(&mut self, at: Option<usize>, bytes: &[u8], mut grant: Option<Grant<'_>>) -> Vec<u8> {
        let mut passes = std::mem::take(&mut self.held);
        let before = passes.len();
        passes.extend_from_slice(bytes);
        let end = match at {
            // Its head may have come before.
            Some(0) => 0,
            Some(at) => before.saturating_add(at),
            None => passes.len().saturating_sub(self.stream.pending_head()),
        };
        self.held = passes.split_off(end.min(passes.len()));
        if at.is_some() {
            self.asks = true;
            passes.append(&mut self.decide(&mut grant));
        }
        passes
    }

    /// Decides on the request that is held, once it is whole. What may pass.
    fn decide(&mut self, grant: &mut Option<Grant<'_>>) -> Vec<u8> {
        let length = match *self.held {
            [a, b, c, _number, ..] => usize::try_from(u32::from_le_bytes([a, b, c, 0])).unwrap_or(usize::MAX),
            _ => return Vec::new(),
        };
        let end = HEAD.saturating_add(length);
        let name_from = HEAD.saturating_add(1);
        let Some(may) = grant.as_mut().filter(|_| length <= NAME_MAX && self.refused.is_none()) else {
            let name = self.held.get(name_from..end.min(self.held.len()).min(NAME_MAX)).unwrap_or_default();
            self.refused.get_or_insert_with(|| String::from_utf8_lossy(name).into_owned());
            return Vec::new();
        };
        let Some(name) = self.held.get(name_from..end) else { return Vec::new() };
        if !may(name) {
            self.refused = Some(String::from_utf8_lossy(name).into_owned());
            return Vec::new();
        }
        let behind = self.held.split_off(end);
        let mut request = std::mem::take(&mut self.held);
        self.stream.pass_file_request(&request);
        self.asks = false;
        match self.pass(&behind, grant.as_mut().map(|grant| &mut **grant as Grant<'_>)) {
            None => request.extend_from_slice(&behind),
            Some(passes) => request.extend_from_slice(&passes),
        }
        request
    }
}
