//! The `bastion.toml` files that apply: where they are looked for, and their text as documents.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::config::problem::Problems;

/// The file in a repository and in the user's configuration folder.
pub(crate) const PROJECT_FILE: &str = "bastion.toml";

/// Far more than hundreds of environments need.
const MAX_BYTES: u64 = 1 << 20;

/// The configuration files that apply: path and text.
#[derive(Debug, Default)]
pub(crate) struct Files {
    pub(crate) project: Option<(PathBuf, String)>,
    pub(crate) user: Option<(PathBuf, String)>,
}

/// Looks for `bastion.toml` from `start` upwards to the root of the repository or to `home`, both included, and in the
/// `bastion` folder of `user_config`.
///
/// # Errors
/// A file that is there and cannot be read.
pub(crate) fn find_files(start: &Path, home: Option<&Path>, user_config: Option<&Path>) -> Result<Files, Problems> {
    let mut problems = Problems::default();
    let mut files = Files::default();
    // In a worktree or a submodule, .git is a file. Outside both a repository and the home folder nothing above `start`
    // counts: a bastion.toml in /tmp may be anybody's.
    let repository = start.ancestors().find(|folder| folder.join(".git").exists());
    let root = repository.or_else(|| home.filter(|home| start.starts_with(home))).unwrap_or(start);
    for folder in start.ancestors() {
        let path = folder.join(PROJECT_FILE);
        let found = read(&path, &mut problems);
        let is_there = found.is_some() || !problems.is_empty();
        files.project = found;
        if is_there || folder == root {
            break;
        }
    }
    files.user = user_config.and_then(|folder| read(&folder.join("bastion").join(PROJECT_FILE), &mut problems));
    problems.finish(Some(files))
}

fn read(path: &Path, problems: &mut Problems) -> Option<(PathBuf, String)> {
    match read_file(path) {
        Ok(text) => Some((path.to_owned(), text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            let source = path.display().to_string();
            problems.add(&source, "", format!("cannot be read: {error}"), "make it a readable file or move it away");
            None
        }
    }
}

/// The text of a configuration file.
///
/// # Errors
/// If it is no file, too large, or not text.
pub(crate) fn read_file(path: &Path) -> io::Result<String> {
    // Opening a pipe would wait for its writer.
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    let mut text = String::new();
    let read = File::open(path)?.take(MAX_BYTES + 1).read_to_string(&mut text)?;
    if u64::try_from(read).is_ok_and(|read| read > MAX_BYTES) {
        return Err(io::Error::other(format!("it is larger than {MAX_BYTES} bytes")));
    }
    Ok(text)
}

impl Files {
    /// Source and document of each file, highest precedence first. A file that is not TOML is a problem with its line.
    pub(super) fn documents(&self, problems: &mut Problems) -> Vec<(String, Value)> {
        let mut documents = Vec::new();
        for (path, text) in [&self.project, &self.user].into_iter().flatten() {
            let source = path.display().to_string();
            match toml::from_str(text) {
                Ok(document) => documents.push((source, document)),
                Err(error) => {
                    let before = error.span().and_then(|span| text.get(..span.start));
                    let line = before.map(|before| format!("line {}: ", before.matches('\n').count() + 1));
                    let message = format!("is not TOML: {}{}", line.unwrap_or_default(), error.message());
                    problems.add(&source, "", message, "correct the syntax");
                }
            }
        }
        documents
    }
}
