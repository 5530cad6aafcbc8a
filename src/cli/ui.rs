//! The only printer. stdout is data (connect cards, tables, JSON), stderr is talk (phases, state, hints).

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use tokio::time::Instant;

/// How a command talks.
pub(super) struct Ui {
    json: bool,
    quiet: bool,
    terminal: bool,
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
            bar.set_message(format!("{} · {text}", self.name));
        }
    }
}

impl Ui {
    pub(super) fn new(json: bool, quiet: bool) -> Self {
        Self { json, quiet, terminal: std::io::stderr().is_terminal() }
    }

    pub(super) fn is_json(&self) -> bool {
        self.json
    }

    /// Begins a phase; on a terminal it moves while it lasts.
    pub(super) fn phase(&self, name: &str) -> Phase {
        let bar = (self.terminal && !self.json && !self.quiet).then(|| {
            let bar = ProgressBar::new_spinner();
            let style = ProgressStyle::with_template("  {spinner} {msg} {elapsed}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar.set_message(name.to_owned());
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

    /// A line for the person.
    #[expect(clippy::print_stderr, reason = "this is the printer")]
    pub(super) fn say(&self, text: &str) {
        if !self.quiet && !self.json {
            eprintln!("{text}");
        }
    }

    /// Something that the person must see even under --quiet.
    #[expect(clippy::print_stderr, reason = "this is the printer")]
    pub(super) fn warn(&self, text: &str) {
        if self.json {
            self.event(&json!({"event": "warning", "message": text}));
        } else {
            eprintln!("{text}");
        }
    }

    /// Data for people.
    pub(super) fn data(&self, text: &str) {
        // A closed pipe means that the reader has had enough.
        let _broken_pipe = writeln!(std::io::stdout(), "{text}");
    }

    /// One JSON line, under --json only.
    pub(super) fn event(&self, event: &Value) {
        if self.json {
            self.data(&event.to_string());
        }
    }
}
