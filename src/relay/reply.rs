//! What a client is told when there is no connection, or none any more: the only way text of ours reaches a client, in any
//! protocol.
//!
//! Every answer names the target, says what happened and what to do next, with the connection's number for the log. It
//! is built from the relay's own enums; the text of the database is added where TLS has proven whose text it is.

mod advice;
mod client;
mod database;
mod farewell;
mod iam;
mod password;
mod relay;

pub(super) use advice::credential as credential_advice;
pub(super) use farewell::{lease_ending, lease_over, stopping};

use bastion_wire::error_text::ErrorText;
use bastion_wire::login::Refusal;

use crate::relay::error::{ConnError, is_auth};
use crate::types::{CredentialConfig, Engine, Target};

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

fn text(failure: &ConnError, target: &Target, user: Option<&str>) -> Option<ErrorText> {
    let user = user.unwrap_or("the client's user");
    Some(match failure {
        ConnError::ClientIo(_) => return None,
        ConnError::Refused(refusal) => return refused(refusal, target, user),
        ConnError::ClientTls(reason) => client::tls(reason, target),
        ConnError::OpeningTimeout(seconds) => client::opening_timeout(*seconds, target),
        ConnError::Audit => relay::no_audit(target),
        ConnError::Shutdown => relay::stopping(target),
        ConnError::NoRandom => relay::no_random(failure, target),
        ConnError::Full(limit) => relay::full(*limit, target),
        ConnError::TargetFull(limit) => relay::target_full(*limit, target),
        ConnError::NoMemory(full) => relay::no_memory(full, target),
        ConnError::OutOfProtocol(out) => relay::out_of_protocol(out, target),
        ConnError::Credential(reason) => relay::no_credential(reason, target),
        ConnError::Stale { said, error } => relay::stale(said, error, target, user),
        ConnError::Dial(reason) => database::dial(reason, target),
        ConnError::Tls(reason) => database::tls(reason, target),
        ConnError::LoginTimeout(seconds) => database::login_timeout(*seconds, target),
        ConnError::Unanswered(seconds) => database::unanswered(*seconds, target),
        ConnError::UpstreamIo(_) => database::gone(target),
        ConnError::FileRequested(file) => database::file_requested(file, target),
    })
}

/// `None`: the client is gone, or has been told.
fn refused(refusal: &Refusal, target: &Target, user: &str) -> Option<ErrorText> {
    Some(match refusal {
        Refusal::ClientGone | Refusal::NoStartup(_) | Refusal::Rejected(_) => return None,
        Refusal::ClientMalformed(what) => client::malformed(*what, target),
        Refusal::ProtocolVersion(version) => client::protocol_version(*version, target),
        Refusal::StartupTooLong { client, whole } => client::startup_too_long(*client, *whole, target),
        Refusal::WrongPassword => client::wrong_password(target, user),
        Refusal::UpstreamWithoutTls => database::without_tls(target),
        Refusal::UpstreamGone => database::gone(target),
        Refusal::UpstreamMalformed(what) => database::malformed(*what, target),
        Refusal::UnknownAuthentication(method) => database::unknown_authentication(method, target, user),
        Refusal::WantsPassword(what) => iam::wants_password(what, target, user),
        Refusal::NotReadOnly(said) => database::not_read_only(said, target),
        Refusal::UpstreamRefused(said) if is_auth(&said.sqlstate) => match &target.credential {
            CredentialConfig::SecretsManager { secret_id, .. } => password::refused(said, target, user, secret_id),
            CredentialConfig::Vault(_) => password::vault_refused(said, target, user),
            CredentialConfig::Client | CredentialConfig::RdsIam { .. } => iam::refused(said, target, user),
        },
        Refusal::ReadOnlyParameter(said) | Refusal::UpstreamRefused(said) => database::refused(said, target, user),
    })
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
