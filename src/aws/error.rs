//! What goes wrong with an AWS call, in our own words: what, why, and the next step.

use std::error::Error;
use std::fmt::Debug;

use aws_credential_types::provider::error::CredentialsError;
use aws_smithy_runtime_api::client::result::{ConnectorError, SdkError};
use aws_smithy_types::error::metadata::ProvideErrorMetadata;

use crate::aws::advice::{again, denied_by};
use crate::aws::profile::{Kind, shown};

/// The longest text of AWS that an error repeats, in characters.
const MESSAGE_MAX: usize = 300;

/// Why an AWS call failed. `Display` is one sentence without secrets; [`AwsError::hint`] is the next step.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AwsError {
    /// `looked`: the files, and the profiles in them.
    #[error("no AWS credentials were found{}", after(": ", looked))]
    NoCredentials { looked: String },
    /// The login is over, or AWS does not know the key (any more).
    #[error("AWS does not accept the credentials{}: they have expired or do not exist any more", of(profile.as_deref(), *kind))]
    ExpiredCredentials { profile: Option<String>, kind: Kind },
    /// The profile or its login, in a sentence of its own.
    #[error("{said}")]
    Login { said: String, hint: Option<String> },
    #[error("access denied: {message}")]
    AccessDenied { message: String, denied_by: Option<String> },
    #[error("there is no ECS cluster {cluster} in this account and region")]
    ClusterNotFound { cluster: String },
    #[error("there is no active task definition {task_definition} in this account and region")]
    TaskDefinitionNotFound { task_definition: String },
    /// `failures[]` of an answer of ECS: the call was fine, yet not all of it was done.
    #[error("ECS refused: {reason}")]
    Refused { reason: String },
    #[error("the Session Manager agent in the task is not connected")]
    TargetNotConnected,
    #[error("AWS throttles the calls of this account")]
    Throttled,
    #[error("{service} cannot be reached: {reason}")]
    Unreachable { service: String, reason: String },
    #[error("AWS refuses the date of the request: the clock of this machine is wrong")]
    ClockSkew,
    #[error("no AWS region is set{}", after(": ", looked))]
    NoRegion { looked: String },
    #[error("{operation} failed: {code}{}{}", after(": ", message), after(", request ", request_id.as_deref().unwrap_or_default()))]
    Other { operation: String, code: String, message: String, request_id: Option<String> },
}

fn of(profile: Option<&str>, kind: Kind) -> String {
    match (kind, profile) {
        (Kind::Environment, _) => " of AWS_ACCESS_KEY_ID in the environment".to_owned(),
        (_, Some(profile)) => format!(" of profile {}", shown(profile)),
        (_, None) => String::new(),
    }
}

/// Whether credentials could not be had because something was not reached.
pub(super) fn is_network(error: &CredentialsError) -> bool {
    let io = |cause: &ConnectorError| cause.is_io() || cause.is_timeout();
    matches!(error, CredentialsError::ProviderTimedOut(_))
        || chain(error).any(|cause| cause.downcast_ref::<ConnectorError>().is_some_and(io))
}

fn after(separator: &str, text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("{separator}{text}") }
}

impl AwsError {
    pub(super) fn login(said: String, hint: Option<String>) -> Self {
        Self::Login { said, hint }
    }

    /// What the user can do about it.
    pub(crate) fn hint(&self) -> Option<String> {
        let text = match self {
            Self::NoCredentials { .. } => {
                "log in with `aws login` or `aws sso login`, or name a profile with --profile or AWS_PROFILE"
            }
            Self::ExpiredCredentials { profile, kind } => return Some(again(profile.as_deref(), *kind)),
            Self::Login { hint, .. } => return hint.clone(),
            Self::AccessDenied { denied_by: Some(hint), .. } => hint,
            Self::AccessDenied { denied_by: None, .. } => {
                "check that this is the right profile, and ask an administrator for the developer policy of bastion, \
                 bastion-ENV-developer"
            }
            Self::ClusterNotFound { .. } | Self::TaskDefinitionNotFound { .. } => {
                "check the environment's name and region, and that it is deployed in the account of this profile"
            }
            Self::Refused { .. } => "`capacity` passes by itself: try again; for others see the events of the cluster",
            Self::TargetNotConnected => {
                "try again in a few seconds; if it stays so, check the task role (ssmmessages:*) and the way from the \
                 subnets to ssmmessages"
            }
            Self::Throttled => "try again in a minute",
            Self::Unreachable { reason, .. } if reason.contains("UnknownIssuer") => {
                "if a proxy here inspects TLS, set AWS_CA_BUNDLE to a PEM file with its CA"
            }
            Self::Unreachable { reason, .. } if reason.contains("lookup address") => {
                "check the name of the region, the network, VPN and proxy (HTTPS_PROXY) of this machine, and AWS_ENDPOINT_URL \
                 if set"
            }
            Self::Unreachable { .. } => {
                "check the network, VPN and proxy (HTTPS_PROXY) of this machine, and AWS_ENDPOINT_URL if set"
            }
            Self::ClockSkew => "set the clock of this machine",
            Self::NoRegion { .. } => "give --region, or set `region` in the profile or AWS_REGION",
            Self::Other { .. } => return None,
        };
        Some(text.to_owned())
    }

    /// Whether the same call may succeed later without the user doing anything.
    pub(crate) fn is_retryable(&self) -> bool {
        match self {
            Self::TargetNotConnected | Self::Throttled | Self::Unreachable { .. } => true,
            Self::Other { code, .. } => matches!(
                code.as_str(),
                "InternalError"
                    | "InternalFailure"
                    | "InternalServerError"
                    | "ServerException"
                    | "ServiceUnavailable"
                    | "ServiceUnavailableException"
                    | "UnreadableAnswer"
            ),
            _ => false,
        }
    }
}

/// What a call was about, for the errors that name it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Call<'a> {
    pub(super) operation: &'a str,
    /// The service as the user knows it: `ECS in ap-northeast-1`.
    pub(super) service: &'a str,
    pub(super) profile: Option<&'a str>,
    pub(super) kind: Kind,
    /// Where credentials and region were looked for.
    pub(super) looked: &'a str,
    pub(super) cluster: &'a str,
    pub(super) task_definition: &'a str,
}

impl Call<'_> {
    /// Maps what the SDK says.
    pub(super) fn failed<E, R>(&self, error: &SdkError<E, R>) -> AwsError
    where
        E: ProvideErrorMetadata + Error + 'static,
        R: Debug + 'static,
    {
        match error {
            SdkError::ServiceError(_) => {
                let request_id = error.meta().extra("aws_request_id").map(short);
                self.answered(error.code().unwrap_or("Unknown"), error.message().unwrap_or_default(), request_id)
            }
            SdkError::TimeoutError(_) => self.unreachable("no answer in time"),
            SdkError::ResponseError(_) => self.other("UnreadableAnswer", "the answer is not one of AWS"),
            SdkError::DispatchFailure(failure) if failure.is_timeout() => self.unreachable("no connection in time"),
            SdkError::DispatchFailure(failure) if failure.is_io() => self.unreachable(&reason(error)),
            _ => self.not_sent(error),
        }
    }

    /// Maps what a service answered.
    pub(super) fn answered(&self, code: &str, message: &str, request_id: Option<String>) -> AwsError {
        let lower = message.to_lowercase();
        match code {
            "UnrecognizedClientException"
            | "InvalidClientTokenId"
            | "InvalidAccessKeyId"
            | "ExpiredToken"
            | "ExpiredTokenException" => self.expired(),
            "AccessDenied" | "AccessDeniedException" | "UnauthorizedOperation" => {
                AwsError::AccessDenied { message: short(message), denied_by: denied_by(message) }
            }
            "Throttling" | "ThrottlingException" | "TooManyRequestsException" | "RequestLimitExceeded" => {
                AwsError::Throttled
            }
            "ClusterNotFoundException" => AwsError::ClusterNotFound { cluster: self.cluster.to_owned() },
            // RunTask has no code of its own for this.
            "ClientException" | "InvalidParameterException"
                if lower.contains("taskdefinition") && (lower.contains("not found") || lower.contains("inactive")) =>
            {
                AwsError::TaskDefinitionNotFound { task_definition: self.task_definition.to_owned() }
            }
            "TargetNotConnected" => AwsError::TargetNotConnected,
            "RequestExpired" | "RequestTimeTooSkewed" => AwsError::ClockSkew,
            // "Signature expired: …", "Signature not yet current: …"
            "InvalidSignatureException" | "SignatureDoesNotMatch"
                if lower.contains("expired") || lower.contains("not yet current") =>
            {
                AwsError::ClockSkew
            }
            _ => AwsError::Other {
                operation: self.operation.to_owned(),
                code: short(code),
                message: short(message),
                request_id,
            },
        }
    }
}

impl Call<'_> {
    /// Maps what went wrong before anything was sent: mostly credentials.
    fn not_sent(&self, error: &(dyn Error + 'static)) -> AwsError {
        match chain(error).find_map(|cause| cause.downcast_ref::<CredentialsError>()) {
            Some(credentials) => self.no_login(credentials),
            None => {
                let text = innermost(error);
                if text.to_lowercase().contains("region") {
                    AwsError::NoRegion { looked: self.looked.to_owned() }
                } else if text.contains("certificate") {
                    self.unreachable(&short(&text))
                } else {
                    self.other("NotSent", &text)
                }
            }
        }
    }

    /// Maps what the chain of credential providers says. The text of a provider is not repeated: a program of the
    /// user may have written it.
    pub(super) fn no_login(&self, error: &CredentialsError) -> AwsError {
        if let Some(told) = chain(error).find_map(|cause| cause.downcast_ref::<AwsError>()) {
            return told.clone();
        }
        if matches!(error, CredentialsError::CredentialsNotLoaded(_)) {
            return AwsError::NoCredentials { looked: self.looked.to_owned() };
        }
        let causes = || chain(error).map(|cause| cause.to_string().to_lowercase());
        // The SDK keeps the types of these private: "the SSO token has expired and cannot be refreshed",
        // UnauthorizedException of GetRoleCredentials, a cached token that is not there (never logged in).
        let login =
            |text: &str| text.contains("expired") || text.contains("unauthorized") || text.contains("sso token");
        if causes().any(|text| login(&text)) {
            return self.expired();
        }
        if is_network(error) && !matches!(error, CredentialsError::ProviderTimedOut(_)) {
            return AwsError::Unreachable {
                service: "the source of the AWS credentials".to_owned(),
                reason: reason(error),
            };
        }
        match error {
            CredentialsError::ProviderTimedOut(_) => AwsError::Unreachable {
                service: "the source of the AWS credentials".to_owned(),
                reason: "no answer in time".to_owned(),
            },
            CredentialsError::InvalidConfiguration(_) => self.other("InvalidConfiguration", &innermost(error)),
            _ => self.other("CredentialsProviderFailed", "the credential provider of the profile gave an error"),
        }
    }

    pub(super) fn other(&self, code: &str, message: &str) -> AwsError {
        AwsError::Other {
            operation: self.operation.to_owned(),
            code: code.to_owned(),
            message: short(message),
            request_id: None,
        }
    }

    pub(super) fn unreachable(&self, reason: &str) -> AwsError {
        AwsError::Unreachable { service: self.service.to_owned(), reason: reason.to_owned() }
    }

    fn expired(&self) -> AwsError {
        AwsError::ExpiredCredentials { profile: self.profile.map(str::to_owned), kind: self.kind }
    }
}

fn chain<'e>(error: &'e (dyn Error + 'static)) -> impl Iterator<Item = &'e (dyn Error + 'static)> {
    let mut next = Some(error);
    std::iter::from_fn(move || {
        let current = next?;
        next = current.source();
        Some(current)
    })
}

fn innermost(error: &(dyn Error + 'static)) -> String {
    chain(error).last().map(ToString::to_string).unwrap_or_default()
}

/// Why something was not reached. The SDK's words for what a proxy answers are translated.
fn reason(error: &(dyn Error + 'static)) -> String {
    let said = short(&innermost(error));
    match said.strip_prefix("tunnel error: ") {
        Some("proxy authorization required") => {
            "the proxy wants a user name and a password, or others (HTTP status 407); write them into its variable as \
             http://USER:PASSWORD@HOST:PORT"
                .to_owned()
        }
        Some("unsuccessful") => "the proxy does not let the connection through".to_owned(),
        Some("unexpected end of file") => "the proxy closed the connection".to_owned(),
        _ => said,
    }
}

/// One line of bounded length, as it can stand within a sentence.
pub(super) fn short(text: &str) -> String {
    let printable = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut line: String = printable.take(MESSAGE_MAX).collect();
    if text.chars().nth(MESSAGE_MAX).is_some() {
        line.push('…');
    }
    line.trim().trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use aws_sdk_ecs::operation::run_task::RunTaskError;
    use aws_smithy_types::error::ErrorMetadata;

    use super::*;

    const CALL: Call<'_> = Call {
        operation: "RunTask",
        service: "ECS in ap-northeast-1",
        profile: Some("dev"),
        kind: Kind::Sso,
        looked: "nowhere",
        cluster: "bastion",
        task_definition: "bastion-demo",
    };

    fn expired() -> AwsError {
        AwsError::ExpiredCredentials { profile: Some("dev".to_owned()), kind: Kind::Sso }
    }

    fn answer(code: &str, message: &str) -> AwsError {
        let meta = ErrorMetadata::builder().code(code).message(message).custom("aws_request_id", "r-1").build();
        CALL.failed(&SdkError::service_error(RunTaskError::generic(meta), ()))
    }

    #[test]
    fn codes_of_the_services() {
        let invalid = "The security token included in the request is invalid.";
        let gone = AwsError::TaskDefinitionNotFound { task_definition: "bastion-demo".to_owned() };
        let denied = AwsError::AccessDenied { message: "User: x is not authorized".to_owned(), denied_by: None };
        for (code, message, expected) in [
            ("UnrecognizedClientException", invalid, expired()),
            ("InvalidClientTokenId", invalid, expired()),
            ("ExpiredToken", "", expired()),
            ("ExpiredTokenException", "", expired()),
            ("AccessDenied", "User: x is not authorized.", denied.clone()),
            ("AccessDeniedException", "User: x is not\nauthorized", denied),
            ("ThrottlingException", "Rate exceeded", AwsError::Throttled),
            ("ClusterNotFoundException", "", AwsError::ClusterNotFound { cluster: "bastion".to_owned() }),
            ("ClientException", "TaskDefinition not found.", gone.clone()),
            ("InvalidParameterException", "TaskDefinition is inactive", gone),
            ("TargetNotConnected", "i is not connected.", AwsError::TargetNotConnected),
            ("RequestExpired", "", AwsError::ClockSkew),
            ("InvalidSignatureException", "Signature expired: 1 is now earlier than 2", AwsError::ClockSkew),
            ("SignatureDoesNotMatch", "Signature not yet current: 1 is still later", AwsError::ClockSkew),
        ] {
            assert_eq!(answer(code, message), expected, "{code}: {message}");
        }
    }

    #[test]
    fn an_unknown_code_keeps_code_message_and_request_id() {
        let error = answer("InvalidParameterException", "The subnet ID 'subnet-1' does not exist.");
        let text = "RunTask failed: InvalidParameterException: The subnet ID 'subnet-1' does not exist, request r-1";
        assert_eq!(error.to_string(), text);
        assert!(!error.is_retryable() && error.hint().is_none());
        assert!(answer("ServerException", "").is_retryable());
        let AwsError::Other { message, .. } = answer("X", &"é".repeat(5000)) else { panic!("not Other") };
        assert_eq!(message.chars().count(), MESSAGE_MAX + 1);
    }

    fn dispatch(source: impl Into<Box<dyn Error + Send + Sync>>) -> AwsError {
        CALL.failed(&SdkError::<RunTaskError, ()>::dispatch_failure(ConnectorError::other(source.into(), None)))
    }

    #[test]
    fn the_credential_chain() {
        assert_eq!(
            dispatch(CredentialsError::not_loaded("no providers in chain provided credentials")),
            AwsError::NoCredentials { looked: "nowhere".to_owned() }
        );
        let sso = "the SSO token has expired and cannot be refreshed";
        assert_eq!(dispatch(CredentialsError::provider_error(sso)), expired());
        let construction = SdkError::<RunTaskError, ()>::construction_failure(CredentialsError::provider_error(sso));
        assert_eq!(CALL.failed(&construction), expired());

        let leaked = dispatch(CredentialsError::provider_error("helper wrote AKIASECRET"));
        assert!(matches!(leaked, AwsError::Other { .. }), "{leaked:?}");
        assert!(!format!("{leaked} {leaked:?}").contains("AKIASECRET"));
        let offline = CredentialsError::provider_error(ConnectorError::io("dns error".into()));
        assert!(matches!(dispatch(offline), AwsError::Unreachable { .. }));
        assert!(matches!(dispatch("A region must be set"), AwsError::NoRegion { .. }));
        let told = AwsError::login("the token file is not there".to_owned(), None);
        assert_eq!(dispatch(CredentialsError::provider_error(told.clone())), told);
    }

    #[test]
    fn a_refusal_keeps_who_denied_it_even_behind_a_long_name() {
        let arn = format!("arn:aws:sts::1:assumed-role/x/{}", "a".repeat(MESSAGE_MAX));
        let denied =
            |end: &str| answer("AccessDeniedException", &format!("User: {arn} is not authorized to perform: x {end}"));
        let hint = denied("with an explicit deny in a service control policy").hint().unwrap();
        assert!(hint.contains("the AWS organisation"), "{hint}");
        let hint = denied("because no identity-based policy allows the x action").hint().unwrap();
        assert!(hint.contains("the developer policy of bastion"), "{hint}");
        let said = AwsError::ExpiredCredentials { profile: None, kind: Kind::Environment }.to_string();
        assert!(said.contains("of AWS_ACCESS_KEY_ID in the environment"), "{said}");
    }

    #[test]
    fn what_a_proxy_answers_is_told_in_words() {
        let refused =
            |said: &'static str| SdkError::<RunTaskError, ()>::dispatch_failure(ConnectorError::io(said.into()));
        let said = CALL.failed(&refused("tunnel error: proxy authorization required")).to_string();
        assert!(said.contains("wants a user name and a password"), "{said}");
        let said = CALL.failed(&refused("tunnel error: unsuccessful")).to_string();
        assert!(said.contains("the proxy does not let the connection through"), "{said}");
        let hint = CALL.failed(&refused("invalid peer certificate: UnknownIssuer")).hint().unwrap();
        assert!(hint.contains("AWS_CA_BUNDLE"), "{hint}");
    }

    #[test]
    fn the_network() {
        let unreachable =
            |reason: &str| AwsError::Unreachable { service: CALL.service.to_owned(), reason: reason.to_owned() };
        let timeout = SdkError::<RunTaskError, ()>::timeout_error("30 s");
        assert_eq!(CALL.failed(&timeout), unreachable("no answer in time"));
        let io = SdkError::<RunTaskError, ()>::dispatch_failure(ConnectorError::io("connection refused".into()));
        assert_eq!(CALL.failed(&io), unreachable("connection refused"));
        let connect = SdkError::<RunTaskError, ()>::dispatch_failure(ConnectorError::timeout("5 s".into()));
        assert_eq!(CALL.failed(&connect), unreachable("no connection in time"));
        assert!(CALL.failed(&connect).is_retryable());
        let garbage = CALL.failed(&SdkError::<RunTaskError, ()>::response_error("<html>", ()));
        assert!(matches!(&garbage, AwsError::Other { code, .. } if code == "UnreadableAnswer"), "{garbage:?}");
    }
}
