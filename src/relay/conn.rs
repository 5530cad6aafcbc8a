//! One client: drive the login, then splice, then say how it ended.

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut as _, BytesMut};
use secrecy::ExposeSecret as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::client::TlsStream;
use tracing::{debug, error, info, warn};

use crate::credential::{Credential, Freshness, Kind};
use crate::relay::error::{ConnError, ErrorKind};
use crate::relay::splice::{Side, Spliced, splice};
use crate::relay::{Io, Served, Shared, reply, upstream, wall_clock};
use crate::types::{CredentialConfig, Engine};
use crate::wire::pg::handshake::{Action, Handshake, Peer, Refusal, SecretKind};

/// A client that has connected says what it wants at once; this also covers a slow TLS handshake.
const OPENING_TIMEOUT: Duration = Duration::from_secs(15);
/// Look-up, dial, TLS and login together: PAM and IAM may take seconds.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(30);
/// One read of the login.
const READ: usize = 4096;
/// For the goodbye to a client that may have stopped reading.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);

/// A client connection before and during its service.
pub(super) struct Conn {
    shared: Arc<Shared>,
    served: Arc<Served>,
    id: u64,
    from: String,
}

/// A logged-in connection, ready to splice.
struct Login {
    client: Box<dyn Io>,
    upstream: Upstream,
    program: Option<String>,
    db_user: Option<String>,
}

/// The upstream end, with TLS or, for targets whose clients bring their own, without.
enum Upstream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Conn {
    pub(super) fn new(shared: Arc<Shared>, served: Arc<Served>, from: String) -> Self {
        let id = shared.conn_id();
        Self { shared, served, id, from }
    }

    /// Serves the client to its end. Never fails: what goes wrong is told to the client and logged here.
    pub(super) async fn serve(self, client: impl Io + 'static) {
        let cut = self.shared.cut.clone();
        tokio::select! {
            () = cut.cancelled() => info!(conn_id = self.id, target = self.served.target.name, "cut by shutdown"),
            () = self.serve_inner(Box::new(client)) => {}
        }
    }

    async fn serve_inner(&self, mut client: Box<dyn Io>) {
        let target = &self.served.target;
        let Ok(_room) = self.shared.room.try_acquire() else {
            let full = ConnError::Full(self.shared.config.max_connections);
            self.refuse(&mut client, &full).await;
            return;
        };
        let started = Instant::now();
        let login = match target.credential {
            CredentialConfig::RdsIam { .. } => self.log_in(client).await,
            CredentialConfig::Client => self.connect(client).await,
        };
        let mut login = match login {
            Ok(Some(login)) => login,
            Ok(None) => return,
            Err((mut client, failure)) => {
                self.refuse(&mut client, &failure).await;
                return;
            }
        };
        let _open = self.shared.lifetime.opened();
        let _open_metric = self.served.metrics.opened(started.elapsed());
        info!(
            conn_id = self.id,
            target = target.name,
            client.addr = self.from,
            client.program = login.program,
            db_user = login.db_user,
            credential.source = target.credential.source(),
            login_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            "connection ready"
        );
        let metrics = &self.served.metrics;
        let spliced = match &mut login.upstream {
            Upstream::Plain(stream) => splice(login.client.as_mut(), stream, &metrics.up, &metrics.down).await,
            Upstream::Tls(stream) => splice(login.client.as_mut(), stream.as_mut(), &metrics.up, &metrics.down).await,
        };
        self.log_end(&spliced, started);
    }

    fn log_end(&self, spliced: &Spliced, started: Instant) {
        info!(
            conn_id = self.id,
            target = self.served.target.name,
            bytes.up = spliced.up,
            bytes.down = spliced.down,
            seconds = started.elapsed().as_secs(),
            ended_by = match spliced.ended_by {
                Some(Side::Upstream) => "upstream",
                _ => "client",
            },
            error = spliced.error.as_ref().map(tracing::field::display),
            "connection closed"
        );
    }

    /// A target whose clients log in themselves: bytes only, to the configured address only.
    async fn connect(&self, client: Box<dyn Io>) -> Result<Option<Login>, (Box<dyn Io>, ConnError)> {
        match upstream::dial(&self.served.target).await {
            Ok(stream) => Ok(Some(Login { client, upstream: Upstream::Plain(stream), program: None, db_user: None })),
            Err(error) => Err((client, error.into())),
        }
    }

    /// Logs in to PostgreSQL for the client. `None`: it was a cancel request, which is done.
    async fn log_in(&self, client: Box<dyn Io>) -> Result<Option<Login>, (Box<dyn Io>, ConnError)> {
        let mut driver = Driver {
            conn: self,
            handshake: Handshake::new(self.served.target.database.as_deref(), self.shared.client_tls.is_some()),
            client: Some(client),
            upstream: None,
            used: None,
            buffer: BytesMut::with_capacity(READ),
        };
        let opening = tokio::time::timeout(OPENING_TIMEOUT, driver.open()).await;
        let opened = opening.unwrap_or(Err(ConnError::OpeningTimeout(OPENING_TIMEOUT.as_secs())));
        let logged_in = match opened {
            Err(failure) => Err(failure),
            Ok(Opened::Cancel(packet)) => {
                let forwarded = tokio::time::timeout(LOGIN_TIMEOUT, self.cancel(&packet)).await;
                match forwarded.unwrap_or(Err(ConnError::LoginTimeout(LOGIN_TIMEOUT.as_secs()))) {
                    Ok(()) => debug!(conn_id = self.id, target = self.served.target.name, "cancel request forwarded"),
                    // A cancel request has no answer in the protocol; the log is all there is.
                    Err(failure) => self.log_failure(&failure),
                }
                return Ok(None);
            }
            Ok(Opened::Startup) => tokio::time::timeout(LOGIN_TIMEOUT, driver.log_in())
                .await
                .unwrap_or(Err(ConnError::LoginTimeout(LOGIN_TIMEOUT.as_secs()))),
        };
        let program = driver.handshake.client_parameter("application_name");
        match (logged_in, driver.client.take(), driver.upstream.take()) {
            (Ok(()), Some(client), Some(Upstream::Tls(upstream))) => {
                let db_user = self.served.target.credential.db_user().map(str::to_owned);
                Ok(Some(Login { client, upstream: Upstream::Tls(upstream), program, db_user }))
            }
            (Ok(()), ..) => Ok(None),
            (Err(failure), Some(client), _) => Err((client, failure)),
            // The client went down with its own TLS handshake; there is nobody to tell.
            (Err(failure), None, _) => {
                self.log_failure(&failure);
                Ok(None)
            }
        }
    }

    /// Hands a cancel request to the database on a connection of its own, as libpq does (`fe-cancel.c`).
    async fn cancel(&self, packet: &[u8]) -> Result<(), ConnError> {
        let mut driver = Driver {
            conn: self,
            // Only for the TLS request and answer: the cancel request takes the place of the startup packet.
            handshake: Handshake::for_cancel(),
            client: None,
            upstream: None,
            used: None,
            buffer: BytesMut::with_capacity(READ),
        };
        driver.log_in().await?;
        let Some(Upstream::Tls(mut upstream)) = driver.upstream.take() else { return Ok(()) };
        let broken = |error: std::io::Error| ConnError::UpstreamIo(error.to_string());
        upstream.write_all(packet).await.map_err(broken)?;
        upstream.flush().await.map_err(broken)?;
        // The server closes when it has acted; waiting for that keeps the order that the client relies on.
        let mut nothing = [0_u8; 16];
        while upstream.read(&mut nothing).await.is_ok_and(|read| read > 0) {}
        Ok(())
    }

    /// Tells the client what failed, in its protocol, and logs it.
    async fn refuse(&self, client: &mut Box<dyn Io>, failure: &ConnError) {
        self.log_failure(failure);
        if self.served.target.engine != Engine::Postgres {
            return;
        }
        if let Some(packet) = reply::error_response(failure, &self.served.target, self.id) {
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

    fn log_failure(&self, failure: &ConnError) {
        let kind = failure.kind();
        self.served.metrics.failed(kind);
        let (conn_id, target, addr) = (self.id, &self.served.target.name, &self.from);
        let sqlstate = match failure {
            ConnError::Refused(Refusal::UpstreamRefused(fields) | Refusal::Rejected(fields)) => Some(&fields.code),
            _ => None,
        };
        let kind_name = kind.as_str();
        match kind {
            ErrorKind::Credential => {
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

/// What the client opened with.
enum Opened {
    Cancel(bytes::Bytes),
    Startup,
}

/// Carries out what the handshake wants.
struct Driver<'a> {
    conn: &'a Conn,
    handshake: Handshake,
    client: Option<Box<dyn Io>>,
    upstream: Option<Upstream>,
    /// The credential of the last attempt.
    used: Option<(Arc<Credential>, Freshness)>,
    buffer: BytesMut,
}

impl Driver<'_> {
    /// Up to the client's wish: TLS, startup or cancel. Not cancel safe.
    async fn open(&mut self) -> Result<Opened, ConnError> {
        loop {
            match self.handshake.poll_action() {
                Action::Cancel(packet) => return Ok(Opened::Cancel(packet)),
                Action::Read(Peer::Client) => self.read_client().await?,
                Action::Send(Peer::Client, bytes) => self.send_client(&bytes).await?,
                Action::StartTls { peer: Peer::Client, already_read } => self.accept_tls(already_read).await?,
                Action::Refuse(refusal) => return Err(ConnError::Refused(refusal)),
                // Everything else needs the startup packet: `log_in` does it, starting with the dial.
                _ => return Ok(Opened::Startup),
            }
        }
    }

    /// From the startup packet to the splice, with a second try where the credential was a cached one. Not cancel safe.
    async fn log_in(&mut self) -> Result<(), ConnError> {
        loop {
            let attempt = self.attempt().await;
            let Err(failure) = &attempt else { return attempt };
            match self.used.take() {
                Some((credential, Freshness::Cached)) if failure.is_stale_credential() && self.handshake.retry() => {
                    debug!(conn_id = self.conn.id, "the cached credential was refused, trying a fresh one");
                    if let Some(cache) = &self.conn.served.credential {
                        cache.forget(&credential).await;
                    }
                    self.upstream = None;
                }
                _ => return attempt,
            }
        }
    }

    async fn attempt(&mut self) -> Result<(), ConnError> {
        let target = &self.conn.served.target;
        loop {
            match self.handshake.poll_action() {
                Action::Cancel(_) => return Ok(()),
                Action::Dial => {
                    self.upstream = Some(Upstream::Plain(upstream::dial(target).await?));
                    self.handshake.handle_dialed();
                }
                Action::NeedCredential => self.provide_credential().await?,
                Action::Read(Peer::Client) => self.read_client().await?,
                Action::Read(Peer::Upstream) => self.read_upstream().await?,
                Action::Refuse(refusal) => return Err(ConnError::Refused(refusal)),
                Action::Send(Peer::Client, bytes) => self.send_client(&bytes).await?,
                Action::Send(Peer::Upstream, bytes) => self.send_upstream(&bytes).await?,
                Action::SendSecret(secret) => self.send_upstream(secret.expose()).await?,
                Action::Splice { to_upstream, to_client } => {
                    self.send_client(&to_client).await?;
                    if !to_upstream.is_empty() {
                        self.send_upstream(&to_upstream).await?;
                    }
                    return Ok(());
                }
                Action::StartTls { peer: Peer::Client, already_read } => self.accept_tls(already_read).await?,
                Action::StartTls { peer: Peer::Upstream, .. } => {
                    if let Some(Upstream::Plain(stream)) = self.upstream.take() {
                        let tls = &self.conn.shared.upstream_tls;
                        let (stream, binding) = upstream::start_tls(stream, target, tls).await?;
                        self.upstream = Some(Upstream::Tls(Box::new(stream)));
                        self.handshake.handle_tls(Peer::Upstream, binding);
                    }
                }
            }
        }
    }

    async fn provide_credential(&mut self) -> Result<(), ConnError> {
        let Some(cache) = &self.conn.served.credential else { return Ok(()) };
        let (credential, freshness) = cache.credential(wall_clock()).await?;
        let kind = match credential.kind {
            Kind::Password => SecretKind::Password,
            Kind::Token => SecretKind::Token,
        };
        // The one line that exposes a database secret.
        self.handshake.handle_credential(&credential.user, credential.secret.expose_secret().as_bytes(), kind);
        self.used = Some((credential, freshness));
        Ok(())
    }

    async fn accept_tls(&mut self, already_read: bytes::Bytes) -> Result<(), ConnError> {
        let (Some(client), Some(tls)) = (self.client.take(), &self.conn.shared.client_tls) else { return Ok(()) };
        let (read, write) = tokio::io::split(client);
        let whole = tokio::io::join(std::io::Cursor::new(already_read).chain(read), write);
        let accepted = TlsAcceptor::from(Arc::clone(tls)).accept(whole).await;
        let stream = accepted.map_err(|error| ConnError::ClientTls(error.to_string()))?;
        self.client = Some(Box::new(stream));
        self.handshake.handle_tls(Peer::Client, None);
        Ok(())
    }

    async fn read_client(&mut self) -> Result<(), ConnError> {
        let Some(client) = &mut self.client else { return Ok(()) };
        self.buffer.clear();
        match client.read_buf(&mut (&mut self.buffer).limit(READ)).await {
            Ok(0) => self.handshake.handle_eof(Peer::Client),
            Ok(_) => self.handshake.handle_data(Peer::Client, &self.buffer),
            Err(error) => return Err(ConnError::ClientIo(error.to_string())),
        }
        Ok(())
    }

    async fn read_upstream(&mut self) -> Result<(), ConnError> {
        self.buffer.clear();
        let buffer = &mut (&mut self.buffer).limit(READ);
        let read = match &mut self.upstream {
            Some(Upstream::Plain(stream)) => stream.read_buf(buffer).await,
            Some(Upstream::Tls(stream)) => stream.read_buf(buffer).await,
            None => Ok(0),
        };
        match read {
            Ok(0) => self.handshake.handle_eof(Peer::Upstream),
            Ok(_) => self.handshake.handle_data(Peer::Upstream, &self.buffer),
            Err(error) => return Err(ConnError::UpstreamIo(error.to_string())),
        }
        Ok(())
    }

    async fn send_client(&mut self, bytes: &[u8]) -> Result<(), ConnError> {
        let Some(client) = &mut self.client else { return Ok(()) };
        let sent = async {
            client.write_all(bytes).await?;
            client.flush().await
        };
        sent.await.map_err(|error| ConnError::ClientIo(error.to_string()))
    }

    async fn send_upstream(&mut self, bytes: &[u8]) -> Result<(), ConnError> {
        let sent = async {
            match &mut self.upstream {
                Some(Upstream::Plain(stream)) => stream.write_all(bytes).await,
                Some(Upstream::Tls(stream)) => {
                    stream.write_all(bytes).await?;
                    stream.flush().await
                }
                None => Ok(()),
            }
        };
        sent.await.map_err(|error| ConnError::UpstreamIo(error.to_string()))
    }
}
