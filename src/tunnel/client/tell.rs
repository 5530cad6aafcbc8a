//! The launcher's own words for a client that it can carry no further.

use std::io;

use bastion_wire::error_text::ErrorText;
use bastion_wire::pg::startup::{self, Opening};
use bytes::BytesMut;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::types::Engine;

/// Tells a client that has heard nothing yet. MySQL's reads an ERR packet in place of the greeting.
pub(super) async fn tell(
    client: &mut TcpStream,
    engine: Engine,
    opening: BytesMut,
    text: &ErrorText,
) -> io::Result<()> {
    if engine == Engine::Mysql {
        return say(client, &text.packet(0, false)).await;
    }
    if !refuse_all_before_startup(client, opening).await? {
        return Ok(());
    }
    let mut message = BytesMut::new();
    text.fields("FATAL").encode(&mut message);
    say(client, &message).await
}

/// The last message, and then the end of the stream. Waits until the client has read it: unread input of ours would turn
/// the close into a reset.
pub(super) async fn say(client: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    client.write_all(message).await?;
    client.shutdown().await?;
    let mut rest = [0; 512];
    while client.read(&mut rest).await? > 0 {}
    Ok(())
}

/// Answers a PostgreSQL client's TLS and GSSAPI requests with no, up to its startup: libpq shows no text of an error that
/// comes before. False if it has left, only wanted to cancel, or does not speak in clear or not the protocol: whoever gets no
/// answer from the server itself gets none here.
async fn refuse_all_before_startup(client: &mut TcpStream, mut buffer: BytesMut) -> io::Result<bool> {
    loop {
        match startup::decode(&mut buffer) {
            Ok(None) => {
                if client.read_buf(&mut buffer).await? == 0 {
                    return Ok(false);
                }
            }
            Ok(Some(Opening::GssEncRequest | Opening::SslRequest)) => client.write_all(b"N").await?,
            Ok(Some(Opening::Cancel(_) | Opening::DirectTls)) | Err(_) => return Ok(false),
            Ok(Some(Opening::Layout(_) | Opening::Startup(_) | Opening::Unsupported(_))) => return Ok(true),
        }
    }
}
