//! The audit log of a relay in a task: what is in it, when, and what happens where it cannot be written.

use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::support::{BASTION, PATIENCE, Relay, World, finish};

impl Relay<'_> {
    fn audit(&self, event: &str) -> Vec<Value> {
        let lines = self.log().lines().map(|line| serde_json::from_str::<Value>(line).unwrap_or_default()).collect();
        let lines: Vec<Value> = lines;
        lines.into_iter().filter(|line| line["audit"] == 2 && line["event"] == event).collect()
    }

    /// Waits until there are so many records of this event.
    async fn audited(&self, event: &str, count: usize) -> Vec<Value> {
        let seen = async {
            while self.audit(event).len() < count {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(PATIENCE, seen).await.is_err() {
            panic!("there are not {count} {event} records in {}", self.log());
        }
        self.audit(event)
    }

    fn sql(&self) -> Vec<(String, Option<String>)> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        self.audit("statement").iter().map(|line| (text(&line["kind"]).unwrap(), text(&line["sql"]))).collect()
    }
}

#[tokio::test]
async fn every_connection_has_a_record_of_its_start_and_its_end() {
    let world = World::start().await;
    let mut definition = world.definition(|config| config["identity"] = json!("optional"));
    definition.environment.insert("BASTION_REASON".to_owned(), "INC-123".to_owned());
    let relay = world.relay_of(&definition).await;
    let (code, ..) = relay.psql(5432, &[], "select 'S3CRET'").await;
    assert_eq!(code, 0);
    let (code, ..) = relay.psql(5433, &[], "select 1").await;
    assert_eq!(code, 2);
    let opened = &relay.audited("connection_opened", 1).await[0];
    for (field, value) in [
        ("env", json!("demo")),
        ("access", json!("read")),
        ("reason", json!("INC-123")),
        ("conn_id", json!(1)),
        ("person", Value::Null),
        ("target", json!("orders")),
        ("engine", json!("postgres")),
        ("credential", json!("rds_iam")),
        ("db_user", json!("db_read")),
        ("client_program", json!("psql")),
        ("n", json!(2)),
    ] {
        assert_eq!(opened[field], value, "{field} in {opened}");
    }
    let closed = &relay.audited("connection_closed", 1).await[0];
    assert_eq!(
        (&closed["conn_id"], &closed["ended_by"], &closed["error"]),
        (&json!(1), &json!("client"), &Value::Null)
    );
    assert!(closed["bytes_up"].as_u64().unwrap() > 10 && closed["bytes_down"].as_u64().unwrap() > 10, "{closed}");
    let refused = &relay.audited("connection_refused", 1).await[0];
    assert_eq!((&refused["db_user"], &refused["kind"]), (&json!("db_admin"), &json!("upstream_auth")), "{refused}");
    assert!(refused["error"].as_str().unwrap().contains("PAM authentication failed"), "{refused}");
    // Statements are not asked for.
    assert!(relay.audit("statement").is_empty() && !relay.log().contains("S3CRET"));
    let started = &relay.audit("relay_started")[0];
    assert_eq!((&started["n"], &started["statements"], &started["hash_key"]), (&json!(1), &json!(false), &Value::Null));
    // A connection that the relay cuts has its end, too, and the server's own number.
    let client = relay.client().await;
    let process = client.query_one("select pg_backend_pid()", &[]).await.unwrap().get::<_, i32>(0);
    assert_eq!(relay.audited("connection_opened", 2).await[1]["db_conn_id"], process);
    client.simple_query("begin").await.unwrap();
    for _ in 0..2 {
        world.sandbox.stop_directly(&relay.id);
    }
    drop(client);
    relay.audited("connection_closed", 2).await;
    // The last record has the number of all of them.
    let stopped = &relay.audited("relay_stopped", 1).await[0];
    let count = relay.log().lines().filter(|line| line.starts_with("{\"audit\":2,")).count();
    assert_eq!((&stopped["n"], &stopped["records"]), (&json!(count), &json!(count)));
    world.stop().await;
}

#[tokio::test]
async fn statements_are_recorded_as_they_run_and_the_bytes_stay_the_same() {
    let world = World::start().await;
    let relay = world.relay(|config| config["audit"] = json!("statements")).await;
    let client = relay.client().await;
    let statement = client.prepare("select count(*) from orders where id < $1").await.unwrap();
    for limit in [10_i32, 100] {
        let row = client.query_one(&statement, &[&limit]).await.unwrap();
        assert_eq!(row.get::<_, i64>(0), i64::from(limit) - 1);
    }
    client.batch_execute("create temp table t (x text); insert into t values ('片山 葵')").await.unwrap();
    let long = format!("select length('{}')", "x".repeat(200_000));
    let rows = client.simple_query(&long).await.unwrap();
    assert_eq!(rows.len(), 3);
    let (code, out, _) = relay.psql(5432, &[], "copy (select generate_series(1, 5000)) to stdout").await;
    assert_eq!((code, out.lines().count()), (0, 5000));
    // Whatever went before it is in the log, too.
    relay.audited("connection_closed", 1).await;
    let sql = relay.sql();
    let count = "select count(*) from orders where id < $1";
    let of = |kind: &str, text: &str| sql.iter().filter(|(k, sql)| k == kind && sql.as_deref() == Some(text)).count();
    assert_eq!((of("prepare", count), of("execute", count)), (1, 2), "{sql:?}");
    assert_eq!(of("query", "create temp table t (x text); insert into t values ('片山 葵')"), 1, "{sql:?}");
    assert_eq!(of("query", "copy (select generate_series(1, 5000)) to stdout"), 1, "{sql:?}");
    let parts: Vec<Value> = relay.audit("statement").into_iter().filter(|line| !line["part"].is_null()).collect();
    assert_eq!(parts.iter().map(|part| part["sql"].as_str().unwrap()).collect::<String>(), long);
    for part in parts {
        assert_eq!(
            (&part["target"], &part["db_user"], &part["conn_id"]),
            (&json!("orders"), &json!("db_read"), &json!(1))
        );
        assert_eq!((&part["statement"], &part["truncated"]), (&json!(5), &Value::Null), "{part}");
    }
    // The relay's drain would wait for it.
    drop(client);
    world.stop().await;
}

/// Two names of a portal that are one for the server, which looks at 63 bytes.
#[tokio::test]
async fn a_text_that_runs_under_another_name_is_recorded() {
    let world = World::start().await;
    let relay = world.relay(|config| config["audit"] = json!("statements")).await;
    let mut client = TcpStream::connect((relay.address, 5432)).await.unwrap();
    let message = |tag: &[u8], body: &str| {
        let length = u32::try_from(body.len() + 4).unwrap();
        [tag, &length.to_be_bytes(), body.as_bytes()].concat()
    };
    let name = "x".repeat(63);
    let asked = [
        message(b"", "\0\x03\0\0user\0anyone\0\0"),
        message(b"P", "\0select 'h1' || 'dden'\0\0\0"),
        message(b"B", &format!("{name}a\0\0\0\0\0\0\0\0")),
        message(b"P", "\0select 'else'\0\0\0"),
        message(b"E", &format!("{name}b\0\0\0\0\0")),
        message(b"S", ""),
        message(b"X", ""),
    ];
    client.write_all(&asked.concat()).await.unwrap();
    let mut said = Vec::new();
    tokio::time::timeout(PATIENCE, client.read_to_end(&mut said)).await.unwrap().unwrap();
    assert!(said.windows(6).any(|seen| seen == b"h1dden"), "{}", String::from_utf8_lossy(&said));
    drop(client);
    relay.audited("connection_closed", 1).await;
    // What the server takes such a name for is not known, and the text has a record all the same.
    let text = ("prepare".to_owned(), Some("select 'h1' || 'dden'".to_owned()));
    let sql = relay.sql();
    assert!(sql.contains(&text) && sql.contains(&("execute".to_owned(), None)), "{sql:?}");
    assert!(!sql.contains(&("execute".to_owned(), Some("select 'else'".to_owned()))), "{sql:?}");
    world.stop().await;
}

#[tokio::test]
async fn redacted_statements_have_no_literal() {
    let world = World::start().await;
    let relay = world
        .relay(|config| {
            config["audit"] = json!("statements");
            config["redact"] = json!(true);
        })
        .await;
    let (code, out, err) = relay.psql(5432, &[], "select 'S3CRET' || $$S3CRET$$, 471147114711 -- S3CRET").await;
    assert_eq!((code, out.as_str()), (0, "S3CRETS3CRET|471147114711"), "{err}");
    relay.audited("connection_closed", 1).await;
    assert_eq!(relay.sql(), [("query".to_owned(), Some("select ? || ?, ? ".to_owned()))]);
    let log = relay.log();
    assert!(!log.contains("S3CRET") && !log.contains("4711471"), "{log}");
    world.stop().await;
}

#[tokio::test]
async fn nothing_is_served_while_the_audit_log_cannot_be_written() {
    let world = World::start().await;
    let definition = world.definition(|config| config["identity"] = json!("optional"));
    // A task of the sandbox lends its role.
    let lender = world.relay_of(&definition).await;
    let mut relay = Command::new(BASTION);
    relay.arg("relay").env_clear().envs(&definition.environment).env("BASTION_LISTEN", "127.63.1.2");
    let role = format!("{}/credentials/{}", world.sandbox.endpoint(), lender.id);
    relay.env("AWS_CONTAINER_CREDENTIALS_FULL_URI", role);
    let mut child = relay.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let reader = child.stdout.take();
    let listening = async {
        while TcpStream::connect("127.63.1.2:5432").await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, listening).await.unwrap();
    let psql = || {
        let mut psql = Command::new("psql");
        psql.args(["-X", "-A", "-t", "-w", "-U", "x", "-h", "127.63.1.2", "-c", "select 1"]);
        finish(psql)
    };
    assert_eq!(psql().await.1, "1");
    drop(reader);
    let (code, out, err) = psql().await;
    assert!(code == 2 && out.is_empty() && err.contains("the audit log cannot be written"), "{code} {out} {err}");
    child.kill().await.unwrap();
    // Its own log has the cause, once.
    let log = child.wait_with_output().await.unwrap().stderr;
    let log = String::from_utf8(log).unwrap();
    assert_eq!(log.matches("Broken pipe").count(), 1, "{log}");
    assert!(log.contains("records are lost until it can"), "{log}");
    world.stop().await;
}

#[tokio::test]
async fn metrics_for_cloudwatch_come_at_the_end_at_the_latest() {
    let world = World::start().await;
    let relay = world.relay(|config| config["metrics"] = json!("emf")).await;
    assert_eq!(relay.psql(5432, &[], "select 1").await.0, 0);
    world.sandbox.stop_directly(&relay.id);
    relay.wait_for("AuthorizedCallers").await;
    let log = relay.log();
    let line = log.lines().find(|line| line.contains("\"_aws\"") && line.contains("\"target\":\"orders\"")).unwrap();
    let line: Value = serde_json::from_str(line).unwrap();
    assert_eq!((&line["Connections"], &line["env"], &line["OpenConnections"]), (&json!(1), &json!("demo"), &json!(0)));
    assert!(line["BytesDown"].as_u64().unwrap() > 0, "{line}");
    world.stop().await;
}
