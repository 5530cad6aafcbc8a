//! The byte stream of a client, whatever it came through.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::server::TlsStream;

use crate::link::end::Resets;

pub(crate) trait ClientIo: AsyncRead + AsyncWrite + Resets + Unpin {}
impl<T: AsyncRead + AsyncWrite + Resets + Unpin> ClientIo for T {}

impl Resets for Box<dyn ClientIo> {
    fn poll_reset(&mut self, context: &mut Context<'_>, why: &str) -> Poll<()> {
        (**self).poll_reset(context, why)
    }
}

/// The reset is that of the stream below: TLS knows none.
impl<S: Resets> Resets for TlsStream<S> {
    fn poll_reset(&mut self, context: &mut Context<'_>, why: &str) -> Poll<()> {
        self.get_mut().0.poll_reset(context, why)
    }
}

/// A stream of which the first bytes were read already.
pub(crate) struct Early<S> {
    early: Bytes,
    stream: S,
}

impl<S> Early<S> {
    pub(crate) fn new(early: Bytes, stream: S) -> Self {
        Self { early, stream }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Early<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.early.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let length = self.early.len().min(buffer.remaining());
        buffer.put_slice(self.early.get(..length).unwrap_or_default());
        self.early.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Early<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl<S: Resets> Resets for Early<S> {
    fn poll_reset(&mut self, context: &mut Context<'_>, why: &str) -> Poll<()> {
        self.stream.poll_reset(context, why)
    }
}
