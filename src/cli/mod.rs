//! The command line: one file a command, one match, exit codes. The only place that prints.

#[cfg(feature = "launcher")]
mod authorize;
#[cfg(feature = "launcher")]
mod card;
#[cfg(feature = "launcher")]
mod client_command;
#[cfg(feature = "launcher")]
mod config_files;
#[cfg(feature = "launcher")]
mod down;
mod error;
mod escape;
#[cfg(feature = "launcher")]
mod explain;
#[cfg(feature = "launcher")]
mod grant_sql;
#[cfg(feature = "launcher")]
mod hold;
#[cfg(feature = "launcher")]
mod launch;
#[cfg(feature = "launcher")]
mod leave;
mod out;
#[cfg(feature = "launcher")]
mod owed;
#[cfg(feature = "launcher")]
mod panic;
#[cfg(feature = "launcher")]
mod ports;
#[cfg(feature = "launcher")]
mod processes;
#[cfg(feature = "relay")]
mod relay;
#[cfg(feature = "launcher")]
mod relay_client;
#[cfg(feature = "launcher")]
mod session;
#[cfg(all(feature = "launcher", unix))]
mod state;
#[cfg(all(feature = "launcher", not(unix)))]
#[path = "state_windows.rs"]
mod state;
#[cfg(feature = "launcher")]
mod status;
#[cfg(feature = "launcher")]
mod strangers;
#[cfg(feature = "launcher")]
mod trust;
#[cfg(feature = "launcher")]
mod ui;
#[cfg(feature = "launcher")]
mod up;

#[cfg(feature = "launcher")]
use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
#[cfg(feature = "launcher")]
use std::sync::Arc;

use clap::{Parser, Subcommand};
#[cfg(feature = "launcher")]
use futures_util::FutureExt as _;
#[cfg(feature = "launcher")]
use tokio_util::sync::CancellationToken;

use crate::cli::error::CommandError;
#[cfg(feature = "launcher")]
use crate::cli::error::Kind;
#[cfg(feature = "launcher")]
use crate::cli::owed::Owed;
use crate::limits;
#[cfg(feature = "launcher")]
use crate::shutdown::{self, Hangup, Shutdown};

/// Reach private RDS and Aurora databases from any SQL client, without a password and without a standing server
///
/// bastion runs a Fargate task on demand, opens a Session Manager tunnel to it and prints localhost addresses. The task
/// logs in to the database for you. It does not create AWS resources (cdk/ does) and does not change your databases.
#[derive(Debug, Parser)]
#[command(name = "bastion", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[cfg(feature = "launcher")]
    Up(up::UpArgs),
    #[cfg(feature = "launcher")]
    Connect(up::ConnectArgs),
    #[cfg(feature = "launcher")]
    Down(down::DownArgs),
    #[cfg(feature = "launcher")]
    #[command(alias = "ps")]
    Status(status::StatusArgs),
    #[cfg(feature = "launcher")]
    GrantSql(grant_sql::GrantSqlArgs),
    #[cfg(feature = "launcher")]
    Trust(trust::TrustArgs),
    #[cfg(feature = "relay")]
    Relay(relay::RelayArgs),
}

/// Parses the command line, runs the command, prints what went wrong and returns the exit code.
pub fn main() -> ExitCode {
    let command = match Cli::try_parse() {
        Ok(Cli { command }) => command,
        Err(answer) => return out::usage(&answer),
    };
    limits::raise();
    match run(command) {
        Ok(()) => out::outcome(),
        Err(error) => {
            out::talk(&error.to_string());
            error.exit_code()
        }
    }
}

fn run(command: Command) -> Result<(), CommandError> {
    match command {
        #[cfg(feature = "launcher")]
        Command::Up(args) => launcher(Hangup::Ends, |drain, owed| Box::pin(up::cmd_up(args, drain, owed))),
        #[cfg(feature = "launcher")]
        Command::Connect(args) => launcher(args.hangup(), |drain, owed| up::cmd_connect(args, drain, owed)),
        #[cfg(feature = "launcher")]
        Command::Down(args) => launcher(Hangup::Ends, |drain, _| down::cmd_down(args, drain)),
        #[cfg(feature = "launcher")]
        Command::Status(args) => launcher(Hangup::Ends, |drain, _| status::cmd_status(args, drain)),
        #[cfg(feature = "launcher")]
        Command::GrantSql(args) => launcher(Hangup::Ends, |drain, _| grant_sql::cmd_grant_sql(args, drain)),
        #[cfg(feature = "launcher")]
        Command::Trust(args) => trust::cmd_trust(&args),
        #[cfg(feature = "relay")]
        Command::Relay(args) => relay::cmd_relay(&args),
    }
}

/// Runs a command of the launcher: the first signal asks it to end, the second ends it.
#[cfg(feature = "launcher")]
fn launcher<F: Future<Output = Result<(), CommandError>>>(
    hangup: Hangup,
    command: impl FnOnce(CancellationToken, Arc<Owed>) -> F,
) -> Result<(), CommandError> {
    use crate::config::{Env as _, ProcessEnv, vars};
    use crate::telemetry;

    // People read the phases; the log is for whoever looks into a problem.
    let filter = ProcessEnv.get(vars::LOG).unwrap_or_else(|| "off".to_owned());
    let filter = telemetry::filter(&filter)
        .map_err(|error| CommandError::new(Kind::Config, anyhow::anyhow!("{}: is {filter:?}: {error}", vars::LOG)))?;
    let _log = telemetry::init(telemetry::Format::Text, filter);
    // One thread carries more than a tunnel brings, and a message that wakes no second one costs half.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(CommandError::failed)?;
    let result = runtime.block_on(run_to_the_end(hangup, command));
    // What still blocks must not hold the person.
    runtime.shutdown_timeout(std::time::Duration::from_millis(200));
    result
}

#[cfg(feature = "launcher")]
async fn run_to_the_end<F: Future<Output = Result<(), CommandError>>>(
    hangup: Hangup,
    command: impl FnOnce(CancellationToken, Arc<Owed>) -> F,
) -> Result<(), CommandError> {
    let (shutdown, listening) = shutdown::listen(hangup).map_err(CommandError::failed)?;
    let Shutdown { drain, now } = shutdown;
    panic::ends(drain.clone());
    let owed = Arc::new(Owed::default());
    let work = async {
        let done = AssertUnwindSafe(command(drain, Arc::clone(&owed))).catch_unwind().await;
        if !panic::happened() {
            return done.unwrap_or(Ok(()));
        }
        let error = CommandError::new(Kind::Fault, anyhow::anyhow!("bastion ended because of this fault"));
        // The command has stopped its task itself, if the fault was not its own.
        Err(owed.stop_all().await.into_iter().fold(error, CommandError::hinted))
    };
    tokio::select! {
        done = work => done,
        () = now.cancelled() => {
            let error = CommandError::new(Kind::Interrupted, anyhow::anyhow!("interrupted twice"));
            Err(owed.left().into_iter().fold(error, CommandError::hinted))
        }
        never = async { listening.await; std::future::pending().await } => never,
    }
}
