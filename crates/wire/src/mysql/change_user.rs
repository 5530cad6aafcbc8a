//! COM_CHANGE_USER without another login: the relay's user stays, the session starts anew.
//!
//! Pools of connections send it to get a clean session. The database cannot answer it, because it would ask the client for
//! the password of the relay's user. So the client is let in again as at its login, and the database gets what the command
//! means otherwise, see [`SessionSteps`]. A reset that the client asks for goes the same way where the relay has set up the
//! session, so that it is set up again.
//!
//! Format and order of packets: MySQL Source Code Documentation, "COM_CHANGE_USER"; both servers answer it with an
//! AuthSwitchRequest first, and client libraries count on it.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::agreed::Agreed;
use super::capability::{PLUGIN_AUTH, SECURE_CONNECTION};
use super::commands::RESET_CONNECTION;
use super::door::{self, Admitted, Verifier};
use super::greeting::{self, SCRAMBLE};
use super::packet::{self, OK, Packet, Reader, said};
use super::session_steps::{Answered, SessionSteps};
use crate::Malformed;
use crate::error_text::ErrorText;
use crate::login::{Action, Peer, Refusal};

/// Number of the packet that answers a step.
const FIRST: u8 = 1;

enum State {
    Command,
    /// The client was asked to use this plugin.
    Switched(&'static str),
    /// The next step is to be sent.
    Step,
    /// The answer to a step is due.
    Answer,
    /// The client has heard this; the connection ends.
    Rejected(ErrorText),
    Ended(Refusal),
}

/// What holds for every such command of a connection.
#[derive(Debug, Clone)]
pub struct Session {
    pub agreed: Agreed,
    /// Whether the relay has set up the session.
    pub read_only: bool,
    /// The collation that a reset must give the session again, by its number.
    pub collation: Option<u16>,
    /// What a client has to prove; `None`: any answer lets it in.
    pub demand: Option<Arc<Verifier>>,
    /// The challenge of the greeting, which clients without plugins answer for ever.
    pub first_challenge: [u8; SCRAMBLE],
}

/// One such command, from its packet to the answer. It is driven as a login is.
pub struct ChangeUser {
    state: State,
    challenge: [u8; SCRAMBLE],
    session: Session,
    /// Of our next packet to the client.
    sequence: u8,
    admitted: Option<Admitted>,
    /// What the upstream is told.
    steps: SessionSteps,
    from_client: BytesMut,
    from_upstream: BytesMut,
}

impl ChangeUser {
    /// `random` makes the challenge, `command` is what the client has sent of it and behind it.
    pub fn new(session: Session, random: [u8; SCRAMBLE], command: &[u8]) -> Self {
        let steps = steps(&session);
        Self {
            state: State::Command,
            challenge: greeting::scramble(random),
            session,
            sequence: 0,
            admitted: None,
            steps,
            from_client: BytesMut::from(command),
            from_upstream: BytesMut::new(),
        }
    }

    /// What holds for the session behind it.
    pub fn agreed(&self) -> Agreed {
        Agreed { stops_at_reset: self.stops_at_resets(), ..self.session.agreed }
    }

    /// Whether the session must be set up again behind a reset.
    pub fn stops_at_resets(&self) -> bool {
        self.session.read_only || self.session.collation.is_some()
    }

    /// The exchange for the next command.
    pub fn again(&self, random: [u8; SCRAMBLE], command: &[u8]) -> Self {
        Self::new(self.session.clone(), random, command)
    }

    /// Whether the client has answered.
    pub fn has_opened(&self) -> bool {
        !matches!(self.state, State::Command | State::Switched(_))
    }

    /// The ERR packet that tells the client why its connection ends.
    pub fn encode_error(&self, error: &ErrorText) -> Bytes {
        // A client that was asked for a proof sends it before it reads.
        let due = if matches!(self.state, State::Switched(_)) { 2 } else { 0 };
        error.packet(self.sequence.wrapping_add(due), true)
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
        self.state = State::Ended(match peer {
            Peer::Client => Refusal::ClientGone,
            Peer::Upstream => Refusal::UpstreamGone,
        });
    }

    /// What to do now.
    pub fn poll_action(&mut self) -> Action {
        loop {
            match self.advance() {
                Ok(Some(action)) => return action,
                Ok(None) => {}
                Err(refusal) => {
                    self.state = State::Ended(refusal.clone());
                    return Action::Refuse(refusal);
                }
            }
        }
    }

    fn advance(&mut self) -> Result<Option<Action>, Refusal> {
        match &self.state {
            State::Command => match packet::decode(&mut self.from_client).map_err(Refusal::ClientMalformed)? {
                None => Ok(Some(Action::Read(Peer::Client))),
                Some(packet) => self.begin(&packet),
            },
            State::Switched(plugin) => {
                let plugin = *plugin;
                match packet::decode(&mut self.from_client).map_err(Refusal::ClientMalformed)? {
                    None => Ok(Some(Action::Read(Peer::Client))),
                    Some(packet) => {
                        self.sequence = packet.sequence.wrapping_add(1);
                        self.admitted = Some(self.admit(plugin, &self.challenge, &packet.payload)?);
                        self.state = State::Step;
                        Ok(None)
                    }
                }
            }
            State::Step => {
                let Some(step) = self.steps.next_command() else { return Err(Refusal::UpstreamGone) };
                let mut out = BytesMut::new();
                packet::encode(0, &step, &mut out);
                self.state = State::Answer;
                Ok(Some(Action::Send(Peer::Upstream, out.freeze())))
            }
            State::Answer => match packet::decode(&mut self.from_upstream).map_err(Refusal::UpstreamMalformed)? {
                None => Ok(Some(Action::Read(Peer::Upstream))),
                Some(packet) => self.answered(&packet),
            },
            State::Rejected(said) => Err(Refusal::Rejected(said.clone())),
            State::Ended(refusal) => Err(refusal.clone()),
        }
    }

    fn admit(&self, plugin: &str, challenge: &[u8; SCRAMBLE], answer: &[u8]) -> Result<Admitted, Refusal> {
        door::admit(self.session.demand.as_deref(), plugin, challenge, answer)
    }

    fn begin(&mut self, packet: &Packet) -> Result<Option<Action>, Refusal> {
        const SHORT: Refusal = Refusal::ClientMalformed(Malformed("its COM_CHANGE_USER is cut short"));
        self.sequence = packet.sequence.wrapping_add(1);
        self.state = State::Step;
        let mut reader = Reader::new(&packet.payload);
        if reader.u8() == Some(RESET_CONNECTION) {
            return Ok(None);
        }
        reader.nul().ok_or(SHORT)?;
        let answer = match self.session.agreed.capabilities & SECURE_CONNECTION != 0 {
            true => reader.u8().and_then(|length| reader.take(usize::from(length))),
            false => reader.nul(),
        };
        let answer = answer.ok_or(SHORT)?;
        let database = reader.nul().ok_or(SHORT)?;
        let collation = reader.u16().unwrap_or_default();
        self.steps = steps(&self.session).change_user(collation, database);
        if self.session.agreed.capabilities & PLUGIN_AUTH == 0 {
            self.admitted = Some(self.admit(door::ANNOUNCED, &self.session.first_challenge, answer)?);
            return Ok(None);
        }
        let plugin = door::plugin_for(reader.nul());
        let mut out = BytesMut::new();
        door::encode_switch(self.sequence, plugin, &self.challenge, &mut out);
        self.state = State::Switched(plugin);
        Ok(Some(Action::Send(Peer::Client, out.freeze())))
    }

    /// The answer to a step.
    fn answered(&mut self, packet: &Packet) -> Result<Option<Action>, Refusal> {
        // The client has not read the answer to a command before this one to its end.
        if packet.sequence != FIRST {
            return Err(Refusal::ClientMalformed(Malformed(
                "it changes the user before it has read an answer to its end",
            )));
        }
        let answered = self.steps.answered(&packet.payload)?;
        self.session.collation = self.steps.collation();
        match answered {
            Answered::GoOn => {
                self.state = State::Step;
                Ok(None)
            }
            Answered::End(error) => {
                self.state = State::Rejected(said(&error));
                Ok(Some(Action::Send(Peer::Client, self.answer(&error))))
            }
            Answered::Done(answer) => {
                let mut to_client = BytesMut::from(&self.answer(&answer)[..]);
                let behind = packet::only_an_error(self.from_upstream.split());
                to_client.extend_from_slice(&behind.map_err(Refusal::UpstreamMalformed)?);
                self.state = State::Ended(Refusal::UpstreamGone);
                let to_upstream = self.from_client.split().freeze();
                Ok(Some(Action::Splice { to_upstream, to_client: to_client.freeze() }))
            }
        }
    }

    /// This payload, as the client's answer.
    fn answer(&self, payload: &[u8]) -> Bytes {
        let mut out = BytesMut::new();
        let sequence = match self.admitted {
            Some(admitted) if payload.first() == Some(&OK) => admitted.encode(self.sequence, &mut out),
            _ => self.sequence,
        };
        packet::encode(sequence, payload, &mut out);
        out.freeze()
    }
}

/// Those of a reset.
fn steps(session: &Session) -> SessionSteps {
    SessionSteps::reset(session.agreed.server, session.agreed.capabilities, session.read_only, session.collation)
}

#[cfg(test)]
mod tests;
