//! Reuse of credentials, one look at the source at a time for each target, and what to try after a refusal.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use tokio::sync::{Mutex, MutexGuard};
use tokio::time::Instant;
use tracing::warn;

use crate::credential::vault::lease::{Hold, Lease};
use crate::credential::{Credential, MintError, Reuse, Source};

/// Whoever only asks what there is waits so long for a login that is being made.
const WARM_PATIENCE: Duration = Duration::from_secs(5);
/// How long before its expiry a credential is no longer handed out: a login may take this long.
const MARGIN: Duration = Duration::from_secs(120);
/// Longer than a relay lives.
const FOR_EVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// How long an old secret goes on when it should be read again and cannot be.
const GO_ON: Duration = Duration::from_secs(60);
/// Logins of one connection: the cached one, then the current, the pending and the previous version.
const ATTEMPTS: usize = 4;
/// Refusals within this time share one look at the source.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// A login that has worked and is refused now means that a rotation is under way: so long its end is awaited.
const ROTATION: Duration = Duration::from_secs(5);

/// What there is without asking the source.
pub(crate) enum Warm {
    /// That takes its time: whoever needs it waits for it with [`Cache::credential`].
    BeingMade,
    Nothing,
    There(Loan),
}

/// A credential lent to one connection.
#[derive(Debug, Clone)]
pub(crate) struct Loan {
    credential: Arc<Credential>,
    /// Made for this connection, so that making another one would bring nothing new.
    minted: bool,
    /// Lent after a refusal: the cache keeps it only if the database accepts it.
    candidate: bool,
    /// Keeps the lease of the credential, if it has one.
    hold: Option<Arc<Hold>>,
}

impl Loan {
    /// `None`: its lease takes no new connection.
    fn of(credential: &Arc<Credential>) -> Option<Self> {
        let hold = match &credential.lease {
            None => None,
            Some(lease) => Some(Arc::new(lease.hold()?)),
        };
        Some(Self { credential: Arc::clone(credential), minted: false, candidate: false, hold })
    }

    /// Whether a replica may not know its database user yet.
    fn is_young(&self) -> bool {
        self.hold.is_some() && self.lease.as_ref().is_some_and(|lease| lease.is_young())
    }

    /// Whether its database user ends while somebody may use it.
    pub(crate) fn has_end(&self) -> bool {
        self.hold.is_some()
    }

    /// Waits until it is known when the database user ends, and says when. Cancel safe.
    pub(crate) async fn ending(&self) -> Instant {
        match &self.hold {
            Some(hold) => hold.ending().await,
            None => std::future::pending().await,
        }
    }

    /// Waits until the connection must end because its database user does. Cancel safe.
    pub(crate) async fn ended(&self) {
        match &self.hold {
            Some(hold) => hold.ended().await,
            None => std::future::pending().await,
        }
    }
}

impl Deref for Loan {
    type Target = Credential;

    fn deref(&self) -> &Credential {
        &self.credential
    }
}

struct Entry {
    credential: Arc<Credential>,
    use_until: SystemTime,
}

#[derive(Default)]
struct State {
    newest: Option<Entry>,
    /// What the source had at the last look after a refusal.
    versions: Option<(Instant, Vec<Arc<Credential>>)>,
}

/// One source and its newest credential.
pub(crate) struct Cache {
    source: Source,
    // Held over the mint on purpose: whoever comes meanwhile waits for it and shares the result.
    state: Mutex<State>,
}

impl Cache {
    pub(crate) fn new(source: Source) -> Self {
        Self { source, state: Mutex::default() }
    }

    /// A credential that is good at `now`. Cancel safe: an abandoned mint leaves the cache as it was.
    ///
    /// # Errors
    /// [`MintError`] of the source; the next call tries again.
    pub(crate) async fn credential(&self, now: SystemTime) -> Result<Loan, MintError> {
        let mut state = self.state.lock().await;
        if let Some(entry) = &state.newest
            && now < entry.use_until
            && let Some(loan) = Loan::of(&entry.credential)
        {
            return Ok(loan);
        }
        self.mint(&mut state, now).await
    }

    /// A credential that is there already, or is about to be, if the source need not be asked at `now`. Cancel safe.
    pub(crate) async fn warm(&self, now: SystemTime) -> Warm {
        let Ok(state) = tokio::time::timeout(WARM_PATIENCE, self.state.lock()).await else { return Warm::BeingMade };
        let entry = state.newest.as_ref().filter(|entry| now < entry.use_until);
        entry.and_then(|entry| Loan::of(&entry.credential)).map_or(Warm::Nothing, Warm::There)
    }

    /// Whether a lease takes connections, or is just being made.
    pub(crate) fn has_lease(&self) -> bool {
        let Ok(state) = self.state.try_lock() else { return true };
        let lease = state.newest.as_ref().and_then(|entry| entry.credential.lease.as_ref());
        lease.is_some_and(|lease| lease.is_open())
    }

    async fn mint(&self, state: &mut MutexGuard<'_, State>, now: SystemTime) -> Result<Loan, MintError> {
        match (self.source.mint(now).await, &mut state.newest) {
            (Ok(credential), _) => {
                let credential = Arc::new(credential);
                state.newest =
                    Some(Entry { credential: Arc::clone(&credential), use_until: use_until(now, &credential) });
                let hold = credential.lease.as_ref().and_then(Lease::hold).map(Arc::new);
                Ok(Loan { credential, minted: true, candidate: false, hold })
            }
            (Err(error), Some(old)) if matches!(old.credential.reuse, Reuse::ReadAgainAt(_)) => {
                warn!(%error, "cannot read the login again, going on with the old one");
                old.use_until = now + GO_ON;
                Ok(Loan { credential: Arc::clone(&old.credential), minted: false, candidate: false, hold: None })
            }
            (Err(error), _) => Err(error),
        }
    }

    /// What to try after the database has refused `refused`, the logins of one connection in their order. `None`: there
    /// is nothing else. Cancel safe.
    ///
    /// # Errors
    /// [`MintError`] of the source.
    pub(crate) async fn after_refusal(&self, refused: &[Loan], now: SystemTime) -> Result<Option<Loan>, MintError> {
        let Some(first) = refused.first().filter(|_| refused.len() < ATTEMPTS) else { return Ok(None) };
        let had_worked = refused.iter().any(|loan| loan.worked.load(Ordering::Relaxed));
        let give_up = Instant::now() + if had_worked { ROTATION } else { Duration::ZERO };
        loop {
            let mut state = self.state.lock().await;
            // Somebody else may have found a newer one meanwhile.
            if let Some(entry) = state.newest.as_ref().filter(|entry| now < entry.use_until)
                && is_new(&entry.credential, refused)
                && let Some(loan) = Loan::of(&entry.credential)
            {
                return Ok(Some(loan));
            }
            match self.versions(&mut state, now).await? {
                Some(versions) => {
                    if let Some(credential) = versions.into_iter().find(|version| is_new(version, refused)) {
                        return Ok(Some(Loan { credential, minted: false, candidate: true, hold: None }));
                    }
                }
                None => {
                    // Made by this connection or by another one a moment ago: another user would not be known either.
                    if let Some(young) = refused.last().filter(|loan| loan.is_young()) {
                        drop(state);
                        tokio::time::sleep(LOOK_AGAIN).await;
                        return Ok(Some(young.clone()));
                    }
                    if refused.len() == 1 && !first.minted {
                        state.newest = None;
                        return self.mint(&mut state, now).await.map(Some);
                    }
                    return Ok(None);
                }
            }
            drop(state);
            if Instant::now() >= give_up {
                return Ok(None);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Says that the database has accepted `loan`: from now on everybody gets it.
    pub(crate) async fn accepted(&self, loan: &Loan, now: SystemTime) {
        loan.worked.store(true, Ordering::Relaxed);
        if !loan.candidate {
            return;
        }
        let mut state = self.state.lock().await;
        if !state.newest.as_ref().is_some_and(|entry| Arc::ptr_eq(&entry.credential, &loan.credential)) {
            let use_until = use_until(now, loan);
            state.newest = Some(Entry { credential: Arc::clone(&loan.credential), use_until });
        }
    }

    /// Gives back what the source has lent. New credentials must not be asked for any more.
    pub(crate) async fn close(&self) {
        if let Source::Vault(vault) = &self.source {
            vault.close().await;
        }
    }

    /// The versions that the source has, not older than [`LOOK_AGAIN`].
    async fn versions(
        &self,
        state: &mut MutexGuard<'_, State>,
        now: SystemTime,
    ) -> Result<Option<Vec<Arc<Credential>>>, MintError> {
        if let Some((looked_at, versions)) = &state.versions
            && looked_at.elapsed() < LOOK_AGAIN
        {
            return Ok(Some(versions.clone()));
        }
        let Some(versions) = self.source.versions(now).await? else { return Ok(None) };
        let versions: Vec<_> = versions.into_iter().map(Arc::new).collect();
        state.versions = Some((Instant::now(), versions.clone()));
        Ok(Some(versions))
    }
}

fn is_new(credential: &Credential, refused: &[Loan]) -> bool {
    !refused.iter().any(|loan| loan.is_same_login(credential))
}

/// Until [`MARGIN`] before the expiry, or for half of the lifetime of a very short credential.
fn use_until(now: SystemTime, credential: &Credential) -> SystemTime {
    match credential.reuse {
        Reuse::ReadAgainAt(at) => at,
        Reuse::WhileLeased => now + FOR_EVER,
        Reuse::UntilExpiry(expires_at) => {
            let lifetime = expires_at.duration_since(now).unwrap_or_default();
            now + lifetime.saturating_sub(MARGIN).max(lifetime / 2)
        }
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;
    use crate::credential::Kind;
    use crate::credential::fixed::Fixed;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn token_like() -> Cache {
        Cache::new(Source::Fixed(Fixed::new("u", "S3CRET")))
    }

    fn secret_like() -> Cache {
        Cache::new(Source::Fixed(Fixed { secret_like: true, ..Fixed::new("u", "first") }))
    }

    fn fixed(cache: &Cache) -> &Fixed {
        match &cache.source {
            Source::Fixed(fixed) => fixed,
            other => panic!("{other:?}"),
        }
    }

    fn set(cache: &Cache, passwords: &[&str]) {
        *fixed(cache).passwords.lock().unwrap() = passwords.iter().map(|&password| password.to_owned()).collect();
    }

    fn password(loan: &Loan) -> &str {
        loan.secret.expose_secret()
    }

    #[tokio::test]
    async fn twenty_at_once_share_one_mint() {
        let cache = Arc::new(token_like());
        let mut all = tokio::task::JoinSet::new();
        for _ in 0..20 {
            let cache = Arc::clone(&cache);
            all.spawn(async move { cache.credential(NOW).await.unwrap().minted });
        }
        assert_eq!(all.join_all().await.into_iter().filter(|minted| *minted).count(), 1);
        assert_eq!(*fixed(&cache).asked.lock().unwrap(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_asks_what_there_is_does_not_wait_for_all_of_a_slow_mint() {
        let cache = token_like();
        assert!(matches!(cache.warm(NOW).await, Warm::Nothing));
        let mint = cache.state.lock().await;
        let begun = Instant::now();
        assert!(matches!(cache.warm(NOW).await, Warm::BeingMade));
        assert!(begun.elapsed() < Duration::from_secs(15), "the laptop waits no longer for the answer to an upgrade");
        drop(mint);
        cache.credential(NOW).await.unwrap();
        assert!(matches!(cache.warm(NOW).await, Warm::There(_)));
    }

    #[tokio::test]
    async fn a_credential_is_renewed_before_its_end() {
        let cache = token_like();
        let at = |seconds| NOW + Duration::from_secs(seconds);
        assert!(cache.credential(at(0)).await.unwrap().minted);
        assert!(!cache.credential(at(779)).await.unwrap().minted);
        assert!(cache.credential(at(780)).await.unwrap().minted);
    }

    #[tokio::test]
    async fn a_refused_token_is_made_anew_once() {
        let cache = token_like();
        cache.credential(NOW).await.unwrap();
        let cached = cache.credential(NOW).await.unwrap();
        set(&cache, &["second"]);
        let second = cache.after_refusal(std::slice::from_ref(&cached), NOW).await.unwrap().unwrap();
        assert_eq!(password(&second), "second");
        assert!(cache.after_refusal(&[cached.clone(), second.clone()], NOW).await.unwrap().is_none());
        // Another connection that was refused with the old one gets what the first one found.
        let asked = *fixed(&cache).asked.lock().unwrap();
        let shared = cache.after_refusal(&[cached], NOW).await.unwrap().unwrap();
        assert_eq!((password(&shared), *fixed(&cache).asked.lock().unwrap()), ("second", asked));
        // A token made for this very connection is not made again.
        let cache = token_like();
        let minted = cache.credential(NOW).await.unwrap();
        assert!(cache.after_refusal(&[minted], NOW).await.unwrap().is_none());
        assert!(!format!("{second:?}").contains("second") && second.kind == Kind::Password);
    }

    #[tokio::test(start_paused = true)]
    async fn a_rotation_is_followed_through_every_version() {
        let cache = secret_like();
        let first = cache.credential(NOW).await.unwrap();
        // The database knows the pending one already; the current one is still the old one.
        set(&cache, &["first", "second", "zeroth"]);
        let pending = cache.after_refusal(std::slice::from_ref(&first), NOW).await.unwrap().unwrap();
        assert_eq!(password(&pending), "second");
        cache.accepted(&pending, NOW).await;
        assert_eq!(password(&cache.credential(NOW).await.unwrap()), "second");
        let previous = cache.after_refusal(&[first.clone(), pending.clone()], NOW).await.unwrap().unwrap();
        assert_eq!(password(&previous), "zeroth");
        assert!(cache.after_refusal(&[first, pending, previous], NOW).await.unwrap().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_has_worked_waits_for_the_rotation_to_reach_the_secret() {
        let cache = Arc::new(secret_like());
        let loan = cache.credential(NOW).await.unwrap();
        // Never accepted: a wrong secret is told at once.
        let begun = Instant::now();
        assert!(cache.after_refusal(std::slice::from_ref(&loan), NOW).await.unwrap().is_none());
        assert_eq!(begun.elapsed(), Duration::ZERO);
        cache.accepted(&loan, NOW).await;
        let waiting = cache.after_refusal(std::slice::from_ref(&loan), NOW);
        let rotating = async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            set(&cache, &["second", "first"]);
        };
        let (found, ()) = tokio::join!(waiting, rotating);
        assert_eq!(password(&found.unwrap().unwrap()), "second");
        // But not for ever.
        let begun = Instant::now();
        set(&cache, &["first"]);
        tokio::time::sleep(LOOK_AGAIN).await;
        assert!(cache.after_refusal(&[loan], NOW).await.unwrap().is_none());
        assert!(begun.elapsed() < 2 * ROTATION);
    }

    #[tokio::test]
    async fn twenty_refusals_share_one_look_at_the_secret() {
        let cache = Arc::new(secret_like());
        let loan = cache.credential(NOW).await.unwrap();
        set(&cache, &["second"]);
        let mut all = tokio::task::JoinSet::new();
        for _ in 0..20 {
            let (cache, loan) = (Arc::clone(&cache), loan.clone());
            all.spawn(async move { cache.after_refusal(&[loan], NOW).await.unwrap().unwrap() });
        }
        assert!(all.join_all().await.iter().all(|loan| password(loan) == "second"));
        assert_eq!(*fixed(&cache).asked.lock().unwrap(), 2);
    }

    /// What Vault's users are: leased.
    fn leased(loan: &Loan, lease: &Arc<Lease>) -> Loan {
        let Loan { credential, minted, candidate, .. } = loan;
        let credential = Credential {
            lease: Some(Arc::clone(lease)),
            ..Credential::new(credential.user.clone(), password(loan).into(), Kind::Password, Reuse::WhileLeased)
        };
        let hold = Some(Arc::new(lease.hold().unwrap()));
        Loan { credential: Arc::new(credential), minted: *minted, candidate: *candidate, hold }
    }

    #[tokio::test(start_paused = true)]
    async fn a_user_that_was_just_made_gets_time_to_reach_a_replica() {
        // Also with those who share what another connection has made.
        for minted in [true, false] {
            let cache = token_like();
            let lease = Arc::new(Lease::new());
            let first = leased(&cache.credential(NOW).await.unwrap(), &lease);
            let mut refused = vec![Loan { minted, ..first }];
            let begun = Instant::now();
            while let Some(again) = cache.after_refusal(&refused, NOW).await.unwrap() {
                assert!(again.is_same_login(&refused[0]) && again.hold.is_some());
                refused.push(again);
            }
            assert_eq!((refused.len(), begun.elapsed()), (ATTEMPTS, LOOK_AGAIN * 3));
            assert_eq!(*fixed(&cache).asked.lock().unwrap(), 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_old_user_that_is_refused_is_replaced_and_the_new_one_gets_its_time() {
        let cache = token_like();
        let lease = Arc::new(Lease::new());
        let old = leased(&cache.credential(NOW).await.unwrap(), &lease);
        tokio::time::sleep(Duration::from_secs(60)).await;
        set(&cache, &["second"]);
        let old = Loan { minted: false, ..old };
        let new = cache.after_refusal(std::slice::from_ref(&old), NOW).await.unwrap().unwrap();
        assert_eq!(password(&new), "second");
        let new = leased(&new, &Arc::new(Lease::new()));
        let again = cache.after_refusal(&[old.clone(), new], NOW).await.unwrap().unwrap();
        assert_eq!(password(&again), "second");
        // Once it is old as well, there is nothing else to try.
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(cache.after_refusal(&[old, again], NOW).await.unwrap().is_none());
    }

    #[test]
    fn short_credentials_are_used_for_half_of_their_life() {
        let lasting = |seconds| {
            let reuse = Reuse::UntilExpiry(NOW + Duration::from_secs(seconds));
            Credential::new("u".to_owned(), "p".to_owned().into(), Kind::Token, reuse)
        };
        assert_eq!(use_until(NOW, &lasting(20)), NOW + Duration::from_secs(10));
        assert_eq!(use_until(NOW, &lasting(0)), NOW);
    }
}
