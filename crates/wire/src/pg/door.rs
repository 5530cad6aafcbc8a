//! The door for clients where the relay has a password of its own: SCRAM-SHA-256 and, inside TLS with the relay's
//! certificate, SCRAM-SHA-256-PLUS, as the server (RFC 5802, RFC 7677, RFC 5929 for the binding).
//!
//! Read as `src/backend/libpq/auth-scram.c` does: no authorization identity, no extensions, one exchange.

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{BufMut as _, BytesMut};
use hmac::{Hmac, KeyInit as _, Mac as _};
use postgres_protocol::authentication::sasl::{SCRAM_SHA_256, SCRAM_SHA_256_PLUS};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use super::message::{Message, encode};
use crate::Malformed;
use crate::login::Refusal;

/// `SCRAM_SHA_256_DEFAULT_ITERATIONS`; the password is random, so more would only slow clients down.
const ITERATIONS: u32 = 4096;
/// `SCRAM_DEFAULT_SALT_LEN`.
pub const SALT: usize = 16;
/// `SCRAM_RAW_NONCE_LEN`.
pub const NONCE: usize = 18;
/// Types of the authentication messages (PostgreSQL manual, "Message Formats").
const SASL: u32 = 10;
const SASL_CONTINUE: u32 = 11;
const SASL_FINAL: u32 = 12;

type Key = [u8; 32];

/// What the proofs of one password are checked with; the password cannot be read back from it.
pub struct Verifier {
    salt: [u8; SALT],
    stored_key: Key,
    server_key: Key,
}

impl Verifier {
    /// `password` is printable ASCII, so that its SASLprep form is itself.
    pub fn new(password: &str, salt: [u8; SALT]) -> Self {
        let salted = Zeroizing::new(salted(password.as_bytes(), &salt));
        let client_key = Zeroizing::new(hmac(salted.as_slice(), &[b"Client Key"]));
        Self {
            salt,
            stored_key: Sha256::digest(*client_key).into(),
            server_key: hmac(salted.as_slice(), &[b"Server Key"]),
        }
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// `Hi` of RFC 5802.
fn salted(password: &[u8], salt: &[u8]) -> Key {
    let mut round = Zeroizing::new(hmac(password, &[salt, &1_u32.to_be_bytes()]));
    let mut sum = *round;
    for _ in 1..ITERATIONS {
        *round = hmac(password, &[round.as_slice()]);
        for (sum, byte) in sum.iter_mut().zip(round.iter()) {
            *sum ^= byte;
        }
    }
    sum
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> Key {
    // Any length of a key will do.
    let Ok(mac) = Hmac::<Sha256>::new_from_slice(key) else { return [0; 32] };
    parts.iter().fold(mac, |mac, part| mac.chain_update(part)).finalize().into_bytes().into()
}

/// What a client has to prove.
#[derive(Debug, Clone)]
pub struct Demand {
    pub verifier: Arc<Verifier>,
    /// Makes the server's half of the nonce.
    pub random: [u8; NONCE],
}

/// What the next message of the client is.
enum Step {
    First,
    Final {
        /// `c=` of the final message.
        binding: String,
        nonce: String,
        /// The two messages so far, as the proof has them.
        so_far: String,
    },
}

/// One exchange.
pub struct Exchange {
    demand: Demand,
    /// The `tls-server-end-point` hash of the relay's certificate, where the client is inside TLS.
    binding: Option<Vec<u8>>,
    step: Step,
}

/// Where an exchange stands after a message of the client.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// The proof is right.
    Admitted,
    /// Another message is due.
    Continue,
}

const CUT: Malformed = Malformed("its SCRAM message does not parse");

impl Exchange {
    pub fn new(demand: Demand, binding: Option<Vec<u8>>) -> Self {
        Self { demand, binding, step: Step::First }
    }

    /// Appends the message that asks for a proof.
    pub fn ask(&self, out: &mut BytesMut) {
        let mut mechanisms = BytesMut::new();
        for name in self.binding.iter().map(|_| SCRAM_SHA_256_PLUS).chain([SCRAM_SHA_256]) {
            mechanisms.put_slice(name.as_bytes());
            mechanisms.put_u8(0);
        }
        mechanisms.put_u8(0);
        authentication(SASL, &mechanisms, out);
    }

    /// Takes a message of the client and appends the answer to it.
    ///
    /// # Errors
    /// [`Refusal`] if the client does not speak SCRAM, or does not know the password.
    pub fn answer(&mut self, message: &Message, out: &mut BytesMut) -> Result<Answer, Refusal> {
        if message.tag != b'p' {
            return Err(Refusal::ClientMalformed(Malformed("it was asked for a password and sent something else")));
        }
        match std::mem::replace(&mut self.step, Step::First) {
            Step::First => {
                self.step = self.first(&message.body, out).map_err(Refusal::ClientMalformed)?;
                Ok(Answer::Continue)
            }
            Step::Final { binding, nonce, so_far } => self.last(&message.body, &binding, &nonce, &so_far, out),
        }
    }

    /// SASLInitialResponse with the client's first message.
    fn first(&self, body: &[u8], out: &mut BytesMut) -> Result<Step, Malformed> {
        let end = body.iter().position(|byte| *byte == 0).ok_or(CUT)?;
        let (mechanism, rest) = body.split_at_checked(end).ok_or(CUT)?;
        let (length, data) = rest.get(1..).and_then(<[u8]>::split_first_chunk::<4>).ok_or(CUT)?;
        if usize::try_from(u32::from_be_bytes(*length)).ok() != Some(data.len()) {
            return Err(CUT);
        }
        let plus = mechanism == SCRAM_SHA_256_PLUS.as_bytes();
        if !(mechanism == SCRAM_SHA_256.as_bytes() || plus && self.binding.is_some()) {
            return Err(Malformed("it chose a SASL mechanism that was not offered (SCRAM-SHA-256)"));
        }
        let text = std::str::from_utf8(data).map_err(|_| CUT)?;
        let (flag, rest) = text.split_once(',').ok_or(CUT)?;
        let bare = rest.strip_prefix(',').ok_or(Malformed("it names an authorization identity"))?;
        let header = format!("{flag},,").into_bytes();
        let bound = match (flag, &self.binding) {
            ("p=tls-server-end-point", Some(hash)) if plus => [&header, hash.as_slice()].concat(),
            // "I could bind but you do not offer it": somebody has taken the offer out.
            ("y", Some(_)) => return Err(Malformed("somebody has hidden SCRAM-SHA-256-PLUS from it")),
            ("n" | "y", _) if !plus => header,
            _ => return Err(Malformed("its channel binding is not the one of its mechanism")),
        };
        let mut parts = bare.split(',');
        // The user is that of the startup packet (PostgreSQL manual, "SASL Authentication").
        parts.next().filter(|part| part.starts_with("n=")).ok_or(CUT)?;
        let theirs = parts.next().and_then(|part| part.strip_prefix("r=")).ok_or(CUT)?;
        if theirs.is_empty() || !theirs.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(CUT);
        }
        let nonce = format!("{theirs}{}", BASE64.encode(self.demand.random));
        let said = format!("r={nonce},s={},i={ITERATIONS}", BASE64.encode(self.demand.verifier.salt));
        authentication(SASL_CONTINUE, said.as_bytes(), out);
        Ok(Step::Final { binding: BASE64.encode(bound), nonce, so_far: format!("{bare},{said}") })
    }

    /// SASLResponse with the client's final message.
    fn last(
        &self,
        body: &[u8],
        binding: &str,
        nonce: &str,
        so_far: &str,
        out: &mut BytesMut,
    ) -> Result<Answer, Refusal> {
        let malformed = |what| Refusal::ClientMalformed(Malformed(what));
        let text = std::str::from_utf8(body).map_err(|_| Refusal::ClientMalformed(CUT))?;
        let (before, proof) = text.rsplit_once(",p=").ok_or(Refusal::ClientMalformed(CUT))?;
        let mut parts = before.split(',');
        if parts.next().and_then(|part| part.strip_prefix("c=")) != Some(binding) {
            return Err(malformed("the channel binding of its two SCRAM messages differs"));
        }
        if parts.next().and_then(|part| part.strip_prefix("r=")) != Some(nonce) {
            return Err(malformed("the nonce of its SCRAM message is not the one it got"));
        }
        let proof = BASE64.decode(proof).ok().and_then(|proof| Key::try_from(proof).ok());
        let proof = Zeroizing::new(proof.ok_or(Refusal::ClientMalformed(CUT))?);
        let Verifier { stored_key, server_key, .. } = &*self.demand.verifier;
        let signed: [&[u8]; 3] = [so_far.as_bytes(), b",", before.as_bytes()];
        let mut key = Zeroizing::new(hmac(stored_key, &signed));
        for (key, byte) in key.iter_mut().zip(proof.iter()) {
            *key ^= byte;
        }
        if !bool::from(Sha256::digest(*key).as_slice().ct_eq(stored_key)) {
            return Err(Refusal::WrongPassword);
        }
        let signature = BASE64.encode(hmac(server_key, &signed));
        authentication(SASL_FINAL, format!("v={signature}").as_bytes(), out);
        Ok(Answer::Admitted)
    }
}

fn authentication(kind: u32, data: &[u8], out: &mut BytesMut) {
    encode(b'R', &[&kind.to_be_bytes(), data].concat(), out);
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::super::message::{self, Authentication};
    use super::super::sasl::Scram;
    use super::*;

    fn demand(password: &str) -> Demand {
        Demand { verifier: Arc::new(Verifier::new(password, [7; SALT])), random: [9; NONCE] }
    }

    fn one(out: &mut BytesMut) -> Message {
        let message = message::decode(out).unwrap().unwrap();
        assert!(out.is_empty());
        message
    }

    fn asked(message: &Message) -> Authentication {
        assert_eq!(message.tag, b'R');
        Authentication::parse(&message.body).unwrap()
    }

    /// The relay's own client side, which logs in to real servers, against this; `change` sees each message of the client.
    fn played(
        knows: &str,
        client_binding: Option<&[u8]>,
        own_binding: Option<&[u8]>,
        change: impl Fn(usize, Vec<u8>) -> Vec<u8>,
    ) -> Result<Answer, Refusal> {
        let mut exchange = Exchange::new(demand("0123456789abcdef"), own_binding.map(<[u8]>::to_vec));
        let mut out = BytesMut::new();
        exchange.ask(&mut out);
        let Authentication::Sasl(offered) = asked(&one(&mut out)) else { panic!("no offer") };
        let mut sent = BytesMut::new();
        let mut scram = Scram::start(&offered, client_binding, knows.as_bytes(), &mut sent).unwrap();
        let changed = |n, sent: &mut BytesMut| {
            let message = one(sent);
            Message { body: change(n, message.body.to_vec()).into(), ..message }
        };
        assert_eq!(exchange.answer(&changed(0, &mut sent), &mut out)?, Answer::Continue);
        let Authentication::SaslContinue(data) = asked(&one(&mut out)) else { panic!("no challenge") };
        // The client may notice first.
        scram.continue_with(&data, &mut sent).map_err(|_| Refusal::ClientGone)?;
        let answer = exchange.answer(&changed(1, &mut sent), &mut out)?;
        let Authentication::SaslFinal(data) = asked(&one(&mut out)) else { panic!("no end") };
        // The client believes only somebody who knows the password too.
        scram.finish(&data).unwrap();
        Ok(answer)
    }

    /// RFC 7677 section 3.
    #[test]
    fn the_keys_are_those_of_the_rfc() {
        let salt = BASE64.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let verifier = Verifier::new("pencil", salt.try_into().unwrap());
        let so_far = "n=user,r=rOprNGfwEbeRWgbNEkqO,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                      s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
        let signature = BASE64.encode(hmac(&verifier.server_key, &[so_far.as_bytes()]));
        assert_eq!(signature, "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
        let mut key = hmac(&verifier.stored_key, &[so_far.as_bytes()]);
        let proof = BASE64.decode("dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=").unwrap();
        key.iter_mut().zip(proof).for_each(|(key, byte)| *key ^= byte);
        assert_eq!(Sha256::digest(key).to_vec(), verifier.stored_key);
    }

    #[test]
    fn who_knows_the_password_comes_in_with_and_without_a_binding() {
        let as_is = |_, body| body;
        let hash: &[u8] = &[5; 32];
        for (client, own) in [(None, None), (Some(hash), Some(hash)), (None, Some(hash)), (Some(hash), None)] {
            assert_eq!(played("0123456789abcdef", client, own, as_is), Ok(Answer::Admitted), "{client:?} {own:?}");
        }
        for wrong in ["0123456789abcdeF", "", "0123456789abcdef "] {
            assert_eq!(played(wrong, None, None, as_is), Err(Refusal::WrongPassword), "{wrong:?}");
        }
        // Another certificate is between the two.
        assert!(matches!(
            played("0123456789abcdef", Some(&[6; 32]), Some(hash), as_is),
            Err(Refusal::ClientMalformed(_))
        ));
    }

    #[test]
    fn a_hidden_offer_and_an_identity_for_somebody_else_are_noticed() {
        let changed = |from: &'static str, to: &'static str| {
            played("0123456789abcdef", None, Some(&[5; 32]), move |n, body| {
                if n > 0 {
                    return body;
                }
                let text = String::from_utf8(body).unwrap();
                assert!(text.contains(from));
                text.replace(from, to).into_bytes()
            })
        };
        for (from, to) in [("n,,", "y,,"), ("n,,n=", "n,a=root,n="), ("n,,n=", "n,,m=x,n="), ("SHA-256\0", "SHA-1\0")] {
            assert!(matches!(changed(from, to), Err(Refusal::ClientMalformed(_))), "{to}");
        }
    }

    #[test]
    fn an_exchange_cannot_begin_at_its_end_and_other_messages_are_none() {
        let mut exchange = Exchange::new(demand("x"), None);
        let mut out = BytesMut::new();
        let body = Bytes::from_static(b"c=biws,r=x,p=AAAA");
        assert!(exchange.answer(&Message { tag: b'p', raw: body.clone(), body }, &mut out).is_err());
        let body = Bytes::from_static(b"select 1\0");
        assert!(exchange.answer(&Message { tag: b'Q', raw: body.clone(), body }, &mut out).is_err());
        assert!(out.is_empty());
    }

    #[test]
    fn debug_shows_nothing() {
        assert!(!format!("{:?}", demand("S3CRET")).contains("stored"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))] // each one hashes 8,192 times

        #[test]
        fn no_changed_byte_comes_in(n in 0_usize..2, at in any::<prop::sample::Index>(), flip in 1_u8..=255) {
            let result = played("0123456789abcdef", Some(&[5; 32]), Some(&[5; 32]), |now, mut body| {
                if now == n {
                    let at = at.index(body.len());
                    body[at] ^= flip;
                }
                body
            });
            prop_assert!(result.is_err());
        }
    }
}
