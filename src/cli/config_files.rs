//! The configuration files of the launcher.

use std::path::Path;

use crate::cli::error::{CommandError, Kind};
use crate::config::laptop::{self, Files};
use crate::config::{Env as _, ProcessEnv};

/// The configuration files that apply in the current folder.
pub(super) fn find() -> Result<Files, CommandError> {
    let start = std::env::current_dir().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            CommandError::failed(anyhow::anyhow!("the current folder does not exist any more: it was removed or moved"))
                .hinted("go to another one: cd")
        }
        _ => CommandError::failed(anyhow::Error::new(error).context("the current folder cannot be found out")),
    })?;
    let home = etcetera::home_dir().ok();
    let user = ProcessEnv.get("XDG_CONFIG_HOME").filter(|folder| !folder.is_empty()).map(std::path::PathBuf::from);
    let user = user.or_else(|| home.as_ref().map(|home| home.join(".config")));
    let found = laptop::find_files(&start, home.as_deref(), user.as_deref().map(Path::new));
    found.map_err(|problems| CommandError::new(Kind::Config, problems))
}
