//! The relay against a real MariaDB that checks IAM tokens, with real clients: the Rust one and the command line.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use bastion_sandbox::mariadb::{self, Flaws, MariaDb};
use bastion_sandbox::{Config, Sandbox, TaskDefinition, gateway};
use mysql_async::prelude::Queryable as _;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::support::{BASTION, PATIENCE, check_records, finish, logged, mysql_options, sandbox_program};

/// A MariaDB, and a relay in a task for each test that wants one.
pub(crate) struct World {
    pub(crate) sandbox: Sandbox,
    pub(crate) database: MariaDb,
    pub(crate) folder: tempfile::TempDir,
    /// The task whose relay serves.
    task: Option<String>,
    pub(crate) address: Ipv4Addr,
}

impl World {
    /// With a relay that serves the target `events` as `db_read`, after `change` has had its way.
    pub(crate) async fn start(flaws: Flaws, change: impl FnOnce(&mut Value)) -> Self {
        let folder = tempfile::Builder::new().prefix("bastion-it-").tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let database = MariaDb::start(folder.path(), &sandbox_program(), flaws).await.unwrap();
        let mut relay = json!({
            "env": "demo", "access": "read", "region": bastion_sandbox::REGION, "identity": "optional",
            "target": {"events": target(database.port, "db_read"), "events-admin": target(database.port, "db_admin")}
        });
        change(&mut relay);
        let definition = TaskDefinition {
            family: "bastion-demo-read".to_owned(),
            container: "bastion".to_owned(),
            environment: BTreeMap::from([
                ("BASTION_CONFIG".to_owned(), relay.to_string()),
                ("BASTION_EXTRA_CA_FILE".to_owned(), database.ca_file.display().to_string()),
            ]),
            role: "bastion-demo-read".to_owned(),
            db_users: vec!["db_read".to_owned()],
            stop_timeout: Duration::from_secs(30),
        };
        let endpoints = [mariadb::HOST, mariadb::READER_HOST].map(|host| format!("{host}:{}", database.port));
        let sandbox = Sandbox::start(Config {
            folder: folder.path().to_owned(),
            listen: Ipv4Addr::LOCALHOST,
            relay: Path::new(BASTION).to_owned(),
            container: None,
            identities: Vec::new(),
            task_definitions: vec![definition.clone()],
            parameters: BTreeMap::new(),
            phase: Duration::from_millis(20),
            credential_lifetime: Duration::from_secs(3600),
            rds_state: Some((database.state_file.clone(), endpoints.into())),
            gateway: gateway::Options::default(),
        });
        let sandbox = sandbox.await.unwrap();
        let (task, address) = sandbox.run_directly(&definition);
        let world = Self { sandbox, database, folder, task: Some(task), address };
        world.wait_for("ready for connections").await;
        world
    }

    pub(crate) fn log(&self) -> String {
        self.sandbox.task_log(self.task.as_ref().unwrap())
    }

    pub(crate) fn task(&self) -> &str {
        self.task.as_ref().unwrap()
    }

    pub(crate) async fn wait_for(&self, text: &str) {
        logged(&self.sandbox, self.task.as_ref().unwrap(), text).await;
    }

    /// The command line client through the relay: exit code, stdout, stderr.
    pub(crate) async fn mariadb(&self, port: u16, extra: &[&str], sql: &str) -> (i32, String, String) {
        let mut client = Command::new("mariadb");
        client.args(["--no-defaults", "-N", "-B", "-u", "anyone", "-h", &self.address.to_string()]);
        client.args(["-P", &port.to_string()]).args(extra).args(["-e", sql]);
        finish(client).await
    }

    /// The database asked by its superuser, over its socket.
    pub(crate) async fn root(&self, sql: &str) -> String {
        let mut client = Command::new("mariadb");
        client.args(["--no-defaults", "-N", "-u", "root", "-S"]).arg(self.database.socket()).args(["-e", sql]);
        let (code, out, err) = finish(client).await;
        assert_eq!(code, 0, "{err}");
        out
    }

    /// A connection of the Rust client.
    pub(crate) async fn client(&self) -> mysql_async::Conn {
        self.connect().await.unwrap()
    }

    async fn connect(&self) -> Result<mysql_async::Conn, mysql_async::Error> {
        let options = mysql_options(self.address, 3306).max_allowed_packet(Some(64 << 20));
        mysql_async::Conn::new(options).await
    }

    pub(crate) async fn stop(self) {
        self.sandbox.tasks().iter().for_each(|(task, _)| check_records(&self.sandbox.task_log(task)));
        self.sandbox.stop().await;
        self.database.stop().await;
        self.folder.close().unwrap();
    }
}

pub(crate) fn target(port: u16, user: &str) -> Value {
    json!({
        "engine": "mysql", "host": mariadb::HOST, "hostaddr": "127.0.0.1", "port": port, "database": "events",
        "credential": {"rds_iam": {"user": user}}
    })
}

#[tokio::test]
async fn clients_log_in_with_any_name_and_with_or_without_a_password() {
    let world = World::start(Flaws::default(), |_| ()).await;
    let who = "select concat(current_user(), ' ', database())";
    for extra in [
        &[][..],
        &["-pwhatever"],
        &["--default-auth=caching_sha2_password", "-pwhatever"],
        &["--default-auth=client_ed25519", "-pwhatever"],
        &["--compress"],
    ] {
        let (code, out, err) = world.mariadb(3306, extra, who).await;
        assert_eq!((code, out.as_str()), (0, "db_read@127.0.0.1 events"), "{extra:?} {err}");
    }
    // A database that the client names is the one it gets.
    let (code, out, err) = world.mariadb(3306, &["scratch"], who).await;
    assert_eq!((code, out.as_str()), (0, "db_read@127.0.0.1 scratch"), "{err}");
    // TLS holds between relay and database, whatever the client does.
    let (_, out, _) = world.mariadb(3306, &[], "show status like 'Ssl_version'").await;
    assert!(out.contains("TLSv1.3"), "{out}");
    // The access level is `read`; the session says so before the grants have to.
    let (code, _, err) = world.mariadb(3306, &["scratch"], "create table t (id int)").await;
    assert!(code == 1 && err.contains("READ ONLY transaction"), "{err}");
    let attributes = "select attr_name, attr_value from performance_schema.session_connect_attrs \
                      where processlist_id = connection_id() and attr_name in ('bastion_connection', 'program_name')";
    let (_, out, err) = world.mariadb(3306, &[], attributes).await;
    assert!(out.contains("bastion_connection\t9") && out.contains("program_name\tmysql"), "{out} {err}");
    assert!(world.log().contains("\"client.program\":\"mysql\""), "{}", world.log());
    assert!(!world.database.verifier_log().contains("DENY"), "{}", world.database.verifier_log());
    world.stop().await;
}

#[tokio::test]
async fn statements_transactions_errors_and_big_packets_pass() {
    let world = World::start(Flaws::default(), |relay| relay["target"]["events"]["read_only"] = json!(false)).await;
    let mut client = world.client().await;
    let actors: Vec<(i32, String)> =
        client.exec("select id, actor from events where id <= ? order by id", (5,)).await.unwrap();
    assert_eq!(actors.len(), 5);
    assert!(actors.iter().any(|(_, actor)| actor == "片山 葵"), "{actors:?}");
    client.query_drop("create temporary table scratch.t (id int, body longblob) engine=innodb").await.unwrap();
    let mut transaction = client.start_transaction(mysql_async::TxOpts::default()).await.unwrap();
    transaction.exec_drop("insert into scratch.t values (?, ?)", (1, "x")).await.unwrap();
    transaction.rollback().await.unwrap();
    let count: Option<i64> = client.query_first("select count(*) from scratch.t").await.unwrap();
    assert_eq!(count, Some(0));
    // Longer than one packet can be, both ways, and exactly one packet long.
    for length in [20 << 20, (1 << 24) - 1, (1 << 24) - 2, 1 << 24] {
        let body = vec![0x11_u8; length];
        client.exec_drop("insert into scratch.t values (2, ?)", (&body,)).await.unwrap();
        let back: Option<Vec<u8>> = client.query_first("select body from scratch.t where id = 2").await.unwrap();
        assert!(back.unwrap() == body, "{length}");
        client.query_drop("delete from scratch.t").await.unwrap();
    }
    let error = client.query_drop("select * from nothing_like_this").await.unwrap_err();
    let mysql_async::Error::Server(error) = error else { panic!("{error}") };
    assert_eq!((error.code, error.state.as_str()), (1146, "42S02"));
    client.disconnect().await.unwrap();
    world.stop().await;
}

#[tokio::test]
async fn kill_query_from_a_second_connection_stops_the_statement() {
    let world = World::start(Flaws::default(), |_| ()).await;
    let mut sleeper = world.client().await;
    let mut killer = world.client().await;
    // The number in the greeting, which clients use for their stop button, is the database's own.
    let id: Option<u32> = sleeper.query_first("select connection_id()").await.unwrap();
    assert_eq!(id, Some(sleeper.id()));
    let sleeping = async {
        let slept: Option<i64> = sleeper.query_first("select sleep(60)").await?;
        Ok::<_, mysql_async::Error>(slept)
    };
    let killing = async {
        let running = format!(
            "select count(*) from information_schema.processlist where id = {} and info like '%sleep(60)%'",
            id.unwrap()
        );
        while killer.query_first::<i64, _>(running.as_str()).await.unwrap() != Some(1) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        killer.query_drop(format!("kill query {}", id.unwrap())).await.unwrap();
    };
    let (slept, ()) = tokio::time::timeout(PATIENCE, async { tokio::join!(sleeping, killing) }).await.unwrap();
    // sleep() gives 1 when it is interrupted, or the statement an error.
    assert!(!matches!(slept, Ok(Some(0))), "{slept:?}");
    drop((sleeper, killer));
    world.stop().await;
}

#[tokio::test]
async fn a_pool_may_change_user_and_reset_as_often_as_it_likes() {
    let world = World::start(Flaws::default(), |_| ()).await;
    let mut client = world.client().await;
    let id: Option<u32> = client.query_first("select connection_id()").await.unwrap();
    for password in [None, Some("whatever"), None] {
        client.query_drop("set @left_over = 1").await.unwrap();
        let change = mysql_async::ChangeUserOpts::default().with_user(Some("somebody".to_owned()));
        let change = change.with_pass(password.map(str::to_owned)).with_db_name(Some("scratch".to_owned()));
        client.change_user(change).await.unwrap();
        let state: Option<(Option<i64>, String, String, u32)> =
            client.query_first("select @left_over, current_user(), database(), connection_id()").await.unwrap();
        assert_eq!(state, Some((None, "db_read@127.0.0.1".to_owned(), "scratch".to_owned(), id.unwrap())));
        let names: Option<(String, i64)> =
            client.query_first("select @@collation_connection, @@tx_read_only").await.unwrap();
        assert_eq!(names, Some(("utf8mb4_general_ci".to_owned(), 1)));
    }
    // An unknown database is an error of the command, not of the connection.
    let unknown = mysql_async::ChangeUserOpts::default().with_db_name(Some("no_such_database".to_owned()));
    let error = client.change_user(unknown).await.unwrap_err();
    assert!(error.to_string().contains("no_such_database"), "{error}");
    client.query_drop("set @left_over = 2").await.unwrap();
    assert!(client.reset().await.unwrap());
    let state: Option<(Option<i64>, i64)> = client.query_first("select @left_over, @@tx_read_only").await.unwrap();
    assert_eq!(state, Some((None, 1)));
    // The same over the command line client's library.
    let (code, out, err) =
        world.mariadb(3306, &["events"], "connect scratch; select database(), count(*) from t").await;
    assert!(code == 1 && err.contains("scratch.t"), "{out} {err}");
    client.disconnect().await.unwrap();
    assert_eq!(world.database.verifier_log().matches("ALLOW").count(), 3, "{}", world.database.verifier_log());
    world.stop().await;
}

#[tokio::test]
async fn a_database_that_dies_ends_its_connections_and_idle_ones_stay() {
    let World { sandbox, database, folder, task, address } = World::start(Flaws::default(), |_| ()).await;
    let options = || mysql_options(address, 3306);
    let mut idle = Vec::new();
    for _ in 0..20 {
        idle.push(mysql_async::Conn::new(options()).await.unwrap());
    }
    for client in &mut idle {
        assert_eq!(client.query_first::<i64, _>("select 7").await.unwrap(), Some(7));
    }
    let mut busy = idle.pop().unwrap();
    let sleeping = busy.query_drop("select sleep(60)");
    let killing = async {
        logged(&sandbox, task.as_ref().unwrap(), "connection ready").await;
        database.stop().await;
    };
    let (slept, ()) = tokio::time::timeout(PATIENCE, async { tokio::join!(sleeping, killing) }).await.unwrap();
    assert!(slept.is_err());
    for mut client in idle {
        assert!(tokio::time::timeout(PATIENCE, client.query_drop("select 1")).await.unwrap().is_err());
    }
    let Err(refused) = mysql_async::Conn::new(options()).await else { panic!("it is dead") };
    assert!(refused.to_string().contains("cannot reach target events"), "{refused}");
    sandbox.stop().await;
    folder.close().unwrap();
}

#[tokio::test]
async fn what_the_database_refuses_is_explained_in_the_client() {
    let world = World::start(Flaws::default(), |relay| {
        let port = relay["target"]["events"]["port"].as_u64().unwrap();
        let port = u16::try_from(port).unwrap();
        relay["target"]["native"] = target(port, "native_user");
        relay["target"]["nobody"] = target(port, "nobody");
        relay["target"]["closed"] = target(1, "db_read");
    })
    .await;
    // Ports go to the targets in the order of their names.
    let ports = ["closed", "events", "events-admin", "native", "nobody"].into_iter().zip(3306..);
    let ports: BTreeMap<&str, u16> = ports.collect();
    let (code, _, err) = world.mariadb(ports["events-admin"], &[], "select 1").await;
    assert_eq!(code, 1);
    assert!(
        err.starts_with("ERROR 1045 (28000): Access denied for user 'db_admin'")
            && err.contains(". bastion: target events-admin refused the IAM login of db_admin. Check"),
        "{err}"
    );
    assert!(err.contains("rds-db:connect as db_admin") && err.contains("(bastion connection"), "{err}");
    let (_, _, err) = world.mariadb(ports["native"], &[], "select 1").await;
    assert!(err.contains("AWSAuthenticationPlugin AS 'RDS'") && err.contains("native_user"), "{err}");
    let (_, _, err) = world.mariadb(ports["nobody"], &[], "select 1").await;
    assert!(err.contains("ERROR 1045 (28000)") && err.contains("nobody"), "{err}");
    let (_, _, err) = world.mariadb(ports["closed"], &[], "select 1").await;
    assert!(err.contains("1429") && err.contains("cannot reach target closed"), "{err}");
    let (_, _, err) = world.mariadb(ports["events"], &["no_such_database"], "select 1").await;
    assert!(err.contains("ERROR 1044 (42000)") || err.contains("ERROR 1049 (42000)"), "{err}");
    assert!(err.contains("no_such_database"), "{err}");
    world.stop().await;
}

#[tokio::test]
async fn nothing_secret_is_sent_without_tls_or_to_another_name() {
    let world = World::start(Flaws { no_tls: true, ..Flaws::default() }, |_| ()).await;
    let (code, _, err) = world.mariadb(3306, &[], "select 1").await;
    assert!(code == 1 && err.contains("does not offer TLS, so no login was sent"), "{err}");
    assert_eq!(world.database.verifier_log(), "");
    world.stop().await;

    let world = World::start(Flaws::default(), |relay| {
        relay["target"]["events"]["host"] = json!("other.cluster-def456.ap-northeast-1.rds.amazonaws.com");
    })
    .await;
    let (code, _, err) = world.mariadb(3306, &[], "select 1").await;
    assert!(code == 1 && err.contains("its certificate is for another name"), "{err}");
    assert_eq!(world.database.verifier_log(), "");
    world.stop().await;
}

#[tokio::test]
async fn statements_are_in_the_audit_log() {
    let world = World::start(Flaws::default(), |config| {
        config["audit"] = json!("statements");
        config["redact"] = json!(true);
    })
    .await;
    let mut client = world.client().await;
    let number = client.query_first::<u32, _>("select connection_id()").await.unwrap();
    let literal = "select id from events where id < 3 and 'S3CRET' <> \"x\"";
    assert_eq!(client.query::<u64, _>(literal).await.unwrap().len(), 2);
    // Its answer has more packets than there are numbers for them.
    assert_eq!(client.query::<u64, _>("select id from events limit 600").await.unwrap().len(), 600);
    let by_id = "select actor from events where id = ?";
    for id in [1_u64, 2] {
        assert!(client.exec_first::<String, _, _>(by_id, (id,)).await.unwrap().is_some());
    }
    // A new session forgets what was prepared, so the driver prepares it again.
    client.change_user(mysql_async::ChangeUserOpts::default()).await.unwrap();
    assert!(client.exec_first::<String, _, _>(by_id, (3_u64,)).await.unwrap().is_some());
    // Longer than one packet can be: cut in the log, whole in the database.
    let long = format!("select length('{}')", "x".repeat(17 << 20));
    assert_eq!(client.query_first::<i64, _>(&long).await.unwrap(), Some(17 << 20));
    assert_eq!(client.query_first::<i64, _>("select 7").await.unwrap(), Some(7));
    client.disconnect().await.unwrap();
    world.wait_for("connection_closed").await;
    // A database that the command line client changes to, and a statement that it kills.
    let (code, out, err) = world.mariadb(3306, &[], "use scratch; select database(); kill query 4711").await;
    assert!(code == 1 && out == "scratch" && err.contains("4711"), "{out} {err}");
    // On its way before the client was answered.
    world.wait_for("kill query").await;
    let log = world.log();
    let records: Vec<Value> = log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let opened = records.iter().find(|line| line["event"] == "connection_opened").unwrap();
    assert_eq!(opened["db_conn_id"].as_u64(), number.map(u64::from));
    let count = |kind: &str, sql: &str| {
        let found =
            records.iter().filter(|line| line["event"] == "statement" && line["kind"] == kind && line["sql"] == sql);
        found.count()
    };
    assert_eq!(count("query", "select id from events where id < ? and ? <> ?"), 1, "{log}");
    assert_eq!((count("prepare", by_id), count("execute", by_id)), (2, 3), "{log}");
    assert_eq!((count("query", "select ?"), count("query", "kill query ?")), (1, 1), "{log}");
    assert_eq!(count("command", "scratch"), 1, "{log}");
    let long = records.iter().find(|line| line["truncated"] == json!(["sql"])).unwrap();
    assert_eq!((&long["sql"], &long["db_user"]), (&json!("select length(?"), &json!("db_read")));
    assert!(records.iter().any(|line| line["kind"] == "command" && line["name"] == "change_user"), "{log}");
    assert!(!log.contains("S3CRET"), "{log}");
    world.stop().await;
}

#[tokio::test]
async fn a_client_that_takes_longer_than_the_database_waits_still_logs_in() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let world = World::start(Flaws::default(), |_| ()).await;
    world.root("set global connect_timeout = 2").await;
    // A client as behind a slow tunnel: it reads the greeting, and its login comes when the database has given up.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let before = world.root("show global status like 'Aborted_connects'").await;
    let slow = async {
        let (mut client, _) = listener.accept().await.unwrap();
        let mut relay = tokio::net::TcpStream::connect((world.address, 3306)).await.unwrap();
        let mut greeting = vec![0; 16 * 1024];
        let length = relay.read(&mut greeting).await.unwrap();
        while world.root("show global status like 'Aborted_connects'").await == before {}
        client.write_all(&greeting[..length]).await.unwrap();
        // MariaDB may reset a connection whose client has said goodbye, and that is passed on.
        let _ended = tokio::io::copy_bidirectional(&mut client, &mut relay).await;
    };
    let mut client = Command::new("mariadb");
    client.args(["--no-defaults", "-N", "-B", "-u", "anyone", "-h", "127.0.0.1", "-P", &port.to_string()]);
    client.args(["-e", "select current_user()"]);
    let ((), (code, out, err)) = tokio::join!(slow, finish(client));
    assert_eq!((code, out.as_str()), (0, "db_read@127.0.0.1"), "{err}");
    world.stop().await;
}

#[tokio::test]
async fn what_the_database_says_at_a_failover_reaches_the_client() {
    let world = World::start(Flaws::default(), |relay| relay["target"]["events"]["read_only"] = json!(false)).await;
    let number = |error: mysql_async::Error| match error {
        mysql_async::Error::Server(error) => (error.code, error.message),
        other => panic!("{other}"),
    };
    let mut client = world.client().await;
    client.query_drop("create or replace table scratch.failover (id int)").await.unwrap();
    // Aurora's old writer is a reader now.
    world.root("set global read_only = on").await;
    let (code, said) = number(client.query_drop("insert into scratch.failover values (1)").await.unwrap_err());
    assert!(code == 1290 && said.contains("--read-only option") && !said.contains("bastion"), "{code} {said}");
    world.root("set global read_only = off").await;
    client.query_drop("insert into scratch.failover values (1)").await.unwrap();
    // Errors in place of a greeting.
    world.root("set global max_connections = 10").await;
    let mut all = Vec::new();
    let full = loop {
        assert!(all.len() < 20, "they never were too many");
        match world.connect().await {
            Ok(client) => all.push(client),
            Err(error) => break number(error),
        }
    };
    assert_eq!(full.0, 1040);
    assert!(full.1.starts_with("Too many connections. bastion: target events refused the login of"), "{full:?}");
    for client in all.into_iter().chain([client]) {
        client.disconnect().await.unwrap();
    }
    world.stop().await;
}

#[tokio::test]
async fn garbage_and_impossible_lengths_are_answered_and_end() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let world = World::start(Flaws::default(), |_| ()).await;
    let http = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let longest = [&[0xff, 0xff, 0xff, 1][..], &[0; 64]].concat();
    let empty = [0, 0, 0, 1];
    let cut_short = [4, 0, 0, 1, 0, 2, 0, 0];
    for garbage in [&http[..], &longest, &empty, &cut_short] {
        let mut stream = tokio::net::TcpStream::connect((world.address, 3306)).await.unwrap();
        let mut seen = Vec::new();
        while seen.is_empty() {
            assert!(stream.read_buf(&mut seen).await.unwrap() > 0, "no greeting");
        }
        stream.write_all(garbage).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut said = Vec::new();
        tokio::time::timeout(PATIENCE, stream.read_to_end(&mut said)).await.expect("it hangs").unwrap();
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(said.contains("#08S01bastion: target events speaks MySQL, but"), "{garbage:?} {said}");
    }
    // And it still serves.
    assert_eq!(world.client().await.query_first::<i64, _>("select 7").await.unwrap(), Some(7));
    world.stop().await;
}
