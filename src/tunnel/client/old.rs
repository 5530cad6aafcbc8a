//! A client's connection to a relay that knows neither lanes nor ends: `bastion-conn/1`.

use bytes::BytesMut;
use secrecy::SecretString;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::api::{HEADER_TARGET, Upgrade};
use crate::tunnel::client::CarryError;
use crate::tunnel::client::began::{Began, heard, sent};
use crate::tunnel::client::exchange::{CHUNK, LINGER_TCP};
use crate::tunnel::{Tunnel, upgrade};
use crate::types::Engine;

/// A database client that has closed its side is gone; its answer may still be on the way.
const LINGER_DATABASE: std::time::Duration = std::time::Duration::from_secs(30);

/// A stream of the tunnel. Its only end is one that looks good.
pub(super) async fn over_tunnel(
    tunnel: &Tunnel,
    token: Option<&SecretString>,
    target: &str,
    engine: Engine,
    client: &mut TcpStream,
    opening: &[u8],
    began: &mut Began,
) -> Result<(), CarryError> {
    let linger = if engine == Engine::Tcp { LINGER_TCP } else { LINGER_DATABASE };
    let stream = tunnel.connect(linger)?;
    let (mut from_tunnel, mut to_tunnel) = tokio::io::split(stream);
    let (mut from_client, mut to_client) = client.split();
    let Began { closed, up: began_up, down: began_down, stream: followed, head, hidden } = began;
    let mut first = upgrade::request(Upgrade::ConnectionWithoutEnds, token, &[(HEADER_TARGET, target)]);
    first.extend_from_slice(opening);
    to_tunnel.write_all(&first).await.map_err(CarryError::Tunnel)?;
    let up = async {
        let mut buffer = vec![0; CHUNK];
        loop {
            match from_client.read(&mut buffer).await.map_err(CarryError::Client)? {
                0 => break,
                length => {
                    let bytes = buffer.get(..length).unwrap_or_default();
                    heard(began_up, head, hidden, bytes);
                    if to_tunnel.write_all(bytes).await.is_err() {
                        // The reading side knows why, and the client has not left.
                        return std::future::pending().await;
                    }
                }
            }
        }
        *closed = true;
        let _ended_already = to_tunnel.shutdown().await;
        std::future::pending::<Result<(), CarryError>>().await
    };
    let down = async {
        let mut buffer = BytesMut::with_capacity(CHUNK);
        upgrade::read_answer(&mut from_tunnel, &mut buffer).await?;
        loop {
            if !buffer.is_empty() {
                sent(began_down, followed, &buffer);
                to_client.write_all_buf(&mut buffer).await.map_err(CarryError::Client)?;
            }
            buffer.clear();
            buffer.reserve(CHUNK);
            if from_tunnel.read_buf(&mut buffer).await.map_err(CarryError::Tunnel)? == 0 {
                to_client.shutdown().await.map_err(CarryError::Client)?;
                return Ok(());
            }
        }
    };
    // smux closes both directions at once: when the answer has ended, so has the question.
    tokio::select! {
        ended = down => ended,
        failed = up => failed,
    }
}
