//! Copies bytes both ways until both directions have ended.
//!
//! Each direction ends on its own (half-close is kept), flushes before it sleeps, and holds memory only while the
//! receiver is slower than the sender: reads go into one buffer of the thread, and only what could not be written at
//! once is kept. So an idle connection costs no buffer here.
//!
//! A MySQL client's bytes go past [`Commands`], which stops the copy at the few commands that are not the database's to
//! answer.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;

use crate::relay::audit::{NotWritten, Watch};
use crate::wire::mysql::commands::Commands;

/// One read; also the most that one direction keeps for a slow receiver.
const BUFFER: usize = 32 * 1024;
/// Reads of one direction in a row before the other tasks of the thread have their turn.
const READS_IN_A_ROW: usize = 16;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; BUFFER].into_boxed_slice());
}

/// Who ended a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EndedBy {
    /// A statement could not be written into the audit log.
    Audit,
    Client,
    /// The database user's lease is over.
    Lease,
    Shutdown,
    Upstream,
}

impl EndedBy {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Audit => "audit",
            Self::Client => "client",
            Self::Lease => "lease",
            Self::Shutdown => "shutdown",
            Self::Upstream => "upstream",
        }
    }
}

/// What went through and how it ended.
#[derive(Debug)]
pub(super) struct Spliced {
    /// Bytes from the client to the upstream.
    pub(super) up: u64,
    /// Bytes from the upstream to the client.
    pub(super) down: u64,
    /// Who ended first.
    pub(super) ended_by: EndedBy,
    pub(super) error: Option<io::Error>,
    /// It has not ended: the client has sent a command that is not for the database, and these bytes begin with it.
    pub(super) stopped: Option<Vec<u8>>,
}

/// Copies until both directions are done, one side fails, `cut`, or `commands` stops it. `early` is what the client has
/// sent already. `watch` sees every byte, and those of the client before they go on. Not cancel safe: bytes read may be
/// lost.
pub(super) async fn splice<C, U>(
    client: &mut C,
    upstream: &mut U,
    early: &[u8],
    commands: Option<Commands>,
    (up, down): (&Counter, &Counter),
    watch: &mut Option<Watch>,
    cut: &CancellationToken,
) -> Spliced
where
    C: AsyncRead + AsyncWrite + Unpin + ?Sized,
    U: AsyncRead + AsyncWrite + Unpin + ?Sized,
{
    let mut upward = Direction { commands, ..Direction::new(EndedBy::Client, EndedBy::Upstream) };
    let mut downward = Direction::new(EndedBy::Upstream, EndedBy::Client);
    upward.begin(early, up, watch);
    let mut ended_by = None;
    let mut cut = pin!(cut.cancelled());
    let result = poll_fn(|context| {
        if cut.as_mut().poll(context).is_ready() {
            ended_by.get_or_insert(EndedBy::Shutdown);
            return Poll::Ready(Ok(()));
        }
        let up_done = upward.poll(context, client, upstream, up, watch)?;
        let down_done = downward.poll(context, upstream, client, down, watch)?;
        if upward.stopped && up_done.is_ready() && downward.kept.is_empty() && !downward.needs_flush {
            return Poll::Ready(Ok(()));
        }
        if ended_by.is_none() {
            ended_by = match (upward.read_ended, downward.read_ended) {
                (true, _) => Some(EndedBy::Client),
                (_, true) => Some(EndedBy::Upstream),
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
        Err(Failure(by, error)) => {
            ended_by.get_or_insert(by);
            Some(error)
        }
    };
    let stopped = upward.stopped.then_some(upward.held).filter(|_| ended_by.is_none());
    let ended_by = ended_by.unwrap_or(EndedBy::Client);
    Spliced { up: upward.total, down: downward.total, ended_by, error, stopped }
}

struct Failure(EndedBy, io::Error);

fn not_written(error: NotWritten) -> Failure {
    Failure(EndedBy::Audit, io::Error::other(error))
}

struct Direction {
    from: EndedBy,
    to: EndedBy,
    /// Read but not yet written.
    kept: Vec<u8>,
    kept_from: usize,
    needs_flush: bool,
    read_ended: bool,
    done: bool,
    total: u64,
    commands: Option<Commands>,
    /// Read, and not to be written yet: the start of a header, or the command that stopped the copy.
    held: Vec<u8>,
    stopped: bool,
}

impl Direction {
    fn new(from: EndedBy, to: EndedBy) -> Self {
        Self {
            from,
            to,
            kept: Vec::new(),
            kept_from: 0,
            needs_flush: false,
            read_ended: false,
            done: false,
            total: 0,
            commands: None,
            held: Vec::new(),
            stopped: false,
        }
    }

    fn poll<R, W>(
        &mut self,
        context: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        counter: &Counter,
        watch: &mut Option<Watch>,
    ) -> Result<Poll<()>, Failure>
    where
        R: AsyncRead + Unpin + ?Sized,
        W: AsyncWrite + Unpin + ?Sized,
    {
        for _ in 0..READS_IN_A_ROW {
            if self.done {
                return Ok(Poll::Ready(()));
            }
            if self.poll_kept(context, to, watch)?.is_pending() {
                return Ok(Poll::Pending);
            }
            if self.stopped {
                let _what_is_left = self.poll_flush(context, to)?;
                return Ok(if self.needs_flush { Poll::Pending } else { Poll::Ready(()) });
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
            if self.poll_copy(context, from, to, counter, watch)?.is_pending() {
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
        watch: &mut Option<Watch>,
    ) -> Result<Poll<()>, Failure>
    where
        R: AsyncRead + Unpin + ?Sized,
        W: AsyncWrite + Unpin + ?Sized,
    {
        SCRATCH.with_borrow_mut(|scratch| {
            // A header that was cut is looked at again together with what follows it.
            let held = self.held.len();
            let (front, room) = scratch.split_at_mut(held);
            front.copy_from_slice(&self.held);
            let mut buffer = ReadBuf::new(room);
            match Pin::new(from).poll_read(context, &mut buffer) {
                Poll::Pending => return Ok(Poll::Pending),
                // A database that exits may skip the end of TLS; its protocol has its own framing.
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {}
                Poll::Ready(result) => result.map_err(|error| Failure(self.from, error))?,
            }
            let read = buffer.filled().len();
            counter.inc_by(self.count(read));
            if read == 0 {
                self.read_ended = true;
                // Whatever it is, it is not a command.
                self.kept.append(&mut self.held);
                return Ok(Poll::Ready(()));
            }
            let filled = scratch.get(..held.saturating_add(read)).unwrap_or_default();
            let mut rest = self.pass(filled);
            if self.watched(rest, watch)
                && let Some(watch) = watch
                && watch.poll(context).map_err(not_written)?.is_pending()
            {
                self.kept.extend_from_slice(rest);
                return Ok(Poll::Ready(()));
            }
            while !rest.is_empty() {
                match Pin::new(&mut *to).poll_write(context, rest) {
                    Poll::Pending => break,
                    Poll::Ready(Ok(0)) => return Err(Failure(self.to, io::ErrorKind::WriteZero.into())),
                    Poll::Ready(Ok(written)) => {
                        self.needs_flush = true;
                        rest = rest.get(written..).unwrap_or_default();
                    }
                    Poll::Ready(Err(error)) => return Err(Failure(self.to, error)),
                }
            }
            self.kept.extend_from_slice(rest);
            Ok(Poll::Ready(()))
        })
    }

    /// Takes what was read before the copy.
    fn begin(&mut self, early: &[u8], counter: &Counter, watch: &mut Option<Watch>) {
        counter.inc_by(self.count(early.len()));
        let rest = self.pass(early);
        self.watched(rest, watch);
        self.kept.extend_from_slice(rest);
    }

    fn count(&mut self, read: usize) -> u64 {
        let read = u64::try_from(read).unwrap_or(u64::MAX);
        self.total = self.total.saturating_add(read);
        read
    }

    /// Shows the bytes to `watch`; whether they must wait for it.
    fn watched(&self, bytes: &[u8], watch: &mut Option<Watch>) -> bool {
        match (watch, self.from) {
            (Some(watch), EndedBy::Client) => {
                watch.up(bytes);
                true
            }
            (Some(watch), _) => {
                watch.down(bytes);
                false
            }
            (None, _) => false,
        }
    }

    /// What of `bytes` may be written; the rest is held.
    fn pass<'b>(&mut self, bytes: &'b [u8]) -> &'b [u8] {
        let Some(commands) = &mut self.commands else { return bytes };
        let scan = commands.scan(bytes);
        let (rest, held) = bytes.split_at_checked(scan.pass).unwrap_or((bytes, &[]));
        self.held.clear();
        self.held.extend_from_slice(held);
        self.stopped = scan.stop;
        rest
    }

    /// Writes what is kept, then gives its memory back.
    fn poll_kept<W>(
        &mut self,
        context: &mut Context<'_>,
        to: &mut W,
        watch: &mut Option<Watch>,
    ) -> Result<Poll<()>, Failure>
    where
        W: AsyncWrite + Unpin + ?Sized,
    {
        if let Some(watch) = watch.as_mut().filter(|_| self.from == EndedBy::Client)
            && watch.poll(context).map_err(not_written)?.is_pending()
        {
            return Ok(Poll::Pending);
        }
        while let Some(rest) = self.kept.get(self.kept_from..).filter(|rest| !rest.is_empty()) {
            match Pin::new(&mut *to).poll_write(context, rest) {
                // The writer may hold bytes of its own that must go out before it takes more.
                Poll::Pending => return Ok(Poll::Pending),
                Poll::Ready(Ok(0)) => return Err(Failure(self.to, io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => {
                    self.needs_flush = true;
                    self.kept_from = self.kept_from.saturating_add(written);
                }
                Poll::Ready(Err(error)) => return Err(Failure(self.to, error)),
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
                Poll::Ready(Err(error)) => return Err(Failure(self.to, error)),
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
        let (mut watch, cut) = (None, CancellationToken::new());
        let splicing = splice(&mut near_client, &mut near_upstream, b"", None, (&up, &down), &mut watch, &cut);
        let both = tokio::join!(splicing, far(client, upstream));
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
        assert_eq!(spliced.ended_by, EndedBy::Client);
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
    async fn a_cut_ends_it_with_what_went_through() {
        let (mut client, mut near_client) = duplex(64);
        let (mut upstream, mut near_upstream) = duplex(64);
        let (up, down, cut) = (Counter::default(), Counter::default(), CancellationToken::new());
        let mut watch = None;
        let cutting = async {
            client.write_all(b"question").await.unwrap();
            upstream.read_exact(&mut [0; 8]).await.unwrap();
            cut.cancel();
        };
        let splicing = splice(&mut near_client, &mut near_upstream, b"", None, (&up, &down), &mut watch, &cut);
        let (spliced, ()) = tokio::join!(splicing, cutting);
        assert_eq!((spliced.up, spliced.ended_by), (8, EndedBy::Shutdown));
    }

    #[tokio::test]
    async fn a_client_that_is_gone_ends_it() {
        let (spliced, ()) = spliced(64, |client, mut upstream| async move {
            drop(client);
            let mut rest = Vec::new();
            upstream.read_to_end(&mut rest).await.unwrap();
        })
        .await;
        assert_eq!(spliced.ended_by, EndedBy::Client);
    }

    #[tokio::test]
    async fn a_command_for_the_relay_stops_the_copy_at_its_first_byte() {
        let (mut client, mut near_client) = duplex(16);
        let (mut upstream, mut near_upstream) = duplex(16);
        let (up, down) = (Counter::default(), Counter::default());
        let statement = b"\x09\0\0\0\x03select 1";
        let change = b"\x06\0\0\0\x11root\0";
        let both = async {
            client.write_all(&statement[5..]).await.unwrap();
            client.write_all(change).await.unwrap();
            let mut seen = vec![0; statement.len()];
            upstream.read_exact(&mut seen).await.unwrap();
            seen
        };
        let commands = Some(Commands::default());
        let (mut watch, cut) = (None, CancellationToken::new());
        let (counters, early) = ((&up, &down), &statement[..5]);
        let copying = splice(&mut near_client, &mut near_upstream, early, commands, counters, &mut watch, &cut);
        let (spliced, seen) = tokio::join!(copying, both);
        assert_eq!(seen, statement);
        // The rest of the command may still be on its way.
        let stopped = spliced.stopped.unwrap();
        assert!(stopped.len() > 4 && change.starts_with(&stopped), "{stopped:?}");
    }
}
