//! Targets whose engine only their secrets say, and what people hear of those whose secrets do not.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bastion_sandbox::mariadb::{self, MariaDb};
use bastion_sandbox::postgres::{Flaws, HOST, PASSWORD};
use mysql_async::prelude::Queryable as _;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};

use crate::secrets::{Crowd, SECRET, Secrets, login, target};
use crate::support::{World, http, logged, mysql_options, sandbox_program};

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
    let (address, open, _serving) = gate(secrets.moto.endpoint()).await;
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
