//! The first packet of a server: what it is and what it can do, with the challenge for the login.
//!
//! Format: MySQL Source Code Documentation, "Protocol::HandshakeV10"; the reserved bytes as MariaDB uses them: MariaDB
//! documentation, "Connecting".

use bytes::{BufMut as _, Bytes, BytesMut};

use super::capability::{LONG_PASSWORD, PLUGIN_AUTH};
use super::packet::Reader;
use super::server::Server;
use crate::Malformed;

/// Length of the challenge (`SCRAMBLE_LENGTH` in `mysql_com.h`).
pub const SCRAMBLE: usize = 20;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Greeting {
    pub version: Bytes,
    /// What KILL takes.
    pub connection_id: u32,
    pub scramble: Bytes,
    pub capabilities: u32,
    pub charset: u8,
    pub status: u16,
    /// All zero from MySQL; the last four bytes are further capabilities of MariaDB.
    pub reserved: [u8; 10],
    /// The plugin that the challenge is for.
    pub plugin: Bytes,
}

impl Greeting {
    /// Parses the payload of the first packet.
    ///
    /// # Errors
    /// [`Malformed`] if it is cut short or of another version than 10.
    pub fn parse(payload: &Bytes) -> Result<Self, Malformed> {
        const SHORT: Malformed = Malformed("a greeting that is cut short");
        let mut reader = Reader::new(payload);
        if reader.u8() != Some(10) {
            return Err(Malformed("its greeting is not that of MySQL 3.21 or later"));
        }
        let version = payload.slice_ref(reader.nul().ok_or(SHORT)?);
        let connection_id = reader.u32().ok_or(SHORT)?;
        let mut scramble = BytesMut::from(reader.take(8).ok_or(SHORT)?);
        reader.u8().ok_or(SHORT)?;
        let low = reader.u16().ok_or(SHORT)?;
        let charset = reader.u8().ok_or(SHORT)?;
        let status = reader.u16().ok_or(SHORT)?;
        let high = reader.u16().ok_or(SHORT)?;
        let capabilities = u32::from(low) | u32::from(high) << 16;
        let scramble_length = usize::from(reader.u8().ok_or(SHORT)?);
        let reserved = *reader.take(10).and_then(<[u8]>::first_chunk).ok_or(SHORT)?;
        let second = scramble_length.saturating_sub(8).max(13);
        let second = reader.take(second).ok_or(SHORT)?;
        // The last byte is a terminator.
        scramble.put_slice(second.split_last().map_or(second, |(_, text)| text));
        // Some servers of 2010 leave the terminator of the name out.
        let plugin = reader.nul().unwrap_or_else(|| reader.rest());
        let plugin = payload.slice_ref(plugin);
        Ok(Self {
            version,
            connection_id,
            scramble: scramble.freeze(),
            capabilities,
            charset,
            status,
            reserved,
            plugin,
        })
    }

    /// Appends the payload.
    pub fn encode(&self, out: &mut BytesMut) {
        let (first, second) = self.scramble.split_at_checked(8).unwrap_or((&self.scramble, &[]));
        let [a, b, c, d] = self.capabilities.to_le_bytes();
        out.put_u8(10);
        out.put_slice(&self.version);
        out.put_u8(0);
        out.put_u32_le(self.connection_id);
        out.put_slice(first);
        out.put_u8(0);
        out.put_slice(&[a, b, self.charset]);
        out.put_u16_le(self.status);
        out.put_slice(&[c, d]);
        out.put_u8(u8::try_from(self.scramble.len().saturating_add(1)).unwrap_or(u8::MAX));
        out.put_slice(&self.reserved);
        out.put_slice(second);
        out.put_u8(0);
        if self.capabilities & PLUGIN_AUTH != 0 {
            out.put_slice(&self.plugin);
            out.put_u8(0);
        }
    }

    /// MariaDB leaves out a flag of MySQL's since 10.2, and has its name in its version.
    pub fn server(&self) -> Server {
        let name = b"MariaDB";
        match self.capabilities & LONG_PASSWORD == 0 || self.version.windows(name.len()).any(|part| part == name) {
            true => Server::MariaDb,
            false => Server::MySql,
        }
    }

    /// MariaDB's further capabilities; none from MySQL.
    pub fn extended(&self) -> u32 {
        match self.reserved.last_chunk::<4>() {
            Some(flags) if self.capabilities & LONG_PASSWORD == 0 => u32::from_le_bytes(*flags),
            _ => 0,
        }
    }
}

/// Makes a challenge of random bytes: no zero byte and no `$`, as servers do (`generate_user_salt`).
pub fn scramble(random: [u8; SCRAMBLE]) -> [u8; SCRAMBLE] {
    random.map(|byte| match byte & 0x7f {
        0 | b'$' => b'%',
        other => other,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::capability::{self, CONNECT_WITH_DB};
    use super::*;

    pub(in super::super) fn greeting() -> Greeting {
        Greeting {
            version: Bytes::from_static(b"5.5.5-10.11.19-MariaDB"),
            connection_id: 42,
            scramble: Bytes::from_static(b"abcdefghijklmnopqrst"),
            capabilities: (capability::NEEDED
                | capability::MASKED
                | capability::CONNECT_ATTRS
                | CONNECT_WITH_DB
                | capability::QUERY_ATTRIBUTES
                | 1 << 24)
                & !1,
            charset: 45,
            status: 2,
            reserved: [0, 0, 0, 0, 0, 0, 0x1d, 0, 0, 0],
            plugin: Bytes::from_static(b"mysql_native_password"),
        }
    }

    #[test]
    fn a_greeting_survives_the_round_trip_and_no_prefix_is_one() {
        let greeting = greeting();
        let mut payload = BytesMut::new();
        greeting.encode(&mut payload);
        let payload = payload.freeze();
        assert_eq!(Greeting::parse(&payload), Ok(greeting.clone()));
        assert_eq!(greeting.extended(), 0x1d);
        assert_eq!(greeting.server(), Server::MariaDb);
        let capabilities = greeting.capabilities | LONG_PASSWORD;
        for (version, server) in [("9.7.4", Server::MySql), ("10.1.48-MariaDB", Server::MariaDb)] {
            let version = Bytes::from_static(version.as_bytes());
            assert_eq!(Greeting { version, capabilities, ..greeting.clone() }.server(), server);
        }
        let without_name = payload.len() - greeting.plugin.len() - 1;
        for end in 0..without_name {
            assert!(Greeting::parse(&payload.slice(..end)).is_err(), "{end}");
        }
    }

    #[test]
    fn challenges_have_no_terminator_inside() {
        let all = (0..=u8::MAX).collect::<Vec<u8>>();
        for random in all.chunks(16) {
            let mut bytes = [1; SCRAMBLE];
            bytes[..16].copy_from_slice(random);
            assert!(scramble(bytes).iter().all(|byte| *byte != 0 && *byte != b'$' && *byte < 128));
        }
    }
}
