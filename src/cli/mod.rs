//! The command line: one file a command, one match, exit codes. The only place that prints.

mod error;
#[cfg(feature = "relay")]
mod relay;

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
    #[cfg(feature = "relay")]
    Relay(relay::RelayArgs),
}

/// Parses the command line, runs the command, prints what went wrong and returns the exit code.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let result: Result<(), CommandError> = match cli.command {
        #[cfg(feature = "relay")]
        Command::Relay(args) => relay::cmd_relay(&args),
    };
    match result {
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
