//! Signals become a cancelled token: the first SIGINT or SIGTERM drains, the second ends at once.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Which signal asked for the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    Interrupt,
    Terminate,
}

/// What the signals of this process ask for.
pub(crate) struct Shutdown {
    /// Cancelled by the first signal: stop taking work, finish what runs.
    pub(crate) drain: CancellationToken,
    /// Cancelled by the second signal: end at once.
    pub(crate) now: CancellationToken,
}

/// Waits for signals for as long as the process lives. Spawn it first thing; a process that is PID 1 in its container
/// has no default action for SIGTERM, so without this it could not be stopped.
///
/// # Errors
/// When the signal handlers cannot be installed.
pub(crate) fn listen() -> std::io::Result<(Shutdown, impl Future<Output = Signal>)> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let shutdown = Shutdown { drain: CancellationToken::new(), now: CancellationToken::new() };
    let (drain, now) = (shutdown.drain.clone(), shutdown.now.clone());
    let listening = async move {
        let first = tokio::select! {
            _ = interrupt.recv() => Signal::Interrupt,
            _ = terminate.recv() => Signal::Terminate,
        };
        drain.cancel();
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        now.cancel();
        first
    };
    Ok((shutdown, listening))
}
