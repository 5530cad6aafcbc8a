//! The connect card of each target that the relay serves, and of each that it does not.

use std::str::FromStr as _;

use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Value, json};

use crate::api::targets::{Target, Unavailable};
use crate::cli::client_command;
use crate::cli::escape::line;
use crate::types::Engine;

/// What clients show at a local port.
#[derive(Debug, Clone)]
pub(super) enum Door {
    /// Nothing.
    Open,
    Password(SecretString),
    /// A password that only callers know who have proven who they are.
    Unknown,
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

impl Target {
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

    fn served() -> Target {
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
        let served = Target { host: None, port: None, db_user: None, credential: "vault".into(), problem, ..served() };
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
            serde_json::from_str::<crate::api::targets::Relay>(&answer).unwrap()
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
        let own = Target { db_user: None, credential: "client".into(), ..served() };
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
        let served = Target { db_user: None, credential: "vault".into(), login: Some("caller".into()), ..served() };
        let card = served.card(15432, &Door::Open);
        assert!(card.contains("the relay logs in with a user that Vault makes for you\n"), "{card}");
    }

    #[test]
    fn ports_are_stable() {
        let read_only = Target { read_only: true, ..served() };
        assert!(read_only.card(15432, &Door::Open).contains("  session   transactions are read-only\n"));
        let files = Target { local_infile: true, ..served() };
        assert!(
            files.card(13306, &Door::Open).contains("\n  files     LOAD DATA LOCAL may send the database files of")
        );
        assert_eq!(served().wished_port(), 15432);
        assert_eq!(Target { engine: "mysql".into(), ..served() }.wished_port(), 13306);
        assert_eq!(Target { engine: "new".into(), port: Some(60_000), ..served() }.wished_port(), 60_000);
        assert_eq!(Target { local_port: Some(7), ..served() }.wished_port(), 7);
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
            let served: Target = serde_json::from_value(all).unwrap();
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
