//! A real MySQL in a temporary folder. It has no plugin that takes an IAM token, so its users have passwords, with
//! `caching_sha2_password`; the relay reads its user's from a secret.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::json;
use tokio::process::{Child, Command};

pub use crate::mariadb::PASSWORD;
use crate::server::{self, Flaws};
use crate::{port, tools};

/// The endpoint that the certificate is for.
pub const HOST: &str = "journal.cluster-ghi789.ap-northeast-1.rds.amazonaws.com";
/// For clients that log in to the server themselves.
pub const DIRECT_USER: &str = "sha2_user";
/// The user of [`secret`].
pub const SECRET_USER: &str = "secret_user";

const OS_USER: &str = "mysql";
const USERS: &str = "
create user sha2_user@'127.0.0.1' identified with caching_sha2_password by 'SQL_PASSWORD' require ssl;
create user secret_user@'127.0.0.1' identified with caching_sha2_password by 'SQL_PASSWORD' require ssl;
";
/// The same rows as in [`crate::mariadb`].
const TABLES: &str = "
create database events;
create database scratch;
create table events.events (id int primary key, actor varchar(40) not null, kind varchar(20) not null,
  amount decimal(10, 2) not null, happened_at datetime not null) character set utf8mb4;
insert into events.events
  with recursive n (seq) as (select 1 union all select seq + 1 from n where seq < 1000)
  select seq, elt(1 + seq % 5, 'Ada Lovelace', 'Grace Hopper', 'Edsger Dijkstra', 'Barbara Liskov', '片山 葵'),
         elt(1 + seq % 3, 'login', 'order', 'refund'), (seq * 37 % 10000) / 100 + 5,
         timestamp '2026-01-05 09:00:00' + interval seq * 7 hour
  from n;
grant select on events.* to sha2_user@'127.0.0.1', secret_user@'127.0.0.1';
grant all on scratch.* to sha2_user@'127.0.0.1', secret_user@'127.0.0.1';
install component 'file://component_query_attributes';
";

/// A running server; killed when dropped or by [`Mysql::stop`].
#[derive(Debug)]
pub struct Mysql {
    pub port: u16,
    /// PEM file of the CA that signed the server's certificate; the same for all servers of a folder.
    pub ca_file: PathBuf,
    folder: PathBuf,
    /// Where its programs are: see `need_mysql` in `scripts/setup`.
    programs: PathBuf,
    child: Option<Child>,
}

/// What Secrets Manager keeps for the relay's user, in the form of RDS-managed secrets.
pub fn secret() -> String {
    json!({"username": SECRET_USER, "password": PASSWORD}).to_string()
}

impl Mysql {
    /// Makes a new server below `folder` (which must be readable by other users) and starts it.
    ///
    /// # Errors
    /// What is missing and how to get it.
    pub async fn start(folder: &Path) -> anyhow::Result<Self> {
        let installed = tools::folder().join("mysql");
        anyhow::ensure!(
            installed.join("bin/mysqld").exists(),
            "there is no MySQL in {}; run scripts/setup clients",
            installed.display()
        );
        let (ca_file, folder) = (server::ca_file(folder), server::make_folder(folder, "mysql")?);
        let programs = match server::is_root() {
            // The server's user may not be able to reach the tools.
            true => {
                let own = folder.join("program");
                server::run(Command::new("cp").arg("-a").arg("--").arg(installed.join(".")).arg(&own)).await?;
                own
            }
            false => std::path::absolute(installed)?,
        };
        let port = port::free()?;
        server::write_certificate(&folder, &[HOST], Flaws::default())?;
        let mut server = Self { port, ca_file, folder, programs, child: None };
        server.initialise().await?;
        server.run().await?;
        server.sql(&format!("{}{TABLES}", USERS.replace("SQL_PASSWORD", PASSWORD))).await?;
        Ok(server)
    }

    /// The server's Unix socket; `root` is let in there without a password.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("my.sock")
    }

    /// Stops the server. Dropping does the same without waiting.
    pub async fn stop(mut self) {
        if let Some(mut child) = self.child.take() {
            // Nothing to do about a server that cannot even be killed.
            let _best_effort = child.kill().await;
        }
    }

    async fn initialise(&self) -> anyhow::Result<()> {
        std::fs::write(self.settings_file(), self.settings())?;
        server::hand_over(&self.folder, OS_USER).await?;
        let mut install = self.command("mysqld");
        install.arg(format!("--defaults-file={}", self.settings_file().display())).arg("--initialize-insecure");
        server::run(&mut install).await.context("cannot make the database")
    }

    async fn run(&mut self) -> anyhow::Result<()> {
        let mut mysqld = self.command("mysqld");
        mysqld.arg(format!("--defaults-file={}", self.settings_file().display()));
        let ping = || {
            let mut ping = self.client("mysqladmin");
            ping.arg("ping");
            ping
        };
        self.child = Some(server::start(mysqld, "mysqld", &self.folder, ping).await?);
        Ok(())
    }

    /// Runs statements as superuser over the Unix socket.
    ///
    /// # Errors
    /// What the client says.
    pub async fn sql(&self, statements: &str) -> anyhow::Result<()> {
        server::feed(self.client("mysql"), statements).await.context("mysql")
    }

    /// A client program that logs in as superuser.
    fn client(&self, program: &str) -> Command {
        let mut client = self.command(program);
        client.arg("--no-defaults").arg("--default-character-set=utf8mb4").args(["--user", "root", "--socket"]);
        client.arg(self.socket());
        client
    }

    fn command(&self, program: &str) -> Command {
        server::command_as(OS_USER, &self.programs.join("bin").join(program), &self.folder)
    }

    fn settings_file(&self) -> PathBuf {
        self.folder.join("my.cnf")
    }

    /// With what the programs otherwise look for below /usr.
    fn settings(&self) -> String {
        let (folder, usr, ca) = (self.folder.display(), self.programs.join("usr"), self.ca_file.display());
        let usr = usr.display();
        format!(
            "[mysqld]\nbasedir={usr}\nlc-messages-dir={usr}/share/mysql\ncharacter-sets-dir={usr}/share/mysql/charsets\n\
             plugin-dir={usr}/lib/mysql/plugin\ndatadir={folder}/data\nsocket={folder}/my.sock\npid-file={folder}/my.pid\n\
             tmpdir={folder}\nsecure-file-priv=NULL\nbind-address=127.0.0.1\nport={port}\nmysqlx=OFF\nlocal-infile=ON\n\
             ssl-ca={ca}\nssl-cert={folder}/server.pem\nssl-key={folder}/server.key\nskip-name-resolve\nskip-log-bin\n\
             max_connections=500\nmax_connect_errors=1000000\nmax_allowed_packet=64M\ninnodb_redo_log_capacity=32M\n\
             innodb_doublewrite=OFF\ninnodb_flush_log_at_trx_commit=0\ninnodb_flush_method=nosync\n",
            port = self.port,
        )
    }
}
