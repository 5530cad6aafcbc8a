//! One lane: bytes of a pipe to the machine and back, until either ends.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::link::{Shared, now};

/// One read of the pipe.
const READ: usize = 16 * 1024;
/// Turns in a row before the other tasks of the thread have theirs.
const IN_A_ROW: usize = 16;

/// The lane in the machine, until dropped.
struct Joined<'a> {
    shared: &'a Arc<Shared>,
    id: u32,
}

impl Drop for Joined<'_> {
    fn drop(&mut self) {
        let mut inner = self.shared.lock();
        inner.lanes.remove(&self.id);
        inner.machine.handle_lane_lost(now(), self.id);
        self.shared.settle(&mut inner);
    }
}

pub(super) async fn carry(
    shared: &Arc<Shared>,
    mut pipe: impl AsyncRead + AsyncWrite + Unpin,
    is_open: impl Fn() -> bool + Unpin,
) -> io::Result<()> {
    let id = {
        let mut inner = shared.lock();
        let Some(id) = inner.machine.add_lane() else { return Ok(()) };
        shared.settle(&mut inner);
        id
    };
    let joined = Joined { shared, id };
    let mut lane = Lane { joined, out: Vec::new(), written: 0, needs_flush: false, buffer: vec![0; READ] };
    poll_fn(|context| match lane.poll(context, &mut pipe) {
        Poll::Pending if shared.lock().machine.is_stuck(id) && is_open() => {
            Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "nothing has come through for a while")))
        }
        polled => polled,
    })
    .await
}

struct Lane<'a> {
    joined: Joined<'a>,
    /// Bytes for the pipe, and how many of them are written.
    out: Vec<u8>,
    written: usize,
    needs_flush: bool,
    buffer: Vec<u8>,
}

impl Lane<'_> {
    /// Writes and reads until nothing moves.
    fn poll<P: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        context: &mut Context<'_>,
        pipe: &mut P,
    ) -> Poll<io::Result<()>> {
        let Joined { shared, id } = self.joined;
        shared.lock().lanes.insert(id, context.waker().clone());
        for _ in 0..IN_A_ROW {
            let wrote = self.poll_write(context, pipe)?;
            let mut read = ReadBuf::new(&mut self.buffer);
            let before = match Pin::new(&mut *pipe).poll_read(context, &mut read) {
                Poll::Ready(result) => {
                    result?;
                    let mut inner = shared.lock();
                    if read.filled().is_empty() && inner.machine.over().is_none() {
                        return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                    }
                    inner.machine.handle_bytes(now(), id, read.filled());
                    shared.settle(&mut inner);
                    !read.filled().is_empty()
                }
                Poll::Pending => false,
            };
            let over = shared.lock().machine.over().is_some();
            if over && !wrote && self.is_written() {
                // The other side has been told, as far as this pipe goes.
                let _best_effort = ready!(Pin::new(&mut *pipe).poll_shutdown(context));
                return Poll::Ready(Ok(()));
            }
            if !wrote && !before {
                return Poll::Pending;
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    fn is_written(&self) -> bool {
        self.written == self.out.len() && !self.needs_flush
    }

    /// True if bytes were taken from the machine or went into the pipe.
    fn poll_write<P: AsyncWrite + Unpin>(&mut self, context: &mut Context<'_>, pipe: &mut P) -> io::Result<bool> {
        let mut moved = false;
        if self.written == self.out.len() {
            self.out = self.joined.shared.lock().machine.take_output(self.joined.id);
            self.written = 0;
            moved = !self.out.is_empty();
        }
        while let Some(rest) = self.out.get(self.written..).filter(|rest| !rest.is_empty()) {
            match Pin::new(&mut *pipe).poll_write(context, rest) {
                Poll::Pending => return Ok(moved),
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(length)) => {
                    self.written = self.written.saturating_add(length);
                    self.needs_flush = true;
                    moved = true;
                }
                Poll::Ready(Err(error)) => return Err(error),
            }
        }
        if self.needs_flush && Pin::new(pipe).poll_flush(context)?.is_ready() {
            self.needs_flush = false;
        }
        Ok(moved)
    }
}
