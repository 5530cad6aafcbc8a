//! What the sources of one relay share: the task role, the HTTPS client, the region.

use std::sync::{Arc, OnceLock};

use aws_sdk_secretsmanager::config::SharedHttpClient;

use crate::api::authorize::Audience;
use crate::credential::personal::Personal;
use crate::credential::task_role::https_client;
use crate::credential::vault::{Login, Server};
use crate::credential::{Cache, Logins, RdsIam, SecretsManager, Source, TaskRole, Vault};
use crate::tls::TlsConfigError;
use crate::types::{CredentialConfig, Engine, ExtraCa, Target, TargetSpec, VaultAs, rds_host};

/// Makes the logins of each target.
pub(crate) struct Sources {
    role: Arc<TaskRole>,
    http: SharedHttpClient,
    region: String,
    secrets_manager_endpoint: Option<String>,
    extra_ca: ExtraCa,
}

impl Sources {
    /// `secrets_manager_endpoint` is another endpoint than that of the region.
    ///
    /// # Errors
    /// When `extra_ca` cannot be read.
    pub(crate) fn new(
        region: String,
        extra_ca: ExtraCa,
        secrets_manager_endpoint: Option<String>,
    ) -> Result<Self, TlsConfigError> {
        let role = Arc::new(TaskRole::from_container());
        Ok(Self { role, http: https_client(&extra_ca)?, region, secrets_manager_endpoint, extra_ca })
    }

    /// # Errors
    /// When a file that the source needs cannot be used.
    pub(crate) fn logins(&self, target: &Target) -> Result<Logins, TlsConfigError> {
        let role = Arc::clone(&self.role);
        let source = match &target.credential {
            CredentialConfig::Client => return Ok(Logins::Client),
            CredentialConfig::RdsIam { user, region } => Source::RdsIam(RdsIam {
                role,
                region: signing_region(region.as_deref(), target.endpoint.host(), &self.region).to_owned(),
                endpoint: target.endpoint.clone(),
                user: user.clone(),
            }),
            CredentialConfig::SecretsManager { secret_id, region } => {
                self.secret(secret_id, region.as_deref(), OnceLock::from(target.engine))
            }
            CredentialConfig::Vault(config) => {
                let tls = crate::tls::vault(&self.extra_ca, config.ca_file.as_deref())?;
                let server = Server::new((**config).clone(), &tls)?;
                if config.login == VaultAs::Caller {
                    // The configuration always has a server id here.
                    let server_id = config.server_id.clone().unwrap_or_default();
                    let audience = Audience { server_id, sts_region: config.sts_region.clone() };
                    return Ok(Logins::Personal(Personal::new(server, audience)));
                }
                Source::Vault(Box::new(Vault::new(Login::Task(role), Arc::new(server))))
            }
        };
        Ok(Logins::Shared(Arc::new(Cache::new(source))))
    }

    /// The logins of a target whose secret has to say the engine. `None`: they are from elsewhere, where nothing says it.
    pub(crate) fn without_engine(&self, target: &TargetSpec) -> Option<Arc<Cache>> {
        match &target.credential {
            CredentialConfig::SecretsManager { secret_id, region } => {
                Some(Arc::new(Cache::new(self.secret(secret_id, region.as_deref(), OnceLock::new()))))
            }
            CredentialConfig::Client | CredentialConfig::RdsIam { .. } | CredentialConfig::Vault(_) => None,
        }
    }

    fn secret(&self, secret_id: &str, region: Option<&str>, engine: OnceLock<Engine>) -> Source {
        Source::SecretsManager(SecretsManager {
            role: Arc::clone(&self.role),
            http: self.http.clone(),
            secret_id: secret_id.to_owned(),
            region: region.unwrap_or(&self.region).to_owned(),
            engine,
            endpoint: self.secrets_manager_endpoint.clone(),
        })
    }
}

/// Where a token is good: in the region of the database, which its name tells. A replica of another region is reached so,
/// too.
fn signing_region<'a>(configured: Option<&'a str>, host: Option<&'a str>, own: &'a str) -> &'a str {
    configured.or_else(|| rds_host::region(host?)).unwrap_or(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_signed_for_the_region_of_the_database() {
        let host = Some("orders.abc123.eu-central-1.rds.amazonaws.com");
        let cname = Some("db.example.com");
        for (configured, host, wanted) in [
            (None, host, "eu-central-1"),
            (Some("us-east-1"), host, "us-east-1"),
            (Some("us-east-1"), cname, "us-east-1"),
            (None, cname, "eu-west-1"),
            (None, None, "eu-west-1"),
        ] {
            assert_eq!(signing_region(configured, host, "eu-west-1"), wanted, "{configured:?} {host:?}");
        }
    }
}
