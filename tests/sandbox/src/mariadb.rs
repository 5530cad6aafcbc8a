//! A real MariaDB in a temporary folder that checks RDS IAM tokens as RDS for MySQL does: sent in clear inside TLS with
//! `mysql_clear_password`, here to PAM. It disturbs no server that runs already.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tokio::process::{Child, Command};

use crate::port;
pub use crate::server::Flaws;
use crate::server::{self, Pam};

/// The writer endpoint that the certificate is for.
pub const HOST: &str = "events.cluster-def456.ap-northeast-1.rds.amazonaws.com";
/// The reader endpoint.
pub const READER_HOST: &str = "events.cluster-ro-def456.ap-northeast-1.rds.amazonaws.com";
/// Password of the users `native_user`, `ed25519_user`, `either_user` and `clear_text_user`.
pub const PASSWORD: &str = "correct horse battery staple";

const OS_USER: &str = "mysql";
/// IAM users (`db_…`) as RDS makes them, but for the plugin's name; users with a password; and one that may log in
/// without TLS, so that a test sees what a relay would send there.
const USERS: &str = "
create database events;
create database scratch;
create user db_read@'127.0.0.1' identified via pam using 'PAM_SERVICE' require ssl;
create user db_write@'127.0.0.1' identified via pam using 'PAM_SERVICE' require ssl;
create user db_admin@'127.0.0.1' identified via pam using 'PAM_SERVICE' require ssl;
create user native_user@'127.0.0.1' identified via mysql_native_password using password('SQL_PASSWORD') require ssl;
create user ed25519_user@'127.0.0.1' identified via ed25519 using password('SQL_PASSWORD') require ssl;
create user either_user@'127.0.0.1' identified via ed25519 using password('SQL_PASSWORD')
  or mysql_native_password using password('SQL_PASSWORD') require ssl;
create user empty_user@'127.0.0.1' identified via mysql_native_password require ssl;
create user clear_text_user@'127.0.0.1' identified via mysql_native_password using password('SQL_PASSWORD');
";
const TABLES: &str = "
create table events.events (id int primary key, actor varchar(40) not null, kind varchar(20) not null,
  amount decimal(10, 2) not null, happened_at datetime not null) character set utf8mb4;
insert into events.events
  select seq, elt(1 + seq % 5, 'Ada Lovelace', 'Grace Hopper', 'Edsger Dijkstra', 'Barbara Liskov', '片山 葵'),
         elt(1 + seq % 3, 'login', 'order', 'refund'), (seq * 37 % 10000) / 100 + 5,
         timestamp '2026-01-05 09:00:00' + interval seq * 7 hour
  from seq_1_to_1000;
grant select on events.* to db_read@'127.0.0.1';
grant select, insert, update, delete on events.* to db_write@'127.0.0.1';
grant select on performance_schema.* to db_read@'127.0.0.1', db_write@'127.0.0.1';
";
const EVERYBODY: [&str; 8] =
    ["db_read", "db_write", "db_admin", "native_user", "ed25519_user", "either_user", "empty_user", "clear_text_user"];

/// A running server; killed when dropped or by [`MariaDb::stop`], for nobody wants its data back.
#[derive(Debug)]
pub struct MariaDb {
    pub port: u16,
    /// PEM file of the CA that signed the server's certificate; the same for all servers of a folder.
    pub ca_file: PathBuf,
    /// File where the verifier reads what it knows; the same for all servers of a folder. See [`crate::rds::State`].
    pub state_file: PathBuf,
    pam: Pam,
    folder: PathBuf,
    child: Option<Child>,
}

impl MariaDb {
    /// Makes a new server below `folder` (which must be readable by other users) and starts it. `verifier` is the
    /// `bastion-sandbox` program.
    ///
    /// # Errors
    /// What is missing and how to get it.
    pub async fn start(folder: &Path, verifier: &Path, flaws: Flaws) -> anyhow::Result<Self> {
        anyhow::ensure!(
            Path::new(SERVER).exists() && Path::new(PAM_PLUGIN).exists(),
            "no MariaDB server in {SERVER}; install Debian's package mariadb-server"
        );
        let (ca_file, state_file) = (server::ca_file(folder), crate::rds::State::file_in(folder)?);
        let folder = server::make_folder(folder, "mariadb")?;
        let port = port::free()?;
        server::write_certificate(&folder, &[HOST, READER_HOST], flaws)?;
        let pam = Pam::install(&folder, verifier, &state_file, port).await?;
        let mut server = Self { port, ca_file, state_file, pam, folder, child: None };
        server.initialise(verifier, flaws).await?;
        server.run().await?;
        server.fill().await?;
        Ok(server)
    }

    /// The server's Unix socket; `root` is let in there without a password.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("my.sock")
    }

    /// What the verifier said of each login.
    pub fn verifier_log(&self) -> String {
        self.pam.log()
    }

    /// Stops the server and removes the PAM service. Dropping does the same without waiting.
    pub async fn stop(mut self) {
        if let Some(mut child) = self.child.take() {
            // Nothing to do about a server that cannot even be killed.
            let _best_effort = child.kill().await;
        }
    }

    async fn initialise(&self, verifier: &Path, flaws: Flaws) -> anyhow::Result<()> {
        let settings = self.folder.join("my.cnf");
        std::fs::write(&settings, settings_text(&self.folder, self.port, flaws))?;
        server::hand_over(&self.folder, OS_USER).await?;
        let mut install = self.command("/usr/bin/mariadb-install-db");
        install.arg(defaults_file(&settings)).args(["--auth-root-authentication-method=normal", "--skip-test-db"]);
        let recipe = format!("mariadb {}", settings_text(Path::new("/x/x"), 0, flaws));
        let make = async { server::run(&mut install).await.context("cannot make the database") };
        server::make_once(verifier, &recipe, &self.folder.join("data"), make).await
    }

    async fn run(&mut self) -> anyhow::Result<()> {
        let mut mariadbd = self.command(SERVER);
        mariadbd.arg(defaults_file(&self.folder.join("my.cnf")));
        let ping = || {
            let mut ping = self.command("/usr/bin/mariadb-admin");
            ping.arg(defaults_file(&self.folder.join("my.cnf"))).args(["-u", "root", "ping"]);
            ping
        };
        self.child = Some(server::start(mariadbd, "mariadbd", &self.folder, ping).await?);
        Ok(())
    }

    async fn fill(&self) -> anyhow::Result<()> {
        let grants: String =
            EVERYBODY.iter().map(|user| format!("grant all on scratch.* to {user}@'127.0.0.1';\n")).collect();
        let users = USERS.replace("PAM_SERVICE", &self.pam.name()).replace("SQL_PASSWORD", PASSWORD);
        // root comes by the socket only.
        let accounts = "drop user root@'127.0.0.1', root@'::1';\n";
        self.sql("mysql", &format!("{accounts}{users}{TABLES}{grants}")).await
    }

    /// Runs statements as superuser over the Unix socket.
    ///
    /// # Errors
    /// What the client says.
    pub async fn sql(&self, database: &str, statements: &str) -> anyhow::Result<()> {
        let mut client = self.command("/usr/bin/mariadb");
        client.arg(defaults_file(&self.folder.join("my.cnf"))).args(["-u", "root", database]);
        server::feed(client, statements).await.context("mariadb")
    }

    fn command(&self, program: &str) -> Command {
        server::command_as(OS_USER, Path::new(program), &self.folder)
    }
}

const SERVER: &str = "/usr/sbin/mariadbd";
const PAM_PLUGIN: &str = "/usr/lib/mysql/plugin/auth_pam_v1.so";

fn defaults_file(settings: &Path) -> String {
    format!("--defaults-file={}", settings.display())
}

/// Version 1 of the PAM plugin runs in the server; version 2 needs a setuid program that only the user `mysql` can reach.
fn settings_text(folder: &Path, port: u16, flaws: Flaws) -> String {
    let ca = folder.parent().map(server::ca_file).unwrap_or_default();
    let folder = folder.display();
    let tls = match flaws.no_tls {
        true => "skip-ssl".to_owned(),
        // The CA is for client certificates, which nobody must have but sysbench cannot do without.
        false => format!("ssl-ca={}\nssl-cert={folder}/server.pem\nssl-key={folder}/server.key", ca.display()),
    };
    format!(
        "[client]\nsocket={folder}/my.sock\ndefault-character-set=utf8mb4\n\
         [mariadbd]\ndatadir={folder}/data\nsocket={folder}/my.sock\npid-file={folder}/my.pid\ntmpdir={folder}\n\
         bind-address=127.0.0.1\nport={port}\n{tls}\ncharacter-set-server=utf8mb4\n\
         plugin-load-add=auth_pam_v1\nplugin-load-add=auth_ed25519\npam-use-cleartext-plugin=ON\nskip-name-resolve\n\
         max_connections=3000\nmax_connect_errors=1000000\nmax_allowed_packet=64M\nperformance_schema=ON\n\
         debug-no-sync\ninnodb_log_file_size=32M\ninnodb_doublewrite=0\ninnodb_flush_log_at_trx_commit=0\n"
    )
}
