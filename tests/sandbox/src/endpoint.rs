//! The one endpoint: calls of AWS services, credentials and metadata of tasks, and the knobs of the sandbox itself.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::request::Parts;
use axum::http::{Response, StatusCode};
use axum::routing::{delete, get, post};
use serde_json::{Value, json};

use crate::api::{ApiError, caller, ok, query_rejection, reply};
use crate::iam::Identity;
use crate::{ACCOUNT, Faults, Shared, agent, ecs, gateway, sigv4, ssm, wall_clock};

/// Small frames leave at once, as at AWS; Nagle's algorithm would hold each second one back for 40 ms.
pub(crate) fn quick(stream: &mut tokio::net::TcpStream) {
    let _best_effort = stream.set_nodelay(true);
}

pub(crate) fn router(shared: &Arc<Shared>) -> Router {
    Router::new()
        .route("/", post(api_call))
        .route("/credentials/{task}", get(credentials))
        .route("/metadata/{task}/task", get(task_metadata))
        .route("/_sandbox/faults", post(set_faults))
        .route("/_sandbox/gateway", post(change_gateway))
        .route("/_sandbox/throttle", get(throttle))
        .route("/_sandbox/sessions", get(sessions))
        .route("/_sandbox/sessions/{id}", delete(end_session))
        .with_state(Arc::clone(shared))
        .merge(shared.gateway.router())
}

async fn api_call(State(shared): State<Arc<Shared>>, request: axum::extract::Request) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let Ok(body) = axum::body::to_bytes(body, 1 << 20).await else {
        return ApiError::new("SerializationException", "the body could not be read").json();
    };
    match parts.headers.get("x-amz-target").and_then(|target| target.to_str().ok()) {
        Some(target) => json_call(&shared, &parts, &body, target).unwrap_or_else(|error| error.json()),
        None => query_call(&shared, &parts, &body).unwrap_or_else(|error| error.xml()),
    }
}

fn json_call(shared: &Arc<Shared>, parts: &Parts, body: &Bytes, target: &str) -> Result<Response<Body>, ApiError> {
    let (service, operation) = target.split_once('.').unwrap_or((target, ""));
    let signing_name = match service {
        "AmazonEC2ContainerServiceV20141113" => "ecs",
        "AmazonSSM" => "ssm",
        _ => return Err(ApiError::new("UnknownOperationException", format!("the sandbox has no {target}"))),
    };
    let caller = caller(parts, body, signing_name, &shared.identities)?;
    let input: Value =
        serde_json::from_slice(body).map_err(|error| ApiError::new("SerializationException", error.to_string()))?;
    let output = match signing_name {
        "ecs" => ecs::call(shared, operation, &input, caller)?,
        _ => ssm::call(shared, operation, &input, caller)?,
    };
    Ok(ok(&output))
}

/// STS speaks the query protocol.
fn query_call(shared: &Arc<Shared>, parts: &Parts, body: &Bytes) -> Result<Response<Body>, ApiError> {
    shared.sts_calls.fetch_add(1, Ordering::Relaxed);
    if shared.faults().sts_is_away {
        return Err(ApiError::new(
            "ServiceUnavailable",
            "The request has failed due to a temporary failure of the server.",
        ));
    }
    let caller = caller(parts, body, "sts", &shared.identities).map_err(query_rejection)?;
    let form = sigv4::pairs(std::str::from_utf8(body).unwrap_or_default());
    let action = form.iter().find(|(name, _)| name == "Action").map(|(_, value)| value.as_str()).unwrap_or_default();
    if action == "AssumeRole" {
        return assume_role(shared, caller, &form);
    }
    if action != "GetCallerIdentity" {
        return Err(ApiError::new("InvalidAction", format!("Could not find operation {action}")));
    }
    // No policy can deny GetCallerIdentity.
    let answer = format!(
        "<GetCallerIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><GetCallerIdentityResult>\
         <Arn>{}</Arn><UserId>{}</UserId><Account>{ACCOUNT}</Account></GetCallerIdentityResult>\
         <ResponseMetadata><RequestId>{}</RequestId></ResponseMetadata></GetCallerIdentityResponse>",
        caller.arn,
        caller.user_id(),
        uuid::Uuid::new_v4()
    );
    Ok(reply(StatusCode::OK, "text/xml", answer))
}

/// Whoever may assume a role becomes the session of this name that the sandbox knows. Roles that begin with `Mfa` want the
/// code 123456.
fn assume_role(shared: &Shared, caller: &Identity, form: &[(String, String)]) -> Result<Response<Body>, ApiError> {
    let field =
        |name: &str| form.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str()).unwrap_or_default();
    let denied = |message: String| ApiError::new("AccessDenied", message);
    let (role_arn, session) = (field("RoleArn"), field("RoleSessionName"));
    let role = role_arn.rsplit('/').next().unwrap_or_default();
    caller.authorize("sts:AssumeRole", role_arn).map_err(denied)?;
    if role.starts_with("Mfa") {
        match (field("SerialNumber"), field("TokenCode")) {
            ("", _) | (_, "") => {
                let message = format!(
                    "User: {} is not authorized to perform: sts:AssumeRole on resource: {role_arn}",
                    caller.arn
                );
                return Err(denied(message));
            }
            (_, "123456") => {}
            _ => {
                let message = "MultiFactorAuthentication failed with invalid MFA one time pass code. ";
                return Err(denied(message.to_owned()));
            }
        }
    }
    let arn = format!("arn:aws:sts::{ACCOUNT}:assumed-role/{role}/{session}");
    let Some(identity) = shared.identities.iter().find(|identity| identity.arn == arn) else {
        let message =
            format!("User: {} is not authorized to perform: sts:AssumeRole on resource: {role_arn}", caller.arn);
        return Err(denied(message));
    };
    let end = humantime::format_rfc3339_seconds(wall_clock() + Duration::from_secs(3600));
    Ok(reply(
        StatusCode::OK,
        "text/xml",
        format!(
            "<AssumeRoleResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><AssumeRoleResult><AssumedRoleUser>\
             <AssumedRoleId>{}</AssumedRoleId><Arn>{arn}</Arn></AssumedRoleUser><Credentials><AccessKeyId>{}</AccessKeyId>\
             <SecretAccessKey>{}</SecretAccessKey><SessionToken>{}</SessionToken><Expiration>{end}</Expiration></Credentials>\
             </AssumeRoleResult><ResponseMetadata><RequestId>{}</RequestId></ResponseMetadata></AssumeRoleResponse>",
            identity.user_id(),
            identity.access_key,
            identity.secret_key,
            identity.session_token.as_deref().unwrap_or_default(),
            uuid::Uuid::new_v4()
        ),
    ))
}

async fn credentials(State(shared): State<Arc<Shared>>, Path(task): Path<String>) -> Response<Body> {
    let credentials = std::future::ready(shared.role_credentials(&task, wall_clock())).await;
    match credentials {
        Some(credentials) => reply(StatusCode::OK, "application/json", credentials.to_string()),
        None => reply(
            StatusCode::NOT_FOUND,
            "application/json",
            json!({"code": "NoSuchTask", "message": "no credentials for this id"}).to_string(),
        ),
    }
}

/// The part of the task metadata endpoint (version 4) that the relay reads.
async fn task_metadata(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Response<Body> {
    let known = shared.tasks.with(|tasks| tasks.iter().any(|task| task.id == id));
    std::future::ready(match known {
        true => reply(StatusCode::OK, "application/json", ecs::metadata(&id).to_string()),
        false => reply(StatusCode::NOT_FOUND, "text/plain", "no such task".to_owned()),
    })
    .await
}

async fn set_faults(State(shared): State<Arc<Shared>>, axum::Json(faults): axum::Json<Faults>) -> StatusCode {
    *shared.faults.lock().unwrap_or_else(PoisonError::into_inner) = std::future::ready(faults).await;
    StatusCode::NO_CONTENT
}

/// Sets the faults of the message gateway, or makes one happen; says how many sessions it reached.
async fn change_gateway(
    State(shared): State<Arc<Shared>>,
    axum::Json(change): axum::Json<gateway::Change>,
) -> Response<Body> {
    match std::future::ready(shared.gateway.faults().apply(&change)).await {
        Ok(reached) => reply(StatusCode::OK, "application/json", json!({"sessions": reached}).to_string()),
        Err(problem) => reply(StatusCode::BAD_REQUEST, "application/json", json!({"error": problem}).to_string()),
    }
}

/// What the pauses of the agents have cost: `bytes / slept_s` is the most that one session can bring down.
async fn throttle(State(_): State<Arc<Shared>>) -> axum::Json<Value> {
    let (bytes, slept) = agent::throttle();
    std::future::ready(axum::Json(json!({"bytes": bytes, "slept_s": slept.as_secs_f64()}))).await
}

async fn sessions(State(shared): State<Arc<Shared>>) -> axum::Json<Vec<String>> {
    std::future::ready(axum::Json(shared.gateway.session_ids())).await
}

/// Ends a session as the idle limit of Session Manager does.
async fn end_session(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> StatusCode {
    match std::future::ready(shared.gateway.terminate_session(&id)).await {
        true => StatusCode::NO_CONTENT,
        false => StatusCode::NOT_FOUND,
    }
}
