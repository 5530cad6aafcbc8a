//! The one writer of the audit log: a thread of its own, so that a log that does not take lines holds up whoever must
//! not go on without them, and nobody else.
//!
//! Lines are appended to one buffer, which the writer takes as a whole. That is all that a statement costs: nothing is
//! allocated for it, and nobody is woken unless the writer has nothing to do. A record gets its number there, so numbers are
//! in the order of the log, and what was lost is a gap.

use std::io::Write;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bastion_wire::memory::{Budget, Full, Share};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::futures::OwnedNotified;
use tokio::sync::{Notify, oneshot};
use tokio::time::Sleep;
use tracing::error;

use crate::relay::audit::line::{HEAD_MAX, START, push_number};

/// Bytes that wait for the writer; whoever has more waits too.
const WAITING: usize = 256 * 1024;
/// The writer rests after each batch unless somebody waits for it, so that the statements of a busy relay are written
/// together: waking it for each one would cost more than all the rest of the record.
const REST: Duration = Duration::from_millis(5);
/// What a connection keeps of its buffer between statements.
const KEPT: usize = 1024;
/// A log that takes no line for so long is broken.
const PATIENCE: Duration = Duration::from_secs(10);

/// The line is not in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(in crate::relay) enum NotWritten {
    /// The log takes nothing, and too much waits for it already.
    #[error("{0}")]
    Full(Full),
    #[error("the audit log cannot be written")]
    Log,
}

/// What the log does next, if it does anything.
async fn in_time<T>(next: impl Future<Output = T>) -> Result<T, NotWritten> {
    tokio::time::timeout(PATIENCE, next).await.map_err(|_| NotWritten::Log)
}

type Tell = oneshot::Sender<Result<(), NotWritten>>;

/// How lines begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Number {
    /// With the version of the schema and the number of the record.
    Next,
    /// With the number of all records too, which is its own.
    Last,
    /// As they are.
    None,
}

/// What the writer takes next.
#[derive(Default)]
struct Next {
    /// Each with its end.
    lines: Vec<u8>,
    /// Told when the lines are in the log, or are not.
    waiting: Vec<Tell>,
    /// The writer waits for the bell.
    asleep: bool,
    /// Records so far.
    records: u64,
    /// Batches that did not come into the log.
    lost: u64,
    /// There is no writer any more.
    gone: bool,
}

impl Next {
    fn append(&mut self, lines: &[u8], number: Number) {
        if number == Number::None {
            self.lines.extend_from_slice(lines);
            return;
        }
        self.lines.reserve(lines.len().saturating_add(HEAD_MAX));
        let mut rest = lines;
        while !rest.is_empty() {
            let end = memchr::memchr(b'\n', rest).map_or(rest.len(), |end| end.saturating_add(1));
            let (line, others) = rest.split_at(end);
            self.records = self.records.saturating_add(1);
            self.lines.extend_from_slice(START);
            push_number(&mut self.lines, self.records);
            if number == Number::Last {
                self.lines.extend_from_slice(b",\"records\":");
                push_number(&mut self.lines, self.records);
            }
            self.lines.push(b',');
            self.lines.extend_from_slice(line);
            rest = others;
        }
    }
}

#[derive(Default)]
struct Shared {
    next: Mutex<Next>,
    /// Told when the writer has taken what there was.
    room: Arc<Notify>,
}

impl Shared {
    fn next(&self) -> MutexGuard<'_, Next> {
        self.next.lock()
    }
}

/// The way to the writer. Cheap to clone.
#[derive(Clone)]
pub(super) struct Queue {
    shared: Arc<Shared>,
    bell: SyncSender<()>,
}

impl Queue {
    /// Starts the writer; it ends when the last clone is gone.
    ///
    /// # Errors
    /// If there can be no thread.
    pub(super) fn start(log: impl Write + Send + 'static) -> std::io::Result<Self> {
        Self::resting(log, REST)
    }

    fn resting(log: impl Write + Send + 'static, rest: Duration) -> std::io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let (bell, rung) = sync_channel(1);
        let writer = Writer(Arc::clone(&shared));
        std::thread::Builder::new().name("audit".to_owned()).spawn(move || writer.run(log, &rung, rest))?;
        Ok(Self { shared, bell })
    }

    /// Writes `lines` and waits until they are in the log.
    pub(super) async fn write(&self, lines: Vec<u8>, number: Number) -> Result<(), NotWritten> {
        let (tell, told) = oneshot::channel();
        let mut tell = Some(tell);
        while let Some(room) = self.append(&lines, number, &mut tell, &mut None)? {
            in_time(room).await?;
        }
        in_time(told).await?.unwrap_or(Err(NotWritten::Log))
    }

    #[cfg(test)]
    pub(super) fn is_full(&self) -> bool {
        self.shared.next().lines.len() >= WAITING
    }

    /// What waits there takes memory of `records`.
    pub(super) fn stream(&self, records: &Budget) -> Stream {
        Stream { queue: self.clone(), lost: None, room: None, held: records.share(), patience: None }
    }

    /// Gives `lines` to the writer; if there is no room for them, when to try again. `lost` is what was lost when the
    /// first lines were given: if there is more now, theirs may be among it.
    fn append(
        &self,
        lines: &[u8],
        number: Number,
        tell: &mut Option<Tell>,
        lost: &mut Option<u64>,
    ) -> Result<Option<OwnedNotified>, NotWritten> {
        let mut next = self.shared.next();
        if next.gone || *lost.get_or_insert(next.lost) != next.lost {
            return Err(NotWritten::Log);
        }
        let full = next.lines.len() >= WAITING;
        let rings = full || tell.is_some() || next.asleep;
        next.asleep = false;
        let room = full.then(|| Arc::clone(&self.shared.room).notified_owned());
        if !full {
            next.append(lines, number);
            next.waiting.extend(tell.take());
        }
        drop(next);
        if rings {
            // It may be ringing already.
            let _rung = self.bell.try_send(());
        }
        Ok(room)
    }
}

/// Lines of one connection that go out while its bytes do: they are given to the writer before the bytes go on, and the
/// connection ends if they did not come into the log.
pub(super) struct Stream {
    queue: Queue,
    lost: Option<u64>,
    room: Option<Pin<Box<OwnedNotified>>>,
    /// What waits for it.
    held: Share,
    /// While there is no room.
    patience: Option<Pin<Box<Sleep>>>,
}

impl Stream {
    /// Ready when none of `lines` waits any more. Lines that did not come into the log are an error at later ones; so is a
    /// log that takes nothing for too long, or while too much waits for it.
    pub(super) fn poll(&mut self, context: &mut Context<'_>, lines: &mut Vec<u8>) -> Poll<Result<(), NotWritten>> {
        while !lines.is_empty() {
            if let Some(room) = &mut self.room {
                self.held.resize(lines.capacity().saturating_sub(KEPT)).map_err(NotWritten::Full)?;
                if room.as_mut().poll(context).is_pending() {
                    let patience = self.patience.get_or_insert_with(|| Box::pin(tokio::time::sleep(PATIENCE)));
                    ready!(patience.as_mut().poll(context));
                    return Poll::Ready(Err(NotWritten::Log));
                }
            }
            // The log goes on, even if others have taken the room.
            self.patience = None;
            self.room = self.queue.append(lines, Number::Next, &mut None, &mut self.lost)?.map(Box::pin);
            if self.room.is_none() {
                lines.clear();
                lines.shrink_to(KEPT);
                self.held.shrink(self.held.bytes());
            }
        }
        Poll::Ready(Ok(()))
    }
}

struct Writer(Arc<Shared>);

impl Writer {
    /// Writes what is there in one go, flushes, tells whoever waits. A log that failed once may work again.
    fn run(self, mut log: impl Write, bell: &Receiver<()>, rest: Duration) {
        let mut lines = Vec::new();
        let mut failed = false;
        loop {
            let mut next = self.0.next();
            std::mem::swap(&mut next.lines, &mut lines);
            let waiting = std::mem::take(&mut next.waiting);
            next.asleep = lines.is_empty() && waiting.is_empty();
            let asleep = next.asleep;
            drop(next);
            if asleep {
                match bell.recv() {
                    Ok(()) => continue,
                    Err(_) => return,
                }
            }
            self.0.room.notify_waiters();
            // A line that was cut by a failure must not spoil the one behind it.
            let start: &[u8] = if failed { b"\n" } else { b"" };
            let written = log.write_all(start).and_then(|()| log.write_all(&lines)).and_then(|()| log.flush());
            lines.clear();
            if let Err(error) = &written {
                let mut next = self.0.next();
                next.lost = next.lost.saturating_add(1);
                drop(next);
                // Nobody may be left to be told that a statement is among them.
                if !failed {
                    error!(%error, "the audit log cannot be written: records are lost until it can");
                }
            }
            failed = written.is_err();
            let written = written.map_err(|_| NotWritten::Log);
            for tell in waiting {
                // Whoever no longer waits does not care.
                let _gone = tell.send(written);
            }
            let _rung = bell.recv_timeout(rest);
        }
    }
}

/// Nobody waits for a writer that is gone, whatever became of it.
impl Drop for Writer {
    fn drop(&mut self) {
        let mut next = self.0.next();
        next.gone = true;
        next.waiting.clear();
        drop(next);
        self.0.room.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::task::Waker;

    use bastion_wire::memory::Memory;

    use super::*;

    /// A log that works until it is told not to; it takes a byte of what it fails at then.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<(Vec<u8>, bool)>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut log = self.0.lock();
            if log.1 {
                log.0.extend(bytes.first());
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            log.0.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Log {
        fn bytes(&self) -> Vec<u8> {
            self.0.lock().0.clone()
        }

        /// Without the numbers of the records, which follow one another.
        fn bodies(&self) -> Vec<u8> {
            let text = self.bytes();
            let mut n = 0;
            let lines = text.split_inclusive(|byte| *byte == b'\n');
            let bodies =
                lines.flat_map(|line| match line.strip_prefix(format!("{{\"audit\":2,\"n\":{},", n + 1).as_bytes()) {
                    Some(body) => {
                        n += 1;
                        body
                    }
                    None => line,
                });
            bodies.copied().collect()
        }
    }

    /// A stream and what is to go into it.
    struct Lines(Stream, Vec<u8>);

    impl Lines {
        fn of(queue: &Queue) -> Self {
            Self(queue.stream(&Memory::relay().records), Vec::new())
        }

        fn push(&mut self) -> &mut Vec<u8> {
            &mut self.1
        }

        fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<(), NotWritten>> {
            self.0.poll(context, &mut self.1)
        }
    }

    #[tokio::test]
    async fn records_have_numbers_in_the_order_of_the_log_and_what_is_lost_is_a_gap() {
        let log = Log::default();
        let queue = Queue::start(log.clone()).unwrap();
        let mut stream = Lines::of(&queue);
        stream.push().extend_from_slice(b"a}\nb}\n");
        std::future::poll_fn(|context| stream.poll(context)).await.unwrap();
        queue.write(b"metrics\n".to_vec(), Number::None).await.unwrap();
        log.0.lock().1 = true;
        assert_eq!(queue.write(b"lost}\n".to_vec(), Number::Next).await, Err(NotWritten::Log));
        log.0.lock().1 = false;
        queue.write(b"c}\n".to_vec(), Number::Next).await.unwrap();
        queue.write(b"d}\n".to_vec(), Number::Last).await.unwrap();
        let text = String::from_utf8(log.bytes()).unwrap();
        let lines: Vec<_> = text.lines().filter(|line| line.ends_with('}')).collect();
        let expected = [
            r#"{"audit":2,"n":1,a}"#,
            r#"{"audit":2,"n":2,b}"#,
            r#"{"audit":2,"n":4,c}"#,
            r#"{"audit":2,"n":5,"records":5,d}"#,
        ];
        assert_eq!(lines, expected);
    }

    #[tokio::test(start_paused = true)]
    async fn a_log_that_takes_nothing_for_too_long_ends_the_connection() {
        let (in_it, is_in_it) = std::sync::mpsc::channel();
        let (held, hold) = std::sync::mpsc::channel();
        let queue = Queue::start(Hanging(in_it, hold)).unwrap();
        let mut stream = Lines::of(&queue);
        stream.push().extend_from_slice(&[b'x'; WAITING]);
        std::future::poll_fn(|context| stream.poll(context)).await.unwrap();
        is_in_it.recv().unwrap();
        for expected in [Ok(()), Err(NotWritten::Log)] {
            stream.push().extend_from_slice(&[b'x'; WAITING]);
            assert_eq!(std::future::poll_fn(|context| stream.poll(context)).await, expected);
        }
        drop(held);
    }

    #[tokio::test(start_paused = true)]
    async fn a_log_that_goes_on_is_waited_for_while_others_take_the_room() {
        let (in_it, is_in_it) = std::sync::mpsc::channel();
        let (hold, held) = std::sync::mpsc::channel();
        let queue = Queue::start(Hanging(in_it, held)).unwrap();
        // The first batch is in the log's hands, the second one fills the room.
        let mut others = Lines::of(&queue);
        for _ in 0..2 {
            others.push().extend_from_slice(&[b'x'; WAITING]);
            std::future::poll_fn(|context| others.poll(context)).await.unwrap();
            is_in_it.recv_timeout(Duration::from_millis(100)).ok();
        }
        let context = &mut Context::from_waker(Waker::noop());
        let mut patient = Lines::of(&queue);
        patient.push().extend_from_slice(b"a\n");
        for _ in 0..4 {
            assert!(patient.poll(context).is_pending());
            tokio::time::advance(PATIENCE / 2).await;
            assert!(patient.poll(context).is_pending());
            others.push().extend_from_slice(&[b'x'; WAITING]);
            assert!(others.poll(context).is_pending());
            hold.send(()).unwrap();
            is_in_it.recv().unwrap();
            // Others are first.
            assert!(others.poll(context).is_ready());
        }
        assert!(patient.poll(context).is_pending());
        tokio::time::advance(PATIENCE).await;
        assert_eq!(patient.poll(context), Poll::Ready(Err(NotWritten::Log)));
    }

    #[tokio::test]
    async fn a_line_is_in_the_log_before_it_is_said_so() {
        let log = Log::default();
        let queue = Queue::start(log.clone()).unwrap();
        for n in 0..100 {
            queue.write(format!("{n}\n").into_bytes(), Number::None).await.unwrap();
            assert!(log.0.lock().0.ends_with(format!("{n}\n").as_bytes()));
        }
        log.0.lock().1 = true;
        assert_eq!(queue.write(b"lost\n".to_vec(), Number::None).await, Err(NotWritten::Log));
        log.0.lock().1 = false;
        assert_eq!(queue.write(b"again\n".to_vec(), Number::None).await, Ok(()));
        // What was cut stays a line of its own.
        assert!(log.0.lock().0.ends_with(b"99\nl\nagain\n"));
    }

    #[tokio::test]
    async fn a_stream_of_lines_ends_at_the_first_that_is_lost() {
        let log = Log::default();
        let queue = Queue::start(log.clone()).unwrap();
        let mut stream = Lines::of(&queue);
        for n in 0..10 {
            stream.push().extend_from_slice(format!("{n}\n").as_bytes());
            std::future::poll_fn(|context| stream.poll(context)).await.unwrap();
        }
        // The last batch is in the log when what came after it is.
        queue.write(Vec::new(), Number::None).await.unwrap();
        log.0.lock().1 = true;
        stream.push().extend_from_slice(b"a\n");
        std::future::poll_fn(|context| stream.poll(context)).await.unwrap();
        // Whatever is behind it has been refused when this is.
        assert_eq!(queue.write(b"c\n".to_vec(), Number::None).await, Err(NotWritten::Log));
        log.0.lock().1 = false;
        stream.push().extend_from_slice(b"b\n");
        assert_eq!(std::future::poll_fn(|context| stream.poll(context)).await, Err(NotWritten::Log));
        assert!(log.bodies().starts_with(b"0\n1\n2\n3\n4\n5\n6\n7\n8\n9\n"));
    }

    /// Says when it is written to, and goes on when it is told to, or nobody can tell it any more.
    struct Hanging(std::sync::mpsc::Sender<()>, Receiver<()>);

    impl Write for Hanging {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _gone = self.0.send(());
            let _gone = self.1.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn lines_of_a_log_that_hangs_hold_the_connection_up() {
        let (in_it, is_in_it) = std::sync::mpsc::channel();
        let (held, hold) = std::sync::mpsc::channel();
        let queue = Queue::start(Hanging(in_it, hold)).unwrap();
        let mut stream = Lines::of(&queue);
        let context = &mut Context::from_waker(Waker::noop());
        // The first line wakes the writer.
        while !queue.shared.next().asleep {
            std::thread::yield_now();
        }
        stream.push().extend_from_slice(b"first\n");
        assert!(stream.poll(context).is_ready());
        is_in_it.recv().unwrap();
        let mut passed = 0;
        loop {
            stream.push().extend_from_slice(&[b'x'; 1000]);
            if stream.poll(context).is_pending() {
                break;
            }
            passed += 1;
        }
        // Each has a number too.
        assert!((WAITING / 1050..=WAITING.div_ceil(1000)).contains(&passed), "{passed}");
        // Another connection's lines wait as well.
        let mut other = Lines::of(&queue);
        other.push().extend_from_slice(b"other\n");
        assert!(other.poll(context).is_pending());
        drop(held);
        std::future::poll_fn(|context| stream.poll(context)).await.unwrap();
        std::future::poll_fn(|context| other.poll(context)).await.unwrap();
        queue.write(b"last\n".to_vec(), Number::None).await.unwrap();
    }

    #[tokio::test]
    async fn lines_that_wait_for_a_log_that_hangs_have_a_budget_of_all_connections() {
        let (in_it, is_in_it) = std::sync::mpsc::channel();
        let (held, hold) = std::sync::mpsc::channel();
        let queue = Queue::start(Hanging(in_it, hold)).unwrap();
        let memory = Memory::relay();
        let whole = memory.records.left();
        let stream = || Lines(queue.stream(&memory.records), Vec::new());
        let context = &mut Context::from_waker(Waker::noop());
        let mut first = stream();
        for _ in 0..2 {
            // In the log's hands, and in all the room that there is.
            first.push().extend_from_slice(&[b'x'; WAITING]);
            assert!(first.poll(context).is_ready());
            is_in_it.recv_timeout(Duration::from_millis(100)).ok();
        }
        assert_eq!(memory.records.left(), whole);
        let large = || vec![b'x'; whole / 2];
        let mut waiting = [stream(), stream()];
        for stream in &mut waiting {
            *stream.push() = large();
            assert!(stream.poll(context).is_pending());
        }
        let mut last = stream();
        *last.push() = large();
        let Poll::Ready(Err(error)) = last.poll(context) else { panic!("there is room for it") };
        assert_eq!(error.to_string(), "the memory for records that wait for the audit log is used up: 8192 KiB");
        // The others go on, and leave nothing.
        drop(held);
        for stream in &mut waiting {
            std::future::poll_fn(|context| stream.poll(context)).await.unwrap();
        }
        assert_eq!(memory.records.left(), whole);
    }

    #[tokio::test]
    async fn nobody_who_waits_is_kept_by_the_rest_of_the_writer() {
        let log = Log::default();
        let queue = Queue::resting(log.clone(), Duration::from_secs(3600)).unwrap();
        let mut stream = Lines::of(&queue);
        stream.push().extend_from_slice(b"a\n");
        std::future::poll_fn(|context| stream.poll(context)).await.unwrap();
        queue.write(b"b\n".to_vec(), Number::None).await.unwrap();
        assert_eq!(log.bodies(), b"a\nb\n");
        // There is room for only so much.
        for _ in 0..4 {
            stream.push().extend_from_slice(&[b'x'; WAITING]);
            std::future::poll_fn(|context| stream.poll(context)).await.unwrap();
        }
        queue.write(b"c\n".to_vec(), Number::None).await.unwrap();
        assert_eq!(log.bodies().iter().filter(|byte| **byte == b'x').count(), 4 * WAITING);
    }

    #[tokio::test]
    async fn nothing_is_taken_when_the_writer_is_gone() {
        struct Broken;
        impl Write for Broken {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                panic!("broken")
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }

        let queue = Queue::start(Broken).unwrap();
        // The first may hear of it while the writer is still going.
        for _ in 0..2 {
            assert_eq!(queue.write(b"a\n".to_vec(), Number::None).await, Err(NotWritten::Log));
        }
        let mut stream = Lines::of(&queue);
        stream.push().extend_from_slice(b"b\n");
        assert_eq!(std::future::poll_fn(|context| stream.poll(context)).await, Err(NotWritten::Log));
    }
}
