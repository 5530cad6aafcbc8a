//! `bastion relay`: the program in the task.

use clap::Args;

use crate::cli::error::CommandError;

/// Run the relay (in the task; developers do not need this)
#[derive(Debug, Args)]
pub(super) struct RelayArgs {}

pub(super) fn cmd_relay(_args: RelayArgs) -> Result<(), CommandError> {
    Ok(())
}
