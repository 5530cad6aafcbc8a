//! The websocket to the message gateway: connect, TLS, signed upgrade, first frame.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::header::{DATE, HeaderName, HeaderValue};
use http::{StatusCode, Uri};
use rustls::pki_types::ServerName;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

use crate::tls;
use crate::tunnel::shared::Correction;
use crate::tunnel::{Control, ControlError};
use crate::types::{Partition, SessionGrant};
use crate::wire::port::CLIENT_VERSION;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// A refused signature with clocks closer than this has another cause.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(240);
const FORBIDDEN: StatusCode = StatusCode::FORBIDDEN;
/// Frames of the agent are about 1.1 KiB; this is far above, and far below what could hurt.
const MESSAGE_MAX: usize = 4 << 20;
pub(super) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

pub(super) type Socket = WebSocketStream<Box<dyn Io>>;

/// Why there is no socket. Holds no URL and no token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum SocketError {
    #[error("the clock of this machine is {0} s away from that of AWS; set it")]
    Clock(u64),
    #[error("cannot reach {host}: {reason}")]
    Connect { host: String, reason: String },
    #[error("cannot sign the upgrade: {0}")]
    Control(#[from] ControlError),
    #[error("the stream URL of the session points to {0:?}, which is not a Session Manager endpoint")]
    Foreign(String),
    #[error("{host} refused the websocket: {reason}")]
    Upgrade { host: String, reason: String },
}

/// Connects to the gateway of `grant` and opens its data channel. `client_id` stays the same over reconnects;
/// `wall_clock` is the time of day, `clock` how wrong it is known to be; what is known then is returned.
pub(super) async fn connect(
    grant: &SessionGrant,
    client_id: &str,
    control: &dyn Control,
    wall_clock: fn() -> SystemTime,
    clock: Correction,
) -> Result<(Socket, Correction), SocketError> {
    let url = grant.stream_url.expose_secret();
    let uri: Uri = url.parse().map_err(|_| SocketError::Foreign("something that is no URL".to_owned()))?;
    let host = uri.host().unwrap_or_default().to_owned();
    let secure = uri.scheme_str() == Some("wss");
    check_host(&host, secure)?;
    let attempt = async |now: SystemTime| {
        let headers = control.sign_upgrade(url, now).await?;
        let stream = dial(&uri, &host, secure).await?;
        upgrade(url, &host, headers, stream).await
    };
    let upgrading = async {
        let now = clock.now(wall_clock());
        match attempt(now).await? {
            Upgraded::Open(socket) => Ok((socket, clock)),
            // A signature is good for five minutes around its date. The calls of the SDK correct a wrong clock by the
            // date of the answer, so this does too: a laptop that everything else works on must not fail here.
            Upgraded::Forbidden(Some(date)) if apart(date, now) > CLOCK_TOLERANCE => {
                let corrected = Correction::new(wall_clock(), date);
                match attempt(date).await? {
                    Upgraded::Open(socket) => Ok((socket, corrected)),
                    Upgraded::Forbidden(_) => Err(SocketError::Clock(apart(date, now).as_secs())),
                }
            }
            Upgraded::Forbidden(_) => {
                Err(SocketError::Upgrade { host: host.clone(), reason: format!("HTTP status {FORBIDDEN}") })
            }
        }
    };
    let timeout = || SocketError::Connect {
        host: host.clone(),
        reason: format!("no websocket within {} s", CONNECT_TIMEOUT.as_secs()),
    };
    let (mut socket, clock) = tokio::time::timeout(CONNECT_TIMEOUT, upgrading).await.map_err(|_| timeout())??;
    open_data_channel(&mut socket, grant, client_id, &host).await?;
    Ok((*socket, clock))
}

/// Secrets go to AWS over TLS, or, for a stand-in on this machine, to loopback.
fn check_host(host: &str, secure: bool) -> Result<(), SocketError> {
    let allowed = match secure {
        true => Partition::owns(host),
        false => host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback()),
    };
    if allowed { Ok(()) } else { Err(SocketError::Foreign(host.to_owned())) }
}

async fn dial(uri: &Uri, host: &str, secure: bool) -> Result<Box<dyn Io>, SocketError> {
    let failed =
        |reason: &dyn std::fmt::Display| SocketError::Connect { host: host.to_owned(), reason: reason.to_string() };
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let stream = TcpStream::connect((host, port)).await.map_err(|error| failed(&error))?;
    stream.set_nodelay(true).map_err(|error| failed(&error))?;
    if !secure {
        return Ok(Box::new(stream));
    }
    let config = tls::laptop().map_err(|error| failed(&error))?;
    let name = ServerName::try_from(host.to_owned()).map_err(|error| failed(&error))?;
    let stream = TlsConnector::from(Arc::clone(&config)).connect(name, stream).await.map_err(|error| failed(&error))?;
    Ok(Box::new(stream))
}

/// What the gateway made of a signed upgrade.
enum Upgraded {
    Open(Box<Socket>),
    /// It does not accept the signature; with the date of its answer.
    Forbidden(Option<SystemTime>),
}

/// How far two clocks are apart.
fn apart(a: SystemTime, b: SystemTime) -> Duration {
    a.duration_since(b).unwrap_or_else(|error| error.duration())
}

async fn upgrade(
    url: &str,
    host: &str,
    headers: Vec<(String, SecretString)>,
    stream: Box<dyn Io>,
) -> Result<Upgraded, SocketError> {
    let refused = |reason: String| SocketError::Upgrade { host: host.to_owned(), reason };
    let mut request = url.into_client_request().map_err(|_| refused("the URL cannot be requested".to_owned()))?;
    for (name, value) in headers {
        let name = HeaderName::try_from(name).map_err(|_| refused("a signed header has no legal name".to_owned()))?;
        let mut value = HeaderValue::try_from(value.expose_secret())
            .map_err(|_| refused(format!("the signed header {name} has no legal value")))?;
        value.set_sensitive(true);
        request.headers_mut().insert(name, value);
    }
    let config = WebSocketConfig::default().max_message_size(Some(MESSAGE_MAX)).max_frame_size(Some(MESSAGE_MAX));
    match tokio_tungstenite::client_async_with_config(request, stream, Some(config)).await {
        Ok((socket, _)) => Ok(Upgraded::Open(Box::new(socket))),
        Err(WsError::Http(response)) if response.status() == FORBIDDEN => {
            let date = response.headers().get(DATE).and_then(|date| date.to_str().ok());
            Ok(Upgraded::Forbidden(date.and_then(|date| httpdate::parse_http_date(date).ok())))
        }
        Err(WsError::Http(response)) => Err(refused(format!("HTTP status {}", response.status()))),
        Err(error) => Err(refused(error.to_string())),
    }
}

/// The first frame. It has no answer: a refused token shows as a closed socket.
async fn open_data_channel(
    socket: &mut Socket,
    grant: &SessionGrant,
    client_id: &str,
    host: &str,
) -> Result<(), SocketError> {
    use futures_util::SinkExt as _;
    let text = json!({
        "MessageSchemaVersion": "1.0",
        "RequestId": uuid::Uuid::new_v4().to_string(),
        "TokenValue": grant.token.expose_secret(),
        "ClientId": client_id,
        "ClientVersion": CLIENT_VERSION,
    });
    let sent = tokio::time::timeout(CONNECT_TIMEOUT, socket.send(Message::text(text.to_string()))).await;
    match sent {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(SocketError::Upgrade { host: host.to_owned(), reason: error.to_string() }),
        Err(_) => Err(SocketError::Connect { host: host.to_owned(), reason: "it takes no data".to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_go_to_aws_or_to_this_machine_only() {
        for (host, secure) in [
            ("ssmmessages.eu-west-1.amazonaws.com", true),
            ("vpce-1.ssmmessages.eu-west-1.vpce.amazonaws.com", true),
            ("ssmmessages.cn-north-1.amazonaws.com.cn", true),
            ("ssmmessages.eusc-de-east-1.api.amazonwebservices.eu", true),
            ("127.0.0.1", false),
        ] {
            assert_eq!(check_host(host, secure), Ok(()), "{host}");
        }
        for (host, secure) in [
            ("evil.example.com", true),
            ("ssmmessages.eu-west-1.amazonaws.com.evil.example", true),
            ("notamazonaws.com", true),
            ("ssmmessages.eu-west-1.amazonaws.com", false),
            ("10.0.0.1", false),
            ("", false),
        ] {
            assert!(check_host(host, secure).is_err(), "{host}");
        }
    }
}
