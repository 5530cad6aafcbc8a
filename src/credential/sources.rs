//! What the sources of one relay share: the task role, the HTTPS client, the region.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_sdk_secretsmanager::config::SharedHttpClient;

use crate::credential::task_role::https_client;
use crate::credential::{Cache, RdsIam, SecretsManager, Source, TaskRole, Vault};
use crate::tls::TlsConfigError;
use crate::types::{CredentialConfig, Target};

/// Makes the credential cache of each target.
pub(crate) struct Sources {
    role: Arc<TaskRole>,
    http: SharedHttpClient,
    region: String,
    secrets_manager_endpoint: Option<String>,
    extra_ca: Option<PathBuf>,
}

impl Sources {
    /// `secrets_manager_endpoint` is another endpoint than that of the region.
    ///
    /// # Errors
    /// When `extra_ca` cannot be read.
    pub(crate) fn new(
        region: String,
        extra_ca: Option<&Path>,
        secrets_manager_endpoint: Option<String>,
    ) -> Result<Self, TlsConfigError> {
        let role = Arc::new(TaskRole::from_container());
        Ok(Self {
            role,
            http: https_client(extra_ca)?,
            region,
            secrets_manager_endpoint,
            extra_ca: extra_ca.map(Path::to_owned),
        })
    }

    /// The credentials of a target, or `None` where its clients bring their own.
    ///
    /// # Errors
    /// When a file that the source needs cannot be used.
    pub(crate) fn cache(&self, target: &Target) -> Result<Option<Cache>, TlsConfigError> {
        let role = Arc::clone(&self.role);
        let source = match &target.credential {
            CredentialConfig::Client => return Ok(None),
            CredentialConfig::RdsIam { user } => Source::RdsIam(RdsIam {
                role,
                region: self.region.clone(),
                // The configuration has both for this source.
                host: target.host.clone().unwrap_or_default(),
                port: target.port.unwrap_or_default(),
                user: user.clone(),
            }),
            CredentialConfig::SecretsManager { secret_id, region } => Source::SecretsManager(SecretsManager {
                role,
                http: self.http.clone(),
                secret_id: secret_id.clone(),
                region: region.clone().unwrap_or_else(|| self.region.clone()),
                endpoint: self.secrets_manager_endpoint.clone(),
            }),
            CredentialConfig::Vault(config) => {
                let tls = crate::tls::vault(self.extra_ca.as_deref(), config.ca_file.as_deref())?;
                Source::Vault(Box::new(Vault::new(role, (**config).clone(), &tls)?))
            }
        };
        Ok(Some(Cache::new(source)))
    }
}
