//! The texts of statements for the audit log: collected as they come, in pieces, with bounded memory.
//!
//! Blanks and comments in front of a text are not kept, so that nobody pushes a statement out of its record with them. They
//! count for the length and the hash, which are those of the whole text as it was sent, however much of it is kept.

mod front;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::memory::{Budget, Full, Memory, Share, TEXTS_OF_CONNECTION};
use crate::redact::{self, Dialect, How, Modes};
use front::Front;

/// Bytes of a text that are kept.
pub const TEXT_MAX: usize = 256 * 1024;
/// Bytes of what is no SQL; a name of a server has 64 characters.
pub const ARGUMENT_MAX: usize = 1024;
/// A text that is coming takes memory for so many bytes at a time; the first of them are its connection's own.
const STEP: usize = 4 * 1024;
/// What a kept text costs besides its bytes: itself, its name, and its places in the maps of a session.
const COST: usize = 256;

/// How a text came.
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
}

/// One statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    pub kind: Kind,
    /// Of the prepared statement.
    pub name: Option<String>,
    /// `None` where it is not known.
    pub text: Option<Arc<Text>>,
    /// The record has all of the text that is kept. The first record of a text has it; later ones of a long text name the
    /// same hash.
    pub whole: bool,
}

impl Statement {
    pub fn new(kind: Kind, name: Option<String>, text: Option<Arc<Text>>) -> Self {
        let told = text.as_ref().is_some_and(|text| text.told.swap(true, Ordering::Relaxed));
        Self { kind, name, text, whole: !told || kind != Kind::Execute }
    }

    /// What is kept of its text.
    pub fn sql(&self) -> Option<&str> {
        self.text.as_ref()?.sql()
    }
}

/// The key with which the hashes of redacted texts are made. It has no `Debug` and is in no record unless it is asked for.
pub struct Key(Hmac<Sha256>);

impl Key {
    /// From random bytes.
    pub fn new(random: &[u8; 32]) -> Self {
        // As HMAC fills a short key up itself.
        let mut block = [0; 64];
        block.iter_mut().zip(random).for_each(|(to, from)| *to = *from);
        Self(Hmac::new(&block.into()))
    }
}

/// What of the texts of one connection is kept.
#[derive(Clone)]
pub struct Limits {
    /// Bytes of one text.
    pub text: usize,
    /// Literals become `?`, and the hash of the text is made with this key.
    pub redact: Option<Arc<Key>>,
    /// What the connection keeps; clones share it.
    room: Arc<AtomicUsize>,
    /// And all of the relay's connections together.
    texts: Budget,
    pub(super) asked: Budget,
}

impl Limits {
    /// What is kept comes out of the budgets of `memory`.
    pub fn new(text: usize, redact: Option<Arc<Key>>, memory: &Memory) -> Self {
        Self { text, redact, room: Arc::default(), texts: memory.texts.clone(), asked: memory.asked.clone() }
    }
}

/// Bytes of texts that are counted as long as they are there.
struct Taken {
    room: Arc<AtomicUsize>,
    bytes: usize,
}

impl Taken {
    fn new(room: &Arc<AtomicUsize>, bytes: usize) -> Self {
        room.fetch_add(bytes, Ordering::Relaxed);
        Self { room: Arc::clone(room), bytes }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.room.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Which text it was, without telling it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hash {
    /// With the [`Key`] of the relay: without it nobody can try out what the literals were.
    Keyed([u8; 32]),
    Sha256([u8; 32]),
}

/// A text as it is recorded.
pub struct Text {
    sql: Option<Box<str>>,
    cut: bool,
    redacted: Option<How>,
    bytes: u64,
    hash: Option<Hash>,
    told: AtomicBool,
    taken: Taken,
    memory: Budget,
    /// Of that, what it takes once it is kept.
    kept: OnceLock<Share>,
}

impl Text {
    /// What is kept of it, without its literals if they are not wanted. `None` if there was no room.
    pub fn sql(&self) -> Option<&str> {
        self.sql.as_deref()
    }

    /// Whether the text goes on behind what is kept.
    pub fn is_cut(&self) -> bool {
        self.cut
    }

    /// How its literals were taken out, if they were.
    pub fn redacted(&self) -> Option<How> {
        self.redacted
    }

    /// Length of the whole text as it was sent.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Of the whole text as it was sent. `None` for what is no SQL.
    pub fn hash(&self) -> Option<&Hash> {
        self.hash.as_ref()
    }

    /// Whether a [`Statement`] with it was made.
    pub fn is_told(&self) -> bool {
        self.told.load(Ordering::Relaxed)
    }

    /// The text for a statement that may run later: itself, or only its length and hash where the connection or the relay keeps
    /// too much already. Then [`Text::sql`] is `None`, and a text that was not told must be told now.
    pub fn to_keep(self: &Arc<Self>) -> Arc<Self> {
        if self.taken.room.load(Ordering::Relaxed) <= TEXTS_OF_CONNECTION && self.takes() {
            return Arc::clone(self);
        }
        Arc::new(Self {
            sql: None,
            told: AtomicBool::new(true),
            taken: Taken::new(&self.taken.room, 0),
            memory: self.memory.clone(),
            kept: OnceLock::new(),
            cut: self.cut,
            redacted: self.redacted,
            bytes: self.bytes,
            hash: self.hash,
        })
    }

    /// Whether there is memory for it as long as it is kept.
    fn takes(&self) -> bool {
        if self.kept.get().is_some() {
            return true;
        }
        let share = self.memory.take(self.sql.as_ref().map_or(0, |sql| sql.len()).saturating_add(COST));
        share.is_ok_and(|share| self.kept.set(share).is_ok())
    }

    /// What is no SQL and has no literals: the name of a database, the number of a connection.
    pub fn argument(bytes: &[u8], limits: &Limits) -> Arc<Self> {
        let kept = bytes.get(..limits.text.min(ARGUMENT_MAX)).unwrap_or(bytes);
        Self::new(Some(into_text(kept.to_vec())), kept.len() < bytes.len(), None, length(bytes), None, limits)
    }

    fn new(
        sql: Option<String>,
        cut: bool,
        redacted: Option<How>,
        bytes: u64,
        hash: Option<Hash>,
        limits: &Limits,
    ) -> Arc<Self> {
        let taken = Taken::new(&limits.room, sql.as_ref().map_or(0, String::len));
        let sql = sql.map(String::into_boxed_str);
        Arc::new(Self {
            sql,
            cut,
            redacted,
            bytes,
            hash,
            told: AtomicBool::new(false),
            taken,
            memory: limits.texts.clone(),
            kept: OnceLock::new(),
        })
    }
}

impl std::fmt::Debug for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { sql, cut, redacted, bytes, .. } = self;
        write!(f, "{sql:?} of {bytes} bytes, cut: {cut}, redacted: {redacted:?}")
    }
}

/// What a record says of them is the same.
impl PartialEq for Text {
    fn eq(&self, other: &Self) -> bool {
        let said = |text: &Self| (text.cut, text.redacted, text.bytes, text.hash);
        self.sql == other.sql && said(self) == said(other)
    }
}

impl Eq for Text {}

enum Hasher {
    Keyed(Arc<Key>, Hmac<Sha256>),
    Sha256(Sha256),
}

impl Hasher {
    fn new(limits: &Limits) -> Self {
        match &limits.redact {
            Some(key) => Self::Keyed(Arc::clone(key), key.0.clone()),
            None => Self::Sha256(Sha256::new()),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Keyed(_, hasher) => hasher.update(bytes),
            Self::Sha256(hasher) => hasher.update(bytes),
        }
    }

    /// What comes next is another text.
    fn finish(&mut self) -> Hash {
        match self {
            Self::Keyed(key, hasher) => {
                let done = std::mem::replace(hasher, key.0.clone());
                Hash::Keyed(done.finalize().into_bytes().into())
            }
            Self::Sha256(hasher) => Hash::Sha256(hasher.finalize_reset().into()),
        }
    }
}

/// Collects one text after the other.
pub struct Collector {
    limits: Limits,
    dialect: Dialect,
    front: Front,
    kept: Vec<u8>,
    /// What is kept beyond the first [`STEP`].
    share: Share,
    cut: bool,
    bytes: u64,
    hasher: Hasher,
}

impl Collector {
    pub fn new(limits: Limits, dialect: Dialect) -> Self {
        let (hasher, share) = (Hasher::new(&limits), limits.texts.share());
        Self { limits, dialect, front: Front::default(), kept: Vec::new(), share, cut: false, bytes: 0, hasher }
    }

    /// What the connection keeps, for [`Text::argument`].
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The next bytes of the text.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes = self.bytes.saturating_add(length(bytes));
        self.hasher.update(bytes);
        let rest = self.front.skip(bytes, self.dialect, &mut self.kept);
        if self.cut || rest.is_empty() {
            return;
        }
        let room = self.limits.text.saturating_sub(self.kept.len());
        let now = rest.get(..room).unwrap_or(rest);
        let taken = self.reserve(now.len());
        // What has been cut goes on no more.
        self.cut = now.len() < rest.len() || taken.is_err();
        let room = self.kept.capacity().saturating_sub(self.kept.len());
        self.kept.extend_from_slice(now.get(..room).unwrap_or(now));
    }

    /// Makes room for so many bytes more.
    fn reserve(&mut self, more: usize) -> Result<(), Full> {
        let length = self.kept.len().saturating_add(more);
        if length > self.kept.capacity() {
            // Most texts come whole and are short; those are not copied once more to be made smaller.
            let doubled = length.max(self.kept.capacity().saturating_mul(2));
            let capacity = if length <= STEP { doubled.min(STEP) } else { length.next_multiple_of(STEP) };
            let taken = self.share.resize(capacity.saturating_sub(STEP));
            let capacity = if taken.is_ok() { capacity } else { STEP };
            self.kept.reserve_exact(capacity.saturating_sub(self.kept.len()));
            return taken;
        }
        Ok(())
    }

    /// The end of the text, which was written in a session with these modes. What comes next is another one.
    pub fn finish(&mut self, modes: Modes) -> Arc<Text> {
        std::mem::take(&mut self.front).end(&mut self.kept);
        let kept = std::mem::take(&mut self.kept);
        self.share.shrink(self.share.bytes());
        let hash = self.hasher.finish();
        let (cut, bytes) = (std::mem::take(&mut self.cut), std::mem::take(&mut self.bytes));
        let (sql, redacted) = match self.limits.redact {
            Some(_) => {
                let (sql, how) = redact::redact(&kept, self.dialect, modes);
                (into_text(sql), Some(how))
            }
            None => (into_text(kept), None),
        };
        Text::new(Some(sql), cut, redacted, bytes, Some(hash), &self.limits)
    }

    /// A text that has come whole.
    pub fn whole(&mut self, bytes: &[u8], modes: Modes) -> Arc<Text> {
        self.push(bytes);
        self.finish(modes)
    }

    /// Forgets what has come of a text that does not come to its end.
    pub fn discard(&mut self) {
        *self = Self::new(self.limits.clone(), self.dialect);
    }
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

/// Without a copy where it is UTF-8.
fn into_text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

#[cfg(test)]
mod tests;
