//! Whether a claim is a request that the launcher would sign, before anybody is asked about it.

use std::time::{Duration, SystemTime};

use crate::wire::authorize::{Signed, signed_headers};

/// As far as STS accepts a date (AWS General Reference, "Troubleshooting Signature Version 4": five minutes).
const CLOCK_SKEW: Duration = Duration::from_secs(300);
/// A header of ours is about 350 bytes.
const AUTHORIZATION_MAX: usize = 1024;
/// Session tokens have no documented length; those of today are about 1.5 kB.
const TOKEN_MAX: usize = 8 * 1024;
/// IAM API Reference, `AccessKeyMetadata`: 16 to 128 word characters.
const ACCESS_KEY: std::ops::RangeInclusive<usize> = 16..=128;

/// What is wrong with a claim; never its values, which are secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(in crate::relay) enum ClaimError {
    #[error("the signature is dated {0} s off the relay's clock; set the clock of the laptop right")]
    Clock(u64),
    #[error("the claim is not what bastion signs: {0}")]
    Malformed(&'static str),
    #[error("the signature is for region {0:?} and this relay's region is {1:?}")]
    Region(String, String),
}

/// Checks the form of `signed`: one algorithm, the scope of this region's STS, exactly the headers that bind the request
/// to relay and nonce, a date that is now. Whether the signature is right only STS can say.
pub(super) fn check(signed: &Signed, region: &str, now: SystemTime) -> Result<(), ClaimError> {
    let malformed = |what| Err(ClaimError::Malformed(what));
    let Signed { authorization, x_amz_date: date, x_amz_security_token: token } = signed;
    if authorization.len() > AUTHORIZATION_MAX || !authorization.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
        return malformed("authorization is too long or not printable");
    }
    if let Some(token) = token
        && (token.is_empty() || token.len() > TOKEN_MAX || !token.bytes().all(|byte| byte.is_ascii_graphic()))
    {
        return malformed("x-amz-security-token is empty, too long or not printable");
    }
    let Some(fields) = authorization.strip_prefix("AWS4-HMAC-SHA256 ") else {
        return malformed("authorization does not start with AWS4-HMAC-SHA256");
    };
    let mut fields = fields.split(", ");
    let mut field = |name: &str| fields.next().and_then(|field| field.strip_prefix(name)?.strip_prefix('='));
    let (credential, headers, signature) = (field("Credential"), field("SignedHeaders"), field("Signature"));
    let (Some(credential), Some(headers), Some(signature), None) = (credential, headers, signature, fields.next())
    else {
        return malformed("authorization is not Credential, SignedHeaders, Signature");
    };
    let [key, day, scope_region, "sts", "aws4_request"] = credential.split('/').collect::<Vec<_>>()[..] else {
        return malformed("the credential scope is not that of STS");
    };
    if !ACCESS_KEY.contains(&key.len()) || !key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
        return malformed("the access key is not one");
    }
    if headers != signed_headers(token.is_some()) {
        return malformed("SignedHeaders are not exactly those that bind the proof to task and nonce");
    }
    if signature.len() != 64 || !signature.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return malformed("the signature is not 64 hexadecimal digits");
    }
    let Some(at) = parse_date(date) else { return malformed("x-amz-date is not a date") };
    if date.get(..8) != Some(day) {
        return malformed("the day of the scope is not that of x-amz-date");
    }
    if scope_region != region {
        let short = scope_region.chars().filter(char::is_ascii_graphic).take(32).collect();
        return Err(ClaimError::Region(short, region.to_owned()));
    }
    let off = now.duration_since(at).or_else(|_| at.duration_since(now)).unwrap_or_default();
    if off > CLOCK_SKEW {
        return Err(ClaimError::Clock(off.as_secs()));
    }
    Ok(())
}

/// The moment in `20260131T235959Z`.
fn parse_date(text: &str) -> Option<SystemTime> {
    let digits = |from: usize, to: usize| text.get(from..to).filter(|part| part.bytes().all(|b| b.is_ascii_digit()));
    let (year, month, day) = (digits(0, 4)?, digits(4, 6)?, digits(6, 8)?);
    let (hour, minute, second) = (digits(9, 11)?, digits(11, 13)?, digits(13, 15)?);
    if text.len() != 16 || text.get(8..9) != Some("T") || text.get(15..) != Some("Z") {
        return None;
    }
    humantime::parse_rfc3339(&format!("{year}-{month}-{day}T{hour}:{minute}:{second}Z")).ok()
}
