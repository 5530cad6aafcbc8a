//! The proof of identity that launcher and relay exchange at `/v1/authorize` (`docs/identity.md`).
//!
//! The launcher signs `sts:GetCallerIdentity` and hands over the values of three headers; everything else of the request
//! is fixed here, so that the relay writes it itself and nothing of the caller's choice reaches STS.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Where both sides meet.
pub const PATH: &str = "/v1/authorize";
/// Signed header with the task that the proof is for.
pub const HEADER_TASK: &str = "x-bastion-task";
/// Signed header with the relay's nonce.
pub const HEADER_NONCE: &str = "x-bastion-nonce";
/// Body of the request to STS, and its signed type (STS API Reference, GetCallerIdentity).
pub const BODY: &str = "Action=GetCallerIdentity&Version=2011-06-15";
pub const CONTENT_TYPE: &str = "application/x-www-form-urlencoded; charset=utf-8";

/// The headers that the signature must cover, no more and no less, in the order of a canonical request.
pub fn signed_headers(with_token: bool) -> &'static str {
    if with_token {
        "content-type;host;x-amz-date;x-amz-security-token;x-bastion-nonce;x-bastion-task"
    } else {
        "content-type;host;x-amz-date;x-bastion-nonce;x-bastion-task"
    }
}

/// What the relay wants signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Challenge {
    /// Good for one proof.
    pub nonce: String,
    pub expires_in_seconds: u64,
    /// The task that the relay runs in.
    pub task: String,
    pub region: String,
    /// The `Host` that the relay asks STS with.
    pub sts_host: String,
}

/// What the launcher answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    pub nonce: String,
    pub sts: Signed,
}

/// The signed values of one request. Whoever has them can send it for as long as its date is good.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Signed {
    pub authorization: String,
    pub x_amz_date: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x_amz_security_token: Option<String>,
}

impl fmt::Debug for Signed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signed").field("x_amz_date", &self.x_amz_date).finish_non_exhaustive()
    }
}

/// What a proven caller gets.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Granted {
    /// For `Authorization: Bearer …` of an upgrade.
    pub token: String,
    pub expires_in_seconds: u64,
    /// Who the relay knows the caller to be.
    pub arn: String,
    /// What clients show to come in, where the relay asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_password: Option<String>,
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
        for bad in [
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
    fn debug_shows_no_secret() {
        let signed = Signed {
            authorization: "S3CRET".into(),
            x_amz_date: "d".into(),
            x_amz_security_token: Some("S3CRET".into()),
        };
        let (token, local_password) = ("S3CRET".into(), Some("S3CRET".into()));
        let granted = Granted { token, expires_in_seconds: 1, arn: "a".into(), local_password };
        let claim = Claim { nonce: "n".into(), sts: signed };
        assert!(!format!("{claim:?} {granted:?}").contains("S3CRET"));
    }
}
