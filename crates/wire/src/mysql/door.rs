//! The door for clients: which plugin they answer with, and whether the answer lets them in.
//!
//! A client has a plugin of its own and may not know others: libmysql 8 comes with caching_sha2_password, clients of
//! before 2018 with mysql_native_password only. So each one is asked with the plugin that it names itself.

use std::fmt;

use bytes::{BufMut as _, BytesMut};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use super::auth::{CACHING_SHA2, FAST_AUTH_SUCCESS, NATIVE, xor};
use super::greeting::SCRAMBLE;
use super::packet::encode;
use crate::login::Refusal;

/// What the greeting announces: every client of protocol 4.1 knows it, or names another one.
pub const ANNOUNCED: &str = NATIVE;

/// First byte of an AuthSwitchRequest.
pub const SWITCH: u8 = 0xfe;
/// First byte of a packet with further data of a plugin.
pub const MORE_DATA: u8 = 0x01;

/// The plugin to ask a client with that named `named`. One that names anything else gets what all know; its password is
/// never asked for in clear.
pub fn plugin_for(named: Option<&[u8]>) -> &'static str {
    match named {
        Some(name) if name == CACHING_SHA2.as_bytes() => CACHING_SHA2,
        _ => NATIVE,
    }
}

/// Appends the AuthSwitchRequest for `plugin`.
pub fn encode_switch(sequence: u8, plugin: &str, challenge: &[u8; SCRAMBLE], out: &mut BytesMut) {
    let mut payload = BytesMut::new();
    payload.put_u8(SWITCH);
    payload.put_slice(plugin.as_bytes());
    payload.put_u8(0);
    payload.put_slice(challenge);
    payload.put_u8(0);
    encode(sequence, &payload, out);
}

/// What the proofs of one password are checked with: what a server stores for it, with either plugin.
pub struct Verifier {
    native: [u8; 20],
    sha2: [u8; 32],
}

impl Verifier {
    pub fn new(password: &str) -> Self {
        let once = Zeroizing::new(<[u8; 20]>::from(Sha1::digest(password)));
        let native = Sha1::digest(*once).into();
        let once = Zeroizing::new(<[u8; 32]>::from(Sha256::digest(password)));
        Self { native, sha2: Sha256::digest(*once).into() }
    }

    /// Undoes what `native` and `caching_sha2` of [`auth`](super::auth) do: the hash that comes out must be the one whose
    /// hash is known.
    fn proves(&self, plugin: &str, challenge: &[u8; SCRAMBLE], answer: &[u8]) -> bool {
        if plugin == CACHING_SHA2 {
            let Ok(proof) = <[u8; 32]>::try_from(answer) else { return false };
            let mask = Sha256::new().chain_update(self.sha2).chain_update(challenge).finalize();
            let once = Zeroizing::new(xor(&proof, &mask.into()));
            return Sha256::digest(*once).as_slice().ct_eq(&self.sha2).into();
        }
        let Ok(proof) = <[u8; 20]>::try_from(answer) else { return false };
        let mask = Sha1::new().chain_update(challenge).chain_update(self.native).finalize();
        let once = Zeroizing::new(xor(&proof, &mask.into()));
        Sha1::digest(*once).as_slice().ct_eq(&self.native).into()
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// A client that is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admitted {
    /// Its plugin waits for the word that its proof is known, before the OK packet.
    pub awaits_success: bool,
}

/// Lets the client in, if its answer to `challenge` is a proof of what is demanded; without a demand any answer is.
///
/// # Errors
/// [`Refusal::WrongPassword`].
pub fn admit(
    demand: Option<&Verifier>,
    plugin: &str,
    challenge: &[u8; SCRAMBLE],
    answer: &[u8],
) -> Result<Admitted, Refusal> {
    if demand.is_some_and(|verifier| !verifier.proves(plugin, challenge, answer)) {
        return Err(Refusal::WrongPassword);
    }
    // A single zero byte is the answer of somebody without a password.
    Ok(Admitted { awaits_success: plugin == CACHING_SHA2 && answer.len() > 1 })
}

impl Admitted {
    /// Appends what comes before the OK packet; the sequence number for the OK packet.
    pub fn encode(self, sequence: u8, out: &mut BytesMut) -> u8 {
        if !self.awaits_success {
            return sequence;
        }
        encode(sequence, &[MORE_DATA, FAST_AUTH_SUCCESS], out);
        sequence.wrapping_add(1)
    }
}

#[cfg(test)]
mod tests {
    use super::super::auth;
    use super::*;

    #[test]
    fn only_a_proof_of_the_password_for_this_challenge_comes_in() {
        let verifier = Verifier::new("0123456789abcdef");
        let challenge = b"abcdefghijklmnopqrst";
        let native = |challenge, password| auth::native(challenge, password).unwrap().to_vec();
        let sha2 = |challenge, password| auth::caching_sha2(challenge, password).unwrap().to_vec();
        let right: &[u8] = b"0123456789abcdef";
        for (plugin, answer) in [(NATIVE, native(challenge, right)), (CACHING_SHA2, sha2(challenge, right))] {
            assert!(admit(Some(&verifier), plugin, challenge, &answer).is_ok(), "{plugin}");
            let foreign = b"abcdefghijklmnopqrsT";
            assert_eq!(admit(Some(&verifier), plugin, foreign, &answer), Err(Refusal::WrongPassword), "{plugin}");
            for end in 0..answer.len() {
                assert!(admit(Some(&verifier), plugin, challenge, &answer[..end]).is_err(), "{plugin} {end}");
            }
            for at in 0..answer.len() {
                let mut changed = answer.clone();
                changed[at] ^= 1;
                assert!(admit(Some(&verifier), plugin, challenge, &changed).is_err(), "{plugin} {at}");
            }
        }
        // The proof of the other plugin, of another password, of none, and what a server stores.
        for (plugin, answer) in [
            (NATIVE, sha2(challenge, right)),
            (CACHING_SHA2, native(challenge, right)),
            (NATIVE, native(challenge, b"other")),
            (CACHING_SHA2, sha2(challenge, b"other")),
            (NATIVE, Vec::new()),
            (CACHING_SHA2, vec![0]),
            (NATIVE, verifier.native.to_vec()),
            (CACHING_SHA2, verifier.sha2.to_vec()),
        ] {
            assert!(admit(Some(&verifier), plugin, challenge, &answer).is_err(), "{plugin} {answer:?}");
            assert!(admit(None, plugin, challenge, &answer).is_ok(), "{plugin} {answer:?}");
        }
        assert_eq!(format!("{verifier:?}"), "[redacted]");
    }
}
