//! The records of the audit log; the fields of `docs/audit.md` and `docs/audit.schema.json`.

use std::time::Duration;

use crate::relay::audit::line::{Fields, first_characters, limit};
use crate::relay::audit::millis;
use crate::relay::config::Config;
use crate::relay::identity::Person;
use crate::types::Target;

/// What the records of a relay have in common.
pub(super) fn place(config: &Config) -> Fields {
    let Config { environment, access, owner, reason, .. } = config;
    let mut fields = Fields::default();
    fields.text("env", environment, limit::NAME);
    fields.text("access", access, limit::NAME);
    fields.optional("owner", owner.as_deref(), limit::SENTENCE);
    self::reason(&mut fields, reason.as_deref());
    fields
}

/// Why the task was started.
pub(super) fn reason(fields: &mut Fields, reason: Option<&str>) {
    let kept = reason.map(|reason| first_characters(reason, limit::REASON_CHARS));
    fields.optional("reason", kept, limit::SENTENCE);
    if kept.map(str::len) < reason.map(str::len) {
        fields.cut("reason");
    }
}

/// Who a record is about.
#[derive(Debug, Clone, Default)]
pub(super) struct Who {
    /// ARN that STS has confirmed.
    pub(super) person: Option<String>,
    pub(super) session_name: Option<String>,
    pub(super) user_id: Option<String>,
}

impl Who {
    fn of(person: Option<&Person>) -> Self {
        Self {
            person: person.map(|person| person.principal.to_string()),
            session_name: person.map(|person| person.principal.name().to_owned()),
            user_id: person.map(|person| person.user_id.clone()),
        }
    }

    pub(super) fn write(&self, fields: &mut Fields) {
        fields.optional("person", self.person.as_deref(), limit::SENTENCE);
        fields.optional("session_name", self.session_name.as_deref(), limit::NAME);
        fields.optional("user_id", self.user_id.as_deref(), limit::NAME);
    }
}

pub(super) fn person(fields: &mut Fields, person: &Person) {
    Who::of(Some(person)).write(fields);
}

/// One connection.
#[derive(Debug, Clone)]
pub(in crate::relay) struct ConnRecord {
    pub(in crate::relay) conn_id: u64,
    pub(super) who: Who,
    pub(super) target: String,
    pub(super) engine: &'static str,
    /// `None` where a secret names them and could not be read.
    pub(super) host: Option<String>,
    pub(super) port: Option<u16>,
    pub(super) credential: &'static str,
    /// The user that the relay logged in as, or would have.
    pub(in crate::relay) db_user: Option<String>,
    /// The server's own number of the session.
    pub(in crate::relay) db_conn_id: Option<u32>,
    /// What the client calls its program.
    pub(in crate::relay) client_program: Option<String>,
    pub(super) client_addr: String,
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
            who: Who::of(person),
            target: target.name.clone(),
            engine: target.engine.as_str(),
            host: target.endpoint.host().map(str::to_owned),
            port: target.endpoint.port(),
            credential: target.credential.source(),
            db_user: db_user.map(str::to_owned),
            db_conn_id: None,
            client_program: None,
            client_addr: client_addr.to_owned(),
        }
    }

    /// Everything.
    pub(super) fn write(&self, fields: &mut Fields) {
        fields.number("conn_id", self.conn_id);
        self.who.write(fields);
        fields.text("target", &self.target, limit::NAME);
        fields.word("engine", self.engine);
        fields.optional("host", self.host.as_deref(), limit::NAME);
        optional_number(fields, "port", self.port.map(u64::from));
        fields.word("credential", self.credential);
        fields.optional("db_user", self.db_user.as_deref(), limit::NAME);
        optional_number(fields, "db_conn_id", self.db_conn_id.map(u64::from));
        fields.optional("client_program", self.client_program.as_deref(), limit::PROGRAM);
        fields.text("client_addr", &self.client_addr, limit::NAME);
    }

    /// Whose a record is that comes often: the rest is in the first one of the connection.
    pub(super) fn short(&self) -> Fields {
        let mut fields = Fields::default();
        fields.number("conn_id", self.conn_id);
        fields.text("target", &self.target, limit::NAME);
        fields.optional("session_name", self.who.session_name.as_deref(), limit::NAME);
        fields.optional("db_user", self.db_user.as_deref(), limit::NAME);
        fields
    }
}

fn optional_number(fields: &mut Fields, name: &str, value: Option<u64>) {
    match value {
        Some(value) => fields.number(name, value),
        None => fields.raw(name, "null"),
    }
}

/// How a connection ended that was served.
#[derive(Debug, Clone)]
pub(in crate::relay) struct Ended {
    bytes_up: u64,
    bytes_down: u64,
    duration_ms: u64,
    /// A word of `docs/ends.md`.
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

    pub(super) fn write(&self, fields: &mut Fields) {
        fields.number("bytes_up", self.bytes_up);
        fields.number("bytes_down", self.bytes_down);
        fields.number("duration_ms", self.duration_ms);
        fields.word("ended_by", self.ended_by);
        fields.optional("error", self.error.as_deref(), limit::SENTENCE);
    }
}

/// Why a connection was not served.
#[derive(Debug, Clone)]
pub(in crate::relay) struct Refused {
    /// The word of `bastion_relay_refused_connections_total`.
    pub(in crate::relay) kind: &'static str,
    pub(in crate::relay) error: String,
    /// Of the database, where it refused.
    pub(in crate::relay) sqlstate: Option<String>,
}

impl Refused {
    pub(super) fn write(&self, fields: &mut Fields) {
        fields.word("kind", self.kind);
        fields.text("error", &self.error, limit::SENTENCE);
        fields.optional("sqlstate", self.sqlstate.as_deref(), limit::NAME);
    }
}
