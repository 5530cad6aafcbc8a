//! One HTTP/1.1 request over a stream of its own, and its whole answer: no redirects, no second request.

use std::pin::pin;

use bytes::Bytes;
use http::header::CONNECTION;
use http::{HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

/// Status line and headers of an answer.
const HEAD_MAX: usize = 16 * 1024;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExchangeError {
    #[error("{}", with_cause(.0))]
    Http(#[from] hyper::Error),
    /// Longer than was asked for, or cut short.
    #[error("{0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
}

/// hyper's own words do not say what went wrong below it.
fn with_cause(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// Sends `request`, which has to name its `Host`, and reads an answer whose body is no longer than `body_max`. Cancel safe.
///
/// # Errors
/// [`ExchangeError`]; the server may have seen the request.
pub(crate) async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    mut request: Request<Full<Bytes>>,
    body_max: usize,
) -> Result<Response<Bytes>, ExchangeError> {
    request.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    let mut builder = http1::Builder::new();
    builder.max_buf_size(HEAD_MAX);
    let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
    let mut connection = pin!(connection);
    let mut exchange = pin!(async {
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = Limited::new(body, body_max).collect().await.map_err(ExchangeError::Body)?;
        Ok(Response::from_parts(head, body.to_bytes()))
    });
    tokio::select! {
        answer = &mut exchange => answer,
        // What it has read may not have been taken yet.
        _ended = &mut connection => exchange.await,
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    /// What comes of an answer with these bytes, of whose body 10 are wanted.
    async fn answered(answer: &str) -> Result<(u16, Bytes), String> {
        let (near, mut far) = duplex(1024);
        let request = Request::get("/x").header("host", "relay").body(Full::default()).unwrap();
        let server = async {
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                far.read_buf(&mut asked).await.unwrap();
            }
            far.write_all(answer.as_bytes()).await.unwrap();
            drop(far);
            String::from_utf8(asked).unwrap()
        };
        let (asked, answer) = tokio::join!(server, exchange(near, request, 10));
        assert_eq!(asked, "GET /x HTTP/1.1\r\nhost: relay\r\nconnection: close\r\n\r\n");
        answer.map(|answer| (answer.status().as_u16(), answer.into_body())).map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn an_answer_is_whole_or_none() {
        let good = |body: &'static str| Ok((200, Bytes::from(body)));
        assert_eq!(answered("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await, good("ok"));
        assert_eq!(answered("HTTP/1.1 200 OK\r\n\r\nuntil the end".get(..23).unwrap()).await, good("unti"));
        let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
        assert_eq!(answered(chunked).await, good("abcde"));
        for (bad, said) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\nhello world", "length limit exceeded"),
            ("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello", "error reading a body from connection"),
            ("SSH-2.0-OpenSSH_9.2\r\n", "invalid HTTP version parsed"),
            ("", "connection closed before message completed"),
        ] {
            let error = answered(bad).await.unwrap_err();
            assert!(error.contains(said), "{bad}: {error}");
        }
    }
}
