//! The folder for what bastion keeps from one command to the next: logs of background tunnels, the list of trusted files.
//!
//! `$XDG_STATE_HOME/bastion`, otherwise `~/.local/state/bastion` (XDG Base Directory Specification). It belongs to the
//! person and is closed to everybody else. Every file in it is opened relative to the folder's descriptor and without
//! following links, so that nobody who may write above it can have another file read, written or emptied.

use std::fs::{DirBuilder, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use etcetera::BaseStrategy as _;
use etcetera::base_strategy::Xdg;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};

use crate::cli::error::CommandError;

const FOLDER: &str = "bastion";
/// Far more than any file here needs.
const MAX_BYTES: u64 = 1 << 20;
/// Entries of the folder that are looked at.
const MAX_ENTRIES: usize = 1000;
/// Logs of background tunnels that stay, the newest ones.
const KEEP_LOGS: usize = 20;
/// Logs of one task.
const LOGS_OF_A_TASK: u32 = 1000;
const LOG: &str = ".log";

/// The open folder.
#[derive(Debug)]
pub(super) struct StateFolder {
    path: PathBuf,
    folder: OwnedFd,
}

impl StateFolder {
    /// Opens the folder of the person; it is made if it is not there.
    ///
    /// # Errors
    /// If nobody says where it is, or it is a link, or somebody else's.
    pub(super) fn open() -> Result<Self, CommandError> {
        let base = Xdg::new().ok().and_then(|places| places.state_dir()).filter(|base| base.is_absolute());
        let Some(base) = base else {
            let message = anyhow::anyhow!("there is no place for the state folder: HOME is not set");
            return Err(CommandError::failed(message).hinted("set HOME, or XDG_STATE_HOME to a folder of your own"));
        };
        Self::at(base.join(FOLDER))
    }

    pub(super) fn at(path: PathBuf) -> Result<Self, CommandError> {
        match own_folder(&path) {
            Ok(folder) => Ok(Self { path, folder }),
            Err(error) => {
                let message = anyhow::anyhow!("the state folder {} cannot be used: {error}", path.display());
                Err(CommandError::failed(message)
                    .hinted("make it a folder of your own, or set XDG_STATE_HOME to another one"))
            }
        }
    }

    /// Where `name` is, for messages.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// A new file that only the person can read.
    ///
    /// # Errors
    /// If there is something of this name, be it a link.
    pub(super) fn create(&self, name: &str) -> io::Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(File::from(rustix::fs::openat(&self.folder, plain(name)?, flags, Mode::RUSR | Mode::WUSR)?))
    }

    /// A file that others may hold a lock of; `None` if there is none.
    ///
    /// # Errors
    /// If it is a link, for example.
    pub(super) fn open_to_lock(&self, name: &str) -> io::Result<Option<File>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.folder, plain(name)?, flags, Mode::empty()) {
            Ok(file) => Ok(Some(File::from(file))),
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The text of a file; `None` if there is none.
    ///
    /// # Errors
    /// If it is a link, no file, somebody else's, or too long.
    pub(super) fn read(&self, name: &str) -> io::Result<Option<String>> {
        // Opening a pipe would wait for its writer.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&self.folder, plain(name)?, flags, Mode::empty()) {
            Ok(file) => file,
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let found = rustix::fs::fstat(&file)?;
        if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
            return Err(io::Error::other("it is not a file"));
        }
        is_own(&found)?;
        let mut text = String::new();
        let read = File::from(file).take(MAX_BYTES + 1).read_to_string(&mut text)?;
        if u64::try_from(read).is_ok_and(|read| read > MAX_BYTES) {
            return Err(io::Error::other(format!("it is larger than {MAX_BYTES} bytes")));
        }
        Ok(Some(text))
    }

    /// Writes a file anew: whoever reads it sees the old or the new text, never a part.
    pub(super) fn replace(&self, name: &str, text: &str) -> io::Result<()> {
        let draft = format!(".{}.{}", plain(name)?, uuid::Uuid::new_v4());
        let mut file = self.create(&draft)?;
        let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
        let renamed = written.and_then(|()| Ok(rustix::fs::renameat(&self.folder, &draft, &self.folder, name)?));
        if renamed.is_err() {
            // The first error is the one to tell.
            let _best_effort = self.remove(&draft);
        }
        renamed
    }

    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.folder, plain(name)?, AtFlags::empty())?)
    }

    /// The names of what is in the folder, up to a limit.
    pub(super) fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.folder)?.take(MAX_ENTRIES) {
            if let Ok(name) = entry?.file_name().to_str()
                && plain(name).is_ok()
            {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    /// A new log for the background tunnel to a task: its name and the file. The oldest logs are removed.
    pub(super) fn log(&self, task: &str) -> io::Result<(String, File)> {
        self.remove_old_logs(KEEP_LOGS.saturating_sub(1))?;
        let task: String = task.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(64).collect();
        for number in 1..=LOGS_OF_A_TASK {
            let name = format!("{task}-{number}{LOG}");
            match self.create(&name) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => return made.map(|file| (name, file)),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    fn remove_old_logs(&self, keep: usize) -> io::Result<()> {
        let mut logs = Vec::new();
        for name in self.names()?.into_iter().filter(|name| name.ends_with(LOG)) {
            let found = rustix::fs::statat(&self.folder, &name, AtFlags::SYMLINK_NOFOLLOW)?;
            if FileType::from_raw_mode(found.st_mode) == FileType::RegularFile {
                logs.push(((found.st_mtime, found.st_mtime_nsec), name));
            }
        }
        logs.sort();
        for (_, name) in logs.iter().take(logs.len().saturating_sub(keep)) {
            // Another start of bastion may have been faster.
            let _gone = self.remove(name);
        }
        Ok(())
    }
}

/// The folder at `path`, made if it is not there, once it is sure that it is the person's and closed to others.
fn own_folder(path: &Path) -> io::Result<OwnedFd> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = match rustix::fs::open(path, flags, Mode::empty()) {
        Err(rustix::io::Errno::LOOP | rustix::io::Errno::NOTDIR) => {
            return Err(io::Error::other("it is a link or not a folder"));
        }
        opened => opened?,
    };
    let found = rustix::fs::fstat(&folder)?;
    is_own(&found)?;
    if found.st_mode & 0o077 != 0 {
        rustix::fs::fchmod(&folder, Mode::RWXU)?;
    }
    Ok(folder)
}

fn is_own(found: &Stat) -> io::Result<()> {
    let me = rustix::process::geteuid().as_raw();
    if found.st_uid == me {
        return Ok(());
    }
    Err(io::Error::other(format!("it belongs to user {}, and you are user {me}", found.st_uid)))
}

/// The name of a file in the folder itself.
fn plain(name: &str) -> io::Result<&str> {
    match name {
        "" | "." | ".." => Err(io::ErrorKind::InvalidInput.into()),
        name if name.contains(['/', '\0']) => Err(io::ErrorKind::InvalidInput.into()),
        name => Ok(name),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    use super::*;

    fn folder() -> (tempfile::TempDir, StateFolder) {
        let root = tempfile::tempdir().unwrap();
        let state = StateFolder::at(root.path().join("new/state/bastion")).unwrap();
        (root, state)
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn what_is_written_is_the_persons_alone() {
        let (_root, state) = folder();
        assert_eq!(mode(&state.path), 0o700);
        state.replace("list", "one").unwrap();
        state.replace("list", "two").unwrap();
        assert_eq!(state.read("list").unwrap().as_deref(), Some("two"));
        assert_eq!((mode(&state.path("list")), state.names().unwrap()), (0o600, vec!["list".to_owned()]));
        state.remove("list").unwrap();
        assert_eq!(state.read("list").unwrap(), None);
        // One that was open to others is closed.
        fs::set_permissions(&state.path, fs::Permissions::from_mode(0o777)).unwrap();
        StateFolder::at(state.path.clone()).unwrap();
        assert_eq!(mode(&state.path), 0o700);
    }

    #[test]
    fn no_link_is_followed_and_nothing_outside_is_touched() {
        let (root, state) = folder();
        let outside = root.path().join("outside");
        fs::write(&outside, "keep me").unwrap();
        symlink(&outside, state.path("task-1.log")).unwrap();
        symlink(&outside, state.path("list")).unwrap();
        // The planted link is neither written through nor in the way.
        let (name, _) = state.log("task").unwrap();
        assert_eq!(name, "task-2.log");
        assert!(state.create("list").is_err() && state.read("list").is_err());
        state.replace("list", "new").unwrap();
        assert_eq!(fs::read_to_string(&outside).unwrap(), "keep me");
        assert_eq!(state.read("list").unwrap().as_deref(), Some("new"));
        for name in ["", ".", "..", "../outside", "a/b", "a\0"] {
            assert!(state.create(name).is_err() && state.read(name).is_err(), "{name:?}");
        }
        let link = root.path().join("link");
        symlink(&state.path, &link).unwrap();
        let refused = StateFolder::at(link).unwrap_err().to_string();
        assert!(refused.contains("it is a link or not a folder") && refused.contains("XDG_STATE_HOME"), "{refused}");
        assert!(StateFolder::at(outside).is_err());
    }

    #[test]
    fn a_folder_of_somebody_else_is_refused() {
        let path = Path::new("/proc/1");
        let owner = fs::metadata(path).unwrap().uid();
        let me = rustix::process::geteuid().as_raw();
        let root = tempfile::tempdir().unwrap();
        let theirs = root.path().join("bastion");
        fs::create_dir(&theirs).unwrap();
        // Only root can give a folder away; for everybody else one of root's is there.
        let (theirs, owner) = match std::os::unix::fs::chown(&theirs, Some(65_534), None) {
            Ok(()) => (theirs, 65_534),
            Err(_) => (path.to_owned(), owner),
        };
        let refused = StateFolder::at(theirs).unwrap_err().to_string();
        assert!(refused.contains(&format!("it belongs to user {owner}, and you are user {me}")), "{refused}");
    }

    #[test]
    fn only_the_newest_logs_stay() {
        let (_root, state) = folder();
        let made: Vec<String> = (0..KEEP_LOGS + 5).map(|_| state.log("0a1b").unwrap().0).collect();
        let names = state.names().unwrap();
        assert_eq!(names.len(), KEEP_LOGS);
        assert!(names.contains(made.last().unwrap()), "{names:?}");
        assert_eq!(state.log("../x y").unwrap().0, "xy-1.log");
        state.replace("trusted.json", "{}").unwrap();
        state.log("0a1b").unwrap();
        assert!(state.read("trusted.json").unwrap().is_some());
    }
}
