//! The protocol code and the functions that fuzz it, taken from the sources of bastion one level up. They import nothing of the
//! rest of the crate (`tests/architecture.rs` there), so the targets build in seconds, without the AWS SDK.

#[path = "../../src/fuzzing/mod.rs"]
pub mod fuzzing;
#[path = "../../src/wire/mod.rs"]
pub mod wire;
