//! Ends of connections on the runtime: how one is read off an error, and how one is told by a reset. What they mean is
//! decided in [`bastion_wire::end`].

use std::io;
use std::task::{Context, Poll};

use bastion_wire::end::{End, How, Who};
use bastion_wire::lane::link::StreamEnd;

/// A byte stream that can end other than well.
pub(crate) trait Resets: Send {
    /// Ends both directions, and neither at its end, behind what was written. `why` is for the other end, where the way has
    /// words. Call it until it is ready, then drop the stream.
    fn poll_reset(&mut self, context: &mut Context<'_>, why: &str) -> Poll<()>;
}

impl Resets for tokio::net::TcpStream {
    /// The reset goes out when the socket is dropped.
    fn poll_reset(&mut self, _context: &mut Context<'_>, _why: &str) -> Poll<()> {
        let _best_effort = socket2::SockRef::from(&*self).set_linger(Some(std::time::Duration::ZERO));
        Poll::Ready(())
    }
}

/// The end of a stream as an error of the runtime.
pub(super) fn failure(end: StreamEnd) -> io::Error {
    let kind = match end {
        StreamEnd::Closed => io::ErrorKind::BrokenPipe,
        StreamEnd::Cut => io::ErrorKind::ConnectionAborted,
        StreamEnd::Reset(_) | StreamEnd::Over(_) => io::ErrorKind::ConnectionReset,
        StreamEnd::Unreadable(_) => io::ErrorKind::InvalidData,
        StreamEnd::NoMemory(_) => io::ErrorKind::OutOfMemory,
    };
    io::Error::new(kind, end)
}

/// The end of a stream that an error stands for, if it came through the tunnel.
pub(crate) fn told(error: &io::Error) -> Option<&StreamEnd> {
    error.get_ref()?.downcast_ref()
}

/// At the relay: what an error of a client's connection means.
#[cfg(feature = "relay")]
pub(crate) fn of_client(error: &io::Error) -> End {
    told(error).map_or(End::new(Who::Client, How::Reset), End::of_client)
}

/// At the relay: what an error of the database's connection means.
#[cfg(feature = "relay")]
pub(crate) fn of_database(error: &io::Error) -> End {
    let how = match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof => How::Reset,
        _ => How::Cut,
    };
    End::new(Who::Database, how)
}

/// At the launcher: what an error of a stream means. Any other than those of a stream is the tunnel's.
#[cfg(feature = "launcher")]
pub(crate) fn of_relay(error: &io::Error) -> End {
    let tunnel = match error.kind() {
        io::ErrorKind::ConnectionRefused => How::Refused,
        _ => How::Cut,
    };
    told(error).map_or_else(|| End::new(Who::Tunnel, tunnel), End::of_relay)
}
