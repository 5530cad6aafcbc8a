//! What a panic becomes: one sentence that says where, and a gentle end. Its own message may hold values of users, so it is
//! not repeated.

use std::panic::{Location, PanicHookInfo};
use std::sync::atomic::{AtomicBool, Ordering};

use tokio_util::sync::CancellationToken;
#[cfg(feature = "launcher")]
use tokio_util::task::TaskTracker;

use crate::cli::out;
#[cfg(feature = "launcher")]
use crate::config::{Env as _, ProcessEnv};

static HAPPENED: AtomicBool = AtomicBool::new(false);

/// From now on a panic, on whatever thread or task, is told in one sentence and cancels `drain`: after a fault of our own
/// nothing can be relied on, and the task that was started must not be left behind.
pub(super) fn ends(drain: CancellationToken) {
    std::panic::set_hook(Box::new(move |panic: &PanicHookInfo<'_>| {
        HAPPENED.store(true, Ordering::SeqCst);
        out::talk(&sentence(panic.location()));
        drain.cancel();
    }));
}

/// Whether there was one.
#[cfg(feature = "launcher")]
pub(super) fn happened() -> bool {
    HAPPENED.load(Ordering::SeqCst)
}

/// A fault, for the tests of the way out after one: in builds with debug assertions, where the environment asks for it, in
/// the command itself or in a task beside it.
#[cfg(feature = "launcher")]
pub(super) fn on_purpose(tasks: &TaskTracker) {
    const VARIABLE: &str = "BASTION_TEST_FAULT";
    match ProcessEnv.get(VARIABLE).filter(|_| cfg!(debug_assertions)).as_deref() {
        Some("command") => panic!("{VARIABLE}"),
        Some("task") => drop(tasks.spawn(async { panic!("{VARIABLE}") })),
        _ => {}
    }
}

fn sentence(place: Option<&Location<'_>>) -> String {
    let place = place.map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
    format!(
        "Error: bastion {} has a fault at {place} and ends; please report this line, and what you were doing, to those who \
         maintain bastion for you",
        env!("CARGO_PKG_VERSION")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_told_by_its_place() {
        let said = sentence(Some(Location::caller()));
        assert!(said.contains("src/cli/panic.rs:") && said.contains("please report this line"), "{said}");
    }
}
