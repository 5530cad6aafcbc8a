//! AssumeRole for a profile. The SDK's own provider knows no MFA, and names each session anew, so that nobody would find
//! their task again.

use std::time::SystemTime;

use aws_config::SdkConfig;
use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_sdk_sts::Client;

use crate::aws::AwsError;
use crate::aws::advice::{denied_by, word};
use crate::aws::error::Call;
use crate::aws::login::Ask;
use crate::aws::profile::{Role, shown};

/// So often a person may mistype a code.
const TRIES: usize = 3;
/// Where nothing is known about the caller.
const SESSION_NAME: &str = "bastion";

pub(super) async fn assume(
    role: &Role,
    with: Credentials,
    config: &SdkConfig,
    ask: &Ask,
) -> Result<Credentials, AwsError> {
    let provider = SharedCredentialsProvider::new(with);
    let sts = Client::new(&config.to_builder().credentials_provider(provider).build());
    let session_name = match &role.session_name {
        Some(name) => name.clone(),
        None => own_name(&sts).await,
    };
    for attempt in 1.. {
        let code = match &role.mfa_serial {
            Some(serial) => Some(code(role, serial, attempt, ask).await?),
            None => None,
        };
        let call = Call { operation: "AssumeRole", service: "STS", profile: Some(&role.profile), ..Call::default() };
        let answer = sts
            .assume_role()
            .role_arn(&role.arn)
            .role_session_name(&session_name)
            .set_external_id(role.external_id.clone())
            .set_duration_seconds(role.seconds)
            .set_serial_number(role.mfa_serial.clone())
            .set_token_code(code)
            .send()
            .await;
        return match answer {
            Ok(answer) => credentials(answer.credentials, &call),
            Err(error) => match call.failed(&error) {
                // "MultiFactorAuthentication failed with invalid MFA one time pass code."
                AwsError::AccessDenied { message, .. }
                    if role.mfa_serial.is_some() && message.contains("one time pass") =>
                {
                    if attempt < TRIES {
                        continue;
                    }
                    Err(wrong_code(role))
                }
                AwsError::AccessDenied { message, .. } => Err(refused(role, &message)),
                error => Err(error),
            },
        };
    }
    Err(wrong_code(role))
}

async fn code(role: &Role, serial: &str, attempt: usize, ask: &Ask) -> Result<String, AwsError> {
    let again = if attempt > 1 { "The code was not right. " } else { "" };
    let question = format!("{again}MFA code of {serial} for AWS profile {}: ", shown(&role.profile));
    let ask = Ask::clone(ask);
    let code = tokio::task::spawn_blocking(move || ask(question)).await.ok().flatten();
    code.map(|code| code.trim().to_owned()).filter(|code| !code.is_empty()).ok_or_else(|| {
        AwsError::login(
            format!(
                "the AWS profile {} asks for an MFA code, and there is no terminal to ask at",
                shown(&role.profile)
            ),
            Some(format!("run it in a terminal, or first: eval \"$({})\"", export(&role.profile))),
        )
    })
}

/// What the AWS CLI is told so that others get the credentials of a profile.
fn export(profile: &str) -> String {
    format!("aws configure export-credentials --format env --profile {}", word(profile))
}

fn wrong_code(role: &Role) -> AwsError {
    AwsError::login(
        format!("STS did not take {TRIES} MFA codes for AWS profile {}", shown(&role.profile)),
        Some("a code is good for half a minute and only once; check mfa_serial and the clock of the device".to_owned()),
    )
}

/// The developer policy has nothing to do with it: what lacks is the right to the role.
fn refused(role: &Role, message: &str) -> AwsError {
    let mfa = match &role.mfa_serial {
        Some(_) => "",
        None => "; if the role wants MFA, write mfa_serial into the profile",
    };
    let hint = denied_by(message).unwrap_or_else(|| {
        format!("the role's trust policy must let the caller in, and the caller needs sts:AssumeRole; check external_id{mfa}")
    });
    AwsError::login(
        format!("the role {} of AWS profile {} cannot be assumed: {message}", role.arn, shown(&role.profile)),
        Some(hint),
    )
}

/// The caller's own name, so that the same person is always the same session of the role.
async fn own_name(sts: &Client) -> String {
    let arn = sts.get_caller_identity().send().await.ok().and_then(|answer| answer.arn).unwrap_or_default();
    let legal = |c: &char| c.is_ascii_alphanumeric() || "_+=,.@-".contains(*c);
    let name: String = arn.rsplit('/').next().unwrap_or_default().chars().filter(legal).take(64).collect();
    if name.len() < 2 { SESSION_NAME.to_owned() } else { name }
}

fn credentials(answer: Option<aws_sdk_sts::types::Credentials>, call: &Call<'_>) -> Result<Credentials, AwsError> {
    let given = answer.ok_or_else(|| call.other("UnreadableAnswer", "the answer has no credentials"))?;
    let end = SystemTime::try_from(given.expiration)
        .map_err(|_| call.other("UnreadableAnswer", "the credentials have no time at which they end"))?;
    Ok(Credentials::new(
        given.access_key_id,
        given.secret_access_key,
        Some(given.session_token),
        Some(end),
        "AssumeRole",
    ))
}
