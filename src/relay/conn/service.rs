//! A connection whose login is done: its records, the copy, and the commands that interrupt it.

use std::pin::pin;
use std::time::Duration;

use bastion_wire::end::{End, How, Notice, ResetReason, Who};
use bastion_wire::error_text::ErrorText;
use bastion_wire::login::Refusal;
use bytes::Bytes;
use tokio::io::AsyncWriteExt as _;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::credential::Loan;
use crate::link::end;
use crate::relay::audit::{Ended, NotWritten};
use crate::relay::client_io::ClientIo;
use crate::relay::conn::driver::{Driver, OPENING_TIMEOUT, Outcome, Upstream};
use crate::relay::conn::{Conn, Login, ending};
use crate::relay::error::ConnError;
use crate::relay::reply;
use crate::relay::splice::{ANSWER_TIMEOUT, Breach, Followed, Spliced, splice};
use crate::tls;

/// For the end of the login to reach the client.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(30);

/// A copy that has ended, and who has not been left yet.
struct Copied {
    spliced: Spliced,
    client: Option<Box<dyn ClientIo>>,
    upstream: Option<Upstream>,
}

impl Conn {
    /// From the record of the connection to the record of its end.
    pub(super) async fn relay(&self, mut login: Login, started: Instant) {
        let target = &self.served.target;
        let audit = &self.shared.audit;
        let record = login.record.clone();
        // Before the client hears that it is let in.
        if audit.opened(&record).await.is_err() {
            let handshake = login.handshake.as_ref();
            self.refuse(login.client, handshake, &ConnError::Audit, target, record.db_user.as_deref()).await;
            return;
        }
        let _open = self.shared.lifetime.opened();
        let _open_metric = self.served.metrics.opened(started.elapsed());
        info!(
            conn_id = self.id,
            target = target.name,
            client.addr = self.from,
            person = self.person.as_ref().map(|person| tracing::field::display(&person.principal)),
            client.program = record.client_program,
            db_user = record.db_user,
            credential.source = target.credential.source(),
            login_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            "connection ready"
        );
        let loan = login.loan.take();
        let mut session = self.followed(&login, loan.as_ref());
        let cut = self.shared.cut.child_token();
        let mut copying = pin!(async {
            let handed = tokio::select! {
                handed = hand_over(&mut login.client, &login.to_client) => {
                    handed.map_err(|error| (end::of_client(&error), Some(error)))
                }
                () = cut.cancelled() => Err((self.cut_by(), None)),
            };
            match handed {
                Ok(()) => self.copy(login, session.as_mut(), &cut).await,
                Err((end, error)) => {
                    let spliced = Spliced::nothing(end, error);
                    Copied { spliced, client: Some(login.client), upstream: Some(login.upstream) }
                }
            }
        });
        let Copied { spliced, client, upstream } = tokio::select! {
            copied = &mut copying => copied,
            () = lease_ended(loan.as_ref()) => {
                let db_user = &record.db_user;
                warn!(conn_id = self.id, target = target.name, db_user, "closed: the lease of the database user has ended");
                cut.cancel();
                // Ends as soon as the client has been told, with what it has counted.
                copying.await
            }
        };
        self.log_end(&spliced, started);
        let error = spliced.error.as_ref().map(ToString::to_string);
        let ended = Ended::new(spliced.up, spliced.down, started.elapsed(), spliced.end.ended_by(), error);
        audit.closed(&record, &ended).await;
        if let Some(client) = client {
            self.leave(client, &spliced, record.db_user.as_deref()).await;
        }
        if let Some(upstream) = upstream {
            ending::leave(upstream, spliced.end);
        }
    }

    /// Leaves the client as the table of ends says.
    async fn leave(&self, client: Box<dyn ClientIo>, spliced: &Spliced, user: Option<&str>) {
        match spliced.notice {
            Notice::Nothing => {}
            Notice::End => ending::end_well(client, &[], ending::GOODBYE_TIMEOUT).await,
            Notice::Reset => {
                let how = spliced.error.as_ref().map(ToString::to_string).unwrap_or_default();
                ending::reset(client, &ResetReason::Database(&how).to_string()).await;
            }
            // What there is to say was said, or this is the way that it would have taken.
            Notice::Error => ending::reset(client, &self.cut_text(user.unwrap_or_default()).sentence()).await,
        }
    }

    /// Copies until the end, but for commands of the client that go through the door again.
    async fn copy(&self, login: Login, mut session: Option<&mut Followed<'_>>, cut: &CancellationToken) -> Copied {
        let mut copied = self.copy_followed(login, session.as_deref_mut(), cut).await;
        if let Some(session) = session
            && session.flush_records().await.is_err()
        {
            copied.spliced.end = End::new(Who::Audit, How::Cut);
        }
        copied
    }

    async fn copy_followed(
        &self,
        mut login: Login,
        mut session: Option<&mut Followed<'_>>,
        cut: &CancellationToken,
    ) -> Copied {
        let metrics = &self.served.metrics;
        let counters = (&metrics.up, &metrics.down);
        let (mut up, mut down) = (0, 0);
        loop {
            let Login { client, upstream, early, .. } = &mut login;
            let (client, followed) = (client.as_mut(), session.as_deref_mut());
            let mut part = match upstream {
                Upstream::Plain(stream) => splice(client, stream, early, counters, followed, cut).await,
                Upstream::Tls(stream) => splice(client, stream.as_mut(), early, counters, followed, cut).await,
            };
            (up, down) = (part.up.saturating_add(up), part.down.saturating_add(down));
            (part.up, part.down) = (up, down);
            let Some(command) = part.stopped.take() else {
                let failure = match part.breach.take() {
                    Some(Breach::File(name)) => {
                        self.shared.audit.file_refused(&login.record, &name).await;
                        Some(ConnError::FileRequested(name))
                    }
                    Some(Breach::OutOfProtocol(error)) => {
                        self.shared.audit.out_of_protocol(&login.record, error.from, &error.what).await;
                        Some(ConnError::OutOfProtocol(error))
                    }
                    Some(Breach::Full(full)) => Some(ConnError::NoMemory(full)),
                    Some(Breach::Unanswered) => Some(ConnError::Unanswered(ANSWER_TIMEOUT.as_secs())),
                    None => None,
                };
                return Box::pin(self.tell_end(login, session, part, failure)).await;
            };
            let recorded = match session.as_deref_mut() {
                Some(session) => cut.run_until_cancelled(session.answered(&command)).await,
                None => Some(Ok(())),
            };
            let again = match recorded {
                // What few connections do makes none of the others larger.
                Some(Ok(())) => Box::pin(self.again(login, &command, session.as_deref_mut(), cut)).await,
                // Nothing of the answer has begun.
                ended => {
                    part.end =
                        if ended.is_some() { End::new(Who::Audit, How::Cut) } else { End::new(Who::Task, How::Cut) };
                    let failure = match ended {
                        Some(Err(NotWritten::Full(full))) => Some(ConnError::NoMemory(full)),
                        _ => None,
                    };
                    return Box::pin(self.tell_end(login, session, part, failure)).await;
                }
            };
            login = match again {
                Ok(login) => login,
                Err(failure) => {
                    part.end = match failure {
                        ConnError::Audit => End::new(Who::Audit, How::Cut),
                        ConnError::Shutdown => self.cut_by(),
                        _ => End::new(Who::Client, How::Cut),
                    };
                    part.error = (failure != ConnError::Shutdown).then(|| std::io::Error::other(failure));
                    return Copied { spliced: part, client: None, upstream: None };
                }
            };
        }
    }

    /// Tells the client of an end that is the relay's, or of this `failure`; any other end is left to the caller.
    async fn tell_end(
        &self,
        login: Login,
        session: Option<&mut Followed<'_>>,
        mut part: Spliced,
        failure: Option<ConnError>,
    ) -> Copied {
        let Some(text) = self.text_of_end(&mut part, failure, login.record.db_user.as_deref()) else {
            return Copied { spliced: part, client: Some(login.client), upstream: Some(login.upstream) };
        };
        let Login { client, mut upstream, .. } = login;
        let more = self.say(client, &mut upstream, session, (&part.rest, &part.held), &text).await;
        part.down = part.down.saturating_add(more);
        Copied { spliced: part, client: None, upstream: Some(upstream) }
    }

    /// What the client is to be told about an end that is the relay's, or about this `failure`.
    fn text_of_end(&self, part: &mut Spliced, failure: Option<ConnError>, user: Option<&str>) -> Option<ErrorText> {
        let target = &self.served.target;
        let said = |failure: &ConnError| reply::error_text(failure, target, user, self.id);
        if let Some(failure) = failure {
            warn!(conn_id = self.id, target = target.name, error = %failure, "closed");
            let text = said(&failure);
            part.error = Some(std::io::Error::other(failure));
            return text;
        }
        match part.end {
            End { who: Who::Task, how: How::Cut } if part.error.is_none() => {
                part.end = self.cut_by();
                Some(self.cut_text(user.unwrap_or_default()))
            }
            End { who: Who::Audit, .. } => said(&ConnError::Audit),
            _ => None,
        }
    }

    /// Answers the command that has stopped the copy. On failure, that of a cut too, the client has been told.
    async fn again(
        &self,
        login: Login,
        command: &[u8],
        session: Option<&mut Followed<'_>>,
        cut: &CancellationToken,
    ) -> Result<Login, ConnError> {
        let random = tls::random().map_err(|_| ConnError::NoRandom)?;
        let again = login.handshake.as_ref().and_then(|handshake| handshake.again(random, command));
        let Some(handshake) = again else { return Ok(login) };
        let Login { client, upstream, record, .. } = login;
        let mut driver = Driver::new(&self.shared, &self.served, &self.admission, self.id, handshake, Some(client));
        driver.upstream = Some(upstream);
        driver.cut = cut.clone();
        let result = driver.run(OPENING_TIMEOUT).await;
        let Driver { client, upstream, handshake, .. } = driver;
        match (result, client, upstream) {
            (Ok(Outcome::Splice { early, to_client }), Some(mut client), Some(upstream)) => {
                let user = record.db_user.as_deref();
                let Some(handed) = cut.run_until_cancelled(hand_over(&mut client, &to_client)).await else {
                    // In the middle of a packet.
                    ending::reset(client, &self.cut_text(user.unwrap_or_default()).sentence()).await;
                    return Err(ConnError::Shutdown);
                };
                handed.map_err(|error| ConnError::ClientIo(error.to_string()))?;
                if let Some(session) = session {
                    session.session().stop_at_resets(handshake.stops_at_resets());
                }
                let (to_client, handshake) = (Bytes::new(), Some(handshake));
                Ok(Login { client, upstream, record, to_client, early, handshake, loan: None })
            }
            (Err(ConnError::Shutdown), Some(client), _) => {
                self.say_in_login(client, &handshake, record.db_user.as_deref()).await;
                Err(ConnError::Shutdown)
            }
            (Err(failure), Some(client), _) => {
                let user = record.db_user.as_deref();
                self.refuse(client, Some(&handshake), &failure, &self.served.target, user).await;
                Err(failure)
            }
            (Err(failure), ..) => Err(failure),
            (Ok(_), ..) => Err(ConnError::Refused(Refusal::ClientGone)),
        }
    }

    fn log_end(&self, spliced: &Spliced, started: Instant) {
        info!(
            conn_id = self.id,
            target = self.served.target.name,
            bytes.up = spliced.up,
            bytes.down = spliced.down,
            seconds = started.elapsed().as_secs(),
            ended_by = spliced.end.ended_by(),
            error = spliced.error.as_ref().map(tracing::field::display),
            "connection closed"
        );
    }
}

async fn lease_ended(loan: Option<&Loan>) {
    match loan {
        Some(loan) => loan.ended().await,
        None => std::future::pending().await,
    }
}

/// The end of the login, to a client that may have stopped reading.
async fn hand_over(client: &mut dyn ClientIo, bytes: &[u8]) -> std::io::Result<()> {
    let handed = async {
        client.write_all(bytes).await?;
        client.flush().await
    };
    let handed = tokio::time::timeout(SETTLE_TIMEOUT, handed).await;
    handed.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
}
