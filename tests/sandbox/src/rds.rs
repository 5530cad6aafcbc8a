//! Checks an RDS IAM token as RDS does, from a state file that the sandbox keeps: which endpoints there are, and which
//! task-role keys are good for which database users until when.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::sigv4::{Scope, canonical_pairs, pairs, parse_date};

/// One issued set of task-role credentials.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    pub secret: String,
    pub session_token: String,
    /// Seconds since the epoch.
    pub expires_at: u64,
    pub db_users: Vec<String>,
}

/// What the verifier knows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    pub region: String,
    /// `host:port`
    pub endpoints: Vec<String>,
    pub keys: BTreeMap<String, Key>,
}

impl State {
    /// The state file of all servers below `folder`, made without endpoints and keys if it is not there yet.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn file_in(folder: &Path) -> anyhow::Result<PathBuf> {
        let path = folder.join("rds-state.json");
        if !path.exists() {
            Self::default().write(&path).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(path)
    }

    /// # Errors
    /// When the file cannot be read or is not a state.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        Ok(serde_json::from_slice(&std::fs::read(path)?)?)
    }

    /// Replaces the file whole.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        let new = path.with_extension("new");
        std::fs::write(&new, serde_json::to_vec(self)?)?;
        std::fs::rename(&new, path)?;
        Ok(())
    }
}

/// Checks `token` for a login as `user`.
///
/// # Errors
/// Why it is refused, without any part of the token.
pub fn verify(state: &State, token: &str, user: &str, now: SystemTime) -> Result<(), String> {
    let (endpoint, query) = token.split_once("/?").ok_or("not a token")?;
    if !state.endpoints.iter().any(|known| known == endpoint) {
        return Err(format!("wrong endpoint {endpoint}"));
    }
    let all = pairs(query);
    let map: BTreeMap<&str, &str> = all.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    if map.len() != all.len() {
        return Err("a parameter stands twice".to_owned());
    }
    let parameter =
        |name: &str| map.get(name).copied().ok_or_else(|| format!("no {name} (token of {} bytes)", token.len()));
    if parameter("Action")? != "connect" || parameter("DBUser")? != user {
        return Err(format!("the token is for {}, the login for {user}", parameter("DBUser")?));
    }
    if parameter("X-Amz-Algorithm")? != "AWS4-HMAC-SHA256" || parameter("X-Amz-SignedHeaders")? != "host" {
        return Err("other algorithm or signed headers".to_owned());
    }
    let scope = Scope::parse(parameter("X-Amz-Credential")?).ok_or("malformed credential scope")?;
    if scope.service != "rds-db" || scope.region != state.region {
        return Err(format!("scope {}/{}", scope.region, scope.service));
    }
    let key = state.keys.get(scope.access_key).ok_or("unknown access key")?;
    let date = parameter("X-Amz-Date")?;
    let signed_at = parse_date(date).filter(|_| date.starts_with(scope.date)).ok_or("malformed date")?;
    let lifetime =
        parameter("X-Amz-Expires")?.parse::<u64>().ok().filter(|s| *s <= 900).ok_or("X-Amz-Expires above 900")?;
    if now.duration_since(signed_at).is_ok_and(|age| age.as_secs() > lifetime) {
        return Err("expired".to_owned());
    }
    if signed_at.duration_since(now).is_ok_and(|ahead| ahead > Duration::from_secs(300)) {
        return Err("from the future".to_owned());
    }
    let seconds = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    if key.expires_at <= seconds {
        return Err("the role credentials have expired".to_owned());
    }
    let unsigned: Vec<(String, String)> = all.iter().filter(|(name, _)| name != "X-Amz-Signature").cloned().collect();
    let canonical = format!(
        "GET\n/\n{}\nhost:{endpoint}\n\nhost\n{}",
        canonical_pairs(&unsigned),
        hex::encode(Sha256::digest(b""))
    );
    if scope.signature(&key.secret, date, &canonical) != parameter("X-Amz-Signature")? {
        return Err("bad signature".to_owned());
    }
    if parameter("X-Amz-Security-Token")? != key.session_token {
        return Err("other session token".to_owned());
    }
    if !key.db_users.iter().any(|allowed| allowed == user) {
        return Err(format!("the role may not rds-db:connect as {user}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDPOINT: &str = "orders.cluster-abc123.ap-northeast-1.rds.amazonaws.com:5432";

    fn state() -> State {
        let key = Key {
            secret: "secret".into(),
            session_token: "session/token+".into(),
            expires_at: 2_000_000_000,
            db_users: vec!["db_read".into()],
        };
        State {
            region: "ap-northeast-1".into(),
            endpoints: vec![ENDPOINT.into()],
            keys: BTreeMap::from([("ASIATEST".into(), key)]),
        }
    }

    fn now() -> SystemTime {
        parse_date("20260101T000100Z").unwrap()
    }

    /// A token signed a minute ago.
    fn token(user: &str, secret: &str, region: &str, expires: &str) -> String {
        let credential = format!("ASIATEST/20260101/{region}/rds-db/aws4_request");
        let mut all = vec![
            ("Action", "connect"),
            ("DBUser", user),
            ("X-Amz-Algorithm", "AWS4-HMAC-SHA256"),
            ("X-Amz-Credential", &credential),
            ("X-Amz-Date", "20260101T000000Z"),
            ("X-Amz-Expires", expires),
            ("X-Amz-Security-Token", "session/token+"),
            ("X-Amz-SignedHeaders", "host"),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect::<Vec<_>>();
        let canonical =
            format!("GET\n/\n{}\nhost:{ENDPOINT}\n\nhost\n{}", canonical_pairs(&all), hex::encode(Sha256::digest(b"")));
        let signature = Scope::parse(&credential).unwrap().signature(secret, "20260101T000000Z", &canonical);
        all.push(("X-Amz-Signature".into(), signature));
        format!("{ENDPOINT}/?{}", canonical_pairs(&all))
    }

    #[test]
    fn a_good_token_passes_until_it_expires() {
        let good = token("db_read", "secret", "ap-northeast-1", "900");
        assert_eq!(verify(&state(), &good, "db_read", now()), Ok(()));
        let late = now() + Duration::from_secs(841);
        assert_eq!(verify(&state(), &good, "db_read", late), Err("expired".into()));
    }

    #[test]
    fn everything_else_is_refused_with_its_reason() {
        let good = token("db_read", "secret", "ap-northeast-1", "900");
        let cases = [
            (good[..good.len() - 100].to_owned(), "db_read", "no X-Amz-SignedHeaders"),
            (good.replace("DBUser=db_read", "DBUser=db_admin"), "db_admin", "bad signature"),
            (good.clone(), "db_admin", "the token is for db_read"),
            (token("db_admin", "secret", "ap-northeast-1", "900"), "db_admin", "may not rds-db:connect"),
            (token("db_read", "other", "ap-northeast-1", "900"), "db_read", "bad signature"),
            (token("db_read", "secret", "eu-west-1", "900"), "db_read", "scope eu-west-1"),
            (token("db_read", "secret", "ap-northeast-1", "901"), "db_read", "above 900"),
            (good.replacen("orders", "other", 1), "db_read", "wrong endpoint"),
            (format!("{good}&Action=connect"), "db_read", "stands twice"),
            ("S3CRET".to_owned(), "db_read", "not a token"),
        ];
        for (token, user, reason) in cases {
            let refused = verify(&state(), &token, user, now()).unwrap_err();
            assert!(refused.contains(reason), "{refused} instead of {reason}");
        }
    }
}
