//! Several sessions, one link: what clients are carried over.
//!
//! The first lane runs in the tunnel that is there anyway; it begins the link, and while it cannot be had, nothing can.
//! Each further lane has a session of its own. One that is lost is opened again in the background. A relay that knows no
//! lanes is served the plain way: every client has a stream of the first tunnel.

mod spare;
mod supervisor;

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use secrecy::SecretString;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::spare::Spares;
use crate::link::{self, Link};
use crate::tunnel::{BoxFuture, ConnectError, ControlError, OpenError, Pass, State, Stats, Tunnel};
use crate::types::shortened;

/// A new client waits so long for a lost link to come back: longer than a reconnect takes, shorter than a person waits.
static OUTAGE_PATIENCE: LazyLock<Duration> =
    LazyLock::new(|| shortened("BASTION_TEST_OUTAGE_PATIENCE", Duration::from_secs(20)));
/// And so long for a task to start; its own time limit is most likely shorter, and its next try finds the task running.
const WAKE_PATIENCE: Duration = Duration::from_secs(300);
/// Bytes that clients have sent have so long to arrive at the end.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// And each lane to tell the relay that it is the end.
const GOODBYE: Duration = Duration::from_millis(500);

/// Opens sessions for further lanes; the command line implements it.
pub(crate) trait Opener: Send + Sync + 'static {
    /// A session of its own, with its id. It is not opened again when it ends; one that did not open is ended.
    fn open(&self) -> BoxFuture<'_, Result<(Tunnel, String), LaneError>>;

    /// Makes sure that nothing of the session lives on.
    fn end<'a>(&'a self, session_id: &'a str) -> BoxFuture<'a, ()>;
}

/// Why there is no further session.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LaneError {
    /// The agent has not answered for so many seconds, as one that has as many session workers as it may.
    #[error("the agent in the task did not open the session within {0} s")]
    NoHandshake(u64),
    #[error(transparent)]
    Failed(#[from] ControlError),
}

impl From<OpenError> for LaneError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Timeout(seconds) => Self::NoHandshake(seconds),
            error => Self::Failed(ControlError(error.to_string())),
        }
    }
}

/// What clients are carried over at the moment.
#[derive(Clone)]
enum Way {
    /// Not known yet, or lost.
    None,
    Link(Arc<Current>),
    /// The relay knows no lanes.
    Plain,
}

impl Way {
    fn lanes(&self) -> Option<watch::Receiver<link::Lanes>> {
        match self {
            Self::Link(current) => Some(current.link.lanes()),
            Self::None | Self::Plain => None,
        }
    }
}

struct Current {
    link: Link,
    secret: String,
}

/// How many lanes there are of how many, and what stands in the way of more.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct LanesState {
    pub(crate) wanted: usize,
    pub(crate) open: usize,
    pub(crate) problem: Option<String>,
    /// The relay knows no lanes.
    pub(crate) plain: bool,
}

pub(super) struct Inner {
    first: Tunnel,
    wanted: usize,
    pass: Arc<dyn Pass>,
    opener: Arc<dyn Opener>,
    way: watch::Sender<Way>,
    lanes: watch::Sender<LanesState>,
    state: watch::Sender<State>,
    used: Mutex<Used>,
    /// The relay knows no ends of connections, as those from before `bastion-conn/2`.
    no_ends: AtomicBool,
    /// Sessions that the agent has workers for, besides the first: as many as are wanted until it is known better.
    places: Semaphore,
    /// Somebody tries again whether the agent answers one more.
    tries: AtomicBool,
    /// It did.
    answered: Notify,
    /// Of the plain way, while the first session is held up.
    spares: Spares,
    /// Of links that are over.
    past: Mutex<link::Stats>,
    stop: CancellationToken,
    /// The link is being ended: none follows it.
    closes: AtomicBool,
    tracker: TaskTracker,
}

/// Tunnels, which keep their sessions alive only while clients are there.
struct Used {
    tunnels: Vec<Tunnel>,
    clients: usize,
}

impl Used {
    fn keep_alive(&self) {
        self.tunnels.iter().for_each(|tunnel| tunnel.keep_alive(self.clients > 0));
    }
}

/// See the module. Cheap to clone; ends with [`Lanes::close`].
#[derive(Clone)]
pub(crate) struct Lanes {
    inner: Arc<Inner>,
}

/// One client; while there is one, the sessions are kept alive.
pub(super) struct Present<'a>(&'a Inner);

impl Drop for Present<'_> {
    fn drop(&mut self) {
        let mut used = self.0.used();
        used.clients = used.clients.saturating_sub(1);
        used.keep_alive();
    }
}

impl Lanes {
    /// Begins a link of `wanted` lanes over the first tunnel and sessions of `opener`, with 0 the plain way; lanes come
    /// in the background. It ends with [`Lanes::close`] only.
    pub(crate) fn begin(first: Tunnel, wanted: usize, pass: Arc<dyn Pass>, opener: Arc<dyn Opener>) -> Self {
        let state = first.state().borrow().clone();
        let inner = Arc::new(Inner {
            used: Mutex::new(Used { tunnels: vec![first.clone()], clients: 0 }),
            first,
            wanted,
            pass,
            opener,
            way: watch::Sender::new(Way::None),
            lanes: watch::Sender::new(LanesState { wanted, ..LanesState::default() }),
            state: watch::Sender::new(state),
            no_ends: AtomicBool::new(false),
            places: Semaphore::new(wanted.saturating_sub(1)),
            tries: AtomicBool::new(false),
            answered: Notify::new(),
            spares: Spares::default(),
            past: Mutex::default(),
            stop: CancellationToken::new(),
            closes: AtomicBool::new(false),
            tracker: TaskTracker::new(),
        });
        inner.used().keep_alive();
        let stop = inner.stop.clone();
        if wanted == 0 {
            inner.lanes.send_modify(|lanes| lanes.plain = true);
            inner.way.send_replace(Way::Plain);
        } else {
            inner.tracker.spawn(stop.clone().run_until_cancelled_owned(Arc::clone(&inner).run_links()));
        }
        inner.tracker.spawn(stop.clone().run_until_cancelled_owned(Arc::clone(&inner).follow()));
        let alarm = Arc::clone(&inner);
        inner.tracker.spawn(stop.run_until_cancelled_owned(async move { alarm.alarm(&alarm.first).await }));
        for number in 1..wanted {
            inner.tracker.spawn(Arc::clone(&inner).run_lane(number));
        }
        Self { inner }
    }

    /// Waits until it is known whether the relay has lanes, but no longer than `patience`: clients wait for it too, as
    /// they do after an outage.
    pub(crate) async fn known(&self, patience: Duration) {
        let mut way = self.inner.way.subscribe();
        let _in_time = tokio::time::timeout(patience, way.wait_for(|way| !matches!(way, Way::None))).await;
    }

    /// The link for a new client; `None`: the plain way. A lost one is waited for, so that a client hears of an outage
    /// instead of hanging in it.
    ///
    /// # Errors
    /// [`ConnectError`] when it is not back in time, or never comes back.
    pub(super) async fn ready(&self) -> Result<Option<Link>, ConnectError> {
        let inner = &self.inner;
        if let Some(way) = inner.moving() {
            return Ok(way);
        }
        let asleep = matches!(*inner.first.state().borrow(), State::Asleep { .. } | State::Waking { .. });
        let began = Instant::now();
        inner.first.up(if asleep { WAKE_PATIENCE } else { *OUTAGE_PATIENCE }).await?;
        let patience = if asleep { *OUTAGE_PATIENCE } else { OUTAGE_PATIENCE.saturating_sub(began.elapsed()) };
        let (mut first, mut way) = (inner.first.state(), inner.way.subscribe());
        let back = async {
            loop {
                let mut lanes = way.borrow_and_update().lanes();
                if let Some(way) = inner.moving() {
                    return Some(way);
                }
                tokio::select! {
                    changed = first.changed() => if changed.is_err() {
                        return None;
                    },
                    _ = way.changed() => {}
                    () = moved(&mut lanes) => {}
                }
            }
        };
        match tokio::time::timeout(patience, back).await {
            Ok(Some(way)) => Ok(way),
            Ok(None) | Err(_) => Err(inner.why_not()),
        }
    }

    /// The number of the link that there is now, which the relay knows this launcher by.
    pub(crate) fn link(&self) -> Option<SecretString> {
        match &*self.inner.way.borrow() {
            Way::Link(current) => Some(current.secret.clone().into()),
            Way::None | Way::Plain => None,
        }
    }

    pub(super) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    pub(super) fn pass(&self) -> &dyn Pass {
        self.inner.pass.as_ref()
    }

    /// Whether the relay may know how to tell ends on the plain way.
    pub(super) fn tells_ends(&self) -> bool {
        !self.inner.no_ends.load(Ordering::Relaxed)
    }

    pub(super) fn tells_no_ends(&self) {
        self.inner.no_ends.store(true, Ordering::Relaxed);
    }

    /// Counts a client for as long as the result lives.
    pub(super) fn present(&self) -> Present<'_> {
        let mut used = self.inner.used();
        used.clients = used.clients.saturating_add(1);
        used.keep_alive();
        Present(&self.inner)
    }

    pub(crate) fn clients(&self) -> usize {
        self.inner.used().clients
    }

    /// How many sessions are kept alive, and how many are not.
    #[cfg(test)]
    pub(super) fn kept_alive(&self) -> (usize, usize) {
        let used = self.inner.used();
        let kept = used.tunnels.iter().filter(|tunnel| tunnel.keeps_alive()).count();
        (kept, used.tunnels.len() - kept)
    }

    /// What the lanes together are doing.
    pub(crate) fn state(&self) -> watch::Receiver<State> {
        self.inner.state.subscribe()
    }

    pub(crate) fn lanes(&self) -> watch::Receiver<LanesState> {
        self.inner.lanes.subscribe()
    }

    /// Of the first tunnel, with what the link carried in it and in the other lanes.
    pub(crate) fn stats(&self) -> (Stats, link::Stats) {
        let tunnels = self.inner.used().tunnels.iter().map(Tunnel::stats).collect::<Vec<_>>();
        let mut stats = self.inner.first.stats();
        stats.reconnects = tunnels.iter().map(|stats| stats.reconnects).sum();
        let past = *self.inner.past.lock();
        let now = match &*self.inner.way.borrow() {
            Way::Link(current) => current.link.stats(),
            Way::None | Way::Plain => link::Stats::default(),
        };
        (stats, past.plus(now))
    }

    /// Ends the link and the sessions of further lanes. The first tunnel is its owner's.
    pub(crate) async fn close(&self) {
        self.inner.closes.store(true, Ordering::Relaxed);
        let way = self.inner.way.borrow().clone();
        if let Way::Link(current) = way {
            let _in_time = tokio::time::timeout(LAST_WORDS, current.link.drained()).await;
            current.link.close();
            // A relay that does not hear of the end keeps the link and its connections for whoever may come back.
            let _told = tokio::time::timeout(GOODBYE, current.link.emptied()).await;
        }
        self.inner.stop.cancel();
        self.inner.tracker.close();
        self.inner.tracker.wait().await;
    }
}

impl Inner {
    pub(super) fn first(&self) -> &Tunnel {
        &self.first
    }

    pub(super) fn opener(&self) -> &dyn Opener {
        self.opener.as_ref()
    }

    pub(super) fn spares(&self) -> &Spares {
        &self.spares
    }

    /// Says what stands in the way, or with nothing that it no longer does.
    pub(super) fn tell(&self, problem: &str) {
        let problem = (!problem.is_empty()).then(|| problem.to_owned());
        self.lanes.send_if_modified(|lanes| {
            let news = lanes.problem != problem;
            lanes.problem = problem;
            news
        });
    }

    /// From now on it is kept alive while clients are there.
    pub(super) fn add_tunnel(&self, tunnel: &Tunnel) {
        let mut used = self.used();
        used.tunnels.push(tunnel.clone());
        used.keep_alive();
    }

    pub(super) fn remove_tunnel(&self, tunnel: &Tunnel) {
        self.used().tunnels.retain(|known| !known.is(tunnel));
    }

    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn(task);
    }

    /// Waits for `until`, or for the end of everything.
    pub(super) async fn stopped(&self, until: impl Future<Output = ()>) -> Option<()> {
        self.stop.run_until_cancelled(until).await
    }

    fn used(&self) -> MutexGuard<'_, Used> {
        self.used.lock()
    }

    /// What a client may use now; the outer `None`: nothing.
    fn moving(&self) -> Option<Option<Link>> {
        match &*self.way.borrow() {
            Way::Link(current) if current.link.lanes().borrow().moving > 0 => Some(Some(current.link.clone())),
            Way::Plain if *self.first.state().borrow() == State::Connected => Some(None),
            _ => None,
        }
    }

    /// Why a client cannot be carried now.
    fn why_not(&self) -> ConnectError {
        match &*self.state.borrow() {
            State::Connected => {
                let problem = self.lanes.borrow().problem.clone();
                ConnectError::NoLane(problem.unwrap_or_else(|| "the relay does not answer".to_owned()))
            }
            state => ConnectError::of(state),
        }
    }
}

/// Waits for news of a link's lanes; without a link, for ever.
async fn moved(lanes: &mut Option<watch::Receiver<link::Lanes>>) {
    match lanes {
        // Whoever waits has a link whose sender lives.
        Some(lanes) => drop(lanes.changed().await),
        None => std::future::pending().await,
    }
}
