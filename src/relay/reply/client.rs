//! What a client is told that does not speak as it should.

use bastion_wire::Malformed;
use bastion_wire::error_text::ErrorText;
use bastion_wire::pg::startup::STARTUP_MAX;

use crate::relay::reply::{Class, error, in_its_words, words};
use crate::types::{Engine, Target};

pub(super) fn tls(reason: &str, target: &Target) -> ErrorText {
    let (_, without_tls) = words(target.engine);
    error(
        target,
        Class::ProtocolViolation,
        format!("bastion: TLS with the client failed: {reason}"),
        "",
        format!("The way to the relay is inside the tunnel already: {without_tls}."),
    )
}

pub(super) fn opening_timeout(seconds: u64, target: &Target) -> ErrorText {
    error(
        target,
        Class::ProtocolViolation,
        format!("bastion: the client sent no login packet within {seconds} s"),
        "",
        with_client_of(target.engine),
    )
}

pub(super) fn malformed(what: Malformed, target: &Target) -> ErrorText {
    let (name, (engine, _)) = (&target.name, words(target.engine));
    error(
        target,
        Class::ProtocolViolation,
        format!("bastion: target {name} speaks {engine}, but {what}"),
        "",
        with_client_of(target.engine),
    )
}

/// `version`: `major << 16 | minor`.
pub(super) fn protocol_version(version: u32, target: &Target) -> ErrorText {
    let (name, (engine, _)) = (&target.name, words(target.engine));
    error(
        target,
        Class::NotSupported,
        format!(
            "bastion: target {name} speaks version 3 of the {engine} protocol, not {}.{}",
            version >> 16,
            version & 0xffff
        ),
        "",
        with_client_of(target.engine),
    )
}

/// `client`: bytes of the client's own; `whole`: with those of the relay.
pub(super) fn startup_too_long(client: usize, whole: usize, target: &Target) -> ErrorText {
    let (name, (engine, _)) = (&target.name, words(target.engine));
    error(
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
    )
}

pub(super) fn wrong_password(target: &Target, user: &str) -> ErrorText {
    in_its_words(
        target,
        Class::WrongPassword,
        denied(target.engine, user),
        "bastion: access denied, the password is not the one of this bastion task",
        "Take it from the connect card that bastion up and bastion connect print; any user name will do.",
    )
}

fn with_client_of(engine: Engine) -> String {
    let (engine, _) = words(engine);
    format!("Connect with a {engine} client.")
}

/// How a server of the engine says that a password is wrong (`ER_ACCESS_DENIED_ERROR`; `auth_failed` of PostgreSQL).
fn denied(engine: Engine, user: &str) -> String {
    match engine {
        Engine::Mysql => format!("Access denied for user '{user}'@'bastion' (using password: YES)"),
        Engine::Postgres | Engine::Tcp => format!("password authentication failed for user \"{user}\""),
    }
}
