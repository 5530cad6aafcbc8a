//! `POST /v1/leave`: a launcher that ends asks whether others use this task, so that the last one stops it and no other.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Response, StatusCode};
use axum::response::IntoResponse as _;
use tracing::info;

use crate::api::{HEADER_LEAVE, Others, Part};
use crate::relay::response::refusal;
use crate::relay::state::RelayState;
use crate::relay::{authorize, lane};

/// Notes that the caller goes, and says how many others stay and whether the last of them stops the task.
pub(super) async fn leave(State(shared): State<Arc<RelayState>>, headers: HeaderMap) -> Response<Body> {
    if let Err(no_token) = authorize::caller(&shared, &headers).await {
        return no_token.response();
    }
    let wish = headers.get(HEADER_LEAVE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let Some(part) = Part::ALL.into_iter().find(|known| known.as_str() == wish) else {
        let [first, second, last] = Part::ALL.map(Part::as_str);
        let message = format!("the header {HEADER_LEAVE} has to be {first}, {second} or {last}");
        return refusal(StatusCode::BAD_REQUEST, &message);
    };
    let link = lane::secret(&headers);
    // Connections without a link may be those of whoever goes without one.
    let plain = if link.is_some() { shared.plain.load(Ordering::Relaxed) } else { 0 };
    let others = shared.links.leave(link).saturating_add(plain);
    match part {
        Part::Started if others > 0 => shared.links.set_last_stops(true),
        Part::Keep => shared.links.set_last_stops(false),
        Part::Started | Part::Used => {}
    }
    let last_stops = shared.links.last_stops();
    info!(wish, others, last_stops, "somebody leaves this task");
    Json(Others { others, last_stops }).into_response()
}
