//! A port on the laptop: on 127.0.0.1 and ::1, exactly the wished-for one or the next that is free.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

/// Ports tried upwards from the wished-for one.
const TRIES: u16 = 50;

/// An open local port.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) port: u16,
    v4: TcpListener,
    /// Some machines have no IPv6.
    v6: Option<TcpListener>,
}

impl Listener {
    /// Opens `wanted` or the next port that is free on both addresses.
    ///
    /// # Errors
    /// The error of the last try; at once if it is none that another port would not have.
    pub(crate) fn bind(wanted: u16) -> io::Result<Self> {
        let mut last = io::Error::from(io::ErrorKind::AddrInUse);
        for port in wanted..=wanted.saturating_add(TRIES) {
            match Self::bind_exactly(port) {
                Ok(listener) => return Ok(listener),
                Err(error) if matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied) => {
                    last = error;
                }
                Err(error) => return Err(error),
            }
        }
        Err(last)
    }

    /// Opens `port` on both addresses.
    ///
    /// # Errors
    /// `AddrInUse` also where another program has it on one of them only: clients would come to the one or the other, by
    /// the way in which they look `localhost` up.
    pub(crate) fn bind_exactly(port: u16) -> io::Result<Self> {
        let (v4, v6) = (SocketAddr::from((Ipv4Addr::LOCALHOST, port)), SocketAddr::from((Ipv6Addr::LOCALHOST, port)));
        if may_shadow() && [v4, v6].iter().any(somebody_answers) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let v4 = open(v4)?;
        let v6 = match open(v6) {
            Ok(listener) => Some(listener),
            // No IPv6 on this machine.
            Err(error)
                if error.kind() == io::ErrorKind::AddrNotAvailable || error.kind() == io::ErrorKind::Unsupported =>
            {
                None
            }
            Err(error) if is_no_family(&error) => None,
            Err(error) => return Err(error),
        };
        Ok(Self { port, v4, v6 })
    }

    /// The next client. Cancel safe.
    ///
    /// # Errors
    /// When the process has no more file descriptors, for example; try again after a pause.
    pub(crate) async fn accept(&self) -> io::Result<TcpStream> {
        let v6 = async {
            match &self.v6 {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        let (stream, _) = tokio::select! {
            accepted = self.v4.accept() => accepted?,
            accepted = v6 => accepted?,
        };
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// Whether this system lets a program have a port of 127.0.0.1 that another one has on all addresses. Linux does not, BSDs
/// with SO_REUSEADDR do, and so does Windows.
const fn may_shadow() -> bool {
    !cfg!(target_os = "linux")
}

/// Whether some program takes connections at this address, on the one socket or on another that stands for all addresses.
fn somebody_answers(address: &SocketAddr) -> bool {
    /// On the machine itself the answer is there at once.
    const PATIENCE: std::time::Duration = std::time::Duration::from_millis(200);
    std::net::TcpStream::connect_timeout(address, PATIENCE).is_ok()
}

/// EAFNOSUPPORT, which the standard library has no kind for.
fn is_no_family(error: &io::Error) -> bool {
    let code = if cfg!(windows) {
        10_047
    } else if cfg!(target_os = "linux") {
        97
    } else {
        47
    };
    error.raw_os_error() == Some(code)
}

/// IPv6 sockets are for IPv6 only, so that both can have the same port. No SO_REUSEADDR trick hides a port in use: on
/// Unix the option is about connections of an earlier process that are not forgotten yet; on Windows it would share the port.
fn open(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(cfg!(unix))?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(128)?;
    TcpListener::from_std(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_taken_port_gives_the_next_one_and_both_addresses_answer() {
        let first = Listener::bind(23_456).unwrap();
        assert_eq!(Listener::bind_exactly(first.port).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        let second = Listener::bind(first.port).unwrap();
        assert!(second.port > first.port);
        let client = TcpStream::connect((Ipv4Addr::LOCALHOST, second.port));
        let (accepted, connected) = tokio::join!(second.accept(), client);
        accepted.unwrap();
        connected.unwrap();
        if second.v6.is_some() {
            let (accepted, connected) =
                tokio::join!(second.accept(), TcpStream::connect((Ipv6Addr::LOCALHOST, second.port)));
            accepted.unwrap();
            connected.unwrap();
        }
    }
    #[tokio::test]
    async fn a_port_that_another_program_has_on_any_address_is_taken() {
        let addresses: [SocketAddr; 4] = [
            (Ipv4Addr::UNSPECIFIED, 0).into(),
            (Ipv6Addr::UNSPECIFIED, 0).into(),
            (Ipv4Addr::LOCALHOST, 0).into(),
            (Ipv6Addr::LOCALHOST, 0).into(),
        ];
        for address in addresses {
            let Ok(other) = std::net::TcpListener::bind(address) else { continue };
            let port = other.local_addr().unwrap().port();
            let taken = Listener::bind_exactly(port).unwrap_err();
            assert_eq!(taken.kind(), io::ErrorKind::AddrInUse, "{address}");
        }
    }
}
