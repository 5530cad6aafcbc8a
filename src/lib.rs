//! bastion: an on-demand AWS Fargate bastion for private RDS and Aurora databases.
//!
//! Two programs in one binary that share only wire code and vocabulary: the **relay** runs in the Fargate task and
//! logs in to the databases; the **launcher** runs on the laptop, starts the task and opens the **tunnel** into it.
//! This crate is an application: its only stable interface is the command line.
//!
//! # Layout
//!
//! | module | what it is | feature |
//! | --- | --- | --- |
//! | [`cli`] | commands, exit codes, the only printer | both |
//! | `config` | environment schema → resolved settings, every mistake at once | both |
//! | `api` | the relay's HTTP interface, as both ends of the tunnel know it | both |
//! | `http_client` | one bounded HTTP/1.1 request over a stream | both |
//! | `types` | the vocabulary that the parts share | both |
//! | `relay` | who is calling, accept, drive the handshake, splice, audit, health and metrics | relay |
//! | `credential` | what a target logs in with: RDS IAM tokens, secrets, users that Vault makes for the task or for each person; redacted, cached | relay |
//! | `limits` | open files and sockets: raised at the start, told when they are used up | both |
//! | `link` | streams over several byte pipes, or over one: the runtime's side of `bastion_wire::{lane, conn}`, for both ends, and how they end | both |
//! | `tunnel` | the laptop's path into the task: websocket, driver loop, local listeners | launcher |
//! | `aws` | the profiles, the login and the AWS calls of the launcher in our own types | launcher |
//! | `network` | the laptop's way to AWS: proxies, `CONNECT`, trusted certificates | launcher |
//! | `tls` | rustls configurations and trust roots | both |
//! | `telemetry`, `shutdown` | logging fields and subscriber; signals → cancellation | both |
//!
//! The protocol code is a crate of its own, [`bastion_wire`]: PostgreSQL and MySQL logins and sessions, the Session Manager data
//! channel, smux, lanes, and the table of ends.
//!
//! Who may import whom is a table in `tests/architecture.rs`, and a test.

mod api;
#[cfg(feature = "launcher")]
mod aws;
pub mod cli;
mod config;
#[cfg(feature = "relay")]
mod credential;
mod http_client;
mod limits;
mod link;
#[cfg(feature = "launcher")]
mod network;
#[cfg(feature = "relay")]
mod relay;
mod shutdown;
mod telemetry;
mod tls;
#[cfg(feature = "launcher")]
mod tunnel;
mod types;
