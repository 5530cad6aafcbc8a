//! The one writer of the audit log: a thread of its own, so that a log that does not take lines holds up whoever must
//! not go on without them, and nobody else.
//!
//! Lines are appended to one buffer, which the writer takes as a whole. That is all that a statement costs: nothing is
//! allocated for it, and nobody is woken unless the writer has nothing to do.

use std::io::Write;
use std::pin::Pin;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::sync::futures::OwnedNotified;
use tokio::sync::{Notify, oneshot};
use tracing::error;

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
#[error("the audit log cannot be written")]
pub(in crate::relay) struct NotWritten;

type Tell = oneshot::Sender<Result<(), NotWritten>>;

/// What the writer takes next.
#[derive(Default)]
struct Next {
    /// Each with its end.
    lines: Vec<u8>,
    /// Told when the lines are in the log, or are not.
    waiting: Vec<Tell>,
    /// The writer waits for the bell.
    asleep: bool,
    /// Batches that did not come into the log.
    lost: u64,
    /// There is no writer any more.
    gone: bool,
}

#[derive(Default)]
struct Shared {
    next: Mutex<Next>,
    /// Told when the writer has taken what there was.
    room: Arc<Notify>,
}

impl Shared {
    fn next(&self) -> MutexGuard<'_, Next> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner)
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
    pub(super) async fn write(&self, lines: Vec<u8>) -> Result<(), NotWritten> {
        let written = async {
            let (tell, told) = oneshot::channel();
            let mut tell = Some(tell);
            while let Some(room) = self.append(&lines, &mut tell, &mut None)? {
                room.await;
            }
            told.await.unwrap_or(Err(NotWritten))
        };
        tokio::time::timeout(PATIENCE, written).await.unwrap_or(Err(NotWritten))
    }

    #[cfg(test)]
    pub(super) fn is_full(&self) -> bool {
        self.shared.next().lines.len() >= WAITING
    }

    pub(super) fn stream(&self) -> Stream {
        Stream { queue: self.clone(), lines: Vec::new(), lost: None, room: None }
    }

    /// Gives `lines` to the writer; if there is no room for them, when to try again. `lost` is what was lost when the
    /// first lines were given: if there is more now, theirs may be among it.
    fn append(
        &self,
        lines: &[u8],
        tell: &mut Option<Tell>,
        lost: &mut Option<u64>,
    ) -> Result<Option<OwnedNotified>, NotWritten> {
        let mut next = self.shared.next();
        if next.gone || *lost.get_or_insert(next.lost) != next.lost {
            return Err(NotWritten);
        }
        let full = next.lines.len() >= WAITING;
        let rings = full || tell.is_some() || next.asleep;
        next.asleep = false;
        let room = full.then(|| Arc::clone(&self.shared.room).notified_owned());
        if !full {
            next.lines.extend_from_slice(lines);
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
    lines: Vec<u8>,
    lost: Option<u64>,
    room: Option<Pin<Box<OwnedNotified>>>,
}

impl Stream {
    pub(super) fn push(&mut self) -> &mut Vec<u8> {
        &mut self.lines
    }

    /// Ready when nothing waits any more. Lines that did not come into the log are an error at later ones.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<(), NotWritten>> {
        while !self.lines.is_empty() {
            if let Some(room) = &mut self.room {
                ready!(room.as_mut().poll(context));
            }
            self.room = self.queue.append(&self.lines, &mut None, &mut self.lost)?.map(Box::pin);
            if self.room.is_none() {
                self.lines.clear();
                self.lines.shrink_to(KEPT);
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
            let written = written.map_err(|_| NotWritten);
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

    use super::*;

    /// A log that works until it is told not to; it takes a byte of what it fails at then.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<(Vec<u8>, bool)>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut log = self.0.lock().unwrap();
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

    #[tokio::test]
    async fn a_line_is_in_the_log_before_it_is_said_so() {
        let log = Log::default();
        let queue = Queue::start(log.clone()).unwrap();
        for n in 0..100 {
            queue.write(format!("{n}\n").into_bytes()).await.unwrap();
            assert!(log.0.lock().unwrap().0.ends_with(format!("{n}\n").as_bytes()));
        }
        log.0.lock().unwrap().1 = true;
        assert_eq!(queue.write(b"lost\n".to_vec()).await, Err(NotWritten));
        log.0.lock().unwrap().1 = false;
        assert_eq!(queue.write(b"again\n".to_vec()).await, Ok(()));
        // What was cut stays a line of its own.
        assert!(log.0.lock().unwrap().0.ends_with(b"99\nl\nagain\n"));
    }

    #[tokio::test]
    async fn a_stream_of_lines_ends_at_the_first_that_is_lost() {
        let log = Log::default();
        let queue = Queue::start(log.clone()).unwrap();
        let mut stream = queue.stream();
        for n in 0..10 {
            stream.push().extend_from_slice(format!("{n}\n").as_bytes());
            std::future::poll_fn(|context| stream.poll(context)).await.unwrap();
        }
        // The last batch is in the log when what came after it is.
        queue.write(Vec::new()).await.unwrap();
        log.0.lock().unwrap().1 = true;
        stream.push().extend_from_slice(b"a\n");
        std::future::poll_fn(|context| stream.poll(context)).await.unwrap();
        // Whatever is behind it has been refused when this is.
        assert_eq!(queue.write(b"c\n".to_vec()).await, Err(NotWritten));
        log.0.lock().unwrap().1 = false;
        stream.push().extend_from_slice(b"b\n");
        assert_eq!(std::future::poll_fn(|context| stream.poll(context)).await, Err(NotWritten));
        assert!(log.0.lock().unwrap().0.starts_with(b"0\n1\n2\n3\n4\n5\n6\n7\n8\n9\n"));
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
        let mut stream = queue.stream();
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
        assert_eq!(passed, WAITING.div_ceil(1000));
        // Another connection's lines wait as well.
        let mut other = queue.stream();
        other.push().extend_from_slice(b"other\n");
        assert!(other.poll(context).is_pending());
        drop(held);
        std::future::poll_fn(|context| stream.poll(context)).await.unwrap();
        std::future::poll_fn(|context| other.poll(context)).await.unwrap();
        queue.write(b"last\n".to_vec()).await.unwrap();
    }

    #[tokio::test]
    async fn nobody_who_waits_is_kept_by_the_rest_of_the_writer() {
        let log = Log::default();
        let queue = Queue::resting(log.clone(), Duration::from_secs(3600)).unwrap();
        let mut stream = queue.stream();
        stream.push().extend_from_slice(b"a\n");
        std::future::poll_fn(|context| stream.poll(context)).await.unwrap();
        queue.write(b"b\n".to_vec()).await.unwrap();
        assert_eq!(log.0.lock().unwrap().0, b"a\nb\n");
        // There is room for only so much.
        for _ in 0..4 {
            stream.push().extend_from_slice(&[b'x'; WAITING]);
            std::future::poll_fn(|context| stream.poll(context)).await.unwrap();
        }
        queue.write(b"c\n".to_vec()).await.unwrap();
        assert_eq!(log.0.lock().unwrap().0.len(), 6 + 4 * WAITING);
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
            assert_eq!(queue.write(b"a\n".to_vec()).await, Err(NotWritten));
        }
        let mut stream = queue.stream();
        stream.push().extend_from_slice(b"b\n");
        assert_eq!(std::future::poll_fn(|context| stream.poll(context)).await, Err(NotWritten));
    }
}
