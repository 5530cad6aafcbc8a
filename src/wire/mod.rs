//! Sans-IO protocol code: bytes and time in, bytes out.
//!
//! Rules of this layer, kept by `tests/architecture.rs`: no sockets, no runtime, no clock, no import from outside
//! `wire`. Time and randomness are arguments. A decoder returns `Ok(None)` for "need more"; a peer's length is checked
//! against a named maximum before anything is allocated; nothing here can panic on what a peer sends.
#![deny(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]
#![cfg_attr(
    test,
    allow(
        clippy::arithmetic_side_effects,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unwrap_used,
        reason = "tests may fail loudly"
    )
)]

pub mod conn;
pub mod end;
pub mod error_text;
pub mod lane;
pub mod memory;
pub mod mysql;
pub mod pg;
pub mod port;
#[cfg(feature = "relay")]
pub mod proxy;
#[cfg(feature = "relay")]
pub mod redact;
pub mod session;
pub mod smux;
pub mod ssm;

/// What a peer sent does not follow its protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub &'static str);
