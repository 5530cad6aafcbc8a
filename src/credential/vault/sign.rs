//! The signed `sts:GetCallerIdentity` with which Vault's AWS auth method knows the task role or the caller (Vault
//! documentation, "AWS auth method", IAM authentication inferences and `iam_request_headers`). Vault sends it.

use std::time::SystemTime;

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use secrecy::ExposeSecret as _;
use serde_json::{Map, Value};

use crate::api::authorize::{BODY, CONTENT_TYPE, sts_host};
use crate::credential::MintError;
use crate::credential::vault::caller::SignedLogin;
use crate::types::VaultConfig;

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
    // What Vault asks unless it is told otherwise.
    let region = config.sts_region.as_deref().unwrap_or("us-east-1");
    let host = sts_host(config.sts_region.as_deref());
    let url = format!("https://{host}/");
    let headers = fixed(config, &host);
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
    Ok(encode(&url, headers.into_iter().chain(instructions.headers())))
}

/// The request that a person has signed. Only the signed values are theirs; the rest is written here.
pub(super) fn handed_in(signed: &SignedLogin, config: &VaultConfig) -> SignedIdentity {
    let host = sts_host(config.sts_region.as_deref());
    let mut headers = fixed(config, &host);
    headers.push(("X-Amz-Date", &signed.date));
    headers.push(("Authorization", signed.authorization.expose_secret()));
    headers.extend(signed.token.as_ref().map(|token| ("X-Amz-Security-Token", token.expose_secret())));
    encode(&format!("https://{host}/"), headers.into_iter())
}

/// The headers that the configuration decides.
fn fixed<'c>(config: &'c VaultConfig, host: &'c str) -> Vec<(&'static str, &'c str)> {
    let mut headers = vec![("Content-Type", CONTENT_TYPE), ("Host", host)];
    headers.extend(config.server_id.as_deref().map(|id| (SERVER_ID, id)));
    headers
}

fn encode<'a>(url: &str, headers: impl Iterator<Item = (&'a str, &'a str)>) -> SignedIdentity {
    let all: Map<String, Value> = headers.map(|(name, value)| (name.to_owned(), value.into())).collect();
    let text = Value::Object(all).to_string();
    SignedIdentity { url: BASE64.encode(url), headers: BASE64.encode(text), body: BASE64.encode(BODY) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::types::VaultAs;

    #[test]
    fn the_server_id_is_signed_and_the_secret_key_is_not_in_it() {
        let role = Credentials::new("AKIDEXAMPLE", "S3CRET-key", Some("session".to_owned()), None, "test");
        let config = VaultConfig {
            address: "https://vault.example.com".to_owned(),
            login: VaultAs::Task,
            mount: "aws".to_owned(),
            role: Some("r".to_owned()),
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
        // A person's own signature over the same request makes the same login.
        let value = |name: &str| headers[name].as_str().unwrap().to_owned();
        let token = Some(value("x-amz-security-token").into());
        let theirs = SignedLogin::new(value("authorization").into(), value("x-amz-date"), token, Duration::ZERO);
        let handed = handed_in(&theirs, &config);
        let lower = |text: &str| -> Map<String, Value> {
            let all: Map<String, Value> = serde_json::from_slice(&BASE64.decode(text).unwrap()).unwrap();
            all.into_iter().map(|(name, value)| (name.to_lowercase(), value)).collect()
        };
        assert_eq!(lower(&handed.headers), lower(&signed.headers));
        assert_eq!((handed.url, handed.body), (signed.url, signed.body));
    }
}
