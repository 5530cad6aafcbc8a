//! One client: drive the login, then splice, then say how it ended.

mod driver;
mod farewell;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::credential::{Admission, Loan};
use crate::relay::audit::{ConnRecord, Ended, Refused, Watch};
use crate::relay::conn::driver::{Driver, OPENING_TIMEOUT, Outcome, TUNNEL_OPENING_TIMEOUT, Upstream};
use crate::relay::error::{ConnError, ErrorKind};
use crate::relay::identity::Person;
use crate::relay::splice::{Aside, EndedBy, Spliced, splice};
use crate::relay::{Io, Served, Shared, reply, upstream, wall_clock};
use crate::tls;
use crate::types::{CredentialConfig, Engine, Target};
use crate::wire::proxy::{Handshake, Refusal};
use crate::wire::{mysql, pg};

/// Where a client is from that came through the tunnel.
pub(super) const TUNNEL: &str = "tunnel";
/// For the database to act on a cancel request.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(30);
/// For the end of the login to reach the client.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(30);
/// For the goodbye to a client that may have stopped reading.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);

/// A client connection before and during its service.
pub(super) struct Conn {
    shared: Arc<Shared>,
    served: Arc<Served>,
    id: u64,
    from: String,
    /// Who it is for, where that is proven.
    person: Option<Arc<Person>>,
    /// What it logs in with, and the login itself if it was lent already.
    admission: Admission,
    warm: Option<Loan>,
}

/// Why a connection is not served.
pub(super) enum NotAdmitted {
    /// The person must prove anew who they are; with a sentence for them, in case that they have just done so.
    ProofWanted(String),
    Stopping,
}

async fn lease_ended(loan: Option<&Loan>) {
    match loan {
        Some(loan) => loan.ended().await,
        None => std::future::pending().await,
    }
}

/// A logged-in connection, ready to splice.
struct Login {
    client: Box<dyn Io>,
    upstream: Upstream,
    record: ConnRecord,
    /// To go to the client before anything else.
    to_client: Bytes,
    /// What the client has said since.
    early: Bytes,
    /// Knows how to tell the client an error.
    handshake: Option<Handshake>,
    /// What the relay has logged in with; a lease lives as long as this.
    loan: Option<Loan>,
}

impl Conn {
    /// Finds out what the connection may log in with, before anything of it is read.
    pub(super) async fn admit(
        shared: Arc<Shared>,
        served: Arc<Served>,
        from: String,
        person: Option<Arc<Person>>,
    ) -> Result<Self, NotAdmitted> {
        let key = person.as_ref().map(|person| person.key());
        // It may wait for a login that is just being made.
        let admitted = tokio::select! {
            admitted = served.logins.admit(key.as_deref(), wall_clock()) => admitted,
            () = shared.cut.cancelled() => return Err(NotAdmitted::Stopping),
        };
        match admitted {
            Ok((admission, warm)) => {
                let id = shared.conn_id();
                Ok(Self { shared, served, id, from, person, admission, warm })
            }
            Err(wanted) => {
                let target = &served.target.name;
                let person = person.as_ref().map(|person| tracing::field::display(&person.principal));
                info!(target, person, %wanted, "a connection waits for another proof of who it is for");
                Err(NotAdmitted::ProofWanted(format!("target {target}: {wanted}")))
            }
        }
    }

    /// Serves the client to its end. Never fails: what goes wrong is told to the client and logged here.
    pub(super) async fn serve(mut self, client: impl Io + 'static) {
        let mut client: Box<dyn Io> = Box::new(client);
        let warm = self.warm.take();
        let target = &self.served.target;
        let handshake = match self.handshake() {
            Ok(handshake) => handshake,
            // Without a handshake there is no way to tell the client.
            Err(failure) => return self.record_failure(&failure, None, target, target.credential.db_user()).await,
        };
        let limit = self.shared.config.max_connections;
        let room = self.shared.room.try_acquire().map_err(|_| ConnError::Full(limit)).and_then(|room| {
            let limit = target.max_connections.unwrap_or(limit);
            Ok((room, self.served.room.try_acquire().map_err(|_| ConnError::TargetFull(limit))?))
        });
        let _room = match room {
            Ok(room) => room,
            Err(full) => {
                self.refuse(&mut client, handshake.as_ref(), &full, target, target.credential.db_user()).await;
                return;
            }
        };
        let started = Instant::now();
        let login = tokio::select! {
            login = self.log_in(client, handshake, warm) => login,
            () = self.shared.cut.cancelled() => {
                self.record_failure(&ConnError::Shutdown, None, target, target.credential.db_user()).await;
                return;
            }
        };
        if let Some(login) = login {
            self.relay(login, started).await;
        }
    }

    async fn log_in(&self, client: Box<dyn Io>, handshake: Option<Handshake>, warm: Option<Loan>) -> Option<Login> {
        match (&self.served.target.credential, handshake) {
            (CredentialConfig::Client, handshake) | (_, handshake @ None) => self.connect(client, handshake).await,
            (_, Some(handshake)) => self.log_in_for(client, handshake, warm).await,
        }
    }

    /// From the record of the connection to the record of its end.
    async fn relay(&self, mut login: Login, started: Instant) {
        let target = &self.served.target;
        let audit = &self.shared.audit;
        let record = login.record.clone();
        // Before the client hears that it is let in.
        if audit.opened(&record).await.is_err() {
            let handshake = login.handshake.as_ref();
            self.refuse(&mut login.client, handshake, &ConnError::Audit, target, record.db_user.as_deref()).await;
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
        let mut aside = self.aside(&login, loan.as_ref());
        let cut = self.shared.cut.child_token();
        let copying = async {
            tokio::select! {
                handed = hand_over(&mut login.client, &login.to_client) => match handed {
                    Ok(()) => self.copy(login, &mut aside, &cut).await,
                    Err(error) => Spliced::nothing(EndedBy::Client, Some(error)),
                },
                () = cut.cancelled() => Spliced::nothing(self.cut_by(), None),
            }
        };
        let mut copying = pin!(copying);
        let spliced = tokio::select! {
            spliced = &mut copying => spliced,
            () = lease_ended(loan.as_ref()) => {
                let db_user = &record.db_user;
                warn!(conn_id = self.id, target = target.name, db_user, "closed: the lease of the database user has ended");
                cut.cancel();
                // Ends as soon as the client has been told, with what it has counted.
                copying.await
            }
        };
        self.log_end(&spliced, started);
        let error = spliced.error.map(|error| error.to_string());
        let ended = Ended::new(spliced.up, spliced.down, started.elapsed(), spliced.ended_by.as_str(), error);
        audit.closed(&record, &ended).await;
    }

    /// Copies until the end, but for commands of the client that go through the door again.
    async fn copy(&self, mut login: Login, aside: &mut Option<Aside<'_>>, cut: &CancellationToken) -> Spliced {
        let (metrics, config) = (&self.served.metrics, &self.shared.config.audit);
        let counters = (&metrics.up, &metrics.down);
        let mut watch = None;
        if config.statements && !matches!(self.served.target.credential, CredentialConfig::Client) {
            watch = Watch::new(&self.shared.audit, self.served.target.engine, config.redact, &login.record);
        }
        let (mut up, mut down) = (0, 0);
        loop {
            let Login { client, upstream, early, handshake, .. } = &mut login;
            let (client, commands) = (client.as_mut(), handshake.as_ref().and_then(Handshake::commands));
            let mut part = match upstream {
                Upstream::Plain(stream) => {
                    splice(client, stream, early, commands, counters, &mut watch, aside.as_mut(), cut).await
                }
                Upstream::Tls(stream) => {
                    splice(client, stream.as_mut(), early, commands, counters, &mut watch, aside.as_mut(), cut).await
                }
            };
            (up, down) = (part.up.saturating_add(up), part.down.saturating_add(down));
            (part.up, part.down) = (up, down);
            let Some(command) = part.stopped.take() else {
                if part.ended_by == EndedBy::Shutdown {
                    part.ended_by = self.cut_by();
                    part.down = part.down.saturating_add(self.say_farewell(&mut login, aside, &part.rest).await);
                }
                return part;
            };
            if let Some(watch) = &mut watch
                && let Err(error) = watch.answered(&command).await
            {
                part.ended_by = EndedBy::Audit;
                part.error = Some(std::io::Error::other(error));
                return part;
            }
            let again = tokio::select! {
                again = self.again(login, &command, aside) => again,
                () = cut.cancelled() => return Spliced { ended_by: self.cut_by(), ..part },
            };
            login = match again {
                Ok(login) => login,
                Err(failure) => {
                    part.ended_by = EndedBy::Client;
                    part.error = Some(std::io::Error::other(failure));
                    return part;
                }
            };
        }
    }

    /// Answers the command that has stopped the copy. On failure the client has been told.
    async fn again(&self, login: Login, command: &[u8], aside: &mut Option<Aside<'_>>) -> Result<Login, ConnError> {
        let random = tls::random().map_err(|_| ConnError::NoRandom)?;
        let again = login.handshake.as_ref().and_then(|handshake| handshake.again(random, command));
        let Some(handshake) = again else { return Ok(login) };
        let Login { client, upstream, record, .. } = login;
        let mut driver = Driver::new(&self.shared, &self.served, &self.admission, self.id, handshake, Some(client));
        driver.upstream = Some(upstream);
        let result = driver.run(OPENING_TIMEOUT).await;
        let Driver { client, upstream, handshake, .. } = driver;
        match (result, client, upstream) {
            (Ok(Outcome::Splice { early, to_client }), Some(mut client), Some(upstream)) => {
                let handed = hand_over(&mut client, &to_client).await;
                handed.map_err(|error| ConnError::ClientIo(error.to_string()))?;
                if let Some(aside) = aside {
                    aside.stream().pass(&to_client);
                }
                let (to_client, handshake) = (Bytes::new(), Some(handshake));
                Ok(Login { client, upstream, record, to_client, early, handshake, loan: None })
            }
            (Err(failure), Some(mut client), _) => {
                let user = record.db_user.as_deref();
                self.refuse(&mut client, Some(&handshake), &failure, &self.served.target, user).await;
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
            ended_by = spliced.ended_by.as_str(),
            error = spliced.error.as_ref().map(tracing::field::display),
            "connection closed"
        );
    }

    /// `target` and `user`: where and as whom, as far as it came.
    fn record(&self, target: &Target, user: Option<&str>) -> ConnRecord {
        ConnRecord::new(self.id, target, user, &self.from, self.person.as_deref())
    }

    /// The login of the target's engine, at its start. `None` where the relay knows no protocol.
    fn handshake(&self) -> Result<Option<Handshake>, ConnError> {
        let target = &self.served.target;
        let offer_tls = self.shared.client_tls.is_some();
        // Where clients log in themselves, the database asks them.
        let logs_in = target.credential != CredentialConfig::Client;
        let password = self.shared.local_password.as_ref().filter(|_| logs_in);
        Ok(match target.engine {
            Engine::Mysql => {
                let settings = mysql::handshake::Settings {
                    database: target.database.clone(),
                    offer_tls,
                    attributes: self.attributes(),
                    read_only: target.read_only,
                    demand: password.map(|password| Arc::clone(&password.mysql)),
                    statements: self.shared.config.audit.statements,
                };
                let random = tls::random().map_err(|_| ConnError::NoRandom)?;
                Some(Handshake::mysql(settings, random))
            }
            Engine::Postgres => {
                let demand = match password {
                    Some(password) => Some(pg::door::Demand {
                        verifier: Arc::clone(&password.postgres),
                        random: tls::random().map_err(|_| ConnError::NoRandom)?,
                    }),
                    None => None,
                };
                Some(Handshake::postgres(pg::handshake::Settings {
                    database: target.database.clone(),
                    offer_tls,
                    person: self.person.as_ref().map(|person| person.principal.name().to_owned()),
                    read_only: target.read_only,
                    demand,
                }))
            }
            Engine::Tcp => None,
        })
    }

    /// Who is behind the database user, for `performance_schema.session_connect_attrs`.
    fn attributes(&self) -> Vec<(&'static str, String)> {
        let person = self.person.as_ref().map(|person| ("bastion_person", person.principal.to_string()));
        person.into_iter().chain([("bastion_connection", self.id.to_string())]).collect()
    }

    /// A target whose clients log in themselves: bytes only, to the configured address only.
    async fn connect(&self, mut client: Box<dyn Io>, handshake: Option<Handshake>) -> Option<Login> {
        let target = &self.served.target;
        match upstream::dial(target).await {
            Ok(stream) => Some(Login {
                client,
                upstream: Upstream::Plain(stream),
                record: self.record(target, None),
                to_client: Bytes::new(),
                early: Bytes::new(),
                handshake: None,
                loan: None,
            }),
            Err(error) => {
                self.refuse(&mut client, handshake.as_ref(), &error.into(), target, None).await;
                None
            }
        }
    }

    /// Logs in for the client. `None`: there is nothing to splice, and the client has been told why.
    async fn log_in_for(&self, client: Box<dyn Io>, handshake: Handshake, warm: Option<Loan>) -> Option<Login> {
        let mut driver = Driver::new(&self.shared, &self.served, &self.admission, self.id, handshake, Some(client));
        driver.next = warm;
        let opening = if self.from == TUNNEL { TUNNEL_OPENING_TIMEOUT } else { OPENING_TIMEOUT };
        let failure = match driver.run(opening).await {
            Ok(Outcome::Splice { early, to_client }) => {
                let mut record = self.record(driver.target(), driver.user());
                record.client_program = driver.handshake.client_program();
                let loan = driver.take_loan();
                let Driver { client, upstream, handshake, .. } = driver;
                let handshake = Some(handshake);
                return Some(Login { client: client?, upstream: upstream?, record, to_client, early, handshake, loan });
            }
            Ok(Outcome::Cancel(packet)) => {
                match self.cancel(&packet).await {
                    Ok(()) => debug!(conn_id = self.id, target = self.served.target.name, "cancel request forwarded"),
                    // A cancel request has no answer in the protocol; the log is all there is.
                    Err(failure) => self.record_failure(&failure, None, driver.target(), driver.user()).await,
                }
                return None;
            }
            Err(failure) => failure,
        };
        match driver.client.take() {
            Some(mut client) => {
                let handshake = Some(&driver.handshake);
                self.refuse(&mut client, handshake, &failure, driver.target(), driver.user()).await;
            }
            // The client went down with its own TLS handshake; there is nobody to tell.
            None => {
                let handshake = Some(&driver.handshake);
                self.record_failure(&failure, handshake, driver.target(), driver.user()).await;
            }
        }
        None
    }

    /// Hands a cancel request to the database on a connection of its own, as libpq does (`fe-cancel.c`).
    async fn cancel(&self, packet: &[u8]) -> Result<(), ConnError> {
        let mut driver =
            Driver::new(&self.shared, &self.served, &self.admission, self.id, Handshake::postgres_cancel(), None);
        driver.run(OPENING_TIMEOUT).await?;
        driver.send_upstream(packet).await?;
        // The server closes when it has acted; waiting for that keeps the order that the client relies on.
        if let Some(Upstream::Tls(mut upstream)) = driver.upstream {
            let mut nothing = [0_u8; 16];
            let closed = async { while upstream.read(&mut nothing).await.is_ok_and(|read| read > 0) {} };
            tokio::time::timeout(CANCEL_TIMEOUT, closed)
                .await
                .map_err(|_| ConnError::LoginTimeout(CANCEL_TIMEOUT.as_secs()))?;
        }
        Ok(())
    }

    /// Tells the client what failed, in its protocol, and logs it. `target` and `user`: where and as whom, as far as it
    /// came.
    async fn refuse(
        &self,
        client: &mut dyn Io,
        handshake: Option<&Handshake>,
        failure: &ConnError,
        target: &Target,
        user: Option<&str>,
    ) {
        self.record_failure(failure, handshake, target, user).await;
        let Some(handshake) = handshake else { return };
        if let Some(text) = reply::error_text(failure, target, user, self.id) {
            let packet = handshake.encode_error(&text);
            // A client that no longer reads cannot be told.
            let _told = tokio::time::timeout(GOODBYE_TIMEOUT, async {
                client.write_all(&packet).await?;
                client.shutdown().await?;
                // Let the client read the error before the socket goes: unread input would turn the close into a reset.
                let mut rest = [0_u8; 512];
                while client.read(&mut rest).await? > 0 {}
                std::io::Result::Ok(())
            })
            .await;
        }
    }

    /// Writes a failure into the audit log, the log and the metrics. Clients that only look whether somebody listens are
    /// no refusal.
    async fn record_failure(
        &self,
        failure: &ConnError,
        handshake: Option<&Handshake>,
        target: &Target,
        user: Option<&str>,
    ) {
        self.log_failure(failure);
        if failure.kind() == ErrorKind::ClientGone {
            return;
        }
        let mut record = self.record(target, user);
        record.client_program = handshake.and_then(Handshake::client_program);
        let (error, sqlstate) = match failure {
            ConnError::Refused(refusal) => {
                let said = match refusal {
                    Refusal::NotReadOnly(text) | Refusal::Rejected(text) | Refusal::UpstreamRefused(text) => {
                        Some(text.sqlstate.clone())
                    }
                    _ => None,
                };
                (format!("{failure}: {}", reply::cause(refusal)), said)
            }
            _ => (failure.to_string(), None),
        };
        self.shared.audit.refused(&record, &Refused { kind: failure.kind().as_str(), error, sqlstate }).await;
    }

    fn log_failure(&self, failure: &ConnError) {
        let kind = failure.kind();
        self.served.metrics.failed(kind);
        let (conn_id, target, addr) = (self.id, &self.served.target.name, &self.from);
        let sqlstate = match failure {
            ConnError::Refused(
                Refusal::NotReadOnly(text) | Refusal::Rejected(text) | Refusal::UpstreamRefused(text),
            ) => Some(&text.sqlstate),
            _ => None,
        };
        let kind_name = kind.as_str();
        match kind {
            ErrorKind::Audit | ErrorKind::Credential | ErrorKind::Internal => {
                error!(conn_id, target, client.addr = addr, error.kind = kind_name, error = %failure, "connection refused");
            }
            ErrorKind::ClientGone => {
                debug!(conn_id, target, client.addr = addr, error.kind = kind_name, error = %failure, "connection refused");
            }
            _ => {
                let refusal =
                    if let ConnError::Refused(refusal) = failure { reply::cause(refusal) } else { String::new() };
                warn!(conn_id, target, client.addr = addr, error.kind = kind_name, sqlstate, error = %failure, refusal, "connection refused");
            }
        }
    }
}

/// The end of the login, to a client that may have stopped reading.
async fn hand_over(client: &mut dyn Io, bytes: &[u8]) -> std::io::Result<()> {
    let handed = async {
        client.write_all(bytes).await?;
        client.flush().await
    };
    let handed = tokio::time::timeout(SETTLE_TIMEOUT, handed).await;
    handed.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
}
