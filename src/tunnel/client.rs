//! One local client, carried to a target: a stream of the link, or, where the relay knows no lanes, an upgrade on its
//! HTTP port; then bytes both ways.
//!
//! The target's name or the upgrade request and the client's first bytes travel together, so that it costs no round trip.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use secrecy::SecretString;
use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::link::Link;
use crate::tunnel::lanes::Lanes;
use crate::tunnel::upgrade::{self, UpgradeError};
use crate::tunnel::{ConnectError, ControlError, Tunnel};
use crate::types::{Engine, HEADER_TARGET, UPGRADE_CONN};
use crate::wire::authorize::PROOF_WANTED;
use crate::wire::downstream::Downstream;
use crate::wire::error_text::ErrorText;
use crate::wire::lane::link::StreamEnd;
use crate::wire::mysql::capability;
use crate::wire::pg::startup::{self, Opening};

/// Head and capabilities of a MySQL packet.
const HEAD: usize = 8;
const CHUNK: usize = 16 * 1024;
/// One read from a client for the link, which packs what it gets at once.
const LINK_CHUNK: usize = 48 * 1024;
/// A database client that has closed its side is gone; its answer may still be on the way.
const LINGER_DATABASE: Duration = Duration::from_secs(30);
/// Other protocols may half-close and wait.
const LINGER_TCP: Duration = Duration::from_secs(600);
/// What the relay's answers have for a lost connection too: MySQL's number (`mysqld_error.h`) and SQLSTATE, and the
/// SQLSTATE `connection_failure` of PostgreSQL.
const LOST_MYSQL: (u16, &str) = (1158, "08S01");
const LOST_POSTGRES: (u16, &str) = (0, "08006");
const LOOK: &str = "Look at the terminal where bastion runs; bastion status shows the task.";
const AGAIN: &str = "Connect again: the tunnel mends itself, or the terminal where bastion runs says why it cannot.";
/// For a client that is told about a failure and does not read.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a client was not carried to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CarryError {
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
    /// The relay does not know the token (any more), or wants something signed anew.
    #[error("{0}")]
    Unauthorized(String),
}

impl From<UpgradeError> for CarryError {
    fn from(error: UpgradeError) -> Self {
        match error {
            UpgradeError::Io(error) => Self::Tunnel(error),
            UpgradeError::NoAnswer(_) => Self::Refused(error.to_string()),
            UpgradeError::Refused { status: Some(401), sentence } => Self::Unauthorized(sentence),
            UpgradeError::Refused { sentence, .. } => Self::Refused(sentence),
        }
    }
}

/// Carries `client` to `target` until both sides are done. A cut tunnel is told to the client as an error of the protocol
/// that it speaks; in the middle of a message, in an encrypted session and for other engines by a reset; never by a clean
/// end.
///
/// # Errors
/// [`CarryError`], for the person at the terminal; the client knows already.
pub(crate) async fn carry(
    lanes: &Lanes,
    target: &str,
    engine: Engine,
    mut client: TcpStream,
) -> Result<(), CarryError> {
    let _present = lanes.present();
    // PostgreSQL clients speak first; their opening is kept so that a refusal can be answered in their protocol.
    let mut opening = BytesMut::new();
    if engine == Engine::Postgres && client.read_buf(&mut opening).await.map_err(CarryError::Client)? == 0 {
        return Ok(());
    }
    let mut began = Began::new(engine);
    let carried = with_proof(lanes, target, engine, &mut client, &opening, &mut began).await;
    if let Err(error) = &carried {
        // Databases may drop a client that has said goodbye; it hears nothing any more, and nothing is wrong.
        if began.closed && engine != Engine::Tcp && matches!(error, CarryError::Tunnel(_)) {
            tracing::debug!(target, %error, "after the client's end");
            return Ok(());
        }
        let text = error_text(target, engine, error);
        let stream = began.stream.as_ref().filter(|_| !began.hidden.load(Ordering::Relaxed));
        let last_words = stream.and_then(|stream| stream.last_words(&text));
        if let Some(last_words) = last_words.filter(|_| !matches!(error, CarryError::Client(_))) {
            let told = async {
                match began.down {
                    true => say(&mut client, &last_words).await,
                    false => tell(&mut client, engine, opening, &text).await,
                }
            };
            // Whoever does not read it cannot be helped.
            let _in_time = tokio::time::timeout(GOODBYE_TIMEOUT, told).await;
        } else {
            // A reset: the client must not take this for the end of its data.
            let _best_effort = SockRef::from(&client).set_linger(Some(Duration::ZERO));
        }
    }
    carried
}

/// Once more after another proof of who the caller is, if the relay asks for it: it does not know the token any more, or a
/// login as the caller needs a new signature. What it says after that is for the client.
async fn with_proof(
    lanes: &Lanes,
    target: &str,
    engine: Engine,
    client: &mut TcpStream,
    opening: &[u8],
    began: &mut Began,
) -> Result<(), CarryError> {
    let mut proven = false;
    loop {
        let link = lanes.ready().await?;
        let token = lanes.pass().token();
        let carried = match &link {
            Some(link) => over_link(link, target, client, opening, began).await,
            None => over_tunnel(&lanes.plain().await, token.as_ref(), target, engine, client, opening, began).await,
        };
        let again = matches!(carried, Err(CarryError::Unauthorized(_))) && !began.up && !began.down;
        if proven || !again {
            return carried;
        }
        lanes.pass().renew(token.as_ref()).await.map_err(CarryError::Pass)?;
        proven = true;
    }
}

/// What has gone through already, and cannot be taken back.
struct Began {
    /// The client has closed its side.
    closed: bool,
    /// Bytes of the client, besides its opening.
    up: bool,
    /// Bytes for the client.
    down: bool,
    /// Where those stand, if that can be known.
    stream: Option<Downstream>,
    /// The start of a MySQL client's first packet: its head and its capabilities.
    head: Option<Vec<u8>>,
    /// Those announce a stream that cannot be followed.
    hidden: AtomicBool,
}

impl Began {
    fn new(engine: Engine) -> Self {
        let stream = match engine {
            Engine::Mysql => Some(Downstream::mysql_login()),
            Engine::Postgres => Some(Downstream::postgres_login()),
            Engine::Tcp => None,
        };
        let head = (engine == Engine::Mysql).then(Vec::new);
        Self { closed: false, up: false, down: false, stream, head, hidden: AtomicBool::new(false) }
    }
}

/// Looks at what a client sends, on its way.
fn heard(began_up: &mut bool, head: &mut Option<Vec<u8>>, hidden: &AtomicBool, bytes: &[u8]) {
    *began_up = true;
    if let Some(head) = head.as_mut().filter(|head| head.len() < HEAD) {
        head.extend(bytes.iter().take(HEAD.saturating_sub(head.len())));
        hidden.store(capability::hides_the_rest(head), Ordering::Relaxed);
    }
}

/// Follows what a client was sent.
fn sent(began_down: &mut bool, stream: &mut Option<Downstream>, bytes: &[u8]) {
    *began_down = true;
    if let Some(stream) = stream {
        stream.pass(bytes);
    }
}

/// A stream of the link. Each direction ends on its own.
async fn over_link(
    link: &Link,
    target: &str,
    client: &mut TcpStream,
    opening: &[u8],
    began: &mut Began,
) -> Result<(), CarryError> {
    let full = || ConnectError::Ended(link.over().unwrap_or_else(|| "it has too many connections".to_owned()));
    let stream = link.open(target).ok_or_else(full)?;
    let (mut from_link, mut to_link) = tokio::io::split(stream);
    let (from_client, mut to_client) = client.split();
    let Began { closed, up: began_up, down: began_down, stream: followed, head, hidden } = began;
    let up = async {
        // Why a write fails, the reading side knows.
        let sent = async {
            to_link.write_all(opening).await?;
            to_link.flush().await
        };
        if sent.await.is_err() {
            return Ok(());
        }
        loop {
            from_client.readable().await.map_err(CarryError::Client)?;
            // Only while there is something to read: most clients are idle most of the time.
            let mut buffer = Vec::with_capacity(LINK_CHUNK);
            match from_client.try_read_buf(&mut buffer) {
                Ok(0) => break,
                Ok(_) => heard(began_up, head, hidden, &buffer),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(CarryError::Client(error)),
            }
            let sent = async {
                to_link.write_all(&buffer).await?;
                to_link.flush().await
            };
            if sent.await.is_err() {
                return Ok(());
            }
        }
        *closed = true;
        let _ended_already = to_link.shutdown().await;
        Ok(())
    };
    let down = async {
        let mut buffer = vec![0; CHUNK];
        loop {
            let length = from_link.read(&mut buffer).await.map_err(link_failed)?;
            if length == 0 {
                return to_client.shutdown().await.map_err(CarryError::Client);
            }
            let bytes = buffer.get(..length).unwrap_or_default();
            sent(began_down, followed, bytes);
            to_client.write_all(bytes).await.map_err(CarryError::Client)?;
        }
    };
    tokio::try_join!(up, down).map(|_| ())
}

/// Why a stream of the link broke.
fn link_failed(error: io::Error) -> CarryError {
    match error.get_ref().and_then(|error| error.downcast_ref()) {
        Some(StreamEnd::Reset(reason)) if reason.starts_with(PROOF_WANTED) => {
            CarryError::Unauthorized(reason.replacen(PROOF_WANTED, "", 1))
        }
        _ => CarryError::Tunnel(error),
    }
}

/// A stream of the tunnel, with the token that the relay asks for.
async fn over_tunnel(
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
    let mut first = upgrade::request(UPGRADE_CONN, token, &[(HEADER_TARGET, target)]);
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

fn error_text(target: &str, engine: Engine, error: &CarryError) -> ErrorText {
    let (number, sqlstate) = if engine == Engine::Mysql { LOST_MYSQL } else { LOST_POSTGRES };
    let (what, hint) = match error {
        CarryError::Client(_) | CarryError::Tunnel(_) => ("this connection has ended", AGAIN),
        CarryError::Connect(_) => ("it cannot be reached now", AGAIN),
        CarryError::Pass(_) | CarryError::Refused(_) | CarryError::Unauthorized(_) => ("no connection", LOOK),
    };
    let message = format!("bastion: target {target}: {what}: {error}");
    ErrorText { number, sqlstate: sqlstate.to_owned(), message, detail: String::new(), hint: hint.to_owned() }
}

/// Tells a client that has heard nothing yet. MySQL's reads an ERR packet in place of the greeting.
async fn tell(client: &mut TcpStream, engine: Engine, opening: BytesMut, text: &ErrorText) -> io::Result<()> {
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
async fn say(client: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    client.write_all(message).await?;
    client.shutdown().await?;
    let mut rest = [0; 512];
    while client.read(&mut rest).await? > 0 {}
    Ok(())
}

/// Answers a PostgreSQL client's TLS and GSSAPI requests with no, up to its startup: libpq shows no text of an error that
/// comes before. False if it has left, or only wanted to cancel.
async fn refuse_all_before_startup(client: &mut TcpStream, mut buffer: BytesMut) -> io::Result<bool> {
    loop {
        match startup::decode(&mut buffer) {
            Ok(None) => {
                if client.read_buf(&mut buffer).await? == 0 {
                    return Ok(false);
                }
            }
            Ok(Some(Opening::GssEncRequest | Opening::SslRequest)) => client.write_all(b"N").await?,
            Ok(Some(Opening::Cancel(_))) => return Ok(false),
            Ok(Some(Opening::DirectTls | Opening::Startup(_))) | Err(_) => return Ok(true),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mysql_client_that_will_encrypt_or_compress_is_followed_no_more() {
        let login = |capabilities: u32| [&[32, 0, 0, 1][..], &capabilities.to_le_bytes(), &[0; 24]].concat();
        for (engine, bytes, hidden) in [
            (Engine::Mysql, login(capability::NEEDED), false),
            (Engine::Mysql, login(capability::NEEDED | capability::SSL), true),
            (Engine::Mysql, login(capability::NEEDED | capability::COMPRESS), true),
            (Engine::Postgres, login(capability::SSL), false),
        ] {
            for cut in 1..=bytes.len() {
                let mut began = Began::new(engine);
                for piece in bytes.chunks(cut).chain([&[0xff; 64][..]]) {
                    heard(&mut began.up, &mut began.head, &began.hidden, piece);
                }
                assert!(began.up);
                assert_eq!(began.hidden.load(Ordering::Relaxed), hidden, "{engine:?} in pieces of {cut}");
            }
        }
    }
}
