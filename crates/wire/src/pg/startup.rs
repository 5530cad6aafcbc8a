//! The first packet of a client: startup, TLS or GSSAPI request, or a cancel request.
//!
//! Codes and limits: `src/include/libpq/pqcomm.h` and `ProcessStartupPacket` in
//! `src/backend/tcop/backend_startup.c`.

use bytes::{BufMut as _, Bytes, BytesMut};

use crate::Malformed;

/// Longest opening packet with its length word: `MAX_STARTUP_PACKET_LENGTH` in `pqcomm.h` is 10,000 bytes without it.
pub const STARTUP_MAX: usize = 10_004;
/// Longest cancel key of protocol 3.2 (`MAX_CANCEL_KEY_LENGTH` in `procsignal.h` is 32; the protocol allows 256).
pub const CANCEL_KEY_MAX: usize = 256;

const CANCEL_REQUEST: u32 = (1234 << 16) | 5678;
pub(super) const SSL_REQUEST: u32 = (1234 << 16) | 5679;
pub(super) const GSSENC_REQUEST: u32 = (1234 << 16) | 5680;
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
    /// A startup packet whose parameters do not end where it ends.
    Layout(Malformed),
    SslRequest,
    Startup(Startup),
    /// A version, or a request in its place, that is not spoken: `major << 16 | minor`.
    Unsupported(u32),
}

/// A StartupMessage: version as `major << 16 | minor`, then parameters in the client's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Startup {
    pub version: u32,
    pub parameters: Vec<(Bytes, Bytes)>,
}

impl Startup {
    /// The value of a parameter of the connection itself (`user`, `database`, `replication`, …), whose names are compared
    /// as they are. The server takes the last one.
    pub fn parameter(&self, name: &str) -> Option<&Bytes> {
        self.parameters.iter().rfind(|(key, _)| key.as_ref() == name.as_bytes()).map(|(_, value)| value)
    }

    /// The value of a setting of the server, whose names have no case (`guc_name_compare`).
    pub fn setting(&self, name: &str) -> Option<&Bytes> {
        self.parameters.iter().rfind(|(key, _)| key.eq_ignore_ascii_case(name.as_bytes())).map(|(_, value)| value)
    }

    /// Sets a parameter of the connection in place of all that the client sent under this name.
    pub fn set(&mut self, name: &'static str, value: &[u8]) {
        self.parameters.retain(|(key, _)| key.as_ref() != name.as_bytes());
        self.push(name, value);
    }

    /// Sets a setting of the server, in the same way.
    pub fn set_setting(&mut self, name: &'static str, value: &[u8]) {
        self.remove_setting(name);
        self.push(name, value);
    }

    pub fn remove_setting(&mut self, name: &str) {
        self.parameters.retain(|(key, _)| !key.eq_ignore_ascii_case(name.as_bytes()));
    }

    fn push(&mut self, name: &'static str, value: &[u8]) {
        self.parameters.push((Bytes::from_static(name.as_bytes()), Bytes::copy_from_slice(value)));
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
/// [`Malformed`]: what came is no opening packet. The server closes such connections without a word.
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
        // Whatever their length is, as in the server; it was read with them.
        SSL_REQUEST => Ok(Some(Opening::SslRequest)),
        GSSENC_REQUEST => Ok(Some(Opening::GssEncRequest)),
        version if version >> 16 == 3 => Ok(Some(match parameters(packet.slice(8..)) {
            Some(parameters) => Opening::Startup(Startup { version, parameters }),
            None => {
                Opening::Layout(Malformed("an invalid startup packet layout: expected a terminator as the last byte"))
            }
        })),
        version => Ok(Some(Opening::Unsupported(version))),
    }
}

/// `name\0value\0…\0`, ending exactly at the end of the packet.
fn parameters(mut rest: Bytes) -> Option<Vec<(Bytes, Bytes)>> {
    let mut parameters = Vec::new();
    loop {
        let name = take_string(&mut rest)?;
        if name.is_empty() {
            return rest.is_empty().then_some(parameters);
        }
        parameters.push((name, take_string(&mut rest)?));
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
        startup.set("user", b"anyone");
        startup.set("database", b"orders");
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
    fn a_length_that_the_server_does_not_take_is_refused_before_it_is_stored() {
        for length in [0, 4, 7, 10_005, 0x4000_0000, u32::MAX] {
            assert!(decode(&mut BytesMut::from(&length.to_be_bytes()[..])).is_err(), "{length}");
        }
        for length in [8, 10_004_u32] {
            assert_eq!(decode(&mut BytesMut::from(&length.to_be_bytes()[..])), Ok(None), "{length}");
        }
        assert!(decode(&mut BytesMut::from(&b"GET / HTTP/1.1\r\n"[..])).is_err());
        // A Terminate, which a client sends that was told to leave before it had begun.
        assert!(decode(&mut BytesMut::from(&b"X\0\0\0\x04"[..])).is_err());
    }

    #[test]
    fn a_startup_without_its_terminator_is_told_apart_from_other_versions() {
        let whole = startup_packet();
        let mut open = whole.clone();
        let last = open.len() - 1;
        open[last] = b'x';
        let empty = BytesMut::from(&[0, 0, 0, 8, 0, 3, 0, 0][..]);
        let mut behind = whole.clone();
        behind.put_u8(0);
        behind[3] += 1;
        for mut bad in [open, empty, behind] {
            assert!(matches!(decode(&mut bad), Ok(Some(Opening::Layout(_)))), "{bad:?}");
        }
        for version in [0x2_0000, 0x4_0000, (1234 << 16) | 5681, u32::MAX] {
            let mut other = whole.clone();
            other[4..8].copy_from_slice(&u32::to_be_bytes(version));
            assert_eq!(decode(&mut other), Ok(Some(Opening::Unsupported(version))));
        }
    }

    #[test]
    fn requests_may_be_longer_than_they_have_to() {
        for (code, wanted) in [(0x2f, Opening::SslRequest), (0x30, Opening::GssEncRequest)] {
            let mut buffer = BytesMut::from(&[0, 0, 0, 9, 0x04, 0xd2, 0x16, code, 0, b'x'][..]);
            assert_eq!(decode(&mut buffer), Ok(Some(wanted)));
            assert_eq!(&buffer[..], b"x");
        }
    }

    #[test]
    fn the_last_value_counts_and_only_settings_have_no_case() {
        let pairs = [("user", "a"), ("User", "b"), ("user", "c"), ("APPLICATION_name", "d")];
        let parameters = pairs.map(|(name, value)| (Bytes::from(name), Bytes::from(value))).into();
        let mut startup = Startup { version: 3 << 16, parameters };
        assert_eq!(startup.parameter("user").unwrap(), "c");
        assert_eq!(startup.parameter("application_name"), None);
        assert_eq!(startup.setting("application_name").unwrap(), "d");
        startup.set("user", b"e");
        startup.set_setting("application_name", b"f");
        let wanted = [("User", "b"), ("user", "e"), ("application_name", "f")];
        assert_eq!(startup.parameters, wanted.map(|(name, value)| (Bytes::from(name), Bytes::from(value))));
    }
}
