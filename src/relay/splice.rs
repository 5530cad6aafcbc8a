//! Copies bytes both ways until both directions have ended.
//!
//! Each direction ends on its own (half-close is kept), also when the other cannot go on: what the database has said
//! still goes to the client, and what the client has said to the database. Each flushes before it sleeps, and holds memory only while the
//! receiver is slower than the sender: reads go into one buffer of the thread, and only what could not be written at
//! once is kept. So an idle connection costs no buffer here.
//!
//! Where the relay knows the session, its bytes go past [`Followed`], which tells the audit log of them and stops the copy at
//! the few commands that are not the database's to answer, once everything before them is answered.

mod direction;
mod followed;

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::LazyLock;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bastion_wire::end::{End, How, Notice, Who};
use bastion_wire::memory::Full;
use bastion_wire::session::{OutOfProtocol, Stop};
use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;

use crate::link::end;
use crate::relay::audit::NotWritten;
use crate::types::shortened;

use direction::{Direction, Failure};
pub(super) use followed::Followed;

/// A client's command waits for the answers before it as long as a login has; the time begins again with every byte.
pub(super) static ANSWER_TIMEOUT: LazyLock<Duration> =
    LazyLock::new(|| shortened("BASTION_TEST_ANSWER_TIMEOUT", Duration::from_secs(30)));

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
    /// It has ended because one of the two does what it may not.
    pub(super) breach: Option<Breach>,
    /// Of the upstream's bytes, what a cut has kept from the client.
    pub(super) rest: Vec<u8>,
    /// Behind those, what was not to go on before more of it has come.
    pub(super) held: Vec<u8>,
}

/// Why the relay has ended a session.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Breach {
    /// The upstream has asked for this file of the client, which it may not have.
    File(String),
    OutOfProtocol(OutOfProtocol),
    /// There is no memory for what the client asks, or for its record.
    Full(Full),
    /// The command that has stopped the copy has waited too long for the answers before it.
    Unanswered,
}

impl Spliced {
    /// A connection that ended before its first byte.
    pub(super) fn nothing(end: End, error: Option<io::Error>) -> Self {
        let (stopped, breach, rest, held) = (None, None, Vec::new(), Vec::new());
        Self { up: 0, down: 0, end, error, notice: end.notice(), stopped, breach, rest, held }
    }
}

/// Copies until both directions are done, one side fails, `cut`, or the `session` stops it. `early` is what the client has
/// sent already. Not cancel safe: bytes read may be lost.
pub(super) async fn splice<C, U>(
    client: &mut C,
    upstream: &mut U,
    early: &[u8],
    (up, down): (&Counter, &Counter),
    mut session: Option<&mut Followed<'_>>,
    cut: &CancellationToken,
) -> Spliced
where
    C: AsyncRead + AsyncWrite + Unpin + ?Sized,
    U: AsyncRead + AsyncWrite + Unpin + ?Sized,
{
    let mut upward = Direction::new(Who::Client);
    let mut downward = Direction::new(Who::Database);
    upward.begin(early, up, session.as_deref_mut());
    let mut ended = Ended::default();
    let (mut waiting, mut breach) = (None, None);
    let mut cut = pin!(cut.cancelled());
    poll_fn(|context| {
        if cut.as_mut().poll(context).is_ready() {
            ended.by(End::new(Who::Task, How::Cut), None);
            return Poll::Ready(());
        }
        let up_done = match ended.upstream_gone {
            false => upward.poll(context, client, upstream, up, session.as_deref_mut()),
            true => Ok(Poll::Ready(())),
        };
        let is_full = |session: &mut Option<&mut Followed<'_>>| {
            session.as_mut().is_some_and(|session| session.session().is_full())
        };
        let was_full = is_full(&mut session);
        let waited = upward.read_ended && upward.waits_for_answers(session.as_deref_mut());
        let down_done = match ended.client_gone {
            false => downward.poll(context, upstream, client, down, session.as_deref_mut()),
            true => Ok(Poll::Ready(())),
        };
        upward.has_all_answers = downward.read_ended || downward.broken.is_some();
        let goes_on = waited && !upward.waits_for_answers(session.as_deref_mut());
        if goes_on || was_full && !is_full(&mut session) {
            context.waker().wake_by_ref();
        }
        let (up_done, down_done) = match (up_done, down_done) {
            (Ok(up_done), Ok(down_done)) => (up_done, down_done),
            (Err(Failure::Audit(error)), _) | (_, Err(Failure::Audit(error))) => {
                ended.by(End::new(Who::Audit, How::Cut), Some(io::Error::other(error)));
                if let NotWritten::Full(full) = error {
                    breach = Some(Breach::Full(full));
                }
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
        // What came before it still goes on, except to a client that waits for the file.
        let upward_stop = upward.stop.take_if(|stop| up_done.is_ready() && *stop != Stop::Command);
        let downward_stop = downward.stop.take_if(|stop| down_done.is_ready() || matches!(stop, Stop::File(_)));
        for (stop, who) in [(upward_stop, Who::Client), (downward_stop, Who::Database)] {
            breach = match stop {
                Some(Stop::File(name)) => Some(Breach::File(name)),
                Some(Stop::OutOfProtocol(error)) => Some(Breach::OutOfProtocol(error)),
                Some(Stop::Full(full)) => Some(Breach::Full(full)),
                Some(Stop::Command) | None => continue,
            };
            let who = if matches!(breach, Some(Breach::Full(_))) { Who::Relay } else { who };
            ended.by(End::new(who, How::Cut), None);
            return Poll::Ready(());
        }
        let stopped = upward.stop == Some(Stop::Command);
        let is_idle = session.as_mut().is_none_or(|session| session.session().is_idle());
        if stopped && up_done.is_ready() && downward.is_flushed() && is_idle {
            return Poll::Ready(());
        }
        if stopped && !downward.read_ended && downward.broken.is_none() {
            match upward.poll_behind(context, client) {
                Ok(false) => {}
                Ok(true) => {
                    ended.by(End::new(Who::Client, How::Clean), None);
                    return Poll::Ready(());
                }
                Err(Failure::Read(error) | Failure::Write(error)) => {
                    ended.by(end::of_client(&error), Some(error));
                    return Poll::Ready(());
                }
                // It records nothing.
                Err(Failure::Audit(_)) => {}
            }
            if waiting.get_or_insert_with(|| Waiting::new(downward.total)).poll(context, downward.total) {
                breach = Some(Breach::Unanswered);
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
    let stopped = upward.stop.is_some().then_some(upward.held).filter(|_| ended.end.is_none());
    let end = ended.end.unwrap_or(End::new(Who::Client, How::Reset));
    let notice = match () {
        () if downward.is_done() => Notice::End,
        () if ended.client_gone => Notice::Nothing,
        () if is_broken => Notice::Reset,
        () => end.notice(),
    };
    if let Some(session) = session.filter(|_| stopped.is_none()) {
        session.end();
    }
    let (up, down, held) = (upward.total, downward.total, std::mem::take(&mut downward.held));
    Spliced { up, down, end, error, notice, stopped, breach, rest: downward.into_kept(), held }
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
        Self { heard, sleep: Box::pin(tokio::time::sleep(*ANSWER_TIMEOUT)) }
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
