//! `POST /v1/leave`: a launcher that ends asks whether others use this task, so that the last one stops it and no other.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Response, StatusCode};
use axum::response::IntoResponse as _;
use serde_json::json;
use tracing::info;

use crate::relay::http::refusal;
use crate::relay::{Shared, authorize, lane};
use crate::types::{HEADER_LEAVE, LEAVE_KEEP, LEAVE_STARTED, LEAVE_USED};

/// Notes that the caller goes, and says how many others stay and whether the last of them stops the task.
pub(super) async fn leave(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response<Body> {
    if let Err(no_token) = authorize::caller(&shared, &headers).await {
        return no_token.response();
    }
    let wish = headers.get(HEADER_LEAVE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if ![LEAVE_STARTED, LEAVE_USED, LEAVE_KEEP].contains(&wish) {
        let message = format!("the header {HEADER_LEAVE} has to be {LEAVE_STARTED}, {LEAVE_USED} or {LEAVE_KEEP}");
        return refusal(StatusCode::BAD_REQUEST, &message);
    }
    let link = lane::secret(&headers);
    // Connections without a link may be those of whoever goes without one.
    let plain = if link.is_some() { shared.plain.load(Ordering::Relaxed) } else { 0 };
    let others = shared.links.leave(link).saturating_add(plain);
    match wish {
        LEAVE_STARTED if others > 0 => shared.links.set_last_stops(true),
        LEAVE_KEEP => shared.links.set_last_stops(false),
        _ => {}
    }
    let last_stops = shared.links.last_stops();
    info!(wish, others, last_stops, "somebody leaves this task");
    Json(json!({"others": others, "last_stops": last_stops})).into_response()
}
