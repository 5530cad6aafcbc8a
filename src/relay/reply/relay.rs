//! What a client is told where the relay itself cannot go on.

use bastion_wire::error_text::ErrorText;
use bastion_wire::memory::Full;
use bastion_wire::session::OutOfProtocol;

use crate::credential::MintError;
use crate::relay::error::ConnError;
use crate::relay::reply::{Class, advice, behind, error, in_its_words};
use crate::types::{Engine, Target};

pub(super) fn no_audit(target: &Target) -> ErrorText {
    error(
        target,
        Class::CannotConnect,
        "bastion: the audit log cannot be written, so nothing is served".to_owned(),
        "",
        "Ask your platform team to look at the log driver of the task.",
    )
}

pub(super) fn stopping(target: &Target) -> ErrorText {
    let name = &target.name;
    error(
        target,
        Class::ConnectionFailure,
        format!("bastion: target {name} is not served any more: the relay is stopping"),
        "",
        "Start it again: bastion up.",
    )
}

pub(super) fn no_random(failure: &ConnError, target: &Target) -> ErrorText {
    let name = &target.name;
    error(
        target,
        Class::CannotConnect,
        format!("bastion: target {name} cannot be served: {failure}"),
        "",
        "Stop the task and start another one.",
    )
}

pub(super) fn full(limit: usize, target: &Target) -> ErrorText {
    in_its_words(
        target,
        Class::TooManyConnections,
        full_words(target.engine),
        &format!("bastion: this relay serves {limit} connections at once"),
        "Close connections that are not used, or raise max_connections in the relay's configuration.",
    )
}

pub(super) fn target_full(limit: usize, target: &Target) -> ErrorText {
    let name = &target.name;
    in_its_words(
        target,
        Class::TooManyConnections,
        full_words(target.engine),
        &format!("bastion: this relay serves {limit} connections to target {name} at once"),
        "Close connections that are not used, or raise max_connections of the target.",
    )
}

pub(super) fn no_memory(full: &Full, target: &Target) -> ErrorText {
    let name = &target.name;
    error(
        target,
        Class::OutOfMemory,
        format!("bastion: target {name}: the session has ended: {full}"),
        "All clients of the relay together have so much.",
        "Connect again, and send fewer commands before you read their answers. A slow audit log uses it up too (docs/audit.md).",
    )
}

pub(super) fn out_of_protocol(out: &OutOfProtocol, target: &Target) -> ErrorText {
    let name = &target.name;
    error(
        target,
        Class::ConnectionFailure,
        format!("bastion: target {name}: the session has ended: {out}"),
        "",
        "What follows could not be read any more, so it did not go on. If it happens again, tell whoever runs bastion \
         which driver it was.",
    )
}

pub(super) fn no_credential(reason: &MintError, target: &Target) -> ErrorText {
    let name = &target.name;
    error(
        target,
        Class::CannotConnect,
        format!("bastion: no login for target {name}: {reason}"),
        "",
        advice::credential(reason),
    )
}

/// The database has refused what there was, and there is no newer one to be had.
pub(super) fn stale(said: &ErrorText, reason: &MintError, target: &Target, user: &str) -> ErrorText {
    let name = &target.name;
    behind(
        said,
        target,
        &format!("bastion: target {name} refused the login of {user}"),
        &format!("The login may have changed, and the relay cannot look: {reason}."),
        advice::credential(reason),
    )
}

/// How a server of the engine says that it is full (`ER_CON_COUNT_ERROR`; `InitProcess` of PostgreSQL).
fn full_words(engine: Engine) -> String {
    let words = match engine {
        Engine::Mysql => "Too many connections",
        Engine::Postgres | Engine::Tcp => "sorry, too many clients already",
    };
    words.to_owned()
}
