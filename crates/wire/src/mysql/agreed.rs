//! What a login has agreed on, as far as it decides what the packets behind it mean.

use super::server::Server;

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreed {
    /// Those that both sides have.
    pub capabilities: u32,
    /// MariaDB's further ones.
    pub extended: u32,
    /// Whose ways the database has.
    pub server: Server,
    /// The relay has set up the session, and must do so again behind a reset.
    pub stops_at_reset: bool,
}
