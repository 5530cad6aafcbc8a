//! The folder for what bastion keeps from one command to the next, on Windows: `bastion` in the person's local application
//! data, which Windows closes to other people. On Unix the same has to be made sure of, in `state.rs`.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::PathBuf;

use etcetera::BaseStrategy as _;

use crate::cli::error::CommandError;

const FOLDER: &str = "bastion";
/// Logs of one task.
const LOGS_OF_A_TASK: u32 = 1000;

/// The folder.
#[derive(Debug)]
pub(super) struct StateFolder {
    path: PathBuf,
}

impl StateFolder {
    /// Opens the folder of the person; it is made if it is not there.
    ///
    /// # Errors
    /// If nobody says where it is, or it cannot be made.
    pub(super) fn open() -> Result<Self, CommandError> {
        let base = etcetera::choose_base_strategy().map_err(CommandError::failed)?;
        let path = base.cache_dir().join(FOLDER);
        match fs::create_dir_all(&path) {
            Ok(()) => Ok(Self { path }),
            Err(error) => {
                let message = anyhow::anyhow!("the state folder {} cannot be used: {error}", path.display());
                Err(CommandError::failed(message).hinted("make it a folder of your own"))
            }
        }
    }

    /// Where `name` is, for messages.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// A new file.
    ///
    /// # Errors
    /// If there is something of this name.
    pub(super) fn create(&self, name: &str) -> io::Result<File> {
        File::create_new(self.path(name))
    }

    /// A file that others may hold a lock of; `None` if there is none.
    pub(super) fn open_to_lock(&self, name: &str) -> io::Result<Option<File>> {
        found(File::options().read(true).write(true).open(self.path(name)))
    }

    /// The text of a file; `None` if there is none.
    pub(super) fn read(&self, name: &str) -> io::Result<Option<String>> {
        found(fs::read_to_string(self.path(name)))
    }

    /// Writes a file anew: whoever reads it sees the old or the new text, never a part.
    pub(super) fn replace(&self, name: &str, text: &str) -> io::Result<()> {
        let draft = format!(".{name}.{}", uuid::Uuid::new_v4());
        self.create(&draft)?.write_all(text.as_bytes())?;
        fs::rename(self.path(&draft), self.path(name))
    }

    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path(name))
    }

    /// The names of what is in the folder.
    pub(super) fn names(&self) -> io::Result<Vec<String>> {
        let entries = fs::read_dir(&self.path)?.flatten();
        Ok(entries.filter_map(|entry| entry.file_name().into_string().ok()).collect())
    }

    /// A new log for the background tunnel to a task: its name and the file.
    pub(super) fn log(&self, task: &str) -> io::Result<(String, File)> {
        for number in 1..=LOGS_OF_A_TASK {
            let name = format!("{task}-{number}.log");
            match self.create(&name) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => return made.map(|file| (name, file)),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }
}

fn found<T>(opened: io::Result<T>) -> io::Result<Option<T>> {
    match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        opened => opened.map(Some),
    }
}
