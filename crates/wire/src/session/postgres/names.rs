//! What stands behind a name at the server, as far as that is sure: the statements of a session, or its portals.
//!
//! A client gives names before the server has agreed. If a message runs at all, then all that came before it since the last
//! Sync did, because after an error the server skips everything up to the next one. So what was said since then counts, what
//! was said before it does not until it is answered, and what cannot be told is nothing.

use std::collections::HashMap;
use std::sync::Arc;

/// Names that are kept; more are not followed.
pub(super) const KEPT: usize = 256;
/// Bytes of a name by which the server tells statements and portals apart (`NAMEDATALEN`).
pub(super) const NAME_MAX: usize = 63;

/// A name of a statement or a portal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Name {
    Unnamed,
    Named(Arc<[u8]>),
    /// The server may take it for another one: it cuts long ones, and turns those beyond ASCII into an encoding of its own.
    Unclear,
}

impl Name {
    pub(super) fn new(bytes: &[u8]) -> Self {
        match bytes {
            [] => Self::Unnamed,
            _ if bytes.len() > NAME_MAX || !bytes.is_ascii() => Self::Unclear,
            _ => Self::Named(bytes.into()),
        }
    }
}

/// When something was said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Moment {
    /// Counts all that is said.
    pub(super) at: u64,
    /// Counts what lets later messages run although earlier ones have failed.
    pub(super) batch: u64,
}

struct Slot<V> {
    /// What the server has agreed to.
    settled: Option<V>,
    /// What was said last.
    said: Option<V>,
    when: Moment,
    /// Sayings without an answer.
    open: u32,
}

/// See the module.
pub(super) struct Names<V> {
    unnamed: Slot<V>,
    named: HashMap<Arc<[u8]>, Slot<V>>,
    /// All were forgotten then, by something that has no answer so far.
    cleared: Option<u64>,
    clearings: u32,
}

impl<V> Slot<V> {
    fn new() -> Self {
        Self { settled: None, said: None, when: Moment { at: 0, batch: 0 }, open: 0 }
    }
}

impl<V> Names<V> {
    pub(super) fn new() -> Self {
        Self { unnamed: Slot::new(), named: HashMap::new(), cleared: None, clearings: 0 }
    }

    fn slot(&mut self, name: &Name) -> Option<&mut Slot<V>> {
        match name {
            Name::Unnamed => Some(&mut self.unnamed),
            Name::Named(name) => self.named.get_mut(name),
            Name::Unclear => None,
        }
    }

    /// The client has given `name` to `value`, or to nothing. False if it is not followed; then there is no answer to tell of.
    #[must_use]
    pub(super) fn say(&mut self, name: &Name, value: Option<V>, when: Moment) -> bool {
        if let Name::Named(key) = name
            && !self.named.contains_key(key)
        {
            if value.is_none() || self.named.len() >= KEPT && !self.make_room() {
                return false;
            }
            self.named.insert(Arc::clone(key), Slot::new());
        }
        let Some(slot) = self.slot(name) else { return false };
        (slot.said, slot.when) = (value, when);
        slot.open = slot.open.saturating_add(1);
        true
    }

    /// Forgets the name that was said first of those that are settled.
    fn make_room(&mut self) -> bool {
        let settled = self.named.iter().filter(|(_, slot)| slot.open == 0);
        let oldest = settled.min_by_key(|(_, slot)| slot.when.at).map(|(name, _)| Arc::clone(name));
        oldest.is_some_and(|oldest| self.named.remove(&oldest).is_some())
    }

    /// All names may be others once this is answered.
    pub(super) fn say_nothing_of_all(&mut self, when: Moment) {
        self.cleared = Some(when.at);
        self.clearings = self.clearings.saturating_add(1);
    }

    /// The answer to [`Names::say_nothing_of_all`], whichever it is.
    pub(super) fn clear(&mut self) {
        self.clearings = self.clearings.saturating_sub(1);
        if self.clearings == 0 {
            self.cleared = None;
        }
        self.forget_settled();
    }

    /// What it was said to do does not happen.
    pub(super) fn keep(&mut self) {
        self.clearings = self.clearings.saturating_sub(1);
        if self.clearings == 0 {
            self.cleared = None;
        }
    }

    /// What was settled is not any more.
    pub(super) fn forget_settled(&mut self) {
        self.named.retain(|_, slot| slot.open > 0);
        self.named.values_mut().for_each(|slot| slot.settled = None);
    }

    /// The same, also for what has no name.
    pub(super) fn forget_all_settled(&mut self) {
        self.forget_settled();
        self.unnamed.settled = None;
    }

    /// What `name` stands for, in a message of this moment. `doubt`: something else that has no answer may change it.
    pub(super) fn look(&mut self, name: &Name, now: Moment, doubt: bool) -> Option<&mut V> {
        let cleared = self.cleared.filter(|_| *name != Name::Unnamed);
        let slot = self.slot(name)?;
        if slot.open == 0 && cleared.is_none() && !doubt {
            return slot.settled.as_mut();
        }
        let counts = slot.open > 0 && slot.when.batch == now.batch && cleared.is_none_or(|at| slot.when.at > at);
        if counts { slot.said.as_mut() } else { None }
    }

    /// The server has agreed that `name` stands for `value`. `merge` takes over what has happened since it was said.
    pub(super) fn settle(&mut self, name: &Name, value: Option<V>, merge: impl FnOnce(&mut V, &V)) {
        let Some(slot) = self.slot(name) else { return };
        slot.open = slot.open.saturating_sub(1);
        slot.settled = value;
        if slot.open == 0
            && let Some(said) = slot.said.take()
            && let Some(settled) = &mut slot.settled
        {
            merge(settled, &said);
        }
        self.drop_if_empty(name);
    }

    /// The server has not done what was said of `name`.
    pub(super) fn unsay(&mut self, name: &Name) {
        let Some(slot) = self.slot(name) else { return };
        slot.open = slot.open.saturating_sub(1);
        if slot.open == 0 {
            slot.said = None;
        }
        self.drop_if_empty(name);
    }

    fn drop_if_empty(&mut self, name: &Name) {
        if let Name::Named(key) = name
            && self.named.get(key).is_some_and(|slot| slot.open == 0 && slot.settled.is_none())
        {
            self.named.remove(key);
        }
    }
}
