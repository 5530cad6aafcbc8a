//! From a profile to where its credentials come from: a base, and the roles that are assumed with it, one after another.
//! The rules are those of AWS's own tools.

use crate::aws::AwsError;
use crate::aws::profile::{Profile, Profiles, Which, named, shown};

/// Where the first credentials come from.
#[derive(Clone, PartialEq, Eq)]
pub(in crate::aws) enum Base {
    /// Access key, secret key and session token.
    Keys(String, String, Option<String>),
    /// `aws sso login`.
    Sso {
        session: Option<String>,
        start_url: String,
        region: String,
        account: String,
        role: String,
    },
    /// `aws login`: the ARN of the session.
    Console(String),
    /// `credential_process`: a command line.
    Process(String),
    WebIdentity {
        file: String,
        role: String,
        session_name: Option<String>,
    },
    /// `credential_source`.
    Environment,
    Container,
    Instance,
}

/// How somebody logs in, which decides what is to do when a login has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Kind {
    Keys,
    Sso,
    Console,
    Process,
    WebIdentity,
    /// Keys in variables.
    Environment,
    /// What the machine gives, or nothing that is known.
    #[default]
    Other,
}

impl Base {
    pub(in crate::aws) fn kind(&self) -> Kind {
        match self {
            Self::Keys(..) => Kind::Keys,
            Self::Sso { .. } => Kind::Sso,
            Self::Console(_) => Kind::Console,
            Self::Process(_) => Kind::Process,
            Self::WebIdentity { .. } => Kind::WebIdentity,
            Self::Environment => Kind::Environment,
            Self::Container | Self::Instance => Kind::Other,
        }
    }
}

/// A role that a profile names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::aws) struct Role {
    /// Of the profile.
    pub(in crate::aws) profile: String,
    pub(in crate::aws) arn: String,
    pub(in crate::aws) external_id: Option<String>,
    pub(in crate::aws) session_name: Option<String>,
    pub(in crate::aws) mfa_serial: Option<String>,
    pub(in crate::aws) seconds: Option<i32>,
}

/// How a profile's credentials are had.
#[derive(Clone, PartialEq, Eq)]
pub(in crate::aws) struct Chain {
    pub(in crate::aws) base: Base,
    /// The profile of the base, which is the one to log in to.
    pub(in crate::aws) base_profile: String,
    /// In the order in which they are assumed.
    pub(in crate::aws) roles: Vec<Role>,
}

impl Chain {
    /// `None`: there is no such profile, or it has no credentials.
    ///
    /// # Errors
    /// A sentence, if the profile or one that it leads to is not complete.
    pub(in crate::aws) fn resolve(profiles: &Profiles, name: &str) -> Result<Option<Self>, AwsError> {
        let mut visited: Vec<&str> = Vec::new();
        let mut roles = Vec::new();
        let mut name = name;
        loop {
            let Some(profile) = profiles.get(name) else {
                let Some(parent) = visited.last() else { return Ok(None) };
                let said = format!(
                    "the AWS profile {} has source_profile {}, and there is no such profile in {}",
                    shown(parent),
                    shown(name),
                    profiles.files()
                );
                return Err(AwsError::login(said, Some(profiles.names())));
            };
            profiles.readable(name, profile)?;
            // Below the first profile keys count more than a role, and a profile may be the source of its own role.
            let again = visited.contains(&name);
            let keys = !visited.is_empty() && has_keys(profile) || visited.last() == Some(&name);
            if again && !keys {
                let way = visited.iter().map(|name| shown(name)).collect::<Vec<_>>().join(", ");
                let said = format!("the AWS profiles {way} lead back to {} by source_profile", shown(name));
                return Err(AwsError::login(said, Some("one of them must have credentials of its own".to_owned())));
            }
            let (role, token) = (profile.word("role_arn"), profile.get("web_identity_token_file"));
            let Some(role) = role.filter(|_| !keys && token.is_none()) else {
                let base = base(profiles, name, profile)?;
                if base.is_none()
                    && let Some(parent) = visited.last()
                {
                    let said = format!(
                        "the source profile {} of AWS profile {} has no credentials",
                        shown(name),
                        shown(parent)
                    );
                    return Err(AwsError::login(said, None));
                }
                roles.reverse();
                return Ok(base.map(|base| Self { base, base_profile: name.to_owned(), roles }));
            };
            roles.push(Role {
                profile: name.to_owned(),
                arn: role.to_owned(),
                external_id: profile.word("external_id").map(str::to_owned),
                session_name: profile.word("role_session_name").map(str::to_owned),
                mfa_serial: profile.word("mfa_serial").map(str::to_owned),
                seconds: profile.word("duration_seconds").and_then(|seconds| seconds.parse().ok()),
            });
            match (profile.get("source_profile"), profile.word("credential_source")) {
                (Some(source), None) => {
                    visited.push(name);
                    let plain =
                        if profiles.get(source).is_some() { Some(source) } else { profile.word("source_profile") };
                    name = plain.unwrap_or(source);
                }
                (None, Some(source)) => {
                    let base = source_of(name, source)?;
                    roles.reverse();
                    return Ok(Some(Self { base, base_profile: name.to_owned(), roles }));
                }
                (both, _) => {
                    let has = if both.is_some() { "both" } else { "neither" };
                    let said = format!(
                        "the AWS profile {} has role_arn and {has} of source_profile and credential_source",
                        shown(name)
                    );
                    return Err(AwsError::login(said, Some("write exactly one of the two".to_owned())));
                }
            }
        }
    }
}

fn source_of(profile: &str, source: &str) -> Result<Base, AwsError> {
    match source.to_ascii_lowercase().as_str() {
        "environment" => Ok(Base::Environment),
        "ecscontainer" => Ok(Base::Container),
        "ec2instancemetadata" => Ok(Base::Instance),
        _ => {
            let said = format!("the AWS profile {} has credential_source {source:?}", shown(profile));
            Err(AwsError::login(said, Some("write Environment, EcsContainer or Ec2InstanceMetadata".to_owned())))
        }
    }
}

fn has_keys(profile: &Profile) -> bool {
    ["aws_access_key_id", "aws_secret_access_key"].iter().any(|key| profile.get(key).is_some())
}

/// The credentials of the profile itself, in the order of AWS's own tools.
fn base(profiles: &Profiles, name: &str, profile: &Profile) -> Result<Option<Base>, AwsError> {
    let incomplete = |missing: &[&str]| {
        let said = format!("the AWS profile {} is not complete: it has no {}", shown(name), missing.join(", "));
        AwsError::login(said, None)
    };
    if let Some(file) = profile.get("web_identity_token_file") {
        let Some(role) = profile.word("role_arn") else { return Err(incomplete(&["role_arn"])) };
        let session_name = profile.word("role_session_name").map(str::to_owned);
        return Ok(Some(Base::WebIdentity { file: file.to_owned(), role: role.to_owned(), session_name }));
    }
    if profile.word("sso_account_id").is_some() || profile.word("sso_role_name").is_some() {
        return sso(profiles, name, profile).map(Some);
    }
    let keys = || {
        let key = |name: &'static str| profile.word(name).ok_or(name);
        match (key("aws_access_key_id"), key("aws_secret_access_key")) {
            (Ok(id), Ok(secret)) => {
                let token = profile.word("aws_session_token").or_else(|| profile.word("aws_security_token"));
                Ok(Some(Base::Keys(id.to_owned(), secret.to_owned(), token.map(str::to_owned))))
            }
            (Err(_), Err(_)) => Ok(None),
            (Err(missing), _) | (_, Err(missing)) => Err(incomplete(&[missing])),
        }
    };
    if profile.origin("aws_access_key_id") == Some(Which::Credentials) {
        return keys();
    }
    if let Some(session) = profile.get("login_session") {
        return Ok(Some(Base::Console(session.to_owned())));
    }
    if let Some(command) = profile.get("credential_process") {
        return Ok(Some(Base::Process(command.to_owned())));
    }
    keys()
}

fn sso(profiles: &Profiles, name: &str, profile: &Profile) -> Result<Base, AwsError> {
    let session = profile.get("sso_session");
    let values = match session {
        None => None,
        Some(session) => Some(named(&profiles.sso_sessions, session).ok_or_else(|| {
            let said = format!(
                "the AWS profile {} has sso_session {}, and there is no [sso-session {}] in {}",
                shown(name),
                shown(session),
                shown(session),
                profiles.files()
            );
            AwsError::login(said, Some("run aws configure sso".to_owned()))
        })?),
    };
    let key = |key: &'static str| {
        let of_session = values.and_then(|values| values.get(key)).map(|value| super::uncommented(value));
        let value = profile.word(key);
        if let (Some(here), Some(there)) = (value, of_session)
            && here != there
        {
            let said = format!("the AWS profile {} and its sso-session differ in {key}", shown(name));
            return Err(AwsError::login(said, Some("take it out of the profile".to_owned())));
        }
        let value = of_session.or(value).filter(|value| !value.is_empty());
        value.map(str::to_owned).ok_or_else(|| {
            let said = format!("the AWS profile {} is not complete: it has no {key}", shown(name));
            AwsError::login(said, Some("run aws configure sso".to_owned()))
        })
    };
    // The name is a part of where the login is kept, so it must be the one that stands in the files.
    let session =
        session.map(|name| if profiles.sso_sessions.contains_key(name) { name } else { super::uncommented(name) });
    Ok(Base::Sso {
        session: session.map(str::to_owned),
        start_url: key("sso_start_url")?,
        region: key("sso_region")?,
        account: key("sso_account_id")?,
        role: key("sso_role_name")?,
    })
}
