//! The PostgreSQL login, seen from both sides: a server to the client, a client to the upstream.
//!
//! Follows the protocol chapter of the PostgreSQL manual ("Frontend/Backend Protocol") and
//! `src/backend/tcop/backend_startup.c`, `src/backend/libpq/auth.c`, `src/interfaces/libpq/fe-connect.c`. Only the
//! login is understood; after ReadyForQuery the relay copies bytes. Left out on purpose: protocol 2.0 and the GSSAPI and
//! SSPI logins, which no RDS database offers to a password-less relay.

pub mod door;
pub mod handshake;
pub mod message;
mod negotiation;
pub mod parameters;
pub mod sasl;
mod settling;
pub mod startup;
