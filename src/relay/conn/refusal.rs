//! A connection that is not served: the client, the audit log, the log and the metrics hear why.

use bastion_wire::proxy::Handshake;
use tracing::{debug, error, warn};

use crate::relay::audit::Refused;
use crate::relay::client_io::ClientIo;
use crate::relay::conn::{Conn, ending};
use crate::relay::error::{ConnError, ErrorKind};
use crate::relay::reply;
use crate::types::Target;

impl Conn {
    /// Tells the client what failed, in its protocol, ends its connection and logs it. `target` and `user`: where and as whom, as far as it
    /// came.
    pub(super) async fn refuse(
        &self,
        client: Box<dyn ClientIo>,
        handshake: Option<&Handshake>,
        failure: &ConnError,
        target: &Target,
        user: Option<&str>,
    ) {
        self.record_failure(failure, handshake, target, user).await;
        let is_silent =
            |handshake: &Handshake| !handshake.answers_silence() && matches!(failure, ConnError::OpeningTimeout(_));
        match (handshake, reply::error_text(failure, target, user, self.id)) {
            (Some(handshake), Some(text)) if !is_silent(handshake) => {
                ending::end_well(client, &handshake.encode_error(&text), ending::GOODBYE_TIMEOUT).await;
            }
            // What the database has said went to the client already, or the database would say nothing.
            (Some(_), _) => ending::end_well(client, &[], ending::GOODBYE_TIMEOUT).await,
            // For the terminal of the person, since there is no protocol to say it in.
            (None, text) => ending::reset(client, &text.map(|text| text.sentence()).unwrap_or_default()).await,
        }
    }

    /// Writes a failure into the audit log, the log and the metrics. Clients that only look whether somebody listens are
    /// no refusal.
    pub(super) async fn record_failure(
        &self,
        failure: &ConnError,
        handshake: Option<&Handshake>,
        target: &Target,
        user: Option<&str>,
    ) {
        self.log_failure(failure);
        if failure.kind() == ErrorKind::ClientGone {
            return;
        }
        let mut record = self.record(target, user);
        record.client_program = handshake.and_then(Handshake::client_program);
        let error = match failure {
            ConnError::Refused(refusal) => format!("{failure}: {}", reply::cause(refusal)),
            _ => failure.to_string(),
        };
        let sqlstate = failure.said().map(|said| said.sqlstate.clone());
        self.shared.audit.refused(&record, &Refused { kind: failure.kind().as_str(), error, sqlstate }).await;
    }

    fn log_failure(&self, failure: &ConnError) {
        let kind = failure.kind();
        self.served.metrics.failed(kind);
        let (conn_id, target, addr) = (self.id, &self.served.target.name, &self.from);
        let sqlstate = failure.said().map(|said| &said.sqlstate);
        let kind_name = kind.as_str();
        match kind {
            ErrorKind::Audit | ErrorKind::Credential | ErrorKind::Internal => {
                error!(conn_id, target, client.addr = addr, error.kind = kind_name, error = %failure, "connection refused");
            }
            ErrorKind::ClientGone => {
                debug!(conn_id, target, client.addr = addr, error.kind = kind_name, error = %failure, "connection refused");
            }
            _ => {
                let refusal =
                    if let ConnError::Refused(refusal) = failure { reply::cause(refusal) } else { String::new() };
                warn!(conn_id, target, client.addr = addr, error.kind = kind_name, sqlstate, error = %failure, refusal, "connection refused");
            }
        }
    }
}
