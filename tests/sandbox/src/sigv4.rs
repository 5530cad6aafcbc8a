//! Verifies AWS Signature Version 4, as the services do: header form for API calls and the websocket upgrade, query form
//! for RDS tokens. Written from the AWS General Reference, not from a signer, so that the two check each other.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use hmac::{Hmac, KeyInit as _, Mac as _};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use sha2::{Digest as _, Sha256};

use crate::iam::Identity;

const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
/// A request is good for five minutes around its date.
const CLOCK_SKEW: Duration = Duration::from_secs(300);

/// Why a signature is not accepted; the names are those of AWS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rejection {
    ExpiredToken,
    InvalidClientTokenId,
    MissingAuthenticationToken,
    RequestExpired(String),
    SignatureDoesNotMatch(String),
}

/// A request as far as its signature covers it.
pub struct Request<'a> {
    pub method: &'a str,
    pub path: &'a str,
    pub query: &'a str,
    /// Lower-case names.
    pub headers: &'a BTreeMap<String, String>,
    pub body: &'a [u8],
}

/// Checks the header form and returns who signed.
///
/// # Errors
/// [`Rejection`], as AWS would name it.
pub fn verify<'i>(
    request: &Request<'_>,
    service: &str,
    region: &str,
    identities: &'i [Identity],
    now: SystemTime,
) -> Result<&'i Identity, Rejection> {
    let header = |name: &str| request.headers.get(name).map(String::as_str);
    let authorization = header("authorization").ok_or(Rejection::MissingAuthenticationToken)?;
    let mismatch = |why: &str| Rejection::SignatureDoesNotMatch(why.to_owned());
    let fields = authorization.strip_prefix("AWS4-HMAC-SHA256 ").ok_or_else(|| mismatch("not AWS4-HMAC-SHA256"))?;
    let field = |name: &str| {
        fields
            .split(',')
            .find_map(|part| part.trim().strip_prefix(name)?.strip_prefix('='))
            .ok_or_else(|| mismatch(name))
    };
    let (credential, signed, signature) = (field("Credential")?, field("SignedHeaders")?, field("Signature")?);
    let scope = Scope::parse(credential).ok_or_else(|| mismatch("malformed Credential"))?;
    let identity = identity(identities, scope.access_key, header("x-amz-security-token"), now)?;
    if scope.service != service || scope.region != region {
        return Err(mismatch(&format!("Credential should be scoped to {region}/{service}, not {}", scope.text())));
    }
    let date = header("x-amz-date").ok_or_else(|| mismatch("no X-Amz-Date"))?;
    check_date(date, scope.date, now)?;
    let names: Vec<&str> = signed.split(';').collect();
    for name in request.headers.keys().filter(|name| *name == "host" || name.starts_with("x-amz-")) {
        if !names.contains(&name.as_str()) {
            return Err(mismatch(&format!("the header {name} is not signed")));
        }
    }
    let hash = hex::encode(Sha256::digest(request.body));
    if header("x-amz-content-sha256").is_some_and(|claimed| claimed != hash) {
        return Err(mismatch("x-amz-content-sha256 is not the hash of the body"));
    }
    let canonical = canonical(request, signed, &hash)
        .map_err(|missing| mismatch(&format!("the signed header {missing} is missing")))?;
    if scope.signature(&identity.secret_key, date, &canonical) == signature {
        Ok(identity)
    } else {
        Err(mismatch("The request signature we calculated does not match the signature you provided."))
    }
}

/// The canonical request; an error names the signed header that is missing.
fn canonical(request: &Request<'_>, signed: &str, hash: &str) -> Result<String, String> {
    let mut headers = String::new();
    for name in signed.split(';') {
        let value = request.headers.get(name).ok_or(name)?;
        let value = value.split_whitespace().collect::<Vec<_>>().join(" ");
        headers.push_str(&format!("{name}:{value}\n"));
    }
    Ok(format!(
        "{}\n{}\n{}\n{headers}\n{signed}\n{hash}",
        request.method,
        canonical_path(request.path),
        canonical_query(request.query)
    ))
}

/// The `Authorization` of a request by `identity` that covers the headers of `signed`, for tests that sign what no SDK
/// would. The date of the scope is that of `x-amz-date`.
///
/// # Errors
/// The header that is missing.
pub fn authorization(
    request: &Request<'_>,
    signed: &str,
    service: &str,
    region: &str,
    identity: &Identity,
) -> Result<String, String> {
    let date = request.headers.get("x-amz-date").ok_or("x-amz-date")?;
    let day = date.get(..8).unwrap_or(date);
    let credential = format!("{}/{day}/{region}/{service}/aws4_request", identity.access_key);
    let scope = Scope::parse(&credential).ok_or("the parts of the scope")?;
    let canonical = canonical(request, signed, &hex::encode(Sha256::digest(request.body)))?;
    let signature = scope.signature(&identity.secret_key, date, &canonical);
    Ok(format!("AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders={signed}, Signature={signature}"))
}

/// `20260131T235959Z` of a moment.
pub fn date(at: SystemTime) -> String {
    humantime::format_rfc3339_seconds(at).to_string().replace(['-', ':'], "")
}

fn identity<'i>(
    identities: &'i [Identity],
    access_key: &str,
    session_token: Option<&str>,
    now: SystemTime,
) -> Result<&'i Identity, Rejection> {
    let identity =
        identities.iter().find(|known| known.access_key == access_key).ok_or(Rejection::InvalidClientTokenId)?;
    if identity.session_token.as_deref() != session_token {
        return Err(Rejection::InvalidClientTokenId);
    }
    if identity.expires_at.is_some_and(|expiry| expiry <= now) {
        return Err(Rejection::ExpiredToken);
    }
    Ok(identity)
}

/// `ACCESS_KEY/DATE/REGION/SERVICE/aws4_request`
pub(crate) struct Scope<'a> {
    pub(crate) access_key: &'a str,
    pub(crate) date: &'a str,
    pub(crate) region: &'a str,
    pub(crate) service: &'a str,
}

impl<'a> Scope<'a> {
    pub(crate) fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.split('/');
        let scope =
            Self { access_key: parts.next()?, date: parts.next()?, region: parts.next()?, service: parts.next()? };
        (parts.next() == Some("aws4_request") && parts.next().is_none()).then_some(scope)
    }

    fn text(&self) -> String {
        format!("{}/{}/{}/aws4_request", self.date, self.region, self.service)
    }

    /// The signature of a canonical request, in hex.
    pub(crate) fn signature(&self, secret: &str, date: &str, canonical: &str) -> String {
        let digest = hex::encode(Sha256::digest(canonical));
        let to_sign = format!("AWS4-HMAC-SHA256\n{date}\n{}\n{digest}", self.text());
        let mut key = format!("AWS4{secret}").into_bytes();
        for part in [self.date, self.region, self.service, "aws4_request", &to_sign] {
            key = hmac(&key, part);
        }
        hex::encode(key)
    }
}

fn hmac(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

/// The moment in `20260131T235959Z`.
pub(crate) fn parse_date(text: &str) -> Option<SystemTime> {
    let part = |from: usize, to: usize| text.get(from..to);
    let (year, month, day) = (part(0, 4)?, part(4, 6)?, part(6, 8)?);
    let (hour, minute, second) = (part(9, 11)?, part(11, 13)?, part(13, 15)?);
    if text.len() != 16 || part(8, 9) != Some("T") || part(15, 16) != Some("Z") {
        return None;
    }
    humantime::parse_rfc3339(&format!("{year}-{month}-{day}T{hour}:{minute}:{second}Z")).ok()
}

fn check_date(date: &str, scope_date: &str, now: SystemTime) -> Result<(), Rejection> {
    let at = parse_date(date).ok_or_else(|| Rejection::SignatureDoesNotMatch(format!("X-Amz-Date {date}")))?;
    if !date.starts_with(scope_date) {
        return Err(Rejection::SignatureDoesNotMatch("the date of the scope is not that of the request".to_owned()));
    }
    let off = now.duration_since(at).or_else(|_| at.duration_since(now)).unwrap_or_default();
    if off > CLOCK_SKEW {
        return Err(Rejection::RequestExpired(format!("Signature expired: {date} is {} s off", off.as_secs())));
    }
    Ok(())
}

/// Every service but S3 encodes each segment once more.
fn canonical_path(path: &str) -> String {
    let path = if path.is_empty() { "/" } else { path };
    path.split('/').map(|segment| utf8_percent_encode(segment, UNRESERVED).to_string()).collect::<Vec<_>>().join("/")
}

/// Decoded pairs of a query string, in order.
pub(crate) fn pairs(query: &str) -> Vec<(String, String)> {
    let decode = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name), decode(value))
        })
        .collect()
}

fn canonical_query(query: &str) -> String {
    canonical_pairs(&pairs(query))
}

/// Encoded and sorted, as the canonical request wants it.
pub(crate) fn canonical_pairs(pairs: &[(String, String)]) -> String {
    let encode = |text: &str| utf8_percent_encode(text, UNRESERVED).to_string();
    let mut encoded: Vec<(String, String)> = pairs.iter().map(|(name, value)| (encode(name), encode(value))).collect();
    encoded.sort();
    encoded.into_iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `get-vanilla-query-order-key-case` of AWS's SigV4 test suite, and its signature.
    fn vector() -> (BTreeMap<String, String>, Vec<Identity>, SystemTime) {
        let authorization = "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, \
             SignedHeaders=host;x-amz-date, Signature=b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500";
        let headers =
            [("host", "example.amazonaws.com"), ("x-amz-date", "20150830T123600Z"), ("authorization", authorization)];
        let identity = Identity {
            access_key: "AKIDEXAMPLE".into(),
            secret_key: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".into(),
            session_token: None,
            expires_at: None,
            arn: "arn:aws:iam::123456789012:user/test".into(),
            allow: Vec::new(),
        };
        let headers = headers.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        (headers, vec![identity], parse_date("20150830T123700Z").unwrap())
    }

    fn check(
        headers: &BTreeMap<String, String>,
        query: &str,
        identities: &[Identity],
        now: SystemTime,
    ) -> Result<(), Rejection> {
        let request = Request { method: "GET", path: "/", query, headers, body: b"" };
        verify(&request, "service", "us-east-1", identities, now).map(|_| ())
    }

    #[test]
    fn the_vector_of_aws_is_accepted() {
        let (headers, identities, now) = vector();
        assert_eq!(check(&headers, "Param2=value2&Param1=value1", &identities, now), Ok(()));
    }

    #[test]
    fn every_alteration_is_refused() {
        let (headers, identities, now) = vector();
        let query = "Param2=value2&Param1=value1";
        assert!(matches!(check(&headers, "Param1=x", &identities, now), Err(Rejection::SignatureDoesNotMatch(_))));
        let late = now + Duration::from_secs(3600);
        assert!(matches!(check(&headers, query, &identities, late), Err(Rejection::RequestExpired(_))));
        assert_eq!(check(&headers, query, &[], now), Err(Rejection::InvalidClientTokenId));
        let mut unsigned = headers.clone();
        unsigned.insert("x-amz-target".into(), "x".into());
        assert!(matches!(check(&unsigned, query, &identities, now), Err(Rejection::SignatureDoesNotMatch(_))));
        let mut anonymous = headers.clone();
        anonymous.remove("authorization");
        assert_eq!(check(&anonymous, query, &identities, now), Err(Rejection::MissingAuthenticationToken));
        let mut other_host = headers;
        other_host.insert("host".into(), "evil.example.com".into());
        assert!(matches!(check(&other_host, query, &identities, now), Err(Rejection::SignatureDoesNotMatch(_))));
    }
}
