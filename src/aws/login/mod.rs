//! The credentials of a profile: its base, then its roles, kept in memory until shortly before they end.

mod process;
mod role;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_config::ecs::EcsCredentialsProvider;
use aws_config::environment::EnvironmentVariableCredentialsProvider;
use aws_config::imds::credentials::ImdsCredentialsProvider;
use aws_config::login::LoginCredentialsProvider;
use aws_config::meta::credentials::CredentialsProviderChain;
use aws_config::provider_config::ProviderConfig;
use aws_config::sso::SsoCredentialsProvider;
use aws_config::web_identity_token::{StaticConfiguration, WebIdentityTokenCredentialsProvider};
use aws_config::{Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{self, ProvideCredentials, future};
use tokio::sync::Mutex;
use tokio_util::task::TaskTracker;

use crate::aws::AwsError;
use crate::aws::profile::{Base, Chain, Kind};

/// Asks the person for something that nobody else knows; `None`: there is nobody to ask.
pub(crate) type Ask = Arc<dyn Fn(String) -> Option<String> + Send + Sync>;

/// Credentials that end so soon are replaced.
const MARGIN: Duration = Duration::from_secs(5 * 60);
/// As the AWS tools name a session whose profile gives it no name, where nothing better is known.
const NAME_OF_WEB_IDENTITY: &str = "bastion-web-identity";

/// Credentials of one profile.
#[derive(Clone)]
pub(super) struct ProfileLogin(Arc<Inner>);

struct Inner {
    profile: String,
    chain: Chain,
    base: Box<dyn ProvideCredentials>,
    /// For the roles, without credentials.
    config: SdkConfig,
    ask: Ask,
    now: fn() -> SystemTime,
    kept: Mutex<Option<Credentials>>,
    /// A login goes on if the call that needed it gives up: a person may be typing a code.
    logins: TaskTracker,
}

impl fmt::Debug for ProfileLogin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProfileLogin").field("profile", &self.0.profile).finish_non_exhaustive()
    }
}

impl ProfileLogin {
    pub(super) fn new(
        profile: &str,
        chain: Chain,
        settings: &ProviderConfig,
        config: SdkConfig,
        ask: Ask,
        now: fn() -> SystemTime,
    ) -> Self {
        let base = provider(&chain.base_profile, chain.base.clone(), settings);
        Self(Arc::new(Inner {
            profile: profile.to_owned(),
            chain,
            base,
            config,
            ask,
            now,
            kept: Mutex::default(),
            logins: TaskTracker::new(),
        }))
    }
}

impl ProvideCredentials for ProfileLogin {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        let inner = Arc::clone(&self.0);
        let login = self.0.logins.spawn(async move { inner.credentials().await });
        future::ProvideCredentials::new(async move {
            login.await.map_err(|_| CredentialsError::unhandled("the login was interrupted"))?
        })
    }
}

impl Inner {
    async fn credentials(&self) -> provider::Result {
        // Held while a login is under way: whoever else comes waits for its outcome.
        let mut kept = self.kept.lock().await;
        let fresh = |credentials: &Credentials| credentials.expiry().is_some_and(|end| end > (self.now)() + MARGIN);
        if let Some(credentials) = kept.as_ref().filter(|credentials| fresh(credentials)) {
            return Ok(credentials.clone());
        }
        let mut credentials = self.base.provide_credentials().await.map_err(|error| self.explain(error))?;
        for role in &self.chain.roles {
            credentials = role::assume(role, credentials, &self.config, &self.ask)
                .await
                .map_err(CredentialsError::provider_error)?;
        }
        *kept = Some(credentials.clone());
        Ok(credentials)
    }

    /// What the provider of the base hides or says in its own words.
    fn explain(&self, error: CredentialsError) -> CredentialsError {
        let base = &self.chain.base_profile;
        let told = match &self.chain.base {
            Base::WebIdentity { file, .. } if std::fs::metadata(file).is_err() => Some(AwsError::login(
                format!("the token file of AWS profile {} is not there: {file}", super::profile::shown(base)),
                Some("in CI, give the job the permission to ask for a token (on GitHub: id-token: write)".to_owned()),
            )),
            // The file of the session is written by `aws login`; without it, or when it cannot be renewed, one has to do so.
            Base::Console(_) if !super::error::is_network(&error) => {
                Some(AwsError::ExpiredCredentials { profile: Some(base.clone()), kind: Kind::Console })
            }
            _ => None,
        };
        told.map_or(error, CredentialsError::provider_error)
    }
}

/// What gives the first credentials of a chain.
fn provider(profile: &str, base: Base, settings: &ProviderConfig) -> Box<dyn ProvideCredentials> {
    match base {
        Base::Keys(id, secret, token) => Box::new(Credentials::new(id, secret, token, None, "ProfileFile")),
        Base::Sso { session, start_url, region, account, role } => {
            let mut sso = SsoCredentialsProvider::builder()
                .configure(settings)
                .account_id(account)
                .role_name(role)
                .start_url(start_url)
                .region(Region::new(region));
            sso.set_session_name(session);
            Box::new(sso.build())
        }
        Base::Console(session) => Box::new(LoginCredentialsProvider::builder(session).configure(settings).build()),
        Base::Process(command) => Box::new(process::Process::new(profile, command)),
        Base::WebIdentity { file, role, session_name } => Box::new(
            WebIdentityTokenCredentialsProvider::builder()
                .static_configuration(StaticConfiguration {
                    web_identity_token_file: file.into(),
                    role_arn: role,
                    session_name: session_name.unwrap_or_else(|| NAME_OF_WEB_IDENTITY.to_owned()),
                })
                .configure(settings)
                .build(),
        ),
        Base::Environment => Box::new(EnvironmentVariableCredentialsProvider::new()),
        Base::Container => Box::new(EcsCredentialsProvider::builder().configure(settings).build()),
        Base::Instance => Box::new(ImdsCredentialsProvider::builder().configure(settings).build()),
    }
}

/// The credentials of whoever names no profile on the command line, in the SDK's order: variables, profile, web identity,
/// what the machine gives.
pub(super) fn usual(profile: Option<ProfileLogin>, settings: &ProviderConfig) -> CredentialsProviderChain {
    let mut chain = CredentialsProviderChain::first_try("Environment", EnvironmentVariableCredentialsProvider::new());
    if let Some(profile) = profile {
        chain = chain.or_else("Profile", profile);
    }
    chain
        .or_else("WebIdentityToken", WebIdentityTokenCredentialsProvider::builder().configure(settings).build())
        .or_else("EcsContainer", EcsCredentialsProvider::builder().configure(settings).build())
        .or_else("Ec2InstanceMetadata", ImdsCredentialsProvider::builder().configure(settings).build())
}
