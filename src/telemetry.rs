//! Logging: JSON lines in the container, text on a terminal, always to stderr. Field names stand here once.

use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    #[cfg(feature = "relay")]
    Json,
    Text,
}

/// Installs the subscriber. `filter` follows `tracing_subscriber::EnvFilter`, for example `info,bastion=debug`.
///
/// # Errors
/// The text of the problem if `filter` does not parse.
pub(crate) fn init(format: Format, filter: &str) -> Result<(), String> {
    let filter = EnvFilter::try_new(filter).map_err(|error| error.to_string())?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second init in one process (tests) keeps the first subscriber.
    let _already_set = match format {
        #[cfg(feature = "relay")]
        Format::Json => builder.json().flatten_event(true).with_current_span(false).try_init(),
        Format::Text => builder.with_target(false).try_init(),
    };
    Ok(())
}
