//! A connection that is not served: the client, the audit log, the log and the metrics hear why.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tracing::{debug, error, warn};

use crate::relay::audit::Refused;
use crate::relay::conn::Conn;
use crate::relay::error::{ConnError, ErrorKind};
use crate::relay::{Io, reply};
use crate::types::Target;
use crate::wire::proxy::Handshake;

/// For the goodbye to a client that may have stopped reading.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);

impl Conn {
    /// Tells the client what failed, in its protocol, and logs it. `target` and `user`: where and as whom, as far as it
    /// came.
    pub(super) async fn refuse(
        &self,
        client: &mut dyn Io,
        handshake: Option<&Handshake>,
        failure: &ConnError,
        target: &Target,
        user: Option<&str>,
    ) {
        self.record_failure(failure, handshake, target, user).await;
        let Some(handshake) = handshake else { return };
        if let Some(text) = reply::error_text(failure, target, user, self.id) {
            let packet = handshake.encode_error(&text);
            // A client that no longer reads cannot be told.
            let _told = tokio::time::timeout(GOODBYE_TIMEOUT, async {
                client.write_all(&packet).await?;
                client.shutdown().await?;
                // Let the client read the error before the socket goes: unread input would turn the close into a reset.
                let mut rest = [0_u8; 512];
                while client.read(&mut rest).await? > 0 {}
                std::io::Result::Ok(())
            })
            .await;
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
