//! `bastion down`: stop one's own tasks.

use clap::Args;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::cli::error::CommandError;
use crate::cli::launch::{self, AwsArgs, interrupted};
use crate::cli::ui::Ui;

/// Stop your running bastions of an environment
///
/// Stops the tasks that you have started, of every access level or of one, and waits until they have stopped. It does
/// not touch the tasks of others.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  bastion down prod
  bastion down prod --access write")]
pub(super) struct DownArgs {
    /// The environment
    #[arg(value_name = "ENV")]
    env: String,
    /// Only this access level
    #[arg(long, value_name = "LEVEL")]
    access: Option<String>,
    /// Print events as JSON lines on stdout
    #[arg(long)]
    json: bool,
    /// Print nothing but data, warnings and errors
    #[arg(long, short)]
    quiet: bool,
    #[command(flatten)]
    aws: AwsArgs,
}

pub(super) async fn cmd_down(args: DownArgs, drain: CancellationToken) -> Result<(), CommandError> {
    let ui = Ui::new(args.json, args.quiet);
    let work = async {
        let place = launch::place(&ui, &args.env, &args.aws).await?;
        let levels: Vec<String> = match &args.access {
            Some(level) => vec![level.clone()],
            None => place.environment.access.keys().cloned().collect(),
        };
        let mut stopped = Vec::new();
        for level in levels {
            for task in place.own_tasks(&level).await? {
                if !stopped.contains(&task.id) {
                    place.stop(&ui, &task, "bastion down").await?;
                    stopped.push(task.id);
                }
            }
        }
        if stopped.is_empty() {
            ui.say(&format!("you have no running bastion for {}", args.env));
        }
        ui.event(&json!({"event": "down", "env": args.env, "stopped": stopped}));
        Ok(())
    };
    tokio::select! {
        done = work => done,
        () = drain.cancelled() => {
            Err(interrupted().hinted("what was asked to stop goes on stopping; bastion status shows it"))
        }
    }
}
