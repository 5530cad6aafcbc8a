//! What is signed for others to send: `GetCallerIdentity`, for the relay of a task or for a Vault, and nothing else.
//!
//! A signature is good for one canonical request. Method, path, query and body are fixed where it is made
//! ([`crate::aws::sign`]); what a relay may choose is parsed here, so that it cannot be a part of any of them.

use crate::api::authorize::{Audience, Challenge, HEADER_NONCE, HEADER_TASK, HEADER_VAULT};
use crate::types::StsHost;

/// Hexadecimal digits of a nonce.
const NONCE_LENGTH: usize = 64;

/// One request that may be signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StsPost {
    pub(super) host: StsHost,
    /// Signed besides `Host`, the type of the body and the headers of the signature.
    pub(super) headers: Vec<(&'static str, String)>,
}

/// Why nothing is signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unsigned {
    #[error("the relay says that it is task {said:?}, but the tunnel leads to {own:?}")]
    Task { said: String, own: String },
    #[error("the relay asks STS in region {said:?}, and this environment is in {own:?}")]
    Region { said: String, own: String },
    #[error("the relay asks at {host:?}, which is not STS in {region}")]
    Host { host: String, region: String },
    #[error("the nonce of the relay is not {NONCE_LENGTH} hexadecimal digits")]
    Nonce,
    #[error("{0} is empty or has other characters than visible ASCII")]
    Header(&'static str),
    #[error("sts_region of the Vault with server id {server_id:?} is {region:?}, not a region")]
    VaultRegion { server_id: String, region: String },
}

impl StsPost {
    /// The proof that `challenge` wants: only for the task that the tunnel leads to, as the relay at its end may pass the
    /// question of another one on, and only for STS of the environment's region or the person's own endpoint of AWS.
    pub(crate) fn proof(
        challenge: &Challenge,
        task: &str,
        region: &str,
        own_endpoint: Option<&str>,
    ) -> Result<Self, Unsigned> {
        if challenge.task != task {
            return Err(Unsigned::Task { said: challenge.task.clone(), own: task.to_owned() });
        }
        if challenge.region != region {
            return Err(Unsigned::Region { said: challenge.region.clone(), own: region.to_owned() });
        }
        let host = &challenge.sts_host;
        let own = || own_endpoint.filter(|own| own == host).and_then(|own| StsHost::own_endpoint(own, region));
        let host = StsHost::parse(host, region)
            .or_else(own)
            .ok_or_else(|| Unsigned::Host { host: host.clone(), region: region.to_owned() })?;
        let nonce = &challenge.nonce;
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if nonce.len() != NONCE_LENGTH || !nonce.bytes().all(is_hex) {
            return Err(Unsigned::Nonce);
        }
        Ok(Self {
            host,
            headers: vec![(HEADER_NONCE, nonce.clone()), (HEADER_TASK, visible("the name of the task", task)?)],
        })
    }

    /// The login to a Vault, which the environment must know.
    pub(crate) fn vault_login(vault: &Audience) -> Result<Self, Unsigned> {
        let Audience { server_id, sts_region } = vault;
        let host = match sts_region {
            None => StsHost::global(),
            Some(region) => StsHost::parse(&vault.sts_host(), region)
                .ok_or_else(|| Unsigned::VaultRegion { server_id: server_id.clone(), region: region.clone() })?,
        };
        Ok(Self { host, headers: vec![(HEADER_VAULT, visible("the server id of the Vault", server_id)?)] })
    }
}

/// The value of a header, as it stands in a canonical request.
fn visible(name: &'static str, value: &str) -> Result<String, Unsigned> {
    let is_visible = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_graphic());
    is_visible.then(|| value.to_owned()).ok_or(Unsigned::Header(name))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::{Duration, SystemTime};

    use aws_credential_types::Credentials;
    use bastion_sandbox::iam::Identity;
    use bastion_sandbox::sigv4::{Request, verify};
    use proptest::prelude::*;
    use secrecy::ExposeSecret as _;

    use super::*;
    use crate::api::authorize::{BODY, CONTENT_TYPE};
    use crate::aws::sign::post_headers;

    const REGION: &str = "ap-northeast-1";
    const TASK: &str = "arn:aws:ecs:ap-northeast-1:123456789012:task/bastion/0123";
    const STS: &str = "sts.ap-northeast-1.amazonaws.com";
    const OWN: &str = "127.0.0.1:4566";

    /// Whether the signature of `post` is that of `POST\n/\n\n` with this host, these headers and the one body.
    fn is_signed_for(post: &StsPost, host: &str, region: &str, extra: &[(&str, &str)], token: Option<&str>) -> bool {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let mut identity = Identity::session("dev", "alice", &[]);
        identity.session_token = token.map(str::to_owned);
        identity.expires_at = None;
        let keys = (identity.access_key.clone(), identity.secret_key.clone());
        let credentials = Credentials::new(keys.0, keys.1, identity.session_token.clone(), None, "test");
        let signed = post_headers(post, &credentials, at).unwrap();
        let names = ["authorization", "x-amz-date", "x-amz-security-token"];
        assert!(signed.iter().all(|(name, _)| names.contains(&name.as_str())), "{signed:?}");
        let mut headers: BTreeMap<String, String> =
            signed.into_iter().map(|(name, value)| (name, value.expose_secret().to_owned())).collect();
        let fixed = [("host", host), ("content-type", CONTENT_TYPE)];
        headers.extend(fixed.iter().chain(extra).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let request = Request { method: "POST", path: "/", query: "", headers: &headers, body: BODY.as_bytes() };
        verify(&request, "sts", region, &[identity], at).is_ok()
    }

    fn challenge(nonce: &str, task: &str, region: &str, sts_host: &str) -> Challenge {
        let (nonce, task, region, sts_host) = (nonce.into(), task.into(), region.into(), sts_host.into());
        Challenge { nonce, expires_in_seconds: 60, task, region, sts_host, vaults: None }
    }

    #[test]
    fn sts_accepts_a_request_that_somebody_else_sends_with_exactly_these_headers() {
        let nonce = "0123456789abcdef".repeat(4);
        let extra = [(HEADER_NONCE, nonce.as_str()), (HEADER_TASK, TASK)];
        for token in [None, Some("session/token+with==")] {
            for host in [STS, OWN, "vpce-0a1b.sts.ap-northeast-1.vpce.amazonaws.com"] {
                let proof = StsPost::proof(&challenge(&nonce, TASK, REGION, host), TASK, REGION, Some(OWN)).unwrap();
                assert!(is_signed_for(&proof, host, REGION, &extra, token), "{host}");
                assert!(!is_signed_for(&proof, "sts.amazonaws.com", REGION, &extra, token), "{host}");
            }
            for (sts_region, region, host) in [
                (None, "us-east-1", "sts.amazonaws.com"),
                (Some("eu-west-1"), "eu-west-1", "sts.eu-west-1.amazonaws.com"),
            ] {
                let vault =
                    Audience { server_id: "vault.example.com".into(), sts_region: sts_region.map(str::to_owned) };
                let login = StsPost::vault_login(&vault).unwrap();
                assert!(is_signed_for(&login, host, region, &[(HEADER_VAULT, "vault.example.com")], token), "{host}");
            }
        }
    }

    #[test]
    fn what_is_not_of_this_task_region_and_form_is_not_signed() {
        let nonce = "0".repeat(64);
        let attack = format!("vpce-0a1b.{STS}/?Action=AssumeRole&RoleArn=x&z=.sts.{REGION}.vpce.amazonaws.com");
        let unsigned = |nonce: &str, task: &str, region: &str, host: &str| {
            StsPost::proof(&challenge(nonce, task, region, host), TASK, REGION, None).unwrap_err().to_string()
        };
        for (said, part) in [
            (unsigned(&nonce, "arn:other", REGION, STS), "the relay says that it is task \"arn:other\""),
            (unsigned(&nonce, TASK, "eu-west-1", STS), "asks STS in region \"eu-west-1\""),
            (unsigned(&nonce, TASK, REGION, &attack), "which is not STS in ap-northeast-1"),
            (unsigned(&nonce, TASK, REGION, OWN), "which is not STS"),
            (unsigned(&"A".repeat(64), TASK, REGION, STS), "not 64 hexadecimal digits"),
            (unsigned(&format!("{}\n", "0".repeat(63)), TASK, REGION, STS), "not 64 hexadecimal digits"),
            (unsigned(&"0".repeat(65), TASK, REGION, STS), "not 64 hexadecimal digits"),
            (unsigned("", TASK, REGION, STS), "not 64 hexadecimal digits"),
        ] {
            assert!(said.contains(part), "{part} is not in {said}");
        }
        for task in ["", "a b", "a\nx-evil:1", "é"] {
            let challenge = challenge(&nonce, task, REGION, STS);
            let wanted = Err(Unsigned::Header("the name of the task"));
            assert_eq!(StsPost::proof(&challenge, task, REGION, None), wanted, "{task:?}");
            let vault = Audience { server_id: task.into(), sts_region: None };
            assert_eq!(StsPost::vault_login(&vault), Err(Unsigned::Header("the server id of the Vault")), "{task:?}");
        }
        let vault = Audience { server_id: "v".into(), sts_region: Some("evil.example/?x=".into()) };
        assert!(matches!(StsPost::vault_login(&vault), Err(Unsigned::VaultRegion { .. })));
    }

    /// Names that are nearly one of STS.
    fn host() -> impl Strategy<Value = String> {
        let piece = prop::sample::select(vec![
            "vpce-0a1b",
            "sts",
            "sts-fips",
            REGION,
            "vpce",
            "amazonaws.com",
            "api.aws",
            ".",
            "-",
            "/",
            "?",
            "#",
            "@",
            ":",
            ":443",
            "%2f",
            "\\",
            " ",
            "\n",
            "\t",
            "é",
            "A",
            "Action=AssumeRole",
            "&",
            OWN,
            STS,
            "\0",
            "[::1]",
        ]);
        prop_oneof![
            prop::collection::vec(piece, 0..10).prop_map(|pieces| pieces.concat()),
            "\\PC{0,12}".prop_map(|start| format!("vpce-{start}.sts.{REGION}.vpce.amazonaws.com")),
            "[a-z0-9-]{0,12}".prop_map(|start| format!("vpce-{start}.sts.{REGION}.vpce.amazonaws.com")),
            Just(STS.to_owned()),
            Just(OWN.to_owned()),
        ]
    }

    proptest! {
        #[test]
        fn whatever_a_challenge_says_only_get_caller_identity_at_sts_is_signed(
            host in host(),
            nonce in prop_oneof!["[0-9a-f]{64}", "[0-9a-f]{60}\\PC{4}"],
            server_id in prop_oneof!["[!-~]{1,20}", "(?s).{0,8}"],
            region in prop_oneof![Just(None), "[a-z0-9-]{1,12}".prop_map(Some), "(?s).{0,8}".prop_map(Some)],
        ) {
            if let Ok(proof) = StsPost::proof(&challenge(&nonce, TASK, REGION, &host), TASK, REGION, Some(OWN)) {
                let extra = [(HEADER_NONCE, nonce.as_str()), (HEADER_TASK, TASK)];
                prop_assert!(is_signed_for(&proof, &host, REGION, &extra, Some("token")), "{:?}", host);
                prop_assert!(host == OWN || host.ends_with(".amazonaws.com") || host.ends_with(".api.aws"), "{:?}", host);
                prop_assert!(host == OWN || !host.contains(['/', '?', '#', '@', ':', '%', '\\']), "{:?}", host);
            }
            let vault = Audience { server_id: server_id.clone(), sts_region: region };
            if let Ok(login) = StsPost::vault_login(&vault) {
                let (host, extra) = (vault.sts_host(), [(HEADER_VAULT, server_id.as_str())]);
                prop_assert!(is_signed_for(&login, &host, vault.region(), &extra, None), "{:?}", vault);
            }
        }
    }
}
