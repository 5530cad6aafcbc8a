//! The login as one machine between two peers: a server that lets the client in without a password, and a client that
//! logs in upstream with a credential of the relay.
//!
//! It is driven as [`proxy`](crate::proxy) says.

use std::collections::VecDeque;

use bytes::{BufMut as _, Bytes, BytesMut};
use zeroize::Zeroizing;

use super::door::{self, Answer, Exchange};
use super::message::{self, Authentication, Message};
use super::negotiation::{Negotiation, Step};
use super::parameters::{self, READ_ONLY, ReadOnly};
use super::sasl::Scram;
use super::settling::{Settled, Settling, said};
use super::startup::{self, Startup};
use crate::Malformed;
use crate::error_text::ErrorText;
use crate::login::{Action, Peer, Refusal, Secret, SecretKind};

/// `feature_not_supported`, with which RDS Proxy refuses parameters of a startup packet that it does not know.
const NOT_SUPPORTED: &str = "0A000";

struct Login {
    user: String,
    secret: Zeroizing<Vec<u8>>,
    kind: SecretKind,
    scram: Option<Scram>,
}

enum State {
    /// Waiting for the client's startup packet.
    Opening(Negotiation),
    /// The client was asked for the relay's password.
    Door(Box<Exchange>),
    /// Dial, TLS and credential, in this order.
    Dial,
    AskTls,
    AwaitTlsAnswer,
    NeedCredential,
    /// The startup packet is sent; the upstream speaks.
    Login(Login),
    /// The upstream has let us in; its parameters pass until it is ready.
    Settling(Settling),
    /// The client has everything; it is too late for anything else.
    Spliced,
    Ended,
}

/// What does not depend on the connection's bytes.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// What a client gets that names none.
    pub database: Option<String>,
    /// Whether the relay has a certificate for its clients, so that an SSLRequest is answered with yes.
    pub offer_tls: bool,
    /// Who the connection is for: in `application_name`, before what the client calls itself.
    pub person: Option<String>,
    pub read_only: ReadOnly,
    /// What a client has to prove; `None`: any user comes in.
    pub demand: Option<door::Demand>,
}

/// See the module.
pub struct Handshake {
    state: State,
    settings: Settings,
    /// Whether the connection carries a cancel request instead of a login.
    cancelling: bool,
    /// Whether the client has proven what it must.
    admitted: bool,
    /// Whether the client has heard anything of the upstream.
    told: bool,
    startup: Option<Startup>,
    client_binding: Option<Vec<u8>>,
    binding: Option<Vec<u8>>,
    from_client: BytesMut,
    from_upstream: BytesMut,
    /// Messages for the client that came before the upstream let us in.
    held: BytesMut,
    process: Option<u32>,
    queue: VecDeque<Action>,
}

impl Handshake {
    pub fn new(settings: Settings) -> Self {
        Self {
            state: State::Opening(Negotiation::new(settings.offer_tls)),
            settings,
            cancelling: false,
            admitted: false,
            told: false,
            startup: None,
            client_binding: None,
            binding: None,
            from_client: BytesMut::new(),
            from_upstream: BytesMut::new(),
            held: BytesMut::new(),
            process: None,
            queue: VecDeque::new(),
        }
    }

    /// For a cancel request: dials and does TLS, then ends with an empty `Cancel` where the startup packet would go.
    pub fn for_cancel() -> Self {
        Self { state: State::Dial, cancelling: true, ..Self::new(Settings::default()) }
    }

    /// Whether the client has said what it wants, and has proven what it must.
    pub fn has_opened(&self) -> bool {
        self.admitted || self.cancelling
    }

    /// Whether the client's startup packet is in. Before that the server says nothing about what it waits for in vain.
    pub fn has_startup(&self) -> bool {
        self.startup.is_some()
    }

    /// What the client calls its program, for logs.
    pub fn client_program(&self) -> Option<String> {
        parameters::program(self.startup.as_ref()?)
    }

    /// The process of the server that has the session.
    pub fn process(&self) -> Option<u32> {
        self.process
    }

    /// The ErrorResponse that tells the client why its connection ends.
    pub fn encode_error(&self, error: &ErrorText) -> Bytes {
        let mut packet = BytesMut::new();
        error.fields("FATAL").encode(&mut packet);
        packet.freeze()
    }

    /// Whether the client has sent something that was not looked at yet.
    pub fn has_more_of_client(&self) -> bool {
        !self.from_client.is_empty()
    }

    pub fn handle_data(&mut self, peer: Peer, data: &[u8]) {
        match peer {
            Peer::Client => self.from_client.put_slice(data),
            Peer::Upstream => self.from_upstream.put_slice(data),
        }
    }

    pub fn handle_eof(&mut self, peer: Peer) {
        self.refuse(match peer {
            Peer::Client => Refusal::ClientGone,
            Peer::Upstream => Refusal::UpstreamGone,
        });
    }

    pub fn handle_dialed(&mut self) {
        if matches!(self.state, State::Dial) {
            self.state = State::AskTls;
        }
    }

    /// `binding` is the `tls-server-end-point` hash of the server's certificate (RFC 5929), if it has one: the upstream's,
    /// which is verified, or ours. `alpn`: the client has named the protocol `postgresql`.
    pub fn handle_tls(&mut self, peer: Peer, binding: Option<Vec<u8>>, alpn: bool) {
        match (peer, &mut self.state) {
            (Peer::Client, State::Opening(negotiation)) => {
                negotiation.handle_tls(alpn);
                self.client_binding = binding;
            }
            (Peer::Upstream, State::AwaitTlsAnswer) => {
                self.binding = binding;
                self.state = State::NeedCredential;
            }
            _ => {}
        }
    }

    /// What a client gets that names no database, if that is known only now.
    pub fn set_database(&mut self, database: Option<&str>) {
        self.settings.database = database.map(str::to_owned);
    }

    /// The upstream does not take the parameter for a session that only reads, if that is known only now.
    pub fn read_only_by_statement(&mut self) {
        if self.settings.read_only == ReadOnly::Parameter {
            self.settings.read_only = ReadOnly::Statement;
        }
    }

    pub fn handle_credential(&mut self, user: &str, secret: &[u8], kind: SecretKind) {
        let (State::NeedCredential, Some(startup)) = (&self.state, &self.startup) else { return };
        let Settings { database, person, read_only, .. } = &self.settings;
        match parameters::packet(startup, user, database.as_deref(), person.as_deref(), *read_only) {
            Ok(packet) => {
                self.queue.push_back(Action::Send(Peer::Upstream, packet));
                let secret = Zeroizing::new(secret.to_vec());
                self.state = State::Login(Login { user: user.to_owned(), secret, kind, scram: None });
            }
            Err(refusal) => drop(self.refuse(refusal)),
        }
    }

    /// Starts over with a new upstream connection. False if the client is not let in yet or has been told something
    /// already.
    #[must_use]
    pub fn retry(&mut self) -> bool {
        let fresh = self.admitted && !self.told;
        if fresh {
            self.from_upstream.clear();
            self.held.clear();
            self.queue.clear();
            self.binding = None;
            self.state = State::Dial;
        }
        fresh
    }

    /// What to do now; see the type.
    pub fn poll_action(&mut self) -> Action {
        loop {
            if let Some(action) = self.queue.pop_front() {
                return action;
            }
            if let Some(waiting) = self.advance() {
                return waiting;
            }
        }
    }

    /// Moves the state on. `None`: something is in the queue or the state has changed.
    fn advance(&mut self) -> Option<Action> {
        match std::mem::replace(&mut self.state, State::Ended) {
            State::Opening(mut negotiation) => match negotiation.poll(&mut self.from_client) {
                Step::Do(action) => {
                    if !matches!(action, Action::Cancel(_)) {
                        self.state = State::Opening(negotiation);
                    }
                    Some(action)
                }
                Step::Refuse(refusal) => self.refuse(refusal),
                Step::Startup(startup) => self.open(startup),
            },
            State::Door(exchange) => match message::decode(&mut self.from_client) {
                Ok(None) => {
                    self.state = State::Door(exchange);
                    Some(Action::Read(Peer::Client))
                }
                Ok(Some(message)) => self.admit(exchange, &message),
                Err(error) => self.refuse(Refusal::ClientMalformed(error)),
            },
            State::Dial => {
                self.state = State::Dial;
                Some(Action::Dial)
            }
            State::AskTls => {
                let mut request = BytesMut::new();
                startup::encode_ssl_request(&mut request);
                self.state = State::AwaitTlsAnswer;
                Some(Action::Send(Peer::Upstream, request.freeze()))
            }
            State::AwaitTlsAnswer => {
                self.state = State::AwaitTlsAnswer;
                match self.from_upstream.split().as_ref() {
                    [] => Some(Action::Read(Peer::Upstream)),
                    // Nothing may follow the answer in clear text: CVE-2021-23222.
                    [b'S'] => Some(Action::StartTls { peer: Peer::Upstream, already_read: Bytes::new() }),
                    [b'S', ..] => self.refuse(Refusal::UpstreamMalformed(Malformed("it sent data before TLS"))),
                    // An error text before TLS is anybody's: CVE-2024-10977.
                    _ => self.refuse(Refusal::UpstreamWithoutTls),
                }
            }
            State::NeedCredential if self.cancelling => Some(Action::Cancel(Bytes::new())),
            State::NeedCredential => {
                self.state = State::NeedCredential;
                Some(Action::NeedCredential)
            }
            State::Login(login) => match message::decode(&mut self.from_upstream) {
                Ok(None) => {
                    self.state = State::Login(login);
                    Some(Action::Read(Peer::Upstream))
                }
                Ok(Some(message)) => self.log_in(login, &message),
                Err(error) => self.refuse(Refusal::UpstreamMalformed(error)),
            },
            State::Settling(settling) => self.settle(settling),
            ended @ (State::Spliced | State::Ended) => {
                self.state = ended;
                self.refuse(Refusal::UpstreamGone)
            }
        }
    }

    fn open(&mut self, startup: Startup) -> Option<Action> {
        self.startup = Some(startup);
        let Some(demand) = self.settings.demand.take() else {
            self.admitted = true;
            self.state = State::Dial;
            return None;
        };
        let exchange = Exchange::new(demand, self.client_binding.take());
        let mut out = BytesMut::new();
        exchange.ask(&mut out);
        self.state = State::Door(Box::new(exchange));
        Some(Action::Send(Peer::Client, out.freeze()))
    }

    fn admit(&mut self, mut exchange: Box<Exchange>, message: &Message) -> Option<Action> {
        let mut out = BytesMut::new();
        match exchange.answer(message, &mut out) {
            Ok(answer) => {
                self.admitted = answer == Answer::Admitted;
                self.state = if self.admitted { State::Dial } else { State::Door(exchange) };
                Some(Action::Send(Peer::Client, out.freeze()))
            }
            Err(refusal) => self.refuse(refusal),
        }
    }

    fn log_in(&mut self, mut login: Login, message: &Message) -> Option<Action> {
        match message.tag {
            b'R' => {
                let asked = match Authentication::parse(&message.body) {
                    Ok(asked) => asked,
                    Err(error) => return self.refuse(Refusal::UpstreamMalformed(error)),
                };
                if asked == Authentication::Ok {
                    if login.scram.is_some() {
                        // The proof of the server comes with SaslFinal; skipping it is how an impostor would do it.
                        return self.refuse(Refusal::UpstreamMalformed(Malformed("it skipped the end of SCRAM")));
                    }
                    self.held.put_slice(&message.raw);
                    let statement = self.settings.read_only == ReadOnly::Statement
                        && !self.startup.as_ref().is_some_and(parameters::is_physical_replication);
                    self.state = State::Settling(Settling::new(self.held.split(), statement));
                    return None;
                }
                match answer(&mut login, asked, self.binding.as_deref()) {
                    Ok(reply) => {
                        if let Some(reply) = reply {
                            self.queue.push_back(Action::SendSecret(reply));
                        }
                        self.state = State::Login(login);
                        None
                    }
                    Err(refusal) => self.refuse(refusal),
                }
            }
            b'E' => {
                let said = said(&message.body);
                let refusal = self.refused_parameter(&said).unwrap_or(Refusal::UpstreamRefused(said));
                self.refuse(refusal)
            }
            // NegotiateProtocolVersion and notices wait for the end of the login.
            b'v' | b'N' => {
                if self.held.len() > message::LOGIN_MESSAGE_MAX {
                    return self.refuse(Refusal::UpstreamMalformed(Malformed("it sends notices without end")));
                }
                self.held.put_slice(&message.raw);
                self.state = State::Login(login);
                None
            }
            _ => self.refuse(Refusal::UpstreamMalformed(Malformed("an unexpected message during the login"))),
        }
    }

    fn settle(&mut self, mut settling: Settling) -> Option<Action> {
        let settled = settling.poll(&mut self.from_upstream);
        self.process = settling.process();
        self.state = State::Settling(settling);
        match settled {
            Settled::Ask(query) => Some(Action::Send(Peer::Upstream, query)),
            Settled::Failed(said, bytes) => {
                if !self.told
                    && let Some(refusal) = self.refused_parameter(&said)
                {
                    return self.refuse(refusal);
                }
                self.told = true;
                self.refuse(Refusal::Rejected(said));
                Some(Action::Send(Peer::Client, bytes))
            }
            Settled::Malformed(error) => self.refuse(Refusal::UpstreamMalformed(error)),
            Settled::NotReadOnly(said) => self.refuse(Refusal::NotReadOnly(said)),
            Settled::Read => Some(Action::Read(Peer::Upstream)),
            Settled::Ready(to_client) => {
                self.told = true;
                self.state = State::Spliced;
                Some(Action::Splice { to_upstream: self.from_client.split().freeze(), to_client })
            }
            Settled::Tell(bytes) => {
                self.told = true;
                Some(Action::Send(Peer::Client, bytes))
            }
        }
    }

    /// The refusal of an upstream that does not take the parameter for a session that only reads; the next attempt says it
    /// by a statement. Only with this SQLSTATE: on a pooler that gives its connections to several clients in turn the
    /// setting would stay behind for others.
    fn refused_parameter(&mut self, said: &ErrorText) -> Option<Refusal> {
        let is_ours = self.settings.read_only == ReadOnly::Parameter;
        if !is_ours || said.sqlstate != NOT_SUPPORTED || !said.message.contains(READ_ONLY) {
            return None;
        }
        self.settings.read_only = ReadOnly::Statement;
        Some(Refusal::ReadOnlyParameter(said.clone()))
    }

    fn refuse(&mut self, refusal: Refusal) -> Option<Action> {
        self.state = State::Ended;
        self.queue.push_back(Action::Refuse(refusal));
        None
    }
}

/// The answer to what the upstream asks, where one is due.
fn answer(login: &mut Login, asked: Authentication, binding: Option<&[u8]>) -> Result<Option<Secret>, Refusal> {
    let mut out = BytesMut::new();
    let token = login.kind == SecretKind::Token;
    const OUT_OF_TURN: Refusal = Refusal::UpstreamMalformed(Malformed("a SASL message out of turn"));
    let malformed = Refusal::UpstreamMalformed;
    match asked {
        Authentication::CleartextPassword => message::encode_password(&login.secret, &mut out),
        Authentication::Md5Password(_) if token => return Err(Refusal::WantsPassword("an md5 password")),
        Authentication::Md5Password(salt) => {
            let hash = postgres_protocol::authentication::md5_hash(login.user.as_bytes(), &login.secret, salt);
            message::encode_password(hash.as_bytes(), &mut out);
        }
        Authentication::Sasl(_) if token => return Err(Refusal::WantsPassword("a SCRAM-SHA-256 password")),
        Authentication::Sasl(_) if login.scram.is_some() => {
            return Err(malformed(Malformed("a second SASL exchange")));
        }
        Authentication::Sasl(offered) => {
            login.scram = Some(Scram::start(&offered, binding, &login.secret, &mut out).map_err(malformed)?);
        }
        Authentication::SaslContinue(data) => {
            let scram = login.scram.as_mut().ok_or(OUT_OF_TURN)?;
            scram.continue_with(&data, &mut out).map_err(malformed)?;
        }
        Authentication::SaslFinal(data) => {
            let mut scram = login.scram.take().ok_or(OUT_OF_TURN)?;
            scram.finish(&data).map_err(malformed)?;
            return Ok(None);
        }
        Authentication::Ok => return Ok(None),
        Authentication::Unknown(code) => return Err(Refusal::UnknownAuthentication(format!("code {code}"))),
    }
    Ok(Some(Secret::new(out.to_vec())))
}

#[cfg(test)]
mod tests;
