//! From HTTP on the relay's port to something else: the request, and the head of its answer.

use std::io;
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use httparse::{EMPTY_HEADER, Response, Status};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::api::{self, Refusal, Upgrade};

/// For the answer: the relay waits for a login that is being made for 5 s at most, and not for the database.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// The head of an answer is a few hundred bytes, with a handful of headers.
const HEAD_MAX: usize = 8 * 1024;
const HEADERS_MAX: usize = 32;
/// An error body of the relay is a sentence.
const BODY_MAX: usize = 4 * 1024;

/// Why there is no upgrade.
#[derive(Debug, thiserror::Error)]
pub(super) enum UpgradeError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the relay did not answer within {0} s")]
    NoAnswer(u64),
    /// With the relay's sentence, and the HTTP status if there was one.
    #[error("{sentence}")]
    Refused { status: Option<u16>, sentence: String },
}

/// The request for an upgrade, with the token that the relay asks for. It is put together here, since the first bytes of the
/// upgraded connection follow it before there is an answer, which an HTTP client would wait for.
pub(super) fn request(upgrade: Upgrade, token: Option<&SecretString>, headers: &[(&str, &str)]) -> Vec<u8> {
    let (path, protocol) = (api::LANE, upgrade.token());
    let mut text = format!("GET {path} HTTP/1.1\r\nHost: bastion\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    if let Some(token) = token {
        text.push_str(&format!("Authorization: Bearer {}\r\n", token.expose_secret()));
    }
    text.push_str("\r\n");
    text.into_bytes()
}

/// Reads the answer to an upgrade, in bounded time; what follows it stays in `buffer`.
pub(super) async fn read_answer(
    stream: &mut (impl AsyncRead + Unpin),
    buffer: &mut BytesMut,
) -> Result<(), UpgradeError> {
    let head = tokio::time::timeout(ANSWER_TIMEOUT, read_head(stream, buffer));
    head.await.unwrap_or(Err(UpgradeError::NoAnswer(ANSWER_TIMEOUT.as_secs())))
}

async fn read_head(stream: &mut (impl AsyncRead + Unpin), buffer: &mut BytesMut) -> Result<(), UpgradeError> {
    let refused = |sentence: &str| UpgradeError::Refused { status: None, sentence: sentence.to_owned() };
    let (status, length) = loop {
        match head(buffer) {
            Ok(Status::Complete(Head { length, status, body })) => {
                buffer.advance(length);
                break (status, body.min(BODY_MAX));
            }
            Ok(Status::Partial) if buffer.len() <= HEAD_MAX => {}
            Ok(Status::Partial) | Err(_) => {
                return Err(refused("the relay answered with something that is not HTTP; is it a relay?"));
            }
        }
        if stream.read_buf(buffer).await? == 0 {
            return Err(refused("the relay closed the connection without an answer; it may be stopping"));
        }
    };
    if status == 101 {
        return Ok(());
    }
    while buffer.len() < length && stream.read_buf(buffer).await? > 0 {}
    let body = buffer.get(..length).unwrap_or_default();
    let sentence = serde_json::from_slice(body).ok().map(|Refusal { error }| error);
    let sentence = sentence.unwrap_or_else(|| match status {
        // A relay gives a reason with these, so it is one from before this address, or another program.
        400 | 404 | 426 => format!(
            "what listens in the task does not know connections of bastion (HTTP status {status}): update bastion in the \
             task"
        ),
        _ => format!(
            "the relay refused the connection with HTTP status {status} and no reason; look at the log of its task"
        ),
    });
    Err(UpgradeError::Refused { status: Some(status), sentence })
}

struct Head {
    length: usize,
    status: u16,
    /// The length of the body, as far as it is told.
    body: usize,
}

fn head(bytes: &[u8]) -> httparse::Result<Head> {
    let mut headers = [EMPTY_HEADER; HEADERS_MAX];
    let mut response = Response::new(&mut headers);
    let Status::Complete(length) = response.parse(bytes)? else { return Ok(Status::Partial) };
    let body = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let body = body.and_then(|header| std::str::from_utf8(header.value).ok()?.trim().parse().ok()).unwrap_or(0);
    Ok(Status::Complete(Head { length, status: response.code.unwrap_or_default(), body }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_refusal_says_why_or_where_to_look() {
        for (body, said) in [
            (r#"{"error":"prove who you are first"}"#, "prove who you are first"),
            (
                "busy",
                "the relay refused the connection with HTTP status 503 and no reason; look at the log of its task",
            ),
        ] {
            let answer = format!("HTTP/1.1 503 Service Unavailable\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            let refused = read_answer(&mut answer.as_bytes(), &mut BytesMut::new()).await.unwrap_err();
            assert!(matches!(refused, UpgradeError::Refused { status: Some(503), .. }), "{refused:?}");
            assert_eq!(refused.to_string(), said);
        }
    }
    #[tokio::test]
    async fn what_follows_a_good_answer_is_kept_and_anything_else_is_no_relay() {
        let read = async |mut answer: &[u8]| {
            let mut buffer = BytesMut::new();
            read_answer(&mut answer, &mut buffer).await.map_err(|error| error.to_string())?;
            buffer.extend_from_slice(answer);
            Ok::<_, String>(buffer)
        };
        let good = "HTTP/1.1 101 Switching Protocols\r\nupgrade: bastion-lane/1\r\n\r\nfirst";
        assert_eq!(read(good.as_bytes()).await.unwrap(), "first");
        for (bad, said) in [
            ("", "closed the connection without an answer"),
            ("HTTP/1.1 101 Switching Protocols\r\n", "closed the connection without an answer"),
            ("SSH-2.0-OpenSSH_9.2\r\n\r\n", "is not HTTP"),
            ("HTTP/1.1 101\u{0}\r\n\r\n", "is not HTTP"),
            (&format!("HTTP/1.1 101 Switching Protocols\r\nx: {}", "y".repeat(HEAD_MAX)), "is not HTTP"),
            (&format!("HTTP/1.1 101 Switching Protocols\r\n{}\r\n", "x: y\r\n".repeat(HEADERS_MAX + 1)), "is not HTTP"),
        ] {
            let error = read(bad.as_bytes()).await.unwrap_err();
            assert!(error.contains(said), "{bad:?}: {error}");
        }
    }
}
