//! The launchers of this person on this machine that hold ports open, so that `bastion down` can end those that would start
//! a task again.
//!
//! Each has a record in the state folder, and a lock that it holds as long as it lives: a process that is gone has lost its
//! lock, whatever ended it, so no number of a process has to be trusted. `bastion down` asks for the end by a further file,
//! which the process looks for; nobody is sent a signal.

use std::fs::{File, TryLockError};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::cli::error::CommandError;
use crate::cli::launch::Place;
use crate::cli::state::StateFolder;

const PREFIX: &str = "process-";
const RECORD: &str = ".json";
/// Held by the process as long as it lives.
const LOCK: &str = ".lock";
/// There as soon as the process shall end.
const END: &str = ".end";
/// How often a process looks whether it shall end.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What a process holds open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) pid: u32,
    pub(super) env: String,
    pub(super) access: String,
    pub(super) region: String,
    pub(super) cluster: String,
    /// As policies know the caller: the same environment in another account is another one.
    pub(super) user_id: String,
}

impl Record {
    pub(super) fn new(place: &Place, access: &str) -> Self {
        Self {
            pid: std::process::id(),
            env: place.environment.name.clone(),
            access: access.to_owned(),
            region: place.environment.region.clone(),
            cluster: place.environment.cluster.clone(),
            user_id: place.caller.user_id.clone(),
        }
    }

    /// Whether it is the caller's, in this environment.
    fn is_at(&self, place: &Place) -> bool {
        let environment = &place.environment;
        (&self.env, &self.region, &self.cluster) == (&environment.name, &environment.region, &environment.cluster)
            && self.user_id == place.caller.user_id
    }
}

/// This process among the others, until it is dropped.
pub(super) struct Entry {
    folder: Arc<StateFolder>,
    id: String,
    _lock: File,
    _looking: DropGuard,
}

impl Entry {
    /// Writes the record, and cancels `drain` when somebody asks for the end.
    ///
    /// # Errors
    /// If there is no state folder, or nothing can be written there.
    pub(super) fn new(folder: StateFolder, record: &Record, drain: CancellationToken) -> Result<Self, CommandError> {
        let id = uuid::Uuid::new_v4().simple().to_string();
        let lock = folder.create(&file(&id, LOCK)).map_err(CommandError::failed)?;
        lock.try_lock().map_err(|error| CommandError::failed(io::Error::from(error)))?;
        let text = serde_json::to_string(record).map_err(CommandError::failed)?;
        folder.replace(&file(&id, RECORD), &text).map_err(CommandError::failed)?;
        let (folder, end) = (Arc::new(folder), CancellationToken::new());
        let (looked_in, name) = (Arc::clone(&folder), file(&id, END));
        let looking = async move {
            while !looked_in.read(&name).is_ok_and(|found| found.is_some()) {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            drain.cancel();
        };
        TaskTracker::new().spawn(end.clone().run_until_cancelled_owned(looking));
        Ok(Self { folder, id, _lock: lock, _looking: end.drop_guard() })
    }

    /// Whether `bastion down` has asked for the end. The task may be gone before this process has looked for that.
    pub(super) fn is_asked_to_end(&self) -> bool {
        self.folder.read(&file(&self.id, END)).is_ok_and(|found| found.is_some())
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        forget(&self.folder, &self.id);
    }
}

/// A process that lives.
pub(super) struct Process {
    id: String,
    pub(super) record: Record,
}

/// Every process of the caller in this environment; the records of those that are gone are removed.
pub(super) fn living(folder: &StateFolder, place: &Place) -> io::Result<Vec<Process>> {
    Ok(all(folder)?.into_iter().filter(|process| process.record.is_at(place)).collect())
}

fn all(folder: &StateFolder) -> io::Result<Vec<Process>> {
    let mut found = Vec::new();
    for name in folder.names()? {
        let Some(id) = name.strip_prefix(PREFIX).and_then(|name| name.strip_suffix(RECORD)) else { continue };
        // What cannot be read is left to whoever has written it.
        let Ok(Some(text)) = folder.read(&name) else { continue };
        let Ok(record) = serde_json::from_str(&text) else { continue };
        let process = Process { id: id.to_owned(), record };
        if process.is_gone(folder) {
            forget(folder, id);
        } else {
            found.push(process);
        }
    }
    Ok(found)
}

impl Process {
    /// Asks the process to end; it looks for it by itself.
    pub(super) fn ask_to_end(&self, folder: &StateFolder) -> io::Result<()> {
        match folder.create(&file(&self.id, END)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            made => made.map(drop),
        }
    }

    pub(super) fn is_gone(&self, folder: &StateFolder) -> bool {
        match folder.open_to_lock(&file(&self.id, LOCK)) {
            Ok(Some(lock)) => !matches!(lock.try_lock(), Err(TryLockError::WouldBlock)),
            Ok(None) => true,
            // Whoever cannot find out must not say so.
            Err(_) => false,
        }
    }
}

/// Removes what is written of a process, the lock last: nobody takes a record without one for a process that lives.
fn forget(folder: &StateFolder, id: &str) {
    for kind in [RECORD, END, LOCK] {
        // The process and somebody who finds it gone may both be here.
        let _gone = folder.remove(&file(id, kind));
    }
}

fn file(id: &str, kind: &str) -> String {
    format!("{PREFIX}{id}{kind}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let text = |text: &str| text.to_owned();
        Record {
            pid: 7,
            env: text("demo"),
            access: text("read"),
            region: text("eu-west-1"),
            cluster: text("bastion"),
            user_id: text("AROA:alice"),
        }
    }

    #[tokio::test]
    async fn a_process_is_found_while_it_lives_and_hears_that_it_shall_end() {
        let root = tempfile::tempdir().unwrap();
        let folder = || StateFolder::at(root.path().join("bastion")).unwrap();
        let drain = CancellationToken::new();
        let entry = Entry::new(folder(), &record(), drain.clone()).unwrap();
        let found = all(&folder()).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].record, record());
        assert!(!entry.is_asked_to_end() && !drain.is_cancelled());
        found[0].ask_to_end(&folder()).unwrap();
        found[0].ask_to_end(&folder()).unwrap();
        drain.cancelled().await;
        assert!(entry.is_asked_to_end() && !found[0].is_gone(&folder()));
        drop(entry);
        assert!(found[0].is_gone(&folder()));
        assert_eq!(folder().names().unwrap(), [""; 0]);
    }

    #[test]
    fn the_record_of_a_process_that_was_killed_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let folder = StateFolder::at(root.path().join("bastion")).unwrap();
        // Its lock is gone with it; its number may be another program's by now.
        drop(folder.create("process-1.lock").unwrap());
        folder.replace("process-1.json", &serde_json::to_string(&record()).unwrap()).unwrap();
        folder.replace("process-2.json", "{}").unwrap();
        assert!(all(&folder).unwrap().is_empty());
        assert_eq!(folder.names().unwrap(), ["process-2.json"]);
    }
}
