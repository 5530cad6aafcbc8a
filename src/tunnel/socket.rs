//! The websocket to the message gateway: connect, TLS, signed upgrade, first frame.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use bastion_wire::port::CLIENT_VERSION;
use http::header::{DATE, HeaderName, HeaderValue};
use http::{StatusCode, Uri};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::json;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

use crate::network::{Io, Network};
use crate::tunnel::shared::Correction;
use crate::tunnel::{Control, ControlError};
use crate::types::{Partition, SessionGrant};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// A refused signature with clocks closer than this has another cause.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(240);
const FORBIDDEN: StatusCode = StatusCode::FORBIDDEN;
/// Frames of the agent are about 1.1 KiB; this is far above, and far below what could hurt.
const MESSAGE_MAX: usize = 4 << 20;
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
        let stream = dial(control.network(), &uri, &host, secure).await?;
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
    let timeout = || {
        let proxy = control.network().proxy_to(&host, uri.port_u16().unwrap_or(443), secure);
        let through = proxy.ok().flatten().map(|proxy| format!(" through {proxy}")).unwrap_or_default();
        let reason = format!("no websocket within {} s{through}", CONNECT_TIMEOUT.as_secs());
        SocketError::Connect { host: host.clone(), reason }
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

/// A connection to the gateway, through a proxy where the network has one.
async fn dial(network: &Network, uri: &Uri, host: &str, secure: bool) -> Result<Box<dyn Io>, SocketError> {
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let failed = |reason: String| SocketError::Connect { host: host.to_owned(), reason };
    network.connect(host, port, secure).await.map_err(failed)
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
    use bastion_sandbox::proxy::{Options, Proxy};

    use super::*;
    use crate::network::{Bundle, Proxies};
    use crate::tunnel::{BoxFuture, StartError};

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

    /// A control plane behind a proxy.
    struct Behind(Network);

    impl Control for Behind {
        fn network(&self) -> &Network {
            &self.0
        }

        fn sign_upgrade<'a>(
            &'a self,
            _: &'a str,
            _: SystemTime,
        ) -> BoxFuture<'a, Result<Vec<(String, SecretString)>, ControlError>> {
            Box::pin(std::future::ready(Ok(vec![("authorization".to_owned(), "signed".into())])))
        }

        fn start(&self, _: bool) -> BoxFuture<'_, Result<SessionGrant, StartError>> {
            Box::pin(std::future::ready(Err(StartError::Gone("no".to_owned()))))
        }

        fn resume<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Option<SessionGrant>, ControlError>> {
            Box::pin(std::future::ready(Ok(None)))
        }
    }

    #[tokio::test]
    async fn the_websocket_goes_through_a_proxy_that_looks_into_tls() {
        use futures_util::StreamExt as _;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gateway = listener.local_addr().unwrap();
        let served = async {
            let (stream, _) = listener.accept().await.unwrap();
            let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
            socket.next().await.unwrap().unwrap().into_text().unwrap().to_string()
        };
        let options = Options { inspects: true, credentials: Some("alice:S3CRET"), ..Options::default() };
        let proxy = Proxy::start(options, gateway).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.pem");
        std::fs::write(&file, proxy.ca()).unwrap();
        let url = format!("http://alice:S3CRET@{}", proxy.address());
        let proxies = Proxies::new(|name| (name == "HTTPS_PROXY").then(|| url.clone()));
        let control = Behind(Network::new(proxies, Some(Bundle::read("AWS_CA_BUNDLE", &file).unwrap())));
        let grant = SessionGrant {
            session_id: "s".to_owned(),
            token: "token".to_owned().into(),
            stream_url: "wss://ssmmessages.eu-west-1.amazonaws.com/v1/data-channel/s?role=x".to_owned().into(),
        };
        let (connected, first) =
            tokio::join!(connect(&grant, "c", &control, || SystemTime::UNIX_EPOCH, Correction::default()), served);
        assert!(connected.is_ok() && first.contains("\"TokenValue\":\"token\""), "{first}");
        assert_eq!(proxy.seen(), ["CONNECT ssmmessages.eu-west-1.amazonaws.com:443 HTTP/1.1"]);
    }
}
