//! One direction of a copy.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bastion_wire::end::Who;
use bastion_wire::session::{Pass, Stop, ends_with_goodbye};
use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Followed;
use crate::relay::audit::NotWritten;

/// One read; also the most that one direction keeps for a slow receiver.
const BUFFER: usize = 32 * 1024;
/// Reads of one direction in a row before the other tasks of the thread have their turn.
const READS_IN_A_ROW: usize = 16;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; BUFFER].into_boxed_slice());
}

/// Why a direction cannot go on.
pub(super) enum Failure {
    /// What it read could not be recorded.
    Audit(NotWritten),
    /// Nothing more can be read, and this is no end.
    Read(io::Error),
    /// Nothing more can be written. Why, the other direction reads.
    Write(io::Error),
}

/// What the records of a session must come to before its client's bytes go on.
fn poll_records(session: Option<&mut Followed<'_>>, context: &mut Context<'_>) -> Result<Poll<()>, Failure> {
    match session.map(|session| session.poll_records(context)) {
        Some(Poll::Pending) => Ok(Poll::Pending),
        Some(Poll::Ready(written)) => written.map(Poll::Ready).map_err(Failure::Audit),
        None => Ok(Poll::Ready(())),
    }
}

/// See the module.
pub(super) struct Direction {
    from: Who,
    /// Read but not yet written.
    kept: Vec<u8>,
    kept_from: usize,
    needs_flush: bool,
    pub(super) read_ended: bool,
    /// The other direction has come to its end.
    pub(super) has_all_answers: bool,
    /// It has broken off instead, and everything before was read.
    pub(super) broken: Option<io::Error>,
    /// Writing to its sender has failed with a reset, which is then not read any more: what looks like the end is none.
    pub(super) reset: Option<io::Error>,
    done: bool,
    /// What was read last ends with a client's goodbye.
    pub(super) goodbye: bool,
    pub(super) total: u64,
    /// Read, and not to be written yet: the start of a header, or what has stopped the copy.
    pub(super) held: Vec<u8>,
    /// Why nothing more is read.
    pub(super) stop: Option<Stop>,
}

impl Direction {
    pub(super) fn new(from: Who) -> Self {
        Self {
            from,
            kept: Vec::new(),
            kept_from: 0,
            needs_flush: false,
            read_ended: false,
            has_all_answers: false,
            broken: None,
            reset: None,
            done: false,
            goodbye: false,
            total: 0,
            held: Vec::new(),
            stop: None,
        }
    }

    /// Whether the end of the client's stream is not to be told so far. A database that has read a goodbye closes by itself. If
    /// it finds something behind it, be it the end of TLS, it resets the connection, and its last answers are lost on their way.
    pub(super) fn waits_for_answers(&self, session: Option<&mut Followed<'_>>) -> bool {
        let is_answered = self.has_all_answers || session.is_none_or(|session| session.session().is_idle());
        self.from == Who::Client && self.goodbye && !is_answered
    }

    /// Whether the receiver has had everything, and the end.
    pub(super) fn is_done(&self) -> bool {
        self.done
    }

    /// Whether everything that was read has been written.
    pub(super) fn is_flushed(&self) -> bool {
        self.kept.is_empty() && !self.needs_flush
    }

    /// What was read and not written.
    pub(super) fn into_kept(mut self) -> Vec<u8> {
        self.kept.split_off(self.kept_from)
    }

    /// Copies until nothing more can be done now.
    pub(super) fn poll<R, W>(
        &mut self,
        context: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        counter: &Counter,
        mut session: Option<&mut Followed<'_>>,
    ) -> Result<Poll<()>, Failure>
    where
        R: AsyncRead + Unpin + ?Sized,
        W: AsyncWrite + Unpin + ?Sized,
    {
        for _ in 0..READS_IN_A_ROW {
            if self.done {
                return Ok(Poll::Ready(()));
            }
            if let Some(session) = session.as_deref_mut().filter(|_| self.from == Who::Database && self.kept.is_empty())
                && let Some(said) = session.poll_notice(context)
            {
                self.kept.extend_from_slice(&said);
            }
            if self.poll_kept(context, to, session.as_deref_mut())?.is_pending() {
                return Ok(Poll::Pending);
            }
            if self.broken.is_some() || self.stop.is_some() {
                let _what_is_left = self.poll_flush(context, to)?;
                return Ok(if self.needs_flush { Poll::Pending } else { Poll::Ready(()) });
            }
            if self.read_ended && self.waits_for_answers(session.as_deref_mut()) {
                return self.poll_flush(context, to);
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
            if self.from == Who::Client && session.as_deref_mut().is_some_and(|session| session.session().is_full()) {
                // The other direction goes on, and wakes this one.
                return self.poll_flush(context, to);
            }
            if self.poll_copy(context, from, to, counter, session.as_deref_mut())?.is_pending() {
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
        mut session: Option<&mut Followed<'_>>,
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
            let read = match (Pin::new(from).poll_read(context, &mut buffer), &mut self.reset) {
                (Poll::Ready(Ok(())), reset @ Some(_)) if buffer.filled().is_empty() => {
                    Poll::Ready(reset.take().map_or(Ok(()), Err))
                }
                (read, _) => read,
            };
            match read {
                Poll::Pending => return Ok(Poll::Pending),
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) if skips_the_end_of_tls(&error, self.from, session.as_deref_mut()) => {}
                Poll::Ready(Err(error)) if self.from == Who::Database => {
                    // What it said before still goes to the client.
                    self.release(session);
                    self.broken = Some(error);
                    return Ok(Poll::Ready(()));
                }
                Poll::Ready(Err(error)) => return Err(Failure::Read(error)),
            }
            let read = buffer.filled().len();
            counter.inc_by(self.count(read));
            if read == 0 {
                self.read_ended = true;
                self.release(session);
                return Ok(Poll::Ready(()));
            }
            let filled = scratch.get(..held.saturating_add(read)).unwrap_or_default();
            let (mut rest, instead) = self.follow(filled, session.as_deref_mut());
            // What the server has said is known to the client anyway.
            let recorded = poll_records(session, context)?;
            if let Some(instead) = instead {
                self.kept.extend_from_slice(&instead);
                return Ok(Poll::Ready(()));
            }
            if self.from == Who::Client && recorded.is_pending() {
                self.kept.extend_from_slice(rest);
                return Ok(Poll::Ready(()));
            }
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

    /// Nothing will follow what was held, and whatever it is, it is no command; but it may be a request for a file.
    fn release(&mut self, session: Option<&mut Followed<'_>>) {
        let withholds = self.from == Who::Database && session.is_some_and(|session| session.session().withholds());
        if !withholds {
            self.kept.append(&mut self.held);
        }
    }

    /// Reads on behind the command that has stopped the copy, up to a limit. Whether the stream ends there.
    pub(super) fn poll_behind<R>(&mut self, context: &mut Context<'_>, from: &mut R) -> Result<bool, Failure>
    where
        R: AsyncRead + Unpin + ?Sized,
    {
        SCRATCH.with_borrow_mut(|scratch| {
            while self.held.len() < BUFFER {
                let mut buffer = ReadBuf::new(scratch);
                match Pin::new(&mut *from).poll_read(context, &mut buffer) {
                    Poll::Pending => return Ok(false),
                    Poll::Ready(result) => result.map_err(Failure::Read)?,
                }
                if buffer.filled().is_empty() {
                    return Ok(true);
                }
                self.held.extend_from_slice(buffer.filled());
            }
            Ok(false)
        })
    }

    /// Takes what was read before the copy.
    pub(super) fn begin(&mut self, early: &[u8], counter: &Counter, session: Option<&mut Followed<'_>>) {
        counter.inc_by(self.count(early.len()));
        let (rest, _no_notice) = self.follow(early, session);
        self.kept.extend_from_slice(rest);
    }

    fn count(&mut self, read: usize) -> u64 {
        let read = u64::try_from(read).unwrap_or(u64::MAX);
        self.total = self.total.saturating_add(read);
        read
    }

    /// What of `bytes` may be written, and what is written instead, if it is something else. The rest is held.
    fn follow<'b>(&mut self, bytes: &'b [u8], session: Option<&mut Followed<'_>>) -> (&'b [u8], Option<Vec<u8>>) {
        let Some(session) = session else {
            self.goodbye = ends_with_goodbye(bytes);
            return (bytes, None);
        };
        let (Pass { forward, stop }, instead) = match self.from {
            Who::Client => (session.client(bytes), None),
            _ => session.server(bytes),
        };
        self.goodbye = session.session().has_said_goodbye();
        let (rest, held) = bytes.split_at_checked(forward).unwrap_or((bytes, &[]));
        self.held.clear();
        self.held.extend_from_slice(held);
        self.stop = stop;
        (rest, instead)
    }

    /// Writes what is kept, then gives its memory back.
    fn poll_kept<W>(
        &mut self,
        context: &mut Context<'_>,
        to: &mut W,
        session: Option<&mut Followed<'_>>,
    ) -> Result<Poll<()>, Failure>
    where
        W: AsyncWrite + Unpin + ?Sized,
    {
        if self.from == Who::Client && poll_records(session, context)?.is_pending() {
            return Ok(Poll::Pending);
        }
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

/// Clients and databases may leave without the end of TLS; their protocols have their own framing. In the middle of a
/// message of the database it is no end.
fn skips_the_end_of_tls(error: &io::Error, from: Who, session: Option<&mut Followed<'_>>) -> bool {
    error.kind() == io::ErrorKind::UnexpectedEof
        && (from == Who::Client || session.is_none_or(|session| session.session().is_between_messages()))
}
