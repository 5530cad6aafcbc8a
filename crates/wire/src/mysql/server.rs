//! The two servers that speak the protocol.

/// Whose ways a server has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Server {
    MariaDb,
    MySql,
}
