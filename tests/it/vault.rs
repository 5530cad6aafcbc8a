//! Database users from OpenBao's database engine in a real PostgreSQL: issue, renew, revoke, maximum, outage, causes.

use std::collections::BTreeMap;
use std::time::Duration;

use bastion_sandbox::mariadb::{self, MariaDb};
use bastion_sandbox::postgres::HOST;
use bastion_sandbox::vault::{LoginRole, SERVER_ID, Standby, Vault};
use bastion_sandbox::{ACCOUNT, REGION};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::support::{PATIENCE, Relay, World, finish, mysql_options, sandbox_program};

const CREATE: &str = r#"CREATE ROLE "{{name}}" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'; GRANT SELECT ON orders TO "{{name}}""#;
const CREATE_MYSQL: &str =
    "CREATE USER '{{name}}'@'%' IDENTIFIED BY '{{password}}' REQUIRE SSL; GRANT SELECT ON events.* TO '{{name}}'@'%'";
/// Of the database's administrator that Vault makes users with.
pub(crate) const ADMIN: &str = "V4ULT-ADMIN-S3CRET";

/// How long things live, in seconds.
pub(crate) struct Lives {
    pub(crate) lease: u64,
    pub(crate) lease_max: u64,
    pub(crate) token: u64,
}

impl Default for Lives {
    fn default() -> Self {
        Self { lease: 120, lease_max: 600, token: 600 }
    }
}

/// The login roles of [`prepare`]'s policies.
pub(crate) fn login_roles(lives: &Lives) -> BTreeMap<String, LoginRole> {
    let role = |principal: &str, policy: &str| LoginRole {
        principal: principal.to_owned(),
        policy: policy.to_owned(),
        by_person: policy == "people",
        ttl: Duration::from_secs(lives.token),
    };
    let principal = format!("arn:aws:sts::{ACCOUNT}:assumed-role/bastion-demo-read/");
    BTreeMap::from([
        ("bastion".to_owned(), role(&principal, "read")),
        ("powerless".to_owned(), role(&principal, "default")),
        ("others".to_owned(), role("arn:aws:sts::999", "read")),
        ("Developer".to_owned(), role(&format!("arn:aws:sts::{ACCOUNT}:assumed-role/Developer/"), "may-read")),
        ("people".to_owned(), role(&format!("arn:aws:sts::{ACCOUNT}:assumed-role/Developer/"), "people")),
    ])
}

pub(crate) async fn vault(world: &World, lives: Lives) -> Vault {
    let verifier = world.sandbox.identity_verifier();
    let vault = Vault::start(world.folder.path(), verifier, login_roles(&lives)).await.unwrap();
    prepare(&vault, world, &lives).await;
    vault
}

/// A database role `read` that makes users of the orders database; again in the namespace `team`.
pub(crate) async fn prepare(vault: &Vault, world: &World, lives: &Lives) {
    let make_admin = format!("create role vault_admin superuser login password '{ADMIN}'");
    world.database.sql("postgres", &make_admin).await.unwrap();
    vault.root("POST", "sys/namespaces/team", &json!({})).await.unwrap();
    let connection = format!(
        "postgresql://{{{{username}}}}:{{{{password}}}}@127.0.0.1:{}/orders?sslmode=verify-ca&sslrootcert={}",
        world.database.port,
        world.database.ca_file.display()
    );
    for namespace in ["", "team//"] {
        for (path, body) in [
            ("sys/mounts/database", json!({"type": "database"})),
            (
                "database/config/orders",
                json!({"plugin_name": "postgresql-database-plugin", "allowed_roles": "*", "username": "vault_admin",
                       "password": ADMIN, "connection_url": connection}),
            ),
            (
                "database/roles/read",
                json!({"db_name": "orders", "creation_statements": CREATE, "default_ttl": lives.lease,
                       "max_ttl": lives.lease_max}),
            ),
            ("sys/policies/acl/read", json!({"policy": "path \"database/creds/*\" { capabilities = [\"read\"] }"})),
        ] {
            vault.root("POST", &format!("{namespace}{path}"), &body).await.unwrap();
        }
    }
}

/// The same for MariaDB, as `database/creds/events`.
pub(crate) async fn with_mariadb(vault: &Vault, events: &MariaDb, lives: Lives) {
    let make_admin = format!(
        "create user vault_admin@'127.0.0.1' identified by '{ADMIN}' require ssl; \
         grant all on *.* to vault_admin@'127.0.0.1' with grant option"
    );
    events.sql("mysql", &make_admin).await.unwrap();
    let url = format!("{{{{username}}}}:{{{{password}}}}@tcp(127.0.0.1:{})/", events.port);
    let config = json!({
        "plugin_name": "mysql-database-plugin", "allowed_roles": "*", "connection_url": url, "username": "vault_admin",
        "password": ADMIN, "tls_ca": std::fs::read_to_string(&events.ca_file).unwrap(), "tls_server_name": mariadb::HOST
    });
    vault.root("POST", "database/config/events", &config).await.unwrap();
    let role = json!({"db_name": "events", "creation_statements": CREATE_MYSQL, "default_ttl": lives.lease,
                      "max_ttl": lives.lease_max});
    vault.root("POST", "database/roles/events", &role).await.unwrap();
}

pub(crate) fn target(world: &World, vault: &Vault, role: &str, creds: &str) -> Value {
    json!({
        "engine": "postgres", "host": HOST, "hostaddr": "127.0.0.1", "port": world.database.port, "database": "orders",
        "credential": {"vault": {"address": vault.address, "auth": "aws", "login": "task", "role": role, "creds": creds,
                                 "server_id": SERVER_ID, "sts_region": REGION}}
    })
}

/// The same for MariaDB.
pub(crate) fn mysql_target(world: &World, vault: &Vault, events: &MariaDb) -> Value {
    let mut target = target(world, vault, "bastion", "database/creds/events");
    target["engine"] = json!("mysql");
    target["host"] = json!(mariadb::HOST);
    target["port"] = json!(events.port);
    target["database"] = json!("events");
    target
}

pub(crate) async fn relay<'w>(world: &'w World, targets: Value) -> Relay<'w> {
    let mut definition = world.definition(|config| {
        config["identity"] = json!("optional");
        config["target"] = targets;
    });
    definition.environment.insert("BASTION_LOG".to_owned(), "trace".to_owned());
    world.relay_of(&definition).await
}

/// Vault, and a relay whose target `orders` has users of it.
pub(crate) async fn relay_of_orders(world: &World, lives: Lives) -> (Vault, Relay<'_>) {
    let vault = vault(world, lives).await;
    let relay = relay(world, json!({"orders": target(world, &vault, "bastion", "database/creds/read")})).await;
    (vault, relay)
}

/// A MariaDB, Vault, and a relay whose target `events` has users of it that live so long.
pub(crate) async fn relay_of_events(world: &World, lives: Lives) -> (MariaDb, Vault, Relay<'_>) {
    let flaws = mariadb::Flaws::default();
    let events = MariaDb::start(world.folder.path(), &sandbox_program(), flaws).await.unwrap();
    let vault = vault(world, Lives::default()).await;
    with_mariadb(&vault, &events, lives).await;
    let relay = relay(world, json!({"events": mysql_target(world, &vault, &events)})).await;
    (events, vault, relay)
}

/// The user of a connection.
pub(crate) async fn user(client: &tokio_postgres::Client) -> String {
    client.query_one("select current_user::text", &[]).await.unwrap().get(0)
}

/// Waits until Vault has taken this user away, or all whose names begin so.
pub(crate) async fn wait_until_gone(world: &World, user: &str) {
    let check = format!(
        "do $$ begin if exists (select from pg_roles where rolname like '{user}%') then raise 'there'; end if; end $$"
    );
    let gone = async {
        while world.database.sql("postgres", &check).await.is_err() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(2 * PATIENCE, gone).await.expect("the database user is still there");
}

/// Waits until Vault has taken the users away of which this is true.
pub(crate) async fn wait_until_mariadb_has_none(events: &MariaDb, which: &str) {
    let gone = async {
        loop {
            let mut count = Command::new("mariadb");
            count.arg("--no-defaults").arg("-S").arg(events.socket()).args(["-u", "root", "-N", "-B", "-e"]);
            count.arg(format!("select count(*) from mysql.user where {which}"));
            if finish(count).await.1 == "0" {
                return;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(2 * PATIENCE, gone).await.expect("the database user is still there");
}

#[tokio::test]
async fn a_user_is_made_shared_renewed_and_taken_away_when_unused() {
    let world = World::start().await;
    let (vault, relay) = relay_of_orders(&world, Lives { lease: 4, ..Lives::default() }).await;
    let (first, second) = (relay.client().await, relay.client().await);
    let name = user(&first).await;
    assert!(name.starts_with("v-"), "{name}");
    assert_eq!(user(&second).await, name);
    assert_eq!(first.query_one("select count(*) from orders", &[]).await.unwrap().get::<_, i64>(0), 1000);
    // Vault takes the user away at its time unless it is renewed: twice its first lifetime.
    let renewed = format!("select pg_sleep(8) from pg_roles where rolname = '{name}' and rolvaliduntil > now()");
    first.batch_execute(&renewed).await.unwrap();
    assert_eq!(user(&relay.client().await).await, name);
    drop((first, second));
    wait_until_gone(&world, &name).await;
    // The relay's token has ended as well.
    let log = relay.log();
    let tokens = vault.tokens();
    assert_eq!(tokens.len(), 1);
    for secret in tokens.iter().map(String::as_str).chain([ADMIN, "SecretAccessKey", "client_token"]) {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
    let ended = vault.root("POST", "auth/token/lookup", &json!({"token": tokens[0]})).await;
    assert!(ended.is_err(), "{ended:?}");
    drop((relay, vault));
    world.stop().await;
}

#[tokio::test]
async fn at_its_maximum_a_lease_ends_and_a_drain_revokes() {
    let world = World::start().await;
    let (vault, relay) = relay_of_orders(&world, Lives { lease: 8, lease_max: 10, ..Lives::default() }).await;
    let old = relay.client().await;
    let name = user(&old).await;
    relay.wait_for("it is at its maximum").await;
    let new = relay.client().await;
    let other = user(&new).await;
    assert_ne!(other, name);
    // The old one goes on until its end, and then the relay closes it.
    let closed = async { while old.simple_query("select 1").await.is_ok() {} };
    tokio::time::timeout(PATIENCE, closed).await.expect("the old connection is still open");
    relay.wait_for("the lease of the database user has ended").await;
    drop(new);
    world.sandbox.stop_directly(&relay.id);
    wait_until_gone(&world, &other).await;
    drop((relay, vault));
    world.stop().await;
}

#[tokio::test]
async fn after_a_crash_vault_ends_the_user_and_the_next_relay_gets_another() {
    let world = World::start().await;
    let vault = vault(&world, Lives { token: 6, ..Lives::default() }).await;
    let targets = json!({"orders": target(&world, &vault, "bastion", "database/creds/read")});
    let first = relay(&world, targets.clone()).await;
    let name = user(&first.client().await).await;
    let pid = world.sandbox.task_pid(&first.id).and_then(|pid| i32::try_from(pid).ok()).unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let second = relay(&world, targets).await;
    let client = second.client().await;
    assert_ne!(user(&client).await, name);
    wait_until_gone(&world, &name).await;
    user(&client).await;
    drop((client, first, second, vault));
    world.stop().await;
}

#[tokio::test]
async fn mariadb_gets_users_as_well() {
    let world = World::start().await;
    let (events, vault, relay) = relay_of_events(&world, Lives { lease: 8, lease_max: 10, ..Lives::default() }).await;
    let mut client = mysql_async::Conn::new(mysql_options(relay.address, 3306)).await.unwrap();
    let mut ask = async |sql: &str| mysql_async::prelude::Queryable::query_first::<String, _>(&mut client, sql).await;
    let name = ask("select substring_index(user(), '@', 1)").await.unwrap().unwrap();
    assert!(name.starts_with("v-") && name.len() <= 32, "{name}");
    assert_eq!(ask("select count(*) from events").await.unwrap().as_deref(), Some("1000"));
    // Closed at the maximum, and the user is gone.
    relay.wait_for("it is at its maximum").await;
    let closed = async { while ask("select 1").await.is_ok() {} };
    tokio::time::timeout(PATIENCE, closed).await.expect("the connection is still open");
    relay.wait_for("the lease of the database user has ended").await;
    wait_until_mariadb_has_none(&events, &format!("user = '{name}'")).await;
    drop((client, relay, vault));
    events.stop().await;
    world.stop().await;
}

#[tokio::test]
async fn an_outage_does_not_hurt_what_is_open_and_every_cause_is_told() {
    let world = World::start().await;
    let mut vault = vault(&world, Lives { lease: 20, ..Lives::default() }).await;
    let with = |key: &str, value: &str| {
        let mut target = target(&world, &vault, "bastion", "database/creds/read");
        target["credential"]["vault"][key] = json!(value);
        target
    };
    let targets = json!({
        "a": target(&world, &vault, "bastion", "database/creds/read"),
        "b": target(&world, &vault, "nobody", "database/creds/read"),
        "c": target(&world, &vault, "others", "database/creds/read"),
        "d": target(&world, &vault, "powerless", "database/creds/read"),
        "e": target(&world, &vault, "bastion", "database/creds/nothing"),
        "f": with("address", "http://127.0.0.1:1"),
        "g": with("server_id", "another"),
        "h": with("mount", "elsewhere"),
        "i": with("sts_region", "eu-west-1"),
        "j": with("namespace", "team"),
    });
    let relay = relay(&world, targets).await;
    for (port, parts) in [
        (5433, ["has no role nobody", "vault write auth/aws/role"]),
        (5434, ["not among those of role others", "bound_iam_principal_arn"]),
        (5435, ["may not read database/creds/read", "capability read"]),
        (5436, ["there is no role at database/creds/nothing", "Check creds"]),
        (5437, ["cannot be reached", "Connection refused"]),
        (5438, ["another X-Vault-AWS-IAM-Server-ID", "Set server_id"]),
        (5439, ["it refused the login to the role bastion", "Check role, mount and namespace"]),
    ] {
        let (code, _, err) = relay.psql(port, &[], "select 1").await;
        assert_eq!(code, 2);
        for part in parts {
            assert!(err.contains(part), "{part} is not in {err}");
        }
    }
    // The relay would sign for another STS than Vault asks.
    assert_eq!(relay.psql(5440, &[], "select 1").await.0, 2);
    let (code, in_namespace, err) = relay.psql(5441, &[], "select current_user").await;
    assert!(code == 0 && in_namespace.starts_with("v-"), "{err}");
    let open = relay.client().await;
    let name = user(&open).await;
    vault.suspend();
    assert_eq!(user(&relay.client().await).await, name);
    assert_eq!(user(&open).await, name);
    vault.resume();
    // Sealed, it renews nothing; what is open goes on, and new connections get the user that there is.
    vault.root("PUT", "sys/seal", &json!({})).await.unwrap();
    relay.wait_for("cannot renew a lease; connections go on until it ends").await;
    assert_eq!(user(&relay.client().await).await, name);
    let (_, _, err) = relay.psql(5436, &[], "select 1").await;
    assert!(err.contains("it is sealed") && err.contains("unseal"), "{err}");
    // Back from a crash, it knows its leases.
    vault.restart().await.unwrap();
    relay.wait_for("Vault renews the lease again").await;
    assert_eq!(user(&open).await, name);
    assert_eq!(user(&relay.client().await).await, name);
    // Revoked by hand: the connection is closed when that shows, and a new one gets a new user.
    vault.root("PUT", "sys/leases/revoke-prefix/database/creds/read", &json!({})).await.unwrap();
    let closed = async { while open.simple_query("select 1").await.is_ok() {} };
    tokio::time::timeout(PATIENCE, closed).await.expect("the connection of a revoked user is still open");
    assert_ne!(user(&relay.client().await).await, name);
    drop((open, relay, vault));
    world.stop().await;
}

#[tokio::test]
async fn a_minute_without_vault_hurts_nobody_who_is_connected() {
    let world = World::start().await;
    let flaws = mariadb::Flaws::default();
    let events = MariaDb::start(world.folder.path(), &sandbox_program(), flaws).await.unwrap();
    // Renewals at half of their time, while nobody answers.
    let lives = || Lives { lease: 80, ..Lives::default() };
    let vault = vault(&world, lives()).await;
    with_mariadb(&vault, &events, lives()).await;
    let orders = target(&world, &vault, "bastion", "database/creds/read");
    let targets = json!({"orders": orders, "events": mysql_target(&world, &vault, &events)});
    let relay = relay(&world, targets).await;
    let (idle, busy) = (relay.client().await, relay.client().await);
    let mut mysql = mysql_async::Conn::new(mysql_options(relay.address, 3306)).await.unwrap();
    let name = user(&idle).await;
    vault.suspend();
    // The minute is the databases' own.
    let sleep = mysql_async::prelude::Queryable::query_first::<i64, _>(&mut mysql, "select sleep(60)");
    let (slept, mysql_slept) = tokio::join!(busy.batch_execute("select pg_sleep(60)"), sleep);
    slept.unwrap();
    assert_eq!(mysql_slept.unwrap(), Some(0));
    assert_eq!((user(&idle).await, user(&relay.client().await).await), (name.clone(), name.clone()));
    assert_eq!(relay.log().matches("cannot renew a lease; connections go on until it ends").count(), 2);
    vault.resume();
    let both = async {
        while relay.log().matches("Vault renews the lease again").count() < 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, both).await.expect("the leases are not renewed");
    assert_eq!((user(&idle).await, user(&busy).await), (name.clone(), name));
    drop((idle, busy, mysql, relay, vault));
    events.stop().await;
    world.stop().await;
}

/// Vault with a standby, and a relay that is told the standby's address.
async fn relay_of_standby(world: &World) -> (Vault, Standby, Relay<'_>) {
    let vault = vault(world, Lives::default()).await;
    let standby = vault.standby().await.unwrap();
    let mut orders = target(world, &vault, "bastion", "database/creds/read");
    orders["credential"]["vault"]["address"] = json!(standby.address);
    let relay = relay(world, json!({"orders": orders})).await;
    (vault, standby, relay)
}

#[tokio::test]
async fn a_standby_sends_its_callers_elsewhere_and_nothing_is_sent_there() {
    let world = World::start().await;
    let (mut vault, standby, relay) = relay_of_standby(&world).await;
    // With an active node it forwards, to an OpenBao that knows no login of AWS.
    let (_, _, err) = relay.psql(5432, &[], "select 1").await;
    assert!(err.contains("it refused the login to the role bastion"), "{err}");
    let active = vault.own_address().strip_prefix("http://").unwrap().to_owned();
    vault.crash().await.unwrap();
    let elsewhere = std::net::TcpListener::bind(active).unwrap();
    elsewhere.set_nonblocking(true).unwrap();
    let (code, _, err) = relay.psql(5432, &[], "select 1").await;
    assert_eq!(code, 2);
    for part in [&standby.address, "standby that sends callers to another address", "the address of the active node"] {
        assert!(err.contains(part), "{part} is not in {err}");
    }
    let called = elsewhere.accept();
    assert!(called.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock), "somebody has called");
    drop((relay, standby, vault));
    world.stop().await;
}

#[tokio::test]
async fn a_standby_of_a_cluster_without_an_active_node_is_told() {
    let world = World::start().await;
    let (mut vault, standby, relay) = relay_of_standby(&world).await;
    vault.end().await.unwrap();
    let (code, _, err) = relay.psql(5432, &[], "select 1").await;
    assert_eq!(code, 2);
    for part in [&standby.address, "its cluster has no active node", "ask whoever runs Vault"] {
        assert!(err.contains(part), "{part} is not in {err}");
    }
    drop((relay, standby, vault));
    world.stop().await;
}
