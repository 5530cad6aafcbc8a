//! Logging: JSON lines in the container, text on a terminal, always to stderr. Field names stand here once.

use tracing_subscriber::EnvFilter;

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
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second init in one process (tests) keeps the first subscriber.
    let _already_set = match format {
        #[cfg(feature = "relay")]
        // The field `target` is the database; the module path under the same key would make the JSON ambiguous.
        Format::Json => builder.json().flatten_event(true).with_current_span(false).with_target(false).try_init(),
        Format::Text => builder.with_target(false).try_init(),
    };
}
