//! The greeting of a MySQL database, from one connection for the next.
//!
//! A server greets first, so for a client that has said nothing the relay must dial the database or know what it says. A
//! connection that ends before its login is an interrupted handshake to the database: `max_connect_errors` of them in a row,
//! 100 unless set, and it lets the task in no more. So clients see a greeting from memory where they have a password to
//! prove first, and where many connections in a row have come to no login. The number in it is then that of no connection,
//! because it is not known yet.

use std::sync::atomic::{AtomicU32, Ordering};

use bastion_wire::mysql::greeting::Greeting;
use parking_lot::Mutex;

/// So many connections since the last login may have dialled the database before their clients had said anything.
const EARLY_DIALS_MAX: u32 = 20;

/// See the module.
#[derive(Default)]
pub(super) struct RememberedGreeting {
    greeting: Mutex<Option<Greeting>>,
    early_dials: AtomicU32,
}

impl RememberedGreeting {
    /// What a new client is to see, if the database is not to be asked; `proves` is whether it must prove a password.
    pub(super) fn for_client(&self, proves: bool) -> Option<Greeting> {
        let from_memory = proves || self.early_dials.load(Ordering::Relaxed) >= EARLY_DIALS_MAX;
        from_memory.then(|| self.greeting.lock().clone()).flatten()
    }

    /// The database is dialled for a client that has said nothing.
    pub(super) fn dialled_early(&self) {
        // It cannot overflow: from the limit on nobody dials early, but for those that have begun.
        self.early_dials.fetch_add(1, Ordering::Relaxed);
    }

    /// A login has succeeded: the database counts from the start again, too.
    pub(super) fn logged_in(&self) {
        self.early_dials.store(0, Ordering::Relaxed);
    }

    /// What the database has said just now.
    pub(super) fn learn(&self, greeting: &Greeting) {
        let mut known = self.greeting.lock();
        *known = Some(greeting.clone());
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn it_is_shown_where_a_password_comes_first_or_many_have_come_to_no_login() {
        let remembered = RememberedGreeting::default();
        // Nothing is known yet.
        assert_eq!(remembered.for_client(true), None);
        let greeting = Greeting {
            version: Bytes::from_static(b"9.7.4"),
            connection_id: 7,
            scramble: Bytes::new(),
            capabilities: 0,
            charset: 255,
            status: 2,
            reserved: [0; 10],
            plugin: Bytes::new(),
        };
        remembered.learn(&greeting);
        assert_eq!((remembered.for_client(true), remembered.for_client(false)), (Some(greeting.clone()), None));
        for _ in 1..EARLY_DIALS_MAX {
            remembered.dialled_early();
        }
        assert_eq!(remembered.for_client(false), None);
        remembered.dialled_early();
        assert_eq!(remembered.for_client(false), Some(greeting));
        remembered.logged_in();
        assert_eq!(remembered.for_client(false), None);
    }
}
