//! The AWS calls of the launcher in our own types; nothing above this module sees an SDK type.

mod ecs;
mod error;
mod sign;
mod ssm;

pub(crate) use ecs::{TaskOrder, TaskState};
pub(crate) use error::AwsError;

use std::time::{Duration, SystemTime};

use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::provider::ProvideCredentials as _;
use aws_smithy_http_client::tls;
use secrecy::SecretString;

use crate::aws::error::Call;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// One try; three are made.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(15);
/// One call with all its tries.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
const ATTEMPTS: u32 = 3;

/// The AWS of one caller in one region. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Aws {
    config: SdkConfig,
    profile: Option<String>,
}

impl Aws {
    /// Credentials and region as the AWS CLI finds them; `AWS_ENDPOINT_URL` is honoured. Calls nobody yet.
    pub(crate) async fn load(profile: Option<&str>, region: Option<&str>) -> Self {
        let http = aws_smithy_http_client::Builder::new()
            .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::AwsLc))
            .build_https();
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .operation_attempt_timeout(ATTEMPT_TIMEOUT)
            .operation_timeout(CALL_TIMEOUT)
            .build();
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .http_client(http)
            .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS))
            .timeout_config(timeouts);
        if let Some(profile) = profile {
            loader = loader.profile_name(profile);
        }
        if let Some(region) = region {
            loader = loader.region(Region::new(region.to_owned()));
        }
        Self { config: loader.load().await, profile: profile.map(str::to_owned) }
    }

    /// The same caller in another region.
    pub(crate) fn with_region(&self, region: &str) -> Self {
        let config = self.config.to_builder().region(Region::new(region.to_owned())).build();
        Self { config, profile: self.profile.clone() }
    }

    fn region(&self) -> Result<&str, AwsError> {
        self.config.region().map(Region::as_ref).ok_or(AwsError::NoRegion)
    }

    fn call<'a>(&'a self, operation: &'a str, service: &'a str) -> Call<'a> {
        Call { operation, service, profile: self.profile.as_deref(), ..Call::default() }
    }

    /// The ARN of the caller, from STS.
    pub(crate) async fn caller(&self) -> Result<String, AwsError> {
        self.region()?;
        let call = self.call("sts:GetCallerIdentity", "STS");
        let answer = aws_sdk_sts::Client::new(&self.config).get_caller_identity().send().await;
        let answer = answer.map_err(|error| call.failed(&error))?;
        answer.arn().map(str::to_owned).ok_or_else(|| call.other("UnreadableAnswer", "it names no ARN"))
    }

    /// Headers for the websocket upgrade of `url`, signed with the credentials of this moment.
    #[expect(clippy::disallowed_methods, reason = "signatures carry the time of day")]
    pub(crate) async fn sign_upgrade(&self, url: &str) -> Result<Vec<(String, SecretString)>, AwsError> {
        let call = self.call("ssmmessages:OpenDataChannel", "Session Manager");
        let provider = self.config.credentials_provider().ok_or(AwsError::NoCredentials)?;
        let credentials = provider.provide_credentials().await.map_err(|error| call.no_login(&error))?;
        sign::upgrade_headers(url, self.region()?, &credentials, SystemTime::now())
            .map_err(|error| call.other("NotSigned", &error.to_string()))
    }
}
