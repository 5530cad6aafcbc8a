//! One direction of a copy.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Aside;
use crate::relay::audit::{NotWritten, Watch};
use crate::wire::end::Who;
use crate::wire::mysql::commands::Commands;

/// One read; also the most that one direction keeps for a slow receiver.
const BUFFER: usize = 32 * 1024;
/// Reads of one direction in a row before the other tasks of the thread have their turn.
const READS_IN_A_ROW: usize = 16;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; BUFFER].into_boxed_slice());
}

/// Terminate of PostgreSQL and COM_QUIT of MySQL: the last thing that a client says.
const GOODBYES: [&[u8]; 2] = [b"X\0\0\0\x04", b"\x01\0\0\0\x01"];

/// Why a direction cannot go on.
pub(super) enum Failure {
    /// What it read could not be recorded.
    Audit(io::Error),
    /// Nothing more can be read, and this is no end.
    Read(io::Error),
    /// Nothing more can be written. Why, the other direction reads.
    Write(io::Error),
}

fn not_written(error: NotWritten) -> Failure {
    Failure::Audit(io::Error::other(error))
}

/// Who reads along, in both directions.
pub(super) struct Readers<'w> {
    pub(super) watch: &'w mut Option<Watch>,
    pub(super) commands: Option<Commands>,
}

impl Readers<'_> {
    /// Whether the upstream may have a file of the client that it asks for.
    fn grant_file(&mut self, name: &[u8]) -> bool {
        let granted = self.commands.as_mut().is_some_and(|commands| commands.grant_file(name));
        if granted && let Some(watch) = self.watch {
            watch.file_begins();
        }
        granted
    }

    /// The client's bytes that were looked at have been the end of files.
    fn files_sent(&mut self) {
        if let (Some(commands), Some(watch)) = (&mut self.commands, self.watch.as_mut()) {
            commands.take_sent_files().iter().for_each(|file| watch.file_sent(file));
        }
    }

    /// The end of the connection: a file may be on its way.
    pub(super) fn end(&mut self) {
        if let (Some(commands), Some(watch)) = (&mut self.commands, self.watch.as_mut())
            && let Some(file) = commands.take_unfinished_file()
        {
            watch.file_sent(&file);
        }
    }

    /// Whether the client has no answer to wait for.
    pub(super) fn is_answered(&self) -> bool {
        self.commands.as_ref().is_none_or(Commands::is_answered)
    }

    /// What of the client's `bytes` must go on to the watch before it goes on to the upstream.
    fn poll_watch(&mut self, context: &mut Context<'_>) -> Result<Poll<()>, Failure> {
        match self.watch.as_mut().map(|watch| watch.poll(context)) {
            Some(Poll::Pending) => Ok(Poll::Pending),
            Some(Poll::Ready(written)) => written.map(Poll::Ready).map_err(not_written),
            None => Ok(Poll::Ready(())),
        }
    }
}

/// See the module.
pub(super) struct Direction<'a, 'n> {
    from: Who,
    /// Read but not yet written.
    kept: Vec<u8>,
    kept_from: usize,
    needs_flush: bool,
    pub(super) read_ended: bool,
    /// It has broken off instead, and everything before was read.
    pub(super) broken: Option<io::Error>,
    /// Writing to its sender has failed with a reset, which is then not read any more: what looks like the end is none.
    pub(super) reset: Option<io::Error>,
    done: bool,
    /// What was read last ends with a client's goodbye.
    pub(super) goodbye: bool,
    pub(super) total: u64,
    /// Read, and not to be written yet: the start of a header, or the command that stopped the copy.
    pub(super) held: Vec<u8>,
    pub(super) stopped: bool,
    /// Speaks to whoever reads, among the bytes.
    aside: Option<&'a mut Aside<'n>>,
}

impl<'a, 'n> Direction<'a, 'n> {
    pub(super) fn new(from: Who, aside: Option<&'a mut Aside<'n>>) -> Self {
        Self {
            from,
            kept: Vec::new(),
            kept_from: 0,
            needs_flush: false,
            read_ended: false,
            broken: None,
            reset: None,
            done: false,
            goodbye: false,
            total: 0,
            held: Vec::new(),
            stopped: false,
            aside,
        }
    }

    /// Whether the receiver has had everything, and the end.
    pub(super) fn is_done(&self) -> bool {
        self.done
    }

    /// Whether everything that was read has been written.
    pub(super) fn is_flushed(&self) -> bool {
        self.kept.is_empty() && !self.needs_flush
    }

    /// Whether what has gone to the client is whole answers, in an engine where they are known.
    pub(super) fn is_between_answers(&self) -> bool {
        self.aside.as_ref().is_none_or(|aside| aside.is_between_answers())
    }

    /// The file of the client that the upstream has asked for and may not have.
    pub(super) fn refused_file(&self) -> Option<&str> {
        self.aside.as_ref()?.refused()
    }

    /// What was read and not written.
    pub(super) fn into_kept(mut self) -> Vec<u8> {
        let mut kept = self.kept.split_off(self.kept_from);
        kept.append(&mut self.aside.map(|aside| aside.take_head()).unwrap_or_default());
        kept
    }

    /// Copies until nothing more can be done now.
    pub(super) fn poll<R, W>(
        &mut self,
        context: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        counter: &Counter,
        readers: &mut Readers<'_>,
    ) -> Result<Poll<()>, Failure>
    where
        R: AsyncRead + Unpin + ?Sized,
        W: AsyncWrite + Unpin + ?Sized,
    {
        for _ in 0..READS_IN_A_ROW {
            if self.done {
                return Ok(Poll::Ready(()));
            }
            if let Some(aside) = self.aside.as_mut().filter(|_| self.kept.is_empty())
                && let Some(said) = aside.poll(context)
            {
                self.kept.extend_from_slice(&said);
            }
            if self.poll_kept(context, to, readers)?.is_pending() {
                return Ok(Poll::Pending);
            }
            if self.broken.is_some() {
                let _what_is_left = self.poll_flush(context, to)?;
                return Ok(if self.needs_flush { Poll::Pending } else { Poll::Ready(()) });
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
            if self.poll_copy(context, from, to, counter, readers)?.is_pending() {
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
        readers: &mut Readers<'_>,
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
                Poll::Ready(Err(error)) if self.skips_the_end_of_tls(&error) => {}
                Poll::Ready(Err(error)) if self.from == Who::Database => {
                    // What it said before still goes to the client.
                    if let Some(aside) = &mut self.aside {
                        self.kept.append(&mut aside.take_head());
                    }
                    self.broken = Some(error);
                    return Ok(Poll::Ready(()));
                }
                Poll::Ready(Err(error)) => return Err(Failure::Read(error)),
            }
            let read = buffer.filled().len();
            counter.inc_by(self.count(read));
            if read == 0 {
                self.read_ended = true;
                // Whatever it is, it is not a command.
                self.kept.append(&mut self.held);
                if let Some(aside) = &mut self.aside {
                    self.kept.append(&mut aside.take_head());
                }
                return Ok(Poll::Ready(()));
            }
            let filled = scratch.get(..held.saturating_add(read)).unwrap_or_default();
            self.goodbye = GOODBYES.iter().any(|goodbye| filled.ends_with(goodbye));
            let mut rest = self.pass(filled, readers);
            self.show(rest, readers);
            if self.from == Who::Client && readers.poll_watch(context)?.is_pending() {
                self.kept.extend_from_slice(rest);
                return Ok(Poll::Ready(()));
            }
            if let Some(aside) = &mut self.aside {
                let may_send = readers.commands.as_ref().is_some_and(Commands::may_send_files);
                let mut grant = |name: &[u8]| readers.grant_file(name);
                if let Some(passes) = aside.pass(rest, may_send.then_some(&mut grant)) {
                    self.kept.extend_from_slice(&passes);
                    return Ok(Poll::Ready(()));
                }
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

    /// Clients and databases may leave without the end of TLS; their protocols have their own framing. In the middle of a
    /// message it is no end.
    fn skips_the_end_of_tls(&self, error: &io::Error) -> bool {
        error.kind() == io::ErrorKind::UnexpectedEof
            && self.aside.as_ref().is_none_or(|aside| aside.is_between_messages())
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
    pub(super) fn begin(&mut self, early: &[u8], counter: &Counter, readers: &mut Readers<'_>) {
        counter.inc_by(self.count(early.len()));
        let rest = self.pass(early, readers);
        self.show(rest, readers);
        self.kept.extend_from_slice(rest);
    }

    fn count(&mut self, read: usize) -> u64 {
        let read = u64::try_from(read).unwrap_or(u64::MAX);
        self.total = self.total.saturating_add(read);
        read
    }

    /// Lets the others read the bytes. Those of the client must wait for the watch.
    fn show(&self, bytes: &[u8], readers: &mut Readers<'_>) {
        if self.from == Who::Client {
            if let Some(watch) = readers.watch {
                watch.up(bytes);
            }
            return;
        }
        if let Some(watch) = readers.watch {
            watch.down(bytes);
        }
        if let Some(commands) = &mut readers.commands {
            commands.down(bytes);
        }
    }

    /// What of `bytes` may be written; the rest is held.
    fn pass<'b>(&mut self, bytes: &'b [u8], readers: &mut Readers<'_>) -> &'b [u8] {
        let Some(commands) = readers.commands.as_mut().filter(|_| self.from == Who::Client) else { return bytes };
        let scan = commands.scan(bytes);
        readers.files_sent();
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
        readers: &mut Readers<'_>,
    ) -> Result<Poll<()>, Failure>
    where
        W: AsyncWrite + Unpin + ?Sized,
    {
        if self.from == Who::Client && readers.poll_watch(context)?.is_pending() {
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
