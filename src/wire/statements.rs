//! The SQL that clients send, read off a stream that passes by: what an audit log needs, never a change of the bytes.
//!
//! Memory is bounded: a text is kept up to a limit and then marked as cut, and so is the number of prepared statements. A
//! stream that cannot be followed any more is said to be so, once.

use serde::Serialize;

use crate::wire::pg;

/// How the text came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A prepared statement is run.
    Execute,
    /// A function is called by its number (PostgreSQL's fast path).
    Function,
    /// A statement is prepared under a name; it may be run later, or never.
    Prepare,
    /// Text that is run at once.
    Query,
    /// From here on the stream cannot be read; nothing more comes.
    Unreadable,
}

/// One statement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Statement {
    pub kind: Kind,
    /// Of the prepared statement.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `None` where it was prepared but is no longer kept; its `Prepare` has it.
    pub sql: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
}

/// What of the text is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one text.
    pub text: usize,
    /// Literals become `?`.
    pub redact: bool,
}

/// Follows one connection after its login.
pub enum Observer {
    Postgres(pg::statements::Observer),
}

impl Observer {
    pub fn postgres(limits: Limits) -> Self {
        Self::Postgres(pg::statements::Observer::new(limits))
    }

    /// Bytes of the client, in order; what they ask for is appended to `found`.
    pub fn up(&mut self, bytes: &[u8], found: &mut Vec<Statement>) {
        match self {
            Self::Postgres(observer) => observer.up(bytes, found),
        }
    }

    /// Bytes of the upstream, in order.
    pub fn down(&mut self, _bytes: &[u8]) {
        match self {
            // The client's messages say it all.
            Self::Postgres(_) => {}
        }
    }
}
