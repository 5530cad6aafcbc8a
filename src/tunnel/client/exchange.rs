//! Bytes between a local client and the relay, both ways, until both directions have ended, over a way whose ends are told.

use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bastion_wire::conn;
use bastion_wire::end::ResetReason;
use bastion_wire::lane::link::StreamEnd;
use bytes::BytesMut;
use secrecy::SecretString;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::api::{HEADER_TARGET, Upgrade};
use crate::link::Link;
use crate::link::end::{self, Resets};
use crate::link::plain::Plain;
use crate::tunnel::client::began::{Began, heard, sent};
use crate::tunnel::client::{CarryError, GOODBYE_TIMEOUT};
use crate::tunnel::upgrade::{self, UpgradeError};
use crate::tunnel::{ConnectError, Tunnel};
use crate::types::Engine;

pub(super) const CHUNK: usize = 16 * 1024;
/// One read from a client for the relay; a link packs what it gets at once.
const CHUNK_UP: usize = 48 * 1024;
/// A stream that was told its end has so long to bring what was said before it.
pub(super) const LINGER_TCP: Duration = Duration::from_secs(600);

/// A stream of the link.
pub(super) async fn over_link(
    link: &Link,
    target: &str,
    client: &mut TcpStream,
    opening: &[u8],
    began: &mut Began,
) -> Result<(), CarryError> {
    let full = || ConnectError::Ended(link.over().unwrap_or_else(|| "it has too many connections".to_owned()));
    let stream = link.open(target).ok_or_else(full)?;
    exchange(stream, client, opening, began).await
}

/// A stream of the tunnel, with the token that the relay asks for. `Ok(false)`: the relay is too old to tell ends.
pub(super) async fn over_tunnel(
    tunnel: &Tunnel,
    token: Option<&SecretString>,
    target: &str,
    engine: Engine,
    client: &mut TcpStream,
    opening: &mut BytesMut,
    began: &mut Began,
) -> Result<bool, CarryError> {
    let (mut from_relay, mut to_relay) = tokio::io::split(tunnel.connect(LINGER_TCP)?);
    let mut first = BytesMut::from(&upgrade::request(Upgrade::Connection, token, &[(HEADER_TARGET, target)])[..]);
    put(opening, &mut first);
    to_relay.write_all(&first).await.map_err(CarryError::Tunnel)?;
    let mut rest = BytesMut::new();
    let answered = {
        let mut answer = pin!(upgrade::read_answer(&mut from_relay, &mut rest));
        // Clients of databases wait for the database here. What others say meanwhile goes along, and is kept in case that
        // the relay wants it again.
        let mut speaks = engine == Engine::Tcp;
        loop {
            let before = opening.len();
            tokio::select! {
                answered = &mut answer => break answered,
                read = client.read_buf(opening), if speaks => {
                    speaks = read.map_err(CarryError::Client)? > 0 && opening.len() < CHUNK;
                    let mut more = BytesMut::new();
                    put(opening.get(before..).unwrap_or_default(), &mut more);
                    to_relay.write_all(&more).await.map_err(CarryError::Tunnel)?;
                }
            }
        }
    };
    match answered {
        Ok(()) => {}
        Err(UpgradeError::Refused { status: Some(400 | 404 | 426), .. }) => return Ok(false),
        Err(error) => return Err(error.into()),
    }
    exchange(Plain::new(from_relay.unsplit(to_relay), &rest), client, &[], began).await.map(|()| true)
}

/// In chunks.
fn put(mut bytes: &[u8], out: &mut BytesMut) {
    while !bytes.is_empty() {
        let taken = conn::encode_chunk(bytes, out);
        bytes = bytes.get(taken..).unwrap_or_default();
    }
}

/// How the client's direction has ended.
enum Up {
    /// With the client's end.
    Ended,
    Gone(io::Error),
    /// The other side takes no more, and the client has been heard to its end.
    NotTaken,
}

async fn exchange<S: AsyncRead + AsyncWrite + Resets + Unpin>(
    stream: S,
    client: &mut TcpStream,
    opening: &[u8],
    began: &mut Began,
) -> Result<(), CarryError> {
    let (mut from_relay, mut to_relay) = tokio::io::split(stream);
    let ended = both_ways(&mut from_relay, &mut to_relay, client, opening, began).await;
    if let Err(CarryError::Client(_)) = &ended {
        // Behind what the client has said; not an end.
        let mut stream = from_relay.unsplit(to_relay);
        let reason = ResetReason::Client.to_string();
        let reset = std::future::poll_fn(|context| stream.poll_reset(context, &reason));
        let _in_time = tokio::time::timeout(GOODBYE_TIMEOUT, reset).await;
    }
    ended
}

/// Each direction ends on its own.
async fn both_ways<S: AsyncRead + AsyncWrite + Unpin>(
    from_relay: &mut ReadHalf<S>,
    to_relay: &mut WriteHalf<S>,
    client: &mut TcpStream,
    opening: &[u8],
    began: &mut Began,
) -> Result<(), CarryError> {
    let (from_client, mut to_client) = client.split();
    let Began { closed, up: began_up, down: began_down, stream: followed, head, hidden } = began;
    let not_taken = Notify::new();
    // Writing to the client has failed with a reset, which is then not read any more.
    let reset = AtomicBool::new(false);
    let up = async {
        let mut takes = send(to_relay, opening).await;
        loop {
            if !takes {
                not_taken.notify_one();
            }
            let read = async {
                from_client.readable().await?;
                // Only while there is something to read: most clients are idle most of the time.
                let mut buffer = Vec::with_capacity(CHUNK_UP);
                from_client.try_read_buf(&mut buffer).map(|_| buffer)
            };
            match read.await {
                Ok(buffer) if buffer.is_empty() && reset.load(Ordering::Relaxed) => {
                    return Up::Gone(io::ErrorKind::ConnectionReset.into());
                }
                Ok(buffer) if buffer.is_empty() => break,
                // Unread input would turn the end of the client's socket into a reset, which takes what was said last with it.
                Ok(_) if !takes => {}
                Ok(buffer) => {
                    heard(began_up, head, hidden, &buffer);
                    takes = send(to_relay, &buffer).await;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Up::Gone(error),
            }
        }
        *closed = true;
        let _ended_already = to_relay.shutdown().await;
        if takes { Up::Ended } else { Up::NotTaken }
    };
    let down = async {
        let mut buffer = vec![0; CHUNK];
        loop {
            let length = from_relay.read(&mut buffer).await.map_err(failed)?;
            if length == 0 {
                return to_client.shutdown().await.map_err(CarryError::Client);
            }
            let bytes = buffer.get(..length).unwrap_or_default();
            sent(began_down, followed, bytes);
            to_client.write_all(bytes).await.map_err(|error| {
                reset.store(error.kind() == io::ErrorKind::ConnectionReset, Ordering::Relaxed);
                CarryError::Client(error)
            })?;
        }
    };
    let (mut up, mut down) = (pin!(up), pin!(down));
    tokio::select! {
        // What the client was told and has not read is nothing to it any more.
        ended = &mut up => match ended {
            Up::Gone(error) => Err(CarryError::Client(error)),
            Up::Ended | Up::NotTaken => down.await,
        },
        ended = &mut down => match ended {
            Ok(()) => tokio::select! {
                ended = up => match ended {
                    Up::Gone(error) => Err(CarryError::Client(error)),
                    Up::Ended | Up::NotTaken => Ok(()),
                },
                // It was told everything; that it goes on sending is its own affair.
                () = async { not_taken.notified().await; tokio::time::sleep(GOODBYE_TIMEOUT).await } => Ok(()),
            },
            Err(CarryError::Client(error)) => {
                // It takes no more, and may have said something before it left.
                let _in_time = tokio::time::timeout(GOODBYE_TIMEOUT, up).await;
                Err(CarryError::Client(error))
            }
            Err(error) => Err(error),
        },
    }
}

/// Whether the other side has taken it. Why it has not, the reading side knows.
async fn send(to_relay: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> bool {
    let sent = async {
        to_relay.write_all(bytes).await?;
        to_relay.flush().await
    };
    sent.await.is_ok()
}

/// Why nothing more comes from the relay.
fn failed(error: io::Error) -> CarryError {
    match end::told(&error) {
        Some(StreamEnd::Reset(reason)) => match ResetReason::parse(reason) {
            ResetReason::ProofRequired(sentence) => CarryError::Unauthorized(sentence.to_owned()),
            ResetReason::Database(_) => CarryError::Database(error),
            ResetReason::Client | ResetReason::Other(_) => CarryError::Refused(reason.clone()),
        },
        _ => CarryError::Tunnel(error),
    }
}
