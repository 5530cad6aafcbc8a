//! From HTTP on the relay's port to something else: the request, and the head of its answer.

use std::io;
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// For the answer: the relay waits for a login that is being made for 5 s at most, and not for the database.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// The head of an answer is a few hundred bytes.
const HEAD_MAX: usize = 8 * 1024;
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

/// The request for an upgrade to `protocol`, with the token that the relay asks for.
pub(super) fn request(protocol: &str, token: Option<&SecretString>, headers: &[(&str, &str)]) -> Vec<u8> {
    let mut text = format!("GET /v1/lane HTTP/1.1\r\nHost: bastion\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n");
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
    let malformed = || refused("the relay answered with something that is not HTTP; is it a relay?");
    let end = loop {
        if let Some(at) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break at.saturating_add(4);
        }
        if buffer.len() > HEAD_MAX {
            return Err(malformed());
        }
        if stream.read_buf(buffer).await? == 0 {
            return Err(refused("the relay closed the connection without an answer; it may be stopping"));
        }
    };
    let head = String::from_utf8_lossy(buffer.get(..end).unwrap_or_default()).into_owned();
    buffer.advance(end);
    let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse::<u16>().ok());
    let status = status.ok_or_else(malformed)?;
    if status == 101 {
        return Ok(());
    }
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        if name.eq_ignore_ascii_case("content-length") { value.trim().parse::<usize>().ok() } else { None }
    });
    let length = length.unwrap_or(0).min(BODY_MAX);
    while buffer.len() < length && stream.read_buf(buffer).await? > 0 {}
    let sentence = serde_json::from_slice::<serde_json::Value>(buffer.get(..length).unwrap_or_default())
        .ok()
        .and_then(|body| body.get("error")?.as_str().map(str::to_owned));
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
}
