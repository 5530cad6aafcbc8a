//! One local client, carried to a target: upgrade on the relay's HTTP port, then bytes both ways.
//!
//! The upgrade request and the client's first bytes travel together, so that it costs no round trip.

use std::io;
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use secrecy::{ExposeSecret as _, SecretString};
use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::tunnel::{ConnectError, ControlError, Pass, State, Tunnel};
use crate::types::{Engine, HEADER_TARGET, UPGRADE_CONN};
use crate::wire::pg::message::ErrorFields;
use crate::wire::pg::startup::{self, Opening};

/// The head of an answer is a few hundred bytes.
const HEAD_MAX: usize = 8 * 1024;
/// An error body of the relay is a sentence.
const BODY_MAX: usize = 4 * 1024;
const CHUNK: usize = 16 * 1024;
/// A database client that has closed its side is gone; its answer may still be on the way.
const LINGER_DATABASE: Duration = Duration::from_secs(30);
/// Other protocols may half-close and wait.
const LINGER_TCP: Duration = Duration::from_secs(600);
/// A new client waits so long for a lost link to come back: longer than a reconnect takes, shorter than a person waits.
const OUTAGE_PATIENCE: Duration = Duration::from_secs(15);
/// And so long for a task to start; its own time limit is most likely shorter, and its next try finds the task running.
const WAKE_PATIENCE: Duration = Duration::from_secs(300);
/// For a client that is told about a failure and does not read.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a client was not carried to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LaneError {
    #[error("the local client is gone: {0}")]
    Client(io::Error),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("you could not prove again who you are: {0}")]
    Pass(ControlError),
    /// What the relay said.
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    Tunnel(io::Error),
    /// The relay does not know the token (any more).
    #[error("{0}")]
    Unauthorized(String),
}

/// Carries `client` to `target` until both sides are done. A cut tunnel is told to the client: as an ErrorResponse
/// before its login where it speaks PostgreSQL, otherwise by a reset, never by a clean end.
///
/// # Errors
/// [`LaneError`], for the person at the terminal; the client knows already.
pub(crate) async fn carry(
    tunnel: &Tunnel,
    pass: &dyn Pass,
    target: &str,
    engine: Engine,
    mut client: TcpStream,
) -> Result<(), LaneError> {
    // PostgreSQL clients speak first; their opening is kept so that a refusal can be answered in their protocol.
    let mut opening = BytesMut::with_capacity(CHUNK);
    if engine == Engine::Postgres && client.read_buf(&mut opening).await.map_err(LaneError::Client)? == 0 {
        return Ok(());
    }
    let mut began = Began::default();
    let token = pass.token();
    let mut carried = run(tunnel, token.as_ref(), target, engine, &mut client, &opening, &mut began).await;
    if matches!(carried, Err(LaneError::Unauthorized(_))) && !began.up {
        carried = match pass.renew(token.as_ref()).await {
            Ok(()) => run(tunnel, pass.token().as_ref(), target, engine, &mut client, &opening, &mut began).await,
            Err(error) => Err(LaneError::Pass(error)),
        };
    }
    if let Err(error) = &carried {
        if engine == Engine::Postgres && !began.down && !matches!(error, LaneError::Client(_)) {
            let told = tell(&mut client, opening, error);
            // Whoever does not read it cannot be helped.
            let _in_time = tokio::time::timeout(GOODBYE_TIMEOUT, told).await;
        } else {
            // A reset: the client must not take this for the end of its data.
            let _best_effort = SockRef::from(&client).set_linger(Some(Duration::ZERO));
        }
    }
    carried
}

/// What has gone through already, and cannot be taken back.
#[derive(Default)]
struct Began {
    /// Bytes of the client, besides its opening.
    up: bool,
    /// Bytes for the client.
    down: bool,
}

async fn run(
    tunnel: &Tunnel,
    token: Option<&SecretString>,
    target: &str,
    engine: Engine,
    client: &mut TcpStream,
    opening: &[u8],
    began: &mut Began,
) -> Result<(), LaneError> {
    let linger = if engine == Engine::Tcp { LINGER_TCP } else { LINGER_DATABASE };
    let asleep = matches!(*tunnel.state().borrow(), State::Asleep { .. } | State::Waking { .. });
    tunnel.up(if asleep { WAKE_PATIENCE } else { OUTAGE_PATIENCE }).await?;
    let stream = tunnel.connect(linger)?;
    let (mut from_tunnel, mut to_tunnel) = tokio::io::split(stream);
    let (mut from_client, mut to_client) = client.split();
    let Began { up: began_up, down: began_down } = began;
    let authorization =
        token.map(|token| format!("Authorization: Bearer {}\r\n", token.expose_secret())).unwrap_or_default();
    let mut first = format!(
        "GET /v1/lane HTTP/1.1\r\nHost: bastion\r\nConnection: Upgrade\r\nUpgrade: {UPGRADE_CONN}\r\n{HEADER_TARGET}: {target}\r\n{authorization}\r\n"
    )
    .into_bytes();
    first.extend_from_slice(opening);
    to_tunnel.write_all(&first).await.map_err(LaneError::Tunnel)?;
    let up = async {
        let mut buffer = vec![0; CHUNK];
        loop {
            match from_client.read(&mut buffer).await.map_err(LaneError::Client)? {
                0 => break,
                length => {
                    *began_up = true;
                    let bytes = buffer.get(..length).unwrap_or_default();
                    if to_tunnel.write_all(bytes).await.is_err() {
                        // The reading side knows why.
                        break;
                    }
                }
            }
        }
        let _ended_already = to_tunnel.shutdown().await;
        std::future::pending::<Result<(), LaneError>>().await
    };
    let down = async {
        let mut buffer = BytesMut::with_capacity(CHUNK);
        read_head(&mut from_tunnel, &mut buffer).await?;
        loop {
            if !buffer.is_empty() {
                *began_down = true;
                to_client.write_all_buf(&mut buffer).await.map_err(LaneError::Client)?;
            }
            buffer.clear();
            buffer.reserve(CHUNK);
            if from_tunnel.read_buf(&mut buffer).await.map_err(LaneError::Tunnel)? == 0 {
                to_client.shutdown().await.map_err(LaneError::Client)?;
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

/// Reads the answer to the upgrade; what follows it stays in `buffer`.
async fn read_head(stream: &mut (impl tokio::io::AsyncRead + Unpin), buffer: &mut BytesMut) -> Result<(), LaneError> {
    let malformed =
        || LaneError::Refused("the relay answered with something that is not HTTP; is it a relay?".to_owned());
    let end = loop {
        if let Some(at) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break at.saturating_add(4);
        }
        if buffer.len() > HEAD_MAX {
            return Err(malformed());
        }
        if stream.read_buf(buffer).await.map_err(LaneError::Tunnel)? == 0 {
            return Err(LaneError::Refused(
                "the relay closed the connection without an answer; it may be stopping".to_owned(),
            ));
        }
    };
    let head = String::from_utf8_lossy(buffer.get(..end).unwrap_or_default()).into_owned();
    buffer.advance(end);
    let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).ok_or_else(malformed)?;
    if status == "101" {
        return Ok(());
    }
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        if name.eq_ignore_ascii_case("content-length") { value.trim().parse::<usize>().ok() } else { None }
    });
    let length = length.unwrap_or(0).min(BODY_MAX);
    while buffer.len() < length && stream.read_buf(buffer).await.map_err(LaneError::Tunnel)? > 0 {}
    let sentence = serde_json::from_slice::<serde_json::Value>(buffer.get(..length).unwrap_or_default())
        .ok()
        .and_then(|body| body.get("error")?.as_str().map(str::to_owned));
    let sentence = sentence.unwrap_or_else(|| format!("the relay refused the connection with HTTP status {status}"));
    Err(if status == "401" { LaneError::Unauthorized(sentence) } else { LaneError::Refused(sentence) })
}

/// Answers a PostgreSQL client that has had no answer yet: its TLS and GSSAPI requests with no, its startup with the
/// error. libpq shows no text of an error that comes before.
async fn tell(client: &mut TcpStream, mut buffer: BytesMut, error: &LaneError) -> io::Result<()> {
    loop {
        match startup::decode(&mut buffer) {
            Ok(None) => {
                if client.read_buf(&mut buffer).await? == 0 {
                    return Ok(());
                }
            }
            Ok(Some(Opening::GssEncRequest | Opening::SslRequest)) => client.write_all(b"N").await?,
            Ok(Some(Opening::Cancel(_))) => return Ok(()),
            Ok(Some(Opening::DirectTls | Opening::Startup(_))) | Err(_) => break,
        }
    }
    let fields = ErrorFields {
        severity: "FATAL".to_owned(),
        code: "08006".to_owned(),
        message: format!("bastion: {error}"),
        detail: String::new(),
        hint: "Look at the terminal where bastion runs; bastion status shows the task.".to_owned(),
    };
    let mut packet = BytesMut::new();
    fields.encode(&mut packet);
    client.write_all(&packet).await?;
    client.shutdown().await?;
    let mut rest = [0; 512];
    while client.read(&mut rest).await? > 0 {}
    Ok(())
}
