//! Who is on the other side: a caller proves it with a `sts:GetCallerIdentity` that is signed for this task and a nonce,
//! and gets a token for lanes. `docs/identity.md` has the exchange and what it is good for.

mod answer;
mod claim;
mod principal;
mod store;
mod task;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, USER_AGENT};
use axum::http::{HeaderValue, Method, Request, StatusCode};
use bytes::Bytes;
use http_body_util::Full;
use parking_lot::Mutex;
use rustls::ClientConfig;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::api::authorize::{self, Audience, Challenge, Claim, Granted, Signed};
use crate::credential::SignedLogin;
use crate::relay::fetch::{FetchError, HttpEndpoint, fetch};
use crate::tls;

use claim::ClaimError;
pub(crate) use principal::{Pattern, Principal};
use store::{NONCE_LIFETIME, Nonces, TOKEN_LIFETIME, Tokens};
pub(crate) use task::{TaskSource, is_name as is_task_name};

/// STS answers in well under a second.
const STS_TIMEOUT: Duration = Duration::from_secs(5);
/// One person asks once an hour; more at once is somebody else.
const ASKING_MAX: usize = 4;

/// What of the caller's identity the relay wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IdentityConfig {
    /// Lanes need a token and plain ports are closed.
    pub(crate) required: bool,
    /// Who may come besides the owner.
    pub(crate) allow: Vec<Pattern>,
    pub(crate) sts: HttpEndpoint,
    pub(crate) task: TaskSource,
}

/// A proven caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Person {
    pub(crate) principal: Principal,
    /// IAM's unique id of the role or user, for a role with the session's name behind a colon.
    pub(crate) user_id: String,
}

impl Person {
    /// The same for the same person only.
    pub(super) fn key(&self) -> String {
        format!("{} {}", self.principal, self.user_id)
    }
}

/// Somebody who was let in, and what they have signed for Vaults.
pub(super) struct Admitted {
    pub(super) granted: Granted,
    pub(super) person: Arc<Person>,
    pub(super) logins: Vec<(Audience, Arc<SignedLogin>)>,
}

/// Why a caller gets no token. The texts hold nothing that was signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum AuthorizeError {
    #[error("the audit log cannot be written, so nobody is let in")]
    Audit,
    #[error("too many callers are being checked; try again in a few seconds")]
    Busy,
    #[error(transparent)]
    Claim(#[from] ClaimError),
    #[error(
        "this task has no owner: BASTION_OWNER is not set or not the ARN of a caller, and no pattern of allow fits {0}"
    )]
    NoOwner(Box<Principal>),
    #[error("the nonce is unknown, was used or is older than {0} s; ask for a new one")]
    Nonce(u64),
    #[error("the relay does not know its task: {0}")]
    NoTask(String),
    #[error("this task belongs to {owner}, and you are {caller}")]
    NotOwner { owner: Box<Principal>, caller: Box<Principal> },
    #[error("this machine gives no random numbers")]
    Random,
    #[error("the answer of STS is not to be trusted: {0}")]
    StsAnswer(&'static str),
    #[error("STS refused the signature with {0}{hint}", hint = sts_hint(.0))]
    StsRefused(String),
    #[error("STS was not asked: {0}")]
    StsUnreachable(#[from] FetchError),
}

fn sts_hint(code: &str) -> &'static str {
    match code {
        "ExpiredToken" => ": your AWS credentials have expired; sign in again (aws sso login)",
        "InvalidClientTokenId" => ": AWS does not know these keys; sign in again (aws sso login)",
        "SignatureDoesNotMatch" => ": it was not made for this request, or it was changed on its way",
        _ => "",
    }
}

impl AuthorizeError {
    /// The word for metrics and the audit log.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Audit => "audit",
            Self::Busy => "busy",
            Self::Claim(ClaimError::Clock(_)) => "clock",
            Self::Claim(ClaimError::Malformed(_) | ClaimError::Region(..)) => "malformed",
            Self::NoOwner(_) => "no_owner",
            Self::Nonce(_) => "nonce",
            Self::NoTask(_) => "no_task",
            Self::NotOwner { .. } => "not_owner",
            Self::Random => "internal",
            Self::StsAnswer(_) => "sts_answer",
            Self::StsRefused(_) => "sts_refused",
            Self::StsUnreachable(_) => "sts_unreachable",
        }
    }

    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Busy => StatusCode::TOO_MANY_REQUESTS,
            Self::Claim(ClaimError::Malformed(_)) => StatusCode::BAD_REQUEST,
            Self::Claim(ClaimError::Clock(_) | ClaimError::Region(..))
            | Self::NoOwner(_)
            | Self::Nonce(_)
            | Self::NotOwner { .. }
            | Self::StsRefused(_) => StatusCode::FORBIDDEN,
            Self::StsAnswer(_) | Self::StsUnreachable(_) => StatusCode::BAD_GATEWAY,
            Self::Audit | Self::NoTask(_) | Self::Random => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// Who was refused, where STS has said it.
    pub(super) fn caller(&self) -> Option<&Principal> {
        match self {
            Self::NoOwner(caller) | Self::NotOwner { caller, .. } => Some(caller),
            _ => None,
        }
    }
}

/// Checks callers and remembers who was let in.
pub(super) struct Identity {
    config: IdentityConfig,
    region: String,
    owner: Option<Principal>,
    /// The Vaults that people log in to as themselves.
    vaults: Vec<Audience>,
    tls: Arc<ClientConfig>,
    task: tokio::sync::OnceCell<String>,
    nonces: Mutex<Nonces>,
    tokens: Mutex<Tokens>,
    asking: Semaphore,
}

impl Identity {
    /// `owner` is the ARN of the person that the task was started for.
    pub(super) fn new(
        config: IdentityConfig,
        region: &str,
        owner: Option<&str>,
        vaults: Vec<Audience>,
        tls: Arc<ClientConfig>,
    ) -> Self {
        Self {
            vaults,
            config,
            region: region.to_owned(),
            owner: owner.and_then(|owner| Principal::parse(owner).ok()),
            tls,
            task: tokio::sync::OnceCell::new(),
            nonces: Mutex::default(),
            tokens: Mutex::default(),
            asking: Semaphore::new(ASKING_MAX),
        }
    }

    pub(super) fn is_required(&self) -> bool {
        self.config.required
    }

    /// The Vaults that people log in to as themselves.
    pub(super) fn vaults(&self) -> &[Audience] {
        &self.vaults
    }

    /// Whether anybody can be let in at all.
    pub(super) fn has_owner(&self) -> bool {
        self.owner.is_some() || !self.config.allow.is_empty()
    }

    /// The task that this relay runs in.
    pub(super) async fn task(&self) -> Result<&str, AuthorizeError> {
        let asked = self.task.get_or_try_init(|| self.config.task.find(&self.tls)).await;
        asked.map(String::as_str).map_err(AuthorizeError::NoTask)
    }

    /// What a caller must sign.
    pub(super) async fn challenge(&self) -> Result<Challenge, AuthorizeError> {
        let task = self.task().await?.to_owned();
        let nonce = tls::random_hex().ok_or(AuthorizeError::Random)?;
        self.nonces.lock().issue(nonce.clone(), Instant::now());
        Ok(Challenge {
            nonce,
            expires_in_seconds: NONCE_LIFETIME.as_secs(),
            task,
            region: self.region.clone(),
            sts_host: self.config.sts.authority(),
            vaults: Some(self.vaults.clone()),
        })
    }

    /// Has STS check a claim and lets the owner in. `now` is the time of day.
    pub(super) async fn authorize(&self, claim: &Claim, now: SystemTime) -> Result<Admitted, AuthorizeError> {
        // First of all: whatever comes of this claim, its nonce is gone.
        if !self.nonces.lock().take(&claim.nonce, Instant::now()) {
            return Err(AuthorizeError::Nonce(NONCE_LIFETIME.as_secs()));
        }
        claim::check(&claim.sts, &self.region, now)?;
        let logins = self.logins(claim, now)?;
        let task = self.task().await?;
        let person = {
            let _place = self.asking.try_acquire().map_err(|_| AuthorizeError::Busy)?;
            self.ask_sts(&claim.sts, &claim.nonce, task).await?
        };
        self.admit(&person.principal)?;
        let token = tls::random_hex().ok_or(AuthorizeError::Random)?;
        let person = Arc::new(person);
        self.tokens.lock().give(&token, Arc::clone(&person), Instant::now());
        let expires_in_seconds = TOKEN_LIFETIME.as_secs();
        let arn = person.principal.to_string();
        Ok(Admitted { granted: Granted { token, expires_in_seconds, arn, local_password: None }, person, logins })
    }

    /// What the claim has signed for Vaults of this relay, in the right form; whether it is right STS says to Vault.
    fn logins(&self, claim: &Claim, now: SystemTime) -> Result<Vec<(Audience, Arc<SignedLogin>)>, ClaimError> {
        let mut logins: Vec<(Audience, Arc<SignedLogin>)> = Vec::new();
        for login in &claim.vaults {
            let audience = login.audience();
            if !self.vaults.contains(&audience) || logins.iter().any(|(known, _)| *known == audience) {
                return Err(ClaimError::Malformed("it has a login to a Vault that was not asked for"));
            }
            let age = claim::check_login(login, &claim.sts, now)?;
            let token = claim.sts.x_amz_security_token.clone().map(Into::into);
            let authorization = login.authorization.clone().into();
            logins.push((audience, Arc::new(SignedLogin::new(authorization, login.x_amz_date.clone(), token, age))));
        }
        Ok(logins)
    }

    fn admit(&self, caller: &Principal) -> Result<(), AuthorizeError> {
        if self.owner.as_ref() == Some(caller) || self.config.allow.iter().any(|pattern| pattern.matches(caller)) {
            return Ok(());
        }
        let caller = Box::new(caller.clone());
        Err(match self.owner.clone().map(Box::new) {
            Some(owner) => AuthorizeError::NotOwner { owner, caller },
            None => AuthorizeError::NoOwner(caller),
        })
    }

    /// Whose token it is.
    pub(super) fn person(&self, token: &str) -> Option<Arc<Person>> {
        self.tokens.lock().person(token, Instant::now())
    }

    /// Asks STS in one round trip. Everything but the three signed values is written here.
    async fn ask_sts(&self, signed: &Signed, nonce: &str, task: &str) -> Result<Person, AuthorizeError> {
        let answer = fetch(
            &self.config.sts,
            &self.tls,
            question(signed, nonce, task).ok_or(ClaimError::Malformed("a value cannot be a header"))?,
            answer::ANSWER_MAX,
            STS_TIMEOUT,
        )
        .await?;
        let media_type = answer.content_type.split(';').next().unwrap_or_default().trim();
        match (answer.status, media_type) {
            (200, "text/xml") => answer::caller(&answer.body).map_err(AuthorizeError::StsAnswer),
            (200, _) => Err(AuthorizeError::StsAnswer("it is not text/xml")),
            (400..500, "text/xml") => match answer::error_code(&answer.body) {
                Some(code) => Err(AuthorizeError::StsRefused(code)),
                None => Err(AuthorizeError::StsAnswer("it is a refusal without a code")),
            },
            _ => Err(AuthorizeError::StsAnswer("its status is neither success nor refusal")),
        }
    }
}

/// The request to STS, as the launcher has signed it.
fn question(signed: &Signed, nonce: &str, task: &str) -> Option<Request<Full<Bytes>>> {
    let mut request = Request::new(Full::new(Bytes::from_static(authorize::BODY.as_bytes())));
    *request.method_mut() = Method::POST;
    let headers = request.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(authorize::CONTENT_TYPE));
    headers.insert(USER_AGENT, HeaderValue::from_static(concat!("bastion/", env!("CARGO_PKG_VERSION"))));
    headers.insert(authorize::HEADER_TASK, HeaderValue::from_str(task).ok()?);
    headers.insert(authorize::HEADER_NONCE, HeaderValue::from_str(nonce).ok()?);
    headers.insert("x-amz-date", HeaderValue::from_str(&signed.x_amz_date).ok()?);
    let secret = |value: &str| {
        let mut value = HeaderValue::from_str(value).ok()?;
        value.set_sensitive(true);
        Some(value)
    };
    headers.insert(AUTHORIZATION, secret(&signed.authorization)?);
    if let Some(token) = &signed.x_amz_security_token {
        headers.insert("x-amz-security-token", secret(token)?);
    }
    Some(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_launcher_tells_refusals_apart_by_how_they_begin() {
        let who = |name: &str| Box::new(Principal::parse(&format!("arn:aws:iam::123456789012:user/{name}")).unwrap());
        let [theirs, nobodys] = authorize::OTHER_OWNER;
        let (owner, caller) = (who("bob"), who("alice"));
        assert!(AuthorizeError::NotOwner { owner, caller }.to_string().starts_with(theirs));
        assert!(AuthorizeError::NoOwner(who("alice")).to_string().starts_with(nobodys));
        let unknown = AuthorizeError::StsRefused("InvalidClientTokenId".to_owned()).to_string();
        assert!(unknown.starts_with(authorize::STS_REFUSED) && unknown.contains("AWS does not know these keys"));
    }
}
