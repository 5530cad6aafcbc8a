//! The message gateway: where the client's data channel and the agent's meet, and where the network goes wrong.
//!
//! # What is known and what is chosen
//!
//! AWS does not publish its gateway. Known from its two peers (`session-manager-plugin`, `amazon-ssm-agent`): the
//! upgrade is signed, the first frame is OpenDataChannel with the token, a refused token shows only as a closed
//! socket, the socket is closed with 1000 "Bye" about hourly, ResumeSession moves the session to another cell, and
//! `channel_closed` ends it. Chosen here: a stale cell is refused with 400, an unknown session with 404, a newer
//! client replaces an older one, frames of an absent side are held or lost as [`Knobs::when_down`] says.
//!
//! Faults happen on the client's way, once per direction, in `link`; latency does not touch the upgrade nor pings.

mod client;
mod faults;
mod frames;
mod knobs;
mod leg;
mod link;
mod rng;
mod session;

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::http::request::Parts;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::agent;

pub use faults::Faults;
pub use knobs::Change;
pub use knobs::Direction;
pub use knobs::Event;
pub use knobs::Kind;
pub use knobs::Knobs;
pub use knobs::Odds;
pub use knobs::Path;
pub use knobs::Phase;
pub use knobs::WhenDown;
pub use link::Counts;
pub use session::Snapshot;

pub(crate) use frames::message;
pub(crate) use leg::Incoming;
pub(crate) use leg::Leg;
pub(crate) use leg::Reader;
use session::Session;

/// Sessions kept in memory, those that are over included.
const MAX_SESSIONS: usize = 1000;

/// What StartSession asks for.
#[derive(Clone, Debug)]
pub struct SessionSpec {
    /// Part of a URL path; may hold `@ . + = ,`.
    pub session_id: String,
    /// `ecs:<cluster>_<task id>_<runtime id>`.
    pub target: String,
    /// Where `localhost` of the task is: all tasks of the sandbox share one kernel.
    pub agent_host: IpAddr,
    pub port: u16,
}

/// What StartSession and ResumeSession answer; the caller puts scheme and host in front of the path.
#[derive(Clone, Eq, PartialEq)]
pub struct Started {
    pub session_id: String,
    pub token: String,
    /// `/v1/data-channel/<id>?role=publish_subscribe&cell-number=…`, the cell percent-encoded.
    pub stream_path: String,
}

impl fmt::Debug for Started {
    /// Token and path let their holder into the session.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Started").field("session_id", &self.session_id).finish_non_exhaustive()
    }
}

/// Checks the signature of the upgrade; the error is logged and answered with 403.
pub type VerifyUpgrade = Arc<dyn Fn(&Parts) -> Result<(), String> + Send + Sync>;

/// When the agent hears of a session. AWS's choice is not known.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Trigger {
    /// When the client has opened its channel.
    ClientOpens,
    /// At StartSession; its first frames wait for the client.
    #[default]
    Start,
}

#[derive(Clone, Debug)]
pub struct Options {
    /// Of all chance: the same seed and the same frames give the same faults.
    pub seed: u64,
    /// Knobs at the start.
    pub knobs: Knobs,
    pub trigger: Trigger,
    /// No data for so long ends a session. AWS: 20 minutes unless set otherwise.
    pub idle_timeout: Duration,
    /// Ends a session however busy it is.
    pub max_duration: Option<Duration>,
    /// From the agent's end to `channel_closed` at the client.
    pub close_delay: Duration,
    pub agent: agent::Options,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            seed: 1,
            knobs: Knobs::default(),
            trigger: Trigger::default(),
            idle_timeout: Duration::from_secs(20 * 60),
            max_duration: None,
            close_delay: Duration::from_millis(200),
            agent: agent::Options::default(),
        }
    }
}

/// Cheap to clone; all clones are one gateway.
#[derive(Clone)]
pub struct Gateway(Arc<Inner>);

pub(crate) struct Inner {
    options: Options,
    verify: VerifyUpgrade,
    knobs: Mutex<Arc<Knobs>>,
    sessions: Mutex<HashMap<String, Arc<Session>>>,
    started: AtomicU64,
    workers: Workers,
    tracker: TaskTracker,
    cancel: CancellationToken,
}

impl Inner {
    fn map(&self) -> MutexGuard<'_, HashMap<String, Arc<Session>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn session(&self, id: &str) -> Option<Arc<Session>> {
        self.map().get(id).cloned()
    }

    fn sessions(&self) -> Vec<Arc<Session>> {
        self.map().values().filter(|session| !session.over.is_cancelled()).cloned().collect()
    }
}

impl Gateway {
    pub fn new(options: Options, verify: VerifyUpgrade) -> Self {
        Self(Arc::new(Inner {
            knobs: Mutex::new(Arc::new(options.knobs.clone())),
            options,
            verify,
            sessions: Mutex::default(),
            started: AtomicU64::new(0),
            workers: Workers::default(),
            tracker: TaskTracker::new(),
            cancel: CancellationToken::new(),
        }))
    }

    /// Serves `/v1/data-channel/{id}`. Whoever listens should set `TCP_NODELAY` on what it accepts.
    pub fn router(&self) -> Router {
        client::router(Arc::clone(&self.0))
    }

    /// Makes a session and, unless [`Trigger::ClientOpens`], starts its agent. Needs a running Tokio runtime.
    /// A session of the same id is ended and replaced.
    pub fn start_session(&self, spec: SessionSpec) -> Started {
        let number = self.0.started.fetch_add(1, Ordering::Relaxed);
        let knobs = Arc::clone(&self.0.knobs.lock().unwrap_or_else(PoisonError::into_inner));
        let session = Arc::new(Session::new(spec, &[self.0.options.seed, number], knobs));
        let grant = session.grant();
        let old = {
            let mut map = self.0.map();
            if map.len() >= MAX_SESSIONS {
                map.retain(|_, session| !session.over.is_cancelled());
            }
            map.insert(grant.session_id.clone(), Arc::clone(&session))
        };
        if let Some(old) = old {
            old.end("");
        }
        let (options, cancel) = (self.0.options.clone(), self.0.cancel.clone());
        let inner = Arc::clone(&self.0);
        self.0.tracker.spawn(async move {
            tokio::select! {
                () = live(&session, options, &inner.workers) => {}
                () = cancel.cancelled() => session.end(""),
            }
        });
        grant
    }

    /// A new token and a new URL; the old ones fail from now on. `None`: no such session, or it is over.
    pub fn resume_session(&self, id: &str) -> Option<Started> {
        self.0.session(id).filter(|session| !session.over.is_cancelled()).map(|session| session.renew())
    }

    /// `channel_closed` to both sides. False if there is no such session.
    pub fn terminate_session(&self, id: &str) -> bool {
        self.0.session(id).is_some_and(|session| {
            session.end("");
            true
        })
    }

    /// Ends all sessions to a target: its task has stopped.
    pub fn end_target(&self, target: &str) {
        for session in self.0.sessions() {
            if session.spec.target == target {
                session.end(&format!("the target {target} is no longer connected"));
            }
        }
    }

    /// Session workers of the agent: now, and the most there were at once.
    pub fn workers(&self) -> (usize, usize) {
        (self.0.workers.now.load(Ordering::Relaxed), self.0.workers.most.load(Ordering::Relaxed))
    }

    pub fn faults(&self) -> Faults {
        Faults(Arc::clone(&self.0))
    }

    pub fn snapshot(&self, id: &str) -> Option<Snapshot> {
        self.0.session(id).map(|session| session.snapshot())
    }

    /// Ids of the sessions that are not over.
    pub fn session_ids(&self) -> Vec<String> {
        self.0.sessions().iter().map(|session| session.spec.session_id.clone()).collect()
    }

    /// Ends all sessions, closes all sockets and waits until nothing runs.
    pub async fn shutdown(&self) {
        self.0.cancel.cancel();
        self.0.tracker.close();
        self.0.tracker.wait().await;
    }
}

/// Megabytes that a session worker of the real agent takes.
pub const WORKER_MB: usize = 28;

/// The agent's workers, one a session.
#[derive(Default)]
struct Workers {
    now: AtomicUsize,
    most: AtomicUsize,
}

impl Workers {
    /// `None`: there are `limit` already.
    fn take(&self, limit: Option<usize>) -> Option<Worker<'_>> {
        let more = |now: usize| limit.is_none_or(|limit| now < limit).then_some(now + 1);
        let before = self.now.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        self.most.fetch_max(before + 1, Ordering::Relaxed);
        Some(Worker(self))
    }
}

struct Worker<'a>(&'a Workers);

impl Drop for Worker<'_> {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The life of a session: its agent, its idle limit, its end.
async fn live(session: &Arc<Session>, options: Options, workers: &Workers) {
    let agent = async {
        if options.trigger == Trigger::ClientOpens {
            session.opened.notified().await;
        }
        // Without a worker nobody ever greets, and nobody says so.
        let Some(_worker) = workers.take(options.agent.workers) else { return std::future::pending().await };
        let (leg, reader) = Leg::new(Arc::clone(session));
        let output = agent::run(&session.spec, &options.agent, leg, reader).await;
        tokio::time::sleep(options.close_delay).await;
        output
    };
    let idle = async {
        loop {
            let until = session.idle_until(options.idle_timeout);
            if tokio::time::Instant::now() >= until {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    };
    let oldest = async {
        match options.max_duration {
            Some(limit) => tokio::time::sleep(limit).await,
            None => std::future::pending().await,
        }
    };
    let output = tokio::select! {
        output = agent => output,
        () = idle => format!("session {} timed out: no data for {:?}", session.spec.session_id, options.idle_timeout),
        () = oldest => format!("session {} has reached its maximum duration", session.spec.session_id),
        () = cut_agent_again_and_again(session) => String::new(),
        // The agent's own end is not awaited: `channel_closed` cancels it at once.
        () = session.over.cancelled() => return,
    };
    session.end(&output);
}

/// Never returns.
async fn cut_agent_again_and_again(session: &Session) {
    let mut knobs = session.knobs.subscribe();
    loop {
        let every = knobs.borrow_and_update().cut_agent_every_ms;
        let changed = async { drop(knobs.changed().await) };
        match every {
            Some(every) => tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(every)) => session.cut_agent(),
                () = changed => {}
            },
            None => changed.await,
        }
    }
}
