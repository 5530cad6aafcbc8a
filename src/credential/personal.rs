//! How the connections of a target get their login: everybody the same one, or each person their own.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use tracing::warn;

use crate::api::authorize::Audience;
use crate::credential::vault::{Login, Server, SignedLogin, Slot, Standing, Vault};
use crate::credential::{Cache, Loan, MintError, Source, VaultError, Warm};

/// People of one target at once. A task is for one person, or for the few that its `allow` names.
const PEOPLE_MAX: usize = 256;

/// The logins of one target.
pub(crate) enum Logins {
    /// Clients bring their own.
    Client,
    Personal(Personal),
    Shared(Arc<Cache>),
}

/// What one connection may log in with.
pub(crate) enum Admission {
    /// Nothing: the client does it.
    Client,
    Login(Arc<Cache>),
    Refused(MintError),
}

/// The person must prove anew who they are, and sign a login to Vault with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ProofWanted {
    #[error(
        "Vault lets you in as yourself, and you have not signed a login for its server id {0:?}: update bastion on the \
         laptop, or add this target to the environment that it reads"
    )]
    Unknown(String),
    #[error("you have to sign another login for Vault's server id {0:?}; check the clock of the laptop")]
    Unsigned(String),
}

impl Logins {
    /// What a connection of `person` gets, with the login itself where a person has one already: it must not end before
    /// the client comes to it. `Err`: nothing yet.
    pub(crate) async fn admit(
        &self,
        person: Option<&str>,
        now: SystemTime,
    ) -> Result<(Admission, Option<Loan>), ProofWanted> {
        match self {
            Self::Client => Ok((Admission::Client, None)),
            Self::Personal(personal) => personal.admit(person, now).await,
            Self::Shared(cache) => Ok((Admission::Login(Arc::clone(cache)), None)),
        }
    }

    /// The Vault that people must sign a login for.
    pub(crate) fn audience(&self) -> Option<&Audience> {
        match self {
            Self::Personal(personal) => Some(&personal.audience),
            Self::Client | Self::Shared(_) => None,
        }
    }

    /// Takes what `person` has signed for this Vault.
    pub(crate) fn hand_in(&self, person: &str, audience: &Audience, signed: &Arc<SignedLogin>) {
        if let Self::Personal(personal) = self
            && personal.audience == *audience
        {
            personal.hand_in(person, signed);
        }
    }

    /// Gives back what the source has lent. New logins must not be asked for any more.
    pub(crate) async fn close(&self) {
        match self {
            Self::Client => {}
            Self::Personal(personal) => personal.server.close().await,
            Self::Shared(cache) => cache.close().await,
        }
    }
}

/// What one person has.
struct Own {
    slot: Arc<Slot>,
    cache: Arc<Cache>,
}

/// Logins to Vault as the caller: for each person another database user, by that person's policy.
pub(crate) struct Personal {
    server: Arc<Server>,
    audience: Audience,
    people: Mutex<HashMap<String, Own>>,
}

impl Personal {
    pub(super) fn new(server: Server, audience: Audience) -> Self {
        Self { server: Arc::new(server), audience, people: Mutex::default() }
    }

    async fn admit(&self, person: Option<&str>, now: SystemTime) -> Result<(Admission, Option<Loan>), ProofWanted> {
        let Some(person) = person else { return Ok((Admission::Refused(MintError::Nobody), None)) };
        let server_id = || self.audience.server_id.clone();
        let own = {
            let people = self.people.lock();
            people.get(person).map(|own| (Arc::clone(&own.slot), Arc::clone(&own.cache)))
        };
        let (slot, cache) = own.ok_or_else(|| ProofWanted::Unknown(server_id()))?;
        match cache.warm(now).await {
            Warm::There(loan) => return Ok((Admission::Login(cache), Some(loan))),
            // The client waits for it in its login, and hears there what became of it.
            Warm::BeingMade => return Ok((Admission::Login(cache), None)),
            Warm::Nothing => {}
        }
        match slot.standing() {
            Standing::Refused(error) => Ok((Admission::Refused(self.server.failed(error)), None)),
            Standing::Signed => Ok((Admission::Login(cache), None)),
            Standing::Unsigned => Err(ProofWanted::Unsigned(server_id())),
        }
    }

    fn hand_in(&self, person: &str, signed: &Arc<SignedLogin>) {
        let mut people = self.people.lock();
        if !people.contains_key(person) && people.len() >= PEOPLE_MAX {
            people.retain(|_, own| own.slot.standing() == Standing::Signed || own.cache.has_lease());
            if people.len() >= PEOPLE_MAX {
                people.retain(|_, own| own.cache.has_lease());
            }
            if people.len() >= PEOPLE_MAX {
                warn!(
                    people = PEOPLE_MAX,
                    "too many people use this target: there is no place for the login of another"
                );
                return;
            }
        }
        let own = people.entry(person.to_owned()).or_insert_with(|| {
            let slot = Arc::new(Slot::default());
            let vault = Vault::new(Login::Caller(Arc::clone(&slot)), Arc::clone(&self.server));
            Own { slot, cache: Arc::new(Cache::new(Source::Vault(Box::new(vault)))) }
        });
        own.slot.put(Arc::clone(signed));
        self.server.forget_in_time(Arc::clone(&own.slot), signed);
    }
}

impl Server {
    fn failed(&self, error: VaultError) -> MintError {
        MintError::Vault { address: self.address().to_owned(), error }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::types::{ExtraCa, VaultAs, VaultConfig};

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn logins() -> Logins {
        let config = VaultConfig {
            // Nobody listens there.
            address: "http://127.0.0.1:1".to_owned(),
            login: VaultAs::Caller,
            mount: "aws".to_owned(),
            role: Some("r".to_owned()),
            creds: "database/creds/r".to_owned(),
            namespace: None,
            ca_file: None,
            server_id: Some("v".to_owned()),
            sts_region: None,
        };
        let tls = crate::tls::vault(&ExtraCa::default(), None).unwrap();
        Logins::Personal(Personal::new(Server::new(config, &tls).unwrap(), audience("v")))
    }

    fn audience(server_id: &str) -> Audience {
        Audience { server_id: server_id.to_owned(), sts_region: None }
    }

    fn signed() -> Arc<SignedLogin> {
        Arc::new(SignedLogin::new("a".to_owned().into(), "d".to_owned(), None, Duration::ZERO))
    }

    async fn cache(logins: &Logins, person: &str) -> Result<Arc<Cache>, ProofWanted> {
        match logins.admit(Some(person), NOW).await? {
            (Admission::Login(cache), None) => Ok(cache),
            _ => panic!("{person} is not let in"),
        }
    }

    #[tokio::test]
    async fn a_person_is_let_in_with_what_they_have_signed_and_nobody_with_what_another_has() {
        let logins = logins();
        assert!(matches!(logins.admit(None, NOW).await, Ok((Admission::Refused(MintError::Nobody), None))));
        let unknown = ProofWanted::Unknown("v".to_owned());
        assert_eq!(cache(&logins, "alice").await.err(), Some(unknown.clone()));
        logins.hand_in("alice", &audience("another"), &signed());
        assert_eq!(cache(&logins, "alice").await.err(), Some(unknown.clone()));
        logins.hand_in("alice", &audience("v"), &signed());
        let hers = cache(&logins, "alice").await.unwrap();
        assert_eq!(cache(&logins, "bob").await.err(), Some(unknown));
        logins.hand_in("bob", &audience("v"), &signed());
        assert!(!Arc::ptr_eq(&hers, &cache(&logins, "bob").await.unwrap()));
        assert!(Arc::ptr_eq(&hers, &cache(&logins, "alice").await.unwrap()));
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_uses_is_not_kept() {
        let logins = logins();
        let signed = signed();
        logins.hand_in("alice", &audience("v"), &signed);
        let kept = Arc::downgrade(&signed);
        drop(signed);
        tokio::time::sleep(Duration::from_secs(239)).await;
        assert!(kept.upgrade().is_some());
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(kept.upgrade().is_none());
    }

    #[tokio::test]
    async fn an_outage_of_vault_is_told_and_costs_no_signature() {
        let logins = logins();
        logins.hand_in("alice", &audience("v"), &signed());
        let hers = cache(&logins, "alice").await.unwrap();
        for _ in 0..2 {
            let failed = hers.credential(NOW).await.unwrap_err().to_string();
            assert!(failed.contains("cannot be reached"), "{failed}");
            cache(&logins, "alice").await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn people_who_have_nothing_make_room_for_others() {
        let logins = logins();
        for number in 0..1000 {
            logins.hand_in(&number.to_string(), &audience("v"), &signed());
            cache(&logins, &number.to_string()).await.unwrap();
        }
        let Logins::Personal(personal) = &logins else { panic!() };
        assert!(personal.people.lock().len() <= PEOPLE_MAX);
    }
}
