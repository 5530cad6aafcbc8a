//! Sans-IO protocol code of bastion: bytes and time in, bytes out. PostgreSQL and MySQL logins and sessions, the Session Manager
//! data channel, smux, and the lanes of bastion's own.
//!
//! Rules of this crate: no runtime, no sockets, no clock. Its manifest has no crate that does I/O, and `clippy.toml` beside it
//! refuses what the standard library has. Time and randomness are arguments. A decoder returns `Ok(None)` for "need more"; a
//! peer's length is checked against a named maximum before anything is allocated; nothing here can panic on what a peer sends.
//!
//! It is public for the parts of this repository, not a stable interface.
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
        clippy::disallowed_methods,
        clippy::disallowed_types,
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
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod lane;
pub mod login;
pub mod memory;
pub mod mysql;
pub mod pg;
pub mod port;
pub mod proxy;
pub mod redact;
pub mod session;
pub mod smux;
pub mod ssm;

/// What a peer sent does not follow its protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub &'static str);
