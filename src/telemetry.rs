//! Logging: JSON lines in the container, text on a terminal, always to stderr. Field names stand here once.

#[cfg(feature = "relay")]
mod lines;

use tracing::{Level, Metadata};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, fmt};

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    #[cfg(feature = "relay")]
    Json,
    Text,
}

/// Which log lines are written, by level and module.
pub(crate) struct Filter(EnvFilter);

/// Reads `text` as `tracing_subscriber::EnvFilter` does, for example `info,bastion=debug`.
///
/// # Errors
/// The text of the problem if it does not parse.
pub(crate) fn filter(text: &str) -> Result<Filter, String> {
    EnvFilter::try_new(text).map(Filter).map_err(|error| error.to_string())
}

/// Waits for the last lines at its end, for a moment.
#[derive(Default)]
pub(crate) struct Log {
    #[cfg(feature = "relay")]
    lines: Option<lines::Lines>,
}

#[cfg(feature = "relay")]
impl Drop for Log {
    fn drop(&mut self) {
        if let Some(lines) = &self.lines {
            lines.flush();
        }
    }
}

/// Installs the subscriber.
pub(crate) fn init(format: Format, Filter(filter): Filter) -> Log {
    // The field `target` is the database; the module path under the same key would make the JSON ambiguous.
    // What cannot be written is dropped; the subscriber would complain about it with a panic.
    let layer = fmt::layer().with_target(false).log_internal_errors(false);
    let (layer, log) = match format {
        #[cfg(feature = "relay")]
        Format::Json => {
            let lines = lines::Lines::start(std::io::stderr());
            let layer = layer.json().flatten_event(true).with_current_span(false).with_writer(lines.clone());
            (layer.boxed(), Log { lines: Some(lines) })
        }
        Format::Text => (layer.with_writer(std::io::stderr).boxed(), Log::default()),
    };
    // A second init in one process (tests) keeps the first subscriber.
    let _already_set =
        tracing_subscriber::registry().with(layer.with_filter(filter_fn(may_be_logged))).with(filter).try_init();
    log
}

/// Whatever the filter says: TRACE of a foreign crate may hold whole requests and answers.
fn may_be_logged(metadata: &Metadata<'_>) -> bool {
    let target = metadata.target();
    // These log each failed call as an error; the relay does so itself, once.
    let doubled = ["rustify", "vaultrs"].iter().any(|name| target.starts_with(name));
    !doubled && (*metadata.level() <= Level::DEBUG || target.starts_with("bastion"))
}
