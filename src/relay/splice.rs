//! Copies bytes both ways until both directions have ended.
//!
//! Each direction ends on its own (half-close is kept), also when the other cannot go on: what the database has said
//! still goes to the client, and what the client has said to the database. Each flushes before it sleeps, and holds memory only while the
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

use crate::link::end;
use crate::relay::audit::Watch;
use crate::wire::end::{End, How, Notice, Who};
use crate::wire::mysql::commands::Commands;

pub(super) use aside::Aside;
use direction::{Direction, Failure, Readers};

/// A client's command waits for the answers before it as long as a login has; the time begins again with every byte.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// What a client has said that takes nothing more has so long to be read and to go on.
const GONE_TIMEOUT: Duration = Duration::from_secs(5);

/// What went through and how it ended.
#[derive(Debug)]
pub(super) struct Spliced {
    /// Bytes from the client to the upstream.
    pub(super) up: u64,
    /// Bytes from the upstream to the client.
    pub(super) down: u64,
    /// Who ended first, and how.
    pub(super) end: End,
    pub(super) error: Option<io::Error>,
    /// What the client is to notice, behind what it was sent.
    pub(super) notice: Notice,
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
    pub(super) fn nothing(end: End, error: Option<io::Error>) -> Self {
        let (stopped, unanswered, refused_file, rest) = (None, false, None, Vec::new());
        Self { up: 0, down: 0, end, error, notice: end.notice(), stopped, unanswered, refused_file, rest }
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
    let mut upward = Direction::new(Who::Client, None);
    let mut downward = Direction::new(Who::Database, aside);
    let mut readers = Readers { watch, commands };
    upward.begin(early, up, &mut readers);
    let mut ended = Ended::default();
    let (mut waiting, mut unanswered) = (None, false);
    let mut cut = pin!(cut.cancelled());
    poll_fn(|context| {
        if cut.as_mut().poll(context).is_ready() {
            ended.by(End::new(Who::Task, How::Cut), None);
            return Poll::Ready(());
        }
        let up_done = match ended.upstream_gone {
            false => upward.poll(context, client, upstream, up, &mut readers),
            true => Ok(Poll::Ready(())),
        };
        let down_done = match ended.client_gone {
            false => downward.poll(context, upstream, client, down, &mut readers),
            true => Ok(Poll::Ready(())),
        };
        let (up_done, down_done) = match (up_done, down_done) {
            (Ok(up_done), Ok(down_done)) => (up_done, down_done),
            (Err(Failure::Audit(error)), _) | (_, Err(Failure::Audit(error))) => {
                ended.by(End::new(Who::Audit, How::Cut), Some(error));
                return Poll::Ready(());
            }
            (Err(Failure::Read(error)), _) => {
                ended.by(end::of_client(&error), Some(error));
                return Poll::Ready(());
            }
            (up_done, down_done) => {
                // The database takes no more: how it has ended is still to be read, and what it has said.
                ended.upstream_gone |= up_done.is_err();
                // And of the client, what it has said.
                ended.client_gone |= down_done.is_err();
                for (failed, sender) in [(up_done, &mut downward), (down_done, &mut upward)] {
                    if let Err(Failure::Read(error) | Failure::Write(error)) = failed {
                        if error.kind() == io::ErrorKind::ConnectionReset {
                            sender.reset = Some(error);
                        } else {
                            ended.not_written.get_or_insert(error);
                        }
                    }
                }
                context.waker().wake_by_ref();
                return if ended.upstream_gone && ended.client_gone { Poll::Ready(()) } else { Poll::Pending };
            }
        };
        if downward.broken.is_some() && upward.goodbye {
            // Some databases answer a goodbye with a reset.
            ended.by(End::new(Who::Client, How::Clean), None);
        } else if let Some(error) = &downward.broken {
            ended.by(end::of_database(error), None);
        }
        if downward.refused_file().is_some() {
            ended.by(End::new(Who::Database, How::Cut), None);
            return Poll::Ready(());
        }
        let answered = downward.is_flushed() && readers.is_answered() && downward.is_between_answers();
        if upward.stopped && up_done.is_ready() && answered {
            return Poll::Ready(());
        }
        if upward.stopped && !downward.read_ended && downward.broken.is_none() {
            match upward.poll_behind(context, client) {
                Ok(false) => {}
                Ok(true) => {
                    ended.by(End::new(Who::Client, How::Clean), None);
                    return Poll::Ready(());
                }
                Err(Failure::Audit(error) | Failure::Read(error) | Failure::Write(error)) => {
                    ended.by(end::of_client(&error), Some(error));
                    return Poll::Ready(());
                }
            }
            unanswered = waiting.get_or_insert_with(|| Waiting::new(downward.total)).poll(context, downward.total);
            if unanswered {
                ended.by(End::new(Who::Database, How::TimedOut), None);
                return Poll::Ready(());
            }
        }
        if upward.read_ended || downward.read_ended && upward.goodbye {
            // The database may close before the end of a client's stream has come, which takes longer in a tunnel.
            ended.by(End::new(Who::Client, How::Clean), None);
        } else if downward.read_ended {
            ended.by(End::new(Who::Database, How::Clean), None);
        }
        // What has broken off or is gone waits for nobody.
        if downward.broken.is_some() && down_done.is_ready() || ended.poll_gone(context) {
            return Poll::Ready(());
        }
        ready!(up_done);
        ready!(down_done);
        Poll::Ready(())
    })
    .await;
    let is_broken = downward.broken.is_some();
    let not_written = ended.not_written.filter(|_| ended.end.is_none_or(|end| end.how != How::Clean));
    let broken = downward.broken.take().filter(|_| !upward.goodbye);
    let error = ended.error.or(broken).or(not_written);
    let stopped = upward.stopped.then_some(upward.held).filter(|_| ended.end.is_none());
    let end = ended.end.unwrap_or(End::new(Who::Client, How::Reset));
    let notice = match () {
        () if downward.is_done() => Notice::End,
        () if ended.client_gone => Notice::Nothing,
        () if is_broken => Notice::Reset,
        () => end.notice(),
    };
    readers.end();
    let refused_file = downward.refused_file().map(str::to_owned);
    let (up, down, rest) = (upward.total, downward.total, downward.into_kept());
    Spliced { up, down, end, error, notice, stopped, unanswered, refused_file, rest }
}

/// How a copy has ended, as far as it is known.
#[derive(Default)]
struct Ended {
    end: Option<End>,
    error: Option<io::Error>,
    /// It takes nothing more.
    upstream_gone: bool,
    client_gone: bool,
    not_written: Option<io::Error>,
    waiting: Option<Pin<Box<Sleep>>>,
}

impl Ended {
    /// The first one counts.
    fn by(&mut self, end: End, error: Option<io::Error>) {
        if self.end.is_none() {
            (self.end, self.error) = (Some(end), error);
        }
    }

    /// Whether it has taken too long to hear a client out that is gone.
    fn poll_gone(&mut self, context: &mut Context<'_>) -> bool {
        if !self.client_gone {
            return false;
        }
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(tokio::time::sleep(GONE_TIMEOUT)));
        waiting.as_mut().poll(context).is_ready()
    }
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
