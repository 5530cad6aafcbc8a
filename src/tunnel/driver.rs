//! The one loop of a tunnel: the state machine, the websocket and the timer; and a new websocket when the old one is
//! lost.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bastion_wire::ssm::channel::Stamp;
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::sync::watch;
use tokio::time::{Instant, Sleep};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Bytes, Message};
use tokio_util::sync::CancellationToken;

use crate::tunnel::backoff::{Backoff, jittered};
use crate::tunnel::outage::{BACKOFF, Lost, Outage, STEADY};
use crate::tunnel::shared::{Inner, Shared, now};
use crate::tunnel::socket::{self, Socket, SocketError};
use crate::tunnel::{Config, Control, StartError, State};
use crate::types::SessionGrant;

/// The agent has so long to drain after it was told to end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// And streams to get out what they were given before that.
const LAST_BYTES: Duration = Duration::from_millis(500);
/// The wall clock ran so much further than the runtime's: the machine was asleep (or its clock was set).
const SLEPT: Duration = Duration::from_secs(5);
/// After a sleep the link is most likely dead, and somebody sits in front of the machine.
const PONG_AFTER_SLEEP: Duration = Duration::from_secs(3);
/// Somebody waits for what the link does not bring.
const PONG_IN_DOUBT: Duration = Duration::from_secs(4);
/// Frames of one kind in a row before the other kind has its turn.
const IN_A_ROW: usize = 64;

/// Why a session is over.
enum Over {
    /// Somebody asked for the end.
    Closed,
    Ended(String),
}

/// Why a socket was left.
enum Left {
    /// The session is over.
    Ended,
    /// Somebody asked for the end.
    Closed,
    Lost {
        cause: String,
        /// The gateway has said that a frame was too large.
        too_large: bool,
    },
}

impl Left {
    fn lost(cause: impl std::fmt::Display) -> Self {
        Self::Lost { cause: cause.to_string(), too_large: false }
    }
}

pub(super) struct Driver {
    config: Config,
    shared: Arc<Shared>,
    control: Arc<dyn Control>,
    state: watch::Sender<State>,
    cancel: CancellationToken,
    client_id: String,
}

impl Driver {
    pub(super) fn new(
        config: Config,
        shared: Arc<Shared>,
        control: Arc<dyn Control>,
        state: watch::Sender<State>,
        cancel: CancellationToken,
    ) -> Self {
        Self { config, shared, control, state, cancel, client_id: uuid::Uuid::new_v4().to_string() }
    }

    /// Runs until there is no session any more and none to come; every stream has its end then.
    pub(super) async fn run(self, grant: SessionGrant) {
        let cause = tokio::select! {
            cause = self.run_sessions(grant) => cause,
            () = self.cancel.cancelled() => "interrupted".to_owned(),
        };
        self.shared.lock().end(&cause);
        self.state.send_replace(State::Ended { cause });
    }

    /// One session after the other. What opened once is opened again for as long as there is something to open it to.
    async fn run_sessions(&self, mut grant: SessionGrant) -> String {
        let mut backoff = Backoff::new(BACKOFF);
        let mut ever_opened = false;
        loop {
            let cause = match self.run_session(grant).await {
                Over::Closed => return "closed".to_owned(),
                Over::Ended(cause) => cause,
            };
            let opened = self.shared.lock().opened;
            ever_opened |= opened;
            if !ever_opened {
                return cause;
            }
            if opened {
                backoff.reset();
            } else {
                backoff.grow();
            }
            self.shared.lock().renew(&cause, &self.config);
            let restarted = tokio::select! {
                restarted = self.restart(cause, backoff.clone()) => restarted,
                () = self.close_requested() => return "closed".to_owned(),
            };
            match restarted {
                Ok(new) => grant = new,
                Err(cause) => return cause,
            }
        }
    }

    /// A new session, tried until it is there or there is nothing to open one to.
    async fn restart(&self, mut cause: String, mut backoff: Backoff) -> Result<SessionGrant, String> {
        let mut since = Instant::now();
        let (mut wanted, mut waking) = (false, false);
        loop {
            tracing::debug!(cause, wanted, "starting a new session");
            self.state.send_replace(match waking {
                true => State::Waking { since },
                false => State::Reconnecting { cause: cause.clone(), since },
            });
            match self.control.start(wanted).await {
                Ok(grant) => return Ok(grant),
                Err(StartError::Gone(gone)) => return Err(format!("{cause}; {gone}")),
                Err(StartError::Asleep(why)) => {
                    self.state.send_replace(State::Asleep { cause: why.clone() });
                    self.shared.demand.notified().await;
                    (cause, wanted, waking) = (why, true, true);
                    since = Instant::now();
                    continue;
                }
                Err(StartError::Later(error)) => cause = error.to_string(),
            }
            tokio::select! {
                () = tokio::time::sleep(backoff.wait()) => {}
                // Somebody in front of the machine is more patient than the back-off is quick.
                () = self.shared.demand.notified() => wanted = true,
            }
            backoff.grow();
        }
    }

    async fn run_session(&self, grant: SessionGrant) -> Over {
        let session_id = grant.session_id.clone();
        let first = tokio::select! {
            first = self.first_socket(&grant) => first,
            () = self.close_requested() => return Over::Closed,
        };
        let mut socket = match first {
            Ok(socket) => socket,
            Err(error) => return Over::Ended(error.to_string()),
        };
        let open_by = Instant::now() + self.config.open_timeout;
        let mut outage = Outage::new(Instant::now());
        loop {
            let (since, before) = (Instant::now(), self.shared.lock().session.progress());
            let (cause, too_large) = match self.drive(&mut socket, open_by, outage.must_prove()).await {
                Left::Ended => return Over::Ended(self.shared.cause()),
                Left::Closed => {
                    self.say_goodbye(&mut socket).await;
                    return Over::Closed;
                }
                Left::Lost { cause, too_large } => (cause, too_large),
            };
            drop(socket);
            {
                let inner = self.shared.lock();
                let progress = inner.session.progress();
                let large = inner.session.largest_open() > self.config.pace.first_size && progress.0 == before.0;
                outage.on_lost(
                    Instant::now(),
                    Lost { lived: since.elapsed(), moved: progress != before, too_large: large.then_some(too_large) },
                );
                if outage.is_about_size() {
                    let size = inner.session.largest_open();
                    drop(inner);
                    self.config.largest.fetch_min((size >> 1).max(self.config.pace.first_size), Ordering::Relaxed);
                    return Over::Ended(format!("the gateway takes no messages of {size} bytes any more: {cause}"));
                }
            }
            let resumed = tokio::select! {
                resumed = self.resume(&session_id, cause, &mut outage) => resumed,
                () = self.close_requested() => return Over::Closed,
            };
            match resumed {
                Ok(resumed) => socket = resumed,
                Err(cause) => return Over::Ended(cause),
            }
            let mut inner = self.shared.lock();
            inner.session.handle_reconnect(now());
            // A size that was being tried when the gateway closed is tried by no session any more.
            self.config.largest.fetch_min(inner.session.size_limit(), Ordering::Relaxed);
            inner.stats.reconnects = inner.stats.reconnects.saturating_add(1);
        }
    }

    /// Somebody wants the end while there is no socket.
    async fn close_requested(&self) {
        poll_fn(|context| {
            let mut inner = self.shared.lock();
            inner.driver = Some(context.waker().clone());
            if inner.closing { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    async fn connect(&self, grant: &SessionGrant) -> Result<Socket, SocketError> {
        let clock = self.shared.lock().clock;
        let (socket, clock) =
            socket::connect(grant, &self.client_id, self.control.as_ref(), self.config.wall_clock, clock).await?;
        self.shared.lock().clock = clock;
        Ok(socket)
    }

    /// The first connect may hit a gateway that does not know the session yet.
    async fn first_socket(&self, grant: &SessionGrant) -> Result<Socket, SocketError> {
        let mut wait = BACKOFF.0;
        for _ in 0..3 {
            match self.connect(grant).await {
                Err(SocketError::Connect { .. } | SocketError::Upgrade { .. }) => tokio::time::sleep(wait).await,
                done => return done,
            }
            wait = wait.saturating_mul(4);
        }
        self.connect(grant).await
    }

    /// Tries until it works, the session is over, or it has taken too long.
    async fn resume(&self, session_id: &str, mut cause: String, outage: &mut Outage) -> Result<Socket, String> {
        loop {
            tracing::debug!(session_id, cause, "reconnecting");
            if self.shared.lock().opened {
                self.state.send_replace(State::Reconnecting { cause: cause.clone(), since: outage.began() });
            }
            if outage.began().elapsed() > self.config.give_up {
                return Err(format!("given up after {} min: {cause}", self.config.give_up.as_secs() / 60));
            }
            tokio::time::sleep(jittered(outage.next_wait())).await;
            cause = match self.control.resume(session_id).await {
                Ok(None) => return Err("Session Manager has ended the session".to_owned()),
                Ok(Some(grant)) => match self.connect(&grant).await {
                    Ok(socket) => {
                        if !outage.must_prove() {
                            self.connected();
                        }
                        return Ok(socket);
                    }
                    Err(error) => error.to_string(),
                },
                Err(error) => error.to_string(),
            };
        }
    }

    /// The socket of an opened session is there.
    fn connected(&self) {
        let mut inner = self.shared.lock();
        if inner.opened {
            inner.up_since = Some(Instant::now());
            drop(inner);
            self.state.send_if_modified(|state| std::mem::replace(state, State::Connected) != State::Connected);
        }
    }

    async fn drive(&self, socket: &mut Socket, open_by: Instant, must_prove: bool) -> Left {
        // It was of the socket before.
        self.shared.lock().doubted = false;
        let mut turn = Turn {
            driver: self,
            socket,
            open_by,
            sleep: Box::pin(tokio::time::sleep(self.config.ping_every)),
            ping_at: Instant::now() + self.config.ping_every,
            pulse: Pulse { wall: (self.config.wall_clock)(), at: Instant::now() },
            heard_at: Instant::now(),
            dead_at: None,
            needs_flush: false,
            blocked: false,
            proof: must_prove
                .then(|| Proof { by: Instant::now() + STEADY, progress: self.shared.lock().session.progress() }),
        };
        poll_fn(|context| turn.poll(context)).await
    }

    /// Tells the agent to end and lets it finish what is under way.
    async fn say_goodbye(&self, socket: &mut Socket) {
        {
            let mut inner = self.shared.lock();
            inner.end("closed");
            inner.session.terminate((Instant::now() + LAST_BYTES).into_std());
            inner.closing = false;
        }
        let drained = async {
            loop {
                let frames: Vec<Bytes> = {
                    let mut inner = self.shared.lock();
                    std::iter::from_fn(|| inner.session.poll_transmit(now(), stamp())).collect()
                };
                for frame in frames {
                    if socket.send(Message::Binary(frame)).await.is_err() {
                        return;
                    }
                }
                if self.shared.lock().session.is_drained() {
                    return;
                }
                tokio::select! {
                    message = socket.next() => match message {
                        Some(Ok(Message::Binary(frame))) => self.shared.lock().session.handle_frame(now(), frame),
                        Some(Ok(_)) => {}
                        _ => return,
                    },
                    () = tokio::time::sleep(Duration::from_millis(50)) => self.shared.lock().session.handle_timeout(now()),
                }
            }
        };
        // An agent that no longer answers is ended by TerminateSession all the same.
        let _in_time = tokio::time::timeout(CLOSE_TIMEOUT, drained).await;
        let _closed = tokio::time::timeout(Duration::from_millis(200), socket.close(None)).await;
    }
}

/// Both clocks at one moment.
struct Pulse {
    wall: SystemTime,
    at: Instant,
}

impl Pulse {
    /// Looks again; true if the machine was asleep since. The runtime's clock stands still then (CLOCK_MONOTONIC,
    /// clock_gettime(2)), so no timer would notice.
    fn slept(&mut self, wall: SystemTime, at: Instant) -> bool {
        let by_wall = wall.duration_since(self.wall).unwrap_or_default();
        let by_runtime = at.duration_since(self.at);
        *self = Self { wall, at };
        by_wall > by_runtime + SLEPT
    }
}

/// One use of one socket.
struct Turn<'a> {
    driver: &'a Driver,
    socket: &'a mut Socket,
    /// An agent that has not opened the session by then will not.
    open_by: Instant,
    sleep: Pin<Box<Sleep>>,
    ping_at: Instant,
    pulse: Pulse,
    heard_at: Instant,
    /// A ping is under way; nothing heard until then means that nobody is there.
    dead_at: Option<Instant>,
    needs_flush: bool,
    /// The socket takes nothing; it wakes us.
    blocked: bool,
    /// It follows one that did not last, and is not called a connection before it has proven itself.
    proof: Option<Proof>,
}

/// A socket proves itself by what comes through it, or by lasting.
struct Proof {
    by: Instant,
    progress: (i64, i64),
}

impl Turn<'_> {
    /// Reads, writes and fires timers until nothing moves.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Left> {
        self.driver.shared.lock().driver = Some(context.waker().clone());
        for _ in 0..IN_A_ROW {
            let read = match self.poll_read(context) {
                Ok(moved) => moved,
                Err(left) => return Poll::Ready(left),
            };
            if let Some(left) = self.over() {
                return Poll::Ready(left);
            }
            let wrote = match self.poll_write(context) {
                Ok(moved) => moved,
                Err(left) => return Poll::Ready(left),
            };
            match self.poll_timers(context) {
                Ok(fired) if fired || read || wrote => {}
                Ok(_) => return Poll::Pending,
                Err(left) => return Poll::Ready(left),
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    fn over(&self) -> Option<Left> {
        let inner = self.driver.shared.lock();
        if inner.ended.is_some() {
            return Some(Left::Ended);
        }
        inner.closing.then_some(Left::Closed)
    }

    fn poll_read(&mut self, context: &mut Context<'_>) -> Result<bool, Left> {
        let shared = &self.driver.shared;
        for turn in 0..IN_A_ROW {
            {
                let inner = shared.lock();
                if !inner.session.wants_frames() || shared.holds_back(&inner) {
                    return Ok(turn > 0);
                }
            }
            match self.socket.poll_next_unpin(context) {
                Poll::Pending => return Ok(turn > 0),
                Poll::Ready(None) => return Err(Left::lost("the gateway closed the connection")),
                Poll::Ready(Some(Err(error))) => return Err(Left::lost(error)),
                Poll::Ready(Some(Ok(message))) => {
                    self.dead_at = None;
                    self.heard_at = Instant::now();
                    match message {
                        Message::Binary(frame) => self.take(frame),
                        Message::Text(text) => self.take(Bytes::from(text)),
                        Message::Close(frame) => {
                            let too_large = frame.as_ref().is_some_and(|frame| frame.code == CloseCode::Size);
                            let reason =
                                frame.map(|frame| frame.reason.to_string()).filter(|reason| !reason.is_empty());
                            let reason = reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
                            let cause = format!("the gateway closed the connection{reason}");
                            return Err(Left::Lost { cause, too_large });
                        }
                        Message::Frame(_) | Message::Ping(_) | Message::Pong(_) => {}
                    }
                }
            }
        }
        Ok(true)
    }

    fn take(&mut self, frame: Bytes) {
        let shared = &self.driver.shared;
        let mut inner = shared.lock();
        let before = inner.opened;
        inner.session.handle_frame(now(), frame);
        shared.deliver(&mut inner);
        let opened = inner.opened && !before;
        let proven = self.proof.as_ref().is_some_and(|proof| proof.progress != inner.session.progress());
        drop(inner);
        if proven {
            self.proof = None;
        }
        if opened || proven {
            self.driver.connected();
        }
    }

    fn poll_write(&mut self, context: &mut Context<'_>) -> Result<bool, Left> {
        let lost = |error: tokio_tungstenite::tungstenite::Error| Left::lost(error);
        let mut moved = false;
        self.blocked = false;
        self.driver.shared.lock().session.limit_size(self.driver.config.largest.load(Ordering::Relaxed));
        for _ in 0..IN_A_ROW {
            match self.socket.poll_ready_unpin(context) {
                Poll::Pending => {
                    self.blocked = true;
                    break;
                }
                Poll::Ready(ready) => ready.map_err(lost)?,
            }
            let frame = {
                let mut inner = self.driver.shared.lock();
                let frame = inner.session.poll_transmit(now(), stamp());
                if frame.is_some() {
                    Inner::wake_writers(&mut inner);
                }
                frame
            };
            let Some(frame) = frame else { break };
            self.socket.start_send_unpin(Message::Binary(frame)).map_err(lost)?;
            self.needs_flush = true;
            moved = true;
        }
        if self.needs_flush {
            match self.socket.poll_flush_unpin(context) {
                Poll::Pending => {}
                Poll::Ready(flushed) => {
                    flushed.map_err(lost)?;
                    self.needs_flush = false;
                }
            }
        }
        Ok(moved)
    }

    /// True if a timer fired.
    fn poll_timers(&mut self, context: &mut Context<'_>) -> Result<bool, Left> {
        let held_back = {
            let inner = self.driver.shared.lock();
            self.driver.shared.holds_back(&inner)
        };
        if held_back {
            // What is not read cannot be missed.
            self.dead_at = None;
            self.heard_at = Instant::now();
        }
        // While the socket takes nothing, nothing can be sent in time or again.
        let next = if self.blocked { None } else { self.driver.shared.lock().session.poll_timeout() };
        let next = next.map(|(at, _)| Instant::from_std(at));
        let pulse_at = self.pulse.at + self.driver.config.pulse_every;
        let open_by = (!self.driver.shared.lock().opened).then_some(self.open_by);
        let doubt_at = self.doubt_at();
        let proven_at = self.proof.as_ref().map(|proof| proof.by);
        let due = [next, self.dead_at, open_by, doubt_at, proven_at, Some(self.ping_at), Some(pulse_at)];
        let at = due.into_iter().flatten().min().unwrap_or(self.ping_at);
        if self.sleep.deadline() != at {
            self.sleep.as_mut().reset(at);
        }
        if self.sleep.as_mut().poll(context).is_pending() {
            return Ok(false);
        }
        let reached = Instant::now();
        if proven_at.is_some_and(|at| at <= reached) {
            self.proof = None;
            self.driver.connected();
        }
        if open_by.is_some_and(|at| at <= reached) {
            let seconds = self.driver.config.open_timeout.as_secs();
            self.driver
                .shared
                .lock()
                .end(&format!("the agent in the task did not open the session within {seconds} s"));
            return Err(Left::Ended);
        }
        if self.dead_at.is_some_and(|at| at <= reached) {
            return Err(Left::lost("nobody answers a ping"));
        }
        let slept = pulse_at <= reached && self.pulse.slept((self.driver.config.wall_clock)(), reached);
        if slept {
            tracing::debug!("the machine was asleep");
            self.dead_at = Some(reached + PONG_AFTER_SLEEP.min(self.driver.config.pong_timeout));
        }
        if doubt_at.is_some_and(|at| at <= reached) {
            self.driver.shared.lock().doubted = false;
            self.dead_at = Some(reached + PONG_IN_DOUBT.min(self.driver.config.pong_timeout));
        }
        if self.ping_at <= reached || slept || doubt_at.is_some_and(|at| at <= reached) {
            // A socket that takes nothing is noticed by the deadline.
            let _full = self.socket.start_send_unpin(Message::Ping(Bytes::from_static(b"keepalive")));
            self.needs_flush = true;
            self.dead_at.get_or_insert(reached + self.driver.config.pong_timeout);
            self.ping_at = reached + self.driver.config.ping_every;
        }
        let shared = &self.driver.shared;
        let mut inner = shared.lock();
        inner.session.handle_timeout(now());
        shared.deliver(&mut inner);
        Ok(true)
    }
}

impl Turn<'_> {
    /// When to ask whether somebody is there: at once if there is doubt, or because what was sent is not acknowledged and
    /// nothing else is heard. A ping that is under way asks already.
    fn doubt_at(&self) -> Option<Instant> {
        if self.dead_at.is_some() {
            return None;
        }
        let (at, inner) = (Instant::now(), self.driver.shared.lock());
        if inner.doubted {
            return Some(at);
        }
        let open_for = inner.session.oldest_unacked(at.into_std())?;
        let since = self.heard_at.max(at.checked_sub(open_for)?);
        Some(since + self.driver.config.quiet)
    }
}

/// The time of day: for the date of messages, which the agent drops without one, and to notice a sleep.
#[expect(clippy::disallowed_methods, reason = "the one wall-clock read of the tunnel")]
pub(super) fn wall_clock() -> SystemTime {
    SystemTime::now()
}

/// Randomness and wall clock for one message.
fn stamp() -> Stamp {
    let since = wall_clock().duration_since(UNIX_EPOCH).unwrap_or_default();
    Stamp { id: *uuid::Uuid::new_v4().as_bytes(), created_ms: u64::try_from(since.as_millis()).unwrap_or(1).max(1) }
}
