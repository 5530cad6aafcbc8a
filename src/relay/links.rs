//! Every open link, and who has one.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::link::Link;
use crate::relay::identity::Person;

/// At the end of the relay, what was sent last has so long to arrive.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// The number of a link, which only its owner knows. Never printed.
pub(super) type Secret = [u8; 16];

/// Every open link.
#[derive(Default)]
pub(super) struct Links {
    pub(super) links: Mutex<HashMap<Secret, Entry>>,
    pub(super) tasks: TaskTracker,
    /// Whoever has started the task has left it to others: it ends with the last of them.
    pub(super) last_stops: AtomicBool,
    /// The last of them is gone.
    pub(super) left: CancellationToken,
}

#[derive(Clone)]
pub(super) struct Entry {
    pub(super) link: Link,
    pub(super) person: Option<Arc<Person>>,
    /// Its launcher has said that it goes.
    pub(super) leaves: bool,
}

impl Links {
    pub(super) fn lock(&self) -> MutexGuard<'_, HashMap<Secret, Entry>> {
        self.links.lock()
    }

    /// Notes that the launcher of this link goes; how many others there are. Both at once, so that of two that go together
    /// the second one knows that it is the last.
    pub(super) fn leave(&self, secret: Option<Secret>) -> usize {
        let mut links = self.lock();
        if let Some(entry) = secret.and_then(|secret| links.get_mut(&secret)) {
            entry.leaves = true;
        }
        links.values().filter(|entry| !entry.leaves && entry.link.is_used()).count()
    }

    pub(super) fn set_last_stops(&self, stops: bool) {
        self.last_stops.store(stops, Ordering::Relaxed);
    }

    pub(super) fn last_stops(&self) -> bool {
        self.last_stops.load(Ordering::Relaxed)
    }

    /// Waits until the last user of a task is gone that was left to its users. Most stop it themselves; one whose laptop was
    /// switched off, or is older, does not.
    pub(super) async fn left(&self) {
        self.left.cancelled().await;
    }

    /// Lets what was sent arrive, then ends every link.
    pub(super) async fn close(&self) {
        self.tasks.close();
        let links: Vec<Link> = self.lock().values().map(|entry| entry.link.clone()).collect();
        let last_words = async {
            for link in &links {
                link.drained().await;
            }
            links.iter().for_each(Link::close);
            self.tasks.wait().await;
        };
        // A laptop that is away takes nothing.
        let _in_time = tokio::time::timeout(LAST_WORDS, last_words).await;
    }
}
