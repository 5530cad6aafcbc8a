//! The startup packet that goes upstream: the client's own, with what the relay sets.

use bytes::{Bytes, BytesMut};

use super::startup::{STARTUP_MAX, Startup};
use crate::login::Refusal;

/// The setting with which transactions are read-only unless the client asks for another one.
pub const READ_ONLY: &str = "default_transaction_read_only";
const APPLICATION_NAME: &str = "application_name";
/// `application_name` is a name: NAMEDATALEN - 1 bytes (PostgreSQL manual, `application_name`).
const APPLICATION_NAME_MAX: usize = 63;
/// How a name begins that says who somebody is.
const PERSON: &str = "bastion:";

/// How the session is made one that only reads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ReadOnly {
    #[default]
    No,
    /// In the startup packet.
    Parameter,
    /// By a statement of the relay after the login, because the upstream does not take the parameter: RDS Proxy.
    Statement,
}

/// The packet for the login of `user`. An absent database, an empty one and one that is called as the client's user all
/// mean "none named" to the server, and here too: then it is `database`, otherwise the name that the client would have got.
///
/// # Errors
/// [`Refusal::StartupTooLong`] if the server would not take it.
pub(super) fn packet(
    client: &Startup,
    user: &str,
    database: Option<&str>,
    person: Option<&str>,
    read_only: ReadOnly,
) -> Result<Bytes, Refusal> {
    let mut startup = client.clone();
    let typed = client.parameter("user").filter(|name| !name.is_empty());
    let named = client.parameter("database").filter(|name| !name.is_empty() && Some(*name) != typed);
    if named.is_none()
        && let Some(database) = database.map(str::as_bytes).or_else(|| typed.map(Bytes::as_ref))
    {
        startup.set("database", database);
    }
    startup.set("user", user.as_bytes());
    match person {
        Some(person) => {
            startup.set_setting(APPLICATION_NAME, application_name(person, program(client).as_deref()).as_bytes());
        }
        // Nobody but the relay says who somebody is.
        None if program(client).is_some_and(|program| program.starts_with(PERSON)) => {
            startup.remove_setting(APPLICATION_NAME);
        }
        None => {}
    }
    match read_only {
        ReadOnly::No => {}
        ReadOnly::Parameter => startup.set_setting(READ_ONLY, b"on"),
        ReadOnly::Statement => startup.remove_setting(READ_ONLY),
    }
    let packet = encoded(&startup);
    if packet.len() > STARTUP_MAX {
        return Err(Refusal::StartupTooLong { client: encoded(client).len(), whole: packet.len() });
    }
    Ok(packet)
}

fn encoded(startup: &Startup) -> Bytes {
    let mut packet = BytesMut::new();
    startup.encode(&mut packet);
    packet.freeze()
}

/// What the client calls its program.
pub(super) fn program(client: &Startup) -> Option<String> {
    client.setting(APPLICATION_NAME).map(|name| String::from_utf8_lossy(name).into_owned())
}

/// Whether the client wants a physical replication connection, on which there are no statements: true, as `parse_bool`
/// reads it.
pub(super) fn is_physical_replication(client: &Startup) -> bool {
    let Some(value) = client.parameter("replication") else { return false };
    let value = value.to_ascii_lowercase();
    value == b"1" || value == b"on" || !value.is_empty() && (b"true".starts_with(&value) || b"yes".starts_with(&value))
}

/// `bastion:alice psql`, as far as it fits.
fn application_name(person: &str, program: Option<&str>) -> String {
    let mut name = format!("{PERSON}{person}");
    if let Some(program) = program.filter(|program| !program.is_empty()) {
        name.push(' ');
        name.push_str(program);
    }
    name.truncate(name.floor_char_boundary(APPLICATION_NAME_MAX));
    name
}

#[cfg(test)]
mod tests {
    use super::super::startup::{Opening, decode};
    use super::*;

    fn startup(parameters: &[(&'static str, &str)]) -> Startup {
        let parameters = parameters.iter().map(|(name, value)| (Bytes::from(*name), Bytes::from((*value).to_owned())));
        Startup { version: 3 << 16, parameters: parameters.collect() }
    }

    /// What goes upstream for a client that sent these parameters.
    fn sent(
        typed: &[(&'static str, &str)],
        database: Option<&str>,
        person: Option<&str>,
        read_only: ReadOnly,
    ) -> Result<Vec<(String, String)>, Refusal> {
        let packet = packet(&startup(typed), "db_read", database, person, read_only)?;
        let Ok(Some(Opening::Startup(sent))) = decode(&mut BytesMut::from(&packet[..])) else { panic!("{packet:?}") };
        let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
        Ok(sent.parameters.iter().map(|(name, value)| (text(name), text(value))).collect())
    }

    fn owned(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn an_absent_database_an_empty_one_and_the_users_name_are_the_configured_one() {
        for (typed, configured, wanted) in [
            (&[("user", "me"), ("database", "other")][..], Some("orders"), Some("other")),
            (&[("user", "me"), ("database", "me")], Some("orders"), Some("orders")),
            (&[("user", "me"), ("database", "")], Some("orders"), Some("orders")),
            (&[("user", "me")], Some("orders"), Some("orders")),
            (&[], Some("orders"), Some("orders")),
            (&[("database", "")], Some("orders"), Some("orders")),
            (&[("user", ""), ("database", "")], Some("orders"), Some("orders")),
            (&[("user", ""), ("database", "other")], Some("orders"), Some("other")),
            // The last one counts, whatever stood before.
            (&[("user", "a"), ("user", "me"), ("database", "me")], Some("orders"), Some("orders")),
            (&[("user", "me"), ("database", "x"), ("database", "")], Some("orders"), Some("orders")),
            (&[("user", "me"), ("database", "me"), ("database", "x")], Some("orders"), Some("x")),
            // Nothing is configured: what the client would get from the server, which is not our user's name.
            (&[("user", "me")], None, Some("me")),
            (&[("user", "me"), ("database", "")], None, Some("me")),
            (&[("user", "me"), ("database", "me")], None, Some("me")),
            (&[("user", "me"), ("database", "x")], None, Some("x")),
            (&[], None, None),
        ] {
            let sent = sent(typed, configured, None, ReadOnly::No).unwrap();
            let last = |name: &str| sent.iter().rfind(|(key, _)| key == name).map(|(_, value)| value.as_str());
            assert_eq!(last("database"), wanted, "{typed:?} {configured:?}");
            assert_eq!(sent.iter().filter(|(key, _)| key == "user").count(), 1);
            assert_eq!(last("user"), Some("db_read"));
        }
    }

    #[test]
    fn what_a_client_says_twice_or_in_another_case_cannot_win_over_what_the_relay_sets() {
        let typed = [
            ("user", "x"),
            ("application_name", "psql"),
            ("default_transaction_read_only", "off"),
            ("user", "postgres"),
            ("Application_Name", "other"),
            ("DEFAULT_transaction_READ_ONLY", "off"),
            ("DateStyle", "ISO"),
        ];
        let wanted = [
            ("DateStyle", "ISO"),
            ("database", "postgres"),
            ("user", "db_read"),
            ("application_name", "bastion:alice other"),
            ("default_transaction_read_only", "on"),
        ];
        assert_eq!(sent(&typed, None, Some("alice"), ReadOnly::Parameter), Ok(owned(&wanted)));
        assert_eq!(sent(&typed, None, Some("alice"), ReadOnly::Statement), Ok(owned(&wanted[..4])));
    }

    #[test]
    fn without_person_and_read_only_everything_of_the_client_stays() {
        let typed = [
            ("application_name", "psql"),
            ("options", "-c geqo=off"),
            ("options", ""),
            ("replication", "database"),
            ("default_transaction_read_only", "off"),
            ("_pq_.protocol_extension", ""),
            ("user", "x"),
            ("database", "y"),
        ];
        let mut wanted = owned(&typed[..6]);
        wanted.extend(owned(&[("database", "y"), ("user", "db_read")]));
        assert_eq!(sent(&typed, Some("orders"), None, ReadOnly::No), Ok(wanted));
    }

    #[test]
    fn a_client_cannot_say_who_somebody_is() {
        let typed = [("user", "x"), ("APPLICATION_NAME", "bastion:bob psql"), ("database", "y")];
        let wanted = owned(&[("database", "y"), ("user", "db_read")]);
        assert_eq!(sent(&typed, None, None, ReadOnly::No), Ok(wanted));
        let sent = sent(&typed, None, Some("alice"), ReadOnly::No).unwrap();
        assert_eq!(sent.last().unwrap().1, "bastion:alice bastion:bob psql");
    }

    #[test]
    fn a_packet_that_the_server_takes_passes_and_one_that_is_too_long_with_ours_is_told() {
        // Length and version, four words of three bytes, their terminators and the last one.
        let fixed = "user\0me\0database\0me\0options\0\0".len() + 9;
        let of = |length: usize| {
            let options = "x".repeat(length - fixed);
            let client = startup(&[("user", "me"), ("database", "me"), ("options", &options)]);
            assert_eq!(encoded(&client).len(), length);
            packet(&client, "me", Some("me"), None, ReadOnly::No).map(|packet| packet.len())
        };
        assert_eq!(of(10_000), Ok(10_000));
        assert_eq!(of(10_004), Ok(10_004));
        let long = startup(&[("user", "me"), ("database", "me"), ("options", &"x".repeat(10_004 - fixed))]);
        for (read_only, whole) in [(ReadOnly::Parameter, 10_037), (ReadOnly::Statement, 10_004)] {
            let sent = packet(&long, "me", Some("me"), None, read_only).map(|packet| packet.len());
            let wanted = Err(Refusal::StartupTooLong { client: 10_004, whole });
            assert_eq!(sent, if whole > STARTUP_MAX { wanted } else { Ok(whole) });
        }
    }

    #[test]
    fn only_physical_replication_knows_no_statements() {
        for (value, physical) in [
            ("true", true),
            ("T", true),
            ("yes", true),
            ("on", true),
            ("1", true),
            ("database", false),
            ("false", false),
            ("off", false),
            ("o", false),
            ("0", false),
            ("", false),
        ] {
            assert_eq!(is_physical_replication(&startup(&[("replication", value)])), physical, "{value}");
        }
        assert!(!is_physical_replication(&startup(&[])));
    }

    #[test]
    fn an_application_name_fits_and_stays_text() {
        assert_eq!(application_name("alice", None), "bastion:alice");
        assert_eq!(application_name("alice", Some("")), "bastion:alice");
        let long = application_name("alice", Some(&"é".repeat(40)));
        assert!(long.starts_with("bastion:alice é") && long.len() == 62, "{} {long}", long.len());
        assert_eq!(application_name(&"a".repeat(64), Some("psql")).len(), 63);
    }
}
