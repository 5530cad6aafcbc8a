//! What a person has signed for the Vault of a target: good for one database user, and for some minutes.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use secrecy::SecretString;
use tokio::time::Instant;

use crate::credential::vault::VaultError;

/// From the date of the signature. STS takes it for five minutes; most of the rest is for a client that takes its time to
/// log in.
const GOOD_FOR: Duration = Duration::from_secs(240);
const LOGIN_TIME: Duration = Duration::from_secs(50);
/// So long the refusal of a login is the answer to whoever comes after it, instead of another login.
const REFUSED_FOR: Duration = Duration::from_secs(5);

/// The signed values of one `sts:GetCallerIdentity`; everything else of it is in the configuration.
pub(crate) struct SignedLogin {
    pub(super) authorization: SecretString,
    pub(super) date: String,
    pub(super) token: Option<SecretString>,
    pub(crate) good_until: Instant,
}

impl SignedLogin {
    /// `age`: since the date of the signature.
    pub(crate) fn new(authorization: SecretString, date: String, token: Option<SecretString>, age: Duration) -> Self {
        Self { authorization, date, token, good_until: Instant::now() + GOOD_FOR.saturating_sub(age) }
    }
}

impl fmt::Debug for SignedLogin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SignedLogin")
    }
}

/// How things stand with a person who wants a new database user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Vault has said no, a moment ago.
    Refused(VaultError),
    Signed,
    /// There is nothing signed, or it was used, or it is too old.
    Unsigned,
}

#[derive(Debug, Default)]
struct State {
    signed: Option<Arc<SignedLogin>>,
    refused: Option<(Instant, VaultError)>,
}

/// The place of what one person has signed for one target.
#[derive(Debug, Default)]
pub(crate) struct Slot(Mutex<State>);

impl Slot {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }

    pub(crate) fn put(&self, signed: Arc<SignedLogin>) {
        *self.lock() = State { signed: Some(signed), refused: None };
    }

    pub(crate) fn standing(&self) -> Standing {
        let mut state = self.lock();
        let now = Instant::now();
        if state.signed.as_ref().is_some_and(|signed| now >= signed.good_until) {
            state.signed = None;
        }
        match (&state.signed, &state.refused) {
            (Some(_), _) => Standing::Signed,
            (None, Some((at, error))) if now.duration_since(*at) < REFUSED_FOR => Standing::Refused(error.clone()),
            (None, _) => Standing::Unsigned,
        }
    }

    /// Forgets what is too old by now.
    pub(crate) fn forget_old(&self) {
        let _forgotten = self.standing();
    }

    /// For a login. Whoever was let in with it may use it for a while longer than others, but not when STS refuses it.
    pub(super) fn take(&self) -> Result<Arc<SignedLogin>, VaultError> {
        let mut state = self.lock();
        let signed = state.signed.take().filter(|signed| Instant::now() < signed.good_until + LOGIN_TIME);
        match (signed, &state.refused) {
            (Some(signed), _) => Ok(signed),
            (None, Some((at, error))) if at.elapsed() < REFUSED_FOR => Err(error.clone()),
            (None, _) => Err(VaultError::Unsigned),
        }
    }

    /// What has come of a login: one on which Vault has not decided may be tried again.
    pub(super) fn settle(&self, signed: Arc<SignedLogin>, failure: Option<&VaultError>) {
        let Some(failure) = failure else { return };
        let mut state = self.lock();
        // A newer one was handed in meanwhile.
        if state.signed.is_some() {
            return;
        }
        if failure.is_outage() {
            state.signed = Some(signed);
        } else {
            state.refused = Some((Instant::now(), failure.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed(age: u64) -> Arc<SignedLogin> {
        let token = Some("S3CRET".to_owned().into());
        Arc::new(SignedLogin::new("S3CRET".to_owned().into(), "d".to_owned(), token, Duration::from_secs(age)))
    }

    #[tokio::test(start_paused = true)]
    async fn a_signature_is_good_for_one_login() {
        let slot = Slot::default();
        assert_eq!(slot.standing(), Standing::Unsigned);
        assert_eq!(slot.take().unwrap_err(), VaultError::Unsigned);
        slot.put(signed(0));
        assert_eq!(slot.standing(), Standing::Signed);
        let taken = slot.take().unwrap();
        slot.settle(taken, None);
        assert_eq!(slot.standing(), Standing::Unsigned);
        assert!(!format!("{slot:?} {:?}", signed(0)).contains("S3CRET"));
    }

    #[tokio::test(start_paused = true)]
    async fn it_ends_before_sts_refuses_it() {
        let slot = Slot::default();
        slot.put(signed(100));
        tokio::time::advance(Duration::from_secs(139)).await;
        assert_eq!(slot.standing(), Standing::Signed);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(slot.standing(), Standing::Unsigned);
        slot.put(signed(300));
        assert_eq!(slot.standing(), Standing::Unsigned);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_its_time_uses_it_until_sts_refuses_it() {
        for (age, good) in [(289, true), (290, false)] {
            let slot = Slot::default();
            slot.put(signed(0));
            tokio::time::advance(Duration::from_secs(age)).await;
            assert_eq!(slot.take().err(), (!good).then_some(VaultError::Unsigned), "{age}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_spends_nothing_and_a_refusal_is_the_answer_for_a_moment() {
        let slot = Slot::default();
        slot.put(signed(0));
        for outage in [VaultError::Sealed, VaultError::CertificateIssuer, VaultError::Unreachable(String::new())] {
            let taken = slot.take().unwrap();
            slot.settle(taken, Some(&outage));
            assert_eq!(slot.standing(), Standing::Signed);
        }
        let taken = slot.take().unwrap();
        let denied = VaultError::LoginDenied("r".to_owned());
        slot.settle(taken, Some(&denied));
        assert_eq!(slot.standing(), Standing::Refused(denied.clone()));
        assert_eq!(slot.take().unwrap_err(), denied);
        tokio::time::advance(REFUSED_FOR).await;
        assert_eq!((slot.standing(), slot.take().unwrap_err()), (Standing::Unsigned, VaultError::Unsigned));
        // What was signed meanwhile stays.
        slot.put(signed(0));
        let taken = slot.take().unwrap();
        slot.put(signed(0));
        slot.settle(taken, Some(&denied));
        assert_eq!(slot.standing(), Standing::Signed);
    }
}
