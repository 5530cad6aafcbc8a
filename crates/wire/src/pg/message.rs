//! Messages after the startup packet: a type byte, a length that counts itself, a body.
//!
//! Formats: PostgreSQL manual, "Message Formats" and "Error and Notice Message Fields".

use bytes::{BufMut as _, Bytes, BytesMut};

use crate::Malformed;
use crate::error_text::ErrorText;

/// Longest message of a login that is kept. Before authentication longer ones are refused, as libpq does (`fe-connect.c`:
/// 2,000 for authentication, 30,000 for errors; SASL data may be longer); after it they pass.
pub const LOGIN_MESSAGE_MAX: usize = 65_536;

/// One message: its type, its body, and the whole of it as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub tag: u8,
    pub body: Bytes,
    pub raw: Bytes,
}

pub(super) const LENGTH: Malformed = Malformed("a login message of an impossible length");

/// Type and length of the message at the front of `buffer`, once they are there. The length counts itself.
pub(super) fn header(buffer: &[u8]) -> Option<(u8, usize)> {
    let &[tag, a, b, c, d] = buffer.first_chunk::<5>()?;
    Some((tag, usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX)))
}

/// Takes one message off the front of `buffer`; `None` is "need more".
///
/// # Errors
/// [`Malformed`] for a length below 4 or above [`LOGIN_MESSAGE_MAX`].
pub fn decode(buffer: &mut BytesMut) -> Result<Option<Message>, Malformed> {
    let Some((tag, length)) = header(buffer) else { return Ok(None) };
    if !(4..=LOGIN_MESSAGE_MAX).contains(&length) {
        return Err(LENGTH);
    }
    let whole = length.saturating_add(1);
    if buffer.len() < whole {
        return Ok(None);
    }
    let raw = buffer.split_to(whole).freeze();
    Ok(Some(Message { tag, body: raw.slice(5..), raw }))
}

/// What the upstream asks for or says in an `R` message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Authentication {
    CleartextPassword,
    Md5Password([u8; 4]),
    Ok,
    /// The mechanisms on offer.
    Sasl(Vec<Bytes>),
    SaslContinue(Bytes),
    SaslFinal(Bytes),
    /// A method that this relay does not speak, by its code.
    Unknown(u32),
}

impl Authentication {
    /// Parses the body of an `R` message.
    ///
    /// # Errors
    /// [`Malformed`] if it is cut short, or longer than its kind is.
    pub fn parse(body: &Bytes) -> Result<Self, Malformed> {
        const SHORT: Malformed = Malformed("an authentication message that is cut short");
        const LONG: Malformed = Malformed("an authentication message with bytes behind its end");
        let code = u32::from_be_bytes(*body.first_chunk::<4>().ok_or(SHORT)?);
        let rest = body.slice(4..);
        Ok(match code {
            0 | 3 if !rest.is_empty() => return Err(LONG),
            5 if rest.len() > 4 => return Err(LONG),
            0 => Self::Ok,
            3 => Self::CleartextPassword,
            5 => Self::Md5Password(*rest.first_chunk::<4>().ok_or(SHORT)?),
            10 => {
                let names = rest.split(|byte| *byte == 0).filter(|name| !name.is_empty());
                Self::Sasl(names.map(|name| rest.slice_ref(name)).collect())
            }
            11 => Self::SaslContinue(rest),
            12 => Self::SaslFinal(rest),
            other => Self::Unknown(other),
        })
    }
}

/// The fields of an ErrorResponse that people read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ErrorFields {
    pub severity: String,
    /// SQLSTATE, five characters.
    pub code: String,
    pub message: String,
    pub detail: String,
    pub hint: String,
}

impl ErrorText {
    /// As the fields of a PostgreSQL message.
    pub fn fields(&self, severity: &str) -> ErrorFields {
        ErrorFields {
            severity: severity.to_owned(),
            code: self.sqlstate.clone(),
            message: self.message.clone(),
            detail: self.detail.clone(),
            hint: self.hint.clone(),
        }
    }
}

impl ErrorFields {
    /// Reads the known fields of an `E` or `N` message body; unknown and broken ones are passed over.
    pub fn parse(body: &[u8]) -> Self {
        let mut fields = Self::default();
        for field in body.split(|byte| *byte == 0) {
            let Some((kind, text)) = field.split_first() else { continue };
            let text = String::from_utf8_lossy(text).into_owned();
            match kind {
                b'C' => fields.code = text,
                b'D' => fields.detail = text,
                b'H' => fields.hint = text,
                b'M' => fields.message = text,
                // 'V' is the same as 'S' but never translated.
                b'V' => fields.severity = text,
                b'S' if fields.severity.is_empty() => fields.severity = text,
                _ => {}
            }
        }
        fields
    }

    /// Appends an ErrorResponse with these fields.
    pub fn encode(&self, out: &mut BytesMut) {
        self.encode_as(b'E', out);
    }

    /// Appends a NoticeResponse with these fields.
    pub fn encode_notice(&self, out: &mut BytesMut) {
        self.encode_as(b'N', out);
    }

    fn encode_as(&self, tag: u8, out: &mut BytesMut) {
        let fields = [
            (b'S', &self.severity),
            (b'V', &self.severity),
            (b'C', &self.code),
            (b'M', &self.message),
            (b'D', &self.detail),
            (b'H', &self.hint),
        ];
        let mut body = BytesMut::new();
        for (kind, text) in fields.into_iter().filter(|(_, text)| !text.is_empty()) {
            body.put_u8(kind);
            body.put_slice(&text.bytes().filter(|byte| *byte != 0).collect::<Vec<u8>>());
            body.put_u8(0);
        }
        body.put_u8(0);
        encode(tag, &body, out);
    }
}

/// Appends a message of the type `tag`.
pub fn encode(tag: u8, body: &[u8], out: &mut BytesMut) {
    out.put_u8(tag);
    out.put_u32(u32::try_from(body.len()).unwrap_or(u32::MAX).saturating_add(4));
    out.put_slice(body);
}

/// Appends a PasswordMessage: the password and its terminator.
pub fn encode_password(password: &[u8], out: &mut BytesMut) {
    out.put_u8(b'p');
    out.put_u32(u32::try_from(password.len()).unwrap_or(u32::MAX).saturating_add(5));
    out.put_slice(password);
    out.put_u8(0);
}

/// Appends a SASLInitialResponse.
pub fn encode_sasl_initial(mechanism: &str, data: &[u8], out: &mut BytesMut) {
    let mut body = BytesMut::new();
    body.put_slice(mechanism.as_bytes());
    body.put_u8(0);
    body.put_u32(u32::try_from(data.len()).unwrap_or(u32::MAX));
    body.put_slice(data);
    encode(b'p', &body, out);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_prefix_is_incomplete_and_the_whole_is_one_message() {
        let mut whole = BytesMut::new();
        let fields = ErrorFields {
            severity: "FATAL".into(),
            code: "28000".into(),
            message: "no".into(),
            detail: String::new(),
            hint: "ask".into(),
        };
        fields.encode(&mut whole);
        for end in 0..whole.len() {
            assert_eq!(decode(&mut BytesMut::from(&whole[..end])), Ok(None));
        }
        let message = decode(&mut whole.clone()).unwrap().unwrap();
        assert_eq!(message.tag, b'E');
        assert_eq!(&message.raw[..], &whole[..]);
        assert_eq!(ErrorFields::parse(&message.body), fields);
    }

    #[test]
    fn impossible_lengths_are_refused_before_they_are_stored() {
        for length in [0_u32, 3, 65_537, 0x4000_0000, u32::MAX] {
            let mut buffer = BytesMut::from(&b"R"[..]);
            buffer.put_u32(length);
            assert!(decode(&mut buffer).is_err(), "{length}");
        }
    }

    #[test]
    fn sasl_mechanisms_are_listed() {
        let body = Bytes::from_static(b"\0\0\0\x0aSCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0");
        let Ok(Authentication::Sasl(names)) = Authentication::parse(&body) else { panic!("not SASL") };
        assert_eq!(names, ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"]);
    }

    #[test]
    fn short_authentication_messages_are_refused() {
        assert!(Authentication::parse(&Bytes::from_static(b"\0\0")).is_err());
        assert!(Authentication::parse(&Bytes::from_static(b"\0\0\0\x05abc")).is_err());
    }

    #[test]
    fn a_zero_byte_cannot_end_an_error_text_early() {
        let mut out = BytesMut::new();
        ErrorFields { message: "a\0Mb".into(), ..ErrorFields::default() }.encode(&mut out);
        let message = decode(&mut out).unwrap().unwrap();
        assert_eq!(ErrorFields::parse(&message.body).message, "aMb");
    }
}
