//! Copies bytes both ways until both directions have ended.
//!
//! Each direction ends on its own (half-close is kept), flushes before it sleeps, and holds memory only while the
//! receiver is slower than the sender: reads go into one buffer of the thread, and only what could not be written at
//! once is kept. So an idle connection costs no buffer here.
//!
//! A MySQL client's bytes go past [`Commands`], which stops the copy at the few commands that are not the database's to
//! answer, once everything before them is answered.

mod aside;
mod direction;

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;

use crate::relay::audit::Watch;
use crate::wire::mysql::commands::Commands;

pub(super) use aside::Aside;
use direction::{Direction, Failure, Readers};

/// A client's command waits for the answers before it as long as a login has; the time begins again with every byte.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

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
    /// It has ended because that command has waited too long for the answers before it.
    pub(super) unanswered: bool,
    /// It has ended because the upstream has asked for this file of the client, which it may not have.
    pub(super) refused_file: Option<String>,
    /// Of the upstream's bytes, what a cut has kept from the client.
    pub(super) rest: Vec<u8>,
}

impl Spliced {
    /// A connection that ended before its first byte.
    pub(super) fn nothing(ended_by: EndedBy, error: Option<io::Error>) -> Self {
        let (stopped, unanswered, refused_file, rest) = (None, false, None, Vec::new());
        Self { up: 0, down: 0, ended_by, error, stopped, unanswered, refused_file, rest }
    }
}

/// Copies until both directions are done, one side fails, `cut`, or `commands` stops it. `early` is what the client has
/// sent already. `watch` sees every byte, and those of the client before they go on; `aside` speaks to the client. Not
/// cancel safe: bytes read may be lost.
pub(super) async fn splice<C, U>(
    client: &mut C,
    upstream: &mut U,
    early: &[u8],
    commands: Option<Commands>,
    (up, down): (&Counter, &Counter),
    watch: &mut Option<Watch>,
    aside: Option<&mut Aside<'_>>,
    cut: &CancellationToken,
) -> Spliced
where
    C: AsyncRead + AsyncWrite + Unpin + ?Sized,
    U: AsyncRead + AsyncWrite + Unpin + ?Sized,
{
    let mut upward = Direction::new(EndedBy::Client, EndedBy::Upstream, None);
    let mut downward = Direction::new(EndedBy::Upstream, EndedBy::Client, aside);
    let mut readers = Readers { watch, commands };
    upward.begin(early, up, &mut readers);
    let mut ended_by = None;
    let (mut waiting, mut unanswered) = (None, false);
    let mut cut = pin!(cut.cancelled());
    let result = poll_fn(|context| {
        if cut.as_mut().poll(context).is_ready() {
            ended_by.get_or_insert(EndedBy::Shutdown);
            return Poll::Ready(Ok(()));
        }
        let up_done = upward.poll(context, client, upstream, up, &mut readers)?;
        let down_done = downward.poll(context, upstream, client, down, &mut readers)?;
        if downward.refused_file().is_some() {
            ended_by.get_or_insert(EndedBy::Upstream);
            return Poll::Ready(Ok(()));
        }
        let answered = downward.is_flushed() && readers.is_answered() && downward.is_between_answers();
        if upward.stopped && up_done.is_ready() && answered {
            return Poll::Ready(Ok(()));
        }
        if upward.stopped && !downward.read_ended {
            if upward.poll_behind(context, client)? {
                ended_by.get_or_insert(EndedBy::Client);
                return Poll::Ready(Ok(()));
            }
            unanswered = waiting.get_or_insert_with(|| Waiting::new(downward.total)).poll(context, downward.total);
            if unanswered {
                ended_by.get_or_insert(EndedBy::Upstream);
                return Poll::Ready(Ok(()));
            }
        }
        if ended_by.is_none() {
            ended_by = match (upward.read_ended, downward.read_ended) {
                (true, _) => Some(EndedBy::Client),
                // The database may close before the end of a client's stream has come, which takes longer in a tunnel.
                (_, true) if upward.goodbye => Some(EndedBy::Client),
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
    readers.end();
    let refused_file = downward.refused_file().map(str::to_owned);
    let stopped = upward.stopped.then_some(upward.held).filter(|_| ended_by.is_none());
    let ended_by = ended_by.unwrap_or(EndedBy::Client);
    let (up, down) = (upward.total, downward.total);
    Spliced { up, down, ended_by, error, stopped, unanswered, refused_file, rest: downward.into_kept() }
}

/// How long the upstream has been silent.
struct Waiting {
    heard: u64,
    sleep: Pin<Box<Sleep>>,
}

impl Waiting {
    fn new(heard: u64) -> Self {
        Self { heard, sleep: Box::pin(tokio::time::sleep(ANSWER_TIMEOUT)) }
    }

    /// Whether it has been silent for too long; `heard` are its bytes so far.
    fn poll(&mut self, context: &mut Context<'_>, heard: u64) -> bool {
        if heard != self.heard {
            *self = Self::new(heard);
        }
        self.sleep.as_mut().poll(context).is_ready()
    }
}

#[cfg(test)]
mod tests;
