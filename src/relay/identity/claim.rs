//! Whether a claim is a request that the launcher would sign, before anybody is asked about it.

use std::time::{Duration, SystemTime};

use crate::api::authorize::{Signed, VaultLogin, signed_headers, vault_signed_headers};

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
    #[error("the signature is for region {0:?} and has to be for {1:?}")]
    Region(String, String),
}

/// Checks the form of `signed`: one algorithm, the scope of this region's STS, exactly the headers that bind the request
/// to relay and nonce, a date that is now. Whether the signature is right only STS can say.
pub(super) fn check(signed: &Signed, region: &str, now: SystemTime) -> Result<(), ClaimError> {
    let Signed { authorization, x_amz_date: date, x_amz_security_token: token } = signed;
    if let Some(token) = token
        && (token.is_empty() || token.len() > TOKEN_MAX || !token.bytes().all(|byte| byte.is_ascii_graphic()))
    {
        return Err(ClaimError::Malformed("x-amz-security-token is empty, too long or not printable"));
    }
    let checked = check_values(authorization, date, signed_headers(token.is_some()), region, now);
    checked.map(|_age| ())
}

/// The same for a login to Vault, and that it is signed with the keys of `proof`: so it is of the person whom STS has
/// confirmed. Gives its age.
pub(super) fn check_login(login: &VaultLogin, proof: &Signed, now: SystemTime) -> Result<Duration, ClaimError> {
    let headers = vault_signed_headers(proof.x_amz_security_token.is_some());
    let age = check_values(&login.authorization, &login.x_amz_date, headers, login.audience().region(), now)?;
    if key_id(&login.authorization) != key_id(&proof.authorization) {
        return Err(ClaimError::Malformed("a login to Vault is signed with other keys than the proof"));
    }
    Ok(age)
}

/// The id of the keys in a header that [`check_values`] has checked.
fn key_id(authorization: &str) -> Option<&str> {
    authorization.split_once("Credential=")?.1.split('/').next()
}

/// Form, scope, headers and date; gives the age.
fn check_values(
    authorization: &str,
    date: &str,
    signed_headers: &str,
    region: &str,
    now: SystemTime,
) -> Result<Duration, ClaimError> {
    let malformed = |what| Err(ClaimError::Malformed(what));
    if authorization.len() > AUTHORIZATION_MAX || !authorization.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
        return malformed("authorization is too long or not printable");
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
    if headers != signed_headers {
        return malformed("SignedHeaders are not exactly those that bind the request to its purpose");
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
    let age = now.duration_since(at).unwrap_or_default();
    let off = age.max(at.duration_since(now).unwrap_or_default());
    if off > CLOCK_SKEW {
        return Err(ClaimError::Clock(off.as_secs()));
    }
    Ok(age)
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TOKEN: &str = "session/token+with==";

    fn authorization(key: &str, region: &str, headers: &str) -> String {
        let signature = "0123456789abcdef".repeat(4);
        format!(
            "AWS4-HMAC-SHA256 Credential={key}/20261125/{region}/sts/aws4_request, SignedHeaders={headers}, Signature={signature}"
        )
    }

    fn now() -> SystemTime {
        parse_date("20261125T120100Z").unwrap()
    }

    /// A good proof and a good login to a Vault that asks the global endpoint.
    fn pair() -> (Signed, VaultLogin) {
        let key = "ASIAEXAMPLEEXAMPLE";
        let date = "20261125T120000Z".to_owned();
        let proof = Signed {
            authorization: authorization(key, "eu-west-1", signed_headers(true)),
            x_amz_date: date.clone(),
            x_amz_security_token: Some(TOKEN.to_owned()),
        };
        let authorization = authorization(key, "us-east-1", vault_signed_headers(true));
        let login = VaultLogin { server_id: "v".to_owned(), sts_region: None, authorization, x_amz_date: date };
        (proof, login)
    }

    #[test]
    fn a_login_is_signed_with_the_keys_of_the_proof_for_the_sts_of_its_vault() {
        let (proof, login) = pair();
        check(&proof, "eu-west-1", now()).unwrap();
        assert_eq!(check_login(&login, &proof, now()), Ok(Duration::from_secs(60)));
        let other = |key: &str, region: &str, headers: &str| {
            let login = VaultLogin { authorization: authorization(key, region, headers), ..login.clone() };
            check_login(&login, &proof, now()).unwrap_err()
        };
        let (key, headers) = ("ASIAEXAMPLEEXAMPLE", vault_signed_headers(true));
        assert!(other("ASIAANOTHERPERSONS", "us-east-1", headers).to_string().contains("other keys than the proof"));
        assert!(matches!(other(key, "eu-west-1", headers), ClaimError::Region(..)));
        // A proof is no login, and a login without the server id is good at every Vault.
        for headers in [
            signed_headers(true),
            vault_signed_headers(false),
            "content-type;host;x-amz-date;x-amz-security-token",
            "content-type;host;x-amz-date;x-amz-security-token;x-bastion-task;x-vault-aws-iam-server-id",
        ] {
            assert!(matches!(other(key, "us-east-1", headers), ClaimError::Malformed(_)), "{headers}");
        }
        assert_eq!(
            check(&Signed { authorization: login.authorization, ..proof }, "us-east-1", now()).unwrap_err(),
            ClaimError::Malformed("SignedHeaders are not exactly those that bind the request to its purpose")
        );
    }

    #[test]
    fn a_login_of_another_time_is_refused() {
        let (proof, login) = pair();
        for (minutes, good) in [(4, true), (6, false)] {
            let later = check_login(&login, &proof, now() + Duration::from_secs(60 * minutes));
            assert_eq!(later.is_ok(), good, "{later:?}");
            let before = check_login(&login, &proof, now() - Duration::from_secs(60 * (minutes + 1)));
            assert_eq!(before.is_ok(), good, "{before:?}");
        }
    }

    proptest! {
        #[test]
        fn no_other_form_of_a_login_is_taken(at in any::<prop::sample::Index>(), with in "\\PC{0,3}", insert in any::<bool>()) {
            let (proof, login) = pair();
            let whole = login.authorization.clone();
            let at = at.index(whole.len());
            let mut altered = whole.clone();
            altered.replace_range(at..at + usize::from(!insert), &with);
            let checked = check_login(&VaultLogin { authorization: altered.clone(), ..login }, &proof, now());
            // What is left may be altered only where the signature itself says it, to other hexadecimal digits.
            let signature = whole.find("Signature=").unwrap() + "Signature=".len();
            prop_assert!(checked.is_err() || altered == whole || (at >= signature && altered.len() == whole.len()));
        }

        #[test]
        fn nothing_breaks_the_check(authorization in "\\PC{0,200}", date in "\\PC{0,20}") {
            let (proof, login) = pair();
            let login = VaultLogin { authorization, x_amz_date: date, ..login };
            prop_assert!(check_login(&login, &proof, now()).is_err());
        }
    }
}
