//! What the relay remembers of its callers, bounded and in memory only: nonces that are out, tokens that were given.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use crate::relay::identity::Person;

/// From the challenge to its answer.
pub(super) const NONCE_LIFETIME: Duration = Duration::from_secs(60);
/// More at once only come from somebody who wants to fill the memory; the oldest goes.
const NONCES_MAX: usize = 1024;
/// A token that nobody has used for so long after it was given is of no use.
const UNUSED_LIFETIME: Duration = Duration::from_secs(300);
/// Then the person proves anew who they are; open connections go on.
pub(super) const TOKEN_LIFETIME: Duration = Duration::from_secs(3600);
const TOKENS_MAX: usize = 256;
/// Of one person, those that nobody has used yet: a launcher uses its token at once or, with lanes, not before a lane is
/// lost.
const UNUSED_MAX: usize = 8;

/// Nonces that are out, oldest first.
#[derive(Default)]
pub(super) struct Nonces(VecDeque<(String, Instant)>);

impl Nonces {
    pub(super) fn issue(&mut self, nonce: String, now: Instant) {
        if self.0.len() >= NONCES_MAX {
            self.0.pop_front();
        }
        self.0.push_back((nonce, now));
    }

    /// Whether `nonce` was out and young enough; it is not, the next time.
    pub(super) fn take(&mut self, nonce: &str, now: Instant) -> bool {
        while self.0.front().is_some_and(|(_, at)| now.duration_since(*at) > NONCE_LIFETIME) {
            self.0.pop_front();
        }
        match self.0.iter().position(|(known, _)| known == nonce) {
            Some(at) => self.0.remove(at).is_some(),
            None => false,
        }
    }
}

struct Given {
    person: Arc<Person>,
    at: Instant,
    used: bool,
}

impl Given {
    fn is_good(&self, now: Instant) -> bool {
        now.duration_since(self.at) <= if self.used { TOKEN_LIFETIME } else { UNUSED_LIFETIME }
    }
}

/// Tokens that are good, by their hash: the memory holds nothing that opens a lane.
#[derive(Default)]
pub(super) struct Tokens(HashMap<[u8; 32], Given>);

impl Tokens {
    pub(super) fn give(&mut self, token: &str, person: Arc<Person>, now: Instant) {
        self.0.retain(|_, given| given.is_good(now));
        // Somebody who proves again and again must not take the place of others.
        let unused = self.0.iter().filter(|(_, given)| !given.used && given.person == person);
        if unused.clone().count() >= UNUSED_MAX
            && let Some(oldest) = unused.min_by_key(|(_, given)| given.at).map(|(hash, _)| *hash)
        {
            self.0.remove(&oldest);
        }
        if self.0.len() >= TOKENS_MAX
            && let Some(oldest) = self.0.iter().min_by_key(|(_, given)| given.at).map(|(hash, _)| *hash)
        {
            self.0.remove(&oldest);
        }
        self.0.insert(Sha256::digest(token).into(), Given { person, at: now, used: false });
    }

    /// Whose token it is, if it is good.
    pub(super) fn person(&mut self, token: &str, now: Instant) -> Option<Arc<Person>> {
        let given = self.0.get_mut(&<[u8; 32]>::from(Sha256::digest(token))).filter(|given| given.is_good(now))?;
        given.used = true;
        Some(Arc::clone(&given.person))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::identity::Principal;

    fn person(name: &str) -> Arc<Person> {
        let principal = Principal::parse(&format!("arn:aws:sts::123456789012:assumed-role/Developer/{name}")).unwrap();
        Arc::new(Person { principal, user_id: format!("AROAEXAMPLE:{name}") })
    }

    #[tokio::test(start_paused = true)]
    async fn a_nonce_is_good_once_and_for_a_minute() {
        let mut nonces = Nonces::default();
        let start = Instant::now();
        nonces.issue("a".into(), start);
        nonces.issue("b".into(), start);
        assert!(!nonces.take("c", start));
        assert!(nonces.take("a", start));
        assert!(!nonces.take("a", start));
        assert!(!nonces.take("b", start + NONCE_LIFETIME + Duration::from_millis(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn many_challenges_cost_bounded_memory_and_spare_the_newest() {
        let mut nonces = Nonces::default();
        let now = Instant::now();
        for n in 0..10_000 {
            nonces.issue(n.to_string(), now);
        }
        assert_eq!(nonces.0.len(), NONCES_MAX);
        assert!(nonces.take("9999", now) && !nonces.take("1", now));
    }

    #[tokio::test(start_paused = true)]
    async fn an_unused_token_ends_early_and_a_used_one_after_an_hour() {
        let mut tokens = Tokens::default();
        let start = Instant::now();
        for token in ["used", "unused"] {
            tokens.give(token, person("alice"), start);
        }
        let soon = start + Duration::from_secs(200);
        assert_eq!(tokens.person("used", soon).unwrap().principal.name(), "alice");
        assert!(tokens.person("other", soon).is_none());
        let later = start + Duration::from_secs(301);
        assert!(tokens.person("unused", later).is_none());
        assert!(tokens.person("used", start + TOKEN_LIFETIME).is_some());
        assert!(tokens.person("used", start + TOKEN_LIFETIME + Duration::from_millis(1)).is_none());
        for n in 0..1000 {
            tokens.give(&n.to_string(), person(&format!("n{n}")), later);
        }
        assert_eq!(tokens.0.len(), TOKENS_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn somebody_who_proves_again_and_again_takes_nobodys_place() {
        let mut tokens = Tokens::default();
        let now = Instant::now();
        for name in ["alice", "bob"] {
            tokens.give(name, person(name), now);
        }
        assert!(tokens.person("alice", now).is_some());
        for n in 1..=1000_u64 {
            tokens.give(&n.to_string(), person("alice"), now + Duration::from_millis(n));
        }
        let now = now + Duration::from_secs(1);
        for (token, good) in [("alice", true), ("bob", true), ("992", false), ("993", true), ("1000", true)] {
            assert_eq!(tokens.person(token, now).is_some(), good, "{token}");
        }
    }
}
