//! `bastion grant-sql`: what it prints is run by a database, and the check shows what that gives.

use bastion_sandbox::mariadb::MariaDb;
use bastion_sandbox::postgres::Flaws;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::support::{PATIENCE, World, finish, sandbox_program};
use crate::up::{Up, bastion};

async fn grant_sql(world: &World, arguments: &[&str]) -> (i32, String, String) {
    let mut command = bastion(world, "alice", &["grant-sql", "demo"]);
    command.args(arguments);
    finish(command).await
}

#[tokio::test]
async fn what_it_prints_for_postgres_makes_a_user_that_the_check_accepts() {
    let world = World::start().await;
    // Somebody has not run it yet.
    world.database.sql("orders", "drop owned by db_read; drop role db_read").await.unwrap();
    let up = Up::start(&world, &[]).await;
    let (code, out, err) = grant_sql(&world, &["orders", "--check"]).await;
    assert!(code == 1 && out.contains("orders  failed: bastion: target orders asks db_read"), "{out}{err}");
    assert!(out.contains("\n  As an administrator of the database: GRANT rds_iam TO \"db_read\""), "{out}");
    assert!(err.contains("cannot log in to 1 of its targets") && err.contains("bastion grant-sql demo"), "{err}");

    let (code, sql, err) = grant_sql(&world, &["orders", "--server-version", "15"]).await;
    assert_eq!(code, 0, "{err}");
    world.database.sql("orders", &sql).await.unwrap();
    let (code, out, err) = grant_sql(&world, &["orders", "--check"]).await;
    assert_eq!(code, 0, "{err}");
    for part in [
        "orders  ok: db_read on PostgreSQL 15",
        "may select from 1 of 1 tables in orders, insert into 0, update 0, delete from 0",
        "may not create objects in orders",
        "is a member of rds_iam",
    ] {
        assert!(out.contains(part), "{part} is not in {out}");
    }
    // Tables that come later are readable as well.
    world.database.sql("orders", "create table later (x int)").await.unwrap();
    let (code, out, _) = grant_sql(&world, &["--check", "--json"]).await;
    let found: Value = serde_json::from_str(&out).unwrap();
    let targets = found["targets"].as_array().unwrap();
    let of = |name: &str| targets.iter().find(|target| target["target"] == name).unwrap();
    assert!(of("orders")["rights"][0].as_str().unwrap().contains("from 2 of 2 tables"), "{out}");
    assert_eq!((code, &of("orders-admin")["ok"]), (1, &json!(false)));
    assert_eq!(up.end().await.0, Some(0));

    let (code, _, err) = grant_sql(&world, &["nothing"]).await;
    assert!(code == 1 && err.contains("there is no target \"nothing\"") && err.contains("orders"), "{err}");
    let (code, _, err) = grant_sql(&world, &["--check"]).await;
    assert!(code == 1 && err.contains("you have no running bastion") && err.contains("bastion up demo"), "{err}");
    world.stop().await;
}

#[tokio::test]
async fn what_it_prints_for_mariadb_makes_a_user_that_the_check_accepts() {
    let folder = World::folder();
    let events = MariaDb::start(folder.path(), &sandbox_program(), Flaws::default()).await.unwrap();
    let world = World::start_in(folder, Flaws::default(), Some(&events), |_| ()).await;
    // The plugin of RDS is only there; PAM does its work here.
    let mut ask = Command::new("mariadb");
    ask.arg("--no-defaults").arg("-S").arg(events.socket()).args(["-u", "root", "-N", "-B", "-e"]);
    ask.arg("select authentication_string from mysql.user where user = 'db_read'");
    let (_, service, err) = finish(ask).await;
    assert!(!service.is_empty(), "{err}");
    events.sql("mysql", "drop user db_read@'127.0.0.1'").await.unwrap();
    let (code, sql, err) = grant_sql(&world, &["events"]).await;
    let plugin = "IDENTIFIED WITH AWSAuthenticationPlugin AS 'RDS' REQUIRE SSL";
    assert!(code == 0 && sql.contains(plugin), "{sql}{err}");
    events
        .sql("mysql", &sql.replace(plugin, &format!("IDENTIFIED WITH pam AS '{service}' REQUIRE SSL")))
        .await
        .unwrap();
    let up = Up::start(&world, &[]).await;
    let (code, out, err) = grant_sql(&world, &["events", "--check"]).await;
    assert_eq!(code, 0, "{out}{err}");
    for part in ["events  ok: db_read@% on 10.", "MariaDB", "GRANT SELECT ON `events`.* TO `db_read`@`%`"] {
        assert!(out.contains(part), "{part} is not in {out}");
    }
    assert!(!out.contains("IDENTIFIED"), "{out}");
    assert_eq!(up.end().await.0, Some(0));
    world.sandbox.stop().await;
    events.stop().await;
    world.database.stop().await;
}

#[tokio::test]
async fn creation_statements_for_vault_are_sql_once_it_has_filled_them_in() {
    let world = World::start_with(Flaws::default(), |config| {
        let environment = config.parameters.get_mut("/bastion/demo").unwrap();
        let mut document: Value = serde_json::from_str(environment).unwrap();
        let vault = json!({"vault": {"address": "https://vault.example.com", "role": "r", "creds": "db/creds/read"}});
        document["access"]["read"]["target"]["orders"]["credential"] = vault;
        *environment = document.to_string();
    })
    .await;
    let (code, sql, err) = grant_sql(&world, &["orders", "--json"]).await;
    assert_eq!(code, 0, "{err}");
    let found: Value = serde_json::from_str(&sql).unwrap();
    let sql = found["targets"][0]["sql"].as_str().unwrap();
    assert!(sql.contains("vault write db/roles/read db_name="), "{sql}");
    let filled = sql.replace("{{name}}", "v-read-1").replace("{{password}}", "p");
    world.database.sql("orders", &filled.replace("{{expiration}}", "2099-01-01")).await.unwrap();
    // And what it gives keeps nobody from dropping the user, as Vault does.
    let revoke = "revoke all on all tables in schema public from \"v-read-1\"; \
                  revoke all on schema public from \"v-read-1\"; \
                  revoke all on database orders from \"v-read-1\"; drop role \"v-read-1\"";
    world.database.sql("orders", revoke).await.unwrap();
    world.stop().await;
}

#[tokio::test]
async fn ctrl_c_ends_the_check_and_its_session() {
    // A database that takes connections and never says a word.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let world = World::start_with(Flaws::default(), |config| {
        config.change_relays(|relay| relay["target"]["orders"]["port"] = json!(port)).unwrap();
    })
    .await;
    // One session, so that no other one comes or goes meanwhile.
    let up = Up::start(&world, &["--lanes", "1"]).await;
    let sessions = || {
        let mut ids = world.sandbox.gateway().session_ids();
        ids.sort();
        ids
    };
    let before = sessions();
    let mut check = bastion(&world, "alice", &["grant-sql", "demo", "orders", "--check"]);
    check.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped());
    let child = check.spawn().unwrap();
    // It has come as far as the database.
    let _open = tokio::time::timeout(PATIENCE, silent.accept()).await.unwrap().unwrap();
    assert_eq!(sessions().len(), before.len() + 1);
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await.expect("it goes on").unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(130) && said.contains("interrupted"), "{said}");
    assert_eq!(sessions(), before);
    assert_eq!(up.end().await.0, Some(0));
    world.stop().await;
}
