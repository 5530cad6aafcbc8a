//! The statements for one target.
//!
//! RDS and Aurora User Guides, "Creating a database account using IAM authentication"; Vault documentation, "Databases",
//! PostgreSQL and MySQL secrets engines.

use crate::types::{CredentialConfig, Engine, Target, VaultAs};

/// PostgreSQL 15 no longer lets everybody create tables in `public` (release notes, E.15.2).
const PUBLIC_IS_CLOSED: u16 = 15;

/// SQL for an administrator, with comments; it ends with a line end.
pub(super) fn script(target: &Target, access: &str, version: Option<u16>) -> String {
    let Target { name, engine, .. } = target;
    let mut lines = vec![format!("-- {name}: {engine} at {}, access level {access}", target.address())];
    match &target.credential {
        CredentialConfig::Client => {
            lines.push("-- Clients log in themselves: there is nothing to grant.".to_owned());
        }
        CredentialConfig::RdsIam { user } => {
            lines.push("-- The user logs in with IAM tokens of the task role.".to_owned());
            let made = match engine {
                Engine::Mysql => vec![format!(
                    "CREATE USER {} IDENTIFIED WITH AWSAuthenticationPlugin AS 'RDS' REQUIRE SSL;",
                    account(user)
                )],
                Engine::Postgres | Engine::Tcp => {
                    let user = identifier(user);
                    vec![format!("CREATE USER {user} WITH LOGIN;"), format!("GRANT rds_iam TO {user};")]
                }
            };
            lines.extend(made);
            lines.extend(grants(target, &quoted(*engine, user), version, true));
        }
        CredentialConfig::SecretsManager { secret_id, .. } => {
            lines.push(format!("-- User and password are those of secret {}: put them in place.", comment(secret_id)));
            lines.push(match engine {
                Engine::Mysql => "CREATE USER 'USER'@'%' IDENTIFIED BY 'PASSWORD' REQUIRE SSL;".to_owned(),
                Engine::Postgres | Engine::Tcp => "CREATE USER \"USER\" WITH LOGIN PASSWORD 'PASSWORD';".to_owned(),
            });
            lines.extend(grants(target, &quoted(*engine, "USER"), version, true));
        }
        CredentialConfig::Vault(vault) => {
            let (mount, role) = vault.creds.split_once("/creds/").unwrap_or(("database", &vault.creds));
            lines.push("-- Vault makes the users. Keep what follows as a file and write it into Vault:".to_owned());
            lines.push(format!(
                "--   vault write {mount}/roles/{role} db_name=CONNECTION default_ttl=1h max_ttl=8h creation_statements=@FILE"
            ));
            if vault.login == VaultAs::Caller {
                let role = vault.role.as_deref().unwrap_or("named as each one\'s role of IAM");
                lines.push(format!(
                    "-- People log in to Vault as themselves: the role {role} of auth/{} says who, their own policies say what.",
                    vault.mount
                ));
            }
            lines.push(match engine {
                Engine::Mysql => "CREATE USER '{{name}}'@'%' IDENTIFIED BY '{{password}}' REQUIRE SSL;".to_owned(),
                Engine::Postgres | Engine::Tcp => {
                    "CREATE ROLE \"{{name}}\" WITH LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}';"
                        .to_owned()
                }
            });
            // Default privileges would keep Vault from dropping the user.
            lines.extend(grants(target, &quoted(*engine, "{{name}}"), version, false));
        }
    }
    lines.push(String::new());
    lines.join("\n")
}

/// What the access level needs, for a user that stays or, without `lasting`, for one that is dropped soon.
fn grants(target: &Target, user: &str, version: Option<u16>, lasting: bool) -> Vec<String> {
    let rights = if target.read_only { "SELECT" } else { "SELECT, INSERT, UPDATE, DELETE" };
    let mut lines = Vec::new();
    if target.engine == Engine::Mysql {
        let database = match &target.database {
            Some(database) => schema_pattern(database),
            None => {
                lines.push("-- No database is configured: put its name in place.".to_owned());
                "`DATABASE`".to_owned()
            }
        };
        lines.push(format!("GRANT {rights} ON {database}.* TO {user};"));
        return lines;
    }
    match &target.database {
        Some(database) => {
            lines.push(format!("-- From here on in database {}.", comment(database)));
            lines.push(format!("GRANT CONNECT ON DATABASE {} TO {user};", identifier(database)));
        }
        None => lines.push("-- From here on in each database that it may use.".to_owned()),
    }
    lines.push(format!("GRANT USAGE ON SCHEMA public TO {user};"));
    lines.push(format!("GRANT {rights} ON ALL TABLES IN SCHEMA public TO {user};"));
    if !target.read_only {
        lines.push(format!("GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA public TO {user};"));
    }
    if lasting {
        lines.push(
            "-- Tables that this administrator makes later; for those of another owner: FOR ROLE OWNER.".to_owned(),
        );
        lines.push(format!("ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT {rights} ON TABLES TO {user};"));
        if !target.read_only {
            lines
                .push(format!("ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT USAGE, SELECT ON SEQUENCES TO {user};"));
        }
        let close = "REVOKE CREATE ON SCHEMA public FROM PUBLIC;";
        match version {
            Some(version) if version >= PUBLIC_IS_CLOSED => {}
            Some(_) => {
                lines.push("-- Before PostgreSQL 15 everybody may create tables in public.".to_owned());
                lines.push(close.to_owned());
            }
            None => lines.push(format!("-- Before PostgreSQL 15 also: {close}")),
        }
    }
    lines
}

fn quoted(engine: Engine, user: &str) -> String {
    match engine {
        Engine::Mysql => account(user),
        Engine::Postgres | Engine::Tcp => identifier(user),
    }
}

/// PostgreSQL manual 4.1.1, quoted identifiers.
fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// MySQL Reference Manual, "Specifying Account Names" and "String Literals".
fn account(user: &str) -> String {
    format!("'{}'@'%'", user.replace('\\', "\\\\").replace('\'', "''"))
}

/// In GRANT, `_` and `%` in the name of a database are wildcards (MySQL Reference Manual, "GRANT Statement").
fn schema_pattern(database: &str) -> String {
    let escaped = database.replace('\\', "\\\\").replace('_', "\\_").replace('%', "\\%").replace('`', "``");
    format!("`{escaped}`")
}

/// Text that stays in its comment.
fn comment(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::VaultConfig;

    fn target(engine: Engine, read_only: bool, credential: CredentialConfig) -> Target {
        Target {
            name: "orders".to_owned(),
            engine,
            host: Some("orders.example.com".to_owned()),
            hostaddr: None,
            port: engine.default_port(),
            database: Some("shop_eu".to_owned()),
            read_only,
            max_connections: None,
            local_port: None,
            relay_port: 5432,
            credential,
        }
    }

    fn iam() -> CredentialConfig {
        CredentialConfig::RdsIam { user: "db_read".to_owned() }
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
        assert_eq!(identifier("a\"; drop table x; --"), "\"a\"\"; drop table x; --\"");
        assert_eq!(account("a'\\"), "'a''\\\\'@'%'");
        assert_eq!(schema_pattern("a`b"), "`a``b`");
        let secret = CredentialConfig::SecretsManager { secret_id: "x\ndrop table y;".to_owned(), region: None };
        let made = script(&target(Engine::Postgres, true, secret), "read", None);
        assert!(made.contains("-- User and password are those of secret xdrop table y;: put"), "{made}");
    }
}
