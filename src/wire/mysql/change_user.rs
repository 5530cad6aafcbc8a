//! COM_CHANGE_USER without another login: the relay's user stays, the session starts anew.
//!
//! Pools of connections send it to get a clean session. The database cannot answer it, because it would ask the client for
//! the password of the relay's user. So the client is let in again as at its login, and the database gets what the command
//! means otherwise: COM_RESET_CONNECTION, the character set, COM_INIT_DB. A reset that the client asks for goes the same way
//! where the relay has set up the session, so that it is set up again.
//!
//! Format and order of packets: MySQL Source Code Documentation, "COM_CHANGE_USER"; both servers answer it with an
//! AuthSwitchRequest first, and client libraries count on it.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::{BufMut as _, Bytes, BytesMut};

use super::capability::{PLUGIN_AUTH, SECURE_CONNECTION};
use super::commands::{Commands, RESET_CONNECTION};
use super::door::{self, Admitted, Verifier};
use super::greeting::{self, SCRAMBLE};
use super::handshake::{READ_ONLY, said};
use super::packet::{self, ERR, OK, Packet, Reader};
use crate::wire::Malformed;
use crate::wire::error_text::ErrorText;
use crate::wire::proxy::{Action, Peer, Refusal};

/// `COM_INIT_DB`.
const INIT_DB: u8 = 0x02;
/// Number of the packet that answers a step.
const FIRST: u8 = 1;

enum State {
    Command,
    /// The client was asked to use this plugin.
    Switched(&'static str),
    /// The next step is to be sent.
    Step,
    /// The answer to a step is due; the session may only go on if this one was `needed` and is good.
    Answer {
        needed: bool,
    },
    Ended(Refusal),
}

/// What holds for every such command of a connection.
#[derive(Debug, Clone)]
pub struct Session {
    /// Those that the login agreed on.
    pub capabilities: u32,
    /// Whether the relay has set up the session.
    pub read_only: bool,
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
    /// What the upstream is still to be told.
    steps: VecDeque<Bytes>,
    from_client: BytesMut,
    from_upstream: BytesMut,
}

impl ChangeUser {
    /// `random` makes the challenge, `command` is what the client has sent of it and behind it.
    pub fn new(session: Session, random: [u8; SCRAMBLE], command: &[u8]) -> Self {
        Self {
            state: State::Command,
            challenge: greeting::scramble(random),
            session,
            sequence: 0,
            admitted: None,
            steps: VecDeque::new(),
            from_client: BytesMut::from(command),
            from_upstream: BytesMut::new(),
        }
    }

    /// The way through the client's later bytes.
    pub fn commands(&self) -> Commands {
        Commands::new(self.session.read_only, self.session.capabilities)
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
        error.packet(self.sequence, true)
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
                let Some(step) = self.steps.pop_front() else { return Err(Refusal::UpstreamGone) };
                let mut out = BytesMut::new();
                packet::encode(0, &step, &mut out);
                self.state = State::Answer { needed: step == self.read_only() };
                Ok(Some(Action::Send(Peer::Upstream, out.freeze())))
            }
            &State::Answer { needed } => {
                match packet::decode(&mut self.from_upstream).map_err(Refusal::UpstreamMalformed)? {
                    None => Ok(Some(Action::Read(Peer::Upstream))),
                    Some(packet) => self.answered(&packet, needed),
                }
            }
            State::Ended(refusal) => Err(refusal.clone()),
        }
    }

    fn admit(&self, plugin: &str, challenge: &[u8; SCRAMBLE], answer: &[u8]) -> Result<Admitted, Refusal> {
        door::admit(self.session.demand.as_deref(), plugin, challenge, answer)
    }

    fn begin(&mut self, packet: &Packet) -> Result<Option<Action>, Refusal> {
        const SHORT: Refusal = Refusal::ClientMalformed(Malformed("its COM_CHANGE_USER is cut short"));
        self.sequence = packet.sequence.wrapping_add(1);
        self.steps.push_back(Bytes::from_static(&[RESET_CONNECTION]));
        if self.session.read_only {
            self.steps.push_back(self.read_only());
        }
        self.state = State::Step;
        let mut reader = Reader::new(&packet.payload);
        if reader.u8() == Some(RESET_CONNECTION) {
            return Ok(None);
        }
        reader.nul().ok_or(SHORT)?;
        let answer = match self.session.capabilities & SECURE_CONNECTION != 0 {
            true => reader.u8().and_then(|length| reader.take(usize::from(length))),
            false => reader.nul(),
        };
        let answer = answer.ok_or(SHORT)?;
        let database = reader.nul().ok_or(SHORT)?;
        if let Some(charset) = reader.u16().filter(|charset| *charset > 0) {
            self.steps.push_back(set_charset(self.session.capabilities, charset));
        }
        if !database.is_empty() {
            let mut step = BytesMut::new();
            step.put_u8(INIT_DB);
            step.put_slice(database);
            self.steps.push_back(step.freeze());
        }
        if self.session.capabilities & PLUGIN_AUTH == 0 {
            self.admitted = Some(self.admit(door::ANNOUNCED, &self.session.first_challenge, answer)?);
            return Ok(None);
        }
        let plugin = door::plugin_for(reader.nul());
        let mut out = BytesMut::new();
        door::encode_switch(self.sequence, plugin, &self.challenge, &mut out);
        self.state = State::Switched(plugin);
        Ok(Some(Action::Send(Peer::Client, out.freeze())))
    }

    fn read_only(&self) -> Bytes {
        packet::query(self.session.capabilities, READ_ONLY)
    }

    /// The last answer of the upstream is the client's, and so is the first that is an error: the session goes on, unless
    /// it would be one that may write.
    fn answered(&mut self, packet: &Packet, needed: bool) -> Result<Option<Action>, Refusal> {
        match packet.payload.first() {
            // The client has not read the answer to a command before this one to its end.
            _ if packet.sequence != FIRST => {
                return Err(Refusal::ClientMalformed(Malformed(
                    "it changes the user before it has read an answer to its end",
                )));
            }
            Some(&OK) if !self.steps.is_empty() => {
                self.state = State::Step;
                return Ok(None);
            }
            Some(&ERR) if needed => return Err(Refusal::NotReadOnly(said(&packet.payload))),
            Some(&(OK | ERR)) => {}
            _ => return Err(Refusal::UpstreamMalformed(Malformed("an unexpected answer to COM_RESET_CONNECTION"))),
        }
        let mut out = BytesMut::new();
        let sequence = match self.admitted {
            Some(admitted) if packet.payload.first() == Some(&OK) => admitted.encode(self.sequence, &mut out),
            _ => self.sequence,
        };
        packet::encode(sequence, &packet.payload, &mut out);
        out.extend_from_slice(&self.from_upstream.split());
        self.state = State::Ended(Refusal::UpstreamGone);
        let to_upstream = self.from_client.split().freeze();
        Ok(Some(Action::Splice { to_upstream, to_client: out.freeze() }))
    }
}

/// The statement for a character set by its number, as mysqlbinlog writes it too.
fn set_charset(capabilities: u32, number: u16) -> Bytes {
    let statement = format!(
        "SET @@session.character_set_client={number},@@session.character_set_results={number},\
         @@session.collation_connection={number}"
    );
    packet::query(capabilities, &statement)
}

#[cfg(test)]
mod tests {
    use super::super::auth::{self, CACHING_SHA2, NATIVE};
    use super::super::capability::{NEEDED, QUERY_ATTRIBUTES};
    use super::super::commands::CHANGE_USER;
    use super::*;

    const FINE: &[u8] = &[0, 0, 0, 2, 0, 0, 0];

    fn session(capabilities: u32, read_only: bool) -> Session {
        Session { capabilities, read_only, demand: None, first_challenge: [4; SCRAMBLE] }
    }

    fn packed(sequence: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = BytesMut::new();
        packet::encode(sequence, payload, &mut out);
        out.to_vec()
    }

    fn command(plugin: &str) -> Vec<u8> {
        let front = [&[CHANGE_USER][..], b"root\0", &[2, 9, 9], b"events\0", &[45, 0]].concat();
        packed(0, &[&front[..], plugin.as_bytes(), &[0]].concat())
    }

    #[test]
    fn a_session_that_is_not_read_only_again_ends() {
        let mut change = ChangeUser::new(session(NEEDED, true), [3; SCRAMBLE], &packed(0, &[RESET_CONNECTION]));
        for answer in [FINE, b"\xff\x28\x06#25001in a transaction"] {
            assert!(matches!(change.poll_action(), Action::Send(Peer::Upstream, _)));
            assert_eq!(change.poll_action(), Action::Read(Peer::Upstream));
            change.handle_data(Peer::Upstream, &packed(1, answer));
        }
        let action = change.poll_action();
        assert!(
            matches!(&action, Action::Refuse(Refusal::NotReadOnly(said)) if said.message == "in a transaction"),
            "{action:?}"
        );
    }

    #[test]
    fn the_rest_of_another_answer_is_not_taken_for_its_own() {
        let mut change = ChangeUser::new(session(NEEDED, true), [3; SCRAMBLE], &packed(0, &[RESET_CONNECTION]));
        assert!(matches!(change.poll_action(), Action::Send(Peer::Upstream, _)));
        change.handle_data(Peer::Upstream, &packed(4, FINE));
        assert!(matches!(change.poll_action(), Action::Refuse(Refusal::ClientMalformed(_))));
    }

    /// Answers every step with OK; the steps, and the answer to the client.
    fn finish(change: &mut ChangeUser) -> (Vec<Vec<u8>>, Action) {
        let mut steps = Vec::new();
        loop {
            match change.poll_action() {
                Action::Send(Peer::Upstream, step) => {
                    steps.push(step[4..].to_vec());
                    assert_eq!(change.poll_action(), Action::Read(Peer::Upstream));
                    change.handle_data(Peer::Upstream, &packed(1, FINE));
                }
                other => return (steps, other),
            }
        }
    }

    #[test]
    fn the_session_starts_anew_and_the_client_gets_the_answer_it_waits_for() {
        for (plugin, sequence) in [(NATIVE, 3), (CACHING_SHA2, 4)] {
            let mut change = ChangeUser::new(session(NEEDED, false), [3; SCRAMBLE], &command(plugin));
            let Action::Send(Peer::Client, switch) = change.poll_action() else { panic!("no switch") };
            assert_eq!((switch[3], switch[4]), (1, door::SWITCH));
            assert_eq!(change.poll_action(), Action::Read(Peer::Client));
            assert!(!change.has_opened());
            change.handle_data(Peer::Client, &packed(2, &[9; 20]));
            let (steps, action) = finish(&mut change);
            assert_eq!(steps[0], [RESET_CONNECTION]);
            assert!(String::from_utf8_lossy(&steps[1]).contains("collation_connection=45"));
            assert_eq!(steps[2], b"\x02events");
            let Action::Splice { to_client, .. } = action else { panic!("{action:?}") };
            assert!(to_client.ends_with(&packed(sequence, FINE)));
            assert_eq!(to_client.starts_with(&packed(3, &[1, 3])), plugin == CACHING_SHA2);
        }
    }

    #[test]
    fn the_password_of_the_relay_is_asked_for_again() {
        let demand = Some(Arc::new(Verifier::new("0123456789abcdef")));
        let proof = |password: &[u8]| auth::native(&greeting::scramble([3; SCRAMBLE]), password).unwrap();
        let begin = || {
            let session = Session { demand: demand.clone(), ..session(NEEDED, false) };
            let mut change = ChangeUser::new(session, [3; SCRAMBLE], &command(NATIVE));
            assert!(matches!(change.poll_action(), Action::Send(Peer::Client, _)));
            assert_eq!(change.poll_action(), Action::Read(Peer::Client));
            change
        };
        let mut change = begin();
        change.handle_data(Peer::Client, &packed(2, &proof(b"0123456789abcdef")));
        assert_eq!(finish(&mut change).0[0], [RESET_CONNECTION]);
        for wrong in [proof(b"other").to_vec(), Vec::new()] {
            let mut change = begin();
            change.handle_data(Peer::Client, &packed(2, &wrong));
            assert_eq!(change.poll_action(), Action::Refuse(Refusal::WrongPassword));
        }
        // A client without plugins answers the challenge of the greeting, in the command itself.
        for (password, comes_in) in [(&b"0123456789abcdef"[..], true), (b"other", false)] {
            let answer = auth::native(&[4; SCRAMBLE], password).unwrap();
            let command = [&[CHANGE_USER][..], b"root\0", &[20], &answer, b"\0"].concat();
            let session = Session { demand: demand.clone(), ..session(NEEDED & !PLUGIN_AUTH, false) };
            let action = ChangeUser::new(session, [3; SCRAMBLE], &packed(0, &command)).poll_action();
            assert_eq!(matches!(action, Action::Send(Peer::Upstream, _)), comes_in, "{action:?}");
        }
    }

    #[test]
    fn an_unknown_database_is_the_clients_answer_and_the_session_goes_on() {
        let mut change = ChangeUser::new(session(NEEDED & !PLUGIN_AUTH, false), [3; SCRAMBLE], &command(""));
        for _ in 0..2 {
            assert!(matches!(change.poll_action(), Action::Send(Peer::Upstream, _)));
            assert_eq!(change.poll_action(), Action::Read(Peer::Upstream));
            change.handle_data(Peer::Upstream, &packed(1, FINE));
        }
        assert!(matches!(change.poll_action(), Action::Send(Peer::Upstream, _)));
        change.handle_data(Peer::Upstream, &packed(1, b"\xff\x19\x04#42000Unknown database"));
        change.handle_data(Peer::Client, &packed(0, b"\x0e"));
        let expected = Action::Splice {
            to_upstream: packed(0, b"\x0e").into(),
            to_client: packed(1, b"\xff\x19\x04#42000Unknown database").into(),
        };
        assert_eq!(change.poll_action(), expected);
    }

    #[test]
    fn a_reset_sets_a_read_only_session_up_again() {
        for (capabilities, front) in [(NEEDED, &b"\x03"[..]), (NEEDED | QUERY_ATTRIBUTES, b"\x03\0\x01")] {
            let session = session(capabilities, true);
            let mut change = ChangeUser::new(session, [3; SCRAMBLE], &packed(0, &[RESET_CONNECTION]));
            let (steps, action) = finish(&mut change);
            assert_eq!(steps, [vec![RESET_CONNECTION], [front, READ_ONLY.as_bytes()].concat()]);
            assert!(matches!(action, Action::Splice { to_client, .. } if to_client == packed(1, FINE)));
        }
    }

    #[test]
    fn what_is_cut_short_or_answered_oddly_is_refused() {
        for short in [&[CHANGE_USER][..], b"\x11root\0", b"\x11root\0\x05ab", b"\x11root\0\0"] {
            let mut change = ChangeUser::new(session(NEEDED, false), [3; SCRAMBLE], &packed(0, short));
            assert!(matches!(change.poll_action(), Action::Refuse(Refusal::ClientMalformed(_))), "{short:?}");
        }
        let mut change = ChangeUser::new(session(NEEDED, true), [3; SCRAMBLE], &packed(0, &[RESET_CONNECTION]));
        assert!(matches!(change.poll_action(), Action::Send(Peer::Upstream, _)));
        change.handle_data(Peer::Upstream, &packed(1, &[5]));
        assert!(matches!(change.poll_action(), Action::Refuse(Refusal::UpstreamMalformed(_))));
        let mut change = ChangeUser::new(session(NEEDED, false), [3; SCRAMBLE], &command(NATIVE)[..9]);
        assert_eq!(change.poll_action(), Action::Read(Peer::Client));
        change.handle_eof(Peer::Client);
        assert!(matches!(change.poll_action(), Action::Refuse(Refusal::ClientGone)));
    }
}
