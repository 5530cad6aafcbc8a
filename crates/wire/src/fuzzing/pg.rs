//! PostgreSQL: the parsers of its messages, and its login.

use std::sync::{Arc, LazyLock};

use bytes::{Bytes, BytesMut};

use super::login::{self, End, Engine, Line};
use super::{Input, check_decoder};
use crate::pg::door::{Demand, NONCE, SALT, Verifier};
use crate::pg::handshake::Settings;
use crate::pg::message::{self, Authentication, ErrorFields, LOGIN_MESSAGE_MAX, Message};
use crate::pg::parameters::ReadOnly;
use crate::pg::startup::{self, Opening, STARTUP_MAX};
use crate::proxy::Handshake;

/// Made once: it is slow on purpose.
static VERIFIER: LazyLock<Arc<Verifier>> = LazyLock::new(|| Arc::new(Verifier::new("not among the bytes", [7; SALT])));

/// Any bytes, as the first packet of a client and as messages after it.
pub(super) fn messages(data: &[u8]) {
    let opening = check_decoder(data, STARTUP_MAX, startup::decode);
    if let Some(Opening::Startup(startup)) = opening {
        let mut again = BytesMut::new();
        startup.encode(&mut again);
        let length = u32::from_be_bytes(*data.first_chunk().expect("a startup has a length"));
        assert_eq!(again.as_ref(), data.get(..length as usize).expect("decoded within the data"));
    }
    if let Some(message) = check_decoder(data, LOGIN_MESSAGE_MAX + 1, message::decode) {
        let Message { tag, body, raw } = message;
        let mut again = BytesMut::new();
        message::encode(tag, &body, &mut again);
        assert_eq!(again, raw);
        if let Ok(Authentication::Sasl(names)) = Authentication::parse(&body) {
            assert!(names.iter().all(|name| !name.is_empty() && !name.contains(&0)));
        }
        let fields = ErrorFields::parse(&body);
        let mut again = BytesMut::new();
        fields.encode(&mut again);
        assert_eq!(ErrorFields::parse(again.get(5..).expect("a header")), fields);
    }
}

/// A login whose client and upstream send anything.
pub(super) fn handshake(data: &[u8]) -> End {
    login::drive(data, |flags| {
        let settings = Settings {
            database: (flags & 1 != 0).then(|| "orders".to_owned()),
            offer_tls: flags & 2 != 0,
            person: (flags & 8 != 0).then(|| "alice".to_owned()),
            read_only: match flags & 0x90 {
                0x10 => ReadOnly::Parameter,
                0x90 => ReadOnly::Statement,
                _ => ReadOnly::No,
            },
            demand: (flags & 0x40 != 0).then(|| Demand { verifier: Arc::clone(&VERIFIER), random: [9; NONCE] }),
        };
        Postgres { settings, alpn: flags & 0x20 == 0 }
    })
}

struct Postgres {
    settings: Settings,
    alpn: bool,
}

/// What the relay asks for by itself.
const STATEMENT: &[u8] = b"Q\0\0\0\x2bSET default_transaction_read_only = on\0";

impl Engine for Postgres {
    fn start(&self) -> Handshake {
        Handshake::postgres(self.settings.clone())
    }

    fn message(&self, shape: u8, input: &mut Input<'_>, line: &Line) -> Vec<u8> {
        let mut out = BytesMut::new();
        match shape {
            0 => message::encode(input.byte(), input.short(), &mut out),
            1 => message::encode(b'R', &[&[0, 0, 0, input.byte()], input.short()].concat(), &mut out),
            2 => {
                // The challenge of SCRAM begins with the nonce of the client.
                let at = line.heard.windows(2).rposition(|part| part == b"r=").unwrap_or(line.heard.len());
                let nonce = line.heard.get(at..).unwrap_or_default();
                let challenge = [&[0, 0, 0, 11], nonce, input.short()].concat();
                message::encode(b'R', &challenge, &mut out);
            }
            3 => message::encode(b'Z', b"I", &mut out),
            4 => return b"S".to_vec(),
            5 => {
                let body = input.short();
                let length = u32::try_from(body.len() + 9).expect("a short body");
                return [&length.to_be_bytes()[..], &[0, 3, 0, 0], body, &[0]].concat();
            }
            6 => startup::encode_ssl_request(&mut out),
            8 => message::encode_sasl_initial("SCRAM-SHA-256", &[b"n,,n=,r=x", input.short()].concat(), &mut out),
            9 => {
                // What a client would say that has read its challenge, but for the proof.
                let at = line.heard.windows(2).rposition(|part| part == b"r=").unwrap_or(line.heard.len());
                let nonce =
                    line.heard.get(at..).unwrap_or_default().split(|byte| *byte == b',').next().unwrap_or_default();
                message::encode(b'p', &[b"c=biws,", nonce, b",p=", input.short()].concat(), &mut out);
            }
            _ => message::encode(b'R', &[0; 4], &mut out),
        }
        out.to_vec()
    }

    fn may_start_tls(&self, plain: &[u8]) -> bool {
        plain == b"S"
    }

    fn alpn(&self) -> bool {
        self.alpn
    }

    fn check_splice(&self, upstream: &[u8], heard: &[u8], to_client: &[u8]) {
        assert!(self.settings.demand.is_none(), "joined without the password");
        let (mut rest, mut expected, mut let_in) = (BytesMut::from(upstream), Vec::new(), false);
        // The answer to the relay's own statement, where it has sent one, is not for the client.
        let (asks, mut asked) = (heard.ends_with(STATEMENT), false);
        while let Ok(Some(Message { tag, raw, body })) = message::decode(&mut rest) {
            let_in |= tag == b'R' && body == Bytes::from_static(&[0; 4]);
            if tag == b'Z' && let_in && asks && !asked {
                asked = true;
                continue;
            }
            if (let_in || tag != b'R') && !(tag == b'C' && asked) {
                expected.extend_from_slice(&raw);
            }
            if tag == b'Z' && let_in {
                expected.extend_from_slice(&rest);
                // The client speaks of TLS before the upstream is dialled.
                assert_eq!(to_client, expected);
                return;
            }
            assert!(let_in || tag != b'E', "an error let us in");
        }
        panic!("joined before the upstream was ready");
    }

    fn is_error(&self, bytes: &[u8]) -> bool {
        let Some((&[b'E', a, b, c, d], body)) = bytes.split_first_chunk::<5>() else { return false };
        u32::from_be_bytes([a, b, c, d]) as usize == body.len() + 4 && body.ends_with(&[0])
    }
}
