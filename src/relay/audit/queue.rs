//! The one writer of the audit log: a thread of its own, so that a log that does not take lines holds up whoever must
//! not go on without them, and nobody else.

use std::collections::VecDeque;
use std::io::Write;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::PollSender;

/// Lines that wait for the writer; whoever has more waits too.
const QUEUE: usize = 512;
/// Lines that are written together.
const BATCH: usize = 256 * 1024;
/// The writer rests after statements, so that those of a busy relay are written together: waking it for each one would
/// cost more than all the rest of the record.
const REST: Duration = Duration::from_millis(1);
/// Batches of one connection that are on their way at once.
const ON_THE_WAY: usize = 64;
/// A log that takes no line for so long is broken.
const PATIENCE: Duration = Duration::from_secs(10);

/// The line is not in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the audit log cannot be written")]
pub(in crate::relay) struct NotWritten;

struct Entry {
    /// One or more lines, each with its end.
    lines: Vec<u8>,
    /// Told when they are in the log, or are not.
    done: oneshot::Sender<Result<(), NotWritten>>,
    /// Nobody waits for them; more of the kind may follow.
    passing: bool,
}

/// The way to the writer. Cheap to clone.
#[derive(Clone)]
pub(super) struct Queue(mpsc::Sender<Entry>);

impl Queue {
    /// Starts the writer; it ends when the last clone is gone.
    ///
    /// # Errors
    /// If there can be no thread.
    pub(super) fn start(log: impl Write + Send + 'static) -> std::io::Result<Self> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        std::thread::Builder::new().name("audit".to_owned()).spawn(move || run(log, receiver))?;
        Ok(Self(sender))
    }

    /// Writes `lines` and waits until they are in the log.
    pub(super) async fn write(&self, lines: Vec<u8>) -> Result<(), NotWritten> {
        let written = async {
            let (done, told) = oneshot::channel();
            self.0.send(Entry { lines, done, passing: false }).await.map_err(|_| NotWritten)?;
            told.await.unwrap_or(Err(NotWritten))
        };
        tokio::time::timeout(PATIENCE, written).await.unwrap_or(Err(NotWritten))
    }

    pub(super) fn stream(&self) -> Stream {
        Stream { sender: PollSender::new(self.0.clone()), waiting: Vec::new(), on_the_way: VecDeque::new() }
    }
}

/// Lines of one connection that go out while its bytes do: each batch is in the queue before the bytes go on, and a batch
/// that did not come into the log ends the connection.
pub(super) struct Stream {
    sender: PollSender<Entry>,
    waiting: Vec<u8>,
    on_the_way: VecDeque<oneshot::Receiver<Result<(), NotWritten>>>,
}

impl Stream {
    pub(super) fn push(&mut self) -> &mut Vec<u8> {
        &mut self.waiting
    }

    /// Ready when nothing waits any more. A batch that did not come into the log is an error at a later one.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<(), NotWritten>> {
        if self.waiting.is_empty() {
            return Poll::Ready(Ok(()));
        }
        loop {
            let full = self.on_the_way.len() >= ON_THE_WAY;
            let Some(told) = self.on_the_way.front_mut() else { break };
            let written = match told.try_recv() {
                Ok(written) => written,
                Err(TryRecvError::Closed) => Err(NotWritten),
                Err(TryRecvError::Empty) if !full => break,
                Err(TryRecvError::Empty) => ready!(Pin::new(told).poll(context)).unwrap_or(Err(NotWritten)),
            };
            self.on_the_way.pop_front();
            written?;
        }
        ready!(self.sender.poll_reserve(context)).map_err(|_| NotWritten)?;
        let (done, told) = oneshot::channel();
        let lines = std::mem::take(&mut self.waiting);
        self.sender.send_item(Entry { lines, done, passing: true }).map_err(|_| NotWritten)?;
        self.on_the_way.push_back(told);
        Poll::Ready(Ok(()))
    }
}

/// Writes what is there in one go, flushes, tells whoever waits. A log that failed once may work again.
fn run(mut log: impl Write, mut entries: mpsc::Receiver<Entry>) {
    let (mut lines, mut waiting) = (Vec::new(), Vec::new());
    while let Some(first) = entries.blocking_recv() {
        let (mut next, mut passing) = (Some(first), false);
        while let Some(entry) = next {
            lines.extend_from_slice(&entry.lines);
            waiting.push(entry.done);
            passing |= entry.passing;
            next = if lines.len() < BATCH { entries.try_recv().ok() } else { None };
        }
        let written = log.write_all(&lines).and_then(|()| log.flush()).map_err(|_| NotWritten);
        lines.clear();
        for done in waiting.drain(..) {
            // Whoever no longer waits does not care.
            let _gone = done.send(written);
        }
        if passing {
            rest();
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a thread of its own, not one of the runtime")]
fn rest() {
    std::thread::sleep(REST);
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    /// A log that works until it is told not to.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<(Vec<u8>, bool)>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut log = self.0.lock().unwrap();
            if log.1 {
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
        assert_eq!(log.0.lock().unwrap().0, b"0\n1\n2\n3\n4\n5\n6\n7\n8\n9\n");
    }

    #[tokio::test]
    async fn lines_of_a_log_that_hangs_hold_the_connection_up() {
        let (held, hold) = std::sync::mpsc::channel::<()>();

        struct Hanging(std::sync::mpsc::Receiver<()>);
        impl Write for Hanging {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                let _until_it_goes_on = self.0.recv();
                Ok(bytes.len())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }

        let queue = Queue::start(Hanging(hold)).unwrap();
        let mut stream = queue.stream();
        let mut passed = 0;
        let context = &mut Context::from_waker(std::task::Waker::noop());
        loop {
            stream.push().extend_from_slice(b"line\n");
            if stream.poll(context).is_pending() {
                break;
            }
            passed += 1;
        }
        assert_eq!(passed, ON_THE_WAY);
        drop(held);
        std::future::poll_fn(|context| stream.poll(context)).await.unwrap();
    }
}
