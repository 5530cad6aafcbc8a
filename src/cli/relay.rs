//! `bastion relay`: the program in the task.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::path::PathBuf;

use clap::Args;

use crate::cli::error::{CommandError, Kind};
use crate::cli::out;
use crate::config::{self, Env, Problems, ProcessEnv, vars};
use crate::relay::{self, Relay};
use crate::shutdown::{self, Hangup};
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
    /// Check the environment as a start would, open nothing and exit: 0 with one line if it is good, 64 with every
    /// mistake if not. Files that it names are read at the start only
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
    let Start { source, config, filter } =
        read(args, &ProcessEnv).map_err(|problems| CommandError::new(Kind::Config, problems))?;
    if args.check {
        out::result(&format!("{source} is good: {}", summary(&config)));
        return Ok(());
    }
    let format = if std::io::stderr().is_terminal() { telemetry::Format::Text } else { telemetry::Format::Json };
    let _log = telemetry::init(format, filter);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(CommandError::failed)?;
    runtime.block_on(run(config))
}

fn summary(config: &relay::Config) -> String {
    let with_engine = config.targets.iter().map(|target| (&target.name, ""));
    let without_engine =
        config.without_engine.iter().map(|target| (&target.name, " (its secret has to name the engine)"));
    let names: BTreeMap<&String, &str> = with_engine.chain(without_engine).collect();
    let noun = if names.len() == 1 { "target" } else { "targets" };
    let names: Vec<String> = names.into_iter().map(|(name, note)| format!("{name}{note}")).collect();
    format!("environment {}, access {}, {noun} {}", config.environment, config.access, names.join(", "))
}

async fn run(config: relay::Config) -> Result<(), CommandError> {
    let (shutdown, listening) = shutdown::listen(Hangup::Ends).map_err(CommandError::failed)?;
    let serving = async {
        let relay = Relay::bind(config, shutdown.drain.clone(), shutdown.now.clone()).await.map_err(|error| {
            let taken = matches!(&error, relay::StartError::Bind { .. });
            let error = CommandError::failed(error);
            if taken {
                error.hinted("stop the other process on this port, or set relay_port of the target")
            } else {
                error
            }
        })?;
        tracing::info!(cause = %relay.serve().await, "stopped");
        Ok(())
    };
    tokio::select! {
        served = serving => served,
        // Only after the second signal and an hour of nothing would this end first; it never does.
        never = async { listening.await; std::future::pending().await } => never,
    }
}

/// All that a start reads before it opens a port.
struct Start {
    /// Where the configuration came from, as messages name it.
    source: String,
    config: relay::Config,
    filter: telemetry::Filter,
}

/// Reads the whole environment; a check and a start share it, so that they cannot disagree.
fn read(args: &RelayArgs, env: &impl Env) -> Result<Start, Problems> {
    let mut problems = Problems::default();
    let filter = log_filter(env, &mut problems);
    let document = document(args, env, &mut problems);
    let config = document.and_then(|(source, text)| match config::relay::resolve(&source, &text, env) {
        Ok(config) => Some((source, config)),
        Err(others) => {
            problems.join(others);
            None
        }
    });
    let start = filter.zip(config).map(|(filter, (source, config))| Start { source, config, filter });
    problems.finish(start)
}

fn log_filter(env: &impl Env, problems: &mut Problems) -> Option<telemetry::Filter> {
    let text = env.get(vars::LOG).unwrap_or_else(|| "info".to_owned());
    telemetry::filter(&text)
        .map_err(|error| {
            let fix = format!("write for example {}=info,bastion=debug", vars::LOG);
            problems.add(vars::LOG, "", format!("is {text:?}: {error}"), fix);
        })
        .ok()
}

/// The text of the configuration, and where it came from.
fn document(args: &RelayArgs, env: &impl Env, problems: &mut Problems) -> Option<(String, String)> {
    let Some(path) = &args.config else {
        let text = env.get(vars::CONFIG);
        if text.is_none() {
            let fix = "set it to the relay's configuration, or use --config FILE";
            problems.add(vars::CONFIG, "", "is not set", fix);
        }
        return Some((vars::CONFIG.to_owned(), text?));
    };
    let source = path.display().to_string();
    match std::fs::read_to_string(path) {
        Ok(text) => Some((source, text)),
        Err(error) => {
            problems.add(&source, "", format!("cannot be read: {error}"), "give the path of a readable JSON file");
            None
        }
    }
}
