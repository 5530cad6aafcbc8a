//! The credentials of the task role, and the HTTPS client for the AWS services that are asked with them.

use std::time::Duration;

use aws_config::ecs::EcsCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_credential_types::Credentials;
use aws_credential_types::provider::ProvideCredentials as _;
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_secretsmanager::config::SharedHttpClient;
use aws_smithy_http_client::tls;

use crate::credential::MintError;
use crate::credential::bounded::bounded;
use crate::tls::{TlsConfigError, aws_roots, extra_ca_pem};
use crate::types::ExtraCa;

/// The container credentials endpoint is local to the task.
const ENDPOINT_TIMEOUT: Duration = Duration::from_secs(5);

/// The credentials of the task role, from the ECS container credentials endpoint.
#[derive(Debug)]
pub(crate) struct TaskRole {
    provider: EcsCredentialsProvider,
}

impl TaskRole {
    /// Reads where the endpoint is from the variables that ECS sets in the container.
    pub(crate) fn from_container() -> Self {
        let http = aws_smithy_http_client::Builder::new()
            .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::AwsLc))
            .build_https();
        let http = bounded(http);
        let config = ProviderConfig::without_region().with_http_client(http);
        Self { provider: EcsCredentialsProvider::builder().configure(&config).build() }
    }

    pub(super) async fn credentials(&self) -> Result<Credentials, MintError> {
        let answer = tokio::time::timeout(ENDPOINT_TIMEOUT, self.provider.provide_credentials()).await;
        match answer {
            Ok(Ok(credentials)) => Ok(credentials),
            Ok(Err(CredentialsError::CredentialsNotLoaded(_))) => Err(MintError::NoTaskRole),
            // Kinds and the endpoint's own code only: an answer may hold anything.
            Ok(Err(CredentialsError::InvalidConfiguration(_))) => {
                Err(MintError::Endpoint("its address in the container's environment is not allowed".to_owned()))
            }
            Ok(Err(CredentialsError::ProviderTimedOut(_))) | Err(_) => {
                Err(MintError::Timeout(ENDPOINT_TIMEOUT.as_secs()))
            }
            Ok(Err(_)) => Err(MintError::Endpoint("it refused, or its answer could not be read".to_owned())),
        }
    }
}

/// The client for AWS services. The image holds no CA bundle, so the roots come with the program; `extra_ca` is for a
/// company's proxy in between.
///
/// # Errors
/// When `extra_ca` cannot be read.
pub(crate) fn https_client(extra_ca: &ExtraCa) -> Result<SharedHttpClient, TlsConfigError> {
    let mut roots = tls::TrustStore::empty().with_pem_certificate(aws_roots());
    for pem in extra_ca_pem(extra_ca)? {
        roots = roots.with_pem_certificate(pem);
    }
    let context = tls::TlsContext::builder()
        .with_trust_store(roots)
        .build()
        .map_err(|error| TlsConfigError::AwsClient(error.to_string()))?;
    let client = aws_smithy_http_client::Builder::new()
        .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::AwsLc))
        .tls_context(context)
        .build_https();
    Ok(bounded(client))
}
