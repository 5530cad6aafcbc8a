//! MySQL and MariaDB: the parsers of their packets, and their login.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::login::{self, End, Engine, Line, USER};
use super::{Input, check_decoder};
use crate::mysql::auth::{CACHING_SHA2, CLEAR, ED25519, NATIVE, SHA256};
use crate::mysql::capability::{
    CONNECT_ATTRS, CONNECT_WITH_DB, LONG_PASSWORD, NEEDED, PLUGIN_AUTH, PLUGIN_AUTH_LENENC, SECURE_CONNECTION, SSL,
};
use crate::mysql::door::{MORE_DATA, SWITCH, Verifier};
use crate::mysql::greeting::Greeting;
use crate::mysql::handshake::Settings;
use crate::mysql::packet::{self, ERR, ErrPacket, LOGIN_PACKET_MAX, OK, Packet, Reader};
use crate::mysql::response::{Head, Opening, Response};
use crate::proxy::Handshake;

const PLUGINS: [&str; 6] = [NATIVE, CACHING_SHA2, CLEAR, ED25519, SHA256, "dialog"];

/// Any bytes, as a packet and as the payload of each.
pub(super) fn packets(data: &[u8]) {
    if let Some(Packet { sequence, payload }) = check_decoder(data, LOGIN_PACKET_MAX + 4, packet::decode) {
        let mut again = BytesMut::new();
        packet::encode(sequence, &payload, &mut again);
        assert!(data.starts_with(&again));
    }
    let payload = Bytes::copy_from_slice(data);
    if let Ok(greeting) = Greeting::parse(&payload)
        && greeting.capabilities & PLUGIN_AUTH != 0
    {
        let mut again = BytesMut::new();
        greeting.encode(&mut again);
        assert_eq!(Greeting::parse(&again.freeze()), Ok(greeting));
    }
    if let Ok(Opening::Response(response)) = Opening::parse(&payload, u32::MAX)
        && is_whole(&response)
    {
        let mut again = BytesMut::new();
        response.encode(&mut again);
        assert_eq!(Opening::parse(&again.freeze(), u32::MAX), Ok(Opening::Response(response)));
    }
    let error = ErrPacket::parse(data);
    let mut again = BytesMut::new();
    error.encode(7, &mut again);
    assert_eq!(packet::decode(&mut again).map(|packet| packet.map(|packet| packet.sequence)), Ok(Some(7)));
    let mut reader = Reader::new(data);
    while let Some(part) = reader.lenenc_bytes() {
        assert!(part.len() < data.len());
    }
}

/// Flags and fields agree, as they do in what we encode.
fn is_whole(response: &Response) -> bool {
    let has = |flag: u32| response.head.capabilities & flag != 0;
    response.answer.len() < 251
        && has(PLUGIN_AUTH_LENENC | SECURE_CONNECTION)
        && has(PLUGIN_AUTH) == response.plugin.is_some()
}

/// A login whose client and upstream send anything.
pub(super) fn handshake(data: &[u8]) -> End {
    login::drive(data, |flags| {
        Mysql(Settings {
            database: (flags & 1 != 0).then(|| "orders".to_owned()),
            offer_tls: flags & 2 != 0,
            attributes: vec![("bastion_person", "alice".to_owned())],
            read_only: flags & 8 != 0,
            statements: flags & 0x20 != 0,
            demand: (flags & 0x40 != 0).then(|| Arc::new(Verifier::new("not among the bytes"))),
            local_infile: flags & 4 != 0,
            remembered: (flags & 0x80 != 0).then(remembered),
        })
    })
}

/// Of a server that can do all that a relay may ask of it.
fn remembered() -> Greeting {
    Greeting {
        version: Bytes::from_static(b"9.7.4"),
        connection_id: 42,
        scramble: Bytes::from_static(b"abcdefghijklmnopqrst"),
        capabilities: u32::MAX,
        charset: 255,
        status: 2,
        reserved: [0; 10],
        plugin: Bytes::from_static(CACHING_SHA2.as_bytes()),
    }
}

struct Mysql(Settings);

impl Engine for Mysql {
    fn start(&self) -> Handshake {
        Handshake::mysql(self.0.clone(), [3; 20])
    }

    fn message(&self, shape: u8, input: &mut Input<'_>, _: &Line) -> Vec<u8> {
        let sequence = input.byte();
        let mut payload = BytesMut::new();
        match shape {
            0 => payload.extend_from_slice(input.short()),
            1 => greeting(input).encode(&mut payload),
            2 => response(input).encode(&mut payload),
            3 => head(input).encode(&mut payload),
            4 => payload.extend_from_slice(&[OK, 0, 0, 2, 0, 0, 0]),
            5 => {
                let (plugin, nonce) = (plugin(input), input.short());
                payload.extend_from_slice(&[&[SWITCH], plugin.as_bytes(), &[0], nonce, &[0]].concat());
            }
            6 => payload.extend_from_slice(&[MORE_DATA, input.byte()]),
            _ => payload.extend_from_slice(&[&[ERR, 0x15, 4], &b"#28000"[..], input.short()].concat()),
        }
        let mut out = BytesMut::new();
        packet::encode(sequence, &payload, &mut out);
        out.to_vec()
    }

    fn may_start_tls(&self, plain: &[u8]) -> bool {
        let mut plain = BytesMut::from(plain);
        matches!(packet::decode(&mut plain), Ok(Some(_))) && plain.is_empty()
    }

    fn check_splice(&self, upstream: &[u8], _: &[u8], to_client: &[u8]) {
        assert!(self.0.demand.is_none(), "joined without the password");
        let mut rest = BytesMut::from(upstream);
        while let Ok(Some(Packet { payload, .. })) = packet::decode(&mut rest) {
            match payload.first() {
                Some(&OK) => {
                    if self.0.read_only {
                        let answer = packet::decode(&mut rest).ok().flatten().expect("joined before it is read-only");
                        assert_eq!(answer.payload.first(), Some(&OK));
                    }
                    assert!(to_client.ends_with(&[payload.as_ref(), &rest].concat()));
                    return;
                }
                Some(&ERR) => panic!("an error let us in"),
                _ => {}
            }
        }
        panic!("joined before the upstream has let us in");
    }

    fn is_error(&self, bytes: &[u8]) -> bool {
        let mut bytes = BytesMut::from(bytes);
        let packet = packet::decode(&mut bytes);
        bytes.is_empty() && packet.is_ok_and(|packet| packet.is_some_and(|packet| packet.payload.first() == Some(&ERR)))
    }
}

fn plugin(input: &mut Input<'_>) -> &'static str {
    PLUGINS[usize::from(input.byte()) % PLUGINS.len()]
}

fn greeting(input: &mut Input<'_>) -> Greeting {
    let capabilities = NEEDED | SSL | CONNECT_ATTRS | CONNECT_WITH_DB;
    Greeting {
        version: Bytes::from_static(b"8.4.0"),
        connection_id: 42,
        scramble: Bytes::from_static(b"abcdefghijklmnopqrst"),
        capabilities: capabilities ^ u32::from(input.word()) << 12,
        charset: 45,
        status: 2,
        reserved: [0; 10],
        plugin: Bytes::from_static(plugin(input).as_bytes()),
    }
}

fn head(input: &mut Input<'_>) -> Head {
    let flags = u32::from(input.word()) << 12;
    Head { capabilities: (NEEDED | LONG_PASSWORD | SSL) ^ flags, max_packet: 1 << 24, charset: 45, reserved: [0; 23] }
}

fn response(input: &mut Input<'_>) -> Response {
    let mut head = head(input);
    head.capabilities ^= SSL | CONNECT_ATTRS | CONNECT_WITH_DB;
    Response {
        head,
        user: Bytes::from_static(USER.as_bytes()),
        answer: Bytes::copy_from_slice(input.short()),
        database: Some(Bytes::from_static(b"events")),
        plugin: Some(Bytes::from_static(plugin(input).as_bytes())),
        attributes: vec![(Bytes::from_static(b"program_name"), Bytes::copy_from_slice(input.short()))],
    }
}
