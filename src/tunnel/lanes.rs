//! Several sessions, one link: what clients are carried over.
//!
//! The first lane runs in the tunnel that is there anyway; it begins the link, and while it cannot be had, nothing can.
//! Each further lane has a session of its own. One that is lost is opened again in the background. A relay that knows no
//! lanes is served the plain way: every client has a stream of the first tunnel.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use secrecy::SecretString;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::link::{self, Link};
use crate::tunnel::driver::jittered;
use crate::tunnel::spare::Spares;
use crate::tunnel::upgrade::{self, UpgradeError};
use crate::tunnel::{BoxFuture, ConnectError, ControlError, OpenError, Pass, State, Stats, Tunnel};
use crate::types::{HEADER_LANE, HEADER_LINK, UPGRADE_LANE, shortened};

/// First wait before a lane is opened again, and the longest.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// A lane that lasted so long was a good one.
const GOOD: Duration = Duration::from_secs(30);
/// A session whose socket has been there for so long without a break and that brings nothing has an agent that hangs.
const OPEN: Duration = Duration::from_secs(20);
/// After a session that the agent did not answer, so long until another is tried in its place: sessions that nobody answers
/// are not to be started again and again.
const NO_WORKER: Duration = Duration::from_secs(3600);
/// But one is soon: the agent may only have been busy. If that one is answered, the others are tried as well.
const NO_WORKER_FIRST: Duration = Duration::from_secs(5);
/// After the end of a link, what still comes for its stream.
const LINGER: Duration = Duration::from_secs(1);
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
        let past = *self.inner.past.lock().unwrap_or_else(PoisonError::into_inner);
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
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// One link after the other; never returns.
    async fn run_links(self: Arc<Self>) {
        let mut wait = BACKOFF.0;
        loop {
            let mut state = self.first.state();
            if state.wait_for(|state| *state == State::Connected).await.is_err() {
                return std::future::pending().await;
            }
            // The relay would take another link for another user.
            if self.closes.load(Ordering::Relaxed) {
                return std::future::pending().await;
            }
            let secret = uuid::Uuid::new_v4().simple().to_string();
            let pipe = match self.upgrade(&self.first, &secret, "new").await {
                Ok(pipe) => pipe,
                Err(UpgradeError::Refused { status: Some(426 | 404 | 400), .. }) => {
                    self.way.send_replace(Way::Plain);
                    self.lanes.send_modify(|lanes| lanes.plain = true);
                    // A new session may lead to a newer relay.
                    let _gone = state.wait_for(|state| *state != State::Connected).await;
                    continue;
                }
                Err(error) => {
                    tracing::debug!(%error, "cannot begin a link");
                    self.lanes.send_modify(|lanes| lanes.problem = Some(error.to_string()));
                    wait = pause(wait).await;
                    continue;
                }
            };
            wait = BACKOFF.0;
            let current = Arc::new(Current { link: Link::opener(), secret });
            self.lanes.send_modify(|lanes| (lanes.plain, lanes.problem) = (false, None));
            self.way.send_replace(Way::Link(Arc::clone(&current)));
            let until_over = async {
                current.link.keep_time().await;
                // The lane here has to tell the relay too.
                let _told = tokio::time::timeout(GOODBYE, current.link.emptied()).await;
            };
            tokio::select! {
                () = until_over => {}
                () = self.first_lane(&current, pipe) => {}
                cause = self.task_is_gone(&current.link) => current.link.give_up(&cause),
            }
            // Whoever ended it: no stream of it may go on.
            current.link.close();
            self.way.send_replace(Way::None);
            let mut past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
            *past = past.plus(link::Stats { streams: 0, ..current.link.stats() });
        }
    }

    /// Waits until there is no task that the link could go on with, and no lane that still brings its last bytes; says
    /// what became of it.
    async fn task_is_gone(&self, link: &Link) -> String {
        let (mut state, mut lanes) = (self.first.state(), link.lanes());
        // Its end stays to be seen when the tunnel is gone.
        let gone =
            state.wait_for(|state| matches!(state, State::Asleep { .. } | State::Ended { .. } | State::Waking { .. }));
        let cause = match gone.await.as_deref() {
            Ok(State::Asleep { cause } | State::Ended { cause }) => cause.clone(),
            _ => "its task has ended".to_owned(),
        };
        let _last = lanes.wait_for(|lanes| lanes.open == 0).await;
        cause
    }

    /// The lane in the first tunnel, joined again whenever it is lost; returns when the link is over, or the relay has
    /// lost it.
    async fn first_lane(&self, current: &Current, pipe: impl AsyncRead + AsyncWrite + Unpin) {
        let is_open = || self.first.is_up_for(OPEN);
        let mut ended = current.link.carry_while(pipe, is_open).await;
        let mut wait = BACKOFF.0;
        while current.link.over().is_none() {
            tracing::debug!(?ended, "the first lane is gone");
            let mut state = self.first.state();
            if state.wait_for(|state| *state == State::Connected).await.is_err() {
                // The link may live on in other lanes.
                return std::future::pending().await;
            }
            match self.upgrade(&self.first, &current.secret, "join").await {
                Ok(pipe) => {
                    wait = BACKOFF.0;
                    ended = current.link.carry_while(pipe, is_open).await;
                }
                Err(UpgradeError::Refused { status: Some(410), .. }) => return,
                Err(error) => {
                    ended = Err(io::Error::other(error.to_string()));
                    wait = pause(wait).await;
                }
            }
        }
    }

    /// A further lane, until the end.
    async fn run_lane(self: Arc<Self>, number: usize) {
        let mut wait = BACKOFF.0;
        let mut tries = false;
        while !self.stop.is_cancelled() {
            let Some(Ok(place)) = self.stop.run_until_cancelled(self.places.acquire()).await else { return };
            let mut way = self.way.subscribe();
            let current = self.stop.run_until_cancelled(way.wait_for(|way| matches!(way, Way::Link(_)))).await;
            let Some(Ok(Way::Link(current))) = current.map(|way| way.map(|way| way.clone())) else { return };
            // A session that is about to begin must be ended too.
            let too_late = async {
                self.stop.cancelled().await;
                tokio::time::sleep(LAST_WORDS).await;
            };
            let opened = tokio::select! {
                opened = self.opener.open() => opened,
                () = too_late => return,
            };
            let (tunnel, session_id) = match opened {
                Ok(opened) => opened,
                Err(LaneError::NoHandshake(seconds)) => {
                    place.forget();
                    let waited = self.stop.run_until_cancelled(self.no_worker(&current, seconds)).await;
                    let Some(soon) = waited else { return };
                    tries = soon;
                    continue;
                }
                Err(error) => {
                    let wanted = self.wanted;
                    let problem = format!("lane {} of {wanted} cannot be opened: {error}", number.saturating_add(1));
                    self.lanes.send_modify(|lanes| lanes.problem = Some(problem));
                    if self.stop.run_until_cancelled(pause(wait)).await.is_none() {
                        return;
                    }
                    wait = wait.saturating_mul(2).min(BACKOFF.1);
                    continue;
                }
            };
            if std::mem::take(&mut tries) {
                self.tries.store(false, Ordering::Relaxed);
                self.answered.notify_waiters();
            }
            let began = Instant::now();
            self.add_tunnel(&tunnel);
            let carry = async {
                tokio::select! {
                    carried = self.join(&tunnel, &current) => carried,
                    never = self.alarm(&tunnel) => match never {},
                }
            };
            let carried = self.stop.run_until_cancelled(carry).await;
            tracing::debug!(number, ?carried, "a lane is gone");
            self.remove_tunnel(&tunnel);
            tunnel.close().await;
            self.opener.end(&session_id).await;
            wait = if began.elapsed() > GOOD { BACKOFF.0 } else { wait.saturating_mul(2).min(BACKOFF.1) };
            if self.stop.run_until_cancelled(tokio::time::sleep(jittered(wait))).await.is_none() {
                return;
            }
        }
    }

    /// The agent has no worker for another session. Waits until one may be tried again: another link may lead to another
    /// task. True: this is the one that tries soon.
    async fn no_worker(&self, current: &Arc<Current>, seconds: u64) -> bool {
        let open = self.used().tunnels.len();
        self.tell(&format!(
            "the agent in the task answers {open} sessions of {} and no more: the others had no handshake within \
             {seconds} s, as with a SessionWorkersLimit of {open}",
            self.wanted
        ));
        let soon = !self.tries.swap(true, Ordering::Relaxed);
        let mut way = self.way.subscribe();
        let other = way.wait_for(|way| matches!(way, Way::Link(link) if !Arc::ptr_eq(link, current)));
        tokio::select! {
            _ = other => self.tries.store(false, Ordering::Relaxed),
            () = self.answered.notified() => {}
            () = tokio::time::sleep(if soon { NO_WORKER_FIRST } else { NO_WORKER }) => {}
        }
        self.places.add_permits(1);
        soon
    }

    /// Whenever this session is lost, has all others asked whether they are still there: most likely the network is another
    /// one, and those that have nothing under way would notice late. Never returns.
    async fn alarm(&self, tunnel: &Tunnel) -> Infallible {
        let mut state = tunnel.state();
        let lost = |state: &State| matches!(state, State::Reconnecting { .. });
        while state.wait_for(lost).await.is_ok() {
            self.used().tunnels.iter().filter(|other| !other.is(tunnel)).for_each(Tunnel::doubt);
            if state.wait_for(|state| !lost(state)).await.is_err() {
                break;
            }
        }
        std::future::pending().await
    }

    async fn join(&self, tunnel: &Tunnel, current: &Current) -> Result<(), UpgradeError> {
        let pipe = self.upgrade(tunnel, &current.secret, "join").await?;
        Ok(current.link.carry_while(pipe, || tunnel.is_up_for(OPEN)).await?)
    }

    /// A lane over a tunnel, with a new token if the old one is not good any more.
    async fn upgrade(
        &self,
        tunnel: &Tunnel,
        secret: &str,
        wish: &str,
    ) -> Result<impl AsyncRead + AsyncWrite + Unpin + use<>, UpgradeError> {
        let token = self.pass.token();
        match upgrade(tunnel, token.as_ref(), secret, wish).await {
            Err(error @ UpgradeError::NoAnswer(_)) => {
                if tunnel.is_up_for(OPEN) {
                    tunnel.give_up(&error.to_string());
                }
                Err(error)
            }
            Err(UpgradeError::Refused { status: Some(401), sentence }) => {
                let renewed = self.pass.renew(token.as_ref()).await;
                renewed.map_err(|error| UpgradeError::Refused {
                    status: None,
                    sentence: format!("{sentence}; you could not prove again who you are: {error}"),
                })?;
                upgrade(tunnel, self.pass.token().as_ref(), secret, wish).await
            }
            done => done,
        }
    }

    /// Keeps the common state and the number of lanes; never returns.
    async fn follow(self: Arc<Self>) {
        let (mut first, mut way) = (self.first.state(), self.way.subscribe());
        let mut first_is_over = false;
        let mut stuck_since = None;
        loop {
            let mut lanes = way.borrow_and_update().lanes();
            let now = lanes.as_mut().map(|lanes| *lanes.borrow_and_update()).unwrap_or_default();
            self.lanes.send_if_modified(|known| {
                if now.open == known.wanted && !known.plain {
                    known.problem = None;
                }
                std::mem::replace(&mut known.open, now.open) != now.open
            });
            let mut state = first.borrow_and_update().clone();
            // A lane that carries nothing just now seems to move even if its tunnel is lost.
            let linked = self.used().tunnels.iter().any(|tunnel| *tunnel.state().borrow() == State::Connected);
            if now.moving > 0 && linked {
                stuck_since = None;
                state = State::Connected;
            } else if state == State::Connected && now.open > 0 {
                let since = *stuck_since.get_or_insert_with(Instant::now);
                state = State::Reconnecting { cause: "no lane moves".to_owned(), since };
            }
            self.state.send_if_modified(|known| {
                let news = *known != state;
                *known = state;
                news
            });
            tokio::select! {
                changed = first.changed(), if !first_is_over => first_is_over = changed.is_err(),
                _ = way.changed() => {}
                () = moved(&mut lanes) => {}
            }
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

async fn upgrade(
    tunnel: &Tunnel,
    token: Option<&SecretString>,
    secret: &str,
    wish: &str,
) -> Result<impl AsyncRead + AsyncWrite + Unpin + use<>, UpgradeError> {
    let refused = |sentence: String| UpgradeError::Refused { status: None, sentence };
    let stream = tunnel.connect(LINGER).map_err(|error| refused(error.to_string()))?;
    let (mut read, mut write) = tokio::io::split(stream);
    let request = upgrade::request(UPGRADE_LANE, token, &[(HEADER_LINK, secret), (HEADER_LANE, wish)]);
    write.write_all(&request).await?;
    let mut rest = BytesMut::new();
    upgrade::read_answer(&mut read, &mut rest).await?;
    Ok(tokio::io::join(io::Cursor::new(rest).chain(read), write))
}

/// Waits about so long, and says how long the next wait is.
async fn pause(wait: Duration) -> Duration {
    tokio::time::sleep(jittered(wait)).await;
    wait.saturating_mul(2).min(BACKOFF.1)
}
