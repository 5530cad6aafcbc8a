//! What the driver and the streams share: the session's state machine and a queue for each stream, behind one lock that
//! is never held over an await.

use std::collections::{BTreeMap, VecDeque};
use std::task::Waker;
use std::time::{Duration, SystemTime};

use bastion_wire::port::{Event, PortSession};
use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::tunnel::{Config, Stats};

/// Bytes of one stream waiting for the socket before its writer has to wait: enough for two messages at full size.
pub(super) const SEND_BOUND: usize = 128 * 1024;

/// How a stream ended for its reader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum StreamEnd {
    /// The other side has closed; everything it sent was delivered.
    Clean,
    /// The agent could not connect to the port.
    Refused,
    /// The tunnel went away under it, or its reader was too slow.
    Cut(String),
}

#[derive(Debug, Default)]
pub(super) struct Incoming {
    pub(super) chunks: VecDeque<Bytes>,
    pub(super) bytes: usize,
    pub(super) end: Option<StreamEnd>,
    pub(super) reader: Option<Waker>,
    pub(super) writer: Option<Waker>,
}

pub(super) struct Inner {
    pub(super) session: PortSession,
    pub(super) streams: BTreeMap<u32, Incoming>,
    pub(super) driver: Option<Waker>,
    /// Why the session is over.
    pub(super) ended: Option<String>,
    pub(super) opened: bool,
    /// When the socket of an opened session was there last.
    pub(super) up_since: Option<Instant>,
    pub(super) closing: bool,
    /// There is reason to ask whether the socket still leads anywhere.
    pub(super) doubted: bool,
    pub(super) stats: Stats,
    pub(super) clock: Correction,
}

/// How far the clock of the laptop is behind that of AWS, or ahead of it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Correction {
    behind: Duration,
    ahead: Duration,
}

impl Correction {
    /// `right` is the time of day where this machine says `here`.
    pub(super) fn new(here: SystemTime, right: SystemTime) -> Self {
        let apart = |late: SystemTime, early: SystemTime| late.duration_since(early).unwrap_or_default();
        Self { behind: apart(right, here), ahead: apart(here, right) }
    }

    pub(super) fn now(self, here: SystemTime) -> SystemTime {
        here.checked_add(self.behind).and_then(|now| now.checked_sub(self.ahead)).unwrap_or(here)
    }
}

pub(super) struct Shared {
    inner: Mutex<Inner>,
    receive_bound: usize,
    pub(super) wall_clock: fn() -> SystemTime,
    /// Somebody waits for the link.
    pub(super) demand: Notify,
}

impl Shared {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            inner: Mutex::new(Inner {
                session: PortSession::new(config.pace),
                streams: BTreeMap::new(),
                driver: None,
                ended: None,
                opened: false,
                up_since: None,
                closing: false,
                doubted: false,
                stats: Stats::default(),
                clock: Correction::default(),
            }),
            receive_bound: config.receive_bound,
            wall_clock: config.wall_clock,
            demand: Notify::new(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }

    /// Asks the driver to end the session.
    pub(super) fn close(&self) {
        let mut inner = self.lock();
        inner.closing = true;
        inner.wake_driver();
    }

    pub(super) fn cause(&self) -> String {
        self.lock().ended.clone().unwrap_or_else(|| "it is closing".to_owned())
    }

    pub(super) fn open_stream(&self) -> Option<u32> {
        let mut inner = self.lock();
        if inner.ended.is_some() || inner.closing {
            return None;
        }
        let id = inner.session.open(now())?;
        inner.streams.insert(id, Incoming::default());
        inner.wake_driver();
        Some(id)
    }

    pub(super) fn stats(&self) -> Stats {
        let inner = self.lock();
        Stats {
            streams: inner.session.open_streams(),
            resent: inner.stats.resent.saturating_add(inner.session.counts().resent),
            round_trip: inner.session.round_trip(),
            ..inner.stats
        }
    }

    /// True while the only open stream has as much waiting as it may: then nothing more is read from the socket.
    pub(super) fn holds_back(&self, inner: &Inner) -> bool {
        let mut live = inner.live();
        let only = live.next().filter(|_| live.next().is_none());
        only.is_some_and(|stream| stream.bytes >= self.receive_bound)
    }

    /// Hands everything the session has delivered to the streams.
    pub(super) fn deliver(&self, inner: &mut Inner) {
        while let Some(event) = inner.session.poll_event() {
            match event {
                Event::Opened { agent_version } => {
                    tracing::debug!(agent_version, "session open");
                    inner.opened = true;
                    inner.up_since = Some(Instant::now());
                }
                Event::Data(id, data) => self.deliver_data(inner, id, data),
                Event::Fin { stream, refused } => {
                    if let Some(stream) = inner.streams.get_mut(&stream) {
                        stream.finish(if refused { StreamEnd::Refused } else { StreamEnd::Clean });
                    }
                }
                Event::Ended(ended) => inner.end(&ended.to_string()),
            }
        }
    }

    fn deliver_data(&self, inner: &mut Inner, id: u32, data: Bytes) {
        let alone = inner.live().nth(1).is_none();
        let Some(stream) = inner.streams.get_mut(&id).filter(|stream| stream.end.is_none()) else { return };
        inner.stats.down = inner.stats.down.saturating_add(data.len() as u64);
        stream.bytes = stream.bytes.saturating_add(data.len());
        stream.chunks.push_back(data);
        stream.wake_reader();
        // smux 1 cannot hold back one stream. Alone, it may hold back the socket; beside others it must not.
        if stream.bytes > self.receive_bound && !alone {
            stream.finish(StreamEnd::Cut(format!(
                "its reader is too slow: {} MiB wait and other connections share the tunnel",
                self.receive_bound >> 20
            )));
            stream.chunks.clear();
            stream.bytes = 0;
            inner.session.reset(id);
        }
    }
}

impl Incoming {
    pub(super) fn finish(&mut self, end: StreamEnd) {
        self.end.get_or_insert(end);
        self.wake_reader();
        if let Some(writer) = self.writer.take() {
            writer.wake();
        }
    }

    fn wake_reader(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

impl Inner {
    /// Streams that may still get data.
    fn live(&self) -> impl Iterator<Item = &Incoming> {
        self.streams.values().filter(|stream| stream.end.is_none())
    }

    pub(super) fn wake_driver(&mut self) {
        if let Some(driver) = self.driver.take() {
            driver.wake();
        }
    }

    /// A new session in place of the old one, whose streams are cut.
    pub(super) fn renew(&mut self, cause: &str, config: &Config) {
        self.end(cause);
        self.stats.resent = self.stats.resent.saturating_add(self.session.counts().resent);
        self.session = self.session.successor(config.pace);
        self.ended = None;
        self.opened = false;
    }

    /// Ends the session for good: no stream may take this for a clean end.
    pub(super) fn end(&mut self, cause: &str) {
        if self.ended.is_none() {
            self.ended = Some(cause.to_owned());
        }
        for stream in self.streams.values_mut() {
            stream.finish(StreamEnd::Cut(cause.to_owned()));
        }
    }

    /// Writers whose bytes have left may go on.
    pub(super) fn wake_writers(&mut self) {
        for (id, stream) in &mut self.streams {
            if stream.writer.is_some()
                && self.session.waiting(*id) < SEND_BOUND / 2
                && let Some(writer) = stream.writer.take()
            {
                writer.wake();
            }
        }
    }
}

/// The runtime's clock, which tests can hold, in the form that `wire` takes.
pub(super) fn now() -> std::time::Instant {
    Instant::now().into_std()
}
