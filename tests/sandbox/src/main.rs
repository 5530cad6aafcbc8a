//! The sandbox as a program: `up` runs everything in the foreground, `verify-rds-token` is what PAM asks.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use bastion_sandbox::container::Container;
use bastion_sandbox::mariadb::MariaDb;
use bastion_sandbox::moto::Moto;
use bastion_sandbox::mysql::{self, Mysql};
use bastion_sandbox::postgres::{Flaws, Postgres};
use bastion_sandbox::secrets_manager::SecretsManager;
use bastion_sandbox::{Sandbox, demo, rds};
use clap::{Parser, Subcommand};
use serde_json::{Map, Value, json};
use tokio::net::{TcpListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

/// Run a strict local AWS for bastion, with a real PostgreSQL and MariaDB that check RDS IAM tokens
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start everything, print one JSON line when it is ready, and run until SIGINT or SIGTERM
    Up {
        /// The bastion program that tasks run; the one beside this program if not given
        #[arg(long)]
        bastion: Option<PathBuf>,
        /// A further target of engine tcp in both access levels: a port of this machine
        #[arg(long = "tcp", value_name = "NAME=PORT", value_parser = tcp_target)]
        tcp_targets: Vec<(String, u16)>,
        /// Run tasks as containers of this image, with podman, instead of as processes
        #[arg(long)]
        image: Option<String>,
        /// A MySQL server too, and Secrets Manager with the password of a user of it (scripts/setup clients)
        #[arg(long = "mysql")]
        with_mysql: bool,
    },
    /// Pass TCP connections on to a Unix socket: the way out of a network namespace. Prints a line when it listens
    Forward {
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long)]
        to: PathBuf,
    },
    /// Check the RDS IAM token on standard input for a login as PAM_USER; exit 0 if it is good
    VerifyRdsToken {
        #[arg(long)]
        state: PathBuf,
        #[arg(long)]
        log: PathBuf,
    },
}

fn tcp_target(text: &str) -> Result<(String, u16), String> {
    let (name, port) = text.split_once('=').ok_or("it is written NAME=PORT, for example echo=7")?;
    let port = port.parse().map_err(|_| format!("{port:?} is no port, a number from 1 to 65535"))?;
    Ok((name.to_owned(), port))
}

fn main() -> anyhow::Result<ExitCode> {
    match Cli::parse().command {
        Command::Up { bastion, tcp_targets, image, with_mysql } => {
            let program = std::env::current_exe()?;
            let bastion = bastion.unwrap_or_else(|| program.with_file_name("bastion"));
            anyhow::ensure!(bastion.exists(), "there is no {}; run cargo build first", bastion.display());
            let bastion = std::path::absolute(bastion)?;
            tokio::runtime::Runtime::new()?.block_on(up(&program, &bastion, &tcp_targets, image, with_mysql))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Forward { listen, to } => {
            tokio::runtime::Runtime::new()?.block_on(forward(listen, &to))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::VerifyRdsToken { state, log } => Ok(verify(&state, &log)),
    }
}

async fn up(
    program: &Path,
    bastion: &Path,
    tcp_targets: &[(String, u16)],
    image: Option<String>,
    with_mysql: bool,
) -> anyhow::Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let folder = tempfile::Builder::new().prefix("bastion-sandbox-").tempdir()?;
    // The servers run as other users and must get through.
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let database = Postgres::start(folder.path(), program, Flaws::default()).await?;
    let mariadb = MariaDb::start(folder.path(), program, Flaws::default()).await?;
    let mut config = demo::config(folder.path(), bastion, &database, Some(&mariadb));
    demo::add_tcp_targets(&mut config, tcp_targets)?;
    config.container = image.map(|image| Container { engine: vec!["podman".to_owned()], image });
    let sandbox = Sandbox::start(config).await?;
    let callers: Map<String, Value> = ["alice", "bob", "carol", "eve"]
        .into_iter()
        .map(|name| {
            let variables: Map<String, Value> =
                sandbox.variables(name).into_iter().map(|(name, value)| (name.to_owned(), json!(value))).collect();
            (name.to_owned(), Value::Object(variables))
        })
        .collect();
    let mut ready = json!({
        "endpoint": sandbox.endpoint(), "folder": folder.path(), "callers": callers,
        "database": {"port": database.port, "ca_file": database.ca_file, "socket_folder": database.socket_folder()},
        "mariadb": {"port": mariadb.port, "ca_file": mariadb.ca_file, "socket": mariadb.socket()},
    });
    let mysql = match with_mysql {
        true => Some(start_mysql(folder.path(), &sandbox, &mut ready).await?),
        false => None,
    };
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{ready}")?;
    stdout.flush()?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    sandbox.stop().await;
    database.stop().await;
    mariadb.stop().await;
    if let Some((mysql, ..)) = mysql {
        mysql.stop().await;
    }
    folder.close().context("cannot remove the temporary folder")
}

/// A MySQL server and whoever keeps the password of the relay's user; where they are goes into `ready`.
async fn start_mysql(
    folder: &Path,
    sandbox: &Sandbox,
    ready: &mut Value,
) -> anyhow::Result<(Mysql, Moto, SecretsManager)> {
    const SECRET: &str = "demo/journal";
    let (mysql, moto) = tokio::try_join!(Mysql::start(folder), Moto::start(folder))?;
    moto.create_secret(SECRET, &mysql::secret()).await?;
    let secrets = sandbox.secrets_manager(&moto).await?;
    ready["mysql"] = json!({
        "host": mysql::HOST, "port": mysql.port, "ca_file": mysql.ca_file, "socket": mysql.socket(),
        "direct_user": mysql::DIRECT_USER, "secret_user": mysql::SECRET_USER, "secret": SECRET,
    });
    ready["secrets_manager"] = json!(secrets.endpoint());
    Ok((mysql, moto, secrets))
}

/// Until somebody ends it.
async fn forward(listen: SocketAddr, to: &Path) -> anyhow::Result<()> {
    let listener = TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen}"))?;
    writeln!(std::io::stdout(), "listening on {listen}")?;
    let mut connections = JoinSet::new();
    loop {
        let (mut client, _) = listener.accept().await?;
        client.set_nodelay(true)?;
        let mut server = UnixStream::connect(to).await.with_context(|| format!("cannot reach {}", to.display()))?;
        connections.spawn(async move { tokio::io::copy_bidirectional(&mut client, &mut server).await.is_ok() });
        while connections.try_join_next().is_some() {}
    }
}

/// PAM waits for this: no runtime, one look at the state.
fn verify(state: &Path, log: &Path) -> ExitCode {
    #[expect(clippy::disallowed_methods, reason = "PAM hands over the user in this variable")]
    let user = std::env::var("PAM_USER").unwrap_or_default();
    #[expect(clippy::disallowed_methods, reason = "tokens are checked against the time of day")]
    let now = std::time::SystemTime::now();
    let mut token = Vec::new();
    let read = std::io::stdin().take(64 * 1024).read_to_end(&mut token);
    let result = read.map_err(|error| error.to_string()).and_then(|_| {
        let token = std::str::from_utf8(&token).map_err(|error| error.to_string())?;
        let state = rds::State::read(state).map_err(|error| error.to_string())?;
        rds::verify(&state, token, &user, now)
    });
    let line = match &result {
        Ok(()) => format!("ALLOW {user} ({} bytes)\n", token.len()),
        Err(reason) => format!("DENY {user}: {reason}\n"),
    };
    if let Ok(mut file) = std::fs::OpenOptions::new().append(true).open(log) {
        // The log is for tests; a login does not depend on it.
        let _best_effort = file.write_all(line.as_bytes());
    }
    if result.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
