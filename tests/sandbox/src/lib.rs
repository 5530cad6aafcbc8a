//! A strict local AWS for exactly what bastion uses. Not shipped in the image.
//!
//! One endpoint (`AWS_ENDPOINT_URL`) speaks ECS, STS and SSM and carries the message gateway; every signature is
//! verified, and IAM is enforced as far as the launcher's calls need it. Each ECS task is a real `bastion relay` process
//! whose role credentials expire; a real PostgreSQL and a real MariaDB check the tokens
//! made with them.

#![allow(clippy::expect_used, reason = "a test tool")]

pub mod agent;
mod api;
pub mod container;
mod ecs;
pub mod gateway;
pub mod iam;
pub mod mariadb;
pub mod moto;
pub mod postgres;
pub mod rds;
mod server;
pub mod sigv4;
mod ssm;
pub mod tools;
pub mod vault;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::request::Parts;
use axum::http::{Response, StatusCode};
use axum::routing::{get, post};
use axum::serve::ListenerExt as _;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::{ApiError, caller, ok, query_rejection, reply};
use crate::container::Container;
use crate::ecs::Tasks;
pub use crate::ecs::{TaskDefinition, task_arn};
use crate::gateway::Gateway;
use crate::iam::Identity;

pub const ACCOUNT: &str = "123456789012";
pub const REGION: &str = "ap-northeast-1";
pub const CLUSTER: &str = "bastion";

/// What ECS gets wrong for the tasks that start from now on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// RunTask answers with this failure reason, for example `Capacity is unavailable at this time`.
    pub run_task_failure: Option<String>,
    /// The task ends before it runs, with this reason, for example `CannotPullContainerError: …`.
    pub start_failure: Option<String>,
    /// The ExecuteCommandAgent stays PENDING.
    pub agent_never_runs: bool,
}

/// What the sandbox holds.
#[derive(Debug, Clone)]
pub struct Config {
    /// Logs of tasks go there.
    pub folder: PathBuf,
    /// The `bastion` program that tasks run.
    pub relay: PathBuf,
    /// The image that tasks run instead, if the sandbox shall run containers.
    pub container: Option<Container>,
    pub identities: Vec<Identity>,
    pub task_definitions: Vec<TaskDefinition>,
    /// SSM parameters by name.
    pub parameters: BTreeMap<String, String>,
    /// How long a task stays in each phase of its start.
    pub phase: Duration,
    /// How long task-role credentials live.
    pub credential_lifetime: Duration,
    /// The state file of the token verifier, and the endpoints it accepts.
    pub rds_state: Option<(PathBuf, Vec<String>)>,
    pub gateway: gateway::Options,
}

/// What the parts share.
pub(crate) struct Shared {
    pub(crate) folder: PathBuf,
    pub(crate) relay: PathBuf,
    pub(crate) container: Option<Container>,
    identities: Vec<Identity>,
    pub(crate) task_definitions: Vec<TaskDefinition>,
    pub(crate) parameters: BTreeMap<String, String>,
    pub(crate) phase: Duration,
    credential_lifetime: Duration,
    rds: Mutex<(Option<PathBuf>, rds::State)>,
    pub(crate) tasks: Tasks,
    faults: Mutex<Faults>,
    address: OnceLock<SocketAddr>,
    sts_calls: AtomicUsize,
    pub(crate) stop: CancellationToken,
    pub(crate) tracker: TaskTracker,
    pub(crate) gateway: Gateway,
    /// The newest credentials of each task, and when they are replaced.
    credentials: Mutex<BTreeMap<String, (Value, SystemTime)>>,
}

impl Shared {
    pub(crate) fn endpoint(&self) -> String {
        self.address.get().map(|address| format!("http://{address}")).unwrap_or_default()
    }

    pub(crate) fn faults(&self) -> Faults {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn credential_path<'t>(&self, task_id: &'t str) -> &'t str {
        // A task id is as hard to guess as the ids of the real endpoint.
        task_id
    }

    /// Forgets the keys of a task that has ended.
    pub(crate) fn revoke(&self, task_id: &str) {
        let old = self.credentials.lock().unwrap_or_else(PoisonError::into_inner).remove(task_id);
        if let Some((old, _)) = old {
            self.change_keys(|keys| {
                keys.remove(old["AccessKeyId"].as_str().unwrap_or_default());
            });
        }
    }

    fn change_keys(&self, change: impl FnOnce(&mut BTreeMap<String, rds::Key>)) {
        let mut rds = self.rds.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut rds.1.keys);
        if let (Some(path), state) = &*rds {
            // The folder may be gone at the end of a test.
            let _best_effort = state.write(path);
        }
    }

    /// Role credentials of a task: new ones at half of their life, or five minutes before their end.
    fn role_credentials(&self, task_id: &str, now: SystemTime) -> Option<Value> {
        let (role, db_users) = self.tasks.with(|tasks| {
            let task = tasks.iter().find(|task| task.id == task_id && task.last_status != "STOPPED")?;
            Some(task.role())
        })?;
        let mut all = self.credentials.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((current, renew_at)) = all.get(task_id)
            && now < *renew_at
        {
            return Some(current.clone());
        }
        let lifetime = self.credential_lifetime;
        let expires_at = now + lifetime;
        let id = uuid::Uuid::new_v4().simple().to_string().to_uppercase();
        let key = rds::Key {
            secret: format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple()),
            // Session tokens of roles are about this long; a token made with them is about 1.5 kB.
            session_token: (0..20).map(|_| format!("{}/+=", uuid::Uuid::new_v4().simple())).collect(),
            expires_at: expires_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs(),
            db_users,
        };
        let credentials = json!({
            "RoleArn": format!("arn:aws:iam::{ACCOUNT}:role/{role}"),
            "AccessKeyId": format!("ASIA{}", &id[..16]),
            "SecretAccessKey": key.secret,
            "Token": key.session_token,
            "Expiration": humantime::format_rfc3339_seconds(expires_at).to_string(),
        });
        let margin = Duration::from_secs(300).min(lifetime / 2);
        all.insert(task_id.to_owned(), (credentials.clone(), expires_at - margin));
        self.change_keys(|keys| {
            keys.insert(format!("ASIA{}", &id[..16]), key);
        });
        Some(credentials)
    }
}

/// A running sandbox.
pub struct Sandbox {
    shared: Arc<Shared>,
    server: tokio::task::JoinHandle<()>,
}

impl Sandbox {
    /// Starts the endpoint on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// When the port or the state file cannot be had.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        let identities = config.identities.clone();
        let verify: gateway::VerifyUpgrade = Arc::new(move |parts: &Parts| {
            caller(parts, b"", "ssmmessages", &identities).map(|_| ()).map_err(|rejection| format!("{rejection:?}"))
        });
        let (state_file, endpoints) = config.rds_state.unzip();
        let state =
            rds::State { region: REGION.to_owned(), endpoints: endpoints.unwrap_or_default(), keys: BTreeMap::new() };
        if let Some(path) = &state_file {
            state.write(path).context("cannot write the verifier's state")?;
        }
        let shared = Arc::new(Shared {
            folder: config.folder,
            relay: config.relay,
            container: config.container,
            identities: config.identities,
            task_definitions: config.task_definitions,
            parameters: config.parameters,
            phase: config.phase,
            credential_lifetime: config.credential_lifetime,
            rds: Mutex::new((state_file, state)),
            tasks: Tasks::default(),
            faults: Mutex::default(),
            address: OnceLock::new(),
            sts_calls: AtomicUsize::new(0),
            stop: CancellationToken::new(),
            tracker: TaskTracker::new(),
            gateway: Gateway::new(config.gateway, verify),
            credentials: Mutex::default(),
        });
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        // Set once, here.
        let _first = shared.address.set(listener.local_addr()?);
        let router = router(&shared);
        let stop = shared.stop.clone();
        let server = shared.tracker.spawn(async move {
            let serving = axum::serve(listener.tap_io(quick), router)
                .with_graceful_shutdown(async move { stop.cancelled().await });
            // Ends with the sandbox; a broken listener shows in every test.
            let _ended = serving.await;
        });
        Ok(Self { shared, server })
    }

    /// `http://127.0.0.1:PORT`, the value for `AWS_ENDPOINT_URL`.
    pub fn endpoint(&self) -> String {
        self.shared.endpoint()
    }

    /// The variables that make a program the given caller (by the session's name).
    pub fn variables(&self, name: &str) -> Vec<(&'static str, String)> {
        let identity = self.shared.identities.iter().find(|identity| identity.session_name() == name);
        let mut variables = vec![
            ("AWS_ENDPOINT_URL", self.endpoint()),
            ("AWS_REGION", REGION.to_owned()),
            ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
        ];
        if let Some(identity) = identity {
            variables.push(("AWS_ACCESS_KEY_ID", identity.access_key.clone()));
            variables.push(("AWS_SECRET_ACCESS_KEY", identity.secret_key.clone()));
            variables.extend(identity.session_token.clone().map(|token| ("AWS_SESSION_TOKEN", token)));
        }
        variables
    }

    /// Who signed a `GetCallerIdentity` that somebody else sends: what STS answers to Vault. Task roles count too.
    pub fn identity_verifier(&self) -> vault::VerifyIdentity {
        let shared = Arc::clone(&self.shared);
        Arc::new(move |headers, body| {
            let all = shared.credentials.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let roles = all.into_iter().map(|(task, (keys, _))| {
                let text = |name: &str| keys[name].as_str().unwrap_or_default().to_owned();
                let role = text("RoleArn").rsplit('/').next().unwrap_or_default().to_owned();
                Identity {
                    access_key: text("AccessKeyId"),
                    secret_key: text("SecretAccessKey"),
                    session_token: Some(text("Token")),
                    expires_at: None,
                    arn: format!("arn:aws:sts::{ACCOUNT}:assumed-role/{role}/{task}"),
                    allow: Vec::new(),
                }
            });
            let identities: Vec<Identity> = shared.identities.iter().cloned().chain(roles).collect();
            let request = sigv4::Request { method: "POST", path: "/", query: "", headers, body };
            sigv4::verify(&request, "sts", REGION, &identities, wall_clock())
                .map(|identity| identity.arn.clone())
                .map_err(|rejection| format!("{rejection:?}"))
        })
    }

    /// Runs a task of this definition without an API call; its id and the loopback address of its relay.
    pub fn run_directly(&self, definition: &TaskDefinition) -> (String, Ipv4Addr) {
        ecs::run_directly(&self.shared, definition)
    }

    /// Stops a task as ECS would: SIGTERM, then SIGKILL.
    pub fn stop_directly(&self, id: &str) {
        self.shared.tasks.with(|tasks| {
            if let Some(task) = tasks.iter().find(|task| task.id == id) {
                task.stop_now();
            }
        });
    }

    pub fn set_faults(&self, faults: Faults) {
        *self.shared.faults.lock().unwrap_or_else(PoisonError::into_inner) = faults;
    }

    /// How often STS was called.
    pub fn sts_calls(&self) -> usize {
        self.shared.sts_calls.load(Ordering::Relaxed)
    }

    pub fn gateway(&self) -> &Gateway {
        &self.shared.gateway
    }

    /// Id and last status of every task, oldest first.
    pub fn tasks(&self) -> Vec<(String, &'static str)> {
        self.shared.tasks.with(|tasks| tasks.iter().map(|task| (task.id.clone(), task.last_status)).collect())
    }

    /// The process of a task's relay, once it runs.
    pub fn task_pid(&self, id: &str) -> Option<u32> {
        self.shared.tasks.with(|tasks| tasks.iter().find(|task| task.id == id).and_then(|task| task.pid))
    }

    /// The secrets of a task's role: key and session token.
    pub fn task_secrets(&self, id: &str) -> Vec<String> {
        let all = self.shared.credentials.lock().unwrap_or_else(PoisonError::into_inner);
        let keys = all.get(id).map(|(keys, _)| keys);
        let text = |name: &str| keys.and_then(|keys| keys[name].as_str()).map(str::to_owned);
        ["SecretAccessKey", "Token"].into_iter().filter_map(text).collect()
    }

    /// Everything that a task's relay wrote.
    pub fn task_log(&self, id: &str) -> String {
        std::fs::read_to_string(self.shared.folder.join(format!("task-{id}.log"))).unwrap_or_default()
    }

    /// Ends every task and the endpoint; waits for both.
    pub async fn stop(self) {
        self.shared.stop.cancel();
        self.shared.tracker.close();
        // Connections that clients keep open must not hold it.
        if tokio::time::timeout(Duration::from_secs(40), self.shared.tracker.wait()).await.is_err() {
            self.server.abort();
        }
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

/// Small frames leave at once, as at AWS; Nagle's algorithm would hold each second one back for 40 ms.
fn quick(stream: &mut tokio::net::TcpStream) {
    let _best_effort = stream.set_nodelay(true);
}

fn router(shared: &Arc<Shared>) -> Router {
    Router::new()
        .route("/", post(api_call))
        .route("/credentials/{task}", get(credentials))
        .route("/metadata/{task}/task", get(task_metadata))
        .route("/_sandbox/faults", post(set_faults))
        .route("/_sandbox/gateway", post(change_gateway))
        .route("/_sandbox/throttle", get(throttle))
        .route("/_sandbox/sessions", get(sessions))
        .route("/_sandbox/sessions/{id}", axum::routing::delete(end_session))
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
    let caller = caller(parts, body, "sts", &shared.identities).map_err(query_rejection)?;
    let form = sigv4::pairs(std::str::from_utf8(body).unwrap_or_default());
    let action = form.iter().find(|(name, _)| name == "Action").map(|(_, value)| value.as_str()).unwrap_or_default();
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

async fn credentials(
    State(shared): State<Arc<Shared>>,
    axum::extract::Path(task): axum::extract::Path<String>,
) -> Response<Body> {
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
async fn task_metadata(
    State(shared): State<Arc<Shared>>,
    axum::extract::Path(id): axum::extract::Path<String>,
) -> Response<Body> {
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
async fn end_session(
    State(shared): State<Arc<Shared>>,
    axum::extract::Path(id): axum::extract::Path<String>,
) -> StatusCode {
    match std::future::ready(shared.gateway.terminate_session(&id)).await {
        true => StatusCode::NO_CONTENT,
        false => StatusCode::NOT_FOUND,
    }
}

/// Sends a signal to a child that is still ours.
pub(crate) fn signal(pid: Option<u32>, signal: rustix::process::Signal) {
    let pid = pid.and_then(|pid| i32::try_from(pid).ok()).and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid {
        // It may have ended in this moment.
        let _best_effort = rustix::process::kill_process(pid, signal);
    }
}

#[expect(clippy::disallowed_methods, reason = "signatures are checked against the time of day")]
pub(crate) fn wall_clock() -> SystemTime {
    SystemTime::now()
}

/// The relay's configuration and the environment of `demo`, for a database on this machine.
pub mod demo {
    use anyhow::Context as _;

    use super::mariadb::{self, MariaDb};
    use super::postgres::{self, Postgres};
    use super::{BTreeMap, Config, Duration, Identity, Path, TaskDefinition, Value, gateway, iam, json};

    /// The targets of one access level: the orders in PostgreSQL and the events in MariaDB as `user`, and for `read` a
    /// target whose database user the task role may not use.
    fn targets(port: u16, mysql: Option<u16>, user: &str, with_admin: bool) -> Value {
        let target = |engine: &str, host: &str, port: u16, database: &str, user: &str, local_port: u16| {
            json!({
                "engine": engine, "host": host, "hostaddr": "127.0.0.1", "port": port, "database": database,
                "local_port": local_port, "credential": {"rds_iam": {"user": user}}
            })
        };
        let mut targets = json!({"orders": target("postgres", postgres::HOST, port, "orders", user, 15432)});
        if with_admin {
            targets["orders-admin"] = target("postgres", postgres::HOST, port, "orders", "db_admin", 15433);
        }
        if let Some(mysql) = mysql {
            targets["events"] = target("mysql", mariadb::HOST, mysql, "events", user, 13306);
        }
        targets
    }

    fn definition(access: &str, targets: &Value, ca_file: &Path) -> TaskDefinition {
        let config = json!({
            "env": "demo", "access": access, "region": super::REGION, "idle_stop": "30m", "max_age": "8h", "target": targets
        });
        TaskDefinition {
            family: format!("bastion-demo-{access}"),
            container: "bastion".to_owned(),
            environment: BTreeMap::from([
                ("BASTION_CONFIG".to_owned(), config.to_string()),
                ("BASTION_EXTRA_CA_FILE".to_owned(), ca_file.display().to_string()),
            ]),
            role: format!("bastion-demo-{access}"),
            db_users: vec![format!("db_{access}")],
            stop_timeout: Duration::from_secs(30),
        }
    }

    /// Everything that `bastion up demo` needs. The task role's users may log in to both servers.
    pub fn config(folder: &Path, relay: &Path, database: &Postgres, mysql: Option<&MariaDb>) -> Config {
        let (port, ca_file) = (database.port, &database.ca_file);
        let mysql_port = mysql.map(|mysql| mysql.port);
        let read = targets(port, mysql_port, "db_read", true);
        let write = targets(port, mysql_port, "db_write", false);
        let access = |name: &str, targets: &Value| {
            json!({
                "task_definition": format!("bastion-demo-{name}"), "subnets": ["subnet-0a1b2c3d"],
                "security_groups": ["sg-0a1b2c3d"], "target": targets
            })
        };
        let environment = json!({
            "region": super::REGION, "cluster": super::CLUSTER, "document": "bastion-demo", "idle_stop": "30m", "max_age": "8h",
            "access": {"read": access("read", &read), "write": access("write", &write)}
        });
        let expired = Identity {
            expires_at: Some(std::time::SystemTime::UNIX_EPOCH),
            ..Identity::session("Developer", "carol", &iam::DEVELOPER)
        };
        let endpoints = std::iter::once(format!("{}:{port}", postgres::HOST))
            .chain(mysql.map(|mysql| format!("{}:{}", mariadb::HOST, mysql.port)))
            .collect();
        Config {
            folder: folder.to_owned(),
            relay: relay.to_owned(),
            container: None,
            identities: vec![
                Identity::session("Developer", "alice", &iam::DEVELOPER),
                Identity::session("Developer", "bob", &iam::DEVELOPER),
                expired,
                Identity::session("Visitor", "eve", &["sts:GetCallerIdentity", "ssm:GetParameter"]),
            ],
            task_definitions: vec![definition("read", &read, ca_file), definition("write", &write, ca_file)],
            parameters: BTreeMap::from([("/bastion/demo".to_owned(), environment.to_string())]),
            phase: Duration::from_millis(300),
            credential_lifetime: Duration::from_secs(3600),
            rds_state: Some((database.state_file.clone(), endpoints)),
            gateway: gateway::Options::default(),
        }
    }

    /// Targets that are only bytes, with no name to verify: ports of this machine, for measurements.
    ///
    /// # Errors
    /// Never, as long as `config` is the one above.
    pub fn add_tcp_targets(config: &mut Config, targets: &[(String, u16)]) -> anyhow::Result<()> {
        let parameter = config.parameters.get_mut("/bastion/demo").context("no environment")?;
        let mut environment: Value = serde_json::from_str(parameter)?;
        for (name, port) in targets {
            let target = json!({"engine": "tcp", "host": "127.0.0.1", "port": port});
            for definition in &mut config.task_definitions {
                let text = definition.environment.get_mut("BASTION_CONFIG").context("no configuration")?;
                let mut relay: Value = serde_json::from_str(text)?;
                relay["target"][name] = target.clone();
                *text = relay.to_string();
            }
            for access in ["read", "write"] {
                environment["access"][access]["target"][name] = target.clone();
            }
        }
        *parameter = environment.to_string();
        Ok(())
    }
}
