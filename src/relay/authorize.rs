//! The HTTP side of [`crate::relay::identity`]: challenge, claim, and the token of an upgrade.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, Response, StatusCode};
use axum::response::IntoResponse as _;
use tracing::{info, warn};

use crate::api::authorize::{Claim, Granted};
use crate::relay::clock::wall_clock;
use crate::relay::identity::{Admitted, AuthorizeError, Person};
use crate::relay::local_password::LocalPassword;
use crate::relay::response::{refusal, unauthorized};
use crate::relay::state::RelayState;

/// A claim is about 2.5 kB, and a login to a Vault half of one more.
const CLAIM_MAX: usize = 16 * 1024;
const LOGIN_MAX: usize = 2 * 1024;
/// It comes in one piece.
const CLAIM_TIMEOUT: Duration = Duration::from_secs(10);

/// `GET`: what to sign.
pub(super) async fn challenge(State(shared): State<Arc<RelayState>>) -> Response<Body> {
    match shared.identity.challenge().await {
        Ok(challenge) => Json(challenge).into_response(),
        Err(error) => refuse(&shared, &error).await,
    }
}

/// `POST`: the signed answer; gives the token.
pub(super) async fn authorize(State(shared): State<Arc<RelayState>>, body: Body) -> Response<Body> {
    let longest = CLAIM_MAX.saturating_add(LOGIN_MAX.saturating_mul(shared.identity.vaults().len()));
    let body = tokio::time::timeout(CLAIM_TIMEOUT, axum::body::to_bytes(body, longest)).await;
    let Ok(Ok(body)) = body else {
        return refuse_claim(&shared, "the claim is too long or did not come in time").await;
    };
    let Ok(claim) = serde_json::from_slice::<Claim>(&body) else {
        return refuse_claim(
            &shared,
            "the claim is not the JSON of docs/identity.md; update bastion on the laptop or in the task",
        )
        .await;
    };
    match shared.identity.authorize(&claim, wall_clock()).await {
        Ok(Admitted { granted, person, logins }) => {
            let vaults: Vec<&str> = logins.iter().map(|(audience, _)| audience.server_id.as_str()).collect();
            if shared.audit.identity_granted(&person, &vaults).await.is_err() {
                return refuse(&shared, &AuthorizeError::Audit).await;
            }
            shared.metrics.authorized("granted");
            info!(person = %person.principal, ?vaults, "a caller has proven who they are");
            let key = person.key();
            for (audience, signed) in &logins {
                shared.served.iter().for_each(|served| served.logins.hand_in(&key, audience, signed));
            }
            let local_password = shared.local_password.as_ref().map(LocalPassword::reveal);
            Json(Granted { local_password, ..granted }).into_response()
        }
        Err(error) => refuse(&shared, &error).await,
    }
}

/// An upgrade without a good token where one is needed.
pub(super) struct NoToken;

impl NoToken {
    pub(super) fn response(&self) -> Response<Body> {
        unauthorized(
            "prove who you are first: the token of /v1/authorize is missing, unknown or too old; update bastion on the laptop if it did not ask",
        )
    }
}

/// Who opens a lane with these headers: `None` is somebody unknown where that is allowed.
pub(super) async fn caller(shared: &RelayState, headers: &HeaderMap) -> Result<Option<Arc<Person>>, NoToken> {
    let token = match headers.get(AUTHORIZATION) {
        None if !shared.identity.is_required() => return Ok(None),
        None => None,
        Some(value) => value.to_str().ok().and_then(|value| value.strip_prefix("Bearer ")),
    };
    if let Some(person) = token.and_then(|token| shared.identity.person(token)) {
        return Ok(Some(person));
    }
    shared.metrics.authorized("no_token");
    warn!(error.kind = "no_token", "an upgrade without a good token was refused");
    shared.audit.identity_refused(None, "no_token", "an upgrade without a good token").await;
    Err(NoToken)
}

async fn refuse(shared: &RelayState, error: &AuthorizeError) -> Response<Body> {
    shared.metrics.authorized(error.kind());
    let caller = error.caller();
    warn!(error.kind = error.kind(), person = caller.map(tracing::field::display), %error, "a caller was refused");
    shared.audit.identity_refused(caller.map(ToString::to_string), error.kind(), &error.to_string()).await;
    refusal(error.status(), &error.to_string())
}

async fn refuse_claim(shared: &RelayState, message: &str) -> Response<Body> {
    shared.metrics.authorized("malformed");
    warn!(error.kind = "malformed", error = message, "a caller was refused");
    shared.audit.identity_refused(None, "malformed", message).await;
    refusal(StatusCode::BAD_REQUEST, message)
}
