//! Logins from Secrets Manager (moto) to a real PostgreSQL and a real MariaDB, while passwords rotate.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use aws_sdk_secretsmanager::Client;
use aws_sdk_secretsmanager::config::{BehaviorVersion, Credentials, Region};
use bastion_sandbox::mariadb::{self, MariaDb};
use bastion_sandbox::moto::Moto;
use bastion_sandbox::postgres::{HOST, PASSWORD};
use bastion_sandbox::secrets_manager::SecretsManager;
use mysql_async::prelude::Queryable as _;
use serde_json::{Value, json};
use tokio::sync::OnceCell;
use tokio::task::JoinSet;

use crate::support::{PATIENCE, Relay, World, mysql_options, sandbox_program};

pub(crate) const SECRET: &str = "prod/orders";

/// Secrets Manager, and a client of whoever keeps the secrets.
pub(crate) struct Secrets {
    pub(crate) moto: Moto,
    pub(crate) client: Client,
    front: OnceCell<SecretsManager>,
}

impl Secrets {
    pub(crate) async fn start(folder: &Path) -> Self {
        let moto = Moto::start(folder).await.unwrap();
        let http = aws_smithy_http_client::Builder::new().build_http();
        let config = aws_sdk_secretsmanager::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .http_client(http)
            .region(Region::new(bastion_sandbox::REGION))
            .endpoint_url(moto.endpoint())
            .credentials_provider(Credentials::new("AKIDKEEPER", "keeper", None, None, "test"))
            .build();
        Self { moto, client: Client::from_conf(config), front: OnceCell::new() }
    }

    /// What the relays of `world` ask.
    pub(crate) async fn front(&self, world: &World) -> &SecretsManager {
        self.front.get_or_init(async || world.sandbox.secrets_manager(&self.moto).await.unwrap()).await
    }

    pub(crate) async fn create(&self, name: &str, text: impl Into<String>) {
        self.client.create_secret().name(name).secret_string(text).send().await.unwrap();
    }

    /// A new version under AWSPENDING. (moto, unlike AWS, leaves AWSCURRENT at two versions when a put moves it.)
    pub(crate) async fn put(&self, value: &Value) -> String {
        let put = self.client.put_secret_value().secret_id(SECRET).secret_string(value.to_string());
        put.version_stages("AWSPENDING").send().await.unwrap().version_id.unwrap()
    }

    async fn current(&self) -> String {
        let current = self.client.get_secret_value().secret_id(SECRET).version_stage("AWSCURRENT");
        current.send().await.unwrap().version_id.unwrap()
    }

    pub(crate) async fn finish(&self, pending: &str) {
        let current = self.current().await;
        let stage = self.client.update_secret_version_stage().secret_id(SECRET).version_stage("AWSCURRENT");
        stage.move_to_version_id(pending).remove_from_version_id(current).send().await.unwrap();
    }

    /// A relay with these targets and plain ports.
    pub(crate) async fn relay<'w>(&self, world: &'w World, targets: Value) -> Relay<'w> {
        let mut definition = world.definition(|config| {
            config["identity"] = json!("optional");
            config["target"] = targets;
        });
        definition.environment.extend([
            ("BASTION_LOG".to_owned(), "trace".to_owned()),
            ("AWS_ENDPOINT_URL_SECRETS_MANAGER".to_owned(), self.front(world).await.endpoint()),
        ]);
        world.relay_of(&definition).await
    }
}

pub(crate) fn login(user: &str, password: &str) -> Value {
    json!({"username": user, "password": password})
}

pub(crate) fn target(port: u16, secret: &str) -> Value {
    json!({
        "engine": "postgres", "host": HOST, "hostaddr": "127.0.0.1", "port": port, "database": "orders",
        "credential": {"secrets_manager": {"secret_id": secret}}
    })
}

/// Clients that log in again and again.
pub(crate) struct Crowd {
    size: usize,
    stop: Arc<AtomicBool>,
    logins: Arc<AtomicUsize>,
    clients: JoinSet<Vec<String>>,
}

impl Crowd {
    pub(crate) fn start<L>(size: usize, log_in: impl Fn() -> L + Clone + Send + 'static) -> Self
    where
        L: Future<Output = Result<(), String>> + Send,
    {
        let (stop, logins) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut clients = JoinSet::new();
        for _ in 0..size {
            let (stop, logins, log_in) = (Arc::clone(&stop), Arc::clone(&logins), log_in.clone());
            clients.spawn(async move {
                let mut failed = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    match log_in().await {
                        Ok(()) => drop(logins.fetch_add(1, Ordering::Relaxed)),
                        Err(error) => failed.push(error),
                    }
                }
                failed
            });
        }
        Self { size, stop, logins, clients }
    }

    /// Between two steps everybody logs in, on average.
    pub(crate) async fn busy(&self, relay: &Relay<'_>) {
        let enough = self.logins.load(Ordering::Relaxed) + self.size;
        let wait = async {
            while self.logins.load(Ordering::Relaxed) < enough {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(3 * PATIENCE, wait).await.unwrap_or_else(|_| {
            panic!("clients stand still:\n{}", relay.log().lines().rev().take(40).collect::<Vec<_>>().join("\n"))
        });
    }

    /// Nobody has noticed anything.
    pub(crate) async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        let failed: Vec<String> = self.clients.join_all().await.into_iter().flatten().collect();
        assert!(failed.is_empty(), "{} failed logins, first {}", failed.len(), failed[0]);
    }
}

#[tokio::test]
async fn twenty_clients_do_not_notice_rotations() {
    let world = World::start().await;
    let secrets = Secrets::start(world.folder.path()).await;
    secrets.create(SECRET, login("scram_user", PASSWORD).to_string()).await;
    let relay = secrets.relay(&world, json!({"orders": target(world.database.port, SECRET)})).await;
    let address = relay.address;
    let crowd = Crowd::start(20, move || async move {
        let parameters = format!("host={address} port=5432 user=anyone");
        let connected = tokio_postgres::connect(&parameters, tokio_postgres::NoTls).await;
        let (client, connection) = connected.map_err(|error| format!("{error:?}"))?;
        drop(client);
        let _ended = connection.await;
        Ok(())
    });
    let busy = || crowd.busy(&relay);
    let database = &world.database;
    let sql = |text: String| async move { database.sql("postgres", &text).await.unwrap() };
    let mut passwords = Vec::new();
    for n in 0..2 {
        // As the rotation templates do it: createSecret, setSecret, testSecret, finishSecret.
        let password = format!("R0TATED-{n}");
        busy().await;
        let pending = secrets.put(&login("scram_user", &password)).await;
        busy().await;
        sql(format!("alter role scram_user password '{password}'")).await;
        busy().await;
        secrets.finish(&pending).await;
        passwords.push(password);
    }
    // By hand: the database first, the secret when the person gets there.
    busy().await;
    sql("alter role scram_user password 'BY-HAND'".to_owned()).await;
    let written = secrets.put(&login("scram_user", "BY-HAND")).await;
    secrets.finish(&written).await;
    // Alternating users: the clone takes over, the first one goes on until the next rotation.
    busy().await;
    let pending = secrets.put(&login("scram_clone", "CL0NE")).await;
    sql("create role scram_clone login password 'CL0NE'".to_owned()).await;
    secrets.finish(&pending).await;
    busy().await;
    sql("alter role scram_user password 'LATER'".to_owned()).await;
    busy().await;
    crowd.end().await;
    assert_eq!(relay.psql(5432, &[], "select current_user").await.1, "scram_clone");
    let log = relay.log();
    let words = ["BY-HAND", "CL0NE", PASSWORD, "SecretString"].into_iter().map(str::to_owned).chain(passwords);
    for secret in words {
        assert!(!log.contains(&secret), "{secret} is in the log");
    }
    drop(relay);
    world.stop().await;
}

#[tokio::test]
async fn clients_of_mysql_do_not_notice_rotations_either() {
    let world = World::start().await;
    let events = MariaDb::start(world.folder.path(), &sandbox_program(), mariadb::Flaws::default()).await.unwrap();
    let secrets = Secrets::start(world.folder.path()).await;
    secrets.create(SECRET, login("native_user", mariadb::PASSWORD).to_string()).await;
    let mut target = target(events.port, SECRET);
    (target["engine"], target["host"], target["database"]) = (json!("mysql"), json!(mariadb::HOST), json!("scratch"));
    let relay = secrets.relay(&world, json!({"events": target})).await;
    let address = relay.address;
    let connect = move || mysql_async::Conn::new(mysql_options(address, 3306));
    let mut open = connect().await.unwrap();
    let crowd = Crowd::start(5, move || async move {
        let client = connect().await.map_err(|error| format!("{error:?}"))?;
        client.disconnect().await.map_err(|error| format!("{error:?}"))
    });
    let set = |password: &str| {
        let how = format!("identified via mysql_native_password using password('{password}') require ssl");
        let sql = format!("alter user native_user@'127.0.0.1' {how}");
        let events = &events;
        async move { events.sql("mysql", &sql).await.unwrap() }
    };
    for password in ["R0TATED-0", "R0TATED-1"] {
        crowd.busy(&relay).await;
        let pending = secrets.put(&login("native_user", password)).await;
        crowd.busy(&relay).await;
        set(password).await;
        crowd.busy(&relay).await;
        secrets.finish(&pending).await;
    }
    // By hand: the database first.
    crowd.busy(&relay).await;
    set("BY-HAND").await;
    let written = secrets.put(&login("native_user", "BY-HAND")).await;
    secrets.finish(&written).await;
    crowd.busy(&relay).await;
    crowd.end().await;
    // Nor does a connection that has been open all the time.
    assert_eq!(open.query_first("select current_user()").await.unwrap(), Some("native_user@127.0.0.1".to_owned()));
    drop(open);
    let log = relay.log();
    for secret in ["BY-HAND", "R0TATED", mariadb::PASSWORD, "SecretString"] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
    drop(relay);
    events.stop().await;
    world.stop().await;
}

#[tokio::test]
async fn host_port_and_database_come_from_the_secret_and_every_cause_is_told() {
    let world = World::start().await;
    let port = world.database.port;
    let secrets = Secrets::start(world.folder.path()).await;
    let whole = json!({
        "engine": "postgres", "host": HOST, "port": port.to_string(), "dbname": "orders", "username": "scram_user",
        "password": PASSWORD, "dbClusterIdentifier": "orders"
    });
    secrets.create("whole", whole.to_string()).await;
    let other = json!({"engine": "aurora-mysql", "username": "scram_user", "password": "S3CRET-other"});
    secrets.create("other", other.to_string()).await;
    secrets.create("wrong", login("scram_user", "S3CRET-wrong").to_string()).await;
    secrets.create("shape", r#"{"username":"scram_user","pass":"S3CRET-shape"}"#).await;
    secrets.create("text", "S3CRET-text").await;
    secrets.create("homeless", login("scram_user", "S3CRET-homeless").to_string()).await;
    secrets.create("gone", login("scram_user", PASSWORD).to_string()).await;
    secrets.client.delete_secret().secret_id("gone").recovery_window_in_days(7).send().await.unwrap();
    let bare = |secret: &str| json!({"engine": "postgres", "hostaddr": "127.0.0.1", "credential": {"secrets_manager": {"secret_id": secret}}});
    let targets = json!({
        "a": bare("whole"), "b": target(port, "wrong"), "c": target(port, "shape"), "d": target(port, "text"),
        "e": bare("homeless"), "f": target(port, "gone"), "g": target(port, "missing"),
        "h": target(port, "other")
    });
    let relay = secrets.relay(&world, targets).await;
    let (code, out, err) = relay.psql(5432, &[], "select current_user, current_database()").await;
    assert_eq!((code, out.as_str()), (0, "scram_user|orders"), "{err}");
    for (port, parts) in [
        (5433, ["password authentication failed", "refused the login of scram_user from secret wrong"]),
        (5434, ["has no text under \"password\"", "keys username and password"]),
        (5435, ["is not a JSON object", "secret text"]),
        (5436, ["names a host", "Add host to the target's configuration"]),
        (5437, ["scheduled for deletion", "restore-secret"]),
        (5438, ["there is no such secret in ap-northeast-1", "Check secret_id and region"]),
        (5439, ["it is of a mysql database, and the target's engine is postgres", "Name the secret of this database"]),
    ] {
        let (code, _, err) = relay.psql(port, &[], "select 1").await;
        assert_eq!(code, 2);
        for part in parts {
            assert!(err.contains(part), "{part} is not in {err}");
        }
        assert!(!err.contains("S3CRET"), "{err}");
    }
    let known: Value = serde_json::from_str(&relay.get("/v1/targets").await.unwrap()).unwrap();
    assert_eq!(known["targets"][0]["host"], HOST);
    assert_eq!(known["targets"][0]["db_user"], "scram_user");
    assert!(known["targets"][5]["problem"].as_str().unwrap().contains("scheduled for deletion"), "{known}");
    let log = relay.log();
    for secret in ["S3CRET", PASSWORD, "SecretAccessKey"] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
    drop(relay);
    world.stop().await;
}
