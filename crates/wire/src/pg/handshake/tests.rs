//! The machine played through by hand: what each side sends, and what must come out.

use super::super::message::ErrorFields;
use super::super::startup::Opening;
use super::*;

const READY: &[u8] = b"Z\0\0\0\x05I";

fn settings(offer_tls: bool) -> Settings {
    Settings { database: Some("orders".into()), offer_tls, ..Settings::default() }
}

/// A driver that has dialled, done TLS and handed over the credential.
fn logged_in_up_to_startup(kind: SecretKind) -> Handshake {
    logged_in_with(settings(false), kind).0
}

/// The same with these settings, and the startup packet that has gone upstream.
fn logged_in_with(settings: Settings, kind: SecretKind) -> (Handshake, Startup) {
    let mut handshake = Handshake::new(settings);
    let mut startup = Startup { version: 3 << 16, parameters: Vec::new() };
    startup.set("user", b"anyone");
    startup.set("application_name", b"psql");
    let mut packet = BytesMut::new();
    startup.encode(&mut packet);
    assert_eq!(handshake.poll_action(), Action::Read(Peer::Client));
    handshake.handle_data(Peer::Client, &packet);
    let sent = to_startup(&mut handshake, kind);
    (handshake, sent)
}

/// From the dial to the startup packet, which comes back.
fn to_startup(handshake: &mut Handshake, kind: SecretKind) -> Startup {
    assert_eq!(handshake.poll_action(), Action::Dial);
    handshake.handle_dialed();
    assert!(matches!(handshake.poll_action(), Action::Send(Peer::Upstream, request) if request.len() == 8));
    assert_eq!(handshake.poll_action(), Action::Read(Peer::Upstream));
    handshake.handle_data(Peer::Upstream, b"S");
    assert_eq!(handshake.poll_action(), Action::StartTls { peer: Peer::Upstream, already_read: Bytes::new() });
    handshake.handle_tls(Peer::Upstream, Some(vec![7; 32]), false);
    assert_eq!(handshake.poll_action(), Action::NeedCredential);
    handshake.handle_credential("db_read", b"S3CRET", kind);
    let Action::Send(Peer::Upstream, packet) = handshake.poll_action() else { panic!("no startup upstream") };
    let Ok(Some(Opening::Startup(sent))) = startup::decode(&mut BytesMut::from(&packet[..])) else {
        panic!("not a startup")
    };
    assert_eq!(sent.parameter("user").unwrap(), "db_read");
    assert_eq!(sent.parameter("database").unwrap(), "orders");
    assert_eq!(sent.parameter("application_name").unwrap(), "psql");
    assert_eq!(handshake.poll_action(), Action::Read(Peer::Upstream));
    sent
}

/// A machine that asks for a password, after the client's startup packet; what it asks.
fn asked(inside_tls: bool) -> (Handshake, Message) {
    let verifier = door::Verifier::new("0123456789abcdef", [7; door::SALT]);
    let demand = Some(door::Demand { verifier: verifier.into(), random: [9; door::NONCE] });
    let mut handshake = Handshake::new(Settings { demand, ..settings(inside_tls) });
    assert_eq!(handshake.poll_action(), Action::Read(Peer::Client));
    if inside_tls {
        let mut request = BytesMut::new();
        startup::encode_ssl_request(&mut request);
        handshake.handle_data(Peer::Client, &request);
        assert_eq!(handshake.poll_action(), Action::Send(Peer::Client, Bytes::from_static(b"S")));
        assert!(matches!(handshake.poll_action(), Action::StartTls { peer: Peer::Client, .. }));
        handshake.handle_tls(Peer::Client, Some(vec![5; 32]), false);
    }
    let mut packet = BytesMut::new();
    Startup { version: 3 << 16, parameters: Vec::new() }.encode(&mut packet);
    handshake.handle_data(Peer::Client, &packet);
    let Action::Send(Peer::Client, bytes) = handshake.poll_action() else { panic!("no question") };
    assert_eq!(handshake.poll_action(), Action::Read(Peer::Client));
    // The client is the one that everybody waits for.
    assert!(!handshake.has_opened());
    (handshake, message::decode(&mut BytesMut::from(&bytes[..])).unwrap().unwrap())
}

#[test]
fn a_password_of_the_relay_is_proven_before_anything_goes_upstream() {
    for (inside_tls, password, comes_in) in [
        (false, "0123456789abcdef", true),
        (true, "0123456789abcdef", true),
        (true, "other", false),
        (false, "", false),
    ] {
        let (mut handshake, question) = asked(inside_tls);
        let Ok(Authentication::Sasl(offered)) = Authentication::parse(&question.body) else { panic!("no offer") };
        assert_eq!(offered.len(), if inside_tls { 2 } else { 1 });
        let mut sent = BytesMut::new();
        let binding = [5; 32];
        let binding = inside_tls.then_some(&binding[..]);
        let mut scram = Scram::start(&offered, binding, password.as_bytes(), &mut sent).unwrap();
        // However it is cut.
        for byte in sent.split() {
            assert_eq!(handshake.poll_action(), Action::Read(Peer::Client));
            handshake.handle_data(Peer::Client, &[byte]);
        }
        let Action::Send(Peer::Client, bytes) = handshake.poll_action() else { panic!("no challenge") };
        scram.continue_with(&bytes[9..], &mut sent).unwrap();
        handshake.handle_data(Peer::Client, &sent);
        if !comes_in {
            assert_eq!(handshake.poll_action(), Action::Refuse(Refusal::WrongPassword));
            continue;
        }
        let Action::Send(Peer::Client, bytes) = handshake.poll_action() else { panic!("no end") };
        scram.finish(&bytes[9..]).unwrap();
        assert_eq!(handshake.poll_action(), Action::Dial);
        assert!(handshake.has_opened());
    }
}

#[test]
fn a_cancel_request_needs_no_password_and_an_impossible_answer_is_refused() {
    let cancel = [&16_u32.to_be_bytes()[..], &((1234_u32 << 16) | 5678).to_be_bytes(), &[0; 8]].concat();
    let verifier = door::Verifier::new("x", [7; door::SALT]);
    let demand = Some(door::Demand { verifier: verifier.into(), random: [9; door::NONCE] });
    let mut handshake = Handshake::new(Settings { demand, ..settings(false) });
    handshake.handle_data(Peer::Client, &cancel);
    assert_eq!(handshake.poll_action(), Action::Cancel(cancel.into()));
    for bad in [&b"p\xff\xff\xff\xff"[..], b"Q\0\0\0\x05\0", b"p\0\0\0\x04"] {
        let (mut handshake, _) = asked(false);
        handshake.handle_data(Peer::Client, bad);
        let action = handshake.poll_action();
        assert!(matches!(action, Action::Refuse(Refusal::ClientMalformed(_))), "{bad:?} {action:?}");
    }
    let (mut handshake, _) = asked(false);
    handshake.handle_eof(Peer::Client);
    assert_eq!(handshake.poll_action(), Action::Refuse(Refusal::ClientGone));
}

fn authentication(code: u32, rest: &[u8]) -> BytesMut {
    let mut out = BytesMut::new();
    message::encode(b'R', &[&code.to_be_bytes(), rest].concat(), &mut out);
    out
}

#[test]
fn a_token_goes_out_as_a_cleartext_password_and_the_rest_passes_unchanged() {
    let mut handshake = logged_in_up_to_startup(SecretKind::Token);
    handshake.handle_data(Peer::Upstream, &authentication(3, b""));
    let Action::SendSecret(secret) = handshake.poll_action() else { panic!("no password") };
    assert_eq!(secret.expose(), b"p\0\0\0\x0bS3CRET\0");
    assert_eq!(handshake.poll_action(), Action::Read(Peer::Upstream));

    let mut greeting = authentication(0, b"");
    message::encode(b'S', b"server_version\x0015.18\0", &mut greeting);
    message::encode(b'K', &[0, 0, 0, 9, 1, 2, 3, 4], &mut greeting);
    greeting.put_slice(READY);
    // Client and upstream may both have gone on already.
    handshake.handle_data(Peer::Client, b"Q\0\0\0\x05\0");
    handshake.handle_data(Peer::Upstream, &greeting);
    handshake.handle_data(Peer::Upstream, b"more");
    greeting.put_slice(b"more");
    assert_eq!(
        handshake.poll_action(),
        Action::Splice { to_upstream: Bytes::from_static(b"Q\0\0\0\x05\0"), to_client: greeting.freeze() }
    );
    handshake.handle_eof(Peer::Upstream);
    assert!(!handshake.retry(), "a second login behind the client's back");
}

#[test]
fn the_greeting_passes_however_it_is_cut() {
    let mut greeting = authentication(0, b"");
    message::encode(b'S', b"TimeZone\0UTC\0", &mut greeting);
    greeting.put_slice(READY);
    for cut in 1..greeting.len() {
        let mut handshake = logged_in_up_to_startup(SecretKind::Token);
        let mut out = BytesMut::new();
        for part in [&greeting[..cut], &greeting[cut..]] {
            handshake.handle_data(Peer::Upstream, part);
            loop {
                match handshake.poll_action() {
                    Action::Send(Peer::Client, bytes) => out.put_slice(&bytes),
                    Action::Splice { to_client, .. } => {
                        out.put_slice(&to_client);
                        break;
                    }
                    Action::Read(Peer::Upstream) => break,
                    other => panic!("{other:?}"),
                }
            }
        }
        assert_eq!(out, greeting, "cut at {cut}");
    }
}

#[test]
fn a_token_is_never_hashed_for_a_server_that_wants_a_password() {
    for (code, rest) in [(5_u32, &b"salt"[..]), (10, b"SCRAM-SHA-256\0\0")] {
        let mut handshake = logged_in_up_to_startup(SecretKind::Token);
        handshake.handle_data(Peer::Upstream, &authentication(code, rest));
        assert!(matches!(handshake.poll_action(), Action::Refuse(Refusal::WantsPassword(_))));
    }
}

#[test]
fn an_md5_password_is_hashed_with_user_and_salt() {
    let mut handshake = logged_in_up_to_startup(SecretKind::Password);
    handshake.handle_data(Peer::Upstream, &authentication(5, b"salt"));
    let Action::SendSecret(secret) = handshake.poll_action() else { panic!("no password") };
    let hash = postgres_protocol::authentication::md5_hash(b"db_read", b"S3CRET", *b"salt");
    assert!(secret.expose().windows(hash.len()).any(|part| part == hash.as_bytes()));
}

#[test]
fn a_server_that_skips_its_scram_proof_is_refused() {
    let mut handshake = logged_in_up_to_startup(SecretKind::Password);
    handshake.handle_data(Peer::Upstream, &authentication(10, b"SCRAM-SHA-256\0\0"));
    assert!(matches!(handshake.poll_action(), Action::SendSecret(_)));
    handshake.handle_data(Peer::Upstream, &authentication(0, b""));
    assert!(matches!(handshake.poll_action(), Action::Refuse(Refusal::UpstreamMalformed(_))));
}

#[test]
fn no_tls_upstream_means_no_login() {
    for (answer, without) in [(&b"N"[..], true), (b"E", true), (b"Sx", false)] {
        let mut handshake = Handshake::new(Settings::default());
        let mut packet = BytesMut::new();
        Startup { version: 3 << 16, parameters: Vec::new() }.encode(&mut packet);
        handshake.handle_data(Peer::Client, &packet);
        assert_eq!(handshake.poll_action(), Action::Dial);
        handshake.handle_dialed();
        assert!(matches!(handshake.poll_action(), Action::Send(Peer::Upstream, _)));
        handshake.handle_data(Peer::Upstream, answer);
        match handshake.poll_action() {
            Action::Refuse(Refusal::UpstreamWithoutTls) => assert!(without),
            Action::Refuse(Refusal::UpstreamMalformed(_)) => assert!(!without),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn requests_for_encryption_get_their_answer_and_bytes_sent_early_are_refused() {
    let ssl = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
    let gss = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x30];
    let mut plain = Handshake::new(Settings::default());
    plain.handle_data(Peer::Client, &gss);
    assert_eq!(plain.poll_action(), Action::Send(Peer::Client, Bytes::from_static(b"N")));
    plain.handle_data(Peer::Client, &ssl);
    assert_eq!(plain.poll_action(), Action::Send(Peer::Client, Bytes::from_static(b"N")));
    assert_eq!(plain.poll_action(), Action::Read(Peer::Client));

    let mut tls = Handshake::new(settings(true));
    tls.handle_data(Peer::Client, &ssl);
    assert_eq!(tls.poll_action(), Action::Send(Peer::Client, Bytes::from_static(b"S")));
    assert_eq!(tls.poll_action(), Action::StartTls { peer: Peer::Client, already_read: Bytes::new() });

    let mut early = Handshake::new(settings(true));
    early.handle_data(Peer::Client, &[&ssl[..], b"x"].concat());
    assert!(matches!(early.poll_action(), Action::Refuse(Refusal::ClientMalformed(_))));
}

#[test]
fn tls_without_asking_is_served_to_clients_that_name_the_protocol() {
    for alpn in [true, false] {
        let mut handshake = Handshake::new(settings(true));
        handshake.handle_data(Peer::Client, &[0x16, 3, 1]);
        let hello = Bytes::from_static(&[0x16, 3, 1]);
        assert_eq!(handshake.poll_action(), Action::StartTls { peer: Peer::Client, already_read: hello });
        handshake.handle_tls(Peer::Client, None, alpn);
        let action = handshake.poll_action();
        match alpn {
            true => assert_eq!(action, Action::Read(Peer::Client)),
            false => assert!(matches!(action, Action::Refuse(Refusal::NoStartup(_))), "{action:?}"),
        }
        assert!(!handshake.has_startup());
    }
}

#[test]
fn an_error_of_the_login_is_refused_and_may_be_tried_again() {
    let mut handshake = logged_in_up_to_startup(SecretKind::Token);
    let mut out = BytesMut::new();
    ErrorFields { code: "28000".into(), message: "PAM authentication failed".into(), ..ErrorFields::default() }
        .encode(&mut out);
    handshake.handle_data(Peer::Upstream, &out);
    let Action::Refuse(Refusal::UpstreamRefused(fields)) = handshake.poll_action() else { panic!("not refused") };
    assert_eq!(fields.sqlstate, "28000");
    assert!(handshake.retry());
    assert_eq!(handshake.poll_action(), Action::Dial);
}

#[test]
fn an_error_after_the_login_passes_to_the_client_and_is_final() {
    let mut handshake = logged_in_up_to_startup(SecretKind::Token);
    let mut out = authentication(0, b"");
    ErrorFields { code: "3D000".into(), message: "no database".into(), ..ErrorFields::default() }.encode(&mut out);
    handshake.handle_data(Peer::Upstream, &out);
    assert_eq!(handshake.poll_action(), Action::Send(Peer::Client, out.freeze()));
    assert!(matches!(handshake.poll_action(), Action::Refuse(Refusal::Rejected(_))));
    assert!(!handshake.retry());
}

#[test]
fn secrets_are_not_in_debug() {
    let mut handshake = logged_in_up_to_startup(SecretKind::Token);
    handshake.handle_data(Peer::Upstream, &authentication(3, b""));
    assert_eq!(format!("{:?}", handshake.poll_action()), "SendSecret([redacted])");
}

#[test]
fn who_is_not_admitted_cannot_come_in_by_another_attempt() {
    let (mut handshake, _) = asked(false);
    handshake.handle_data(Peer::Client, b"p\0\0\0\x04");
    assert!(matches!(handshake.poll_action(), Action::Refuse(_)));
    assert!(!handshake.retry());
}

fn refusal(code: &str, message: &str) -> BytesMut {
    let mut out = BytesMut::new();
    ErrorFields { code: code.into(), message: message.into(), ..ErrorFields::default() }.encode(&mut out);
    out
}

/// What RDS Proxy says.
const UNSUPPORTED: &str =
    "Feature not supported: RDS Proxy currently doesn’t support the option default_transaction_read_only.";

fn ready(settings: &[(u8, &[u8])]) -> BytesMut {
    let mut out = BytesMut::new();
    settings.iter().for_each(|(tag, body)| message::encode(*tag, body, &mut out));
    out.put_slice(READY);
    out
}

#[test]
fn an_upstream_that_does_not_take_the_parameter_gets_a_statement_on_another_connection() {
    let by_parameter = Settings { read_only: ReadOnly::Parameter, ..settings(false) };
    // Before and after it has let the user in.
    for let_in in [false, true] {
        let (mut handshake, sent) = logged_in_with(by_parameter.clone(), SecretKind::Token);
        assert_eq!(sent.parameter(READ_ONLY).unwrap(), "on");
        if let_in {
            handshake.handle_data(Peer::Upstream, &authentication(0, b""));
            assert_eq!(handshake.poll_action(), Action::Read(Peer::Upstream));
        }
        handshake.handle_data(Peer::Upstream, &refusal("0A000", UNSUPPORTED));
        assert!(matches!(handshake.poll_action(), Action::Refuse(Refusal::ReadOnlyParameter(_))));
        assert!(handshake.retry());
        assert_eq!(to_startup(&mut handshake, SecretKind::Token).parameter(READ_ONLY), None);
        let mut answer = authentication(0, b"");
        answer.put_slice(&ready(&[(b'K', &[0; 8])]));
        handshake.handle_data(Peer::Upstream, &answer);
        let Action::Send(Peer::Upstream, query) = handshake.poll_action() else { panic!("no statement") };
        assert_eq!(query, "Q\0\0\0\x2bSET default_transaction_read_only = on\0");
        assert_eq!(handshake.poll_action(), Action::Read(Peer::Upstream));
        handshake.handle_data(Peer::Upstream, &ready(&[(b'C', b"SET\0")]));
        let to_client = answer.freeze();
        assert_eq!(handshake.poll_action(), Action::Splice { to_upstream: Bytes::new(), to_client });
    }
}

#[test]
fn other_refusals_are_not_taken_for_that_one() {
    let by_parameter = Settings { read_only: ReadOnly::Parameter, ..settings(false) };
    for (code, message) in [
        ("0A000", "RDS Proxy currently doesn’t support command-line options."),
        ("28000", UNSUPPORTED),
        // A pooler that may give the connection, and with it the setting, to other clients.
        ("08P01", "unsupported startup parameter: default_transaction_read_only"),
    ] {
        let (mut handshake, _) = logged_in_with(by_parameter.clone(), SecretKind::Token);
        handshake.handle_data(Peer::Upstream, &refusal(code, message));
        let action = handshake.poll_action();
        assert!(matches!(action, Action::Refuse(Refusal::UpstreamRefused(_))), "{action:?}");
    }
    // It is the client's own affair where the relay has not set it.
    for read_only in [ReadOnly::No, ReadOnly::Statement] {
        let (mut handshake, _) = logged_in_with(Settings { read_only, ..settings(false) }, SecretKind::Token);
        handshake.handle_data(Peer::Upstream, &refusal("0A000", UNSUPPORTED));
        assert!(matches!(handshake.poll_action(), Action::Refuse(Refusal::UpstreamRefused(_))));
    }
}

#[test]
fn a_refused_statement_ends_the_login_before_the_client_has_heard_of_it() {
    let (mut handshake, _) =
        logged_in_with(Settings { read_only: ReadOnly::Statement, ..settings(false) }, SecretKind::Token);
    let mut answer = authentication(0, b"");
    answer.put_slice(READY);
    handshake.handle_data(Peer::Upstream, &answer);
    assert!(matches!(handshake.poll_action(), Action::Send(Peer::Upstream, _)));
    handshake.handle_data(Peer::Upstream, &refusal("42501", "permission denied"));
    assert!(matches!(handshake.poll_action(), Action::Refuse(Refusal::NotReadOnly(_))));
}

#[test]
fn a_client_whose_packet_has_no_room_for_what_the_relay_sets_is_told() {
    let mut handshake = Handshake::new(Settings { read_only: ReadOnly::Parameter, ..settings(false) });
    let mut startup = Startup { version: 3 << 16, parameters: Vec::new() };
    startup.set("options", &[b'x'; 9_960]);
    let mut packet = BytesMut::new();
    startup.encode(&mut packet);
    handshake.handle_data(Peer::Client, &packet);
    assert_eq!(handshake.poll_action(), Action::Dial);
    handshake.handle_dialed();
    assert!(matches!(handshake.poll_action(), Action::Send(Peer::Upstream, _)));
    handshake.handle_data(Peer::Upstream, b"S");
    assert!(matches!(handshake.poll_action(), Action::StartTls { .. }));
    handshake.handle_tls(Peer::Upstream, None, false);
    handshake.handle_credential("db_read", b"S3CRET", SecretKind::Token);
    let (client, whole) = (packet.len(), packet.len() + "user\0db_read\0database\0orders\0".len() + 33);
    assert_eq!(handshake.poll_action(), Action::Refuse(Refusal::StartupTooLong { client, whole }));
}
