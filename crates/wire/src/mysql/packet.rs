//! Packets: three bytes of length, a sequence number, the payload; and the two that end everything, OK and ERR.
//!
//! Formats: MySQL Source Code Documentation, "MySQL Packets", "Integer Types", "String Types", "OK_Packet",
//! "ERR_Packet".

use bytes::{BufMut, Bytes, BytesMut};

use super::capability::QUERY_ATTRIBUTES;
use crate::Malformed;
use crate::error_text::ErrorText;

/// Longest packet of a login. Servers take longer ones, but none that lets anybody in: connection attributes may be 65,535
/// bytes long ("impose an artificial length limit of 64k", `sql_authentication.cc`), all names are short.
pub const LOGIN_PACKET_MAX: usize = 128 * 1024;
/// A payload of this length is continued in the next packet.
pub const PAYLOAD_MAX: usize = 0xff_ff_ff;
/// libmysql cuts error texts here (`MYSQL_ERRMSG_SIZE`).
pub const ERROR_TEXT_MAX: usize = 511;

/// First byte of a COM_QUERY.
const QUERY: u8 = 0x03;
/// First byte of an OK packet.
pub const OK: u8 = 0x00;
/// First byte of an ERR packet.
pub const ERR: u8 = 0xff;

/// One packet, without its header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    pub sequence: u8,
    pub payload: Bytes,
}

/// Takes one packet off the front of `buffer`; `None` is "need more".
///
/// # Errors
/// [`Malformed`] for a length above [`LOGIN_PACKET_MAX`].
pub fn decode(buffer: &mut BytesMut) -> Result<Option<Packet>, Malformed> {
    let Some(&[a, b, c, sequence]) = buffer.first_chunk::<4>() else { return Ok(None) };
    let length = usize::try_from(u32::from_le_bytes([a, b, c, 0])).unwrap_or(usize::MAX);
    if length > LOGIN_PACKET_MAX {
        return Err(Malformed("its login packet is longer than the 131072 bytes that bastion reads"));
    }
    if buffer.len() < length.saturating_add(4) {
        return Ok(None);
    }
    let mut whole = buffer.split_to(length.saturating_add(4));
    let payload = whole.split_off(4).freeze();
    Ok(Some(Packet { sequence, payload }))
}

/// What a server has sent behind an answer, unasked: nothing, or the error with which it ends the connection.
///
/// # Errors
/// [`Malformed`] for anything else, which the client would take for the answer to its next command.
pub fn only_an_error(behind: BytesMut) -> Result<Bytes, Malformed> {
    let length = behind.first_chunk().map_or(0, |&[a, b, c]| u32::from_le_bytes([a, b, c, 0]));
    let is_one = usize::try_from(length).is_ok_and(|length| behind.len() <= length.saturating_add(4));
    match behind.get(4) {
        Some(&ERR) if is_one => Ok(behind.freeze()),
        // The head of what will be looked at later.
        None => Ok(behind.freeze()),
        Some(_) => Err(Malformed("it goes on behind an answer without being asked")),
    }
}

/// Appends a packet. `payload` is shorter than [`PAYLOAD_MAX`].
pub fn encode(sequence: u8, payload: &[u8], out: &mut impl BufMut) {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    out.put_uint_le(u64::from(length), 3);
    out.put_u8(sequence);
    out.put_slice(payload);
}

/// The payload of a COM_QUERY of the relay's own. Where the session has query attributes, which MySQL's clients agree to and
/// MariaDB does not know, the number of attributes and of their sets, always 1, stand before the statement.
pub fn query(capabilities: u32, statement: &str) -> Bytes {
    let mut payload = BytesMut::new();
    payload.put_u8(QUERY);
    if capabilities & QUERY_ATTRIBUTES != 0 {
        payload.put_slice(&[0, 1]);
    }
    payload.put_slice(statement.as_bytes());
    payload.freeze()
}

/// What an ERR packet says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ErrPacket {
    pub number: u16,
    /// Missing in errors before the login: nobody has agreed on protocol 4.1 yet.
    pub sqlstate: Option<String>,
    pub message: String,
}

/// `ER_UNKNOWN_ERROR`, for errors without a number.
const UNKNOWN_ERROR: u16 = 1105;

impl ErrorText {
    /// As an ERR packet of MySQL, one sentence after the other. Before the greeting it is to have no SQLSTATE, because
    /// nobody has agreed on protocol 4.1.
    pub fn packet(&self, sequence: u8, with_state: bool) -> Bytes {
        let parts = [&self.message, &self.hint, &self.detail];
        let parts: Vec<&str> = parts.into_iter().map(String::as_str).filter(|part| !part.is_empty()).collect();
        let number = if self.number == 0 { UNKNOWN_ERROR } else { self.number };
        let sqlstate = with_state.then(|| self.sqlstate.clone());
        let mut out = BytesMut::new();
        ErrPacket { number, sqlstate, message: parts.join(". ") }.encode(sequence, &mut out);
        out.freeze()
    }
}

/// What an ERR packet says.
pub(super) fn said(payload: &[u8]) -> ErrorText {
    let ErrPacket { number, sqlstate, message } = ErrPacket::parse(payload);
    let sqlstate = sqlstate.unwrap_or_else(|| "HY000".to_owned());
    ErrorText { number, sqlstate, message, ..ErrorText::default() }
}

impl ErrPacket {
    /// Reads the payload of an ERR packet; what is cut short is empty.
    pub fn parse(payload: &[u8]) -> Self {
        let mut reader = Reader::new(payload);
        reader.u8();
        let number = reader.u16().unwrap_or_default();
        let mut rest = reader.rest();
        let mut sqlstate = None;
        if let Some((b'#', after)) = rest.split_first()
            && let Some((state, message)) = after.split_at_checked(5)
        {
            sqlstate = Some(String::from_utf8_lossy(state).into_owned());
            rest = message;
        }
        Self { number, sqlstate, message: String::from_utf8_lossy(rest).into_owned() }
    }

    /// Appends the packet.
    pub fn encode(&self, sequence: u8, out: &mut BytesMut) {
        let mut payload = BytesMut::new();
        payload.put_u8(ERR);
        payload.put_u16_le(self.number);
        if let Some(state) = self.sqlstate.as_ref().filter(|state| state.len() == 5) {
            payload.put_u8(b'#');
            payload.put_slice(state.as_bytes());
        }
        let mut end = self.message.len().min(ERROR_TEXT_MAX);
        while !self.message.is_char_boundary(end) {
            end = end.saturating_sub(1);
        }
        payload.put_slice(self.message.get(..end).unwrap_or_default().as_bytes());
        encode(sequence, &payload, out);
    }
}

/// Reads the fields of a payload; `None` is "it ends before that".
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub fn new(payload: &'a [u8]) -> Self {
        Self(payload)
    }

    pub fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.first_chunk().copied()
    }

    pub fn u8(&mut self) -> Option<u8> {
        Some(u8::from_le_bytes(self.array()?))
    }

    pub fn u16(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes(self.array()?))
    }

    pub fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.array()?))
    }

    /// A length-encoded integer; `None` also for the two first bytes that are none (NULL and ERR).
    pub fn lenenc(&mut self) -> Option<usize> {
        let value = match self.u8()? {
            0xfb | 0xff => return None,
            0xfc => u64::from(self.u16()?),
            0xfd => {
                let [a, b, c] = self.array()?;
                u64::from(u32::from_le_bytes([a, b, c, 0]))
            }
            0xfe => u64::from_le_bytes(self.array()?),
            small => u64::from(small),
        };
        usize::try_from(value).ok()
    }

    pub fn lenenc_bytes(&mut self) -> Option<&'a [u8]> {
        let length = self.lenenc()?;
        self.take(length)
    }

    /// A string up to its zero byte, which is passed over.
    pub fn nul(&mut self) -> Option<&'a [u8]> {
        let end = self.0.iter().position(|byte| *byte == 0)?;
        let text = self.take(end)?;
        self.u8();
        Some(text)
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Appends a length-encoded string.
pub fn put_lenenc(bytes: &[u8], out: &mut BytesMut) {
    let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    match length {
        0..=0xfa => out.put_uint_le(length, 1),
        0xfb..=0xffff => {
            out.put_u8(0xfc);
            out.put_uint_le(length, 2);
        }
        0x1_0000..=0xff_ffff => {
            out.put_u8(0xfd);
            out.put_uint_le(length, 3);
        }
        _ => {
            out.put_u8(0xfe);
            out.put_u64_le(length);
        }
    }
    out.put_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_prefix_is_incomplete_and_the_whole_is_one_packet() {
        let mut whole = BytesMut::new();
        encode(7, b"payload", &mut whole);
        for end in 0..whole.len() {
            assert_eq!(decode(&mut BytesMut::from(&whole[..end])), Ok(None));
        }
        whole.put_slice(b"next");
        let packet = decode(&mut whole).unwrap().unwrap();
        assert_eq!((packet.sequence, &packet.payload[..], &whole[..]), (7, &b"payload"[..], &b"next"[..]));
    }

    #[test]
    fn a_statement_stands_behind_its_attributes_where_there_are_any() {
        assert_eq!(query(!QUERY_ATTRIBUTES, "select 1")[..], b"\x03select 1"[..]);
        assert_eq!(query(QUERY_ATTRIBUTES, "select 1")[..], b"\x03\0\x01select 1"[..]);
    }

    #[test]
    fn impossible_lengths_are_refused_before_they_are_stored() {
        assert!(decode(&mut BytesMut::from(&b"GET / HTTP/1.1\r\n"[..])).is_err());
        assert!(decode(&mut BytesMut::from(&[0xff, 0xff, 0xff, 0][..])).is_err());
    }

    #[test]
    fn errors_survive_the_round_trip_with_and_without_a_state() {
        for sqlstate in [Some("28000".to_owned()), None] {
            let error = ErrPacket { number: 1045, sqlstate, message: "no".to_owned() };
            let mut out = BytesMut::new();
            error.encode(2, &mut out);
            let packet = decode(&mut out).unwrap().unwrap();
            assert_eq!(packet.payload.first(), Some(&ERR));
            assert_eq!(ErrPacket::parse(&packet.payload), error);
        }
        assert_eq!(ErrPacket::parse(b"\xff"), ErrPacket::default());
    }

    #[test]
    fn a_long_error_text_is_cut_between_characters() {
        let error = ErrPacket { number: 1, sqlstate: None, message: "é".repeat(400) };
        let mut out = BytesMut::new();
        error.encode(0, &mut out);
        let said = ErrPacket::parse(&decode(&mut out).unwrap().unwrap().payload).message;
        assert_eq!(said, "é".repeat(255));
    }

    #[test]
    fn lengths_of_all_sizes_survive_the_round_trip() {
        for length in [0, 250, 251, 0xffff, 0x1_0000, 0xff_ffff, 0x100_0000] {
            let bytes = vec![1; length];
            let mut out = BytesMut::new();
            put_lenenc(&bytes, &mut out);
            let mut reader = Reader::new(&out);
            assert_eq!(reader.lenenc_bytes().map(<[u8]>::len), Some(length));
            assert!(reader.is_empty());
        }
        assert_eq!(Reader::new(b"\xfe\xff\xff\xff\xff\xff\xff\xff\xffx").lenenc_bytes(), None);
        assert_eq!(Reader::new(b"\xfb").lenenc(), None);
    }
}
