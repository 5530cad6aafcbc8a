//! A connection to a host of AWS, directly or by `CONNECT` through a proxy (RFC 9110, section 9.3.6).

use std::sync::Arc;

use http::Uri;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::network::{Network, Proxy};

/// More than any proxy says before a tunnel is open.
const ANSWER_MAX: usize = 16 * 1024;

/// A byte stream, whatever is below it.
pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

impl Network {
    /// Opens a connection to `host`, with TLS if `secure`.
    ///
    /// # Errors
    /// A sentence that names the proxy, if there is one.
    pub(crate) async fn connect(&self, host: &str, port: u16, secure: bool) -> Result<Box<dyn Io>, String> {
        let stream: Box<dyn Io> = match self.proxy_to(host, port, secure)? {
            None => Box::new(tcp(host, port).await?),
            Some(proxy) => self.tunnel(&proxy, host, port).await?,
        };
        if secure { self.wrap(host, stream).await } else { Ok(stream) }
    }

    /// The proxy to a host.
    ///
    /// # Errors
    /// As [`crate::network::Proxies::to`].
    pub(crate) fn proxy_to(&self, host: &str, port: u16, secure: bool) -> Result<Option<Proxy>, String> {
        let scheme = if secure { "https" } else { "http" };
        let uri: Uri = format!("{scheme}://{host}:{port}/").parse().map_err(|_| format!("{host:?} is no host"))?;
        self.proxies.to(&uri)
    }

    async fn wrap(&self, host: &str, stream: Box<dyn Io>) -> Result<Box<dyn Io>, String> {
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned()).map_err(|error| error.to_string())?;
        let connector = TlsConnector::from(Arc::clone(&self.tls()?));
        let stream = connector.connect(name, stream).await.map_err(|error| certificate_hint(&error.to_string()))?;
        Ok(Box::new(stream))
    }

    async fn tunnel(&self, proxy: &Proxy, host: &str, port: u16) -> Result<Box<dyn Io>, String> {
        let failed = |why: String| format!("{proxy} {why}");
        let secure = proxy.uri.scheme_str() == Some("https");
        let at = proxy.uri.host().unwrap_or_default();
        let proxy_port = proxy.uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let unreachable = |why: String| failed(format!("cannot be reached: {why}"));
        let mut stream: Box<dyn Io> = Box::new(tcp(at, proxy_port).await.map_err(unreachable)?);
        if secure {
            stream = self.wrap(at, stream).await.map_err(unreachable)?;
        }
        let mut request = format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n").into_bytes();
        if let Some(authorization) = &proxy.authorization {
            request.extend([b"Proxy-Authorization: ", authorization.as_bytes(), b"\r\n"].concat());
        }
        request.extend(b"\r\n");
        stream.write_all(&request).await.map_err(|error| failed(format!("takes no request: {error}")))?;
        let answer = answer(&mut stream).await.map_err(|error| failed(format!("gives no answer: {error}")))?;
        match status(&answer) {
            Some(200..=299) => Ok(stream),
            Some(407) => {
                let variable = proxy.variable;
                let wants = if proxy.authorization.is_some() {
                    "does not accept the user name and password of"
                } else {
                    "wants a user name and a password (HTTP status 407), which are not in"
                };
                Err(failed(format!("{wants} {variable}; write {variable}=http://USER:PASSWORD@HOST:PORT")))
            }
            Some(status) => Err(failed(format!("does not let through to {host}:{port}: HTTP status {status}"))),
            None => Err(failed("does not speak HTTP".to_owned())),
        }
    }
}

async fn tcp(host: &str, port: u16) -> Result<TcpStream, String> {
    let host = host.trim_matches(['[', ']']);
    let stream = TcpStream::connect((host, port)).await.map_err(|error| error.to_string())?;
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    Ok(stream)
}

/// The head of the answer, byte by byte: what follows belongs to the tunnel.
async fn answer(stream: &mut Box<dyn Io>) -> std::io::Result<Vec<u8>> {
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") && answer.len() < ANSWER_MAX {
        answer.push(stream.read_u8().await?);
    }
    Ok(answer)
}

fn status(answer: &[u8]) -> Option<u16> {
    let line = std::str::from_utf8(answer.split(|byte| *byte == b'\r').next()?).ok()?;
    let mut words = line.split(' ');
    words.next().filter(|version| version.starts_with("HTTP/1."))?;
    words.next()?.parse().ok()
}

/// What TLS says, and what to do where the cause is a proxy that answers itself.
fn certificate_hint(said: &str) -> String {
    match said.contains("UnknownIssuer") {
        true => format!("{said} (if a proxy here inspects TLS, set AWS_CA_BUNDLE to a PEM file with its CA)"),
        false => said.to_owned(),
    }
}
