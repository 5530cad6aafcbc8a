//! Logins from AWS Secrets Manager, read with the task role.
//!
//! A secret has a value for each staging label (Secrets Manager User Guide, "What's in a secret?", version): `AWSCURRENT`
//! is the one in use. While a rotation is under way the database may know the value of `AWSPENDING` already, and after it
//! a replica or the alternate user may still be at that of `AWSPREVIOUS`.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sdk_secretsmanager::Client;
use aws_sdk_secretsmanager::config::retry::RetryConfig;
use aws_sdk_secretsmanager::config::timeout::TimeoutConfig;
use aws_sdk_secretsmanager::config::{BehaviorVersion, Region, SharedHttpClient};
use aws_sdk_secretsmanager::error::{ProvideErrorMetadata as _, SdkError};
use aws_sdk_secretsmanager::operation::get_secret_value::GetSecretValueError;
use bastion_wire::memory::TooLong;
use secrecy::SecretString;
use tracing::debug;
use zeroize::Zeroizing;

use crate::credential::secret::{self, NoEngine, SecretFlaw};
use crate::credential::{Credential, Kind, MintError, Reuse, SecretEndpoint, TaskRole};
use crate::types::Engine;

/// How long a value is used before it is looked up again. A change is noticed earlier: by the refusal of the old one.
const READ_AGAIN: Duration = Duration::from_secs(3600);
/// For one call with its repetitions.
const CALL_TIMEOUT: Duration = Duration::from_secs(8);
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(3);
/// How the message begins where the caller may read the secret and not use its key; more may follow (AWS Knowledge Center,
/// `secrets-manager-cross-account-key`).
const NO_KMS: &str = "Access to KMS is not allowed";

/// Why a secret gives no login. No text of the secret, none of AWS's answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SecretError {
    #[error("the task role may not read it (secretsmanager:GetSecretValue)")]
    Denied,
    #[error("it is another account's, and encrypted with the default key, which cannot be shared")]
    DefaultKey,
    #[error("it is scheduled for deletion")]
    Deleted,
    #[error("it is of a {said} database, and the target's engine is {configured}")]
    Engine { said: Engine, configured: Engine },
    #[error("Secrets Manager has failed: {0}")]
    Failed(String),
    #[error("it {0}")]
    Flawed(#[from] SecretFlaw),
    #[error("the task role may not decrypt it (kms:Decrypt on its key), or its key is disabled")]
    Kms,
    #[error("it {0}")]
    NoEngine(NoEngine),
    #[error("there is no such secret in {region}")]
    NotFound { region: String },
    #[error("Secrets Manager refused to read it: {0}")]
    Refused(String),
    #[error("Secrets Manager is slowing the task down")]
    Throttled,
    #[error("{0}")]
    TooLong(TooLong),
    #[error("Secrets Manager cannot be reached: {0}")]
    Unreachable(String),
}

/// A version of a secret, by its staging label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Label {
    Current,
    Pending,
    Previous,
}

impl Label {
    fn as_str(self) -> &'static str {
        match self {
            Self::Current => "AWSCURRENT",
            Self::Pending => "AWSPENDING",
            Self::Previous => "AWSPREVIOUS",
        }
    }
}

/// Reads one secret.
pub(crate) struct SecretsManager {
    pub(crate) role: Arc<TaskRole>,
    pub(crate) http: SharedHttpClient,
    /// Name or ARN.
    pub(crate) secret_id: String,
    pub(crate) region: String,
    /// Of the target: the configured one, otherwise the one that the secret has said first. A secret of another one would
    /// only come to a login that nobody understands.
    pub(crate) engine: OnceLock<Engine>,
    /// Another endpoint than that of the region.
    pub(crate) endpoint: Option<String>,
}

impl fmt::Debug for SecretsManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretsManager({} in {})", self.secret_id, self.region)
    }
}

impl SecretsManager {
    pub(super) async fn mint(&self, now: SystemTime) -> Result<Credential, MintError> {
        let client = self.client().await?;
        let current = self.read(&client, Label::Current, now).await.map_err(|error| self.failed(error))?;
        current.ok_or_else(|| self.failed(SecretError::NotFound { region: self.region.clone() }))
    }

    /// The values of the three labels, those that there are.
    pub(super) async fn versions(&self, now: SystemTime) -> Result<Vec<Credential>, MintError> {
        let client = self.client().await?;
        let current = self.read(&client, Label::Current, now).await.map_err(|error| self.failed(error))?;
        let mut all: Vec<Credential> = current.into_iter().collect();
        for label in [Label::Pending, Label::Previous] {
            match self.read(&client, label, now).await {
                Ok(version) => all.extend(version),
                // A policy may allow AWSCURRENT alone, and a pending version may be half written: others still count.
                Err(error) => {
                    debug!(secret = self.secret_id, label = label.as_str(), %error, "a version is not readable");
                }
            }
        }
        Ok(all)
    }

    async fn client(&self) -> Result<Client, MintError> {
        Ok(self.client_with(self.role.credentials().await?))
    }

    /// A client with the role's credentials of this moment: the cache above decides when to read again, not the SDK.
    fn client_with(&self, credentials: Credentials) -> Client {
        let timeouts =
            TimeoutConfig::builder().operation_timeout(CALL_TIMEOUT).operation_attempt_timeout(ATTEMPT_TIMEOUT).build();
        let mut config = aws_sdk_secretsmanager::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .http_client(self.http.clone())
            .region(Region::new(self.region.clone()))
            .credentials_provider(credentials)
            .retry_config(RetryConfig::standard())
            .timeout_config(timeouts);
        config.set_endpoint_url(self.endpoint.clone());
        Client::from_conf(config.build())
    }

    /// `None`: no version has this label.
    async fn read(&self, client: &Client, label: Label, now: SystemTime) -> Result<Option<Credential>, SecretError> {
        let call = client.get_secret_value().secret_id(&self.secret_id).version_stage(label.as_str());
        let text = match call.send().await {
            Ok(answer) => Zeroizing::new(answer.secret_string.ok_or(SecretFlaw::Binary)?),
            Err(error) if label != Label::Current && is_not_found(&error) => return Ok(None),
            Err(error) => return Err(self.explain(&error)),
        };
        let secret::Login { user, password, engine, endpoint } = secret::parse(&text)?;
        let configured = match engine {
            Ok(said) => *self.engine.get_or_init(|| said),
            Err(why) => *self.engine.get().ok_or(SecretError::NoEngine(why))?,
        };
        if let Ok(said) = engine
            && said != configured
        {
            return Err(SecretError::Engine { said, configured });
        }
        let endpoint = SecretEndpoint { engine: Some(configured), ..endpoint };
        let reuse = Reuse::ReadAgainAt(now + READ_AGAIN);
        Ok(Some(Credential { endpoint, ..Credential::new(user, SecretString::from(password), Kind::Password, reuse) }))
    }

    fn explain(&self, error: &SdkError<GetSecretValueError>) -> SecretError {
        let is_failure = error.raw_response().is_some_and(|answer| answer.status().is_server_error());
        let Some(service) = error.as_service_error() else {
            // Names, addresses and causes from the connector; there was no answer that could hold a secret.
            return match error {
                SdkError::ResponseError(_) => SecretError::Unreachable("its answer could not be read".to_owned()),
                SdkError::TimeoutError(_) => SecretError::Unreachable("no answer in time".to_owned()),
                other if innermost(other).is::<TooLong>() => SecretError::TooLong(TooLong),
                other => SecretError::Unreachable(innermost(other).to_string()),
            };
        };
        match service {
            GetSecretValueError::DecryptionFailure(_) => SecretError::Kms,
            GetSecretValueError::ResourceNotFoundException(_) => SecretError::NotFound { region: self.region.clone() },
            GetSecretValueError::InvalidRequestException(refused) => {
                let message = refused.message().unwrap_or_default();
                if message.contains("deletion") || message.contains("deleted") {
                    SecretError::Deleted
                } else if message.contains("default KMS service key") {
                    SecretError::DefaultKey
                } else {
                    SecretError::Refused("InvalidRequestException".to_owned())
                }
            }
            other => match other.code().unwrap_or("no error code") {
                // The one code for both. "KMS" alone may be in the name of a role or of a secret.
                "AccessDeniedException" if other.message().is_some_and(|message| message.starts_with(NO_KMS)) => {
                    SecretError::Kms
                }
                "AccessDeniedException" => SecretError::Denied,
                "ThrottlingException" | "TooManyRequestsException" => SecretError::Throttled,
                code if is_failure => SecretError::Failed(code.to_owned()),
                code => SecretError::Refused(code.to_owned()),
            },
        }
    }

    fn failed(&self, error: SecretError) -> MintError {
        MintError::Secret { id: self.secret_id.clone(), error }
    }
}

fn is_not_found(error: &SdkError<GetSecretValueError>) -> bool {
    error.as_service_error().is_some_and(GetSecretValueError::is_resource_not_found_exception)
}

/// The last cause in a chain of errors, where the address and the operating system's reason stand.
fn innermost<'e>(error: &'e (dyn std::error::Error + 'static)) -> &'e (dyn std::error::Error + 'static) {
    std::iter::successors(Some(error), |error| error.source()).last().unwrap_or(error)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;
    use crate::credential::task_role::https_client;
    use crate::types::ExtraCa;

    fn source(endpoint: String) -> SecretsManager {
        SecretsManager {
            role: Arc::new(TaskRole::from_container()),
            http: https_client(&ExtraCa::default()).unwrap(),
            secret_id: "prod/orders".to_owned(),
            region: "eu-west-1".to_owned(),
            engine: OnceLock::from(Engine::Postgres),
            endpoint: Some(endpoint),
        }
    }

    /// What comes of one answer of the service.
    async fn read(status: &str, body: &str) -> Result<Option<Credential>, SecretError> {
        read_for(OnceLock::from(Engine::Postgres), status, body).await
    }

    async fn read_for(engine: OnceLock<Engine>, status: &str, body: &str) -> Result<Option<Credential>, SecretError> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let source = SecretsManager { engine, ..source(format!("http://{}", listener.local_addr().unwrap())) };
        let client = source.client_with(Credentials::new("AKID", "S3CRET-key", None, None, "test"));
        let answer = format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/x-amz-json-1.1\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let serve = async {
            // Throttling is tried again by the SDK.
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0_u8; 4096];
                while stream.read(&mut request).await.is_ok_and(|read| read > 0) {
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            }
        };
        tokio::select! {
            read = source.read(&client, Label::Current, SystemTime::UNIX_EPOCH) => read,
            () = serve => unreachable!(),
        }
    }

    #[tokio::test]
    async fn every_refusal_of_the_service_is_told_apart() {
        let refusal = |kind: &str, message: &str| format!(r#"{{"__type":"{kind}","Message":"{message}"}}"#);
        for (kind, message, expected) in [
            ("AccessDeniedException", "User: arn:… is not authorized to perform: …", SecretError::Denied),
            (
                "AccessDeniedException",
                "User: arn:… is not authorized to perform: secretsmanager:GetSecretValue on resource: KMS-prod/orders",
                SecretError::Denied,
            ),
            ("AccessDeniedException", "Access to KMS is not allowed", SecretError::Kms),
            (
                "AccessDeniedException",
                "Access to KMS is not allowed. This version of secret is not encrypted with the current KMS key.",
                SecretError::Kms,
            ),
            ("DecryptionFailure", "…", SecretError::Kms),
            (
                "InvalidRequestException",
                "You can't access a secret from a different AWS account if you encrypt the secret with the default KMS \
                 service key.",
                SecretError::DefaultKey,
            ),
            ("ResourceNotFoundException", "…", SecretError::NotFound { region: "eu-west-1".to_owned() }),
            (
                "InvalidRequestException",
                "You can't perform this operation on the secret because it was marked for deletion.",
                SecretError::Deleted,
            ),
            ("InvalidRequestException", "other", SecretError::Refused("InvalidRequestException".to_owned())),
            ("InvalidSignatureException", "…", SecretError::Refused("InvalidSignatureException".to_owned())),
        ] {
            assert_eq!(read("400 Bad Request", &refusal(kind, message)).await.unwrap_err(), expected);
        }
        for (status, kind) in [("500 Internal Server Error", "InternalServiceError"), ("500", "InternalFailure")] {
            let expected = SecretError::Failed(kind.to_owned());
            assert_eq!(read(status, &refusal(kind, "…")).await.unwrap_err(), expected);
        }
        let flawed = read("200 OK", r#"{"SecretString":"{\"username\":\"u\",\"pw\":\"S3CRET\"}"}"#).await.unwrap_err();
        assert_eq!(flawed, SecretError::Flawed(SecretFlaw::NoPassword));
        let long = format!(r#"{{"SecretString":"{}"}}"#, "x".repeat(1 << 20));
        assert_eq!(read("200 OK", &long).await.unwrap_err(), SecretError::TooLong(TooLong));
        assert_eq!(
            read("200 OK", r#"{"SecretBinary":"AAAA"}"#).await.unwrap_err().to_string(),
            "it is binary, not JSON text"
        );
    }

    #[tokio::test]
    async fn the_engine_is_the_configured_one_otherwise_the_one_that_the_secret_has_said_first() {
        let of = |engine: &str| {
            let secret = format!(r#"{{"username":"u","password":"S3CRET"{engine}}}"#);
            serde_json::json!({ "SecretString": secret }).to_string()
        };
        let (none, oracle) = (of(""), of(r#","engine":"oracle-ee""#));
        let (postgres, mysql) = (of(r#","engine":"postgres""#), of(r#","engine":"mariadb""#));
        let read = |engine: Option<Engine>, body: String| async move {
            let engine = engine.map_or_else(OnceLock::new, OnceLock::from);
            let credential = read_for(engine, "200 OK", &body).await?;
            Ok::<_, SecretError>(credential.and_then(|credential| credential.endpoint.engine))
        };
        for (configured, body, found) in [
            (None, &postgres, Ok(Some(Engine::Postgres))),
            (None, &mysql, Ok(Some(Engine::Mysql))),
            (None, &none, Err(SecretError::NoEngine(NoEngine::Missing))),
            (None, &oracle, Err(SecretError::NoEngine(NoEngine::Other))),
            (Some(Engine::Mysql), &none, Ok(Some(Engine::Mysql))),
            (Some(Engine::Mysql), &oracle, Ok(Some(Engine::Mysql))),
            (
                Some(Engine::Mysql),
                &postgres,
                Err(SecretError::Engine { said: Engine::Postgres, configured: Engine::Mysql }),
            ),
        ] {
            assert_eq!(read(configured, body.clone()).await, found, "{configured:?} {body}");
        }
    }

    #[tokio::test]
    async fn an_endpoint_that_is_away_is_named_and_no_key_is() {
        let source = source("http://127.0.0.1:1".to_owned());
        let client = source.client_with(Credentials::new("AKID", "S3CRET-key", None, None, "test"));
        let error = source.read(&client, Label::Current, SystemTime::UNIX_EPOCH).await.unwrap_err();
        assert!(matches!(&error, SecretError::Unreachable(why) if why.contains("refused")), "{error}");
        assert!(!format!("{error:?}{source:?}").contains("S3CRET"));
    }
}
