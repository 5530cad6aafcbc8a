//! Tasks of ECS: run, list, describe, stop.

use std::collections::BTreeMap;
use std::time::SystemTime;

use aws_sdk_ecs::types::{
    AssignPublicIp, AwsVpcConfiguration, Container, ContainerOverride, DesiredStatus, Failure, KeyValuePair,
    LaunchType, ManagedAgentName, NetworkConfiguration, Tag, Task, TaskField, TaskOverride,
};
use aws_smithy_types::DateTime;
use aws_smithy_types::error::metadata::ProvideErrorMetadata as _;

use crate::aws::error::{AwsError, Call, short};
use crate::aws::{Aws, last_part};

/// The most ARNs that DescribeTasks takes (ECS API Reference).
const DESCRIBE_MAX: usize = 100;
/// More running tasks of one family than this are not ours to list.
const LIST_MAX: usize = 10_000;

/// What RunTask is asked for.
#[derive(Debug, Clone)]
pub(crate) struct TaskOrder {
    pub(crate) cluster: String,
    /// Family, `family:revision` or ARN.
    pub(crate) task_definition: String,
    /// The container whose environment is extended.
    pub(crate) container: String,
    pub(crate) subnets: Vec<String>,
    pub(crate) security_groups: Vec<String>,
    pub(crate) assign_public_ip: bool,
    /// The same token gives the same task, at most 64 characters.
    pub(crate) client_token: String,
    pub(crate) tags: Vec<(String, String)>,
    pub(crate) environment: Vec<(String, String)>,
}

/// A task as ECS describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TaskState {
    pub(crate) arn: String,
    /// The last part of the ARN.
    pub(crate) id: String,
    pub(crate) last_status: String,
    pub(crate) desired_status: String,
    pub(crate) tags: BTreeMap<String, String>,
    pub(crate) stop_code: Option<String>,
    pub(crate) stopped_reason: Option<String>,
    pub(crate) containers: Vec<ContainerState>,
    pub(crate) created_at: Option<SystemTime>,
    pub(crate) started_at: Option<SystemTime>,
}

/// A container of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ContainerState {
    pub(crate) name: String,
    pub(crate) last_status: String,
    pub(crate) exit_code: Option<i32>,
    pub(crate) reason: Option<String>,
    /// Of its ExecuteCommandAgent: `PENDING`, `RUNNING` or `STOPPED`.
    pub(crate) agent_status: Option<String>,
    /// What ECS says about the agent, for example why it does not start.
    pub(crate) agent_reason: Option<String>,
    pub(crate) runtime_id: Option<String>,
}

impl TaskState {
    /// The container of this name. With ExecuteCommand on, each container of a task has an agent of its own.
    pub(crate) fn container(&self, name: &str) -> Option<&ContainerState> {
        self.containers.iter().find(|container| container.name == name)
    }

    /// The Session Manager target of a container, `ecs:<cluster>_<task id>_<runtime id>`; `cluster` is a name or an ARN.
    /// `None` while the container has no runtime id. The agent in the task registers under the same name
    /// (amazon-ssm-agent, its ECS identity).
    pub(crate) fn session_target(&self, cluster: &str, container: &str) -> Option<String> {
        let runtime = self.container(container)?.runtime_id.as_deref()?;
        Some(format!("ecs:{}_{}_{runtime}", last_part(cluster), self.id))
    }
}

impl From<&Task> for TaskState {
    fn from(task: &Task) -> Self {
        let text = |value: Option<&str>| value.unwrap_or_default().to_owned();
        let arn = text(task.task_arn());
        let containers: Vec<ContainerState> = task.containers().iter().map(ContainerState::from).collect();
        Self {
            id: last_part(&arn).to_owned(),
            last_status: text(task.last_status()),
            desired_status: text(task.desired_status()),
            tags: task.tags().iter().filter_map(|tag| Some((tag.key()?.to_owned(), text(tag.value())))).collect(),
            stop_code: task.stop_code().map(|code| code.as_str().to_owned()),
            stopped_reason: task.stopped_reason().map(str::to_owned),
            created_at: task.created_at().and_then(time),
            started_at: task.started_at().and_then(time),
            arn,
            containers,
        }
    }
}

impl From<&Container> for ContainerState {
    fn from(container: &Container) -> Self {
        let agent =
            container.managed_agents().iter().find(|one| one.name() == Some(&ManagedAgentName::ExecuteCommandAgent));
        Self {
            name: container.name().unwrap_or_default().to_owned(),
            last_status: container.last_status().unwrap_or_default().to_owned(),
            exit_code: container.exit_code(),
            reason: container.reason().map(str::to_owned),
            agent_status: agent.and_then(|agent| agent.last_status()).map(str::to_owned),
            agent_reason: agent.and_then(|agent| agent.reason()).map(short).filter(|reason| !reason.is_empty()),
            runtime_id: container.runtime_id().map(str::to_owned),
        }
    }
}

fn time(time: &DateTime) -> Option<SystemTime> {
    SystemTime::try_from(*time).ok()
}

fn refused(failure: &Failure) -> AwsError {
    let reason = failure.reason().unwrap_or("no reason given");
    let detail = failure.detail().map(|detail| format!(" ({detail})")).unwrap_or_default();
    AwsError::Refused { reason: short(&format!("{reason}{detail}")) }
}

impl Aws {
    /// RunTask on Fargate with ExecuteCommand on.
    ///
    /// # Errors
    /// [`AwsError`]; `Refused` with the reason where ECS took the call but started nothing.
    pub(crate) async fn run_task(&self, order: &TaskOrder) -> Result<TaskState, AwsError> {
        let service = self.service("ECS")?;
        let call =
            Call { cluster: &order.cluster, task_definition: &order.task_definition, ..self.call("RunTask", &service) };
        let invalid = |error: &dyn std::error::Error| call.other("InvalidOrder", &error.to_string());
        let network = AwsVpcConfiguration::builder()
            .set_subnets(Some(order.subnets.clone()))
            .set_security_groups(Some(order.security_groups.clone()))
            .assign_public_ip(if order.assign_public_ip { AssignPublicIp::Enabled } else { AssignPublicIp::Disabled })
            .build()
            .map_err(|error| invalid(&error))?;
        let variable = |(name, value): &(String, String)| KeyValuePair::builder().name(name).value(value).build();
        let container = ContainerOverride::builder()
            .name(&order.container)
            .set_environment(Some(order.environment.iter().map(variable).collect()))
            .build();
        let tag = |(key, value): &(String, String)| Tag::builder().key(key).value(value).build();
        let answer = self
            .ecs
            .run_task()
            .cluster(&order.cluster)
            .task_definition(&order.task_definition)
            .count(1)
            .launch_type(LaunchType::Fargate)
            .enable_execute_command(true)
            .client_token(&order.client_token)
            .network_configuration(NetworkConfiguration::builder().awsvpc_configuration(network).build())
            .overrides(TaskOverride::builder().container_overrides(container).build())
            .set_tags(Some(order.tags.iter().map(tag).collect()))
            .send()
            .await
            .map_err(|error| call.failed(&error))?;
        match (answer.tasks().first(), answer.failures().first()) {
            (Some(task), _) => Ok(TaskState::from(task)),
            (None, Some(failure)) => Err(refused(failure)),
            (None, None) => Err(AwsError::Refused { reason: "no task was started and no reason given".to_owned() }),
        }
    }

    /// The tasks of a task definition's family that run or are to run, with their tags.
    pub(crate) async fn tasks(&self, cluster: &str, family: &str) -> Result<Vec<TaskState>, AwsError> {
        let service = self.service("ECS")?;
        let call = Call { cluster, task_definition: family, ..self.call("ListTasks", &service) };
        let list = self.ecs.list_tasks().cluster(cluster).family(family).desired_status(DesiredStatus::Running);
        let mut pages = list.into_paginator().items().send();
        let mut arns = Vec::new();
        while let Some(arn) = pages.next().await {
            arns.push(arn.map_err(|error| call.failed(&error))?);
            if arns.len() >= LIST_MAX {
                break;
            }
        }
        let mut tasks = Vec::with_capacity(arns.len());
        for chunk in arns.chunks(DESCRIBE_MAX) {
            // A failure here is a task that went away in between.
            let (found, _gone) = self.describe(cluster, chunk).await?;
            tasks.extend(found);
        }
        Ok(tasks)
    }

    /// One task; `None` if ECS does not know it (any more).
    pub(crate) async fn task(&self, cluster: &str, arn: &str) -> Result<Option<TaskState>, AwsError> {
        let (found, failures) = self.describe(cluster, &[arn.to_owned()]).await?;
        match (found.into_iter().next(), failures.first()) {
            (Some(task), _) => Ok(Some(task)),
            (None, Some(failure)) if failure.reason() != Some("MISSING") => Err(refused(failure)),
            (None, _) => Ok(None),
        }
    }

    async fn describe(&self, cluster: &str, arns: &[String]) -> Result<(Vec<TaskState>, Vec<Failure>), AwsError> {
        let service = self.service("ECS")?;
        let call = Call { cluster, ..self.call("DescribeTasks", &service) };
        let request = self.ecs.describe_tasks().cluster(cluster).set_tasks(Some(arns.to_vec()));
        let answer = request.include(TaskField::Tags).send().await.map_err(|error| call.failed(&error))?;
        Ok((answer.tasks().iter().map(TaskState::from).collect(), answer.failures().to_vec()))
    }

    /// Stops a task; one that ECS does not know (any more) is stopped already.
    pub(crate) async fn stop_task(&self, cluster: &str, arn: &str, reason: &str) -> Result<(), AwsError> {
        let service = self.service("ECS")?;
        let call = Call { cluster, ..self.call("StopTask", &service) };
        match self.ecs.stop_task().cluster(cluster).task(arn).reason(reason).send().await {
            Ok(_) => Ok(()),
            // "The referenced task was not found."
            Err(error)
                if error.code() == Some("InvalidParameterException")
                    && error.message().is_some_and(|message| message.contains("task was not found")) =>
            {
                Ok(())
            }
            Err(error) => Err(call.failed(&error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use aws_sdk_ecs::types::{ManagedAgent, TaskStopCode};
    use std::time::Duration;

    use super::*;

    const ARN: &str = "arn:aws:ecs:ap-northeast-1:123456789012:task/bastion/0123456789abcdef0123456789abcdef";

    fn container(name: &str, agent: Option<&str>) -> Container {
        let agent = agent.map(|status| {
            let agent = ManagedAgent::builder().name(ManagedAgentName::ExecuteCommandAgent).last_status(status);
            agent.reason("it starts\nagain.").build()
        });
        Container::builder()
            .name(name)
            .last_status("RUNNING")
            .runtime_id(format!("{name}-1"))
            .set_managed_agents(agent.map(|agent| vec![agent]))
            .build()
    }

    #[test]
    fn a_running_task_with_a_sidecar() {
        let task = Task::builder()
            .task_arn(ARN)
            .last_status("RUNNING")
            .desired_status("RUNNING")
            .created_at(DateTime::from_secs(1_800_000_000))
            .tags(Tag::builder().key("bastion:env").value("demo").build())
            .tags(Tag::builder().key("empty").build())
            .containers(container("sidecar", Some("RUNNING")))
            .containers(container("relay", Some("PENDING")))
            .build();
        let state = TaskState::from(&task);
        assert_eq!(state.id, "0123456789abcdef0123456789abcdef");
        let relay = state.container("relay").unwrap();
        assert_eq!((relay.agent_status.as_deref(), relay.runtime_id.as_deref()), (Some("PENDING"), Some("relay-1")));
        assert_eq!(relay.agent_reason.as_deref(), Some("it starts again"));
        assert_eq!(state.tags.get("bastion:env").map(String::as_str), Some("demo"));
        assert_eq!(state.tags.get("empty").map(String::as_str), Some(""));
        assert_eq!(state.created_at, Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)));
        assert_eq!(state.started_at, None);

        let target = Some("ecs:bastion_0123456789abcdef0123456789abcdef_relay-1".to_owned());
        assert_eq!(state.session_target("bastion", "relay"), target);
        let cluster = "arn:aws:ecs:ap-northeast-1:123456789012:cluster/bastion";
        assert_eq!(state.session_target(cluster, "relay"), target);
        assert_eq!(state.session_target("bastion", "nobody"), None);
    }

    #[test]
    fn a_task_that_could_not_start() {
        let pull = Container::builder().name("relay").last_status("STOPPED").reason("CannotPullContainerError").build();
        let killed = Container::builder().name("sidecar").exit_code(137).build();
        let task = Task::builder()
            .task_arn(ARN)
            .stop_code(TaskStopCode::TaskFailedToStart)
            .stopped_reason("Essential container in task exited")
            .containers(pull)
            .containers(killed)
            .build();
        let state = TaskState::from(&task);
        assert_eq!(state.stop_code.as_deref(), Some("TaskFailedToStart"));
        assert_eq!(state.stopped_reason.as_deref(), Some("Essential container in task exited"));
        assert_eq!(state.containers[0].reason.as_deref(), Some("CannotPullContainerError"));
        assert_eq!(state.containers[1].exit_code, Some(137));
        let relay = state.container("relay").unwrap();
        assert_eq!((relay.agent_status.as_deref(), relay.runtime_id.as_deref()), (None, None));
        assert_eq!(state.session_target("bastion", "relay"), None);
    }

    #[test]
    fn a_refusal_names_reason_and_detail() {
        let failure = Failure::builder().reason("RESOURCE:CPU").detail("none left").build();
        assert_eq!(refused(&failure), AwsError::Refused { reason: "RESOURCE:CPU (none left)".to_owned() });
    }
}
