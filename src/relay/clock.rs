//! The time of day.

/// The time of day, for token signatures and for people; everything that measures uses the runtime's clock.
#[expect(clippy::disallowed_methods, reason = "the one wall-clock read of the relay")]
pub(super) fn wall_clock() -> std::time::SystemTime {
    std::time::SystemTime::now()
}
