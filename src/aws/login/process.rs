//! `credential_process`: a program that prints credentials as JSON (AWS SDKs and Tools Reference Guide, "Process
//! credential provider"). The SDK's own provider puts what the program wrote into its error, which may be a secret.

use std::process::Stdio;
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{self, ProvideCredentials, future};
use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;
use serde::Deserialize;

use crate::aws::AwsError;
use crate::aws::profile::shown;

/// A person may have to log in in a browser meanwhile.
const LIMIT: Duration = Duration::from_secs(180);

#[derive(Debug)]
pub(super) struct Process {
    profile: String,
    command: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Output {
    version: Option<u32>,
    access_key_id: Option<String>,
    secret_access_key: Option<String>,
    session_token: Option<String>,
    expiration: Option<String>,
}

impl ProvideCredentials for Process {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(self.run())
    }
}

impl Process {
    pub(super) fn new(profile: &str, command: String) -> Self {
        Self { profile: profile.to_owned(), command }
    }

    async fn run(&self) -> provider::Result {
        let mut shell = tokio::process::Command::new("sh");
        shell.args(["-c", &self.command]).stdin(Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(LIMIT, shell.output())
            .await
            .map_err(|_| self.failed(&format!("has not ended after {} s", LIMIT.as_secs())))?
            .map_err(|error| self.failed(&format!("cannot be run: {error}")))?;
        if !output.status.success() {
            // 127 and 126 are the shell's own words for a program that it does not find or may not run.
            let why = match output.status.code() {
                Some(127) => "was not found".to_owned(),
                Some(126) => "may not be run".to_owned(),
                Some(code) => format!("ended with exit status {code}"),
                None => format!("was ended: {}", output.status),
            };
            return Err(self.failed(&why));
        }
        self.read(&output.stdout).map_err(|why| self.failed(&why))
    }

    /// Says what is wrong with the output without repeating any of it.
    fn read(&self, output: &[u8]) -> Result<Credentials, String> {
        let output: Output = serde_json::from_slice(output).map_err(|error| {
            format!("printed something else than the JSON of credentials, at column {}", error.column())
        })?;
        if output.version != Some(1) {
            return Err("printed JSON without \"Version\": 1".to_owned());
        }
        let missing = |name: &str| format!("printed JSON without {name}");
        let id = output.access_key_id.ok_or_else(|| missing("AccessKeyId"))?;
        let secret = output.secret_access_key.ok_or_else(|| missing("SecretAccessKey"))?;
        let end = output.expiration.map(|end| {
            let time = DateTime::from_str(&end, Format::DateTimeWithOffset)
                .ok()
                .and_then(|time| SystemTime::try_from(time).ok());
            time.ok_or_else(|| "printed an Expiration that is no time".to_owned())
        });
        Ok(Credentials::new(id, secret, output.session_token, end.transpose()?, "CredentialProcess"))
    }

    fn failed(&self, why: &str) -> CredentialsError {
        let program = program(&self.command);
        let said = format!("the credential_process of AWS profile {}, {program}, {why}", shown(&self.profile));
        CredentialsError::provider_error(AwsError::login(said, Some("run it by hand to see what it says".to_owned())))
    }
}

/// The program of a command line, without its arguments, which may hold secrets.
fn program(command: &str) -> String {
    let command = command.trim();
    let quoted = ['"', '\''].iter().find_map(|quote| command.strip_prefix(*quote)?.split_once(*quote));
    let program = quoted.map_or_else(|| command.split_whitespace().next().unwrap_or_default(), |(program, _)| program);
    // A variable that is set for the program may be a secret.
    if program.contains('=') { "a shell command".to_owned() } else { shown(program) }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    async fn run(command: &str) -> Result<Credentials, String> {
        Process::new("dev", command.to_owned()).run().await.map_err(|error| {
            let CredentialsError::ProviderError(_) = &error else { panic!("{error:?}") };
            std::error::Error::source(&error).unwrap().to_string()
        })
    }

    #[tokio::test]
    async fn its_keys_are_taken() {
        let json = r#"{"Version":1,"AccessKeyId":"a","SecretAccessKey":"b","SessionToken":"c","Expiration":"2027-01-15T08:00:00Z"}"#;
        let credentials = run(&format!("echo '{json}'")).await.unwrap();
        assert_eq!((credentials.access_key_id(), credentials.session_token()), ("a", Some("c")));
        assert_eq!(credentials.expiry(), Some(UNIX_EPOCH + Duration::from_secs(1_800_000_000)));
        let offset = json.replace("08:00:00Z", "10:00:00+02:00");
        assert_eq!(run(&format!("echo '{offset}'")).await.unwrap().expiry(), credentials.expiry());
    }

    #[tokio::test]
    async fn a_failure_names_the_program_and_its_status_and_none_of_its_words() {
        for (command, why) in [
            ("false S3CRET", "false, ended with exit status 1"),
            ("sh -c 'echo S3CRET >&2; exit 7'", "sh, ended with exit status 7"),
            ("/nowhere/tool S3CRET", "/nowhere/tool, was not found"),
            ("'/nowhere/my tool' S3CRET", "\"/nowhere/my tool\", was not found"),
            ("TOKEN=S3CRET false", "a shell command, ended with exit status 1"),
            ("echo S3CRET", "echo, printed something else than the JSON of credentials, at column 1"),
            ("echo '{\"Version\":2}'", "echo, printed JSON without \"Version\": 1"),
            ("echo '{\"Version\":1,\"AccessKeyId\":\"S3CRET\"}'", "echo, printed JSON without SecretAccessKey"),
        ] {
            let said = run(command).await.unwrap_err();
            assert_eq!(said, format!("the credential_process of AWS profile dev, {why}"));
        }
    }
}
