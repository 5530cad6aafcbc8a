//! RDS IAM tokens: a presigned `connect` request for the real endpoint, signed with the task role.
//!
//! Form of the token: Amazon RDS User Guide, "Connecting to your DB instance using IAM authentication", and the
//! signature: AWS General Reference, "Signature Version 4", query string form. It is valid for 15 minutes, and never
//! longer than the role credentials that signed it.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SignatureLocation, SigningSettings, sign};
use aws_sigv4::sign::v4;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::credential::{Credential, Kind, MintError, Reuse, TaskRole};
use crate::types::{Address, Endpoint};

/// "The token is valid for 15 minutes" (RDS User Guide); a longer `X-Amz-Expires` is refused.
const TOKEN_LIFETIME: Duration = Duration::from_secs(900);
/// RFC 3986 unreserved characters stay, as SigV4 wants it.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Mints tokens for one database user at one endpoint.
pub(crate) struct RdsIam {
    pub(crate) role: Arc<TaskRole>,
    pub(crate) region: String,
    pub(crate) endpoint: Endpoint,
    pub(crate) user: String,
}

impl fmt::Debug for RdsIam {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RdsIam({}@{} in {})", self.user, self.endpoint, self.region)
    }
}

impl RdsIam {
    pub(super) async fn mint(&self, now: SystemTime) -> Result<Credential, MintError> {
        // The configuration has to name both for this source.
        let Endpoint::Fixed(address) = &self.endpoint else {
            return Err(MintError::Sign("the configuration names no host and port".to_owned()));
        };
        let role = self.role.credentials().await?;
        let token = token(&role, &self.region, address, &self.user, now)?;
        let expires_at = role.expiry().map_or(now + TOKEN_LIFETIME, |expiry| expiry.min(now + TOKEN_LIFETIME));
        Ok(Credential::new(self.user.clone(), token.into(), Kind::Token, Reuse::UntilExpiry(expires_at)))
    }
}

/// The token: the presigned URL without its scheme.
fn token(
    role: &Credentials,
    region: &str,
    address: &Address,
    user: &str,
    now: SystemTime,
) -> Result<String, MintError> {
    let escape = |text: &str| utf8_percent_encode(text, ESCAPED).to_string();
    let failed = |error: &dyn fmt::Display| MintError::Sign(error.to_string());
    let mut settings = SigningSettings::default();
    settings.signature_location = SignatureLocation::QueryParams;
    settings.expires_in = Some(TOKEN_LIFETIME);
    let identity = role.clone().into();
    let parameters = v4::SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name("rds-db")
        .time(now)
        .settings(settings)
        .build()
        .map_err(|error| failed(&error))?
        .into();
    let address = format!("{address}/?Action=connect&DBUser={}", escape(user));
    let url = format!("https://{address}");
    let request =
        SignableRequest::new("GET", &url, std::iter::empty(), SignableBody::empty()).map_err(|error| failed(&error))?;
    let (instructions, _signature) = sign(request, &parameters).map_err(|error| failed(&error))?.into_parts();
    let signed = instructions.params().iter().map(|(name, value)| format!("&{}={}", escape(name), escape(value)));
    Ok(std::iter::once(address).chain(signed).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role(session: Option<&str>) -> Credentials {
        Credentials::new(
            "AKIDEXAMPLE",
            "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",
            session.map(str::to_owned),
            None,
            "test",
        )
    }

    /// The expected value was made with botocore's `generate_db_auth_token` at the same time.
    #[test]
    fn the_token_is_the_one_that_botocore_makes() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_440_938_160);
        let host = "orders.cluster-abc123.ap-northeast-1.rds.amazonaws.com".to_owned();
        let address = Address { host, port: 5432 };
        let token = token(&role(None), "ap-northeast-1", &address, "db_read", now).unwrap();
        assert_eq!(token, EXPECTED);
    }

    const EXPECTED: &str = "orders.cluster-abc123.ap-northeast-1.rds.amazonaws.com:5432/?Action=connect&DBUser=db_read&X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIDEXAMPLE%2F20150830%2Fap-northeast-1%2Frds-db%2Faws4_request&X-Amz-Date=20150830T123600Z&X-Amz-Expires=900&X-Amz-SignedHeaders=host&X-Amz-Signature=05790bac71ddede4e0da6aa05d959029443a0ec2f0c86058bf6ff8dc03598fcf";

    #[test]
    fn a_user_with_odd_characters_and_port_443_keep_their_form() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_440_938_160);
        let address = Address { host: "db.example.com".to_owned(), port: 443 };
        let token = token(&role(Some("sess/ion+token==")), "us-east-1", &address, "jane doe+x", now).unwrap();
        assert!(token.starts_with("db.example.com:443/?Action=connect&DBUser=jane%20doe%2Bx&"), "{token}");
        assert!(token.contains("X-Amz-Security-Token=sess%2Fion%2Btoken%3D%3D"), "{token}");
    }

    #[test]
    fn debug_names_the_user_and_no_key() {
        let source = RdsIam {
            role: Arc::new(TaskRole::from_container()),
            region: "r".into(),
            endpoint: Endpoint::Fixed(Address { host: "h".into(), port: 1 }),
            user: "u".into(),
        };
        assert_eq!(format!("{source:?}"), "RdsIam(u@h:1 in r)");
    }
}
