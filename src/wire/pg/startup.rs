//! The first packet of a client: startup, TLS or GSSAPI request, or a cancel request.
//!
//! Codes and limits: `src/include/libpq/pqcomm.h` and `ProcessStartupPacket` in
//! `src/backend/tcop/backend_startup.c`.

use bytes::{BufMut as _, Bytes, BytesMut};

use crate::wire::Malformed;

/// `MAX_STARTUP_PACKET_LENGTH` in `pqcomm.h`.
pub const STARTUP_MAX: usize = 10_000;
/// Longest cancel key of protocol 3.2 (`MAX_CANCEL_KEY_LENGTH` in `procsignal.h` is 32; the protocol allows 256).
pub const CANCEL_KEY_MAX: usize = 256;

const CANCEL_REQUEST: u32 = (1234 << 16) | 5678;
const SSL_REQUEST: u32 = (1234 << 16) | 5679;
const GSSENC_REQUEST: u32 = (1234 << 16) | 5680;
/// First byte of a TLS record with a handshake message: a client that starts TLS without asking (`sslnegotiation=direct`).
const TLS_HANDSHAKE: u8 = 0x16;

/// What a client opens its connection with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opening {
    /// The packet as it came; the upstream finds the query by the key in it.
    Cancel(Bytes),
    /// A TLS ClientHello without an SSLRequest.
    DirectTls,
    GssEncRequest,
    SslRequest,
    Startup(Startup),
}

/// A StartupMessage: version as `major << 16 | minor`, then parameters in the client's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Startup {
    pub version: u32,
    pub parameters: Vec<(Bytes, Bytes)>,
}

impl Startup {
    /// The value of a parameter.
    pub fn parameter(&self, name: &str) -> Option<&Bytes> {
        self.parameters.iter().find(|(key, _)| key.as_ref() == name.as_bytes()).map(|(_, value)| value)
    }

    /// Sets a parameter in place of all that the client sent under this name: the server takes the last one.
    pub fn set(&mut self, name: &'static str, value: &str) {
        self.parameters.retain(|(key, _)| key.as_ref() != name.as_bytes());
        self.parameters.push((Bytes::from_static(name.as_bytes()), Bytes::copy_from_slice(value.as_bytes())));
    }

    /// Appends the packet to `out`.
    pub fn encode(&self, out: &mut BytesMut) {
        let mut body = BytesMut::new();
        body.put_u32(self.version);
        for (key, value) in &self.parameters {
            body.put_slice(key);
            body.put_u8(0);
            body.put_slice(value);
            body.put_u8(0);
        }
        body.put_u8(0);
        out.put_u32(u32::try_from(body.len()).unwrap_or(u32::MAX).saturating_add(4));
        out.put_slice(&body);
    }
}

/// The request that asks an upstream for TLS.
pub fn encode_ssl_request(out: &mut BytesMut) {
    out.put_u32(8);
    out.put_u32(SSL_REQUEST);
}

/// Takes one opening packet off the front of `buffer`; `None` is "need more".
///
/// # Errors
/// [`Malformed`] names what is wrong; the connection cannot go on.
pub fn decode(buffer: &mut BytesMut) -> Result<Option<Opening>, Malformed> {
    let Some(first) = buffer.first() else { return Ok(None) };
    if *first == TLS_HANDSHAKE {
        return Ok(Some(Opening::DirectTls));
    }
    let Some(length) = buffer.first_chunk::<4>() else { return Ok(None) };
    let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
    if !(8..=STARTUP_MAX).contains(&length) {
        return Err(Malformed("the first bytes are not a PostgreSQL startup packet"));
    }
    if buffer.len() < length {
        return Ok(None);
    }
    let packet = buffer.split_to(length).freeze();
    let code = packet.get(4..8).and_then(|code| code.first_chunk::<4>()).map_or(0, |code| u32::from_be_bytes(*code));
    match code {
        // Length, code and process id, then the key: 4 bytes in 3.0, up to 256 in 3.2.
        CANCEL_REQUEST if (13..=12_usize.saturating_add(CANCEL_KEY_MAX)).contains(&length) => {
            Ok(Some(Opening::Cancel(packet)))
        }
        CANCEL_REQUEST => Err(Malformed("a cancel request of the wrong length")),
        SSL_REQUEST if length == 8 => Ok(Some(Opening::SslRequest)),
        GSSENC_REQUEST if length == 8 => Ok(Some(Opening::GssEncRequest)),
        version if version >> 16 == 3 => {
            let parameters = parameters(packet.slice(8..))?;
            Ok(Some(Opening::Startup(Startup { version, parameters })))
        }
        _ => Err(Malformed("only protocol version 3 is spoken here")),
    }
}

/// `name\0value\0…\0`, ending exactly at the end of the packet.
fn parameters(mut rest: Bytes) -> Result<Vec<(Bytes, Bytes)>, Malformed> {
    const LAYOUT: Malformed = Malformed("an invalid startup packet layout: expected a terminator as the last byte");
    let mut parameters = Vec::new();
    loop {
        let name = take_string(&mut rest).ok_or(LAYOUT)?;
        if name.is_empty() {
            return if rest.is_empty() { Ok(parameters) } else { Err(LAYOUT) };
        }
        let value = take_string(&mut rest).ok_or(LAYOUT)?;
        parameters.push((name, value));
    }
}

fn take_string(rest: &mut Bytes) -> Option<Bytes> {
    let end = rest.iter().position(|byte| *byte == 0)?;
    let text = rest.split_to(end);
    let _terminator = rest.split_to(1);
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn startup_packet() -> BytesMut {
        let mut startup = Startup { version: 196_608, parameters: Vec::new() };
        startup.set("user", "anyone");
        startup.set("database", "orders");
        let mut out = BytesMut::new();
        startup.encode(&mut out);
        out
    }

    #[test]
    fn a_startup_survives_the_round_trip() {
        let mut buffer = startup_packet();
        buffer.put_slice(b"rest");
        let Some(Opening::Startup(startup)) = decode(&mut buffer).unwrap() else { panic!("no startup") };
        assert_eq!(startup.parameter("database").unwrap(), "orders");
        assert_eq!(startup.version, 3 << 16);
        assert_eq!(&buffer[..], b"rest");
    }

    #[test]
    fn every_prefix_is_incomplete() {
        let whole = startup_packet();
        for end in 0..whole.len() {
            assert_eq!(decode(&mut BytesMut::from(&whole[..end])), Ok(None), "{end} bytes");
        }
    }

    #[test]
    fn requests_are_told_apart() {
        let cases: [(&[u8], Opening); 3] = [
            (&[0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f], Opening::SslRequest),
            (&[0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x30], Opening::GssEncRequest),
            (&[0x16, 3, 1], Opening::DirectTls),
        ];
        for (bytes, wanted) in cases {
            assert_eq!(decode(&mut BytesMut::from(bytes)), Ok(Some(wanted)));
        }
    }

    #[test]
    fn cancel_keys_of_3_0_and_3_2_pass() {
        for key in [4_usize, 32, 256] {
            let mut buffer = BytesMut::new();
            buffer.put_u32(u32::try_from(12 + key).unwrap());
            buffer.put_u32(CANCEL_REQUEST);
            buffer.put_u32(77);
            buffer.put_bytes(9, key);
            let whole = buffer.clone().freeze();
            assert_eq!(decode(&mut buffer), Ok(Some(Opening::Cancel(whole))));
        }
        let mut long = BytesMut::new();
        long.put_u32(12 + 257);
        long.put_u32(CANCEL_REQUEST);
        long.put_bytes(0, 4 + 257);
        assert!(decode(&mut long).is_err());
    }

    #[test]
    fn a_length_of_a_gibibyte_is_refused_before_it_is_stored() {
        assert!(decode(&mut BytesMut::from(&[0x40, 0, 0, 0][..])).is_err());
        assert!(decode(&mut BytesMut::from(&b"GET / HTTP/1.1\r\n"[..])).is_err());
    }

    #[test]
    fn a_startup_without_its_terminator_is_refused() {
        let mut whole = startup_packet();
        let last = whole.len() - 1;
        whole[last] = b'x';
        assert!(decode(&mut whole).is_err());
    }
}
