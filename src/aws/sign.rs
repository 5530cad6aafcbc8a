//! Signature Version 4 in headers (AWS General Reference) for what no SDK call sends: the websocket upgrade of Session
//! Manager (service `ssmmessages`, no body; session-manager-plugin 1.2.764.0 and newer sign it so), and a
//! `GetCallerIdentity` that somebody else sends to STS.

use std::time::SystemTime;

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SigningInstructions, SigningSettings, sign};
use aws_sigv4::sign::v4;
use secrecy::SecretString;

use crate::api::authorize::{BODY, CONTENT_TYPE};
use crate::aws::StsPost;
use crate::types::StsHost;

const SERVICE: &str = "ssmmessages";

/// Why a URL could not be signed. It never holds the URL, which carries the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum SignError {
    #[error("it is not a valid URL with a host")]
    Url,
    #[error("it cannot be signed")]
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
    let request =
        SignableRequest::new("GET", url, std::iter::empty(), SignableBody::empty()).map_err(|_| SignError::Sign)?;
    Ok(headers(signed(request, SERVICE, region, credentials, now)?))
}

/// `Authorization`, `X-Amz-Date` and, with a session token, `X-Amz-Security-Token` for the POST of `GetCallerIdentity` to the
/// root of STS.
pub(super) fn post_headers(
    post: &StsPost,
    credentials: &Credentials,
    now: SystemTime,
) -> Result<Vec<(String, SecretString)>, SignError> {
    let fixed = std::iter::once(("content-type", CONTENT_TYPE));
    let extra = post.headers.iter().map(|(name, value)| (*name, value.as_str()));
    let body = SignableBody::Bytes(BODY.as_bytes());
    let request = SignableRequest::new("POST", root_of(&post.host)?, fixed.chain(extra), body);
    let region = post.host.region();
    Ok(headers(signed(request.map_err(|_| SignError::Url)?, "sts", region, credentials, now)?))
}

/// The URL of the root of `host`, which is all of its authority: no user, no path, no query.
fn root_of(host: &StsHost) -> Result<String, SignError> {
    let parts = http::Uri::builder().scheme("https").authority(host.authority()).path_and_query("/");
    let uri = parts.build().map_err(|_| SignError::Url)?;
    let authority = uri.authority().map(http::uri::Authority::as_str);
    if authority != Some(host.authority())
        || host.authority().contains('@')
        || uri.path() != "/"
        || uri.query().is_some()
    {
        return Err(SignError::Url);
    }
    Ok(uri.to_string())
}

fn signed(
    request: SignableRequest<'_>,
    service: &str,
    region: &str,
    credentials: &Credentials,
    now: SystemTime,
) -> Result<SigningInstructions, SignError> {
    let identity = credentials.clone().into();
    let parameters = v4::SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name(service)
        .time(now)
        // The default encodes the path once more, so `@` of a session id is `%40` in the canonical request.
        .settings(SigningSettings::default())
        .build()
        .map_err(|_| SignError::Sign)?
        .into();
    Ok(sign(request, &parameters).map_err(|_| SignError::Sign)?.into_parts().0)
}

fn headers(instructions: SigningInstructions) -> Vec<(String, SecretString)> {
    instructions.headers().map(|(name, value)| (name.to_lowercase(), value.to_owned().into())).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use bastion_sandbox::iam::Identity;
    use bastion_sandbox::sigv4::{Rejection, Request, verify};
    use secrecy::ExposeSecret as _;

    use super::*;

    const REGION: &str = "ap-northeast-1";
    /// Every odd character that a role session name may have (STS API Reference: `[\w+=,.@-]*`).
    const PATH: &str = "/v1/data-channel/first.last+x=1,y@example.com-0a1b2c3d4e5f60718";
    const QUERY: &str = "role=publish_subscribe&cell-number=AAEAAb%2Bc%3D%3D";

    fn at() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn signer(token: Option<&str>) -> (Credentials, Identity) {
        let mut identity = Identity::session("dev", "alice", &[]);
        identity.session_token = token.map(str::to_owned);
        identity.expires_at = None;
        let token = token.map(str::to_owned);
        (Credentials::new(&identity.access_key, &identity.secret_key, token, None, "test"), identity)
    }

    /// What the gateway says to the upgrade of `wss://host` + PATH, if it sees `path`.
    fn verdict(host: &str, path: &str, token: Option<&str>) -> Result<String, Rejection> {
        let (credentials, identity) = signer(token);
        let url = format!("wss://{host}{PATH}?{QUERY}");
        let signed = upgrade_headers(&url, REGION, &credentials, at()).unwrap();
        let mut headers: BTreeMap<String, String> =
            signed.iter().map(|(name, value)| (name.to_lowercase(), value.expose_secret().to_owned())).collect();
        assert_eq!(headers.contains_key("x-amz-security-token"), token.is_some());
        headers.insert("host".to_owned(), host.to_owned());
        let request = Request { method: "GET", path, query: QUERY, headers: &headers, body: b"" };
        verify(&request, "ssmmessages", REGION, &[identity], at()).map(|who| who.arn.clone())
    }

    #[test]
    fn the_gateway_accepts_odd_session_ids_ports_and_both_kinds_of_keys() {
        for host in ["ssmmessages.ap-northeast-1.amazonaws.com", "127.0.0.1:8443"] {
            for token in [None, Some("session/token+with==")] {
                let (_, identity) = signer(token);
                assert_eq!(verdict(host, PATH, token), Ok(identity.arn), "{host} {token:?}");
            }
        }
    }

    #[test]
    fn a_signature_is_good_for_its_own_path_only() {
        let other = PATH.replace("first", "other");
        let verdict = verdict("127.0.0.1:8443", &other, None);
        assert!(matches!(verdict, Err(Rejection::SignatureDoesNotMatch(_))), "{verdict:?}");
    }

    #[test]
    fn a_presigned_url_gets_no_headers() {
        let (credentials, _) = signer(None);
        for query in ["X-Amz-Signature=aa", "role=x&x-amz-date=20270115T080000Z"] {
            let url = format!("wss://127.0.0.1{PATH}?{query}");
            assert!(upgrade_headers(&url, REGION, &credentials, at()).unwrap().is_empty(), "{url}");
        }
        let url = format!("wss://127.0.0.1{PATH}?role=X-Amz-Date");
        assert_eq!(upgrade_headers(&url, REGION, &credentials, at()).unwrap().len(), 2);
    }

    #[test]
    fn a_url_without_host_is_refused_without_repeating_it() {
        let (credentials, _) = signer(None);
        for url in ["", "/v1/data-channel/x", "wss:///v1", "wss://a b/"] {
            assert_eq!(upgrade_headers(url, REGION, &credentials, at()).unwrap_err(), SignError::Url, "{url}");
        }
    }
}
