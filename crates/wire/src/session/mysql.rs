//! A session of MySQL or MariaDB, from packet to packet (MySQL Source Code Documentation, "MySQL Packets", "Command Phase").
//!
//! The packets do not say what they answer. A command begins with a packet of the number 0, which servers insist on
//! (`net_serv.cc`), and they answer one command after the other; so whoever knows the commands knows where each answer ends.
//! A server that closes a session may send an error that nobody has asked for; so may the relay.

mod answer;
mod command;
mod login;
#[cfg(test)]
mod model {
    mod tests;
}
mod server;
mod session;
mod statements;

pub(super) use login::Login;
pub(super) use session::Session;
