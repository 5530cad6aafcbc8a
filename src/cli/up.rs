//! `bastion up` and `bastion connect`: from a name to local ports.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use secrecy::ExposeSecret as _;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use crate::aws::TaskState;
use crate::cli::authorize::Badge;
use crate::cli::error::CommandError;
use crate::cli::launch::{self, AwsArgs, Patience, Place, interrupted, interruptible};
use crate::cli::session::{FurtherSessions, Purpose, Sessions};
use crate::cli::state::StateFolder;
use crate::cli::target::Door;
use crate::cli::ui::Ui;
use crate::cli::{escape, explain, hold, target};
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
    /// The access level
    #[arg(long, value_name = "LEVEL", default_value = "read")]
    access: String,
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
    #[command(flatten)]
    aws: AwsArgs,
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

pub(super) async fn cmd_up(args: UpArgs, drain: CancellationToken) -> Result<(), CommandError> {
    let ui = Arc::new(Ui::new(args.common.json, args.common.quiet));
    let patience = Patience::new(args.common.timeout);
    let place = Box::pin(interruptible(&drain, launch::place(&ui, &args.common.env, &args.common.aws))).await?;
    let place = Arc::new(place);
    let access = &args.common.access;
    if place.access(access)?.reason_required && args.reason.is_none() {
        let message = anyhow::anyhow!("access level {access:?} of {} needs a reason", args.common.env);
        return Err(CommandError::failed(message).hinted("add --reason \"…\", for example a ticket number"));
    }
    let own = interruptible(&drain, place.own_tasks(access)).await?;
    let (task, started) = match own.into_iter().next() {
        Some(task) => {
            ui.say(&format!("  · joining your running task {}", task.id));
            (task, false)
        }
        // Not interruptible: a request under way may start a task that nobody would stop.
        None => (place.run(access, args.reason.as_deref()).await?, true),
    };
    let mut ended = if drain.is_cancelled() {
        Err(interrupted())
    } else if args.detach {
        Box::pin(interruptible(&drain, detach(&ui, &place, task.clone(), &args, patience))).await
    } else {
        attach(&ui, &place, task.clone(), &args.common, args.reason.clone(), args.keep, patience, &drain).await
    };
    let keep = match &ended {
        Ok(()) => args.keep || args.detach,
        // What did not come up is not kept.
        Err(_) => false,
    };
    if started && !keep {
        let stopped = place.stop(&ui, &task, "bastion up ended").await;
        if ended.is_ok() {
            ended = stopped;
        } else if let Err(error) = stopped {
            ui.warn(&format!("  ! task {} may still run: {error}", task.id));
        }
    } else if started && args.keep {
        ui.say(&format!("  · task {} goes on until it is idle or bastion down {}", task.id, args.common.env));
    }
    ended
}

pub(super) async fn cmd_connect(args: ConnectArgs, drain: CancellationToken) -> Result<(), CommandError> {
    let ui = Arc::new(Ui::new(args.json, args.quiet));
    let patience = Patience::new(args.timeout);
    let place = Arc::new(Box::pin(interruptible(&drain, launch::place(&ui, &args.env, &args.aws))).await?);
    let own = interruptible(&drain, place.own_tasks(&args.access)).await?;
    let Some(task) = own.into_iter().next() else {
        let message =
            anyhow::anyhow!("you have no running bastion for {} with access level {:?}", args.env, args.access);
        return Err(CommandError::failed(message).hinted(format!("start one: bastion up {}", args.env)));
    };
    attach(&ui, &place, task, &args, None, false, patience, &drain).await
}

/// Waits for the task, opens the tunnel and holds the ports until the end. Ctrl-C while holding is a good end.
async fn attach(
    ui: &Arc<Ui>,
    place: &Arc<Place>,
    task: TaskState,
    args: &ConnectArgs,
    reason: Option<String>,
    keep: bool,
    patience: Patience,
    drain: &CancellationToken,
) -> Result<(), CommandError> {
    let task = interruptible(drain, place.wait_ready(ui, &args.access, task, patience)).await?;
    // Its own token: Ctrl-C ends the tunnel gently below.
    let cut = CancellationToken::new();
    let purpose = Purpose { access: args.access.clone(), reason, wake: args.wake };
    let sessions = Sessions::new(place, ui, task, purpose)?;
    let tunnel = match interruptible(drain, sessions.open(patience, cut)).await {
        Ok(tunnel) => tunnel,
        Err(error) => {
            sessions.end(false).await;
            return Err(error);
        }
    };
    let held = Box::pin(hold_tunnel(ui, place, &sessions, &tunnel, args, patience, drain)).await;
    tunnel.close().await;
    sessions.end(keep && held.is_ok()).await;
    held
}

async fn hold_tunnel(
    ui: &Arc<Ui>,
    place: &Place,
    sessions: &Arc<Sessions>,
    tunnel: &Tunnel,
    args: &ConnectArgs,
    patience: Patience,
    drain: &CancellationToken,
) -> Result<(), CommandError> {
    let relay = interruptible(drain, target::ask(ui, tunnel, sessions, patience.left(RELAY_TIMEOUT))).await?;
    let identity = relay.identity.as_deref();
    let badge = interruptible(drain, Badge::get(ui, &place.aws, tunnel, sessions, identity)).await?;
    let door = match badge.local_password() {
        Some(password) => Door::Password(password),
        None if relay.local_password => Door::Unknown,
        None => Door::Open,
    };
    let wishes: BTreeMap<String, u16> = args.local_port.iter().cloned().collect();
    let ports = hold::open_ports(ui, &relay, &wishes)?;
    let wanted = args.lanes.map_or(place.environment.lanes, usize::from);
    let opener = Arc::new(FurtherSessions(Arc::clone(sessions)));
    let lanes = Lanes::begin(tunnel.clone(), wanted, badge, opener);
    if drain.run_until_cancelled(lanes.known(LANE_TIMEOUT)).await.is_none() {
        lanes.close().await;
        return Err(interrupted());
    }
    let task = sessions.task().id;
    hold::announce(ui, &place.environment.name, &args.access, &task, &ports, &relay.unavailable, &door);
    if let Some(seconds) = relay.idle_stop_seconds {
        ui.say(&format!("  · the task stops itself after {} min without a database connection", seconds / 60));
    }
    let ended = hold::serve(ui, &lanes, ports, args.stats, drain).await;
    lanes.close().await;
    let Some(cause) = ended else { return Ok(()) };
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

/// Waits for the task, then starts `bastion connect` in the background and passes on its connect cards.
async fn detach(
    ui: &Arc<Ui>,
    place: &Place,
    task: TaskState,
    args: &UpArgs,
    patience: Patience,
) -> Result<(), CommandError> {
    let task = place.wait_ready(ui, &args.common.access, task, patience).await?;
    let phase = ui.phase("background");
    let program = std::env::current_exe().map_err(CommandError::failed)?;
    let state = StateFolder::open()?;
    let (log_name, log) = state.log(&task.id).map_err(|error| {
        let folder = state.path("");
        CommandError::failed(anyhow::anyhow!("cannot write a log into the state folder {}: {error}", folder.display()))
    })?;
    let mut connect = Command::new(program);
    connect.args(["connect", &args.common.env, "--access", &args.common.access, "--json"]);
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
    // Its own process group: Ctrl-C in this terminal is not for it.
    connect.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).process_group(0);
    let mut child = connect.spawn().map_err(CommandError::failed)?;
    let stdout = child.stdout.take().map(BufReader::new);
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
        let _ended = child.kill().await;
        let said = state.read(&log_name).ok().flatten().unwrap_or_default();
        return Err(CommandError::failed(anyhow::anyhow!("the background tunnel did not come up: {}", said.trim())));
    };
    let pid = child.id().unwrap_or_default();
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
            args.common.env, args.common.access, args.common.env
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
