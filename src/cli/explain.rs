//! Why a task did not come up or has ended, in words that lead to the fix.

use std::time::Duration;

use crate::aws::{ContainerState, TaskState};
use crate::cli::error::CommandError;

/// What ECS says (a part of it), what it means, what to do. The order matters: the first that fits is told.
/// Texts: Amazon ECS Developer Guide, "Amazon ECS stopped tasks error messages".
const REASONS: [(&str, &str); 12] = [
    ("RESOURCE:ENI", "the subnets have no free addresses; use larger subnets or more of them"),
    (
        "Capacity is unavailable",
        "Fargate has no capacity in these zones now; try again in a minute, or add subnets in other zones",
    ),
    (
        "RESOURCE:",
        "the account's Fargate quota is used up; raise \"Fargate On-Demand vCPU resource count\" in Service Quotas",
    ),
    (
        "CannotPullContainerError",
        "check the image in the task definition, the execution role's ecr permissions, and a way to ECR (NAT or the endpoints ecr.api, ecr.dkr and s3)",
    ),
    (
        "ResourceInitializationError",
        "the task cannot reach ECR, CloudWatch Logs, Secrets Manager or SSM before its start; check NAT or VPC endpoints, their security groups, and the execution role",
    ),
    (
        "CannotStartContainerError",
        "the container could not be started; check entry point, user and volumes of the task definition",
    ),
    ("OutOfMemory", "give the task more memory"),
    ("Task failed ELB", "the task belongs to a service; bastion tasks stand alone"),
    (
        "Timeout waiting for network interface",
        "the subnets or the account's network interface quota are the cause; try again, then look at them",
    ),
    (
        "exit 64",
        "the relay's configuration (BASTION_CONFIG in the task definition) has mistakes; they are in the task's log",
    ),
    ("Essential container in task exited", "the relay ended; the task's log says why"),
    ("UserInitiated", "somebody stopped the task, or bastion down did"),
];

/// One sentence on a stopped task.
pub(super) fn stopped(task: &TaskState) -> String {
    let mut parts = Vec::new();
    parts.extend(task.stopped_reason.clone());
    for container in &task.containers {
        if let Some(reason) = container.reason.as_ref().filter(|reason| !parts.contains(*reason)) {
            parts.push(reason.clone());
        }
        if let Some(code) = container.exit_code {
            parts.push(format!("container {} ended with exit {code}", container.name));
        }
    }
    if parts.is_empty() {
        parts.extend(task.stop_code.clone());
    }
    match parts.is_empty() {
        true => format!("task {} has stopped and ECS gives no reason", task.id),
        false => format!("task {} has stopped: {}", task.id, parts.join("; ")),
    }
}

/// What to do about a reason of ECS.
pub(super) fn hint(text: &str) -> Option<&'static str> {
    REASONS.iter().find(|(part, _)| text.contains(part)).map(|(_, hint)| *hint)
}

/// The error for a task that has stopped.
pub(super) fn stopped_error(task: &TaskState) -> CommandError {
    let sentence = stopped(task);
    let error = CommandError::failed(anyhow::anyhow!("{sentence}"));
    match hint(&format!("{sentence} {}", task.stop_code.as_deref().unwrap_or_default())) {
        Some(hint) => error.hinted(hint),
        None => error,
    }
}

/// The error for an ExecuteCommandAgent that does not come up.
pub(super) fn agent_error(task: &TaskState, container: &ContainerState, waited: Duration) -> CommandError {
    let status = container.agent_status.as_deref().unwrap_or("unknown");
    let reason = container.agent_reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    let (name, id, seconds) = (&container.name, &task.id, waited.as_secs());
    CommandError::failed(anyhow::anyhow!(
        "the ExecuteCommandAgent in container {name:?} of task {id} is {status} after {seconds} s{reason}"
    ))
}

/// Adds what may be the cause.
pub(super) fn agent_hints(error: CommandError) -> CommandError {
    error
        .hinted("the task role needs ssmmessages:CreateControlChannel, CreateDataChannel, OpenControlChannel and OpenDataChannel (not the execution role)")
        .hinted("the subnet needs a way to ssmmessages: NAT, or the VPC endpoint ssmmessages whose security group lets the task in on 443")
        .hinted("with a read-only root file system, /managed-agents, /var/lib/amazon/ssm and /var/log/amazon/ssm must be volumes")
        .hinted("if all that is right, register the task definition without linuxParameters.capabilities: docs/deploy.md has the next steps")
}

/// The error for a task without the container that the environment names.
pub(super) fn no_container(task: &TaskState, name: &str) -> CommandError {
    let names: Vec<&str> = task.containers.iter().map(|container| container.name.as_str()).collect();
    CommandError::failed(anyhow::anyhow!("task {} has no container {name:?}: it has {}", task.id, names.join(", ")))
        .hinted("set container to the name of the relay's container in the task definition")
}
