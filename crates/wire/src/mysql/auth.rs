//! The authentication plugins: proofs for the upstream, and what clients of the relay prove with.
//!
//! Sources: MySQL Source Code Documentation, "Authentication Methods" and "Caching_sha2_password information";
//! `sql-common/client_authentication.cc`; MariaDB `plugin/auth_ed25519/ref10/sign.c`. Over TLS, which the machine
//! guarantees, caching_sha2_password and sha256_password send the password itself, so no RSA is needed.

use bytes::{BufMut as _, BytesMut};
use curve25519_dalek::edwards::EdwardsPoint;
use curve25519_dalek::scalar::{Scalar, clamp_integer};
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha512};
use zeroize::Zeroizing;

use super::greeting::SCRAMBLE;
use crate::Malformed;
use crate::login::{Refusal, Secret, SecretKind};

pub const CACHING_SHA2: &str = "caching_sha2_password";
pub const CLEAR: &str = "mysql_clear_password";
pub const ED25519: &str = "client_ed25519";
pub const NATIVE: &str = "mysql_native_password";
pub const SHA256: &str = "sha256_password";

/// The server knows the proof: an OK packet follows (`sha2_password_common.h`).
pub const FAST_AUTH_SUCCESS: u8 = 3;
/// The server does not know it: send the password itself.
const FULL_AUTHENTICATION: u8 = 4;

/// The challenge of MariaDB's ed25519 (`NONCE_BYTES`).
const ED25519_NONCE: usize = 32;

/// One plugin's exchange with the upstream, over verified TLS.
pub struct Exchange {
    plugin: &'static str,
    asked_for_password: bool,
}

impl Exchange {
    /// The exchange that goes with the response to the greeting. A server switches to another plugin if the user has one.
    ///
    /// A token only goes out when the server has asked for `mysql_clear_password`. Until then there is a proof of the
    /// right length in its place, which proves nothing: so clients do it that do not know the user's plugin yet.
    pub fn first(plugin: &[u8], nonce: &[u8], secret: &[u8], kind: SecretKind) -> (Self, Secret) {
        let placeholder = |length| Secret::new(vec![0; length]);
        let exchange = |plugin| Self { plugin, asked_for_password: false };
        match (known(plugin), kind) {
            (Some(CACHING_SHA2), SecretKind::Token) => (exchange(CACHING_SHA2), placeholder(SHA256_LENGTH)),
            (Some(NATIVE), SecretKind::Token) => (exchange(NATIVE), placeholder(SHA1_LENGTH)),
            (Some(plugin), kind) if plugin == CLEAR || kind == SecretKind::Password => {
                let answer = answer(plugin, nonce, secret).unwrap_or_else(|_| Secret::new(Vec::new()));
                (exchange(plugin), answer)
            }
            _ => (exchange(NATIVE), placeholder(SHA1_LENGTH)),
        }
    }

    /// The exchange that the server has switched to.
    ///
    /// # Errors
    /// [`Refusal`] if the plugin is not one of ours, or takes a password where there is a token.
    pub fn switched(plugin: &[u8], nonce: &[u8], secret: &[u8], kind: SecretKind) -> Result<(Self, Secret), Refusal> {
        let Some(plugin) = known(plugin) else {
            return Err(Refusal::UnknownAuthentication(String::from_utf8_lossy(plugin).into_owned()));
        };
        if kind == SecretKind::Token && plugin != CLEAR {
            return Err(Refusal::WantsPassword(plugin));
        }
        let answer = answer(plugin, nonce, secret).map_err(Refusal::UpstreamMalformed)?;
        Ok((Self { plugin, asked_for_password: false }, answer))
    }

    pub fn plugin(&self) -> &'static str {
        self.plugin
    }

    /// Answers further data of the plugin, where an answer is due.
    ///
    /// # Errors
    /// [`Refusal`] if the data is none that the plugin sends, or asks for a password where there is a token.
    pub fn more(&mut self, data: &[u8], secret: &[u8], kind: SecretKind) -> Result<Option<Secret>, Refusal> {
        match (self.plugin, data) {
            (CACHING_SHA2, [FAST_AUTH_SUCCESS]) => Ok(None),
            (CACHING_SHA2, [FULL_AUTHENTICATION]) if kind == SecretKind::Token => {
                Err(Refusal::WantsPassword(CACHING_SHA2))
            }
            (CACHING_SHA2, [FULL_AUTHENTICATION]) if !self.asked_for_password => {
                self.asked_for_password = true;
                Ok(Some(terminated(secret)))
            }
            _ => Err(Refusal::UpstreamMalformed(Malformed("authentication data that its plugin does not send"))),
        }
    }
}

fn known(plugin: &[u8]) -> Option<&'static str> {
    [CACHING_SHA2, CLEAR, ED25519, NATIVE, SHA256].into_iter().find(|name| name.as_bytes() == plugin)
}

fn answer(plugin: &str, nonce: &[u8], secret: &[u8]) -> Result<Secret, Malformed> {
    let challenge = nonce.first_chunk::<SCRAMBLE>().ok_or(Malformed("a challenge that is too short"));
    match plugin {
        NATIVE => Ok(Secret::new(native(challenge?, secret).map_or_else(Vec::new, Vec::from))),
        CACHING_SHA2 => Ok(Secret::new(caching_sha2(challenge?, secret).map_or_else(|| vec![0], Vec::from))),
        ED25519 => {
            let nonce = <[u8; ED25519_NONCE]>::try_from(nonce)
                .map_err(|_| Malformed("a challenge of client_ed25519 that is not 32 bytes long"))?;
            Ok(Secret::new(ed25519(&nonce, secret).to_vec()))
        }
        _ => Ok(terminated(secret)),
    }
}

fn terminated(secret: &[u8]) -> Secret {
    let mut bytes = Vec::with_capacity(secret.len().saturating_add(1));
    bytes.extend_from_slice(secret);
    bytes.push(0);
    Secret::new(bytes)
}

const SHA1_LENGTH: usize = 20;
const SHA256_LENGTH: usize = 32;

/// `SHA1(password) XOR SHA1(challenge + SHA1(SHA1(password)))`; nothing for an empty password.
pub fn native(challenge: &[u8; SCRAMBLE], password: &[u8]) -> Option<[u8; SHA1_LENGTH]> {
    if password.is_empty() {
        return None;
    }
    let once = Zeroizing::new(<[u8; SHA1_LENGTH]>::from(Sha1::digest(password)));
    let twice = Sha1::digest(once.as_slice());
    let mask = Sha1::new().chain_update(challenge).chain_update(twice).finalize();
    Some(xor(&once, &mask.into()))
}

/// `SHA256(password) XOR SHA256(SHA256(SHA256(password)) + challenge)`; nothing for an empty password.
pub fn caching_sha2(challenge: &[u8; SCRAMBLE], password: &[u8]) -> Option<[u8; SHA256_LENGTH]> {
    if password.is_empty() {
        return None;
    }
    let once = Zeroizing::new(<[u8; SHA256_LENGTH]>::from(Sha256::digest(password)));
    let twice = Sha256::digest(once.as_slice());
    let mask = Sha256::new().chain_update(twice).chain_update(challenge).finalize();
    Some(xor(&once, &mask.into()))
}

pub(super) fn xor<const N: usize>(a: &[u8; N], b: &[u8; N]) -> [u8; N] {
    let mut both = [0; N];
    for (out, (a, b)) in both.iter_mut().zip(a.iter().zip(b)) {
        *out = a ^ b;
    }
    both
}

/// An Ed25519 signature (RFC 8032 section 5.1.6) whose private key is the SHA-512 of the password, as MariaDB has it.
fn ed25519(nonce: &[u8; ED25519_NONCE], password: &[u8]) -> [u8; 64] {
    let expanded = Zeroizing::new(<[u8; 64]>::from(Sha512::digest(password)));
    let (key, prefix) = expanded.split_at(32);
    let mut secret = Zeroizing::new([0; 32]);
    secret.copy_from_slice(key);
    let secret = Zeroizing::new(Scalar::from_bytes_mod_order(clamp_integer(*secret)));
    let public = EdwardsPoint::mul_base(&secret).compress();
    let hash = |parts: [&[u8]; 3]| {
        let whole = parts.iter().fold(Sha512::new(), Digest::chain_update);
        Zeroizing::new(Scalar::from_bytes_mod_order_wide(&whole.finalize().into()))
    };
    let once = hash([prefix, nonce, &[]]);
    let commitment = EdwardsPoint::mul_base(&once).compress();
    let challenge = hash([commitment.as_bytes(), public.as_bytes(), nonce]);
    #[expect(clippy::arithmetic_side_effects, reason = "modular arithmetic, which cannot overflow")]
    let proof = *challenge * *secret + *once;
    let mut signature = BytesMut::with_capacity(64);
    signature.put_slice(commitment.as_bytes());
    signature.put_slice(proof.as_bytes());
    signature.first_chunk().copied().unwrap_or([0; 64])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }

    /// The vector of the crate mysql_common, `auth/plugins/caching_sha2_password.rs`.
    #[test]
    fn caching_sha2_is_what_servers_expect() {
        let challenge = hex("4e523348503a714959615f393d64623f53647b60");
        let proof = caching_sha2(challenge.first_chunk().unwrap(), b"G!ider27").unwrap();
        assert_eq!(proof.to_vec(), hex("4f97bbfd202401c42a69deaae53bda077ed7578563c1a80eb816c82119b68d2e"));
        assert_eq!(caching_sha2(&[1; 20], b""), None);
    }

    #[test]
    fn native_undoes_itself_with_the_stored_hash() {
        // The server stores SHA1(SHA1(password)) and recovers SHA1(password) from the proof.
        let challenge = b"abcdefghijklmnopqrst";
        let proof = native(challenge, b"secret").unwrap();
        let stored: [u8; 20] = Sha1::digest(Sha1::digest(b"secret")).into();
        let mask: [u8; 20] = Sha1::new().chain_update(challenge).chain_update(stored).finalize().into();
        assert_eq!(Sha1::digest(xor(&proof, &mask)).to_vec(), stored);
        assert_eq!(native(challenge, b""), None);
    }

    /// The vector of `plugin/auth_ed25519/ed25519-t.c` in the MariaDB source.
    #[test]
    fn ed25519_signs_as_mariadb_does() {
        let signature = hex("e83dc93f433f33355649ee23aa7592d61a1123090884f58d3063423a24e43054\
             73febba858a2f93923554feea76a44753887ab2f140e854f0fe57ca0b0648a0e");
        assert_eq!(ed25519(&[b'A'; 32], b"foobar").to_vec(), signature);
    }

    #[test]
    fn a_token_never_answers_but_to_the_clear_plugin() {
        let token = b"S3CRET";
        let clear = b"S3CRET\0";
        for plugin in [CACHING_SHA2, ED25519, NATIVE, SHA256, "dialog"] {
            let (_, first) = Exchange::first(plugin.as_bytes(), &[7; 20], token, SecretKind::Token);
            assert!(first.expose().iter().all(|byte| *byte == 0), "{plugin}");
            assert!(Exchange::switched(plugin.as_bytes(), &[7; 20], token, SecretKind::Token).is_err(), "{plugin}");
        }
        let (_, switched) = Exchange::switched(CLEAR.as_bytes(), b"", token, SecretKind::Token).unwrap();
        assert_eq!(switched.expose(), clear);
        let (mut sha2, _) = Exchange::first(CACHING_SHA2.as_bytes(), &[7; 20], token, SecretKind::Token);
        assert_eq!(sha2.more(&[4], token, SecretKind::Token), Err(Refusal::WantsPassword(CACHING_SHA2)));
    }

    #[test]
    fn caching_sha2_sends_the_password_once_and_only_when_asked() {
        let kind = SecretKind::Password;
        let (mut exchange, _) = Exchange::first(CACHING_SHA2.as_bytes(), &[7; 20], b"pw", kind);
        assert_eq!(exchange.more(&[4], b"pw", kind).unwrap().unwrap().expose(), b"pw\0");
        assert!(exchange.more(&[4], b"pw", kind).is_err());
        let (mut exchange, _) = Exchange::first(CACHING_SHA2.as_bytes(), &[7; 20], b"pw", kind);
        assert_eq!(exchange.more(&[3], b"pw", kind), Ok(None));
        let (mut exchange, _) = Exchange::first(NATIVE.as_bytes(), &[7; 20], b"pw", kind);
        assert!(exchange.more(&[4], b"pw", kind).is_err());
    }

    #[test]
    fn an_unknown_plugin_is_named() {
        let refused = Exchange::switched(b"dialog", b"", b"pw", SecretKind::Password).err();
        assert_eq!(refused, Some(Refusal::UnknownAuthentication("dialog".to_owned())));
    }
}
