//! What a client is told when there is no connection, or none any more: the only way text of ours reaches a client, in any
//! protocol.
//!
//! Every answer names the target, says what happened and what to do next, with the connection's number for the log. It
//! is built from the relay's own enums; the text of the database is added where TLS has proven whose text it is.

mod advice;
mod farewell;
mod iam;
mod password;

pub(super) use advice::credential as credential_advice;
pub(super) use farewell::{lease_ending, lease_over, stopping};

use std::borrow::Cow;

use bastion_wire::error_text::ErrorText;
use bastion_wire::login::Refusal;
use bastion_wire::pg::parameters::READ_ONLY;
use bastion_wire::pg::startup::STARTUP_MAX;

use crate::relay::error::{ConnError, DialError, UpstreamTlsError, is_auth};
use crate::types::{CredentialConfig, Engine, Target};

/// Characters of a file's name in an error; a MySQL client shows 511 bytes of it all.
const FILE_NAME_MAX: usize = 100;
/// Of a database that has not answered in time.
const WAKING: &str = "A database that was paused (Aurora at 0 ACU) may still be waking: try again in a minute.";

/// What kind of failure a client's driver is to see.
#[derive(Debug, Clone, Copy)]
enum Class {
    CannotConnect,
    ConnectionFailure,
    /// Of a session that was served. Pools take it for what it is: a connection that is gone.
    Ended,
    InvalidAuthorization,
    NotSupported,
    OutOfMemory,
    ProtocolViolation,
    TooManyConnections,
    Warning,
    WrongPassword,
}

impl Class {
    /// MySQL's error number (`mysqld_error.h`) and the SQLSTATE; PostgreSQL's are in its manual, appendix A. MariaDB's
    /// client library takes a number of its own range, from 2000 on, for a malformed packet.
    fn codes(self, engine: Engine) -> (u16, &'static str) {
        match (engine, self) {
            (Engine::Mysql, Self::CannotConnect) => (1429, "08001"),
            (Engine::Mysql, Self::ConnectionFailure) => (1158, "08S01"),
            (Engine::Mysql, Self::InvalidAuthorization | Self::WrongPassword) => (1045, "28000"),
            (Engine::Mysql, Self::NotSupported) => (1235, "42000"),
            (Engine::Mysql, Self::OutOfMemory) => (1041, "HY000"),
            (Engine::Mysql, Self::ProtocolViolation) => (1043, "08S01"),
            (Engine::Mysql, Self::TooManyConnections) => (1040, "08004"),
            (Engine::Mysql, Self::Ended) => (1053, "08S01"),
            (_, Self::Warning) => (0, "01000"),
            (Engine::Postgres | Engine::Tcp, Self::Ended) => (0, "57P01"),
            (Engine::Postgres | Engine::Tcp, Self::CannotConnect) => (0, "08001"),
            (Engine::Postgres | Engine::Tcp, Self::ConnectionFailure) => (0, "08006"),
            (Engine::Postgres | Engine::Tcp, Self::InvalidAuthorization) => (0, "28000"),
            (Engine::Postgres | Engine::Tcp, Self::NotSupported) => (0, "0A000"),
            (Engine::Postgres | Engine::Tcp, Self::OutOfMemory) => (0, "53200"),
            (Engine::Postgres | Engine::Tcp, Self::ProtocolViolation) => (0, "08P01"),
            (Engine::Postgres | Engine::Tcp, Self::TooManyConnections) => (0, "53300"),
            (Engine::Postgres | Engine::Tcp, Self::WrongPassword) => (0, "28P01"),
        }
    }
}

/// The engine's name and how a client of it does without TLS.
fn words(engine: Engine) -> (&'static str, &'static str) {
    match engine {
        Engine::Mysql => ("MySQL", "use ssl-mode=PREFERRED or ssl-mode=DISABLED"),
        Engine::Postgres | Engine::Tcp => ("PostgreSQL", "use sslmode=prefer or sslmode=disable"),
    }
}

/// What to tell the client about `failure`, or `None` where it has been told or is gone.
/// `user` is who the relay tried to log in as, `target` where, both as far as it came.
pub(super) fn error_text(failure: &ConnError, target: &Target, user: Option<&str>, conn_id: u64) -> Option<ErrorText> {
    let mut text = text(failure, target, user)?;
    let number = format!("(bastion connection {conn_id})");
    text.hint = if text.hint.is_empty() { number } else { format!("{} {number}", text.hint) };
    Some(text)
}

fn error(
    target: &Target,
    class: Class,
    message: String,
    detail: impl Into<String>,
    hint: impl Into<String>,
) -> ErrorText {
    let (number, sqlstate) = class.codes(target.engine);
    ErrorText { number, sqlstate: sqlstate.to_owned(), message, detail: detail.into(), hint: hint.into() }
}

/// What the database said, as it said it, because drivers compare number, state and text; what the relay has to add stands
/// behind it: `ours`, then `detail` and `hint`.
fn behind(said: &ErrorText, target: &Target, ours: &str, detail: &str, hint: &str) -> ErrorText {
    let (detail, hint) = match target.engine {
        Engine::Mysql => (said.detail.clone(), sentences(&[&said.hint, ours, detail, hint])),
        Engine::Postgres | Engine::Tcp => (sentences(&[&said.detail, ours, detail]), sentences(&[&said.hint, hint])),
    };
    ErrorText { detail, hint, ..said.clone() }
}

/// One after the other, each with a full stop but the last.
fn sentences(parts: &[&str]) -> String {
    let mut all = String::new();
    for part in parts.iter().filter(|part| !part.is_empty()) {
        if !all.is_empty() {
            all.push_str(if all.ends_with('.') { " " } else { ". " });
        }
        all.push_str(part);
    }
    all
}

/// An error of the relay that stands for one of the database's own: in its words, with `ours` behind them.
fn in_its_words(target: &Target, class: Class, words: String, ours: &str, hint: &str) -> ErrorText {
    if target.engine == Engine::Tcp {
        return error(target, class, ours.to_owned(), "", hint);
    }
    behind(&error(target, class, words, "", ""), target, ours, "", hint)
}

/// How a server of the engine says that it is full (`ER_CON_COUNT_ERROR`; `InitProcess` of PostgreSQL).
fn full(engine: Engine) -> String {
    let words = match engine {
        Engine::Mysql => "Too many connections",
        Engine::Postgres | Engine::Tcp => "sorry, too many clients already",
    };
    words.to_owned()
}

/// How it says that a password is wrong (`ER_ACCESS_DENIED_ERROR`; `auth_failed` of PostgreSQL).
fn denied(engine: Engine, user: &str) -> String {
    match engine {
        Engine::Mysql => format!("Access denied for user '{user}'@'bastion' (using password: YES)"),
        Engine::Postgres | Engine::Tcp => format!("password authentication failed for user \"{user}\""),
    }
}

fn text(failure: &ConnError, target: &Target, user: Option<&str>) -> Option<ErrorText> {
    let (name, address) = (&target.name, &target.endpoint);
    let user = user.unwrap_or("the client's user");
    let (engine, without_tls) = words(target.engine);
    Some(match failure {
        ConnError::ClientIo(_)
        | ConnError::Refused(Refusal::ClientGone | Refusal::NoStartup(_) | Refusal::Rejected(_)) => return None,
        ConnError::Audit => error(
            target,
            Class::CannotConnect,
            "bastion: the audit log cannot be written, so nothing is served".to_owned(),
            "",
            "Ask your platform team to look at the log driver of the task.",
        ),
        ConnError::Shutdown => error(
            target,
            Class::ConnectionFailure,
            format!("bastion: target {name} is not served any more: the relay is stopping"),
            "",
            "Start it again: bastion up.",
        ),
        ConnError::ClientTls(reason) => error(
            target,
            Class::ProtocolViolation,
            format!("bastion: TLS with the client failed: {reason}"),
            "",
            format!("The way to the relay is inside the tunnel already: {without_tls}."),
        ),
        ConnError::Refused(Refusal::ClientMalformed(what)) => error(
            target,
            Class::ProtocolViolation,
            format!("bastion: target {name} speaks {engine}, but {what}"),
            "",
            format!("Connect with a {engine} client."),
        ),
        ConnError::Refused(Refusal::ProtocolVersion(version)) => error(
            target,
            Class::NotSupported,
            format!(
                "bastion: target {name} speaks version 3 of the {engine} protocol, not {}.{}",
                version >> 16,
                version & 0xffff
            ),
            "",
            format!("Connect with a {engine} client."),
        ),
        ConnError::Refused(Refusal::StartupTooLong { client, whole }) => error(
            target,
            Class::ProtocolViolation,
            format!(
                "bastion: the startup packet for target {name} is too long: it has {client} bytes, {whole} with what bastion \
                 sets in it, and {engine} takes {STARTUP_MAX} at most"
            ),
            "",
            format!(
                "Shorten the parameters of the connection (options, for example) by {} bytes.",
                whole.saturating_sub(STARTUP_MAX)
            ),
        ),
        ConnError::OpeningTimeout(seconds) => error(
            target,
            Class::ProtocolViolation,
            format!("bastion: the client sent no login packet within {seconds} s"),
            "",
            format!("Connect with a {engine} client."),
        ),
        ConnError::Credential(reason) => error(
            target,
            Class::CannotConnect,
            format!("bastion: no login for target {name}: {reason}"),
            "",
            advice::credential(reason),
        ),
        ConnError::Stale { said, error } => behind(
            said,
            target,
            &format!("bastion: target {name} refused the login of {user}"),
            &format!("The login may have changed, and the relay cannot look: {error}."),
            advice::credential(error),
        ),
        ConnError::Dial(reason) => dial(reason, target),
        ConnError::Tls(reason) => tls(reason, target),
        ConnError::Refused(Refusal::UpstreamWithoutTls) => error(
            target,
            Class::CannotConnect,
            format!("bastion: target {name} at {address} does not offer TLS, so no login was sent"),
            "",
            format!("Check that host and port are those of an RDS or Aurora {engine} endpoint."),
        ),
        ConnError::Full(limit) => in_its_words(
            target,
            Class::TooManyConnections,
            full(target.engine),
            &format!("bastion: this relay serves {limit} connections at once"),
            "Close connections that are not used, or raise max_connections in the relay's configuration.",
        ),
        ConnError::TargetFull(limit) => in_its_words(
            target,
            Class::TooManyConnections,
            full(target.engine),
            &format!("bastion: this relay serves {limit} connections to target {name} at once"),
            "Close connections that are not used, or raise max_connections of the target.",
        ),
        ConnError::FileRequested(file) => {
            let file: String = file.escape_debug().take(FILE_NAME_MAX).collect();
            error(
                target,
                Class::ConnectionFailure,
                format!("bastion: target {name} asked for the file \"{file}\" of this computer and did not get it"),
                "",
                "Tell whoever runs the database. LOAD DATA LOCAL needs local_infile = true for the target, and gets the \
                 file that it names.",
            )
        }
        ConnError::OutOfProtocol(out) => error(
            target,
            Class::ConnectionFailure,
            format!("bastion: target {name}: the session has ended: {out}"),
            "",
            "What follows could not be read any more, so it did not go on. If it happens again, tell whoever runs bastion \
             which driver it was.",
        ),
        ConnError::NoMemory(full) => error(
            target,
            Class::OutOfMemory,
            format!("bastion: target {name}: the session has ended: {full}"),
            "All clients of the relay together have so much.",
            "Connect again, and send fewer commands before you read their answers. A slow audit log uses it up too (docs/audit.md).",
        ),
        ConnError::NoRandom => error(
            target,
            Class::CannotConnect,
            format!("bastion: target {name} cannot be served: {failure}"),
            "",
            "Stop the task and start another one.",
        ),
        ConnError::LoginTimeout(seconds) => error(
            target,
            Class::ConnectionFailure,
            format!("bastion: target {name} at {address} did not finish the login within {seconds} s"),
            "",
            format!("{WAKING} If it stays so, look at the load and the log of the database."),
        ),
        ConnError::Unanswered(seconds) => error(
            target,
            Class::ConnectionFailure,
            format!(
                "bastion: target {name} at {address} was silent for {seconds} s and has not answered all commands that \
                 were sent before this session was to start anew"
            ),
            "",
            "Connect again, and read the answers to all commands before COM_CHANGE_USER or COM_RESET_CONNECTION.",
        ),
        ConnError::UpstreamIo(_) | ConnError::Refused(Refusal::UpstreamGone) => error(
            target,
            Class::ConnectionFailure,
            format!("bastion: target {name} at {address} closed the connection during the login"),
            "",
            "The database may be restarting or failing over: try again in a minute.",
        ),
        ConnError::Refused(Refusal::UpstreamMalformed(what)) => error(
            target,
            Class::ConnectionFailure,
            format!("bastion: target {name} at {address} does not answer like {engine}: {what}"),
            "",
            "Check engine, host and port of the target.",
        ),
        ConnError::Refused(Refusal::UnknownAuthentication(method)) => error(
            target,
            Class::InvalidAuthorization,
            format!("bastion: target {name} wants an authentication method that bastion does not speak ({method})"),
            "",
            format!("Let {user} log in with IAM ({}) or a password.", iam::grant(target.engine, user)),
        ),
        ConnError::Refused(Refusal::WrongPassword) => in_its_words(
            target,
            Class::WrongPassword,
            denied(target.engine, user),
            "bastion: access denied, the password is not the one of this bastion task",
            "Take it from the connect card that bastion up and bastion connect print; any user name will do.",
        ),
        ConnError::Refused(Refusal::WantsPassword(what)) => iam::wants_password(what, target, user),
        ConnError::Refused(Refusal::UpstreamRefused(said)) if is_auth(&said.sqlstate) => match &target.credential {
            CredentialConfig::SecretsManager { secret_id, .. } => password::refused(said, target, user, secret_id),
            CredentialConfig::Vault(_) => password::vault_refused(said, target, user),
            _ => iam::refused(said, target, user),
        },
        ConnError::Refused(Refusal::NotReadOnly(said)) => {
            behind(said, target, &format!("bastion: target {name} did not make the session read-only"), "", "")
        }
        ConnError::Refused(Refusal::ReadOnlyParameter(said) | Refusal::UpstreamRefused(said)) => {
            let refused = format!("bastion: target {name} refused the login of {user}");
            let is_pooler = target.read_only && said.message.contains(READ_ONLY);
            let hint = if is_pooler { read_only_refused(user) } else { String::new() };
            behind(said, target, &refused, "", &hint)
        }
    })
}

/// What to do about a pooler that does not take the parameter, and whose connections are not to get a statement.
fn read_only_refused(user: &str) -> String {
    format!(
        "The target is read_only, and a connection pooler in front of it does not take {READ_ONLY}. PgBouncer 1.20 and later \
         do if track_extra_parameters names it; or set read_only of the target to false and leave it to the grants of {user}."
    )
}

fn dial(reason: &DialError, target: &Target) -> ErrorText {
    let (name, address) = (&target.name, &target.endpoint);
    let hint: Cow<'_, str> = match reason {
        DialError::LinkLocal(_) => {
            "Check host and hostaddr in the target's configuration, and the DNS of the VPC.".into()
        }
        DialError::NoAddress => "Add host to the target's configuration, or \"host\" to the secret.".into(),
        DialError::Resolve(_) => {
            "Check host in the target's configuration, and that the VPC has DNS resolution and DNS host names on."
                .into()
        }
        DialError::Timeout(_) => format!(
            "Let the security group of the database accept the security group of the task on this port, and check that \
             the database runs. {WAKING}"
        )
        .into(),
        DialError::Connect { .. } => "Check that the database runs and listens on this port.".into(),
    };
    error(target, Class::CannotConnect, format!("bastion: cannot reach target {name} at {address}: {reason}"), "", hint)
}

fn tls(reason: &UpstreamTlsError, target: &Target) -> ErrorText {
    let (name, address) = (&target.name, &target.endpoint);
    let hint = match reason {
        UpstreamTlsError::OtherName | UpstreamTlsError::BadName => {
            "Configure the endpoint's own name (…rds.amazonaws.com): a CNAME or an address is not in the certificate."
        }
        UpstreamTlsError::UnknownIssuer => {
            "bastion trusts the Amazon RDS CAs of commercial and GovCloud regions; for another CA give its PEM text as \
             extra_ca in the relay's configuration, or its file as BASTION_EXTRA_CA_FILE."
        }
        UpstreamTlsError::Expired => "Rotate the database's server certificate in RDS.",
        UpstreamTlsError::Certificate(_) | UpstreamTlsError::Handshake(_) => {
            "Check that host and port are those of the database, and the clock of both ends."
        }
        UpstreamTlsError::Timeout(_) => WAKING,
    };
    error(
        target,
        Class::CannotConnect,
        format!("bastion: no login was sent to target {name} at {address}: {reason}"),
        "TLS with full verification comes before any login.",
        hint,
    )
}

/// The refusal in a few words, for the log.
pub(super) fn cause(refusal: &Refusal) -> String {
    match refusal {
        Refusal::ClientGone => "the client left".to_owned(),
        Refusal::ClientMalformed(what) | Refusal::NoStartup(what) | Refusal::UpstreamMalformed(what) => {
            what.to_string()
        }
        Refusal::NotReadOnly(said)
        | Refusal::ReadOnlyParameter(said)
        | Refusal::Rejected(said)
        | Refusal::UpstreamRefused(said) => said.message.clone(),
        Refusal::ProtocolVersion(version) => format!("version {}.{} of the protocol", version >> 16, version & 0xffff),
        Refusal::StartupTooLong { client, whole } => {
            format!("a startup packet of {client} bytes, {whole} with those of the relay")
        }
        Refusal::UnknownAuthentication(method) => format!("authentication method {method}"),
        Refusal::UpstreamGone => "the database closed the connection".to_owned(),
        Refusal::UpstreamWithoutTls => "the database does not offer TLS".to_owned(),
        Refusal::WantsPassword(what) => format!("the database wants {what}"),
        Refusal::WrongPassword => "the client does not know the local password".to_owned(),
    }
}
