//! What keeps a link and its lanes going: it begins links, opens lanes again that were lost, and notices when the task is gone.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::BytesMut;
use secrecy::SecretString;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::Instant;

use super::{Current, GOODBYE, Inner, LAST_WORDS, LaneError, Way, moved};
use crate::api::{HEADER_LANE, HEADER_LINK, LaneIntent, Upgrade};
use crate::link::{self, Link};
use crate::tunnel::backoff::Backoff;
use crate::tunnel::upgrade::{self, UpgradeError};
use crate::tunnel::{State, Tunnel};

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

impl Inner {
    /// One link after the other; never returns.
    pub(super) async fn run_links(self: Arc<Self>) {
        let mut backoff = Backoff::new(BACKOFF);
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
            let pipe = match self.upgrade(&self.first, &secret, LaneIntent::New).await {
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
                    backoff.pause().await;
                    continue;
                }
            };
            backoff.reset();
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
            let mut past = self.past.lock();
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
        let mut backoff = Backoff::new(BACKOFF);
        while current.link.over().is_none() {
            tracing::debug!(?ended, "the first lane is gone");
            let mut state = self.first.state();
            if state.wait_for(|state| *state == State::Connected).await.is_err() {
                // The link may live on in other lanes.
                return std::future::pending().await;
            }
            match self.upgrade(&self.first, &current.secret, LaneIntent::Join).await {
                Ok(pipe) => {
                    backoff.reset();
                    ended = current.link.carry_while(pipe, is_open).await;
                }
                Err(UpgradeError::Refused { status: Some(410), .. }) => return,
                Err(error) => {
                    ended = Err(io::Error::other(error.to_string()));
                    backoff.pause().await;
                }
            }
        }
    }

    /// A further lane, until the end.
    pub(super) async fn run_lane(self: Arc<Self>, number: usize) {
        let mut backoff = Backoff::new(BACKOFF);
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
                    if self.stop.run_until_cancelled(backoff.pause()).await.is_none() {
                        return;
                    }
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
            if began.elapsed() > GOOD {
                backoff.reset();
            } else {
                backoff.grow();
            }
            if self.stop.run_until_cancelled(tokio::time::sleep(backoff.wait())).await.is_none() {
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
    pub(super) async fn alarm(&self, tunnel: &Tunnel) -> Infallible {
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
        let pipe = self.upgrade(tunnel, &current.secret, LaneIntent::Join).await?;
        Ok(current.link.carry_while(pipe, || tunnel.is_up_for(OPEN)).await?)
    }

    /// A lane over a tunnel, with a new token if the old one is not good any more.
    async fn upgrade(
        &self,
        tunnel: &Tunnel,
        secret: &str,
        intent: LaneIntent,
    ) -> Result<impl AsyncRead + AsyncWrite + Unpin + use<>, UpgradeError> {
        let token = self.pass.token();
        match upgrade(tunnel, token.as_ref(), secret, intent).await {
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
                upgrade(tunnel, self.pass.token().as_ref(), secret, intent).await
            }
            done => done,
        }
    }

    /// Keeps the common state and the number of lanes; never returns.
    pub(super) async fn follow(self: Arc<Self>) {
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

async fn upgrade(
    tunnel: &Tunnel,
    token: Option<&SecretString>,
    secret: &str,
    intent: LaneIntent,
) -> Result<impl AsyncRead + AsyncWrite + Unpin + use<>, UpgradeError> {
    let refused = |sentence: String| UpgradeError::Refused { status: None, sentence };
    let stream = tunnel.connect(LINGER).map_err(|error| refused(error.to_string()))?;
    let (mut read, mut write) = tokio::io::split(stream);
    let request = upgrade::request(Upgrade::Lane, token, &[(HEADER_LINK, secret), (HEADER_LANE, intent.as_str())]);
    write.write_all(&request).await?;
    let mut rest = BytesMut::new();
    upgrade::read_answer(&mut read, &mut rest).await?;
    Ok(tokio::io::join(io::Cursor::new(rest).chain(read), write))
}
