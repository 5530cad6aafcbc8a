//! A world for one test: PostgreSQL, the sandbox, and a relay in a task.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bastion_sandbox::mariadb::MariaDb;
use bastion_sandbox::postgres::{Flaws, Postgres};
use bastion_sandbox::schema;
use bastion_sandbox::{Config, Sandbox, TaskDefinition, demo};
use serde_json::{Value, json};
use tokio::process::Command;

/// The program under test.
pub(crate) const BASTION: &str = env!("CARGO_BIN_EXE_bastion");

/// How long anything may take that must come at all.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct World {
    pub(crate) sandbox: Sandbox,
    pub(crate) database: Postgres,
    pub(crate) config: Config,
    pub(crate) folder: tempfile::TempDir,
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::start_with(Flaws::default(), |_| ()).await
    }

    pub(crate) async fn start_with(flaws: Flaws, change: impl FnOnce(&mut Config)) -> Self {
        Self::start_in(Self::folder(), flaws, None, change).await
    }

    /// A folder that the database servers can read.
    pub(crate) fn folder() -> tempfile::TempDir {
        let folder = tempfile::Builder::new().prefix("bastion-it-").tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        folder
    }

    /// In a folder where something runs already: with `events`, the MariaDB of the target of this name.
    pub(crate) async fn start_in(
        folder: tempfile::TempDir,
        flaws: Flaws,
        events: Option<&MariaDb>,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let database = Postgres::start(folder.path(), &sandbox_program(), flaws).await.unwrap();
        let mut config = demo::config(folder.path(), Path::new(BASTION), &database, events);
        config.phase = Duration::from_millis(20);
        change(&mut config);
        let sandbox = Sandbox::start(config.clone()).await.unwrap();
        Self { sandbox, database, config, folder }
    }

    /// Runs the `read` task with plain ports, without the guard against writes, and with its relay configuration
    /// changed; the relay once it is ready.
    pub(crate) async fn relay(&self, change: impl FnOnce(&mut Value)) -> Relay<'_> {
        self.relay_of(&self.definition(|config| {
            config["identity"] = json!("optional");
            change(config);
            for target in config["target"].as_object_mut().unwrap().values_mut() {
                if target["engine"] == "postgres" && target.get("read_only").is_none() {
                    target["read_only"] = json!(false);
                }
            }
        }))
        .await
    }

    /// The `read` task with its relay configuration changed.
    pub(crate) fn definition(&self, change: impl FnOnce(&mut Value)) -> TaskDefinition {
        let mut definition = self.config.task_definitions[0].clone();
        let mut config: Value = serde_json::from_str(&definition.environment["BASTION_CONFIG"]).unwrap();
        change(&mut config);
        definition.environment.insert("BASTION_CONFIG".to_owned(), config.to_string());
        definition
    }

    pub(crate) async fn relay_of(&self, definition: &TaskDefinition) -> Relay<'_> {
        let (id, address) = self.sandbox.run_directly(definition);
        let relay = Relay { world: self, id, address };
        relay.wait_for("ready for connections").await;
        relay
    }

    pub(crate) async fn stop(self) {
        self.sandbox.tasks().iter().for_each(|(task, _)| check_records(&self.sandbox.task_log(task)));
        self.sandbox.stop().await;
        self.database.stop().await;
        self.folder.close().unwrap();
    }
}

/// Holds every record of a relay to the schema, and their numbers to their order.
pub(crate) fn check_records(log: &str) {
    let mut n = 0;
    // A relay that was killed may have left the start of a line.
    for line in log.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
        schema::check_line(line.trim_end()).unwrap();
        if line.starts_with("{\"audit\"") {
            n += 1;
            assert!(line.starts_with(&format!("{{\"audit\":2,\"n\":{n},")), "record {n} is {line}");
        }
    }
}

/// The log of a task's relay, once `text` is in it. What the relay logs beside its work, as statements and ends of
/// connections, may come after the client has its answer.
pub(crate) async fn logged(sandbox: &Sandbox, task: &str, text: &str) -> String {
    let seen = async {
        loop {
            let log = sandbox.task_log(task);
            if log.contains(text) {
                return log;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let never = |_| panic!("the relay never logged {text:?}:\n{}", sandbox.task_log(task));
    tokio::time::timeout(PATIENCE, seen).await.unwrap_or_else(never)
}

/// A relay in a task of the sandbox.
pub(crate) struct Relay<'w> {
    world: &'w World,
    pub(crate) id: String,
    pub(crate) address: Ipv4Addr,
}

impl Relay<'_> {
    pub(crate) fn log(&self) -> String {
        self.world.sandbox.task_log(&self.id)
    }

    pub(crate) fn status(&self) -> &'static str {
        self.world.sandbox.tasks().iter().find(|(id, _)| *id == self.id).unwrap().1
    }

    /// Waits until the relay has logged `text`.
    pub(crate) async fn wait_for(&self, text: &str) {
        logged(&self.world.sandbox, &self.id, text).await;
    }

    /// psql through the relay: exit code, stdout, stderr.
    pub(crate) async fn psql(&self, port: u16, extra: &[&str], sql: &str) -> (i32, String, String) {
        let mut psql = Command::new("psql");
        psql.env("PGCONNECT_TIMEOUT", "20");
        psql.args(["-X", "-q", "-A", "-t", "-w", "-v", "ON_ERROR_STOP=1", "-U", "anyone", "-p", &port.to_string()]);
        psql.args(["-h", &self.address.to_string()]).args(extra).args(["-c", sql]);
        finish(psql).await
    }

    /// A connection of the Rust client.
    pub(crate) async fn client(&self) -> tokio_postgres::Client {
        let parameters = format!("host={} port=5432 user=anyone", self.address);
        let (client, connection) = tokio_postgres::connect(&parameters, tokio_postgres::NoTls).await.unwrap();
        #[expect(clippy::disallowed_methods, reason = "ends with the client")]
        tokio::spawn(connection);
        client
    }

    /// The body of a GET on the HTTP port, or the status if it is not 200.
    pub(crate) async fn get(&self, path: &str) -> Result<String, u16> {
        let (status, body) =
            http(self.address, &format!("GET {path} HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n")).await;
        if status == 200 { Ok(body) } else { Err(status) }
    }
}

/// One HTTP exchange by hand.
pub(crate) async fn http(address: Ipv4Addr, request: &str) -> (u16, String) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect((address, 7070)).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    let answer = String::from_utf8(answer).unwrap();
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    (status, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}

/// What the Rust client for MySQL needs to connect through the relay.
pub(crate) fn mysql_options(host: Ipv4Addr, port: u16) -> mysql_async::OptsBuilder {
    let options = mysql_async::OptsBuilder::default().ip_or_hostname(host.to_string()).tcp_port(port);
    options.user(Some("anyone")).prefer_socket(false)
}

/// Runs a command to its end: exit code, stdout, stderr.
pub(crate) async fn finish(mut command: Command) -> (i32, String, String) {
    let output = tokio::time::timeout(PATIENCE, command.kill_on_drop(true).output()).await.expect("it hangs").unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

/// As `bastion trust` names a file.
pub(crate) fn sha256(text: &str) -> String {
    use sha2::Digest as _;
    sha2::Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `bastion-sandbox` stands beside `bastion`.
pub(crate) fn sandbox_program() -> PathBuf {
    let program = Path::new(BASTION).with_file_name("bastion-sandbox");
    assert!(program.exists(), "there is no {}: run `cargo build --workspace` first", program.display());
    program
}

/// One target as the relay's configuration has it.
pub(crate) fn target(port: u16, user: &str) -> Value {
    json!({
        "engine": "postgres", "host": bastion_sandbox::postgres::HOST, "hostaddr": "127.0.0.1", "port": port,
        "database": "orders", "credential": {"rds_iam": {"user": user}}
    })
}
