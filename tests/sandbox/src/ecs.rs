//! ECS: RunTask, DescribeTasks, ListTasks, StopTask, with the life cycle of a Fargate task. Each task is a real
//! `bastion relay` process, or container, on a loopback address of its own.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use crate::api::{ApiError, text};
use crate::iam::Identity;
use crate::{ACCOUNT, CLUSTER, REGION, Shared};

/// What a task definition of the sandbox says.
#[derive(Debug, Clone)]
pub struct TaskDefinition {
    pub family: String,
    /// Name of the relay's container.
    pub container: String,
    pub environment: BTreeMap<String, String>,
    /// Name of the task role.
    pub role: String,
    /// The database users that the role may `rds-db:connect` as.
    pub db_users: Vec<String>,
    /// ECS sends SIGKILL so long after SIGTERM.
    pub stop_timeout: Duration,
}

impl TaskDefinition {
    fn arn(&self) -> String {
        format!("arn:aws:ecs:{REGION}:{ACCOUNT}:task-definition/{}:1", self.family)
    }

    fn role_arn(&self) -> String {
        format!("arn:aws:iam::{ACCOUNT}:role/{}", self.role)
    }
}

/// One task.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) id: String,
    definition: TaskDefinition,
    overrides: BTreeMap<String, String>,
    tags: Vec<Value>,
    started_by: String,
    client_token: Option<String>,
    pub(crate) runtime_id: String,
    pub(crate) address: Ipv4Addr,
    pub(crate) last_status: &'static str,
    /// Of its relay.
    pub(crate) pid: Option<u32>,
    desired_status: &'static str,
    stop_code: Option<&'static str>,
    stopped_reason: Option<String>,
    container_reason: Option<String>,
    exit_code: Option<i32>,
    pub(crate) agent_status: &'static str,
    agent_reason: Option<&'static str>,
    /// Of a second container, if there is one.
    sidecar_runtime_id: Option<String>,
    created_at: f64,
    started_at: Option<f64>,
    stopped_at: Option<f64>,
    stop: CancellationToken,
    /// Its log has a reader until then.
    pub(crate) log_end: CancellationToken,
}

impl Task {
    fn arn(&self) -> String {
        task_arn(&self.id)
    }

    pub(crate) fn tag(&self, key: &str) -> Option<&str> {
        tag(&self.tags, key)
    }

    /// Whose it is, for policies: the tag `bastion:user`.
    pub(crate) fn user(&self) -> Option<String> {
        user_tag(&self.tags).map(str::to_owned)
    }

    /// The Session Manager target of its container.
    pub(crate) fn session_target(&self) -> String {
        format!("ecs:{CLUSTER}_{}_{}", self.id, self.runtime_id)
    }

    pub(crate) fn stop_now(&self) {
        self.stop.cancel();
    }

    /// The task role's name and the database users it may connect as.
    pub(crate) fn role(&self) -> (String, Vec<String>) {
        (self.definition.role.clone(), self.definition.db_users.clone())
    }

    pub(crate) fn takes_sessions(&self) -> bool {
        self.last_status == "RUNNING" && self.agent_status == "RUNNING"
    }

    fn describe(&self, tags: bool) -> Value {
        let started =
            matches!(self.last_status, "RUNNING" | "DEACTIVATING" | "STOPPING" | "DEPROVISIONING" | "STOPPED");
        let container_status = match self.last_status {
            "STOPPED" | "DEPROVISIONING" => "STOPPED",
            "RUNNING" | "DEACTIVATING" | "STOPPING" => "RUNNING",
            _ => "PENDING",
        };
        let mut container = json!({
            "containerArn": format!("arn:aws:ecs:{REGION}:{ACCOUNT}:container/{CLUSTER}/{}/1", self.id),
            "taskArn": self.arn(),
            "name": self.definition.container,
            "lastStatus": container_status,
            "managedAgents": [{"name": "ExecuteCommandAgent", "lastStatus": self.agent_status}],
        });
        if let Some(reason) = self.agent_reason {
            container["managedAgents"][0]["reason"] = json!(reason);
        }
        if started && self.started_at.is_some() {
            container["runtimeId"] = json!(self.runtime_id);
        }
        if let Some(code) = self.exit_code {
            container["exitCode"] = json!(code);
        }
        if let Some(reason) = &self.container_reason {
            container["reason"] = json!(reason);
        }
        let mut containers = vec![container];
        if let Some(runtime_id) = &self.sidecar_runtime_id {
            let agent = if container_status == "RUNNING" { "RUNNING" } else { "PENDING" };
            let sidecar = json!({
                "containerArn": format!("arn:aws:ecs:{REGION}:{ACCOUNT}:container/{CLUSTER}/{}/2", self.id),
                "taskArn": self.arn(),
                "name": "sidecar",
                "lastStatus": container_status,
                "runtimeId": runtime_id,
                "managedAgents": [{"name": "ExecuteCommandAgent", "lastStatus": agent}],
            });
            containers.insert(0, sidecar);
        }
        let overrides: Vec<Value> =
            self.overrides.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
        let mut task = json!({
            "taskArn": self.arn(),
            "clusterArn": format!("arn:aws:ecs:{REGION}:{ACCOUNT}:cluster/{CLUSTER}"),
            "taskDefinitionArn": self.definition.arn(),
            "containers": containers,
            "lastStatus": self.last_status,
            "desiredStatus": self.desired_status,
            "launchType": "FARGATE",
            "enableExecuteCommand": true,
            "startedBy": self.started_by,
            "createdAt": self.created_at,
            "overrides": {"containerOverrides": [{"name": self.definition.container, "environment": overrides}]},
            "group": format!("family:{}", self.definition.family),
            "version": 1,
        });
        let optional = [
            ("startedAt", self.started_at.map(|at| json!(at))),
            ("stoppedAt", self.stopped_at.map(|at| json!(at))),
            ("stopCode", self.stop_code.map(|code| json!(code))),
            ("stoppedReason", self.stopped_reason.as_ref().map(|reason| json!(reason))),
            ("tags", tags.then(|| json!(self.tags))),
        ];
        for (name, value) in optional {
            if let Some(value) = value {
                task[name] = value;
            }
        }
        task
    }
}

/// The ARN of the task of this id.
pub fn task_arn(id: &str) -> String {
    format!("arn:aws:ecs:{REGION}:{ACCOUNT}:task/{CLUSTER}/{id}")
}

/// What `${ECS_CONTAINER_METADATA_URI_V4}/task` says, as far as anybody asks (ECS Developer Guide).
pub(crate) fn metadata(id: &str) -> Value {
    json!({
        "Cluster": format!("arn:aws:ecs:{REGION}:{ACCOUNT}:cluster/{CLUSTER}"), "TaskARN": task_arn(id),
        "DesiredStatus": "RUNNING", "KnownStatus": "RUNNING", "LaunchType": "FARGATE"
    })
}

/// All tasks, newest last.
#[derive(Debug, Default)]
pub(crate) struct Tasks(Mutex<Vec<Task>>);

impl Tasks {
    pub(crate) fn with<T>(&self, look: impl FnOnce(&mut Vec<Task>) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn update(&self, id: &str, change: impl FnOnce(&mut Task)) {
        self.with(|tasks| {
            if let Some(task) = tasks.iter_mut().find(|task| task.id == id) {
                change(task);
            }
        });
    }
}

/// Starts a task without an API call, for tests of the relay alone.
pub(crate) fn run_directly(shared: &Arc<Shared>, definition: &TaskDefinition) -> (String, Ipv4Addr) {
    let task = new_task(shared, definition, BTreeMap::new(), Vec::new(), &Value::Null, None);
    let (id, address, stop) = (task.id.clone(), task.address, task.stop.clone());
    shared.tasks.with(|tasks| tasks.push(task));
    shared.tracker.spawn(live(Arc::clone(shared), id.clone(), stop));
    (id, address)
}

/// Dispatches one call.
pub(crate) fn call(shared: &Arc<Shared>, operation: &str, input: &Value, caller: &Identity) -> Result<Value, ApiError> {
    match operation {
        "RunTask" => run_task(shared, input, caller),
        "DescribeTasks" => describe_tasks(shared, input, caller),
        "ListTasks" => list_tasks(shared, input, caller),
        "StopTask" => stop_task(shared, input, caller),
        _ => Err(ApiError::new("InvalidAction", format!("the sandbox has no ecs:{operation}"))),
    }
}

fn authorize(caller: &Identity, action: &str, resource: &str) -> Result<(), ApiError> {
    caller.authorize(action, resource).map_err(ApiError::denied)
}

fn check_cluster(input: &Value) -> Result<(), ApiError> {
    let cluster = input["cluster"].as_str().unwrap_or("default");
    match cluster.rsplit('/').next() {
        Some(CLUSTER) => Ok(()),
        _ => Err(ApiError::new("ClusterNotFoundException", "Cluster not found.")),
    }
}

fn run_task(shared: &Arc<Shared>, input: &Value, caller: &Identity) -> Result<Value, ApiError> {
    let wanted = text(input, "taskDefinition")?;
    let family = wanted.rsplit('/').next().unwrap_or(wanted).split(':').next().unwrap_or(wanted);
    let resource = format!("arn:aws:ecs:{REGION}:{ACCOUNT}:task-definition/{family}:1");
    let tags = input["tags"].as_array().cloned().unwrap_or_default();
    let user = user_tag(&tags);
    caller.authorize_tagged("ecs:RunTask", &resource, user).map_err(ApiError::denied)?;
    check_cluster(input)?;
    let definition = shared
        .task_definitions
        .iter()
        .find(|definition| definition.family == family)
        .ok_or_else(|| ApiError::new("ClientException", "TaskDefinition not found."))?;
    authorize(caller, "iam:PassRole", &definition.role_arn())?;
    if !tags.is_empty() {
        let task = format!("arn:aws:ecs:{REGION}:{ACCOUNT}:task/{CLUSTER}/*");
        caller.authorize_tagged("ecs:TagResource", &task, user).map_err(ApiError::denied)?;
    }
    check_tags(&tags)?;
    let network = &input["networkConfiguration"]["awsvpcConfiguration"];
    if network["subnets"].as_array().is_none_or(Vec::is_empty) {
        let message = "Network Configuration must be provided when networkMode 'awsvpc' is specified.";
        return Err(ApiError::new("InvalidParameterException", message));
    }
    if input["launchType"] != "FARGATE" || input["enableExecuteCommand"] != true {
        return Err(ApiError::new("InvalidParameterException", "the sandbox runs Fargate tasks with ECS Exec only"));
    }
    let overrides = overrides(input, definition)?;
    let token = input["clientToken"].as_str().map(str::to_owned);
    let known = shared.tasks.with(|tasks| {
        let same = |task: &&Task| token.is_some() && task.client_token == token;
        tasks.iter().find(same).map(|task| task.describe(true))
    });
    if let Some(task) = known {
        return Ok(json!({"tasks": [task], "failures": []}));
    }
    let faults = shared.faults();
    if let Some(reason) = faults.run_task_failure {
        return Ok(json!({"tasks": [], "failures": [{"reason": reason}]}));
    }
    let task = new_task(shared, definition, overrides, tags, input, token);
    let description = task.describe(true);
    let (id, stop) = (task.id.clone(), task.stop.clone());
    shared.tasks.with(|tasks| tasks.push(task));
    shared.tracker.spawn(live(Arc::clone(shared), id, stop));
    Ok(json!({"tasks": [description], "failures": []}))
}

/// The value of the tag `bastion:user`.
fn user_tag(tags: &[Value]) -> Option<&str> {
    tag(tags, "bastion:user")
}

fn tag<'t>(tags: &'t [Value], key: &str) -> Option<&'t str> {
    tags.iter().find(|tag| tag["key"] == key)?["value"].as_str()
}

fn check_tags(tags: &[Value]) -> Result<(), ApiError> {
    for tag in tags {
        let (key, value) = (tag["key"].as_str().unwrap_or_default(), tag["value"].as_str().unwrap_or_default());
        let legal = |text: &str| text.chars().all(|c| c.is_alphanumeric() || " _.:/=+-@".contains(c));
        if key.is_empty() || key.len() > 128 || value.len() > 256 || !legal(key) || !legal(value) {
            return Err(ApiError::new("InvalidParameterException", format!("Invalid tag: {key}={value}")));
        }
    }
    Ok(())
}

fn overrides(input: &Value, definition: &TaskDefinition) -> Result<BTreeMap<String, String>, ApiError> {
    let mut all = BTreeMap::new();
    for container in input["overrides"]["containerOverrides"].as_array().into_iter().flatten() {
        if container["name"] != definition.container.as_str() {
            let message = "Override for container named that is not a container in the TaskDefinition.";
            return Err(ApiError::new("InvalidParameterException", message));
        }
        for variable in container["environment"].as_array().into_iter().flatten() {
            all.insert(text(variable, "name")?.to_owned(), variable["value"].as_str().unwrap_or_default().to_owned());
        }
    }
    Ok(all)
}

fn new_task(
    shared: &Shared,
    definition: &TaskDefinition,
    overrides: BTreeMap<String, String>,
    tags: Vec<Value>,
    input: &Value,
    client_token: Option<String>,
) -> Task {
    let id = uuid::Uuid::new_v4().simple().to_string();
    let [a, b, c, ..] = *uuid::Uuid::new_v4().as_bytes();
    Task {
        runtime_id: format!("{id}-{:010}", u32::from_be_bytes([0, a, b, c])),
        sidecar_runtime_id: shared.faults().sidecar.then(|| format!("{id}-{:010}", u32::from_be_bytes([1, a, b, c]))),
        // 127.64.0.0/10: away from what else listens on loopback.
        address: Ipv4Addr::new(127, 64 | (a & 63), b, c.clamp(2, 254)),
        id,
        definition: definition.clone(),
        overrides,
        tags,
        started_by: input["startedBy"].as_str().unwrap_or_default().to_owned(),
        client_token,
        last_status: "PROVISIONING",
        pid: None,
        desired_status: "RUNNING",
        stop_code: None,
        stopped_reason: None,
        container_reason: None,
        exit_code: None,
        agent_status: "PENDING",
        agent_reason: None,
        created_at: epoch(),
        started_at: None,
        stopped_at: None,
        log_end: shared.stop.child_token(),
        stop: shared.stop.child_token(),
    }
}

fn epoch() -> f64 {
    crate::wall_clock().duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn describe_tasks(shared: &Shared, input: &Value, caller: &Identity) -> Result<Value, ApiError> {
    authorize(caller, "ecs:DescribeTasks", "*")?;
    check_cluster(input)?;
    let tags = input["include"].as_array().is_some_and(|include| include.iter().any(|what| what == "TAGS"));
    let (mut found, mut failures) = (Vec::new(), Vec::new());
    for wanted in input["tasks"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        let id = wanted.rsplit('/').next().unwrap_or(wanted);
        let description =
            shared.tasks.with(|tasks| tasks.iter().find(|task| task.id == id).map(|task| task.describe(tags)));
        match description {
            Some(description) => found.push(description),
            None => failures.push(json!({
                "arn": format!("arn:aws:ecs:{REGION}:{ACCOUNT}:task/{CLUSTER}/{id}"), "reason": "MISSING"
            })),
        }
    }
    Ok(json!({"tasks": found, "failures": failures}))
}

fn list_tasks(shared: &Shared, input: &Value, caller: &Identity) -> Result<Value, ApiError> {
    authorize(caller, "ecs:ListTasks", "*")?;
    check_cluster(input)?;
    let (family, started_by) = (input["family"].as_str(), input["startedBy"].as_str());
    let desired = input["desiredStatus"].as_str().unwrap_or("RUNNING");
    if started_by.is_some() && (family.is_some() || input["desiredStatus"].is_string()) {
        let message = "startedBy can not be combined with other filters.";
        return Err(ApiError::new("InvalidParameterException", message));
    }
    let arns = shared.tasks.with(|tasks| {
        let wanted = |task: &&Task| {
            family.is_none_or(|family| task.definition.family == family)
                && started_by.is_none_or(|by| task.started_by == by)
                && task.desired_status == desired
        };
        tasks.iter().filter(wanted).map(Task::arn).collect::<Vec<_>>()
    });
    Ok(json!({"taskArns": arns}))
}

fn stop_task(shared: &Shared, input: &Value, caller: &Identity) -> Result<Value, ApiError> {
    let wanted = text(input, "task")?;
    let id = wanted.rsplit('/').next().unwrap_or(wanted);
    let user = shared.tasks.with(|tasks| tasks.iter().find(|task| task.id == id).and_then(Task::user));
    caller.authorize_tagged("ecs:StopTask", wanted, user.as_deref()).map_err(ApiError::denied)?;
    check_cluster(input)?;
    let reason = input["reason"].as_str().unwrap_or("Task stopped by user").to_owned();
    let stopped = shared.tasks.with(|tasks| {
        let task = tasks.iter_mut().find(|task| task.id == id)?;
        if task.desired_status != "STOPPED" {
            task.desired_status = "STOPPED";
            task.stop_code = Some("UserInitiated");
            task.stopped_reason = Some(reason);
            task.stop.cancel();
        }
        Some(task.describe(true))
    });
    let task =
        stopped.ok_or_else(|| ApiError::new("InvalidParameterException", "The referenced task was not found."))?;
    Ok(json!({"task": task}))
}

/// The life of one task.
async fn live(shared: Arc<Shared>, id: String, stop: CancellationToken) {
    let faults = shared.faults();
    let phase = shared.phase;
    for status in ["PENDING", "ACTIVATING"] {
        if wait(phase, &stop).await {
            return end(&shared, &id, None);
        }
        shared.tasks.update(&id, |task| task.last_status = status);
    }
    if let Some(reason) = faults.start_failure {
        shared.tasks.update(&id, |task| task.container_reason = Some(reason.clone()));
        return end(&shared, &id, Some(("TaskFailedToStart", reason)));
    }
    let Ok(mut child) = spawn(&shared, &id) else {
        let reason = "CannotStartContainerError: the sandbox could not start the relay".to_owned();
        return end(&shared, &id, Some(("TaskFailedToStart", reason)));
    };
    shared.tasks.update(&id, |task| {
        task.last_status = "RUNNING";
        task.pid = child.id();
        task.started_at = Some(epoch());
    });
    let agent = async {
        if faults.agent_never_runs {
            shared.tasks.update(&id, |task| task.agent_reason = Some("the agent cannot reach its endpoint"));
            std::future::pending::<()>().await;
        }
        if let Some(pause) = faults.agent_restarts_after {
            shared.tasks.update(&id, |task| {
                task.agent_status = "STOPPED";
                task.agent_reason = Some("Received exit code 1");
            });
            tokio::time::sleep(pause).await;
            shared.tasks.update(&id, |task| task.agent_reason = None);
        }
        tokio::time::sleep(phase).await;
        shared.tasks.update(&id, |task| task.agent_status = "RUNNING");
        std::future::pending::<()>().await;
    };
    let exited = tokio::select! {
        exited = child.wait() => Some(exited),
        () = stop.cancelled() => None,
        () = agent => None,
    };
    let stop_timeout = shared.tasks.with(|tasks| {
        let task = tasks.iter_mut().find(|task| task.id == id);
        task.map_or(Duration::from_secs(30), |task| {
            task.agent_status = "STOPPED";
            task.last_status = "STOPPING";
            task.desired_status = "STOPPED";
            task.definition.stop_timeout
        })
    });
    let by_itself = exited.is_some();
    let status = match exited {
        Some(status) => status.ok(),
        None => {
            crate::signal(child.id(), rustix::process::Signal::TERM);
            match tokio::time::timeout(stop_timeout, child.wait()).await {
                Ok(status) => status.ok(),
                Err(_) => {
                    if let Some(container) = &shared.container {
                        container.remove(&container_name(&id)).await;
                    }
                    // SIGKILL cannot be refused; the status says the rest.
                    let _killed = child.kill().await;
                    child.wait().await.ok()
                }
            }
        }
    };
    if let Some(container) = &shared.container {
        container.remove(&container_name(&id)).await;
    }
    shared.gateway.end_target(&target(&shared, &id));
    let code = status.map(|status| status.code().unwrap_or(137));
    shared.tasks.update(&id, |task| task.exit_code = code);
    let reason = by_itself.then(|| ("EssentialContainerExited", "Essential container in task exited".to_owned()));
    end(&shared, &id, reason);
}

fn target(shared: &Shared, id: &str) -> String {
    let find = |tasks: &mut Vec<Task>| tasks.iter().find(|task| task.id == id).map(Task::session_target);
    shared.tasks.with(find).unwrap_or_default()
}

/// Waits for the time of one phase; true if the task was stopped meanwhile.
async fn wait(phase: Duration, stop: &CancellationToken) -> bool {
    tokio::select! {
        () = tokio::time::sleep(phase) => false,
        () = stop.cancelled() => true,
    }
}

fn end(shared: &Shared, id: &str, cause: Option<(&'static str, String)>) {
    shared.revoke(id);
    shared.tasks.update(id, |task| {
        task.last_status = "STOPPED";
        task.desired_status = "STOPPED";
        task.agent_status = "STOPPED";
        task.stopped_at = Some(epoch());
        if let Some((code, reason)) = cause
            && task.stop_code.is_none()
        {
            task.stop_code = Some(code);
            task.stopped_reason = Some(reason);
        }
    });
}

/// Starts the relay with the environment that ECS would give it, and nothing of ours.
fn spawn(shared: &Shared, id: &str) -> anyhow::Result<tokio::process::Child> {
    let (mut environment, address) = shared
        .tasks
        .with(|tasks| {
            tasks.iter().find(|task| task.id == id).map(|task| {
                let mut environment = task.definition.environment.clone();
                environment.extend(task.overrides.clone());
                (environment, task.address)
            })
        })
        .unwrap_or((BTreeMap::new(), Ipv4Addr::LOCALHOST));
    let endpoint = shared.endpoint();
    environment.extend(
        [
            ("BASTION_LISTEN", address.to_string()),
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", format!("{endpoint}/credentials/{}", shared.credential_path(id))),
            ("ECS_CONTAINER_METADATA_URI_V4", format!("{endpoint}/metadata/{id}")),
            ("AWS_ENDPOINT_URL_STS", endpoint),
        ]
        .map(|(name, value)| (name.to_owned(), value)),
    );
    let log = std::fs::File::create(log_file(shared, id))?;
    let mut relay = match &shared.container {
        Some(container) => container.run(&container_name(id), &environment),
        None => {
            let mut relay = Command::new(&shared.relay);
            relay.arg("relay").env_clear().envs(environment);
            relay
        }
    };
    relay.stdin(Stdio::null()).stderr(log.try_clone()?).kill_on_drop(true);
    if !shared.faults().log_can_end {
        return Ok(relay.stdout(log).spawn()?);
    }
    let mut child = relay.stdout(Stdio::piped()).spawn()?;
    let (said, end) = (
        child.stdout.take(),
        shared.tasks.with(|tasks| Some(tasks.iter().find(|task| task.id == id)?.log_end.clone())),
    );
    if let (Some(mut said), Some(end)) = (said, end) {
        let mut log = tokio::fs::File::from_std(log);
        shared.tracker.spawn(async move {
            let reading = async {
                let mut buffer = vec![0; 64 * 1024];
                while let Ok(read @ 1..) = said.read(&mut buffer).await {
                    log.write_all(&buffer[..read]).await?;
                    log.flush().await?;
                }
                std::io::Result::Ok(())
            };
            // A log that cannot be written has no reader either.
            let _ended = end.run_until_cancelled(reading).await;
        });
    }
    Ok(child)
}

fn container_name(id: &str) -> String {
    format!("bastion-task-{id}")
}

fn log_file(shared: &Shared, id: &str) -> PathBuf {
    shared.folder.join(format!("task-{id}.log"))
}
