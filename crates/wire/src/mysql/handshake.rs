//! The login as one machine between two peers. It is driven as [`proxy`](crate::proxy) says.
//!
//! The server speaks first, so the upstream is dialled first and its greeting shown to the client, with the client's own
//! challenge and without what must not hold between the two ([`MASKED`]). Where the greeting is known from a connection
//! before, it may be shown without asking the upstream, which is dialled once the client is in. What the client says about
//! itself goes upstream inside TLS: the same capabilities, so that the bytes fit on both sides when they are copied later.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use zeroize::Zeroizing;

use super::agreed::Agreed;
use super::auth::Exchange;
use super::capability::{
    CONNECT_ATTRS, CONNECT_WITH_DB, LOCAL_FILES, LONG_PASSWORD, MASKED, NEEDED, PLUGIN_AUTH, QUERY_ATTRIBUTES, SSL,
};
use super::change_user::{ChangeUser, Session};
use super::door::{self, Admitted, Verifier};
use super::greeting::{self, Greeting, SCRAMBLE};
use super::packet::{self, ERR, OK, Packet, Reader, said};
use super::response::{Head, Opening, Response};
use super::server::Server;
use super::session_steps::READ_ONLY;
use crate::Malformed;
use crate::error_text::ErrorText;
use crate::login::{Action, Peer, Refusal, Secret, SecretKind};

/// Most packets that an upstream may send during its login; MariaDB switches once for each plugin of a user.
const ROUNDS_MAX: u8 = 16;

/// What does not depend on the connection's bytes.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// What a client gets that names none.
    pub database: Option<String>,
    /// Whether the relay has a certificate for its clients.
    pub offer_tls: bool,
    /// Connection attributes that the upstream gets before those of the client. Their names begin with [`OUR_ATTRIBUTES`].
    pub attributes: Vec<(&'static str, String)>,
    /// Transactions of the session are read-only unless the client asks for others.
    pub read_only: bool,
    /// What a client has to prove; `None`: any answer lets it in.
    pub demand: Option<Arc<Verifier>>,
    /// Whether somebody reads the statements: then none may hide behind attributes.
    pub statements: bool,
    /// Whether the client may send files that its statements name.
    pub local_infile: bool,
    /// The greeting of a connection before, where the client is to see that one.
    pub remembered: Option<Greeting>,
}

impl Settings {
    /// What holds on neither side.
    fn masked(&self) -> u32 {
        let statements = if self.statements { QUERY_ATTRIBUTES } else { 0 };
        let local_infile = if self.local_infile { LOCAL_FILES } else { 0 };
        MASKED & !local_infile | statements
    }
}

struct Login {
    secret: Zeroizing<Vec<u8>>,
    kind: SecretKind,
    exchange: Exchange,
    rounds: u8,
}

enum State {
    /// The client is to see a greeting that is known.
    Remembered(Greeting),
    Dial,
    /// The upstream speaks first.
    Greeting,
    /// The client has the greeting.
    Client,
    /// The client was asked to use this plugin.
    Switched(&'static str),
    AskTls,
    AwaitTls,
    NeedCredential,
    Login(Login),
    /// The upstream has let us in with this OK packet; it is setting up the session.
    Settling(Bytes),
    /// The client has its OK.
    Spliced,
    Ended,
}

/// See the module.
pub struct Handshake {
    state: State,
    settings: Settings,
    challenge: [u8; SCRAMBLE],
    /// The greeting of the upstream that is connected now.
    greeting: Option<Greeting>,
    /// The capabilities that the client was offered, once it has its greeting.
    offered: Option<u32>,
    /// MariaDB's further ones.
    offered_extended: u32,
    client_tls: bool,
    response: Option<Response>,
    admitted: Option<Admitted>,
    /// Of our next packet to each peer.
    client_sequence: u8,
    upstream_sequence: u8,
    from_client: BytesMut,
    from_upstream: BytesMut,
    queue: VecDeque<Action>,
}

impl Handshake {
    /// `random` makes the challenge for the client.
    pub fn new(mut settings: Settings, random: [u8; SCRAMBLE]) -> Self {
        Self {
            state: settings.remembered.take().map_or(State::Dial, State::Remembered),
            settings,
            challenge: greeting::scramble(random),
            greeting: None,
            offered: None,
            offered_extended: 0,
            client_tls: false,
            response: None,
            admitted: None,
            client_sequence: 0,
            upstream_sequence: 0,
            from_client: BytesMut::new(),
            from_upstream: BytesMut::new(),
            queue: VecDeque::new(),
        }
    }

    /// Whether the client has said who it is.
    pub fn has_opened(&self) -> bool {
        self.admitted.is_some()
    }

    /// The greeting of the upstream, to be remembered.
    pub fn greeting(&self) -> Option<&Greeting> {
        self.greeting.as_ref()
    }

    /// What the client calls its program, for logs.
    pub fn client_program(&self) -> Option<String> {
        self.response.as_ref()?.program()
    }

    /// What holds for the session behind the login.
    pub fn agreed(&self) -> Agreed {
        Agreed {
            capabilities: self.capabilities(),
            extended: self.response.as_ref().map_or(0, |response| response.head.extended()),
            server: self.server(),
            stops_at_reset: self.stops_at_resets(),
        }
    }

    /// Whether the session must be set up again behind a reset.
    pub fn stops_at_resets(&self) -> bool {
        self.settings.read_only
    }

    fn server(&self) -> Server {
        self.greeting.as_ref().map_or(Server::MySql, Greeting::server)
    }

    /// Those that the client has agreed to.
    fn capabilities(&self) -> u32 {
        self.response.as_ref().map_or(0, |response| response.head.capabilities)
    }

    /// The exchange for a command that is not for the database.
    pub fn change_user(&self, random: [u8; SCRAMBLE], command: &[u8]) -> ChangeUser {
        let session = Session {
            agreed: self.agreed(),
            collation: None,
            read_only: self.settings.read_only,
            demand: self.settings.demand.clone(),
            first_challenge: self.challenge,
        };
        ChangeUser::new(session, random, command)
    }

    /// The ERR packet that tells the client why its connection ends. Before the greeting there is no SQLSTATE in it,
    /// because nobody has agreed on protocol 4.1.
    pub fn encode_error(&self, error: &ErrorText) -> Bytes {
        // A client whose packet is due sends it before it reads.
        let due = match self.state {
            State::Client => 1,
            State::Switched(_) => 2,
            _ => 0,
        };
        error.packet(self.client_sequence.wrapping_add(due), self.offered.is_some())
    }

    /// Whether the client has sent something that was not looked at yet.
    pub fn has_more_of_client(&self) -> bool {
        !self.from_client.is_empty()
    }

    pub fn handle_data(&mut self, peer: Peer, data: &[u8]) {
        match peer {
            Peer::Client => self.from_client.extend_from_slice(data),
            Peer::Upstream => self.from_upstream.extend_from_slice(data),
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
            self.state = State::Greeting;
        }
    }

    pub fn handle_tls(&mut self, peer: Peer) {
        match (peer, &self.state) {
            (Peer::Client, State::Client) => self.client_tls = true,
            (Peer::Upstream, State::AwaitTls) => self.state = State::NeedCredential,
            _ => {}
        }
    }

    /// What a client gets that names no database, if that is known only now.
    pub fn set_database(&mut self, database: Option<&str>) {
        self.settings.database = database.map(str::to_owned);
    }

    pub fn handle_credential(&mut self, user: &str, secret: &[u8], kind: SecretKind) {
        let (State::NeedCredential, Some(greeting), Some(response)) = (&self.state, &self.greeting, &self.response)
        else {
            return;
        };
        let (exchange, answer) = Exchange::first(&greeting.plugin, &greeting.scramble, secret, kind);
        let mut attributes: Vec<(Bytes, Bytes)> = Vec::new();
        for (name, value) in &self.settings.attributes {
            attributes.push((Bytes::from_static(name.as_bytes()), Bytes::copy_from_slice(value.as_bytes())));
        }
        let clients = response.attributes.iter().filter(|(name, _)| !is_ours(name));
        attributes.extend(clients.cloned());
        let upstream = Response {
            head: self.head(greeting, response),
            user: Bytes::copy_from_slice(user.as_bytes()),
            answer: Bytes::copy_from_slice(answer.expose()),
            database: self.database(response),
            plugin: Some(Bytes::from_static(exchange.plugin().as_bytes())),
            attributes,
        };
        let mut payload = BytesMut::new();
        upstream.encode(&mut payload);
        let secret = Zeroizing::new(secret.to_vec());
        self.send_secret(&payload);
        self.state = State::Login(Login { secret, kind, exchange, rounds: 0 });
    }

    /// Starts over with a new upstream connection, for a credential that was stale. False if the client is not there yet
    /// or has its OK. The new connection has another number than the client was told, so its KILL finds nothing.
    #[must_use]
    pub fn retry(&mut self) -> bool {
        let fresh = self.admitted.is_some() && !matches!(self.state, State::Spliced);
        if fresh {
            self.from_upstream.clear();
            self.queue.clear();
            self.greeting = None;
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
            State::Remembered(greeting) => {
                // It is the number of no connection: KILL by it must find nobody.
                self.show(&Greeting { connection_id: 0, ..greeting });
                None
            }
            State::Dial => {
                self.state = State::Dial;
                Some(Action::Dial)
            }
            State::Greeting => match packet::decode(&mut self.from_upstream) {
                Ok(None) => {
                    self.state = State::Greeting;
                    Some(Action::Read(Peer::Upstream))
                }
                Ok(Some(packet)) => self.greet(&packet),
                Err(error) => self.refuse(Refusal::UpstreamMalformed(error)),
            },
            State::Client => match packet::decode(&mut self.from_client) {
                Ok(None) => {
                    self.state = State::Client;
                    Some(Action::Read(Peer::Client))
                }
                Ok(Some(packet)) => self.open(&packet),
                Err(error) => self.refuse(Refusal::ClientMalformed(error)),
            },
            State::Switched(plugin) => match packet::decode(&mut self.from_client) {
                Ok(None) => {
                    self.state = State::Switched(plugin);
                    Some(Action::Read(Peer::Client))
                }
                Ok(Some(packet)) => {
                    self.client_sequence = packet.sequence.wrapping_add(1);
                    self.admit(plugin, &packet.payload)
                }
                Err(error) => self.refuse(Refusal::ClientMalformed(error)),
            },
            State::AskTls => self.ask_tls(),
            State::AwaitTls => {
                self.state = State::AwaitTls;
                Some(Action::StartTls { peer: Peer::Upstream, already_read: Bytes::new() })
            }
            State::NeedCredential => {
                self.state = State::NeedCredential;
                Some(Action::NeedCredential)
            }
            State::Login(login) => match packet::decode(&mut self.from_upstream) {
                Ok(None) => {
                    self.state = State::Login(login);
                    Some(Action::Read(Peer::Upstream))
                }
                Ok(Some(packet)) => self.log_in(login, &packet),
                Err(error) => self.refuse(Refusal::UpstreamMalformed(error)),
            },
            State::Settling(ok) => match packet::decode(&mut self.from_upstream) {
                Ok(None) => {
                    self.state = State::Settling(ok);
                    Some(Action::Read(Peer::Upstream))
                }
                Ok(Some(packet)) if packet.payload.first() == Some(&OK) => self.splice(&ok),
                Ok(Some(packet)) => self.refuse(Refusal::NotReadOnly(said(&packet.payload))),
                Err(error) => self.refuse(Refusal::UpstreamMalformed(error)),
            },
            State::Spliced | State::Ended => self.refuse(Refusal::UpstreamGone),
        }
    }

    /// The upstream's first packet.
    fn greet(&mut self, packet: &Packet) -> Option<Action> {
        self.upstream_sequence = packet.sequence.wrapping_add(1);
        if packet.payload.first() == Some(&ERR) {
            return self.refuse(Refusal::UpstreamRefused(said(&packet.payload)));
        }
        let malformed = |what| Refusal::UpstreamMalformed(Malformed(what));
        let greeting = match Greeting::parse(&packet.payload) {
            Ok(greeting) => greeting,
            Err(error) => return self.refuse(Refusal::UpstreamMalformed(error)),
        };
        // What is sent in clear before the TLS handshake is anybody's, and must not count as said inside it.
        if !self.from_upstream.is_empty() {
            return self.refuse(malformed("it sent data before TLS"));
        }
        if greeting.capabilities & NEEDED != NEEDED {
            return self.refuse(malformed("it is older than MySQL 5.5.7"));
        }
        if greeting.capabilities & SSL == 0 {
            return self.refuse(Refusal::UpstreamWithoutTls);
        }
        let lacks = self.response.as_ref().is_some_and(|response| {
            response.head.capabilities & !(greeting.capabilities | LONG_PASSWORD) != 0
                || response.head.extended() & !greeting.extended() != 0
        });
        if lacks {
            self.greeting = Some(greeting);
            return self.refuse(malformed("it is another server than a moment ago and can do less: connect again"));
        }
        match self.response.is_some() {
            true => self.state = State::AskTls,
            false => self.show(&greeting),
        }
        self.greeting = Some(greeting);
        None
    }

    /// Shows the client this greeting.
    fn show(&mut self, greeting: &Greeting) {
        let mut capabilities = greeting.capabilities & !self.settings.masked();
        if self.settings.offer_tls {
            capabilities |= SSL;
        }
        let shown = Greeting {
            capabilities,
            scramble: Bytes::copy_from_slice(&self.challenge),
            plugin: Bytes::from_static(door::ANNOUNCED.as_bytes()),
            ..greeting.clone()
        };
        self.offered = Some(capabilities);
        self.offered_extended = greeting.extended();
        let mut payload = BytesMut::new();
        shown.encode(&mut payload);
        self.send_client(&payload);
        self.state = State::Client;
    }

    /// The client's first packet, or the first one inside TLS.
    fn open(&mut self, packet: &Packet) -> Option<Action> {
        self.client_sequence = packet.sequence.wrapping_add(1);
        let malformed = |what| Refusal::ClientMalformed(Malformed(what));
        match Opening::parse(&packet.payload, self.offered.unwrap_or_default()) {
            Err(error) => self.refuse(Refusal::ClientMalformed(error)),
            // The TLS handshake may follow at once: there is no answer to wait for.
            Ok(Opening::SslRequest) if self.settings.offer_tls && !self.client_tls => {
                self.state = State::Client;
                Some(Action::StartTls { peer: Peer::Client, already_read: self.from_client.split().freeze() })
            }
            Ok(Opening::SslRequest) => self.refuse(malformed(
                "it asks for TLS, which this relay does not offer: use ssl-mode=PREFERRED or DISABLED",
            )),
            Ok(Opening::Response(mut response)) => {
                if response.head.capabilities & SSL != 0 && !self.client_tls {
                    return self.refuse(malformed("it says that it uses TLS and does not"));
                }
                response.head.capabilities &= !self.settings.masked();
                response.head.mask_extended(self.offered_extended);
                let plugins = response.head.capabilities & PLUGIN_AUTH != 0;
                let plugin = match plugins {
                    true => door::plugin_for(response.plugin.as_deref()),
                    false => door::ANNOUNCED,
                };
                let answered =
                    !plugins || response.plugin.as_deref().is_none_or(|name| name == door::ANNOUNCED.as_bytes());
                let answer = response.answer.clone();
                self.response = Some(response);
                if answered {
                    return self.admit(plugin, &answer);
                }
                let mut out = BytesMut::new();
                door::encode_switch(self.client_sequence, plugin, &self.challenge, &mut out);
                self.queue.push_back(Action::Send(Peer::Client, out.freeze()));
                self.state = State::Switched(plugin);
                None
            }
        }
    }

    fn admit(&mut self, plugin: &str, answer: &[u8]) -> Option<Action> {
        match door::admit(self.settings.demand.as_deref(), plugin, &self.challenge, answer) {
            Ok(admitted) => {
                self.admitted = Some(admitted);
                self.state = if self.greeting.is_some() { State::AskTls } else { State::Dial };
                None
            }
            Err(refusal) => self.refuse(refusal),
        }
    }

    fn ask_tls(&mut self) -> Option<Action> {
        let (Some(greeting), Some(response)) = (&self.greeting, &self.response) else {
            return self.refuse(Refusal::UpstreamGone);
        };
        let mut payload = BytesMut::new();
        self.head(greeting, response).encode(&mut payload);
        let mut out = BytesMut::new();
        packet::encode(self.upstream_sequence, &payload, &mut out);
        self.upstream_sequence = self.upstream_sequence.wrapping_add(1);
        self.state = State::AwaitTls;
        Some(Action::Send(Peer::Upstream, out.freeze()))
    }

    fn database(&self, response: &Response) -> Option<Bytes> {
        let configured = || self.settings.database.as_ref().map(|name| Bytes::copy_from_slice(name.as_bytes()));
        response.database.clone().or_else(configured)
    }

    /// The front of the login upstream. MySQL takes the flags from the SSLRequest, MariaDB too, so both packets have
    /// this one. Flags that only matter during the login are ours; all others are the client's.
    fn head(&self, greeting: &Greeting, response: &Response) -> Head {
        let mut head = response.head.clone();
        head.capabilities &= !CONNECT_WITH_DB;
        head.capabilities |= NEEDED | SSL | (CONNECT_ATTRS & greeting.capabilities);
        if self.database(response).is_some() {
            head.capabilities |= CONNECT_WITH_DB;
        }
        head
    }

    fn log_in(&mut self, mut login: Login, packet: &Packet) -> Option<Action> {
        self.upstream_sequence = packet.sequence.wrapping_add(1);
        login.rounds = login.rounds.saturating_add(1);
        if login.rounds > ROUNDS_MAX {
            return self.refuse(Refusal::UpstreamMalformed(Malformed("a login that does not end")));
        }
        let Login { secret, kind, exchange, .. } = &mut login;
        let answer = match packet.payload.split_first() {
            Some((&OK, _)) if self.settings.read_only => {
                let mut out = BytesMut::new();
                packet::encode(0, &packet::query(self.capabilities(), READ_ONLY), &mut out);
                self.queue.push_back(Action::Send(Peer::Upstream, out.freeze()));
                self.state = State::Settling(packet.payload.clone());
                return None;
            }
            Some((&OK, _)) => return self.splice(&packet.payload),
            Some((&ERR, _)) => return self.refuse(Refusal::UpstreamRefused(said(&packet.payload))),
            Some((&door::SWITCH, [])) => Err(Refusal::UnknownAuthentication("mysql_old_password".to_owned())),
            Some((&door::SWITCH, rest)) => {
                let mut reader = Reader::new(rest);
                let plugin = reader.nul().unwrap_or_else(|| reader.rest());
                Exchange::switched(plugin, reader.rest(), secret, *kind).map(|(next, answer)| {
                    *exchange = next;
                    Some(answer)
                })
            }
            Some((&NEXT_FACTOR, _)) => Err(Refusal::UnknownAuthentication("a second factor".to_owned())),
            Some((&door::MORE_DATA, data)) => exchange.more(data, secret, *kind),
            // MariaDB marks only data that could be taken for another packet (`server_mpvio_write_packet`).
            _ => exchange.more(&packet.payload, secret, *kind),
        };
        match answer {
            Ok(answer) => {
                if let Some(answer) = answer {
                    self.send_secret(answer.expose());
                }
                self.state = State::Login(login);
                None
            }
            Err(refusal) => self.refuse(refusal),
        }
    }

    /// The upstream's OK is the client's: status, warnings and what the session begins with.
    fn splice(&mut self, ok: &[u8]) -> Option<Action> {
        let behind = match packet::only_an_error(self.from_upstream.split()) {
            Ok(behind) => behind,
            Err(error) => return self.refuse(Refusal::UpstreamMalformed(error)),
        };
        self.state = State::Spliced;
        let mut out = BytesMut::new();
        let sequence =
            self.admitted.map_or(self.client_sequence, |admitted| admitted.encode(self.client_sequence, &mut out));
        packet::encode(sequence, ok, &mut out);
        out.extend_from_slice(&behind);
        Some(Action::Splice { to_upstream: self.from_client.split().freeze(), to_client: out.freeze() })
    }

    fn send_client(&mut self, payload: &[u8]) {
        let mut out = BytesMut::new();
        packet::encode(self.client_sequence, payload, &mut out);
        self.client_sequence = self.client_sequence.wrapping_add(1);
        self.queue.push_back(Action::Send(Peer::Client, out.freeze()));
    }

    fn send_secret(&mut self, payload: &[u8]) {
        // Of the right size at once: growing would leave a copy behind.
        let mut out = Vec::with_capacity(payload.len().saturating_add(4));
        packet::encode(self.upstream_sequence, payload, &mut out);
        self.upstream_sequence = self.upstream_sequence.wrapping_add(1);
        self.queue.push_back(Action::SendSecret(Secret::new(out)));
    }

    fn refuse(&mut self, refusal: Refusal) -> Option<Action> {
        if !matches!(self.state, State::Spliced) {
            self.state = State::Ended;
        }
        self.queue.push_back(Action::Refuse(refusal));
        None
    }
}

/// How the names of the relay's own connection attributes begin; a client's own are left out.
pub const OUR_ATTRIBUTES: &str = "bastion_";

/// Whether an attribute of a client could be taken for one of the relay's. Names are compared without their case.
fn is_ours(name: &[u8]) -> bool {
    name.get(..OUR_ATTRIBUTES.len()).is_some_and(|front| front.eq_ignore_ascii_case(OUR_ATTRIBUTES.as_bytes()))
}

/// First byte of the packet that asks for another factor.
const NEXT_FACTOR: u8 = 0x02;

#[cfg(test)]
mod tests;
