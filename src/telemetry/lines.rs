//! The log of a program that must not wait for it: a log driver that blocks would hold up whatever thread writes a line, and
//! with it every connection. Lines go to a thread; what does not fit is dropped and counted.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

/// Lines that wait.
const WAITING: usize = 1024;
/// How long the end of the program waits for the last lines.
const PATIENCE: Duration = Duration::from_secs(1);

enum Item {
    Line(Vec<u8>),
    /// Everything before it is written.
    Mark(SyncSender<()>),
}

/// See the module.
#[derive(Clone)]
pub(super) struct Lines {
    items: SyncSender<Item>,
    dropped: Arc<AtomicU64>,
}

impl Lines {
    /// Without a thread for it there is no log.
    pub(super) fn start(log: impl Write + Send + 'static) -> Self {
        let (items, taken) = sync_channel(WAITING);
        let dropped = Arc::<AtomicU64>::default();
        let counted = Arc::clone(&dropped);
        let _no_log = std::thread::Builder::new().name("log".to_owned()).spawn(move || write(log, &taken, &counted));
        Self { items, dropped }
    }

    /// Waits for the lines so far, but not for a log that takes none.
    pub(super) fn flush(&self) {
        let (mark, written) = sync_channel(1);
        if self.items.try_send(Item::Mark(mark)).is_ok() {
            let _in_time: Result<(), RecvTimeoutError> = written.recv_timeout(PATIENCE);
        }
    }
}

fn write(mut log: impl Write, items: &Receiver<Item>, dropped: &AtomicU64) {
    while let Ok(item) = items.recv() {
        // There is nowhere to say that the log cannot be written.
        match item {
            Item::Line(line) => {
                let _lost = log.write_all(&line);
            }
            Item::Mark(mark) => {
                let _gone = mark.send(());
            }
        }
        let lost = dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let said = format!(
                "{{\"level\":\"WARN\",\"message\":\"lines of this log were dropped: it took none\",\"dropped\":{lost}}}\n"
            );
            let _lost = log.write_all(said.as_bytes());
        }
    }
}

/// The subscriber writes each line in one piece.
impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.items.try_send(Item::Line(line.to_vec())).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Takes a line whenever it is told to.
    struct Slow(Receiver<()>, Arc<Mutex<Vec<u8>>>);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _gone = self.0.recv();
            self.1.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn nobody_waits_for_a_log_that_takes_nothing_and_what_was_dropped_is_counted() {
        let (go, told) = std::sync::mpsc::channel();
        let written = Arc::<Mutex<Vec<u8>>>::default();
        let mut lines = Lines::start(Slow(told, Arc::clone(&written)));
        let count = WAITING + 100;
        for n in 0..count {
            lines.write_all(format!("{n}\n").as_bytes()).unwrap();
        }
        drop(go);
        let (mark, is_written) = sync_channel(1);
        lines.items.send(Item::Mark(mark)).unwrap();
        is_written.recv().unwrap();
        lines.flush();
        let text = String::from_utf8(written.lock().unwrap().clone()).unwrap();
        let whole = text.lines().filter(|line| line.parse::<usize>().is_ok()).count();
        let said =
            text.lines().find_map(|line| line.split_once("\"dropped\":")?.1.strip_suffix('}')?.parse::<usize>().ok());
        assert_eq!(whole + said.unwrap(), count, "{text}");
        assert!(whole >= WAITING);
    }
}
