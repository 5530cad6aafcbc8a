//! A session of MySQL or MariaDB, from packet to packet (MySQL Source Code Documentation, "MySQL Packets", "Command Phase").
//!
//! The packets do not say what they answer. A command begins with a packet of the number 0, which servers insist on
//! (`net_serv.cc`), and they answer one command after the other; so whoever knows the commands knows where each answer ends.
//! A server that closes a session may send an error that nobody has asked for; so may the relay.

#[cfg_attr(
    not(feature = "relay"),
    expect(dead_code, reason = "the launcher does not know what was agreed, nor the commands")
)]
mod answer;
mod login;
#[cfg(all(test, feature = "relay"))]
mod model {
    mod tests;
}
#[cfg(feature = "relay")]
mod server;
#[cfg(feature = "relay")]
mod session;
#[cfg(feature = "relay")]
mod statements;

pub(super) use login::Login;
#[cfg(feature = "relay")]
pub(super) use session::Session;
