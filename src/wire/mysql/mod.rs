//! The MySQL and MariaDB login, seen from both sides: a server to the client, a client to the upstream.
//!
//! Follows "Connection Phase" of the MySQL Source Code Documentation and `sql/auth/sql_authentication.cc`,
//! `sql-common/client.cc` of MySQL; "Connecting" of the MariaDB documentation and `sql/sql_acl.cc` of MariaDB, where
//! they differ. Only the login and COM_CHANGE_USER are understood, and
//! statements are read where an audit log wants them; everything else passes. Left out on purpose: protocol
//! 4.0 and older, compression, multi-factor logins, and the plugins that need a dialogue with a person.

#[cfg(feature = "relay")]
pub mod agreed;
#[cfg(feature = "relay")]
pub mod auth;
pub mod capability;
#[cfg(feature = "relay")]
pub mod change_user;
#[cfg(feature = "relay")]
pub mod commands;
#[cfg(feature = "relay")]
pub mod door;
#[cfg(feature = "relay")]
pub mod greeting;
#[cfg(feature = "relay")]
pub mod handshake;
#[cfg(feature = "relay")]
pub mod local_infile;
pub mod packet;
#[cfg(feature = "relay")]
pub mod response;
#[cfg(feature = "relay")]
pub mod session_steps;
