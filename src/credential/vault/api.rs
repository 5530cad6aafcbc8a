//! The few calls of Vault's HTTP API that a login needs.

use std::time::Duration;

use reqwest::{Method, Response};
use rustls::{CertificateError, ClientConfig};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::credential::vault::VaultError;
use crate::credential::vault::sign::SignedIdentity;
use crate::types::{VaultAs, VaultConfig};
use crate::wire::memory::{ANSWER, TooLong};

/// For one call. Making a database user may take seconds.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A Vault that is not logged in to. Cheap to clone.
#[derive(Clone)]
pub(super) struct Api {
    http: reqwest::Client,
    config: VaultConfig,
}

/// A token of Vault; wiped when dropped.
pub(super) struct Session {
    api: Api,
    token: SecretString,
    /// Zero: it does not end.
    pub(super) token_lifetime: Duration,
    pub(super) token_renewable: bool,
}

/// A database user and its lease.
pub(super) struct Issued {
    pub(super) user: String,
    pub(super) password: SecretString,
    pub(super) lease_id: String,
    pub(super) lifetime: Duration,
    pub(super) renewable: bool,
}

/// What the calls need of an answer (Vault API documentation, "API operations").
#[derive(Deserialize)]
struct Answer<T> {
    #[serde(default)]
    lease_id: String,
    #[serde(default)]
    lease_duration: u64,
    #[serde(default)]
    renewable: bool,
    data: Option<T>,
    auth: Option<Auth>,
}

#[derive(Deserialize)]
struct Auth {
    client_token: SecretString,
    lease_duration: u64,
    renewable: bool,
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

    /// `auth/<mount>/login` with a signed request (Vault API documentation, AWS auth method).
    pub(super) async fn log_in(&self, identity: &SignedIdentity) -> Result<Session, VaultError> {
        let VaultConfig { mount, role, login: who, .. } = &self.config;
        let SignedIdentity { url, headers, body } = identity;
        let mut login = json!({
            "iam_http_request_method": "POST", "iam_request_url": url, "iam_request_headers": headers,
            "iam_request_body": body
        });
        if let Some(role) = role {
            login["role"] = json!(role);
        }
        let name = role.as_deref().unwrap_or("named as your role or user of IAM");
        let login = self.call::<IgnoredAny>(None, Method::POST, &format!("auth/{mount}/login"), Some(login)).await;
        let answer = login.map_err(|error| login_failed(error, name, *who))?;
        let auth = answer.auth.ok_or(VaultError::Answer)?;
        Ok(Session {
            api: self.clone(),
            token: auth.client_token,
            token_lifetime: Duration::from_secs(auth.lease_duration),
            token_renewable: auth.renewable,
        })
    }

    async fn call<T: DeserializeOwned>(
        &self,
        token: Option<&SecretString>,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<Answer<T>, Failure> {
        let answer = self.send(token, method, path, body).await?;
        // The error of serde_json may quote what it has read.
        serde_json::from_slice(&answer).map_err(|_| Failure::Known(VaultError::Answer))
    }

    async fn send(
        &self,
        token: Option<&SecretString>,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let url = format!("{}/v1/{path}", self.config.address.trim_end_matches('/'));
        let mut request = self.http.request(method, url).header("x-vault-request", "true");
        if let Some(token) = token {
            let mut value = reqwest::header::HeaderValue::from_str(token.expose_secret())
                .map_err(|_| Failure::Known(VaultError::Answer))?;
            value.set_sensitive(true);
            request = request.header("x-vault-token", value);
        }
        if let Some(namespace) = &self.config.namespace {
            request = request.header("x-vault-namespace", namespace);
        }
        if let Some(body) = body {
            request = request.body(body.to_string());
        }
        let answer = request.send().await.map_err(|error| unreachable(&error))?;
        let status = answer.status();
        let body = whole(answer).await?;
        match status.is_success() {
            true => Ok(body),
            false => Err(refused(status.as_u16(), String::from_utf8_lossy(&body).into_owned())),
        }
    }
}

impl Session {
    /// A new database user at `path`.
    pub(super) async fn issue(&self, path: &str) -> Result<Issued, VaultError> {
        let issued: Answer<Creds> =
            self.call(Method::GET, path, None).await.map_err(|error| issue_failed(error, path))?;
        let Creds { username, password } = issued.data.ok_or(VaultError::Answer)?;
        Ok(Issued {
            user: username,
            password,
            lease_id: issued.lease_id,
            lifetime: Duration::from_secs(issued.lease_duration),
            // When the token ends, Vault revokes all that was made with it.
            renewable: issued.renewable && (self.token_renewable || self.token_lifetime.is_zero()),
        })
    }

    /// How long lease and token live from now on.
    pub(super) async fn renew(&self, lease_id: &str, wanted: Duration) -> Result<Duration, VaultError> {
        let body = json!({"lease_id": lease_id, "increment": wanted.as_secs()});
        let renewed = self.call::<IgnoredAny>(Method::PUT, "sys/leases/renew", Some(body)).await;
        let lease = Duration::from_secs(renewed.map_err(renewal_failed)?.lease_duration);
        if self.token_lifetime.is_zero() {
            return Ok(lease);
        }
        let token = self.call::<IgnoredAny>(Method::POST, "auth/token/renew-self", Some(json!({}))).await;
        let token = token.map_err(renewal_failed)?.auth.ok_or(VaultError::Answer)?;
        Ok(lease.min(Duration::from_secs(token.lease_duration)))
    }

    /// Ends a token with which nothing was made. If that fails it ends with its time.
    pub(super) async fn end(self) {
        let _best_effort = self.send(Method::POST, "auth/token/revoke-self", Some(json!({}))).await;
    }

    /// Ends the token, and with it the lease; a token that cannot be ended leaves it to the lease.
    pub(super) async fn revoke(&self, lease_id: &str) -> Result<(), VaultError> {
        match self.send(Method::POST, "auth/token/revoke-self", Some(json!({}))).await {
            Ok(_) => Ok(()),
            Err(_) => {
                let body = json!({"lease_id": lease_id});
                self.send(Method::PUT, "sys/leases/revoke", Some(body)).await.map(drop).map_err(renewal_failed)
            }
        }
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<Answer<T>, Failure> {
        self.api.call(Some(&self.token), method, path, body).await
    }

    async fn send(&self, method: Method, path: &str, body: Option<Value>) -> Result<Zeroizing<Vec<u8>>, Failure> {
        self.api.send(Some(&self.token), method, path, body).await
    }
}

/// The body of an answer, up to the length that any of them has.
async fn whole(mut answer: Response) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let mut body = Zeroizing::new(Vec::with_capacity(ANSWER));
    while let Some(chunk) = answer.chunk().await.map_err(|error| unreachable(&error))? {
        if body.len() + chunk.len() > ANSWER {
            return Err(Failure::Known(VaultError::TooLong(TooLong)));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
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

/// There is no answer, or it ends too early. The error itself would name the address; its innermost cause says why.
fn unreachable(error: &reqwest::Error) -> Failure {
    let causes = || std::iter::successors(Some(error as &(dyn std::error::Error + 'static)), |error| error.source());
    let why = || causes().last().map(ToString::to_string).unwrap_or_default();
    Failure::Known(causes().find_map(untrusted).unwrap_or_else(|| VaultError::Unreachable(why())))
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
