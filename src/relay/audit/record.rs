//! The records of the audit log; the fields of `docs/audit.md`.

use std::time::Duration;

use serde::Serialize;

use crate::relay::audit::millis;
use crate::relay::identity::Person;
use crate::types::Target;

/// Who a record is about.
#[derive(Debug, Clone, Default, Serialize)]
pub(in crate::relay) struct Who {
    /// ARN that STS has confirmed.
    pub(super) person: Option<String>,
    pub(super) session_name: Option<String>,
    pub(super) user_id: Option<String>,
}

pub(super) fn who(person: Option<&Person>) -> Who {
    Who {
        person: person.map(|person| person.principal.to_string()),
        session_name: person.map(|person| person.principal.name().to_owned()),
        user_id: person.map(|person| person.user_id.clone()),
    }
}

/// One connection.
#[derive(Debug, Clone, Serialize)]
pub(in crate::relay) struct ConnRecord {
    pub(in crate::relay) conn_id: u64,
    #[serde(flatten)]
    pub(super) who: Who,
    pub(super) target: String,
    engine: &'static str,
    /// `None` where a secret names them and could not be read.
    host: Option<String>,
    port: Option<u16>,
    credential: &'static str,
    /// The user that the relay logged in as, or would have.
    pub(in crate::relay) db_user: Option<String>,
    /// What the client calls its program.
    pub(in crate::relay) client_program: Option<String>,
    client_addr: String,
}

impl ConnRecord {
    pub(in crate::relay) fn new(
        conn_id: u64,
        target: &Target,
        db_user: Option<&str>,
        client_addr: &str,
        person: Option<&Person>,
    ) -> Self {
        Self {
            conn_id,
            who: who(person),
            target: target.name.clone(),
            engine: target.engine.as_str(),
            host: target.host.clone(),
            port: target.port,
            credential: target.credential.source(),
            db_user: db_user.map(str::to_owned),
            client_program: None,
            client_addr: client_addr.to_owned(),
        }
    }
}

/// How a connection ended that was served.
#[derive(Debug, Clone, Serialize)]
pub(in crate::relay) struct Ended {
    bytes_up: u64,
    bytes_down: u64,
    duration_ms: u64,
    /// `client`, `upstream`, `shutdown`, or `audit` where its record could not be written.
    ended_by: &'static str,
    error: Option<String>,
}

impl Ended {
    pub(in crate::relay) fn new(
        up: u64,
        down: u64,
        duration: Duration,
        ended_by: &'static str,
        error: Option<String>,
    ) -> Self {
        Self { bytes_up: up, bytes_down: down, duration_ms: millis(duration), ended_by, error }
    }
}

/// Why a connection was not served.
#[derive(Debug, Clone, Serialize)]
pub(in crate::relay) struct Refused {
    /// The word of `bastion_relay_refused_connections_total`.
    pub(in crate::relay) kind: &'static str,
    pub(in crate::relay) error: String,
    /// Of the database, where it refused.
    pub(in crate::relay) sqlstate: Option<String>,
}
