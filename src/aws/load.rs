//! From flags, variables and profile files to what the calls need.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ::http::Uri;
use aws_config::provider_config::ProviderConfig;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::provider::{ProvideCredentials as _, SharedCredentialsProvider};
use aws_runtime::env_config::file::{EnvConfigFileKind, EnvConfigFiles};

use crate::aws::error::Call;
use crate::aws::login::{Ask, ProfileLogin, usual};
use crate::aws::profile::{Base, Chain, Choice, Getenv, Kind, Profiles, SETTINGS, expand, shown};
use crate::aws::{Aws, AwsError, Login, OPERATION_TIMEOUT, http};
use crate::network::{Bundle, Network, Proxies};
use crate::types::Partition;

const ATTEMPTS: u32 = 3;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Of one attempt, so that a request that is lost with its connection leaves time for another.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);

/// What the command line and its surroundings say.
pub(crate) struct Wanted<'a> {
    pub(crate) profile: Option<&'a str>,
    /// The region of the environment, and who says so.
    pub(crate) region: Option<(String, String)>,
    pub(crate) env: Getenv<'a>,
    pub(crate) home: Option<PathBuf>,
    /// Asks for a code of MFA.
    pub(crate) ask: Ask,
    pub(crate) now: fn() -> SystemTime,
}

impl Aws {
    /// Finds region, credentials, proxies and certificates where AWS's own tools look for them. A profile that is named on
    /// the command line wins over keys in the environment. Without a region the calls give [`AwsError::NoRegion`].
    ///
    /// # Errors
    /// What is wrong with a profile, a file or a variable that is used; what came of a login that a person takes part in.
    pub(crate) async fn load(wanted: Wanted<'_>) -> Result<Self, AwsError> {
        let env = wanted.env;
        let choice = Choice::new(wanted.profile, env);
        let profiles = Profiles::load(env, wanted.home.as_deref());
        profiles.check(&choice)?;
        check_endpoints(env)?;
        let region = region(&wanted, &profiles, &choice)?;
        let network = Arc::new(network(&wanted, &profiles, &choice)?);
        let config = sdk(&profiles, &choice, region.as_deref(), &network).await?;
        if let Some(region) = config.region() {
            let url = format!("https://{}/", Partition::endpoint("sts", region.as_ref()));
            let usable = url.parse().map_err(|_| "no URL".to_owned()).and_then(|url| network.proxies.to(&url));
            usable.map_err(|said| AwsError::login(said, None))?;
        }

        let from_env = keys_in_variables(wanted.profile, env)?;
        let chain = if from_env { None } else { Chain::resolve(&profiles, &choice.name)? };
        let mfa = chain.as_ref().is_some_and(|chain| chain.roles.iter().any(|role| role.mfa_serial.is_some()));
        let login = Login {
            region: profiles.without_region(&choice),
            asked_for: mfa.then(|| choice.name.clone()),
            ..login(&profiles, &choice, chain.as_ref(), from_env, env)?
        };
        let settings = ProviderConfig::without_region()
            .with_http_client(http_client(&network)?)
            .with_region(config.region().cloned())
            .with_use_fips(config.use_fips())
            .with_use_dual_stack(config.use_dual_stack());
        // A person or a program may take their time, which no call of the SDK has.
        let slow = mfa || chain.as_ref().is_some_and(|chain| matches!(chain.base, Base::Process(_)));
        let profile = chain
            .map(|chain| ProfileLogin::new(&choice.name, chain, &settings, config.clone(), wanted.ask, wanted.now));
        if let Some(profile) = profile.as_ref().filter(|_| slow) {
            let call =
                Call { operation: "Login", kind: login.kind, profile: login.profile.as_deref(), ..Call::default() };
            profile.provide_credentials().await.map_err(|error| call.no_login(&error))?;
        }
        let provider = match (wanted.profile, profile) {
            (Some(_), Some(profile)) => SharedCredentialsProvider::new(profile),
            (Some(_), None) => return Err(AwsError::NoCredentials { looked: login.credentials }),
            (None, profile) => SharedCredentialsProvider::new(usual(profile, &settings)),
        };
        let config = config.to_builder().credentials_provider(provider).build();
        Ok(Self::new(config, Arc::new(login), network))
    }
}

/// The settings of the profile and of variables, without credentials.
async fn sdk(
    profiles: &Profiles,
    choice: &Choice,
    region: Option<&str>,
    network: &Arc<Network>,
) -> Result<SdkConfig, AwsError> {
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .operation_attempt_timeout(ATTEMPT_TIMEOUT)
        .operation_timeout(OPERATION_TIMEOUT)
        .build();
    let files = EnvConfigFiles::builder().with_contents(EnvConfigFileKind::Config, profiles.settings(&choice.name));
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .http_client(http_client(network)?)
        .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS))
        .timeout_config(timeouts)
        .profile_files(files.build())
        .profile_name(SETTINGS)
        .no_credentials();
    if let Some(region) = region {
        loader = loader.region(Region::new(region.to_owned()));
    }
    Ok(loader.load().await)
}

fn http_client(network: &Arc<Network>) -> Result<http::RoutedClient, AwsError> {
    http::RoutedClient::new(network).map_err(|said| AwsError::login(said, None))
}

fn filled(env: Getenv<'_>, name: &str) -> Option<String> {
    env(name).filter(|value| !value.is_empty())
}

/// The SDK passes over what is no URL, and panics at an empty one; calls must not go elsewhere than somebody wished.
fn check_endpoints(env: Getenv<'_>) -> Result<(), AwsError> {
    for name in ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_ECS", "AWS_ENDPOINT_URL_SSM", "AWS_ENDPOINT_URL_STS"] {
        let Some(value) = env(name) else { continue };
        let url = value.parse::<Uri>().ok().filter(|url| matches!(url.scheme_str(), Some("http" | "https")));
        if url.is_none_or(|url| url.host().is_none_or(str::is_empty)) {
            let hint = "write https:// and a host, or unset it".to_owned();
            return Err(AwsError::login(format!("{name} is set and is no URL"), Some(hint)));
        }
    }
    Ok(())
}

/// The region: of the environment, of the variables, of the profile.
fn region(wanted: &Wanted<'_>, profiles: &Profiles, choice: &Choice) -> Result<Option<String>, AwsError> {
    let variable = |name: &str| Some((filled(wanted.env, name)?, name.to_owned()));
    let of_profile = || {
        let region = profiles.region(&choice.name)?;
        Some((region.to_owned(), format!("the region of AWS profile {}", shown(&choice.name))))
    };
    let found = wanted.region.clone().or_else(|| variable("AWS_REGION")).or_else(|| variable("AWS_DEFAULT_REGION"));
    let Some((region, source)) = found.or_else(of_profile) else { return Ok(None) };
    let legal = region.len() <= 63 && region.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    if legal {
        return Ok(Some(region));
    }
    let hint = "write a region, for example eu-west-1".to_owned();
    Err(AwsError::login(format!("{source} is {region:?}, which is no AWS region"), Some(hint)))
}

/// Proxies and certificates.
fn network(wanted: &Wanted<'_>, profiles: &Profiles, choice: &Choice) -> Result<Network, AwsError> {
    let of_profile = || {
        let path = profiles.get(&choice.name)?.get("ca_bundle")?;
        Some((format!("ca_bundle of AWS profile {}", shown(&choice.name)), path.to_owned()))
    };
    let named = filled(wanted.env, "AWS_CA_BUNDLE").map(|path| ("AWS_CA_BUNDLE".to_owned(), path)).or_else(of_profile);
    let read = |(named_by, path): (String, String)| {
        Bundle::read(&named_by, &expand(&path, wanted.env, wanted.home.as_deref()))
    };
    let bundle = named.map(read).transpose().map_err(|said| AwsError::login(said, None))?;
    Ok(Network::new(Proxies::new(wanted.env), bundle))
}

/// Whether the keys in variables count.
fn keys_in_variables(flag: Option<&str>, env: Getenv<'_>) -> Result<bool, AwsError> {
    let set = |names: &[&str]| names.iter().any(|name| env(name).is_some_and(|value| !value.trim().is_empty()));
    let (id, secret) = (set(&["AWS_ACCESS_KEY_ID"]), set(&["AWS_SECRET_ACCESS_KEY", "SECRET_ACCESS_KEY"]));
    match (flag, id, secret) {
        (Some(_), ..) | (None, false, false) => Ok(false),
        (None, true, true) => Ok(true),
        (None, id, _) => {
            let (set, other) = match id {
                true => ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
                false => ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"),
            };
            Err(AwsError::login(format!("{set} is set and {other} is not"), Some("set both, or unset both".to_owned())))
        }
    }
}

/// Where the credentials come from, in words.
fn login(
    profiles: &Profiles,
    choice: &Choice,
    chain: Option<&Chain>,
    from_env: bool,
    env: Getenv<'_>,
) -> Result<Login, AwsError> {
    let files = profiles.files();
    let credentials = match profiles.get(&choice.name) {
        Some(_) => format!("profile {} in {files} has none", shown(&choice.name)),
        None => format!("there is no profile {} in {files}; {}", shown(&choice.name), profiles.names()),
    };
    if from_env {
        return Ok(Login { kind: Kind::Environment, credentials, ..Login::default() });
    }
    if let Some(chain) = chain {
        let profile = Some(chain.base_profile.clone());
        return Ok(Login { profile, kind: chain.base.kind(), credentials, ..Login::default() });
    }
    let kind = match (filled(env, "AWS_WEB_IDENTITY_TOKEN_FILE"), filled(env, "AWS_ROLE_ARN")) {
        (Some(file), Some(_)) => {
            if let Err(error) = std::fs::metadata(Path::new(&file)) {
                let said = format!("AWS_WEB_IDENTITY_TOKEN_FILE names the file {file}, which cannot be read: {error}");
                let hint =
                    "in CI, give the job the permission to ask for a token (on GitHub: id-token: write)".to_owned();
                return Err(AwsError::login(said, Some(hint)));
            }
            Kind::WebIdentity
        }
        _ => Kind::Other,
    };
    Ok(Login { kind, credentials, ..Login::default() })
}
