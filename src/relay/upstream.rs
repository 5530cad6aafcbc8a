//! The way to the database: look up, dial, TLS with full verification.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{CertificateError, ClientConfig};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::relay::error::{DialError, UpstreamTlsError};
use crate::tls;
use crate::types::{Address, Endpoint, Target};

/// First probe after a minute, then every 15 s, dead after four: below the idle limits of NAT gateways (350 s).
const KEEPALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(15)).with_retries(4);

/// Settings of every socket: small messages leave at once, dead peers are noticed.
pub(super) fn tune(stream: &TcpStream) {
    // Neither can fail on a connected socket in a way that matters; without them the connection still works.
    let _best_effort = stream.set_nodelay(true);
    let _best_effort = SockRef::from(stream).set_tcp_keepalive(&KEEPALIVE);
}

/// Connects to the target, in whatever time it takes. The name is looked up anew for each connection: that is how a
/// failover is followed.
pub(super) async fn dial(target: &Target) -> Result<TcpStream, DialError> {
    let Endpoint::Fixed(Address { host, port }) = &target.endpoint else { return Err(DialError::NoAddress) };
    let addresses: Vec<SocketAddr> = match target.hostaddr {
        Some(address) => vec![SocketAddr::new(address, *port)],
        None => tokio::net::lookup_host((host.as_str(), *port))
            .await
            .map_err(|error| DialError::Resolve(error.to_string()))?
            .collect(),
    };
    let mut last = DialError::Resolve("the name has no address".to_owned());
    for address in addresses {
        if is_link_local(address.ip()) {
            last = DialError::LinkLocal(address.ip());
            continue;
        }
        match TcpStream::connect(address).await {
            Ok(stream) => {
                tune(&stream);
                return Ok(stream);
            }
            Err(error) => last = DialError::Connect { address, reason: error.to_string() },
        }
    }
    Err(last)
}

/// Where a task finds its own metadata and the credentials of its role (169.254.170.2, `fd00:ec2::…`): no database is
/// there, and whoever could have the relay dial it would read them.
fn is_link_local(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => {
            let [first, second, ..] = address.segments();
            address.is_unicast_link_local() || (first, second) == (0xfd00, 0x0ec2)
        }
    }
}

/// Does TLS as the client and verifies chain and name, in whatever time it takes; also gives the certificate's channel
/// binding.
pub(super) async fn start_tls(
    stream: TcpStream,
    target: &Target,
    config: &Arc<ClientConfig>,
) -> Result<(TlsStream<TcpStream>, Option<Vec<u8>>), UpstreamTlsError> {
    let host = target.endpoint.host().ok_or(UpstreamTlsError::BadName)?;
    let name = ServerName::try_from(host.to_owned()).map_err(|_| UpstreamTlsError::BadName)?;
    let connecting = TlsConnector::from(Arc::clone(config)).connect(name, stream).await;
    let stream = connecting.map_err(|error| classify(&error))?;
    let certificates = stream.get_ref().1.peer_certificates();
    let binding = certificates.and_then(<[_]>::first).and_then(tls::server_end_point);
    Ok((stream, binding))
}

fn classify(error: &std::io::Error) -> UpstreamTlsError {
    let rustls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match rustls {
        Some(rustls::Error::InvalidCertificate(reason)) => match reason {
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                UpstreamTlsError::OtherName
            }
            CertificateError::UnknownIssuer => UpstreamTlsError::UnknownIssuer,
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => UpstreamTlsError::Expired,
            other => UpstreamTlsError::Certificate(other.to_string()),
        },
        Some(other) => UpstreamTlsError::Handshake(other.to_string()),
        None => UpstreamTlsError::Handshake(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{CredentialConfig, Engine};

    #[tokio::test]
    async fn a_target_at_the_credentials_of_the_task_is_not_dialled() {
        for text in ["169.254.170.2", "169.254.169.254", "::ffff:169.254.170.2", "fe80::1", "fd00:ec2::254"] {
            let target = Target {
                name: "thief".to_owned(),
                engine: Engine::Tcp,
                endpoint: Endpoint::Fixed(Address { host: "thief.example.com".to_owned(), port: 80 }),
                hostaddr: Some(text.parse().unwrap()),
                database: None,
                read_only: false,
                local_infile: false,
                max_connections: None,
                local_port: None,
                relay_port: 8080,
                credential: CredentialConfig::Client,
            };
            let error = dial(&target).await.unwrap_err();
            assert!(matches!(error, DialError::LinkLocal(_)), "{text}: {error:?}");
        }
        for text in ["10.0.0.1", "127.0.0.1", "fd00:ec3::1", "2001:db8::1"] {
            assert!(!is_link_local(text.parse().unwrap()), "{text}");
        }
    }
}
