//! The AWS calls of the launcher in our own types; nothing above this module sees an SDK type.

mod advice;
mod ecs;
mod error;
mod http;
mod load;
mod login;
mod profile;
mod sign;
mod ssm;
mod sts;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ::http::Uri;
use aws_config::{Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::ProvideCredentials as _;
use secrecy::SecretString;

pub(crate) use crate::aws::ecs::{ContainerState, TaskOrder, TaskState};
pub(crate) use crate::aws::error::AwsError;
use crate::aws::error::Call;
pub(crate) use crate::aws::load::Wanted;
use crate::aws::profile::Kind;
pub(crate) use crate::aws::sts::StsPost;
use crate::network::Network;
use crate::types::Partition;

/// Of one call with all its attempts.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(30);

/// Who calls, as GetCallerIdentity says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Caller {
    pub(crate) arn: String,
    /// What policies know as `${aws:userid}`: `AROA…:session` for a role, `AIDA…` for a user.
    pub(crate) user_id: String,
    pub(crate) account: String,
}

/// One account, profile and region. Cheap to clone: the clones share connections and cached credentials.
#[derive(Debug, Clone)]
pub(crate) struct Aws {
    config: SdkConfig,
    login: Arc<Login>,
    network: Arc<Network>,
    ecs: aws_sdk_ecs::Client,
    ssm: aws_sdk_ssm::Client,
    sts: aws_sdk_sts::Client,
}

/// Where the credentials come from, for sentences.
#[derive(Debug, Default)]
struct Login {
    /// The profile to log in to; `None` if none is used.
    profile: Option<String>,
    kind: Kind,
    /// The profile that was chosen, if a person was asked for a code of MFA for it.
    asked_for: Option<String>,
    /// Where credentials were looked for.
    credentials: String,
    /// Where a region was looked for.
    region: String,
}

impl Aws {
    fn new(config: SdkConfig, login: Arc<Login>, network: Arc<Network>) -> Self {
        Self {
            ecs: aws_sdk_ecs::Client::new(&config),
            ssm: aws_sdk_ssm::Client::new(&config),
            sts: aws_sdk_sts::Client::new(&config),
            config,
            login,
            network,
        }
    }

    /// How AWS is reached, for what no SDK call sends.
    pub(crate) fn network(&self) -> &Network {
        &self.network
    }

    /// The profile that the credentials come from, or what else they come from.
    pub(crate) fn login(&self) -> String {
        match (&self.login.profile, self.login.kind) {
            (_, Kind::Environment) => "the keys of AWS_ACCESS_KEY_ID".to_owned(),
            (Some(profile), _) => format!("profile {}", profile::shown(profile)),
            (None, Kind::WebIdentity) => "the token of AWS_WEB_IDENTITY_TOKEN_FILE".to_owned(),
            (None, _) => "the role of this machine".to_owned(),
        }
    }

    pub(crate) fn region(&self) -> Option<String> {
        self.config.region().map(|region| region.as_ref().to_owned())
    }

    /// The same account and credentials in another region.
    pub(crate) fn with_region(&self, region: &str) -> Self {
        let config = self.config.to_builder().region(Region::new(region.to_owned())).build();
        Self::new(config, Arc::clone(&self.login), Arc::clone(&self.network))
    }

    /// Whom the credentials stand for.
    pub(crate) async fn caller(&self) -> Result<Caller, AwsError> {
        let service = self.service("STS")?;
        let call = self.call("GetCallerIdentity", &service);
        let answer = self.sts.get_caller_identity().send().await.map_err(|error| call.failed(&error))?;
        let missing = |name: &str| call.other("UnreadableAnswer", &format!("the answer has no {name}"));
        Ok(Caller {
            arn: answer.arn.ok_or_else(|| missing("Arn"))?,
            user_id: answer.user_id.ok_or_else(|| missing("UserId"))?,
            account: answer.account.ok_or_else(|| missing("Account"))?,
        })
    }

    /// The headers for the websocket upgrade of `url`, signed as of `now` with credentials that are asked for anew;
    /// empty if the URL is signed itself.
    pub(crate) async fn sign_upgrade(
        &self,
        url: &str,
        now: SystemTime,
    ) -> Result<Vec<(String, SecretString)>, AwsError> {
        let region = self.known_region()?;
        let call = self.call("SignUpgrade", "the source of the AWS credentials");
        let credentials = self.credentials(&call).await?;
        sign::upgrade_headers(url, &region, &credentials, now)
            .map_err(|error| call.other("InvalidStreamUrl", &error.to_string()))
    }

    /// The headers for each of `posts`, as [`Aws::sign_upgrade`], all signed with the same credentials.
    pub(crate) async fn sign_for_sts(
        &self,
        posts: &[StsPost],
        now: SystemTime,
    ) -> Result<Vec<Vec<(String, SecretString)>>, AwsError> {
        let call = self.call("SignIdentity", "the source of the AWS credentials");
        let credentials = self.credentials(&call).await?;
        let signed = posts.iter().map(|post| {
            sign::post_headers(post, &credentials, now)
                .map_err(|error| call.other("InvalidRequest", &error.to_string()))
        });
        signed.collect()
    }

    async fn credentials(&self, call: &Call<'_>) -> Result<Credentials, AwsError> {
        let none = || AwsError::NoCredentials { looked: self.login.credentials.clone() };
        let provider = self.config.credentials_provider().ok_or_else(none)?;
        tokio::time::timeout(OPERATION_TIMEOUT, provider.provide_credentials())
            .await
            .map_err(|_| call.unreachable("no answer in time"))?
            .map_err(|error| call.no_login(&error))
    }

    /// Variables that make another program the same caller, for as long as these credentials are good, without asking the
    /// person for a code once more; empty if nobody was asked for one.
    pub(crate) async fn handed_over(&self) -> Result<Vec<(&'static str, SecretString)>, AwsError> {
        let Some(profile) = &self.login.asked_for else { return Ok(Vec::new()) };
        let call = self.call("Login", "the source of the AWS credentials");
        let credentials = self.credentials(&call).await?;
        let mut variables = vec![
            // Of the profile come the settings; keys in variables win over its login.
            ("AWS_PROFILE", profile.clone().into()),
            ("AWS_ACCESS_KEY_ID", credentials.access_key_id().into()),
            ("AWS_SECRET_ACCESS_KEY", credentials.secret_access_key().into()),
        ];
        variables.extend(credentials.session_token().map(|token| ("AWS_SESSION_TOKEN", token.into())));
        Ok(variables)
    }

    /// The host and port of `AWS_ENDPOINT_URL`, if all calls go to another endpoint than AWS's own.
    pub(crate) fn endpoint_authority(&self) -> Option<&str> {
        let (_, rest) = self.config.endpoint_url()?.split_once("://")?;
        rest.split('/').next()
    }

    fn known_region(&self) -> Result<String, AwsError> {
        self.region().ok_or_else(|| AwsError::NoRegion { looked: self.login.region.clone() })
    }

    /// How an error names the service, and the proxy on the way to it; no call is sent without a region.
    fn service(&self, name: &str) -> Result<String, AwsError> {
        let region = self.known_region()?;
        let (service, url) = match self.config.endpoint_url() {
            Some(endpoint) => (format!("{name} at {endpoint}"), endpoint.to_owned()),
            None => {
                let host = if name == "Systems Manager" { "ssm" } else { name };
                let url = format!("https://{}/", Partition::endpoint(&host.to_lowercase(), &region));
                (format!("{name} in {region}"), url)
            }
        };
        let proxy = url.parse::<Uri>().ok().and_then(|url| self.network.proxies.to(&url).ok().flatten());
        Ok(match proxy {
            Some(proxy) => format!("{service} through {proxy}"),
            None => service,
        })
    }

    fn call<'a>(&'a self, operation: &'a str, service: &'a str) -> Call<'a> {
        let Login { profile, kind, credentials, .. } = self.login.as_ref();
        Call { operation, service, profile: profile.as_deref(), kind: *kind, looked: credentials, ..Call::default() }
    }
}

/// The name at the end of an ARN, or the name itself.
fn last_part(arn: &str) -> &str {
    arn.rsplit('/').next().unwrap_or(arn)
}
