//! Parameters and sessions of Systems Manager.

use aws_smithy_types::error::metadata::ProvideErrorMetadata as _;

use crate::aws::error::{AwsError, Call};
use crate::aws::{Aws, last_part};
use crate::types::SessionGrant;

/// The document that every account has. It takes the port; a document of one's own has it fixed.
const STOCK_DOCUMENT: &str = "AWS-StartPortForwardingSession";
/// Session Manager only echoes it to the client, which listens where it likes; 0 is the document's default.
const LOCAL_PORT: &str = "0";

impl Aws {
    /// The value of a parameter of the parameter store, decrypted; `None` if there is none of this name.
    pub(crate) async fn parameter(&self, name: &str) -> Result<Option<String>, AwsError> {
        let service = self.service("Systems Manager")?;
        let call = self.call("GetParameter", &service);
        match self.ssm.get_parameter().name(name).with_decryption(true).send().await {
            Ok(answer) => Ok(answer.parameter().and_then(|parameter| parameter.value()).map(str::to_owned)),
            Err(error) if error.code() == Some("ParameterNotFound") => Ok(None),
            Err(error) => Err(call.failed(&error)),
        }
    }

    /// Names of parameters below a path. The developer policy does not have this call: whoever may not make it gets nothing.
    pub(crate) async fn parameters_below(&self, path: &str) -> Vec<String> {
        match self.ssm.get_parameters_by_path().path(path).recursive(false).send().await {
            Ok(answer) => {
                answer.parameters().iter().filter_map(|parameter| parameter.name()).map(str::to_owned).collect()
            }
            Err(error) => {
                tracing::debug!(%error, "cannot list parameters");
                Vec::new()
            }
        }
    }

    /// Opens a port session to `target` (see [`crate::aws::TaskState::session_target`]).
    ///
    /// # Errors
    /// [`AwsError`]; `TargetNotConnected` until the agent in the task has registered.
    pub(crate) async fn start_session(
        &self,
        target: &str,
        document: &str,
        port: u16,
        reason: Option<&str>,
    ) -> Result<SessionGrant, AwsError> {
        let service = self.service("Systems Manager")?;
        let call = self.call("StartSession", &service);
        let mut request = self
            .ssm
            .start_session()
            .target(target)
            .document_name(document)
            .parameters("localPortNumber", vec![LOCAL_PORT.to_owned()])
            .set_reason(reason.map(str::to_owned));
        if last_part(document) == STOCK_DOCUMENT {
            request = request.parameters("portNumber", vec![port.to_string()]);
        }
        let answer = request.send().await.map_err(|error| call.failed(&error))?;
        grant(&call, answer.session_id, answer.token_value, answer.stream_url)
    }

    /// A new token for a session, often with a new URL; `None`: the session is over for good.
    pub(crate) async fn resume_session(&self, session_id: &str) -> Result<Option<SessionGrant>, AwsError> {
        let service = self.service("Systems Manager")?;
        let call = self.call("ResumeSession", &service);
        match self.ssm.resume_session().session_id(session_id).send().await {
            // An answer without a token is how the service says that the session has timed out.
            Ok(answer) if answer.token_value().is_none_or(str::is_empty) => Ok(None),
            Ok(answer) => {
                let session_id = answer.session_id.or_else(|| Some(session_id.to_owned()));
                grant(&call, session_id, answer.token_value, answer.stream_url).map(Some)
            }
            Err(error) if error.code() == Some("DoesNotExistException") => Ok(None),
            Err(error) => Err(call.failed(&error)),
        }
    }

    /// Ends a session; one that is over already is no error.
    pub(crate) async fn terminate_session(&self, session_id: &str) -> Result<(), AwsError> {
        let service = self.service("Systems Manager")?;
        let call = self.call("TerminateSession", &service);
        match self.ssm.terminate_session().session_id(session_id).send().await {
            Ok(_) => Ok(()),
            Err(error) if error.code() == Some("DoesNotExistException") => Ok(()),
            Err(error) => Err(call.failed(&error)),
        }
    }
}

fn grant(
    call: &Call<'_>,
    session_id: Option<String>,
    token: Option<String>,
    stream_url: Option<String>,
) -> Result<SessionGrant, AwsError> {
    let given = |value: Option<String>, name: &str| {
        let missing = || call.other("UnreadableAnswer", &format!("the answer has no {name}"));
        value.filter(|value| !value.is_empty()).ok_or_else(missing)
    };
    Ok(SessionGrant {
        session_id: given(session_id, "SessionId")?,
        token: given(token, "TokenValue")?.into(),
        stream_url: given(stream_url, "StreamUrl")?.into(),
    })
}
