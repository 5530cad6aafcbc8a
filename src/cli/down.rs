//! `bastion down`: stop one's own tasks.

use std::time::Duration;

use clap::Args;
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::cli::error::CommandError;
use crate::cli::launch::{self, AwsArgs, Place, STOP_TIMEOUT, interrupted};
use crate::cli::processes::{self, Process};
use crate::cli::state::StateFolder;
use crate::cli::ui::Ui;

const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Stop your running bastions of an environment
///
/// Stops the tasks that you have started, of every access level or of one, and ends what you have running on this machine
/// for them, in the background and in other terminals. It waits until all have ended, and does not touch what is others'.
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
        // They first, so that none of them starts a task again.
        let processes = Processes::ask_to_end(&ui, &place, &levels);
        let mut stopped = Vec::new();
        for level in levels {
            for task in place.own_tasks(&level).await? {
                if !stopped.contains(&task.id) {
                    place.stop(&ui, &task, launch::DOWN).await?;
                    stopped.push(task.id);
                }
            }
        }
        let ended = processes.ended(&ui).await?;
        if stopped.is_empty() && ended.is_empty() {
            ui.say(&format!("you have no running bastion for {}", args.env));
        }
        ui.event(&json!({"event": "down", "env": args.env, "stopped": stopped, "ended": ended}));
        Ok(())
    };
    tokio::select! {
        done = work => done,
        () = drain.cancelled() => {
            Err(interrupted().hinted("what was asked to stop goes on stopping; bastion status shows it"))
        }
    }
}

/// The processes of this person on this machine that shall end.
struct Processes {
    /// `None`: there is no state folder, so nothing is known of any.
    folder: Option<StateFolder>,
    living: Vec<Process>,
}

impl Processes {
    /// Asks those that hold one of these access levels.
    fn ask_to_end(ui: &Ui, place: &Place, levels: &[String]) -> Self {
        let none = |error: String| {
            ui.warn(&format!("  ! what runs in the background is not ended: {error}"));
            Self { folder: None, living: Vec::new() }
        };
        let folder = match StateFolder::open() {
            Ok(folder) => folder,
            Err(error) => return none(error.source.to_string()),
        };
        let mut living = match processes::living(&folder, place) {
            Ok(living) => living,
            Err(error) => return none(error.to_string()),
        };
        living.retain(|process| levels.contains(&process.record.access));
        for process in &living {
            if let Err(error) = process.ask_to_end(&folder) {
                ui.warn(&format!("  ! process {} cannot be asked to end: {error}", process.record.pid));
            }
        }
        Self { folder: Some(folder), living }
    }

    /// Waits until all have ended; their numbers.
    async fn ended(self, ui: &Ui) -> Result<Vec<u32>, CommandError> {
        let Some(folder) = self.folder else { return Ok(Vec::new()) };
        let began = Instant::now();
        let mut ended = Vec::new();
        for process in self.living {
            let pid = process.record.pid;
            let phase = ui.phase("end");
            while !process.is_gone(&folder) {
                if began.elapsed() > STOP_TIMEOUT {
                    let message = anyhow::anyhow!("process {pid} has not ended after {} s", STOP_TIMEOUT.as_secs());
                    return Err(CommandError::failed(message).hinted(format!("end it by hand: kill {pid}")));
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
            ui.done(phase, &format!("process {pid} ended"));
            ended.push(pid);
        }
        Ok(ended)
    }
}
