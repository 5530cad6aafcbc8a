//! The relay in this process against a real PostgreSQL, with password credentials: what Vault and Secrets Manager give.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use bastion_sandbox::mariadb::{self, MariaDb};
use bastion_sandbox::postgres::{self, Flaws, Postgres};
use mysql_async::prelude::Queryable as _;
use tokio::net::TcpStream;
use tokio::process::Command;

mod client_tls;
mod cut;
mod failing_log;
mod hostile;
mod pipelined;
mod special;
mod stand_in;
mod standing_log;

use super::*;
use crate::credential::fixed::Fixed;
use crate::credential::{Cache, Source};
use crate::types::{Address, CredentialConfig, Endpoint, Engine, ExtraCa};

async fn database(folder: &Path) -> Postgres {
    Postgres::start(folder, &verifier(folder), Flaws::default()).await.unwrap()
}

/// `bastion-sandbox` stands one folder above the test programs.
fn verifier(folder: &Path) -> PathBuf {
    std::fs::set_permissions(folder, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let program = std::env::current_exe().unwrap();
    let verifier = program.parent().unwrap().with_file_name("bastion-sandbox");
    assert!(verifier.exists(), "there is no {}: run `cargo build --workspace` first", verifier.display());
    verifier
}

fn config(listen: Ipv4Addr, database: &Postgres, users: &[&str]) -> Config {
    config_for(Engine::Postgres, postgres::HOST, database.port, &database.ca_file, listen, users)
}

/// One target for each user, named as it; the databases are `orders` and `events`.
fn config_for(engine: Engine, host: &str, port: u16, ca_file: &Path, listen: Ipv4Addr, users: &[&str]) -> Config {
    let target = |(n, user): (usize, &&str)| Target {
        name: (*user).to_owned(),
        engine,
        endpoint: Endpoint::Fixed(Address { host: host.to_owned(), port }),
        hostaddr: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        database: Some(if engine == Engine::Mysql { "scratch" } else { "orders" }.to_owned()),
        read_only: false,
        local_infile: false,
        max_connections: None,
        local_port: None,
        relay_port: engine.default_port().unwrap() + u16::try_from(n).unwrap(),
        // Says that the relay logs in; the test chooses with what.
        credential: CredentialConfig::RdsIam { user: (*user).to_owned(), region: None },
    };
    Config {
        environment: "test".to_owned(),
        access: "read".to_owned(),
        region: "ap-northeast-1".to_owned(),
        owner: None,
        reason: None,
        audit: AuditConfig::default(),
        identity: IdentityConfig {
            required: false,
            allow: Vec::new(),
            sts: HttpEndpoint::parse("https://sts.invalid").unwrap(),
            task: TaskSource::Unknown,
        },
        local_password: false,
        listen: IpAddr::V4(listen),
        idle_stop: None,
        max_age: None,
        max_connections: 4,
        extra_ca: ExtraCa { file: Some(ca_file.to_owned()), pem: None },
        client_tls: None,
        secrets_manager_endpoint: None,
        targets: users.iter().enumerate().map(target).collect(),
        without_engine: Vec::new(),
    }
}

/// Binds a relay whose targets all have their engine.
async fn bind_with(
    config: Config,
    drain: CancellationToken,
    now: CancellationToken,
    log: impl std::io::Write + Send + 'static,
    logins: impl Fn(&Target) -> Result<Logins, tls::TlsConfigError>,
) -> Result<Relay, StartError> {
    let targets = config.targets.clone();
    Relay::bind_with(config, targets, Vec::new(), drain, now, log, logins).await
}

/// A relay with a password for each target, until the token is cancelled.
async fn serve(config: Config, password: &'static str) -> (CancellationToken, tokio::task::JoinHandle<Ended>) {
    let drain = CancellationToken::new();
    let relay = bind_with(config, drain.clone(), CancellationToken::new(), std::io::sink(), move |target| {
        Ok(Logins::Shared(Arc::new(Cache::new(Source::Fixed(Fixed::new(&target.name, password))))))
    });
    let relay = relay.await.unwrap();
    #[expect(clippy::disallowed_methods, reason = "joined by the test")]
    let serving = tokio::spawn(relay.serve());
    (drain, serving)
}

async fn psql(listen: Ipv4Addr, port: u16, options: &str) -> (bool, String) {
    let mut psql = Command::new("psql");
    let target = format!("host={listen} port={port} user=anyone {options}");
    psql.args(["-X", "-A", "-t", "-w", &target, "-c", "select current_user"]).kill_on_drop(true);
    let output = psql.output().await.unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).trim().to_owned())
}

fn client_certificate(folder: &Path) -> ClientTls {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["localhost".into()]).unwrap().self_signed(&key).unwrap();
    let tls = ClientTls { certificate: folder.join("tls.pem"), key: folder.join("tls.key") };
    std::fs::write(&tls.certificate, certificate.pem()).unwrap();
    std::fs::write(&tls.key, key.serialize_pem()).unwrap();
    tls
}

#[tokio::test(flavor = "multi_thread")]
async fn scram_with_channel_binding_md5_and_cleartext_passwords_log_in() {
    let folder = tempfile::tempdir().unwrap();
    let database = database(folder.path()).await;
    let users = ["scram_user", "md5_user", "clear_user"];
    let listen = Ipv4Addr::new(127, 63, 100, 1);
    let (drain, serving) = serve(config(listen, &database, &users), postgres::PASSWORD).await;
    for (port, user) in (5432..).zip(users) {
        assert_eq!(psql(listen, port, "").await, (true, user.to_owned()));
    }
    drain.cancel();
    assert_eq!(serving.await.unwrap(), Ended::Signal);
    database.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_refused_and_never_shown() {
    let folder = tempfile::tempdir().unwrap();
    let database = database(folder.path()).await;
    let listen = Ipv4Addr::new(127, 63, 100, 2);
    let (drain, serving) = serve(config(listen, &database, &["scram_user", "clear_user"]), "S3CRET").await;
    for port in [5432, 5433] {
        let (ok, said) = psql(listen, port, "").await;
        assert!(!ok && said.contains("password authentication failed"), "{said}");
        assert!(!said.contains("S3CRET"), "{said}");
    }
    drain.cancel();
    serving.await.unwrap();
    database.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_get_tls_where_a_certificate_is_configured_and_too_many_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let database = database(folder.path()).await;
    let tls = client_certificate(folder.path());
    let listen = Ipv4Addr::new(127, 63, 100, 3);
    let mut config = config(listen, &database, &["scram_user"]);
    config.client_tls = Some(tls);
    let (drain, serving) = serve(config, postgres::PASSWORD).await;
    for mode in ["require", "disable", "prefer"] {
        assert_eq!(psql(listen, 5432, &format!("sslmode={mode}")).await, (true, "scram_user".to_owned()), "{mode}");
    }
    // Four hold their place without a word. One more each time: the place of the psql before may not be free yet.
    let mut silent = Vec::new();
    let full = async {
        loop {
            silent.push(TcpStream::connect((listen, 5432)).await.unwrap());
            let (ok, said) = psql(listen, 5432, "sslmode=disable").await;
            if !ok {
                return said;
            }
        }
    };
    let said = tokio::time::timeout(Duration::from_secs(60), full).await.unwrap();
    assert!(said.contains("bastion: this relay serves 4 connections at once"), "{said}");
    drop(silent);
    drain.cancel();
    serving.await.unwrap();
    database.stop().await;
}

/// A relay with a local password, and that password.
async fn serve_with_door(config: Config) -> (CancellationToken, tokio::task::JoinHandle<Ended>, String) {
    let drain = CancellationToken::new();
    let config = Config { local_password: true, ..config };
    let relay = bind_with(config, drain.clone(), CancellationToken::new(), std::io::sink(), |target| {
        Ok(Logins::Shared(Arc::new(Cache::new(Source::Fixed(Fixed::new(&target.name, postgres::PASSWORD))))))
    });
    let relay = relay.await.unwrap();
    let password = relay.shared.local_password.as_ref().unwrap().reveal();
    #[expect(clippy::disallowed_methods, reason = "joined by the test")]
    let serving = tokio::spawn(relay.serve());
    (drain, serving, password)
}

#[tokio::test(flavor = "multi_thread")]
async fn postgresql_clients_show_the_local_password() {
    let folder = tempfile::tempdir().unwrap();
    let database = database(folder.path()).await;
    let listen = Ipv4Addr::new(127, 63, 100, 6);
    let mut config = config(listen, &database, &["scram_user"]);
    config.client_tls = Some(client_certificate(folder.path()));
    let (drain, serving, password) = serve_with_door(config).await;
    // Without TLS, and with it: then the proof is bound to the relay's certificate.
    for options in ["sslmode=disable", "sslmode=require", "sslmode=require channel_binding=require"] {
        let right = psql(listen, 5432, &format!("{options} password={password}")).await;
        assert_eq!(right, (true, "scram_user".to_owned()), "{options}");
        let (ok, said) = psql(listen, 5432, &format!("{options} password={}", password.to_uppercase())).await;
        assert!(!ok && said.contains("access denied, the password is not the one of this bastion task"), "{said}");
        assert!(!said.contains(&password), "{said}");
        let (ok, said) = psql(listen, 5432, options).await;
        assert!(!ok && said.contains("no password supplied"), "{said}");
    }
    let parameters = |password: &str| format!("host={listen} port=5432 user=anyone password={password}");
    let Err(refused) = tokio_postgres::connect(&parameters("guess"), tokio_postgres::NoTls).await else {
        panic!("a guess came in")
    };
    assert_eq!(refused.code(), Some(&tokio_postgres::error::SqlState::INVALID_PASSWORD), "{refused}");
    let (client, connection) = tokio_postgres::connect(&parameters(&password), tokio_postgres::NoTls).await.unwrap();
    #[expect(clippy::disallowed_methods, reason = "ends with the client")]
    tokio::spawn(connection);
    // A cancel request has its own key, and no password.
    let sleeping = client.simple_query("select pg_sleep(60)");
    let cancelling = async {
        let active =
            "select count(*) from pg_stat_activity where query like 'select pg_sleep(60)%' and state = 'active'";
        let (other, connection) = tokio_postgres::connect(&parameters(&password), tokio_postgres::NoTls).await.unwrap();
        #[expect(clippy::disallowed_methods, reason = "ends with the client")]
        tokio::spawn(connection);
        while other.query_one(active, &[]).await.unwrap().get::<_, i64>(0) == 0 {}
        client.cancel_token().cancel_query(tokio_postgres::NoTls).await.unwrap();
    };
    let (slept, ()) = tokio::join!(sleeping, cancelling);
    assert_eq!(slept.unwrap_err().code(), Some(&tokio_postgres::error::SqlState::QUERY_CANCELED));
    drop(client);
    drain.cancel();
    serving.await.unwrap();
    database.stop().await;
}

async fn mysql(listen: Ipv4Addr, port: u16) -> Result<mysql_async::Conn, mysql_async::Error> {
    mysql_with(listen, port, None).await
}

async fn mysql_with(
    listen: Ipv4Addr,
    port: u16,
    password: Option<&str>,
) -> Result<mysql_async::Conn, mysql_async::Error> {
    let options = mysql_async::OptsBuilder::default().ip_or_hostname(listen.to_string()).tcp_port(port);
    let options = options.user(Some("anyone")).pass(password).prefer_socket(false);
    mysql_async::Conn::new(options).await
}

#[tokio::test(flavor = "multi_thread")]
async fn mysql_clients_show_the_local_password() {
    let folder = tempfile::tempdir().unwrap();
    let database = MariaDb::start(folder.path(), &verifier(folder.path()), Flaws::default()).await.unwrap();
    let listen = Ipv4Addr::new(127, 63, 100, 7);
    let users = ["native_user"];
    let mut config = config_for(Engine::Mysql, mariadb::HOST, database.port, &database.ca_file, listen, &users);
    config.client_tls = Some(client_certificate(folder.path()));
    let (drain, serving, password) = serve_with_door(config).await;
    for plugin in ["mysql_native_password", "caching_sha2_password"] {
        for tls in ["--ssl", "--skip-ssl"] {
            let login = async |password: &str| {
                let mut client = Command::new("mariadb");
                client.args(["--no-defaults", "-N", "-B", "-u", "anyone", "-h", &listen.to_string(), "-P", "3306"]);
                client.args([tls, &format!("--default-auth={plugin}"), &format!("--password={password}")]);
                let output = client.args(["-e", "select current_user()"]).kill_on_drop(true).output().await.unwrap();
                let text = [output.stdout, output.stderr].concat();
                String::from_utf8_lossy(&text).trim().to_owned()
            };
            assert_eq!(login(&password).await, "native_user@127.0.0.1", "{plugin} {tls}");
            for wrong in ["", "guess", &password[1..]] {
                let said = login(wrong).await;
                assert!(said.contains("ERROR 1045 (28000): Access denied for user '"), "{plugin} {tls} {said}");
            }
        }
    }
    // What the client says itself about its connection.
    for (tls, part) in [("--ssl", "Cipher in use is TLS_"), ("--skip-ssl", "Not in use")] {
        let mut client = Command::new("mariadb");
        client.args(["--no-defaults", "-u", "anyone", "-h", &listen.to_string(), "-P", "3306", tls, "-e", "status"]);
        let output = client.arg(format!("--password={password}")).kill_on_drop(true).output().await.unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(said.lines().any(|line| line.starts_with("SSL:") && line.contains(part)), "{said}");
    }
    for wrong in [None, Some("guess")] {
        let refused = mysql_with(listen, 3306, wrong).await.unwrap_err();
        assert!(matches!(&refused, mysql_async::Error::Server(error) if error.code == 1045), "{refused}");
    }
    // A pool that takes its session anew shows it again.
    let mut client = mysql_with(listen, 3306, Some(&password)).await.unwrap();
    let change = |password: &str| mysql_async::ChangeUserOpts::default().with_pass(Some(password.to_owned()));
    client.change_user(change(&password)).await.unwrap();
    let who: Option<String> = client.query_first("select current_user()").await.unwrap();
    assert_eq!(who, Some("native_user@127.0.0.1".to_owned()));
    let refused = client.change_user(change("guess")).await.unwrap_err();
    assert!(matches!(&refused, mysql_async::Error::Server(error) if error.code == 1045), "{refused}");
    drop(client);
    drain.cancel();
    serving.await.unwrap();
    database.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_password_plugin_of_mariadb_logs_in_and_a_wrong_password_is_never_shown() {
    let folder = tempfile::tempdir().unwrap();
    let database = MariaDb::start(folder.path(), &verifier(folder.path()), Flaws::default()).await.unwrap();
    let users = ["native_user", "ed25519_user", "either_user"];
    let of = |listen| config_for(Engine::Mysql, mariadb::HOST, database.port, &database.ca_file, listen, &users);
    let listen = Ipv4Addr::new(127, 63, 100, 4);
    let mut limited = of(listen);
    limited.targets[0].max_connections = Some(1);
    let (drain, serving) = serve(limited, mariadb::PASSWORD).await;
    for (port, user) in (3306..).zip(users) {
        let mut client = mysql(listen, port).await.unwrap();
        let who: Option<String> = client.query_first("select current_user()").await.unwrap();
        assert_eq!(who, Some(format!("{user}@127.0.0.1")));
        if port == 3306 {
            let full = mysql(listen, port).await.unwrap_err().to_string();
            assert!(
                full.contains("1040") && full.contains("serves 1 connections to target native_user at once"),
                "{full}"
            );
        }
        client.disconnect().await.unwrap();
    }
    drain.cancel();
    serving.await.unwrap();
    let listen = Ipv4Addr::new(127, 63, 100, 5);
    let (drain, serving) = serve(of(listen), "S3CRET").await;
    for port in 3306..=3308 {
        let refused = mysql(listen, port).await.unwrap_err().to_string();
        assert!(refused.contains("Access denied") && !refused.contains("S3CRET"), "{refused}");
    }
    drain.cancel();
    serving.await.unwrap();
    database.stop().await;
}
