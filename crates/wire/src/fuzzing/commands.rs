//! The way to MySQL commands that are not the database's to answer, and the answers to those.

use std::sync::Arc;

use super::Input;
use crate::login::{Action, Peer};
use crate::memory::Memory;
use crate::mysql::agreed::Agreed;
use crate::mysql::capability::{NEEDED, PLUGIN_AUTH};
use crate::mysql::change_user::{ChangeUser, Session};
use crate::mysql::door::Verifier;
use crate::mysql::server::Server;
use crate::session::{Session as Followed, Stop};

/// What an exchange may do without hearing from a peer.
const ACTIONS_MAX: usize = 16;
/// Of a command, what may be held: its head, its code and a number with one of a parameter.
const HELD_MAX: usize = 4 + 7;

/// A client's stream passes up to the same command however it is cut, and the exchange that follows ends.
pub(super) fn change_user(data: &[u8]) {
    let mut input = Input(data);
    let flags = input.byte();
    let read_only = flags & 1 != 0;
    let cut = usize::from(flags >> 1);
    let length = usize::from(input.word());
    let stream = input.bytes(length);
    let agreed = Agreed { capabilities: 0, extended: 0, server: Server::MariaDb, stops_at_reset: read_only };
    let whole = Followed::mysql(agreed, &Memory::relay().asked, None).client(stream, &mut Vec::new());
    let mut pieces = Followed::mysql(agreed, &Memory::relay().asked, None);
    let (mut passed, mut seen, mut stop) = (0_usize, 0_usize, None);
    while seen < stream.len() && stop.is_none() {
        seen = seen.saturating_add(cut.max(1)).min(stream.len());
        let pass = pieces.client(&stream[passed..seen], &mut Vec::new());
        (passed, stop) = (passed + pass.forward, pass.stop);
        assert!(stop.is_some() || seen - passed < HELD_MAX, "it holds back more than the start of a command");
    }
    assert_eq!((passed, &stop), (whole.forward, &whole.stop), "in pieces of {cut}");
    if whole.stop == Some(Stop::Command) {
        answered(stream.get(whole.forward..).unwrap_or_default(), flags, input);
    }
}

fn answered(command: &[u8], flags: u8, mut input: Input<'_>) {
    let capabilities = if flags & 2 == 0 { NEEDED } else { NEEDED & !PLUGIN_AUTH };
    let demand = (flags & 0x40 != 0).then(|| Arc::new(Verifier::new("not among the bytes")));
    let server = if flags & 4 == 0 { Server::MySql } else { Server::MariaDb };
    let collation = (flags & 8 != 0).then_some(224);
    let read_only = flags & 1 != 0;
    let agreed = Agreed { capabilities, extended: 0, server, stops_at_reset: read_only };
    let session = Session { agreed, read_only, collation, demand, first_challenge: [4; 20] };
    let mut change = ChangeUser::new(session, [5; 20], command);
    let (mut client, mut asked, mut actions) = (command.to_vec(), 0, 0);
    loop {
        actions += 1;
        assert!(actions <= ACTIONS_MAX, "it goes on and on without reading");
        match change.poll_action() {
            Action::Read(peer) => {
                actions = 0;
                let bytes = input.short();
                match bytes.is_empty() {
                    true => change.handle_eof(peer),
                    false => change.handle_data(peer, bytes),
                }
                if peer == Peer::Client {
                    client.extend_from_slice(bytes);
                }
            }
            Action::Send(Peer::Upstream, step) => {
                asked += 1;
                assert!(
                    asked <= 6 && step.len() > 4,
                    "reset, read-only, collation, character sets, database, global values"
                );
            }
            Action::Send(Peer::Client, bytes) => assert!(!bytes.is_empty()),
            Action::Splice { to_upstream, to_client } => {
                assert!(asked > 0 && change.has_opened(), "joined without a clean session");
                assert!(client.ends_with(&to_upstream) && !to_client.is_empty());
                return;
            }
            Action::Refuse(_) => return,
            other => panic!("no part of the exchange: {other:?}"),
        }
    }
}
