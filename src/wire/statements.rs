//! The SQL that clients send, read off a stream that passes by: what an audit log needs, never a change of the bytes.
//!
//! Memory is bounded: a text is kept up to a limit and then marked as cut, and so is the number of prepared statements. A
//! stream that cannot be followed any more is said to be so, once.

use std::borrow::Borrow;
use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::Arc;

use serde::Serialize;

use crate::wire::redact::{self, Dialect};
use crate::wire::{mysql, pg};

/// Prepared statements and portals that are kept, each.
pub(super) const KEPT: usize = 256;

/// How the text came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A command of MySQL that is no SQL and does something: its word is the name, its argument the text.
    Command,
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    pub kind: Kind,
    /// Of the prepared statement.
    pub name: Option<String>,
    /// `None` where it was prepared but is no longer kept; its `Prepare` has it.
    pub sql: Option<String>,
    pub truncated: bool,
}

impl Statement {
    pub(super) fn new(kind: Kind, name: Option<String>, text: Option<Text>) -> Self {
        let truncated = text.as_ref().is_some_and(|text| text.truncated);
        Self { kind, name, sql: text.map(|text| text.sql), truncated }
    }
}

/// What of the text is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one text.
    pub text: usize,
    /// Literals become `?`.
    pub redact: bool,
}

/// A text as it is reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Text {
    sql: String,
    truncated: bool,
}

impl Limits {
    /// `bytes` as they are reported; `cut` if there was more of them.
    pub(super) fn apply(self, bytes: &[u8], cut: bool, dialect: Dialect) -> Text {
        let truncated = cut || bytes.len() > self.text;
        let sql = String::from_utf8_lossy(bytes.get(..self.text).unwrap_or(bytes));
        let sql = if self.redact { redact::literals(&sql, dialect) } else { sql.into_owned() };
        Text { sql, truncated }
    }
}

/// The last [`KEPT`] values by name or number; the oldest goes.
pub(super) struct Recent<K, T> {
    values: HashMap<K, T>,
    order: VecDeque<K>,
}

impl<K, T> Default for Recent<K, T> {
    fn default() -> Self {
        Self { values: HashMap::new(), order: VecDeque::new() }
    }
}

impl<K: Clone + Eq + Hash, T> Recent<K, T> {
    /// The value that had to make room.
    pub(super) fn insert(&mut self, name: K, value: T) -> Option<T> {
        let before = self.values.insert(name.clone(), value);
        if before.is_some() {
            return before;
        }
        self.order.push_back(name);
        let oldest = if self.order.len() > KEPT { self.order.pop_front() } else { None };
        oldest.and_then(|oldest| self.values.remove(&oldest))
    }

    pub(super) fn get<Q: Eq + Hash + ?Sized>(&self, name: &Q) -> Option<&T>
    where
        K: Borrow<Q>,
    {
        self.values.get(name)
    }

    pub(super) fn get_mut<Q: Eq + Hash + ?Sized>(&mut self, name: &Q) -> Option<&mut T>
    where
        K: Borrow<Q>,
    {
        self.values.get_mut(name)
    }

    pub(super) fn remove<Q: Eq + Hash + ?Sized>(&mut self, name: &Q) -> Option<T>
    where
        K: Borrow<Q>,
    {
        let value = self.values.remove(name)?;
        self.order.retain(|known| known.borrow() != name);
        Some(value)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.values.len()
    }
}

/// Shared by the statement and what runs it.
pub(super) type SharedText = Arc<Text>;

/// Follows one connection after its login.
pub enum Observer {
    Mysql(Box<mysql::statements::Observer>),
    Postgres(Box<pg::statements::Observer>),
}

impl Observer {
    pub fn mysql(limits: Limits) -> Self {
        Self::Mysql(Box::new(mysql::statements::Observer::new(limits)))
    }

    pub fn postgres(limits: Limits) -> Self {
        Self::Postgres(Box::new(pg::statements::Observer::new(limits)))
    }

    /// Bytes of the client, in order; what they ask for is appended to `found`.
    pub fn up(&mut self, bytes: &[u8], found: &mut Vec<Statement>) {
        match self {
            Self::Mysql(observer) => observer.up(bytes, found),
            Self::Postgres(observer) => observer.up(bytes, found),
        }
    }

    /// Bytes of the upstream, in order.
    pub fn down(&mut self, bytes: &[u8]) {
        match self {
            Self::Mysql(observer) => observer.down(bytes),
            // The client's messages say it all.
            Self::Postgres(_) => {}
        }
    }

    /// The client's next packets are a file that MySQL has asked for.
    pub fn file_begins(&mut self) {
        match self {
            Self::Mysql(observer) => observer.file_begins(),
            Self::Postgres(_) => {}
        }
    }

    /// A command that the relay answers itself, which begins at the start of `bytes`. What was prepared is gone.
    pub fn answered(&mut self, bytes: &[u8], found: &mut Vec<Statement>) {
        match self {
            Self::Mysql(observer) => observer.answered(bytes, found),
            Self::Postgres(_) => {}
        }
    }
}
