//! One client: drive the login, then splice, then say how it ended.

mod driver;
mod ending;
mod farewell;
mod patience;
mod refusal;
mod service;

use std::sync::Arc;
use std::time::Duration;

use bastion_wire::pg::parameters::ReadOnly;
use bastion_wire::proxy::Handshake;
use bastion_wire::{mysql, pg};
use bytes::Bytes;
use tokio::io::AsyncReadExt as _;
use tokio::time::Instant;
use tracing::{debug, info};

use crate::credential::{Admission, Loan};
use crate::relay::audit::ConnRecord;
use crate::relay::client_io::ClientIo;
use crate::relay::clock::wall_clock;
use crate::relay::conn::driver::{Driver, OPENING_TIMEOUT, Outcome, TUNNEL_OPENING_TIMEOUT, Upstream};
use crate::relay::conn::patience::{Patience, TooLate, UPSTREAM_TIMEOUT};
use crate::relay::error::{ConnError, DialError};
use crate::relay::identity::Person;
use crate::relay::state::{RelayState, Served};
use crate::relay::upstream;
use crate::tls;
use crate::types::{CredentialConfig, Engine, Target};

/// Where a client is from that came through the tunnel.
pub(super) const TUNNEL: &str = "tunnel";
/// For the database to act on a cancel request.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(30);

/// A client connection before and during its service.
pub(super) struct Conn {
    shared: Arc<RelayState>,
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

/// A logged-in connection, ready to splice.
struct Login {
    client: Box<dyn ClientIo>,
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
        shared: Arc<RelayState>,
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
    pub(super) async fn serve(mut self, client: impl ClientIo + 'static) {
        let client: Box<dyn ClientIo> = Box::new(client);
        let warm = self.warm.take();
        let target = &self.served.target;
        let handshake = match self.handshake() {
            Ok(handshake) => handshake,
            // Without a handshake there are no words for the client.
            Err(failure) => return self.refuse(client, None, &failure, target, target.credential.db_user()).await,
        };
        let limit = self.shared.config.max_connections;
        let room = self.shared.room.try_acquire().map_err(|_| ConnError::Full(limit)).and_then(|room| {
            let limit = target.max_connections.unwrap_or(limit);
            Ok((room, self.served.room.try_acquire().map_err(|_| ConnError::TargetFull(limit))?))
        });
        let _room = match room {
            Ok(room) => room,
            Err(full) => {
                self.refuse(client, handshake.as_ref(), &full, target, target.credential.db_user()).await;
                return;
            }
        };
        let started = Instant::now();
        // Its state is larger than that of the copy, and not needed for long.
        if let Some(login) = Box::pin(self.log_in(client, handshake, warm)).await {
            self.relay(login, started).await;
        }
    }

    async fn log_in(
        &self,
        client: Box<dyn ClientIo>,
        handshake: Option<Handshake>,
        warm: Option<Loan>,
    ) -> Option<Login> {
        match (&self.served.target.credential, handshake) {
            (CredentialConfig::Client, handshake) | (_, handshake @ None) => self.connect(client, handshake).await,
            (_, Some(handshake)) => self.log_in_for(client, handshake, warm).await,
        }
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
                    local_infile: target.local_infile,
                    remembered: self.served.greeting.for_client(password.is_some()),
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
                    read_only: match (target.read_only, target.is_rds_proxy()) {
                        (false, _) => ReadOnly::No,
                        (true, false) => ReadOnly::Parameter,
                        (true, true) => ReadOnly::Statement,
                    },
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
    async fn connect(&self, client: Box<dyn ClientIo>, handshake: Option<Handshake>) -> Option<Login> {
        let target = &self.served.target;
        let mut patience = Patience::new(OPENING_TIMEOUT, self.id);
        let dialed = tokio::select! {
            dialed = patience.for_upstream(&target.name, upstream::dial(target)) => match dialed {
                Ok(dialed) => dialed.map_err(ConnError::Dial),
                Err(TooLate) => Err(DialError::Timeout(UPSTREAM_TIMEOUT.as_secs()).into()),
            },
            () = self.shared.cut.cancelled() => Err(ConnError::Shutdown),
        };
        match dialed {
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
                self.refuse(client, handshake.as_ref(), &error, target, None).await;
                None
            }
        }
    }

    /// Logs in for the client. `None`: there is nothing to splice, and the client has been told why.
    async fn log_in_for(&self, client: Box<dyn ClientIo>, handshake: Handshake, warm: Option<Loan>) -> Option<Login> {
        let mut driver = Driver::new(&self.shared, &self.served, &self.admission, self.id, handshake, Some(client));
        driver.next = warm;
        let opening = if self.from == TUNNEL { TUNNEL_OPENING_TIMEOUT } else { OPENING_TIMEOUT };
        let failure = match driver.run(opening).await {
            Ok(Outcome::Splice { early, to_client }) => {
                let mut record = self.record(driver.target(), driver.user());
                record.client_program = driver.handshake.client_program();
                record.db_conn_id = driver.handshake.server_number();
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
                if let Some(client) = driver.client.take() {
                    ending::end_well(client, &[], ending::GOODBYE_TIMEOUT).await;
                }
                return None;
            }
            Err(failure) => failure,
        };
        match driver.client.take() {
            Some(client) => {
                let handshake = Some(&driver.handshake);
                self.refuse(client, handshake, &failure, driver.target(), driver.user()).await;
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
            let in_time = tokio::time::timeout(CANCEL_TIMEOUT, closed);
            tokio::select! {
                in_time = in_time => in_time.map_err(|_| ConnError::LoginTimeout(CANCEL_TIMEOUT.as_secs()))?,
                () = self.shared.cut.cancelled() => return Err(ConnError::Shutdown),
            }
        }
        Ok(())
    }
}
