//! Copies bytes both ways until both directions have ended.
//!
//! Each direction ends on its own (half-close is kept), flushes before it sleeps, and holds memory only while the
//! receiver is slower than the sender: reads go into one buffer of the thread, and only what could not be written at
//! once is kept. So an idle connection costs no buffer here.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// One read; also the most that one direction keeps for a slow receiver.
const BUFFER: usize = 32 * 1024;
/// Reads of one direction in a row before the other tasks of the thread have their turn.
const READS_IN_A_ROW: usize = 16;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; BUFFER].into_boxed_slice());
}

/// Which side a failure came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Upstream,
}

/// What went through and how it ended.
#[derive(Debug)]
pub(super) struct Spliced {
    /// Bytes from the client to the upstream.
    pub(super) up: u64,
    /// Bytes from the upstream to the client.
    pub(super) down: u64,
    /// Who ended first.
    pub(super) ended_by: Option<Side>,
    pub(super) error: Option<io::Error>,
}

/// Copies until both directions are done or one side fails. Not cancel safe: bytes read may be lost.
pub(super) async fn splice<C, U>(client: &mut C, upstream: &mut U, up: &Counter, down: &Counter) -> Spliced
where
    C: AsyncRead + AsyncWrite + Unpin + ?Sized,
    U: AsyncRead + AsyncWrite + Unpin + ?Sized,
{
    let mut upward = Direction::default();
    let mut downward = Direction::default();
    let mut ended_by = None;
    let result = poll_fn(|context| {
        let up_done =
            upward.poll(context, client, upstream, up).map_err(|failure| failure.on(Side::Client, Side::Upstream))?;
        let down_done = downward
            .poll(context, upstream, client, down)
            .map_err(|failure| failure.on(Side::Upstream, Side::Client))?;
        if ended_by.is_none() {
            ended_by = match (upward.read_ended, downward.read_ended) {
                (true, _) => Some(Side::Client),
                (_, true) => Some(Side::Upstream),
                _ => None,
            };
        }
        ready!(up_done);
        ready!(down_done);
        Poll::Ready(Ok(()))
    })
    .await;
    let error = match result {
        Ok(()) => None,
        Err((side, error)) => {
            ended_by.get_or_insert(side);
            Some(error)
        }
    };
    Spliced { up: upward.total, down: downward.total, ended_by, error }
}

enum Failure {
    Read(io::Error),
    Write(io::Error),
}

impl Failure {
    fn on(self, from: Side, to: Side) -> (Side, io::Error) {
        match self {
            Self::Read(error) => (from, error),
            Self::Write(error) => (to, error),
        }
    }
}

#[derive(Default)]
struct Direction {
    /// Read but not yet written.
    kept: Vec<u8>,
    kept_from: usize,
    needs_flush: bool,
    read_ended: bool,
    done: bool,
    total: u64,
}

impl Direction {
    fn poll<R, W>(
        &mut self,
        context: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        counter: &Counter,
    ) -> Result<Poll<()>, Failure>
    where
        R: AsyncRead + Unpin + ?Sized,
        W: AsyncWrite + Unpin + ?Sized,
    {
        for _ in 0..READS_IN_A_ROW {
            if self.done {
                return Ok(Poll::Ready(()));
            }
            if self.poll_kept(context, to)?.is_pending() {
                return Ok(Poll::Pending);
            }
            if self.read_ended {
                return match Pin::new(&mut *to).poll_shutdown(context) {
                    Poll::Pending => Ok(Poll::Pending),
                    // The receiver may be gone already; all it wanted was delivered.
                    Poll::Ready(_) => {
                        self.done = true;
                        Ok(Poll::Ready(()))
                    }
                };
            }
            if self.poll_copy(context, from, to, counter)?.is_pending() {
                return self.poll_flush(context, to);
            }
        }
        context.waker().wake_by_ref();
        Ok(Poll::Pending)
    }

    /// One read, written on as far as the receiver takes it.
    fn poll_copy<R, W>(
        &mut self,
        context: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        counter: &Counter,
    ) -> Result<Poll<()>, Failure>
    where
        R: AsyncRead + Unpin + ?Sized,
        W: AsyncWrite + Unpin + ?Sized,
    {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut buffer = ReadBuf::new(scratch);
            match Pin::new(from).poll_read(context, &mut buffer) {
                Poll::Pending => return Ok(Poll::Pending),
                // A database that exits may skip the end of TLS; its protocol has its own framing.
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {}
                Poll::Ready(result) => result.map_err(Failure::Read)?,
            }
            let mut rest = buffer.filled();
            if rest.is_empty() {
                self.read_ended = true;
                return Ok(Poll::Ready(()));
            }
            let length = u64::try_from(rest.len()).unwrap_or(u64::MAX);
            self.total = self.total.saturating_add(length);
            counter.inc_by(length);
            while !rest.is_empty() {
                match Pin::new(&mut *to).poll_write(context, rest) {
                    Poll::Pending => break,
                    Poll::Ready(Ok(0)) => return Err(Failure::Write(io::ErrorKind::WriteZero.into())),
                    Poll::Ready(Ok(written)) => {
                        self.needs_flush = true;
                        rest = rest.get(written..).unwrap_or_default();
                    }
                    Poll::Ready(Err(error)) => return Err(Failure::Write(error)),
                }
            }
            self.kept.extend_from_slice(rest);
            Ok(Poll::Ready(()))
        })
    }

    /// Writes what is kept, then gives its memory back.
    fn poll_kept<W>(&mut self, context: &mut Context<'_>, to: &mut W) -> Result<Poll<()>, Failure>
    where
        W: AsyncWrite + Unpin + ?Sized,
    {
        while let Some(rest) = self.kept.get(self.kept_from..).filter(|rest| !rest.is_empty()) {
            match Pin::new(&mut *to).poll_write(context, rest) {
                // The writer may hold bytes of its own that must go out before it takes more.
                Poll::Pending => return Ok(Poll::Pending),
                Poll::Ready(Ok(0)) => return Err(Failure::Write(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => {
                    self.needs_flush = true;
                    self.kept_from = self.kept_from.saturating_add(written);
                }
                Poll::Ready(Err(error)) => return Err(Failure::Write(error)),
            }
        }
        self.kept = Vec::new();
        self.kept_from = 0;
        Ok(Poll::Ready(()))
    }

    /// Nothing to read: what was written must not wait in a buffer.
    fn poll_flush<W>(&mut self, context: &mut Context<'_>, to: &mut W) -> Result<Poll<()>, Failure>
    where
        W: AsyncWrite + Unpin + ?Sized,
    {
        if self.needs_flush {
            match Pin::new(to).poll_flush(context) {
                Poll::Pending => {}
                Poll::Ready(Ok(())) => self.needs_flush = false,
                Poll::Ready(Err(error)) => return Err(Failure::Write(error)),
            }
        }
        Ok(Poll::Pending)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    /// A splice between two in-memory pipes, and the far ends.
    async fn spliced<F: Future>(
        pipe: usize,
        far: impl FnOnce(tokio::io::DuplexStream, tokio::io::DuplexStream) -> F,
    ) -> (Spliced, F::Output) {
        let (client, mut near_client) = duplex(pipe);
        let (upstream, mut near_upstream) = duplex(pipe);
        let (up, down) = (Counter::default(), Counter::default());
        let both = tokio::join!(splice(&mut near_client, &mut near_upstream, &up, &down), far(client, upstream));
        assert_eq!((up.get(), down.get()), (both.0.up, both.0.down));
        both
    }

    #[tokio::test]
    async fn an_answer_after_half_close_arrives_whole() {
        let big = vec![7_u8; 1_000_000];
        let sent = big.clone();
        let (spliced, answer) = spliced(1000, |mut client, mut upstream| async move {
            let client = async move {
                client.write_all(b"question").await.unwrap();
                client.shutdown().await.unwrap();
                let mut answer = Vec::new();
                client.read_to_end(&mut answer).await.unwrap();
                answer
            };
            let upstream = async move {
                let mut question = Vec::new();
                upstream.read_to_end(&mut question).await.unwrap();
                assert_eq!(question, b"question");
                upstream.write_all(&sent).await.unwrap();
                upstream.shutdown().await.unwrap();
            };
            tokio::join!(client, upstream).0
        })
        .await;
        assert_eq!(answer, big);
        assert_eq!((spliced.up, spliced.down), (8, 1_000_000));
        assert_eq!(spliced.ended_by, Some(Side::Client));
        assert!(spliced.error.is_none());
    }

    #[tokio::test]
    async fn both_directions_at_once_do_not_block_each_other() {
        let (spliced, ()) = spliced(64, |mut client, mut upstream| async move {
            let (mut client_read, mut client_write) = tokio::io::split(&mut client);
            let (mut upstream_read, mut upstream_write) = tokio::io::split(&mut upstream);
            let mut seen = (Vec::new(), Vec::new());
            let (a, b, c, d) = tokio::join!(
                async { client_write.write_all(&[1; 100_000]).await.and(client_write.shutdown().await) },
                async { upstream_write.write_all(&[2; 100_000]).await.and(upstream_write.shutdown().await) },
                client_read.read_to_end(&mut seen.0),
                upstream_read.read_to_end(&mut seen.1),
            );
            a.unwrap();
            b.unwrap();
            assert_eq!((c.unwrap(), d.unwrap()), (100_000, 100_000));
        })
        .await;
        assert_eq!((spliced.up, spliced.down), (100_000, 100_000));
    }

    #[tokio::test]
    async fn a_client_that_is_gone_ends_it() {
        let (spliced, ()) = spliced(64, |client, mut upstream| async move {
            drop(client);
            let mut rest = Vec::new();
            upstream.read_to_end(&mut rest).await.unwrap();
        })
        .await;
        assert_eq!(spliced.ended_by, Some(Side::Client));
    }
}
