//! Reuse of a credential until safely before its expiry, with one mint in flight a target.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::Mutex;

use crate::credential::{Credential, MintError, Source};

/// How long before its expiry a credential is no longer handed out: a login may take this long.
const MARGIN: Duration = Duration::from_secs(120);

/// Whether a credential was made for this request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Freshness {
    Cached,
    Minted,
}

struct Entry {
    credential: Arc<Credential>,
    use_until: SystemTime,
}

/// One source and its newest credential.
pub(crate) struct Cache {
    source: Source,
    // Held over the mint on purpose: whoever comes meanwhile waits for it and shares the result.
    entry: Mutex<Option<Entry>>,
}

impl Cache {
    pub(crate) fn new(source: Source) -> Self {
        Self { source, entry: Mutex::new(None) }
    }

    /// A credential that is good at `now`. Cancel safe: an abandoned mint leaves the cache as it was.
    ///
    /// # Errors
    /// [`MintError`] of the source; the next call tries again.
    pub(crate) async fn credential(&self, now: SystemTime) -> Result<(Arc<Credential>, Freshness), MintError> {
        let mut entry = self.entry.lock().await;
        if let Some(entry) = &*entry
            && now < entry.use_until
        {
            return Ok((Arc::clone(&entry.credential), Freshness::Cached));
        }
        let credential = Arc::new(self.source.mint(now).await?);
        if let Some(expires_at) = credential.expires_at {
            *entry = Some(Entry { credential: Arc::clone(&credential), use_until: use_until(now, expires_at) });
        }
        Ok((credential, Freshness::Minted))
    }

    /// Forgets `refused` if it is still the cached one: somebody else may have replaced it already.
    pub(crate) async fn forget(&self, refused: &Arc<Credential>) {
        let mut entry = self.entry.lock().await;
        if entry.as_ref().is_some_and(|entry| Arc::ptr_eq(&entry.credential, refused)) {
            *entry = None;
        }
    }
}

/// Until [`MARGIN`] before the expiry, or for half of the lifetime of a very short credential.
fn use_until(now: SystemTime, expires_at: SystemTime) -> SystemTime {
    let lifetime = expires_at.duration_since(now).unwrap_or_default();
    now + lifetime.saturating_sub(MARGIN).max(lifetime / 2)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn cache() -> Cache {
        Cache::new(Source::Fixed { user: "u".into(), password: "S3CRET".into(), mints: AtomicUsize::new(0) })
    }

    fn mints(cache: &Cache) -> usize {
        match &cache.source {
            Source::Fixed { mints, .. } => mints.load(Ordering::Relaxed),
            Source::RdsIam(_) => 0,
        }
    }

    #[tokio::test]
    async fn twenty_at_once_share_one_mint() {
        let cache = cache();
        let now = SystemTime::UNIX_EPOCH;
        let cache = Arc::new(cache);
        let mut all = tokio::task::JoinSet::new();
        for _ in 0..20 {
            let cache = Arc::clone(&cache);
            all.spawn(async move { cache.credential(now).await.unwrap().1 });
        }
        let fresh = all.join_all().await.into_iter().filter(|freshness| *freshness == Freshness::Minted).count();
        assert_eq!(fresh, 1);
        assert_eq!(mints(&cache), 1);
    }

    #[tokio::test]
    async fn a_credential_is_renewed_before_its_end() {
        let cache = cache();
        let start = SystemTime::UNIX_EPOCH;
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(cache.credential(at(0)).await.unwrap().1, Freshness::Minted);
        assert_eq!(cache.credential(at(779)).await.unwrap().1, Freshness::Cached);
        assert_eq!(cache.credential(at(780)).await.unwrap().1, Freshness::Minted);
    }

    #[tokio::test]
    async fn only_the_refused_one_is_forgotten() {
        let cache = cache();
        let now = SystemTime::UNIX_EPOCH;
        let (first, _) = cache.credential(now).await.unwrap();
        cache.forget(&first).await;
        let (second, freshness) = cache.credential(now).await.unwrap();
        assert_eq!(freshness, Freshness::Minted);
        cache.forget(&first).await;
        assert_eq!(cache.credential(now).await.unwrap().1, Freshness::Cached);
        assert!(!format!("{second:?}").contains("S3CRET"));
    }

    #[test]
    fn short_credentials_are_used_for_half_of_their_life() {
        let now = SystemTime::UNIX_EPOCH;
        assert_eq!(use_until(now, now + Duration::from_secs(20)), now + Duration::from_secs(10));
        assert_eq!(use_until(now, now), now);
    }
}
