//! One client connection over one byte pipe, whose ends are told: [`bastion_wire::conn`] on the runtime.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use bastion_wire::conn::{self, Decoder};
use bastion_wire::lane::stream::Read;
use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::link::end::{Resets, failure};

/// One read of the pipe, and what is put into it at a time.
const CHUNK: usize = 8 * 1024;

/// Bytes to and from a target, over `pipe`. Each direction ends on its own. Dropped before its writing has ended, the other
/// side sees no end.
pub(crate) struct Plain<S: AsyncRead + AsyncWrite + Unpin> {
    pipe: S,
    decoder: Decoder,
    /// Not taken by the pipe yet.
    out: BytesMut,
    /// The other side was told the end of what is written.
    told: bool,
    /// It was told of a reset.
    reset: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Plain<S> {
    /// `early` was read from the pipe already.
    pub(crate) fn new(pipe: S, early: &[u8]) -> Self {
        let mut decoder = Decoder::default();
        decoder.take(early);
        Self { pipe, decoder, out: BytesMut::new(), told: false, reset: false }
    }

    fn poll_out(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            match ready!(Pin::new(&mut self.pipe).poll_write(context, &self.out))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                length => self.out.advance(length),
            }
        }
        self.out = BytesMut::new();
        Pin::new(&mut self.pipe).poll_flush(context)
    }

    /// Reads the pipe to its end and drops what comes.
    fn poll_rest(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let mut bytes = [0; 512];
        loop {
            let mut buffer = ReadBuf::new(&mut bytes);
            match ready!(Pin::new(&mut self.pipe).poll_read(context, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {}
                Ok(()) | Err(_) => return Poll::Ready(()),
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Plain<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            match self.decoder.read(buffer.initialize_unfilled()) {
                Ok(Read::Data(length)) => {
                    buffer.advance(length);
                    return Poll::Ready(Ok(()));
                }
                Ok(Read::End) => return Poll::Ready(Ok(())),
                Ok(Read::Pending) => {}
                Err(end) => return Poll::Ready(Err(failure(end))),
            }
            let mut bytes = [0; CHUNK];
            let mut coming = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut self.pipe).poll_read(context, &mut coming))?;
            match coming.filled() {
                [] => self.decoder.cut(),
                filled => self.decoder.take(filled),
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Plain<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if self.told {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        ready!(self.poll_out(context))?;
        let length = conn::encode_chunk(data.get(..CHUNK).unwrap_or(data), &mut self.out);
        // What does not go now goes with the next write or flush.
        let _pending = self.poll_out(context)?;
        Poll::Ready(Ok(length))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_out(context)
    }

    /// The pipe itself stays open for the other direction.
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !std::mem::replace(&mut self.told, true) {
            conn::encode_end(&mut self.out);
        }
        self.poll_out(context)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Resets for Plain<S> {
    fn poll_reset(&mut self, context: &mut Context<'_>, why: &str) -> Poll<()> {
        if !std::mem::replace(&mut self.told, true) {
            conn::encode_reset(why, &mut self.out);
            self.reset = true;
        }
        if ready!(self.poll_out(context)).is_err() || !self.reset {
            return Poll::Ready(());
        }
        let _gone_already = ready!(Pin::new(&mut self.pipe).poll_shutdown(context));
        // A socket that is closed with unread input would take what is on its way down with it.
        self.poll_rest(context)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Drop for Plain<S> {
    /// What was told goes out before the pipe ends.
    fn drop(&mut self) {
        if self.told {
            let mut context = Context::from_waker(Waker::noop());
            let _as_far_as_it_takes = self.poll_out(&mut context);
            let _as_far_as_it_takes = Pin::new(&mut self.pipe).poll_shutdown(&mut context);
        }
    }
}
