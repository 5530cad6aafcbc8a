//! Secrets Manager as a relay meets it. moto keeps the secrets, and checks nothing; here every request is checked as AWS
//! does, and answered by moto, or with what AWS says when it does not read a secret.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{Response, StatusCode};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::api::{ApiError, caller, reply, serve_until, text};
use crate::iam::Identity;
use crate::moto::{self, Moto};
use crate::shared::Shared;

const CONTENT_TYPE: &str = "application/x-amz-json-1.1";

/// What `GetSecretValue` comes to from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The caller's role allows nothing.
    AccessDenied,
    /// "Can't decrypt the protected secret text using the provided KMS key" (API reference, `GetSecretValue`).
    DecryptionFailure,
    /// The secret is another account's, under the key that cannot be shared (AWS Knowledge Center,
    /// `secrets-manager-cross-account-key`).
    DefaultKey,
    /// An error of the service itself, so many times; then the value.
    Failure(usize),
    /// The same article: the caller may read the secret and not use its key.
    KmsDenied,
    Silence,
    Throttled,
    /// Of moto.
    Value,
}

struct Front {
    sandbox: Arc<Shared>,
    moto: String,
    http: reqwest::Client,
    answer: Mutex<Answer>,
    calls: AtomicUsize,
}

/// A running stand-in; ends when dropped.
pub struct SecretsManager {
    endpoint: String,
    front: Arc<Front>,
    stop: CancellationToken,
}

impl Drop for SecretsManager {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl SecretsManager {
    pub(crate) async fn start(sandbox: Arc<Shared>, moto: &Moto) -> anyhow::Result<Self> {
        let front = Arc::new(Front {
            sandbox,
            moto: moto.endpoint(),
            http: moto::http_client(),
            answer: Mutex::new(Answer::Value),
            calls: AtomicUsize::new(0),
        });
        let stop = CancellationToken::new();
        let endpoint = serve_until(&stop, Router::new().fallback(serve).with_state(Arc::clone(&front))).await?;
        Ok(Self { endpoint, front, stop })
    }

    /// The value for `AWS_ENDPOINT_URL_SECRETS_MANAGER`.
    pub fn endpoint(&self) -> String {
        self.endpoint.clone()
    }

    pub fn set(&self, answer: Answer) {
        *self.front.answer.lock().unwrap_or_else(PoisonError::into_inner) = answer;
    }

    /// How many requests there have been.
    pub fn calls(&self) -> usize {
        self.front.calls.load(Ordering::Relaxed)
    }
}

impl Front {
    /// The answer to this request.
    fn take(&self) -> Answer {
        let mut answer = self.answer.lock().unwrap_or_else(PoisonError::into_inner);
        match *answer {
            Answer::Failure(0) => Answer::Value,
            Answer::Failure(left) => {
                *answer = Answer::Failure(left - 1);
                Answer::Failure(left)
            }
            other => other,
        }
    }
}

async fn serve(State(front): State<Arc<Front>>, request: Request) -> Response<Body> {
    front.calls.fetch_add(1, Ordering::Relaxed);
    let (parts, body) = request.into_parts();
    let Ok(body) = axum::body::to_bytes(body, 1 << 16).await else {
        return error(&ApiError::new("InvalidRequestException", "the body is too long"));
    };
    let identities = front.sandbox.everybody();
    let (caller, secret) = match check(&parts, &body, &identities) {
        Ok(checked) => checked,
        Err(refusal) => return error(&refusal),
    };
    let denied = |message: &str| error(&ApiError::denied(message.to_owned()));
    match front.take() {
        // Task roles of the sandbox allow nothing.
        Answer::AccessDenied => {
            denied(&caller.authorize("secretsmanager:GetSecretValue", &secret).err().unwrap_or_default())
        }
        Answer::KmsDenied => denied("Access to KMS is not allowed"),
        Answer::DecryptionFailure => error(&ApiError::new(
            "DecryptionFailure",
            "Secrets Manager can't decrypt the protected secret text using the provided KMS key.",
        )),
        Answer::DefaultKey => error(&ApiError::new(
            "InvalidRequestException",
            "You can't access a secret from a different AWS account if you encrypt the secret with the default KMS service \
             key.",
        )),
        Answer::Failure(_) => error(&ApiError {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            ..ApiError::new("InternalServiceError", "An error occurred on the server side.")
        }),
        Answer::Silence => std::future::pending().await,
        Answer::Throttled => error(&ApiError::new("ThrottlingException", "Rate exceeded")),
        Answer::Value => pass(&front, &parts, body).await,
    }
}

/// Who asks, and for which secret.
fn check<'i>(parts: &Parts, body: &[u8], identities: &'i [Identity]) -> Result<(&'i Identity, String), ApiError> {
    let caller = caller(parts, body, "secretsmanager", identities)?;
    let header = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if (parts.method.as_str(), parts.uri.path()) != ("POST", "/") || header("content-type") != CONTENT_TYPE {
        return Err(ApiError::new("InvalidAction", "not a call of awsJson1.1"));
    }
    if header("x-amz-target") != "secretsmanager.GetSecretValue" {
        return Err(ApiError::new("InvalidAction", "a relay only calls GetSecretValue"));
    }
    let input: Value = serde_json::from_slice(body)
        .map_err(|problem| ApiError::new("InvalidParameterException", problem.to_string()))?;
    text(&input, "VersionStage")?;
    Ok((caller, text(&input, "SecretId")?.to_owned()))
}

async fn pass(front: &Front, parts: &Parts, body: Bytes) -> Response<Body> {
    let mut call = front.http.post(&front.moto).body(body);
    // moto takes the region from the signature.
    for name in ["authorization", "content-type", "x-amz-target"] {
        if let Some(value) = parts.headers.get(name) {
            call = call.header(name, value);
        }
    }
    match call.send().await {
        Ok(answer) => {
            let status = answer.status();
            reply(status, CONTENT_TYPE, answer.text().await.unwrap_or_default())
        }
        Err(problem) => reply(StatusCode::BAD_GATEWAY, "text/plain", problem.to_string()),
    }
}

/// As Secrets Manager spells it.
fn error(error: &ApiError) -> Response<Body> {
    reply(error.status, CONTENT_TYPE, json!({"__type": error.code, "Message": error.message}).to_string())
}
