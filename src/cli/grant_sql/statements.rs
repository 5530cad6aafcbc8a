//! The statements for one target.
//!
//! RDS and Aurora User Guides, "Creating a database account using IAM authentication"; Vault documentation, "Databases",
//! PostgreSQL and MySQL secrets engines.

use std::fmt;

use crate::cli::escape;
use crate::types::{CredentialConfig, Engine, Target, VaultAs};

/// PostgreSQL 15 no longer lets everybody create tables in `public` (release notes, E.15.2).
const PUBLIC_IS_CLOSED: u16 = 15;

/// The lines. Names come in through [`Script::note`], or quoted into [`Script::run`].
#[derive(Default)]
struct Script(Vec<String>);

impl Script {
    /// A comment: one line, whatever is in it.
    fn note(&mut self, text: fmt::Arguments<'_>) {
        self.0.push(format!("-- {}", escape::line(&text.to_string())));
    }

    /// A statement, whose names are [`Identifier`], [`User`] or [`SchemaPattern`].
    fn run(&mut self, statement: fmt::Arguments<'_>) {
        self.0.push(format!("{statement};"));
    }
}

/// SQL for an administrator, with comments; it ends with a line end.
pub(super) fn script(target: &Target, access: &str, version: Option<u16>) -> String {
    let Target { name, engine, .. } = target;
    let mut script = Script::default();
    script.note(format_args!("{name}: {engine} at {}, access level {access}", target.endpoint));
    match &target.credential {
        CredentialConfig::Client => script.note(format_args!("Clients log in themselves: there is nothing to grant.")),
        CredentialConfig::RdsIam { user, .. } => {
            script.note(format_args!("The user logs in with IAM tokens of the task role."));
            let user = User(*engine, user);
            match engine {
                Engine::Mysql => script.run(format_args!(
                    "CREATE USER {user} IDENTIFIED WITH AWSAuthenticationPlugin AS 'RDS' REQUIRE SSL"
                )),
                Engine::Postgres | Engine::Tcp => {
                    script.run(format_args!("CREATE USER {user} WITH LOGIN"));
                    script.run(format_args!("GRANT rds_iam TO {user}"));
                }
            }
            grants(&mut script, target, &user, version, true);
        }
        CredentialConfig::SecretsManager { secret_id, .. } => {
            script.note(format_args!("User and password are those of secret {secret_id}: put them in place."));
            let user = User(*engine, "USER");
            match engine {
                Engine::Mysql => script.run(format_args!("CREATE USER {user} IDENTIFIED BY 'PASSWORD' REQUIRE SSL")),
                Engine::Postgres | Engine::Tcp => {
                    script.run(format_args!("CREATE USER {user} WITH LOGIN PASSWORD 'PASSWORD'"));
                }
            }
            grants(&mut script, target, &user, version, true);
        }
        CredentialConfig::Vault(vault) => {
            let (mount, role) = vault.creds.split_once("/creds/").unwrap_or(("database", &vault.creds));
            script.note(format_args!("Vault makes the users. Keep what follows as a file and write it into Vault:"));
            script.note(format_args!(
                "  vault write {mount}/roles/{role} db_name=CONNECTION default_ttl=1h max_ttl=8h creation_statements=@FILE"
            ));
            if vault.login == VaultAs::Caller {
                let role = vault.role.as_deref().unwrap_or("named as each one's role of IAM");
                script.note(format_args!(
                    "People log in to Vault as themselves: the role {role} of auth/{} says who, their own policies say what.",
                    vault.mount
                ));
            }
            let user = User(*engine, "{{name}}");
            match engine {
                Engine::Mysql => {
                    script.run(format_args!("CREATE USER {user} IDENTIFIED BY '{{{{password}}}}' REQUIRE SSL"));
                }
                Engine::Postgres | Engine::Tcp => script.run(format_args!(
                    "CREATE ROLE {user} WITH LOGIN PASSWORD '{{{{password}}}}' VALID UNTIL '{{{{expiration}}}}'"
                )),
            }
            // Default privileges would keep Vault from dropping the user.
            grants(&mut script, target, &user, version, false);
        }
    }
    script.0.push(String::new());
    script.0.join("\n")
}

/// What the access level needs, for a user that stays or, without `lasting`, for one that is dropped soon.
fn grants(script: &mut Script, target: &Target, user: &User<'_>, version: Option<u16>, lasting: bool) {
    let rights = if target.read_only { "SELECT" } else { "SELECT, INSERT, UPDATE, DELETE" };
    if target.engine == Engine::Mysql {
        if target.database.is_none() {
            script.note(format_args!("No database is configured: put its name in place."));
        }
        let database = SchemaPattern(target.database.as_deref().unwrap_or("DATABASE"));
        script.run(format_args!("GRANT {rights} ON {database}.* TO {user}"));
        return;
    }
    match &target.database {
        Some(database) => {
            script.note(format_args!("From here on in database {database}."));
            script.run(format_args!("GRANT CONNECT ON DATABASE {} TO {user}", Identifier(database)));
        }
        None => script.note(format_args!("From here on in each database that it may use.")),
    }
    script.run(format_args!("GRANT USAGE ON SCHEMA public TO {user}"));
    script.run(format_args!("GRANT {rights} ON ALL TABLES IN SCHEMA public TO {user}"));
    if !target.read_only {
        script.run(format_args!("GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA public TO {user}"));
    }
    if !lasting {
        return;
    }
    script
        .note(format_args!("Tables that this administrator makes later; for those of another owner: FOR ROLE OWNER."));
    script.run(format_args!("ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT {rights} ON TABLES TO {user}"));
    if !target.read_only {
        script
            .run(format_args!("ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT USAGE, SELECT ON SEQUENCES TO {user}"));
    }
    let close = "REVOKE CREATE ON SCHEMA public FROM PUBLIC";
    match version {
        Some(version) if version >= PUBLIC_IS_CLOSED => {}
        Some(_) => {
            script.note(format_args!("Before PostgreSQL 15 everybody may create tables in public."));
            script.run(format_args!("{close}"));
        }
        None => script.note(format_args!("Before PostgreSQL 15 also: {close};")),
    }
}

/// PostgreSQL manual 4.1.1, quoted identifiers.
struct Identifier<'a>(&'a str);

impl fmt::Display for Identifier<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.replace('"', "\"\""))
    }
}

/// A user of the engine; for MySQL with its host (MySQL Reference Manual, "Specifying Account Names" and "String Literals").
struct User<'a>(Engine, &'a str);

impl fmt::Display for User<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self(Engine::Mysql, name) => write!(f, "'{}'@'%'", name.replace('\\', "\\\\").replace('\'', "''")),
            Self(Engine::Postgres | Engine::Tcp, name) => Identifier(name).fmt(f),
        }
    }
}

/// In GRANT, `_` and `%` in the name of a database are wildcards (MySQL Reference Manual, "GRANT Statement").
struct SchemaPattern<'a>(&'a str);

impl fmt::Display for SchemaPattern<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let escaped = self.0.replace('\\', "\\\\").replace('_', "\\_").replace('%', "\\%").replace('`', "``");
        write!(f, "`{escaped}`")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::{Endpoint, VaultConfig};

    fn target(engine: Engine, read_only: bool, credential: CredentialConfig) -> Target {
        Target {
            name: "orders".to_owned(),
            engine,
            endpoint: Endpoint::FromSecret { host: Some("orders.example.com".to_owned()), port: engine.default_port() },
            hostaddr: None,
            database: Some("shop_eu".to_owned()),
            read_only,
            local_infile: false,
            max_connections: None,
            local_port: None,
            relay_port: 5432,
            credential,
        }
    }

    fn iam() -> CredentialConfig {
        CredentialConfig::RdsIam { user: "db_read".to_owned(), region: None }
    }

    #[test]
    fn postgres_with_iam() {
        insta::assert_snapshot!(script(&target(Engine::Postgres, true, iam()), "read", None), @r#"
        -- orders: postgres at orders.example.com:5432, access level read
        -- The user logs in with IAM tokens of the task role.
        CREATE USER "db_read" WITH LOGIN;
        GRANT rds_iam TO "db_read";
        -- From here on in database shop_eu.
        GRANT CONNECT ON DATABASE "shop_eu" TO "db_read";
        GRANT USAGE ON SCHEMA public TO "db_read";
        GRANT SELECT ON ALL TABLES IN SCHEMA public TO "db_read";
        -- Tables that this administrator makes later; for those of another owner: FOR ROLE OWNER.
        ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO "db_read";
        -- Before PostgreSQL 15 also: REVOKE CREATE ON SCHEMA public FROM PUBLIC;
        "#);
        let old = script(&target(Engine::Postgres, false, iam()), "write", Some(14));
        assert!(old.contains("\nREVOKE CREATE ON SCHEMA public FROM PUBLIC;\n") && old.contains("SEQUENCES"), "{old}");
        assert!(!script(&target(Engine::Postgres, true, iam()), "read", Some(16)).contains("REVOKE"));
    }

    #[test]
    fn mysql_with_iam_is_the_plugin_of_rds() {
        insta::assert_snapshot!(script(&target(Engine::Mysql, false, iam()), "write", None), @r#"
        -- orders: mysql at orders.example.com:3306, access level write
        -- The user logs in with IAM tokens of the task role.
        CREATE USER 'db_read'@'%' IDENTIFIED WITH AWSAuthenticationPlugin AS 'RDS' REQUIRE SSL;
        GRANT SELECT, INSERT, UPDATE, DELETE ON `shop\_eu`.* TO 'db_read'@'%';
        "#);
    }

    #[test]
    fn vault_gets_creation_statements_without_what_would_outlive_the_user() {
        let vault = CredentialConfig::Vault(Box::new(VaultConfig {
            address: "https://vault.example.com:8200".to_owned(),
            login: VaultAs::Caller,
            mount: "aws".to_owned(),
            role: Some("bastion-read".to_owned()),
            creds: "prod-db/creds/read".to_owned(),
            namespace: None,
            ca_file: None,
            server_id: None,
            sts_region: None,
        }));
        let made = script(&target(Engine::Postgres, true, vault.clone()), "read", None);
        assert!(made.contains("vault write prod-db/roles/read db_name="), "{made}");
        assert!(
            made.contains(
                "\nCREATE ROLE \"{{name}}\" WITH LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}';\n"
            )
        );
        assert!(!made.contains("ALTER DEFAULT"), "{made}");
        assert!(
            made.contains("\n-- People log in to Vault as themselves: the role bastion-read of auth/aws says who"),
            "{made}"
        );
        let made = script(&target(Engine::Mysql, true, vault), "read", None);
        assert!(made.contains("\nGRANT SELECT ON `shop\\_eu`.* TO '{{name}}'@'%';\n"), "{made}");
    }

    #[test]
    fn names_cannot_leave_their_quotes_or_comments() {
        assert_eq!(Identifier("a\"; drop table x; --").to_string(), "\"a\"\"; drop table x; --\"");
        assert_eq!(User(Engine::Mysql, "a'\\").to_string(), "'a''\\\\'@'%'");
        assert_eq!(SchemaPattern("a`b").to_string(), "`a``b`");
        let secret = CredentialConfig::SecretsManager { secret_id: "x\ndrop table y;".to_owned(), region: None };
        let made = script(&target(Engine::Postgres, true, secret), "read", None);
        assert!(made.contains("-- User and password are those of secret x\\ndrop table y;: put"), "{made}");
    }

    /// A script as its database reads it: comments are gone, and what is quoted is only told by its quotes. Each quoted text
    /// as the database takes it is beside that.
    fn read(script: &str, engine: Engine) -> (String, Vec<String>) {
        let mysql = engine == Engine::Mysql;
        let (mut statements, mut names) = (String::new(), Vec::new());
        let mut chars = script.chars().peekable();
        while let Some(c) = chars.next() {
            let next = chars.peek().copied();
            match c {
                '-' if next == Some('-') => while chars.next_if(|c| !matches!(c, '\n' | '\r')).is_some() {},
                '#' if mysql => panic!("another comment in {script}"),
                '/' if next == Some('*') => panic!("another comment in {script}"),
                '\'' | '"' | '`' => {
                    let mut name = String::new();
                    loop {
                        match chars.next() {
                            Some(end) if end == c => match chars.next_if_eq(&c) {
                                Some(doubled) => name.push(doubled),
                                None => break,
                            },
                            Some('\\') if mysql && c == '\'' => name.extend(chars.next()),
                            Some(inside) => name.push(inside),
                            None => panic!("an open quote in {script}"),
                        }
                    }
                    statements.extend([c, c]);
                    names.push(name);
                }
                c => statements.push(c),
            }
        }
        (statements, names)
    }

    /// Credentials with `names` wherever a name is.
    fn credentials(names: &[String; 4]) -> Vec<CredentialConfig> {
        let [user, secret_id, role, path] = names.clone();
        let vault = |login, creds: String, role| {
            CredentialConfig::Vault(Box::new(VaultConfig {
                address: "https://vault.example.com:8200".to_owned(),
                login,
                mount: path.clone(),
                role,
                creds,
                namespace: None,
                ca_file: None,
                server_id: None,
                sts_region: None,
            }))
        };
        vec![
            CredentialConfig::Client,
            CredentialConfig::RdsIam { user, region: None },
            CredentialConfig::SecretsManager { secret_id, region: None },
            vault(VaultAs::Caller, format!("{path}/creds/{role}"), Some(role.clone())),
            vault(VaultAs::Caller, path.clone(), None),
            vault(VaultAs::Task, role.clone(), Some(role)),
        ]
    }

    fn hostile() -> impl Strategy<Value = String> {
        let piece = prop::sample::select(vec![
            "\n",
            "\r",
            "\u{85}",
            "\u{2028}",
            "\0",
            "'",
            "''",
            "\"",
            "`",
            "\\",
            "\\'",
            "--",
            "-- ",
            "#",
            "/*",
            "*/",
            ";",
            "ALTER ROLE eve SUPERUSER;",
            "$$",
            "_",
            "%",
            "{{name}}",
            "\\! touch x",
            "é",
            " ",
            "orders",
        ]);
        prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn no_name_adds_or_changes_a_statement(
            names in [hostile(), hostile(), hostile(), hostile()],
            place in [hostile(), hostile(), hostile()],
            database in prop::option::of(hostile()),
            read_only in any::<bool>(),
            version in prop::option::of(14..17_u16),
        ) {
            let plain = ["u", "s", "r", "p"].map(str::to_owned);
            for engine in [Engine::Postgres, Engine::Mysql] {
                for (with, without) in credentials(&names).into_iter().zip(credentials(&plain)) {
                    let user = match &with {
                        CredentialConfig::RdsIam { user, .. } => user.clone(),
                        CredentialConfig::SecretsManager { .. } => "USER".to_owned(),
                        _ => "{{name}}".to_owned(),
                    };
                    let [name, host, access] = place.clone();
                    let odd = Target { name, endpoint: Endpoint::FromSecret { host: Some(host), port: engine.default_port() }, database: database.clone(), ..target(engine, read_only, with) };
                    let plain_database = database.as_ref().map(|_| "d".to_owned());
                    let usual = Target { database: plain_database, ..target(engine, read_only, without) };
                    let (odd, usual) = (script(&odd, &access, version), script(&usual, "read", version));
                    // The configuration has no names with line ends, which an identifier may have.
                    if !user.contains('\n') && database.as_ref().is_none_or(|name| !name.contains('\n')) {
                        prop_assert_eq!(odd.lines().count(), usual.lines().count());
                    }
                    let ((odd, found), (usual, expected)) = (read(&odd, engine), read(&usual, engine));
                    prop_assert_eq!(odd, usual);
                    // And each name is the configured one.
                    for (found, expected) in found.into_iter().zip(expected) {
                        match expected.as_str() {
                            "u" | "USER" | "{{name}}" => prop_assert_eq!(&found, &user),
                            "d" if engine == Engine::Postgres => prop_assert_eq!(Some(&found), database.as_ref()),
                            other if other == "d" || other == "DATABASE" => {}
                            fixed => prop_assert_eq!(&found, fixed),
                        }
                    }
                }
            }
        }
    }
}
