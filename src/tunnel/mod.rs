//! The laptop's path into the task: Session Manager port sessions, and client connections over them.
//!
//! A [`Tunnel`] is one session at a time with streams in it; `lanes` joins several to one link; `client` carries one local
//! client over that. `driver` owns the websocket and drives [`bastion_wire::port::PortSession`]; `socket` connects and
//! signs; `stream` is one byte stream in a session; `listener` is a port on the laptop.

mod backoff;
pub(crate) mod client;
mod driver;
pub(crate) mod lanes;
pub(crate) mod listener;
mod outage;
pub(crate) mod peer;
mod shared;
mod socket;
mod stream;
mod upgrade;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, SystemTime};

use bastion_wire::ssm::pace::PaceConfig;
use secrecy::SecretString;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::network::Network;
use crate::tunnel::shared::Shared;
pub(crate) use crate::tunnel::stream::Stream;
use crate::types::SessionGrant;

pub(crate) type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What the tunnel needs from the control plane; the command line implements it over the AWS calls.
pub(crate) trait Control: Send + Sync + 'static {
    /// How the message gateway is reached.
    fn network(&self) -> &Network {
        Network::direct()
    }

    /// Headers for the websocket upgrade of `url`, signed anew with fresh credentials as of `now`.
    fn sign_upgrade<'a>(
        &'a self,
        url: &'a str,
        now: SystemTime,
    ) -> BoxFuture<'a, Result<Vec<(String, SecretString)>, ControlError>>;

    /// A new session to the relay in place of the old one, of which nothing must live on. `wanted`: a client waits for
    /// it.
    fn start(&self, wanted: bool) -> BoxFuture<'_, Result<SessionGrant, StartError>>;

    /// A new grant for the session; `None`: the session is over for good.
    fn resume<'a>(&'a self, session_id: &'a str) -> BoxFuture<'a, Result<Option<SessionGrant>, ControlError>>;
}

/// What opens lanes at the relay; the command line implements it.
pub(crate) trait Pass: Send + Sync + 'static {
    /// The token to show, if there is one.
    fn token(&self) -> Option<SecretString>;

    /// Gets a new token in place of `refused`, which the relay no longer knows.
    fn renew<'a>(&'a self, refused: Option<&'a SecretString>) -> BoxFuture<'a, Result<(), ControlError>>;
}

/// A call of the control plane that failed, in one sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct ControlError(pub(crate) String);

/// Why there is no new session.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StartError {
    /// Nothing is there, but it can be brought back for a client that wants it.
    #[error("{0}")]
    Asleep(String),
    /// Nothing is there, and nothing will be.
    #[error("{0}")]
    Gone(String),
    /// It may be there later.
    #[error(transparent)]
    Later(#[from] ControlError),
}

/// Times and sizes of a tunnel.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) pace: PaceConfig,
    /// Payload bytes of the largest message that the gateway may still take, as far as is known: all tunnels with clones of
    /// one configuration learn it together.
    pub(crate) largest: Arc<AtomicUsize>,
    /// From a session's start to the agent's HandshakeComplete.
    pub(crate) open_timeout: Duration,
    /// A websocket ping goes out so often; with `pong_timeout` it bounds how long a black hole goes unnoticed.
    pub(crate) ping_every: Duration,
    /// Nothing heard for so long after a ping: the link is dead.
    pub(crate) pong_timeout: Duration,
    /// Something waits for its acknowledgement and nothing was heard for so long: a ping goes out at once.
    pub(crate) quiet: Duration,
    /// How long a lost link is tried again before the session, and with it every open stream, is given up.
    pub(crate) give_up: Duration,
    /// How often the wall clock is compared with the runtime's, which stands still while the laptop sleeps.
    pub(crate) pulse_every: Duration,
    /// The time of day; tests bring their own.
    pub(crate) wall_clock: fn() -> SystemTime,
    /// Bytes kept for a local reader that is slower than the tunnel.
    pub(crate) receive_bound: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            pace: PaceConfig::default(),
            largest: Arc::new(AtomicUsize::new(PaceConfig::default().max_size)),
            open_timeout: Duration::from_secs(30),
            ping_every: Duration::from_secs(20),
            pong_timeout: Duration::from_secs(10),
            quiet: Duration::from_secs(3),
            give_up: Duration::from_secs(15 * 60),
            pulse_every: Duration::from_secs(2),
            wall_clock: driver::wall_clock,
            receive_bound: 16 << 20,
        }
    }
}

/// What a tunnel is doing, for one status line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum State {
    /// Nothing is there; the next client brings it back.
    Asleep {
        cause: String,
    },
    Connected,
    Reconnecting {
        cause: String,
        /// When the link was lost.
        since: Instant,
    },
    /// For good. The text says why.
    Ended {
        cause: String,
    },
    /// A client waits for what was asleep.
    Waking {
        since: Instant,
    },
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Asleep { cause } => write!(f, "asleep until the next connection: {cause}"),
            Self::Connected => f.write_str("connected"),
            Self::Reconnecting { cause, since } => {
                write!(f, "reconnecting since {} s: {cause}", since.elapsed().as_secs())
            }
            Self::Ended { cause } => write!(f, "ended: {cause}"),
            Self::Waking { since } => write!(f, "starting a new task since {} s", since.elapsed().as_secs()),
        }
    }
}

/// Why a tunnel did not open.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("{0}")]
    Ended(String),
    #[error("interrupted")]
    Interrupted,
    #[error("the agent in the task did not open the session within {0} s")]
    Timeout(u64),
}

/// Why a stream did not open.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("the tunnel is {0}")]
    Down(State),
    #[error("the tunnel has ended: {0}")]
    Ended(String),
    #[error("no lane to the relay opens: {0}")]
    NoLane(String),
}

impl ConnectError {
    fn of(state: &State) -> Self {
        match state {
            State::Ended { cause } => Self::Ended(cause.clone()),
            state => Self::Down(state.clone()),
        }
    }
}

/// Numbers for people.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Stats {
    pub(crate) up: u64,
    pub(crate) down: u64,
    pub(crate) streams: usize,
    pub(crate) resent: u64,
    pub(crate) reconnects: u64,
    pub(crate) round_trip: Duration,
}

/// An open tunnel. Cheap to clone; it ends with [`Tunnel::close`], with its token, or when there is nothing any more to
/// open a session to. While there is, it opens a new session after the end of the old one; open streams are cut then.
#[derive(Clone)]
pub(crate) struct Tunnel {
    shared: Arc<Shared>,
    state: watch::Receiver<State>,
    tracker: TaskTracker,
}

impl Tunnel {
    /// Connects, does the handshake and returns once streams can be opened.
    ///
    /// # Errors
    /// [`OpenError`], in bounded time.
    pub(crate) async fn open(
        config: Config,
        grant: SessionGrant,
        control: Arc<dyn Control>,
        cancel: CancellationToken,
    ) -> Result<Self, OpenError> {
        let (sender, mut state) =
            watch::channel(State::Reconnecting { cause: "opening".to_owned(), since: Instant::now() });
        let (shared, open_timeout) = (Arc::new(Shared::new(&config)), config.open_timeout);
        let tracker = TaskTracker::new();
        let driver = driver::Driver::new(config, Arc::clone(&shared), control, sender, cancel.clone());
        tracker.spawn(driver.run(grant));
        tracker.close();
        let opened = async {
            let state = state.wait_for(|state| !matches!(state, State::Reconnecting { .. })).await;
            match state.as_deref() {
                Ok(State::Ended { cause }) => Err(OpenError::Ended(cause.clone())),
                Ok(_) => Ok(()),
                Err(_) => Err(OpenError::Interrupted),
            }
        };
        let result = tokio::select! {
            opened = tokio::time::timeout(open_timeout, opened) => {
                opened.unwrap_or(Err(OpenError::Timeout(open_timeout.as_secs())))
            }
            () = cancel.cancelled() => Err(OpenError::Interrupted),
        };
        if let Err(error) = result {
            shared.close();
            return Err(error);
        }
        Ok(Self { shared, state, tracker })
    }

    /// Opens a stream to the port of the session. `linger`: how long an answer may stay away after the local end has
    /// finished writing, before the stream is closed.
    ///
    /// # Errors
    /// [`ConnectError`] while there is no session, and after the end.
    pub(crate) fn connect(&self, linger: Duration) -> Result<Stream, ConnectError> {
        match self.shared.open_stream() {
            Some(id) => Ok(Stream::new(Arc::clone(&self.shared), id, linger)),
            None => Err(ConnectError::of(&self.state.borrow())),
        }
    }

    /// Waits until the link is up, so that a new client hears of an outage instead of hanging in it; wakes what is asleep.
    ///
    /// # Errors
    /// [`ConnectError`] when it is not back within `patience`, or never comes back.
    pub(crate) async fn up(&self, patience: Duration) -> Result<(), ConnectError> {
        let mut state = self.state.clone();
        if matches!(*state.borrow_and_update(), State::Connected) {
            return Ok(());
        }
        self.shared.demand.notify_one();
        let settled = state.wait_for(|state| matches!(state, State::Connected | State::Ended { .. }));
        let settled = tokio::time::timeout(patience, settled).await.ok().and_then(|settled| settled.ok());
        match settled.as_deref() {
            Some(State::Connected) => Ok(()),
            Some(state) => Err(ConnectError::of(state)),
            None => Err(ConnectError::of(&self.state.borrow())),
        }
    }

    /// The time of day, corrected by what the gateway has said of it; signatures carry it.
    pub(crate) fn wall_clock(&self) -> SystemTime {
        self.shared.lock().clock.now((self.shared.wall_clock)())
    }

    pub(crate) fn state(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    /// The link has been there for so long without a break.
    fn is_up_for(&self, time: Duration) -> bool {
        let up_since = self.shared.lock().up_since;
        *self.state.borrow() == State::Connected && up_since.is_some_and(|since| since.elapsed() >= time)
    }

    /// Something of ours, or of the agent's, has waited for so long while the link was there.
    fn is_held_up(&self, time: Duration) -> bool {
        let (now, inner) = (Instant::now(), self.shared.lock());
        let missing = inner.session.missing_since().map(|since| now.into_std().saturating_duration_since(since));
        let waits = inner.session.oldest_unacked(now.into_std()).max(missing).is_some_and(|waits| waits >= time);
        waits && *self.state.borrow() == State::Connected && inner.up_since.is_some_and(|since| now - since >= time)
    }

    /// Nobody has a stream in it.
    fn is_unused(&self) -> bool {
        self.shared.lock().streams.is_empty()
    }

    /// Gives the session up, whose agent seems to hang; another follows, if there is something to open it to.
    fn give_up(&self, cause: &str) {
        let mut inner = self.shared.lock();
        inner.end(cause);
        inner.wake_driver();
    }

    /// How many frames of the session were not taken.
    #[cfg(test)]
    fn bad_frames(&self) -> u64 {
        self.shared.lock().session.counts().bad_frames
    }

    /// Asks at once whether the link still leads anywhere; one that does not is noticed within seconds.
    fn doubt(&self) {
        let mut inner = self.shared.lock();
        inner.doubted = true;
        inner.wake_driver();
    }

    pub(crate) fn stats(&self) -> Stats {
        self.shared.stats()
    }

    /// Whether something small goes out now and then while a stream is open, so that the session is not taken for idle.
    pub(crate) fn keep_alive(&self, on: bool) {
        self.shared.lock().session.keep_alive(on);
    }

    #[cfg(test)]
    fn keeps_alive(&self) -> bool {
        self.shared.lock().session.keeps_alive()
    }

    /// Whether it is the same tunnel.
    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// Ends the session: tells the agent and waits a moment for its answer. Open streams are cut.
    pub(crate) async fn close(&self) {
        self.shared.close();
        self.tracker.wait().await;
    }
}

#[cfg(test)]
mod ends_tests;
#[cfg(test)]
mod fault_tests;
#[cfg(test)]
mod lanes_tests;
#[cfg(test)]
mod matrix_tests;
#[cfg(test)]
mod network_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod world;
