//! Signals become a cancelled token: the first one drains, the second one ends at once.

use tokio_util::sync::CancellationToken;

/// Which signal asked for the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    /// SIGINT, or Ctrl-C in a console of Windows.
    Interrupt,
    /// SIGTERM, or a Windows that shuts down or logs off.
    Terminate,
    /// SIGQUIT, or Ctrl-Break.
    Quit,
    /// SIGHUP, or a closed console: the terminal is gone.
    Hangup,
}

/// What the end of the terminal means to this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hangup {
    Ends,
    /// A process in the background outlives the terminal that it was started in.
    #[cfg_attr(not(feature = "launcher"), expect(dead_code, reason = "the relay has no terminal to outlive"))]
    Ignored,
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
pub(crate) fn listen(hangup: Hangup) -> std::io::Result<(Shutdown, impl Future<Output = Signal>)> {
    let mut signals = platform::Signals::install(hangup)?;
    let shutdown = Shutdown { drain: CancellationToken::new(), now: CancellationToken::new() };
    let (drain, now) = (shutdown.drain.clone(), shutdown.now.clone());
    let listening = async move {
        let first = signals.next().await;
        drain.cancel();
        // A terminal that closes sends SIGHUP several times, by the kernel and by the shell: that is one wish.
        while signals.next().await == Signal::Hangup {}
        now.cancel();
        first
    };
    Ok((shutdown, listening))
}

#[cfg(unix)]
mod platform {
    use std::io;

    use tokio::signal::unix::{self, SignalKind, signal};

    use super::{Hangup, Signal};

    pub(super) struct Signals {
        interrupt: unix::Signal,
        terminate: unix::Signal,
        quit: unix::Signal,
        /// `None`: not for this process. What is caught and not looked at is ignored.
        hangup: Option<unix::Signal>,
        _ignored_hangup: Option<unix::Signal>,
    }

    impl Signals {
        pub(super) fn install(hangup: Hangup) -> io::Result<Self> {
            let (hangup, ignored) = match hangup {
                Hangup::Ends if is_hangup_ignored() => (None, None),
                Hangup::Ends => (Some(signal(SignalKind::hangup())?), None),
                Hangup::Ignored => (None, Some(signal(SignalKind::hangup())?)),
            };
            Ok(Self {
                interrupt: signal(SignalKind::interrupt())?,
                terminate: signal(SignalKind::terminate())?,
                quit: signal(SignalKind::quit())?,
                hangup,
                _ignored_hangup: ignored,
            })
        }

        /// The next signal. Cancel safe.
        pub(super) async fn next(&mut self) -> Signal {
            let hangup = async {
                match &mut self.hangup {
                    Some(hangup) => hangup.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = self.interrupt.recv() => Signal::Interrupt,
                _ = self.terminate.recv() => Signal::Terminate,
                _ = self.quit.recv() => Signal::Quit,
                _ = hangup => Signal::Hangup,
            }
        }
    }

    /// Whether whoever started this process wants it to outlive the terminal, as nohup does. Only Linux says so without
    /// unsafe code.
    fn is_hangup_ignored() -> bool {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        ignores_hangup(&status)
    }

    /// Reads the mask of ignored signals of proc_pid_status(5); SIGHUP is number 1, the lowest bit.
    fn ignores_hangup(status: &str) -> bool {
        let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
    }

    #[cfg(test)]
    mod tests {
        #[test]
        fn what_nohup_ignores_stays_ignored() {
            let status = |mask: &str| format!("Name:\tbastion\nSigBlk:\t0000000000000001\nSigIgn:\t{mask}\n");
            assert!(super::ignores_hangup(&status("0000000000001001")));
            assert!(!super::ignores_hangup(&status("0000000000001000")));
            assert!(!super::ignores_hangup(""));
        }
    }
}

#[cfg(windows)]
mod platform {
    use std::io;

    use tokio::signal::windows::{self, CtrlBreak, CtrlC, CtrlClose, CtrlLogoff, CtrlShutdown};

    use super::{Hangup, Signal};

    pub(super) struct Signals {
        interrupt: CtrlC,
        quit: CtrlBreak,
        close: CtrlClose,
        logoff: CtrlLogoff,
        shutdown: CtrlShutdown,
    }

    impl Signals {
        /// A process in the background has no console, so nothing of it can close.
        pub(super) fn install(_hangup: Hangup) -> io::Result<Self> {
            Ok(Self {
                interrupt: windows::ctrl_c()?,
                quit: windows::ctrl_break()?,
                close: windows::ctrl_close()?,
                logoff: windows::ctrl_logoff()?,
                shutdown: windows::ctrl_shutdown()?,
            })
        }

        /// The next signal. Cancel safe.
        pub(super) async fn next(&mut self) -> Signal {
            tokio::select! {
                _ = self.interrupt.recv() => Signal::Interrupt,
                _ = self.quit.recv() => Signal::Quit,
                _ = self.close.recv() => Signal::Hangup,
                _ = self.logoff.recv() => Signal::Terminate,
                _ = self.shutdown.recv() => Signal::Terminate,
            }
        }
    }
}
