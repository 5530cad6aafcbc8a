//! A real PostgreSQL in a temporary folder that checks RDS IAM tokens: TLS with its own CA, PAM for the members of
//! `rds_iam`, as on RDS. It disturbs no PostgreSQL that runs already.

use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use tokio::process::{Child, Command};

/// The writer endpoint that the certificate is for.
pub const HOST: &str = "orders.cluster-abc123.ap-northeast-1.rds.amazonaws.com";
/// The reader endpoint.
pub const READER_HOST: &str = "orders.cluster-ro-abc123.ap-northeast-1.rds.amazonaws.com";
/// Password of the users `scram_user`, `md5_user` and `clear_user`.
pub const PASSWORD: &str = "correct horse battery staple";

const START_TIMEOUT: Duration = Duration::from_secs(30);
const PAM_SOURCE: &str = include_str!("../pam/pam_token.c");
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

/// What to leave out or get wrong, for tests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flaws {
    /// The certificate names another host.
    pub other_name: bool,
    /// No TLS at all.
    pub no_tls: bool,
}

/// A running server; stopped and removed when dropped or by [`Postgres::stop`].
#[derive(Debug)]
pub struct Postgres {
    pub port: u16,
    /// PEM file of the CA that signed the server's certificate.
    pub ca_file: PathBuf,
    /// File where the verifier reads what it knows; see [`crate::rds::State`].
    pub state_file: PathBuf,
    pam_service: PathBuf,
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
        let folder = folder.join("postgres");
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755))?;
        let mut server = Self {
            port: free_port()?,
            ca_file: folder.join("ca.pem"),
            state_file: folder.join("rds-state.json"),
            pam_service: PathBuf::new(),
            folder,
            child: None,
            bin,
        };
        server.write_certificates(flaws)?;
        crate::rds::State::default().write(&server.state_file)?;
        server.install_pam(verifier).await?;
        server.initialise(flaws).await?;
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
        std::fs::read_to_string(self.folder.join("verifier.log")).unwrap_or_default()
    }

    /// Stops the server and removes the PAM service. Dropping does the same without waiting.
    pub async fn stop(mut self) {
        self.remove_pam();
        if let Some(mut child) = self.child.take() {
            interrupt(&child);
            if tokio::time::timeout(Duration::from_secs(10), child.wait()).await.is_err() {
                // Nothing to do about a server that cannot even be killed.
                let _best_effort = child.kill().await;
            }
        }
    }

    fn write_certificates(&self, flaws: Flaws) -> anyhow::Result<()> {
        let mut ca = CertificateParams::new(Vec::new())?;
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        ca.distinguished_name.push(DnType::CommonName, "bastion sandbox RDS CA");
        let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate()?)?;
        let names = match flaws.other_name {
            true => vec!["other.cluster-zzz999.ap-northeast-1.rds.amazonaws.com".to_owned()],
            false => vec![HOST.to_owned(), READER_HOST.to_owned()],
        };
        let mut server = CertificateParams::new(names)?;
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate()?;
        let certificate = server.signed_by(&key, &ca)?;
        std::fs::write(&self.ca_file, ca.pem())?;
        std::fs::write(self.folder.join("server.pem"), certificate.pem())?;
        let key_file = self.folder.join("server.key");
        std::fs::write(&key_file, key.serialize_pem())?;
        std::fs::set_permissions(&key_file, std::fs::Permissions::from_mode(0o600))?;
        Ok(())
    }

    /// Compiles the module and registers a service of our own; PAM reads services from /etc/pam.d only.
    async fn install_pam(&mut self, verifier: &Path) -> anyhow::Result<()> {
        let source = self.folder.join("pam_token.c");
        let module = self.folder.join("pam_token.so");
        std::fs::write(&source, PAM_SOURCE)?;
        let mut compile = Command::new("cc");
        compile.args(["-O2", "-Wall", "-Wextra", "-fPIC", "-shared", "-o"]).arg(&module).arg(&source).arg("-lpam");
        run(&mut compile).await.context("cannot compile the PAM module; install gcc and libpam0g-dev")?;
        // The server's user may not be able to reach the build folder.
        let own_verifier = self.folder.join("verifier");
        std::fs::copy(verifier, &own_verifier).with_context(|| format!("cannot copy {}", verifier.display()))?;
        let log = self.folder.join("verifier.log");
        std::fs::write(&log, "")?;
        std::fs::set_permissions(&log, std::fs::Permissions::from_mode(0o666))?;
        let service = format!(
            "auth required {} {} verify-rds-token --state {} --log {}\naccount required pam_permit.so\n",
            module.display(),
            own_verifier.display(),
            self.state_file.display(),
            log.display()
        );
        let path = Path::new("/etc/pam.d").join(format!("bastion-sandbox-{}", self.port));
        if std::fs::write(&path, &service).is_err() {
            let staged = self.folder.join("pam.service");
            std::fs::write(&staged, service)?;
            let mut install = Command::new("sudo");
            install.args(["install", "-m", "644"]).arg(&staged).arg(&path);
            run(&mut install)
                .await
                .with_context(|| format!("cannot write {}; run as root or with sudo", path.display()))?;
        }
        self.pam_service = path;
        Ok(())
    }

    fn remove_pam(&mut self) {
        let path = std::mem::take(&mut self.pam_service);
        if !path.as_os_str().is_empty() && std::fs::remove_file(&path).is_err() && path.exists() {
            // Best effort: without sudo now there was sudo at the start.
            let _left = std::process::Command::new("sudo").args(["rm", "-f"]).arg(&path).status();
        }
    }

    async fn initialise(&self, flaws: Flaws) -> anyhow::Result<()> {
        if is_root() {
            run(Command::new("chown").args(["-R", "postgres:"]).arg(&self.folder)).await?;
        }
        let data = self.folder.join("data");
        let mut initdb = self.command("initdb");
        initdb.arg("-D").arg(&data).args(["-U", "postgres", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"]);
        initdb.args(["--auth-local=trust", "--auth-host=reject"]);
        run(&mut initdb).await.context("cannot make the database")?;
        let service = self.pam_service.file_name().unwrap_or_default().to_string_lossy();
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
        let log = std::fs::File::create(self.folder.join("server.log"))?;
        let mut server = self.command("postgres");
        server.arg("-D").arg(self.folder.join("data")).stdin(Stdio::null());
        server.stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
        self.child = Some(server.spawn().context("cannot start postgres")?);
        let deadline = tokio::time::Instant::now() + START_TIMEOUT;
        loop {
            let mut ready = self.command("pg_isready");
            ready.arg("-q").arg("-h").arg(&self.folder).args(["-p", &self.port.to_string()]);
            if ready.status().await?.success() {
                return Ok(());
            }
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten()) {
                let log = std::fs::read_to_string(self.folder.join("server.log")).unwrap_or_default();
                bail!("postgres ended at once with {status}:\n{log}");
            }
            ensure!(
                tokio::time::Instant::now() < deadline,
                "postgres is not ready after {} s",
                START_TIMEOUT.as_secs()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
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
        use tokio::io::AsyncWriteExt as _;
        let mut psql = self.command("psql");
        psql.args(["-q", "-X", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", database]);
        psql.arg("-h").arg(&self.folder).args(["-p", &self.port.to_string()]);
        let mut child = psql.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let mut input = child.stdin.take().context("psql has no standard input")?;
        input.write_all(statements.as_bytes()).await?;
        drop(input);
        let output = child.wait_with_output().await?;
        ensure!(output.status.success(), "psql: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// A program of the server's version, run as the server's user.
    fn command(&self, program: &str) -> Command {
        let program = self.bin.join(program);
        let mut command = if is_root() {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=postgres", "--regid=postgres", "--init-groups", "--"]).arg(program);
            command
        } else {
            Command::new(program)
        };
        command.env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C.UTF-8").current_dir(&self.folder);
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.remove_pam();
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

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

async fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .await
        .with_context(|| format!("cannot run {:?}", command.as_std().get_program()))?;
    ensure!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
