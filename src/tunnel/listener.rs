//! A port on the laptop: on 127.0.0.1 and ::1, the wished-for one or the next that is free.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

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
    /// The error of the last try.
    pub(crate) fn bind(wanted: u16) -> io::Result<Self> {
        let mut last = io::Error::from(io::ErrorKind::AddrInUse);
        for port in wanted..=wanted.saturating_add(TRIES) {
            match Self::bind_exactly(port) {
                Ok(listener) => return Ok(listener),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn bind_exactly(port: u16) -> io::Result<Self> {
        let v4 = open(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port))?;
        let v6 = match open(SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), port)) {
            Ok(listener) => Some(listener),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Err(error),
            Err(_) => None,
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

/// IPv6 sockets are for IPv6 only, so that both can have the same port. No SO_REUSEADDR trick hides a port in use.
fn open(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
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
}
