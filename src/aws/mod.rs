//! The AWS calls of the launcher in our own types; nothing above this module sees an SDK type.

mod ecs;
mod error;
mod sign;
mod ssm;
mod sts;

use std::time::{Duration, SystemTime};

use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::ProvideCredentials as _;
use aws_smithy_http_client::tls;
use secrecy::SecretString;

pub(crate) use crate::aws::ecs::{ContainerState, TaskOrder, TaskState};
pub(crate) use crate::aws::error::AwsError;
use crate::aws::error::Call;
pub(crate) use crate::aws::sts::StsPost;

const ATTEMPTS: u32 = 3;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Of one attempt, so that a request that is lost with its connection leaves time for another.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection that was not used for so long is not used again: the network may be another one since, and nobody says so.
const REUSE: Duration = Duration::from_secs(2);
/// Of one call with all its attempts.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(30);

/// Who calls, as GetCallerIdentity says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Caller {
    pub(crate) arn: String,
    /// What policies know as `${aws:userid}`: `AROA…:session` for a role, `AIDA…` for a user.
    pub(crate) user_id: String,
}

/// One account, profile and region. Cheap to clone: the clones share connections and cached credentials.
#[derive(Debug, Clone)]
pub(crate) struct Aws {
    config: SdkConfig,
    profile: Option<String>,
    ecs: aws_sdk_ecs::Client,
    ssm: aws_sdk_ssm::Client,
    sts: aws_sdk_sts::Client,
}

impl Aws {
    /// Reads the SDK's usual sources: environment, profile files, IAM Identity Center, `credential_process`, and
    /// `AWS_ENDPOINT_URL`. A profile that is named here wins over keys in the environment, as in the AWS CLI. Without a
    /// region the calls give [`AwsError::NoRegion`].
    pub(crate) async fn load(profile: Option<&str>, region: Option<&str>) -> Self {
        let http = aws_smithy_http_client::Builder::new()
            .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::AwsLc))
            .pool_idle_timeout(REUSE)
            .build_https();
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .operation_attempt_timeout(ATTEMPT_TIMEOUT)
            .operation_timeout(OPERATION_TIMEOUT)
            .build();
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .http_client(http.clone())
            .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS))
            .timeout_config(timeouts);
        if let Some(region) = region {
            loader = loader.region(Region::new(region.to_owned()));
        }
        if let Some(profile) = profile {
            // A role of the profile is assumed at the STS of a region.
            let region = match region {
                Some(region) => Some(Region::new(region.to_owned())),
                // The chain of regions by itself has no HTTP client and panics without one.
                None => {
                    let defaults = aws_config::defaults(BehaviorVersion::latest()).http_client(http.clone());
                    defaults.profile_name(profile).no_credentials().load().await.region().cloned()
                }
            };
            let settings = ProviderConfig::without_region().with_http_client(http).with_region(region);
            let provider = ProfileFileCredentialsProvider::builder().configure(&settings).profile_name(profile).build();
            loader = loader.profile_name(profile).credentials_provider(provider);
        }
        Self::new(loader.load().await, profile.map(str::to_owned))
    }

    fn new(config: SdkConfig, profile: Option<String>) -> Self {
        Self {
            ecs: aws_sdk_ecs::Client::new(&config),
            ssm: aws_sdk_ssm::Client::new(&config),
            sts: aws_sdk_sts::Client::new(&config),
            config,
            profile,
        }
    }

    pub(crate) fn region(&self) -> Option<String> {
        self.config.region().map(|region| region.as_ref().to_owned())
    }

    /// The same account and credentials in another region.
    pub(crate) fn with_region(&self, region: &str) -> Self {
        let config = self.config.to_builder().region(Region::new(region.to_owned())).build();
        Self::new(config, self.profile.clone())
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
        })
    }

    /// The headers for the websocket upgrade of `url`, signed as of `now` with credentials that are asked for anew;
    /// empty if the URL is signed itself.
    pub(crate) async fn sign_upgrade(
        &self,
        url: &str,
        now: SystemTime,
    ) -> Result<Vec<(String, SecretString)>, AwsError> {
        let region = self.region().ok_or(AwsError::NoRegion)?;
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
        let provider = self.config.credentials_provider().ok_or(AwsError::NoCredentials)?;
        tokio::time::timeout(OPERATION_TIMEOUT, provider.provide_credentials())
            .await
            .map_err(|_| call.unreachable("no answer in time"))?
            .map_err(|error| call.no_login(&error))
    }

    /// The host and port of `AWS_ENDPOINT_URL`, if all calls go to another endpoint than AWS's own.
    pub(crate) fn endpoint_authority(&self) -> Option<&str> {
        let (_, rest) = self.config.endpoint_url()?.split_once("://")?;
        rest.split('/').next()
    }

    /// How an error names the service; no call is sent without a region.
    fn service(&self, name: &str) -> Result<String, AwsError> {
        let region = self.region().ok_or(AwsError::NoRegion)?;
        Ok(match self.config.endpoint_url() {
            Some(endpoint) => format!("{name} at {endpoint}"),
            None => format!("{name} in {region}"),
        })
    }

    fn call<'a>(&'a self, operation: &'a str, service: &'a str) -> Call<'a> {
        Call { operation, service, profile: self.profile.as_deref(), ..Call::default() }
    }
}

/// The name at the end of an ARN, or the name itself.
fn last_part(arn: &str) -> &str {
    arn.rsplit('/').next().unwrap_or(arn)
}
