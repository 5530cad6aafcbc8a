//! The command line: one file a command, one match, exit codes. The only place that prints.

#[cfg(feature = "launcher")]
mod authorize;
#[cfg(feature = "launcher")]
mod client_command;
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
#[cfg(feature = "relay")]
mod relay;
#[cfg(feature = "launcher")]
mod session;
#[cfg(feature = "launcher")]
mod state;
#[cfg(feature = "launcher")]
mod status;
#[cfg(feature = "launcher")]
mod strangers;
#[cfg(feature = "launcher")]
mod target;
#[cfg(feature = "launcher")]
mod trust;
#[cfg(feature = "launcher")]
mod ui;
#[cfg(feature = "launcher")]
mod up;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::cli::error::CommandError;

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
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "the one place that prints errors")]
            {
                eprintln!("{error}");
            }
            error.exit_code()
        }
    }
}

fn run(command: Command) -> Result<(), CommandError> {
    match command {
        #[cfg(feature = "launcher")]
        Command::Up(args) => launcher(|drain| Box::pin(up::cmd_up(args, drain))),
        #[cfg(feature = "launcher")]
        Command::Connect(args) => launcher(|drain| up::cmd_connect(args, drain)),
        #[cfg(feature = "launcher")]
        Command::Down(args) => launcher(|drain| down::cmd_down(args, drain)),
        #[cfg(feature = "launcher")]
        Command::Status(args) => launcher(|drain| status::cmd_status(args, drain)),
        #[cfg(feature = "launcher")]
        Command::GrantSql(args) => launcher(|drain| grant_sql::cmd_grant_sql(args, drain)),
        #[cfg(feature = "launcher")]
        Command::Trust(args) => trust::cmd_trust(&args),
        #[cfg(feature = "relay")]
        Command::Relay(args) => relay::cmd_relay(&args),
    }
}

/// Runs a command of the launcher: the first signal asks it to end, the second ends it.
#[cfg(feature = "launcher")]
fn launcher<F: Future<Output = Result<(), CommandError>>>(
    command: impl FnOnce(tokio_util::sync::CancellationToken) -> F,
) -> Result<(), CommandError> {
    use crate::cli::error::Kind;
    use crate::config::{Env as _, ProcessEnv, vars};
    use crate::shutdown;
    use crate::telemetry;

    // People read the phases; the log is for whoever looks into a problem.
    let filter = ProcessEnv.get(vars::LOG).unwrap_or_else(|| "off".to_owned());
    let filter = telemetry::filter(&filter)
        .map_err(|error| CommandError::new(Kind::Config, anyhow::anyhow!("{}: is {filter:?}: {error}", vars::LOG)))?;
    telemetry::init(telemetry::Format::Text, filter);
    // One thread carries more than a tunnel brings, and a message that wakes no second one costs half.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(CommandError::failed)?;
    let result = runtime.block_on(async {
        let (shutdown, listening) = shutdown::listen().map_err(CommandError::failed)?;
        let now = shutdown.now.clone();
        tokio::select! {
            done = command(shutdown.drain) => done,
            () = now.cancelled() => Err(CommandError::new(Kind::Interrupted, anyhow::anyhow!("interrupted twice"))
                .hinted("a task may still run: bastion status")),
            _ = async { listening.await; std::future::pending::<()>().await } => Ok(()),
        }
    });
    // What still blocks must not hold the person.
    runtime.shutdown_timeout(std::time::Duration::from_millis(200));
    result
}
