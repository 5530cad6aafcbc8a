//! One client connection in the tunnel.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::tunnel::shared::{SEND_BOUND, Shared, StreamEnd, now};

/// Bytes to and from the port of the session. Reading ends with `Ok(0)` only if the other side has closed and all of its
/// bytes were read; if the tunnel went away, reading and writing fail with `ConnectionReset`.
pub(crate) struct Stream {
    shared: Arc<Shared>,
    id: u32,
    linger: Duration,
    write_closed: bool,
}

impl Stream {
    pub(super) fn new(shared: Arc<Shared>, id: u32, linger: Duration) -> Self {
        Self { shared, id, linger, write_closed: false }
    }
}

fn failure(end: &StreamEnd) -> io::Error {
    match end {
        StreamEnd::Clean => io::Error::new(io::ErrorKind::BrokenPipe, "the other side has closed the connection"),
        StreamEnd::Refused => io::Error::new(
            io::ErrorKind::ConnectionRefused,
            "nothing listens on the relay's port in the task: the relay is not up, or has ended",
        ),
        StreamEnd::Cut(cause) => io::Error::new(io::ErrorKind::ConnectionReset, format!("the tunnel was cut: {cause}")),
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.shared.lock();
        let held_back = self.shared.holds_back(&inner);
        let Some(stream) = inner.streams.get_mut(&self.id) else {
            return Poll::Ready(Err(failure(&StreamEnd::Cut("the stream is closed".to_owned()))));
        };
        let Some(chunk) = stream.chunks.front_mut() else {
            return match &stream.end {
                Some(StreamEnd::Clean) => Poll::Ready(Ok(())),
                Some(end) => Poll::Ready(Err(failure(end))),
                None => {
                    stream.reader = Some(context.waker().clone());
                    Poll::Pending
                }
            };
        };
        let length = chunk.len().min(buffer.remaining());
        buffer.put_slice(chunk.get(..length).unwrap_or_default());
        chunk.advance(length);
        if chunk.is_empty() {
            stream.chunks.pop_front();
        }
        stream.bytes = stream.bytes.saturating_sub(length);
        if held_back && !self.shared.holds_back(&inner) {
            inner.wake_driver();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let mut inner = self.shared.lock();
        let waiting = inner.session.waiting(self.id);
        let Some(stream) = inner.streams.get_mut(&self.id) else {
            return Poll::Ready(Err(failure(&StreamEnd::Clean)));
        };
        if let Some(end) = &stream.end {
            return Poll::Ready(Err(failure(end)));
        }
        let room = SEND_BOUND.saturating_sub(waiting);
        if room == 0 {
            stream.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        let length = data.len().min(room);
        let taken = Bytes::copy_from_slice(data.get(..length).unwrap_or_default());
        if !inner.session.write(self.id, taken) {
            return Poll::Ready(Err(failure(&StreamEnd::Clean)));
        }
        inner.stats.up = inner.stats.up.saturating_add(length as u64);
        inner.wake_driver();
        Poll::Ready(Ok(length))
    }

    /// Written bytes are on their way by themselves.
    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !std::mem::replace(&mut self.write_closed, true) {
            let mut inner = self.shared.lock();
            inner.session.close_write(now(), self.id, self.linger);
            inner.wake_driver();
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Stream {
    /// Forgets the stream. What was written before a shutdown still goes out.
    fn drop(&mut self) {
        let mut inner = self.shared.lock();
        let ended = inner.streams.remove(&self.id).is_some_and(|stream| stream.end.is_some());
        if !ended {
            if self.write_closed {
                inner.session.finish(self.id);
            } else {
                inner.session.reset(self.id);
            }
        }
        inner.wake_driver();
    }
}
