//! SSM: the session to the task, and the parameter that holds an environment.

use std::collections::HashMap;

use crate::aws::Aws;
use crate::aws::error::AwsError;
use crate::types::SessionGrant;

const SERVICE: &str = "SSM";
/// Takes the port as a parameter; documents of our own fix it.
const STOCK_DOCUMENT: &str = "AWS-StartPortForwardingSession";

impl Aws {
    fn ssm(&self) -> aws_sdk_ssm::Client {
        aws_sdk_ssm::Client::new(&self.config)
    }

    /// The value of a parameter; `None` if there is no such parameter.
    pub(crate) async fn parameter(&self, name: &str) -> Result<Option<String>, AwsError> {
        let call = self.call("ssm:GetParameter", SERVICE);
        match self.ssm().get_parameter().name(name).with_decryption(true).send().await {
            Ok(answer) => Ok(answer.parameter().and_then(|parameter| parameter.value()).map(str::to_owned)),
            Err(error) if error.as_service_error().is_some_and(|error| error.is_parameter_not_found()) => Ok(None),
            Err(error) => Err(call.failed(&error)),
        }
    }

    /// Opens a port session to `port` of the target.
    pub(crate) async fn start_session(
        &self,
        target: &str,
        document: &str,
        port: u16,
        reason: Option<&str>,
    ) -> Result<SessionGrant, AwsError> {
        let call = self.call("ssm:StartSession", SERVICE);
        // The agent does not use the local port; the documents want one.
        let mut parameters = HashMap::from([("localPortNumber".to_owned(), vec![port.to_string()])]);
        if document == STOCK_DOCUMENT {
            parameters.insert("portNumber".to_owned(), vec![port.to_string()]);
        }
        let answer = self
            .ssm()
            .start_session()
            .target(target)
            .document_name(document)
            .set_parameters(Some(parameters))
            .set_reason(reason.map(str::to_owned))
            .send()
            .await
            .map_err(|error| call.failed(&error))?;
        grant(answer.session_id, answer.token_value, answer.stream_url)
            .ok_or_else(|| call.other("UnreadableAnswer", "it lacks the session's token or URL"))
    }

    /// A new token and URL for a session; `None`: it is over for good.
    pub(crate) async fn resume_session(&self, session_id: &str) -> Result<Option<SessionGrant>, AwsError> {
        let call = self.call("ssm:ResumeSession", SERVICE);
        match self.ssm().resume_session().session_id(session_id).send().await {
            // Without a token the session has timed out (session-manager-plugin, `ResumeSession` in sessionhandler.go).
            Ok(answer) => Ok(grant(answer.session_id, answer.token_value, answer.stream_url)),
            Err(error) if error.as_service_error().is_some_and(|error| error.is_does_not_exist_exception()) => Ok(None),
            Err(error) => Err(call.failed(&error)),
        }
    }

    /// Ends a session for both sides.
    pub(crate) async fn terminate_session(&self, session_id: &str) -> Result<(), AwsError> {
        let call = self.call("ssm:TerminateSession", SERVICE);
        let request = self.ssm().terminate_session().session_id(session_id);
        request.send().await.map_err(|error| call.failed(&error))?;
        Ok(())
    }
}

fn grant(session_id: Option<String>, token: Option<String>, url: Option<String>) -> Option<SessionGrant> {
    let filled = |text: &String| !text.is_empty();
    Some(SessionGrant {
        session_id: session_id?,
        token: token.filter(filled)?.into(),
        stream_url: url.filter(filled)?.into(),
    })
}
