//! The Session Manager sessions of one tunnel: the first, the next when one is over, and the task behind them.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::{Mutex, MutexGuard};
use secrecy::SecretString;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api;
use crate::api::authorize::Audience;
use crate::api::targets::Relay;
use crate::aws::{AwsError, TaskState};
use crate::cli::error::{CommandError, Kind};
use crate::cli::explain;
use crate::cli::launch::{self, POLL, Patience, Place};
use crate::cli::owed::Owed;
use crate::cli::ui::Ui;
use crate::network::Network;
use crate::tunnel::lanes::{LaneError, Opener};
use crate::tunnel::{self, BoxFuture, Control, ControlError, OpenError, StartError, Tunnel};
use crate::types::{CredentialConfig, SessionGrant, VaultAs};

/// ECS says RUNNING before Session Manager knows the agent.
const SESSION_TIMEOUT: Duration = Duration::from_secs(60);

/// What a tunnel is for.
pub(super) struct Purpose {
    pub(super) access: String,
    pub(super) reason: Option<String>,
    /// Run a new task for a client that comes when the old one has ended.
    pub(super) wake: bool,
}

/// The task and the session that the tunnel uses now.
struct Current {
    task: TaskState,
    session_id: Option<String>,
    /// The task was started here, for a client.
    woken: bool,
}

/// The tunnel's calls, over the AWS calls.
pub(super) struct Sessions {
    place: Arc<Place>,
    ui: Arc<Ui>,
    purpose: Arc<Purpose>,
    current: Arc<Mutex<Current>>,
    owed: Arc<Owed>,
    /// Starts of tasks, which must not be given up half done: nobody would stop the task.
    starts: TaskTracker,
    /// What one session learns of the gateway, all know.
    config: tunnel::Config,
}

impl Sessions {
    /// For a task that runs.
    pub(super) fn new(
        place: &Arc<Place>,
        ui: &Arc<Ui>,
        task: TaskState,
        purpose: Purpose,
        owed: &Arc<Owed>,
    ) -> Result<Arc<Self>, CommandError> {
        let container = place.access(&purpose.access)?.container.clone();
        let sessions = Self {
            place: Arc::clone(place),
            ui: Arc::clone(ui),
            purpose: Arc::new(purpose),
            current: Arc::new(Mutex::new(Current { task, session_id: None, woken: false })),
            owed: Arc::clone(owed),
            starts: TaskTracker::new(),
            config: tunnel::Config::default(),
        };
        if sessions.target(&sessions.task()).is_some() {
            return Ok(Arc::new(sessions));
        }
        let message = anyhow::anyhow!("container {container:?} of task {} has no runtime id", sessions.task().id);
        Err(CommandError::failed(message)
            .hinted("set container to the name of the relay's container in the task definition"))
    }

    /// Opens a session to the relay's port in the task and a tunnel over it. Whatever comes of it, [`Sessions::end`] is
    /// due at the end.
    pub(super) async fn open(
        self: &Arc<Self>,
        patience: Patience,
        cancel: CancellationToken,
    ) -> Result<Tunnel, CommandError> {
        let phase = self.ui.phase("tunnel");
        let began = Instant::now();
        let budget = patience.left(SESSION_TIMEOUT);
        let grant = loop {
            match self.grant(&self.task()).await {
                Ok(grant) => break grant,
                Err(AwsError::TargetNotConnected) if began.elapsed() < budget => {
                    phase.detail("waiting for Session Manager to know the task");
                    tokio::time::sleep(POLL).await;
                }
                Err(error) => {
                    let late = matches!(error, AwsError::TargetNotConnected);
                    let error = error.into();
                    return Err(if late { patience.explain(SESSION_TIMEOUT, error) } else { error });
                }
            }
        };
        let session_id = grant.session_id.clone();
        let control = Arc::clone(self) as Arc<dyn Control>;
        let tunnel = Tunnel::open(self.config.clone(), grant, control, cancel).await.map_err(|error| {
            let kind = if error == OpenError::Interrupted { Kind::Interrupted } else { Kind::Failed };
            CommandError::new(kind, anyhow::anyhow!("cannot open the tunnel: {error}"))
                .hinted("check that you may ssmmessages:OpenDataChannel on your own sessions, and that nothing on your network blocks websockets to ssmmessages")
        })?;
        self.ui.done(phase, &format!("session {session_id}"));
        Ok(tunnel)
    }

    /// The environment's name, and the Vaults that its targets of this access level let the caller in to: only for these
    /// may anything be signed, whatever a relay asks for.
    pub(super) fn vaults(&self) -> (&str, Vec<Audience>) {
        let environment = &self.place.environment;
        let targets = environment.access.get(&self.purpose.access).map(|access| access.targets.values());
        let mut vaults = Vec::new();
        for target in targets.into_iter().flatten() {
            if let CredentialConfig::Vault(vault) = &target.credential
                && let (VaultAs::Caller, Some(server_id)) = (vault.login, &vault.server_id)
            {
                vaults.push(Audience { server_id: server_id.clone(), sts_region: vault.sts_region.clone() });
            }
        }
        (&environment.name, vaults)
    }

    /// Whether `relay` is of the environment and the access level that were asked for: which one runs is decided by the task
    /// definition alone. `false`: it is older and does not say.
    ///
    /// # Errors
    /// If it is of another one. Nothing may be signed or opened then.
    pub(super) fn is_expected(&self, relay: &Relay) -> Result<bool, CommandError> {
        let (Some(environment), Some(access)) = (&relay.env, &relay.access) else { return Ok(false) };
        let wanted = (&self.place.environment.name, &self.purpose.access);
        if wanted == (environment, access) {
            return Ok(true);
        }
        let key = format!("access.{}.task_definition", wanted.1);
        let message = anyhow::anyhow!(
            "the relay in the task is that of environment {environment:?} with access level {access:?}, and you asked for \
             {:?} with {:?}",
            wanted.0,
            wanted.1
        );
        Err(CommandError::new(Kind::Config, message).hinted(format!(
            "which relay runs is decided by {key} in {}; env and access of its own BASTION_CONFIG must be the same",
            self.place.origins.get(&key).map_or("the environment", String::as_str)
        )))
    }

    /// The task that the tunnel leads to now.
    pub(super) fn task(&self) -> TaskState {
        self.current().task.clone()
    }

    /// Whether the task that the tunnel leads to now was started here, for a client.
    pub(super) fn has_started(&self) -> bool {
        self.current().woken
    }

    /// Ends the session in Session Manager, where it would live on until its timeout, and stops a task that was started
    /// for a client, unless it shall be kept. Best effort, on the way out.
    pub(super) async fn end(&self, keep: bool) {
        self.starts.close();
        self.starts.wait().await;
        self.end_session().await;
        let task = {
            let current = self.current();
            current.woken.then(|| current.task.clone())
        };
        let Some(task) = task else { return };
        if !keep && let Err(error) = self.place.stop(&self.ui, &task, "bastion ended").await {
            self.ui.warn(&format!("  ! task {} may still run: {error}", task.id));
        }
        self.owed.settle(&task);
    }

    /// Whatever has ended it: one that was given up lives on in Session Manager. Best effort.
    async fn end_session(&self) {
        let session = self.current().session_id.take();
        if let Some(session) = session
            && let Err(error) = self.place.aws.terminate_session(&session).await
        {
            tracing::debug!(%error, "cannot terminate the session");
        }
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock()
    }

    /// The Session Manager target of a task.
    fn target(&self, task: &TaskState) -> Option<String> {
        let environment = &self.place.environment;
        let container = environment.access.get(&self.purpose.access).map(|access| access.container.as_str())?;
        task.session_target(&environment.cluster, container)
    }

    async fn grant(&self, task: &TaskState) -> Result<SessionGrant, AwsError> {
        let grant = self.another(task).await?;
        self.current().session_id = Some(grant.session_id.clone());
        Ok(grant)
    }

    async fn another(&self, task: &TaskState) -> Result<SessionGrant, AwsError> {
        let target = self.target(task).ok_or(AwsError::TargetNotConnected)?;
        let Purpose { reason, .. } = self.purpose.as_ref();
        let document = &self.place.environment.document;
        self.place.aws.start_session(&target, document, api::PORT, reason.as_deref()).await
    }

    async fn again(&self, wanted: bool) -> Result<SessionGrant, StartError> {
        let task = self.task();
        let aws = &self.place.aws;
        let (found, ()) = tokio::join!(aws.task(&self.place.environment.cluster, &task.arn), self.end_session());
        let found = found.map_err(later)?;
        if found.as_ref().is_none_or(|found| found.desired_status != "RUNNING") {
            self.owed.settle(&task);
        }
        // Whoever has said that it shall end does not want the next client to bring it back.
        let is_down = found.as_ref().is_some_and(|found| found.stopped_reason.as_deref() == Some(launch::DOWN));
        let story = match &found {
            Some(task) => explain::stopped(task),
            None => format!("task {} has ended", task.id),
        };
        let task = match found.filter(|task| task.desired_status == "RUNNING") {
            Some(task) => task,
            None if !self.purpose.wake || is_down => return Err(StartError::Gone(story)),
            None if !wanted => return Err(StartError::Asleep(story)),
            None => self.wake().await?,
        };
        self.grant(&task).await.map_err(later)
    }

    /// Joins or starts a task in place of the one that has ended.
    async fn wake(&self) -> Result<TaskState, StartError> {
        // Another start only when another client comes: a task that cannot start must not be started over and over.
        let asleep = |error: CommandError| StartError::Asleep(error.source.to_string());
        let own = self.place.own_tasks(&self.purpose.access).await.map_err(asleep)?;
        if let Some(task) = own.into_iter().next() {
            self.current().task = task;
        } else {
            let (place, purpose, current) =
                (Arc::clone(&self.place), Arc::clone(&self.purpose), Arc::clone(&self.current));
            let owed = Arc::clone(&self.owed);
            let start = self.starts.spawn(async move {
                let task = owed.start(&place, place.run(&purpose.access, purpose.reason.as_deref())).await?;
                let mut current = current.lock();
                (current.task, current.woken) = (task, true);
                Ok::<(), CommandError>(())
            });
            match start.await {
                Ok(started) => started.map_err(asleep)?,
                Err(error) => return Err(StartError::Asleep(error.to_string())),
            }
        }
        let access = &self.purpose.access;
        let task = self.place.wait_ready(&self.ui, access, self.task(), Patience::new(None)).await.map_err(asleep)?;
        self.current().task = task.clone();
        Ok(task)
    }
}

impl Control for Sessions {
    fn network(&self) -> &Network {
        self.place.aws.network()
    }

    fn sign_upgrade<'a>(
        &'a self,
        url: &'a str,
        now: SystemTime,
    ) -> BoxFuture<'a, Result<Vec<(String, SecretString)>, ControlError>> {
        Box::pin(async move { self.place.aws.sign_upgrade(url, now).await.map_err(control_error) })
    }

    fn start(&self, wanted: bool) -> BoxFuture<'_, Result<SessionGrant, StartError>> {
        Box::pin(self.again(wanted))
    }

    fn resume<'a>(&'a self, session_id: &'a str) -> BoxFuture<'a, Result<Option<SessionGrant>, ControlError>> {
        Box::pin(async move { self.place.aws.resume_session(session_id).await.map_err(control_error) })
    }
}

/// Sessions for further lanes; they come and go with the first one, which alone looks after the task.
pub(super) struct FurtherSessions(pub(super) Arc<Sessions>);

impl FurtherSessions {
    async fn tunnel(&self) -> Result<(Tunnel, String), LaneError> {
        let grant = self.0.another(&self.0.task()).await.map_err(control_error)?;
        let session_id = grant.session_id.clone();
        let control = Arc::new(OneSession(Arc::clone(&self.0)));
        let cancel = CancellationToken::new();
        // Whoever gives up waiting for it does not want it any more.
        let unless_open = cancel.clone().drop_guard();
        match Tunnel::open(self.0.config.clone(), grant, control, cancel).await {
            Ok(tunnel) => {
                let _open = unless_open.disarm();
                Ok((tunnel, session_id))
            }
            Err(error) => {
                self.terminate(&session_id).await;
                Err(error.into())
            }
        }
    }

    async fn terminate(&self, session_id: &str) {
        if let Err(error) = self.0.place.aws.terminate_session(session_id).await {
            tracing::debug!(%error, "cannot terminate the session");
        }
    }
}

impl Opener for FurtherSessions {
    fn open(&self) -> BoxFuture<'_, Result<(Tunnel, String), LaneError>> {
        Box::pin(self.tunnel())
    }

    fn end<'a>(&'a self, session_id: &'a str) -> BoxFuture<'a, ()> {
        Box::pin(self.terminate(session_id))
    }
}

/// As [`Sessions`], for a session without a successor.
struct OneSession(Arc<Sessions>);

impl Control for OneSession {
    fn network(&self) -> &Network {
        self.0.network()
    }

    fn sign_upgrade<'a>(
        &'a self,
        url: &'a str,
        now: SystemTime,
    ) -> BoxFuture<'a, Result<Vec<(String, SecretString)>, ControlError>> {
        self.0.sign_upgrade(url, now)
    }

    fn start(&self, _wanted: bool) -> BoxFuture<'_, Result<SessionGrant, StartError>> {
        Box::pin(std::future::ready(Err(StartError::Gone("the lane is opened anew".to_owned()))))
    }

    fn resume<'a>(&'a self, session_id: &'a str) -> BoxFuture<'a, Result<Option<SessionGrant>, ControlError>> {
        self.0.resume(session_id)
    }
}

fn later(error: AwsError) -> StartError {
    StartError::Later(control_error(error))
}

fn control_error(error: AwsError) -> ControlError {
    ControlError(match error.hint() {
        Some(hint) => format!("{error}; {hint}"),
        None => error.to_string(),
    })
}
