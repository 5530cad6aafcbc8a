//! Time limits that tests of the programs cannot wait for.

use std::time::Duration;

/// `usual`, or the milliseconds that `variable` of the environment says, in builds with debug assertions only: a release knows
/// no such variable.
#[expect(clippy::disallowed_methods, reason = "for tests, and no configuration")]
pub(crate) fn shortened(variable: &str, usual: Duration) -> Duration {
    if !cfg!(debug_assertions) {
        return usual;
    }
    let wanted = std::env::var(variable).ok().and_then(|millis| millis.parse().ok());
    wanted.map_or(usual, Duration::from_millis)
}
