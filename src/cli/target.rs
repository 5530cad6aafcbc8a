//! What the relay says that it serves, and the connect card for each of it.

use std::str::FromStr as _;
use std::time::Duration;

use anyhow::{Context as _, bail};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::cli::client_command;
use crate::cli::error::CommandError;
use crate::cli::escape::line;
use crate::cli::session::Sessions;
use crate::cli::ui::Ui;
use crate::tunnel::Tunnel;
use crate::types::Engine;

const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const ANSWER_MAX: u64 = 1 << 20;

/// The answer of `/v1/targets`, as far as the launcher uses it. Unknown fields come from newer relays.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Relay {
    pub(super) version: String,
    /// The environment and the access level that the task definition is for; very old relays do not say.
    pub(super) env: Option<String>,
    pub(super) access: Option<String>,
    pub(super) idle_stop_seconds: Option<u64>,
    /// Whether a caller must prove who they are; older relays do not ask.
    pub(super) identity: Option<String>,
    /// Whether clients must show a password, which a proven caller is told.
    #[serde(default)]
    pub(super) local_password: bool,
    pub(super) targets: Vec<Served>,
    /// Older relays serve all that they are configured with, or do not start.
    #[serde(default)]
    pub(super) unavailable: Vec<Unavailable>,
}

/// A target that the relay is configured with and does not serve.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Unavailable {
    pub(super) name: String,
    /// What has happened and what to do.
    pub(super) problem: String,
}

/// One target of the relay.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Served {
    pub(super) name: String,
    pub(super) engine: String,
    /// `None`, as the port: the secret that names it could not be read.
    pub(super) host: Option<String>,
    pub(super) port: Option<u16>,
    pub(super) database: Option<String>,
    pub(super) db_user: Option<String>,
    /// Older relays do not say.
    #[serde(default)]
    pub(super) read_only: bool,
    /// Clients may send files of this computer.
    #[serde(default)]
    pub(super) local_infile: bool,
    #[serde(default)]
    pub(super) credential: String,
    /// Whom Vault lets in, where it makes the user: `task` or `caller`.
    #[serde(default)]
    login: Option<String>,
    /// Why the relay cannot log in just now.
    #[serde(default)]
    pub(super) problem: Option<String>,
    pub(super) local_port: Option<u16>,
}

/// What clients show at a local port.
#[derive(Debug, Clone)]
pub(super) enum Door {
    /// Nothing.
    Open,
    Password(SecretString),
    /// A password that only callers know who have proven who they are.
    Unknown,
}

/// Asks the relay through the tunnel whether it is ready and what it serves; waits for it to come up.
///
/// # Errors
/// If it does not come up, or is not the relay of what was asked for.
pub(super) async fn ask(
    ui: &Ui,
    tunnel: &Tunnel,
    sessions: &Sessions,
    patience: Duration,
) -> Result<Relay, CommandError> {
    let phase = ui.phase("relay");
    let asking = async {
        loop {
            match get(tunnel, "/readyz").await {
                Ok((200, _)) => break,
                Ok(_) | Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
        said(tunnel).await
    };
    let Ok(answer) = tokio::time::timeout(patience, asking).await else {
        let message = anyhow::anyhow!("the relay in the task is not ready after {} s", patience.as_secs());
        return Err(CommandError::failed(message));
    };
    let relay = answer?;
    if !sessions.is_expected(&relay)? {
        ui.warn("  ! the relay is older and does not say which environment and access level it is for: that cannot be checked");
    }
    let noun = if relay.targets.len() == 1 { "target" } else { "targets" };
    let unavailable = match relay.unavailable.len() {
        0 => String::new(),
        count => format!(", {count} not served"),
    };
    ui.done(phase, &format!("version {}, {} {noun}{unavailable}", relay.version, relay.targets.len()));
    Ok(relay)
}

/// What the relay says about itself.
pub(super) async fn said(tunnel: &Tunnel) -> anyhow::Result<Relay> {
    let (status, body) = get(tunnel, "/v1/targets").await?;
    if status != 200 {
        bail!("the relay answered /v1/targets with HTTP status {status}");
    }
    serde_json::from_slice(&body).context("the relay's list of targets does not parse; is it a newer version?")
}

/// One small GET: status and body.
pub(super) async fn get(tunnel: &Tunnel, path: &str) -> anyhow::Result<(u16, Vec<u8>)> {
    exchange(tunnel, &format!("GET {path} HTTP/1.1\r\nHost: bastion\r\nConnection: close\r\n\r\n")).await
}

/// One small POST of JSON: status and body.
pub(super) async fn post(tunnel: &Tunnel, path: &str, json: &str) -> anyhow::Result<(u16, Vec<u8>)> {
    let length = json.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: bastion\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    );
    exchange(tunnel, &format!("{head}{json}")).await
}

pub(super) async fn exchange(tunnel: &Tunnel, request: &str) -> anyhow::Result<(u16, Vec<u8>)> {
    let mut stream = tunnel.connect(ANSWER_TIMEOUT)?;
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    tokio::time::timeout(ANSWER_TIMEOUT, stream.take(ANSWER_MAX).read_to_end(&mut answer)).await??;
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").context("the answer is not HTTP")?;
    let body = answer.split_off(end.saturating_add(4));
    let head = String::from_utf8_lossy(&answer);
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).context("the answer is not HTTP")?;
    Ok((status, body))
}

impl Unavailable {
    /// The card for people.
    pub(super) fn card(&self) -> String {
        format!("{}  (not served)\n  problem   {}", line(&self.name), line(&self.problem))
    }

    /// The card for machines.
    pub(super) fn json(&self) -> Value {
        json!({"name": self.name, "problem": self.problem})
    }
}

impl Served {
    pub(super) fn engine(&self) -> Engine {
        // What this version does not know is carried as bytes.
        Engine::from_str(&self.engine).unwrap_or(Engine::Tcp)
    }

    /// The local port to wish for: the configured one, otherwise ten thousand above the engine's own.
    pub(super) fn wished_port(&self) -> u16 {
        self.local_port.unwrap_or_else(|| {
            let base = self.engine().default_port().or(self.port).unwrap_or(1024);
            base.checked_add(10_000).unwrap_or(base)
        })
    }

    /// The line that connects a command-line client, if a shell can be given one.
    fn command(&self, port: u16, door: &Door) -> Option<String> {
        let user = self.db_user.as_deref().unwrap_or("anyone");
        let database = self.database.as_deref();
        match self.engine() {
            Engine::Postgres => {
                let shows_password = self.is_logged_in() && !matches!(door, Door::Open);
                client_command::psql(port, user, database, shows_password)
            }
            Engine::Mysql => client_command::mysql(port, user, database),
            Engine::Tcp => None,
        }
    }

    /// Where the database is.
    fn upstream(&self) -> String {
        match (&self.host, self.port) {
            (Some(host), Some(port)) => format!("{host}:{port}"),
            (Some(host), None) => host.clone(),
            (None, _) => "the address in its secret".to_owned(),
        }
    }

    /// Whether the relay logs in, so that clients need no password of the database.
    fn is_logged_in(&self) -> bool {
        self.engine() != Engine::Tcp && (self.db_user.is_some() || self.credential != "client")
    }

    /// What a person types into the login of their client.
    fn login(&self, door: &Door) -> Option<String> {
        if !self.is_logged_in() {
            return (self.engine() != Engine::Tcp).then(|| "your own database user and password".to_owned());
        }
        let password = match door {
            Door::Open => "empty password",
            Door::Password(password) => &format!("password {}", password.expose_secret()),
            Door::Unknown => "a password that the relay tells only callers it knows",
        };
        let user = self.db_user.as_ref().map(|user| format!(" as {user}")).unwrap_or_default();
        let user =
            if self.login.as_deref() == Some("caller") { " with a user that Vault makes for you" } else { &user };
        Some(format!("any user, {password}; the relay logs in{user}"))
    }

    /// The card for people: one line for each value, whatever the relay says.
    pub(super) fn card(&self, port: u16, door: &Door) -> String {
        let head = format!("{}  ({} at {})", self.name, self.engine, self.upstream());
        let mut lines = vec![line(&head), format!("  address   localhost:{port}")];
        let mut add = |label: &str, value: &str| lines.push(format!("  {label:<9} {}", line(value)));
        if let Some(login) = self.login(door) {
            add("login", &login);
        }
        if self.read_only && self.is_logged_in() {
            add("session", "transactions are read-only");
        }
        if self.local_infile {
            add("files", "LOAD DATA LOCAL may send the database files of this computer");
        }
        if let Some(database) = &self.database {
            add("database", database);
        }
        if let Some(problem) = &self.problem {
            add("problem", problem);
        }
        if let Some(command) = self.command(port, door) {
            add("command", &command);
        }
        lines.join("\n")
    }

    /// The card for machines.
    pub(super) fn json(&self, port: u16, door: &Door) -> Value {
        let password = match door {
            Door::Password(password) if self.is_logged_in() => Some(password.expose_secret()),
            _ => None,
        };
        json!({
            "name": self.name, "engine": self.engine, "host": "127.0.0.1", "port": port, "database": self.database,
            "db_user": self.db_user, "password": password, "upstream": self.upstream(), "problem": self.problem, "command": self.command(port, door),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn served() -> Served {
        serde_json::from_value(json!({
            "name": "orders", "engine": "postgres", "host": "orders.example.com", "port": 5432, "database": "orders",
            "db_user": "db_read", "local_port": null, "something": "newer"
        }))
        .unwrap()
    }

    #[test]
    fn a_card_has_all_that_a_client_asks_for() {
        insta::assert_snapshot!(served().card(15432, &Door::Open), @r"
        orders  (postgres at orders.example.com:5432)
          address   localhost:15432
          login     any user, empty password; the relay logs in as db_read
          database  orders
          command   psql -h localhost -p 15432 -U db_read -d orders
        ");
    }

    #[test]
    fn a_secret_that_cannot_be_read_is_on_the_card() {
        let problem = Some("secret prod/orders: it is scheduled for deletion".to_owned());
        let served = Served { host: None, port: None, db_user: None, credential: "vault".into(), problem, ..served() };
        insta::assert_snapshot!(served.card(15432, &Door::Open), @r"
        orders  (postgres at the address in its secret)
          address   localhost:15432
          login     any user, empty password; the relay logs in
          database  orders
          problem   secret prod/orders: it is scheduled for deletion
          command   psql -h localhost -p 15432 -U anyone -d orders
        ");
    }

    #[test]
    fn what_is_not_served_has_a_card_and_older_relays_know_of_none() {
        let relay = |more: &str| {
            let answer = format!(r#"{{"version":"1","idle_stop_seconds":null,"identity":null,"targets":[]{more}}}"#);
            serde_json::from_str::<Relay>(&answer).unwrap()
        };
        assert!(relay("").unavailable.is_empty());
        let found = relay(r#","unavailable":[{"name":"orders","problem":"secret s: it names no engine","new":1}]"#);
        insta::assert_snapshot!(found.unavailable[0].card(), @r"
        orders  (not served)
          problem   secret s: it names no engine
        ");
        assert_eq!(found.unavailable[0].json(), json!({"name": "orders", "problem": "secret s: it names no engine"}));
    }

    #[test]
    fn the_password_of_the_task_is_on_the_card_and_nowhere_else() {
        let door = Door::Password("0123abcd".to_owned().into());
        let card = served().card(15432, &door);
        assert!(card.contains("  login     any user, password 0123abcd; the relay logs in as db_read\n"), "{card}");
        assert_eq!(served().json(15432, &door)["password"], "0123abcd");
        assert!(!format!("{door:?}").contains("0123"));
        // Only where the relay takes the password; the client's own may be asked for as the database likes.
        assert!(served().command(1, &door).unwrap().starts_with("PGREQUIREAUTH=scram-sha-256 psql "));
        let own = Served { db_user: None, credential: "client".into(), ..served() };
        assert!(
            own.card(15432, &door).contains("your own database user") && own.json(15432, &door)["password"].is_null()
        );
        assert!(own.command(1, &door).unwrap().starts_with("psql "));
        let unknown = served().card(15432, &Door::Unknown);
        assert!(unknown.contains("a password that the relay tells only callers it knows; the relay"), "{unknown}");
        assert!(served().json(15432, &Door::Unknown)["password"].is_null());
    }

    #[test]
    fn a_login_as_the_caller_is_said() {
        let served = Served { db_user: None, credential: "vault".into(), login: Some("caller".into()), ..served() };
        let card = served.card(15432, &Door::Open);
        assert!(card.contains("the relay logs in with a user that Vault makes for you\n"), "{card}");
    }

    #[test]
    fn ports_are_stable() {
        let read_only = Served { read_only: true, ..served() };
        assert!(read_only.card(15432, &Door::Open).contains("  session   transactions are read-only\n"));
        let files = Served { local_infile: true, ..served() };
        assert!(
            files.card(13306, &Door::Open).contains("\n  files     LOAD DATA LOCAL may send the database files of")
        );
        assert_eq!(served().wished_port(), 15432);
        assert_eq!(Served { engine: "mysql".into(), ..served() }.wished_port(), 13306);
        assert_eq!(Served { engine: "new".into(), port: Some(60_000), ..served() }.wished_port(), 60_000);
        assert_eq!(Served { local_port: Some(7), ..served() }.wished_port(), 7);
    }

    proptest! {
        #[test]
        fn a_card_is_the_same_lines_whatever_a_relay_says(
            texts in prop::collection::vec("[a-z =\u{1b}\u{9b}\u{7}\n\r\u{202e}'\";$`-]{0,12}|\\PC{0,8}|(?s:.{0,8})", 6),
            engine in prop::sample::select(vec!["postgres", "mysql", "tcp", "\n\u{1b}"]),
        ) {
            let [name, host, database, user, problem, version] = <[String; 6]>::try_from(texts).unwrap();
            let all = json!({
                "name": name, "engine": engine, "host": host, "port": 1, "database": database, "db_user": user,
                "problem": problem, "read_only": true, "credential": version, "local_port": null,
            });
            let served: Served = serde_json::from_value(all).unwrap();
            let card = served.card(15432, &Door::Password(name.clone().into()));
            let labels: Vec<&str> = card.split('\n').skip(1).map(|line| line.get(..12).unwrap()).collect();
            let is_tcp = served.engine() == Engine::Tcp;
            let mut wanted = vec!["  address   "];
            wanted.extend((!is_tcp).then_some(["  login     ", "  session   "]).into_iter().flatten());
            wanted.extend(["  database  ", "  problem   "]);
            wanted.extend(served.command(1, &Door::Open).map(|_| "  command   "));
            prop_assert_eq!(labels, wanted);
            prop_assert_eq!(crate::cli::escape::lines(&card), card);
            let unavailable = Unavailable { name, problem };
            prop_assert_eq!(unavailable.card().lines().count(), 2);
            prop_assert_eq!(crate::cli::escape::lines(&unavailable.card()), unavailable.card());
        }
    }
}
