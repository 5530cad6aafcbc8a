//! The signature of a Session Manager websocket upgrade: Signature Version 4 in headers, service `ssmmessages`, no body
//! (AWS General Reference, "Signature Version 4"; session-manager-plugin 1.2.764.0 and newer sign the upgrade so).

use std::time::SystemTime;

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningSettings, sign};
use aws_sigv4::sign::v4;
use secrecy::SecretString;

const SERVICE: &str = "ssmmessages";

/// Why a URL could not be signed. It never holds the URL, which carries the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum SignError {
    #[error("the stream URL is not a valid URL with a host")]
    Url,
    #[error("the stream URL cannot be signed")]
    Sign,
}

/// `Authorization`, `X-Amz-Date` and, with a session token, `X-Amz-Security-Token` for the GET of `url`; nothing if the
/// URL is presigned.
pub(super) fn upgrade_headers(
    url: &str,
    region: &str,
    credentials: &Credentials,
    now: SystemTime,
) -> Result<Vec<(String, SecretString)>, SignError> {
    let uri: http::Uri = url.parse().map_err(|_| SignError::Url)?;
    if uri.host().is_none_or(str::is_empty) || uri.scheme().is_none() {
        return Err(SignError::Url);
    }
    let presigned = |pair: &str| pair.get(..6).is_some_and(|start| start.eq_ignore_ascii_case("x-amz-"));
    if uri.query().is_some_and(|query| query.split('&').any(presigned)) {
        return Ok(Vec::new());
    }
    let identity = credentials.clone().into();
    let parameters = v4::SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name(SERVICE)
        .time(now)
        // The default encodes the path once more, so `@` of a session id is `%40` in the canonical request.
        .settings(SigningSettings::default())
        .build()
        .map_err(|_| SignError::Sign)?
        .into();
    let request =
        SignableRequest::new("GET", url, std::iter::empty(), SignableBody::empty()).map_err(|_| SignError::Sign)?;
    let (instructions, _signature) = sign(request, &parameters).map_err(|_| SignError::Sign)?.into_parts();
    Ok(instructions.headers().map(|(name, value)| (name.to_owned(), value.to_owned().into())).collect())
}
