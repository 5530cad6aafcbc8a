//! SSM: StartSession, ResumeSession, TerminateSession, GetParameter, GetParametersByPath.

use std::net::IpAddr;
use std::sync::{Arc, PoisonError};

use serde_json::{Value, json};

use crate::api::{ApiError, text};
use crate::ecs::Task;
use crate::gateway::{SessionSpec, Started};
use crate::iam::Identity;
use crate::{ACCOUNT, CLUSTER, REGION, Shared};

/// The document that forwards to a port of the target itself.
const STOCK_DOCUMENT: &str = "AWS-StartPortForwardingSession";

/// Dispatches one call.
pub(crate) fn call(shared: &Arc<Shared>, operation: &str, input: &Value, caller: &Identity) -> Result<Value, ApiError> {
    match operation {
        "StartSession" => start_session(shared, input, caller),
        "ResumeSession" => {
            let id = own_session(input, caller, "ssm:ResumeSession")?;
            let resumed = shared.gateway.resume_session(id);
            // Of one that is over there is no token.
            Ok(resumed.map_or_else(|| json!({"SessionId": id, "TokenValue": ""}), |started| answer(shared, &started)))
        }
        "TerminateSession" => {
            let id = own_session(input, caller, "ssm:TerminateSession")?;
            shared.gateway.terminate_session(id);
            Ok(json!({"SessionId": id}))
        }
        "GetParameter" => get_parameter(shared, input, caller),
        "GetParametersByPath" => parameters_below(shared, input, caller),
        _ => Err(ApiError::new("InvalidAction", format!("the sandbox has no ssm:{operation}"))),
    }
}

fn authorize(caller: &Identity, action: &str, resource: &str) -> Result<(), ApiError> {
    caller.authorize(action, resource).map_err(ApiError::denied)
}

/// The session id of the request, if the session is the caller's own.
fn own_session<'v>(input: &'v Value, caller: &Identity, action: &str) -> Result<&'v str, ApiError> {
    let id = text(input, "SessionId")?;
    let resource = format!("arn:aws:ssm:{REGION}:{ACCOUNT}:session/{id}");
    authorize(caller, action, &resource)?;
    match id.starts_with(&format!("{}-", caller.session_name())) {
        true => Ok(id),
        false => Err(ApiError::denied(format!(
            "User: {} is not authorized to perform: {action} on resource: {resource}",
            caller.arn
        ))),
    }
}

fn start_session(shared: &Arc<Shared>, input: &Value, caller: &Identity) -> Result<Value, ApiError> {
    let target = text(input, "Target")?;
    let task_id = target.split('_').nth(1).unwrap_or_default();
    let task = format!("arn:aws:ecs:{REGION}:{ACCOUNT}:task/{CLUSTER}/{task_id}");
    let user = shared.tasks.with(|tasks| tasks.iter().find(|task| task.id == task_id).and_then(Task::user));
    caller.authorize_tagged("ssm:StartSession", &task, user.as_deref()).map_err(ApiError::denied)?;
    let document = input["DocumentName"].as_str().unwrap_or("SSM-SessionManagerRunShell");
    let document = document.rsplit('/').next().unwrap_or(document);
    if document != STOCK_DOCUMENT && !document.starts_with("bastion-") {
        let message = format!("Document with name {document} does not exist.");
        return Err(ApiError::new("InvalidDocument", message));
    }
    let owner = if document == STOCK_DOCUMENT { "" } else { ACCOUNT };
    authorize(caller, "ssm:StartSession", &format!("arn:aws:ssm:{REGION}:{owner}:document/{document}"))?;
    let reason = input["Reason"].as_str();
    if reason.is_some_and(|reason| reason.chars().count() > 256) {
        return Err(ApiError::new("ValidationException", "Reason must have length less than or equal to 256"));
    }
    let port = port(input, document)?;
    let address = shared.tasks.with(|tasks| {
        let task = tasks.iter().find(|task| task.session_target() == target)?;
        task.takes_sessions().then_some(task.address)
    });
    let Some(address) = address else {
        return Err(ApiError::new("TargetNotConnected", format!("{target} is not connected.")));
    };
    shared.reasons.lock().unwrap_or_else(PoisonError::into_inner).push(reason.map(str::to_owned));
    let session_id = format!("{}-{}", caller.session_name(), &uuid::Uuid::new_v4().simple().to_string()[..17]);
    let spec = SessionSpec { session_id, target: target.to_owned(), agent_host: IpAddr::V4(address), port };
    Ok(answer(shared, &shared.gateway.start_session(spec)))
}

/// Each parameter is a list of one string; our own documents fix the port.
fn port(input: &Value, document: &str) -> Result<u16, ApiError> {
    let invalid = |message: String| ApiError::new("InvalidParameters", message);
    let parameters = input["Parameters"].as_object().cloned().unwrap_or_default();
    for (name, value) in &parameters {
        let allowed =
            if document == STOCK_DOCUMENT { &["portNumber", "localPortNumber"][..] } else { &["localPortNumber"] };
        if !allowed.contains(&name.as_str()) {
            return Err(invalid(format!("Parameter \"{name}\" is not defined in the document.")));
        }
        if value.as_array().is_none_or(|values| values.len() != 1 || !values[0].is_string()) {
            return Err(invalid(format!("Parameter \"{name}\" must be a list of one string.")));
        }
    }
    if document != STOCK_DOCUMENT {
        return Ok(7070);
    }
    let port = parameters.get("portNumber").and_then(|values| values[0].as_str()).unwrap_or("80");
    port.parse().map_err(|_| invalid(format!("portNumber {port} does not match [0-9]{{1,5}}")))
}

fn answer(shared: &Shared, started: &Started) -> Value {
    let url = format!("{}{}", shared.endpoint().replacen("http", "ws", 1), started.stream_path);
    json!({"SessionId": started.session_id, "TokenValue": started.token, "StreamUrl": url})
}

fn get_parameter(shared: &Shared, input: &Value, caller: &Identity) -> Result<Value, ApiError> {
    let name = text(input, "Name")?;
    authorize(caller, "ssm:GetParameter", &format!("arn:aws:ssm:{REGION}:{ACCOUNT}:parameter{name}"))?;
    match shared.parameters.get(name) {
        Some(value) => Ok(json!({"Parameter": {
            "Name": name, "Type": "String", "Value": value, "Version": 1, "DataType": "text",
            "ARN": format!("arn:aws:ssm:{REGION}:{ACCOUNT}:parameter{name}"),
        }})),
        None => Err(ApiError::new("ParameterNotFound", "")),
    }
}

fn parameters_below(shared: &Shared, input: &Value, caller: &Identity) -> Result<Value, ApiError> {
    let path = text(input, "Path")?;
    authorize(caller, "ssm:GetParametersByPath", &format!("arn:aws:ssm:{REGION}:{ACCOUNT}:parameter{path}"))?;
    let below = |(name, value): (&String, &String)| {
        let rest = name.strip_prefix(path)?.trim_start_matches('/');
        (!rest.is_empty() && !rest.contains('/')).then(|| json!({"Name": name, "Type": "String", "Value": value}))
    };
    Ok(json!({"Parameters": shared.parameters.iter().filter_map(below).collect::<Vec<_>>()}))
}
