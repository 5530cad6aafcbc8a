//! Targets whose configuration leaves the engine out: their secrets are read before the relay listens, and say it.
//!
//! A target whose secret does not is not served, since nothing could be said to its clients in their protocol: whoever asks
//! is told why by name, on the HTTP side. It stays so; a secret is mended for the next task.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::api;
use crate::api::targets::Unavailable;
use crate::credential::{Cache, MintError, Sources};
use crate::relay::clock::wall_clock;
use crate::relay::config::Config;
use crate::relay::reply::credential_advice;
use crate::types::{Engine, Target};

/// For all secrets together, with repetitions: by then a health check has not failed three times.
const PATIENCE: Duration = Duration::from_secs(15);
/// Between two attempts, of which each is several of the SDK.
const PAUSE: Duration = Duration::from_millis(500);

/// The targets of the configuration, with what the secrets have said.
pub(super) struct Resolved {
    /// In the order of their names.
    pub(super) targets: Vec<Target>,
    /// The logins of those whose secret named the engine, by name; what was read is in them.
    pub(super) logins: BTreeMap<String, Arc<Cache>>,
    pub(super) unavailable: Vec<Unavailable>,
}

/// Reads the secrets of the targets whose engine the configuration leaves out.
pub(super) async fn resolve(config: &Config, sources: &Sources, drain: &CancellationToken) -> Resolved {
    let mut reading = JoinSet::new();
    for target in &config.without_engine {
        let Some(cache) = sources.without_engine(target) else { continue };
        let name = target.name.clone();
        reading.spawn(async move {
            let read = || async { cache.credential(wall_clock()).await.map(|loan| loan.endpoint.engine) };
            let engine = engine(&name, read).await;
            (name, (cache, engine))
        });
    }
    let read = drain.run_until_cancelled(reading.join_all()).await.unwrap_or_default();
    let mut read: BTreeMap<_, _> = read.into_iter().collect();
    let fixed = config.without_engine.iter().filter_map(|target| target.relay_port);
    let mut taken: BTreeSet<u16> = config.targets.iter().map(|target| target.relay_port).chain(fixed).collect();
    taken.insert(api::PORT);
    let mut resolved = Resolved { targets: config.targets.clone(), logins: BTreeMap::new(), unavailable: Vec::new() };
    for target in config.without_engine.iter().cloned() {
        let problem = match read.remove(&target.name) {
            Some((cache, Ok(engine))) => {
                resolved.logins.insert(target.name.clone(), cache);
                resolved.targets.push(target.resolve(engine, &mut taken));
                continue;
            }
            Some((_, Err(problem))) => problem,
            None => "the relay is stopping and has not read its secret".to_owned(),
        };
        error!(target = target.name, secret = target.credential.secret_id(), problem, "a target is not served");
        resolved.unavailable.push(Unavailable { name: target.name, problem });
    }
    resolved.targets.sort_by(|a, b| a.name.cmp(&b.name));
    resolved
}

/// The engine that `read` gives in the end, or what to tell about it.
async fn engine<R>(name: &str, read: impl Fn() -> R) -> Result<Engine, String>
where
    R: Future<Output = Result<Option<Engine>, MintError>>,
{
    let mut last = None;
    let reading = async {
        loop {
            match read().await {
                Err(error) if error.may_pass() => {
                    warn!(target = name, %error, "cannot read the secret that names the engine, trying again");
                    last = Some(error);
                    tokio::time::sleep(PAUSE).await;
                }
                done => return done,
            }
        }
    };
    let failed = match tokio::time::timeout(PATIENCE, reading).await {
        Ok(Ok(Some(engine))) => return Ok(engine),
        Ok(Ok(None)) => None,
        Ok(Err(error)) => Some(error),
        Err(_) => last,
    };
    let (cause, advice) = match &failed {
        Some(error) => (error.to_string(), credential_advice(error)),
        None => (
            format!("its secret has not named its engine within {} s", PATIENCE.as_secs()),
            "Add engine to the target's configuration.",
        ),
    };
    Err(format!("{cause}. {advice} Then start a new task: bastion down, bastion up."))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tokio::time::Instant;

    use super::*;
    use crate::credential::SecretError;

    fn secret(error: SecretError) -> MintError {
        MintError::Secret { id: "prod/orders".to_owned(), error }
    }

    #[tokio::test(start_paused = true)]
    async fn what_may_pass_is_tried_again_and_nothing_else_is() {
        let asked = Cell::new(0);
        let read = |until: u32, error: SecretError| {
            let (asked, error) = (&asked, error);
            move || {
                asked.set(asked.get() + 1);
                let answer = if asked.get() < until { Err(secret(error.clone())) } else { Ok(Some(Engine::Mysql)) };
                std::future::ready(answer)
            }
        };
        let failed = SecretError::Failed("InternalServiceError".to_owned());
        for passing in [failed, SecretError::Throttled, SecretError::Unreachable("no route".to_owned())] {
            asked.set(0);
            assert_eq!(engine("orders", read(4, passing)).await, Ok(Engine::Mysql));
            assert_eq!(asked.get(), 4);
        }
        asked.set(0);
        let problem = engine("orders", read(4, SecretError::Deleted)).await.unwrap_err();
        assert_eq!(asked.get(), 1);
        assert_eq!(
            problem,
            "secret prod/orders: it is scheduled for deletion. Restore it (aws secretsmanager restore-secret), or name the \
             secret that took its place in the configuration. Then start a new task: bastion down, bastion up."
        );
    }

    #[tokio::test(start_paused = true)]
    async fn it_ends_in_time_with_the_last_cause() {
        let begun = Instant::now();
        let problem = engine("orders", || std::future::ready(Err(secret(SecretError::Throttled)))).await.unwrap_err();
        assert!(problem.starts_with("secret prod/orders: Secrets Manager is slowing the task down. "), "{problem}");
        assert_eq!(begun.elapsed(), PATIENCE);
        let problem = engine("orders", std::future::pending).await.unwrap_err();
        assert!(problem.starts_with("its secret has not named its engine within 15 s. "), "{problem}");
        assert_eq!(begun.elapsed(), 2 * PATIENCE);
    }
}
