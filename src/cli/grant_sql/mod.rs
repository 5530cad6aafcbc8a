//! `bastion grant-sql`: what an administrator of the database must run, and whether it has worked.

mod check;
mod statements;

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::api::targets::Unavailable;
use crate::cli::authorize::Badge;
use crate::cli::error::{CommandError, Kind};
use crate::cli::escape;
use crate::cli::launch::{self, AwsArgs, Patience, Place, interruptible};
use crate::cli::relay_client;
use crate::cli::session::{FurtherSessions, Purpose, Sessions};
use crate::cli::ui::Ui;
use crate::tunnel::Tunnel;
use crate::tunnel::lanes::Lanes;
use crate::types::{Access, CredentialConfig};

/// The relay answers at once when it runs.
const RELAY_TIMEOUT: Duration = Duration::from_secs(60);

/// Only the task reads secrets.
const NO_ENGINE: &str = "write engine = \"postgres\" or \"mysql\" into the target's configuration in the environment; \
                         what its secret says is known in the task alone";

/// Print the SQL that lets the bastion log in to a database, or check that it does
///
/// The statements are for an administrator of the database to read and run: the user of the access level with the grants
/// that it needs, or the statements with which Vault makes users. It does not change databases. With --check it logs in
/// through your running bastion, as any client would, and shows what the user may do.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  bastion grant-sql prod orders --server-version 16 > grants.sql
  bastion grant-sql prod --access write --check

Exit codes: 0 done, 1 failed and you can act (also a failed check), 2 bad command line, 64 bad configuration")]
pub(super) struct GrantSqlArgs {
    /// The environment
    #[arg(value_name = "ENV")]
    env: String,
    /// The target (default: all)
    #[arg(value_name = "TARGET")]
    target: Option<String>,
    /// The access level (default: the environment's, or its only one, or read)
    #[arg(long, value_name = "LEVEL")]
    access: Option<String>,
    /// Major version of the database, where the statements depend on it
    #[arg(long, value_name = "N", conflicts_with = "check")]
    server_version: Option<u16>,
    /// Log in through your running bastion and show what the user may do
    #[arg(long)]
    check: bool,
    /// Print one JSON document on stdout
    #[arg(long)]
    json: bool,
    /// Print nothing but data, warnings and errors
    #[arg(long, short)]
    quiet: bool,
    #[command(flatten)]
    aws: AwsArgs,
}

impl GrantSqlArgs {
    fn access(&self) -> &str {
        self.access.as_deref().unwrap_or_default()
    }
}

pub(super) async fn cmd_grant_sql(mut args: GrantSqlArgs, drain: CancellationToken) -> Result<(), CommandError> {
    // The statements are the data: one document, no events.
    let ui = Arc::new(Ui::new(false, args.quiet || args.json));
    let place = Arc::new(interruptible(&drain, Box::pin(launch::place(&ui, &args.env, &args.aws))).await?);
    args.access = Some(place.level(args.access.as_deref())?);
    let args = &args;
    if args.check {
        return Box::pin(check_all(&ui, &place, args, &drain)).await;
    }
    let Access { targets, without_engine, .. } = place.access(args.access())?;
    let without_engine: Vec<&str> = without_engine.iter().map(|target| target.name.as_str()).collect();
    let is_named = args.target.as_ref().is_some_and(|wanted| without_engine.contains(&wanted.as_str()));
    if is_named || args.target.is_none() && targets.is_empty() && !without_engine.is_empty() {
        let message = anyhow::anyhow!(
            "the statements depend on the engine, and the configuration of {} has none",
            args.target.clone().unwrap_or_else(|| without_engine.join(", "))
        );
        return Err(CommandError::new(Kind::Config, message).hinted(NO_ENGINE));
    }
    if targets.is_empty() && without_engine.is_empty() {
        let message = anyhow::anyhow!("access level {:?} of {} names no targets", args.access(), args.env);
        return Err(CommandError::new(Kind::Config, message)
            .hinted("deploy the environment with its targets, or write them into bastion.toml"));
    }
    let wanted = wanted(targets.values(), |target| &target.name, &without_engine, args)?;
    let named = args.target.is_some();
    if named && wanted.iter().any(|target| target.credential == CredentialConfig::Client) {
        let message = anyhow::anyhow!("clients of {} log in themselves", wanted[0].name);
        return Err(CommandError::failed(message).hinted("there is nothing to grant to the bastion"));
    }
    let scripts = wanted.iter().map(|target| (target, statements::script(target, args.access(), args.server_version)));
    if args.json {
        let all: Vec<_> = scripts
            .map(|(target, sql)| json!({"target": target.name, "engine": target.engine.as_str(), "sql": sql}))
            .collect();
        ui.document(&json!({"access": args.access(), "targets": all}));
    } else {
        ui.data(&scripts.map(|(_, sql)| sql).collect::<Vec<_>>().join("\n"));
    }
    if args.target.is_none() && !without_engine.is_empty() {
        ui.warn(&format!("  ! nothing for {}: {NO_ENGINE}", without_engine.join(", ")));
    }
    Ok(())
}

/// Those of `all` that the command line names. `others` are there too, and something else.
fn wanted<'a, T>(
    all: impl Iterator<Item = &'a T>,
    name: impl Fn(&T) -> &str,
    others: &[&str],
    args: &GrantSqlArgs,
) -> Result<Vec<&'a T>, CommandError> {
    let all: Vec<&T> = all.collect();
    let Some(wanted) = &args.target else { return Ok(all) };
    match all.iter().find(|target| name(target) == wanted) {
        Some(target) => Ok(vec![*target]),
        None => {
            let known: Vec<&str> = all.iter().map(|target| name(target)).chain(others.iter().copied()).collect();
            let message = anyhow::anyhow!("there is no target {wanted:?} with access level {:?}", args.access());
            Err(CommandError::failed(message).hinted(format!("the targets are {}", known.join(", "))))
        }
    }
}

async fn check_all(
    ui: &Arc<Ui>,
    place: &Arc<Place>,
    args: &GrantSqlArgs,
    drain: &CancellationToken,
) -> Result<(), CommandError> {
    let Some(task) = interruptible(drain, place.own_tasks(args.access())).await?.into_iter().next() else {
        let message =
            anyhow::anyhow!("you have no running bastion for {} with access level {:?}", args.env, args.access());
        return Err(CommandError::failed(message).hinted(format!(
            "start one: bastion up {} --access {}",
            args.env,
            args.access()
        )));
    };
    let patience = Patience::new(None);
    let task = interruptible(drain, place.wait_ready(ui, args.access(), task, patience)).await?;
    let purpose = Purpose { access: args.access().to_owned(), reason: None, wake: false };
    let sessions = Sessions::new(place, ui, task, purpose, &Arc::default())?;
    // Ctrl-C ends the tunnel and its session too.
    let checked = match interruptible(drain, sessions.open(patience, CancellationToken::new())).await {
        Ok(tunnel) => {
            let checked = interruptible(drain, check_through(ui, place, &sessions, &tunnel, args)).await;
            tunnel.close().await;
            checked
        }
        Err(error) => Err(error),
    };
    sessions.end(true).await;
    checked
}

async fn check_through(
    ui: &Arc<Ui>,
    place: &Place,
    sessions: &Arc<Sessions>,
    tunnel: &Tunnel,
    args: &GrantSqlArgs,
) -> Result<(), CommandError> {
    let relay = relay_client::wait_until_ready(ui, tunnel, sessions, RELAY_TIMEOUT).await?;
    let asked = |target: &&Unavailable| args.target.as_ref().is_none_or(|wanted| *wanted == target.name);
    let unavailable: Vec<&Unavailable> = relay.unavailable.iter().filter(asked).collect();
    let wanted = match args.target {
        Some(_) if !unavailable.is_empty() => Vec::new(),
        _ => wanted(relay.targets.iter(), |served| &served.name, &[], args)?,
    };
    let badge = Badge::get(ui, &place.aws, tunnel, sessions, relay.identity.as_deref()).await?;
    let password = badge.local_password();
    let opener = Arc::new(FurtherSessions(Arc::clone(sessions)));
    // A few statements: one session is enough.
    let lanes = Lanes::begin(tunnel.clone(), 0, badge, opener);
    let (mut failed, mut all) = (0_usize, Vec::new());
    for served in wanted {
        let phase = ui.phase(&served.name);
        let checked = check::check(&lanes, served, password.as_ref()).await;
        drop(phase);
        let Some(checked) = checked else {
            all.push(json!({"target": served.name, "ok": null}));
            if !args.json {
                ui.data(&format!("{}  not checked: clients log in themselves", escape::line(&served.name)));
            }
            continue;
        };
        failed = failed.saturating_add(usize::from(checked.is_err()));
        let name = escape::line(&served.name);
        match &checked {
            Ok(found) if args.json => all.push(json!({
                "target": served.name, "ok": true, "user": found.user, "server": found.server, "rights": found.rights
            })),
            Err(error) if args.json => all.push(json!({"target": served.name, "ok": false, "error": error})),
            Ok(found) => {
                ui.data(&format!("{name}  ok: {} on {}", escape::line(&found.user), escape::line(&found.server)));
                for right in &found.rights {
                    ui.data(&format!("  {}", escape::line(right)));
                }
            }
            Err(error) => ui.data(&format!("{name}  failed: {}", escape::indented(error))),
        }
    }
    lanes.close().await;
    for Unavailable { name, problem } in &unavailable {
        all.push(json!({"target": name, "ok": false, "error": problem}));
        if !args.json {
            ui.data(&format!("{}  not served: {}", escape::line(name), escape::line(problem)));
        }
    }
    if args.json {
        ui.document(&json!({"access": args.access(), "targets": all}));
    }
    let without_login = failed.saturating_add(unavailable.len());
    if without_login == 0 {
        return Ok(());
    }
    let error = CommandError::failed(anyhow::anyhow!("the bastion cannot log in to {without_login} of its targets"));
    if failed == 0 {
        return Err(error);
    }
    let hint = format!("the statements that it needs: bastion grant-sql {} --access {}", args.env, args.access());
    Err(error.hinted(hint))
}
