//! The limits that the operating system sets to this process: open files and sockets, and memory for them.

use std::fs::File;
use std::io;
use std::time::Duration;

#[cfg(feature = "relay")]
use tokio::net::TcpListener;
use tokio::net::TcpStream;

/// Raises the number of files and sockets that may be open as far as the system lets this process: the soft limit is
/// often 1024 or 256, for the sake of programs older than ours.
#[cfg(unix)]
pub(crate) fn raise() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_none() || current == maximum {
        return;
    }
    // macOS takes no more than OPEN_MAX, whatever the hard limit says.
    for wanted in [maximum, Some(maximum.unwrap_or(u64::MAX).min(10_240))] {
        let more = wanted.is_none_or(|wanted| current.is_some_and(|current| current < wanted));
        if more && setrlimit(Resource::Nofile, Rlimit { current: wanted, maximum }).is_ok() {
            return;
        }
    }
}

/// Windows has no such limit.
#[cfg(not(unix))]
pub(crate) fn raise() {}

/// What this error says about a limit, with its value and how to raise it; `None`: it is about something else.
#[cfg(unix)]
pub(crate) fn reached(error: &io::Error) -> Option<String> {
    use rustix::io::Errno;
    use rustix::process::{Resource, getrlimit};

    let errno = Errno::from_raw_os_error(error.raw_os_error()?);
    if errno == Errno::MFILE {
        let limit = getrlimit(Resource::Nofile).current.map_or_else(|| "no more".to_owned(), |limit| limit.to_string());
        return Some(format!(
            "this process may have {limit} files and sockets open, and has them: each connection takes one or two. \
             Close some, or raise the hard limit (ulimit -Hn; LimitNOFILE of systemd; ulimits of a container) and start \
             again"
        ));
    }
    match errno {
        Errno::NFILE => Some(
            "this machine has as many files open as it may have in all (on Linux the limit is fs.file-max): end what \
             holds them, or raise it"
                .to_owned(),
        ),
        Errno::NOMEM | Errno::NOBUFS => {
            Some("this machine has no memory for another socket: end other programs, or give it more".to_owned())
        }
        _ => None,
    }
}

/// As on Unix, for the one limit of Windows sockets.
#[cfg(not(unix))]
pub(crate) fn reached(error: &io::Error) -> Option<String> {
    /// WSAEMFILE and WSAENOBUFS.
    const FULL: [i32; 2] = [10_024, 10_055];
    let full = error.raw_os_error().is_some_and(|code| FULL.contains(&code));
    full.then(|| "this machine has no room for another socket: end other programs".to_owned())
}

/// A file descriptor that is kept for the moment in which there is no other: with it a client that waits can be closed, and
/// hears of the shortage instead of hanging.
#[derive(Debug)]
pub(crate) struct Spare(Option<File>);

impl Spare {
    pub(crate) fn new() -> Self {
        Self(reserve().ok())
    }

    /// The next client, as `accept` gives it. Whoever opened a file while the spare descriptor was lent out may have it still:
    /// then this client is closed, because its descriptor has to become the spare one. Cancel safe if `accept` is.
    ///
    /// # Errors
    /// Those of `accept`, and that there is no spare descriptor.
    pub(crate) async fn accept<T>(&mut self, accept: impl Future<Output = io::Result<T>>) -> io::Result<T> {
        let client = accept.await?;
        if self.0.is_none() {
            match reserve() {
                Ok(file) => self.0 = Some(file),
                Err(error) if reached(&error).is_some() => return Err(error),
                // A system without that file is served without a spare descriptor.
                Err(_) => {}
            }
        }
        Ok(client)
    }

    /// Closes the clients that wait for `accept`, as far as they wait now.
    pub(crate) async fn turn_away<F: Future<Output = io::Result<TcpStream>>>(&mut self, mut accept: impl FnMut() -> F) {
        /// Enough for a listener's queue, so that one that is flooded does not hold up all others.
        const AT_ONCE: usize = 128;
        self.0 = None;
        for _ in 0..AT_ONCE {
            // Those that wait already are there at the first poll.
            match tokio::time::timeout(Duration::ZERO, accept()).await {
                Ok(Ok(client)) => drop(client),
                Ok(Err(_)) | Err(_) => break,
            }
        }
        *self = Self::new();
    }
}

fn reserve() -> io::Result<File> {
    File::open(if cfg!(windows) { "NUL" } else { "/dev/null" })
}

/// The next client of a listener, without its address.
#[cfg(feature = "relay")]
pub(crate) async fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
    listener.accept().await.map(|(stream, _)| stream)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[tokio::test]
    async fn a_spare_descriptor_that_was_lost_is_taken_back_before_a_client_comes_in() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let mut spare = Spare(None);
        let client = TcpStream::connect(listener.local_addr().unwrap());
        let (accepted, client) = tokio::join!(spare.accept(listener.accept()), client);
        accepted.unwrap();
        client.unwrap();
        assert!(spare.0.is_some());
    }
}
