//! What a client is told in the midst of its session, and at the end of one that the relay ends.

use std::time::{Duration, SystemTime};

use bastion_wire::error_text::ErrorText;

use super::{Class, error, in_its_words};
use crate::relay::lifetime::Ended;
use crate::types::{Engine, Target};

const NEW_USER: &str = "a new connection gets a new user.";

/// The database user ends at `at`.
pub(in crate::relay) fn lease_ending(target: &Target, user: &str, at: SystemTime, conn_id: u64) -> ErrorText {
    let message = format!(
        "bastion: the database user {user} of target {} ends at {}, and this connection with it",
        target.name,
        utc(at)
    );
    error(
        target,
        Class::Warning,
        message,
        "",
        format!("Finish what is open and connect again: {NEW_USER} {}", number(conn_id)),
    )
}

/// The database user has ended.
pub(in crate::relay) fn lease_over(target: &Target, user: &str, now: SystemTime, conn_id: u64) -> ErrorText {
    let why = format!(
        "bastion: this connection is closed because the database user {user} of target {} has ended at {}",
        target.name,
        utc(now)
    );
    over(target, &why, &format!("Connect again: {NEW_USER} {}", number(conn_id)))
}

/// The relay ends, whoever is connected.
pub(in crate::relay) fn stopping(target: &Target, why: Option<Ended>, conn_id: u64) -> ErrorText {
    let why = match why {
        Some(Ended::MaxAge) => "has reached its maximum age",
        Some(Ended::Idle | Ended::Left | Ended::Signal) | None => "is being stopped",
    };
    let why = format!("bastion: this connection to target {} is closed because the bastion task {why}", target.name);
    let hint = "Connect again: bastion up starts another task; with --wake the connection itself does.";
    over(target, &why, &format!("{hint} {}", number(conn_id)))
}

/// The end of a session that was served, first as the server itself says that it ends one: drivers and pools compare number,
/// state and text to know that they may connect again (`ER_SERVER_SHUTDOWN`; `ProcessInterrupts` of PostgreSQL).
fn over(target: &Target, why: &str, hint: &str) -> ErrorText {
    let words = match target.engine {
        Engine::Mysql => "Server shutdown in progress",
        Engine::Postgres | Engine::Tcp => "terminating connection due to administrator command",
    };
    in_its_words(target, Class::Ended, words.to_owned(), why, hint)
}

fn number(conn_id: u64) -> String {
    format!("(bastion connection {conn_id})")
}

/// To the second, as people write it.
fn utc(time: SystemTime) -> String {
    // Rounded: what is counted down has lost a few milliseconds.
    let text = humantime::format_rfc3339_seconds(time + Duration::from_millis(500)).to_string();
    format!("{} UTC", text.trim_end_matches('Z').replace('T', " "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_for_people() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_615_509_600);
        assert_eq!(utc(time), "2026-11-25 14:05:10 UTC");
    }
}
