//! Targets whose engine only their secrets say, and what people hear of those whose secrets do not.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bastion_sandbox::mariadb::{self, MariaDb};
use bastion_sandbox::postgres::{Flaws, HOST, PASSWORD};
use mysql_async::prelude::Queryable as _;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::secrets::{Crowd, SECRET, Secrets, login, target};
use crate::support::{PATIENCE, World, finish, http, logged, mysql_options, sandbox_program};
use crate::up::{Up, bastion};

/// A secret as the rotation templates write it.
fn whole(port: u16, password: &str) -> Value {
    json!({
        "engine": "aurora-postgresql", "host": HOST, "port": port, "dbname": "orders", "username": "scram_user",
        "password": password
    })
}

/// Nothing but the secret, and where these tests have their databases.
fn bare(secret: &str) -> Value {
    json!({"hostaddr": "127.0.0.1", "credential": {"secrets_manager": {"secret_id": secret}}})
}

#[tokio::test]
async fn the_engine_comes_from_the_secret_and_what_cannot_be_served_hurts_nobody() {
    let world = World::start().await;
    let events = MariaDb::start(world.folder.path(), &sandbox_program(), Flaws::default()).await.unwrap();
    let port = world.database.port;
    let secrets = Secrets::start(world.folder.path()).await;
    secrets.create(SECRET, whole(port, PASSWORD).to_string()).await;
    let mysql = json!({
        "engine": "mariadb", "host": mariadb::HOST, "port": events.port, "dbname": "scratch", "username": "native_user",
        "password": mariadb::PASSWORD
    });
    secrets.create("events", mysql.to_string()).await;
    secrets.create("managed", login("scram_user", PASSWORD).to_string()).await;
    let oracle = json!({"engine": "S3CRET-oracle", "username": "u", "password": "S3CRET-password"});
    secrets.create("oracle", oracle.to_string()).await;
    secrets.create("gone", whole(port, "S3CRET-gone").to_string()).await;
    secrets.client.delete_secret().secret_id("gone").recovery_window_in_days(7).send().await.unwrap();
    let mut managed = target(port, "managed");
    managed.as_object_mut().unwrap().remove("engine");
    let targets = json!({
        "a-managed": managed, "b-oracle": bare("oracle"), "c-gone": bare("gone"), "d-missing": bare("missing"),
        "events": bare("events"), "orders": bare(SECRET), "written": target(port, "managed")
    });
    let relay = secrets.relay(&world, targets).await;

    // The one that is written has its port before; those of the secrets come then, by name.
    let known: Value = serde_json::from_str(&relay.get("/v1/targets").await.unwrap()).unwrap();
    let served = known["targets"].as_array().unwrap();
    let served: Vec<_> = served.iter().map(|t| [&t["name"], &t["engine"], &t["relay_port"], &t["host"]]).collect();
    let expected = [
        json!(["events", "mysql", 3306, mariadb::HOST]),
        json!(["orders", "postgres", 5433, HOST]),
        json!(["written", "postgres", 5432, HOST]),
    ];
    assert_eq!(json!(served), json!(expected));
    let sql = "select current_user, current_database()";
    for port in [5432, 5433] {
        let (code, out, err) = relay.psql(port, &[], sql).await;
        assert_eq!((code, out.as_str()), (0, "scram_user|orders"), "{err}");
    }
    let mut client = mysql_async::Conn::new(mysql_options(relay.address, 3306)).await.unwrap();
    let who: Option<String> = client.query_first("select concat(current_user(), ' ', database())").await.unwrap();
    assert_eq!(who.as_deref(), Some("native_user@127.0.0.1 scratch"));
    client.disconnect().await.unwrap();

    let again = "Then start a new task: bastion down, bastion up.";
    let problems: Vec<(&str, &str)> = known["unavailable"]
        .as_array()
        .unwrap()
        .iter()
        .map(|target| (target["name"].as_str().unwrap(), target["problem"].as_str().unwrap()))
        .collect();
    let expected = [
        (
            "a-managed",
            "secret managed: it names no engine",
            "Add engine to the target's configuration: \"postgres\" or",
        ),
        ("b-oracle", "secret oracle: it names an engine that bastion cannot log in to", "Add engine to the target's"),
        ("c-gone", "secret gone: it is scheduled for deletion", "restore-secret"),
        ("d-missing", "secret missing: there is no such secret in ap-northeast-1", "Check secret_id and region"),
    ];
    assert_eq!(problems.len(), expected.len(), "{known}");
    for ((name, problem), (wanted, cause, step)) in problems.iter().zip(expected) {
        assert_eq!(*name, wanted);
        for part in [cause, step, again] {
            assert!(problem.contains(part), "{part} is not in {problem}");
        }
        let request = format!(
            "GET /v1/lane HTTP/1.1\r\nHost: bastion\r\nConnection: Upgrade, close\r\nUpgrade: bastion-conn/1\r\nBastion-Target: {name}\r\n\r\n"
        );
        let (status, body) = http(relay.address, &request).await;
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((status, &body["error"]), (404, &json!(format!("target {name} is not served: {problem}"))));
    }

    // A rotation is as invisible as where the engine is written.
    let address = relay.address;
    let crowd = Crowd::start(5, move || async move {
        let parameters = format!("host={address} port=5433 user=anyone");
        let connected = tokio_postgres::connect(&parameters, tokio_postgres::NoTls).await;
        let (client, connection) = connected.map_err(|error| format!("{error:?}"))?;
        drop(client);
        let _ended = connection.await;
        Ok(())
    });
    crowd.busy(&relay).await;
    let pending = secrets.put(&whole(port, "R0TATED")).await;
    crowd.busy(&relay).await;
    world.database.sql("postgres", "alter role scram_user password 'R0TATED'").await.unwrap();
    crowd.busy(&relay).await;
    secrets.finish(&pending).await;
    crowd.busy(&relay).await;
    crowd.end().await;

    let log = relay.log();
    for (name, secret) in [("a-managed", "managed"), ("c-gone", "gone")] {
        let mut lines = log.lines().filter(|line| line.contains("a target is not served") && line.contains(name));
        let line = lines.next().unwrap_or_else(|| panic!("{name} is not in the log"));
        assert!(line.contains("ERROR") && line.contains(&format!("\"secret\":\"{secret}\"")), "{line}");
        assert_eq!(lines.count(), 0, "it is said once");
    }
    for secret in ["S3CRET", "R0TATED", PASSWORD, mariadb::PASSWORD, "SecretString"] {
        assert!(!log.contains(secret) && !known.to_string().contains(secret), "{secret} is in the log");
    }
    drop(relay);
    events.stop().await;
    world.stop().await;
}

/// A port that hangs up until it is opened, and leads to `upstream` then.
async fn gate(upstream: String) -> (String, Arc<AtomicBool>, tokio::task::JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let open = Arc::new(AtomicBool::new(false));
    let is_open = Arc::clone(&open);
    let mut serving = tokio::task::JoinSet::new();
    serving.spawn(async move {
        let mut clients = tokio::task::JoinSet::new();
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            if is_open.load(Ordering::Relaxed) {
                let mut server = TcpStream::connect(upstream.trim_start_matches("http://")).await.unwrap();
                clients.spawn(async move { tokio::io::copy_bidirectional(&mut client, &mut server).await });
            }
        }
    });
    (address, open, serving)
}

#[tokio::test]
async fn a_relay_that_cannot_reach_secrets_manager_at_once_tries_again() {
    let world = World::start().await;
    let secrets = Secrets::start(world.folder.path()).await;
    secrets.create(SECRET, whole(world.database.port, PASSWORD).to_string()).await;
    let (address, open, serving) = gate(secrets.moto.endpoint()).await;
    let mut definition = world.definition(|config| {
        config["identity"] = json!("optional");
        config["target"] = json!({"orders": bare(SECRET)});
    });
    definition.environment.insert("AWS_ENDPOINT_URL_SECRETS_MANAGER".to_owned(), address);
    let opening = async {
        // It is there: the other future has run first.
        let task = world.sandbox.tasks()[0].0.clone();
        logged(&world.sandbox, &task, "cannot read the secret that names the engine, trying again").await;
        open.store(true, Ordering::Relaxed);
    };
    let (relay, ()) = tokio::join!(world.relay_of(&definition), opening);
    // What was read is what it logs in with: it does not ask again.
    drop(serving);
    let (code, out, err) = relay.psql(5432, &[], "select current_user").await;
    assert_eq!((code, out.as_str()), (0, "scram_user"), "{err}");
    drop(relay);
    world.stop().await;
}

#[tokio::test]
async fn a_relay_that_is_stopped_does_not_wait_for_a_secret() {
    let world = World::start().await;
    let (address, _closed, _serving) = gate("http://127.0.0.1:1".to_owned()).await;
    let mut definition = world.definition(|config| config["target"] = json!({"orders": bare(SECRET)}));
    definition.environment.insert("AWS_ENDPOINT_URL_SECRETS_MANAGER".to_owned(), address);
    let (task, _) = world.sandbox.run_directly(&definition);
    logged(&world.sandbox, &task, "trying again").await;
    world.sandbox.stop_directly(&task);
    let log = logged(&world.sandbox, &task, "\"message\":\"stopped\"").await;
    assert!(log.contains("the relay is stopping and has not read its secret"), "{log}");
    world.stop().await;
}

#[tokio::test]
async fn people_are_told_what_is_not_served_and_use_the_rest() {
    let folder = World::folder();
    let secrets = Secrets::start(folder.path()).await;
    secrets.create("managed", login("scram_user", PASSWORD).to_string()).await;
    let world = World::start_in(folder, Flaws::default(), None, |config| {
        let environment = config.parameters.get_mut("/bastion/demo").unwrap();
        let mut document: Value = serde_json::from_str(environment).unwrap();
        for access in ["read", "write"] {
            document["access"][access]["target"]["managed"] = bare("managed");
        }
        document["access"]["write"]["target"].as_object_mut().unwrap().remove("orders");
        *environment = document.to_string();
        config
            .change_relays(|relay| {
                relay["target"]["managed"] = bare("managed");
                if relay["access"] == "write" {
                    relay["target"].as_object_mut().unwrap().remove("orders");
                }
            })
            .unwrap();
        for definition in &mut config.task_definitions {
            let endpoint = secrets.moto.endpoint();
            definition.environment.insert("AWS_ENDPOINT_URL_SECRETS_MANAGER".to_owned(), endpoint);
        }
    })
    .await;
    let running = || world.sandbox.tasks().iter().filter(|(_, status)| *status != "STOPPED").count();
    let part = "secret managed: it names no engine; those that RDS manages never do. Add engine to the target's";

    // Nothing to serve: why, a failure, and nothing left behind, whatever was asked for.
    for keep in ["--keep", "--detach"] {
        let (code, out, err) = finish(bastion(&world, "alice", &["up", "demo", "--access", "write", keep])).await;
        assert_eq!((code, out.as_str()), (1, ""), "{err}");
        assert!(err.contains("the relay serves none of its targets") && err.contains(part), "{err}");
        assert_eq!(running(), 0);
    }

    let up = Up::start(&world, &["--local-port", "managed=5999"]).await;
    let warned = up.events.iter().find(|event| event["event"] == "warning").unwrap()["message"].as_str().unwrap();
    assert!(warned.contains("port 5999 stays closed: the relay does not serve managed"), "{warned}");
    assert_eq!(up.ready["unavailable"][0]["name"], "managed");
    assert!(up.ready["unavailable"][0]["problem"].as_str().unwrap().starts_with(part), "{}", up.ready);
    let names: Vec<_> = up.ready["targets"].as_array().unwrap().iter().map(|target| &target["name"]).collect();
    assert_eq!(names, ["orders", "orders-admin"]);
    let (code, out, err) = up.psql("orders", "select current_user").await;
    assert_eq!((code, out.as_str()), (0, "db_read"), "{err}");

    // The card.
    let mut connect = bastion(&world, "alice", &["connect", "demo"]);
    let mut child = connect.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let card = async {
        while lines.next_line().await.unwrap().expect("there is no card") != "managed  (not served)" {}
        lines.next_line().await.unwrap().unwrap()
    };
    let problem = tokio::time::timeout(PATIENCE, card).await.unwrap();
    assert!(problem.starts_with("  problem   secret managed: it names no engine"), "{problem}");
    child.kill().await.unwrap();

    for (arguments, wanted, parts) in [
        (
            ["managed"].as_slice(),
            64,
            ["the configuration of managed has none", "write engine = \"postgres\" or \"mysql\""],
        ),
        (&["--access", "write"], 64, ["the configuration of managed has none", "write engine"]),
        (&["other", "--access", "write"], 1, ["there is no target \"other\"", "the targets are managed"]),
        (&[], 0, ["nothing for managed: write engine", "GRANT rds_iam TO \"db_read\""]),
        (&["other"], 1, ["there is no target \"other\"", "orders, orders-admin, managed"]),
        (
            &["managed", "--check"],
            1,
            ["managed  not served: secret managed: it names no engine", "to 1 of its targets"],
        ),
        (&["--check", "--json"], 1, ["\"target\":\"managed\"", "to 2 of its targets"]),
    ] {
        let mut command = bastion(&world, "alice", &["grant-sql", "demo"]);
        command.args(arguments);
        let (code, out, err) = finish(command).await;
        assert_eq!(code, wanted, "{arguments:?}: {out}{err}");
        for part in parts {
            assert!(format!("{out}\n{err}").contains(part), "{arguments:?}: {part} is not in {out}{err}");
        }
    }
    assert_eq!(up.end().await.0, Some(0));

    // The line of a background tunnel.
    let (code, out, err) = finish(bastion(&world, "alice", &["up", "demo", "--detach"])).await;
    assert!(code == 0 && out.contains("managed  not served: secret managed: it names no engine"), "{out}{err}");
    let (code, _, err) = finish(bastion(&world, "alice", &["down", "demo"])).await;
    assert_eq!(code, 0, "{err}");
    world.stop().await;
}
