//! One local client, carried to a target: a stream of the link, or, where the relay knows no lanes, an upgrade on its
//! HTTP port; then bytes both ways.
//!
//! The target's name or the upgrade request and the client's first bytes travel together, so that it costs no round trip.

mod began;
mod exchange;
mod old;
mod tell;

use std::io;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bastion_wire::end::{End, How, Notice, Who};
use bastion_wire::error_text::ErrorText;
use bytes::BytesMut;
use socket2::SockRef;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use crate::link::end;
use crate::tunnel::client::began::Began;
use crate::tunnel::lanes::Lanes;
use crate::tunnel::upgrade::UpgradeError;
use crate::tunnel::{ConnectError, ControlError};
use crate::types::Engine;

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
    /// The database has reset the connection.
    #[error("{0}")]
    Database(io::Error),
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

impl CarryError {
    /// Who ended the connection and how.
    pub(crate) fn end(&self) -> End {
        match self {
            Self::Client(_) => End::new(Who::Client, How::Reset),
            Self::Connect(_) => End::new(Who::Tunnel, How::Refused),
            Self::Database(_) => End::new(Who::Database, How::Reset),
            Self::Pass(_) => End::new(Who::Launcher, How::Refused),
            Self::Refused(_) | Self::Unauthorized(_) => End::new(Who::Relay, How::Refused),
            Self::Tunnel(error) => end::of_relay(error),
        }
    }
}

/// Carries `client` to `target` until both sides are done. What the client notices of another end than its own,
/// [`bastion_wire::end`] says; errors of ours are told in the protocol that it speaks; in the middle of a message, in an
/// encrypted session and for other engines by a reset; never by a clean end.
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
    let carried = with_proof(lanes, target, engine, &mut client, &mut opening, &mut began).await;
    if let Err(error) = &carried {
        // Databases may drop a client that has said goodbye; it hears nothing any more, and nothing is wrong.
        let dropped = matches!(error, CarryError::Database(_) | CarryError::Refused(_) | CarryError::Tunnel(_));
        if began.closed && engine != Engine::Tcp && dropped {
            tracing::debug!(target, %error, "after the client's end");
            return Ok(());
        }
        let text = error_text(target, engine, error, began.down);
        let stream = began.stream.as_ref().filter(|_| !began.hidden.load(Ordering::Relaxed));
        let last_words = stream.and_then(|stream| stream.last_words(&text));
        if let Some(last_words) = last_words.filter(|_| error.end().notice() == Notice::Error) {
            let told = async {
                match began.down {
                    true => tell::say(&mut client, &last_words).await,
                    false => tell::tell(&mut client, engine, opening, &text).await,
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
    opening: &mut BytesMut,
    began: &mut Began,
) -> Result<(), CarryError> {
    let mut proven = false;
    loop {
        let link = lanes.ready().await?;
        let token = lanes.pass().token();
        let carried = match &link {
            Some(link) => exchange::over_link(link, target, client, opening, began).await,
            None => over_tunnel(lanes, target, engine, client, opening, began).await,
        };
        let again = matches!(carried, Err(CarryError::Unauthorized(_))) && !began.up && !began.down;
        if proven || !again {
            return carried;
        }
        lanes.pass().renew(token.as_ref()).await.map_err(CarryError::Pass)?;
        proven = true;
    }
}

/// The plain way, which a relay may know in its newer form or in its older one only.
async fn over_tunnel(
    lanes: &Lanes,
    target: &str,
    engine: Engine,
    client: &mut TcpStream,
    opening: &mut BytesMut,
    began: &mut Began,
) -> Result<(), CarryError> {
    let (tunnel, token) = (lanes.plain().await, lanes.pass().token());
    let token = token.as_ref();
    if lanes.tells_ends() {
        if exchange::over_tunnel(&tunnel, token, target, engine, client, opening, began).await? {
            return Ok(());
        }
        lanes.tells_no_ends();
    }
    old::over_tunnel(&tunnel, token, target, engine, client, opening, began).await
}

/// `has_begun`: the client has heard something already.
fn error_text(target: &str, engine: Engine, error: &CarryError, has_begun: bool) -> ErrorText {
    let (number, sqlstate) = if engine == Engine::Mysql { LOST_MYSQL } else { LOST_POSTGRES };
    let (what, hint) = match error {
        CarryError::Client(_) | CarryError::Database(_) | CarryError::Tunnel(_) => ("this connection has ended", AGAIN),
        CarryError::Connect(_) => ("it cannot be reached now", AGAIN),
        CarryError::Refused(_) if has_begun => ("this connection has ended", AGAIN),
        CarryError::Pass(_) | CarryError::Refused(_) | CarryError::Unauthorized(_) => ("no connection", LOOK),
    };
    let message = format!("bastion: target {target}: {what}: {error}");
    ErrorText { number, sqlstate: sqlstate.to_owned(), message, detail: String::new(), hint: hint.to_owned() }
}
