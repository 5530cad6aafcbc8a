//! The few calls of Vault's HTTP API that a login needs, on the crate vaultrs. Where it drops the lease of an answer, the call is
//! spelled out here. Its own HTTP client reads answers however long they are, so it gets one that does not.

use std::pin::Pin;
use std::time::Duration;

use bastion_wire::memory::{ANSWER, TooLong};
use reqwest::header::HeaderValue;
use rustify::client::Client as RestClient;
use rustify::endpoint::Endpoint;
use rustify::enums::{RequestMethod, RequestType, ResponseType};
use rustify::errors::ClientError as RestError;
use rustls::{CertificateError, ClientConfig};
use secrecy::SecretString;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::{Value, json};
use vaultrs::api::auth::aws::requests::IamLoginRequest;
use vaultrs::api::token::requests::{RenewTokenSelfRequest, RevokeTokenSelfRequest};
use vaultrs::api::{AuthInfo, EndpointMiddleware, EndpointResult};
use zeroize::{Zeroize as _, Zeroizing};

use crate::credential::vault::VaultError;
use crate::credential::vault::sign::SignedIdentity;
use crate::types::{VaultAs, VaultConfig};

/// For one call. Making a database user may take seconds.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A Vault that is not logged in to.
pub(super) struct Api {
    http: Http,
    config: VaultConfig,
}

/// A token of Vault; wiped when dropped.
pub(super) struct Session {
    http: Http,
    middle: EndpointMiddleware,
    /// Zero: it does not end.
    pub(super) token_lifetime: Duration,
    pub(super) token_renewable: bool,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.middle.token.zeroize();
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
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls.clone())
            .timeout(CALL_TIMEOUT)
            .connect_timeout(CONNECT_TIMEOUT)
            // A redirect or a proxy of the environment would take the token to an address that nobody has configured.
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()
            .map_err(|error| error.to_string())?;
        Ok(Self { http: Http { client, base: config.address.clone() }, config })
    }

    fn middle(&self, token: String) -> EndpointMiddleware {
        EndpointMiddleware { token, version: "v1".to_owned(), wrap: None, namespace: self.config.namespace.clone() }
    }

    /// `auth/<mount>/login` with a signed request (Vault API documentation, AWS auth method).
    pub(super) async fn log_in(&self, identity: &SignedIdentity) -> Result<Session, VaultError> {
        let VaultConfig { mount, role, login: who, .. } = &self.config;
        let SignedIdentity { url, headers, body } = identity;
        let login = IamLoginRequest {
            mount: mount.clone(),
            role: role.clone(),
            iam_http_request_method: "POST".to_owned(),
            iam_request_url: url.clone(),
            iam_request_body: body.clone(),
            iam_request_headers: headers.clone(),
        };
        let name = role.as_deref().unwrap_or("named as your role or user of IAM");
        let answer = self.http.call(login, &self.middle(String::new())).await;
        let auth = answer.and_then(|answer| auth(&answer)).map_err(|error| login_failed(error, name, *who))?;
        if HeaderValue::from_str(&auth.client_token).is_err() {
            // It becomes a header, where the crate panics.
            return Err(VaultError::Answer);
        }
        Ok(Session {
            http: self.http.clone(),
            middle: self.middle(auth.client_token),
            token_lifetime: Duration::from_secs(auth.lease_duration),
            token_renewable: auth.renewable,
        })
    }
}

impl Session {
    /// A new database user at `path`.
    pub(super) async fn issue(&self, path: &str) -> Result<Issued, VaultError> {
        let issued = self.call(Call { method: RequestMethod::GET, path: path.to_owned(), body: None }).await;
        let issued = issued.and_then(|answer| parse(&answer)).map_err(|error| issue_failed(error, path))?;
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
        let renewed = self.call(Call::lease("renew", body)).await.and_then(|answer| parse::<IgnoredAny>(&answer));
        let lease = Duration::from_secs(renewed.map_err(renewal_failed)?.lease_duration.into());
        if self.token_lifetime.is_zero() {
            return Ok(lease);
        }
        let token = self.call(RenewTokenSelfRequest { increment: None }).await.and_then(|answer| auth(&answer));
        Ok(lease.min(Duration::from_secs(token.map_err(renewal_failed)?.lease_duration)))
    }

    /// Ends a token with which nothing was made. If that fails it ends with its time.
    pub(super) async fn end(self) {
        let _best_effort = self.call(RevokeTokenSelfRequest {}).await;
    }

    /// Ends the token, and with it the lease; a token that cannot be ended leaves it to the lease.
    pub(super) async fn revoke(&self, lease_id: &str) -> Result<(), VaultError> {
        match self.call(RevokeTokenSelfRequest {}).await {
            Ok(_) => Ok(()),
            Err(_) => {
                let revoke = Call::lease("revoke", json!({"lease_id": lease_id}));
                self.call(revoke).await.map(drop).map_err(renewal_failed)
            }
        }
    }

    async fn call<E: Endpoint>(&self, call: E) -> Result<Zeroizing<Vec<u8>>, Failure> {
        self.http.call(call, &self.middle).await
    }
}

/// What an answer says of itself, and what it holds (Vault API documentation, "API operations").
fn parse<T: DeserializeOwned>(answer: &[u8]) -> Result<EndpointResult<T>, Failure> {
    // The error of serde_json may quote what it has read.
    serde_json::from_slice(answer).map_err(|_| Failure::Known(VaultError::Answer))
}

fn auth(answer: &[u8]) -> Result<AuthInfo, Failure> {
    parse::<IgnoredAny>(answer)?.auth.ok_or(Failure::Known(VaultError::Answer))
}

/// One call; what it sends may be secret, so it has no `Debug`.
struct Call {
    method: RequestMethod,
    path: String,
    body: Option<Value>,
}

impl Call {
    fn lease(verb: &str, body: Value) -> Self {
        Self { method: RequestMethod::PUT, path: format!("sys/leases/{verb}"), body: Some(body) }
    }
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

/// An HTTP client that reads no answer that is longer than it may be. Cheap to clone.
#[derive(Clone)]
struct Http {
    client: reqwest::Client,
    base: String,
}

impl Http {
    async fn call<E: Endpoint>(&self, call: E, middle: &EndpointMiddleware) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let answer = call.with_middleware(middle).exec(self).await.map_err(failed)?;
        Ok(Zeroizing::new(answer.response.into_body()))
    }

    async fn whole(&self, request: http::Request<Vec<u8>>) -> Result<http::Response<Vec<u8>>, RestError> {
        let (url, method) = (request.uri().to_string(), request.method().to_string());
        let mut request =
            reqwest::Request::try_from(request).map_err(|source| RestError::ReqwestBuildError { source })?;
        request.headers_mut().values_mut().for_each(|value| value.set_sensitive(true));
        let answer = self.client.execute(request).await;
        let mut answer = answer.map_err(|error| RestError::RequestError { source: error.into(), url, method })?;
        let mut whole = http::Response::new(Vec::with_capacity(ANSWER));
        *whole.status_mut() = answer.status();
        let cut = |error: reqwest::Error| RestError::ResponseError { source: error.into() };
        while let Some(chunk) = answer.chunk().await.map_err(cut)? {
            if whole.body().len() + chunk.len() > ANSWER {
                whole.body_mut().zeroize();
                return Err(RestError::ResponseError { source: TooLong.into() });
            }
            whole.body_mut().extend_from_slice(&chunk);
        }
        Ok(whole)
    }
}

/// As the trait's `async fn` is written out (crate async-trait).
impl RestClient for Http {
    fn send<'a, 'f>(
        &'a self,
        request: http::Request<Vec<u8>>,
    ) -> Pin<Box<dyn Future<Output = Result<http::Response<Vec<u8>>, RestError>> + Send + 'f>>
    where
        'a: 'f,
        Self: 'f,
    {
        Box::pin(self.whole(request))
    }

    fn base(&self) -> &str {
        &self.base
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

fn failed(error: RestError) -> Failure {
    match error {
        RestError::ServerResponseError { code, content } => refused(code, content.unwrap_or_default()),
        RestError::RequestError { source, .. } | RestError::ResponseError { source } => {
            Failure::Known(source.downcast_ref().copied().map_or_else(
                || {
                    // The error itself would name the address; its innermost cause says why.
                    let cause = || source.chain().last().map(ToString::to_string).unwrap_or_default();
                    source.chain().find_map(untrusted).unwrap_or_else(|| VaultError::Unreachable(cause()))
                },
                VaultError::TooLong,
            ))
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
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// A Vault that says `head` and then goes on for ever, as long as somebody reads.
    async fn endless(head: &str) -> (VaultError, usize) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let config = VaultConfig {
            address: format!("http://{}/", listener.local_addr().unwrap()),
            login: VaultAs::Task,
            mount: "aws".to_owned(),
            role: None,
            creds: "database/creds/read".to_owned(),
            namespace: None,
            ca_file: None,
            server_id: None,
            sts_region: None,
        };
        let tls = crate::tls::upstream(&crate::types::ExtraCa::default()).unwrap();
        let api = Api::new(config, &tls).unwrap();
        let identity = SignedIdentity { url: String::new(), headers: String::new(), body: String::new() };
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            assert!(stream.read(&mut [0; 4096]).await.unwrap() > 0);
            stream.write_all(head.as_bytes()).await.unwrap();
            let mut sent = 0;
            while stream.write_all(&[b' '; 1024]).await.is_ok() {
                sent += 1024;
            }
            sent
        };
        let log_in = async {
            let error = api.log_in(&identity).await.err().unwrap();
            drop(api);
            error
        };
        tokio::join!(log_in, serve)
    }

    #[tokio::test]
    async fn an_answer_without_end_is_not_read_to_its_end() {
        for head in [
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 500 no\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 500000000\r\n\r\n",
        ] {
            let (error, sent) = endless(head).await;
            assert_eq!(error, VaultError::TooLong(TooLong), "{head}");
            // What is in the buffers of the sockets besides.
            assert!(sent < 16 << 20, "{sent}");
        }
    }

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
