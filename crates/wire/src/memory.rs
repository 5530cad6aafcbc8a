//! How much memory the relay may use for what others decide the size of: clients, launchers, a database, a Vault. This is
//! the one place that says it; everything else in the relay has a size of its own.
//!
//! A Fargate task of 512 MB also holds the Session Manager agent, with about 28 MB for each lane. The relay has 35 MB to
//! itself and 22 kB for each connection, so all budgets together leave more than half of the task to the agent.
//!
//! A [`Budget`] belongs to the whole process. Who needs memory of it takes a [`Share`], which is given back when it is
//! dropped. A budget that is used up gives [`Full`], which names the limit: the newest wish is refused, or does without,
//! and nothing that is there has to go.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// Texts of statements for the audit log: those that are coming, and those of prepared statements, which it will need when they
/// run. Beyond it, a record has the start of its text, or none.
const TEXTS: usize = 16 * MIB;
/// Of that, one connection.
pub const TEXTS_OF_CONNECTION: usize = 256 * KIB;
/// Records of statements while the log takes none. Beyond it, the session ends whose statement is to be recorded.
const RECORDS: usize = 8 * MIB;
/// What clients have asked and databases have not answered, where that is followed: for the audit log, and always for MySQL.
/// Beyond it, the session ends that asks more.
const ASKED: usize = 8 * MIB;
/// What has come over lanes and was not yet read. Beyond it, the stream is reset that has brought more.
pub const ARRIVED: usize = 32 * MIB;
/// Of that, a stream may send so much ahead of its reader at first, and so much at most if it uses all of it and there is
/// [room](Share::room): 100 MB/s over a path of 40 ms, with what both ends take to answer, need 8 MiB.
pub const WINDOW: (u64, u64) = (128 * 1024, 16 << 20);
/// Contexts that compress. Beyond it, bytes go as they are.
const PACKING: usize = 24 * MIB;
/// Contexts that unpack. Beyond it, the stream is reset that needs another one.
const UNPACKING: usize = 40 * MIB;
/// One of each: what zstd takes with the sizes that lanes give it.
pub const PACKING_CONTEXT: usize = 1350 * KIB;
pub const UNPACKING_CONTEXT: usize = 640 * KIB;
/// The laptop has one person and more memory.
const LAPTOP: usize = 256 * MIB;
/// An answer of Vault, of Secrets Manager and of the credentials of the task. A longer one is refused.
pub const ANSWER: usize = 64 * KIB;

/// An answer is longer than [`ANSWER`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("its answer is longer than {} KiB", ANSWER / KIB)]
pub struct TooLong;

/// The budgets of a process. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Memory {
    pub texts: Budget,
    pub records: Budget,
    pub asked: Budget,
    pub arrived: Budget,
    pub packing: Budget,
    pub unpacking: Budget,
}

impl Memory {
    pub fn relay() -> Self {
        Self::relay_of(ARRIVED)
    }

    /// The same with another limit in place of [`ARRIVED`].
    pub fn relay_of(arrived: usize) -> Self {
        Self::with(arrived, UNPACKING)
    }

    pub fn laptop() -> Self {
        Self::with(LAPTOP, LAPTOP)
    }

    fn with(arrived: usize, unpacking: usize) -> Self {
        Self {
            texts: Budget::new("texts of statements", TEXTS),
            records: Budget::new("records that wait for the audit log", RECORDS),
            asked: Budget::new("messages that wait for their answers", ASKED),
            arrived: Budget::new("bytes that have come through the tunnel and wait for their reader", arrived),
            packing: Budget::new("compression", PACKING),
            unpacking: Budget::new("unpacking what comes through the tunnel", unpacking),
        }
    }
}

/// Of a budget, wishes that can also do without leave alone one part in so many, as a shift: those that would have to be
/// refused find something.
const KEPT_SHIFT: u32 = 2;

/// A budget is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the memory for {what} is used up: {} KiB", limit / KIB)]
pub struct Full {
    what: &'static str,
    limit: usize,
}

/// Bytes that the whole process may have for one purpose. Cheap to clone; clones are the same budget.
#[derive(Debug, Clone)]
pub struct Budget(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    what: &'static str,
    limit: usize,
    used: AtomicUsize,
}

impl Budget {
    /// `what` it is for, as an error says it.
    pub fn new(what: &'static str, limit: usize) -> Self {
        Self(Arc::new(Inner { what, limit, used: AtomicUsize::new(0) }))
    }

    /// What is left at this moment.
    pub fn left(&self) -> usize {
        self.0.limit.saturating_sub(self.0.used.load(Ordering::Relaxed))
    }

    /// A share without anything, which may grow.
    pub fn share(&self) -> Share {
        Share { budget: self.clone(), bytes: 0 }
    }

    /// A share of so many bytes.
    ///
    /// # Errors
    /// [`Full`], and nothing is taken.
    pub fn take(&self, bytes: usize) -> Result<Share, Full> {
        let mut share = self.share();
        share.resize(bytes)?;
        Ok(share)
    }
}

/// A part of a budget, given back when dropped.
#[derive(Debug)]
pub struct Share {
    budget: Budget,
    bytes: usize,
}

impl Share {
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How large it may become for a wish that can also do without: half of what all others leave to it. So the first one
    /// gets half, the next one half of the rest, and nobody nothing.
    pub fn room(&self) -> usize {
        let kept = self.budget.0.limit >> KEPT_SHIFT;
        self.budget.left().saturating_add(self.bytes).saturating_sub(kept) >> 1
    }

    /// Makes it `bytes` large. Less always works.
    ///
    /// # Errors
    /// [`Full`], and it stays as it was.
    pub fn resize(&mut self, bytes: usize) -> Result<(), Full> {
        // What does not change is nobody else's business: all threads write to the same number.
        if bytes == self.bytes {
            return Ok(());
        }
        let Inner { what, limit, ref used } = *self.budget.0;
        if let Some(more) = bytes.checked_sub(self.bytes) {
            let fits = |used: usize| used.checked_add(more).filter(|used| *used <= limit);
            used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).map_err(|_| Full { what, limit })?;
        } else {
            used.fetch_sub(self.bytes.saturating_sub(bytes), Ordering::Relaxed);
        }
        self.bytes = bytes;
        Ok(())
    }

    /// Makes it larger by `more`.
    ///
    /// # Errors
    /// [`Full`], and it stays as it was.
    pub fn grow(&mut self, more: usize) -> Result<(), Full> {
        self.resize(self.bytes.saturating_add(more))
    }

    /// Gives a part back.
    pub fn shrink(&mut self, less: usize) {
        // Less always works.
        let _works = self.resize(self.bytes.saturating_sub(less));
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.shrink(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dropped_is_given_back_and_what_is_refused_takes_nothing() {
        let budget = Budget::new("tests", 100);
        let mut first = budget.take(60).unwrap();
        let second = budget.take(40).unwrap();
        assert_eq!((budget.left(), first.grow(1).unwrap_err()), (0, Full { what: "tests", limit: 100 }));
        assert_eq!(first.bytes(), 60);
        drop(second);
        assert_eq!((first.grow(20), first.resize(101).is_err(), first.bytes(), budget.left()), (Ok(()), true, 80, 20));
        first.shrink(70);
        assert_eq!((first.resize(10), first.bytes(), budget.left()), (Ok(()), 10, 90));
        first.shrink(11);
        drop(first);
        assert_eq!(budget.left(), 100);
        assert!(budget.take(usize::MAX).is_err());
    }

    #[test]
    fn whoever_can_do_without_gets_half_of_what_others_leave_and_the_last_quarter_never() {
        let budget = Budget::new("tests", 1000);
        let mut shares: Vec<Share> = (0..4).map(|_| budget.share()).collect();
        for (share, room) in shares.iter_mut().zip([375, 187, 94, 47]) {
            assert_eq!(share.room(), room);
            share.resize(room).unwrap();
            // What it has already is no reason for more, nor for less.
            assert_eq!(share.room(), room);
        }
        assert!(shares[0].resize(620).is_ok());
        assert_eq!((budget.left(), budget.share().room(), shares[1].room()), (52, 0, 0));
        shares.clear();
        assert_eq!(budget.share().room(), 375);
    }

    #[test]
    fn a_budget_that_is_used_up_names_its_limit() {
        let said = Memory::relay().texts.take(TEXTS + 1).unwrap_err().to_string();
        assert_eq!(said, "the memory for texts of statements is used up: 16384 KiB");
    }

    #[test]
    fn all_budgets_leave_more_than_half_of_the_smallest_task() {
        let Memory { texts, records, asked, arrived, packing, unpacking } = Memory::relay();
        let budgets = [texts, records, asked, arrived, packing, unpacking];
        let all: usize = budgets.iter().map(Budget::left).sum();
        assert!(all <= 128 * MIB, "{all}");
    }
}
