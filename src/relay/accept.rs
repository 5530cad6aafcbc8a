//! Listeners: who comes in on a plain port, and what happens when nobody can.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tracing::warn;

use crate::limits::{self, Spare};
use crate::relay::start_error::StartError;
use crate::relay::state::{RelayState, Served};
use crate::relay::{conn, upstream};

/// Pause after a failed accept: trying at once would only burn the CPU.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

pub(super) async fn listen(address: IpAddr, port: u16) -> Result<TcpListener, StartError> {
    let address = SocketAddr::new(address, port);
    TcpListener::bind(address).await.map_err(|reason| StartError::Bind { address, reason })
}

/// Accepts clients of a plain port until the drain.
pub(super) async fn accept(listener: TcpListener, served: Arc<Served>, shared: Arc<RelayState>) {
    let mut spare = Spare::new();
    loop {
        let accepted = tokio::select! {
            () = shared.drain.cancelled() => return,
            accepted = spare.accept(listener.accept()) => accepted,
        };
        match accepted {
            Ok((stream, address)) => {
                upstream::tune(&stream);
                serve_client(stream, format!("{address}"), &served, &shared);
            }
            Err(error) => not_accepted(&shared, &error, &listener, &mut spare).await,
        }
    }
}

/// Says once in a while why nobody is accepted, closes those that wait if that is a limit, and waits a little.
pub(super) async fn not_accepted(
    shared: &RelayState,
    error: &std::io::Error,
    listener: &TcpListener,
    spare: &mut Spare,
) {
    let limit = limits::reached(error);
    if shared.shortage.may_be_told() {
        match &limit {
            Some(limit) => warn!(%error, limit, "new connections are closed"),
            None => warn!(%error, "cannot accept a connection"),
        }
    }
    if limit.is_some() {
        spare.turn_away(|| limits::accept(listener)).await;
    }
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

/// Serves a client of a plain port on its own task. Nobody has proven who it is, so nobody can be asked for another proof.
fn serve_client(stream: TcpStream, from: String, served: &Arc<Served>, shared: &Arc<RelayState>) {
    let (shared_by_task, served) = (Arc::clone(shared), Arc::clone(served));
    shared.conns.spawn(async move {
        if let Ok(conn) = conn::Conn::admit(shared_by_task, served, from, None).await {
            conn.serve(stream).await;
        }
    });
}
