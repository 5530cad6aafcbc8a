//! What all the AWS APIs of the sandbox share: reading a request, checking its signature, shaping errors.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use axum::Router;
use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Response, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::iam::Identity;
use crate::sigv4::{self, Rejection};

/// An error as AWS answers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) code: &'static str,
    pub(crate) message: String,
}

impl ApiError {
    pub(crate) fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, code, message: message.into() }
    }

    pub(crate) fn denied(message: String) -> Self {
        Self::new("AccessDeniedException", message)
    }

    /// `{"__type": …, "message": …}` of awsJson1.1.
    pub(crate) fn json(&self) -> Response<Body> {
        reply(
            self.status,
            "application/x-amz-json-1.1",
            json!({"__type": self.code, "message": self.message}).to_string(),
        )
    }

    /// The ErrorResponse of the query protocol.
    pub(crate) fn xml(&self) -> Response<Body> {
        let text = self.message.replace('&', "&amp;").replace('<', "&lt;");
        let body = format!(
            "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error><Type>Sender</Type>\
             <Code>{}</Code><Message>{text}</Message></Error><RequestId>{}</RequestId></ErrorResponse>",
            self.code,
            uuid::Uuid::new_v4()
        );
        reply(StatusCode::FORBIDDEN, "text/xml", body)
    }
}

/// A rejected signature under the names of awsJson1.1 services.
impl From<Rejection> for ApiError {
    fn from(rejection: Rejection) -> Self {
        match rejection {
            Rejection::ExpiredToken => {
                Self::new("ExpiredTokenException", "The security token included in the request is expired")
            }
            Rejection::InvalidClientTokenId => {
                Self::new("UnrecognizedClientException", "The security token included in the request is invalid.")
            }
            Rejection::MissingAuthenticationToken => {
                Self::new("MissingAuthenticationTokenException", "Missing Authentication Token")
            }
            Rejection::RequestExpired(message) | Rejection::SignatureDoesNotMatch(message) => {
                Self::new("InvalidSignatureException", message)
            }
        }
    }
}

/// The same under the names of STS.
pub(crate) fn query_rejection(rejection: Rejection) -> ApiError {
    match rejection {
        Rejection::ExpiredToken => {
            ApiError::new("ExpiredToken", "The security token included in the request is expired")
        }
        Rejection::InvalidClientTokenId => {
            ApiError::new("InvalidClientTokenId", "The security token included in the request is invalid.")
        }
        Rejection::MissingAuthenticationToken => {
            ApiError::new("MissingAuthenticationToken", "Request is missing Authentication Token")
        }
        Rejection::RequestExpired(message) | Rejection::SignatureDoesNotMatch(message) => {
            ApiError::new("SignatureDoesNotMatch", message)
        }
    }
}

pub(crate) fn reply(status: StatusCode, content_type: &'static str, body: String) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert("content-type", axum::http::HeaderValue::from_static(content_type));
    if let Ok(id) = axum::http::HeaderValue::from_str(&uuid::Uuid::new_v4().to_string()) {
        response.headers_mut().insert("x-amzn-requestid", id);
    }
    response
}

pub(crate) fn ok(body: &Value) -> Response<Body> {
    reply(StatusCode::OK, "application/x-amz-json-1.1", body.to_string())
}

/// Who signed this request, for `service`.
pub(crate) fn caller<'i>(
    parts: &Parts,
    body: &[u8],
    service: &str,
    identities: &'i [Identity],
) -> Result<&'i Identity, Rejection> {
    let headers = lower(&parts.headers);
    let request = sigv4::Request {
        method: parts.method.as_str(),
        path: parts.uri.path(),
        query: parts.uri.query().unwrap_or_default(),
        headers: &headers,
        body,
    };
    sigv4::verify(&request, service, crate::REGION, identities, crate::wall_clock())
}

fn lower(headers: &HeaderMap) -> BTreeMap<String, String> {
    headers
        .iter()
        .map(|(name, value)| (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect()
}

/// A required string member of a JSON request.
pub(crate) fn text<'v>(input: &'v Value, member: &str) -> Result<&'v str, ApiError> {
    input[member]
        .as_str()
        .filter(|text| !text.is_empty())
        .ok_or_else(|| ApiError::new("InvalidParameterException", format!("{member} must not be empty")))
}

/// Serves `router` on a free port of 127.0.0.1 until `stop` is cancelled; `http://ADDRESS:PORT`.
pub(crate) async fn serve_until(stop: &CancellationToken, router: Router) -> anyhow::Result<String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let endpoint = format!("http://{}", listener.local_addr()?);
    let stopped = stop.clone();
    #[expect(clippy::disallowed_methods, reason = "ends with its owner, who cancels `stop`")]
    tokio::spawn(async move {
        tokio::select! {
            () = stopped.cancelled() => {}
            // A broken listener shows in every test.
            _ = async { axum::serve(listener, router).await } => {}
        }
    });
    Ok(endpoint)
}
