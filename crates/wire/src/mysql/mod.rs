//! The MySQL and MariaDB login, seen from both sides: a server to the client, a client to the upstream.
//!
//! Follows "Connection Phase" of the MySQL Source Code Documentation and `sql/auth/sql_authentication.cc`,
//! `sql-common/client.cc` of MySQL; "Connecting" of the MariaDB documentation and `sql/sql_acl.cc` of MariaDB, where
//! they differ. Only the login and COM_CHANGE_USER are understood, and
//! statements are read where an audit log wants them; everything else passes. Left out on purpose: protocol
//! 4.0 and older, compression, multi-factor logins, and the plugins that need a dialogue with a person.

pub mod agreed;
pub mod auth;
pub mod capability;
pub mod change_user;
pub mod commands;
pub mod door;
pub mod greeting;
pub mod handshake;
pub mod local_infile;
pub mod packet;
pub mod response;
pub mod server;
pub mod session_steps;
