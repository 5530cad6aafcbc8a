//! The proof of identity that launcher and relay exchange at `/v1/authorize` (`docs/identity.md`).
//!
//! The launcher signs `sts:GetCallerIdentity` and hands over the values of three headers; everything else of the request
//! is fixed here, so that the relay writes it itself and nothing of the caller's choice reaches STS.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::types::Partition;

/// Signed header with the task that the proof is for.
pub(crate) const HEADER_TASK: &str = "x-bastion-task";
/// Signed header with the relay's nonce.
pub(crate) const HEADER_NONCE: &str = "x-bastion-nonce";
/// Body of the request to STS, and its signed type (STS API Reference, GetCallerIdentity).
pub(crate) const BODY: &str = "Action=GetCallerIdentity&Version=2011-06-15";
pub(crate) const CONTENT_TYPE: &str = "application/x-www-form-urlencoded; charset=utf-8";
/// Signed header that binds a login to one Vault (Vault documentation, AWS auth method, `iam_server_id_header_value`).
#[cfg(any(feature = "launcher", test))]
pub(crate) const HEADER_VAULT: &str = "x-vault-aws-iam-server-id";
/// How the relay's sentences about a caller begin who is not the one that the task is for.
#[cfg(any(feature = "launcher", test))]
pub(crate) const OTHER_OWNER: [&str; 2] = ["this task belongs to", "this task has no owner"];
/// And about one whose signature AWS does not take.
#[cfg(any(feature = "launcher", test))]
pub(crate) const STS_REFUSED: &str = "STS refused the signature";

/// The headers that the signature must cover, no more and no less, in the order of a canonical request.
#[cfg(any(feature = "relay", test))]
pub(crate) fn signed_headers(with_token: bool) -> &'static str {
    if with_token {
        "content-type;host;x-amz-date;x-amz-security-token;x-bastion-nonce;x-bastion-task"
    } else {
        "content-type;host;x-amz-date;x-bastion-nonce;x-bastion-task"
    }
}

/// The same for a login to Vault, which lets no other header of `x-amz-` through and knows none of ours.
#[cfg(any(feature = "relay", test))]
pub(crate) fn vault_signed_headers(with_token: bool) -> &'static str {
    if with_token {
        "content-type;host;x-amz-date;x-amz-security-token;x-vault-aws-iam-server-id"
    } else {
        "content-type;host;x-amz-date;x-vault-aws-iam-server-id"
    }
}

/// A Vault, as far as a signature is bound to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Audience {
    pub(crate) server_id: String,
    /// The STS that this Vault asks; the global endpoint if none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) sts_region: Option<String>,
}

impl Audience {
    /// What the signature is scoped to (AWS General Reference, "STS endpoints").
    #[cfg(any(feature = "relay", test))]
    pub(crate) fn region(&self) -> &str {
        self.sts_region.as_deref().unwrap_or("us-east-1")
    }

    /// The `Host` that Vault asks STS with.
    #[cfg(any(feature = "launcher", test))]
    pub(crate) fn sts_host(&self) -> String {
        sts_host(self.sts_region.as_deref())
    }
}

/// STS of a region, or its global endpoint.
pub(crate) fn sts_host(region: Option<&str>) -> String {
    match region {
        Some(region) => Partition::endpoint("sts", region),
        None => "sts.amazonaws.com".to_owned(),
    }
}

/// What the relay wants signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Challenge {
    /// Good for one proof.
    pub(crate) nonce: String,
    pub(crate) expires_in_seconds: u64,
    /// The task that the relay runs in.
    pub(crate) task: String,
    pub(crate) region: String,
    /// The `Host` that the relay asks STS with.
    pub(crate) sts_host: String,
    /// The Vaults that people log in to as themselves. `None`: the relay is older and knows no such logins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) vaults: Option<Vec<Audience>>,
}

/// What the launcher answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Claim {
    pub(crate) nonce: String,
    pub(crate) sts: Signed,
    /// Logins for Vaults of the challenge. A relay that has named none does not know the field.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) vaults: Vec<VaultLogin>,
}

/// The signed values of a request that one Vault takes for a login. Its session token is the one of the proof: both are
/// signed with the same keys.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct VaultLogin {
    pub(crate) server_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) sts_region: Option<String>,
    pub(crate) authorization: String,
    #[serde(rename = "x-amz-date")]
    pub(crate) x_amz_date: String,
}

#[cfg(any(feature = "relay", test))]
impl VaultLogin {
    pub(crate) fn audience(&self) -> Audience {
        Audience { server_id: self.server_id.clone(), sts_region: self.sts_region.clone() }
    }
}

impl fmt::Debug for VaultLogin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VaultLogin").field("server_id", &self.server_id).finish_non_exhaustive()
    }
}

/// The signed values of one request. Whoever has them can send it for as long as its date is good.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Signed {
    pub(crate) authorization: String,
    pub(crate) x_amz_date: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) x_amz_security_token: Option<String>,
}

impl fmt::Debug for Signed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signed").field("x_amz_date", &self.x_amz_date).finish_non_exhaustive()
    }
}

/// What a proven caller gets.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Granted {
    /// For `Authorization: Bearer …` of an upgrade.
    pub(crate) token: String,
    pub(crate) expires_in_seconds: u64,
    /// Who the relay knows the caller to be.
    pub(crate) arn: String,
    /// What clients show to come in, where the relay asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) local_password: Option<String>,
}

impl fmt::Debug for Granted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Granted").field("arn", &self.arn).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_has_no_room_for_anything_else() {
        let good = r#"{"nonce":"n","sts":{"authorization":"a","x-amz-date":"d","x-amz-security-token":"t"}}"#;
        let claim: Claim = serde_json::from_str(good).unwrap();
        assert_eq!(serde_json::to_string(&claim).unwrap(), good);
        let login = r#"{"server_id":"v","sts_region":"r","authorization":"a","x-amz-date":"d"}"#;
        let with_login = format!(r#"{},"vaults":[{login}]}}"#, good.strip_suffix('}').unwrap());
        let claim: Claim = serde_json::from_str(&with_login).unwrap();
        assert_eq!(serde_json::to_string(&claim).unwrap(), with_login);
        for bad in [
            with_login.replace(r#""server_id":"v","#, ""),
            with_login.replace(r#""server_id":"v""#, r#""server_id":"v","address":"https://evil.example.com""#),
            with_login.replace(r#""server_id":"v""#, r#""server_id":"v","x-amz-security-token":"t""#),
            with_login.replace(r#""vaults":["#, r#""vaults":[{},"#),
            with_login.replace(r#""vaults":["#, r#""vaults":[],"vaults":["#),
            good.replace(r#""nonce":"n","#, ""),
            good.replace(r#""nonce":"n""#, r#""nonce":"n","nonce":"m""#),
            good.replace(r#""authorization":"a""#, r#""authorization":"a","authorization":"b""#),
            good.replace(r#""authorization":"a""#, r#""authorization":["a"]"#),
            good.replace(r#""nonce":"n""#, r#""nonce":"n","host":"evil.example.com""#),
            good.replace(r#""authorization":"a""#, r#""authorization":"a","accept":"application/json""#),
        ] {
            assert!(serde_json::from_str::<Claim>(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn older_ends_see_nothing_of_logins_to_vault() {
        let old = r#"{"nonce":"n","expires_in_seconds":60,"task":"t","region":"r","sts_host":"h"}"#;
        let challenge: Challenge = serde_json::from_str(old).unwrap();
        assert_eq!(challenge.vaults, None);
        let none = serde_json::to_string(&Challenge { vaults: Some(Vec::new()), ..challenge }).unwrap();
        assert_eq!(none, old.replace('}', r#","vaults":[]}"#));
    }

    #[test]
    fn the_sts_of_a_vault_is_global_unless_it_is_told_otherwise() {
        let audience = |region: Option<&str>| Audience { server_id: "v".into(), sts_region: region.map(str::to_owned) };
        for (region, scope, host) in [
            (None, "us-east-1", "sts.amazonaws.com"),
            (Some("eu-west-1"), "eu-west-1", "sts.eu-west-1.amazonaws.com"),
            (Some("cn-north-1"), "cn-north-1", "sts.cn-north-1.amazonaws.com.cn"),
            (Some("eusc-de-east-1"), "eusc-de-east-1", "sts.eusc-de-east-1.amazonaws.eu"),
        ] {
            let audience = audience(region);
            assert_eq!((audience.region(), audience.sts_host().as_str()), (scope, host));
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        let signed = Signed {
            authorization: "S3CRET".into(),
            x_amz_date: "d".into(),
            x_amz_security_token: Some("S3CRET".into()),
        };
        let (token, local_password) = ("S3CRET".into(), Some("S3CRET".into()));
        let granted = Granted { token, expires_in_seconds: 1, arn: "a".into(), local_password };
        let authorization = "S3CRET".into();
        let login = VaultLogin { server_id: "v".into(), sts_region: None, authorization, x_amz_date: "d".into() };
        let claim = Claim { nonce: "n".into(), sts: signed, vaults: vec![login] };
        assert!(!format!("{claim:?} {granted:?}").contains("S3CRET"));
    }
}
