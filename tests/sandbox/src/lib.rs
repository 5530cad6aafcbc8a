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
pub mod demo;
mod ecs;
mod endpoint;
pub mod gateway;
pub mod iam;
pub mod mariadb;
pub mod moto;
pub mod mysql;
pub mod port;
pub mod postgres;
pub mod proxy;
pub mod rds;
pub mod schema;
pub mod secrets_manager;
mod server;
mod shared;
pub mod sigv4;
mod ssm;
pub mod tools;
pub mod vault;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use axum::http::request::Parts;
use axum::serve::ListenerExt as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::caller;
use crate::container::Container;
use crate::ecs::Tasks;
pub use crate::ecs::{TaskDefinition, task_arn};
use crate::gateway::Gateway;
use crate::iam::Identity;
use crate::shared::Shared;

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
    /// The ExecuteCommandAgent stays PENDING, and ECS gives a reason.
    pub agent_never_runs: bool,
    /// The ExecuteCommandAgent ends before it has run, and ECS starts it again after this time.
    pub agent_restarts_after: Option<Duration>,
    /// Each task has a second container, named first, with an agent of its own that runs at once.
    pub sidecar: bool,
    /// [`Sandbox::end_log`] works for the task.
    pub log_can_end: bool,
    /// STS is away, for everybody and at once.
    pub sts_is_away: bool,
}

/// What the sandbox holds.
#[derive(Debug, Clone)]
pub struct Config {
    /// Logs of tasks go there.
    pub folder: PathBuf,
    /// Where the endpoint listens, on a free port: an address of this machine's loopback.
    pub listen: Ipv4Addr,
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

impl Config {
    /// Changes the relay's configuration in every task definition.
    ///
    /// # Errors
    /// If one has none.
    pub fn change_relays(&mut self, change: impl Fn(&mut Value)) -> anyhow::Result<()> {
        for definition in &mut self.task_definitions {
            let text = definition.environment.get_mut("BASTION_CONFIG").context("no configuration")?;
            let mut relay = serde_json::from_str(text)?;
            change(&mut relay);
            *text = relay.to_string();
        }
        Ok(())
    }
}

/// A running sandbox.
pub struct Sandbox {
    shared: Arc<Shared>,
    server: tokio::task::JoinHandle<()>,
}

impl Sandbox {
    /// Starts the endpoint on a free port.
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
            reasons: Mutex::default(),
            stop: CancellationToken::new(),
            tracker: TaskTracker::new(),
            gateway: Gateway::new(config.gateway, verify),
            credentials: Mutex::default(),
        });
        let listener = TcpListener::bind((config.listen, 0)).await?;
        // Set once, here.
        let _first = shared.address.set(listener.local_addr()?);
        let router = endpoint::router(&shared);
        let stop = shared.stop.clone();
        let server = shared.tracker.spawn(async move {
            let serving = axum::serve(listener.tap_io(endpoint::quick), router)
                .with_graceful_shutdown(async move { stop.cancelled().await });
            // Ends with the sandbox; a broken listener shows in every test.
            let _ended = serving.await;
        });
        Ok(Self { shared, server })
    }

    /// `http://ADDRESS:PORT`, the value for `AWS_ENDPOINT_URL`.
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
            let identities = shared.everybody();
            let request = sigv4::Request { method: "POST", path: "/", query: "", headers, body };
            sigv4::verify(&request, "sts", REGION, &identities, wall_clock())
                .map(|identity| identity.arn.clone())
                .map_err(|rejection| format!("{rejection:?}"))
        })
    }

    /// Secrets Manager for the tasks, with the secrets of `moto`.
    ///
    /// # Errors
    /// When there is no port.
    pub async fn secrets_manager(&self, moto: &moto::Moto) -> anyhow::Result<secrets_manager::SecretsManager> {
        secrets_manager::SecretsManager::start(Arc::clone(&self.shared), moto).await
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

    /// The agent of a task ends with all its sessions, as when it is killed and ECS starts it again. Until it runs again there
    /// is nothing to connect to.
    pub fn end_agent(&self, id: &str) {
        let target = self.agent_status(id, "PENDING");
        self.shared.gateway.end_target(&target);
    }

    pub fn start_agent(&self, id: &str) {
        self.agent_status(id, "RUNNING");
    }

    fn agent_status(&self, id: &str, status: &'static str) -> String {
        self.shared.tasks.with(|tasks| {
            let task = tasks.iter_mut().find(|task| task.id == id);
            task.map_or_else(String::new, |task| {
                task.agent_status = status;
                task.session_target()
            })
        })
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

    /// The value of a task's tag.
    pub fn task_tag(&self, id: &str, key: &str) -> Option<String> {
        self.shared.tasks.with(|tasks| tasks.iter().find(|task| task.id == id)?.tag(key).map(str::to_owned))
    }

    /// The reason of each session that was started, oldest first.
    pub fn session_reasons(&self) -> Vec<Option<String>> {
        self.shared.reasons.lock().unwrap_or_else(PoisonError::into_inner).clone()
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

    /// Whatever reads the log of this task is gone: its relay can write no more of it.
    pub fn end_log(&self, id: &str) {
        self.shared.tasks.update(id, |task| task.log_end.cancel());
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
