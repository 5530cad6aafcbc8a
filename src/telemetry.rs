//! Logging: JSON lines in the container, text on a terminal, always to stderr. Field names stand here once.

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

/// Installs the subscriber.
pub(crate) fn init(format: Format, Filter(filter): Filter) {
    // The field `target` is the database; the module path under the same key would make the JSON ambiguous.
    // What cannot be written is dropped; the subscriber would complain about it with a panic.
    let lines = fmt::layer().with_writer(std::io::stderr).with_target(false).log_internal_errors(false);
    let lines = match format {
        #[cfg(feature = "relay")]
        Format::Json => lines.json().flatten_event(true).with_current_span(false).boxed(),
        Format::Text => lines.boxed(),
    };
    // A second init in one process (tests) keeps the first subscriber.
    let _already_set =
        tracing_subscriber::registry().with(lines.with_filter(filter_fn(may_be_logged))).with(filter).try_init();
}

/// Whatever the filter says: TRACE of a foreign crate may hold whole requests and answers.
fn may_be_logged(metadata: &Metadata<'_>) -> bool {
    let target = metadata.target();
    // These log each failed call as an error; the relay does so itself, once.
    let doubled = ["rustify", "vaultrs"].iter().any(|name| target.starts_with(name));
    !doubled && (*metadata.level() <= Level::DEBUG || target.starts_with("bastion"))
}
