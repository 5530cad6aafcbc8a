//! One bounded HTTP/1.1 request to an address of the configuration: STS, and the metadata of the task.

use std::sync::Arc;
use std::time::Duration;

use axum::http::header::{CONTENT_TYPE, HOST};
use axum::http::{HeaderValue, Request};
use bytes::Bytes;
use http_body_util::Full;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::http_client;
use crate::relay::upstream;

/// Where a request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HttpEndpoint {
    https: bool,
    host: String,
    port: u16,
    /// Without a slash at its end.
    path: String,
}

impl HttpEndpoint {
    /// `https://HOST[:PORT][/PATH]`; `http://` as well, which the caller must allow or not.
    pub(crate) fn parse(url: &str) -> Option<Self> {
        let (https, rest) = match url.split_once("://")? {
            ("https", rest) => (true, rest),
            ("http", rest) => (false, rest),
            _ => return None,
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) => (host, port.parse().ok()?),
            None => (authority, if https { 443 } else { 80 }),
        };
        let host_ok =
            !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
        let path_ok = path.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#".contains(&byte));
        let path = path.trim_end_matches('/');
        let path = if path.is_empty() { String::new() } else { format!("/{path}") };
        (host_ok && path_ok).then(|| Self { https, host: host.to_ascii_lowercase(), port, path })
    }

    /// Whether the way is safe: TLS, or an address of this machine.
    pub(crate) fn is_private(&self) -> bool {
        self.https || self.host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    }

    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// The value of `Host`.
    pub(crate) fn authority(&self) -> String {
        let usual = if self.https { 443 } else { 80 };
        if self.port == usual { self.host.clone() } else { format!("{}:{}", self.host, self.port) }
    }
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum FetchError {
    #[error("{0} cannot be reached: {1}")]
    Connect(String, String),
    #[error("{0} gave no whole answer: {1}")]
    Exchange(String, String),
    #[error("{0} did not answer within {1} s")]
    Timeout(String, u64),
}

/// The answer, whole.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) content_type: String,
    pub(super) body: Bytes,
}

/// Sends `request`, whose path and headers are the caller's but for `Host`. Cancel safe.
pub(super) async fn fetch(
    endpoint: &HttpEndpoint,
    tls: &Arc<ClientConfig>,
    request: Request<Full<Bytes>>,
    body_max: usize,
    timeout: Duration,
) -> Result<Answer, FetchError> {
    let answer = async {
        let stream =
            connect(endpoint, tls).await.map_err(|reason| FetchError::Connect(endpoint.authority(), reason))?;
        exchange(endpoint, stream, request, body_max)
            .await
            .map_err(|reason| FetchError::Exchange(endpoint.authority(), reason))
    };
    match tokio::time::timeout(timeout, answer).await {
        Ok(answer) => answer,
        Err(_) => Err(FetchError::Timeout(endpoint.authority(), timeout.as_secs())),
    }
}

/// Plain or with TLS.
trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

async fn connect(endpoint: &HttpEndpoint, tls: &Arc<ClientConfig>) -> Result<Box<dyn Io>, String> {
    let stream =
        TcpStream::connect((endpoint.host.as_str(), endpoint.port)).await.map_err(|error| error.to_string())?;
    upstream::tune(&stream);
    if !endpoint.https {
        return Ok(Box::new(stream));
    }
    let name = ServerName::try_from(endpoint.host.clone()).map_err(|error| error.to_string())?;
    let stream = TlsConnector::from(Arc::clone(tls)).connect(name, stream).await.map_err(|error| error.to_string())?;
    Ok(Box::new(stream))
}

async fn exchange(
    endpoint: &HttpEndpoint,
    stream: Box<dyn Io>,
    mut request: Request<Full<Bytes>>,
    body_max: usize,
) -> Result<Answer, String> {
    let host = HeaderValue::from_str(&endpoint.authority()).map_err(|error| error.to_string())?;
    request.headers_mut().insert(HOST, host);
    let answer = http_client::exchange(stream, request, body_max).await.map_err(|error| error.to_string())?;
    let (head, body) = answer.into_parts();
    let content_type = head.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    Ok(Answer { status: head.status.as_u16(), content_type: content_type.to_owned(), body })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_scheme_host_port_and_path() {
        let sts = HttpEndpoint::parse("https://STS.eu-west-1.amazonaws.com").unwrap();
        assert_eq!((sts.authority().as_str(), sts.path()), ("sts.eu-west-1.amazonaws.com", ""));
        assert!(sts.is_private());
        let metadata = HttpEndpoint::parse("http://169.254.170.2/v4/0123-456/").unwrap();
        assert_eq!((metadata.authority().as_str(), metadata.path()), ("169.254.170.2", "/v4/0123-456"));
        assert!(!metadata.is_private());
        let local = HttpEndpoint::parse("http://127.0.0.1:8443").unwrap();
        assert!(local.is_private() && local.authority() == "127.0.0.1:8443");
        for bad in
            ["", "sts.amazonaws.com", "ftp://x", "https://", "https://a@b", "https://a b", "https://a:b", "http://a/?x"]
        {
            assert_eq!(HttpEndpoint::parse(bad), None, "{bad}");
        }
    }
}
