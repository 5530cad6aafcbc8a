//! The relay's configuration and the environment of `demo`, for a database on this machine.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::iam::Identity;
use crate::mariadb::{self, MariaDb};
use crate::postgres::{self, Postgres};
use crate::{CLUSTER, Config, REGION, TaskDefinition, gateway, iam};

/// The targets of one access level: the orders in PostgreSQL and the events in MariaDB as `user`, and for `read` a
/// target whose database user the task role may not use.
fn targets(port: u16, mysql: Option<u16>, user: &str, with_admin: bool) -> Value {
    let target = |engine: &str, host: &str, port: u16, database: &str, user: &str, local_port: u16| {
        json!({
            "engine": engine, "host": host, "hostaddr": "127.0.0.1", "port": port, "database": database,
            "local_port": local_port, "credential": {"rds_iam": {"user": user}}
        })
    };
    let mut targets = json!({"orders": target("postgres", postgres::HOST, port, "orders", user, 15432)});
    if with_admin {
        targets["orders-admin"] = target("postgres", postgres::HOST, port, "orders", "db_admin", 15433);
    }
    if let Some(mysql) = mysql {
        targets["events"] = target("mysql", mariadb::HOST, mysql, "events", user, 13306);
    }
    targets
}

fn definition(access: &str, targets: &Value, ca_file: &Path) -> TaskDefinition {
    let config = json!({
        "env": "demo", "access": access, "region": REGION, "idle_stop": "30m", "max_age": "8h", "target": targets
    });
    TaskDefinition {
        family: format!("bastion-demo-{access}"),
        container: "bastion".to_owned(),
        environment: BTreeMap::from([
            ("BASTION_CONFIG".to_owned(), config.to_string()),
            ("BASTION_EXTRA_CA_FILE".to_owned(), ca_file.display().to_string()),
        ]),
        role: format!("bastion-demo-{access}"),
        db_users: vec![format!("db_{access}")],
        stop_timeout: Duration::from_secs(30),
    }
}

/// Everything that `bastion up demo` needs. The task role's users may log in to both servers.
pub fn config(folder: &Path, relay: &Path, database: &Postgres, mysql: Option<&MariaDb>) -> Config {
    let (port, ca_file) = (database.port, &database.ca_file);
    let mysql_port = mysql.map(|mysql| mysql.port);
    let read = targets(port, mysql_port, "db_read", true);
    let write = targets(port, mysql_port, "db_write", false);
    let access = |name: &str, targets: &Value| {
        json!({
            "task_definition": format!("bastion-demo-{name}"), "subnets": ["subnet-0a1b2c3d"],
            "security_groups": ["sg-0a1b2c3d"], "target": targets
        })
    };
    let environment = json!({
        "region": REGION, "cluster": CLUSTER, "document": "bastion-demo", "idle_stop": "30m", "max_age": "8h",
        "access": {"read": access("read", &read), "write": access("write", &write)}
    });
    let expired = Identity {
        expires_at: Some(std::time::SystemTime::UNIX_EPOCH),
        ..Identity::session("Developer", "carol", &iam::DEVELOPER)
    };
    let endpoints = std::iter::once(format!("{}:{port}", postgres::HOST))
        .chain(mysql.map(|mysql| format!("{}:{}", mariadb::HOST, mysql.port)))
        .collect();
    Config {
        folder: folder.to_owned(),
        listen: Ipv4Addr::LOCALHOST,
        relay: relay.to_owned(),
        container: None,
        identities: vec![
            Identity::session("Developer", "alice", &iam::DEVELOPER),
            Identity::session("Developer", "bob", &iam::DEVELOPER),
            expired,
            Identity::session("Visitor", "eve", &["sts:GetCallerIdentity", "ssm:GetParameter"]),
        ],
        task_definitions: vec![definition("read", &read, ca_file), definition("write", &write, ca_file)],
        parameters: BTreeMap::from([("/bastion/demo".to_owned(), environment.to_string())]),
        phase: Duration::from_millis(300),
        credential_lifetime: Duration::from_secs(3600),
        rds_state: Some((database.state_file.clone(), endpoints)),
        gateway: gateway::Options::default(),
    }
}

/// Targets that are only bytes, with no name to verify: ports of this machine, for measurements.
///
/// # Errors
/// Never, as long as `config` is the one above.
pub fn add_tcp_targets(config: &mut Config, targets: &[(String, u16)]) -> anyhow::Result<()> {
    let target = |port: u16| json!({"engine": "tcp", "host": "127.0.0.1", "port": port});
    let parameter = config.parameters.get_mut("/bastion/demo").context("no environment")?;
    let mut environment: Value = serde_json::from_str(parameter)?;
    for (name, port) in targets {
        for access in ["read", "write"] {
            environment["access"][access]["target"][name] = target(*port);
        }
    }
    *parameter = environment.to_string();
    config.change_relays(|relay| {
        for (name, port) in targets {
            relay["target"][name] = target(*port);
        }
    })
}
