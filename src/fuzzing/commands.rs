//! What clients send after their login: the way to MySQL commands that are not the database's to answer, the answers to
//! those, and the statements that the audit log reads off a stream.

use std::sync::Arc;

use super::Input;
use crate::wire::mysql::agreed::Agreed;
use crate::wire::mysql::capability::{DEPRECATE_EOF, LOCAL_FILES, NEEDED, PLUGIN_AUTH};
use crate::wire::mysql::change_user::{ChangeUser, Session};
use crate::wire::mysql::commands::{Commands, Scan};
use crate::wire::mysql::door::Verifier;
use crate::wire::mysql::session_steps::Server;
use crate::wire::proxy::{Action, Peer};
use crate::wire::session::text::{Key, Limits};
use crate::wire::statements::Observer;

/// What an exchange may do without hearing from a peer.
const ACTIONS_MAX: usize = 16;
/// Bytes of a text that the audit log keeps here, and what may stand around it in a statement.
pub(super) const TEXT_MAX: usize = 64;

/// A client's stream passes up to the same command however it is cut, and the exchange that follows ends.
pub(super) fn mysql(data: &[u8]) {
    let mut input = Input(data);
    let flags = input.byte();
    let read_only = flags & 1 != 0;
    let cut = usize::from(flags >> 1);
    let length = usize::from(input.word());
    let stream = input.bytes(length);
    let whole = Commands::new(read_only, 0).scan(stream);
    assert_eq!(scan_in_pieces(stream, cut, read_only), whole, "in pieces of {cut}");
    local_files(stream, cut);
    check_answers(stream, cut, read_only, Input(input.0));
    if whole.stop {
        change_user(stream.get(whole.pass..).unwrap_or_default(), flags, input);
    }
}

/// A client that may send files: what stands behind its first command is the file that this one names, if it does, and the
/// same is found however the stream is cut.
fn local_files(stream: &[u8], cut: usize) {
    const NAME: &[u8] = b"rows.csv";
    let length =
        stream.first_chunk().map_or(0, |&[a, b, c]| usize::from(a) | usize::from(b) << 8 | usize::from(c) << 16);
    let Some((load, file)) = stream.split_at_checked(length.saturating_add(4)) else { return };
    let (mut whole, mut pieces) = (Commands::new(false, LOCAL_FILES), Commands::new(false, LOCAL_FILES));
    whole.scan(load);
    // Only bytes that have passed are not seen again.
    let mut passed = 0;
    for seen in (0..load.len()).step_by(cut.max(1)).chain([load.len()]) {
        passed += pieces.scan(&load[passed..seen]).pass;
    }
    let granted = whole.grant_file(NAME);
    assert_eq!(pieces.grant_file(NAME), granted);
    assert!(
        !granted
            || load.windows(NAME.len()).any(|part| part == NAME)
            || load.iter().any(|byte| b"\\'\"".contains(byte))
    );
    let scan = whole.scan(file);
    let sent: u64 = whole.take_sent_files().iter().map(|file| file.bytes).sum();
    assert!(granted || sent == 0);
    assert!(sent <= u64::try_from(scan.pass).unwrap_or_default() || !scan.stop);
}

/// Where all is answered after the upstream's bytes as a whole, it is so when they come in pieces.
fn check_answers(stream: &[u8], cut: usize, read_only: bool, mut input: Input<'_>) {
    let capabilities = if cut & 1 == 0 { 0 } else { DEPRECATE_EOF };
    let mut whole = Commands::new(read_only, capabilities);
    whole.scan(stream);
    let mut pieces = whole.clone();
    while !input.is_empty() {
        let answer = input.short();
        if !answer.is_empty() {
            whole.down(answer);
        }
        answer.chunks(cut.max(1)).for_each(|piece| pieces.down(piece));
        assert!(pieces.is_answered() || !whole.is_answered(), "answers in pieces of {cut} do not end");
    }
}

fn scan_in_pieces(stream: &[u8], cut: usize, read_only: bool) -> Scan {
    let mut commands = Commands::new(read_only, 0);
    let (mut passed, mut seen) = (0_usize, 0_usize);
    loop {
        seen = seen.saturating_add(cut.max(1)).min(stream.len());
        let scan = commands.scan(&stream[passed..seen]);
        passed += scan.pass;
        if scan.stop || seen == stream.len() {
            return Scan { pass: passed, stop: scan.stop };
        }
        assert!(seen - passed < 5, "it holds back more than a header and a command");
    }
}

fn change_user(command: &[u8], flags: u8, mut input: Input<'_>) {
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

pub(super) fn limits(flags: u8) -> Limits {
    Limits::new(TEXT_MAX, (flags & 1 != 0).then(|| Arc::new(Key::new(&[7; 32]))))
}

/// Statements are the same however the streams are cut, and none is longer than what is kept. The input: runs of bytes, each with
/// its length and its direction before it.
pub(super) fn mysql_statements(data: &[u8]) {
    let mut input = Input(data);
    let flags = input.byte();
    let limits = limits(flags);
    let cut = usize::from(flags >> 1).max(1);
    let (mut whole, mut pieces) = (Observer::mysql(limits.clone()), Observer::mysql(limits));
    let (mut found, mut found_in_pieces) = (Vec::new(), Vec::new());
    while !input.is_empty() {
        let upwards = input.byte() & 1 == 0;
        let run = input.short();
        match upwards {
            true => {
                whole.up(run, &mut found);
                run.chunks(cut).for_each(|piece| pieces.up(piece, &mut found_in_pieces));
            }
            false => {
                whole.down(run);
                run.chunks(cut).for_each(|piece| pieces.down(piece));
            }
        }
    }
    assert_eq!(found, found_in_pieces, "in pieces of {cut}");
    for statement in &found {
        let length = statement.sql().map_or(0, str::len);
        assert!(length <= TEXT_MAX * 3, "{length} bytes of a text are kept");
    }
}
