//! The only printer. stdout is data (connect cards, tables, JSON), stderr is talk (phases, state, hints).
//!
//! Whatever comes here may hold text of a relay, of AWS or of a configuration file: it is escaped for a terminal, and in
//! talk no line but the first begins at the margin. Who puts together data of several lines makes a line of each value.

use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::cli::{escape, out};
use crate::config::{Env, ProcessEnv};

/// How a command talks.
pub(super) struct Ui {
    json: bool,
    quiet: bool,
    /// Something on the screen may move.
    moves: bool,
    /// What moves: phases, and the line that stays below everything else.
    bars: MultiProgress,
    line: Mutex<Option<ProgressBar>>,
}

/// A phase under way; it is over when [`Ui::done`] gets it, or dropped without a word when the command fails.
pub(super) struct Phase {
    name: String,
    began: Instant,
    bar: Option<ProgressBar>,
}

impl Drop for Phase {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Phase {
    /// What the phase waits for just now.
    pub(super) fn detail(&self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(escape::line(&format!("{} · {text}", self.name)));
        }
    }
}

impl Ui {
    pub(super) fn new(json: bool, quiet: bool) -> Self {
        let moves = !json && !quiet && std::io::stderr().is_terminal() && !is_plain(&ProcessEnv);
        let target = if moves { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        Self { json, quiet, moves, bars: MultiProgress::with_draw_target(target), line: Mutex::default() }
    }

    pub(super) fn is_json(&self) -> bool {
        self.json
    }

    /// Begins a phase; on a terminal it moves while it lasts.
    pub(super) fn phase(&self, name: &str) -> Phase {
        let bar = self.moves().then(|| {
            let bar = self.bars.insert(0, spinner("  {spinner} {msg} {elapsed}"));
            bar.set_message(escape::line(name));
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Phase { name: name.to_owned(), began: Instant::now(), bar }
    }

    /// Ends a phase with what came out of it.
    pub(super) fn done(&self, mut phase: Phase, outcome: &str) {
        let seconds = phase.began.elapsed().as_secs_f64();
        if let Some(bar) = phase.bar.take() {
            bar.finish_and_clear();
        }
        if self.json {
            self.event(&json!({"event": "phase", "phase": phase.name, "outcome": outcome, "seconds": (seconds * 10.0).round() / 10.0}));
        } else {
            self.say(&format!("  ✓ {:<12} {outcome} ({seconds:.1} s)", phase.name));
        }
    }

    /// Whether something on the screen may move.
    pub(super) fn moves(&self) -> bool {
        self.moves
    }

    /// Shows `text` in the line that stays below everything else, on a terminal only.
    pub(super) fn status(&self, text: &str) {
        if self.moves() {
            let mut line = self.line.lock();
            line.get_or_insert_with(|| self.bars.add(spinner("  {wide_msg}"))).set_message(escape::line(text));
        }
    }

    /// Takes the line away.
    pub(super) fn end_status(&self) {
        if let Some(line) = self.line.lock().take() {
            line.finish_and_clear();
        }
    }

    /// A line for the person.
    pub(super) fn say(&self, text: &str) {
        if !self.quiet && !self.json {
            self.bars.suspend(|| out::talk(&escape::indented(text)));
        }
    }

    /// Something that the person must see even under --quiet.
    pub(super) fn warn(&self, text: &str) {
        if self.json {
            self.event(&json!({"event": "warning", "message": text}));
        } else {
            self.bars.suspend(|| out::talk(&escape::indented(text)));
        }
    }

    /// Asks the person for a line; `None` without a terminal at both ends.
    #[expect(clippy::print_stderr, reason = "this is the printer")]
    pub(super) fn ask(question: &str) -> Option<String> {
        if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
            return None;
        }
        eprint!("{}", escape::line(question));
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).ok().filter(|bytes| *bytes > 0)?;
        Some(line)
    }

    /// Data for people.
    pub(super) fn data(&self, text: &str) {
        self.print(&escape::lines(text));
    }

    /// Data for machines: one JSON document in one line.
    pub(super) fn document(&self, document: &Value) {
        self.print(&escape::json(document));
    }

    fn print(&self, text: &str) {
        self.bars.suspend(|| out::result(text));
    }

    /// One JSON line, under --json only.
    pub(super) fn event(&self, event: &Value) {
        if self.json {
            self.document(event);
        }
    }
}

impl Drop for Ui {
    /// Also on the way out of a panic, the terminal is left as it was.
    fn drop(&mut self) {
        self.end_status();
    }
}

/// Whether lines must stay as they are written: on a terminal that knows no cursor, in a log of CI, and where somebody has
/// asked for plain text (<https://no-color.org>).
fn is_plain(env: &impl Env) -> bool {
    let set = |name| env.get(name).is_some_and(|value| !value.is_empty());
    set("NO_COLOR")
        || (set("CI") && env.get("CI").as_deref() != Some("false"))
        || env.get("TERM").as_deref() == Some("dumb")
}

fn spinner(template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner());
    ProgressBar::new_spinner().with_style(style)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn nothing_moves_where_somebody_wants_plain_text() {
        for (name, value, plain) in [
            ("NO_COLOR", "1", true),
            ("NO_COLOR", "", false),
            ("CI", "true", true),
            ("CI", "false", false),
            ("TERM", "dumb", true),
            ("TERM", "xterm-256color", false),
        ] {
            assert_eq!(is_plain(&BTreeMap::from([(name, value)])), plain, "{name}={value}");
        }
    }
}
