//! The signed `sts:GetCallerIdentity` with which Vault's AWS auth method knows the task role (Vault documentation, "AWS auth
//! method", IAM authentication inferences and `iam_request_headers`). It is only signed here; Vault sends it.

use std::time::SystemTime;

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value};

use crate::credential::MintError;
use crate::types::VaultConfig;

const BODY: &str = "Action=GetCallerIdentity&Version=2011-06-15";
const CONTENT_TYPE: &str = "application/x-www-form-urlencoded; charset=utf-8";
const SERVER_ID: &str = "X-Vault-AWS-IAM-Server-ID";

/// Base64, as the login call takes it.
pub(super) struct SignedIdentity {
    pub(super) url: String,
    pub(super) headers: String,
    pub(super) body: String,
}

/// # Errors
/// [`MintError::Sign`].
pub(super) fn identity(role: &Credentials, config: &VaultConfig, now: SystemTime) -> Result<SignedIdentity, MintError> {
    let failed = |error: &dyn std::fmt::Display| MintError::Sign(error.to_string());
    let (region, host) = match &config.sts_region {
        Some(region) if region.starts_with("cn-") => (region.as_str(), format!("sts.{region}.amazonaws.com.cn")),
        Some(region) => (region.as_str(), format!("sts.{region}.amazonaws.com")),
        // What Vault asks unless it is told otherwise.
        None => ("us-east-1", "sts.amazonaws.com".to_owned()),
    };
    let url = format!("https://{host}/");
    let mut headers = vec![("Content-Type", CONTENT_TYPE), ("Host", host.as_str())];
    headers.extend(config.server_id.as_deref().map(|id| (SERVER_ID, id)));
    let identity = role.clone().into();
    let parameters = v4::SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name("sts")
        .time(now)
        .settings(SigningSettings::default())
        .build()
        .map_err(|error| failed(&error))?
        .into();
    let request = SignableRequest::new("POST", &url, headers.iter().copied(), SignableBody::Bytes(BODY.as_bytes()))
        .map_err(|error| failed(&error))?;
    let (instructions, _signature) = sign(request, &parameters).map_err(|error| failed(&error))?.into_parts();
    let all: Map<String, Value> = headers
        .into_iter()
        .chain(instructions.headers())
        .map(|(name, value)| (name.to_owned(), value.into()))
        .collect();
    let text = Value::Object(all).to_string();
    Ok(SignedIdentity { url: BASE64.encode(url), headers: BASE64.encode(text), body: BASE64.encode(BODY) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_id_is_signed_and_the_secret_key_is_not_in_it() {
        let role = Credentials::new("AKIDEXAMPLE", "S3CRET-key", Some("session".to_owned()), None, "test");
        let config = VaultConfig {
            address: "https://vault.example.com".to_owned(),
            mount: "aws".to_owned(),
            role: "r".to_owned(),
            creds: "database/creds/r".to_owned(),
            namespace: None,
            ca_file: None,
            server_id: Some("vault.example.com".to_owned()),
            sts_region: Some("eu-west-1".to_owned()),
        };
        let signed = identity(&role, &config, SystemTime::UNIX_EPOCH).unwrap();
        let text = String::from_utf8(BASE64.decode(&signed.headers).unwrap()).unwrap();
        let headers: Map<String, Value> = serde_json::from_str(&text).unwrap();
        assert_eq!(headers["Host"], "sts.eu-west-1.amazonaws.com");
        assert_eq!(headers[SERVER_ID], "vault.example.com");
        assert_eq!(headers["x-amz-security-token"], "session");
        let authorization = headers["authorization"].as_str().unwrap();
        assert!(
            authorization
                .contains("SignedHeaders=content-type;host;x-amz-date;x-amz-security-token;x-vault-aws-iam-server-id"),
            "{authorization}"
        );
        assert!(!text.contains("S3CRET"));
        assert_eq!(BASE64.decode(&signed.url).unwrap(), b"https://sts.eu-west-1.amazonaws.com/");
    }
}
