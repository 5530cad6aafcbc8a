//! What a client answers to the greeting: who it is, what it can do, and its first proof; or a request for TLS.
//!
//! Format: MySQL Source Code Documentation, "Protocol::HandshakeResponse41", "Protocol::SSLRequest"; read as
//! `parse_client_handshake_packet` of both servers does.

use bytes::{BufMut as _, Bytes, BytesMut};

use super::capability::{
    CONNECT_ATTRS, CONNECT_WITH_DB, LONG_PASSWORD, PLUGIN_AUTH, PLUGIN_AUTH_LENENC, PROTOCOL_41, SECURE_CONNECTION, SSL,
};
use super::packet::{Reader, put_lenenc};
use crate::Malformed;

/// Longest block of attributes that servers take (`read_client_connect_attrs`).
const ATTRIBUTES_MAX: usize = 65_535;

/// The part that an SSLRequest consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    pub capabilities: u32,
    pub max_packet: u32,
    pub charset: u8,
    /// Zero from MySQL clients; the last four bytes are further capabilities of MariaDB ones.
    pub reserved: [u8; 23],
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    pub head: Head,
    pub user: Bytes,
    pub answer: Bytes,
    pub database: Option<Bytes>,
    /// The plugin that the answer is from, where the client knows plugins.
    pub plugin: Option<Bytes>,
    /// Names and values, in the client's order.
    pub attributes: Vec<(Bytes, Bytes)>,
}

/// What the packet after the greeting is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opening {
    Response(Response),
    SslRequest,
}

impl Opening {
    /// Parses the payload. `offered` are the capabilities of the greeting: those that only the client has do not count.
    ///
    /// # Errors
    /// [`Malformed`] names what is wrong; the connection cannot go on.
    pub fn parse(payload: &Bytes, offered: u32) -> Result<Self, Malformed> {
        const SHORT: Malformed = Malformed("its login packet is cut short");
        let mut reader = Reader::new(payload);
        let low = Reader::new(payload).u16().ok_or(SHORT)?;
        if u32::from(low) & PROTOCOL_41 == 0 {
            return Err(Malformed("it speaks a protocol older than MySQL 4.1"));
        }
        let mut head = Head::read(&mut reader).ok_or(SHORT)?;
        if head.capabilities & SSL != 0 && reader.is_empty() {
            return Ok(Self::SslRequest);
        }
        head.capabilities &= offered | LONG_PASSWORD;
        let has = |flag: u32| head.capabilities & flag != 0;
        let bytes = |part: Option<&[u8]>| part.map(|part| payload.slice_ref(part));
        let user = bytes(reader.nul()).ok_or(SHORT)?;
        let answer = match (has(PLUGIN_AUTH_LENENC), has(SECURE_CONNECTION)) {
            (true, _) => reader.lenenc_bytes(),
            (false, true) => reader.u8().and_then(|length| reader.take(usize::from(length))),
            (false, false) => reader.nul(),
        };
        let answer = bytes(answer).ok_or(SHORT)?;
        let database = match has(CONNECT_WITH_DB) {
            // Some clients leave out the last terminator.
            true => Some(payload.slice_ref(reader.nul().unwrap_or_else(|| reader.rest()))),
            false => None,
        };
        // "Some clients lie. Sad, but true" (MariaDB): they have the flag and send no name.
        let plugin = match has(PLUGIN_AUTH) && !reader.is_empty() {
            true => Some(payload.slice_ref(reader.nul().unwrap_or_else(|| reader.rest()))),
            false => None,
        };
        let mut attributes = Vec::new();
        if has(CONNECT_ATTRS) && !reader.is_empty() {
            const ATTRIBUTES: Malformed = Malformed("its connection attributes are cut short");
            let mut block = Reader::new(reader.lenenc_bytes().ok_or(ATTRIBUTES)?);
            while !block.is_empty() {
                let name = bytes(block.lenenc_bytes()).ok_or(ATTRIBUTES)?;
                let value = bytes(block.lenenc_bytes()).ok_or(ATTRIBUTES)?;
                attributes.push((name, value));
            }
        }
        let database = database.filter(|name| !name.is_empty());
        Ok(Self::Response(Response { head, user, answer, database, plugin, attributes }))
    }
}

impl Head {
    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        Some(Self {
            capabilities: reader.u32()?,
            max_packet: reader.u32()?,
            charset: reader.u8()?,
            reserved: *reader.take(23)?.first_chunk()?,
        })
    }

    /// Appends the payload of an SSLRequest, or the front of a response.
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_u32_le(self.capabilities);
        out.put_u32_le(self.max_packet);
        out.put_u8(self.charset);
        out.put_slice(&self.reserved);
    }

    /// MariaDB's further capabilities; none of a client of MySQL.
    pub fn extended(&self) -> u32 {
        match self.reserved.last_chunk::<4>() {
            Some(flags) if self.capabilities & LONG_PASSWORD == 0 => u32::from_le_bytes(*flags),
            _ => 0,
        }
    }

    /// Keeps only those of MariaDB's further capabilities that are in `offered`.
    pub fn mask_extended(&mut self, offered: u32) {
        let known = self.capabilities & LONG_PASSWORD == 0;
        if let Some(flags) = self.reserved.last_chunk_mut::<4>() {
            let kept = if known { u32::from_le_bytes(*flags) & offered } else { 0 };
            *flags = kept.to_le_bytes();
        }
    }
}

impl Response {
    /// Appends the payload. Flags and fields must agree; the answer is shorter than 251 bytes.
    pub fn encode(&self, out: &mut BytesMut) {
        let has = |flag: u32| self.head.capabilities & flag != 0;
        self.head.encode(out);
        out.put_slice(&self.user);
        out.put_u8(0);
        put_lenenc(&self.answer, out);
        if has(CONNECT_WITH_DB) {
            out.put_slice(self.database.as_deref().unwrap_or_default());
            out.put_u8(0);
        }
        if has(PLUGIN_AUTH) {
            out.put_slice(self.plugin.as_deref().unwrap_or_default());
            out.put_u8(0);
        }
        if has(CONNECT_ATTRS) {
            let mut block = BytesMut::new();
            for (name, value) in &self.attributes {
                let before = block.len();
                put_lenenc(name, &mut block);
                put_lenenc(value, &mut block);
                if block.len() > ATTRIBUTES_MAX {
                    block.truncate(before);
                    break;
                }
            }
            put_lenenc(&block, out);
        }
    }

    /// What the client calls its program, or else its library.
    pub fn program(&self) -> Option<String> {
        let named = |name: &[u8]| self.attributes.iter().find(|(key, _)| key == name).map(|(_, value)| value);
        let value = named(b"program_name").or_else(|| named(b"_client_name"))?;
        Some(String::from_utf8_lossy(value).into_owned())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::capability;
    use super::*;

    pub(in super::super) fn response() -> Response {
        Response {
            head: Head {
                capabilities: capability::NEEDED | CONNECT_WITH_DB | CONNECT_ATTRS | LONG_PASSWORD,
                max_packet: 1 << 24,
                charset: 45,
                reserved: [0; 23],
            },
            user: Bytes::from_static(b"anyone"),
            answer: Bytes::new(),
            database: Some(Bytes::from_static(b"events")),
            plugin: Some(Bytes::from_static(b"mysql_native_password")),
            attributes: vec![(Bytes::from_static(b"program_name"), Bytes::from_static(b"mysql"))],
        }
    }

    fn encoded(response: &Response) -> Bytes {
        let mut payload = BytesMut::new();
        response.encode(&mut payload);
        payload.freeze()
    }

    #[test]
    fn a_response_survives_the_round_trip() {
        let response = response();
        assert_eq!(Opening::parse(&encoded(&response), u32::MAX), Ok(Opening::Response(response.clone())));
        assert_eq!(response.program().as_deref(), Some("mysql"));
    }

    #[test]
    fn no_prefix_panics_and_the_mandatory_part_must_be_there() {
        let whole = encoded(&response());
        for end in 0..whole.len() {
            let parsed = Opening::parse(&whole.slice(..end), u32::MAX);
            assert!(end >= 39 || parsed.is_err(), "{end}");
        }
    }

    #[test]
    fn an_ssl_request_is_told_from_a_response_with_the_flag() {
        let mut asking = response();
        asking.head.capabilities |= SSL;
        let mut request = BytesMut::new();
        asking.head.encode(&mut request);
        assert_eq!(Opening::parse(&request.freeze(), u32::MAX), Ok(Opening::SslRequest));
        assert!(matches!(Opening::parse(&encoded(&asking), u32::MAX), Ok(Opening::Response(_))));
    }

    #[test]
    fn old_protocols_are_refused_in_words() {
        let old = Bytes::from_static(b"\x05\x00\x00\x00\x01root\0");
        assert!(Opening::parse(&old, u32::MAX).unwrap_err().to_string().contains("older than MySQL 4.1"));
    }

    #[test]
    fn a_client_without_plugins_is_read() {
        let mut old = response();
        old.head.capabilities = PROTOCOL_41 | SECURE_CONNECTION;
        (old.database, old.plugin, old.attributes) = (None, None, Vec::new());
        old.answer = Bytes::from_static(&[9; 20]);
        assert_eq!(Opening::parse(&encoded(&old), u32::MAX), Ok(Opening::Response(old)));
    }

    #[test]
    fn capabilities_that_were_not_offered_do_not_count() {
        let whole = encoded(&response());
        let Ok(Opening::Response(read)) = Opening::parse(&whole, capability::NEEDED | CONNECT_WITH_DB) else {
            panic!()
        };
        assert_eq!(read.head.capabilities & CONNECT_ATTRS, 0);
        assert!(read.attributes.is_empty());
    }

    #[test]
    fn further_capabilities_are_cut_to_what_both_know() {
        let mut head = response().head;
        head.capabilities &= !LONG_PASSWORD;
        head.reserved[19] = 0xff;
        head.mask_extended(0x1d);
        assert_eq!(head.reserved[19], 0x1d);
        head.capabilities |= LONG_PASSWORD;
        head.mask_extended(0x1d);
        assert_eq!(head.reserved[19], 0);
    }
}
