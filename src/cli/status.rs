//! `bastion status`: one's own tasks.

use std::time::SystemTime;

use clap::Args;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::cli::error::{CommandError, Kind};
use crate::cli::launch::{self, AwsArgs, interruptible};
use crate::cli::ui::Ui;
use crate::cli::{config_files, escape};
use crate::config::laptop;

/// Show your running bastions
///
/// Lists the tasks that you have started, with state and age: of one environment, or of all in the configuration files.
/// It does not show the tasks of others and changes nothing.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  bastion status prod
  bastion status --json")]
pub(super) struct StatusArgs {
    /// The environment (default: all in the configuration files)
    #[arg(value_name = "ENV")]
    env: Option<String>,
    /// Print one JSON document on stdout
    #[arg(long)]
    json: bool,
    /// Print nothing but data, warnings and errors
    #[arg(long, short)]
    quiet: bool,
    #[command(flatten)]
    aws: AwsArgs,
}

pub(super) async fn cmd_status(args: StatusArgs, drain: CancellationToken) -> Result<(), CommandError> {
    Box::pin(interruptible(&drain, run(&args))).await
}

async fn run(args: &StatusArgs) -> Result<(), CommandError> {
    // The list is the data: phases would only be in its way.
    let ui = Ui::new(false, true);
    let names = match &args.env {
        Some(name) => vec![name.clone()],
        None => laptop::known(&config_files::find()?),
    };
    if names.is_empty() {
        return Err(CommandError::new(Kind::Config, anyhow::anyhow!("no configuration file names an environment"))
            .hinted("name one: bastion status ENV"));
    }
    let mut rows = Vec::new();
    for name in names {
        let place = launch::place(&ui, &name, &args.aws).await?;
        for (access, level) in &place.environment.access {
            for task in place.own_tasks(access).await? {
                let agent = task.container(&level.container).and_then(|container| container.agent_status.clone());
                rows.push((name.clone(), access.clone(), task, agent));
            }
        }
    }
    if args.json {
        let tasks: Vec<_> = rows
            .iter()
            .map(|(env, access, task, agent)| {
                json!({
                    "env": env, "access": access, "task": task.id, "status": task.last_status,
                    "agent": agent, "age_seconds": age(task.created_at),
                })
            })
            .collect();
        ui.document(&json!({ "tasks": tasks }));
        return Ok(());
    }
    if rows.is_empty() {
        Ui::new(false, args.quiet).say("you have no running bastion");
    }
    for (env, access, task, _) in rows {
        let age = age(task.created_at).map(|seconds| format!("{} min", seconds / 60)).unwrap_or_default();
        let (id, status) = (escape::line(&task.id), escape::line(&task.last_status));
        ui.data(&format!("{env:<12} {access:<8} {id}  {status:<13} {age}"));
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "the age of a task is a matter of the wall clock")]
fn age(created_at: Option<SystemTime>) -> Option<u64> {
    Some(SystemTime::now().duration_since(created_at?).unwrap_or_default().as_secs())
}
