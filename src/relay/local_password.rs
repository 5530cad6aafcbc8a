//! The password that clients show at the door of this task, where `local_password` asks for one: made at the start, told
//! to callers who have proven who they are, and good for nothing but this relay.

use std::sync::Arc;

use bastion_wire::{mysql, pg};
use secrecy::{ExposeSecret as _, SecretString};

use crate::relay::start_error::StartError;
use crate::tls;

pub(super) struct LocalPassword {
    text: SecretString,
    pub(super) postgres: Arc<pg::door::Verifier>,
    pub(super) mysql: Arc<mysql::door::Verifier>,
}

impl LocalPassword {
    /// 128 random bits in hexadecimal digits: every client takes them, and they can be typed.
    ///
    /// # Errors
    /// If the operating system has no random bytes.
    pub(super) fn new() -> Result<Self, StartError> {
        let random: [u8; 16] = tls::random().map_err(|_| StartError::NoRandom)?;
        let salt = tls::random().map_err(|_| StartError::NoRandom)?;
        let text = SecretString::from(format!("{:032x}", u128::from_be_bytes(random)));
        Ok(Self {
            postgres: Arc::new(pg::door::Verifier::new(text.expose_secret(), salt)),
            mysql: Arc::new(mysql::door::Verifier::new(text.expose_secret())),
            text,
        })
    }

    /// For a caller who has proven who they are.
    pub(super) fn reveal(&self) -> String {
        self.text.expose_secret().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_long_random_and_never_the_same() {
        let (one, two) = (LocalPassword::new().unwrap().reveal(), LocalPassword::new().unwrap().reveal());
        assert!(one.len() == 32 && one.bytes().all(|byte| byte.is_ascii_hexdigit()) && one != two);
    }
}
