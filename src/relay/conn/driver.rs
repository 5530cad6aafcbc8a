//! Carries out what a login wants, for every engine: reads, writes, dial, TLS, credential, time limits.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bastion_wire::login::{Action, Peer, Refusal, SecretKind};
use bastion_wire::proxy::Handshake;
use bytes::{BufMut as _, Bytes, BytesMut};
use secrecy::ExposeSecret as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::credential::{Admission, Cache, Kind, Loan};
use crate::relay::client_io::{ClientIo, Early};
use crate::relay::clock::wall_clock;
use crate::relay::conn::patience::{Patience, TooLate};
use crate::relay::error::ConnError;
use crate::relay::state::{RelayState, Served};
use crate::relay::upstream;
use crate::tls;
use crate::types::Target;

/// A client that has connected says what it wants at once; this also covers a slow TLS handshake.
pub(super) const OPENING_TIMEOUT: Duration = Duration::from_secs(15);
/// The same through the tunnel, which the launcher only uses once its client has spoken, and which may be mending itself.
pub(super) const TUNNEL_OPENING_TIMEOUT: Duration = Duration::from_secs(120);
/// One read of the login.
const READ: usize = 4096;

/// The upstream end, with TLS or, for targets whose clients bring their own, without.
pub(super) enum Upstream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Upstream {
    /// One read; 0 at the end. Cancel safe.
    pub(super) async fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(buffer).await,
            Self::Tls(stream) => stream.read(buffer).await,
        }
    }

    /// Writes and flushes.
    pub(super) async fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match self {
            Self::Plain(stream) => stream.write_all(bytes).await,
            Self::Tls(stream) => {
                stream.write_all(bytes).await?;
                stream.flush().await
            }
        }
    }
}

/// How a login ended.
pub(super) enum Outcome {
    /// It was a cancel request, for a connection of its own.
    Cancel(Bytes),
    /// Both ends may talk, once `to_client` has gone to the client; the client has said `early` already.
    Splice { early: Bytes, to_client: Bytes },
}

/// One login under way. What it holds at the end belongs to whoever goes on with the connection.
pub(super) struct Driver<'a> {
    shared: &'a RelayState,
    served: &'a Served,
    admission: &'a Admission,
    conn_id: u64,
    pub(super) handshake: Handshake,
    /// `None` after the client's own TLS handshake failed.
    pub(super) client: Option<Box<dyn ClientIo>>,
    pub(super) upstream: Option<Upstream>,
    /// The target with what its secret says, where the configuration leaves that to the secret.
    completed: Option<Target>,
    /// The logins of this connection, in their order.
    tried: Vec<Loan>,
    /// The login of the next attempt, if it has been chosen already.
    pub(super) next: Option<Loan>,
    /// The upstream was dialled for a client that had not said anything: it may have lost its patience with the client.
    dialed_early: bool,
    /// What ends it with [`ConnError::Shutdown`].
    pub(super) cut: CancellationToken,
    buffer: BytesMut,
}

impl<'a> Driver<'a> {
    pub(super) fn new(
        shared: &'a RelayState,
        served: &'a Served,
        admission: &'a Admission,
        conn_id: u64,
        handshake: Handshake,
        client: Option<Box<dyn ClientIo>>,
    ) -> Self {
        let buffer = BytesMut::with_capacity(READ);
        Self {
            shared,
            served,
            admission,
            conn_id,
            handshake,
            client,
            upstream: None,
            completed: None,
            tried: Vec::new(),
            next: None,
            dialed_early: false,
            cut: shared.cut.clone(),
            buffer,
        }
    }

    /// What lends logins; `None`: the client logs in itself.
    fn cache(&self) -> Result<Option<&'a Cache>, ConnError> {
        match self.admission {
            Admission::Client => Ok(None),
            Admission::Login(cache) => Ok(Some(cache)),
            Admission::Refused(error) => Err(error.clone().into()),
        }
    }

    /// A login for this connection.
    async fn lend(&mut self, cache: &Cache) -> Result<Loan, ConnError> {
        match self.next.take() {
            Some(loan) => Ok(loan),
            None => Ok(cache.credential(wall_clock()).await?),
        }
    }

    /// The login that the database has accepted.
    pub(super) fn take_loan(&mut self) -> Option<Loan> {
        self.tried.pop()
    }

    /// Where the login goes, as far as it is known.
    pub(super) fn target(&self) -> &Target {
        self.completed.as_ref().unwrap_or(&self.served.target)
    }

    /// Who the relay logs in as, as far as it is known.
    pub(super) fn user(&self) -> Option<&str> {
        self.tried.last().map(|loan| loan.user.as_str()).or_else(|| self.served.target.credential.db_user())
    }

    /// Drives the login to its end, with another try where the source has another login. The client has `opening` to say
    /// what it wants. Not cancel safe.
    pub(super) async fn run(&mut self, opening: Duration) -> Result<Outcome, ConnError> {
        let outcome = self.attempts(opening).await;
        if let Some(greeting) = self.handshake.greeting() {
            self.served.greeting.learn(greeting);
        }
        if outcome.is_ok() {
            self.served.greeting.logged_in();
        }
        outcome
    }

    async fn attempts(&mut self, opening: Duration) -> Result<Outcome, ConnError> {
        let mut patience = Patience::new(opening, self.conn_id);
        let target = self.served.target.name.as_str();
        loop {
            let action = self.handshake.poll_action();
            let failure = match self.carry_out_for_client(action, &mut patience).await {
                Ok(None) => continue,
                Ok(Some(outcome)) => {
                    if let (Ok(Some(cache)), Some(loan)) = (self.cache(), self.tried.last()) {
                        cache.accepted(loan, wall_clock()).await;
                    }
                    return Ok(outcome);
                }
                Err(failure) => failure,
            };
            match patience.for_upstream(target, self.start_over(&failure)).await {
                Ok(Ok(true)) => {}
                Ok(Err(stale)) => return Err(stale),
                Ok(Ok(false)) | Err(TooLate) => return Err(failure),
            }
        }
    }

    /// Whether another attempt is worth it, and under way: the database refused a login and the source has another one, or
    /// it has closed a connection on which it had waited for the client (`connect_timeout` of MySQL, 10 s), or it wants to
    /// be told in another way that the session only reads. An error if the source cannot say whether it has another one.
    async fn start_over(&mut self, failure: &ConnError) -> Result<bool, ConnError> {
        if std::mem::take(&mut self.dialed_early) && self.tried.is_empty() && failure.is_lost_upstream() {
            debug!(conn_id = self.conn_id, "the database has closed the connection before the login, dialling again");
            self.upstream = None;
            return Ok(self.handshake.retry());
        }
        if let ConnError::Refused(Refusal::ReadOnlyParameter(said)) = failure {
            debug!(
                conn_id = self.conn_id,
                said = said.message,
                "the read-only parameter was refused, trying a statement"
            );
            self.next = self.tried.pop();
            self.upstream = None;
            return Ok(self.handshake.retry());
        }
        let Some(said) = failure.stale_credential() else { return Ok(false) };
        let Ok(Some(cache)) = self.cache() else { return Ok(false) };
        match cache.after_refusal(&self.tried, wall_clock()).await {
            Ok(Some(loan)) if self.handshake.retry() => {
                debug!(conn_id = self.conn_id, "the login was refused, trying another one");
                self.next = Some(loan);
                self.upstream = None;
                Ok(true)
            }
            Ok(_) => Ok(false),
            Err(error) => Err(ConnError::Stale { said: Box::new(said.clone()), error }),
        }
    }

    /// Lets the secret say where the database is, if the configuration does not.
    async fn complete_target(&mut self) -> Result<(), ConnError> {
        let Some(cache) = self.cache()? else { return Ok(()) };
        if !self.served.target.needs_secret() {
            return Ok(());
        }
        let loan = self.lend(cache).await?;
        let said = &loan.endpoint;
        let target = self.served.target.with_secret(said.host.as_deref(), said.port, said.database.as_deref());
        self.handshake.set_database(target.database.as_deref());
        if target.is_rds_proxy() {
            self.handshake.read_only_by_statement();
        }
        self.completed = Some(target);
        self.next = Some(loan);
        Ok(())
    }

    /// Carries out `action`, unless it takes too long or the client leaves while the upstream keeps it waiting: nobody wants
    /// the login then. Whatever interrupts it, the end of the relay too, there is still the client, who is told.
    async fn carry_out_for_client(
        &mut self,
        action: Action,
        patience: &mut Patience,
    ) -> Result<Option<Outcome>, ConnError> {
        let for_upstream = matches!(
            action,
            Action::Dial
                | Action::NeedCredential
                | Action::Read(Peer::Upstream)
                | Action::StartTls { peer: Peer::Upstream, .. }
        );
        let watched = for_upstream && !self.handshake.has_more_of_client();
        let (cut, target, limit) = (self.cut.clone(), self.served.target.name.as_str(), patience.limit(&action));
        let Some(mut client) = self.client.take_if(|_| watched) else {
            return tokio::select! {
                biased;
                done = patience.carry_out(target, limit, self.carry_out(action)) => done,
                () = cut.cancelled() => Err(ConnError::Shutdown),
            };
        };
        let mut early = BytesMut::new();
        let (done, gone) = {
            let mut carrying = pin!(patience.carry_out(target, limit, self.carry_out(action)));
            let mut speaks = true;
            loop {
                tokio::select! {
                    biased;
                    done = &mut carrying => break (done, false),
                    () = cut.cancelled() => break (Err(ConnError::Shutdown), false),
                    read = client.read_buf(&mut early), if speaks => match read {
                        Ok(0) | Err(_) => break (Ok(None), true),
                        // It is there, and does not wait for its turn.
                        Ok(_) => speaks = false,
                    },
                }
            }
        };
        self.client = Some(client);
        if gone {
            return Err(ConnError::Refused(Refusal::ClientGone));
        }
        if !early.is_empty() {
            self.handshake.handle_data(Peer::Client, &early);
        }
        done
    }

    async fn carry_out(&mut self, action: Action) -> Result<Option<Outcome>, ConnError> {
        match action {
            Action::Cancel(packet) => return Ok(Some(Outcome::Cancel(packet))),
            Action::Dial => {
                self.complete_target().await?;
                self.dialed_early = !self.handshake.has_opened();
                if self.dialed_early {
                    self.served.greeting.dialled_early();
                }
                self.upstream = Some(Upstream::Plain(upstream::dial(self.target()).await?));
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
                return Ok(Some(Outcome::Splice { early: to_upstream, to_client }));
            }
            Action::StartTls { peer: Peer::Client, already_read } => self.accept_tls(already_read).await?,
            Action::StartTls { peer: Peer::Upstream, .. } => {
                if let Some(Upstream::Plain(stream)) = self.upstream.take() {
                    let tls = &self.shared.upstream_tls;
                    let (stream, binding) = upstream::start_tls(stream, self.target(), tls).await?;
                    self.upstream = Some(Upstream::Tls(Box::new(stream)));
                    self.handshake.handle_tls(Peer::Upstream, binding, false);
                }
            }
        }
        Ok(None)
    }

    async fn provide_credential(&mut self) -> Result<(), ConnError> {
        let Some(cache) = self.cache()? else { return Ok(()) };
        let loan = self.lend(cache).await?;
        let kind = match loan.kind {
            Kind::Password => SecretKind::Password,
            Kind::Token => SecretKind::Token,
        };
        // The one line that exposes a database secret.
        self.handshake.handle_credential(&loan.user, loan.secret.expose_secret().as_bytes(), kind);
        self.tried.push(loan);
        Ok(())
    }

    async fn accept_tls(&mut self, already_read: Bytes) -> Result<(), ConnError> {
        let (Some(client), Some(tls)) = (self.client.take(), &self.shared.client_tls) else { return Ok(()) };
        let accepted = TlsAcceptor::from(Arc::clone(tls)).accept(Early::new(already_read, client)).await;
        let stream = accepted.map_err(|error| ConnError::ClientTls(error.to_string()))?;
        let alpn = stream.get_ref().1.alpn_protocol() == Some(tls::ALPN_POSTGRESQL);
        self.client = Some(Box::new(stream));
        self.handshake.handle_tls(Peer::Client, self.shared.client_binding.clone(), alpn);
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

    pub(super) async fn send_upstream(&mut self, bytes: &[u8]) -> Result<(), ConnError> {
        let Some(upstream) = &mut self.upstream else { return Ok(()) };
        upstream.send(bytes).await.map_err(|error| ConnError::UpstreamIo(error.to_string()))
    }
}
