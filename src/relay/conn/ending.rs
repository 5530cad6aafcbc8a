//! The one place where the relay ends a client's connection, well or with a reset. Which of the two, [`bastion_wire::end`]
//! says.

use std::future::poll_fn;
use std::time::Duration;

use bastion_wire::end::{End, How};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::relay::client_io::ClientIo;
use crate::relay::conn::driver::Upstream;

/// For a client that may have stopped reading.
pub(super) const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);

/// `last`, and then the end of the stream. Waits for the client's own end, but no longer than `limit`: unread input would turn
/// the close of a socket into a reset, which may take with it what was said last.
pub(super) async fn end_well(mut client: Box<dyn ClientIo>, last: &[u8], limit: Duration) {
    let told = async {
        client.write_all(last).await?;
        client.shutdown().await?;
        let mut rest = [0_u8; 512];
        while client.read(&mut rest).await? > 0 {}
        std::io::Result::Ok(())
    };
    // A client that no longer reads cannot be told.
    let _told = tokio::time::timeout(limit, told).await;
}

/// No end of the stream: behind what was written, the client sees a reset. Where it came through the tunnel, `why` goes with
/// it.
pub(super) async fn reset(mut client: Box<dyn ClientIo>, why: &str) {
    let reset = poll_fn(|context| client.poll_reset(context, why));
    let _told = tokio::time::timeout(GOODBYE_TIMEOUT, reset).await;
}

/// Leaves the database. Without TLS it would take the end of a stream for the end of the data, which it may only be if the
/// connection has ended well.
pub(super) fn leave(upstream: Upstream, end: End) {
    if let Upstream::Plain(stream) = upstream
        && end.how != How::Clean
    {
        let _best_effort = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    }
}
