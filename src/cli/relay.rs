//! `bastion relay`: the program in the task.

use std::io::IsTerminal as _;
use std::path::PathBuf;

use clap::Args;

use crate::cli::error::{CommandError, Kind};
use crate::config::{self, Env as _, Problems, ProcessEnv, vars};
use crate::relay::{self, Relay};
use crate::shutdown;
use crate::telemetry;

/// Run the relay (in the task; developers do not need this)
///
/// Listens on loopback, logs in to the configured databases for its clients and ends itself when idle or too old. It
/// does not start tasks and does not open tunnels: `bastion up` does. The configuration is the JSON in BASTION_CONFIG.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  BASTION_CONFIG=\"$(cat relay.json)\" bastion relay
  bastion relay --config relay.json --check")]
pub(super) struct RelayArgs {
    /// Read the configuration from this file instead of BASTION_CONFIG
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Check the configuration and exit: 0 if it is right, 64 with every mistake if not
    #[arg(long)]
    check: bool,
    /// Ask the running relay whether it is alive and exit: 0 if it is (the container health check)
    #[arg(long, conflicts_with_all = ["config", "check"])]
    health: bool,
}

pub(super) fn cmd_relay(args: &RelayArgs) -> Result<(), CommandError> {
    if args.health {
        let mut problems = Problems::default();
        let listen = config::relay::listen(&ProcessEnv, &mut problems);
        let listen = problems.finish(listen).map_err(|problems| CommandError::new(Kind::Config, problems))?;
        return relay::healthy(listen).map_err(|sentence| CommandError::failed(anyhow::Error::msg(sentence)));
    }
    let config = read(args).map_err(|problems| CommandError::new(Kind::Config, problems))?;
    if args.check {
        return Ok(());
    }
    let format = if std::io::stderr().is_terminal() { telemetry::Format::Text } else { telemetry::Format::Json };
    let filter = ProcessEnv.get(vars::LOG).unwrap_or_else(|| "info".to_owned());
    telemetry::init(format, &filter).map_err(|error| {
        CommandError::new(Kind::Config, anyhow::anyhow!("{}: is {filter:?}: {error}", vars::LOG))
            .hinted(format!("write for example {}=info,bastion=debug", vars::LOG))
    })?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(CommandError::failed)?;
    runtime.block_on(run(config))
}

async fn run(config: relay::Config) -> Result<(), CommandError> {
    let (shutdown, listening) = shutdown::listen().map_err(CommandError::failed)?;
    let relay = Relay::bind(config, shutdown.drain.clone(), shutdown.now.clone()).await.map_err(|error| {
        let taken = matches!(&error, relay::StartError::Bind { .. });
        let error = CommandError::failed(error);
        if taken { error.hinted("stop the other process on this port, or set relay_port of the target") } else { error }
    })?;
    tokio::select! {
        ended = relay.serve() => tracing::info!(cause = %ended, "stopped"),
        // Only after the second signal and an hour of nothing would this end first; it never does.
        _ = async { listening.await; std::future::pending::<()>().await } => {}
    }
    Ok(())
}

fn read(args: &RelayArgs) -> Result<relay::Config, Problems> {
    let mut problems = Problems::default();
    let (source, text) = match &args.config {
        Some(path) => {
            let source = path.display().to_string();
            match std::fs::read_to_string(path) {
                Ok(text) => (source, text),
                Err(error) => {
                    problems.add(
                        &source,
                        "",
                        format!("cannot be read: {error}"),
                        "give the path of a readable JSON file",
                    );
                    return Err(problems);
                }
            }
        }
        None => match ProcessEnv.get(vars::CONFIG) {
            Some(text) => (vars::CONFIG.to_owned(), text),
            None => {
                problems.add(
                    vars::CONFIG,
                    "",
                    "is not set",
                    "set it to the relay's configuration, or use --config FILE",
                );
                return Err(problems);
            }
        },
    };
    config::relay::resolve(&source, &text, &ProcessEnv)
}
