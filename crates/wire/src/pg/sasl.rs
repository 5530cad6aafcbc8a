//! SCRAM-SHA-256 and SCRAM-SHA-256-PLUS towards the upstream (RFC 5802, RFC 7677, RFC 5929 for the binding).
//!
//! The exchange itself is `postgres-protocol`'s; here stand the choice of mechanism and the guards around it.

use std::fmt;

use bytes::{Bytes, BytesMut};
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256};

use super::message::{encode, encode_sasl_initial};
use crate::Malformed;

/// Most rounds that an upstream may ask for. PostgreSQL's default is 4,096; each million costs about half a second.
const ITERATIONS_MAX: u64 = 1_000_000;

/// A SCRAM exchange under way.
pub struct Scram {
    inner: ScramSha256,
    mechanism: &'static str,
    continued: bool,
}

impl Scram {
    /// Chooses the mechanism and appends the first message to `out`. `binding` is the `tls-server-end-point` hash of the
    /// verified certificate; with it, `-PLUS` is used where offered.
    ///
    /// # Errors
    /// [`Malformed`] if neither mechanism is on offer.
    pub fn start(
        offered: &[Bytes],
        binding: Option<&[u8]>,
        password: &[u8],
        out: &mut BytesMut,
    ) -> Result<Self, Malformed> {
        let offers = |name: &str| offered.iter().any(|offer| offer.as_ref() == name.as_bytes());
        let (mechanism, binding) = match binding {
            Some(hash) if offers(SCRAM_SHA_256_PLUS) => {
                (SCRAM_SHA_256_PLUS, ChannelBinding::tls_server_end_point(hash.to_vec()))
            }
            // "y": we could bind but the server does not offer it, so that a downgrade shows.
            Some(_) if offers(SCRAM_SHA_256) => (SCRAM_SHA_256, ChannelBinding::unrequested()),
            None if offers(SCRAM_SHA_256) => (SCRAM_SHA_256, ChannelBinding::unsupported()),
            _ => return Err(Malformed("it offers no SASL mechanism that bastion speaks (SCRAM-SHA-256)")),
        };
        let inner = ScramSha256::new(password, binding);
        encode_sasl_initial(mechanism, inner.message(), out);
        Ok(Self { inner, mechanism, continued: false })
    }

    /// Answers the server's first message.
    ///
    /// # Errors
    /// [`Malformed`] if the message is out of turn, not SCRAM, or asks for too many rounds.
    pub fn continue_with(&mut self, server: &[u8], out: &mut BytesMut) -> Result<(), Malformed> {
        if std::mem::replace(&mut self.continued, true) {
            return Err(Malformed("a second SCRAM challenge"));
        }
        let rounds = std::str::from_utf8(server)
            .ok()
            .and_then(|text| text.split(',').find_map(|part| part.strip_prefix("i=")))
            .and_then(|text| text.parse::<u64>().ok())
            .unwrap_or(0);
        if !(1..=ITERATIONS_MAX).contains(&rounds) {
            return Err(Malformed("a SCRAM challenge with an impossible iteration count"));
        }
        self.inner.update(server).map_err(|_| Malformed("a SCRAM challenge that does not parse"))?;
        encode(b'p', self.inner.message(), out);
        Ok(())
    }

    /// Checks the server's proof that it knows the password too.
    ///
    /// # Errors
    /// [`Malformed`] if the proof is missing or wrong.
    pub fn finish(&mut self, server: &[u8]) -> Result<(), Malformed> {
        if !self.continued {
            return Err(Malformed("the end of a SCRAM exchange before its challenge"));
        }
        self.inner.finish(server).map_err(|_| Malformed("a wrong SCRAM server signature"))
    }
}

impl fmt::Debug for Scram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scram").field("mechanism", &self.mechanism).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: [Bytes; 2] = [Bytes::from_static(b"SCRAM-SHA-256-PLUS"), Bytes::from_static(b"SCRAM-SHA-256")];

    #[test]
    fn binds_to_the_channel_where_it_can() {
        let mut out = BytesMut::new();
        Scram::start(&BOTH, Some(&[1; 32]), b"x", &mut out).unwrap();
        assert!(out.windows(24).any(|part| part.starts_with(b"p=tls-server-end-point,,")));
    }

    #[test]
    fn says_that_it_could_have_bound() {
        let mut out = BytesMut::new();
        Scram::start(&BOTH[1..], Some(&[1; 32]), b"x", &mut out).unwrap();
        assert!(out.windows(3).any(|part| part == b"y,,"));
    }

    #[test]
    fn refuses_what_would_burn_the_cpu_or_is_out_of_turn() {
        for challenge in ["r=x,s=AAAA,i=4000000000", "r=x,s=AAAA,i=0", "r=x,s=AAAA", "\u{fffd}"] {
            let mut out = BytesMut::new();
            let mut scram = Scram::start(&BOTH, None, b"x", &mut out).unwrap();
            assert!(scram.continue_with(challenge.as_bytes(), &mut out).is_err(), "{challenge}");
        }
        let mut out = BytesMut::new();
        let mut scram = Scram::start(&BOTH, None, b"x", &mut out).unwrap();
        assert!(scram.finish(b"v=AAAA").is_err());
    }

    #[test]
    fn refuses_an_offer_without_scram() {
        assert!(Scram::start(&[Bytes::from_static(b"OAUTHBEARER")], None, b"x", &mut BytesMut::new()).is_err());
    }
}
