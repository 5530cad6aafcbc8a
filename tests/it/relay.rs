//! The relay against a real PostgreSQL that checks real RDS IAM tokens.

use std::time::Duration;

use bastion_sandbox::postgres::Flaws;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::support::{BASTION, PATIENCE, World, finish, http, target};

#[tokio::test]
async fn a_client_logs_in_with_any_user_and_no_password() {
    let world = World::start().await;
    let relay = world.relay(|_| ()).await;
    let sql = "select current_user, (select ssl from pg_stat_ssl where pid = pg_backend_pid()), count(*) from orders";
    let (code, out, err) = relay.psql(5432, &[], sql).await;
    assert_eq!((code, out.as_str(), err.as_str()), (0, "db_read|t|1000", ""));
    // The token of a session with a long session token arrived whole, and the next login used it again.
    let first = world.database.verifier_log();
    assert!(first.starts_with("ALLOW db_read (1"), "{first}");
    let (code, ..) = relay.psql(5432, &["-d", "orders"], "select 1").await;
    assert_eq!(code, 0);
    let log = relay.log();
    assert!(log.contains("\"db_user\":\"db_read\""), "{log}");
    assert!(!log.contains("X-Amz-Signature"), "{log}");
    // The second target of a task stands one port up.
    assert!(relay.get("/v1/targets").await.unwrap().contains("\"relay_port\":5433"));
    world.stop().await;
}

#[tokio::test]
async fn a_refused_login_says_why_and_what_to_do() {
    let world = World::start().await;
    let relay = world.relay(|_| ()).await;
    let (code, _, err) = relay.psql(5433, &[], "select 1").await;
    assert_eq!(code, 2);
    for part in [
        "FATAL:  PAM authentication failed for user \"db_admin\"\nDETAIL:  bastion: target orders-admin refused the IAM",
        "rds-db:connect as db_admin",
        "GRANT rds_iam TO \"db_admin\"",
        "(bastion connection 1)",
    ] {
        assert!(err.contains(part), "{part} is not in {err}");
    }
    assert!(world.database.verifier_log().contains("DENY db_admin: the role may not rds-db:connect as db_admin"));
    world.stop().await;
}

#[tokio::test]
async fn protocol_features_pass_unharmed() {
    let world = World::start().await;
    let relay = world.relay(|_| ()).await;
    let client = relay.client().await;
    // Pipelined, prepared, in a transaction, with Unicode.
    let (a, b) =
        tokio::join!(client.query_one("select 1 + 1", &[]), client.query_one("select '片山 葵' || $1", &[&"!"]));
    assert_eq!(a.unwrap().get::<_, i32>(0), 2);
    assert_eq!(b.unwrap().get::<_, String>(0), "片山 葵!");
    // Parameter statuses of the real server.
    let (_, version, _) = relay.psql(5432, &[], "show server_version_num").await;
    assert!(version.starts_with("15") || version.parse::<u32>().unwrap() > 150_000, "{version}");
    // COPY both ways, a large object, NOTIFY to oneself.
    let script = "create temp table t (x text); insert into t select repeat('é', 1000) from generate_series(1, 2000);\n\
                  copy t to stdout;";
    let (code, out, err) = relay.psql(5432, &[], script).await;
    assert_eq!((code, out.lines().count(), err.as_str()), (0, 2000, ""));
    let (code, out, _) = relay
        .psql(5432, &[], "select lo_from_bytea(4711, decode(repeat('ab', 100000), 'hex')); select length(lo_get(4711))")
        .await;
    assert_eq!((code, out.as_str()), (0, "4711\n100000"));
    let mut psql = Command::new("psql");
    psql.args([
        "-X",
        "-q",
        "-U",
        "anyone",
        "-h",
        &relay.address.to_string(),
        "-c",
        "listen x",
        "-c",
        "notify x, 'hello'",
    ]);
    let (code, out, _) = finish(psql).await;
    assert!(code == 0 && out.contains("Asynchronous notification \"x\" with payload \"hello\""), "{out}");
    world.stop().await;
}

#[tokio::test]
async fn cancel_requests_reach_the_query() {
    let world = World::start().await;
    let relay = world.relay(|_| ()).await;
    let client = relay.client().await;
    let token = client.cancel_token();
    let sleeping = client.simple_query("select pg_sleep(60)");
    let cancelling = async {
        let other = relay.client().await;
        let running = "select count(*) from pg_stat_activity where query like '%pg_sleep(60)%' and pid <> pg_backend_pid() and state = 'active'";
        while other.query_one(running, &[]).await.unwrap().get::<_, i64>(0) == 0 {}
        token.cancel_query(tokio_postgres::NoTls).await.unwrap();
    };
    let (slept, ()) = tokio::time::timeout(PATIENCE, async { tokio::join!(sleeping, cancelling) }).await.unwrap();
    assert_eq!(slept.unwrap_err().code(), Some(&tokio_postgres::error::SqlState::QUERY_CANCELED));
    // The session goes on.
    assert_eq!(client.query_one("select 7", &[]).await.unwrap().get::<_, i32>(0), 7);
    world.stop().await;
}

#[tokio::test]
async fn clear_md5_and_scram_users_are_told_that_iam_is_off_for_them() {
    let world = World::start().await;
    let port = world.database.port;
    let relay = world
        .relay(|config| {
            config["target"] = json!({"md5": target(port, "md5_user"), "scram": target(port, "scram_user")});
        })
        .await;
    for port in [5432, 5433] {
        let (code, _, err) = relay.psql(port, &[], "select 1").await;
        assert!(code == 2 && err.contains("instead of an IAM token") && err.contains("GRANT rds_iam TO"), "{err}");
    }
    world.stop().await;
}

#[tokio::test]
async fn nothing_is_sent_to_a_database_that_cannot_prove_its_name() {
    for (flaws, part) in [
        (Flaws { other_name: true, ..Flaws::default() }, "its certificate is for another name"),
        (Flaws { no_tls: true, ..Flaws::default() }, "does not offer TLS, so no login was sent"),
    ] {
        let world = World::start_with(flaws, |_| ()).await;
        let relay = world.relay(|_| ()).await;
        let (code, _, err) = relay.psql(5432, &[], "select 1").await;
        assert!(code == 2 && err.contains(part), "{err}");
        assert_eq!(world.database.verifier_log(), "");
        world.stop().await;
    }
}

#[tokio::test]
async fn a_foreign_ca_is_not_trusted() {
    let world = World::start().await;
    let mut definition = world.definition(|config| config["identity"] = json!("optional"));
    definition.environment.remove("BASTION_EXTRA_CA_FILE");
    let relay = world.relay_of(&definition).await;
    let (code, _, err) = relay.psql(5432, &[], "select 1").await;
    assert!(code == 2 && err.contains("not from a trusted CA") && err.contains("BASTION_EXTRA_CA_FILE"), "{err}");
    world.stop().await;
}

#[tokio::test]
async fn a_database_that_is_away_is_named() {
    let world = World::start().await;
    let relay = world
        .relay(|config| {
            config["target"]["orders"]["port"] = json!(1);
            config["target"]["orders-admin"]["host"] = json!("orders.nowhere.invalid");
            config["target"]["orders-admin"].as_object_mut().unwrap().remove("hostaddr");
        })
        .await;
    let (_, _, err) = relay.psql(5432, &[], "select 1").await;
    assert!(err.contains("cannot reach target orders at") && err.contains("Connection refused"), "{err}");
    let (_, _, err) = relay.psql(5433, &[], "select 1").await;
    assert!(err.contains("orders.nowhere.invalid") && err.contains("does not resolve"), "{err}");
    world.stop().await;
}

#[tokio::test]
async fn replication_passes() {
    let world = World::start().await;
    world.database.sql("postgres", "alter role db_read replication").await.unwrap();
    let relay = world.relay(|_| ()).await;
    let (code, out, err) = relay.psql(5432, &["-d", "dbname=orders replication=database"], "IDENTIFY_SYSTEM").await;
    assert!(code == 0 && out.ends_with("|orders"), "{out} {err}");
    let mut changes = Command::new("pg_recvlogical");
    changes.args(["-h", &relay.address.to_string(), "-U", "anyone", "-w", "-d", "orders", "--slot", "bastion"]);
    changes.args(["--create-slot", "--start", "--plugin", "test_decoding", "-f", "-", "--no-loop"]);
    let mut changes = changes.stdout(std::process::Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut lines = BufReader::new(changes.stdout.take().unwrap()).lines();
    let client = relay.client().await;
    let row = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.contains("INSERT") {
                return line;
            }
        }
        panic!("the replication ended");
    };
    let writing = async {
        // The slot sees what comes after it was made.
        let slots = "select count(*) from pg_replication_slots where active";
        while client.query_one(slots, &[]).await.unwrap().get::<_, i64>(0) == 0 {}
        client.batch_execute("create table changes (x text); insert into changes values ('片山')").await.unwrap();
    };
    let (line, ()) = tokio::time::timeout(PATIENCE, async { tokio::join!(row, writing) }).await.unwrap();
    assert!(line.contains("片山"), "{line}");
    changes.kill().await.unwrap();
    drop(client);
    world.stop().await;
}

#[tokio::test]
async fn role_credentials_that_expire_are_renewed() {
    let world = World::start_with(Flaws::default(), |config| config.credential_lifetime = Duration::from_secs(4)).await;
    let relay = world.relay(|_| ()).await;
    let begun = tokio::time::Instant::now();
    while begun.elapsed() < Duration::from_secs(9) {
        let (code, out, err) = relay.psql(5432, &[], "select 1").await;
        assert_eq!((code, out.as_str()), (0, "1"), "{err}");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert!(!world.database.verifier_log().contains("DENY"), "{}", world.database.verifier_log());
    world.stop().await;
}

#[tokio::test]
async fn a_task_without_a_role_says_so() {
    let world = World::start().await;
    let definition = world.definition(|config| config["identity"] = json!("optional"));
    let config = definition.environment["BASTION_CONFIG"].clone();
    let mut relay = Command::new(BASTION);
    relay.arg("relay").env_clear().env("BASTION_CONFIG", config).env("BASTION_LISTEN", "127.63.1.1");
    let log = std::fs::File::create(world.folder.path().join("alone.log")).unwrap();
    let mut child = relay.stderr(log).kill_on_drop(true).spawn().unwrap();
    let mut connected = None;
    for _ in 0..200 {
        match TcpStream::connect("127.63.1.1:7070").await {
            Ok(stream) => {
                connected = Some(stream);
                break;
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
    drop(connected.expect("the relay does not listen"));
    let mut psql = Command::new("psql");
    psql.args(["-X", "-w", "-U", "x", "-h", "127.63.1.1", "-c", "select 1"]);
    let (code, _, err) = finish(psql).await;
    // The certificate is not trusted here, which comes first: nothing about credentials before TLS.
    assert!(code == 2 && err.contains("not from a trusted CA"), "{err}");
    child.kill().await.unwrap();
    world.stop().await;
}

#[tokio::test]
async fn garbage_silence_and_huge_lengths_end_in_bounded_time() {
    let world = World::start().await;
    let relay = world.relay(|_| ()).await;
    // What is no startup packet gets no answer, as from the server; one that is wrong gets an error.
    let cases: [(&[u8], bool); 6] = [
        (b"GET / HTTP/1.1\r\n\r\n", false),
        (b"X\0\0\0\x04", false),
        (&[0x40, 0, 0, 0, 0, 3, 0, 0], false),
        (&[0xff; 64], false),
        (&[0, 0, 0, 9, 0, 3, 0, 0, 1], true),
        (&[0x16, 3, 1, 0, 100], false),
    ];
    for (garbage, told) in cases {
        let mut stream = TcpStream::connect((relay.address, 5432)).await.unwrap();
        stream.write_all(garbage).await.unwrap();
        let mut answer = Vec::new();
        tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
        assert_eq!(String::from_utf8_lossy(&answer).contains("speaks PostgreSQL"), told, "{answer:?}");
        assert!(told || answer.is_empty(), "{answer:?}");
    }
    let mut http_garbage = TcpStream::connect((relay.address, 7070)).await.unwrap();
    http_garbage.write_all(&[0xff; 64]).await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(PATIENCE, http_garbage.read_to_end(&mut answer)).await.unwrap().unwrap();
    // Silence, on both ports: closed by the relay, and others are served meanwhile.
    let mut silent = TcpStream::connect((relay.address, 5432)).await.unwrap();
    let mut silent_http = TcpStream::connect((relay.address, 7070)).await.unwrap();
    let (code, ..) = relay.psql(5432, &[], "select 1").await;
    assert_eq!(code, 0);
    let mut goodbye = Vec::new();
    tokio::time::timeout(PATIENCE, silent.read_to_end(&mut goodbye)).await.unwrap().unwrap();
    assert_eq!(goodbye, b"");
    relay.wait_for("the client sent nothing for 15 s").await;
    tokio::time::timeout(PATIENCE, silent_http.read_to_end(&mut goodbye)).await.unwrap().unwrap();
    assert_eq!(relay.get("/healthz").await.unwrap(), "ok\n");
    world.stop().await;
}

#[tokio::test]
async fn the_http_side_tells_what_there_is() {
    let world = World::start().await;
    let relay = world.relay(|_| ()).await;
    assert_eq!(relay.get("/healthz").await.unwrap(), "ok\n");
    assert_eq!(relay.get("/readyz").await.unwrap(), "ready\n");
    assert_eq!(relay.get("/nothing").await, Err(404));
    let (code, ..) = relay.psql(5432, &[], "select 1").await;
    assert_eq!(code, 0);
    let metrics = relay.get("/metrics").await.unwrap();
    assert!(metrics.contains("bastion_relay_connections_total{target=\"orders\"} 1"), "{metrics}");
    let targets: Value = serde_json::from_str(&relay.get("/v1/targets").await.unwrap()).unwrap();
    assert_eq!(targets["targets"][0]["db_user"], "db_read");
    assert_eq!(targets["idle_stop_seconds"], 1800);
    let mut health = Command::new(BASTION);
    health.args(["relay", "--health"]).env("BASTION_LISTEN", relay.address.to_string());
    assert_eq!(finish(health).await.0, 0);
    let mut health = Command::new(BASTION);
    health.args(["relay", "--health"]).env("BASTION_LISTEN", "127.63.9.9");
    let (code, _, err) = finish(health).await;
    assert!(code == 1 && err.contains("127.63.9.9:7070 does not answer"), "{err}");
    world.stop().await;
}

#[tokio::test]
async fn a_connection_comes_over_the_http_port_too() {
    let world = World::start().await;
    let relay = world.relay(|_| ()).await;
    let request = |target: &str| {
        format!(
            "GET /v1/lane HTTP/1.1\r\nHost: bastion\r\nConnection: Upgrade\r\nUpgrade: bastion-conn/1\r\nBastion-Target: {target}\r\n\r\n"
        )
    };
    // The client's first bytes travel with the request.
    let mut stream = TcpStream::connect((relay.address, 7070)).await.unwrap();
    let mut first = request("orders").into_bytes();
    first.extend_from_slice(b"\0\0\0\x15\0\x03\0\0user\0anyone\0\0");
    stream.write_all(&first).await.unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"Z\0\0\0\x05I") {
        assert!(tokio::time::timeout(PATIENCE, stream.read_buf(&mut seen)).await.unwrap().unwrap() > 0);
    }
    let text = String::from_utf8_lossy(&seen);
    assert!(text.starts_with("HTTP/1.1 101") && text.contains("server_version"), "{text}");
    let (status, body) = http(
        relay.address,
        &request("order").replace("Upgrade: b", "X: b").replace("Connection: Upgrade", "Connection: close"),
    )
    .await;
    assert!(status == 426 && body.contains("bastion-conn/1"), "{status} {body}");
    let (status, body) =
        http(relay.address, &request("order").replace("bastion\r\n", "bastion\r\nConnection: close\r\n")).await;
    assert!(status == 404 && body.contains("the targets are orders, orders-admin"), "{status} {body}");
    world.stop().await;
}

#[tokio::test]
async fn a_drain_lets_open_connections_finish_and_refuses_new_ones() {
    let world = World::start().await;
    let relay = world.relay(|_| ()).await;
    let client = relay.client().await;
    world.sandbox.stop_directly(&relay.id);
    relay.wait_for("draining").await;
    assert!(TcpStream::connect((relay.address, 5432)).await.is_err() || relay.get("/readyz").await == Err(503));
    assert_eq!(relay.get("/readyz").await, Err(503));
    assert_eq!(client.query_one("select 5", &[]).await.unwrap().get::<_, i32>(0), 5);
    drop(client);
    let stopped = async {
        while relay.status() != "STOPPED" {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, stopped).await.unwrap();
    let log = relay.log();
    assert!(log.contains("\"message\":\"stopped\"") && !log.contains("cutting"), "{log}");
    world.stop().await;
}

#[tokio::test]
async fn an_unused_relay_ends_itself() {
    let world = World::start().await;
    let relay = world.relay(|config| config["idle_stop"] = json!("1s")).await;
    let stopped = async {
        while relay.status() != "STOPPED" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, stopped).await.unwrap();
    assert!(relay.log().contains("\"cause\":\"idle\""), "{}", relay.log());
    world.stop().await;
}

#[tokio::test]
async fn bad_environments_exit_64_with_every_mistake_at_a_check_and_at_a_start() {
    let relay = |arguments: &[&str], variables: &[(&str, &str)]| {
        let mut relay = Command::new(BASTION);
        relay.arg("relay").args(arguments).env_clear().envs(variables.iter().copied());
        finish(relay)
    };
    let bad = [
        ("BASTION_CONFIG", r#"{"env":"x","target":{"o":{"engin":"postgres"}}}"#),
        ("BASTION_LISTEN", "0.0.0.0"),
        ("BASTION_LOG", "bastion=loud"),
    ];
    for arguments in [["--check"].as_slice(), &[]] {
        let (code, out, err) = relay(arguments, &bad).await;
        assert_eq!((code, out.as_str()), (64, ""));
        for part in [
            "access: is missing",
            "region: is missing",
            "target.o.engine: is missing",
            "did you mean engine?",
            "BASTION_LISTEN: is \"0.0.0.0\", not a loopback address",
            "BASTION_LOG: is \"bastion=loud\"",
        ] {
            assert!(err.contains(part), "{part} is not in {err}");
        }
        let (code, _, err) = relay(arguments, &[]).await;
        assert!(code == 64 && err.contains("BASTION_CONFIG: is not set"), "{err}");
    }
}

#[tokio::test]
async fn a_good_environment_is_told_in_one_line_and_nothing_listens() {
    let world = World::start().await;
    // The relay of this address has every port, so a check that opened one would fail.
    let running = world.relay(|_| ()).await;
    let mut check = Command::new(BASTION);
    check.args(["relay", "--check"]).env_clear().envs(&world.config.task_definitions[0].environment);
    check.env("BASTION_LISTEN", running.address.to_string());
    let (code, out, err) = finish(check).await;
    let line = "BASTION_CONFIG is good: environment demo, access read, targets orders, orders-admin";
    assert_eq!((code, out.as_str(), err.as_str()), (0, line, ""));
    // No secret is read either, though only it names an engine.
    let undecided = world.definition(|config| {
        config["target"]["events"] = json!({"credential": {"secrets_manager": {"secret_id": "prod/events"}}});
    });
    let mut check = Command::new(BASTION);
    check.args(["relay", "--check"]).env_clear().envs(&undecided.environment);
    let (code, out, err) = finish(check).await;
    let line = "BASTION_CONFIG is good: environment demo, access read, targets events (its secret has to name the engine), \
                orders, orders-admin";
    assert_eq!((code, out.as_str(), err.as_str()), (0, line, ""));
    world.stop().await;
}
