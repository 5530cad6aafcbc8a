//! Every environment variable that bastion reads, declared once; `docs/configuration.md` lists the same names.

/// The relay's configuration as JSON.
#[cfg(feature = "relay")]
pub(crate) const CONFIG: &str = "BASTION_CONFIG";
/// ARN of the person the task was started for; set by the launcher in the container overrides.
#[cfg(feature = "relay")]
pub(crate) const OWNER: &str = "BASTION_OWNER";
/// Why the task was started; set by the launcher in the container overrides.
#[cfg(feature = "relay")]
pub(crate) const REASON: &str = "BASTION_REASON";
/// Loopback address that the relay listens on (default 127.0.0.1).
#[cfg(feature = "relay")]
pub(crate) const LISTEN: &str = "BASTION_LISTEN";
/// Name of the task where ECS does not say it: what callers sign for.
#[cfg(feature = "relay")]
pub(crate) const TASK: &str = "BASTION_TASK";
/// Set by ECS in every container; where the task's metadata is.
#[cfg(feature = "relay")]
pub(crate) const METADATA: &str = "ECS_CONTAINER_METADATA_URI_V4";
/// The SDK's variable for another endpoint of STS; `sts_endpoint` is the same.
#[cfg(feature = "relay")]
pub(crate) const STS_ENDPOINT: &str = "AWS_ENDPOINT_URL_STS";
/// PEM file with a further CA that upstream certificates may come from.
#[cfg(feature = "relay")]
pub(crate) const EXTRA_CA_FILE: &str = "BASTION_EXTRA_CA_FILE";
/// Another endpoint for AWS services, as the AWS SDKs read it.
#[cfg(feature = "relay")]
pub(crate) const AWS_ENDPOINT_URL: &str = "AWS_ENDPOINT_URL";
/// Another endpoint for Secrets Manager alone.
#[cfg(feature = "relay")]
pub(crate) const AWS_ENDPOINT_URL_SECRETS_MANAGER: &str = "AWS_ENDPOINT_URL_SECRETS_MANAGER";
/// Log filter, for example `info,bastion=debug`.
pub(crate) const LOG: &str = "BASTION_LOG";
/// AWS region of the environment, above the files.
#[cfg(feature = "launcher")]
pub(crate) const REGION: &str = "BASTION_REGION";
/// SHA-256 of `bastion.toml` files of projects that are trusted, separated by commas or blanks.
#[cfg(feature = "launcher")]
pub(crate) const TRUST: &str = "BASTION_TRUST";
/// ECS cluster of the environment, above the files.
#[cfg(feature = "launcher")]
pub(crate) const CLUSTER: &str = "BASTION_CLUSTER";
