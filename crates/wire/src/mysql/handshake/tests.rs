//! The machine played through by hand: what each side sends, and what must come out.

use super::super::capability;
use super::super::greeting::tests::greeting;
use super::super::response::tests::response;
use super::super::{auth, packet};
use super::*;

/// How result sets end: the client's choice must hold upstream too.
const DEPRECATE_EOF: u32 = 1 << 24;
const USER_OK: &[u8] = &[0, 0, 0, 2, 0, 0, 0];

fn settings() -> Settings {
    Settings {
        database: Some("orders".to_owned()),
        offer_tls: false,
        attributes: vec![("bastion_connection", "7".to_owned())],
        ..Settings::default()
    }
}

fn packed(sequence: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = BytesMut::new();
    packet::encode(sequence, payload, &mut out);
    out.to_vec()
}

fn unpacked(bytes: &[u8]) -> Packet {
    let mut buffer = BytesMut::from(bytes);
    let packet = packet::decode(&mut buffer).unwrap().unwrap();
    assert!(buffer.is_empty());
    packet
}

fn greeting_packet() -> Vec<u8> {
    let mut payload = BytesMut::new();
    greeting().encode(&mut payload);
    packed(0, &payload)
}

fn response_packet(sequence: u8, response: &Response) -> Vec<u8> {
    let mut payload = BytesMut::new();
    response.encode(&mut payload);
    packed(sequence, &payload)
}

/// A machine whose upstream has greeted; what the client is shown.
fn greeted(settings: Settings) -> (Handshake, Greeting) {
    let mut handshake = Handshake::new(settings, [3; SCRAMBLE]);
    assert_eq!(handshake.poll_action(), Action::Dial);
    handshake.handle_dialed();
    assert_eq!(handshake.poll_action(), Action::Read(Peer::Upstream));
    handshake.handle_data(Peer::Upstream, &greeting_packet());
    let Action::Send(Peer::Client, bytes) = handshake.poll_action() else { panic!("no greeting") };
    let shown = unpacked(&bytes);
    assert_eq!(shown.sequence, 0);
    assert_eq!(handshake.poll_action(), Action::Read(Peer::Client));
    (handshake, Greeting::parse(&shown.payload).unwrap())
}

/// A machine that has sent the credential; the response that the upstream got.
fn logging_in(response: &Response, kind: SecretKind) -> (Handshake, Response) {
    let (mut handshake, _) = greeted(settings());
    handshake.handle_data(Peer::Client, &response_packet(1, response));
    let sent = up_to_login(&mut handshake, kind);
    (handshake, sent)
}

fn up_to_login(handshake: &mut Handshake, kind: SecretKind) -> Response {
    let Action::Send(Peer::Upstream, request) = handshake.poll_action() else { panic!("no TLS request") };
    let request = unpacked(&request);
    assert_eq!((request.sequence, request.payload.len()), (1, 32));
    assert_eq!(Opening::parse(&request.payload, u32::MAX), Ok(Opening::SslRequest));
    assert!(matches!(handshake.poll_action(), Action::StartTls { peer: Peer::Upstream, .. }));
    handshake.handle_tls(Peer::Upstream);
    assert_eq!(handshake.poll_action(), Action::NeedCredential);
    handshake.handle_credential("db_read", b"S3CRET", kind);
    let Action::SendSecret(secret) = handshake.poll_action() else { panic!("no login") };
    let login = unpacked(secret.expose());
    assert_eq!(login.sequence, 2);
    // MySQL reads the flags of the TLS request, MariaDB those of both: they must be the same.
    assert_eq!(login.payload.slice(..32), request.payload);
    let Ok(Opening::Response(sent)) = Opening::parse(&login.payload, u32::MAX) else { panic!("not a response") };
    assert_eq!(handshake.poll_action(), Action::Read(Peer::Upstream));
    sent
}

fn switch(sequence: u8, plugin: &str, nonce: &[u8]) -> Vec<u8> {
    packed(sequence, &[&[door::SWITCH], plugin.as_bytes(), &[0], nonce].concat())
}

#[test]
fn the_client_sees_the_upstreams_greeting_without_what_must_not_hold() {
    let (_, shown) = greeted(settings());
    let real = greeting();
    assert_eq!((&shown.version, shown.connection_id, shown.charset), (&real.version, 42, 45));
    assert_eq!((shown.status, shown.reserved), (real.status, real.reserved));
    assert_eq!(shown.capabilities, real.capabilities & !MASKED);
    assert_eq!(&shown.scramble[..], &[3; 20]);
    let (_, read) = greeted(Settings { statements: true, ..settings() });
    assert_eq!(read.capabilities, real.capabilities & !(MASKED | QUERY_ATTRIBUTES));
    let (_, with_tls) = greeted(Settings { offer_tls: true, ..settings() });
    assert_eq!(with_tls.capabilities & SSL, SSL);
}

#[test]
fn files_of_the_client_are_agreed_on_only_where_they_may_be() {
    for (local_infile, agreed) in [(false, 0), (true, LOCAL_FILES)] {
        let (mut handshake, shown) = greeted(Settings { local_infile, ..settings() });
        assert_eq!(shown.capabilities & LOCAL_FILES, agreed);
        let mut client = response();
        client.head.capabilities |= LOCAL_FILES;
        handshake.handle_data(Peer::Client, &response_packet(1, &client));
        let sent = up_to_login(&mut handshake, SecretKind::Password);
        assert_eq!(sent.head.capabilities & LOCAL_FILES, agreed);
    }
}

#[test]
fn a_client_cannot_take_the_names_of_the_relays_own_attributes() {
    let pair = |name: &'static str, value: &'static str| (Bytes::from(name), Bytes::from(value));
    let mut client = response();
    client.attributes = vec![pair("bastion_person", "bob"), pair("program_name", "mysql"), pair("BASTION_x", "bob")];
    client.attributes.extend([pair("bastion", "a name of its own"), pair("bastion_connection", "1")]);
    let (_, sent) = logging_in(&client, SecretKind::Token);
    let expected =
        [pair("bastion_connection", "7"), pair("program_name", "mysql"), pair("bastion", "a name of its own")];
    assert_eq!(sent.attributes, expected);
}

#[test]
fn as_many_attributes_as_a_server_takes_pass_and_the_relays_own_have_room() {
    // A server takes a block of 65,535 bytes: 64 of these and 831 bytes more, of which the relay needs 21.
    let value = |length| Bytes::from(vec![b'v'; length]);
    let mut client = response();
    client.attributes = (10..74).map(|n| (Bytes::from(format!("name_{n}")), value(1000))).collect();
    for (last, passes) in [(600, true), (820, false)] {
        client.attributes.push((Bytes::from_static(b"last"), value(last)));
        let (_, sent) = logging_in(&client, SecretKind::Token);
        assert_eq!(&sent.attributes[0].0[..], b"bastion_connection");
        assert_eq!(sent.attributes[1..65], client.attributes[..64]);
        assert_eq!(sent.attributes.get(65), client.attributes.get(64).filter(|_| passes), "{last}");
        client.attributes.pop();
    }
}

/// A machine that greets from memory, and what the client is shown.
fn remembering(remembered: Greeting) -> (Handshake, Greeting) {
    let mut handshake = Handshake::new(Settings { remembered: Some(remembered), ..settings() }, [3; SCRAMBLE]);
    let Action::Send(Peer::Client, bytes) = handshake.poll_action() else { panic!("no greeting") };
    assert_eq!(handshake.poll_action(), Action::Read(Peer::Client));
    (handshake, Greeting::parse(&unpacked(&bytes).payload).unwrap())
}

#[test]
fn a_greeting_from_memory_is_shown_and_the_upstream_dialled_for_a_client_that_is_in() {
    let (mut handshake, shown) = remembering(greeting());
    let (_, real) = greeted(settings());
    assert_eq!(shown, Greeting { connection_id: 0, ..real });
    handshake.handle_data(Peer::Client, &response_packet(1, &response()));
    assert!(handshake.greeting().is_none());
    assert_eq!(handshake.poll_action(), Action::Dial);
    assert!(handshake.has_opened());
    handshake.handle_dialed();
    assert_eq!(handshake.poll_action(), Action::Read(Peer::Upstream));
    handshake.handle_data(Peer::Upstream, &greeting_packet());
    up_to_login(&mut handshake, SecretKind::Password);
    handshake.handle_data(Peer::Upstream, &packed(3, USER_OK));
    let Action::Splice { to_client, .. } = handshake.poll_action() else { panic!("not joined") };
    assert_eq!(to_client, packed(2, USER_OK));
    assert_eq!(handshake.greeting().map(|greeting| greeting.connection_id), Some(42));
}

#[test]
fn an_upstream_that_can_do_less_than_was_remembered_is_not_logged_in_to() {
    let real = greeting();
    let mut more = real.reserved;
    more[6] = 0xff;
    for remembered in [
        Greeting { capabilities: real.capabilities | 1 << 25, ..real.clone() },
        Greeting { reserved: more, ..real.clone() },
    ] {
        let (mut handshake, _) = remembering(remembered);
        let mut client = response();
        client.head.capabilities = (client.head.capabilities | 1 << 25) & !LONG_PASSWORD;
        client.head.reserved[19] = 0xff;
        handshake.handle_data(Peer::Client, &response_packet(1, &client));
        assert_eq!(handshake.poll_action(), Action::Dial);
        handshake.handle_dialed();
        assert_eq!(handshake.poll_action(), Action::Read(Peer::Upstream));
        handshake.handle_data(Peer::Upstream, &greeting_packet());
        let action = handshake.poll_action();
        assert!(matches!(action, Action::Refuse(Refusal::UpstreamMalformed(_))), "{action:?}");
        // The next connection remembers this one.
        assert_eq!(handshake.greeting(), Some(&real));
    }
}

#[test]
fn what_is_sent_behind_the_ok_unasked_does_not_reach_the_client() {
    let (mut handshake, _) = logging_in(&response(), SecretKind::Password);
    handshake.handle_data(Peer::Upstream, &[packed(3, USER_OK), packed(1, b"\xfb/etc/passwd")].concat());
    assert!(matches!(handshake.poll_action(), Action::Refuse(Refusal::UpstreamMalformed(_))));
}

#[test]
fn a_password_of_the_relay_is_proven_before_anything_goes_upstream() {
    let demand = || Some(Arc::new(Verifier::new("0123456789abcdef")));
    let challenge = [3; SCRAMBLE];
    // The native plugin in the first packet, caching_sha2_password after a switch, and a client that knows no plugins.
    for (plugin, answer) in [
        (Some(auth::NATIVE), auth::native(&challenge, b"0123456789abcdef").unwrap().to_vec()),
        (Some(auth::CACHING_SHA2), auth::caching_sha2(&challenge, b"0123456789abcdef").unwrap().to_vec()),
        (None, auth::native(&challenge, b"0123456789abcdef").unwrap().to_vec()),
    ] {
        for (answer, comes_in) in [(&answer[..], true), (&answer[1..], false), (&[], false), (&[0], false)] {
            let (mut handshake, _) = greeted(Settings { demand: demand(), ..settings() });
            let mut client = response();
            client.plugin = plugin.map(|name| Bytes::from_static(name.as_bytes()));
            if plugin.is_none() {
                client.head.capabilities &= !(PLUGIN_AUTH | CONNECT_ATTRS | capability::PLUGIN_AUTH_LENENC);
                client.attributes.clear();
            }
            client.answer = Bytes::copy_from_slice(answer);
            handshake.handle_data(Peer::Client, &response_packet(1, &client));
            if plugin == Some(auth::CACHING_SHA2) {
                let Action::Send(Peer::Client, switch) = handshake.poll_action() else { panic!("no switch") };
                assert!(unpacked(&switch).payload.ends_with(&[3, 0]));
                assert_eq!(handshake.poll_action(), Action::Read(Peer::Client));
                assert!(!handshake.has_opened());
                handshake.handle_data(Peer::Client, &packed(3, answer));
            }
            let action = handshake.poll_action();
            match comes_in {
                true => assert!(matches!(action, Action::Send(Peer::Upstream, _)), "{plugin:?} {action:?}"),
                false => assert_eq!(action, Action::Refuse(Refusal::WrongPassword), "{plugin:?} {answer:?}"),
            }
        }
    }
}

#[test]
fn a_token_goes_out_when_the_server_asks_for_it_and_the_ok_passes() {
    let mut client = response();
    client.head.capabilities |= DEPRECATE_EOF | LOCAL_FILES | capability::COMPRESS;
    let (mut handshake, sent) = logging_in(&client, SecretKind::Token);
    assert_eq!(sent.user, "db_read");
    assert_eq!(sent.database.as_deref(), Some(&b"events"[..]));
    assert_eq!(sent.attributes[0], (Bytes::from_static(b"bastion_connection"), Bytes::from_static(b"7")));
    assert_eq!(sent.attributes[1..], client.attributes);
    assert_eq!(sent.head.capabilities & (LOCAL_FILES | capability::COMPRESS), 0);
    assert!(sent.answer.iter().all(|byte| *byte == 0));
    handshake.handle_data(Peer::Upstream, &switch(3, auth::CLEAR, b""));
    let Action::SendSecret(secret) = handshake.poll_action() else { panic!("no token") };
    assert_eq!(secret.expose(), packed(4, b"S3CRET\0"));
    assert_eq!(handshake.poll_action(), Action::Read(Peer::Upstream));
    handshake.handle_data(Peer::Client, &packed(0, b"\x03select 1"));
    handshake.handle_data(Peer::Upstream, &packed(5, USER_OK));
    let expected =
        Action::Splice { to_upstream: packed(0, b"\x03select 1").into(), to_client: packed(2, USER_OK).into() };
    assert_eq!(handshake.poll_action(), expected);
}

#[test]
fn a_read_only_session_is_set_up_before_the_client_hears_of_it() {
    for (attributes, front) in [(0, &b"\x03"[..]), (QUERY_ATTRIBUTES, b"\x03\0\x01")] {
        let (mut handshake, _) = greeted(Settings { read_only: true, ..settings() });
        let mut client = response();
        client.head.capabilities = (client.head.capabilities & !QUERY_ATTRIBUTES) | attributes;
        handshake.handle_data(Peer::Client, &response_packet(1, &client));
        up_to_login(&mut handshake, SecretKind::Token);
        handshake.handle_data(Peer::Upstream, &packed(3, USER_OK));
        let statement = packed(0, &[front, READ_ONLY.as_bytes()].concat());
        assert_eq!(handshake.poll_action(), Action::Send(Peer::Upstream, statement.into()));
        assert_eq!(handshake.poll_action(), Action::Read(Peer::Upstream));
        handshake.handle_data(Peer::Upstream, &packed(1, b"\0\0\0\x03\0\0\0"));
        assert!(matches!(handshake.poll_action(), Action::Splice { to_client, .. } if to_client == packed(2, USER_OK)));
    }
}

#[test]
fn a_client_gets_the_configured_database_only_if_it_names_none() {
    let mut client = response();
    client.database = None;
    client.head.capabilities &= !CONNECT_WITH_DB;
    let (_, sent) = logging_in(&client, SecretKind::Token);
    assert_eq!(sent.database.as_deref(), Some(&b"orders"[..]));
}

#[test]
fn a_token_is_not_sent_to_a_server_that_wants_a_password() {
    for plugin in [auth::NATIVE, auth::CACHING_SHA2, auth::ED25519, auth::SHA256] {
        let (mut handshake, _) = logging_in(&response(), SecretKind::Token);
        handshake.handle_data(Peer::Upstream, &switch(3, plugin, &[5; 32]));
        assert_eq!(handshake.poll_action(), Action::Refuse(Refusal::WantsPassword(plugin)));
    }
    let (mut handshake, _) = logging_in(&response(), SecretKind::Token);
    handshake.handle_data(Peer::Upstream, &switch(3, "dialog", b""));
    assert_eq!(handshake.poll_action(), Action::Refuse(Refusal::UnknownAuthentication("dialog".to_owned())));
}

#[test]
fn a_password_goes_through_every_switch_that_mariadb_makes() {
    let (mut handshake, sent) = logging_in(&response(), SecretKind::Password);
    assert_eq!(sent.answer, auth::native(b"abcdefghijklmnopqrst", b"S3CRET").unwrap()[..]);
    handshake.handle_data(Peer::Upstream, &switch(3, auth::ED25519, &[5; 32]));
    assert!(matches!(handshake.poll_action(), Action::SendSecret(secret) if secret.expose().len() == 68));
    assert_eq!(handshake.poll_action(), Action::Read(Peer::Upstream));
    handshake.handle_data(Peer::Upstream, &switch(5, auth::NATIVE, b"tsrqponmlkjihgfedcba\0"));
    let Action::SendSecret(secret) = handshake.poll_action() else { panic!("no proof") };
    let proof = auth::native(b"tsrqponmlkjihgfedcba", b"S3CRET").unwrap();
    assert_eq!(secret.expose(), packed(6, &proof));
    handshake.handle_data(Peer::Upstream, &packed(7, USER_OK));
    assert!(matches!(handshake.poll_action(), Action::Splice { .. }));
}

#[test]
fn switches_without_end_are_refused() {
    let (mut handshake, _) = logging_in(&response(), SecretKind::Password);
    for sequence in 0..=ROUNDS_MAX {
        handshake.handle_data(Peer::Upstream, &switch(sequence, auth::NATIVE, &[5; 20]));
    }
    let refusal = loop {
        match handshake.poll_action() {
            Action::SendSecret(_) => {}
            other => break other,
        }
    };
    assert!(matches!(refusal, Action::Refuse(Refusal::UpstreamMalformed(_))), "{refusal:?}");
}

#[test]
fn each_client_is_asked_with_a_plugin_that_it_has() {
    let cases: [(Option<&str>, Option<&str>); 6] = [
        (Some(auth::NATIVE), None),
        (Some(auth::CACHING_SHA2), Some(auth::CACHING_SHA2)),
        (Some(auth::CLEAR), Some(auth::NATIVE)),
        (Some("client_ed25519"), Some(auth::NATIVE)),
        (Some(""), Some(auth::NATIVE)),
        (None, None),
    ];
    for (named, switched) in cases {
        let (mut handshake, _) = greeted(settings());
        let mut client = response();
        client.plugin = named.map(|name| Bytes::copy_from_slice(name.as_bytes()));
        if named.is_none() {
            client.head.capabilities &= !PLUGIN_AUTH;
        }
        handshake.handle_data(Peer::Client, &response_packet(1, &client));
        let mut next = 2;
        if let Some(plugin) = switched {
            let Action::Send(Peer::Client, asked) = handshake.poll_action() else { panic!("{named:?}") };
            assert_eq!(asked, switch(2, plugin, &[&[3; 20][..], &[0]].concat()), "{named:?}");
            assert_eq!(handshake.poll_action(), Action::Read(Peer::Client));
            assert!(!handshake.has_opened());
            handshake.handle_data(Peer::Client, &packed(3, &[9; 32]));
            next = 4;
        }
        up_to_login(&mut handshake, SecretKind::Token);
        assert!(handshake.has_opened());
        handshake.handle_data(Peer::Upstream, &packed(3, USER_OK));
        let Action::Splice { to_client, .. } = handshake.poll_action() else { panic!("{named:?}") };
        // A caching_sha2_password client with a password waits for the word that its proof is known.
        let expected = match switched {
            Some(auth::CACHING_SHA2) => [packed(4, &[1, 3]), packed(5, USER_OK)].concat(),
            _ => packed(next, USER_OK),
        };
        assert_eq!(to_client, expected, "{named:?}");
    }
}

#[test]
fn errors_of_the_upstream_are_kept_and_a_login_may_be_tried_again() {
    let mut handshake = Handshake::new(settings(), [3; SCRAMBLE]);
    handshake.handle_dialed();
    handshake.handle_data(Peer::Upstream, &packed(0, b"\xff\x69\x04Host is blocked"));
    let Action::Refuse(Refusal::UpstreamRefused(said)) = handshake.poll_action() else { panic!("not refused") };
    assert_eq!((said.number, said.message.as_str()), (1129, "Host is blocked"));
    // Nobody has agreed on SQLSTATEs yet.
    assert_eq!(handshake.encode_error(&said), packed(0, b"\xff\x69\x04Host is blocked"));

    let (mut handshake, _) = logging_in(&response(), SecretKind::Token);
    handshake.handle_data(Peer::Upstream, &packed(3, b"\xff\x15\x04#28000Access denied"));
    let Action::Refuse(Refusal::UpstreamRefused(said)) = handshake.poll_action() else { panic!("not refused") };
    assert_eq!(said.sqlstate, "28000");
    assert_eq!(handshake.encode_error(&said), packed(2, b"\xff\x15\x04#28000Access denied"));
    assert!(handshake.retry());
    assert_eq!(handshake.poll_action(), Action::Dial);
    handshake.handle_dialed();
    handshake.handle_data(Peer::Upstream, &greeting_packet());
    up_to_login(&mut handshake, SecretKind::Token);
    handshake.handle_data(Peer::Upstream, &packed(3, USER_OK));
    assert!(matches!(handshake.poll_action(), Action::Splice { .. }));
    assert!(!handshake.retry());
}

#[test]
fn an_upstream_that_cannot_be_trusted_gets_nothing() {
    let refused = |bytes: &[u8]| {
        let mut handshake = Handshake::new(settings(), [3; SCRAMBLE]);
        handshake.handle_dialed();
        handshake.handle_data(Peer::Upstream, bytes);
        match handshake.poll_action() {
            Action::Refuse(refusal) => refusal,
            other => panic!("{other:?}"),
        }
    };
    let changed = |capabilities: u32| {
        let mut payload = BytesMut::new();
        Greeting { capabilities, ..greeting() }.encode(&mut payload);
        packed(0, &payload)
    };
    assert_eq!(refused(&changed(greeting().capabilities & !SSL)), Refusal::UpstreamWithoutTls);
    assert!(matches!(refused(&changed(capability::PROTOCOL_41)), Refusal::UpstreamMalformed(_)));
    assert!(matches!(refused(&[&greeting_packet()[..], b"x"].concat()), Refusal::UpstreamMalformed(_)));
    assert!(matches!(refused(b"HTTP/1.1 400 Bad Request\r\n"), Refusal::UpstreamMalformed(_)));
    assert!(matches!(refused(&packed(0, b"\x09old")), Refusal::UpstreamMalformed(_)));
}

#[test]
fn a_client_that_asks_for_tls_gets_it_or_is_told() {
    let mut request = BytesMut::new();
    let mut head = response().head;
    head.capabilities |= SSL;
    head.encode(&mut request);
    let (mut without, _) = greeted(settings());
    without.handle_data(Peer::Client, &packed(1, &request));
    assert!(matches!(without.poll_action(), Action::Refuse(Refusal::ClientMalformed(_))));

    let (mut with, _) = greeted(Settings { offer_tls: true, ..settings() });
    with.handle_data(Peer::Client, &[&packed(1, &request)[..], b"\x16\x03\x01"].concat());
    let hello = Action::StartTls { peer: Peer::Client, already_read: Bytes::from_static(b"\x16\x03\x01") };
    assert_eq!(with.poll_action(), hello);
    with.handle_tls(Peer::Client);
    let mut inside = response();
    inside.head.capabilities |= SSL;
    with.handle_data(Peer::Client, &response_packet(2, &inside));
    up_to_login(&mut with, SecretKind::Token);
    with.handle_data(Peer::Upstream, &packed(3, USER_OK));
    assert!(matches!(with.poll_action(), Action::Splice { to_client, .. } if to_client == packed(3, USER_OK)));

    // Saying so is not doing it.
    let (mut liar, _) = greeted(Settings { offer_tls: true, ..settings() });
    liar.handle_data(Peer::Client, &response_packet(1, &inside));
    assert!(matches!(liar.poll_action(), Action::Refuse(Refusal::ClientMalformed(_))));
}

/// Runs a whole login, with what each side sends cut into pieces; what the client and the upstream get.
fn played(cut: usize) -> (Vec<u8>, Vec<u8>) {
    let mut client = response();
    client.plugin = Some(Bytes::from_static(auth::CACHING_SHA2.as_bytes()));
    let from_client = [response_packet(1, &client), packed(3, &[9; 32]), packed(0, b"\x0e")].concat();
    // The part that follows the TLS handshake must not come before it.
    let clear = greeting_packet();
    let inside = [switch(3, auth::CLEAR, b""), packed(5, USER_OK), packed(0, b"\xff\x53\x04shutdown")].concat();
    let mut pieces = [
        (Peer::Client, from_client.chunks(cut).map(<[u8]>::to_vec).collect::<VecDeque<_>>()),
        (Peer::Upstream, clear.chunks(cut).map(<[u8]>::to_vec).collect()),
    ];
    let (mut to_client, mut to_upstream) = (Vec::new(), Vec::new());
    let mut handshake = Handshake::new(settings(), [3; SCRAMBLE]);
    loop {
        match handshake.poll_action() {
            Action::Dial => handshake.handle_dialed(),
            Action::NeedCredential => handshake.handle_credential("db_read", b"S3CRET", SecretKind::Token),
            Action::Read(peer) => {
                let (_, from) = pieces.iter_mut().find(|(whose, _)| *whose == peer).unwrap();
                let piece = from.pop_front().expect("it reads more than there is");
                handshake.handle_data(peer, &piece);
            }
            Action::Send(Peer::Client, bytes) => to_client.extend_from_slice(&bytes),
            Action::Send(Peer::Upstream, bytes) => to_upstream.extend_from_slice(&bytes),
            Action::SendSecret(secret) => to_upstream.extend_from_slice(secret.expose()),
            Action::StartTls { .. } => {
                pieces[1].1 = inside.chunks(cut).map(<[u8]>::to_vec).collect();
                handshake.handle_tls(Peer::Upstream);
            }
            Action::Splice { to_upstream: early, to_client: last } => {
                to_client.extend_from_slice(&last);
                to_upstream.extend_from_slice(&early);
                // What has not been read yet would be copied.
                for (peer, rest) in pieces {
                    let rest = rest.into_iter().flatten();
                    match peer {
                        Peer::Client => to_upstream.extend(rest),
                        Peer::Upstream => to_client.extend(rest),
                    }
                }
                return (to_client, to_upstream);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn however_the_bytes_are_cut_the_same_ones_come_out() {
    let whole = played(usize::MAX);
    for cut in 1..200 {
        assert_eq!(played(cut), whole, "{cut}");
    }
}

proptest::proptest! {
    #[test]
    fn garbage_never_panics_and_never_splices(
        client in proptest::collection::vec(proptest::num::u8::ANY, 0..300),
        upstream in proptest::collection::vec(proptest::num::u8::ANY, 0..300),
        greets in proptest::bool::ANY,
    ) {
        let mut handshake = Handshake::new(settings(), [3; SCRAMBLE]);
        handshake.handle_dialed();
        if greets {
            handshake.handle_data(Peer::Upstream, &greeting_packet());
            let _greeting = handshake.poll_action();
        }
        handshake.handle_data(Peer::Client, &client);
        handshake.handle_data(Peer::Upstream, &upstream);
        for _ in 0..50 {
            match handshake.poll_action() {
                Action::Read(peer) => handshake.handle_eof(peer),
                Action::Refuse(_) => break,
                Action::StartTls { peer, .. } => handshake.handle_tls(peer),
                Action::NeedCredential => handshake.handle_credential("u", b"p", SecretKind::Token),
                Action::Splice { .. } => panic!("random bytes logged in"),
                _ => {}
            }
        }
    }
}

#[test]
fn secrets_are_not_in_debug() {
    let (mut handshake, _) = logging_in(&response(), SecretKind::Token);
    handshake.handle_data(Peer::Upstream, &switch(3, auth::CLEAR, b""));
    assert_eq!(format!("{:?}", handshake.poll_action()), "SendSecret([redacted])");
}

/// What MySQL 9.7 sent and what it took; see `testdata/mysql/README.md`.
const FULL: (&[u8], &[u8]) = (
    include_bytes!("../../../../../testdata/mysql/caching-sha2-full.server.bin"),
    include_bytes!("../../../../../testdata/mysql/caching-sha2-full.relay.bin"),
);
const FAST: (&[u8], &[u8]) = (
    include_bytes!("../../../../../testdata/mysql/caching-sha2-fast.server.bin"),
    include_bytes!("../../../../../testdata/mysql/caching-sha2-fast.relay.bin"),
);
/// Length of an SSLRequest with its header.
const SSL_REQUEST: usize = 36;

/// Plays the client of a recording; everything that went upstream, or the bytes so far if the upstream sends no more.
fn replayed(server: &[u8], relay: &[u8]) -> Result<Vec<u8>, Vec<u8>> {
    let mut login = BytesMut::from(&relay[SSL_REQUEST..]);
    let login = packet::decode(&mut login).unwrap().unwrap();
    let Ok(Opening::Response(mut sent)) = Opening::parse(&login.payload, u32::MAX) else { panic!("not a login") };
    // The client is asked for nothing that the recording does not show.
    let bastion = settings().attributes.len();
    let own: Vec<_> = sent.attributes.drain(..bastion).collect();
    sent.head.capabilities &= !SSL;
    sent.answer = Bytes::new();
    sent.plugin = Some(Bytes::from_static(auth::NATIVE.as_bytes()));
    let attributes = vec![("bastion_connection", String::from_utf8(own[0].1.to_vec()).unwrap())];
    let mut handshake = Handshake::new(Settings { attributes, ..settings() }, [3; SCRAMBLE]);
    // Nothing may follow the greeting before TLS.
    let greeting_length = 4 + server.first().map_or(0, |length| usize::from(*length));
    let clear = &server[..greeting_length.min(server.len())];
    let inside = server.get(greeting_length..).unwrap_or_default();
    let mut waiting = VecDeque::from([clear.to_vec()]);
    let mut up = Vec::new();
    loop {
        match handshake.poll_action() {
            Action::Dial => handshake.handle_dialed(),
            Action::NeedCredential => {
                handshake.handle_credential("sha2", b"correct horse battery staple", SecretKind::Password);
            }
            Action::Read(Peer::Client) => handshake.handle_data(Peer::Client, &response_packet(1, &sent)),
            Action::Read(Peer::Upstream) => match waiting.pop_front() {
                Some(bytes) if !bytes.is_empty() => handshake.handle_data(Peer::Upstream, &bytes),
                _ => return Err(up),
            },
            Action::Send(Peer::Upstream, bytes) => up.extend_from_slice(&bytes),
            Action::Send(Peer::Client, _) => {}
            Action::SendSecret(secret) => up.extend_from_slice(secret.expose()),
            Action::StartTls { .. } => {
                waiting.push_back(inside.to_vec());
                handshake.handle_tls(Peer::Upstream);
            }
            Action::Splice { .. } => return Ok(up),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_recorded_logins_of_mysql_come_out_byte_for_byte() {
    for (server, relay) in [FULL, FAST] {
        assert_eq!(replayed(server, relay).unwrap(), relay);
    }
}

#[test]
fn every_prefix_of_a_recorded_login_waits_for_more() {
    for (server, relay) in [FULL, FAST] {
        for end in 0..server.len() {
            let sent = replayed(&server[..end], relay).unwrap_err();
            assert!(relay.starts_with(&sent), "{end}");
        }
    }
}
