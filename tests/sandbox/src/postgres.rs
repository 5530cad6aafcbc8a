//! A real PostgreSQL in a temporary folder that checks RDS IAM tokens: TLS with a CA of the sandbox, PAM for the members of
//! `rds_iam`, as on RDS. It disturbs no PostgreSQL that runs already.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use tokio::process::{Child, Command};

use crate::port;
pub use crate::server::Flaws;
use crate::server::{self, Pam};

/// The writer endpoint that the certificate is for.
pub const HOST: &str = "orders.cluster-abc123.ap-northeast-1.rds.amazonaws.com";
/// The reader endpoint.
pub const READER_HOST: &str = "orders.cluster-ro-abc123.ap-northeast-1.rds.amazonaws.com";
/// Password of the users `scram_user`, `md5_user` and `clear_user`.
pub const PASSWORD: &str = "correct horse battery staple";

const OS_USER: &str = "postgres";
const USERS: &str = "
set password_encryption = 'scram-sha-256';
create role rds_iam nologin;
create role db_read login; grant rds_iam to db_read;
create role db_write login; grant rds_iam to db_write;
create role db_admin login; grant rds_iam to db_admin;
create role db_plain login password 'x';
create role scram_user login password 'correct horse battery staple';
create role clear_user login password 'correct horse battery staple';
set password_encryption = 'md5';
create role md5_user login password 'correct horse battery staple';
create database orders;
";
const TABLES: &str = "
create table orders (id int primary key, customer text not null, total numeric(10, 2) not null, placed_at timestamptz not null);
insert into orders
  select n, (array['Ada Lovelace', 'Grace Hopper', 'Edsger Dijkstra', 'Barbara Liskov', '片山 葵'])[1 + n % 5],
         (n * 37 % 10000) / 100.0 + 5, timestamptz '2026-01-05 09:00+00' + n * interval '7 hours'
  from generate_series(1, 1000) n;
grant select on orders to db_read;
grant select, insert, update, delete on orders to db_write;
grant all on schema public to db_write, scram_user, db_read;
";

/// A running server; stopped and removed when dropped or by [`Postgres::stop`].
#[derive(Debug)]
pub struct Postgres {
    pub port: u16,
    /// PEM file of the CA that signed the server's certificate; the same for all servers of a folder.
    pub ca_file: PathBuf,
    /// File where the verifier reads what it knows; the same for all servers of a folder. See [`crate::rds::State`].
    pub state_file: PathBuf,
    pam: Pam,
    folder: PathBuf,
    child: Option<Child>,
    bin: PathBuf,
}

impl Postgres {
    /// Makes a new server below `folder` (which must be readable by other users) and starts it. `verifier` is the
    /// `bastion-sandbox` program.
    ///
    /// # Errors
    /// What is missing and how to get it.
    pub async fn start(folder: &Path, verifier: &Path, flaws: Flaws) -> anyhow::Result<Self> {
        let bin = newest_server()?;
        let (ca_file, state_file) = (server::ca_file(folder), crate::rds::State::file_in(folder)?);
        let folder = server::make_folder(folder, "postgres")?;
        let port = port::free()?;
        server::write_certificate(&folder, &[HOST, READER_HOST], flaws)?;
        let pam = Pam::install(&folder, verifier, &state_file, port).await?;
        let mut server = Self { port, ca_file, state_file, pam, folder, child: None, bin };
        server.initialise(verifier, flaws).await?;
        server.run().await?;
        server.fill().await?;
        Ok(server)
    }

    /// Folder of the server's Unix socket; the superuser `postgres` is let in there.
    pub fn socket_folder(&self) -> &Path {
        &self.folder
    }

    /// What the verifier said of each login.
    pub fn verifier_log(&self) -> String {
        self.pam.log()
    }

    /// Stops the server and removes the PAM service. Dropping does the same without waiting.
    pub async fn stop(mut self) {
        if let Some(mut child) = self.child.take() {
            interrupt(&child);
            if tokio::time::timeout(Duration::from_secs(10), child.wait()).await.is_err() {
                // Nothing to do about a server that cannot even be killed.
                let _best_effort = child.kill().await;
            }
        }
    }

    async fn initialise(&self, verifier: &Path, flaws: Flaws) -> anyhow::Result<()> {
        server::hand_over(&self.folder, OS_USER).await?;
        let data = self.folder.join("data");
        let mut initdb = self.command("initdb");
        initdb.args(["-U", "postgres", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"]);
        initdb.args(["--auth-local=trust", "--auth-host=reject"]);
        let recipe = format!("{initdb:?}").replace(&format!("{}", self.folder.display()), "");
        let make = async { server::run(initdb.arg("-D").arg(&data)).await.context("cannot make the database") };
        server::make_once(verifier, &recipe, &data, make).await?;
        let service = self.pam.name();
        let settings = format!(
            "listen_addresses = '127.0.0.1'\nport = {}\nunix_socket_directories = '{folder}'\nssl = {}\n\
             ssl_cert_file = '{folder}/server.pem'\nssl_key_file = '{folder}/server.key'\nfsync = off\n\
             max_connections = 900\nmax_prepared_transactions = 4\nwal_level = logical\nlog_connections = on\n",
            self.port,
            if flaws.no_tls { "off" } else { "on" },
            folder = self.folder.display(),
        );
        let access = format!(
            "local all all trust\nhostnossl all all 127.0.0.1/32 reject\n\
             hostssl all,replication +rds_iam 127.0.0.1/32 pam pamservice={service}\n\
             hostssl all clear_user 127.0.0.1/32 password\nhostssl all md5_user 127.0.0.1/32 md5\n\
             hostssl all all 127.0.0.1/32 scram-sha-256\n"
        );
        for (name, text) in [("postgresql.auto.conf", settings), ("pg_hba.conf", access)] {
            let path = data.join(name);
            std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    async fn run(&mut self) -> anyhow::Result<()> {
        let mut postgres = self.command("postgres");
        postgres.arg("-D").arg(self.folder.join("data"));
        let ping = || {
            let mut ready = self.command("pg_isready");
            ready.arg("-q").arg("-h").arg(&self.folder).args(["-p", &self.port.to_string()]);
            ready
        };
        self.child = Some(server::start(postgres, "postgres", &self.folder, ping).await?);
        Ok(())
    }

    async fn fill(&self) -> anyhow::Result<()> {
        // PAM logins of members only: a superuser's membership would count for `+rds_iam` too, but it comes by socket.
        self.sql("postgres", USERS).await?;
        self.sql("orders", TABLES).await
    }

    /// Runs statements as superuser over the Unix socket.
    ///
    /// # Errors
    /// What psql says.
    pub async fn sql(&self, database: &str, statements: &str) -> anyhow::Result<()> {
        let mut psql = self.command("psql");
        psql.args(["-q", "-X", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", database]);
        psql.arg("-h").arg(&self.folder).args(["-p", &self.port.to_string()]);
        server::feed(psql, statements).await.context("psql")
    }

    /// A program of the server's version, run as the server's user.
    fn command(&self, program: &str) -> Command {
        server::command_as(OS_USER, &self.bin.join(program), &self.folder)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(child) = &self.child {
            interrupt(child);
        }
    }
}

/// SIGINT is PostgreSQL's fast shutdown.
fn interrupt(child: &Child) {
    crate::signal(child.id(), rustix::process::Signal::INT);
}

fn newest_server() -> anyhow::Result<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    versions
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path().join("bin"))))
        .filter(|(_, bin)| bin.join("initdb").exists())
        .max()
        .map(|(_, bin)| bin)
        .context("no PostgreSQL server in /usr/lib/postgresql; install Debian's package postgresql")
}
