//! `bastion up` and `bastion connect`: from a name to local ports.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use secrecy::ExposeSecret as _;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

use crate::api::Part;
use crate::aws::TaskState;
use crate::cli::authorize::Badge;
use crate::cli::card::Door;
use crate::cli::error::CommandError;
use crate::cli::launch::{self, AwsArgs, Patience, Place, interrupted, interruptible};
use crate::cli::leave;
use crate::cli::owed::Owed;
use crate::cli::processes::{Entry, Record};
use crate::cli::session::{FurtherSessions, Purpose, Sessions};
use crate::cli::state::StateFolder;
use crate::cli::ui::Ui;
use crate::cli::{escape, explain, hold, ports, relay_client};
use crate::shutdown::Hangup;
use crate::tunnel::Tunnel;
use crate::tunnel::lanes::Lanes;

/// The relay answers at once when it runs; its container may still be starting.
const RELAY_TIMEOUT: Duration = Duration::from_secs(60);
/// The relay answers at once to a request for a lane. It is no condition: clients wait for it too.
const LANE_TIMEOUT: Duration = Duration::from_secs(10);
/// A background tunnel to a task that runs already.
const DETACH_TIMEOUT: Duration = Duration::from_secs(120);
/// SSM API: `Reason` of StartSession.
const REASON_MAX: usize = 256;

/// Start or join your bastion of an environment and open local ports to its databases
///
/// Runs a Fargate task if you have none yet, opens a Session Manager tunnel to it, prints a connect card for each
/// database and holds them open until Ctrl-C, which also stops the task that it started. It does not create AWS
/// resources and does not change databases.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  bastion up prod
  bastion up prod --access write --reason \"INC-123\"

Exit codes: 0 done, 1 failed and you can act, 2 bad command line, 64 bad configuration, 130 interrupted")]
pub(super) struct UpArgs {
    #[command(flatten)]
    common: ConnectArgs,
    /// Why, for the audit log (some access levels require it)
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    reason: Option<String>,
    /// Leave the task running at the end; it stops itself when idle
    #[arg(long)]
    keep: bool,
    /// Return once the ports are open; task and tunnel go on in the background until bastion down
    #[arg(long)]
    detach: bool,
}

/// Open local ports to your running bastion of an environment
///
/// Joins the task that bastion up has started, and leaves it running at the end. It does not start a task.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  bastion connect prod
  bastion connect prod --local-port orders=5432 --json

Exit codes: 0 done, 1 failed and you can act, 2 bad command line, 64 bad configuration, 130 interrupted")]
pub(super) struct ConnectArgs {
    /// The environment
    #[arg(value_name = "ENV")]
    env: String,
    /// The access level (default: the environment's, or its only one, or read)
    #[arg(long, value_name = "LEVEL")]
    access: Option<String>,
    /// Local port for a target; repeat it for several
    #[arg(long, value_name = "TARGET=PORT", value_parser = local_port)]
    local_port: Vec<(String, u16)>,
    /// Give up when the ports are not open after this time, for example 5m (default: a limit for each phase)
    #[arg(long, value_name = "TIME", value_parser = timeout)]
    timeout: Option<Duration>,
    /// Keep the ports open when the task has ended (idle, too old); the next connection starts a new one
    #[arg(long)]
    wake: bool,
    /// Session Manager sessions that carry the connections together, up to 32; 0: one, uncompressed (default: the environment's, or 4)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=32))]
    lanes: Option<u8>,
    /// Say now and then how much goes through and how fast
    #[arg(long)]
    stats: bool,
    /// Print events as JSON lines on stdout
    #[arg(long)]
    json: bool,
    /// Print nothing but data, warnings and errors
    #[arg(long, short)]
    quiet: bool,
    /// Outlive the terminal: `up --detach` says so to the process that it leaves behind
    #[arg(long, hide = true)]
    background: bool,
    #[command(flatten)]
    aws: AwsArgs,
}

impl ConnectArgs {
    /// Looks the environment up, and decides on the access level.
    async fn place(&mut self, ui: &Ui, patience: Patience, drain: &CancellationToken) -> Result<Place, CommandError> {
        let looking = patience.limited(launch::place(ui, &self.env, &self.aws));
        let place = Box::pin(interruptible(drain, looking)).await?;
        self.access = Some(place.level(self.access.as_deref())?);
        Ok(place)
    }

    fn access(&self) -> &str {
        self.access.as_deref().unwrap_or_default()
    }

    /// Lets `bastion down` find this process.
    fn enter(&self, ui: &Ui, place: &Place, drain: &CancellationToken) -> Option<Entry> {
        let record = Record::new(place, self.access());
        let entered = StateFolder::open().and_then(|folder| Entry::new(folder, &record, drain.clone()));
        match entered {
            Ok(entry) => Some(entry),
            Err(error) => {
                let problem = format!("bastion down cannot end this process: {:#}", error.source);
                // Others end with their task, which bastion down stops.
                if self.wake {
                    ui.warn(&format!("  ! {problem}"));
                }
                tracing::debug!(problem, "there is no entry");
                None
            }
        }
    }

    pub(super) fn hangup(&self) -> Hangup {
        if self.background { Hangup::Ignored } else { Hangup::Ends }
    }
}

fn local_port(text: &str) -> Result<(String, u16), String> {
    let (name, port) = text.split_once('=').ok_or("write TARGET=PORT, for example orders=5432")?;
    let port =
        port.parse().ok().filter(|port| *port > 0).ok_or_else(|| format!("{port:?} is not a port from 1 to 65535"))?;
    Ok((name.to_owned(), port))
}

fn timeout(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .ok()
        .filter(|time| !time.is_zero())
        .ok_or_else(|| format!("{text:?} is not a time; write a number with a unit, for example 90s or 5m"))
}

fn reason(text: &str) -> Result<String, String> {
    let length = text.trim().chars().count();
    match length {
        1..=REASON_MAX => Ok(text.trim().to_owned()),
        _ => Err(format!("a reason has 1 to {REASON_MAX} characters, this one has {length}")),
    }
}

pub(super) async fn cmd_up(mut args: UpArgs, drain: CancellationToken, owed: Arc<Owed>) -> Result<(), CommandError> {
    let ui = Arc::new(Ui::new(args.common.json, args.common.quiet));
    let patience = Patience::new(args.common.timeout);
    let place = Arc::new(args.common.place(&ui, patience, &drain).await?);
    // One that goes on in the background has an entry of its own.
    let entry = if args.detach { None } else { args.common.enter(&ui, &place, &drain) };
    let access = args.common.access();
    if place.access(access)?.reason_required && args.reason.is_none() {
        let message = anyhow::anyhow!("access level {access:?} of {} needs a reason", args.common.env);
        return Err(CommandError::failed(message).hinted("add --reason \"…\", for example a ticket number"));
    }
    let own = interruptible(&drain, patience.limited(Box::pin(place.own_tasks(access)))).await?;
    let (task, started) = match own.into_iter().next() {
        Some(task) => {
            ui.say(&format!("  · joining your running task {}", task.id));
            (task, false)
        }
        // Not interruptible: a request under way may start a task that nobody would stop.
        None => (owed.start(&place, place.run(access, args.reason.as_deref())).await?, true),
    };
    let ended = if drain.is_cancelled() {
        Err(interrupted())
    } else if args.detach {
        let detaching = Box::pin(interruptible(&drain, detach(&ui, &place, task.clone(), &args, patience)));
        detaching.await.map(|()| None)
    } else {
        let part = match started {
            _ if args.keep => Part::Keep,
            true => Part::Started,
            false => Part::Used,
        };
        attach(&ui, &place, task.clone(), &args.common, args.reason.clone(), part, patience, &drain, &owed).await
    };
    let is_asked = entry.as_ref().is_some_and(Entry::is_asked_to_end);
    if is_asked {
        ui.say("  · bastion down has ended it");
    }
    match ended {
        // Who asked stops the task too, and may have been quicker than this process.
        Err(_) if is_asked => {
            owed.settle(&task);
            Ok(())
        }
        Ok(Some(last)) => {
            place.stop(&ui, &last, "bastion up ended").await?;
            owed.settle(&task);
            Ok(())
        }
        Ok(None) => {
            owed.settle(&task);
            if started && args.keep {
                ui.say(&format!("  · task {} goes on until it is idle or bastion down {}", task.id, args.common.env));
            }
            Ok(())
        }
        // What did not come up is not kept.
        Err(error) => {
            if started {
                match place.stop(&ui, &task, "bastion up ended").await {
                    Ok(()) => owed.settle(&task),
                    Err(error) => ui.warn(&format!("  ! task {} may still run: {error}", task.id)),
                }
            }
            Err(error)
        }
    }
}

pub(super) async fn cmd_connect(
    mut args: ConnectArgs,
    drain: CancellationToken,
    owed: Arc<Owed>,
) -> Result<(), CommandError> {
    let ui = Arc::new(Ui::new(args.json, args.quiet));
    let patience = Patience::new(args.timeout);
    let place = Arc::new(args.place(&ui, patience, &drain).await?);
    let entry = args.enter(&ui, &place, &drain);
    let own = interruptible(&drain, patience.limited(Box::pin(place.own_tasks(args.access())))).await?;
    let Some(task) = own.into_iter().next() else {
        let message =
            anyhow::anyhow!("you have no running bastion for {} with access level {:?}", args.env, args.access());
        return Err(CommandError::failed(message).hinted(format!("start one: bastion up {}", args.env)));
    };
    match attach(&ui, &place, task, &args, None, Part::Used, patience, &drain, &owed).await {
        Ok(Some(last)) => place.stop(&ui, &last, "bastion connect ended, the last user").await,
        Ok(None) => Ok(()),
        Err(_) if entry.as_ref().is_some_and(Entry::is_asked_to_end) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Waits for the task, opens the tunnel and holds the ports until the end. Ctrl-C while holding is a good end, and gives the
/// task that is to be stopped, if it is.
async fn attach(
    ui: &Arc<Ui>,
    place: &Arc<Place>,
    task: TaskState,
    args: &ConnectArgs,
    reason: Option<String>,
    part: Part,
    patience: Patience,
    drain: &CancellationToken,
    owed: &Arc<Owed>,
) -> Result<Option<TaskState>, CommandError> {
    let task = interruptible(drain, place.wait_ready(ui, args.access(), task, patience)).await?;
    // Its own token: Ctrl-C ends the tunnel gently below.
    let cut = CancellationToken::new();
    let purpose = Purpose { access: args.access().to_owned(), reason, wake: args.wake };
    let sessions = Sessions::new(place, ui, task, purpose, owed)?;
    let tunnel = match interruptible(drain, sessions.open(patience, cut)).await {
        Ok(tunnel) => tunnel,
        Err(error) => {
            sessions.end(false).await;
            return Err(error);
        }
    };
    let held = Box::pin(hold_tunnel(ui, place, &sessions, &tunnel, args, part, patience, drain)).await;
    tunnel.close().await;
    let task = sessions.task();
    // A task that was started for a client, too, is left to whoever else uses it.
    sessions.end(held.as_ref().is_ok_and(|is_last| !is_last)).await;
    Ok(held?.then_some(task))
}

/// Holds the ports; whether the task is to be stopped then.
async fn hold_tunnel(
    ui: &Arc<Ui>,
    place: &Place,
    sessions: &Arc<Sessions>,
    tunnel: &Tunnel,
    args: &ConnectArgs,
    part: Part,
    patience: Patience,
    drain: &CancellationToken,
) -> Result<bool, CommandError> {
    let relay =
        interruptible(drain, relay_client::wait_until_ready(ui, tunnel, sessions, patience.left(RELAY_TIMEOUT))).await;
    let relay = relay.map_err(|error| patience.explain(RELAY_TIMEOUT, error))?;
    let identity = relay.identity.as_deref();
    let badge = interruptible(drain, Badge::get(ui, &place.aws, tunnel, sessions, identity)).await?;
    let door = match badge.local_password() {
        Some(password) => Door::Password(password),
        None if relay.local_password => Door::Unknown,
        None => Door::Open,
    };
    let wishes: BTreeMap<String, u16> = args.local_port.iter().cloned().collect();
    let ports = ports::open_ports(ui, &relay, &wishes)?;
    let wanted = args.lanes.map_or(place.environment.lanes, usize::from);
    let opener = Arc::new(FurtherSessions(Arc::clone(sessions)));
    let pass = Arc::clone(&badge);
    let lanes = Lanes::begin(tunnel.clone(), wanted, badge, opener);
    if drain.run_until_cancelled(lanes.known(LANE_TIMEOUT)).await.is_none() {
        lanes.close().await;
        return Err(interrupted());
    }
    let task = sessions.task().id;
    hold::announce(ui, &place.environment.name, args.access(), &task, &ports, &relay.unavailable, &door);
    if let Some(seconds) = relay.idle_stop_seconds {
        ui.say(&format!("  · the task stops itself after {} min without a database connection", seconds / 60));
    }
    let Some(cause) = hold::serve(ui, &lanes, ports, args.stats, drain).await else {
        let part = if part == Part::Used && sessions.has_started() { Part::Started } else { part };
        let others = leave::leave(tunnel, &lanes, &pass, part).await;
        if others.others > 0 && part == Part::Started {
            ui.say(&format!(
                "  · task {} is left to others who use it, and ends with the last of them",
                sessions.task().id
            ));
        }
        lanes.close().await;
        return Ok(leave::stops_task(others, part));
    };
    lanes.close().await;
    // The task may be why: then its story is the better one.
    match place.aws.task(&place.environment.cluster, &sessions.task().arn).await {
        Ok(Some(now)) if now.desired_status == "STOPPED" => {
            let now = place.settled(now).await;
            Err(explain::stopped_error(&now).hinted(format!("start again: bastion up {}", args.env)))
        }
        _ => Err(CommandError::failed(anyhow::anyhow!("the tunnel has ended: {cause}"))
            .hinted(format!("the task may still run: bastion connect {}", args.env))),
    }
}

/// A process in the background that is not ready: whatever ends the wait for it, an interruption too, ends it.
struct Unready(Option<Child>);

impl Drop for Unready {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _has_ended = child.start_kill();
        }
    }
}

/// Its own process group: Ctrl-C in this terminal is not for it.
#[cfg(unix)]
fn leave_terminal(command: &mut Command) {
    command.process_group(0);
}

/// Without a console, and in its own group: neither Ctrl-C in this one nor its end is for it.
#[cfg(windows)]
fn leave_terminal(command: &mut Command) {
    /// Windows API, "Process Creation Flags".
    const DETACHED_PROCESS: u32 = 0x0000_0008;
    const CREATE_NEW_PROCESS_GROUP: u32 = 0x0000_0200;
    command.creation_flags(DETACHED_PROCESS | CREATE_NEW_PROCESS_GROUP);
}

/// Waits for the task, then starts `bastion connect` in the background and passes on its connect cards.
async fn detach(
    ui: &Arc<Ui>,
    place: &Place,
    task: TaskState,
    args: &UpArgs,
    patience: Patience,
) -> Result<(), CommandError> {
    let task = place.wait_ready(ui, args.common.access(), task, patience).await?;
    let phase = ui.phase("background");
    let program = std::env::current_exe().map_err(CommandError::failed)?;
    let state = StateFolder::open()?;
    let (log_name, log) = state.log(&task.id).map_err(|error| {
        let folder = state.path("");
        CommandError::failed(anyhow::anyhow!("cannot write a log into the state folder {}: {error}", folder.display()))
    })?;
    let mut connect = Command::new(program);
    connect.args(["connect", &args.common.env, "--access", args.common.access(), "--json", "--background"]);
    if args.common.wake {
        connect.arg("--wake");
    }
    if let Some(lanes) = args.common.lanes {
        connect.args(["--lanes", &lanes.to_string()]);
    }
    for (name, port) in &args.common.local_port {
        connect.arg("--local-port").arg(format!("{name}={port}"));
    }
    // What a person has typed a code for is not asked for again where there is no terminal.
    let login = place.aws.handed_over().await?;
    let profile = args.common.aws.profile.clone().filter(|_| login.is_empty());
    connect.envs(login.iter().map(|(name, value)| (name, value.expose_secret())));
    for (flag, value) in
        [("--profile", &profile), ("--region", &args.common.aws.region), ("--cluster", &args.common.aws.cluster)]
    {
        if let Some(value) = value {
            connect.args([flag, value]);
        }
    }
    connect.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
    leave_terminal(&mut connect);
    let mut child = Unready(Some(connect.spawn().map_err(CommandError::failed)?));
    let stdout = child.0.as_mut().and_then(|child| child.stdout.take()).map(BufReader::new);
    let ready = async {
        let mut lines = stdout?.lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let event: Value = serde_json::from_str(&line).unwrap_or_default();
            if event["event"] == "ready" {
                return Some(event);
            }
        }
        None
    };
    let Ok(Some(event)) = tokio::time::timeout(patience.left(DETACH_TIMEOUT), ready).await else {
        // It has ended, or it must not go on alone.
        if let Some(mut child) = child.0.take() {
            let _ended = child.kill().await;
        }
        let said = state.read(&log_name).ok().flatten().unwrap_or_default();
        let message = anyhow::anyhow!("the background tunnel did not come up: {}", said.trim());
        return Err(patience.explain(DETACH_TIMEOUT, CommandError::failed(message)));
    };
    let pid = child.0.take().and_then(|child| child.id()).unwrap_or_default();
    ui.done(phase, &format!("process {pid}, log {}", state.path(&log_name).display()));
    if ui.is_json() {
        ui.event(&event);
    } else {
        for target in event["targets"].as_array().into_iter().flatten() {
            let text = |key: &str| escape::line(target[key].as_str().unwrap_or_default());
            let password = target["password"].as_str().map(|password| format!("  password {}", escape::line(password)));
            let password = password.unwrap_or_default();
            ui.data(&format!("{}  localhost:{}  {}{password}", text("name"), target["port"], text("command")));
        }
        for target in event["unavailable"].as_array().into_iter().flatten() {
            let text = |key: &str| escape::line(target[key].as_str().unwrap_or_default());
            ui.data(&format!("{}  not served: {}", text("name"), text("problem")));
        }
        ui.say(&format!(
            "ready: {} ({}) · bastion down {} ends it",
            args.common.env,
            args.common.access(),
            args.common.env
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_ports_and_reasons_are_checked_where_they_are_typed() {
        assert_eq!(local_port("orders=5432"), Ok(("orders".to_owned(), 5432)));
        for bad in ["orders", "orders=", "orders=0", "orders=70000"] {
            assert!(local_port(bad).is_err(), "{bad}");
        }
        assert_eq!(reason(" INC-1 "), Ok("INC-1".to_owned()));
        assert!(reason("  ").is_err());
        assert!(reason(&"x".repeat(257)).unwrap_err().contains("257"));
        assert_eq!(timeout("90s"), Ok(Duration::from_secs(90)));
        for bad in ["90", "0s", "soon", ""] {
            assert!(timeout(bad).unwrap_err().contains("for example 90s or 5m"), "{bad}");
        }
    }
}
