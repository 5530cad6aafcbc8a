//! Both ends of a link on the runtime: one task a lane, one for the timers, and streams as `AsyncRead + AsyncWrite`.
//!
//! [`bastion_wire::lane`] decides everything; here is one lock around it that is never held over an await, and who is
//! woken when. The relay accepts streams from it, the tunnel opens them.

pub(crate) mod end;
mod lane;
pub(crate) mod plain;
mod stream;

use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::sync::{Arc, LazyLock};
use std::task::{Poll, Waker};
use std::time::Duration;

use bastion_wire::lane::budget::Filling;
use bastion_wire::lane::link::{Config, Event, Link as Machine, Side};
use bastion_wire::memory::Memory;
use parking_lot::{Mutex, MutexGuard};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

pub(crate) use crate::link::stream::Stream;
use crate::types::shortened;

/// Without any lane for so long, both ends give the link up: longer than new sessions take, short enough that a database
/// does not hold the locks of somebody who is gone.
static GRACE: LazyLock<Duration> = LazyLock::new(|| shortened("BASTION_TEST_GRACE", Duration::from_secs(120)));

/// Numbers for people.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Stats {
    pub(crate) sent: u64,
    pub(crate) received: u64,
    /// The same after packing.
    pub(crate) sent_packed: u64,
    pub(crate) received_packed: u64,
    pub(crate) resent: u64,
    pub(crate) streams: usize,
    /// The shortest round trip of the quickest lane.
    pub(crate) round_trip: Option<Duration>,
}

/// How many lanes there are, and how many of them move.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Lanes {
    pub(crate) open: usize,
    pub(crate) moving: usize,
    pub(crate) over: bool,
}

#[cfg(feature = "launcher")]
impl Stats {
    /// Both together; the round trip is that of `other`.
    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            sent: self.sent.saturating_add(other.sent),
            received: self.received.saturating_add(other.received),
            sent_packed: self.sent_packed.saturating_add(other.sent_packed),
            received_packed: self.received_packed.saturating_add(other.received_packed),
            resent: self.resent.saturating_add(other.resent),
            streams: self.streams.saturating_add(other.streams),
            round_trip: other.round_trip,
        }
    }
}

struct Inner {
    machine: Machine,
    readers: HashMap<u64, Waker>,
    writers: HashMap<u64, Waker>,
    lanes: HashMap<u32, Waker>,
    opened: VecDeque<(u64, String)>,
    acceptor: Option<Waker>,
    /// Somebody waits for everything to have arrived.
    drained: Option<Waker>,
    /// What the timer task sleeps until.
    timer: Option<Instant>,
}

struct Shared {
    inner: Mutex<Inner>,
    /// The timer task has something earlier to wait for.
    earlier: Notify,
    lanes: watch::Sender<Lanes>,
}

/// One end of a link. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Link {
    shared: Arc<Shared>,
}

impl Link {
    /// The relay's end: streams come.
    #[cfg(feature = "relay")]
    pub(crate) fn acceptor(memory: Memory) -> Self {
        Self::new(Side::Acceptor, Filling::DOWN, memory)
    }

    /// The laptop's end: it opens streams.
    #[cfg(any(feature = "launcher", test))]
    pub(crate) fn opener() -> Self {
        Self::new(Side::Opener, Filling::UP, Memory::laptop())
    }

    fn new(side: Side, filling: Filling, memory: Memory) -> Self {
        let inner = Inner {
            machine: Machine::new(Config { side, filling, grace: *GRACE }, memory),
            readers: HashMap::new(),
            writers: HashMap::new(),
            lanes: HashMap::new(),
            opened: VecDeque::new(),
            acceptor: None,
            drained: None,
            timer: None,
        };
        let shared =
            Shared { inner: Mutex::new(inner), earlier: Notify::new(), lanes: watch::Sender::new(Lanes::default()) };
        Self { shared: Arc::new(shared) }
    }

    /// Keeps the link's time; returns when the link is over. Every link needs this running once.
    pub(crate) async fn keep_time(&self) {
        loop {
            let next = {
                let mut inner = self.shared.lock();
                if inner.machine.over().is_some() {
                    return;
                }
                inner.timer = inner.machine.poll_timeout().map(|(at, _)| Instant::from_std(at));
                inner.timer
            };
            let sleep = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = sleep => {
                    let mut inner = self.shared.lock();
                    inner.machine.handle_timeout(now());
                    self.shared.settle(&mut inner);
                }
                () = self.shared.earlier.notified() => {}
            }
        }
    }

    /// Carries a lane of the link over `pipe` until the pipe or the link ends. Cancelling it loses the lane.
    ///
    /// # Errors
    /// When the pipe broke.
    #[cfg(any(feature = "relay", test))]
    pub(crate) async fn carry(&self, pipe: impl AsyncRead + AsyncWrite + Unpin) -> std::io::Result<()> {
        lane::carry(&self.shared, pipe, || false).await
    }

    /// The same; a lane that has brought nothing for long although `is_open` says that its path could, is given up.
    ///
    /// # Errors
    /// When the pipe broke, or was given up.
    #[cfg(feature = "launcher")]
    pub(crate) async fn carry_while(
        &self,
        pipe: impl AsyncRead + AsyncWrite + Unpin,
        is_open: impl Fn() -> bool + Unpin,
    ) -> std::io::Result<()> {
        lane::carry(&self.shared, pipe, is_open).await
    }

    /// Opens a stream to a target. It goes out with what is written first, or with a flush. `None`: the link is over, or
    /// has as many streams as it may.
    #[cfg(any(feature = "launcher", test))]
    pub(crate) fn open(&self, target: &str) -> Option<Stream> {
        let id = self.shared.lock().machine.open(target)?;
        Some(Stream::new(Arc::clone(&self.shared), id))
    }

    /// The next stream that the other side has opened, and to which target; `None`: the link is over. Cancel safe.
    #[cfg(feature = "relay")]
    pub(crate) async fn accept(&self) -> Option<(Stream, String)> {
        poll_fn(|context| {
            let mut inner = self.shared.lock();
            if let Some((id, target)) = inner.opened.pop_front() {
                return Poll::Ready(Some((Stream::new(Arc::clone(&self.shared), id), target)));
            }
            if inner.machine.over().is_some() {
                return Poll::Ready(None);
            }
            inner.acceptor = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Waits until everything that was sent has arrived, or the link is over.
    pub(crate) async fn drained(&self) {
        poll_fn(|context| {
            let mut inner = self.shared.lock();
            if inner.machine.is_drained() || inner.machine.over().is_some() {
                return Poll::Ready(());
            }
            inner.drained = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Ends the link and tells the other side.
    pub(crate) fn close(&self) {
        let mut inner = self.shared.lock();
        inner.machine.close();
        self.shared.settle(&mut inner);
    }

    /// Ends the link, whose other side is known to exist no more; streams end with the cause.
    #[cfg(feature = "launcher")]
    pub(crate) fn give_up(&self, cause: &str) {
        let mut inner = self.shared.lock();
        inner.machine.give_up(cause);
        self.shared.settle(&mut inner);
    }

    /// Follows the number of lanes.
    #[cfg(feature = "launcher")]
    pub(crate) fn lanes(&self) -> watch::Receiver<Lanes> {
        self.shared.lanes.subscribe()
    }

    /// Waits until no lane is left. After the end of the link: until every lane has told the other side.
    #[cfg(feature = "launcher")]
    pub(crate) async fn emptied(&self) {
        let mut lanes = self.lanes();
        // The sender lives as long as this link.
        let _last = lanes.wait_for(|lanes| lanes.open == 0).await;
    }

    /// Whether somebody uses it: it has a lane, or had something to carry. One without either was begun by a launcher that did
    /// not get the answer, and has begun another.
    #[cfg(feature = "relay")]
    pub(crate) fn is_used(&self) -> bool {
        let inner = self.shared.lock();
        inner.machine.lanes().0 > 0 || inner.machine.totals().received > 0
    }

    /// Why the link is over.
    pub(crate) fn over(&self) -> Option<String> {
        self.shared.lock().machine.over().map(ToString::to_string)
    }

    pub(crate) fn stats(&self) -> Stats {
        let inner = self.shared.lock();
        let totals = inner.machine.totals();
        Stats {
            sent: totals.sent,
            received: totals.received,
            sent_packed: totals.sent_packed,
            received_packed: totals.received_packed,
            resent: totals.resent,
            streams: inner.machine.open_streams(),
            round_trip: inner.machine.round_trip(),
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }

    /// After anything that happened: puts out what may go, and wakes whom it concerns.
    fn settle(&self, inner: &mut Inner) {
        inner.machine.schedule(now());
        while let Some(event) = inner.machine.poll_event() {
            match event {
                Event::Opened { stream, target } => {
                    inner.opened.push_back((stream, target));
                    wake(inner.acceptor.take());
                }
                Event::Readable(id) => wake(inner.readers.remove(&id)),
                Event::Writable(id) => wake(inner.writers.remove(&id)),
                Event::Stuck(id) => {
                    if let Some(lane) = inner.lanes.get(&id) {
                        lane.wake_by_ref();
                    }
                }
                Event::Over => {
                    inner.readers.drain().chain(inner.writers.drain()).for_each(|(_, waker)| waker.wake());
                    inner.lanes.values().for_each(Waker::wake_by_ref);
                    wake(inner.acceptor.take());
                    wake(inner.drained.take());
                    self.earlier.notify_one();
                }
            }
        }
        let Inner { machine, lanes, .. } = inner;
        lanes.iter().filter(|(id, _)| machine.has_output(**id)).for_each(|(_, waker)| waker.wake_by_ref());
        if inner.drained.is_some() && inner.machine.is_drained() {
            wake(inner.drained.take());
        }
        let next = inner.machine.poll_timeout().map(|(at, _)| Instant::from_std(at));
        if next.is_some_and(|at| inner.timer.is_none_or(|timer| at < timer)) {
            inner.timer = next;
            self.earlier.notify_one();
        }
        let (open, moving) = inner.machine.lanes();
        let lanes = Lanes { open, moving, over: inner.machine.over().is_some() };
        self.lanes.send_if_modified(|known| std::mem::replace(known, lanes) != lanes);
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// The runtime's clock, which tests can hold, in the form that `wire` takes.
fn now() -> std::time::Instant {
    Instant::now().into_std()
}

#[cfg(test)]
mod tests;
