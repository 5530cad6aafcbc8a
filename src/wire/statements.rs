//! The SQL that clients send, read off a stream that passes by: what an audit log needs, never a change of the bytes.
//!
//! Memory is bounded: a text is kept up to a limit and then marked as cut, and so is the number of prepared statements. A
//! stream that cannot be followed any more is said to be so, once.

use std::borrow::Borrow;
use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::Arc;

use crate::wire::mysql;
use crate::wire::redact::{self, Dialect, Modes};
use crate::wire::session::text;

pub use crate::wire::session::text::Kind;

/// Prepared statements and portals that are kept, each.
pub(super) const KEPT: usize = 256;

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
    pub(in crate::wire) fn new(kind: Kind, name: Option<String>, text: Option<Text>) -> Self {
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
pub(in crate::wire) struct Text {
    sql: String,
    truncated: bool,
}

impl Limits {
    /// `bytes` as they are reported; `cut` if there was more of them.
    pub(in crate::wire) fn apply(self, bytes: &[u8], cut: bool, dialect: Dialect) -> Text {
        let truncated = cut || bytes.len() > self.text;
        let bytes = bytes.get(..self.text).unwrap_or(bytes);
        let sql = match self.redact {
            true => redact::redact(bytes, dialect, Modes::default()).0,
            false => bytes.to_vec(),
        };
        let sql = String::from_utf8_lossy(&sql).into_owned();
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

/// Follows one connection of MySQL after its login.
pub struct Observer {
    observer: Box<mysql::statements::Observer>,
    limits: text::Limits,
    seen: Vec<Statement>,
}

/// It keeps this of a text.
const TEXT_MAX: usize = 8 * 1024;

fn limits(limits: &text::Limits) -> Limits {
    Limits { text: limits.text.min(TEXT_MAX), redact: limits.redact.is_some() }
}

impl Observer {
    pub fn mysql(limits: text::Limits) -> Self {
        let observer = Box::new(mysql::statements::Observer::new(self::limits(&limits)));
        Self { observer, limits, seen: Vec::new() }
    }

    /// Bytes of the client, in order; what they ask for is appended to `found`.
    pub fn up(&mut self, bytes: &[u8], found: &mut Vec<text::Statement>) {
        self.observer.up(bytes, &mut self.seen);
        self.tell(found);
    }

    fn tell(&mut self, found: &mut Vec<text::Statement>) {
        let limits = &self.limits;
        found.extend(self.seen.drain(..).map(|Statement { kind, name, sql, truncated }| {
            let text = sql.map(|sql| text::Text::seen(sql, truncated, limits));
            text::Statement::new(kind, name, text)
        }));
    }

    /// Bytes of the upstream, in order.
    pub fn down(&mut self, bytes: &[u8]) {
        self.observer.down(bytes);
    }

    /// The client's next packets are a file that MySQL has asked for.
    pub fn file_begins(&mut self) {
        self.observer.file_begins();
    }

    /// A command that the relay answers itself, which begins at the start of `bytes`. What was prepared is gone.
    pub fn answered(&mut self, bytes: &[u8], found: &mut Vec<text::Statement>) {
        self.observer.answered(bytes, &mut self.seen);
        self.tell(found);
    }
}
