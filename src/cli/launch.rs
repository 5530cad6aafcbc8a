//! The steps that `up`, `connect`, `down` and `status` share: who am I, which environment, which task.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use clap::Args;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::aws::{Aws, AwsError, Caller, TaskOrder, TaskState, Wanted};
use crate::cli::error::{CommandError, Kind};
use crate::cli::ui::Ui;
use crate::cli::{config_files, explain, trust};
use crate::config::laptop::{self, Files, Flags, Resolved};
use crate::config::{Env as _, ProcessEnv, vars};
use crate::types::{Access, Environment};

/// Fargate needs about half a minute; image pulls and busy zones take longer.
const START_TIMEOUT: Duration = Duration::from_secs(300);
/// The agent comes up some seconds after the container.
const AGENT_TIMEOUT: Duration = Duration::from_secs(120);
/// ECS starts an agent again that has stopped, several times with pauses between.
const AGENT_RESTART: Duration = Duration::from_secs(30);
/// SIGTERM, up to 30 s of drain, and the network interface.
pub(super) const STOP_TIMEOUT: Duration = Duration::from_secs(120);
pub(super) const POLL: Duration = Duration::from_millis(700);

pub(super) const TAG_OWNER: &str = "bastion:owner";
/// The one tag that policies compare: they know the caller as `${aws:userid}`, and an ARN of a role session not at all.
pub(super) const TAG_USER: &str = "bastion:user";
pub(super) const TAG_ENV: &str = "bastion:env";
pub(super) const TAG_ACCESS: &str = "bastion:access";
/// The access level for whoever names none, where there is one of this name and no other default.
const DEFAULT_ACCESS: &str = "read";

/// Why a task was stopped that the person wanted to end, as StopTask and DescribeTasks say it: it is not started again.
pub(super) const DOWN: &str = "bastion down";
const TAG_REASON: &str = "bastion:reason";

/// Where the calls go.
#[derive(Debug, Clone, Args)]
pub(super) struct AwsArgs {
    /// AWS profile (default: as the AWS CLI chooses)
    #[arg(long, value_name = "NAME")]
    pub(super) profile: Option<String>,
    /// AWS region (default: the environment's, then the profile's)
    #[arg(long, value_name = "REGION")]
    pub(super) region: Option<String>,
    /// ECS cluster (default: the environment's)
    #[arg(long, value_name = "NAME")]
    pub(super) cluster: Option<String>,
}

/// How long to wait for what must come up: a budget for each phase, or one for all of them (`--timeout`).
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    limit: Option<(Duration, Instant)>,
}

impl Patience {
    pub(super) fn new(limit: Option<Duration>) -> Self {
        Self { limit: limit.map(|limit| (limit, Instant::now() + limit)) }
    }

    /// `error`, or, where it came because `--timeout` was over before the phase had its own `budget`, that: with so little
    /// time nothing can be said about causes.
    pub(super) fn explain(self, budget: Duration, error: CommandError) -> CommandError {
        match self.limit {
            Some((limit, _)) if self.left(budget) < budget && self.left(budget).is_zero() => self.over(limit, &error),
            _ => error,
        }
    }

    fn over(self, limit: Duration, error: &CommandError) -> CommandError {
        let limit = humantime::format_duration(limit);
        CommandError::failed(anyhow::anyhow!("--timeout {limit} is over: {:#}", error.source))
            .hinted("give it more time, or leave --timeout out: then each phase has a limit of its own")
    }

    /// The outcome of `work`, if it comes before `--timeout` is over.
    pub(super) async fn limited<T>(
        self,
        work: impl Future<Output = Result<T, CommandError>>,
    ) -> Result<T, CommandError> {
        let Some((limit, until)) = self.limit else { return work.await };
        let late = CommandError::failed(anyhow::anyhow!("AWS has not answered yet"));
        tokio::time::timeout_at(until, work).await.unwrap_or_else(|_| Err(self.over(limit, &late)))
    }

    /// What is left for a phase that has `budget` by itself.
    pub(super) fn left(self, budget: Duration) -> Duration {
        self.limit.map_or(budget, |(_, until)| until.saturating_duration_since(Instant::now()).min(budget))
    }
}

/// Who asks, and for which environment.
pub(super) struct Place {
    pub(super) aws: Aws,
    pub(super) caller: Caller,
    pub(super) environment: Environment,
    /// The flag, variable, file or parameter that each value of the environment is from, by dotted key.
    pub(super) origins: BTreeMap<String, String>,
}

impl From<AwsError> for CommandError {
    fn from(error: AwsError) -> Self {
        let hint = error.hint();
        let error = Self::failed(error);
        match hint {
            Some(hint) => error.hinted(hint),
            None => error,
        }
    }
}

/// Reads the files, asks STS who calls, and reads the SSM parameter.
///
/// # Errors
/// What the files have wrong comes before what AWS says: it may well be why AWS is asked in vain.
pub(super) async fn place(ui: &Ui, name: &str, args: &AwsArgs) -> Result<Place, CommandError> {
    let files = config_files::find()?;
    trust::check(name, &files)?;
    let flags = Flags { region: args.region.clone(), cluster: args.cluster.clone() };
    laptop::certain(&files, &flags, &ProcessEnv).map_err(|problems| CommandError::new(Kind::Config, problems))?;
    let failure = match Box::pin(look_up(ui, name, args, &files, flags.clone())).await {
        Err(error) if error.kind == Kind::Failed => error,
        done => return done,
    };
    let Some(problems) = laptop::suspected(name, &files, &flags, &ProcessEnv) else { return Err(failure) };
    let error = CommandError::new(Kind::Config, problems);
    let error = error.hinted(format!("AWS could not be asked what it knows of {name}: {:#}", failure.source));
    Err(failure.hints.into_iter().fold(error, CommandError::hinted))
}

/// Asks AWS about the environment.
async fn look_up(ui: &Ui, name: &str, args: &AwsArgs, files: &Files, flags: Flags) -> Result<Place, CommandError> {
    let region = laptop::region_hint(name, files, &flags, &ProcessEnv);
    // A typo must not hide behind a login that is not there yet.
    let known = laptop::known(files);
    let in_file = known.iter().any(|known| known == name);
    let unknown = |error: CommandError| match in_file || known.is_empty() {
        true => error,
        false => error.hinted(format!("no file names the environment {name:?}: they know {}", known.join(", "))),
    };
    let aws = login(args, region).await.map_err(unknown)?;

    let phase = ui.phase("identity");
    let caller = aws.caller().await.map_err(|error| unknown(error.into()))?;
    ui.done(phase, &caller.arn);

    let phase = ui.phase("environment");
    // Somebody without the permission may still have it all in a file.
    let (parameter, failure) = match aws.parameter(&format!("/bastion/{name}")).await {
        Ok(parameter) => (parameter, None),
        Err(error) if in_file => (None, Some(error)),
        Err(error) => return Err(error.into()),
    };
    let nowhere = parameter.is_none() && !in_file;
    let resolved = laptop::resolve(name, files, parameter.as_deref(), &flags, &ProcessEnv);
    let Resolved { environment, origins, changes } = match resolved {
        Ok(resolved) => resolved,
        Err(problems) => {
            let error = CommandError::new(Kind::Config, problems);
            return Err(match &failure {
                Some(failure) => error.hinted(format!("the parameter /bastion/{name} could not be read: {failure}")),
                None if nowhere => looked_here(error, &aws, &caller).await,
                None => error,
            });
        }
    };
    for change in changes {
        ui.warn(&format!("  ! {change}"));
    }
    tracing::debug!(?origins, "where each value comes from");
    ui.done(phase, &format!("{name} in {}, cluster {}", environment.region, environment.cluster));
    let aws = aws.with_region(&environment.region);
    Ok(Place { aws, caller, environment, origins })
}

/// Credentials, region and network as AWS's own tools find them. `region` is what is known of the environment's.
async fn login(args: &AwsArgs, region: Option<String>) -> Result<Aws, CommandError> {
    let source = |region: &String| match region {
        region if args.region.as_ref() == Some(region) => "--region",
        region if ProcessEnv.get(vars::REGION).as_ref() == Some(region) => vars::REGION,
        _ => "the region of the environment in bastion.toml",
    };
    let wanted = Wanted {
        profile: args.profile.as_deref(),
        region: region.map(|region| (region.clone(), source(&region).to_owned())),
        env: &|name| ProcessEnv.get(name),
        home: etcetera::home_dir().ok(),
        ask: Arc::new(|question| Ui::ask(&question)),
        now: wall_clock,
    };
    Ok(Aws::load(wanted).await?)
}

/// Adds to the error for an environment that nobody knows where it was looked for, and what there is instead.
async fn looked_here(error: CommandError, aws: &Aws, caller: &Caller) -> CommandError {
    let region = aws.region().unwrap_or_default();
    let error = error.hinted(format!(
        "it was looked for in account {}, region {region}, as {} with {}",
        caller.account,
        caller.arn,
        aws.login()
    ));
    let there = aws.parameters_below("/bastion/").await;
    let names: Vec<&str> = there.iter().filter_map(|path| path.strip_prefix("/bastion/")).collect();
    if names.is_empty() { error } else { error.hinted(format!("there the environments are {}", names.join(", "))) }
}

#[expect(clippy::disallowed_methods, reason = "credentials end by the time of day")]
fn wall_clock() -> SystemTime {
    SystemTime::now()
}

impl Place {
    /// The access level that is meant: the named one, or else the environment's default, its only one, or `read`.
    pub(super) fn level(&self, named: Option<&str>) -> Result<String, CommandError> {
        let levels = &self.environment.access;
        let name = match (named.or(self.environment.default_access.as_deref()), levels.keys().next()) {
            (Some(name), _) => name,
            (None, Some(only)) if levels.len() == 1 => only,
            (None, _) if levels.contains_key(DEFAULT_ACCESS) => DEFAULT_ACCESS,
            (None, _) => {
                let known: Vec<&str> = levels.keys().map(String::as_str).collect();
                let message = anyhow::anyhow!("{} has several access levels and no default", self.environment.name);
                return Err(CommandError::new(Kind::Config, message)
                    .hinted(format!("name one with --access: {}", known.join(", "))));
            }
        };
        self.access(name)?;
        Ok(name.to_owned())
    }

    /// The access level of this name.
    pub(super) fn access(&self, name: &str) -> Result<&Access, CommandError> {
        self.environment.access.get(name).ok_or_else(|| {
            let known: Vec<&str> = self.environment.access.keys().map(String::as_str).collect();
            let message = anyhow::anyhow!("{} has no access level {name:?}", self.environment.name);
            CommandError::new(Kind::Config, message).hinted(format!("its access levels are {}", known.join(", ")))
        })
    }

    /// The caller's own tasks of this access level that run or will run, oldest first.
    pub(super) async fn own_tasks(&self, access: &str) -> Result<Vec<TaskState>, CommandError> {
        let definition = &self.access(access)?.task_definition;
        let family = definition.rsplit('/').next().unwrap_or(definition).split(':').next().unwrap_or(definition);
        let mut tasks = self.aws.tasks(&self.environment.cluster, family).await?;
        let wanted = self.identifying_tags(access);
        tasks.retain(|task| {
            task.desired_status == "RUNNING" && wanted.iter().all(|(key, value)| task.tags.get(*key) == Some(value))
        });
        tasks.sort_by_key(|task| task.created_at);
        Ok(tasks)
    }

    fn identifying_tags(&self, access: &str) -> BTreeMap<&'static str, String> {
        BTreeMap::from([
            (TAG_OWNER, tag_value(&self.caller.arn)),
            (TAG_USER, tag_value(&self.caller.user_id)),
            (TAG_ENV, self.environment.name.clone()),
            (TAG_ACCESS, access.to_owned()),
        ])
    }

    /// Runs a new task. Never cancel it: the task may start all the same.
    pub(super) async fn run(&self, access: &str, reason: Option<&str>) -> Result<TaskState, CommandError> {
        let level = self.access(access)?;
        let mut tags: Vec<(String, String)> =
            self.identifying_tags(access).into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        let mut environment = vec![("BASTION_OWNER".to_owned(), self.caller.arn.clone())];
        if let Some(reason) = reason {
            tags.push((TAG_REASON.to_owned(), tag_value(reason)));
            environment.push(("BASTION_REASON".to_owned(), reason.to_owned()));
        }
        let order = TaskOrder {
            cluster: self.environment.cluster.clone(),
            task_definition: level.task_definition.clone(),
            container: level.container.clone(),
            subnets: level.subnets.clone(),
            security_groups: level.security_groups.clone(),
            assign_public_ip: level.assign_public_ip,
            client_token: uuid::Uuid::new_v4().to_string(),
            tags,
            environment,
        };
        self.aws.run_task(&order).await.map_err(|error| {
            let said = error.to_string();
            let unknown = matches!(&error, AwsError::Unreachable { .. });
            let mut error = CommandError::from(error);
            if unknown {
                let name = &self.environment.name;
                error = error.hinted(format!(
                    "the request may have arrived all the same: bastion status {name} shows a task, bastion down {name} stops it"
                ));
            }
            match explain::hint(&said) {
                Some(hint) => error.hinted(hint),
                None => error,
            }
        })
    }

    /// Waits until the task and the agent in its relay's container run.
    pub(super) async fn wait_ready(
        &self,
        ui: &Ui,
        access: &str,
        mut task: TaskState,
        patience: Patience,
    ) -> Result<TaskState, CommandError> {
        let phase = ui.phase("task");
        let mut began = Instant::now();
        let mut budget = patience.left(START_TIMEOUT);
        while task.last_status != "RUNNING" {
            if task.last_status == "STOPPED" || task.desired_status == "STOPPED" {
                return Err(explain::stopped_error(&self.settled(task).await));
            }
            if began.elapsed() >= budget {
                let message = anyhow::anyhow!("task {} is {} after {} s", task.id, task.last_status, budget.as_secs());
                let error = CommandError::failed(message).hinted("look at the task in the ECS console");
                return Err(patience.explain(START_TIMEOUT, error));
            }
            phase.detail(&task.last_status.to_lowercase());
            task = self.look_again(task).await?;
        }
        ui.done(phase, &format!("{} running", task.id));

        let phase = ui.phase("agent");
        began = Instant::now();
        budget = patience.left(AGENT_TIMEOUT);
        let name = &self.access(access)?.container;
        let mut stopped: Option<Instant> = None;
        loop {
            let Some(container) = task.container(name) else {
                return Err(explain::no_container(&task, name));
            };
            let status = container.agent_status.as_deref();
            if status == Some("RUNNING") {
                break;
            }
            if task.last_status == "STOPPED" || task.desired_status == "STOPPED" {
                return Err(explain::stopped_error(&self.settled(task).await));
            }
            stopped = (status == Some("STOPPED")).then(|| stopped.unwrap_or_else(Instant::now));
            let given_up = stopped.is_some_and(|since| since.elapsed() >= AGENT_RESTART);
            if began.elapsed() >= budget && budget < AGENT_TIMEOUT {
                return Err(explain::agent_error(&task, container, began.elapsed()).hinted(format!(
                    "--timeout left {} s for it, and it may take a minute: give more time",
                    budget.as_secs()
                )));
            }
            if began.elapsed() >= budget || given_up {
                return Err(explain::agent_hints(explain::agent_error(&task, container, began.elapsed())));
            }
            phase.detail(status.unwrap_or("unknown").to_lowercase().as_str());
            task = self.look_again(task).await?;
        }
        ui.done(phase, "session agent running");
        Ok(task)
    }

    async fn look_again(&self, task: TaskState) -> Result<TaskState, CommandError> {
        tokio::time::sleep(POLL).await;
        match self.aws.task(&self.environment.cluster, &task.arn).await {
            Ok(Some(task)) => Ok(task),
            Ok(None) => Ok(task),
            Err(error) if error.is_retryable() => Ok(task),
            Err(error) => Err(error.into()),
        }
    }

    /// The task once ECS has written down why it ended.
    pub(super) async fn settled(&self, mut task: TaskState) -> TaskState {
        for _ in 0..10 {
            if task.last_status == "STOPPED" {
                break;
            }
            match self.look_again(task.clone()).await {
                Ok(newer) => task = newer,
                Err(_) => break,
            }
        }
        task
    }

    /// Stops a task and waits until ECS says so.
    pub(super) async fn stop(&self, ui: &Ui, task: &TaskState, reason: &str) -> Result<(), CommandError> {
        let cluster = &self.environment.cluster;
        if let Ok(Some(now)) = self.aws.task(cluster, &task.arn).await
            && now.last_status == "STOPPED"
        {
            return Ok(());
        }
        let phase = ui.phase("stop");
        self.aws.stop_task(cluster, &task.arn, reason).await?;
        let began = Instant::now();
        let mut current = task.clone();
        while current.last_status != "STOPPED" {
            if began.elapsed() > STOP_TIMEOUT {
                let message = anyhow::anyhow!(
                    "task {} is still {} after {} s",
                    task.id,
                    current.last_status,
                    STOP_TIMEOUT.as_secs()
                );
                return Err(CommandError::failed(message).hinted("ECS will end it; bastion status shows when"));
            }
            phase.detail(&current.last_status.to_lowercase());
            current = self.look_again(current).await?;
        }
        ui.done(phase, &format!("{} stopped", task.id));
        Ok(())
    }
}

/// Tag values allow letters, digits, spaces and `_.:/=+-@`, 256 of them (ECS API, `Tag`).
fn tag_value(text: &str) -> String {
    let legal = |c: char| c.is_alphanumeric() || " _.:/=+-@".contains(c);
    text.chars().map(|c| if legal(c) { c } else { '_' }).take(256).collect()
}

pub(super) fn interrupted() -> CommandError {
    CommandError::new(Kind::Interrupted, anyhow::anyhow!("interrupted"))
}

/// The outcome of `work`, or an interruption.
pub(super) async fn interruptible<T>(
    drain: &CancellationToken,
    work: impl Future<Output = Result<T, CommandError>>,
) -> Result<T, CommandError> {
    tokio::select! {
        done = work => done,
        () = drain.cancelled() => Err(interrupted()),
    }
}
