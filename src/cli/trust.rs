//! `bastion trust`: which `bastion.toml` of a repository may decide where the person is sent.
//!
//! As direnv and git's `safe.directory` do: whoever wrote a repository is not the person who works in it. What is trusted is
//! one text at one place; the list is in the state folder.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::cli::config_files;
use crate::cli::error::{CommandError, Kind};
use crate::cli::escape::{line, shell};
use crate::cli::state::StateFolder;
use crate::cli::ui::Ui;
use crate::config::laptop::{self, Files, PROJECT_FILE};
use crate::config::{Env as _, ProcessEnv, vars};

const LIST: &str = "trusted.json";
/// The newest stay.
const LIST_MAX: usize = 1000;

/// Trust the bastion.toml of a project, so that it may decide where you are sent
///
/// A bastion.toml that came with a repository could name another task, network or Vault for an environment that you know.
/// So nothing is done with what it says until you have read and trusted it; a file that has changed needs it again. The
/// command prints what the file decides. It asks nothing of AWS and does not run anything.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  bastion trust
  bastion trust --list
  bastion trust --revoke ../other/bastion.toml

Without a terminal, as in CI: BASTION_TRUST, a list of the SHA-256 of files that are trusted wherever they are

Exit codes: 0 done, 1 failed and you can act, 2 bad command line, 64 bad configuration")]
pub(super) struct TrustArgs {
    /// The file (default: the one that applies in the current folder)
    #[arg(value_name = "FILE", conflicts_with = "list")]
    file: Option<PathBuf>,
    /// Show what is trusted
    #[arg(long)]
    list: bool,
    /// Take the trust back
    #[arg(long, conflicts_with = "list")]
    revoke: bool,
    /// Print one JSON document on stdout
    #[arg(long)]
    json: bool,
    /// Print nothing but data, warnings and errors
    #[arg(long, short)]
    quiet: bool,
}

/// One text at one place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Trusted {
    path: PathBuf,
    sha256: String,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct List {
    /// Oldest first, each path once.
    files: Vec<Trusted>,
}

impl List {
    fn read(state: &StateFolder) -> Result<Self, CommandError> {
        let unreadable = |error: &dyn std::fmt::Display| {
            let message =
                anyhow::anyhow!("the list of trusted files {} cannot be read: {error}", state.path(LIST).display());
            CommandError::failed(message).hinted("remove it, and trust your files again")
        };
        match state.read(LIST).map_err(|error| unreadable(&error))? {
            Some(text) => serde_json::from_str(&text).map_err(|error| unreadable(&error)),
            None => Ok(Self::default()),
        }
    }

    fn write(&mut self, state: &StateFolder) -> Result<(), CommandError> {
        let oldest = self.files.len().saturating_sub(LIST_MAX);
        self.files.drain(..oldest);
        let text = serde_json::to_string_pretty(self).map_err(CommandError::failed)?;
        state.replace(LIST, &text).map_err(|error| {
            let message = anyhow::anyhow!("{} cannot be written: {error}", state.path(LIST).display());
            CommandError::failed(message)
        })
    }

    fn forget(&mut self, path: &Path) -> bool {
        let before = self.files.len();
        self.files.retain(|trusted| trusted.path != path);
        self.files.len() < before
    }
}

/// Stops where the project's file decides something about the environment `name` and the person has not trusted it.
///
/// # Errors
/// If so, with everything that it decides; and if nobody can say whether it is trusted.
pub(super) fn check(name: &str, files: &Files) -> Result<(), CommandError> {
    let claims = laptop::claims(Some(name), files);
    let Some((path, text)) = files.project.as_ref().filter(|_| !claims.is_empty()) else { return Ok(()) };
    let sha256 = sha256(text);
    let from_variable = ProcessEnv.get(vars::TRUST).unwrap_or_default();
    if from_variable.split([',', ' ']).any(|trusted| trusted.eq_ignore_ascii_case(&sha256)) {
        return Ok(());
    }
    let path = resolved(path)?;
    let this = Trusted { path, sha256 };
    if List::read(&StateFolder::open()?)?.files.contains(&this) {
        return Ok(());
    }
    let shown: String = claims.iter().map(|(key, value)| format!("\n{} = {}", line(key), line(value))).collect();
    let message = anyhow::anyhow!(
        "{} is not trusted, and it decides where bastion {name} sends you:{shown}",
        this.path.display()
    );
    let command = shell(&this.path.display().to_string()).map_or(String::new(), |path| format!(" {path}"));
    Err(CommandError::new(Kind::Config, message)
        .hinted(format!("if that is what you want: bastion trust{command}"))
        .hinted(format!("without a terminal, as in CI: {}={}", vars::TRUST, this.sha256)))
}

pub(super) fn cmd_trust(args: &TrustArgs) -> Result<(), CommandError> {
    // What is trusted is the data.
    let ui = Ui::new(false, args.quiet || args.json);
    let state = StateFolder::open()?;
    let mut list = List::read(&state)?;
    if args.list {
        if args.json {
            ui.document(&json!({"files": list.files}));
            return Ok(());
        }
        for Trusted { path, sha256 } in &list.files {
            ui.data(&format!("{sha256}  {}", line(&path.display().to_string())));
        }
        if list.files.is_empty() {
            ui.say("no file is trusted");
        }
        return Ok(());
    }
    if args.revoke {
        return revoke(args, &ui, &state, &mut list);
    }
    let (path, text) = file(args)?;
    if let Err(error) = toml::from_str::<toml::Table>(&text) {
        let message = anyhow::anyhow!("{} is not TOML: {}", path.display(), error.message());
        return Err(CommandError::new(Kind::Config, message).hinted("correct the syntax"));
    }
    let sha256 = sha256(&text);
    let files = Files { project: Some((path.clone(), text)), user: None };
    let claims = laptop::claims(None, &files);
    list.forget(&path);
    list.files.push(Trusted { path: path.clone(), sha256: sha256.clone() });
    list.write(&state)?;
    if args.json {
        let decides: serde_json::Map<_, _> = claims.into_iter().map(|(key, value)| (key, value.into())).collect();
        ui.document(&json!({"path": path, "sha256": sha256, "trusted": true, "decides": decides}));
        return Ok(());
    }
    for (key, value) in &claims {
        ui.data(&format!("{} = {}", line(key), line(value)));
    }
    ui.say(&format!("trusted until it changes: {} · bastion trust --revoke takes it back", path.display()));
    Ok(())
}

fn revoke(args: &TrustArgs, ui: &Ui, state: &StateFolder, list: &mut List) -> Result<(), CommandError> {
    let path = match &args.file {
        // It may not be there any more.
        Some(path) => resolved(path).or_else(|_| std::path::absolute(path).map_err(CommandError::failed))?,
        None => file(args)?.0,
    };
    let was_trusted = list.forget(&path);
    if was_trusted {
        list.write(state)?;
    }
    if args.json {
        ui.document(&json!({"path": path, "trusted": false}));
    }
    let outcome = if was_trusted { "no longer trusted" } else { "was not trusted" };
    ui.say(&format!("{outcome}: {}", path.display()));
    Ok(())
}

/// The file that the command line names, or the one that applies here.
fn file(args: &TrustArgs) -> Result<(PathBuf, String), CommandError> {
    let Some(named) = &args.file else {
        let Some((path, text)) = config_files::find()?.project else {
            let message = anyhow::anyhow!("no {PROJECT_FILE} applies in this folder");
            return Err(CommandError::failed(message).hinted("name one: bastion trust FILE"));
        };
        return Ok((resolved(&path)?, text));
    };
    let path = resolved(named)?;
    let path = if path.is_dir() { path.join(PROJECT_FILE) } else { path };
    let text = laptop::read_file(&path)
        .map_err(|error| CommandError::failed(anyhow::anyhow!("{} cannot be read: {error}", path.display())))?;
    Ok((path, text))
}

/// The path without links, which is the same from every folder.
fn resolved(path: &Path) -> Result<PathBuf, CommandError> {
    std::fs::canonicalize(path)
        .map_err(|error| CommandError::failed(anyhow::anyhow!("{} cannot be found: {error}", path.display())))
}

fn sha256(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}
