//! Limits that tests of the programs cannot wait for, or not reach. In builds with debug assertions only: a release knows no such
//! variables.

use std::str::FromStr;
use std::time::Duration;

/// `usual`, or the milliseconds that `variable` of the environment says.
pub(crate) fn shortened(variable: &str, usual: Duration) -> Duration {
    said(variable).map_or(usual, Duration::from_millis)
}

/// `usual`, or the number that `variable` of the environment says.
#[cfg(feature = "relay")]
pub(crate) fn lowered(variable: &str, usual: usize) -> usize {
    said(variable).unwrap_or(usual)
}

#[expect(clippy::disallowed_methods, reason = "for tests, and no configuration")]
fn said<T: FromStr>(variable: &str) -> Option<T> {
    let text = cfg!(debug_assertions).then(|| std::env::var(variable).ok())?;
    text?.parse().ok()
}
