//! Answers of the HTTP side that several of its parts give.

use axum::Json;
use axum::body::Body;
use axum::http::header::{CONNECTION, UPGRADE, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, Response, StatusCode};
use axum::response::IntoResponse as _;

use crate::api::{Refusal, Upgrade};

/// To whoever comes during the drain.
pub(super) const STOPPING: &str = "the relay is stopping; run bastion up again";

/// The answer that ends HTTP on this connection.
pub(super) fn switching(protocol: Upgrade) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static(protocol.token()));
    response
}

pub(super) fn refusal(status: StatusCode, message: &str) -> Response<Body> {
    let mut response = (status, Json(Refusal { error: message.to_owned() })).into_response();
    if status == StatusCode::UPGRADE_REQUIRED {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
        if let Ok(offered) = HeaderValue::from_str(&Upgrade::ALL.map(Upgrade::token).join(", ")) {
            response.headers_mut().insert(UPGRADE, offered);
        }
    }
    response
}

/// Whoever hears this proves anew who they are and comes back once.
pub(super) fn unauthorized(message: &str) -> Response<Body> {
    let mut response = refusal(StatusCode::UNAUTHORIZED, message);
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}
