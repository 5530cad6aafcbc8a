//! The protocol code and the functions that fuzz it, taken from the sources of bastion one level up. Of the rest of the
//! crate they import only plain values (`tests/architecture.rs` there), so the targets build in seconds, without the AWS SDK.

#[path = "../../src/fuzzing/mod.rs"]
pub mod fuzzing;
#[allow(dead_code, reason = "the rest is for other parts")]
#[path = "../../src/types/partition.rs"]
mod partition;
#[path = "../../src/wire/mod.rs"]
pub mod wire;

/// What `wire` imports of `src/types.rs`.
mod types {
    pub(crate) use crate::partition::Partition;
}
