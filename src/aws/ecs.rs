//! ECS: run, look at, and stop tasks.

use std::collections::BTreeMap;
use std::time::SystemTime;

use aws_sdk_ecs::types::{
    AssignPublicIp, AwsVpcConfiguration, ContainerOverride, KeyValuePair, LaunchType, NetworkConfiguration, Tag, Task,
    TaskField, TaskOverride,
};

use crate::aws::Aws;
use crate::aws::error::{self, AwsError, Call};

const SERVICE: &str = "ECS";
const AGENT: &str = "ExecuteCommandAgent";
/// `DescribeTasks` takes no more at once.
const DESCRIBE_MAX: usize = 100;

/// What to run.
#[derive(Debug, Clone)]
pub(crate) struct TaskOrder {
    pub(crate) cluster: String,
    pub(crate) task_definition: String,
    pub(crate) container: String,
    pub(crate) subnets: Vec<String>,
    pub(crate) security_groups: Vec<String>,
    pub(crate) assign_public_ip: bool,
    /// Makes a repeated request start one task.
    pub(crate) client_token: String,
    pub(crate) tags: Vec<(String, String)>,
    pub(crate) environment: Vec<(String, String)>,
}

/// One container of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ContainerState {
    pub(crate) name: String,
    pub(crate) runtime_id: Option<String>,
    pub(crate) exit_code: Option<i32>,
    pub(crate) reason: Option<String>,
}

/// A task as ECS describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TaskState {
    pub(crate) arn: String,
    /// The last part of the ARN.
    pub(crate) id: String,
    pub(crate) last_status: String,
    pub(crate) desired_status: String,
    /// State of the ExecuteCommandAgent.
    pub(crate) agent_status: Option<String>,
    pub(crate) tags: BTreeMap<String, String>,
    pub(crate) stop_code: Option<String>,
    pub(crate) stopped_reason: Option<String>,
    pub(crate) containers: Vec<ContainerState>,
    pub(crate) created_at: Option<SystemTime>,
}

impl TaskState {
    fn new(task: &Task) -> Self {
        let arn = task.task_arn().unwrap_or_default().to_owned();
        let agents = task.containers().iter().flat_map(aws_sdk_ecs::types::Container::managed_agents);
        let agent = agents.into_iter().find(|agent| agent.name().is_some_and(|name| name.as_str() == AGENT));
        let container = |container: &aws_sdk_ecs::types::Container| ContainerState {
            name: container.name().unwrap_or_default().to_owned(),
            runtime_id: container.runtime_id().map(str::to_owned),
            exit_code: container.exit_code(),
            reason: container.reason().map(str::to_owned),
        };
        let tag = |tag: &Tag| Some((tag.key()?.to_owned(), tag.value().unwrap_or_default().to_owned()));
        Self {
            id: arn.rsplit('/').next().unwrap_or_default().to_owned(),
            arn,
            last_status: task.last_status().unwrap_or_default().to_owned(),
            desired_status: task.desired_status().unwrap_or_default().to_owned(),
            agent_status: agent.and_then(|agent| agent.last_status()).map(str::to_owned),
            tags: task.tags().iter().filter_map(tag).collect(),
            stop_code: task.stop_code().map(|code| code.as_str().to_owned()),
            stopped_reason: task.stopped_reason().map(str::to_owned),
            containers: task.containers().iter().map(container).collect(),
            created_at: task.created_at().and_then(|at| SystemTime::try_from(*at).ok()),
        }
    }

    /// The Session Manager target of a container: `ecs:CLUSTER_TASK_RUNTIME`.
    pub(crate) fn session_target(&self, cluster: &str, container: &str) -> Option<String> {
        let cluster = cluster.rsplit('/').next().unwrap_or(cluster);
        let runtime_id = self.containers.iter().find(|known| known.name == container)?.runtime_id.as_deref()?;
        Some(format!("ecs:{cluster}_{}_{runtime_id}", self.id))
    }
}

impl Aws {
    fn ecs(&self) -> aws_sdk_ecs::Client {
        aws_sdk_ecs::Client::new(&self.config)
    }

    fn ecs_call<'a>(&'a self, operation: &'a str, cluster: &'a str) -> Call<'a> {
        Call { cluster, ..self.call(operation, SERVICE) }
    }

    /// Runs a Fargate task with ECS Exec.
    pub(crate) async fn run_task(&self, order: &TaskOrder) -> Result<TaskState, AwsError> {
        let call = Call { task_definition: &order.task_definition, ..self.ecs_call("ecs:RunTask", &order.cluster) };
        let public = if order.assign_public_ip { AssignPublicIp::Enabled } else { AssignPublicIp::Disabled };
        let network = AwsVpcConfiguration::builder()
            .set_subnets(Some(order.subnets.clone()))
            .set_security_groups(Some(order.security_groups.clone()).filter(|groups| !groups.is_empty()))
            .assign_public_ip(public)
            .build()
            .map_err(|error| call.other("NotSent", &error.to_string()))?;
        let variables =
            order.environment.iter().map(|(name, value)| KeyValuePair::builder().name(name).value(value).build());
        let container =
            ContainerOverride::builder().name(&order.container).set_environment(Some(variables.collect())).build();
        let tags = order.tags.iter().map(|(key, value)| Tag::builder().key(key).value(value).build());
        let answer = self
            .ecs()
            .run_task()
            .cluster(&order.cluster)
            .task_definition(&order.task_definition)
            .launch_type(LaunchType::Fargate)
            .count(1)
            .enable_execute_command(true)
            .client_token(&order.client_token)
            .network_configuration(NetworkConfiguration::builder().awsvpc_configuration(network).build())
            .overrides(TaskOverride::builder().container_overrides(container).build())
            .set_tags(Some(tags.collect()))
            .send()
            .await
            .map_err(|error| call.failed(&error))?;
        if let Some(task) = answer.tasks().first() {
            return Ok(TaskState::new(task));
        }
        let failure = answer.failures().first();
        let reason =
            failure.and_then(|failure| failure.reason().or_else(|| failure.detail())).unwrap_or("no reason given");
        Err(AwsError::Refused { reason: error::short(reason) })
    }

    /// Tasks of a family that run or will run.
    pub(crate) async fn tasks(&self, cluster: &str, family: &str) -> Result<Vec<TaskState>, AwsError> {
        let call = self.ecs_call("ecs:ListTasks", cluster);
        let mut arns = Vec::new();
        let mut pages = self.ecs().list_tasks().cluster(cluster).family(family).into_paginator().send();
        while let Some(page) = pages.next().await {
            arns.extend(page.map_err(|error| call.failed(&error))?.task_arns().iter().cloned());
        }
        let mut tasks = Vec::new();
        for some in arns.chunks(DESCRIBE_MAX) {
            tasks.extend(self.describe(cluster, some).await?);
        }
        Ok(tasks)
    }

    /// One task; `None` if ECS no longer knows it (about an hour after its end).
    pub(crate) async fn task(&self, cluster: &str, arn: &str) -> Result<Option<TaskState>, AwsError> {
        Ok(self.describe(cluster, &[arn.to_owned()]).await?.into_iter().next())
    }

    async fn describe(&self, cluster: &str, arns: &[String]) -> Result<Vec<TaskState>, AwsError> {
        let call = self.ecs_call("ecs:DescribeTasks", cluster);
        let request = self.ecs().describe_tasks().cluster(cluster).set_tasks(Some(arns.to_vec()));
        let answer = request.include(TaskField::Tags).send().await.map_err(|error| call.failed(&error))?;
        Ok(answer.tasks().iter().map(TaskState::new).collect())
    }

    /// Asks ECS to stop a task.
    pub(crate) async fn stop_task(&self, cluster: &str, arn: &str, reason: &str) -> Result<(), AwsError> {
        let call = self.ecs_call("ecs:StopTask", cluster);
        let request = self.ecs().stop_task().cluster(cluster).task(arn).reason(reason);
        request.send().await.map_err(|error| call.failed(&error))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use aws_sdk_ecs::types::{Container, ManagedAgent, ManagedAgentName};

    use super::*;

    #[test]
    fn a_task_of_the_sdk_becomes_ours() {
        let agent = ManagedAgent::builder().name(ManagedAgentName::ExecuteCommandAgent).last_status("RUNNING").build();
        let container = Container::builder().name("bastion").runtime_id("t1-7").managed_agents(agent).build();
        let task = Task::builder()
            .task_arn("arn:aws:ecs:eu-west-1:1:task/c/t1")
            .last_status("RUNNING")
            .containers(container)
            .tags(Tag::builder().key("bastion:env").value("prod").build())
            .build();
        let task = TaskState::new(&task);
        assert_eq!((task.id.as_str(), task.agent_status.as_deref()), ("t1", Some("RUNNING")));
        assert_eq!(task.tags["bastion:env"], "prod");
        let target = task.session_target("arn:aws:ecs:eu-west-1:1:cluster/c", "bastion");
        assert_eq!(target.as_deref(), Some("ecs:c_t1_t1-7"));
        assert_eq!(task.session_target("c", "other"), None);
    }
}
