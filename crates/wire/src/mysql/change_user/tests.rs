use super::super::auth::{self, CACHING_SHA2, NATIVE};
use super::super::capability::{NEEDED, QUERY_ATTRIBUTES};
use super::super::commands::CHANGE_USER;
use super::super::server::Server;
use super::super::session_steps::READ_ONLY;
use super::*;

const FINE: &[u8] = &[0, 0, 0, 2, 0, 0, 0];

fn session(capabilities: u32, read_only: bool) -> Session {
    let agreed = Agreed { capabilities, extended: 0, server: Server::MariaDb, stops_at_reset: read_only };
    Session { agreed, read_only, collation: None, demand: None, first_challenge: [4; SCRAMBLE] }
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
        assert!(String::from_utf8_lossy(&steps[2]).contains("@@session.character_set_client="));
        assert_eq!(steps[3], b"\x02events");
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

/// Answers the steps before the name of the database with OK, and that one with an error.
fn fail(change: &mut ChangeUser) {
    loop {
        let Action::Send(Peer::Upstream, step) = change.poll_action() else { panic!("no step") };
        assert_eq!(change.poll_action(), Action::Read(Peer::Upstream));
        if step.ends_with(b"\x02events") {
            change.handle_data(Peer::Upstream, &packed(1, UNKNOWN_DATABASE));
            return;
        }
        change.handle_data(Peer::Upstream, &packed(1, FINE));
    }
}

const UNKNOWN_DATABASE: &[u8] = b"\xff\x19\x04#42000Unknown database";

#[test]
fn an_unknown_database_is_the_clients_answer_and_a_session_of_mariadb_goes_on() {
    let mut change = ChangeUser::new(session(NEEDED & !PLUGIN_AUTH, false), [3; SCRAMBLE], &command(""));
    fail(&mut change);
    change.handle_data(Peer::Client, &packed(0, b"\x0e"));
    let (_, action) = finish(&mut change);
    let expected =
        Action::Splice { to_upstream: packed(0, b"\x0e").into(), to_client: packed(1, UNKNOWN_DATABASE).into() };
    assert_eq!(action, expected);
}

#[test]
fn an_unknown_database_ends_a_connection_to_mysql_once_the_client_has_heard_of_it() {
    let mut session = session(NEEDED & !PLUGIN_AUTH, false);
    session.agreed.server = Server::MySql;
    let mut change = ChangeUser::new(session, [3; SCRAMBLE], &command(""));
    fail(&mut change);
    assert_eq!(change.poll_action(), Action::Send(Peer::Client, packed(1, UNKNOWN_DATABASE).into()));
    let action = change.poll_action();
    assert!(
        matches!(&action, Action::Refuse(Refusal::Rejected(said)) if said.message == "Unknown database"),
        "{action:?}"
    );
}

#[test]
fn nothing_but_an_error_may_follow_the_answer_unasked() {
    let shutdown = packed(0, b"\xff\x53\x04#08S01shutdown");
    let request = packed(1, b"\xfb/etc/passwd");
    for (behind, passes) in [
        (shutdown.clone(), true),
        (shutdown[..7].to_vec(), true),
        ([shutdown, request.clone()].concat(), false),
        (request, false),
        (vec![9, 0], true),
    ] {
        let mut change = ChangeUser::new(session(NEEDED, true), [3; SCRAMBLE], &packed(0, &[RESET_CONNECTION]));
        assert!(matches!(change.poll_action(), Action::Send(Peer::Upstream, _)));
        change.handle_data(Peer::Upstream, &packed(1, FINE));
        assert!(matches!(change.poll_action(), Action::Send(Peer::Upstream, _)));
        change.handle_data(Peer::Upstream, &[packed(1, FINE), behind.clone()].concat());
        match change.poll_action() {
            Action::Splice { to_client, .. } => assert!(passes && to_client.ends_with(&behind), "{behind:?}"),
            other => assert!(!passes && matches!(other, Action::Refuse(Refusal::UpstreamMalformed(_))), "{other:?}"),
        }
    }
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
