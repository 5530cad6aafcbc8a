//! Records over arbitrary texts: short enough, JSON, as the schema says, and true about what was cut.

use bastion_sandbox::schema;
use bastion_wire::memory::Memory;
use bastion_wire::mysql::local_infile::SentFile;
use bastion_wire::redact::{Dialect, Modes};
use bastion_wire::session::text::{Collector, Kind, Statement};
use proptest::prelude::*;
use serde_json::Value;

use super::line::{HEAD_MAX, LINE_MAX, fit};
use super::record::Who;
use super::*;

/// With everything that JSON makes longer, or that a character may be.
fn text() -> impl Strategy<Value = String> {
    let piece =
        prop_oneof!["[a-z ]{1,300}", "\\PC{1,30}", "[\"\\\\\n\r\t\u{0}\u{1}\u{7f}]{1,300}", "[片山\u{1f600}é]{1,400}"];
    prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
}

fn optional() -> impl Strategy<Value = Option<String>> {
    prop::option::of(text())
}

prop_compose! {
    fn conn()(
        (conn_id, port, db_conn_id) in (1_u64.., any::<Option<u16>>(), any::<Option<u32>>()),
        (person, session_name, user_id) in (optional(), optional(), optional()),
        (target, host, db_user, client_program, client_addr) in (text(), optional(), optional(), optional(), text()),
    ) -> ConnRecord {
        let who = Who { person, session_name, user_id };
        let (engine, credential) = ("postgres", "rds_iam");
        ConnRecord {
            conn_id, who, target, engine, host, port, credential, db_user, db_conn_id, client_program, client_addr,
        }
    }
}

/// The fields of a relay with this owner and reason.
fn place(owner: Option<&str>, reason: Option<&str>) -> Fields {
    let mut fields = Fields::default();
    fields.text("env", "test", limit::NAME);
    fields.text("access", "read", limit::NAME);
    fields.optional("owner", owner, limit::SENTENCE);
    record::reason(&mut fields, reason);
    fields
}

/// As the queue numbers them.
fn records(lines: &[u8]) -> Vec<Value> {
    let text = std::str::from_utf8(lines).unwrap();
    assert!(text.ends_with('\n'));
    let head = format!("{{\"audit\":2,\"n\":{},\"records\":{},", u64::MAX, u64::MAX);
    assert!(head.len() <= HEAD_MAX);
    let record = |line: &str| {
        assert!(line.len() < LINE_MAX - HEAD_MAX, "{} bytes", line.len());
        let line = format!("{{\"audit\":2,\"n\":7,{line}");
        schema::check_line(&line).unwrap();
        serde_json::from_str(&line).unwrap()
    };
    text.lines().map(record).collect()
}

/// Each text is there whole, or its start is and it is named.
fn check(record: &Value, field: &str, whole: Option<&str>) {
    let truncated = record["truncated"].as_array().is_some_and(|names| names.contains(&field.into()));
    let kept = record[field].as_str();
    match whole {
        Some(whole) => {
            let kept = kept.unwrap();
            assert!(whole.starts_with(kept) && truncated == (kept.len() < whole.len()), "{field} of {record}");
            // Nothing is cut that is short, however it is written.
            assert!(!truncated || whole.len() * 6 > 128, "{field} of {record}");
        }
        None => assert!(kept.is_none() && !truncated, "{field} of {record}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn records_of_connections_are_lines_of_json_and_say_what_was_cut(
        conn in conn(),
        (owner, reason, error, sqlstate) in (optional(), optional(), optional(), optional()),
    ) {
        let place = place(owner.as_deref(), reason.as_deref());
        let started = |event| {
            let mut fields = Fields::of(event);
            fields.append(&place);
            conn.write(&mut fields);
            fields
        };
        let mut closed = started("connection_closed");
        Ended::new(u64::MAX, 0, Duration::MAX, "launcher", error.clone()).write(&mut closed);
        let mut refused = started("connection_refused");
        let failed = error.clone().unwrap_or_default();
        Refused { kind: "upstream_auth", error: failed.clone(), sqlstate: sqlstate.clone() }.write(&mut refused);
        let lines = [started("connection_opened").line(), closed.line(), refused.line()].concat();
        let records = records(&lines);
        for record in &records {
            check(record, "owner", owner.as_deref());
            check(record, "reason", reason.as_deref());
            check(record, "person", conn.who.person.as_deref());
            check(record, "target", Some(&conn.target));
            check(record, "db_user", conn.db_user.as_deref());
            check(record, "client_program", conn.client_program.as_deref());
        }
        check(&records[1], "error", error.as_deref());
        check(&records[2], "error", Some(&failed));
        check(&records[2], "sqlstate", sqlstate.as_deref());
    }

    #[test]
    fn records_of_identities_are_lines_of_json(
        (reason, arn, message) in (optional(), optional(), text()),
        vaults in prop::collection::vec(text(), 0..12),
    ) {
        let place = place(None, reason.as_deref());
        let mut refused = Fields::of("identity_refused");
        refused.append(&place);
        refused.optional("person", arn.as_deref(), limit::SENTENCE);
        refused.word("kind", "not_owner");
        refused.text("error", &message, limit::SENTENCE);
        let mut granted = Fields::of("identity_granted");
        granted.append(&place);
        Who { person: arn.clone(), session_name: arn.clone(), user_id: arn }.write(&mut granted);
        let names: Vec<_> = vaults.iter().map(String::as_str).collect();
        granted.list("vaults", &names);
        let records = records(&[refused.line(), granted.line()].concat());
        check(&records[0], "error", Some(&message));
        let kept = records[1]["vaults"].as_array().unwrap();
        let is_cut = records[1]["truncated"].as_array().is_some_and(|names| names.contains(&"vaults".into()));
        prop_assert!(kept.iter().zip(&names).all(|(kept, name)| kept == name) && is_cut == (kept.len() < names.len()));
    }

    #[test]
    fn a_statement_is_recorded_in_parts_and_whole(
        conn in conn(),
        name in optional(),
        pieces in prop::collection::vec(text(), 0..12),
        repeated in prop_oneof![9 => 1_usize..5, 1 => 5_usize..60],
    ) {
        let sql = pieces.concat().repeat(repeated);
        let limits = Limits::new(TEXT_MAX, None, &Memory::relay());
        let text = Collector::new(limits, Dialect::Postgres).whole(sql.as_bytes(), Modes::default());
        let kept = text.sql().unwrap().to_owned();
        let first = Statement::new(Kind::Execute, name.clone(), Some(text));
        let again = Statement::new(Kind::Execute, name.clone(), first.text.clone());
        let mut lines = Lines::new(&conn);
        lines.statement(u64::MAX, &first);
        let told = records(&std::mem::take(lines.pending()));
        let joined: String = told.iter().map(|record| record["sql"].as_str().unwrap()).collect();
        let is_cut = |record: &Value| record["truncated"].as_array().is_some_and(|names| names.contains(&"sql".into()));
        prop_assert!(sql.ends_with(&kept) || kept.len() >= TEXT_MAX - 4);
        prop_assert!(kept.starts_with(&joined));
        prop_assert_eq!(is_cut(&told[0]), joined.len() < kept.len() || first.text.as_ref().unwrap().is_cut());
        // Only what JSON makes much longer is not told up to the end.
        prop_assert!(joined.len() == kept.len() || fit(&kept, TEXT_MAX).len() < kept.len());
        for (record, n) in told.iter().zip(1_u64..) {
            check(record, "db_user", conn.db_user.as_deref());
            if let Some(name) = &name {
                check(record, "name", Some(name));
            }
            prop_assert_eq!(&record["bytes"], sql.len());
            prop_assert_eq!(record["sha256"].as_str().unwrap().len(), 64);
            let part = (told.len() > 1).then_some(n);
            prop_assert_eq!(record.get("part").and_then(Value::as_u64), part);
            prop_assert_eq!(record.get("parts").and_then(Value::as_u64), part.map(|_| told.len() as u64));
        }
        // Later only its start.
        lines.statement(2, &again);
        let later = records(lines.pending());
        prop_assert_eq!(later.len(), 1);
        prop_assert_eq!(&later[0]["sql"], &told[0]["sql"]);
        prop_assert_eq!(&later[0]["sha256"], &told[0]["sha256"]);
        prop_assert_eq!(is_cut(&later[0]), later[0]["sql"].as_str().unwrap().len() < kept.len() || is_cut(&told[0]));
    }

    #[test]
    fn other_records_of_sessions_are_lines_of_json(conn in conn(), (name, error) in (text(), text()), complete in any::<bool>()) {
        let mut lines = Lines::new(&conn);
        lines.not_run(3);
        lines.file_sent(&SentFile { name: name.clone(), bytes: 7, complete });
        lines.file(&name, None, FileOutcome::Refused);
        lines.out_of_protocol("client", &error);
        lines.statement(1, &Statement::new(Kind::Function, Some("2200".to_owned()), None));
        let records = records(lines.pending());
        prop_assert_eq!(records.len(), 5);
        check(&records[1], "file", Some(&name));
        check(&records[2], "file", Some(&name));
        check(&records[3], "error", Some(&error));
        prop_assert_eq!(&records[4]["sql"], &Value::Null);
    }
}

#[test]
fn a_redacted_text_has_its_keyed_hash_and_how_it_was_redacted() {
    let limits = Limits::new(TEXT_MAX, Some(Arc::new(Key::new(&[7; 32]))), &Memory::relay());
    let mut collector = Collector::new(limits, Dialect::Postgres);
    let conn = ConnRecord {
        conn_id: 1,
        who: Who::default(),
        target: "orders".to_owned(),
        engine: "postgres",
        host: None,
        port: None,
        credential: "rds_iam",
        db_user: None,
        db_conn_id: Some(9),
        client_program: None,
        client_addr: "tunnel".to_owned(),
    };
    let mut lines = Lines::new(&conn);
    for sql in ["select 'S3CRET'", "do language plperl 'S3CRET'"] {
        let text = collector.whole(sql.as_bytes(), Modes::default());
        lines.statement(1, &Statement::new(Kind::Query, None, Some(text)));
    }
    let records = records(lines.pending());
    let said = |n: usize, field: &str| records[n][field].as_str().unwrap().to_owned();
    assert_eq!((said(0, "sql"), said(0, "redacted")), ("select ?".to_owned(), "literals".to_owned()));
    assert_eq!((said(1, "sql"), said(1, "redacted")), ("do".to_owned(), "verb".to_owned()));
    assert!(said(0, "hmac_sha256").len() == 64 && records[0].get("sha256").is_none());
}
