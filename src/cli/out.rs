//! The one writer: results go to stdout, talk goes to stderr, and neither can end the program.
//!
//! Talk that cannot be written is dropped, since there is nowhere to say so. A result that cannot be written is said on
//! stderr and makes the exit code 1. A reader that closes the pipe (`| head -1`) has had enough, which is no failure.

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::sync::OnceLock;

/// Why a result of this process could not be written.
static LOST: OnceLock<String> = OnceLock::new();

/// One line or more for the person.
pub(super) fn talk(text: &str) {
    let mut stderr = io::stderr().lock();
    let _dropped = writeln!(stderr, "{text}").and_then(|()| stderr.flush());
}

/// One line or more of what the command was asked for.
pub(super) fn result(text: &str) {
    let mut stdout = io::stdout().lock();
    written(writeln!(stdout, "{text}").and_then(|()| stdout.flush()));
}

/// What clap answers by itself: help and version are results, a bad command line is talk.
pub(super) fn usage(answer: &clap::Error) -> ExitCode {
    let printed = answer.print();
    if answer.use_stderr() {
        return ExitCode::from(2);
    }
    written(printed.and_then(|()| io::stdout().flush()));
    outcome()
}

/// The exit code of a command that has done its work.
pub(super) fn outcome() -> ExitCode {
    ExitCode::from(u8::from(LOST.get().is_some()))
}

/// Remembers a result that is lost, and says so once.
fn written(outcome: io::Result<()>) {
    if let Err(error) = outcome
        && let Some(why) = loss(&error)
        && LOST.set(why.clone()).is_ok()
    {
        talk(&format!("Error: stdout cannot be written, so results are lost: {why}"));
    }
}

/// Why something is lost that was meant to be read.
fn loss(error: &io::Error) -> Option<String> {
    (error.kind() != io::ErrorKind::BrokenPipe).then(|| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_has_had_enough_loses_nothing() {
        assert_eq!(loss(&io::ErrorKind::BrokenPipe.into()), None);
        assert!(loss(&io::ErrorKind::StorageFull.into()).is_some());
    }
}
