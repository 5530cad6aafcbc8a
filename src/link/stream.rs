//! A stream of a link as `AsyncRead + AsyncWrite`.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bastion_wire::lane::stream::Read;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::link::end::{Resets, failure};
use crate::link::{Shared, now};

/// One read unpacks so much at most.
const READ: usize = 64 * 1024;

/// Bytes to and from a target. Each direction ends on its own. What is written leaves with a flush, or when there is a
/// lot of it; reading ends with `Ok(0)` only if the other side has finished and all of it was read. Dropped before its
/// writing has ended, the other side sees a reset and not an end, behind what was written.
pub(crate) struct Stream {
    shared: Arc<Shared>,
    id: u64,
}

impl Stream {
    pub(super) fn new(shared: Arc<Shared>, id: u64) -> Self {
        Self { shared, id }
    }

    /// Ends both directions, and neither at its end; `reason` is for the other end. It hears of it behind everything that
    /// was written.
    pub(crate) fn reset(&self, reason: &str) {
        let mut inner = self.shared.lock();
        inner.machine.reset(now(), self.id, reason);
        self.shared.settle(&mut inner);
    }
}

impl Resets for Stream {
    fn poll_reset(&mut self, _context: &mut Context<'_>, why: &str) -> Poll<()> {
        self.reset(why);
        Poll::Ready(())
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let length = buffer.remaining().min(READ);
        if length == 0 {
            return Poll::Ready(Ok(()));
        }
        let mut inner = self.shared.lock();
        match inner.machine.read(self.id, buffer.initialize_unfilled_to(length)) {
            Ok(Read::Pending) => {
                inner.readers.insert(self.id, context.waker().clone());
                Poll::Pending
            }
            Ok(Read::End) => Poll::Ready(Ok(())),
            Ok(Read::Data(length)) => {
                buffer.advance(length);
                // The other side may have more credit now.
                self.shared.settle(&mut inner);
                Poll::Ready(Ok(()))
            }
            Err(end) => {
                self.shared.settle(&mut inner);
                Poll::Ready(Err(failure(end)))
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let mut inner = self.shared.lock();
        match inner.machine.write(now(), self.id, data) {
            Ok(0) if !data.is_empty() => {
                inner.writers.insert(self.id, context.waker().clone());
                Poll::Pending
            }
            Ok(length) => {
                self.shared.settle(&mut inner);
                Poll::Ready(Ok(length))
            }
            Err(end) => Poll::Ready(Err(failure(end))),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.shared.lock();
        inner.machine.flush(now(), self.id);
        self.shared.settle(&mut inner);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.shared.lock();
        inner.machine.finish(now(), self.id);
        self.shared.settle(&mut inner);
        Poll::Ready(Ok(()))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut inner = self.shared.lock();
        inner.readers.remove(&self.id);
        inner.writers.remove(&self.id);
        inner.machine.release(now(), self.id);
        self.shared.settle(&mut inner);
    }
}
