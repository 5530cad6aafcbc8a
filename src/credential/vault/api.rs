//! The few calls of Vault's HTTP API that a login needs, on the crate vaultrs. It drops the lease of an answer, so the
//! calls that have one are spelled out here.

use std::time::Duration;

use rustify::endpoint::Endpoint;
use rustify::enums::{RequestMethod, RequestType, ResponseType};
use rustify::errors::ClientError as RestError;
use rustls::{CertificateError, ClientConfig};
use secrecy::SecretString;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::{Value, json};
use vaultrs::api::{EndpointMiddleware, EndpointResult};
use vaultrs::client::{Client as _, VaultClient, VaultClientSettings};
use vaultrs::error::ClientError;
use zeroize::{Zeroize as _, Zeroizing};

use crate::credential::vault::VaultError;
use crate::credential::vault::sign::SignedIdentity;
use crate::types::{VaultAs, VaultConfig};

/// For one call. Making a database user may take seconds.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A Vault that is not logged in to.
pub(super) struct Api {
    http: reqwest::Client,
    config: VaultConfig,
}

/// A token of Vault; wiped when dropped.
pub(super) struct Session {
    client: VaultClient,
    /// Zero: it does not end.
    pub(super) token_lifetime: Duration,
    pub(super) token_renewable: bool,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.client.middle.token.zeroize();
    }
}

/// A database user and its lease.
pub(super) struct Issued {
    pub(super) user: String,
    pub(super) password: SecretString,
    pub(super) lease_id: String,
    pub(super) lifetime: Duration,
    pub(super) renewable: bool,
}

#[derive(Deserialize)]
struct Creds {
    username: String,
    password: SecretString,
}

impl Api {
    /// # Errors
    /// If the HTTP client cannot be made.
    pub(super) fn new(config: VaultConfig, tls: &ClientConfig) -> Result<Self, String> {
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls.clone())
            .timeout(CALL_TIMEOUT)
            .connect_timeout(CONNECT_TIMEOUT)
            // A redirect or a proxy of the environment would take the token to an address that nobody has configured.
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()
            .map_err(|error| error.to_string())?;
        Ok(Self { http, config })
    }

    /// A client with this token. Built field by field: vaultrs's own constructor reads VAULT_SKIP_VERIFY and others.
    fn client(&self, token: String) -> Result<VaultClient, VaultError> {
        let address = reqwest::Url::parse(&self.config.address).map_err(|_| VaultError::Answer)?;
        let namespace = self.config.namespace.clone();
        Ok(VaultClient {
            http: rustify::clients::reqwest::Client::new(&self.config.address, self.http.clone()),
            middle: EndpointMiddleware { token, version: "v1".to_owned(), wrap: None, namespace: namespace.clone() },
            settings: VaultClientSettings {
                address,
                ca_certs: Vec::new(),
                identity: None,
                timeout: Some(CALL_TIMEOUT),
                token: String::new(),
                verify: true,
                version: 1,
                wrapping: false,
                namespace,
                proxy: None,
            },
        })
    }

    /// `auth/<mount>/login` with a signed request (Vault API documentation, AWS auth method).
    pub(super) async fn log_in(&self, identity: &SignedIdentity) -> Result<Session, VaultError> {
        let client = self.client(String::new())?;
        let VaultConfig { mount, role, login: who, .. } = &self.config;
        let SignedIdentity { url, headers, body } = identity;
        let login = vaultrs::auth::aws::iam_login(&client, mount, "POST", url, headers, body, role.as_deref());
        let name = role.as_deref().unwrap_or("named as your role or user of IAM");
        let auth = login.await.map_err(|error| login_failed(failed(&error), name, *who))?;
        Ok(Session {
            client: self.client(auth.client_token)?,
            token_lifetime: Duration::from_secs(auth.lease_duration),
            token_renewable: auth.renewable,
        })
    }
}

impl Session {
    /// A new database user at `path`.
    pub(super) async fn issue(&self, path: &str) -> Result<Issued, VaultError> {
        let issued: EndpointResult<Creds> =
            self.call(RequestMethod::GET, path, None).await.map_err(|error| issue_failed(error, path))?;
        let Creds { username, password } = issued.data.ok_or(VaultError::Answer)?;
        Ok(Issued {
            user: username,
            password,
            lease_id: issued.lease_id,
            lifetime: Duration::from_secs(issued.lease_duration.into()),
            // When the token ends, Vault revokes all that was made with it.
            renewable: issued.renewable && (self.token_renewable || self.token_lifetime.is_zero()),
        })
    }

    /// How long lease and token live from now on.
    pub(super) async fn renew(&self, lease_id: &str, wanted: Duration) -> Result<Duration, VaultError> {
        let body = json!({"lease_id": lease_id, "increment": wanted.as_secs()});
        let renewed: Result<EndpointResult<IgnoredAny>, _> =
            self.call(RequestMethod::PUT, "sys/leases/renew", Some(body)).await;
        let renewed = renewed.map_err(renewal_failed)?;
        let lease = Duration::from_secs(renewed.lease_duration.into());
        if self.token_lifetime.is_zero() {
            return Ok(lease);
        }
        let token = self.client.renew(None).await.map_err(|error| renewal_failed(failed(&error)))?;
        Ok(lease.min(Duration::from_secs(token.lease_duration)))
    }

    /// Ends a token with which nothing was made. If that fails it ends with its time.
    pub(super) async fn end(self) {
        let _best_effort = self.client.revoke().await;
    }

    /// Ends the token, and with it the lease; a token that cannot be ended leaves it to the lease.
    pub(super) async fn revoke(&self, lease_id: &str) -> Result<(), VaultError> {
        match self.client.revoke().await {
            Ok(()) => Ok(()),
            Err(_) => {
                let body = json!({"lease_id": lease_id});
                self.send(RequestMethod::PUT, "sys/leases/revoke", Some(body)).await.map(drop).map_err(renewal_failed)
            }
        }
    }

    async fn call<T>(
        &self,
        method: RequestMethod,
        path: &str,
        body: Option<Value>,
    ) -> Result<EndpointResult<T>, Failure>
    where
        T: DeserializeOwned + Send + Sync,
    {
        let answer = Zeroizing::new(self.send(method, path, body).await?);
        // The error of serde_json may quote what it has read.
        serde_json::from_slice(&answer).map_err(|_| Failure::Known(VaultError::Answer))
    }

    async fn send(&self, method: RequestMethod, path: &str, body: Option<Value>) -> Result<Vec<u8>, Failure> {
        let call = Call { method, path: path.to_owned(), body };
        let answer = call.with_middleware(self.client.middle()).exec(self.client.http()).await;
        answer.map(|answer| answer.response.into_body()).map_err(|error| rest_failed(&error))
    }
}

/// One call; what it sends may be secret, so it has no `Debug`.
struct Call {
    method: RequestMethod,
    path: String,
    body: Option<Value>,
}

impl Endpoint for Call {
    type Response = IgnoredAny;
    const REQUEST_BODY_TYPE: RequestType = RequestType::JSON;
    const RESPONSE_BODY_TYPE: ResponseType = ResponseType::JSON;

    fn path(&self) -> String {
        self.path.clone()
    }

    fn method(&self) -> RequestMethod {
        self.method.clone()
    }

    fn body(&self) -> Result<Option<Vec<u8>>, RestError> {
        Ok(self.body.as_ref().map(|body| body.to_string().into_bytes()))
    }
}

/// A failed call, before it is known what was wanted. Vault's words end here: they are sorted and not shown, for they may
/// quote anything.
enum Failure {
    Known(VaultError),
    Refused { status: u16, said: String },
}

impl From<Failure> for VaultError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Known(error) => error,
            Failure::Refused { status, .. } => Self::Refused(status),
        }
    }
}

fn login_failed(failure: Failure, role: &str, who: VaultAs) -> VaultError {
    match failure {
        Failure::Known(VaultError::Denied) => VaultError::LoginDenied(role.to_owned()),
        Failure::Refused { said, .. } if said.contains("entry for role") && said.contains("not found") => {
            VaultError::NoLoginRole(role.to_owned())
        }
        Failure::Refused { said, .. } if said.contains("does not belong to the role") => match who {
            VaultAs::Caller => VaultError::OtherCaller(role.to_owned()),
            VaultAs::Task => VaultError::OtherPrincipal(role.to_owned()),
        },
        Failure::Refused { said, .. } if said.contains("X-Vault-AWS-IAM-Server-ID") => VaultError::ServerId,
        Failure::Refused { said, .. } if said.contains("STS") => VaultError::Sts,
        Failure::Refused { status: 404, .. } => VaultError::NoMount,
        other => other.into(),
    }
}

fn issue_failed(failure: Failure, path: &str) -> VaultError {
    match failure {
        Failure::Known(VaultError::Denied) => VaultError::CredsDenied(path.to_owned()),
        Failure::Refused { said, .. } if said.contains("unknown role") => VaultError::NoCredsRole(path.to_owned()),
        Failure::Refused { status: 404, .. } => VaultError::NoCredsRole(path.to_owned()),
        Failure::Refused { status: 500, .. } => VaultError::Database,
        other => other.into(),
    }
}

fn renewal_failed(failure: Failure) -> VaultError {
    match failure {
        Failure::Refused { status: 400 | 404, said }
            if said.contains("lease not found") || said.contains("invalid lease") =>
        {
            VaultError::NoLease
        }
        other => other.into(),
    }
}

fn failed(error: &ClientError) -> Failure {
    match error {
        ClientError::APIError { code, errors } => refused(*code, errors.join("; ")),
        ClientError::RestClientError { source } => rest_failed(source),
        _ => Failure::Known(VaultError::Answer),
    }
}

fn rest_failed(error: &RestError) -> Failure {
    match error {
        RestError::ServerResponseError { code, content } => refused(*code, content.clone().unwrap_or_default()),
        RestError::RequestError { source, .. } | RestError::ResponseError { source } => {
            let cause = || source.chain().last().map(ToString::to_string).unwrap_or_default();
            let untrusted = source.chain().find_map(untrusted);
            Failure::Known(untrusted.unwrap_or_else(|| VaultError::Unreachable(cause())))
        }
        _ => Failure::Known(VaultError::Answer),
    }
}

/// What is wrong with a certificate, if that is the cause.
fn untrusted(cause: &(dyn std::error::Error + 'static)) -> Option<VaultError> {
    if let Some(error) = cause.downcast_ref::<std::io::Error>() {
        // What it wraps is not its source.
        return untrusted(error.get_ref()?);
    }
    match cause.downcast_ref()? {
        rustls::Error::InvalidCertificate(reason) => match reason {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Some(VaultError::CertificateExpired),
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                Some(VaultError::CertificateName)
            }
            CertificateError::UnknownIssuer => Some(VaultError::CertificateIssuer),
            _ => None,
        },
        _ => None,
    }
}

/// By status (Vault API documentation, "HTTP status codes").
fn refused(status: u16, said: String) -> Failure {
    let known = match status {
        403 => VaultError::Denied,
        429 => VaultError::Throttled,
        307 | 308 | 472 | 473 => VaultError::Standby,
        500 if said.contains("active cluster node not found") => VaultError::NoActive,
        503 if said.contains("sealed") => VaultError::Sealed,
        502..=504 => VaultError::Unavailable(status),
        _ => return Failure::Refused { status, said },
    };
    Failure::Known(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(status: u16, said: &str) -> Failure {
        refused(status, format!("{{\"errors\":[\"{said} S3CRET\"]}}"))
    }

    #[test]
    fn what_vault_says_is_sorted_and_never_shown() {
        let path = || "database/creds/read".to_owned();
        for (error, expected) in [
            (issue_failed(refusal(403, "permission denied"), "database/creds/read"), VaultError::CredsDenied(path())),
            (issue_failed(refusal(400, "unknown role: read"), "database/creds/read"), VaultError::NoCredsRole(path())),
            (issue_failed(refusal(500, "failed to create user"), "x"), VaultError::Database),
            (issue_failed(refusal(503, "Vault is sealed"), "x"), VaultError::Sealed),
            (issue_failed(refusal(503, "no healthy upstream"), "x"), VaultError::Unavailable(503)),
            (issue_failed(refusal(307, ""), "x"), VaultError::Standby),
            (
                issue_failed(refusal(500, "local node not active but active cluster node not found"), "x"),
                VaultError::NoActive,
            ),
            (
                login_failed(refusal(403, "permission denied"), "r", VaultAs::Task),
                VaultError::LoginDenied("r".to_owned()),
            ),
            (login_failed(refusal(429, "rate limit quota exceeded"), "r", VaultAs::Task), VaultError::Throttled),
            (login_failed(refusal(418, "another"), "r", VaultAs::Task), VaultError::Refused(418)),
            (
                login_failed(refusal(400, "IAM Principal does not belong to the role"), "r", VaultAs::Caller),
                VaultError::OtherCaller("r".to_owned()),
            ),
            (renewal_failed(refusal(400, "lease not found")), VaultError::NoLease),
            (renewal_failed(refusal(400, "invalid lease")), VaultError::NoLease),
        ] {
            assert_eq!(error, expected);
            assert!(!format!("{error} {error:?}").contains("S3CRET"));
        }
    }
}
